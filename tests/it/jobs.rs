//! The job files and the guide for Nomad, as far as they can be checked without Nomad: they parse, they fit the program,
//! and `make e2e-nomad` runs every command and uses every file.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use hcl::{Attribute, Block, Body, Expression};

use crate::PROGRAM;
use crate::support::nomad::{commands, pages};
use crate::support::single_plugin::{bare, run_to_end};

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|err| panic!("{path}: {err}"))
}

/// All pages of the guide.
fn guide() -> String {
    pages(&root().join("nomad")).unwrap()
}

/// The files of the directory, parsed, but for the guide.
fn files() -> Vec<(String, Body)> {
    files_of("nomad")
}

/// Those for the first versions of Nomad with CSI.
fn legacy_files() -> Vec<(String, Body)> {
    let files = files_of("nomad/legacy");
    assert_eq!(files.len(), 6);
    files
}

fn files_of(directory: &str) -> Vec<(String, Body)> {
    let entries = fs::read_dir(root().join(directory)).unwrap().map(Result::unwrap);
    let names = entries.filter(|entry| entry.file_type().unwrap().is_file()).map(|entry| entry.file_name());
    let names = names.map(|name| name.to_str().unwrap().to_owned()).filter(|name| !name.ends_with(".md"));
    let parse = |name: String| {
        let body = hcl::parse(&read(&format!("{directory}/{name}"))).unwrap_or_else(|err| panic!("{name}: {err}"));
        (name, body)
    };
    let files: Vec<_> = names.map(parse).collect();
    assert!(!files.is_empty(), "{directory}");
    files
}

/// All blocks of a kind, however deep.
pub fn blocks<'a>(body: &'a Body, kind: &str) -> Vec<&'a Block> {
    let below = body.blocks().flat_map(|block| blocks(&block.body, kind));
    body.blocks().filter(|block| block.identifier() == kind).chain(below).collect()
}

pub fn attribute<'a>(body: &'a Body, name: &str) -> Option<&'a Expression> {
    body.attributes().find(|attribute| attribute.key() == name).map(Attribute::expr)
}

pub fn text(body: &Body, name: &str) -> Option<String> {
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
    let (guide, story) = (guide(), read("tests/support/nomad_story.rs"));
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
    assert!(guide().contains(&image));
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
        // Who detaches what nobody uses has the token to bring it back, and the disk to see that.
        assert_eq!(arguments.contains("--release-unused=2m"), kind == "monolith", "{name}: {arguments}");
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
fn every_container_of_the_image_can_do_no_more_than_its_work_takes() {
    let legacy = legacy_files().into_iter().map(|(name, body)| (format!("legacy/{name}"), body));
    let files: Vec<(String, Body)> = files().into_iter().chain(legacy).collect();
    let mut count = 0;
    let configs = files
        .iter()
        .flat_map(|(name, body)| blocks(body, "config").into_iter().map(move |config| (name, body, config)));
    for (name, body, config) in configs {
        let config = &config.body;
        let variables = blocks(body, "variable");
        let variable = variables.iter().find(|block| block.labels()[0].as_str() == "image");
        let default = || variable.and_then(|block| text(&block.body, "default"));
        let image = text(config, "image").and_then(|image| if image == "var.image" { default() } else { Some(image) });
        if !image.is_some_and(|image| image.starts_with("do-csi-plugin:")) {
            continue;
        }
        let has = |name: &str, value: &str| text(config, name).is_some_and(|found| found.contains(value));
        assert!(has("readonly_rootfs", "true"), "{name}");
        // A privileged container has every capability, whatever is dropped; one that is not needs none.
        let is_privileged = has("privileged", "true");
        assert_eq!(has("cap_drop", "all"), !is_privileged, "{name}");
        assert_eq!(has("security_opt", "no-new-privileges"), !is_privileged, "{name}");
        // The image has nothing that can be written to, and cryptsetup makes a lock.
        let mounts = blocks(config, "mount").into_iter().chain(blocks(config, "mounts"));
        let run = mounts.filter(|mount| text(&mount.body, "target").unwrap() == "/run").count();
        assert_eq!(run, usize::from(is_privileged), "{name}");
        // Who mounts volumes.
        assert_eq!(has("args", "--default-mount-flags=nosuid,nodev"), is_privileged, "{name}");
        count += 1;
    }
    assert_eq!(count, 6);
}

/// Messages that are Nomad's own.
///
/// Source: hashicorp/nomad v2.0.5, scheduler/feasible/feasible.go, nomad/csi_endpoint.go, drivers/docker/driver.go,
/// nomad/structs/errors.go, nomad/state/state_store.go, client/allocrunner/taskrunner/template/template.go; and of Docker's.
const MESSAGES_OF_OTHERS: [&str; 9] = [
    "CSI plugin digitalocean is missing from client",
    "is unhealthy on client",
    "no healthy controllers for CSI plugin",
    "Docker privileged mode is disabled on this Nomad agent",
    "is not a shared mount",
    "has exhausted its available writer claims",
    "volume max claims reached",
    "volume in use",
    "Missing: nomad.var.block",
];

/// Messages that the program puts together, with the parts that its sources have.
const PUT_TOGETHER: [(&str, [&str; 2]); 3] = [
    ("is not deleted:", ["is not {done}", "\"deleted\""]),
    ("is not taken from droplet", ["is not {done}", "taken from droplet"]),
    ("it is not known yet in which region the volumes are", ["it is not known yet", "in which region the volumes are"]),
];

#[test]
fn the_messages_that_the_guide_explains_are_the_programs_or_nomads() {
    let mut sources = String::new();
    collect_sources(&root().join("src"), &mut sources);
    let page = read("nomad/messages.md");
    let mut count = 0;
    for cell in page.lines().filter(|line| line.starts_with("| `")).filter_map(|row| row.split('|').nth(1)) {
        for message in cell.split('`').skip(1).step_by(2) {
            let parts = message.split("...").map(|part| part.trim_matches([' ', '(', ')', ',']));
            for part in parts.filter(|part| !part.is_empty()) {
                let put_together = PUT_TOGETHER.iter().find(|(whole, _)| *whole == part);
                let is_put_together = put_together.is_some_and(|(_, all)| all.iter().all(|one| sources.contains(one)));
                let is_known = MESSAGES_OF_OTHERS.contains(&part) || is_put_together || sources.contains(part);
                assert!(is_known, "the page explains {part:?}, which nobody says");
                count += 1;
            }
        }
    }
    assert!(count > 25, "{count}");
}

/// The text of all sources, with the literals that are broken over lines put together.
fn collect_sources(directory: &Path, sources: &mut String) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect_sources(&path, sources);
            continue;
        }
        let text = fs::read_to_string(&path).unwrap_or_default();
        for line in text.lines() {
            let (line, is_broken) = line.strip_suffix('\\').map_or((line, false), |line| (line, true));
            sources.push_str(if sources.ends_with('\n') { line } else { line.trim_start() });
            if !is_broken {
                sources.push('\n');
            }
        }
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
    assert_eq!(count, 9);
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

/// The first Nomad that knows each name of a job file or a volume file, for those that came after 0.11, by its block.
///
/// Source: hashicorp/nomad, the job parsers of 0.11.8, 1.0.18, 1.1.18, 1.3.16, 1.7.7 and 2.0.5 (jobspec, jobspec2, api/tasks.go,
/// api/csi.go, api/services.go), command/volume_register_csi.go for volume files.
const SINCE: [(&str, &str, Version); 19] = [
    ("", "variable", (1, 0, 0)),
    ("variable", "validation", (1, 0, 0)),
    // As blocks; before there was a list of them.
    ("config", "mount", (1, 0, 1)),
    ("volume", "access_mode", (1, 1, 0)),
    ("volume", "attachment_mode", (1, 1, 0)),
    ("volume", "per_alloc", (1, 1, 0)),
    ("resources", "memory_max", (1, 1, 0)),
    ("", "capability", (1, 1, 0)),
    ("", "capacity_min", (1, 1, 0)),
    ("", "capacity_max", (1, 1, 0)),
    ("", "snapshot_id", (1, 1, 0)),
    ("", "clone_id", (1, 1, 0)),
    ("", "parameters", (1, 1, 0)),
    ("service", "provider", (1, 3, 0)),
    ("csi_plugin", "health_timeout", (1, 3, 2)),
    ("csi_plugin", "stage_publish_base_dir", (1, 3, 3)),
    // A function of the templates in job files.
    ("template", "nomadVar", (1, 4, 0)),
    ("job", "node_pool", (1, 6, 0)),
    ("group", "disconnect", (1, 8, 0)),
];

type Version = (u8, u8, u8);

/// What the job files of Nomad 0.11 may have, for the blocks that ours use, and what newer blocks had from the start.
///
/// Source: hashicorp/nomad v0.11.8, jobspec/parse_job.go, parse_group.go, parse_task.go, parse.go (lists of valid keys),
/// api/tasks.go and api/csi.go (what is decoded without a list), drivers/docker/config.go.
const KEYS_OF_0_11: [(&str, &[&str]); 27] = [
    ("job", &["constraint", "datacenters", "group", "type", "update", "namespace", "periodic", "priority", "meta"]),
    (
        "group",
        &[
            "count",
            "constraint",
            "restart",
            "task",
            "reschedule",
            "update",
            "volume",
            "meta",
            "network",
            "service",
            "stop_after_client_disconnect",
        ],
    ),
    (
        "task",
        &[
            "driver",
            "config",
            "env",
            "csi_plugin",
            "kill_timeout",
            "kill_signal",
            "resources",
            "template",
            "vault",
            "volume_mount",
        ],
    ),
    (
        "config",
        &[
            "image",
            "command",
            "args",
            "privileged",
            "volumes",
            "mounts",
            "ports",
            "cap_drop",
            "security_opt",
            "readonly_rootfs",
        ],
    ),
    // As blocks they are read by HCL 1, of Nomad 0.11, and by HCL 2.
    ("mounts", &["type", "target", "tmpfs_options"]),
    ("mount", &["type", "target", "tmpfs_options"]),
    ("tmpfs_options", &["size"]),
    ("csi_plugin", &["id", "type", "mount_dir"]),
    ("resources", &["cpu", "memory"]),
    ("restart", &["attempts", "interval", "delay", "mode"]),
    ("reschedule", &["attempts", "interval", "unlimited", "delay", "max_delay", "delay_function"]),
    ("update", &["max_parallel", "stagger", "canary", "healthy_deadline"]),
    ("constraint", &["attribute", "operator", "value"]),
    ("periodic", &["cron", "prohibit_overlap", "time_zone"]),
    ("volume", &["type", "source", "read_only", "mount_options"]),
    ("volume_mount", &["volume", "destination", "read_only"]),
    ("mount_options", &["fs_type", "mount_flags"]),
    ("template", &["data", "destination", "perms", "change_mode", "change_signal", "env"]),
    ("vault", &["policies"]),
    ("disconnect", &["stop_on_client_after", "replace"]),
    ("network", &["port"]),
    ("port", &["to"]),
    ("service", &["name", "port", "check"]),
    ("check", &["type", "interval", "timeout", "path"]),
    ("capability", &["access_mode", "attachment_mode"]),
    ("variable", &["type", "default", "description", "validation"]),
    // The file of a volume itself.
    ("", &["id", "name", "type", "plugin_id", "external_id", "access_mode", "attachment_mode", "mount_options", "job"]),
];

/// The first Nomad that knows everything in a block and below it.
fn first_version(name: &str, block: &str, body: &Body) -> Version {
    let known = KEYS_OF_0_11.iter().find(|(kind, _)| *kind == block).map_or(&[][..], |(_, keys)| keys);
    let of_key = |key: &str| {
        let since = SINCE.iter().find(|(kind, known, _)| *kind == block && *known == key).map(|(_, _, since)| *since);
        let is_free = ["env", "parameters", "validation"].contains(&block);
        let is_old = is_free || known.contains(&key);
        since
            .or(is_old.then_some((0, 11, 0)))
            .unwrap_or_else(|| panic!("{name}: no version of Nomad for {block}.{key}"))
    };
    let keys = body.attributes().map(Attribute::key).chain(body.blocks().map(Block::identifier)).map(of_key);
    let below = body.blocks().map(|inner| first_version(name, inner.identifier(), &inner.body));
    keys.chain(below).max().unwrap_or((0, 11, 0))
}

#[test]
fn every_file_says_from_which_nomad_on_it_can_be_used() {
    let guide = guide();
    let legacy = legacy_files().into_iter().map(|(name, body)| (format!("legacy/{name}"), body));
    let mut count = 0;
    for (name, body) in files().into_iter().chain(legacy).filter(|(name, _)| name.ends_with(".hcl")) {
        let text = read(&format!("nomad/{name}"));
        let of_templates = if text.contains("nomadVar") { (1, 4, 0) } else { (0, 11, 0) };
        let shown = match first_version(&name, "", &body).max(of_templates) {
            (major, minor, 0) => format!("{major}.{minor}"),
            (major, minor, patch) => format!("{major}.{minor}.{patch}"),
        };
        let head = text.lines().take_while(|line| line.starts_with('#')).collect::<Vec<_>>().join(" ");
        let said = head.split("Nomad ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or_default();
        assert_eq!(said, shown, "{name} says first which version it needs");
        let row = format!("| `{name}` | {shown}");
        assert!(guide.contains(&row), "the guide has no row {row:?}");
        count += 1;
    }
    assert_eq!(count, 20);
}

#[test]
fn files_for_the_first_versions_have_no_variables() {
    let guide = guide();
    for (name, _) in &legacy_files() {
        assert!(guide.contains(&format!("legacy/{name}")), "the guide does not name legacy/{name}");
        assert!(!read(&format!("nomad/legacy/{name}")).contains("var."), "{name}");
    }
}

#[test]
fn the_legacy_plugins_are_the_same_plugin() {
    let task_of = |files: &[(String, Body)], file: &str| {
        let (_, body) = files.iter().find(|(name, _)| name == file).unwrap();
        blocks(body, "task")[0].clone()
    };
    let mut help = bare(Path::new(PROGRAM));
    help.arg("--help");
    let help = String::from_utf8(run_to_end(help).unwrap().stdout).unwrap();
    let new = task_of(&files(), "plugin.nomad.hcl");
    for file in ["plugin.nomad.hcl", "plugin-vault.nomad.hcl"] {
        let old = task_of(&legacy_files(), file);
        for key in ["id", "type", "mount_dir"] {
            let value = |task: &Block| text(&blocks(&task.body, "csi_plugin")[0].body, key).unwrap();
            assert_eq!(value(&new), value(&old), "a volume would lose its mounts with the change of {key}");
        }
        assert_eq!(text(&new.body, "kill_timeout"), text(&old.body, "kill_timeout"));
        let config = &blocks(&old.body, "config")[0].body;
        assert_eq!(text(config, "image").unwrap(), format!("do-csi-plugin:{}", env!("CARGO_PKG_VERSION")));
        let arguments = attribute(config, "args").unwrap().to_string();
        let flags: Vec<&str> = arguments.split(['"', '=']).filter(|word| word.starts_with("--")).collect();
        assert_eq!(flags, ["--endpoint", "--token-file", "--do-tag", "--default-mount-flags", "--release-unused"]);
        assert!(flags.iter().all(|flag| help.contains(flag)), "{flags:?}");
    }
}

#[test]
fn the_legacy_service_is_the_same_service() {
    let group_of = |files: &[(String, Body)]| {
        let (_, body) = files.iter().find(|(name, _)| name == "postgres.nomad.hcl").unwrap();
        blocks(body, "group")[0].clone()
    };
    let (new, old) = (group_of(&files()), group_of(&legacy_files()));
    for block in ["update", "reschedule", "volume", "volume_mount", "network", "resources"] {
        assert_eq!(blocks(&new.body, block), blocks(&old.body, block), "{block}");
    }
    let limit = text(&blocks(&new.body, "disconnect")[0].body, "stop_on_client_after");
    assert_eq!(text(&old.body, "stop_after_client_disconnect"), limit);
    let directory = |group: &Block| text(&blocks(&group.body, "env")[0].body, "PGDATA").unwrap();
    assert_eq!(directory(&new), directory(&old), "another version would not find its data");
}

#[test]
fn the_backup_job_runs_what_the_program_takes_and_gives_it_the_token_by_a_file() {
    let files = files();
    let (_, body) = files.iter().find(|(name, _)| name == "backup.nomad.hcl").unwrap();
    let [config] = blocks(body, "config")[..] else { panic!("one task") };
    let arguments = attribute(&config.body, "args").unwrap().to_string();
    let given = |name: &str| {
        let variables = blocks(body, "variable");
        let variable = variables.iter().find(|block| block.labels()[0].as_str() == name).unwrap();
        text(&variable.body, "default").unwrap_or_else(|| "one".to_owned())
    };
    let mut command = bare(Path::new(PROGRAM));
    for word in arguments.split('"').skip(1).step_by(2) {
        let word = ["volume", "keep", "owner"]
            .iter()
            .fold(word.to_owned(), |word, name| word.replace(&format!("${{var.{name}}}"), &given(name)));
        assert!(!word.contains("${"), "{word}");
        command.arg(word);
    }
    // It takes all of it, and then has no token.
    let output = run_to_end(command).unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && said.contains("it takes a token"), "{said}");
    assert_eq!(text(&config.body, "image").as_deref(), Some("var.image"));
    assert_eq!(given("image"), format!("do-csi-plugin:{}", env!("CARGO_PKG_VERSION")));
    let environment = &blocks(body, "env")[0].body;
    let template = &blocks(body, "template")[0].body;
    assert_eq!(text(environment, "DIGITALOCEAN_ACCESS_TOKEN_FILE"), text(template, "destination"));
}
