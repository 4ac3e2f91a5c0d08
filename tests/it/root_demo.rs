//! The story that the demo shows, as a test.

use std::path::Path;
use std::time::Duration;

use crate::sim::SimConfig;
use crate::support::cloud::Cloud;
use crate::support::story::{self, Listener};

/// Somebody who only counts.
#[derive(Default)]
struct Counter(u32);

impl Listener for Counter {
    fn chapter(&mut self, _: &str) {}
    fn begins(&mut self, _: &str) {}
    fn ended(&mut self, _: &str, _: &str, _: Duration) {
        self.0 += 1;
    }
    fn is_tired(&self) -> bool {
        false
    }
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_volume_lives_its_whole_life_on_two_droplets() {
    let cloud = Cloud::start(SimConfig::default(), &["node-a", "node-b"]).unwrap();
    let mut counter = Counter::default();
    story::tell(&cloud, Path::new(env!("CARGO_BIN_EXE_do-csi-plugin")), &mut counter).unwrap();
    assert!(counter.0 > 30, "only {} steps", counter.0);
    assert!(story::leaves_nothing_attached(&cloud.sim));
    cloud.close().unwrap();
}
