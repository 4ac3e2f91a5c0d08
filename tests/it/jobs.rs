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
    let names = fs::read_dir(root().join("nomad")).unwrap().map(|entry| entry.unwrap().file_name());
    let names = names.map(|name| name.to_str().unwrap().to_owned()).filter(|name| name != "README.md");
    let parse = |name: String| {
        let body = hcl::parse(&read(&format!("nomad/{name}"))).unwrap_or_else(|err| panic!("{name}: {err}"));
        (name, body)
    };
    let files: Vec<_> = names.map(parse).collect();
    assert!(files.len() > 10, "{}", files.len());
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
