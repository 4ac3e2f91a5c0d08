//! A mount that does not answer any more holds up nothing but itself.
//!
//! The question never gets to the kernel: strace keeps each thread that asks it.

use std::time::{Duration, Instant};

use crate::debug_server::{free_address, get};
use crate::harness::NodeHarness;
use crate::metrics::scrape_at;
use crate::root_answers::Fault;
use crate::root_leftover::begin_to_show;
use crate::root_metrics::{finding, of};
use crate::support::single_plugin::until;
use crate::support::wait_for;

const LIMIT: Duration = Duration::from_secs(90);

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_mount_that_hangs_holds_up_no_scrape_no_page_and_no_upkeep() {
    let address = free_address();
    let rig = NodeHarness::start_with(&[&format!("--debug-addr={address}")]);
    let (hung, other) = (rig.volume("hung", "").fs("ext4"), rig.volume("other", "").fs("xfs"));
    for vol in [&hung, &other] {
        rig.stage(vol).unwrap();
        rig.publish(vol, "alloc").unwrap();
    }
    until("both are seen", || {
        let series = scrape_at(&address);
        [&hung, &other].iter().all(|vol| of(&series, "volume_answers", vol) == Some(1.0))
    });
    let paths = [rig.staging(&hung), rig.target(&hung, "alloc")];
    let dead = Fault::begin(&rig, "openat:delay_enter=600000000", &paths);
    let is_told = || {
        let (series, (_, page)) = (scrape_at(&address), get(&address, "/"));
        of(&series, "volume_answers", &hung) == Some(0.0)
            && finding(&series, "MountDoesNotAnswer") == 1.0
            && page.contains("MountDoesNotAnswer")
    };
    until("it is found", is_told);
    // However often it is asked.
    let started = Instant::now();
    (0..50).for_each(|_| drop(scrape_at(&address)));
    assert_eq!(get(&address, "/livez").0, 200);
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    assert_eq!(of(&scrape_at(&address), "volume_answers", &other), Some(1.0), "the other one is read all the same");
    // What is left behind is taken away all the same.
    let place = begin_to_show(&rig, &other, &rig.staging(&other));
    let is_taken_away = || rig.mount_at(&place).is_none().then_some(());
    assert!(wait_for(LIMIT, is_taken_away).is_some(), "{}", rig.plugin().log());
    let is_left = || (finding(&scrape_at(&address), "MountLeftBehind") > 0.0).then_some(());
    assert!(wait_for(LIMIT, is_left).is_some(), "{}", rig.plugin().log());
    until("it is still told", is_told);
    dead.stop();
    until("it answers again", || of(&scrape_at(&address), "volume_answers", &hung) == Some(1.0));
    for vol in [&hung, &other] {
        rig.unpublish(vol, "alloc").unwrap();
        rig.unstage(vol).unwrap();
    }
    rig.close();
}
