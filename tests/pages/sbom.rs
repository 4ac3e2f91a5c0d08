//! Owns the list of what the program and its image consist of (CycloneDX), with the known weaknesses of the parts and what each means
//! here (VEX). docs/security.md says the same to people.

use std::error::Error;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::licenses;

/// What the program contains besides crates, compiled from C and C++: name, version, licence, and where it comes from.
///
/// Source: the version headers, and `bazel/grpc_deps.bzl`, in grpcio-sys 0.13.0+1.56.2-patched and libz-sys 1.1.31; for libstdc++
/// the root that `packaging/program` makes.
const IN_C: [(&str, &str, &str, &str); 10] = [
    ("grpc", "1.56.2", "Apache-2.0", "pkg:github/grpc/grpc@v1.56.2"),
    ("address_sorting", "1.56.2", "BSD-3-Clause", "pkg:github/grpc/grpc@v1.56.2#third_party/address_sorting"),
    ("abseil-cpp", "20230125.3", "Apache-2.0", "pkg:github/abseil/abseil-cpp@20230125.3"),
    ("c-ares", "1.19.0", "MIT", "pkg:github/c-ares/c-ares@cares-1_19_0"),
    ("re2", "2022-04-01", "BSD-3-Clause", "pkg:github/google/re2@2022-04-01"),
    ("upb", "61a97ef", "BSD-3-Clause", "pkg:github/protocolbuffers/upb@61a97efa24a5ce01fb8cc73c9d1e6e7060f8ea98"),
    ("utf8_range", "1.56.2", "MIT", "pkg:github/grpc/grpc@v1.56.2#third_party/utf8_range"),
    ("xxHash", "0.8.1", "BSD-2-Clause", "pkg:github/Cyan4973/xxHash@v0.8.1"),
    (
        "libstdc++",
        "7.3.0-16ubuntu3",
        "GPL-3.0-or-later WITH GCC-exception-3.1",
        "pkg:deb/ubuntu/libstdc%2B%2B-7-dev@7.3.0-16ubuntu3?distro=ubuntu-18.04",
    ),
    ("zlib", "1.3.2", "Zlib", "pkg:github/madler/zlib@v1.3.2"),
];

/// A known weakness: its name, the part that has it, its state here in the words of CycloneDX, and why.
struct Weakness(&'static str, &'static str, State, &'static str);

#[derive(Clone, Copy)]
enum State {
    /// The compiled source has the correction.
    Fixed,
    /// It cannot be used here, for the reason that CycloneDX calls so.
    NotAffected(&'static str),
}

use State::{Fixed, NotAffected};

const NO_NAMES: &str = "The core serves one Unix socket and resolves no name.";
const WEAKNESSES: [Weakness; 14] = [
    Weakness("CVE-2023-1428", "grpc", Fixed, "Fixed in 1.53."),
    Weakness("CVE-2023-32731", "grpc", Fixed, "Fixed in 1.56.0."),
    Weakness("CVE-2023-32732", "grpc", Fixed, "Fixed in 1.56.0."),
    Weakness("CVE-2023-33953", "grpc", Fixed, "Fixed in 1.56.2: hpack_parser.cc refuses padded numbers."),
    Weakness("CVE-2023-4785", "grpc", Fixed, "tcp_server_posix.cc handles EMFILE. Only root can connect."),
    Weakness(
        "CVE-2023-44487",
        "grpc",
        NotAffected("protected_by_mitigating_control"),
        "Only root can connect to the socket, and the plugin bounds how fast calls are taken back.",
    ),
    Weakness("CVE-2024-7246", "grpc", NotAffected("code_not_reachable"), "No connection is shared by several callers."),
    Weakness(
        "CVE-2024-11407",
        "grpc",
        NotAffected("requires_configuration"),
        "Zero-copy is a setting of TCP and is off.",
    ),
    Weakness(
        "CVE-2025-0838",
        "abseil-cpp",
        NotAffected("code_not_reachable"),
        "No hash table has a size that a caller names, and only root can connect.",
    ),
    Weakness("CVE-2023-31124", "c-ares", NotAffected("code_not_reachable"), NO_NAMES),
    Weakness("CVE-2023-31130", "c-ares", NotAffected("code_not_reachable"), NO_NAMES),
    Weakness("CVE-2023-31147", "c-ares", NotAffected("code_not_reachable"), NO_NAMES),
    Weakness("CVE-2023-32067", "c-ares", NotAffected("code_not_reachable"), NO_NAMES),
    Weakness("CVE-2024-25629", "c-ares", NotAffected("code_not_reachable"), NO_NAMES),
];

/// The list, from what `cargo tree` prints of the crates and from the directory with what dpkg knows of the image's packages. It has no
/// serial number and no time, so that two builds write the same bytes.
pub(crate) fn document(tree: &str, packages: &Path) -> Result<String, Box<dyn Error>> {
    let crates = licenses::crates(tree).into_iter().map(|(name, version, license)| {
        let purl = format!("pkg:cargo/{name}@{version}");
        part("library", &name, &version, Some(&license), Some(&purl))
    });
    let compiled = IN_C.map(|(name, version, license, purl)| part("library", name, version, Some(license), Some(purl)));
    let mut parts: Vec<Value> = crates.chain(compiled).collect();
    let (name, version) = (env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
    let debian = debian(packages)?;
    parts.push(json!({ "type": "container", "name": "image", "version": version, "components": debian }));
    let document = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": { "component": part("application", name, version, Some(env!("CARGO_PKG_LICENSE")), None) },
        "components": parts,
        "vulnerabilities": WEAKNESSES.map(|weakness| weakness.entry()),
    });
    Ok(format!("{document:#}\n"))
}

impl Weakness {
    fn entry(&self) -> Value {
        let Weakness(id, part, state, detail) = self;
        let analysis = match state {
            Fixed => json!({ "state": "resolved", "detail": detail }),
            NotAffected(why) => json!({ "state": "not_affected", "justification": why, "detail": detail }),
        };
        let purl = IN_C.iter().find(|(name, ..)| name == part).map(|(_, _, _, purl)| purl);
        json!({ "id": id, "analysis": analysis, "affects": [{ "ref": purl }] })
    }
}

/// The Debian packages that files of the image are of, as `tests/image/collect` keeps them.
fn debian(packages: &Path) -> Result<Vec<Value>, Box<dyn Error>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(packages)? {
        let text = fs::read_to_string(entry?.path())?;
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let (Some(name), Some(version), Some(architecture)) =
            (field("Package:"), field("Version:"), field("Architecture:"))
        else {
            return Err(format!("a package without name, version or architecture: {text}").into());
        };
        let purl = format!("pkg:deb/debian/{name}@{version}?arch={architecture}").replace('+', "%2B");
        found.push((name.to_owned(), part("library", name, version, None, Some(&purl))));
    }
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(found.into_iter().map(|(_, part)| part).collect())
}

fn part(kind: &str, name: &str, version: &str, license: Option<&str>, purl: Option<&str>) -> Value {
    let mut part = json!({ "type": kind, "name": name, "version": version });
    let mut add =
        |field: &str, value: Value| part.as_object_mut().and_then(|fields| fields.insert(field.to_owned(), value));
    if let Some(license) = license {
        add("licenses", json!([{ "expression": license }]));
    }
    if let Some(purl) = purl {
        add("purl", json!(purl));
        add("bom-ref", json!(purl));
    }
    part
}
