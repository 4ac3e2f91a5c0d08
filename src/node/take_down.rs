//! Unpublishing and unstaging: a volume is taken away from a path.
//!
//! Owns the order of flushing, unmounting and removing, and the decision when a mount may be torn out of its users' hands:
//! only when it is certainly dead, so that nothing they write could reach the disk any more, and then only when it does not
//! go in the usual way. Other mounts of the same volume stay.

use std::path::Path;
use std::time::Duration;

use log::warn;
use nix::libc;

use crate::activity::{About, Change, tell_change};
use crate::config::UNMOUNT_BUDGET;
use crate::error::{Chain, Error, Result};
use crate::host::command::shell_quoted;
use crate::host::mount::{Unmount, apply_unmount, apply_unmount_within, observe_mounts};
use crate::host::mount_health::{Health, observe_health};
use crate::host::mountinfo::{Mount, MountTable};
use crate::host::under_mount::observe_mapping_under;
use crate::node::block::apply_unprotect_after;
use crate::node::luks::close::ensure_closed_after;
use crate::node::mount_point::{MOST_MOUNTS, too_many};
use crate::node::release::{Left, LeftDisks, Step, apply_before_last, flush_or_say, or_users};
use crate::node::scratch_mount::{self, ensure_none_of};
use crate::node::whose::{Whose, observe_whose_at};
use crate::node::{Arrival, Node, NodeCall, mount_point};
use crate::request::node::{Unpublish, Unstage};

/// Takes away one mount after the other until none is seen at a path; gives what was kept of each, and the mount table as it
/// is then. What a call that was killed has left beside the path goes first: the last look is to show what stays.
fn take_all_down<T>(
    call: &NodeCall<'_>,
    path: &Path,
    mut apply_one: impl FnMut(MountTable, &Mount) -> Result<T>,
) -> Result<(Vec<T>, MountTable)> {
    match scratch_mount::apply_clean(call, path) {
        // Another plugin is about to mount at the path.
        Err(err @ Error::VolumeBusy(_)) => return Err(err),
        // What is left beside the path does not keep the volume mounted at it.
        Err(err) => warn!("what a call that was killed has left stays: {}", Chain(&err)),
        Ok(()) => {}
    }
    let mut kept = Vec::new();
    for _ in 0..MOST_MOUNTS {
        let mounts = observe_mounts()?;
        match mounts.at(path).cloned() {
            Some(mount) => kept.push(apply_one(mounts, &mount)?),
            None => return Ok((kept, mounts)),
        }
    }
    Err(too_many(path))
}

/// Decides how a mount is taken away that does not go in the usual way. Pure.
fn plan_removal(health: Health) -> Unmount {
    match health {
        Health::DiskGone | Health::ShutDown => Unmount::DiskGone,
        // Whoever has a node open whose number another disk may have writes to some disk.
        Health::Alive | Health::NodeGone => Unmount::WhenFree,
    }
}

/// Takes away the mount at a path, which is so: in the usual way if it goes, else as [`plan_removal`] says.
pub(super) fn apply_clear(call: &NodeCall<'_>, path: &Path, health: Health) -> Result<()> {
    warn!(path:% = path.display(); "taking away a dead mount: {health}");
    match (apply_unmount(&call.guard, path, Unmount::WhenFree), plan_removal(health)) {
        (Ok(_), _) => Ok(()),
        (Err(_), Unmount::DiskGone) => apply_unmount(&call.guard, path, Unmount::DiskGone).map(drop),
        (Err(err), Unmount::WhenFree) => Err(err),
    }
}

/// The refusal to take away what is mounted somewhere; `found` is what it is, as the end of a sentence.
fn not_taken_away(mount: &Mount, found: &str) -> Error {
    let target = shell_quoted(&mount.target);
    let by = format!(
        "{} ({}) is mounted there, {found}; nothing was unmounted; if it is this volume's all the same, `umount {target}` on \
         the droplet ends it",
        mount.source.display(),
        mount.fstype
    );
    Error::TargetTaken { path: mount.target.clone(), by }
}

impl Node {
    /// Takes a volume away from a target path: unmounts it and removes the empty directory or file.
    ///
    /// A second call finds nothing and does nothing but look whether the disk is free by now.
    ///
    /// # Errors
    /// [`Error::InUse`] when it stays in use, or its disk does after its last mount is gone; [`Error::Io`] when it cannot be
    /// unmounted; [`Error::TargetTaken`] when something is mounted there that this plugin never mounts.
    pub fn unpublish(&self, want: &Unpublish, arrival: Arrival) -> Result<()> {
        let call = self.begin(arrival, &want.volume, None, &[&want.target])?.seen_through();
        self.ensure_unpublished(&call, want)
    }

    /// As [`Node::unpublish`], with the locks held.
    pub(super) fn ensure_unpublished(&self, call: &NodeCall<'_>, want: &Unpublish) -> Result<()> {
        let volume = &want.volume;
        let Some(target) = mount_point::observe_real_path(&want.target)? else {
            return self.left.ensure_let_go(call, volume, Step::Unpublish, observe_mounts()?);
        };
        let (removed, mounts) = take_all_down(call, &target, |mounts, mount| {
            let health = check_ours(call, volume, mount)?;
            apply_take_down(call, &self.left, volume, mounts, mount, health)?;
            Ok(mount.clone())
        })?;
        for node in removed.iter().filter(|mount| mount.is_node()) {
            apply_unprotect_after(call, node);
        }
        let place = mount_point::apply_remove_place(&call.guard, &target);
        if !removed.is_empty() {
            tell_change(Change::Unpublished, "unpublished", About::default().with("path", target.display()));
        }
        self.left.ensure_let_go(call, volume, Step::Unpublish, mounts)?;
        or_left_in_place(place)
    }

    /// Lets go of a volume on this droplet: what is still in memory is written, then the staging path is unmounted, and an
    /// encrypted volume is closed with its last mount.
    ///
    /// Other mounts of the same volume stay: a task may still use them. A second call does nothing but look whether the disk is
    /// free by now.
    ///
    /// # Errors
    /// As [`Node::unpublish`].
    pub fn unstage(&self, want: &Unstage, arrival: Arrival) -> Result<()> {
        let call = self.begin(arrival, &want.volume, None, &[&want.staging])?.seen_through();
        self.ensure_unstaged(&call, want)
    }

    /// As [`Node::unstage`], with the locks held.
    pub(super) fn ensure_unstaged(&self, call: &NodeCall<'_>, want: &Unstage) -> Result<()> {
        let mounts = match mount_point::observe_real_path(&want.staging)? {
            Some(staging) => self.apply_unstage(call, &want.volume, &staging)?,
            None => observe_mounts()?,
        };
        self.ensure_none_left_open(&call.runner);
        self.left.ensure_let_go(call, &want.volume, Step::Unstage, mounts)
    }

    /// Gives the mount table as it is then.
    fn apply_unstage(&self, call: &NodeCall<'_>, volume: &str, staging: &Path) -> Result<MountTable> {
        let (opened, mounts) = take_all_down(call, staging, |mounts, mount| {
            let health = check_ours(call, volume, mount)?;
            // To keep the volume mounted would not bring back what cannot be written.
            flush_or_say(call, staging);
            let under = observe_mapping_under(call.places, mount);
            apply_take_down(call, &self.left, volume, mounts, mount, health)?;
            // Also where nothing could be seen the mount had to go first; but then the volume may still be open.
            Ok(under)
        })?;
        for under in opened {
            under?.map_or(Ok(()), |under| ensure_closed_after(call, &mounts, volume, &under))?;
        }
        Ok(mounts)
    }
}

/// An empty directory or file that cannot be removed, as on a root file system that has become read-only, is no reason to refuse:
/// the volume is unmounted, and Nomad would detach it without ever unstaging it. Any other failure is one: the next call may do it.
fn or_left_in_place(removed: Result<()>) -> Result<()> {
    let is_lasting = |err: &Error| {
        let refusal = |source: &std::io::Error| matches!(source.raw_os_error(), Some(libc::EROFS | libc::EPERM));
        matches!(err, Error::Io { source, .. } if refusal(source))
    };
    match removed {
        Err(err) if is_lasting(&err) => {
            warn!("the volume is unpublished, and its empty target stays: {}", Chain(&err));
            Ok(())
        }
        removed => removed,
    }
}

/// Takes dead mounts away from a path, and what a call that was killed has left beside it, which would pass for another
/// place where the volume is used; whatever else is there stays. Gives the mount table as it is then.
pub(super) fn ensure_not_dead(call: &NodeCall<'_>, volume: &str, real: &Path) -> Result<MountTable> {
    scratch_mount::apply_clean(call, real)?;
    for _ in 0..MOST_MOUNTS {
        let mounts = observe_mounts()?;
        let Some(mount) = mounts.at(real).filter(|mount| mount.is_of_our_making()) else { return Ok(mounts) };
        match observe_health(call.places, mount)? {
            Health::Alive => return Ok(mounts),
            health @ (Health::DiskGone | Health::ShutDown | Health::NodeGone)
                if check_whose(call, volume, mount, health).is_ok() =>
            {
                apply_clear(call, real, health)?;
            }
            // Whatever else is there is told by who wants to mount there.
            Health::DiskGone | Health::ShutDown | Health::NodeGone => return Ok(mounts),
        }
    }
    Err(too_many(real))
}

/// Sees that a mount may be taken away from where it is, and says how it is. What is not of our making is not even examined,
/// as it may never answer.
fn check_ours(call: &NodeCall<'_>, volume: &str, mount: &Mount) -> Result<Health> {
    if !mount.is_of_our_making() {
        return Err(not_taken_away(mount, "which is no volume"));
    }
    let health = observe_or_assume_alive(call, mount);
    check_whose(call, volume, mount, health)?;
    Ok(health)
}

/// Sees that a mount of our making is the volume's, or that its disk is gone.
fn check_whose(call: &NodeCall<'_>, volume: &str, mount: &Mount, health: Health) -> Result<()> {
    match observe_whose_at(call.places, volume, mount, health)? {
        Whose::Ours(_) | Whose::Gone => Ok(()),
        Whose::NotOurs(found) => Err(not_taken_away(mount, &format!("from {found}, and not volume {volume}"))),
    }
}

/// Takes the volume's own mount away. What was under it, if that can still be written to, is kept in mind until it is let
/// go of.
fn apply_take_down(
    call: &NodeCall<'_>,
    left_disks: &LeftDisks,
    volume: &str,
    mounts: MountTable,
    mount: &Mount,
    health: Health,
) -> Result<()> {
    let path = mount.target.as_path();
    if plan_removal(health) == Unmount::DiskGone {
        return apply_clear_for_good(call, left_disks, volume, path, health);
    }
    let left = Left::observe(call.places, mount)?;
    // What a killed call has left uses nothing, and would pass for somebody who does. What cannot be cleared away now is waited
    // for when this mount is gone.
    let mounts = match ensure_none_of(call, mounts, Duration::ZERO, |other| left.is_under(other)) {
        Ok(mounts) => mounts,
        Err(Error::VolumeBusy(_)) => observe_mounts()?,
        Err(err) => {
            warn!(volume; "cannot clear away what a killed call has left: {}", Chain(&err));
            observe_mounts()?
        }
    };
    apply_before_last(call, &mounts, mount, &left, path);
    let Err(err) = apply_unmount_within(&call.guard, path, call.cap(UNMOUNT_BUDGET)) else {
        left_disks.keep(volume, left);
        return Ok(());
    };
    // The disk may have gone in the meantime.
    let health = observe_or_assume_alive(call, mount);
    if plan_removal(health) == Unmount::DiskGone {
        return apply_clear_for_good(call, left_disks, volume, path, health);
    }
    // Nomad has the disk detached also after this failed, and then what is in memory is lost.
    flush_or_say(call, path);
    let now = observe_mounts();
    Err(or_users(volume, now.as_ref().unwrap_or(&mounts), mount, &left)(err))
}

/// Takes a mount away to which nothing can be written any more, so that nothing is waited for afterwards.
fn apply_clear_for_good(
    call: &NodeCall<'_>,
    left_disks: &LeftDisks,
    volume: &str,
    path: &Path,
    health: Health,
) -> Result<()> {
    apply_clear(call, path, health)?;
    left_disks.keep(volume, Left::nothing());
    Ok(())
}

/// How a mount is; alive where that cannot be told, so that it is not torn out of anybody's hands.
fn observe_or_assume_alive(call: &NodeCall<'_>, mount: &Mount) -> Health {
    observe_health(call.places, mount).unwrap_or_else(|err| {
        warn!("a mount is taken away only when nothing uses it: {}", Chain(&err));
        Health::Alive
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_certainly_dead_is_torn_out_of_its_users_hands() {
        for (health, want) in [
            (Health::Alive, Unmount::WhenFree),
            (Health::NodeGone, Unmount::WhenFree),
            (Health::DiskGone, Unmount::DiskGone),
            (Health::ShutDown, Unmount::DiskGone),
        ] {
            assert_eq!(plan_removal(health), want, "{health:?}");
        }
    }
}
