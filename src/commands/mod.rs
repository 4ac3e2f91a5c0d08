//! The commands for people: what they read, and what they print.
//!
//! Owns the way from arguments to an exit code. What is wrong is said by `ops/diagnosis`, as everywhere. The commands
//! ask the same questions as the plugin, with the same settings. Two of them change something: `doctor --fix` what it was
//! told to, `snapshot` the snapshots that it takes.
//!
//! | module | holds |
//! |---|---|
//! | `world` | everything that is read, once, of DigitalOcean, this node and Nomad |
//! | `volumes` | the table of volumes |
//! | `doctor` | the findings, in the order in which they matter |
//! | `checks` | what `doctor` looks at besides the volumes |
//! | `repair` | what `doctor --fix` does |
//! | `snapshot` | a snapshot now, and those before it that are kept |
//! | `terminal` | tables and colours |

mod checks;
mod doctor;
mod repair;
mod snapshot;
mod terminal;
mod volumes;
mod world;

use std::io::{self, Write};
use std::process::ExitCode;

use crate::commands::world::{CloudAccess, Source};
use crate::config::command::{CommandLine, Lent, Subcommand};
use crate::config::{Config, variable};
use crate::nomad::{Nomad, NomadVariables};

/// Exit code when nothing could be looked at.
const COULD_NOT_LOOK: u8 = 2;

/// Does what a command says.
///
/// # Errors
/// One line: nothing could be looked at, which is exit code 2.
pub fn run(line: CommandLine) -> Result<ExitCode, String> {
    let CommandLine { subcommand, mut config, lent } = line;
    let cloud = config.token.take().map(|token| CloudAccess::new(&config, token));
    match subcommand {
        Subcommand::Volumes { is_json, watch } => volumes::run(&source(config, cloud, lent)?, is_json, watch),
        Subcommand::Doctor { volume, is_json, fix, yes } => {
            doctor::run(&source(config, cloud, lent)?, &doctor::Wish { volume, is_json, fix, yes })
        }
        Subcommand::Snapshot { volume, keep, is_dry } => {
            lent.check_changes()?;
            snapshot::run(&config, cloud.as_ref(), &snapshot::Wish { volume, keep, is_dry })
        }
    }
}

fn source(config: Config, cloud: Option<CloudAccess>, lent: Lent) -> Result<Source, String> {
    let nomad = Nomad::new(&NomadVariables::read(variable))?;
    Ok(Source { config, cloud, nomad, lent })
}

/// Writes to standard output. Whoever closes it has seen enough.
fn print(text: &str) {
    let mut out = io::stdout();
    let _closed = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
