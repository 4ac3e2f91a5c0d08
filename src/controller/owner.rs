//! Whose a volume or a snapshot is, and what may be done to what is not this plugin's.
//!
//! Owns the marks and the rules that follow from them. An account holds more than one cluster's volumes, and names are
//! typed by people, so a name proves nothing. What does:
//!
//! - that a CSI driver made a volume, its description: both this driver and the official one write the same beginning, in
//!   the create itself, and DigitalOcean offers no way to change it;
//! - for which cluster, the owner's name (`--do-tag`): in that description, where this driver writes it, and as a tag, which
//!   the official driver puts on too. People can change tags, which is how a volume is handed over: the new owner's tag is
//!   put on, and the old one's taken off. One of the two alone changes nothing for whom it was not made, as a tag may be on
//!   it for another reason, and makes it nobody's to delete when the owner's own is gone;
//! - a snapshot has no description, so this driver marks it by a tag. The official driver leaves no mark on one but its
//!   `--do-tag`.
//!
//! No moment passes between a create and its mark, so a plugin that is killed knows its own volume again.
//!
//! Owns the allow-list, too: with `--only-tag` nothing is touched that does not carry that tag, whoever asks for it. That is a
//! tag of its own, as the plugin puts the owner's on whatever it attaches, and reads the list as it is at each call.

use crate::cloud::snapshot::Snapshot;
use crate::cloud::tag::Tag;
use crate::cloud::volume::Volume;
use crate::controller::description::{Made, made_by};
use crate::error::{Error, Result};

/// The tag of a snapshot that this driver took: alone, or with the owner's name behind a colon.
const SNAPSHOT_MARK: &str = "do-csi";
/// What the tags of Kubernetes clusters begin with that DigitalOcean runs.
///
/// Source: `digitalocean-cloud-controller-manager` pull 178, and `csi-digitalocean` `driver_test.go`.
const KUBERNETES: &str = "k8s:";
/// What Kubernetes' snapshotter calls a snapshot, before a UUID that nobody else could have thought of.
const SNAPSHOTTER: &str = "snapshot-";
/// The same of its provisioner and volumes.
const PROVISIONER: &str = "pvc-";

/// Whose something is, as far as its marks tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Claim {
    /// A CSI driver made it, for this plugin's owner.
    Ours,
    /// A CSI driver made it, and no owner's mark is on it. It may have tags that mean nothing to this plugin.
    Unclaimed {
        /// Its tags.
        tags: Vec<String>,
    },
    /// No CSI driver made it: it is Terraform's, or was made in the control panel.
    Unmarked,
    /// Another owner's mark is on it.
    Foreign(String),
    /// It was made for this plugin's owner, whose tag is not among its tags any more.
    HandedOver {
        /// Its tags.
        tags: Vec<String>,
    },
}

/// The owner that this plugin works for, and what it may touch at all.
#[derive(Debug, Clone)]
pub(crate) struct Owner {
    /// None: every volume that no owner's mark is on is its own.
    tag: Option<Tag>,
    /// None: everything of the account may be touched.
    only: Option<Tag>,
}

/// Decides whose something is. `made` is `None` for what no CSI driver made.
///
/// An owner whose mark is on it from the create on keeps it until that owner's tag is taken off: one tag alone may be on it
/// for another reason. Where no tags are shown, the token may not read them, and what was written in the create holds.
fn plan_claim(made: Option<&Made>, tags: &[String], own: Option<&Tag>) -> Claim {
    let is_own = |name: &str| own.is_some_and(|own| own.is(name));
    let is_on_it = |owner: &str| tags.iter().any(|tag| tag.eq_ignore_ascii_case(owner));
    let is_tagged = tags.iter().any(|tag| is_own(tag));
    match made.and_then(|made| made.owner.as_deref()) {
        Some(owner) if is_own(owner) && (is_tagged || tags.is_empty()) => return Claim::Ours,
        Some(owner) if is_own(owner) => return Claim::HandedOver { tags: tags.to_vec() },
        Some(owner) if is_on_it(owner) || !is_tagged => return Claim::Foreign(owner.to_owned()),
        Some(_) | None => {}
    }
    let is_cluster = |tag: &str| tag.starts_with(KUBERNETES) && !is_own(tag);
    let cluster = tags.iter().find(|tag| is_cluster(tag));
    // Of two clusters' tags, this plugin's own counts.
    let is_clusters = is_tagged && own.is_some_and(|own| own.as_str().starts_with(KUBERNETES));
    match (cluster, made) {
        (Some(cluster), _) if !is_clusters => Claim::Foreign(cluster.clone()),
        (_, Some(_)) if is_tagged => Claim::Ours,
        (_, Some(_)) => Claim::Unclaimed { tags: tags.to_vec() },
        (_, None) => Claim::Unmarked,
    }
}

/// Why something is not adopted by its name; none: it may be.
fn plan_adoption(claim: &Claim, own: Option<&Tag>) -> Option<String> {
    match (claim, own) {
        (Claim::Ours, _) | (Claim::Unclaimed { .. }, None) => None,
        (Claim::Unclaimed { tags }, Some(own)) => Some(unclaimed(tags, own)),
        (Claim::Unmarked, _) => Some("it carries no mark of a CSI driver".to_owned()),
        (Claim::Foreign(owner), _) => Some(foreign(owner, own)),
        (Claim::HandedOver { tags }, _) => Some(handed_over(tags)),
    }
}

/// Why a volume is not deleted; none: it may be. A volume from before the owner had a name has no tags, most likely.
fn plan_deletion(claim: &Claim, own: Option<&Tag>) -> Option<String> {
    match (claim, own) {
        (Claim::Ours, _) | (Claim::Unclaimed { .. }, None) => None,
        (Claim::Unclaimed { tags }, Some(_)) if tags.is_empty() => None,
        (Claim::Unclaimed { tags }, Some(own)) => Some(unclaimed(tags, own)),
        (Claim::Unmarked, _) => Some("no CSI driver has made it".to_owned()),
        (Claim::Foreign(owner), _) => Some(foreign(owner, own)),
        (Claim::HandedOver { tags }, _) => Some(handed_over(tags)),
    }
}

/// Why something is not changed, or a snapshot not deleted; none: it may be. Who registers a volume, or names a snapshot's
/// id, means it.
fn plan_change(claim: &Claim, own: Option<&Tag>) -> Option<String> {
    match claim {
        Claim::Ours | Claim::Unclaimed { .. } | Claim::Unmarked => None,
        Claim::Foreign(owner) => Some(foreign(owner, own)),
        Claim::HandedOver { tags } => Some(handed_over(tags)),
    }
}

/// Why something is not touched at all; none: it may be.
fn plan_use(tags: &[String], only: Option<&Tag>) -> Option<String> {
    let only = only.filter(|only| !tags.iter().any(|tag| only.is(tag)))?.as_str();
    let have = match tags {
        [] => "it has none that the access token may read (tag:read)".to_owned(),
        [_, ..] => format!("its tags are {}", tags.join(", ")),
    };
    Some(format!("this plugin touches only what has the tag {only:?} (--only-tag), and {have}"))
}

/// Why tags are not changed so; none: they may be. Afterwards it would be nobody's here, and no later call could undo it.
fn plan_marks(put: &[Tag], remove: &[Tag], own: Option<&Tag>, only: Option<&Tag>) -> Option<String> {
    let is_cluster =
        |tag: &Tag| tag.as_str().get(..KUBERNETES.len()).is_some_and(|it| it.eq_ignore_ascii_case(KUBERNETES));
    if let Some(tag) = put.iter().find(|tag| is_cluster(tag) && !own.is_some_and(is_cluster)) {
        return Some(format!("the tag {:?} says that it is that Kubernetes cluster's", tag.as_str()));
    }
    let marks = [("--do-tag", own), ("--only-tag", only)];
    let taken =
        marks.into_iter().find(|(_, mark)| mark.is_some_and(|mark| remove.iter().any(|tag| tag.is(mark.as_str()))));
    taken.map(|(flag, mark)| {
        let mark = mark.map(Tag::as_str).unwrap_or_default();
        format!("without the tag {mark:?} ({flag}) it would not be this plugin's any more; to hand it over, use `doctl compute tag remove`")
    })
}

fn foreign(owner: &str, own: Option<&Tag>) -> String {
    match own {
        Some(own) => format!("it is {owner:?}'s, and this plugin works for {:?} (--do-tag)", own.as_str()),
        None => format!("it is {owner:?}'s, and this plugin has no --do-tag"),
    }
}

fn handed_over(tags: &[String]) -> String {
    format!("it was made for this plugin's --do-tag, which is not among its tags any more ({})", tags.join(", "))
}

fn unclaimed(tags: &[String], own: &Tag) -> String {
    let own = own.as_str();
    match tags {
        [] => format!("a CSI driver has made it, but not for {own:?} (--do-tag)"),
        [_, ..] => format!("its tags ({}) do not name {own:?} (--do-tag)", tags.join(", ")),
    }
}

impl Owner {
    /// The owner of this name, who may touch only what has the other tag.
    pub(crate) fn new(tag: Option<Tag>, only: Option<Tag>) -> Owner {
        Owner { tag, only }
    }

    /// The tag that says so.
    pub(super) fn tag(&self) -> Option<&Tag> {
        self.tag.as_ref()
    }

    /// The tag that everything has which may be touched.
    pub(super) fn only(&self) -> Option<&Tag> {
        self.only.as_ref()
    }

    /// Sees that a volume may be touched; `done` says what is not done otherwise, as a participle.
    ///
    /// # Errors
    /// [`Error::NotOurs`].
    pub(super) fn check_use(&self, volume: &Volume, done: &str) -> Result<()> {
        let Some(why) = plan_use(&volume.tags, self.only()) else { return Ok(()) };
        Err(not_ours(volume, done, why, self.cure_of_use(&of_volume(volume))))
    }

    /// The same for a snapshot.
    ///
    /// # Errors
    /// [`Error::NotOurs`].
    pub(super) fn check_snapshot_use(&self, snapshot: &Snapshot, done: &str) -> Result<()> {
        let Some(why) = plan_use(&snapshot.tags, self.only()) else { return Ok(()) };
        let cure = self.cure_of_use(&of_snapshot(snapshot));
        Err(Error::NotOurs { thing: shown(snapshot), done: done.to_owned(), why, cure })
    }

    /// Sees that what tags are put on and taken off leaves it whose it is.
    ///
    /// # Errors
    /// [`Error::Invalid`].
    pub(super) fn check_marks(&self, field: &str, put: &[Tag], remove: &[Tag]) -> Result<()> {
        plan_marks(put, remove, self.tag(), self.only()).map_or(Ok(()), |why| Err(Error::invalid(field, why)))
    }

    /// The owner's tag, where a volume has no tags: with others and not this one it would count as handed over.
    pub(super) fn tag_before_others(&self, volume: &Volume) -> Option<&Tag> {
        let is_made = match self.claim(volume) {
            Claim::Ours | Claim::Unclaimed { .. } => true,
            Claim::Unmarked | Claim::Foreign(_) | Claim::HandedOver { .. } => false,
        };
        self.tag().filter(|_| is_made && volume.tags.is_empty())
    }

    /// The owner's name.
    pub(super) fn name(&self) -> Option<&str> {
        self.tag().map(Tag::as_str)
    }

    /// The tags of a snapshot that this plugin takes: the owner's, as the official driver puts it on, and this driver's own.
    pub(super) fn snapshot_tags(&self) -> Vec<Tag> {
        self.tag().cloned().into_iter().chain(self.snapshot_mark()).collect()
    }

    /// This driver's own mark on a snapshot; none for a name so long that no tag can hold it.
    pub(super) fn snapshot_mark(&self) -> Option<Tag> {
        match self.name() {
            Some(name) => Tag::parse(&format!("{SNAPSHOT_MARK}:{name}")),
            None => Tag::parse(SNAPSHOT_MARK),
        }
        .ok()
    }

    /// Whose a volume is.
    pub(super) fn claim(&self, volume: &Volume) -> Claim {
        plan_claim(made_by(&volume.description).as_ref(), &volume.tags, self.tag())
    }

    /// Whether the owner's mark is on a volume: by its creation, or as the tag that each volume gets which is attached.
    pub(super) fn is_own(&self, volume: &Volume) -> bool {
        let Some(own) = self.tag() else { return false };
        match self.claim(volume) {
            Claim::Ours => true,
            Claim::Unclaimed { .. } | Claim::Unmarked | Claim::Foreign(_) | Claim::HandedOver { .. } => {
                volume.tags.iter().any(|tag| own.is(tag))
            }
        }
    }

    /// Sees that a volume may be detached by who was not asked for that very volume: it is the owner's, or its registration with
    /// this driver says that the driver is to move it.
    ///
    /// # Errors
    /// [`Error::NotOurs`].
    pub(crate) fn check_repair(&self, volume: &Volume, is_registered: bool) -> Result<()> {
        self.check_change(volume, "detached")?;
        if is_registered || self.is_own(volume) {
            return Ok(());
        }
        let why = "nothing says that it is of this plugin: it has not the owner's tag (--do-tag), and no Nomad that was asked \
                   (NOMAD_ADDR) has it registered with this driver";
        let cure = "give --do-tag and NOMAD_ADDR as the plugin and its jobs have them".to_owned();
        Err(not_ours(volume, "detached", why.to_owned(), cure))
    }

    /// Why a volume is another owner's, and how to make it this plugin's; none: it is not another's.
    pub(super) fn foreign(&self, volume: &Volume) -> Option<(String, String)> {
        let claim = self.claim(volume);
        let why = plan_change(&claim, self.tag())?;
        Some((why, self.cure(&claim, &of_volume(volume))))
    }

    /// Whose a snapshot is.
    pub(super) fn claim_snapshot(&self, snapshot: &Snapshot) -> Claim {
        // The official driver's only mark is the owner's tag.
        let is_owners = self.tag().is_some_and(|own| snapshot.tags.iter().any(|tag| own.is(tag)));
        let made = taken_by(snapshot).or_else(|| is_owners.then_some(Made { owner: None }));
        // Those of this driver say nothing of a hand-over, and a temporary one has no others.
        let is_mark = |tag: &str| {
            tag.strip_prefix(SNAPSHOT_MARK).is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '-']))
        };
        let tags: Vec<String> = snapshot.tags.iter().filter(|tag| !is_mark(tag)).cloned().collect();
        plan_claim(made.as_ref(), &tags, self.tag())
    }

    /// Whether a snapshot is another owner's.
    pub(super) fn is_foreign_snapshot(&self, snapshot: &Snapshot) -> bool {
        plan_change(&self.claim_snapshot(snapshot), self.tag()).is_some()
    }

    /// Whether a snapshot carries no owner's mark at all.
    pub(super) fn is_unmarked(&self, snapshot: &Snapshot) -> bool {
        self.claim_snapshot(snapshot) == Claim::Unmarked
    }

    /// Sees that a volume of the name that was asked for may be taken for the one that an earlier call made. One that
    /// Kubernetes named and a CSI driver made for no owner is known by that name: the official driver had no `--do-tag` then.
    ///
    /// # Errors
    /// [`Error::NotAdopted`].
    pub(super) fn check_adoption(&self, volume: &Volume) -> Result<()> {
        if let Some(why) = plan_use(&volume.tags, self.only()) {
            let cure = self.cure_of_use(&of_volume(volume));
            return Err(Error::NotAdopted { thing: shown_volume(volume), why, cure });
        }
        let claim = self.claim(volume);
        if is_of_kubernetes(volume.name.as_str(), PROVISIONER) && matches!(claim, Claim::Unclaimed { .. }) {
            return Ok(());
        }
        let Some(why) = plan_adoption(&claim, self.tag()) else { return Ok(()) };
        let id = &volume.id;
        let cure = format!(
            "to use it here, register it instead (`nomad volume register`, with external_id = \"{id}\"); to have a volume \
             of your own, choose another name"
        );
        Err(Error::NotAdopted { thing: shown_volume(volume), why, cure })
    }

    /// The same for a snapshot. One that Kubernetes named is known by that name alone.
    ///
    /// # Errors
    /// [`Error::NotAdopted`].
    pub(super) fn check_snapshot_adoption(&self, snapshot: &Snapshot) -> Result<()> {
        if let Some(why) = plan_use(&snapshot.tags, self.only()) {
            let cure = self.cure_of_use(&of_snapshot(snapshot));
            return Err(Error::NotAdopted { thing: shown(snapshot), why, cure });
        }
        let claim = self.claim_snapshot(snapshot);
        if is_of_kubernetes(&snapshot.name, SNAPSHOTTER) && plan_change(&claim, self.tag()).is_none() {
            return Ok(());
        }
        let Some(why) = plan_adoption(&claim, self.tag()) else { return Ok(()) };
        let cure = format!(
            "it was taken at {} and can be restored by its id; to take another one, choose another name",
            snapshot.created_at
        );
        Err(Error::NotAdopted { thing: shown(snapshot), why, cure })
    }

    /// Sees that a volume may be deleted.
    ///
    /// # Errors
    /// [`Error::NotOurs`].
    pub(super) fn check_deletion(&self, volume: &Volume) -> Result<()> {
        self.check_use(volume, "deleted")?;
        let claim = self.claim(volume);
        let Some(why) = plan_deletion(&claim, self.tag()) else { return Ok(()) };
        let id = &volume.id;
        let cure = match claim {
            Claim::Unmarked => format!(
                "`nomad volume deregister` makes Nomad forget it; delete it where it was made (`terraform destroy`), or by \
                 `doctl compute volume delete {id}`"
            ),
            Claim::Ours | Claim::Unclaimed { .. } | Claim::Foreign(_) | Claim::HandedOver { .. } => {
                self.cure(&claim, &of_volume(volume))
            }
        };
        Err(not_ours(volume, "deleted", why, cure))
    }

    /// Sees that a volume may be changed; `done` says what is not done otherwise, as a participle.
    ///
    /// # Errors
    /// [`Error::NotOurs`].
    pub(crate) fn check_change(&self, volume: &Volume, done: &str) -> Result<()> {
        self.check_use(volume, done)?;
        let Some((why, cure)) = self.foreign(volume) else { return Ok(()) };
        Err(not_ours(volume, done, why, cure))
    }

    /// Sees that a snapshot may be deleted. One without a mark may: the official driver leaves none.
    ///
    /// # Errors
    /// [`Error::NotOurs`].
    pub(super) fn check_snapshot_deletion(&self, snapshot: &Snapshot) -> Result<()> {
        self.check_snapshot_use(snapshot, "deleted")?;
        let claim = self.claim_snapshot(snapshot);
        let Some(why) = plan_change(&claim, self.tag()) else { return Ok(()) };
        let cure = self.cure(&claim, &of_snapshot(snapshot));
        Err(Error::NotOurs { thing: shown(snapshot), done: "deleted".to_owned(), why, cure })
    }

    /// How to let this plugin touch something. Who may name what is the plugin's to touch is whoever may put tags on it.
    fn cure_of_use(&self, resource: &str) -> String {
        let only = self.only().map(Tag::as_str).unwrap_or_default();
        format!("if this plugin may touch it, {}", putting_on(only, resource))
    }

    /// How to hand something over to this plugin's owner. A tag has to be known before it is put on anything, and the
    /// owner's from before has to come off.
    ///
    /// Source: API reference, "Tag a Resource" (404 for a tag that is not known; `resource_type`).
    fn cure(&self, claim: &Claim, resource: &str) -> String {
        let Some(own) = self.name() else {
            return match claim {
                Claim::Foreign(owner) => {
                    format!(
                        "ask the plugin of that cluster, or start this one with --do-tag={owner} if they are the same"
                    )
                }
                Claim::Ours | Claim::Unclaimed { .. } | Claim::Unmarked | Claim::HandedOver { .. } => {
                    "start this plugin with the --do-tag of the cluster that it belongs to".to_owned()
                }
            };
        };
        let put_on = commands(own, resource);
        match claim {
            Claim::Foreign(owner) => format!(
                "if it is to be this cluster's, put that tag on it ({put_on}), take the other one off (`doctl compute tag \
                 remove {owner} --resource {resource}`) and try again"
            ),
            Claim::Ours | Claim::Unclaimed { .. } | Claim::Unmarked | Claim::HandedOver { .. } => {
                format!("if it is to be this cluster's, {}", putting_on(own, resource))
            }
        }
    }
}

/// The commands that put a tag on something, in one line.
fn commands(tag: &str, resource: &str) -> String {
    format!("`doctl compute tag create {tag} && doctl compute tag apply {tag} --resource {resource}`")
}

fn putting_on(tag: &str, resource: &str) -> String {
    format!("put that tag on it ({}) and try again", commands(tag, resource))
}

fn of_volume(volume: &Volume) -> String {
    format!("do:volume:{}", volume.id)
}

fn of_snapshot(snapshot: &Snapshot) -> String {
    format!("do:volume_snapshot:{}", snapshot.id)
}

fn not_ours(volume: &Volume, done: &str, why: String, cure: String) -> Error {
    Error::NotOurs { thing: shown_volume(volume), done: done.to_owned(), why, cure }
}

fn shown_volume(volume: &Volume) -> String {
    format!("volume {} ({})", volume.name, volume.id)
}

fn shown(snapshot: &Snapshot) -> String {
    format!("snapshot {} ({})", snapshot.name, snapshot.id)
}

/// For whom this driver took a snapshot; none: its mark is not on it.
fn taken_by(snapshot: &Snapshot) -> Option<Made> {
    let mark = |tag: &String| match tag.strip_prefix(SNAPSHOT_MARK) {
        Some("") => Some(Made { owner: None }),
        Some(rest) => rest.strip_prefix(':').map(|owner| Made { owner: Some(owner.to_owned()) }),
        None => None,
    };
    snapshot.tags.iter().find_map(mark)
}

/// Whether a name is of Kubernetes' snapshotter or provisioner: what it made is its own, as nobody else can have chosen that
/// name.
fn is_of_kubernetes(name: &str, beginning: &str) -> bool {
    name.strip_prefix(beginning).is_some_and(|uuid| crate::id::SnapshotId::parse(uuid).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn tagged(tags: Vec<String>) -> Snapshot {
        Snapshot {
            id: crate::id::SnapshotId::parse("8eb4d51a-8f02-11f0-bdcd-0a58ac14d1e2").unwrap(),
            name: "nightly".to_owned(),
            source: None,
            regions: Vec::new(),
            min_size: crate::size::Gib(1),
            billed_gib: 0.0,
            created_at: String::new(),
            tags,
        }
    }

    #[test]
    fn whose_a_thing_is_follows_from_who_made_it_and_its_tags() {
        let own = Tag::parse("a").unwrap();
        let by = |owner: Option<&str>| Some(Made { owner: owner.map(str::to_owned) });
        let unclaimed = |names: &[&str]| Claim::Unclaimed { tags: tags(names) };
        let foreign = |owner: &str| Claim::Foreign(owner.to_owned());
        let handed_over = |names: &[&str]| Claim::HandedOver { tags: tags(names) };
        let table = [
            (None, &[][..], Claim::Unmarked, Claim::Unmarked),
            (None, &["x"], Claim::Unmarked, Claim::Unmarked),
            // Attached by the plugin, which puts the tag on, and made by Terraform.
            (None, &["a"], Claim::Unmarked, Claim::Unmarked),
            (None, &["k8s:b"], foreign("k8s:b"), foreign("k8s:b")),
            (None, &["k8s:b", "a"], foreign("k8s:b"), foreign("k8s:b")),
            (by(None), &[], unclaimed(&[]), unclaimed(&[])),
            (by(None), &["x"], unclaimed(&["x"]), unclaimed(&["x"])),
            (by(None), &["x", "A"], Claim::Ours, unclaimed(&["x", "A"])),
            (by(None), &["k8s:b"], foreign("k8s:b"), foreign("k8s:b")),
            (by(None), &["k8s:b", "a"], foreign("k8s:b"), foreign("k8s:b")),
            (by(Some("a")), &[], Claim::Ours, foreign("a")),
            (by(Some("a")), &["A", "b"], Claim::Ours, foreign("a")),
            (by(Some("A")), &["x"], handed_over(&["x"]), foreign("A")),
            (by(Some("b")), &[], foreign("b"), foreign("b")),
            (by(Some("b")), &["b"], foreign("b"), foreign("b")),
            // Both have it by the tags, and the one that it was made for keeps it.
            (by(Some("b")), &["B", "a"], foreign("b"), foreign("b")),
            // Handed over.
            (by(Some("b")), &["x", "a"], Claim::Ours, foreign("b")),
        ];
        for (made, names, with_owner, without) in table {
            let shown = format!("{made:?} {names:?}");
            assert_eq!(plan_claim(made.as_ref(), &tags(names), Some(&own)), with_owner, "{shown}");
            assert_eq!(plan_claim(made.as_ref(), &tags(names), None), without, "{shown}");
        }
    }

    #[test]
    fn of_two_tags_of_kubernetes_clusters_its_own_counts() {
        let own = Tag::parse("k8s:a").unwrap();
        let made = Made { owner: None };
        assert_eq!(plan_claim(Some(&made), &tags(&["k8s:b", "k8s:a"]), Some(&own)), Claim::Ours);
        assert_eq!(plan_claim(Some(&made), &tags(&["k8s:b"]), Some(&own)), Claim::Foreign("k8s:b".to_owned()));
    }

    #[test]
    fn what_may_be_done_follows_from_whose_a_thing_is() {
        let own = Tag::parse("a").unwrap();
        let untagged = Claim::Unclaimed { tags: Vec::new() };
        let tagged = Claim::Unclaimed { tags: tags(&["x"]) };
        // May it be adopted, deleted, changed: by a plugin with an owner, and by one without.
        let table = [
            (Claim::Ours, [true, true, true], [true, true, true]),
            (untagged, [false, true, true], [true, true, true]),
            (tagged, [false, false, true], [true, true, true]),
            (Claim::Unmarked, [false, false, true], [false, false, true]),
            (Claim::Foreign("b".to_owned()), [false, false, false], [false, false, false]),
            (Claim::HandedOver { tags: tags(&["b"]) }, [false, false, false], [false, false, false]),
        ];
        for (claim, with_owner, without) in table {
            let may = |own| {
                [plan_adoption(&claim, own), plan_deletion(&claim, own), plan_change(&claim, own)]
                    .map(|refusal| refusal.is_none())
            };
            assert_eq!(may(Some(&own)), with_owner, "{claim:?}");
            assert_eq!(may(None), without, "{claim:?}");
        }
    }

    #[test]
    fn what_lacks_the_tag_of_the_allow_list_is_not_touched() {
        let only = Tag::parse("nomad").unwrap();
        for (names, only, may) in [
            (&[][..], None, true),
            (&["x"], None, true),
            (&[], Some(&only), false),
            (&["x", "nomad2", "nomad:x"], Some(&only), false),
            (&["x", "nomad"], Some(&only), true),
            // DigitalOcean takes capitals for the same.
            (&["NOMAD"], Some(&only), true),
        ] {
            assert_eq!(plan_use(&tags(names), only).is_none(), may, "{names:?} {only:?}");
        }
    }

    #[test]
    fn no_change_of_tags_gives_away_whose_a_thing_is() {
        let tag = |text: &str| Tag::parse(text).unwrap();
        let (own, only, cluster) = (tag("prod"), tag("nomad"), tag("k8s:a"));
        for (put, remove, own, may) in [
            (&["x", "prod"][..], &["y"][..], Some(&own), true),
            (&[], &["prod"], None, true),
            (&[], &["x", "PROD"], Some(&own), false),
            (&[], &["Nomad"], None, false),
            (&["k8s:b"], &[], Some(&own), false),
            (&["K8S:b"], &[], None, false),
            (&["k8s:b"], &[], Some(&cluster), true),
        ] {
            let [put, remove] = [put, remove].map(|names| names.iter().copied().map(tag).collect::<Vec<_>>());
            assert_eq!(plan_marks(&put, &remove, own, Some(&only)).is_none(), may, "{put:?} {remove:?} {own:?}");
        }
    }

    #[test]
    fn a_snapshots_mark_is_a_tag_with_the_owners_name() {
        let owner = |name: &str| Owner::new(Some(Tag::parse(name).unwrap()), None);
        assert_eq!(owner("k8s:a").snapshot_mark(), Tag::parse("do-csi:k8s:a").ok());
        assert_eq!(Owner::new(None, None).snapshot_mark(), Tag::parse("do-csi").ok());
        assert_eq!(owner(&"x".repeat(255)).snapshot_mark(), None);
        let (a, mark) = (owner("a"), tags(&["do-csi-temporary", "do-csi:a"]));
        assert_eq!(a.claim_snapshot(&tagged(mark.clone())), Claim::Ours);
        assert_eq!(owner("b").claim_snapshot(&tagged(mark.clone())), Claim::Foreign("a".to_owned()));
        let handed_over = tagged([mark, tags(&["b"])].concat());
        assert_eq!(a.claim_snapshot(&handed_over), Claim::HandedOver { tags: tags(&["b"]) });
        assert_eq!(owner("b").claim_snapshot(&handed_over), Claim::Ours);
        let official = "snapshot-8eb4d51a-8f02-11f0-bdcd-0a58ac14d1e2";
        for (name, want) in [(official, true), ("snapshot-1", false), ("nightly", false)] {
            assert_eq!(is_of_kubernetes(name, SNAPSHOTTER), want, "{name}");
        }
    }
}
