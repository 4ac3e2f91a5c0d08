//! Writes what is made of the command line: `do-pages flags PAGE` brings the page of flags up to date, `do-pages dist DIRECTORY`
//! writes the manual page and the completions of three shells, `do-pages sbom FILE` the list of parts (CycloneDX), and
//! `do-pages licenses FILE` the texts of their licences, both from what `cargo tree --prefix none --format '{p}|{l}'` prints to it.

#![allow(clippy::expect_used, clippy::print_stderr, reason = "a tool of the build may fail loudly")]

mod dist;
mod flags;
mod licenses;

use std::error::Error;
use std::fs;
use std::io::read_to_string;
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};

/// What the program contains besides crates: parts of grpcio-sys that are compiled from C++.
///
/// Source: the version headers and directories below `grpc/` in grpcio-sys 0.13.0+1.56.2-patched.
const IN_CPP: [(&str, &str, &str); 4] = [
    ("grpc", "1.56.2", "Apache-2.0"),
    ("abseil-cpp", "20230125.3", "Apache-2.0"),
    ("c-ares", "1.19.0", "MIT"),
    ("re2", "as in grpc 1.56.2", "BSD-3-Clause"),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["flags", page] => write_flags(Path::new(page)),
        ["dist", directory] => dist::write_dist(Path::new(directory)),
        ["sbom", file] => write_sbom(Path::new(file)),
        ["licenses", file] => write_licenses(Path::new(file)),
        _ => Err("usage: do-pages flags PAGE | dist DIRECTORY | sbom FILE | licenses FILE".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("do-pages: {err}");
            ExitCode::FAILURE
        }
    }
}

fn write_flags(page: &Path) -> Result<(), Box<dyn Error>> {
    fs::write(page, flags::page(&fs::read_to_string(page)?))?;
    Ok(())
}

fn write_licenses(file: &Path) -> Result<(), Box<dyn Error>> {
    fs::write(file, licenses::text(&read_to_string(std::io::stdin())?)?)?;
    Ok(())
}

/// Writes the parts without a serial number and a time, so that two builds write the same bytes.
fn write_sbom(file: &Path) -> Result<(), Box<dyn Error>> {
    let tree = read_to_string(std::io::stdin())?;
    let crates = licenses::crates(&tree)
        .into_iter()
        .map(|(name, version, license)| part(&name, &version, &license, Some(format!("pkg:cargo/{name}@{version}"))));
    let parts: Vec<Value> =
        crates.chain(IN_CPP.map(|(name, version, license)| part(name, version, license, None))).collect();
    let itself = part(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"), env!("CARGO_PKG_LICENSE"), None);
    let document = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": { "component": itself },
        "components": parts,
    });
    fs::write(file, format!("{document:#}\n"))?;
    Ok(())
}

fn part(name: &str, version: &str, license: &str, purl: Option<String>) -> Value {
    let kind = if name == env!("CARGO_PKG_NAME") { "application" } else { "library" };
    let mut part = json!({ "type": kind, "name": name, "version": version, "licenses": [{ "expression": license }] });
    if let (Some(purl), Some(fields)) = (purl, part.as_object_mut()) {
        fields.insert("purl".to_owned(), Value::String(purl));
    }
    part
}
