//! `snapshot`: takes one, and deletes those before it that nothing needs any more.
//!
//! Owns what is told of it, and the exit code. Run it from a periodic job.

use std::process::ExitCode;

use crate::cloud::metadata::Metadata;
use crate::cloud::snapshot::Snapshot;
use crate::cloud::volume::Volume;
use crate::commands::print;
use crate::commands::terminal::printable;
use crate::commands::world::CloudAccess;
use crate::config::Config;
use crate::config::keep::Keep;
use crate::controller::Controller;
use crate::controller::keep::{Fate, TakePlan};
use crate::droplet_identity::{DropletIdentity, Given};
use crate::error::{Chain, Error};

/// What is asked of it.
#[derive(Debug)]
pub(super) struct Wish {
    /// The volume, by its id or its name.
    pub(super) volume: String,
    pub(super) keep: Keep,
    /// Only tell what would be done.
    pub(super) is_dry: bool,
}

/// Takes a snapshot, and deletes what is not needed any more. Exit code 0: all of it is done; 1: not all of it, and the output
/// says what is not.
///
/// # Errors
/// One line: nothing was done, which is exit code 2.
pub(super) fn run(config: &Config, access: Option<&CloudAccess>, wish: &Wish) -> Result<ExitCode, String> {
    let access = access.ok_or("snapshot: it takes a token (DIGITALOCEAN_ACCESS_TOKEN, --token-file)")?;
    let identity = DropletIdentity::new(Given { id: config.droplet_id, region: config.region.clone() });
    if config.region.is_none() {
        let asked = identity.find_out(Metadata::new(config.metadata_url.clone()));
        asked.map_err(|err| format!("cannot start a thread: {err}"))?;
    }
    let controller = Controller::new(config, access.whole(), identity).off_droplet();
    let in_a_line = |err: Error| format!("snapshot: {}", Chain(&err));
    let volume = controller.find_called(&wish.volume).map_err(in_a_line)?;
    let (take, before) = controller.plan_next_scheduled(&volume, &wish.keep).map_err(in_a_line)?;
    if wish.is_dry {
        tell_plan(&take, &before);
        return Ok(ExitCode::SUCCESS);
    }
    if let Err(why) = take_next(&controller, &volume, take) {
        print(&format!("not taken: {}\nnothing else was deleted\n", printable(&why)));
        return Ok(ExitCode::FAILURE);
    }
    // As it is now, with the new one in it.
    let after = match controller.plan_scheduled(&volume, &wish.keep) {
        Ok(after) => after,
        Err(err) => {
            print(&format!("nothing was deleted: {}\n", printable(&Chain(&err).to_string())));
            return Ok(ExitCode::FAILURE);
        }
    };
    Ok(clear(&controller, &after))
}

/// Takes the next snapshot, and tells of it.
fn take_next(controller: &Controller, volume: &Volume, plan: TakePlan) -> Result<(), String> {
    match plan {
        TakePlan::TakenBefore(name) => {
            print(&format!("taken less than ten minutes ago: {}\n", printable(&name)));
            return Ok(());
        }
        TakePlan::TooSoon(name) => return Err(too_soon(&name)),
        TakePlan::Full { ours } => {
            return Err(format!(
                "the volume has as many snapshots as DigitalOcean keeps of one, and {ours} of them are this command's and \
                 needed; keep fewer (--keep), or delete others (`doctl compute snapshot list`)"
            ));
        }
        TakePlan::MakeRoom(oldest) => {
            controller.delete_scheduled(&oldest).map_err(|err| Chain(&err).to_string())?;
            print(&format!("deleted   {} to make room\n", called(&oldest)));
        }
        TakePlan::Take => {}
    }
    let taken = controller.take_scheduled(volume).map_err(|err| Chain(&err).to_string())?;
    print(&format!("taken     {} of volume {} ({})\n", called(&taken), volume.name, volume.id));
    Ok(())
}

/// Deletes what is not needed any more, and tells what is kept.
fn clear(controller: &Controller, all: &[(Snapshot, Fate)]) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for (snapshot, fate) in all {
        match fate {
            Fate::Unneeded => match controller.delete_scheduled(snapshot) {
                Ok(()) => print(&format!("deleted   {}\n", called(snapshot))),
                Err(err) => {
                    code = ExitCode::FAILURE;
                    print(&format!("not deleted: {}: {}\n", called(snapshot), printable(&Chain(&err).to_string())));
                }
            },
            Fate::Kept(_) | Fate::OfUnknownAge => print(&in_words(snapshot, fate)),
        }
    }
    code
}

fn tell_plan(take: &TakePlan, before: &[(Snapshot, Fate)]) {
    print(&match take {
        TakePlan::Take => "would take the next one\n".to_owned(),
        TakePlan::TakenBefore(name) => {
            format!("would take none, as {} is less than ten minutes old\n", printable(name))
        }
        TakePlan::MakeRoom(oldest) => format!("would delete {} to make room, and take the next one\n", called(oldest)),
        TakePlan::TooSoon(name) => format!("could take none yet: {}\n", printable(&too_soon(name))),
        TakePlan::Full { ours } => format!("could take none: the volume has too many, {ours} of them this command's\n"),
    });
    before.iter().for_each(|(snapshot, fate)| print(&in_words(snapshot, fate)));
}

fn too_soon(name: &str) -> String {
    format!(
        "the volume has as many snapshots as DigitalOcean keeps of one, which takes the next ten minutes after the last, and {name} \
         is younger or of unknown age; nothing makes room for one that would be refused, try again in ten minutes"
    )
}

fn in_words(snapshot: &Snapshot, fate: &Fate) -> String {
    match fate {
        Fate::Kept(periods) => {
            let periods: Vec<&str> = periods.iter().map(|period| period.as_str()).collect();
            format!("kept      {}: {}\n", called(snapshot), periods.join(", "))
        }
        Fate::OfUnknownAge => format!("kept      {}: nobody knows how old it is\n", called(snapshot)),
        Fate::Unneeded => format!("not needed {}\n", called(snapshot)),
    }
}

fn called(snapshot: &Snapshot) -> String {
    printable(&format!("{} ({})", snapshot.name, snapshot.id))
}
