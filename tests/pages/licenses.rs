//! Owns the texts of the licences of everything that is linked into the program: crates, and what grpcio-sys and libz-sys compile
//! from C and C++. They are read from the sources that cargo has fetched.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

/// What is compiled from C and C++: its name, the crate that brings it, and its licences there.
///
/// Source: the libraries that the build scripts of these crates link, and what those contain.
pub(crate) const IN_C: [(&str, &str, &[&str]); 10] = [
    ("grpc", "grpcio-sys", &["grpc/LICENSE", "grpc/NOTICE.txt"]),
    ("abseil-cpp", "grpcio-sys", &["grpc/third_party/abseil-cpp/LICENSE"]),
    ("address_sorting", "grpcio-sys", &["grpc/third_party/address_sorting/LICENSE"]),
    ("c-ares", "grpcio-sys", &["grpc/third_party/cares/cares/LICENSE.md"]),
    ("re2", "grpcio-sys", &["grpc/third_party/re2/LICENSE"]),
    ("upb", "grpcio-sys", &["grpc/third_party/upb/LICENSE"]),
    ("utf8_range", "grpcio-sys", &["grpc/third_party/utf8_range/LICENSE"]),
    ("xxHash", "grpcio-sys", &["grpc/third_party/xxhash/LICENSE"]),
    (
        "xDS and OpenCensus protocols",
        "grpcio-sys",
        &["grpc/third_party/xds/LICENSE", "grpc/third_party/opencensus-proto/LICENSE"],
    ),
    ("zlib", "libz-sys", &["src/zlib/LICENSE"]),
];
/// How the files with licences begin, in capitals.
const NAMES: [&str; 6] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"];
const RULE: &str = "--------------------------------------------------------------------------------";

/// A crate as `cargo tree --prefix none --format '{p}|{l}'` prints it: name, version, licence.
pub(crate) fn crates(tree: &str) -> BTreeSet<(String, String, String)> {
    let read = |line: &str| {
        let (package, license) = line.trim_end_matches(" (*)").split_once('|')?;
        let mut words = package.split(' ');
        let (name, version) = (words.next()?, words.next()?.trim_start_matches('v'));
        let license = license.trim_end_matches(" (*)").replace('/', " OR ");
        (name != env!("CARGO_PKG_NAME")).then(|| (name.to_owned(), version.to_owned(), license))
    };
    tree.lines().filter_map(read).collect()
}

/// One text with all licences: first who has which, then each text once.
pub(crate) fn text(tree: &str) -> Result<String, Box<dyn Error>> {
    let sources = sources()?;
    let mut owners: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut list = String::new();
    let mut enter = |text: String, owner: &str| owners.entry(text).or_default().push(owner.to_owned());
    for (name, version, license) in crates(tree) {
        let directory = source(&sources, &name, &version)?;
        let owner = format!("{name} {version}");
        list.push_str(&format!("{owner}: {license}\n"));
        let files = chosen(license_files(&directory)?, &license);
        let has_parts = IN_C.iter().any(|(_, of, _)| *of == name);
        if files.is_empty() && !has_parts {
            return Err(format!("{owner} has no file with its licence").into());
        }
        for file in files {
            enter(normal(&fs::read_to_string(file)?), &owner);
        }
        for (part, _, texts) in IN_C.iter().filter(|(_, of, _)| *of == name) {
            list.push_str(&format!("{part}, in {owner}\n"));
            for file in *texts {
                let path = directory.join(file);
                let text = fs::read_to_string(&path).map_err(|err| format!("{}: {err}", path.display()))?;
                enter(normal(&text), part);
            }
        }
    }
    let mut all = format!(
        "What is linked into do-csi-plugin besides its own code, which is under the Apache License 2.0, and the texts of the licences.\n\n{list}"
    );
    all.push_str(
        "libstdc++ of the compiler, where it is linked: GPL-3.0-or-later WITH GCC-exception-3.1, which asks for no text in a program\n",
    );
    let mut texts: Vec<_> = owners.into_iter().map(|(text, owners)| (owners, text)).collect();
    texts.sort();
    for (owners, text) in texts {
        all.push_str(&format!("\n{RULE}\n{}\n{RULE}\n\n{text}", owners.join(", ")));
    }
    Ok(all)
}

/// Where cargo keeps the sources of a registry.
fn sources() -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let home = std::env::var_os("CARGO_HOME").map_or_else(
        || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")),
        |home| Some(PathBuf::from(home)),
    );
    let registries = fs::read_dir(home.ok_or("HOME is not set")?.join("registry/src"))?;
    Ok(registries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?)
}

fn source(sources: &[PathBuf], name: &str, version: &str) -> Result<PathBuf, Box<dyn Error>> {
    let found = sources.iter().map(|registry| registry.join(format!("{name}-{version}"))).find(|path| path.is_dir());
    found.ok_or_else(|| format!("the source of {name} {version} is not among cargo's").into())
}

fn license_files(directory: &Path) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().to_uppercase();
        if NAMES.iter().any(|begin| name.starts_with(begin)) && entry.file_type()?.is_file() {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

/// The files of one licence, where a crate may be had under another one as well: the one that most of them offer, which so is here
/// once. A notice and a list of who has the copyright stay.
fn chosen(files: Vec<PathBuf>, license: &str) -> Vec<PathBuf> {
    let named = |file: &PathBuf, word: &str| {
        file.file_name().is_some_and(|name| name.to_string_lossy().to_uppercase().contains(word))
    };
    if !license.contains(" OR ") || !files.iter().any(|file| named(file, "APACHE")) {
        return files;
    }
    let is_kept = |file: &PathBuf| ["APACHE", "NOTICE", "COPYRIGHT"].iter().any(|word| named(file, word));
    files.into_iter().filter(is_kept).collect()
}

/// Without what tells two copies of one text apart and means nothing.
fn normal(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    let whole = lines.join("\n");
    format!("{}\n", whole.trim_matches('\n'))
}
