//! What happens at one path: two volumes that come to it at once, links on the way, and what a task mounts inside its target.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Barrier;
use std::thread;

use do_csi_plugin::proto::csi::volume_capability::access_mode::Mode;
use grpcio::RpcStatusCode;

use crate::PROGRAM;
use crate::harness::{NodeHarness, Vol, refused};
use crate::root_answers::Fault;
use crate::support::client::{Client, Outcome};
use crate::support::cloud::TOKEN;
use crate::support::plugin::Plugin;
use crate::support::single_plugin::until;

const PRECONDITION: RpcStatusCode = RpcStatusCode::FAILED_PRECONDITION;

/// Does the same for both volumes, at the same moment.
fn at_once(vols: [&Vol; 2], act: impl Fn(usize, &Vol) -> Outcome<()> + Sync) -> [Outcome<()>; 2] {
    let start = Barrier::new(vols.len());
    let answer = |(index, vol)| {
        start.wait();
        act(index, vol)
    };
    thread::scope(|scope| {
        let [one, other] = [(0, vols[0]), (1, vols[1])].map(|call| scope.spawn(move || answer(call)));
        [one.join().unwrap(), other.join().unwrap()]
    })
}

/// The mounts at a path, lowest first.
fn mounts_at(rig: &NodeHarness, path: &Path) -> Vec<String> {
    let mounts = rig.machine().droplet.mounts();
    mounts.into_iter().filter(|line| line.split(' ').nth(4) == path.to_str()).collect()
}

/// Asserts that one of two calls was answered OK, and gives that one's number.
fn winner(answers: [Outcome<()>; 2]) -> usize {
    let winner = answers.iter().position(Result::is_ok).unwrap_or_else(|| panic!("{answers:?}"));
    let [one, other] = answers;
    refused(if winner == 0 { other } else { one }, PRECONDITION, &["is taken"]);
    winner
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_of_two_volumes_that_come_to_one_path_at_once_one_is_there_and_nothing_else() {
    let rig = NodeHarness::start();
    let vols = [rig.volume("one", "xfs"), rig.volume("two", "xfs")];
    let both = [&vols[0], &vols[1]];
    let nodes = both.map(|vol| rig.node(vol).to_string_lossy().into_owned());
    for round in 0..20 {
        let staging = rig.machine().staging("both");
        let winner = winner(at_once(both, |_, vol| rig.stage_at(vol, &staging)));
        let there = mounts_at(&rig, &staging);
        assert!(there.len() == 1 && there[0].contains(&nodes[winner]), "{round}: {there:?}");
        rig.client().unstage(&vols[winner].csi.id, &staging).unwrap();
    }
    for vol in both {
        rig.stage(vol).unwrap();
    }
    for round in 0..40 {
        let target = rig.machine().target("alloc", "both");
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        let publish = |_, vol: &Vol| rig.client().publish(&vol.csi, &rig.staging(vol), &target, round % 2 == 0);
        let winner = winner(at_once(both, publish));
        let there = mounts_at(&rig, &target);
        assert!(there.len() == 1 && there[0].contains(&nodes[winner]), "{round}: {there:?}");
        rig.client().unpublish(&vols[winner].csi.id, &target).unwrap();
        assert_eq!(fs::read_dir(target.parent().unwrap()).unwrap().count(), 0);
    }
    for vol in both {
        rig.unstage(vol).unwrap();
    }
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_two_plugins_at_one_target_never_show_the_hosts_own_files() {
    // While a job is updated two plugins run, and neither knows the other's locks.
    let rig = NodeHarness::start();
    let vols = [rig.volume("one", "xfs"), rig.volume("two", "xfs")];
    let both = [&vols[0], &vols[1]];
    let second = second_plugin(&rig);
    for vol in both {
        rig.stage(vol).unwrap();
    }
    let nodes = both.map(|vol| rig.node(vol).to_string_lossy().into_owned());
    let clients: [&Client; 2] = [rig.client(), &second.client];
    let target = rig.machine().target("alloc", "both");
    fs::create_dir_all(target.parent().unwrap()).unwrap();
    for round in 0..60 {
        let publish = |index: usize, vol: &Vol| clients[index].publish(&vol.csi, &rig.staging(vol), &target, true);
        let answers = at_once(both, publish);
        for line in mounts_at(&rig, &target) {
            assert!(nodes.iter().any(|node| line.contains(node)), "{round}: {answers:?}: {line}");
        }
        // What one of them prepares does not appear where the other volume is staged.
        for (vol, node) in both.iter().zip(&nodes) {
            let staged = mounts_at(&rig, &rig.staging(vol));
            assert!(staged.len() == 1 && staged[0].contains(node), "{round}: {answers:?}: {staged:?}");
        }
        while rig.mount_at(&target).is_some() {
            rig.run("umount", &[&target.to_string_lossy()]);
        }
    }
    second.stop().unwrap();
    for vol in both {
        rig.unpublish(vol, "alloc").unwrap();
        rig.unstage(vol).unwrap();
    }
    rig.close();
}

/// A second plugin on the same droplet, as there is one while a job is updated.
fn second_plugin(rig: &NodeHarness) -> Plugin {
    let mut launch = rig.machine().launch(Path::new(PROGRAM));
    launch.socket = rig.machine().home().join("second.sock");
    launch.log = rig.machine().home().join("second.log");
    launch.start().unwrap()
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_two_plugins_that_show_one_volume_at_one_target_undo_nothing_of_each_other() {
    let rig = NodeHarness::start();
    let second = second_plugin(&rig);
    let clients: [&Client; 2] = [rig.client(), &second.client];
    for vol in [rig.volume("files", "xfs"), rig.volume("raw", "").block()] {
        rig.stage(&vol).unwrap();
        let (staging, target) = (rig.staging(&vol), rig.target(&vol, "alloc"));
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        let is_raw = vol.name == "raw";
        for round in 0..60 {
            let publish = |index: usize, vol: &Vol| clients[index].publish(&vol.csi, &staging, &target, true);
            let answers = at_once([&vol, &vol], publish);
            assert!(answers.iter().any(Result::is_ok), "{round}: {answers:?}");
            assert_eq!(mounts_at(&rig, &target).len(), 1, "{round}: {answers:?}");
            assert!(!is_raw || is_read_only(&rig, &vol), "{round}: {answers:?}");
            clients[round % 2].unpublish(&vol.csi.id, &target).unwrap();
        }
        rig.unstage(&vol).unwrap();
    }
    second.stop().unwrap();
    rig.close();
}

/// Whether the kernel refuses to write to a volume's disk.
fn is_read_only(rig: &NodeHarness, vol: &Vol) -> bool {
    let name = rig.node(vol).file_name().unwrap().to_owned();
    fs::read_to_string(Path::new("/sys/block").join(name).join("ro")).unwrap().trim() == "1"
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_raw_disk_that_two_plugins_show_is_for_all_as_it_was_said_to_be() {
    let rig = NodeHarness::start();
    let second = second_plugin(&rig);
    let clients: [&Client; 2] = [rig.client(), &second.client];
    let vol = rig.volume("raw", "").block();
    rig.stage(&vol).unwrap();
    let staging = rig.staging(&vol);
    let targets = ["one", "two"].map(|alloc| rig.target(&vol, alloc));
    let is_shown = |answer: &Outcome<()>| answer.is_ok();
    for round in 0..60 {
        // One for reading, one for writing: whoever comes second is refused.
        let publish = |index: usize, vol: &Vol| clients[index].publish(&vol.csi, &staging, &targets[index], index == 0);
        let answers = at_once([&vol, &vol], publish);
        assert_eq!(answers.iter().filter(|answer| is_shown(answer)).count(), 1, "{round}: {answers:?}");
        assert_eq!(is_read_only(&rig, &vol), answers[0].is_ok(), "{round}: {answers:?}");
        for (client, target) in clients.iter().zip(&targets) {
            client.unpublish(&vol.csi.id, target).unwrap();
        }
        // One goes while another one comes.
        clients[0].publish(&vol.csi, &staging, &targets[0], true).unwrap();
        let swap = |index: usize, vol: &Vol| match index {
            0 => clients[0].unpublish(&vol.csi.id, &targets[0]),
            _ => clients[1].publish(&vol.csi, &staging, &targets[1], true),
        };
        let answers = at_once([&vol, &vol], swap);
        assert!(answers.iter().all(is_shown), "{round}: {answers:?}");
        assert!(is_read_only(&rig, &vol), "{round}");
        clients[1].unpublish(&vol.csi.id, &targets[1]).unwrap();
        assert!(!is_read_only(&rig, &vol), "{round}");
    }
    rig.unstage(&vol).unwrap();
    second.stop().unwrap();
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_target_that_cannot_be_removed_keeps_no_volume_mounted() {
    // The kernel makes the droplet's root file system read-only when it has seen errors in it.
    let rig = NodeHarness::start();
    for vol in [rig.volume("files", "xfs"), rig.volume("raw", "").block()] {
        let target = rig.target(&vol, "alloc");
        let parent = target.parent().unwrap().to_string_lossy().into_owned();
        fs::create_dir_all(&parent).unwrap();
        rig.stage(&vol).unwrap();
        rig.run("mount", &["--bind", &parent, &parent]);
        rig.publish(&vol, "alloc").unwrap();
        // What a killed call has left beside it.
        fs::write(target.with_file_name(format!(".{}.do-csi-lock", target.file_name().unwrap().to_string_lossy())), "")
            .unwrap();
        rig.run("mount", &["-o", "remount,bind,ro", &parent]);
        for _ in 0..2 {
            rig.unpublish(&vol, "alloc").unwrap();
            assert_eq!(rig.mount_at(&target), None);
        }
        rig.unstage(&vol).unwrap();
        assert!(target.exists());
        rig.run("umount", &[&parent]);
        rig.unpublish(&vol, "alloc").unwrap();
        assert!(!target.exists());
    }
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_of_two_volumes_that_two_plugins_stage_at_one_path_one_is_there_and_only_that_is_said_to_be() {
    let rig = NodeHarness::start();
    let vols = [rig.volume("one", "ext4"), rig.volume("two", "ext4")];
    let both = [&vols[0], &vols[1]];
    let second = second_plugin(&rig);
    let nodes = both.map(|vol| rig.node(vol).to_string_lossy().into_owned());
    let clients: [&Client; 2] = [rig.client(), &second.client];
    let staging = rig.machine().staging("both");
    for round in 0..40 {
        let winner = winner(at_once(both, |index, vol| clients[index].stage(&vol.csi, &staging)));
        let there = mounts_at(&rig, &staging);
        assert!(there.len() == 1 && there[0].contains(&nodes[winner]), "{round}: {there:?}");
        clients[winner].unstage(&vols[winner].csi.id, &staging).unwrap();
        // The file that was locked is gone, too.
        let left: Vec<_> =
            fs::read_dir(staging.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(left, std::slice::from_ref(&staging));
    }
    second.stop().unwrap();
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_one_path_by_two_names_is_one_path_and_a_target_is_not_inside_its_staging_path() {
    let rig = NodeHarness::start();
    let vols = [rig.volume("one", "xfs"), rig.volume("two", "xfs")];
    let both = [&vols[0], &vols[1]];
    for vol in both {
        rig.stage(vol).unwrap();
    }
    let home = rig.machine().home();
    fs::create_dir_all(home.join("real")).unwrap();
    symlink(home.join("real"), home.join("link")).unwrap();
    let targets = ["real", "link"].map(|way| home.join(way).join("alloc/target"));
    for _ in 0..20 {
        let publish =
            |index: usize, vol: &Vol| rig.client().publish(&vol.csi, &rig.staging(vol), &targets[index], true);
        let winner = winner(at_once(both, publish));
        assert_eq!(mounts_at(&rig, &targets[0]).len(), 1);
        rig.client().unpublish(&vols[winner].csi.id, &targets[1 - winner]).unwrap();
        assert!(!targets[0].exists());
    }
    // A link hides that the target lies inside what is mounted.
    symlink(rig.staging(&vols[0]), home.join("inside")).unwrap();
    let inside = home.join("inside/target");
    let refusal = rig.client().publish(&vols[0].csi, &rig.staging(&vols[0]), &inside, false);
    refused(refusal, RpcStatusCode::INVALID_ARGUMENT, &["target_path", "staging"]);
    assert!(!rig.file(&rig.staging(&vols[0]), "target").exists());
    for vol in both {
        rig.unstage(vol).unwrap();
    }
    rig.close();
}

/// A process in a mount namespace of its own, whose mounts are related to the droplet's.
struct Namespace(Child);

impl Namespace {
    fn start(rig: &NodeHarness, propagation: &str) -> Namespace {
        let mut command = rig.machine().droplet.command(Path::new("unshare"));
        command.args(["--mount", "--propagation", propagation, "sh", "-c", "echo up && exec cat"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "up\n");
        Namespace(child)
    }

    fn mounts_below(&self, path: &Path) -> Vec<PathBuf> {
        mounts_below(&fs::read_to_string(format!("/proc/{}/mountinfo", self.0.id())).unwrap(), path)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

/// The places below a path at which something is mounted.
fn mounts_below(table: &str, path: &Path) -> Vec<PathBuf> {
    let targets = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    targets.filter(|target| target.starts_with(path) && target != path).collect()
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_what_is_mounted_inside_one_target_is_seen_in_no_other_and_keeps_none_from_being_unmounted() {
    // Three namespaces, as with Docker: the host's, the plugin's, which shares mounts with it, and a task's, to which those
    // of the host come.
    let rig = NodeHarness::start();
    let mut launch = rig.machine().launch(Path::new(PROGRAM));
    launch.command = rig.machine().droplet.command(Path::new("unshare"));
    launch.command.args(["--mount", "--propagation", "unchanged", PROGRAM]).env("DIGITALOCEAN_ACCESS_TOKEN", TOKEN);
    launch.socket = rig.machine().home().join("inside.sock");
    let plugin = launch.start().unwrap();
    let task = Namespace::start(&rig, "slave");
    let vol = rig.volume("vol", "xfs");
    let staging = rig.staging(&vol);
    let readers = staging.with_file_name("ro-file-system-single-node-reader-only");
    let targets = ["one", "two", "three", "four"].map(|alloc| rig.target(&vol, alloc));
    for path in [&staging, &readers].into_iter().chain(targets.iter()) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
    }
    plugin.client.stage(&vol.csi, &staging).unwrap();
    let reader = vol.mode(Mode::SINGLE_NODE_READER_ONLY);
    plugin.client.stage(&reader.csi, &readers).unwrap();
    plugin.client.publish(&vol.csi, &staging, &targets[0], false).unwrap();
    plugin.client.publish(&vol.csi, &staging, &targets[1], false).unwrap();
    plugin.client.publish(&vol.csi, &staging, &targets[2], true).unwrap();
    plugin.client.publish(&reader.csi, &readers, &targets[3], true).unwrap();
    fs::create_dir(rig.file(&targets[0], "cache")).unwrap();
    let everywhere: Vec<&PathBuf> = [&staging, &readers].into_iter().chain(&targets).collect();
    let inside = |path: &PathBuf| {
        let host = rig.machine().droplet.mounts().join("\n");
        let plugins = fs::read_to_string(format!("/proc/{}/mountinfo", plugin.pid())).unwrap();
        [mounts_below(&host, path), mounts_below(&plugins, path), task.mounts_below(path)]
    };
    for at in [&targets[0], &targets[1], &staging, &readers] {
        let cache = at.join("cache");
        rig.run("mount", &["-t", "tmpfs", "cache", &cache.to_string_lossy()]);
        for path in &everywhere {
            let want = if *path == at { vec![cache.clone()] } else { Vec::new() };
            assert_eq!(inside(path), [(); 3].map(|()| want.clone()), "{}: {}", at.display(), path.display());
        }
        rig.run("umount", &[&cache.to_string_lossy()]);
    }
    // With something mounted inside, one target stays, and all others go.
    let cache = targets[0].join("cache");
    rig.run("mount", &["-t", "tmpfs", "cache", &cache.to_string_lossy()]);
    for target in &targets[1..] {
        plugin.client.unpublish(&vol.csi.id, target).unwrap();
    }
    for staging in [&staging, &readers] {
        plugin.client.unstage(&vol.csi.id, staging).unwrap();
    }
    assert!(plugin.client.unpublish(&vol.csi.id, &targets[0]).is_err());
    assert_eq!(inside(&targets[0]), [(); 3].map(|()| vec![cache.clone()]));
    rig.run("umount", &[&cache.to_string_lossy()]);
    plugin.client.unpublish(&vol.csi.id, &targets[0]).unwrap();
    let left = rig.machine().droplet.mounts();
    assert!(left.iter().all(|line| !line.contains("/vol/")), "{left:?}");
    plugin.stop().unwrap();
    drop(task);
    rig.close();
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_what_another_plugin_has_published_meanwhile_stays_when_a_call_fails_because_of_it() {
    let rig = NodeHarness::start();
    let vol = rig.volume("vol", "xfs");
    rig.stage(&vol).unwrap();
    let target = rig.target(&vol, "alloc");
    let slow = Fault::begin(&rig, "mkdir:delay_exit=10000000", std::slice::from_ref(&target));
    thread::scope(|scope| {
        let call = scope.spawn(|| rig.publish(&vol, "alloc"));
        until("the target is made", || target.exists());
        rig.run("mount", &["--bind", &rig.staging(&vol).to_string_lossy(), &target.to_string_lossy()]);
        rig.run("mount", &["-o", "remount,bind,ro", &target.to_string_lossy()]);
        assert!(call.join().unwrap().is_err());
    });
    assert!(slow.stop().contains("(DELAYED)"));
    assert_eq!(mounts_at(&rig, &target).len(), 1, "{}", rig.plugin().log());
    rig.unpublish(&vol, "alloc").unwrap();
    rig.unstage(&vol).unwrap();
    rig.close();
}
