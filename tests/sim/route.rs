//! What each endpoint answers: from the request to a call of the state machine to a status and JSON.
//!
//! Owns the reading of bodies and queries, with the leniency of the real API, and the order "object, then validation".
//! Authentication and the rate limit come before this, in `mod.rs`; rules are in the state machine.

use serde_json::{Value, json};

use super::actions::ActionPlan;
use super::clock::Moment;
use super::endpoint::{Endpoint, Matched};
use super::fault::Faults;
use super::http::Request;
use super::json;
use super::json::Paging;
use super::refusal::Refusal;
use super::state::Cloud;
use super::tags::is_tag;
use super::volumes::NewVolume;

/// A successful answer: status and, except for 204, a body.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// HTTP status code.
    pub status: u16,
    /// The JSON.
    pub body: Option<Value>,
}

type Answered = Result<Answer, Refusal>;

/// One request with everything that is needed to answer it.
#[derive(Debug)]
pub struct Call<'a> {
    /// The account, up to date.
    pub cloud: &'a mut Cloud,
    /// The time of the request.
    pub now: Moment,
    /// Where actions get their twists from.
    pub faults: &'a Faults,
    /// The request.
    pub request: &'a Request,
    /// Its endpoint.
    pub matched: &'a Matched,
}

impl Call<'_> {
    /// Answers it.
    ///
    /// # Errors
    /// The refusal that the client gets.
    pub fn answer(mut self) -> Answered {
        match self.matched.endpoint {
            Endpoint::ListVolumes => self.list_volumes(),
            Endpoint::CreateVolume => self.create_volume(),
            Endpoint::DeleteVolumeByName => self.delete_volume_by_name(),
            Endpoint::ActOnVolumeByName => self.act_by_name(),
            Endpoint::GetVolume => self.get_volume(self.matched.id()),
            Endpoint::DeleteVolume => self.delete_volume(self.matched.id()),
            Endpoint::ActOnVolume => self.act(),
            Endpoint::ListVolumeActions => self.list_volume_actions(),
            Endpoint::GetVolumeAction => self.get_volume_action(),
            Endpoint::ListVolumeSnapshots => self.list_volume_snapshots(),
            Endpoint::CreateSnapshot => self.create_snapshot(),
            Endpoint::ListSnapshots => self.list_snapshots(),
            Endpoint::GetSnapshot | Endpoint::GetVolumeSnapshot => self.get_snapshot(),
            Endpoint::DeleteSnapshot | Endpoint::DeleteVolumeSnapshot => {
                self.cloud.delete_snapshot(self.matched.id()).map(|()| no_content())
            }
            Endpoint::GetAccount => ok(200, json!({"account": json::account(self.cloud.rules.limits.volumes)})),
            Endpoint::ListActions => self.list_actions(None),
            Endpoint::GetAction => self.get_action(),
            Endpoint::ListDroplets => self.list_droplets(),
            Endpoint::GetDroplet => self.get_droplet(),
            Endpoint::CreateTag => self.create_tag(),
            Endpoint::ListTags => self.list_tags(),
            Endpoint::GetTag => self.get_tag(),
            Endpoint::ListRegions => self.list_regions(),
            Endpoint::TagResources => self.tag_resources(Cloud::tag_volumes),
            Endpoint::UntagResources => self.tag_resources(Cloud::untag_volumes),
        }
    }

    fn list_volumes(&self) -> Answered {
        let (name, region) = (self.request.param("name"), self.request.param("region"));
        let volumes = self.cloud.shown_volumes(self.now, name.as_deref(), region.as_deref());
        let total = if self.cloud.rules.switches.total_ignores_filters {
            self.cloud.shown_volumes(self.now, None, None).len()
        } else {
            volumes.len()
        };
        let switches = &self.cloud.rules.switches;
        let items: Vec<Value> = volumes.iter().map(|volume| json::volume(volume, switches)).collect();
        self.page_of("volumes", &items, total)
    }

    fn create_volume(&mut self) -> Answered {
        let body = self.body()?;
        let new = NewVolume {
            name: text(&body, "name")?,
            size_gigabytes: integer(&body, "size_gigabytes")?.unwrap_or(0),
            region: text(&body, "region")?,
            description: text(&body, "description")?,
            snapshot_id: Some(text(&body, "snapshot_id")?).filter(|id| !id.is_empty()),
            filesystem_type: text(&body, "filesystem_type")?,
            filesystem_label: text(&body, "filesystem_label")?,
            tags: self.tags_of(&body)?,
        };
        let id = self.cloud.create_volume(self.now, &new)?;
        let volume = json::volume(self.cloud.volume(&id)?, &self.cloud.rules.switches);
        ok(201, json!({"volume": volume}))
    }

    fn get_volume(&self, id: &str) -> Answered {
        let volume = self.cloud.shown_volume(self.now, id)?;
        ok(200, json!({"volume": json::volume(volume, &self.cloud.rules.switches)}))
    }

    fn delete_volume(&mut self, id: &str) -> Answered {
        self.cloud.delete_volume(self.now, id).map(|()| no_content())
    }

    fn delete_volume_by_name(&mut self) -> Answered {
        let (Some(name), Some(region)) = (self.request.param("name"), self.request.param("region")) else {
            return Err(Refusal::INVALID_PAYLOAD);
        };
        let id = self.cloud.volume_id(&name, &region)?;
        self.delete_volume(&id)
    }

    fn act_by_name(&mut self) -> Answered {
        let body = self.body()?;
        let id = self.cloud.volume_id(&text(&body, "volume_name")?, &text(&body, "region")?)?;
        match text(&body, "type")?.as_str() {
            "attach" => self.attach(&id, &body),
            "detach" => self.detach(&id, &body),
            // A resize by name does not exist (volumeActions_post.yml).
            _ => Err(Refusal::INVALID_PAYLOAD),
        }
    }

    fn act(&mut self) -> Answered {
        let id = self.matched.id();
        self.cloud.volume(id)?;
        let body = self.body()?;
        match text(&body, "type")?.as_str() {
            "attach" => self.attach(id, &body),
            "detach" => self.detach(id, &body),
            "resize" => {
                let size = integer(&body, "size_gigabytes")?.ok_or(Refusal::INVALID_PAYLOAD)?;
                let plan = self.cloud.plan_resize(id, size)?;
                self.start(&plan)
            }
            _ => Err(Refusal::INVALID_PAYLOAD),
        }
    }

    fn attach(&mut self, volume: &str, body: &Value) -> Answered {
        let droplet = droplet_id(body)?.ok_or(Refusal::INVALID_PAYLOAD)?;
        let region = Some(text(body, "region")?).filter(|region| !region.is_empty());
        let plan = self.cloud.plan_attach(self.now, volume, droplet, region.as_deref())?;
        self.start(&plan)
    }

    fn detach(&mut self, volume: &str, body: &Value) -> Answered {
        let plan = self.cloud.plan_detach(self.now, volume, droplet_id(body)?)?;
        self.start(&plan)
    }

    fn start(&mut self, plan: &ActionPlan) -> Answered {
        let twists = self.faults.take_twists(plan.kind, &plan.volume);
        let id = self.cloud.start(self.now, plan, twists);
        let action = self.cloud.actions.get(&id).ok_or(Refusal::SERVER_ERROR)?;
        ok(202, json!({"action": json::action(action, &self.cloud.rules.switches)}))
    }

    fn get_action(&mut self) -> Answered {
        let switches = self.cloud.rules.switches.clone();
        let action = self.cloud.poll_action(self.matched.number())?;
        ok(200, json!({"action": json::action(action, &switches)}))
    }

    fn get_volume_action(&mut self) -> Answered {
        let volume = self.matched.id();
        self.cloud.volume(volume)?;
        let number = self.matched.number();
        let is_of_volume = self.cloud.actions.get(&number).is_some_and(|action| action.volume == volume);
        if is_of_volume { self.get_action() } else { Err(Refusal::NOT_FOUND) }
    }

    fn list_volume_actions(&self) -> Answered {
        self.cloud.volume(self.matched.id())?;
        self.list_actions(Some(self.matched.id()))
    }

    fn list_actions(&self, volume: Option<&str>) -> Answered {
        let switches = &self.cloud.rules.switches;
        let actions = self.cloud.listed_actions(self.now, volume);
        let items: Vec<Value> = actions.iter().map(|action| json::action(action, switches)).collect();
        self.page_of("actions", &items, items.len())
    }

    fn create_snapshot(&mut self) -> Answered {
        let volume = self.matched.id();
        self.cloud.volume(volume)?;
        let body = self.body()?;
        let (name, tags) = (text(&body, "name")?, self.tags_of(&body)?);
        let id = self.cloud.create_snapshot(self.now, volume, &name, &tags)?;
        let snapshot = json::snapshot(self.cloud.snapshot(&id)?, &self.cloud.rules.switches);
        ok(201, json!({"snapshot": snapshot}))
    }

    fn get_snapshot(&self) -> Answered {
        let snapshot = self.cloud.shown_snapshot(self.now, self.matched.id())?;
        ok(200, json!({"snapshot": json::snapshot(snapshot, &self.cloud.rules.switches)}))
    }

    fn list_volume_snapshots(&self) -> Answered {
        self.cloud.volume(self.matched.id())?;
        self.page_of_snapshots(Some(self.matched.id()))
    }

    fn list_snapshots(&self) -> Answered {
        match self.request.param("resource_type").as_deref() {
            None | Some("volume") => self.page_of_snapshots(None),
            // The account has no droplet snapshots.
            Some("droplet") => self.page_of("snapshots", &[], 0),
            Some(_) => Err(Refusal::INVALID_PAYLOAD),
        }
    }

    fn page_of_snapshots(&self, volume: Option<&str>) -> Answered {
        let switches = &self.cloud.rules.switches;
        let snapshots = self.cloud.shown_snapshots(self.now, volume);
        let items: Vec<Value> = snapshots.iter().map(|snapshot| json::snapshot(snapshot, switches)).collect();
        self.page_of("snapshots", &items, items.len())
    }

    fn list_droplets(&self) -> Answered {
        let name = self.request.param("name");
        let wants_gpu = self.request.param("type").as_deref() == Some("gpus");
        let items: Vec<Value> = self
            .cloud
            .droplets()
            .iter()
            .filter(|droplet| name.as_ref().is_none_or(|name| droplet.name == *name))
            .filter(|droplet| droplet.has_gpu == wants_gpu)
            // No droplet of the simulator carries a tag.
            .filter(|_| self.request.param("tag_name").is_none())
            .map(|droplet| json::droplet(droplet, &self.cloud.recorded_ids(droplet.id)))
            .collect();
        self.page_of("droplets", &items, items.len())
    }

    fn get_droplet(&self) -> Answered {
        let droplet = self.cloud.droplet(self.matched.number())?;
        let volume_ids = self.cloud.recorded_ids(droplet.id);
        ok(200, json!({"droplet": json::droplet(droplet, &volume_ids)}))
    }

    fn create_tag(&mut self) -> Answered {
        self.check_tag_scopes(false)?;
        let name = text(&self.body()?, "name")?;
        if !is_tag(&name) {
            return ok(400, json::tag_error(&name));
        }
        let name = self.cloud.create_tag(&name);
        ok(201, json!({"tag": json::tag(&name, self.cloud.tagged(&name)?)}))
    }

    fn list_tags(&self) -> Answered {
        self.check_tag_scopes(false)?;
        let tag = |name: &String| Ok(json::tag(name, self.cloud.tagged(name)?));
        let items = self.cloud.tags().map(tag).collect::<Result<Vec<Value>, Refusal>>()?;
        self.page_of("tags", &items, items.len())
    }

    /// All of them, those without block storage too, which say so by their features (`regions_list.yml`).
    fn list_regions(&self) -> Answered {
        let items: Vec<Value> = self.cloud.known_regions().map(|(slug, stores)| json::region(slug, stores)).collect();
        self.page_of("regions", &items, items.len())
    }

    fn get_tag(&self) -> Answered {
        let name = self.matched.id();
        ok(200, json!({"tag": json::tag(name, self.cloud.tagged(name)?)}))
    }

    fn tag_resources(&mut self, change: fn(&mut Cloud, &str, &[String]) -> Result<(), Refusal>) -> Answered {
        self.check_tag_scopes(true)?;
        let name = self.matched.id();
        self.cloud.tagged(name)?;
        let body = self.body()?;
        let resources = body["resources"].as_array().ok_or(Refusal::INVALID_PAYLOAD)?;
        let volumes = resources
            .iter()
            .filter(|resource| resource["resource_type"] == "volume")
            .map(|resource| text(resource, "resource_id"))
            .collect::<Result<Vec<String>, Refusal>>()?;
        change(self.cloud, name, &volumes)?;
        Ok(no_content())
    }

    /// What a token needs for a tag, and for a volume that it is put on (API reference, "Tag a Resource").
    fn check_tag_scopes(&self, is_of_volume: bool) -> Result<(), Refusal> {
        let switches = &self.cloud.rules.switches;
        let is_refused = switches.token_lacks_tags || (is_of_volume && switches.token_lacks_volume_update);
        if is_refused { Err(Refusal::FORBIDDEN) } else { Ok(()) }
    }

    /// The tags of what is to be created, for which a token needs `tag:create` (`tags_array.yml`).
    fn tags_of(&self, body: &Value) -> Result<Vec<String>, Refusal> {
        let tags = texts(body, "tags")?;
        let is_refused = self.cloud.rules.switches.token_lacks_tags && !tags.is_empty();
        if is_refused { Err(Refusal::FORBIDDEN) } else { Ok(tags) }
    }

    fn body(&self) -> Result<Value, Refusal> {
        serde_json::from_slice(&self.request.body).ok().filter(Value::is_object).ok_or(Refusal::BAD_REQUEST)
    }

    fn page_of(&self, key: &str, items: &[Value], total: usize) -> Answered {
        let paging = self.paging()?;
        let filters: String = self
            .request
            .pairs()
            .filter(|(key, _)| *key != "page" && *key != "per_page")
            .map(|(key, value)| format!("&{key}={value}"))
            .collect();
        ok(200, json::page(key, items, paging, total, &self.request.path, &filters))
    }

    /// `page` from 1, default 1; `per_page` 1 to 200, default 20 (`shared/parameters.yml`).
    fn paging(&self) -> Result<Paging, Refusal> {
        let number = |name: &str, default: usize| match self.request.param(name) {
            None => Ok(default),
            Some(digits) => digits.parse().ok().filter(|number: &usize| *number > 0).ok_or(Refusal::INVALID_PAYLOAD),
        };
        let (page, per_page) = (number("page", 1)?, number("per_page", 20)?);
        if per_page > 200 && self.cloud.rules.switches.large_page_is_refused {
            return Err(Refusal::INVALID_PAYLOAD);
        }
        Ok(Paging { page, per_page: per_page.min(200) })
    }
}

fn ok(status: u16, body: Value) -> Answered {
    Ok(Answer { status, body: Some(body) })
}

fn no_content() -> Answer {
    Answer { status: 204, body: None }
}

/// A string field; godo sends every field, so missing, `null` and empty are the same.
fn text(body: &Value, key: &str) -> Result<String, Refusal> {
    match &body[key] {
        Value::Null => Ok(String::new()),
        Value::String(text) => Ok(text.clone()),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => Err(Refusal::INVALID_PAYLOAD),
    }
}

/// A list of strings, `null` being the empty one.
fn texts(body: &Value, key: &str) -> Result<Vec<String>, Refusal> {
    match &body[key] {
        Value::Null => Ok(Vec::new()),
        Value::Array(items) => {
            items.iter().map(|item| item.as_str().map(str::to_owned).ok_or(Refusal::INVALID_PAYLOAD)).collect()
        }
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => Err(Refusal::INVALID_PAYLOAD),
    }
}

/// A whole number.
fn integer(body: &Value, key: &str) -> Result<Option<i64>, Refusal> {
    match &body[key] {
        Value::Null => Ok(None),
        Value::Number(number) => number.as_i64().map(Some).ok_or(Refusal::INVALID_PAYLOAD),
        Value::Bool(_) | Value::String(_) | Value::Array(_) | Value::Object(_) => Err(Refusal::INVALID_PAYLOAD),
    }
}

/// A droplet id, as a number or in quotes (godo issue 102); 0 is no droplet.
fn droplet_id(body: &Value) -> Result<Option<u64>, Refusal> {
    let id = match &body["droplet_id"] {
        Value::String(digits) => digits.parse().map_err(|_| Refusal::INVALID_PAYLOAD)?,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            integer(body, "droplet_id")?.unwrap_or(0)
        }
    };
    Ok(u64::try_from(id).ok().filter(|id| *id != 0))
}
