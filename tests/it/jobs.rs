//! The job files and the guide for Nomad, as far as they can be checked without Nomad: they parse, they fit the program,
//! and `make e2e-nomad` runs every command and uses every file.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use hcl::{Attribute, Block, Body, Expression};

use crate::PROGRAM;
use crate::support::nomad::commands;
use crate::support::single_plugin::{bare, run_to_end};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|err| panic!("{path}: {err}"))
}

/// The files of the directory, parsed, but for the guide.
fn files() -> Vec<(String, Body)> {
    files_of("nomad")
}

/// Those for the first versions of Nomad with CSI.
fn legacy_files() -> Vec<(String, Body)> {
    let files = files_of("nomad/legacy");
    assert_eq!(files.len(), 4);
    files
}

fn files_of(directory: &str) -> Vec<(String, Body)> {
    let entries = fs::read_dir(root().join(directory)).unwrap().map(Result::unwrap);
    let names = entries.filter(|entry| entry.file_type().unwrap().is_file()).map(|entry| entry.file_name());
    let names = names.map(|name| name.to_str().unwrap().to_owned()).filter(|name| name != "README.md");
    let parse = |name: String| {
        let body = hcl::parse(&read(&format!("{directory}/{name}"))).unwrap_or_else(|err| panic!("{name}: {err}"));
        (name, body)
    };
    let files: Vec<_> = names.map(parse).collect();
    assert!(!files.is_empty(), "{directory}");
    files
}

/// All blocks of a kind, however deep.
fn blocks<'a>(body: &'a Body, kind: &str) -> Vec<&'a Block> {
    let below = body.blocks().flat_map(|block| blocks(&block.body, kind));
    body.blocks().filter(|block| block.identifier() == kind).chain(below).collect()
}

fn attribute<'a>(body: &'a Body, name: &str) -> Option<&'a Expression> {
    body.attributes().find(|attribute| attribute.key() == name).map(Attribute::expr)
}

fn text(body: &Body, name: &str) -> Option<String> {
    attribute(body, name).map(|value| value.to_string().trim_matches('"').to_owned())
}

/// The tasks that are the plugin, with the names of their files.
fn plugin_tasks(files: &[(String, Body)]) -> Vec<(&str, &Block)> {
    let tasks =
        files.iter().flat_map(|(name, body)| blocks(body, "task").into_iter().map(move |task| (name.as_str(), task)));
    let tasks: Vec<_> = tasks.filter(|(_, task)| !blocks(&task.body, "csi_plugin").is_empty()).collect();
    assert_eq!(tasks.len(), 4);
    tasks
}

#[test]
fn every_command_of_the_guide_and_every_file_is_used_by_the_run_against_nomad() {
    let (guide, story) = (read("nomad/README.md"), read("tests/support/nomad_story.rs"));
    let commands = commands(&guide);
    assert!(commands.len() > 20, "{commands:?}");
    for command in &commands {
        // A command for either of two jobs is put together.
        let known =
            command.replace("do-csi-plugin token", "{job} token").replace("do-csi-controller token", "{job} token");
        assert!(story.contains(&format!("\"{known}\"")), "the story does not run `{command}`");
    }
    for (name, _) in files() {
        assert!(guide.contains(&name), "the guide does not name {name}");
        let is_of_terraform = name.ends_with(".tf");
        assert!(is_of_terraform || story.contains(&name), "the story does not use {name}");
    }
}

#[test]
fn job_files_name_the_image_that_make_image_makes() {
    let files = files();
    let image = format!("do-csi-plugin:{}", env!("CARGO_PKG_VERSION"));
    let mut count = 0;
    for (name, task) in plugin_tasks(&files) {
        let (_, body) = files.iter().find(|(file, _)| file == name).unwrap();
        if text(&task.body, "driver").unwrap() == "docker" {
            let variables = blocks(body, "variable");
            let variable = variables.iter().find(|block| block.labels()[0].as_str() == "image").unwrap();
            assert_eq!(text(&variable.body, "default").unwrap(), image, "{name}");
            count += 1;
        }
    }
    assert_eq!(count, 3);
    assert!(read("nomad/README.md").contains(&image));
}

#[test]
fn plugin_jobs_use_settings_that_the_program_has_and_keep_the_token_out_of_arguments() {
    let mut help = bare(Path::new(PROGRAM));
    help.arg("--help");
    let help = String::from_utf8(run_to_end(help).unwrap().stdout).unwrap();
    let files = files();
    for (name, task) in plugin_tasks(&files) {
        let [config] = blocks(&task.body, "config")[..] else { panic!("{name} has no config") };
        let arguments = attribute(&config.body, "args").map(ToString::to_string).unwrap_or_default();
        assert!(!arguments.contains("token"), "{name}: {arguments}");
        // Who makes volumes says for whom, and no two clusters have one name because nobody thought of it.
        let kind = text(&blocks(&task.body, "csi_plugin")[0].body, "type").unwrap();
        assert_eq!(arguments.contains("--do-tag=${var.owner}"), kind != "node", "{name}: {arguments}");
        let (_, body) = files.iter().find(|(file, _)| file == name).unwrap();
        let variables = blocks(body, "variable");
        let owner = variables.iter().find(|block| block.labels()[0].as_str() == "owner");
        assert_eq!(owner.is_some(), kind != "node", "{name}");
        assert!(owner.is_none_or(|block| attribute(&block.body, "default").is_none()), "{name}");
        assert!(owner.is_none_or(|block| blocks(&block.body, "validation").len() == 1), "{name}");
        let flags: BTreeSet<&str> =
            arguments.split(['"', '=', ' ', ',', '[', ']']).filter(|word| word.starts_with("--")).collect();
        for flag in flags {
            assert!(help.contains(flag), "{name}: {flag}");
        }
        for variables in blocks(&task.body, "env") {
            for variable in variables.body.attributes().map(Attribute::key) {
                assert!(help.contains(variable), "{name}: {variable}");
            }
        }
        // Who may mount is privileged, and nobody else; who talks to DigitalOcean has the token, and nobody else.
        let is_privileged = text(&config.body, "privileged").is_some_and(|value| value == "true");
        let is_in_docker = text(&task.body, "driver").unwrap() == "docker";
        assert_eq!(is_privileged, is_in_docker && kind != "controller", "{name}");
        assert_eq!(blocks(&task.body, "template").len(), usize::from(kind != "node"), "{name}");
        assert_eq!(text(&task.body, "kill_timeout").unwrap(), "100s", "{name}");
        // Who checks file systems needs room for it, or the kernel kills the check and the next node begins it anew.
        let [resources] = blocks(&task.body, "resources")[..] else { panic!("{name} has no resources") };
        let memory: u32 = text(&resources.body, "memory").unwrap().parse().unwrap();
        assert!(memory >= if kind == "controller" { 32 } else { 256 }, "{name}: {memory} MB");
    }
}

#[test]
fn jobs_that_use_a_volume_are_tried_again() {
    for (name, body) in files() {
        for group in blocks(&body, "group").iter().filter(|group| !blocks(&group.body, "volume").is_empty()) {
            assert_eq!(blocks(&group.body, "reschedule").len(), 1, "{name}");
        }
    }
}

#[test]
fn every_job_says_where_it_runs_by_a_variable() {
    let mut count = 0;
    for (name, body) in files().iter().filter(|(name, _)| name.ends_with(".nomad.hcl")) {
        let [job] = blocks(body, "job")[..] else { panic!("{name} is not one job") };
        // Nomad before 1.5 takes no job without, and a wildcard only from then on.
        for variable in ["datacenters", "namespace"] {
            assert_eq!(text(&job.body, variable).unwrap(), format!("var.{variable}"), "{name}");
        }
        for variable in blocks(body, "variable").iter().map(|block| block.labels()[0].as_str()) {
            assert!(read(&format!("nomad/{name}")).contains(&format!("var.{variable}")), "{name} uses no {variable}");
        }
        // Unknown before 1.6.
        assert!(attribute(&job.body, "node_pool").is_none(), "{name}");
        count += 1;
    }
    assert_eq!(count, 8);
}

#[test]
fn plugin_jobs_let_the_operator_choose_the_level_of_the_log() {
    let files = files();
    for (name, task) in plugin_tasks(&files) {
        let environment = blocks(&task.body, "env");
        let level = environment.iter().find_map(|block| text(&block.body, "RUST_LOG"));
        assert_eq!(level.as_deref(), Some("var.log"), "{name}");
    }
}

/// What the job files of Nomad 0.11 may have, for the blocks that ours use.
///
/// Source: hashicorp/nomad v0.11.8, jobspec/parse_job.go, parse_group.go, parse_task.go, parse.go (lists of valid keys),
/// api/tasks.go and api/csi.go (what is decoded without a list), drivers/docker/config.go.
const KEYS_OF_0_11: [(&str, &[&str]); 14] = [
    ("job", &["constraint", "datacenters", "group", "type", "update", "namespace", "priority", "meta"]),
    ("group", &["count", "constraint", "restart", "task", "reschedule", "update", "volume", "meta"]),
    ("task", &["driver", "config", "env", "csi_plugin", "kill_timeout", "resources", "template", "volume_mount"]),
    ("config", &["image", "command", "args", "privileged", "volumes"]),
    ("csi_plugin", &["id", "type", "mount_dir"]),
    ("resources", &["cpu", "memory"]),
    ("restart", &["attempts", "interval", "delay", "mode"]),
    ("reschedule", &["attempts", "interval", "unlimited", "delay", "max_delay", "delay_function"]),
    ("update", &["max_parallel", "stagger"]),
    ("constraint", &["attribute", "operator", "value"]),
    ("volume", &["type", "source", "read_only", "mount_options"]),
    ("volume_mount", &["volume", "destination", "read_only"]),
    ("mount_options", &["fs_type", "mount_flags"]),
    // The file of a volume itself.
    ("", &["id", "name", "type", "plugin_id", "external_id", "access_mode", "attachment_mode", "mount_options", "job"]),
];

fn assert_known_to_0_11(name: &str, block: &str, body: &Body) {
    let (_, known) = KEYS_OF_0_11.iter().find(|(kind, _)| *kind == block).unwrap_or_else(|| panic!("{name}: {block}"));
    let keys = body.attributes().map(Attribute::key).chain(body.blocks().map(Block::identifier));
    for key in keys {
        assert!(known.contains(&key), "{name}: {block} has no {key} in Nomad 0.11");
    }
    for inner in body.blocks() {
        assert_known_to_0_11(name, inner.identifier(), &inner.body);
    }
}

#[test]
fn files_for_the_first_versions_use_only_what_these_know() {
    let guide = read("nomad/README.md");
    for (name, body) in &legacy_files() {
        assert_known_to_0_11(name, "", body);
        assert!(guide.contains(&format!("legacy/{name}")), "the guide does not name legacy/{name}");
        assert!(!read(&format!("nomad/legacy/{name}")).contains("var."), "{name}");
    }
}

#[test]
fn the_legacy_plugin_is_the_same_plugin() {
    let (new, old) = (files(), legacy_files());
    let task_of = |files: &[(String, Body)]| {
        let (_, body) = files.iter().find(|(name, _)| name == "plugin.nomad.hcl").unwrap();
        blocks(body, "task")[0].clone()
    };
    let (new, old) = (task_of(&new), task_of(&old));
    for key in ["id", "type", "mount_dir"] {
        let value = |task: &Block| text(&blocks(&task.body, "csi_plugin")[0].body, key).unwrap();
        assert_eq!(value(&new), value(&old), "a volume would lose its mounts with the change of {key}");
    }
    assert_eq!(text(&new.body, "kill_timeout"), text(&old.body, "kill_timeout"));
    let config = &blocks(&old.body, "config")[0].body;
    assert_eq!(text(config, "image").unwrap(), format!("do-csi-plugin:{}", env!("CARGO_PKG_VERSION")));
    let mut help = bare(Path::new(PROGRAM));
    help.arg("--help");
    let help = String::from_utf8(run_to_end(help).unwrap().stdout).unwrap();
    let arguments = attribute(config, "args").unwrap().to_string();
    let flags: Vec<&str> = arguments.split(['"', '=']).filter(|word| word.starts_with("--")).collect();
    assert_eq!(flags, ["--endpoint", "--token-file", "--do-tag"]);
    assert!(flags.iter().all(|flag| help.contains(flag)), "{flags:?}");
}
