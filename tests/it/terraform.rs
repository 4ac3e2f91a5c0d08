//! The Terraform files: well-formed, with names that the providers know, and true to the job files that they run.

use std::collections::BTreeSet;

use hcl::{Attribute, Block, Body};

use crate::jobs::{attribute, blocks, read, text};

/// What a resource or a data source of the providers may have, for those that are used here.
///
/// Source: hashicorp/terraform-provider-nomad v2.6.1, website/docs and nomad/resource_variable.go; digitalocean/terraform-provider-
/// digitalocean v2.99.1, docs/resources/volume.md.
const KNOWN: [(&str, &[&str]); 8] = [
    ("nomad_variable", &["path", "namespace", "items", "items_wo", "items_wo_version"]),
    ("nomad_job", &["jobspec", "detach", "hcl2", "rerun_if_dead", "purge_on_destroy"]),
    ("hcl2", &["vars", "allow_fs"]),
    ("nomad_plugin", &["plugin_id", "wait_for_registration", "wait_for_healthy"]),
    (
        "nomad_csi_volume_registration",
        &["plugin_id", "volume_id", "name", "external_id", "namespace", "capability", "mount_options", "context"],
    ),
    ("capability", &["access_mode", "attachment_mode"]),
    ("mount_options", &["fs_type", "mount_flags"]),
    ("digitalocean_volume", &["name", "region", "size", "description", "initial_filesystem_type", "tags"]),
];

fn main() -> Body {
    hcl::parse(&read("nomad/terraform/main.tf")).unwrap()
}

fn variables() -> Body {
    hcl::parse(&read("nomad/terraform/variables.tf")).unwrap()
}

/// A resource or a data source, by its type and name.
fn object<'a>(body: &'a Body, kind: &str, name: &str) -> &'a Block {
    let all = blocks(body, "resource").into_iter().chain(blocks(body, "data"));
    let labels = |block: &Block| block.labels().iter().map(|label| label.as_str().to_owned()).collect::<Vec<_>>();
    all.into_iter().find(|block| labels(block) == [kind, name]).unwrap_or_else(|| panic!("no {kind} {name}"))
}

fn assert_known(kind: &str, body: &Body) {
    let (_, known) = KNOWN.iter().find(|(name, _)| *name == kind).unwrap_or_else(|| panic!("{kind}?"));
    // What every object of Terraform may have.
    let of_all = ["depends_on", "lifecycle"];
    for key in body.attributes().map(Attribute::key).chain(body.blocks().map(Block::identifier)) {
        assert!(known.contains(&key) || of_all.contains(&key), "{kind} has no {key}");
    }
    for inner in body.blocks().filter(|inner| inner.identifier() != "lifecycle") {
        assert_known(inner.identifier(), &inner.body);
    }
}

#[test]
fn every_object_has_only_what_its_provider_knows() {
    let body = main();
    let objects: Vec<_> = blocks(&body, "resource").into_iter().chain(blocks(&body, "data")).collect();
    assert_eq!(objects.len(), 7);
    for object in objects {
        assert_known(object.labels()[0].as_str(), &object.body);
    }
}

#[test]
fn the_variables_that_are_used_are_declared_and_the_other_way_round() {
    let (files, variables) = (read("nomad/terraform/main.tf"), variables());
    let declared: BTreeSet<&str> =
        blocks(&variables, "variable").iter().map(|block| block.labels()[0].as_str()).collect();
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let used: BTreeSet<&str> =
        files.split("var.").skip(1).filter_map(|rest| rest.split(|c| !is_name(c)).next()).collect();
    assert_eq!(declared, used);
    let page = read("nomad/terraform/README.md");
    let needed = blocks(&variables, "variable").into_iter().filter(|block| attribute(&block.body, "default").is_none());
    for name in needed.map(|block| block.labels()[0].as_str()) {
        assert!(page.contains(&format!("-var {name}=")) || page.contains(&format!("TF_VAR_{name}=")), "{name}");
    }
}

#[test]
fn no_secret_gets_into_the_state() {
    let (source, variables) = (read("nomad/terraform/main.tf"), variables());
    for name in ["plugin_token", "postgres_password"] {
        let variable = *blocks(&variables, "variable").iter().find(|block| block.labels()[0].as_str() == name).unwrap();
        for mark in ["sensitive", "ephemeral"] {
            assert_eq!(text(&variable.body, mark).as_deref(), Some("true"), "{name}");
        }
        let used: Vec<&str> = source.lines().filter(|line| line.contains(&format!("var.{name} "))).collect();
        assert!(used.len() == 1 && used[0].trim_start().starts_with("items_wo "), "{used:?}");
    }
}

#[test]
fn the_jobs_get_the_variables_that_they_need_and_no_others() {
    let body = main();
    for (name, file) in [("plugin", "plugin.nomad.hcl"), ("postgres", "postgres.nomad.hcl")] {
        let resource = object(&body, "nomad_job", name);
        let path = attribute(&resource.body, "jobspec").unwrap().to_string();
        assert_eq!(path, format!("file(\"${{path.module}}/../{file}\")"));
        let given = attribute(&blocks(&resource.body, "hcl2")[0].body, "vars").unwrap().to_string();
        let job = hcl::parse(&read(&format!("nomad/{file}"))).unwrap();
        let variables = blocks(&job, "variable");
        let is_given = |variable: &&&Block| given.contains(&format!("{} = ", variable.labels()[0].as_str()));
        let needed = variables.iter().filter(|variable| attribute(&variable.body, "default").is_none());
        assert!(needed.clone().all(|variable| is_given(&variable)), "{file}: {given}");
        let count = variables.iter().filter(is_given).count();
        assert_eq!(count, given.matches(" = ").count(), "{file} has not all of {given}");
    }
}

#[test]
fn plugin_volume_and_service_fit_together() {
    let body = main();
    let job = hcl::parse(&read("nomad/postgres.nomad.hcl")).unwrap();
    let registration = object(&body, "nomad_csi_volume_registration", "postgres");
    let source = text(&blocks(&job, "volume")[0].body, "source");
    assert_eq!(text(&registration.body, "volume_id"), source);
    let plugin = hcl::parse(&read("nomad/plugin.nomad.hcl")).unwrap();
    let id = text(&blocks(&plugin, "csi_plugin")[0].body, "id");
    assert_eq!(text(&object(&body, "nomad_plugin", "digitalocean").body, "plugin_id"), id);
    for (variable, file, job) in [("plugin", "plugin", "do-csi-plugin"), ("postgres", "postgres", "postgres")] {
        let path = text(&object(&body, "nomad_variable", variable).body, "path").unwrap();
        assert_eq!(path, format!("nomad/jobs/{job}"));
        assert!(read(&format!("nomad/{file}.nomad.hcl")).contains(&format!("nomadVar \\\"{path}\\\"")), "{path}");
    }
    // The data outlives a mistake.
    let volume = object(&body, "digitalocean_volume", "postgres");
    assert_eq!(text(&blocks(&volume.body, "lifecycle")[0].body, "prevent_destroy").as_deref(), Some("true"));
    let fs_type = text(&blocks(&registration.body, "mount_options")[0].body, "fs_type");
    assert_eq!(text(&volume.body, "initial_filesystem_type"), fs_type);
}
