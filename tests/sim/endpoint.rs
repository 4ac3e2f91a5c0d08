//! Which endpoint a method and a path mean, and the pattern under which calls are counted and faults are scripted.
//!
//! Owns the table of routes. What an endpoint answers is in `route.rs`.

/// One method on one path pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// `GET /v2/volumes`
    ListVolumes,
    /// `POST /v2/volumes`
    CreateVolume,
    /// `DELETE /v2/volumes?name=&region=`
    DeleteVolumeByName,
    /// `POST /v2/volumes/actions`
    ActOnVolumeByName,
    /// `GET /v2/volumes/snapshots/{id}`
    GetVolumeSnapshot,
    /// `DELETE /v2/volumes/snapshots/{id}`
    DeleteVolumeSnapshot,
    /// `GET /v2/volumes/{id}`
    GetVolume,
    /// `DELETE /v2/volumes/{id}`
    DeleteVolume,
    /// `POST /v2/volumes/{id}/actions`
    ActOnVolume,
    /// `GET /v2/volumes/{id}/actions`
    ListVolumeActions,
    /// `GET /v2/volumes/{id}/actions/{action_id}`
    GetVolumeAction,
    /// `GET /v2/volumes/{id}/snapshots`
    ListVolumeSnapshots,
    /// `POST /v2/volumes/{id}/snapshots`
    CreateSnapshot,
    /// `GET /v2/snapshots`
    ListSnapshots,
    /// `GET /v2/snapshots/{snapshot_id}`
    GetSnapshot,
    /// `DELETE /v2/snapshots/{snapshot_id}`
    DeleteSnapshot,
    /// `GET /v2/account`
    GetAccount,
    /// `GET /v2/actions`
    ListActions,
    /// `GET /v2/actions/{action_id}`
    GetAction,
    /// `GET /v2/droplets`
    ListDroplets,
    /// `GET /v2/droplets/{droplet_id}`
    GetDroplet,
    /// `POST /v2/tags`
    CreateTag,
    /// `GET /v2/tags`
    ListTags,
    /// `GET /v2/tags/{tag}`
    GetTag,
    /// `POST /v2/tags/{tag}/resources`
    TagResources,
    /// `DELETE /v2/tags/{tag}/resources`
    UntagResources,
    /// `GET /v2/regions`
    ListRegions,
}

/// The routes, literal segments before parameters (openapi issues 49, 51, 52 and 54 show the real patterns).
const TABLE: [(Endpoint, &str, &str); 27] = [
    (Endpoint::ListVolumes, "GET", "/v2/volumes"),
    (Endpoint::CreateVolume, "POST", "/v2/volumes"),
    (Endpoint::DeleteVolumeByName, "DELETE", "/v2/volumes"),
    (Endpoint::ActOnVolumeByName, "POST", "/v2/volumes/actions"),
    (Endpoint::GetVolumeSnapshot, "GET", "/v2/volumes/snapshots/{id}"),
    (Endpoint::DeleteVolumeSnapshot, "DELETE", "/v2/volumes/snapshots/{id}"),
    (Endpoint::GetVolume, "GET", "/v2/volumes/{id}"),
    (Endpoint::DeleteVolume, "DELETE", "/v2/volumes/{id}"),
    (Endpoint::ActOnVolume, "POST", "/v2/volumes/{id}/actions"),
    (Endpoint::ListVolumeActions, "GET", "/v2/volumes/{id}/actions"),
    (Endpoint::GetVolumeAction, "GET", "/v2/volumes/{id}/actions/{action_id}"),
    (Endpoint::ListVolumeSnapshots, "GET", "/v2/volumes/{id}/snapshots"),
    (Endpoint::CreateSnapshot, "POST", "/v2/volumes/{id}/snapshots"),
    (Endpoint::ListSnapshots, "GET", "/v2/snapshots"),
    (Endpoint::GetSnapshot, "GET", "/v2/snapshots/{snapshot_id}"),
    (Endpoint::DeleteSnapshot, "DELETE", "/v2/snapshots/{snapshot_id}"),
    (Endpoint::GetAccount, "GET", "/v2/account"),
    (Endpoint::ListActions, "GET", "/v2/actions"),
    (Endpoint::GetAction, "GET", "/v2/actions/{action_id}"),
    (Endpoint::ListDroplets, "GET", "/v2/droplets"),
    (Endpoint::GetDroplet, "GET", "/v2/droplets/{droplet_id}"),
    (Endpoint::CreateTag, "POST", "/v2/tags"),
    (Endpoint::ListTags, "GET", "/v2/tags"),
    (Endpoint::GetTag, "GET", "/v2/tags/{tag}"),
    (Endpoint::TagResources, "POST", "/v2/tags/{tag}/resources"),
    (Endpoint::UntagResources, "DELETE", "/v2/tags/{tag}/resources"),
    (Endpoint::ListRegions, "GET", "/v2/regions"),
];

/// A request's endpoint with the parameters of its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matched {
    /// Which one.
    pub endpoint: Endpoint,
    /// The path with names for its parameters.
    pub pattern: &'static str,
    /// The parameters, in the order of the path.
    pub params: Vec<String>,
}

impl Matched {
    /// The first parameter, which every endpoint that asks for one has.
    pub fn id(&self) -> &str {
        self.params.first().expect("the pattern has a parameter")
    }

    /// The last parameter as a number. Too large a number names nothing, like 0.
    pub fn number(&self) -> u64 {
        self.params.last().and_then(|digits| digits.parse().ok()).unwrap_or(0)
    }
}

/// Finds the endpoint of a request.
pub fn find(method: &str, path: &str) -> Option<Matched> {
    TABLE
        .iter()
        .filter(|(_, its_method, _)| *its_method == method)
        .find_map(|&(endpoint, _, pattern)| capture(pattern, path).map(|params| Matched { endpoint, pattern, params }))
}

/// Whether such a route exists, so that a misspelt fault is noticed.
pub fn exists(method: &str, pattern: &str) -> bool {
    TABLE.iter().any(|&(_, its_method, its_pattern)| its_method == method && its_pattern == pattern)
}

fn capture(pattern: &str, path: &str) -> Option<Vec<String>> {
    let mut params = Vec::new();
    let mut segments = path.split('/');
    for wanted in pattern.split('/') {
        let segment = segments.next()?;
        let is_match = match wanted {
            // A volume id with any other character misses the route (doctl issue 1037).
            "{id}" => is_made_of(segment, |byte| byte.is_ascii_hexdigit() || byte == b'-'),
            "{action_id}" | "{droplet_id}" => is_made_of(segment, |byte| byte.is_ascii_digit()),
            "{snapshot_id}" | "{tag}" => !segment.is_empty(),
            literal => literal == segment,
        };
        if !is_match {
            return None;
        }
        if wanted.starts_with('{') {
            params.push(segment.to_owned());
        }
    }
    segments.next().is_none().then_some(params)
}

fn is_made_of(segment: &str, is_allowed: impl Fn(u8) -> bool) -> bool {
    !segment.is_empty() && segment.bytes().all(is_allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_find_their_endpoint_and_odd_ids_miss_it() {
        for (method, path, want) in [
            ("GET", "/v2/volumes/1b2c-0A", Some(Endpoint::GetVolume)),
            ("GET", "/v2/volumes/snapshots/1b2c", Some(Endpoint::GetVolumeSnapshot)),
            ("POST", "/v2/volumes/actions", Some(Endpoint::ActOnVolumeByName)),
            ("GET", "/v2/volumes/1b2c/actions/17", Some(Endpoint::GetVolumeAction)),
            ("GET", "/v2/volumes/my-volume", None),
            ("GET", "/v2/volumes/", None),
            ("GET", "/v2/volumes/1b2c/actions/x", None),
            ("GET", "/v2/volumes/../account", None),
            ("PUT", "/v2/volumes", None),
            ("GET", "/v2/volumes/1b2c/more", None),
        ] {
            assert_eq!(find(method, path).map(|found| found.endpoint), want, "{method} {path}");
        }
    }
}
