//! What the commands read: DigitalOcean's volumes and droplets, this node's volumes, Nomad's claims.
//!
//! Owns reading each of them once. What cannot be read is a finding or a line, and never ends the reading of the rest.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::cloud::action::Action;
use crate::cloud::droplet::{Droplet, DropletKind};
use crate::cloud::http::HttpBudgets;
use crate::cloud::metadata::Metadata;
use crate::cloud::page::{ApiPage, Page};
use crate::cloud::rate_limit::RateLimit;
use crate::cloud::token::Token;
use crate::cloud::volume::Volume;
use crate::cloud::{ApiResult, Cloud};
use crate::config::Config;
use crate::config::command::Lent;
use crate::controller::owner::Owner;
use crate::error::Chain;
use crate::error::api::ApiErrorKind;
use crate::host::device::DevicePlaces;
use crate::host::inventory::{Inventory, LOOK_BUDGET, VolumeHere};
use crate::id::{DropletId, VolumeId, VolumeName};
use crate::nomad::{Nomad, NomadError, Plugin, Registered};
use crate::ops::diagnosis::account::diagnose_refusal;
use crate::ops::diagnosis::attachment::{Attachment, Holder, Moves, diagnose_attachment};
use crate::ops::diagnosis::cluster::{Claims, diagnose_claims};
use crate::ops::diagnosis::here::{DiskSeen, diagnose_here, with_safe_repair};
use crate::ops::diagnosis::{Finding, Subject};
use crate::region::Region;
use crate::spelling::distance;

/// What is said where DigitalOcean is not asked.
pub(super) const NO_TOKEN: &str = "no token is given (DIGITALOCEAN_ACCESS_TOKEN, --token-file)";
/// How long all requests to DigitalOcean may take together.
const CLOUD_BUDGET: Duration = Duration::from_secs(60);
/// Of how many volumes at most the latest actions are read, a request for each.
const MOST_ACTIONS: usize = 50;
/// In how many places a name may differ from a volume's and still be meant as it.
const SLIPS: usize = 2;
/// How many pages of a list are read at most.
const MOST_PAGES: u32 = 200;

/// Where everything is read.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) config: Config,
    pub(super) cloud: Option<CloudAccess>,
    pub(super) nomad: Option<Nomad>,
    /// What is as the running plugin has it.
    pub(super) lent: Lent,
}

/// DigitalOcean's API, and where its token is from.
#[derive(Debug)]
pub(super) struct CloudAccess {
    cloud: Cloud,
    pub(super) token_origin: String,
}

impl CloudAccess {
    pub(super) fn new(config: &Config, token: Token) -> CloudAccess {
        let token_origin = token.origin();
        let budgets = HttpBudgets { total: config.api_timeout, ..HttpBudgets::default() };
        let quota = Arc::new(RateLimit::new(config.api_rate_limit));
        CloudAccess {
            cloud: Cloud::new(config.api_url.clone(), config.route.clone(), token, quota, budgets),
            token_origin,
        }
    }

    /// The API, for who sees to the time of each piece of work.
    pub(super) fn whole(&self) -> Cloud {
        self.cloud.clone()
    }

    /// The API, for so long from now.
    pub(super) fn within(&self, budget: Duration) -> Cloud {
        self.cloud.until(Instant::now().checked_add(budget).unwrap_or_else(Instant::now))
    }
}

/// What was read.
#[derive(Debug, Default)]
pub(super) struct World {
    /// The region that is shown; `None`: all, as it is not known which this is.
    pub(super) region: Option<Region>,
    /// The droplet that this is, if it is one.
    pub(super) own: Option<DropletId>,
    /// Why that is not known.
    pub(super) metadata: Option<String>,
    /// All volumes of the account, with what is known of each.
    pub(super) volumes: Vec<Known>,
    /// Whether DigitalOcean has told them.
    pub(super) is_listed: bool,
    /// The volumes here that DigitalOcean's list does not explain: its token shows none of that name.
    pub(super) only_here: Vec<VolumeHere>,
    /// Nomad's side.
    pub(super) claims: Option<Claims>,
    /// Why that could not be read.
    pub(super) silent_nomad: Option<String>,
    /// The plugins of this driver in Nomad.
    pub(super) plugins: Vec<Plugin>,
    /// What is wrong with the way to DigitalOcean.
    pub(super) refusals: Vec<Finding>,
    /// What does not agree between DigitalOcean and Nomad about what DigitalOcean does not have.
    pub(super) unexplained: Vec<Finding>,
    /// What could not be looked at, in lines.
    pub(super) blind: Vec<String>,
}

/// A volume with all that is known of it.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) volume: Volume,
    pub(super) holder: Holder,
    /// The latest action; `None`: there is none, or it was not read.
    pub(super) last: Option<Action>,
    pub(super) here: Option<VolumeHere>,
    pub(super) findings: Vec<Finding>,
}

/// DigitalOcean's half.
struct Listed {
    volumes: Vec<Volume>,
    droplets: Option<HashMap<DropletId, Droplet>>,
}

/// Of which volumes the latest actions are read.
#[derive(Debug, Clone, Copy)]
pub(super) enum Actions<'a> {
    /// Of none.
    Unread,
    /// Of those that are attached.
    OfAttached,
    /// Of all, those that are attached first.
    OfAll,
    /// Of the one that somebody calls so.
    Of(&'a str),
}

impl Source {
    /// Reads everything.
    pub(super) fn read(&self, actions: Actions<'_>) -> World {
        let mut world = World::default();
        self.read_identity(&mut world);
        let here = self.read_here(&mut world);
        self.read_nomad(&mut world, |_| true);
        let Some(access) = &self.cloud else {
            world.only_here = here;
            return world;
        };
        let cloud = access.within(CLOUD_BUDGET);
        match list(&cloud, access, &mut world) {
            Some(listed) => {
                world.is_listed = true;
                self.combine(&cloud, listed, here, actions, &mut world);
            }
            None => world.only_here = here,
        }
        world
    }

    /// Reads one volume again, with its droplet, its claims and its disk here: what a finding that can be repaired follows
    /// from. That is two requests to DigitalOcean, however many volumes there are.
    pub(super) fn read_again(&self, id: &VolumeId, before: &World) -> World {
        let mut world = World { region: before.region.clone(), own: before.own, ..World::default() };
        let Some(access) = &self.cloud else { return world };
        let here = self.read_here(&mut world);
        self.read_nomad(&mut world, |registered| VolumeId::parse(&registered.external_id).as_ref() == Ok(id));
        let cloud = access.within(CLOUD_BUDGET);
        match cloud.get_volume(id) {
            Ok(volume) => {
                let listed = Listed { volumes: vec![volume], droplets: Some(HashMap::new()) };
                self.combine(&cloud, listed, here, Actions::Unread, &mut world);
            }
            Err(err) if err.kind() == ApiErrorKind::NotFound => {}
            Err(err) => world.blind.push(format!("volume {id}: {err}")),
        }
        world
    }

    fn read_here(&self, world: &mut World) -> Vec<VolumeHere> {
        let places = DevicePlaces {
            links: self.config.device_dir.clone(),
            sysfs: self.config.sys_dir.clone(),
            ..DevicePlaces::default()
        };
        Inventory::new(places, LOOK_BUDGET).observe().unwrap_or_else(|err| {
            world.blind.push(format!("the volumes on this node: {}", Chain(&err)));
            Vec::new()
        })
    }

    fn read_nomad(&self, world: &mut World, is_wanted: impl Fn(&Registered) -> bool) {
        let Some(nomad) = &self.nomad else { return };
        match read_claims(nomad, world, is_wanted) {
            Ok(claims) => world.claims = Some(claims),
            Err(err) => {
                world.blind.push(err.to_string());
                world.silent_nomad = Some(err.to_string());
            }
        }
    }

    fn read_identity(&self, world: &mut World) {
        (world.region, world.own) = (self.config.region.clone(), self.config.droplet_id);
        let metadata = Metadata::new(self.config.metadata_url.clone());
        if world.own.is_none() {
            match metadata.droplet_id() {
                Ok(id) => world.own = Some(id),
                Err(err) => world.metadata = Some(err.to_string()),
            }
        }
        if world.region.is_none() && world.metadata.is_none() {
            world.region = metadata.region().ok();
        }
    }

    fn combine(
        &self,
        cloud: &Cloud,
        listed: Listed,
        mut here: Vec<VolumeHere>,
        actions: Actions<'_>,
        world: &mut World,
    ) {
        let driver = &self.config.driver_name;
        let owner = Owner::new(self.config.tag.clone(), self.config.only_tag.clone());
        let mut agreed =
            world.claims.as_ref().map_or_else(Vec::new, |claims| diagnose_claims(&listed.volumes, claims, driver));
        let (to_read, unread) = plan_actions(&listed.volumes, actions, world.claims.as_ref());
        if unread > 0 {
            world.blind.push(format!(
                "the latest actions of {unread} volumes, as that is a request for each; of one `do-csi-plugin doctor VOLUME` reads them"
            ));
        }
        for volume in listed.volumes {
            let holder = observe_holder(cloud, &volume, listed.droplets.as_ref(), &mut world.blind);
            let actions = to_read.contains(&volume.id).then(|| cloud.newest_actions(&volume.id));
            let actions = actions.transpose().unwrap_or_else(|err| {
                world.blind.push(format!("the actions of volume {} ({}): {err}", volume.name, volume.id));
                None
            });
            let moves = actions.as_ref().map_or(Moves::NotAsked, |actions| Moves::read(actions, SystemTime::now()));
            let is_here = |found: &VolumeHere| {
                found.id.as_deref() == Some(volume.id.as_str()) || found.name.as_ref() == Some(&volume.name)
            };
            // A name is another volume's in another region.
            let is_ours = volume.region.is_none() || world.region.is_none() || volume.region == world.region;
            let place = here.iter().position(is_here).filter(|_| is_ours);
            let here = place.map(|place| here.remove(place));
            let mut findings = diagnose_attachment(&Attachment { volume: &volume, holder: holder.clone(), moves });
            let subject = Subject::volume(&volume.id, &volume.name);
            let of_here = here.iter().flat_map(diagnose_here);
            findings.extend(of_here.map(|found| Finding {
                subject: subject.clone(),
                cure: with_ids(&found.cure, &volume.id, world.own),
                ..found
            }));
            findings.extend(agreed.extract_if(.., |finding| finding.subject == subject));
            let seen = DiskSeen::of(here.as_ref(), world.own.is_some_and(|own| volume.droplets.contains(&own)));
            let is_of = |claims: &Claims| claims.of(&volume.id).any(|registered| registered.provider == *driver);
            let is_registered = world.claims.as_ref().is_some_and(is_of);
            let refusal = owner.check_repair(&volume, is_registered).err().map(|err| err.to_string());
            let judge = |one| with_safe_repair(one, seen, refusal.as_deref());
            let mut findings: Vec<Finding> = findings.into_iter().map(judge).collect();
            findings.sort_by(|a, b| b.cmp(a));
            world.volumes.push(Known {
                last: actions.and_then(|actions| actions.last().cloned()),
                volume,
                holder,
                here,
                findings,
            });
        }
        world.unexplained = agreed;
        world.only_here = here;
    }
}

/// Nomad's half, with the claims of the volumes that are wanted.
fn read_claims(
    nomad: &Nomad,
    world: &mut World,
    is_wanted: impl Fn(&Registered) -> bool,
) -> Result<Claims, NomadError> {
    let (volumes, nodes, sees_all) = (nomad.volumes(is_wanted)?, nomad.nodes()?, nomad.sees_all());
    let mut ids: Vec<&str> = volumes.iter().map(|volume| volume.plugin_id.as_str()).collect();
    ids.sort_unstable();
    ids.dedup();
    let mut droplets = BTreeMap::new();
    for id in ids {
        let Some(plugin) = nomad.plugin(id)? else { continue };
        for (node, info) in &plugin.nodes {
            let droplet = info.node_info.as_ref().and_then(|info| DropletId::parse(&info.id).ok());
            droplets.extend(droplet.map(|droplet| (droplet, node.clone())));
        }
        world.plugins.push(plugin);
    }
    Ok(Claims { volumes, nodes, droplets, sees_all })
}

/// A cure with the ids that the droplet alone did not know. Pure.
fn with_ids(cure: &str, volume: &VolumeId, own: Option<DropletId>) -> String {
    let cure = cure.replace("VOLUME_ID", volume.as_str());
    own.map_or_else(|| cure.clone(), |droplet| cure.replace("DROPLET_ID", &droplet.to_string()))
}

/// The droplet that has a volume. One that the list lacks is gone only when its own record is not found either: a
/// list can miss an entry, and a volume is detached from a droplet that is gone.
fn observe_holder(
    cloud: &Cloud,
    volume: &Volume,
    droplets: Option<&HashMap<DropletId, Droplet>>,
    blind: &mut Vec<String>,
) -> Holder {
    let ([droplet], Some(all)) = (volume.droplets.as_slice(), droplets) else { return Holder::NotAsked };
    if let Some(found) = all.get(droplet) {
        return Holder::of(Some(found), &volume.id);
    }
    match cloud.get_droplet(*droplet) {
        Ok(found) => Holder::of(Some(&found), &volume.id),
        Err(err) if err.kind() == ApiErrorKind::NotFound => Holder::Gone,
        Err(err) => {
            blind.push(format!("droplet {droplet}, which has volume {} ({}): {err}", volume.name, volume.id));
            Holder::NotAsked
        }
    }
}

/// Of which volumes the latest actions are read, and of how many they would be, were it not for the bound. Pure.
fn plan_actions(volumes: &[Volume], actions: Actions<'_>, claims: Option<&Claims>) -> (BTreeSet<VolumeId>, usize) {
    let is_wanted = |volume: &&Volume| match actions {
        Actions::Unread => false,
        Actions::OfAttached => !volume.droplets.is_empty(),
        Actions::OfAll => true,
        Actions::Of(called) => {
            let in_nomad = claims.is_some_and(|claims| claims.of(&volume.id).any(|registered| registered.id == called));
            in_nomad || volume.id.as_str() == called || volume.name.as_str() == called
        }
    };
    let mut wanted: Vec<&Volume> = volumes.iter().filter(is_wanted).collect();
    wanted.sort_by_key(|volume| volume.droplets.is_empty());
    let unread = wanted.len().saturating_sub(MOST_ACTIONS);
    (wanted.into_iter().take(MOST_ACTIONS).map(|volume| volume.id.clone()).collect(), unread)
}

/// DigitalOcean's lists; `None`: it does not tell the volumes.
fn list(cloud: &Cloud, access: &CloudAccess, world: &mut World) -> Option<Listed> {
    let origin = &access.token_origin;
    let volumes = match every(|page| cloud.list_volumes(None, page), |volume: &Volume| volume.id.clone()) {
        Ok(volumes) => volumes,
        Err(err) => {
            world.refusals.push(diagnose_refusal(&err, "block_storage:read", origin));
            if !matches!(err.kind(), ApiErrorKind::Unauthorized | ApiErrorKind::Forbidden | ApiErrorKind::NoToken) {
                world.blind.push(format!("DigitalOcean's volumes: {err}"));
            }
            return None;
        }
    };
    let mut droplets = Some(HashMap::new());
    for kind in DropletKind::ALL {
        match every(|page| cloud.list_droplets(kind, page), |droplet: &Droplet| droplet.id) {
            Ok(found) => droplets.iter_mut().for_each(|all| {
                all.extend(found.iter().map(|droplet| (droplet.id, droplet.clone())));
            }),
            Err(err) => {
                if droplets.take().is_some() {
                    world.refusals.push(diagnose_refusal(&err, "droplet:read", origin));
                }
            }
        }
    }
    Some(Listed { volumes, droplets })
}

/// Every entry of a list, each once. An entry that moves between two pages may be missed: who looks sees it at the
/// next look.
fn every<T, K: PartialEq>(fetch: impl Fn(Page) -> ApiResult<ApiPage<T>>, key: impl Fn(&T) -> K) -> ApiResult<Vec<T>> {
    let mut all: Vec<T> = Vec::new();
    let mut next = Some(Page::first());
    for _ in 0..MOST_PAGES {
        let Some(page) = next else { break };
        let found = fetch(page)?;
        for item in found.items {
            let is_known = all
                .iter()
                .rev()
                .take(usize::try_from(page.per_page()).unwrap_or(usize::MAX))
                .any(|known| key(known) == key(&item));
            if !is_known {
                all.push(item);
            }
        }
        next = found.next;
    }
    Ok(all)
}

impl World {
    /// All findings, the worst first.
    pub(super) fn findings(&self) -> Vec<Finding> {
        let of_volumes = self.shown().flat_map(|known| known.findings.iter().cloned());
        let of_here = self.only_here.iter().flat_map(diagnose_here);
        let mut all: Vec<Finding> =
            self.refusals.iter().chain(&self.unexplained).cloned().chain(of_volumes).chain(of_here).collect();
        all.sort_by(|a, b| b.cmp(a));
        all
    }

    /// The volumes of the region.
    pub(super) fn shown(&self) -> impl Iterator<Item = &Known> {
        let is_of_region = |known: &&Known| {
            self.region.is_none() || known.volume.region.is_none() || known.volume.region == self.region
        };
        self.volumes.iter().filter(is_of_region)
    }

    /// The volume that somebody calls so: by its id, its name, or its id in Nomad.
    pub(super) fn find(&self, called: &str) -> Option<&Known> {
        let by_id = VolumeId::parse(called).ok();
        let in_nomad = self.claims.as_ref().and_then(|claims| claims.volumes.iter().find(|volume| volume.id == called));
        let external = in_nomad.and_then(|volume| VolumeId::parse(&volume.external_id).ok());
        let is_it = |known: &&Known| {
            let id = Some(&known.volume.id);
            id == by_id.as_ref() || known.volume.name.as_str() == called || id == external.as_ref()
        };
        self.shown().find(is_it).or_else(|| self.volumes.iter().find(is_it))
    }

    /// The volume on this node that somebody calls so, where DigitalOcean does not tell of it.
    pub(super) fn find_here(&self, called: &str) -> Option<&VolumeHere> {
        self.only_here.iter().find(|here| {
            here.id.as_deref() == Some(called) || here.name.as_ref().is_some_and(|name| name.as_str() == called)
        })
    }

    /// The name that was probably meant by one that no volume has.
    pub(super) fn nearest(&self, called: &str) -> Option<&str> {
        let in_nomad = self.claims.iter().flat_map(|claims| &claims.volumes).map(|volume| volume.id.as_str());
        let here = self.only_here.iter().filter_map(|here| here.name.as_ref()).map(VolumeName::as_str);
        let names = self.volumes.iter().map(|known| known.volume.name.as_str()).chain(in_nomad).chain(here);
        names.min_by_key(|name| distance(name, called)).filter(|name| distance(name, called) <= SLIPS)
    }
}
