//! The commands: `volumes` and `doctor` for people, `snapshot` for a periodic job.
//!
//! Owns their arguments. The settings beside these are the plugin's own, by the same flags and variables, so that
//! what a command says is of the plugin beside which it runs. Without a command the program is the plugin.

use std::ffi::OsString;
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches, Parser};

use crate::config::keep::Keep;
use crate::config::{Config, Early, Flags, SWITCHES, as_switch, double_dashes, early, without_empty_variable};

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
    about = "Say what is wrong, and the command that ends it. Exit code 0: nothing, 1: something, 2: could not look",
    after_help = WITH_NOMAD
)]
struct DoctorArguments {
    /// Only what is wrong with this volume: its id, its name, or its id in Nomad
    volume: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Repair what can be repaired without losing data, after asking
    #[arg(long)]
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
                let ((is_json, watch), config) = read(rest(), settings)?;
                let watch = watch.map(|seconds: u64| Duration::from_secs(seconds.max(1)));
                Ok(Some(CommandLine { subcommand: Subcommand::Volumes { is_json, watch }, config }))
            }
            Some("doctor") => {
                let settings = |DoctorArguments { volume, json, fix, yes, flags }| ((volume, json, fix, yes), flags);
                let ((volume, is_json, fix, yes), config) = read(rest(), settings)?;
                Ok(Some(CommandLine { subcommand: Subcommand::Doctor { volume, is_json, fix, yes }, config }))
            }
            Some("snapshot") => {
                let settings = |SnapshotArguments { volume, keep, dry_run, flags }| ((volume, keep, dry_run), flags);
                let ((volume, keep, is_dry), config) = read(rest(), settings)?;
                Ok(Some(CommandLine { subcommand: Subcommand::Snapshot { volume, keep, is_dry }, config }))
            }
            Some(_) | None => Ok(None),
        }
    }
}

fn read<T: CommandFactory + FromArgMatches, A>(
    args: impl Iterator<Item = OsString>,
    settings: impl FnOnce(T) -> (A, Flags),
) -> Result<(A, Config), Early> {
    let command = command::<T>();
    let args: Vec<OsString> = double_dashes(args).collect();
    let refused = |err: clap::Error| early(&err, &args);
    let matches = command.mut_args(without_empty_variable).try_get_matches_from(&args).map_err(refused)?;
    let (arguments, mut flags) = settings(T::from_arg_matches(&matches).map_err(refused)?);
    flags.note_sources(&matches);
    // Which services the plugin offers does not matter: what can be asked is asked.
    flags.mode = None;
    Ok((arguments, flags.check().map_err(Early::Refusal)?))
}

fn command<T: CommandFactory>() -> clap::Command {
    SWITCHES.into_iter().fold(T::command(), |command, flag| command.mut_arg(flag, as_switch))
}
