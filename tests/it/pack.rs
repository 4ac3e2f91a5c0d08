//! The pack for nomad-pack: rendered here by the rules of its templates, it is the job files.
//!
//! Owns a renderer for what our templates use of Go's: `[[ if ]]`, `[[ else ]]`, `[[ define ]]`, `[[ template ]]`, pipes and
//! trimmed space.
//! Source: hashicorp/nomad-pack v0.4.2, internal/pkg/renderer/renderer.go (delimiters, names that begin with `_`, templates that
//! render to nothing), whose output was the same for all modes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use hcl::eval::{Context, Evaluate};
use hcl::{Body, Value};

use crate::PROGRAM;
use crate::jobs::{attribute, blocks, read, root, text};
use crate::support::single_plugin::{bare, run_to_end};

const PACK: &str = "nomad/pack";

/// Values by name, as an operator gives them.
type Values = BTreeMap<String, Value>;

#[derive(Debug, Clone)]
enum Part {
    Text(String),
    If { condition: String, then: Vec<Part>, otherwise: Vec<Part> },
    Template(String),
    Value(String),
}

/// The templates that `define` makes, by name.
type Templates = BTreeMap<String, Vec<Part>>;

/// A text between actions, or an action.
fn tokens(source: &str) -> Vec<Result<String, String>> {
    let mut tokens = Vec::new();
    let mut rest = source.to_owned();
    while let Some((before, after)) = rest.split_once("[[") {
        let (action, after) = after.split_once("]]").unwrap_or_else(|| panic!("no end: {after}"));
        let (action, trims_before) = action.strip_prefix("- ").map_or((action, false), |action| (action, true));
        let (action, trims_after) = action.strip_suffix(" -").map_or((action, false), |action| (action, true));
        tokens.push(Ok(if trims_before { before.trim_end() } else { before }.to_owned()));
        tokens.push(Err(action.trim().to_owned()));
        rest = if trims_after { after.trim_start() } else { after }.to_owned();
    }
    tokens.push(Ok(rest));
    tokens
}

/// Parts up to the end of a block, and the action that ended it.
fn parse(tokens: &mut dyn Iterator<Item = Result<String, String>>, templates: &mut Templates) -> (Vec<Part>, String) {
    let mut parts = Vec::new();
    while let Some(token) = tokens.next() {
        let action = match token {
            Ok(text) => {
                parts.push(Part::Text(text));
                continue;
            }
            Err(action) => action,
        };
        if action == "end" || action == "else" {
            return (parts, action);
        }
        if let Some(condition) = action.strip_prefix("if ") {
            let (then, end) = parse(tokens, templates);
            let otherwise = if end == "else" { parse(tokens, templates).0 } else { Vec::new() };
            parts.push(Part::If { condition: condition.to_owned(), then, otherwise });
        } else if let Some(name) = action.strip_prefix("define ") {
            let (inner, _) = parse(tokens, templates);
            templates.insert(name.trim_matches('"').to_owned(), inner);
        } else if let Some(call) = action.strip_prefix("template ") {
            let name = call.strip_suffix(" .").expect("a template is given everything");
            parts.push(Part::Template(name.trim_matches('"').to_owned()));
        } else {
            parts.push(Part::Value(action));
        }
    }
    (parts, String::new())
}

/// What an expression without pipes is: `var "name" .`, a text, or `eq` and `ne` of such.
fn value(expression: &str, values: &Values) -> Value {
    let expression = expression.trim();
    if let Some(name) = expression.strip_prefix("var \"").and_then(|rest| rest.strip_suffix("\" .")) {
        return values.get(name).unwrap_or_else(|| panic!("the pack has no variable {name}")).clone();
    }
    if let Some(text) = expression.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        return Value::from(text);
    }
    let (function, rest) = expression.split_once(" (").unwrap_or_else(|| panic!("not known here: {expression}"));
    let (left, right) = rest.split_once(')').unwrap_or_else(|| panic!("not known here: {expression}"));
    let is_equal = value(left, values) == value(right, values);
    match function {
        "eq" => Value::from(is_equal),
        "ne" => Value::from(!is_equal),
        other => panic!("no function {other}"),
    }
}

fn render(parts: &[Part], values: &Values, templates: &Templates) -> Result<String, String> {
    let mut rendered = String::new();
    for part in parts {
        match part {
            Part::Text(text) => rendered.push_str(text),
            Part::Template(name) => rendered.push_str(&render(&templates[name], values, templates)?),
            Part::If { condition, then, otherwise } => {
                let is_true = value(condition, values) == Value::from(true);
                rendered.push_str(&render(if is_true { then } else { otherwise }, values, templates)?);
            }
            Part::Value(action) => {
                if let Some(message) = action.strip_prefix("fail ") {
                    return Err(message.to_owned());
                }
                let (expression, function) = action.split_once(" | ").unwrap_or((action, ""));
                let value = value(expression, values);
                match (function, &value) {
                    ("", Value::String(text)) => rendered.push_str(text),
                    ("quote", Value::String(text)) => rendered.push_str(&format!("{text:?}")),
                    ("toJson", value) => rendered.push_str(&serde_json::to_string(value).unwrap()),
                    (function, value) => panic!("no {function:?} of {value:?}"),
                }
            }
        }
    }
    Ok(rendered)
}

/// The jobs that the pack makes of these values, by the names of their templates. Errors: what the pack refuses.
fn jobs(given: &[(&str, Value)]) -> Result<BTreeMap<String, Body>, String> {
    let mut values = defaults();
    for (name, value) in given {
        values.insert((*name).to_owned(), value.clone());
    }
    let mut templates = Templates::new();
    let mut files = Vec::new();
    for entry in fs::read_dir(root().join(PACK).join("templates")).unwrap() {
        let name = entry.unwrap().file_name().to_str().unwrap().to_owned();
        let source = read(&format!("{PACK}/templates/{name}"));
        let (parts, _) = parse(&mut tokens(&source).into_iter(), &mut templates);
        files.push((name, parts));
    }
    let mut jobs = BTreeMap::new();
    for (name, parts) in files.iter().filter(|(name, _)| !name.starts_with('_')) {
        let job = name.strip_suffix(".nomad.tpl").unwrap_or_else(|| panic!("{name} is no job"));
        let rendered = render(parts, &values, &templates)?;
        if !rendered.trim().is_empty() {
            let body = hcl::parse(&rendered).unwrap_or_else(|err| panic!("{name}: {err}\n{rendered}"));
            jobs.insert(job.to_owned(), evaluated(body, Values::new()));
        }
    }
    Ok(jobs)
}

/// The variables of the pack that have a default, with it.
fn defaults() -> Values {
    let body = hcl::parse(&read(&format!("{PACK}/variables.hcl"))).unwrap();
    let value = |body: &Body| attribute(body, "default").map(|default| Value::from(default.clone()));
    let variables = blocks(&body, "variable").into_iter();
    variables.filter_map(|block| Some((block.labels()[0].as_str().to_owned(), value(&block.body)?))).collect()
}

/// The job of a job file of the guide, with values for its variables.
fn job_file(name: &str, given: &[(&str, &str)]) -> Body {
    let body = hcl::parse(&read(&format!("nomad/{name}.nomad.hcl"))).unwrap();
    let defaults = blocks(&body, "variable").into_iter().filter_map(|block| {
        let default = attribute(&block.body, "default")?;
        Some((block.labels()[0].as_str().to_owned(), Value::from(default.clone())))
    });
    let given = given.iter().map(|(name, value)| ((*name).to_owned(), Value::from(*value)));
    let variables: Values = defaults.chain(given).collect();
    evaluated(Body::from(vec![blocks(&body, "job")[0].clone()]), variables)
}

/// With what its expressions give. What Nomad fills in on each client stays as it is written.
fn evaluated(body: Body, variables: Values) -> Body {
    let mut context = Context::new();
    context.declare_var("var", Value::from_iter(variables));
    context.declare_var("NOMAD_SECRETS_DIR", "${NOMAD_SECRETS_DIR}");
    let privileged = Value::from_iter([("enabled", Value::from("${attr.driver.docker.privileged.enabled}"))]);
    let docker = Value::from_iter([("privileged", privileged)]);
    context.declare_var("attr", Value::from_iter([("driver", Value::from_iter([("docker", docker)]))]));
    body.evaluate(&context).unwrap()
}

/// Without the order of attributes, which means nothing.
fn sorted(body: &Body) -> Value {
    hcl::from_body(body.clone()).unwrap()
}

fn owner() -> (&'static str, Value) {
    ("owner", Value::from("cluster"))
}

#[test]
fn the_pack_is_the_job_files() {
    let values = [("owner", "cluster"), ("region", "fra1")];
    let monolith = jobs(&[owner()]).unwrap();
    assert_eq!(monolith.keys().collect::<Vec<_>>(), ["plugin"]);
    assert_eq!(sorted(&monolith["plugin"]), sorted(&job_file("plugin", &values)));
    let split = jobs(&[owner(), ("mode", Value::from("split")), ("do_region", Value::from("fra1"))]).unwrap();
    assert_eq!(split.keys().collect::<Vec<_>>(), ["controller", "node"]);
    for (name, job) in &split {
        assert_eq!(sorted(job), sorted(&job_file(name, &values)), "{name}");
    }
}

#[test]
fn the_pack_refuses_what_would_start_a_wrong_plugin() {
    let refused = |given: &[(&str, Value)]| jobs(given).unwrap_err();
    assert!(refused(&[("owner", Value::from(""))]).contains("owner must not be empty"));
    assert!(refused(&[owner(), ("mode", Value::from("split"))]).contains("split needs do_region"));
    // What has no default must be given: nomad-pack refuses to render without it.
    assert!(!defaults().contains_key("owner"));
}

#[test]
fn the_pack_has_monitoring_and_node_pools_only_when_they_are_asked_for() {
    let mut help = bare(Path::new(PROGRAM));
    help.arg("--help");
    let help = String::from_utf8(run_to_end(help).unwrap().stdout).unwrap();
    for mode in ["monolith", "split"] {
        let given = [
            owner(),
            ("mode", Value::from(mode)),
            ("do_region", Value::from("fra1")),
            ("monitoring", Value::from(true)),
            ("node_pool", Value::from("all")),
            ("plugin_id", Value::from("other")),
        ];
        for (name, body) in jobs(&given).unwrap() {
            let [job] = blocks(&body, "job")[..] else { panic!("{name} is not one job") };
            assert_eq!(text(&job.body, "node_pool").unwrap(), "all", "{name}");
            let [config] = blocks(&body, "config")[..] else { panic!("{name} has no config") };
            let arguments = attribute(&config.body, "args").unwrap().to_string();
            assert!(arguments.contains("--debug-addr=0.0.0.0:9810") && help.contains("--debug-addr"), "{name}");
            let port = blocks(&body, "port")[0];
            assert_eq!((port.labels()[0].as_str(), text(&port.body, "to").unwrap().as_str()), ("health", "9810"));
            for used in [attribute(&config.body, "ports"), attribute(&blocks(&body, "service")[0].body, "port")] {
                assert!(used.unwrap().to_string().contains("\"health\""), "{name}");
            }
            assert_eq!(text(&blocks(&body, "csi_plugin")[0].body, "id").unwrap(), "other", "{name}");
        }
    }
}

#[test]
fn the_page_of_the_pack_has_its_variables() {
    let page = read(&format!("{PACK}/README.md"));
    let body = hcl::parse(&read(&format!("{PACK}/variables.hcl"))).unwrap();
    for variable in blocks(&body, "variable") {
        let name = variable.labels()[0].as_str();
        assert!(page.contains(&format!("| `{name}` |")), "the page does not explain {name}");
        let templates: String = fs::read_dir(root().join(PACK).join("templates"))
            .unwrap()
            .map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap())
            .collect();
        assert!(templates.contains(&format!("var \"{name}\" .")), "no template uses {name}");
    }
    let version = blocks(&hcl::parse(&read(&format!("{PACK}/metadata.hcl"))).unwrap(), "pack")[0].body.clone();
    assert_eq!(text(&version, "version").unwrap(), env!("CARGO_PKG_VERSION"));
    assert_eq!(text(&version, "name").unwrap(), "do_csi_plugin");
}
