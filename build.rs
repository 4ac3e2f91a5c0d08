//! Owns the step from `protos/csi.proto` to Rust: the messages and the service stubs, both written to `OUT_DIR`.
//!
//! Does not own where that code appears in the crate or which lints it may break: that is `src/proto.rs`.
//! No `protoc` is run. rust-protobuf 3 parses the file and writes the messages; grpcio's compiler writes the stubs, but
//! it knows rust-protobuf 2 only, so the descriptor crosses from one library to the other as bytes.

use std::env;
use std::error::Error;
use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};

use grpcio_compiler::codegen;
use protobuf::Message as _;
use protobuf_codegen::{Codegen, Customize};
use protobuf_parse::Parser;
use protobuf2::Message as _;
use protobuf2::descriptor::FileDescriptorSet;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const PROTO_DIR: &str = "protos";
const PROTO_FILE: &str = "csi.proto";

fn main() -> Result<()> {
    let proto = Path::new(PROTO_DIR).join(PROTO_FILE);
    println!("cargo::rerun-if-changed={}", proto.display());
    let out = env::var_os("OUT_DIR").ok_or("OUT_DIR is not set; cargo sets it for build scripts")?;
    let out = PathBuf::from(out);
    write_messages(&proto, &out)?;
    write_stubs(&proto, &out)
}

/// Writes `csi.rs`: a struct per message, an enum per enum.
fn write_messages(proto: &Path, out: &Path) -> Result<()> {
    Codegen::new()
        .pure()
        .include(PROTO_DIR)
        .input(proto)
        .out_dir(out)
        .customize(Customize::default().gen_mod_rs(false))
        .run()
        .map_err(while_doing("generating the messages"))?;
    let path = out.join("csi.rs");
    let code = fs::read_to_string(&path).map_err(while_doing("reading the generated messages"))?;
    write_includable(&path, &code)
}

/// Writes `csi_grpc.rs`: for each service a server trait, a `create_` function and a client.
fn write_stubs(proto: &Path, out: &Path) -> Result<()> {
    let files = read_descriptors(proto)?;
    for stub in codegen::r#gen(files.get_file(), &[PROTO_FILE.to_owned()]) {
        let code = String::from_utf8(stub.content).map_err(while_doing("reading the generated stubs"))?;
        write_includable(&out.join(stub.name), &code)?;
    }
    Ok(())
}

/// Parses the interface with rust-protobuf 3 and hands it over to rust-protobuf 2.
fn read_descriptors(proto: &Path) -> Result<FileDescriptorSet> {
    let parsed = Parser::new()
        .pure()
        .include(PROTO_DIR)
        .input(proto)
        .file_descriptor_set()
        .map_err(while_doing("parsing the interface"))?;
    let bytes = parsed.write_to_bytes().map_err(while_doing("encoding the descriptors"))?;
    let files = FileDescriptorSet::parse_from_bytes(&bytes).map_err(while_doing("decoding the descriptors"))?;
    Ok(files)
}

/// Writes generated code without its inner attributes and inner docs.
///
/// `include!` accepts neither. They hold nothing but lint allowances, and one of those, for `unsafe_code`, would not
/// compile in a crate that forbids unsafe code, although neither generator writes any.
fn write_includable(path: &Path, code: &str) -> Result<()> {
    let kept: String =
        code.split_inclusive('\n').filter(|line| !line.starts_with("#![") && !line.starts_with("//!")).collect();
    fs::write(path, kept).map_err(while_doing(&format!("writing {}", path.display())))?;
    Ok(())
}

/// Puts what was being done in front of an error and keeps the error's own chain of causes, where it has one.
fn while_doing<E: Display>(doing: &str) -> impl FnOnce(E) -> String {
    move |err| format!("{doing}: {err:#}")
}
