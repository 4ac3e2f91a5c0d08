//! What the node side costs beyond the tools and the kernel it works with.
//!
//! The figures are printed; only their order of magnitude is asserted, as a busy machine is no defect.

use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount, umount};

use crate::rig::{Rig, Vol, ok};

const ROUNDS: usize = 40;

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn timed(rounds: usize, mut act: impl FnMut() -> Duration) -> Duration {
    median((0..rounds).map(|_| act()).collect())
}

fn time(act: impl FnOnce()) -> Duration {
    let started = Instant::now();
    act();
    started.elapsed()
}

/// What blkid and the kernel's mount take by themselves on this disk.
fn tools_alone(rig: &Rig, vol: &Vol, fs: &str) -> (Duration, Duration) {
    let node = rig.node(vol);
    let dir = tempfile::tempdir().unwrap();
    let blkid = time(|| drop(ok("blkid", &["-p".as_ref(), "-o".as_ref(), "export".as_ref(), node.as_os_str()])));
    let data = (fs == "xfs").then_some("nouuid");
    let mounted = time(|| mount(Some(&node), dir.path(), Some(fs), MsFlags::empty(), data).unwrap());
    umount(dir.path()).unwrap();
    (blkid, mounted)
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_staging_and_publishing_cost_little_beyond_the_tools() {
    let rig = Rig::start();
    for fs in ["xfs", "ext4"] {
        let vol = rig.volume(&format!("vol-{fs}"), fs);
        rig.stage(&vol).unwrap();
        rig.unstage(&vol).unwrap();
        let (mut blkid, mut mounted, mut staged, mut beyond) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            // By turns, so that a moment in which the machine is busy with something else meets all of them.
            let (probe, mount) = tools_alone(&rig, &vol, fs);
            let stage = time(|| rig.stage(&vol).unwrap());
            rig.unstage(&vol).unwrap();
            beyond.push(stage.saturating_sub(probe + mount));
            blkid.push(probe);
            mounted.push(mount);
            staged.push(stage);
        }
        let [blkid, mounted, staged, beyond] = [blkid, mounted, staged, beyond].map(median);
        rig.stage(&vol).unwrap();
        let mut unpublished = Vec::new();
        let published = timed(ROUNDS, || {
            let took = time(|| rig.publish(&vol, "alloc").unwrap());
            unpublished.push(time(|| rig.unpublish(&vol, "alloc").unwrap()));
            took
        });
        let read_only = timed(ROUNDS, || {
            let took = time(|| rig.publish_as(&vol, "alloc", true).unwrap());
            rig.unpublish(&vol, "alloc").unwrap();
            took
        });
        let unpublished = median(unpublished);
        let call = timed(ROUNDS, || time(|| drop(rig.client().probe().unwrap())));
        rig.unstage(&vol).unwrap();
        eprintln!(
            "{fs}: stage {staged:.1?}, of which blkid {blkid:.1?} and mount {mounted:.1?}, so {beyond:.1?} beyond them; \
             publish {published:.2?} (read-only {read_only:.2?}), unpublish {unpublished:.2?}; \
             a call that does nothing {call:.2?}"
        );
        assert!(beyond < Duration::from_millis(150), "{fs}: {beyond:?}");
        assert!(published.max(unpublished) < Duration::from_millis(20), "{fs}: {published:?} {unpublished:?}");
    }
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_memory_does_not_grow_with_the_number_of_calls() {
    // `CYCLES=10000` for the figure; by default only enough to see a leak of a page in each.
    let cycles = std::env::var("CYCLES").ok().and_then(|text| text.parse().ok()).unwrap_or(150_u64);
    let rig = Rig::start();
    let vol = rig.volume("vol", "xfs");
    let cycle = || {
        rig.stage(&vol).unwrap();
        rig.publish(&vol, "alloc").unwrap();
        rig.unpublish(&vol, "alloc").unwrap();
        rig.unstage(&vol).unwrap();
    };
    (0..100).for_each(|_| cycle());
    let (before, anonymous_before) = rig.plugin().memory_kb().unwrap();
    (0..cycles).for_each(|_| cycle());
    let (after, anonymous_after) = rig.plugin().memory_kb().unwrap();
    eprintln!(
        "{cycles} cycles of stage, publish, unpublish, unstage: {before} kB resident before, {after} kB after; not \
         backed by files {anonymous_before} kB before, {anonymous_after} kB after"
    );
    let grown = anonymous_after.saturating_sub(anonymous_before);
    assert!(grown < 512 + cycles, "grown by {grown} kB");
    rig.close();
}
