//! Changing the tags of a volume.
//!
//! Owns the loop that ends only when the volume has been seen with the tags that are wanted and without the others.

use log::warn;

use crate::activity::{About, Change, tell_change};
use crate::cloud::tag::Tag;
use crate::controller::Controller;
use crate::controller::api_failure::{ApiFailure, plan_failure};
use crate::controller::context::CallContext;
use crate::error::{Error, Result};
use crate::id::VolumeId;
use crate::request::parameters::TagChange;
use crate::request::volume_change::Modify;
use crate::sync::volume_lock::{VolumeGuard, VolumeKey};

/// One thing to do about a volume's tags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TagStep<'a> {
    Put(&'a Tag),
    Remove(&'a Tag),
}

/// What is still to be done; with a tag that goes on first.
fn plan_changes<'a>(have: &[String], first: Option<&'a Tag>, want: &'a TagChange) -> Vec<TagStep<'a>> {
    let has = |tag: &Tag| have.iter().any(|have| tag.is(have));
    let missing: Vec<&Tag> = want.put.iter().filter(|tag| !has(tag)).collect();
    let first = first.filter(|_| !missing.is_empty());
    let rest = missing.into_iter().filter(|tag| !first.is_some_and(|first| first.is(tag.as_str())));
    let put = first.into_iter().chain(rest).map(TagStep::Put);
    let remove = want.remove.iter().filter(|tag| has(tag)).map(TagStep::Remove);
    put.chain(remove).collect()
}

impl Controller {
    /// Puts tags on a volume and takes tags off; all its other tags stay.
    ///
    /// A second call sees the tags and changes nothing.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it would be this plugin's no more, [`Error::NotFound`], [`Error::NotOurs`], [`Error::TimedOut`],
    /// [`Error::Api`].
    pub fn modify(&self, ctx: &CallContext, want: &Modify) -> Result<()> {
        self.owner.check_marks("mutable_parameters", &want.tags.put, &want.tags.remove)?;
        let guard = self.hold(ctx, VolumeKey::Id(want.volume.to_string()))?;
        let doing = format!("changing the tags of volume {}", want.volume);
        let mut pauses = ctx.retry_backoff();
        let volume = ctx.observe_volume(&want.volume)?;
        // Once: half of the change is no reason to leave it so.
        self.owner.check_change(&volume, "changed")?;
        let mut changes = plan_changes(&volume.tags, self.owner.tag_before_others(&volume), &want.tags);
        while !changes.is_empty() {
            for change in changes {
                apply_change(&guard, ctx, &volume.id, change, &doing)?;
            }
            let tags = ctx.observe_volume(&volume.id)?.tags;
            changes = plan_changes(&tags, None, &want.tags);
            if !changes.is_empty() {
                ctx.pause(pauses.next_pause(), &doing, &"the volume does not show the tags as they are wanted")?;
            }
        }
        Ok(())
    }
}

/// Makes one change. What leaves it open whether it was made is no error; the caller reads the volume again.
fn apply_change(
    _guard: &VolumeGuard,
    ctx: &CallContext,
    id: &VolumeId,
    change: TagStep<'_>,
    doing: &str,
) -> Result<()> {
    let outcome = match change {
        TagStep::Put(tag) => ctx.cloud.tag_volume(id, tag).inspect(|()| {
            tell_change(Change::Tagged, "tagged", About::default().with("volume", id).with("tag", tag.as_str()))
        }),
        TagStep::Remove(tag) => ctx.cloud.untag_volume(id, tag).inspect(|()| {
            tell_change(Change::Untagged, "untagged", About::default().with("volume", id).with("tag", tag.as_str()))
        }),
    };
    let Err(err) = outcome else { return Ok(()) };
    match plan_failure(&err) {
        // What is missing is the volume, which reading it will tell, or a tag that somebody deletes at this moment.
        ApiFailure::Retryable | ApiFailure::OutcomeUnknown | ApiFailure::StateConflict | ApiFailure::NotFound => {
            warn!(request = err.request_id(); "{doing}: unclear whether it was done, reading the volume again: {err}");
            match err.wait() {
                Some(wait) => ctx.pause(wait, doing, &err),
                None => Ok(()),
            }
        }
        ApiFailure::OutOfTime => Err(ctx.timed_out(doing, err.to_string())),
        ApiFailure::Unrecognized | ApiFailure::LimitReached | ApiFailure::Permanent => {
            Err(Error::Api { doing: doing.to_owned(), source: err })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_changed() {
        let tags = |names: &[&str]| names.iter().map(|name| Tag::parse(name).unwrap()).collect::<Vec<_>>();
        let want = TagChange { put: tags(&["a", "b"]), remove: tags(&["c", "d"]) };
        let have = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let (b, c) = (&want.put[1], &want.remove[0]);
        let own = Tag::parse("own").unwrap();
        for (tags, first, steps) in [
            (&["a", "c", "x"][..], None, &[TagStep::Put(b), TagStep::Remove(c)][..]),
            (&["a", "b", "x"], None, &[]),
            (&["A", "B", "D"], None, &[TagStep::Remove(&want.remove[1])]),
            (&["a"], Some(&own), &[TagStep::Put(&own), TagStep::Put(b)]),
            (&["a"], Some(b), &[TagStep::Put(b)]),
            (&["a", "b"], Some(&own), &[]),
        ] {
            assert_eq!(plan_changes(&have(tags), first, &want), steps, "{tags:?}");
        }
    }
}
