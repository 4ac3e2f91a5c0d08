//! What `GET /metrics` and the page say of volumes that are mounted: figures that are true, also when a disk is gone.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::debug_server::{free_address, get};
use crate::harness::{NodeHarness, Sysfs, Vol};
use crate::metrics::scrape_at;
use crate::support::single_plugin::until;

/// A node whose plugin answers on an address, and the address.
fn start() -> (NodeHarness, String) {
    let address = free_address();
    let rig = NodeHarness::start_with(&[&format!("--debug-addr={address}")]);
    (rig, address)
}

/// The value of a volume's series.
pub fn of(series: &BTreeMap<String, f64>, name: &str, vol: &Vol) -> Option<f64> {
    let (name, volume) = (format!("do_csi_{name}{{"), format!("name=\"{}\"", vol.name));
    let mut found = series.iter().filter(|(series, _)| series.starts_with(&name) && series.contains(&volume));
    let value = found.next().map(|(_, value)| *value);
    assert!(found.next().is_none(), "one series for each volume: {series:#?}");
    value
}

pub fn finding(series: &BTreeMap<String, f64>, reason: &str) -> f64 {
    let found = series.iter().filter(|(name, _)| name.starts_with(&format!("do_csi_findings{{reason=\"{reason}\"")));
    found.map(|(_, count)| count).sum()
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_the_figures_of_a_mounted_volume_are_true_and_say_whose_it_is() {
    let (rig, address) = start();
    for fs in ["ext4", "xfs"] {
        let vol = rig.volume(&format!("vol-{fs}"), "").fs(fs);
        rig.stage(&vol).unwrap();
        rig.publish(&vol, "7b1e").unwrap();
        rig.write(&rig.staging(&vol), "file", &"x".repeat(5 << 20)).unwrap();
        let own = || rig.fs_figures(&rig.staging(&vol));
        #[expect(clippy::cast_precision_loss, reason = "a test's volume is small")]
        let close = |value: Option<f64>, want: u64| value.is_some_and(|value| (value - want as f64).abs() < 1e6);
        until("the figures are true", || {
            let (series, fs) = (scrape_at(&address), own());
            let bytes = |blocks: u64| blocks * fs.fragment_size();
            close(of(&series, "volume_size_bytes", &vol), bytes(fs.blocks()))
                && close(of(&series, "volume_used_bytes", &vol), bytes(fs.blocks() - fs.blocks_free()))
                && close(of(&series, "volume_available_bytes", &vol), bytes(fs.blocks_available()))
                && of(&series, "volume_inodes_used", &vol).is_some_and(|used| used > 1.0)
                && of(&series, "volume_written_bytes_total", &vol).is_some_and(|written| written >= 5e6)
        });
        let series = scrape_at(&address);
        let label = format!("volume=\"{}\",name=\"{}\",alloc=\"7b1e\"", vol.csi.id, vol.name);
        let info = series.keys().find(|name| name.starts_with("do_csi_volume_info{") && name.contains(&label));
        assert!(info.is_some_and(|info| info.contains(&format!("filesystem=\"{fs}\""))), "{label}: {series:#?}");
        assert_eq!(
            (of(&series, "volume_read_only", &vol), of(&series, "volume_answers", &vol)),
            (Some(0.0), Some(1.0))
        );
        assert!(of(&series, "volume_figures_age_seconds", &vol).unwrap() < 20.0, "{series:#?}");
        let (_, page) = get(&address, "/");
        for part in [&vol.name, &vol.csi.id, "used by <code>7b1e</code>"] {
            assert!(page.contains(part), "{part}: {page}");
        }
        rig.unpublish(&vol, "7b1e").unwrap();
        rig.unstage(&vol).unwrap();
        let is_unused = || of(&scrape_at(&address), "volume_size_bytes", &vol).is_none();
        until("what is not mounted has no size", is_unused);
    }
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_volume_whose_disk_is_gone_is_found_and_holds_up_no_scrape() {
    let (address, sysfs) = (free_address(), Sysfs::new());
    let rig = NodeHarness::start_with(&[&format!("--debug-addr={address}"), &sysfs.flag()]);
    let (dead, other) = (rig.volume("dead", "").fs("ext4"), rig.volume("other", "").fs("xfs"));
    for vol in [&dead, &other] {
        sysfs.show(&rig.node(vol));
        rig.stage(vol).unwrap();
        rig.publish(vol, "alloc").unwrap();
    }
    until("both are seen", || {
        let series = scrape_at(&address);
        [&dead, &other].iter().all(|vol| of(&series, "volume_size_bytes", vol).is_some())
    });
    assert_eq!(finding(&scrape_at(&address), "MountedButDetached"), 0.0);
    let node = rig.node(&dead);
    rig.detach(&dead);
    sysfs.hide(&node);
    rig.hide_node(&node);
    until("it is found", || {
        let started = Instant::now();
        let (series, (_, page)) = (scrape_at(&address), get(&address, "/"));
        assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
        finding(&series, "MountedButDetached") == 1.0
            && page.contains("MountedButDetached")
            && page.contains("the plugin takes the dead mount away")
    });
    assert_eq!(of(&scrape_at(&address), "volume_answers", &other), Some(1.0), "the other one is read all the same");
    for vol in [&dead, &other] {
        rig.unpublish(vol, "alloc").unwrap();
        rig.unstage(vol).unwrap();
    }
    until("nothing is found any more", || finding(&scrape_at(&address), "MountedButDetached") == 0.0);
    rig.show_node(&node);
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_volume_that_can_only_be_read_after_an_error_is_found_and_shown() {
    let (rig, address) = start();
    let vol = rig.volume("vol", "").fs("ext4");
    rig.stage(&vol).unwrap();
    rig.publish(&vol, "alloc").unwrap();
    until("it is seen", || of(&scrape_at(&address), "volume_read_only", &vol) == Some(0.0));
    let own = std::path::Path::new("/sys/fs/ext4").join(rig.node(&vol).file_name().unwrap());
    std::fs::write(own.join("trigger_fs_error"), "a test").unwrap();
    until("it is found", || {
        let series = scrape_at(&address);
        finding(&series, "FileSystemReadOnlyByErrors") == 1.0 && of(&series, "volume_read_only", &vol) == Some(1.0)
    });
    let (_, page) = get(&address, "/");
    assert!(page.contains(">read-only</span>") && page.contains("FileSystemReadOnlyByErrors"), "{page}");
    rig.unpublish(&vol, "alloc").unwrap();
    rig.unstage(&vol).unwrap();
    rig.close();
}
