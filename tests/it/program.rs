//! The program as an operator meets it: flags, environment, exit codes, the socket file, signals, the log.

use std::fs;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use do_csi_plugin::proto::csi;
use grpcio::RpcStatusCode;
use nix::sys::signal::Signal;

use crate::PROGRAM;
use crate::sim::{ActionFault, DropletSpec, Fault, NewVolume, SimConfig};
use crate::support::client::{Client, Volume, option};
use crate::support::cloud::Cloud;
use crate::support::plugin::Plugin;
use crate::support::single_plugin::{DROPLET, SinglePlugin, TOKEN, bare, end_of, run_to_end, until};

/// Long enough for a test to be over before it has passed.
const FOR_EVER: Duration = Duration::from_secs(3600);

/// The flags of the official driver, and those of this one.
const FLAGS: [&str; 20] = [
    "--endpoint",
    "--token",
    "--url",
    "--region",
    "--do-tag",
    "--driver-name",
    "--debug-addr",
    "--default-volumes-page-size",
    "--do-api-rate-limit",
    "--validate-attachment",
    "--volume-limit",
    "--version",
    "--token-file",
    "--takeover",
    "--mode",
    "--socket-mode",
    "--metadata-url",
    "--device-dir",
    "--sys-dir",
    "--help",
];

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The one line of a program that refuses to start; everything that such an end must be is checked here.
fn refusal(what: &str, output: &Output) -> String {
    let line = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{what}: {line}");
    assert_eq!(text(&output.stdout), "", "{what}");
    assert!(line.starts_with("do-csi-plugin: ") && line.ends_with('\n'), "{what}: {line:?}");
    assert_eq!(line.lines().count(), 1, "{what}: {line}");
    assert!(line.len() < 400, "{what}: {line}");
    line
}

/// Starts the program with arguments and environment of its own and gives its refusal.
fn refused(solo: &SinglePlugin, args: &[&str], env: &[(&str, &str)]) -> String {
    let mut command = solo.command();
    command.args(args).envs(env.iter().copied());
    let output = run_to_end(command).unwrap_or_else(|err| panic!("{args:?} {env:?}: {err}"));
    refusal(&format!("{args:?} {env:?}"), &output)
}

fn connects(socket: &Path) -> bool {
    UnixStream::connect(socket).is_ok()
}

/// Starts a command that is to serve on a socket, and waits until it does.
fn serve(mut command: Command, socket: &Path) -> std::process::Child {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("it serves", || connects(socket) || child.try_wait().unwrap().is_some());
    assert!(Client::connect(socket).probe().is_ok(), "{}", socket.display());
    child
}

fn kill(mut child: std::process::Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_flag_that_cannot_work_is_one_line_and_exit_code_2() {
    let solo = SinglePlugin::new(PROGRAM);
    let table: [(&[&str], &str); 31] = [
        (&["--nonsense"], "--nonsense"),
        (&["-nonsense=1"], "--nonsense"),
        (&["stray"], "stray"),
        (&["--endpoint"], "--endpoint"),
        (&["--endpoint=tcp://127.0.0.1:1"], "--endpoint"),
        (&["--endpoint=http://x/y"], "--endpoint"),
        (&["--endpoint=unix://"], "--endpoint"),
        (&["--endpoint=unix:///csi/.."], "--endpoint"),
        (&["--url=ftp://x"], "--url"),
        (&["--url=api.digitalocean.com"], "--url"),
        (&["--metadata-url=x"], "--metadata-url"),
        (&["--driver-name=.x"], "--driver-name"),
        (&["--driver-name=a b"], "--driver-name"),
        (&["--debug-addr=x"], "--debug-addr"),
        (&["--debug-addr=127.0.0.1"], "--debug-addr"),
        (&["--debug-addr=127.0.0.1:99999"], "--debug-addr"),
        (&["--do-api-rate-limit=-1"], "--do-api-rate-limit"),
        (&["--do-api-rate-limit=NaN"], "--do-api-rate-limit"),
        (&["--do-api-rate-limit=much"], "--do-api-rate-limit"),
        (&["--default-volumes-page-size=-1"], "--default-volumes-page-size"),
        (&["--volume-limit=many"], "--volume-limit"),
        (&["--validate-attachment=maybe"], "--validate-attachment"),
        (&["--takeover=maybe"], "--takeover"),
        (&["--mixed-access=maybe"], "--mixed-access"),
        (&["--socket-mode=999"], "--socket-mode"),
        (&["--socket-mode=07777"], "--socket-mode"),
        (&["--mode=everything"], "monolith, controller, node"),
        (&["--mode=controller"], "token"),
        (&["--region=../fra1"], "--region"),
        (&["--do-tag=no tag"], "--do-tag"),
        (&["--only-tag=no tag"], "--only-tag"),
    ];
    for (args, named) in table {
        let line = refused(&solo, args, &[]);
        assert!(line.contains(named), "{args:?}: {line}");
    }
    for flag in ["--url", "--metadata-url"] {
        let line = refused(&solo, &[&format!("{flag}=https://user:hunter2@host/?key=hunter2")], &[]);
        assert!(line.contains(flag) && !line.contains("hunter2"), "{line}");
    }
    assert_eq!(solo.files(), [""; 0]);
}

#[test]
fn a_wrong_flag_is_answered_with_the_one_that_was_meant() {
    let solo = SinglePlugin::new(PROGRAM);
    for (args, meant) in [
        (&["--takeover", "true"][..], "--takeover=true"),
        (&["-takeover", "true"], "--takeover=true"),
        (&["--mixed-access", "false", "--region=fra1"], "--mixed-access=false"),
        (&["--regoin=fra1"], "did you mean --region?"),
        (&["-token-fiel=/x"], "did you mean --token-file?"),
        (&["--call-budget=5m"], "\"5m\" is not a number of seconds from 0.1 to 600, written without a unit"),
        (&["--max-volume-size=16TiB"], "\"16TiB\" is not a whole number of GiB"),
        (&["--volume-limit=-1"], "\"-1\" is not a whole number from 0 to 4294967295"),
    ] {
        let line = refused(&solo, args, &[]);
        assert!(line.contains(meant), "{args:?}: {line}");
    }
}

/// A value for each flag that cannot work, where the others are right.
const WRONG_VALUES: [(&str, &str); 29] = [
    ("endpoint", "tcp://1"),
    ("socket-mode", "rw"),
    ("mode", "both"),
    ("driver-name", "-x"),
    ("debug-addr", "here"),
    ("token", "to ken"),
    ("token-file", "/no/such/file"),
    ("url", "api"),
    ("ca-file", "/no/such/file"),
    ("region", "Fra 1"),
    ("do-tag", "no tag"),
    ("only-tag", "no tag"),
    ("do-api-rate-limit", "5/s"),
    ("default-volumes-page-size", "all"),
    ("max-volume-size", "0"),
    ("takeover", "maybe"),
    ("validate-attachment", "maybe"),
    ("mixed-access", "maybe"),
    ("droplet-id", "node-1"),
    ("volume-limit", "7.5"),
    ("default-fs-type", "ntfs"),
    ("selinux-label", "container_file_t"),
    ("default-mount-flags", "noexecc"),
    ("release-unused", "soon"),
    ("call-budget", "5m"),
    ("api-timeout", "20s"),
    ("metadata-url", "169.254.169.254"),
    ("log-level", "verbose"),
    ("log-format", "xml"),
];
/// Flags that take whatever stands there: where disks are looked for need not exist yet, and sysfs is looked at later, as the
/// allocations are.
const FREE_VALUES: [&str; 3] = ["device-dir", "sys-dir", "nomad-allocations"];

#[test]
fn every_flag_refuses_a_wrong_value_in_one_line_that_names_it() {
    let solo = SinglePlugin::new(PROGRAM);
    let flags: Vec<String> = do_csi_plugin::config::command()
        .get_arguments()
        .filter(|arg| arg.get_action().takes_values())
        .filter_map(|arg| arg.get_long().map(str::to_owned))
        .collect();
    for flag in flags.iter().filter(|flag| !FREE_VALUES.contains(&flag.as_str())) {
        let wrong = WRONG_VALUES.iter().find(|(name, _)| name == flag);
        let (_, value) = wrong.unwrap_or_else(|| panic!("--{flag} has no wrong value here"));
        let token = if flag.starts_with("token") { "--region=fra1" } else { "--token=t" };
        let line = refused(&solo, &[token, &format!("--{flag}={value}")], &[("CSI_ENDPOINT", "csi.sock")]);
        assert!(line.contains(&format!("--{flag}")), "{flag}: {line}");
    }
    assert_eq!(flags.len(), WRONG_VALUES.len() + FREE_VALUES.len());
    assert_eq!(solo.files(), [""; 0]);
}

#[test]
fn a_wrong_setting_names_the_variable_that_it_is_from() {
    let solo = SinglePlugin::new(PROGRAM);
    for (variable, value, flag) in [
        ("RUST_LOG", "inof", "--log-level"),
        ("DIGITALOCEAN_REGION", "Frankfurt", "--region"),
        ("DIGITALOCEAN_DROPLET_ID", "node-1", "--droplet-id"),
        ("CSI_MODE", "nodes", "--mode"),
        ("CSI_LOG_FORMAT", "jsn", "--log-format"),
    ] {
        let line = refused(&solo, &["--token=t", "--endpoint=unix://csi.sock"], &[(variable, value)]);
        for word in [variable, value, flag] {
            assert!(line.contains(word), "{word}: {line}");
        }
        // Whoever gives the flag too is told of the flag alone.
        let given = format!("{flag}=x,y");
        let line = refused(&solo, &["--token=t", "--endpoint=unix://csi.sock", &given], &[(variable, value)]);
        assert!(line.contains(flag) && !line.contains(variable), "{line}");
    }
}

#[test]
fn a_probe_says_in_words_that_nobody_answers() {
    let solo = SinglePlugin::new(PROGRAM);
    drop(UnixListener::bind(solo.path("left.sock")).unwrap());
    std::fs::write(solo.path("file"), "").unwrap();
    for (socket, why) in
        [("none.sock", "there is no such socket"), ("left.sock", "has ended"), ("file", "it is no socket")]
    {
        let mut command = solo.command();
        command.args(["--probe", &format!("--endpoint={socket}")]);
        let output = run_to_end(command).unwrap();
        let line = text(&output.stderr);
        assert_eq!((output.status.code(), line.lines().count()), (Some(1), 1), "{line}");
        assert!(line.contains(socket) && line.contains(why) && !line.contains("Rpc"), "{line}");
    }
}

#[test]
fn a_folder_that_is_no_sysfs_is_refused_where_disks_are_looked_for() {
    let solo = SinglePlugin::new(PROGRAM);
    for directory in [".", "/proc", "/no/such/directory"] {
        let flag = format!("--sys-dir={directory}");
        for mode in ["--mode=node", "--mode=monolith"] {
            let line = refused(&solo, &[&flag, mode, "--token=t", "--endpoint=unix://csi.sock"], &[]);
            assert!(line.contains("--sys-dir: ") && line.contains(directory), "{line}");
        }
    }
    assert_eq!(solo.files(), [""; 0]);
}

#[test]
fn a_variable_that_cannot_work_is_one_line_that_names_its_flag() {
    let solo = SinglePlugin::new(PROGRAM);
    for (name, value, flag) in [
        ("CSI_ENDPOINT", "tcp://1", "--endpoint"),
        ("DIGITALOCEAN_API_URL", "nowhere", "--url"),
        ("DIGITALOCEAN_METADATA_URL", "nowhere", "--metadata-url"),
        ("DIGITALOCEAN_REGION", "f r a", "--region"),
        ("DIGITALOCEAN_ACCESS_TOKEN", "to ken", "--token"),
        ("DIGITALOCEAN_ACCESS_TOKEN_FILE", "/no/such/file", "--token-file"),
        ("CSI_MODE", "everything", "--mode"),
    ] {
        let line = refused(&solo, &[], &[(name, value)]);
        assert!(line.contains(flag) && !line.contains("to ken"), "{name}: {line}");
    }
}

#[test]
fn an_endpoint_that_cannot_be_served_is_one_line_that_names_the_path() {
    let solo = SinglePlugin::new(PROGRAM);
    fs::write(solo.path("file"), "mine").unwrap();
    fs::create_dir(solo.path("directory")).unwrap();
    std::os::unix::fs::symlink("nowhere", solo.path("link")).unwrap();
    let long = "x".repeat(120);
    for (endpoint, why) in [
        ("unix://file", "not a socket"),
        ("unix://directory", "not a socket"),
        ("unix://link", "not a socket"),
        ("unix://file/csi.sock", "directory"),
        ("unix://none/csi.sock", "directory"),
        (long.as_str(), "bytes"),
        // The kernel makes no sockets in its own file system, not even for root.
        ("unix:///proc/csi.sock", "/proc"),
    ] {
        // Nothing else has begun to answer, or says that it has.
        let line = refused(&solo, &["--token=t", "--debug-addr=127.0.0.1:0", "--endpoint", endpoint], &[]);
        let path = endpoint.trim_start_matches("unix://");
        assert!(line.contains(&format!("cannot serve on {path}: ")) && line.contains(why), "{endpoint}: {line}");
    }
    assert_eq!(fs::read_to_string(solo.path("file")).unwrap(), "mine");
    assert_eq!(solo.files(), ["directory", "file", "link"]);
}

#[test]
fn a_token_file_that_holds_no_token_is_one_line_unless_no_token_is_needed() {
    let solo = SinglePlugin::new(PROGRAM);
    fs::write(solo.path("empty"), " \n").unwrap();
    fs::write(solo.path("words"), "not a token").unwrap();
    fs::create_dir(solo.path("directory")).unwrap();
    for file in ["empty", "words", "directory", "none"] {
        let line = refused(&solo, &["--endpoint=csi.sock", "--token-file", file], &[]);
        assert!(line.contains(&format!("--token-file {file}: ")) && !line.contains("not a token"), "{line}");
    }
    let both = refused(&solo, &["--token=a", "--token-file=words"], &[]);
    assert!(both.contains("--token and --token-file"), "{both}");
    let node = solo.launch_without_token(&["--mode=node", "--token-file=none"]).start().unwrap();
    assert!(node.stop().unwrap().success());
}

#[test]
fn a_debug_address_in_use_is_one_line_even_though_the_socket_could_be_served() {
    let solo = SinglePlugin::new(PROGRAM);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = format!("--debug-addr={}", taken.local_addr().unwrap());
    let line = refused(&solo, &["--token=t", "--endpoint=csi.sock", &addr], &[]);
    assert!(line.contains("--debug-addr"), "{line}");
    assert_eq!(solo.files(), [""; 0]);
}

#[test]
fn flags_take_one_dash_or_two_and_a_blank_or_an_equals_sign() {
    let solo = SinglePlugin::new(PROGRAM);
    let socket = solo.socket();
    let path = socket.display();
    for (number, endpoint) in [
        vec![format!("-endpoint=unix://{path}")],
        vec![format!("--endpoint=unix://{path}")],
        vec!["-endpoint".to_owned(), format!("unix://{path}")],
        vec!["--endpoint".to_owned(), format!("unix://{path}")],
    ]
    .iter()
    .enumerate()
    {
        let name = format!("n{number}.example");
        let mut command = solo.command();
        command.args(endpoint).args(solo.cloud_args()).args([
            "-validate-attachment",
            "-takeover=false",
            "--mixed-access=true",
            &format!("-driver-name={name}"),
        ]);
        let child = serve(command, &socket);
        let info = Client::connect(&socket).identity.get_plugin_info_opt(&Default::default(), option()).unwrap();
        assert_eq!(info.name, name);
        kill(child);
    }
}

#[test]
fn an_endpoint_is_absolute_or_relative_to_the_working_directory() {
    let solo = SinglePlugin::new(PROGRAM);
    fs::create_dir(solo.path("csi")).unwrap();
    fs::create_dir(solo.path("odd [0] %41")).unwrap();
    let absolute = solo.path("csi/csi.sock");
    for (endpoint, socket) in [
        (format!("unix://{}", absolute.display()), "csi/csi.sock"),
        (format!("unix:{}", absolute.display()), "csi/csi.sock"),
        (absolute.display().to_string(), "csi/csi.sock"),
        ("unix://csi/csi.sock".to_owned(), "csi/csi.sock"),
        ("csi/csi.sock".to_owned(), "csi/csi.sock"),
        ("csi.sock".to_owned(), "csi.sock"),
        ("unix://odd [0] %41/a b.sock".to_owned(), "odd [0] %41/a b.sock"),
    ] {
        let mut command = solo.command();
        command.args(["--endpoint", &endpoint]).args(solo.cloud_args()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let socket = solo.path(socket);
        until(&endpoint, || connects(&socket));
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        assert!(end_of(&mut child).unwrap().success(), "{endpoint}");
        assert_eq!(fs::read_dir(socket.parent().unwrap()).unwrap().filter(is_socket).count(), 0, "{endpoint}");
    }
}

fn is_socket(entry: &std::io::Result<fs::DirEntry>) -> bool {
    entry.as_ref().unwrap().file_type().unwrap().is_socket()
}

#[test]
fn settings_come_from_the_environment_and_flags_go_before_it() {
    let solo = SinglePlugin::new(PROGRAM);
    let socket = solo.socket();
    let mut command = solo.command();
    command.env("CSI_ENDPOINT", "unix://csi.sock");
    command.env("DIGITALOCEAN_ACCESS_TOKEN", TOKEN);
    command.env("DIGITALOCEAN_API_URL", solo.sim.api_url());
    command.env("DIGITALOCEAN_METADATA_URL", solo.sim.metadata_url(DROPLET));
    let child = serve(command, &socket);
    let client = Client::connect(&socket);
    let capability = Volume::mounted("", "ext4").capability;
    let volume = client.create_volume("from-env", 1 << 30, &capability).unwrap();
    assert_eq!(solo.sim.volume("from-env").map(|volume| volume.id), Some(volume.volume_id));
    kill(child);

    let mut command = solo.command();
    command.env("CSI_ENDPOINT", "unix://other.sock").env("CSI_MODE", "controller");
    command.env("DIGITALOCEAN_API_URL", "http://127.0.0.1:1").env("DIGITALOCEAN_REGION", "nyc1");
    command.arg("--endpoint=unix://flag.sock").args(["--mode=monolith", "--token", TOKEN, "--region=fra1"]);
    command.args(solo.cloud_args());
    let child = serve(command, &solo.path("flag.sock"));
    let client = Client::connect(&solo.path("flag.sock"));
    client.create_volume("from-flags", 1 << 30, &capability).unwrap();
    assert!(solo.sim.volume("from-flags").is_some() && !solo.path("other.sock").exists());
    kill(child);
}

#[test]
fn an_empty_variable_counts_as_not_set() {
    let solo = SinglePlugin::new(PROGRAM);
    let names = [
        "DIGITALOCEAN_ACCESS_TOKEN",
        "DIGITALOCEAN_ACCESS_TOKEN_FILE",
        "DIGITALOCEAN_API_URL",
        "DIGITALOCEAN_METADATA_URL",
        "DIGITALOCEAN_REGION",
        "CSI_MODE",
        "CSI_ENDPOINT",
    ];
    let mut launch = solo.launch_without_token(&["--driver-name="]);
    launch.command.envs(names.map(|name| (name, "")));
    let plugin = launch.start().unwrap();
    let info = plugin.client.identity.get_plugin_info_opt(&Default::default(), option()).unwrap();
    assert_eq!(info.name, "dobs.csi.digitalocean.com");

    // The default endpoint is Kubernetes' directory, which is not there: the line that says so shows it was chosen.
    let line = refused(&solo, &[], &names.map(|name| (name, "")));
    for part in
        ["/var/lib/kubelet/plugins/dobs.csi.digitalocean.com/csi.sock", "no --endpoint is given", "with Nomad it is"]
    {
        assert!(line.contains(part), "{part}: {line}");
    }
}

#[test]
fn the_token_is_not_in_the_process_list_when_it_comes_from_environment_or_file() {
    let solo = SinglePlugin::new(PROGRAM);
    fs::write(solo.path("token"), format!("{TOKEN}\n")).unwrap();
    let by_file = solo.launch_without_token(&["--token-file=token"]);
    for launch in [solo.launch(&[]), by_file] {
        let plugin = launch.start().unwrap();
        let arguments = fs::read(format!("/proc/{}/cmdline", plugin.pid())).unwrap();
        assert!(text(&arguments).contains("--endpoint=unix://") && !text(&arguments).contains(TOKEN));
        let capability = Volume::mounted("", "ext4").capability;
        plugin.client.create_volume("with-token", 1 << 30, &capability).unwrap();
        plugin.stop().unwrap();
    }
}

/// Whose the kernel says a process is: root's, whoever started it, when its memory is nobody's to see. Source: proc(5).
fn owner_of(pid: u32) -> u32 {
    fs::metadata(format!("/proc/{pid}/fd")).unwrap().uid()
}

#[test]
fn its_memory_is_in_no_core_dump_and_not_for_others_to_see() {
    const NOBODY: u32 = 65534;
    let solo = SinglePlugin::new(PROGRAM);
    let own = fs::metadata(solo.path("")).unwrap().uid();
    let user = if own == 0 { NOBODY } else { own };
    fs::set_permissions(solo.path(""), fs::Permissions::from_mode(0o777)).unwrap();
    fs::copy(PROGRAM, solo.path("program")).unwrap();
    let as_user = |program: &Path| {
        let mut command = bare(Path::new("setpriv"));
        command.arg(format!("--reuid={user}")).arg(program).current_dir(solo.path(""));
        command
    };
    let mut other = as_user(Path::new("sleep")).arg("1000").spawn().unwrap();
    until("it is the user's", || owner_of(other.id()) == user);
    other.kill().unwrap();
    other.wait().unwrap();

    let mut launch = solo.launch(&["--mode=controller"]);
    launch.command = as_user(&solo.path("program"));
    launch.command.env("DIGITALOCEAN_ACCESS_TOKEN", TOKEN);
    let plugin = launch.start().unwrap();
    assert_eq!(owner_of(plugin.pid()), 0);
    // What it runs is dumped unless that is inherited.
    let limits = fs::read_to_string(format!("/proc/{}/limits", plugin.pid())).unwrap();
    let cores = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).unwrap();
    assert_eq!(cores.split_whitespace().take(2).collect::<Vec<_>>(), ["0", "0"], "{limits}");
    plugin.stop().unwrap();
}

#[test]
fn help_lists_every_flag_and_version_says_which_it_is() {
    let solo = SinglePlugin::new(PROGRAM);
    let told = |args: &[&str]| {
        let mut command = solo.command();
        command.args(args).env("DIGITALOCEAN_ACCESS_TOKEN", TOKEN);
        let output = run_to_end(command).unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        text(&output.stdout)
    };
    for args in [["--help"], ["-help"], ["-h"]] {
        let help = told(&args);
        let words = help.lines().filter(|line| line.trim_start().starts_with('-')).flat_map(str::split_whitespace);
        let name = |word: &'_ str| word.split([',', '[', '=']).next().unwrap_or_default().to_owned();
        let listed: Vec<String> = words.filter(|word| word.starts_with("--")).map(name).collect();
        let missing: Vec<&str> = FLAGS.into_iter().filter(|flag| !listed.iter().any(|have| have == flag)).collect();
        assert!(missing.is_empty(), "{missing:?} missing in {help}");
        assert!(!help.contains(TOKEN), "{help}");
    }
    for args in [["--version"], ["-version"], ["-V"]] {
        assert_eq!(told(&args), format!("do-csi-plugin {}\n", env!("CARGO_PKG_VERSION")));
    }
}

#[test]
fn the_socket_is_its_owners_alone_unless_told_otherwise() {
    let solo = SinglePlugin::new(PROGRAM);
    for (args, mode) in [(&[][..], 0o600), (&["--socket-mode=0660"][..], 0o660), (&["-socket-mode", "666"][..], 0o666)]
    {
        let plugin = solo.launch_without_token(args).start().unwrap();
        let found = fs::metadata(solo.socket()).unwrap();
        assert!(found.file_type().is_socket());
        assert_eq!(found.permissions().mode() & 0o7777, mode, "{args:?}");
        plugin.stop().unwrap();
    }
}

#[test]
fn a_stale_socket_is_replaced_and_nothing_else_is_left() {
    let solo = SinglePlugin::new(PROGRAM);
    drop(UnixListener::bind(solo.socket()).unwrap());
    let plugin = solo.launch_without_token(&[]).start().unwrap();
    plugin.client.probe().unwrap();
    plugin.kill().unwrap();
    assert!(solo.socket().exists());
    let plugin = solo.launch_without_token(&[]).start().unwrap();
    plugin.client.probe().unwrap();
    assert_eq!(solo.files(), ["csi.sock", "plugin.log"]);
    assert!(plugin.stop().unwrap().success());
    assert_eq!(solo.files(), ["plugin.log"]);
}

#[test]
fn a_successor_takes_the_socket_over_and_keeps_it_when_the_first_one_ends() {
    let solo = SinglePlugin::new(PROGRAM);
    let first = solo.launch_without_token(&["--driver-name=first"]).start().unwrap();
    let inode = |path: PathBuf| fs::metadata(path).unwrap().ino();
    let before = inode(solo.socket());
    let mut launch = solo.launch_without_token(&["--driver-name=second"]);
    launch.log = solo.path("second.log");
    let second = launch.start().unwrap();
    until("the second one is served", || inode(solo.socket()) != before);
    let after = inode(solo.socket());
    // Who is connected to the first one is answered by it until it ends.
    first.client.probe().unwrap();
    assert!(first.stop().unwrap().success());
    assert_eq!(inode(solo.socket()), after);
    let fresh = Client::connect(&solo.socket());
    let info = fresh.identity.get_plugin_info_opt(&Default::default(), option()).unwrap();
    assert_eq!(info.name, "second");
    assert!(second.stop().unwrap().success());
    assert!(!solo.socket().exists());
}

/// Starts an attachment that lasts until the test lets time pass, and gives the thread that waits for its answer.
fn attach_slowly(
    solo: &SinglePlugin,
    plugin: &Plugin,
) -> thread::JoinHandle<Result<(), crate::support::client::Refusal>> {
    let id = solo.sim.add_volume(&NewVolume::new("slow", 1, "fra1")).unwrap();
    solo.sim.faults().add_action(ActionFault::taking(FOR_EVER));
    let client = plugin.client.clone();
    let call =
        thread::spawn(move || client.controller_publish(&mut Volume::mounted(&id, "ext4"), &DROPLET.to_string()));
    until("the attachment has begun", || !solo.sim.actions().is_empty());
    call
}

#[test]
fn either_signal_lets_the_running_call_finish_and_takes_no_new_ones() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let solo = SinglePlugin::new(PROGRAM);
        let mut plugin = solo.launch(&[]).start().unwrap();
        let call = attach_slowly(&solo, &plugin);
        plugin.signal(signal).unwrap();
        until("the socket is gone", || !solo.socket().exists());
        until("no new call is taken", || plugin.client.probe().is_err());
        assert!(!call.is_finished());
        solo.sim.advance(FOR_EVER);
        call.join().unwrap().unwrap();
        assert_eq!(solo.sim.attached_to("slow"), Some(DROPLET));
        assert!(plugin.wait().unwrap().success());
        assert!(plugin.log().contains(signal.as_str()), "{}", plugin.log());
        assert_eq!(solo.files(), ["plugin.log"]);
    }
}

#[test]
fn other_signals_are_answered_in_the_log_and_end_nothing() {
    let solo = SinglePlugin::new(PROGRAM);
    fs::write(solo.path("token"), TOKEN).unwrap();
    let mut plugin = solo.launch_without_token(&["--token-file=token"]).start().unwrap();
    let call = attach_slowly(&solo, &plugin);
    plugin.signal(Signal::SIGUSR1).unwrap();
    until("the report is there", || plugin.log().contains("report: running"));
    let log = plugin.log();
    for part in ["VmRSS:", "rate limit", "threads=controller count=1 calls=1", "ControllerPublishVolume"] {
        assert!(log.lines().any(|line| line.contains("report: ") && line.contains(part)), "{part}: {log}");
    }
    let debug_lines = || plugin.log().matches(" DEBUG ").count();
    assert_eq!(debug_lines(), 0);
    plugin.signal(Signal::SIGUSR2).unwrap();
    until("debug is on", || plugin.log().contains("debug lines are switched on=true"));
    plugin.client.list_volumes(0, "").unwrap();
    assert!(debug_lines() > 0, "{}", plugin.log());
    // By the same number of bytes at the same time, so that only reading it again shows the difference.
    fs::write(solo.path("token"), "no token at all").unwrap();
    plugin.signal(Signal::SIGHUP).unwrap();
    until("the token is refused", || plugin.log().contains("the token stays: "));
    fs::write(solo.path("token"), TOKEN).unwrap();
    plugin.signal(Signal::SIGHUP).unwrap();
    until("the token is read", || plugin.log().contains("the token is as its source has it now"));
    let before = debug_lines();
    plugin.client.list_volumes(0, "").unwrap();
    assert_eq!(debug_lines(), before, "{}", plugin.log());
    assert!(!plugin.log().contains(TOKEN));
    solo.sim.advance(FOR_EVER);
    call.join().unwrap().unwrap();
    plugin.signal(Signal::SIGTERM).unwrap();
    assert!(plugin.wait().unwrap().success());
}

#[test]
fn programs_that_it_starts_leave_no_core_file() {
    let solo = SinglePlugin::new(PROGRAM);
    let mut launch = solo.launch(&[]);
    launch.command = {
        let mut command = Command::new("prlimit");
        command.arg("--core=unlimited").arg("--").arg(PROGRAM).env_clear().current_dir(solo.path(""));
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("DIGITALOCEAN_ACCESS_TOKEN", TOKEN);
        command
    };
    let plugin = launch.start().unwrap();
    let limits = fs::read_to_string(format!("/proc/{}/limits", plugin.pid())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
}

#[test]
fn who_gives_no_token_and_asks_for_no_mode_is_told_of_it() {
    let solo = SinglePlugin::new(PROGRAM);
    for (args, is_told) in [(&[][..], true), (&["--mode=node"][..], false)] {
        let plugin = solo.launch_without_token(args).start().unwrap();
        let log = plugin.log();
        let told = log.lines().find(|line| line.contains(" WARN ") && line.contains("no DigitalOcean token"));
        assert_eq!(told.is_some(), is_told, "{log}");
        for way in ["DIGITALOCEAN_ACCESS_TOKEN", "--token-file", "--token", "--mode=node"] {
            assert!(told.is_none_or(|line| line.contains(way)), "{way}: {log}");
        }
        plugin.stop().unwrap();
        fs::remove_file(solo.path("plugin.log")).unwrap();
    }
}

#[test]
fn a_second_signal_ends_the_wait_for_a_call_that_hangs() {
    let solo = SinglePlugin::new(PROGRAM);
    let mut plugin = solo.launch(&[]).start().unwrap();
    let call = attach_slowly(&solo, &plugin);
    plugin.signal(Signal::SIGTERM).unwrap();
    until("the socket is gone", || !solo.socket().exists());
    plugin.signal(Signal::SIGTERM).unwrap();
    // The time for running calls is 90 s, far more than `until` waits.
    until("it has ended", || plugin.has_ended());
    assert!(plugin.wait().unwrap().success());
    assert!(call.join().unwrap().is_err());
}

#[test]
fn systemd_is_told_when_the_plugin_answers_and_when_it_ends() {
    let solo = SinglePlugin::new(PROGRAM);
    let abstract_name = format!("do-csi-test-{}", std::process::id());
    let sockets = [
        (solo.path("notify").display().to_string(), UnixDatagram::bind(solo.path("notify")).unwrap()),
        (
            format!("@{abstract_name}"),
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&abstract_name).unwrap()).unwrap(),
        ),
    ];
    for (name, socket) in sockets {
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let told = || {
            let mut message = [0; 64];
            let length = socket.recv(&mut message).unwrap();
            String::from_utf8_lossy(&message[..length]).into_owned()
        };
        let mut launch = solo.launch(&[]);
        launch.command.env("NOTIFY_SOCKET", name);
        let plugin = launch.start().unwrap();
        assert_eq!(told(), "READY=1");
        assert!(plugin.stop().unwrap().success());
        assert_eq!(told(), "STOPPING=1");
    }
}

#[test]
fn a_service_manager_that_is_not_there_keeps_nobody_from_the_plugin() {
    let solo = SinglePlugin::new(PROGRAM);
    let mut launch = solo.launch(&[]);
    launch.command.env("NOTIFY_SOCKET", solo.path("nobody"));
    let plugin = launch.start().unwrap();
    until("it is said", || plugin.log().contains("systemd could not be told READY=1"));
    assert!(plugin.stop().unwrap().success());
}

#[test]
fn an_open_connection_without_a_call_does_not_hold_up_the_end() {
    let solo = SinglePlugin::new(PROGRAM);
    let mut plugin = solo.launch(&[]).start().unwrap();
    let silent: Vec<_> = (0..4).map(|_| UnixStream::connect(solo.socket()).unwrap()).collect();
    let clients: Vec<_> = (0..4).map(|_| Client::connect(&solo.socket())).collect();
    clients.iter().for_each(|client| drop(client.probe().unwrap()));
    plugin.signal(Signal::SIGTERM).unwrap();
    until("it has ended", || plugin.has_ended());
    assert!(plugin.wait().unwrap().success());
    drop(silent);
}

#[test]
#[ignore = "needs root: make test-root"]
fn root_the_end_of_the_program_unmounts_and_detaches_nothing() {
    let cloud = Cloud::start(SimConfig::default(), &["node-a"]).unwrap();
    let machine = &cloud.machines[0];
    let program = Path::new(PROGRAM);
    let id = cloud.sim.add_volume(&NewVolume::new("kept", 1, "fra1").formatted("ext4")).unwrap();
    let (staging, target) = (machine.staging("kept"), machine.target("alloc", "kept"));
    machine.prepare(&staging, &target).unwrap();
    let mut volume = Volume::mounted(&id, "ext4");
    let plugin = machine.start(program).unwrap();
    plugin.client.controller_publish(&mut volume, &machine.node_id()).unwrap();
    plugin.client.stage(&volume, &staging).unwrap();
    plugin.client.publish(&volume, &staging, &target, false).unwrap();
    fs::write(machine.droplet.path(&target).join("file"), "content").unwrap();
    let before = machine.droplet.mounts();
    assert!(plugin.stop().unwrap().success());
    assert_eq!(machine.droplet.mounts(), before);
    assert_eq!(cloud.sim.attached_to("kept"), Some(machine.id));
    assert_eq!(fs::read_to_string(machine.droplet.path(&target).join("file")).unwrap(), "content");

    let plugin = machine.start(program).unwrap();
    plugin.client.publish(&volume, &staging, &target, false).unwrap();
    assert_eq!(machine.droplet.mounts(), before);
    plugin.client.unpublish(&id, &target).unwrap();
    plugin.client.unstage(&id, &staging).unwrap();
    plugin.client.controller_unpublish(&id, &machine.node_id()).unwrap();
    plugin.stop().unwrap();
    cloud.close().unwrap();
}

/// A root with the program and its libraries, and of the file system tools only names.
fn chroot_without(solo: &SinglePlugin, missing: Option<&str>) -> Command {
    let root = solo.path("root");
    let script = r#"
        set -e
        mkdir -p "$1/usr/sbin"
        for lib in /lib /lib64 /usr/lib; do
            [ -d "$lib" ] || continue
            mkdir -p "$1$lib"
            mount --rbind "$lib" "$1$lib"
        done
        for kernel in /sys /proc; do
            mkdir -p "$1$kernel"
            mount --rbind "$kernel" "$1$kernel"
        done
        cp "$2" "$1/do-csi-plugin"
        root=$1
        shift 2
        exec chroot "$root" /do-csi-plugin "$@"
    "#;
    let _none_yet = fs::remove_dir_all(root.join("usr/sbin"));
    fs::create_dir_all(root.join("usr/sbin")).unwrap();
    for tool in TOOLS.map(|(tool, _)| tool) {
        if Some(tool) != missing {
            fs::write(root.join("usr/sbin").join(tool), "").unwrap();
        }
    }
    let mut command = bare(Path::new("unshare"));
    command.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]);
    command.arg(&root).arg(PROGRAM);
    command
}

/// The programs that the node service needs, with the Debian packages that have them.
const TOOLS: [(&str, &str); 11] = [
    ("blkid", "util-linux"),
    ("blockdev", "util-linux"),
    ("fsfreeze", "util-linux"),
    ("mkfs.xfs", "xfsprogs"),
    ("mke2fs", "e2fsprogs"),
    ("mkfs.btrfs", "btrfs-progs"),
    ("e2fsck", "e2fsprogs"),
    ("xfs_growfs", "xfsprogs"),
    ("resize2fs", "e2fsprogs"),
    ("btrfs", "btrfs-progs"),
    ("sync", "coreutils"),
];

#[test]
#[ignore = "needs root: make test-root"]
fn root_a_missing_tool_is_one_line_that_names_its_package() {
    let solo = SinglePlugin::new(PROGRAM);
    for (tool, package) in TOOLS {
        let mut command = chroot_without(&solo, Some(tool));
        command.arg("--endpoint=/csi.sock");
        let line = refusal(tool, &run_to_end(command).unwrap());
        assert!(line.contains(&format!("{tool} is missing")) && line.contains(package), "{line}");
        assert!(!solo.path("root/csi.sock").exists());
    }
    // Nothing is missing, or the service that needs it is not offered.
    for (missing, args) in [(None, &["--mode=node"][..]), (Some("blkid"), &["--mode=controller", "--token=t"])] {
        let mut command = chroot_without(&solo, missing);
        command.arg("--endpoint=/csi.sock").args(args);
        kill(serve(command, &solo.path("root/csi.sock")));
        fs::remove_file(solo.path("root/csi.sock")).unwrap();
    }
}

#[test]
fn the_log_has_info_by_default_and_what_rust_log_says_otherwise() {
    let solo = SinglePlugin::new(PROGRAM);
    let log_at = |level: Option<&str>| {
        let mut launch = solo.launch_without_token(&[]);
        launch.log = solo.path(&format!("{level:?}.log"));
        if let Some(level) = level {
            launch.command.env("RUST_LOG", level);
        }
        let plugin = launch.start().unwrap();
        let path = solo.path(&format!("{level:?}.log"));
        plugin.stop().unwrap();
        fs::read_to_string(path).unwrap()
    };
    let has = |log: &str, level: &str| log.lines().any(|line| line.split_whitespace().nth(1) == Some(level));
    for (level, info, debug) in [
        (None, true, false),
        (Some("info"), true, false),
        (Some("debug"), true, true),
        (Some("error"), false, false),
        (Some("off"), false, false),
        (Some("do_csi_plugin::rpc=debug"), true, true),
        (Some("WARN,do_csi_plugin::host=trace"), false, false),
        (Some(""), true, false),
    ] {
        let log = log_at(level);
        assert_eq!((has(&log, "INFO"), has(&log, "DEBUG")), (info, debug), "{level:?}: {log}");
    }
    assert!(log_at(None).contains("started version="));
}

/// Every message of the interface that has them is sent with these secrets.
const SECRET: &str = "ywqz8kvjx5zqwk6vjxq";

fn secrets() -> std::collections::HashMap<String, String> {
    [("key".to_owned(), SECRET.to_owned()), (SECRET.to_owned(), "value".to_owned())].into()
}

fn send_secrets(client: &Client, solo: &SinglePlugin) {
    let id = solo.sim.add_volume(&NewVolume::new("known", 1, "fra1")).unwrap();
    let capability = Volume::mounted("", "ext4").capability;
    let volume = || Some(capability.clone()).into();
    let staging = solo.path("staging").display().to_string();
    let controller = &client.controller;
    let create = csi::CreateVolumeRequest {
        name: "new".into(),
        volume_capabilities: vec![capability.clone()],
        secrets: secrets(),
        ..Default::default()
    };
    assert!(controller.create_volume_opt(&create, option()).is_ok());
    let publish = csi::ControllerPublishVolumeRequest {
        volume_id: id.clone(),
        node_id: DROPLET.to_string(),
        volume_capability: volume(),
        secrets: secrets(),
        ..Default::default()
    };
    assert!(controller.controller_publish_volume_opt(&publish, option()).is_ok());
    let unpublish =
        csi::ControllerUnpublishVolumeRequest { volume_id: id.clone(), secrets: secrets(), ..Default::default() };
    assert!(controller.controller_unpublish_volume_opt(&unpublish, option()).is_ok());
    let validate = csi::ValidateVolumeCapabilitiesRequest {
        volume_id: id.clone(),
        volume_capabilities: vec![capability.clone()],
        secrets: secrets(),
        ..Default::default()
    };
    assert!(controller.validate_volume_capabilities_opt(&validate, option()).is_ok());
    let delete = csi::DeleteVolumeRequest { volume_id: id.clone(), secrets: secrets(), ..Default::default() };
    assert!(controller.delete_volume_opt(&delete, option()).is_ok());

    // What these answer is not of interest here; without a disk no node call can go far.
    let _answer = controller.create_snapshot_opt(
        &csi::CreateSnapshotRequest { source_volume_id: id.clone(), secrets: secrets(), ..Default::default() },
        option(),
    );
    let _answer = controller.delete_snapshot_opt(
        &csi::DeleteSnapshotRequest { snapshot_id: id.clone(), secrets: secrets(), ..Default::default() },
        option(),
    );
    let _answer = controller
        .list_snapshots_opt(&csi::ListSnapshotsRequest { secrets: secrets(), ..Default::default() }, option());
    let _answer = controller.controller_expand_volume_opt(
        &csi::ControllerExpandVolumeRequest { volume_id: id.clone(), secrets: secrets(), ..Default::default() },
        option(),
    );
    let _answer = controller.controller_modify_volume_opt(
        &csi::ControllerModifyVolumeRequest { volume_id: id.clone(), secrets: secrets(), ..Default::default() },
        option(),
    );
    let _answer = client.node.node_stage_volume_opt(
        &csi::NodeStageVolumeRequest {
            volume_id: id.clone(),
            staging_target_path: staging.clone(),
            volume_capability: volume(),
            secrets: secrets(),
            ..Default::default()
        },
        option(),
    );
    let _answer = client.node.node_publish_volume_opt(
        &csi::NodePublishVolumeRequest {
            volume_id: id.clone(),
            staging_target_path: staging.clone(),
            target_path: solo.path("target").display().to_string(),
            volume_capability: volume(),
            secrets: secrets(),
            ..Default::default()
        },
        option(),
    );
    let _answer = client.node.node_expand_volume_opt(
        &csi::NodeExpandVolumeRequest { volume_id: id, volume_path: staging, secrets: secrets(), ..Default::default() },
        option(),
    );
}

#[test]
fn neither_the_token_nor_secrets_are_in_the_log_at_any_level() {
    let solo = SinglePlugin::new(PROGRAM);
    let mut launch = solo.launch(&[]);
    launch.command.env("RUST_LOG", "trace,ureq_proto::util=trace,ureq_proto=trace");
    let plugin = launch.start().unwrap();
    send_secrets(&plugin.client, &solo);
    // Refusals are logged too, and a wrong token most of all.
    solo.sim.faults().add(Fault::answered(401, "text/plain", "who?"));
    let _refused = plugin.client.delete_volume("1b2c3d4e-8f00-11f0-9a11-0a58ac14d1e2");
    let log = plugin.log();
    assert!(log.contains("ControllerPublishVolume") && log.contains(" DEBUG "), "{log}");
    // A dump shows a text in pieces, and in hexadecimal digits.
    for hidden in [TOKEN, SECRET] {
        let hidden = &hidden.as_bytes()[hidden.len() - 12..];
        let lower = log.to_lowercase();
        for piece in hidden.windows(4) {
            let hex: String = piece.iter().map(|byte| format!("{byte:02x}")).collect();
            let spaced = format!("{} {}", &hex[..4], &hex[4..]);
            for shown in [text(piece), hex, spaced] {
                let line = lower.lines().find(|line| line.contains(&shown));
                assert_eq!(line, None, "{shown} is a piece of a secret");
            }
        }
    }
}

#[test]
fn a_droplet_in_another_region_uses_its_own_unless_the_flag_says_otherwise() {
    let droplets = vec![DropletSpec::new(DROPLET, "node-1", "nyc1")];
    let regions = vec!["fra1".to_owned(), "nyc1".to_owned()];
    let solo = SinglePlugin::with(PROGRAM, SimConfig { droplets, regions, ..SimConfig::default() });
    for (args, region) in [(&[][..], "nyc1"), (&["--region=fra1"][..], "fra1")] {
        let plugin = solo.launch(args).start().unwrap();
        let capability = Volume::mounted("", "ext4").capability;
        let volume = plugin.client.create_volume(&format!("in-{region}"), 1 << 30, &capability).unwrap();
        assert_eq!(volume.accessible_topology[0].segments["region"], region);
        assert_eq!(solo.sim.volume(&volume.volume_id).unwrap().region, region);
        until("the droplet is known", || plugin.client.node_info().is_ok());
        let info = plugin.client.node_info().unwrap();
        assert_eq!(info.accessible_topology.segments["region"], region);
        plugin.stop().unwrap();
    }
}

#[test]
fn a_probe_tells_whether_the_plugin_at_the_endpoint_answers() {
    let solo = SinglePlugin::new(PROGRAM);
    let probe = |args: &[&str]| {
        let mut command = solo.command();
        command.args(args).arg("--probe").env("CSI_ENDPOINT", format!("unix://{}", solo.socket().display()));
        run_to_end(command).unwrap()
    };
    let nobody = probe(&[]);
    assert_eq!(nobody.status.code(), Some(1));
    let line = text(&nobody.stderr);
    assert!(line.contains("no plugin serves") && line.lines().count() == 1, "{line}");

    let plugin = solo.launch(&[]).start().unwrap();
    let ready = probe(&[]);
    assert_eq!((ready.status.code(), text(&ready.stderr)), (Some(0), String::new()));
    // What else is set does not matter to it: a health check knows only the container's environment.
    assert_eq!(probe(&["--mode=controller"]).status.code(), Some(0));
    plugin.kill().unwrap();
    assert_eq!(probe(&[]).status.code(), Some(1), "a socket is left, and nobody behind it");

    fs::remove_file(solo.socket()).unwrap();
    let _silent = UnixListener::bind(solo.socket()).unwrap();
    let silent = probe(&[]);
    assert_eq!(silent.status.code(), Some(1), "somebody takes the connection and says nothing");
    assert!(text(&silent.stderr).contains("has not answered within 5 s"), "{}", text(&silent.stderr));
}
