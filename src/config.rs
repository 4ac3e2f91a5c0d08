//! What the operator can set: flags and environment, read once at start and checked.
//!
//! Owns every flag, every default and every budget of time. Nothing else in the program reads the environment or the
//! arguments. The flags are those of DigitalOcean's own driver, under the same names; those added here say so.

pub mod command;
pub mod keep;
mod log;
mod parse;
mod refusal;
mod running;
mod upkeep;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, CommandFactory, FromArgMatches, Parser, ValueEnum};

use crate::cloud::http::Route;
use crate::cloud::proxy::ProxyVariables;
use crate::cloud::request::BaseUrl;
use crate::cloud::tag::Tag;
use crate::cloud::token::Token;
use crate::config::parse::{
    double_dashes, if_given, parse_bool, parse_debug_addr, parse_driver_name, parse_endpoint, parse_max_size,
    parse_number, parse_owner_tag, parse_rate, parse_release_unused, parse_seconds, parse_socket_mode, token_source,
};
use crate::config::refusal::{early, with_variable};
use crate::config::upkeep::plan_allocations;
pub use crate::config::upkeep::{
    ATTACH_BUDGET, Allocations, DETACH_IN_FLIGHT, END_BUDGET, FLUSH_BUDGET, RELEASE_UNUSED_BUDGET, UPKEEP_END,
};
use crate::fs::FsKind;
use crate::host::mount_options::{DefaultFlags, SelinuxLabel};
use crate::id::DropletId;
use crate::region::Region;
use crate::size::{Gib, SizeLimits};

pub use crate::config::log::{LogFormat, LogLevels};

/// How long a node call waits for another call on the same volume before it answers ABORTED: as long as making a file
/// system takes, and so that there is time left for its own work.
pub const LOCK_PATIENCE: Duration = Duration::from_secs(60);
/// How long a node call may take: Nomad sets it no deadline, and others give up after two minutes.
pub const NODE_BUDGET: Duration = Duration::from_secs(100);
/// How long staging waits for the volume's disk to appear and become ready.
pub const DEVICE_BUDGET: Duration = Duration::from_secs(30);
/// How long a mount is tried again while something else uses the disk, such as an automount rule of the distribution.
pub const MOUNT_BUDGET: Duration = Duration::from_secs(15);
/// How long an unmount is tried again while something still uses the mount.
pub const UNMOUNT_BUDGET: Duration = Duration::from_secs(10);
/// How long the kernel may take to let go of a disk after its last mount, and processes that were using it to end.
pub const RELEASE_BUDGET: Duration = Duration::from_secs(5);
/// How long running calls may take to finish after SIGTERM or SIGINT.
pub const DRAIN_BUDGET: Duration = Duration::from_secs(90);
/// Threads that serve controller calls that change something, as many more those that free a volume, and as many those that
/// only ask. Most of them only wait for DigitalOcean.
pub const CONTROLLER_WORKERS: usize = 64;
/// Threads that list volumes, and so lists that are in memory at once. Those who ask at the same time share what is read.
pub const LISTERS: usize = 2;
/// Threads that serve node calls, for each of three kinds: those that bring a volume, those that take it away, and those that
/// look at it. A droplet holds at most 15 volumes, and the calls for one have two threads at most.
pub const NODE_WORKERS: usize = 32;
/// How long NodeGetInfo waits until it is known which droplet this is. Nomad gives the call 30 s, and asks again only 30 s after
/// it failed.
pub const INFO_PATIENCE: Duration = Duration::from_secs(15);
/// Threads of NodeGetInfo while that is not known: an orchestrator has one such call, two while a plugin is exchanged.
pub const INFO_WORKERS: usize = 4;
/// How many programs that make a file system run at once, and as many that check one, and that grow one: each may need much
/// memory, and none of the three is to wait for the others.
pub const MAX_HEAVY_TOOLS: usize = 3;
/// Calls that may wait for a thread, for each service, before the next one is answered UNAVAILABLE.
pub const QUEUE_LENGTH: usize = 128;

/// Most entries of a page of ListVolumes: CSI counts them with 32 bits and a sign.
const MOST_ENTRIES: usize = 0x7fff_ffff;

/// The CSI name of the official driver, which volumes and job files refer to.
pub const DRIVER_NAME: &str = "dobs.csi.digitalocean.com";

/// What the flags are about, as the headings of the help.
const SERVICE: &str = "Service";
const CLOUD: &str = "DigitalOcean";
const NODE: &str = "Node";
const LOG: &str = "Log";
/// Nobody needs these but tests, and who looks for the cause of something odd.
const TESTS: &str = "For tests and unusual places";

const TOKEN_VARIABLE: &str = "DIGITALOCEAN_ACCESS_TOKEN";

/// Flags as they stand on the command line.
#[derive(Debug, Parser)]
#[command(
    name = "do-csi-plugin",
    version,
    about = "CSI driver for DigitalOcean block storage volumes",
    after_help = "Commands instead of flags: volumes, doctor, snapshot (each has --help).\n\
                  Flags may also be written with one dash (-endpoint=...).",
    disable_help_subcommand = true
)]
struct Flags {
    /// Unix socket to serve CSI on: unix:///absolute/path, unix://relative/path, or a bare path
    #[arg(
        help_heading = SERVICE,
        long,
        env = "CSI_ENDPOINT",
        default_value = "unix:///var/lib/kubelet/plugins/dobs.csi.digitalocean.com/csi.sock"
    )]
    endpoint: String,
    /// DigitalOcean API token. Everyone on the machine can read arguments, so use the environment or --token-file
    #[arg(
        help_heading = CLOUD,
        long,
        env = TOKEN_VARIABLE,
        hide_env_values = true,
        default_value = "",
        hide_default_value = true
    )]
    token: String,
    #[arg(skip = "--token")]
    token_origin: &'static str,
    #[arg(skip)]
    is_default_endpoint: bool,
    /// File that holds the DigitalOcean API token; read again when it changes (not in the official driver)
    #[arg(help_heading = CLOUD, long, env = "DIGITALOCEAN_ACCESS_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// Base URL of the DigitalOcean API
    #[arg(help_heading = CLOUD, long, env = "DIGITALOCEAN_API_URL", default_value = "https://api.digitalocean.com/")]
    url: String,
    /// File with certificates (PEM) to trust instead of the built-in ones, for a proxy or a company with its own authority (not in
    /// the official driver)
    #[arg(help_heading = CLOUD, long, env = "SSL_CERT_FILE")]
    ca_file: Option<PathBuf>,
    /// Region of the volumes, such as fra1; default: the droplet's own, from the metadata service
    #[arg(help_heading = CLOUD, long, env = "DIGITALOCEAN_REGION", default_value = "", hide_default_value = true)]
    region: String,
    /// Id of this droplet, if the metadata service cannot be reached; with --region too, the plugin does not ask that service
    /// (not in the official driver)
    #[arg(help_heading = NODE, long, env = "DIGITALOCEAN_DROPLET_ID", default_value = "", hide_default_value = true)]
    droplet_id: String,
    /// Name of this cluster, put as a tag on every volume that is created or attached. A volume with another cluster's tag is
    /// not adopted and not deleted
    #[arg(help_heading = CLOUD, long, default_value = "", hide_default_value = true)]
    do_tag: String,
    /// Allow-list: only volumes and snapshots with this tag are attached, detached, deleted, grown, changed, copied or restored.
    /// New volumes and snapshots get the tag (not in the official driver)
    #[arg(help_heading = CLOUD, long, env = "DO_CSI_ONLY_TAG", default_value = "", hide_default_value = true)]
    only_tag: String,
    /// CSI name of this driver
    #[arg(help_heading = SERVICE, long, default_value = DRIVER_NAME)]
    driver_name: String,
    /// Address for GET /livez, /readyz, /health, /metrics and / (a page), such as :9810 or 0.0.0.0:9810. Without a host only this
    /// machine is answered (the official driver: everybody)
    #[arg(help_heading = SERVICE, long, default_value = "", hide_default_value = true)]
    debug_addr: String,
    /// Page size of ListVolumes when the request names none; 0: everything
    #[arg(help_heading = CLOUD, long, default_value = "0")]
    default_volumes_page_size: String,
    /// Upper limit of API requests a second; 0: only the API's own limits are kept
    #[arg(help_heading = CLOUD, long, default_value = "0")]
    do_api_rate_limit: String,
    /// Kept for compatibility: the attachment is always validated before a disk is used
    #[arg(help_heading = CLOUD, long, default_value = "true")]
    validate_attachment: String,
    /// How many volumes a droplet may have. Volumes that are used outside CSI when the plugin starts are subtracted
    #[arg(help_heading = NODE, long, default_value = "15")]
    volume_limit: String,
    /// Take a volume also from a droplet that is running. Dangerous: a process there loses its disk without warning and may lose
    /// data. Only for clusters whose orchestrator is certain that nobody uses the volume (not in the official driver)
    #[arg(help_heading = CLOUD, long, default_value = "false", hide_default_value = true)]
    takeover: String,
    /// Level of the log: off, error, warn, info, debug or trace. Parts of the program can have their own levels, as in
    /// info,do_csi_plugin::rpc=debug (not in the official driver)
    #[arg(help_heading = LOG, long, env = "RUST_LOG", default_value = "info")]
    log_level: String,
    /// Form of the log's lines; all forms have the same keys (not in the official driver)
    #[arg(help_heading = LOG, long, env = "CSI_LOG_FORMAT", value_enum, default_value = "text")]
    log_format: LogFormat,
    /// Detach a volume of this cluster (--do-tag) from this droplet when nobody has used it for this time, such as 2m; for
    /// orchestrators that forget attachments, as Nomad does. Needs the token and the node service in one process (not in the
    /// official driver)
    #[arg(help_heading = NODE, long, env = "DO_CSI_RELEASE_UNUSED", default_value = "", hide_default_value = true)]
    release_unused: String,
    /// Path at which this program sees Nomad's directories of allocations; not needed with raw_exec (not in the official
    /// driver)
    #[arg(help_heading = NODE, long, env = "DO_CSI_NOMAD_ALLOCATIONS")]
    nomad_allocations: Option<PathBuf>,
    /// Seconds after which a controller call ends at the latest, with all its waits; Nomad gives up after 120 (not in the
    /// official driver; for tests)
    #[arg(help_heading = TESTS, long, default_value = "100")]
    call_budget: String,
    /// Seconds that DigitalOcean has to answer one request (not in the official driver; for tests)
    #[arg(help_heading = TESTS, long, default_value = "20")]
    api_timeout: String,
    /// Largest volume to make, in GiB (not in the official driver)
    #[arg(help_heading = CLOUD, long, default_value_t = SizeLimits::DIGITALOCEAN.max.0.to_string())]
    max_volume_size: String,
    /// Let a task that reads a volume and one that writes it run on one droplet, as Nomad allows. Without it the second is
    /// refused, as CSI demands (not in the official driver)
    #[arg(help_heading = CLOUD, long, default_value = "false", hide_default_value = true)]
    mixed_access: String,
    /// Services to offer; without a token only `node` is possible (not in the official driver)
    #[arg(help_heading = SERVICE, long, env = "CSI_MODE", value_enum)]
    mode: Option<Mode>,
    /// Permission bits of the socket, octal (not in the official driver)
    #[arg(help_heading = SERVICE, long, default_value = "0600")]
    socket_mode: String,
    /// File system to make on a blank volume when the request names none: ext4, xfs, ext3 or btrfs (not in the official
    /// driver)
    #[arg(help_heading = NODE, long, default_value = "ext4")]
    default_fs_type: String,
    /// SELinux label for the files of all volumes, such as system_u:object_r:container_file_t:s0 (not in the official
    /// driver)
    #[arg(help_heading = NODE, long, default_value = "", hide_default_value = true)]
    selinux_label: String,
    /// Mount flags for every volume, unless its own flags say otherwise, such as nosuid,nodev: a volume carries files from one
    /// task to another (not in the official driver)
    #[arg(help_heading = NODE, long, default_value = "", hide_default_value = true)]
    default_mount_flags: String,
    /// Base URL of the droplet metadata service (not in the official driver; for tests and proxies)
    #[arg(help_heading = TESTS, long, env = "DIGITALOCEAN_METADATA_URL", default_value = "http://169.254.169.254")]
    metadata_url: String,
    /// Directory in which links to attached volumes appear (not in the official driver; for tests)
    #[arg(help_heading = TESTS, long, default_value = "/dev/disk/by-id")]
    device_dir: PathBuf,
    /// Where sysfs is mounted (not in the official driver; for tests)
    #[arg(help_heading = TESTS, long, default_value = "/sys")]
    sys_dir: PathBuf,
    /// Do not serve: ask the plugin at the endpoint whether it is ready, and exit with 0 if it is, else with 1. For health checks
    /// of a container (not in the official driver)
    #[arg(help_heading = SERVICE, long)]
    probe: bool,
}

/// Which CSI services this process offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Controller and node service in one process, as in Nomad's `monolith` plugins.
    Monolith,
    /// Controller service only: needs a token, but neither a droplet nor file system tools.
    Controller,
    /// Node service only: needs no token.
    Node,
}

impl Mode {
    /// Whether the controller service is offered.
    #[must_use]
    pub fn has_controller(self) -> bool {
        matches!(self, Mode::Monolith | Mode::Controller)
    }

    /// Whether the node service is offered.
    #[must_use]
    pub fn has_node(self) -> bool {
        matches!(self, Mode::Monolith | Mode::Node)
    }
}

/// The settings of one run, checked.
#[derive(Debug)]
pub struct Config {
    /// Path of the Unix socket, absolute or relative to the working directory.
    pub socket: PathBuf,
    /// Whether nobody gave the endpoint, so that it is the official driver's.
    pub is_default_endpoint: bool,
    /// Permission bits of the socket.
    pub socket_mode: u32,
    /// Services to offer.
    pub mode: Mode,
    /// Whether the mode is [`Mode::Node`] only because no token was given.
    pub mode_is_for_want_of_token: bool,
    /// The CSI driver name.
    pub driver_name: String,
    /// The API token; always there when the controller service is offered.
    pub token: Option<Token>,
    /// Base URL of the API.
    pub api_url: BaseUrl,
    /// How the API is reached, and who is believed to be it.
    pub route: Route,
    /// Base URL of the metadata service.
    pub metadata_url: BaseUrl,
    /// Region given by the operator; otherwise the droplet's own.
    pub region: Option<Region>,
    /// Id of this droplet given by the operator; otherwise the metadata service is asked.
    pub droplet_id: Option<DropletId>,
    /// Tag for every volume that is created or attached, and the owner's name.
    pub tag: Option<Tag>,
    /// Tag of everything that may be touched at all.
    pub only_tag: Option<Tag>,
    /// Where to answer health checks.
    pub debug_addr: Option<SocketAddr>,
    /// Entries on a page of ListVolumes when the request names none.
    pub default_page_size: Option<usize>,
    /// Upper limit of API requests a second; 0: none but the API's own.
    pub api_rate_limit: f64,
    /// Whether a volume is taken also from a droplet that is running.
    pub takeover: bool,
    /// How long a volume may be on this droplet unused before it is detached; none: for ever.
    pub release_unused: Option<Duration>,
    /// Where Nomad keeps the directories of its allocations, where that can be seen from here for certain.
    pub allocations: Option<Allocations>,
    /// How long a controller call may take, all its waits included.
    pub call_budget: Duration,
    /// How long one request to DigitalOcean may take.
    pub api_timeout: Duration,
    /// How many volumes a droplet may hold.
    pub volume_limit: u32,
    /// The largest volume that is made.
    pub max_volume_size: Gib,
    /// Whether a volume may be published to one droplet in different ways.
    pub mixed_access: bool,
    /// The file system for a blank volume when the request names none.
    pub default_fs_type: FsKind,
    /// The SELinux label for the files of all volumes.
    pub selinux_label: Option<SelinuxLabel>,
    /// Mount flags that every volume gets unless its own say otherwise.
    pub default_mount_flags: DefaultFlags,
    /// What is logged.
    pub log_levels: LogLevels,
    /// The form of the log's lines.
    pub log_format: LogFormat,
    /// Where links to attached volumes appear.
    pub device_dir: PathBuf,
    /// Where sysfs is mounted.
    pub sys_dir: PathBuf,
}

/// The flags that are on or off.
const SWITCHES: [&str; 3] = ["validate_attachment", "takeover", "mixed_access"];

/// A flag that may stand alone, for `=true`. As with Go's, its value is never the next word.
fn as_switch(flag: Arg) -> Arg {
    flag.num_args(0..=1).require_equals(true).default_missing_value("true")
}

/// Why the program ends before it has begun.
#[derive(Debug, PartialEq, Eq)]
pub enum Early {
    /// Help or version was asked for: print to standard output and exit with 0.
    Answer(String),
    /// Only a look at the plugin that serves this socket was asked for: exit with 0 if it is ready, else with 1.
    Probe(PathBuf),
    /// A setting is wrong: print this line to standard error and exit with 2.
    Refusal(String),
}

impl Config {
    /// Reads flags and environment; `args` starts with the program's name.
    ///
    /// # Errors
    /// [`Early`] when help, version or a probe was asked for or a setting is wrong.
    pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Config, Early> {
        let args: Vec<OsString> = double_dashes(args).collect();
        let command = command().mut_args(without_empty_variable);
        let matches = command.try_get_matches_from(&args).map_err(|err| early(&err, &args))?;
        let mut flags = Flags::from_arg_matches(&matches).map_err(|err| early(&err, &args))?;
        flags.note_sources(&matches);
        if flags.probe {
            // No other setting matters to it, so none has to be right.
            return Err(parse_endpoint(&flags.endpoint).map_or_else(Early::Refusal, Early::Probe));
        }
        flags.check().map_err(|line| Early::Refusal(with_variable(line, &matches)))
    }
}

/// The command line as clap knows it: every flag with its variable, default and help. The manual page, the completions and
/// docs/flags.md are made of it.
#[must_use]
pub fn command() -> clap::Command {
    SWITCHES.into_iter().fold(Flags::command(), |command, flag| command.mut_arg(flag, as_switch))
}

/// The value of a variable that is no flag's, such as Nomad's own; what is no UTF-8 counts as not set.
#[must_use]
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

impl Flags {
    /// Remembers where settings are from, which errors tell.
    fn note_sources(&mut self, matches: &ArgMatches) {
        self.is_default_endpoint = matches.value_source("endpoint") == Some(ValueSource::DefaultValue);
        if matches.value_source("token") == Some(ValueSource::EnvVariable) {
            self.token_origin = TOKEN_VARIABLE;
        }
    }

    fn check(self) -> Result<Config, String> {
        let token = token_source(&self.token, self.token_origin, self.token_file.as_deref())?;
        let mode = plan_mode(self.mode, token.is_some())?;
        if let (Some(token), Some(file), true) = (&token, &self.token_file, mode.has_controller()) {
            token.current().map_err(|err| format!("--token-file {}: {err}", file.display()))?;
        }
        parse_bool("--validate-attachment", &self.validate_attachment)?;
        let tag = if_given("--do-tag", &self.do_tag, parse_owner_tag)?;
        let release_unused = parse_release_unused(&self.release_unused, tag.is_some())?;
        let api_url = BaseUrl::parse(&self.url).map_err(|bad| format!("--url: {bad}"))?;
        // Who does not ask the API needs no way to it.
        let proxies = ProxyVariables::read(variable);
        let read_route = || Route::read(&proxies, self.ca_file.as_deref(), &api_url);
        let route = if mode.has_controller() { read_route()? } else { Route::default() };
        Ok(Config {
            socket: parse_endpoint(&self.endpoint)?,
            is_default_endpoint: self.is_default_endpoint,
            socket_mode: parse_socket_mode(&self.socket_mode)?,
            mode,
            mode_is_for_want_of_token: self.mode.is_none() && token.is_none(),
            driver_name: parse_driver_name(self.driver_name)?,
            token,
            api_url,
            route,
            metadata_url: BaseUrl::parse(&self.metadata_url).map_err(|bad| format!("--metadata-url: {bad}"))?,
            region: if_given("--region", &self.region, Region::parse)?,
            droplet_id: if_given("--droplet-id", &self.droplet_id, DropletId::parse)?,
            tag,
            only_tag: if_given("--only-tag", &self.only_tag, parse_owner_tag)?,
            debug_addr: parse_debug_addr(&self.debug_addr)?,
            default_page_size: Some(parse_number(
                "--default-volumes-page-size",
                &self.default_volumes_page_size,
                MOST_ENTRIES,
            )?)
            .filter(|size| *size > 0),
            api_rate_limit: parse_rate(&self.do_api_rate_limit)?,
            takeover: parse_bool("--takeover", &self.takeover)?,
            release_unused,
            allocations: plan_allocations(self.nomad_allocations, |name| std::env::var(name).ok()),
            call_budget: parse_seconds("--call-budget", &self.call_budget)?,
            api_timeout: parse_seconds("--api-timeout", &self.api_timeout)?,
            volume_limit: parse_number("--volume-limit", &self.volume_limit, u32::MAX)?,
            max_volume_size: parse_max_size(&self.max_volume_size)?,
            mixed_access: parse_bool("--mixed-access", &self.mixed_access)?,
            default_fs_type: FsKind::parse(&self.default_fs_type).ok_or_else(|| {
                format!("--default-fs-type: {:?} is not ext4, xfs, ext3 or btrfs", self.default_fs_type)
            })?,
            selinux_label: if_given("--selinux-label", &self.selinux_label, SelinuxLabel::parse)?,
            default_mount_flags: if_given("--default-mount-flags", &self.default_mount_flags, DefaultFlags::parse)?
                .unwrap_or_default(),
            log_levels: LogLevels::parse(&self.log_level).map_err(|bad| format!("--log-level: {bad}"))?,
            log_format: self.log_format,
            device_dir: self.device_dir,
            sys_dir: self.sys_dir,
        })
    }
}

/// A variable that is set but empty, as templates leave it behind, counts as not set.
fn without_empty_variable(arg: Arg) -> Arg {
    let is_empty = arg.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
    if is_empty { arg.env(None::<&'static str>) } else { arg }
}

fn plan_mode(asked: Option<Mode>, has_token: bool) -> Result<Mode, String> {
    match (asked, has_token) {
        (Some(Mode::Node), true | false) | (None, false) => Ok(Mode::Node),
        (None, true) => Ok(Mode::Monolith),
        (Some(mode @ (Mode::Monolith | Mode::Controller)), true) => Ok(mode),
        (Some(Mode::Monolith | Mode::Controller), false) => {
            Err("the controller service needs a DigitalOcean token: set DIGITALOCEAN_ACCESS_TOKEN or --token-file"
                .to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Config, Early> {
        Config::parse(std::iter::once("do-csi-plugin").chain(args.iter().copied()).map(OsString::from))
    }

    fn refusal(args: &[&str]) -> String {
        match parse(args) {
            Err(Early::Refusal(line)) => line,
            other => panic!("{args:?} gave {other:?}"),
        }
    }

    #[test]
    fn flags_take_one_dash_or_two_and_a_blank_or_an_equals_sign() {
        for args in [["--region=fra1", "--token=t"], ["-region=fra1", "-token=t"]] {
            let config = parse(&args).unwrap();
            assert_eq!(config.region.unwrap().as_str(), "fra1");
            assert_eq!(config.mode, Mode::Monolith);
        }
        assert_eq!(parse(&["-region", "fra1"]).unwrap().region.unwrap().as_str(), "fra1");
        assert_eq!(parse(&["--driver-name", "a.b"]).unwrap().driver_name, "a.b");
    }

    #[test]
    fn a_call_ends_before_nomad_gives_up_on_it() {
        let config = parse(&["--region=fra1"]).unwrap();
        assert!(config.call_budget < Duration::from_secs(110), "{:?}", config.call_budget);
        assert!(config.api_timeout < config.call_budget);
    }

    #[test]
    fn endpoints_are_unix_sockets_in_every_spelling() {
        let table = [
            ("unix:///csi/csi.sock", "/csi/csi.sock"),
            ("unix://csi/csi.sock", "csi/csi.sock"),
            ("unix:/csi/csi.sock", "/csi/csi.sock"),
            ("/csi/csi.sock", "/csi/csi.sock"),
            ("csi.sock", "csi.sock"),
        ];
        for (text, want) in table {
            assert_eq!(parse_endpoint(text), Ok(PathBuf::from(want)), "{text}");
        }
        for bad in ["tcp://127.0.0.1:1", "unix://", "unix:///", "", "http://x/y"] {
            assert!(parse_endpoint(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_wrong_setting_is_one_line_that_names_the_flag() {
        let table: [(&[&str], &str); 23] = [
            (&["--nonsense"], "--nonsense"),
            (&["--endpoint=tcp://1"], "--endpoint"),
            (&["--url=ftp://x"], "--url"),
            (&["--metadata-url=x"], "--metadata-url"),
            (&["--droplet-id=node-1"], "--droplet-id"),
            (&["--driver-name=.x"], "--driver-name"),
            (&["--debug-addr=x"], "--debug-addr"),
            (&["--do-api-rate-limit=-1"], "--do-api-rate-limit"),
            (&["--socket-mode=999"], "--socket-mode"),
            (&["--call-budget=0"], "--call-budget"),
            (&["--api-timeout=-1"], "--api-timeout"),
            (&["--max-volume-size=0"], "--max-volume-size"),
            (&["--validate-attachment=maybe"], "--validate-attachment"),
            (&["--default-fs-type=ntfs"], "--default-fs-type"),
            (&["--selinux-label=x"], "--selinux-label"),
            (&["--default-mount-flags=nosuid,discard"], "--default-mount-flags"),
            (&["--do-tag=a b"], "--do-tag"),
            (&["--do-tag=do-csi"], "--do-tag"),
            (&["--do-tag=Do-csi-prod"], "--do-tag"),
            (&["--only-tag=do-csi:scheduled"], "--only-tag"),
            (&["--release-unused=2m"], "--do-tag"),
            (&["--release-unused=soon", "--do-tag=x"], "--release-unused"),
            (&["--release-unused=999h", "--do-tag=x"], "--release-unused"),
        ];
        for (args, flag) in table {
            let line = refusal(args);
            assert!(line.contains(flag) && !line.contains('\n'), "{line}");
        }
    }

    #[test]
    fn a_word_that_is_no_flag_is_answered_with_the_command_that_was_meant() {
        for (args, want) in [
            (&["doctro"][..], "did you mean the command doctor?"),
            (&["volume"], "did you mean the command volumes?"),
            (&["--mode=node", "doctor"], "a command comes first: do-csi-plugin doctor"),
            (&["elephant"], "the commands are volumes, doctor and snapshot"),
        ] {
            let line = refusal(args);
            assert!(line.contains(want) && !line.contains('\n'), "{line}");
        }
    }

    #[test]
    fn the_mode_follows_from_the_token_unless_it_is_given() {
        let table = [
            (None, false, Some(Mode::Node)),
            (None, true, Some(Mode::Monolith)),
            (Some(Mode::Node), true, Some(Mode::Node)),
            (Some(Mode::Node), false, Some(Mode::Node)),
            (Some(Mode::Controller), true, Some(Mode::Controller)),
            (Some(Mode::Controller), false, None),
            (Some(Mode::Monolith), true, Some(Mode::Monolith)),
            (Some(Mode::Monolith), false, None),
        ];
        for (asked, has_token, want) in table {
            assert_eq!(plan_mode(asked, has_token).ok(), want, "{asked:?} {has_token}");
        }
    }

    #[test]
    fn a_debug_address_without_a_host_is_of_this_machine_only() {
        for (text, want) in [
            ("", None),
            (":9810", Some("127.0.0.1:9810")),
            ("0.0.0.0:9810", Some("0.0.0.0:9810")),
            ("127.0.0.1:9810", Some("127.0.0.1:9810")),
            ("[::1]:9810", Some("[::1]:9810")),
            ("localhost:9810", Some("127.0.0.1:9810")),
        ] {
            assert_eq!(parse_debug_addr(text), Ok(want.map(|address| address.parse().unwrap())), "{text}");
        }
    }

    #[test]
    fn a_token_is_never_printed() {
        let config = parse(&["--token=dop_v1_secret"]).unwrap();
        assert!(!format!("{config:?}").contains("secret"));
        assert!(refusal(&["--token=a", "--token-file=/x"]).contains("--token-file"));
    }

    #[test]
    fn fuzz_flags_are_taken_whole_or_refused_in_a_line() {
        let seeds: [&[u8]; 4] = [
            b"--region=fra1\n--token=t\n--call-budget=100\n--do-tag=prod\n--release-unused=2m",
            b"--mode\nnode\n--volume-limit=15\n--socket-mode=0600\n-endpoint=unix:///csi/csi.sock",
            b"--debug-addr=:9810\n--do-api-rate-limit=2.5\n--max-volume-size=16384\n--log-level=info,do_csi_plugin::rpc=debug",
            b"--default-mount-flags=nosuid,nodev\n--selinux-label=a:b:c:s0\n--url=http://a/b\n--metadata-url=http://[::1]:1",
        ];
        let words: [&[u8]; 10] = [
            b"--",
            b"-",
            b"=",
            b"\n",
            b"NaN",
            b"inf",
            b"--token-file=/dev/null",
            b"unix://",
            b"--only-tag=x",
            b"\xc3\xbc",
        ];
        crate::fuzz::fuzz("flags", &seeds, &words, |bytes| {
            use std::os::unix::ffi::OsStringExt;

            let args = bytes.split(|byte| *byte == b'\n').map(|arg| OsString::from_vec(arg.to_vec()));
            match Config::parse(std::iter::once("do-csi-plugin".into()).chain(args)) {
                Ok(config) => {
                    assert!(config.call_budget > Duration::ZERO && config.api_timeout > Duration::ZERO);
                    assert!(config.api_rate_limit.is_finite() && config.max_volume_size.0 > 0);
                    let _size = config.max_volume_size.bytes();
                }
                Err(Early::Refusal(line)) => assert!(!line.is_empty() && !line.contains('\n'), "{line:?}"),
                Err(Early::Answer(_) | Early::Probe(_)) => {}
            }
        });
    }
}
