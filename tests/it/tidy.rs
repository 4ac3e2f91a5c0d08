//! Rules of the tree that no compiler checks: maps that match it, one place for what has one place, small files.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use do_csi_plugin::config;
use do_csi_plugin::error::{Chain, Error, Holder, Thing};
use do_csi_plugin::id::{DropletId, VolumeId, VolumeName};
use do_csi_plugin::region::Region;
use do_csi_plugin::rpc::status::status;
use do_csi_plugin::sync::fifo_lock::NoLock;
use do_csi_plugin::sync::volume_lock::{VolumeBusy, VolumeKey};

use crate::PROGRAM;
use crate::support::single_plugin::{bare, run_to_end};

/// Most lines of a file, tests in it not counted.
const MAX_LINES: usize = 500;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|err| panic!("{path}: {err}"))
}

/// Every file below a directory with this ending, relative to the root.
fn files(directory: &str, ending: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut directories = vec![root().join(directory)];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.to_str().unwrap().ends_with(ending) {
                found.push(path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "nothing in {directory} ends with {ending}");
    found
}

fn rust_files() -> Vec<String> {
    ["src", "tests"].iter().flat_map(|directory| files(directory, ".rs")).collect()
}

/// The part of a file that is no test; tests in a file come last.
fn without_tests(text: &str) -> &str {
    text.split("\n#[cfg(test)]").next().unwrap_or_default()
}

/// The lines between a heading and the next one of the same or a higher level.
fn section<'a>(text: &'a str, heading: &str) -> Vec<&'a str> {
    let level = heading.split(' ').next().unwrap().len();
    let is_next = |line: &&str| {
        let marks = line.chars().take_while(|c| *c == '#').count();
        (1..=level).contains(&marks) && line[marks..].starts_with(' ')
    };
    let lines: Vec<&str> =
        text.lines().skip_while(|line| *line != heading).skip(1).take_while(|l| !is_next(l)).collect();
    assert!(!lines.is_empty(), "there is no {heading:?}");
    lines
}

/// What stands between backticks in a text.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// Files that belong to the tree, as git sees it: what it ignores is somebody's own.
fn tracked() -> Option<Vec<String>> {
    let arguments = ["ls-files", "--cached", "--others", "--exclude-standard"];
    let output = Command::new("git").arg("-C").arg(root()).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect())
}

#[test]
fn the_map_in_lib_rs_names_every_module_and_no_other() {
    let lib = read("src/lib.rs");
    let modules: BTreeSet<&str> =
        lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    let on_disk: BTreeSet<String> = fs::read_dir(root().join("src"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().trim_end_matches(".rs").to_owned())
        .filter(|name| name != "lib" && name != "main")
        .collect();
    assert_eq!(modules.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>(), on_disk);

    let map: Vec<String> = section(&lib.replace("//! ", ""), "# The map, in reading order")
        .into_iter()
        .take_while(|line| line.starts_with("- ") || line.starts_with("  "))
        .map(str::to_owned)
        .collect();
    let heads: String = map.iter().filter_map(|line| line.split(": ").next()).collect();
    let mapped: BTreeSet<&str> = quoted(&heads).into_iter().collect();
    assert_eq!(mapped, modules);
}

#[test]
fn the_map_of_the_tree_is_the_tree() {
    let page = read("docs/architecture.md");
    let rows = section(&page, "## Map of the tree");
    let mapped: Vec<&str> = rows
        .iter()
        .filter(|row| row.starts_with('|'))
        .filter_map(|row| row.split('|').nth(1))
        .flat_map(quoted)
        .collect();
    for path in &mapped {
        assert!(root().join(path).exists(), "the map has {path}, which is not there");
    }
    // Without git, as in a release's archive, only that direction can be checked.
    let Some(tracked) = tracked() else { return };
    for file in tracked.iter().filter(|file| file.as_str() != "README.md" && root().join(file).exists()) {
        let is_mapped = mapped.iter().any(|path| file == path || path.ends_with('/') && file.starts_with(path));
        assert!(is_mapped, "the map in docs/architecture.md has no row for {file}");
    }
}

/// Every page for people, relative to the root.
fn pages() -> Vec<String> {
    let at_root = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"].map(str::to_owned);
    at_root.into_iter().chain(files("docs", ".md")).chain(files("nomad", ".md")).collect()
}

/// Words with dashes and underscores in them, as flags and variables are.
fn words(text: &str) -> BTreeSet<String> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    text.split(|c| !is_word(c)).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

fn help(command: &[&str]) -> String {
    let mut help = bare(Path::new(PROGRAM));
    help.args(command).arg("--help");
    String::from_utf8(run_to_end(help).unwrap().stdout).unwrap()
}

#[test]
fn the_page_of_flags_is_what_the_program_says() {
    let page = read("docs/flags.md");
    assert!(page == crate::flags_page::page(&page), "docs/flags.md is older than the flags: run `make pages`");
    assert!(page.matches("\n### --").count() > 20, "{page}");
}

/// Flags of other programs that the pages name.
const FOREIGN_FLAGS: [&str; 2] = ["--resource", "--device-cgroup-rule"];

#[test]
fn a_flag_that_a_page_names_exists() {
    let help = words(&[&[][..], &["volumes"], &["doctor"]].map(help).concat());
    for page in files("docs", ".md").into_iter().chain(["README.md".to_owned()]) {
        let text = read(&page).replace("```", "");
        for flag in quoted(&text).iter().flat_map(|code| words(code)).filter(|word| word.starts_with("--")) {
            let is_known = help.contains(&flag) || FOREIGN_FLAGS.contains(&flag.as_str());
            assert!(is_known, "{page} has {flag}, which --help does not");
        }
    }
}

#[test]
fn nothing_follows_in_a_recipe_on_what_ends_it_when_all_packages_are_there() {
    let makefile = read("Makefile");
    for recipe in makefile.split("\n\n").filter(|part| part.contains("\t@$(call need,")) {
        let last = recipe.lines().next_back().unwrap_or_default();
        assert!(last.contains("$(call need,"), "it is skipped where nothing has to be installed:\n{recipe}");
    }
}

#[test]
fn a_target_that_a_page_names_is_in_the_makefile() {
    let makefile = read("Makefile");
    let mut count = 0;
    for page in pages() {
        let text = read(&page);
        let code = text.lines().chain(quoted(&text));
        let named = code.filter_map(|code| code.strip_prefix("make ")?.split_whitespace().next());
        for target in named.filter(|word| word.chars().all(|c| c.is_ascii_lowercase() || c == '-')) {
            let recipe = format!("\n{target}:");
            assert!(makefile.contains(&recipe), "{page} has `make {target}`, the Makefile has not");
            count += 1;
        }
    }
    assert!(count > 20, "{count}");
}

#[test]
fn a_base_of_the_image_that_is_pulled_is_pinned_by_digest() {
    let text = read("Dockerfile");
    let pulled: Vec<&str> = text.lines().filter(|line| line.contains("docker.io/")).collect();
    assert_eq!(pulled.len(), 2, "{pulled:?}");
    for line in pulled {
        let digest = line.split_once("@sha256:").map_or("", |(_, digest)| digest);
        assert!(digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()), "{line}");
    }
}

#[test]
fn a_file_that_a_text_names_exists() {
    let mut count = 0;
    for page in pages().into_iter().chain(["src/lib.rs".to_owned()]) {
        let text = read(&page);
        let lines: Vec<&str> = prose(&text).into_iter().filter(|line| !line.starts_with("pub ")).collect();
        for name in quoted(&lines.join("\n")) {
            let is_file = name.ends_with(".rs") || name.starts_with("src/") || name.starts_with("tests/");
            if is_file && !name.contains(char::is_whitespace) {
                let is_there = ["", "src"].iter().any(|directory| root().join(directory).join(name).exists());
                assert!(is_there, "{page} names {name}, which is not there");
                count += 1;
            }
        }
    }
    assert!(count > 10, "{count}");
}

/// The anchor that a forge makes of a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().trim().to_lowercase().replace(' ', "-")
}

/// The lines of a page that are no code block.
fn prose(text: &str) -> Vec<&str> {
    let mut is_code = false;
    text.lines()
        .filter(|line| {
            let is_fence = line.trim_start().starts_with("```");
            is_code ^= is_fence;
            !is_code && !is_fence
        })
        .collect()
}

#[test]
fn every_link_of_a_page_leads_somewhere() {
    let mut count = 0;
    for page in pages() {
        let text = read(&page);
        for link in prose(&text).join(" ").split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("https://") {
                continue;
            }
            let (path, wanted) = link.split_once('#').unwrap_or((link, ""));
            let beside = root().join(&page).with_file_name("");
            let target = if path.is_empty() { root().join(&page) } else { beside.join(path) };
            assert!(target.exists(), "{page}: {link} leads to no file");
            if !wanted.is_empty() {
                let there = fs::read_to_string(&target).unwrap();
                let has = prose(&there)
                    .iter()
                    .filter(|line| line.starts_with('#'))
                    .any(|line| anchor(line.trim_start_matches('#')) == wanted);
                assert!(has, "{page}: {link} leads to no heading");
            }
            count += 1;
        }
    }
    assert!(count > 40, "{count}");
}

#[test]
fn a_page_is_easy_to_read() {
    // Idioms that no text book of English has.
    let hard = [
        "nobody's",
        "rides out",
        "nothing else comes of it",
        "doing away",
        "for good,",
        "who asks",
        "whither",
        "in vain",
        "of our making",
        "otherwise than",
    ];
    for page in pages().iter().filter(|page| *page != "CHANGELOG.md") {
        let text = read(page);
        let lines = prose(&text);
        let first = lines.iter().skip(1).find(|line| !line.is_empty()).unwrap();
        assert!(lines[0].starts_with("# ") && first.contains(' '), "{page} does not begin with what it answers");
        for line in &lines {
            for idiom in hard {
                assert!(!line.contains(idiom), "{page}: {idiom:?} is hard to read in: {line}");
            }
            for cell in line.strip_prefix('|').into_iter().flat_map(|row| row.split('|')) {
                let words = cell.split_whitespace().count();
                assert!(words <= 25, "{page}: a cell of {words} words, make it text: {cell}");
            }
        }
    }
}

/// The messages that the page on troubleshooting explains, made by the program.
fn explained_messages() -> Vec<Error> {
    let volume = || VolumeId::parse("506f78a4-8f00-11f0-9a11-0a58ac14d1e2").unwrap();
    let droplet = |number| DropletId::new(number).unwrap();
    let name = || VolumeName::parse("blog").unwrap();
    let out_of_time =
        |doing: String, waited_for: &str| Error::TimedOut { doing, waited_s: 97, waited_for: waited_for.into() };
    let locked = |why| Error::VolumeBusy(VolumeBusy::new(VolumeKey::Id(volume().to_string()), why));
    let attaching = format!("attaching volume {} to droplet 3164445", volume());
    let busy = "DigitalOcean answered 422: Droplet already has a pending event. (request id …)";
    let access = |access: &str| format!("{access} access to a file system");
    let detach_errored = || {
        let doing = format!("detaching volume {} from droplet 3164444", volume());
        out_of_time(doing, "DigitalOcean's detach action 5001 errored")
    };
    vec![
        Error::AttachedElsewhere {
            volume: volume(),
            name: name(),
            holder: Holder { id: droplet(3_164_444), name: Some("node-1".to_owned()) },
            wanted: droplet(3_164_445),
        },
        out_of_time(attaching.clone(), busy).or_not_yet(),
        Error::TimedOut {
            doing: attaching.clone(),
            waited_s: 5,
            waited_for: format!(
                "{busy}; it was busy for the whole time of an earlier call, so this one waited briefly"
            ),
        }
        .or_not_yet(),
        Error::TimedOut {
            doing: attaching,
            waited_s: 12,
            waited_for: "a later call has taken the volume from there again".to_owned(),
        }
        .or_not_yet(),
        detach_errored(),
        Error::TimedOut {
            doing: format!("detaching volume {}", volume()),
            waited_s: 5,
            waited_for: format!("it is tried again in 55 s at the earliest, as it failed: {}", detach_errored()),
        },
        out_of_time(
            format!("reading volume {}", volume()),
            "DigitalOcean answered 503: Service Unavailable (request id …)",
        )
        .or_not_yet(),
        locked(NoLock::Full).or_not_yet(),
        locked(NoLock::Full),
        locked(NoLock::TooLate).or_not_yet(),
        locked(NoLock::TooLate),
        Error::Overtaken(volume()),
        Error::Overloaded(config::QUEUE_LENGTH).or_not_yet(),
        Error::Overloaded(config::QUEUE_LENGTH),
        Error::Mismatch {
            thing: format!("volume blog ({}) on droplet 3164445", volume()),
            have: access("read and write"),
            want: format!("{} (--mixed-access allows both)", access("read-only")),
        },
        Error::AttachLimit { droplet: droplet(3_164_445), volume: volume() },
        Error::OtherRegion {
            volume: volume(),
            name: name(),
            region: Region::parse("fra1").unwrap(),
            droplet: droplet(3_164_445),
            droplet_region: Region::parse("nyc1").unwrap(),
        },
        Error::NotFound(Thing::Droplet("3164445".to_owned())),
        Error::StillAttached { volume: volume(), droplet: droplet(3_164_444) },
        Error::NotAdopted {
            thing: format!("volume blog ({})", volume()),
            why: "it carries no mark of a CSI driver".to_owned(),
            cure: format!(
                "to use it here, register it instead (`nomad volume register`, with external_id = \"{}\"); to have a volume \
                 of your own, choose another name",
                volume()
            ),
        },
        Error::NotOurs {
            thing: format!("volume blog ({})", volume()),
            done: "deleted".to_owned(),
            why: "it is \"prod\"'s, and this plugin works for \"test\" (--do-tag)".to_owned(),
            cure: format!(
                "if it is to be this cluster's, put that tag on it (`doctl compute tag create test && doctl compute tag apply \
                 test --resource do:volume:{0}`), take the other one off (`doctl compute tag remove prod --resource \
                 do:volume:{0}`) and try again",
                volume()
            ),
        },
        Error::OtherAccount { what: format!("volume {}", volume()), own: droplet(3_164_444) },
    ]
}

#[test]
fn the_messages_that_are_explained_are_the_programs_own() {
    let page = read("docs/troubleshooting.md");
    let list = section(&page, "## Messages about attaching and detaching").join("\n");
    let items: Vec<String> =
        list.split("\n- ").skip(1).map(|item| item.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let messages = explained_messages();
    assert_eq!(items.len(), messages.len());
    for (item, err) in items.iter().zip(&messages) {
        let message = Chain(err).to_string().replace("506f78a4-8f00-11f0-9a11-0a58ac14d1e2", "506f78a4-…");
        let quoted = item.strip_prefix("``").and_then(|rest| rest.split_once("``"));
        let (quoted, explained) = quoted.unwrap_or_else(|| panic!("no message: {item}"));
        assert_eq!(quoted.trim(), message);
        let code = format!("{:?}", status(err).code());
        let code = code.split('-').next_back().unwrap();
        assert!(explained.contains(&format!("({code})")), "{code} is not in: {item}");
    }
}

#[test]
fn what_has_one_place_is_in_no_other() {
    for (text, place) in [
        ("Command::new", "src/host/command.rs"),
        ("RpcStatusCode", "src/rpc/status.rs"),
        ("std::env::", "src/config.rs"),
        ("#[allow(", "src/proto.rs"),
    ] {
        let has = |file: &&String| without_tests(&read(file)).contains(text);
        let found: Vec<String> =
            files("src", ".rs").iter().filter(has).filter(|file| *file != "src/main.rs").cloned().collect();
        assert_eq!(found, [place], "{text}");
    }
}

#[test]
fn nothing_is_left_to_do() {
    // Written in two parts, so that this file does not have them.
    let words = [["TO", "DO"], ["FIX", "ME"], ["XX", "X"], ["todo", "!("], ["dbg", "!("], ["unimplemented", "!("]]
        .map(|parts| parts.concat());
    let others = ["Makefile", "Cargo.toml", "build.rs", ".ci/run"].map(str::to_owned);
    for file in rust_files().into_iter().chain(others).chain(pages()).chain(files("protos", ".proto")) {
        let text = read(&file);
        for word in &words {
            // A message of DigitalOcean's or Linux's own may have such a word within another.
            let found = text.split(|c: char| c.is_whitespace()).find(|part| part.contains(word.as_str()));
            assert_eq!(found, None, "{file}");
        }
    }
}

/// What a program looks for in the log is a key with a value, quoted where that is needed, and no part of the sentence.
#[test]
fn a_line_of_the_log_has_its_keys_beside_its_sentence() {
    for file in rust_files().iter().filter(|file| file.starts_with("src/")) {
        let text = read(file);
        for level in ["trace", "debug", "info", "warn", "error"] {
            for line in without_tests(&text).split(&format!(" {level}!(")).skip(1) {
                let end = line.find(");").or_else(|| line.find("),")).unwrap_or(line.len());
                let line = &line[..end];
                let is_key = |(at, _): (usize, &str)| line[..at].ends_with(|c: char| c.is_ascii_lowercase());
                assert!(!line.match_indices("={").any(is_key), "{file}: {line}");
            }
        }
    }
}

#[test]
fn a_file_is_short_and_says_first_what_it_owns() {
    for file in rust_files() {
        let text = read(&file);
        assert!(text.starts_with("//! "), "{file} does not begin with what it owns");
        if file.starts_with("src/") && !file.contains("/tests.rs") {
            let lines = without_tests(&text).lines().count();
            assert!(lines <= MAX_LINES, "{file} has {lines} lines");
        }
    }
}

#[test]
fn tests_that_need_root_or_prometheus_are_named_so_and_only_those_are_left_out() {
    let reasons = [
        ("fn root_", "root: make test-root"),
        ("fn root_", "root: make test-faults"),
        ("fn prometheus_", "prometheus: make monitoring-test"),
    ];
    let reasons = reasons.map(|(name, reason)| (name, format!("#[ignore = \"needs {reason}\"]")));
    let name_for = |line: &str| reasons.iter().find(|(_, reason)| reason == line).map(|(name, _)| *name);
    let is_reason = |line: &str| name_for(line).is_some();
    let mut count = 0;
    for file in rust_files().iter().filter(|file| *file != "tests/it/tidy.rs") {
        let text = read(file);
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for (number, line) in lines.iter().enumerate() {
            if line.starts_with("#[ignore") {
                assert!(is_reason(line), "{file}:{}", number + 1);
                let test = lines[number..].iter().find(|line| line.starts_with("fn ")).unwrap();
                assert!(name_for(line).is_some_and(|name| test.starts_with(name)), "{file}: {test}");
                count += 1;
            }
            let is_named = reasons.iter().any(|(name, _)| line.starts_with(name));
            if is_named && lines[..number].iter().rev().take(4).any(|line| *line == "#[test]") {
                assert!(lines[..number].iter().rev().take(4).any(|line| is_reason(line)), "{file}: {line}");
            }
        }
    }
    assert!(count > 3, "{count}");
}

#[test]
fn every_dependency_says_why_it_is_there() {
    let manifest = read("Cargo.toml");
    let (mut is_table, mut reason_for, mut count) = (false, None, 0);
    let family = |line: &str| line.split([' ', '-', '_']).next().unwrap_or_default().to_owned();
    for line in manifest.lines() {
        if line.starts_with('[') {
            is_table = line.ends_with("dependencies]");
            reason_for = None;
        } else if line.starts_with('#') {
            reason_for = Some(String::new());
        } else if is_table && line.contains(" = ") {
            // Two that are one thing, as serde and serde_json, share a reason.
            let has_reason = reason_for.is_some_and(|owner| owner.is_empty() || owner == family(line));
            assert!(has_reason, "{line} does not say why");
            reason_for = Some(family(line));
            count += 1;
        }
    }
    assert!(count > 20, "{count}");
}

#[test]
fn every_fixture_says_where_it_came_from() {
    for file in files("tests/fixtures", "").iter().filter(|file| !file.ends_with(".origin")) {
        // A tree of files has one for all of them, beside its directory.
        let has_origin = |path: &Path| PathBuf::from(format!("{}.origin", path.display())).exists();
        let says_itself = fs::read(root().join(file)).unwrap().starts_with(b"#");
        assert!(root().join(file).ancestors().any(has_origin) || says_itself, "{file} has no origin");
    }
}

/// Words that this code used for itself, and the field's words that took their place.
const RETIRED: [(&str, &str); 22] = [
    ("folder", "directory"),
    ("folders", "directories"),
    ("setback", "failed detach"),
    ("CallTime", "CallContext"),
    ("Verdict::Unclear", "ApiFailure::OutcomeUnknown"),
    ("HolderPlan", "TakeoverPlan"),
    ("Sight", "HolderFacts"),
    ("Patience", "Timeouts"),
    ("Lines", "FifoLocks"),
    ("hold_in_line", "acquire_queued"),
    ("most_ahead", "max_queue"),
    ("Slots", "Semaphore"),
    ("ContainerPlan", "UnlockPlan"),
    ("Upon", "DiskHolder"),
    ("Aside", "ScratchMount"),
    ("MountAt", "MountPointState"),
    ("Traits", "DiskFingerprint"),
    ("Sighting", "LookupResult"),
    ("Looker", "Candidate"),
    ("plan_company", "plan_exclusive_use"),
    ("plan_place", "plan_mount_point"),
    ("OwnDroplet", "DropletIdentity"),
];

#[test]
fn retired_words_do_not_come_back() {
    let mut found = Vec::new();
    for file in files("src", ".rs") {
        let text = read(&file);
        for (word, instead) in RETIRED {
            let is_letter = |c: char| c.is_alphanumeric() || c == '_';
            for (at, _) in text.match_indices(word) {
                let before = text[..at].chars().next_back();
                let after = text[at + word.len()..].chars().next();
                if !before.is_some_and(is_letter) && !after.is_some_and(is_letter) {
                    found.push(format!("{file}: {word:?} is {instead:?} here"));
                }
            }
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}
