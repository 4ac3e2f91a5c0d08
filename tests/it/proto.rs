//! Owns the check that the interface we compile is the CSI 1.13 interface, with what only 1.12 has beside it. The fixtures
//! `csi-1.13.tsv` and `csi-1.12.tsv` state the standards as rows of facts; the compiled descriptor is written as the same kind of
//! rows, and it must have those of both and no other.
//!
//! Does not own what the driver does with a message, only its names, numbers and types on the wire.

use std::collections::BTreeSet;

use do_csi_plugin::proto::csi;
use do_csi_plugin::proto::csi::exts;
use protobuf::descriptor::field_descriptor_proto::Label;
use protobuf::descriptor::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto, MethodDescriptorProto,
};

const FACTS: [&str; 2] = [include_str!("../fixtures/csi-1.13.tsv"), include_str!("../fixtures/csi-1.12.tsv")];
const PACKAGE: &str = "csi.v1.";
const SERVED: [&str; 3] = ["Identity", "Controller", "Node"];

/// One row of the facts file: what the interface holds at one place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Fact {
    kind: String,
    owner: String,
    name: String,
    number: String,
    wire_type: String,
    remark: String,
}

#[test]
fn the_interface_is_csi_1_13_and_what_1_12_had_and_nothing_else() {
    let standard: BTreeSet<Fact> = FACTS.iter().flat_map(|facts| served_facts(&all_facts(facts))).collect();
    let ours = facts_of_file(csi::file_descriptor().proto());

    let missing: Vec<&Fact> = standard.difference(&ours).collect();
    let extra: Vec<&Fact> = ours.difference(&standard).collect();
    assert!(missing.is_empty() && extra.is_empty(), "missing: {missing:#?}\nextra: {extra:#?}");
}

#[test]
fn what_1_13_took_away_is_the_condition_of_a_volume() {
    let [newest, before] = FACTS.map(all_facts);
    let reserved: Vec<&Fact> = newest.iter().filter(|fact| fact.kind == "reserved").collect();
    assert_eq!(reserved.len(), 5, "{reserved:#?}");
    for gone in reserved {
        let is_it = |fact: &&Fact| fact.owner == gone.owner && fact.number == gone.number;
        let name = before.iter().find(is_it).map(|fact| fact.name.to_lowercase());
        assert_eq!(name.as_deref(), Some("volume_condition"), "{gone:?}");
        assert!(!newest.iter().any(|fact| is_it(&fact) && fact.kind != "reserved"), "{gone:?} means something else");
    }
}

#[test]
fn the_package_and_syntax_are_the_standard_ones() {
    let file = csi::file_descriptor().proto();
    assert_eq!(file.package(), "csi.v1");
    assert_eq!(file.syntax(), "proto3");
}

#[test]
fn exactly_the_secrets_fields_are_marked_secret() {
    let mut fields = Vec::new();
    for message in &csi::file_descriptor().proto().message_type {
        collect_fields(message, &mut fields);
    }
    assert!(fields.iter().any(|field| field.name() == "secrets"));
    for field in fields {
        let marked = exts::csi_secret.get(field.options.get_or_default()) == Some(true);
        assert_eq!(marked, field.name() == "secrets", "{field}");
    }
}

fn collect_fields<'a>(message: &'a DescriptorProto, fields: &mut Vec<&'a FieldDescriptorProto>) {
    fields.extend(&message.field);
    for nested in &message.nested_type {
        collect_fields(nested, fields);
    }
}

fn all_facts(text: &str) -> Vec<Fact> {
    text.lines().filter(|line| !line.starts_with('#')).map(parse_fact).collect()
}

fn parse_fact(line: &str) -> Fact {
    let columns: Vec<&str> = line.split('\t').collect();
    let [kind, owner, name, number, wire_type, remark] = columns[..] else {
        panic!("not six columns: {line:?}");
    };
    fact(kind, owner, name, number, wire_type, remark)
}

fn fact(kind: &str, owner: &str, name: &str, number: &str, wire_type: &str, remark: &str) -> Fact {
    Fact {
        kind: kind.to_owned(),
        owner: owner.to_owned(),
        name: name.to_owned(),
        number: number.to_owned(),
        wire_type: wire_type.to_owned(),
        remark: remark.to_owned(),
    }
}

/// The facts about the served services, every type they reach, and the one extension that marks secrets.
fn served_facts(facts: &[Fact]) -> BTreeSet<Fact> {
    let types = reached_types(facts);
    let is_served = |fact: &&Fact| match fact.kind.as_str() {
        "extension" => fact.name == "csi_secret",
        "rpc" => SERVED.contains(&fact.owner.as_str()),
        "reserved" => false,
        _ => types.contains(fact.owner.as_str()),
    };
    facts.iter().filter(is_served).cloned().collect()
}

/// Names of the messages and enums that a served call carries, directly or within another.
fn reached_types(facts: &[Fact]) -> BTreeSet<&str> {
    let calls = facts.iter().filter(|fact| fact.kind == "rpc" && SERVED.contains(&fact.owner.as_str()));
    let mut to_visit: Vec<&str> = calls.flat_map(types_named_by).collect();
    let mut reached = BTreeSet::new();
    while let Some(name) = to_visit.pop() {
        if reached.insert(name) {
            let fields = facts.iter().filter(|fact| fact.kind == "field" && fact.owner == name);
            to_visit.extend(fields.flat_map(types_named_by));
        }
    }
    reached
}

/// Types of our package in a type column: `message csi.v1.A`, `enum csi.v1.A.B` or `csi.v1.A -> csi.v1.B`.
fn types_named_by(fact: &Fact) -> impl Iterator<Item = &str> {
    fact.wire_type.split(' ').filter_map(|word| word.strip_prefix(PACKAGE))
}

fn facts_of_file(file: &FileDescriptorProto) -> BTreeSet<Fact> {
    let mut facts = BTreeSet::new();
    for extension in &file.extension {
        facts.insert(fact_of_extension(extension));
    }
    for service in &file.service {
        facts.extend(service.method.iter().map(|method| fact_of_call(service.name(), method)));
    }
    for message in &file.message_type {
        add_message(&mut facts, message.name(), message);
    }
    for enumeration in &file.enum_type {
        add_enum(&mut facts, enumeration.name(), enumeration);
    }
    facts
}

fn fact_of_extension(extension: &FieldDescriptorProto) -> Fact {
    let extended = extension.extendee().trim_start_matches('.');
    let number = extension.number().to_string();
    fact("extension", extended, extension.name(), &number, &type_of_field(extension), "")
}

/// A stream, which the standard has in no served call, shows as a word that no fact has.
fn fact_of_call(service: &str, method: &MethodDescriptorProto) -> Fact {
    let side = |is_stream: bool, name: &str| {
        let stream = if is_stream { "stream " } else { "" };
        format!("{stream}{}", name.trim_start_matches('.'))
    };
    let request = side(method.client_streaming(), method.input_type());
    let response = side(method.server_streaming(), method.output_type());
    fact("rpc", service, method.name(), "", &format!("{request} -> {response}"), "")
}

fn add_message(facts: &mut BTreeSet<Fact>, path: &str, message: &DescriptorProto) {
    let remark = if message.options.map_entry() { "map_entry" } else { "" };
    facts.insert(fact("message", path, "", "", "", remark));
    for field in &message.field {
        facts.insert(fact_of_field(path, message, field));
    }
    for nested in &message.nested_type {
        add_message(facts, &format!("{path}.{}", nested.name()), nested);
    }
    for enumeration in &message.enum_type {
        add_enum(facts, &format!("{path}.{}", enumeration.name()), enumeration);
    }
}

fn add_enum(facts: &mut BTreeSet<Fact>, path: &str, enumeration: &EnumDescriptorProto) {
    for value in &enumeration.value {
        facts.insert(fact("enum", path, value.name(), &value.number().to_string(), "", ""));
    }
}

fn fact_of_field(path: &str, message: &DescriptorProto, field: &FieldDescriptorProto) -> Fact {
    let remark = if field.proto3_optional() {
        "optional".to_owned()
    } else if let Some(index) = field.oneof_index {
        let index = usize::try_from(index).unwrap();
        format!("oneof={}", message.oneof_decl[index].name())
    } else if field.label() == Label::LABEL_REPEATED {
        "repeated".to_owned()
    } else {
        String::new()
    };
    let number = field.number().to_string();
    fact("field", path, field.name(), &number, &type_of_field(field), &remark)
}

/// `TYPE_INT64` is `int64` in the facts; a message or an enum is followed by its full name.
fn type_of_field(field: &FieldDescriptorProto) -> String {
    let kind = format!("{:?}", field.type_()).to_lowercase();
    let kind = kind.trim_start_matches("type_");
    match field.type_name().trim_start_matches('.') {
        "" => kind.to_owned(),
        name => format!("{kind} {name}"),
    }
}
