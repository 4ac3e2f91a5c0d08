//! The story that the demo shows, as a test.

use std::path::Path;
use std::time::Duration;

use crate::PROGRAM;
use crate::sim::SimConfig;
use crate::support::cloud::Cloud;
use crate::support::story;
use crate::support::story::Listener;

/// Somebody who only counts, and has enough after some steps.
struct Counter {
    steps: u32,
    patience: u32,
}

impl Counter {
    fn new(patience: u32) -> Counter {
        Counter { steps: 0, patience }
    }
}

impl Listener for Counter {
    fn chapter(&mut self, _: &str) {}
    fn begins(&mut self, _: &str) {}
    fn ended(&mut self, _: &str, _: &str, _: Duration) {
        self.steps += 1;
    }
    fn is_cancelled(&self) -> bool {
        self.steps >= self.patience
    }
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_volume_lives_its_whole_life_on_two_droplets() {
    let cloud = Cloud::start(SimConfig::default(), &["node-a", "node-b"]).unwrap();
    let mut counter = Counter::new(u32::MAX);
    story::tell(&cloud, &Path::new(PROGRAM).into(), &mut counter).unwrap();
    assert!(counter.steps > 30, "only {} steps", counter.steps);
    assert!(story::leaves_nothing_attached(&cloud.sim));
    cloud.close().unwrap();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_life_that_is_broken_off_anywhere_leaves_nothing() {
    let cloud = Cloud::start(SimConfig::default(), &["node"]).unwrap();
    let machine = &cloud.machines[0];
    let before = machine.mounts();
    for patience in 2..14 {
        let mut counter = Counter::new(patience);
        let told = story::tell_one_life(machine, &Path::new(PROGRAM).into(), &cloud.sim, "one-life", &mut counter);
        assert_eq!(counter.steps, patience, "{told:?}");
        assert!(told.unwrap_err().to_string().contains("interrupted"), "after {patience} steps");
        assert!(cloud.sim.volumes().is_empty(), "after {patience} steps: {:?}", cloud.sim.volumes());
        assert_eq!(machine.mounts(), before, "after {patience} steps");
    }
    cloud.close().unwrap();
}
