//! The commands: `volumes` and `doctor` for people, `snapshot` for a periodic job.
//!
//! Owns their arguments. The settings beside these are the plugin's own, by the same flags and variables, so that
//! what a command says is of the plugin beside which it runs. Without a command the program is the plugin.

use std::ffi::OsString;
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser};

use crate::config::keep::Keep;
use crate::config::refusal::{early, with_variable};
use crate::config::running::{WHOSE, observe_running_flags};
use crate::config::{Config, Early, Flags, SWITCHES, as_switch, double_dashes, without_empty_variable};

/// What a command shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subcommand {
    /// The volumes.
    Volumes {
        /// As JSON and not as a table.
        is_json: bool,
        /// Again and again, with this pause; `None`: once.
        watch: Option<Duration>,
    },
    /// What is wrong, and what ends it.
    Doctor {
        /// Only what is wrong with this volume, by its id or name, or its id in Nomad.
        volume: Option<String>,
        /// As JSON and not as text.
        is_json: bool,
        /// Repair what can be repaired without losing data.
        fix: bool,
        /// Without asking.
        yes: bool,
    },
    /// A snapshot now, and which of those before it are kept.
    Snapshot {
        /// The volume, by its id or its name.
        volume: String,
        /// Which are kept.
        keep: Keep,
        /// Only tell what would be done.
        is_dry: bool,
    },
}

/// A command with its settings.
#[derive(Debug)]
pub struct CommandLine {
    /// Which.
    pub subcommand: Subcommand,
    /// The settings.
    pub config: Config,
    /// What the plugin that serves the socket has lent it.
    pub lent: Lent,
}

/// The settings of a command that are as the plugin has them that serves the socket.
#[derive(Debug, Default)]
pub struct Lent {
    /// Its arguments that were taken over.
    pub taken_over: Vec<String>,
    /// Those that were not, each with the reason.
    pub left_out: Vec<String>,
    /// The same for those that say whose everything is.
    unknown_owner: Option<String>,
}

impl Lent {
    /// Sees that it is known what the plugin may change.
    ///
    /// # Errors
    /// One line: why that is not known, and what to do.
    pub fn check_changes(&self) -> Result<(), String> {
        let Some(why) = &self.unknown_owner else { return Ok(()) };
        Err(format!(
            "nothing is changed, as it is not known what the running plugin may change: {why}; give --do-tag and --only-tag as it has them"
        ))
    }
}

/// What the commands that read only say of Nomad.
const WITH_NOMAD: &str = "With NOMAD_ADDR (and NOMAD_TOKEN, NOMAD_NAMESPACE, NOMAD_CACERT, ...) also Nomad's claims.";

#[derive(Debug, Parser)]
#[command(
    name = "do-csi-plugin volumes",
    about = "Show every volume of the region: where it is, who uses it, how full it is, what is wrong with it",
    after_help = WITH_NOMAD
)]
struct VolumesArguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print again after so many seconds, until it is interrupted
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "5", value_name = "SECONDS")]
    watch: Option<u64>,
    #[command(flatten)]
    flags: Flags,
}

#[derive(Debug, Parser)]
#[command(
    name = "do-csi-plugin doctor",
    about = "Say what is wrong, and the command that ends it. Exit code 0: nothing, or notices alone; 1: a warning or worse; 2: could not look",
    after_help = WITH_NOMAD
)]
struct DoctorArguments {
    /// Only what is wrong with this volume: its id, its name, or its id in Nomad
    volume: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Repair what can be repaired without losing data, after asking
    #[arg(long, conflicts_with = "json")]
    fix: bool,
    /// Repair without asking
    #[arg(long, requires = "fix")]
    yes: bool,
    #[command(flatten)]
    flags: Flags,
}

/// What `snapshot` says of its rules.
const OF_SNAPSHOTS: &str = "Kept is the newest of each of so many hours, days, weeks or months that have one, in UTC. Deleted is only what \
                            this command has taken of this volume, known by the tag do-csi-scheduled.";

#[derive(Debug, Parser)]
#[command(
    name = "do-csi-plugin snapshot",
    about = "Take a snapshot of a volume, and delete those before it that are not to be kept. Exit code 0: all is done, 1: not \
             all, 2: nothing",
    after_help = OF_SNAPSHOTS
)]
struct SnapshotArguments {
    /// The volume: its id, or its name in this region
    #[arg(long, value_name = "VOLUME")]
    volume: String,
    /// How many to keep, 24 at most: daily=7,weekly=4 (hourly, daily, weekly, monthly)
    #[arg(long, value_name = "RULES")]
    keep: Keep,
    /// Only tell what would be done
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    flags: Flags,
}

/// The commands, for pages and completions.
#[must_use]
pub fn subcommands() -> [clap::Command; 3] {
    [
        command::<VolumesArguments>().name("volumes"),
        command::<DoctorArguments>().name("doctor"),
        command::<SnapshotArguments>().name("snapshot"),
    ]
}

impl CommandLine {
    /// Reads the arguments of a command; `None`: they name none, so the program is the plugin.
    ///
    /// # Errors
    /// As [`Config::parse`].
    pub fn parse(args: &[OsString]) -> Result<Option<CommandLine>, Early> {
        let rest = || args.iter().skip(1).cloned();
        match args.get(1).and_then(|word| word.to_str()) {
            Some("volumes") => {
                let settings = |VolumesArguments { json, watch, flags }| ((json, watch), flags);
                let ((is_json, watch), settings) = read(rest(), settings)?;
                let watch = watch.map(|seconds: u64| Duration::from_secs(seconds.max(1)));
                Ok(Some(settings.with(Subcommand::Volumes { is_json, watch })))
            }
            Some("doctor") => {
                let settings = |DoctorArguments { volume, json, fix, yes, flags }| ((volume, json, fix, yes), flags);
                let ((volume, is_json, fix, yes), settings) = read(rest(), settings)?;
                Ok(Some(settings.with(Subcommand::Doctor { volume, is_json, fix, yes })))
            }
            Some("snapshot") => {
                let settings = |SnapshotArguments { volume, keep, dry_run, flags }| ((volume, keep, dry_run), flags);
                let ((volume, keep, is_dry), settings) = read(rest(), settings)?;
                Ok(Some(settings.with(Subcommand::Snapshot { volume, keep, is_dry })))
            }
            Some(_) | None => Ok(None),
        }
    }
}

/// The settings of a command, and those that the running plugin has lent it.
struct Settings {
    config: Config,
    lent: Lent,
}

impl Settings {
    fn with(self, subcommand: Subcommand) -> CommandLine {
        CommandLine { subcommand, config: self.config, lent: self.lent }
    }
}

fn read<T: CommandFactory + FromArgMatches, A>(
    args: impl Iterator<Item = OsString>,
    settings: impl Fn(T) -> (A, Flags),
) -> Result<(A, Settings), Early> {
    let mut args: Vec<OsString> = double_dashes(args).collect();
    let (mut arguments, mut config, given) = read_once(&args, &settings)?;
    let mut lent = Lent::default();
    let running = observe_running_flags(&config.socket).unwrap_or_else(|why| {
        let is_open = WHOSE.iter().any(|name| !given.has(name));
        lent.unknown_owner = is_open.then(|| why.clone());
        lent.left_out.push(why);
        Vec::new()
    });
    for flag in running.into_iter().filter(|flag| !given.has(flag.name)) {
        let shown = flag.argument.to_string_lossy().into_owned();
        args.push(flag.argument);
        match read_once(&args, &settings) {
            Ok(read) => {
                (arguments, config, _) = read;
                lent.taken_over.push(shown);
            }
            // What the plugin has and this process cannot have, such as a file in the plugin's container.
            Err(refused) => {
                args.pop();
                let why = match refused {
                    Early::Refusal(line) => format!("{shown}: {line}"),
                    Early::Answer(_) | Early::Probe(_) => shown,
                };
                if WHOSE.contains(&flag.name) {
                    lent.unknown_owner = Some(why.clone());
                }
                lent.left_out.push(why);
            }
        }
    }
    Ok((arguments, Settings { config, lent }))
}

/// Which flags were given.
struct Given(ArgMatches);

impl Given {
    /// Whether the flag was, or what goes before it: by whoever gives a token, no other is looked for.
    fn has(&self, name: &str) -> bool {
        let source = |name: &str| self.0.value_source(&name.replace('-', "_"));
        let is_of_token = name == "token-file";
        let is_given = |source| source == Some(ValueSource::CommandLine);
        let is_set = |source| matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable));
        is_given(source(name)) || (is_of_token && (is_set(source("token")) || is_set(source("token-file"))))
    }
}

fn read_once<T: CommandFactory + FromArgMatches, A>(
    args: &[OsString],
    settings: &impl Fn(T) -> (A, Flags),
) -> Result<(A, Config, Given), Early> {
    let refused = |err: clap::Error| early(&err, args);
    let matches = command::<T>().mut_args(without_empty_variable).try_get_matches_from(args).map_err(refused)?;
    let (arguments, mut flags) = settings(T::from_arg_matches(&matches).map_err(refused)?);
    flags.note_sources(&matches);
    // Which services the plugin offers does not matter: what can be asked is asked.
    flags.mode = None;
    let config = flags.check().map_err(|line| Early::Refusal(with_variable(line, &matches)))?;
    Ok((arguments, config, Given(matches)))
}

fn command<T: CommandFactory>() -> clap::Command {
    SWITCHES.into_iter().fold(T::command(), |command, flag| command.mut_arg(flag, as_switch))
}
