//! The direction of the imports in `src`: what is above uses what is below, and no files use each other in a circle.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The modules from top to bottom. Those of one row use nothing of each other.
const ROWS: [&[&str]; 13] = [
    &["main"],
    &["app", "commands"],
    &["upkeep"],
    &["rpc"],
    &["controller", "node"],
    &["ops"],
    &["droplet_identity", "request"],
    &["config"],
    &["cloud", "host", "nomad"],
    &["error"],
    &["backoff", "fs", "id", "proto", "region", "size", "spelling", "sync"],
    &["metrics"],
    &["activity"],
];

/// Which modules each module of `src` imports, by their paths: `host::device::lookup`. A directory's `mod.rs` names its parts
/// and is named by them, so what passes between these two does not count.
fn imports() -> BTreeMap<String, BTreeSet<String>> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&src, &src, &mut files);
    let modules: BTreeSet<String> = files.iter().map(|(module, _)| module.clone()).collect();
    let known = |path: &str| {
        let mut path = path;
        while !modules.contains(path) {
            path = path.rsplit_once("::")?.0;
        }
        Some(path.to_owned())
    };
    files
        .iter()
        .map(|(module, text)| {
            let is_own = |path: &String| {
                let is_part_of =
                    |part: &str, whole: &str| part.strip_prefix(whole).is_some_and(|rest| rest.starts_with("::"));
                path == module || is_part_of(path, module) || is_part_of(module, path)
            };
            let found = paths(text).iter().filter_map(|path| known(path)).filter(|path| !is_own(path)).collect();
            (module.clone(), found)
        })
        .collect()
}

fn collect(root: &Path, dir: &Path, files: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(root, &path, files);
        } else if !path.ends_with("lib.rs") && !path.ends_with("tests.rs") {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().trim_end_matches(".rs");
            let module = name.trim_end_matches("/mod").replace('/', "::");
            files.push((module, fs::read_to_string(&path).unwrap()));
        }
    }
}

/// The paths that the `use crate::` lines of a file name, each whole. What only its tests use does not count.
fn paths(text: &str) -> Vec<String> {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let mut found = Vec::new();
    for statement in code.split(';') {
        let Some((_, tree)) = statement.rsplit_once("use crate::") else { continue };
        let tree: String = tree.split_whitespace().collect();
        match tree.split_once('{') {
            None => found.push(tree),
            Some((prefix, leaves)) => {
                let leaves = leaves.trim_end_matches('}').split(',').filter(|leaf| !leaf.is_empty());
                found.extend(leaves.map(|leaf| format!("{prefix}{leaf}")));
            }
        }
    }
    found
}

fn row(module: &str) -> usize {
    let top = module.split("::").next().unwrap();
    ROWS.iter().position(|row| row.contains(&top)).unwrap_or_else(|| panic!("{top} has no place in ROWS"))
}

#[test]
fn imports_point_down() {
    let mut upward = Vec::new();
    for (module, imported) in imports() {
        let top = module.split("::").next().unwrap();
        for other in imported.iter().filter(|other| other.split("::").next() != Some(top)) {
            if row(other) <= row(&module) {
                upward.push(format!("{module} uses {other}"));
            }
        }
    }
    assert!(upward.is_empty(), "{upward:#?}");
}

#[test]
fn no_files_use_each_other_in_a_circle() {
    let mut left = imports();
    // What uses nothing that is left is in no circle.
    loop {
        let free: Vec<String> =
            left.iter().filter(|(_, used)| used.is_empty()).map(|(module, _)| module.clone()).collect();
        if free.is_empty() {
            break;
        }
        left.retain(|module, _| !free.contains(module));
        for used in left.values_mut() {
            used.retain(|module| !free.contains(module));
        }
    }
    assert!(left.is_empty(), "in a circle, or above one: {left:#?}");
}

#[test]
fn what_a_file_imports_is_read_from_its_text() {
    let text = "use std::fs;\nuse crate::a::b;\npub use crate::c::{self, D,\n    e::F};\nfn f() {}\n\
                #[cfg(test)]\nmod tests {\n    use crate::g;\n}\n";
    assert_eq!(paths(text), ["a::b", "c::self", "c::D", "c::e::F"]);
}
