//! Owns the step from `protos/csi.proto` to Rust: the messages and the service stubs, both written to `OUT_DIR`.
//!
//! It also has the program carry the C++ library of the core with it, where the compiler has that library as an archive.
//!
//! Does not own where that code appears in the crate or which lints it may break: that is `src/proto.rs`.
//! No `protoc` is run. rust-protobuf parses the file and writes the messages. The stubs are written here: grpcio's own
//! compiler needs rust-protobuf 2, which is no longer maintained.

use std::env;
use std::error::Error;
use std::fmt::{Display, Write as _};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use protobuf::descriptor::{MethodDescriptorProto, ServiceDescriptorProto};
use protobuf_codegen::{Codegen, Customize};
use protobuf_parse::Parser;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const PROTO_DIR: &str = "protos";
const PROTO_FILE: &str = "csi.proto";

fn main() -> Result<()> {
    let proto = Path::new(PROTO_DIR).join(PROTO_FILE);
    println!("cargo::rerun-if-changed={}", proto.display());
    let out = env::var_os("OUT_DIR").ok_or("OUT_DIR is not set; cargo sets it for build scripts")?;
    let out = PathBuf::from(out);
    write_messages(&proto, &out)?;
    write_stubs(&proto, &out)?;
    link_cxx_library(&out)
}

/// Puts the archive of the C++ library where the linker looks first, so that it is linked into the program: of the shared library,
/// 2 MB on its own, the core uses little. Without the archive the program needs the shared one.
fn link_cxx_library(out: &Path) -> Result<()> {
    const ARCHIVE: &str = "libstdc++.a";
    println!("cargo::rerun-if-env-changed=CXX");
    let compiler = env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let printed = Command::new(compiler).arg(format!("-print-file-name={ARCHIVE}")).output();
    let printed = printed.map_err(while_doing("asking the C++ compiler for its library"))?.stdout;
    let archive = PathBuf::from(String::from_utf8(printed)?.trim());
    // Of what it does not have, the compiler prints the bare name.
    if !archive.is_absolute() {
        return Ok(());
    }
    let directory = out.join("cxx");
    fs::create_dir_all(&directory)?;
    fs::copy(archive, directory.join(ARCHIVE)).map_err(while_doing("copying the C++ library"))?;
    println!("cargo::rustc-link-search=native={}", directory.display());
    Ok(())
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
    let parsed = Parser::new()
        .pure()
        .include(PROTO_DIR)
        .input(proto)
        .file_descriptor_set()
        .map_err(while_doing("parsing the interface"))?;
    let mut code = String::new();
    for file in parsed.file.iter().filter(|file| file.name() == PROTO_FILE) {
        for service in &file.service {
            let service = Service::read(file.package(), service)?;
            code.push_str(&service.stubs()?);
        }
    }
    let path = out.join("csi_grpc.rs");
    fs::write(&path, code).map_err(while_doing(&format!("writing {}", path.display())))?;
    Ok(())
}

/// A service, with what its code needs to know of it.
struct Service {
    name: String,
    methods: Vec<Method>,
}

/// One call of a service.
struct Method {
    /// Name of the function.
    function: String,
    /// Name of the constant that describes the call to grpcio.
    constant: String,
    /// Name on the wire.
    path: String,
    /// Types of request and response.
    request: String,
    response: String,
}

impl Service {
    fn read(package: &str, service: &ServiceDescriptorProto) -> Result<Service> {
        let name = service.name().to_owned();
        let methods =
            service.method.iter().map(|method| Method::read(package, &name, method)).collect::<Result<_>>()?;
        Ok(Service { name, methods })
    }

    fn stubs(&self) -> Result<String> {
        let mut code = String::new();
        for method in &self.methods {
            method.write_constant(&mut code)?;
        }
        self.write_client(&mut code)?;
        self.write_trait(&mut code)?;
        self.write_create(&mut code)?;
        Ok(code)
    }

    fn write_client(&self, code: &mut String) -> Result<()> {
        let name = &self.name;
        writeln!(code, "#[derive(Clone)]\npub struct {name}Client {{ client: ::grpcio::Client }}")?;
        writeln!(code, "impl {name}Client {{")?;
        writeln!(code, "    pub fn new(channel: ::grpcio::Channel) -> Self {{")?;
        writeln!(code, "        {name}Client {{ client: ::grpcio::Client::new(channel) }}\n    }}")?;
        for method in &self.methods {
            method.write_calls(code)?;
        }
        writeln!(code, "}}")?;
        Ok(())
    }

    fn write_trait(&self, code: &mut String) -> Result<()> {
        writeln!(code, "pub trait {} {{", self.name)?;
        for Method { function, request, response, .. } in &self.methods {
            writeln!(
                code,
                "    fn {function}(&mut self, ctx: ::grpcio::RpcContext, _req: {request}, \
                 sink: ::grpcio::UnarySink<{response}>) {{ ::grpcio::unimplemented_call!(ctx, sink) }}"
            )?;
        }
        writeln!(code, "}}")?;
        Ok(())
    }

    fn write_create(&self, code: &mut String) -> Result<()> {
        let (create, name) = (snake_case(&self.name), &self.name);
        writeln!(code, "pub fn create_{create}<S: {name} + Send + Clone + 'static>(s: S) -> ::grpcio::Service {{")?;
        writeln!(code, "    let mut builder = ::grpcio::ServiceBuilder::new();")?;
        for Method { function, constant, .. } in &self.methods {
            writeln!(code, "    let mut instance = s.clone();")?;
            writeln!(code, "    builder = builder.add_unary_handler(&{constant}, move |ctx, req, sink| {{")?;
            writeln!(code, "        instance.{function}(ctx, req, sink)\n    }});")?;
        }
        writeln!(code, "    builder.build()\n}}")?;
        Ok(())
    }
}

impl Method {
    fn read(package: &str, service: &str, method: &MethodDescriptorProto) -> Result<Method> {
        let name = method.name();
        if method.client_streaming() || method.server_streaming() {
            return Err(format!("{service}.{name} is a stream, and stubs are made of single answers only").into());
        }
        let prefix = format!(".{package}.");
        let message = |full: &str| match full.strip_prefix(&prefix) {
            Some(message) if !message.contains('.') => Ok(format!("super::csi::{message}")),
            Some(_) | None => Err(format!("{service}.{name}: {full} is no message of {package}")),
        };
        let function = snake_case(name);
        Ok(Method {
            constant: format!("METHOD_{}_{}", snake_case(service), function).to_uppercase(),
            path: format!("/{package}.{service}/{name}"),
            request: message(method.input_type())?,
            response: message(method.output_type())?,
            function,
        })
    }

    fn write_constant(&self, code: &mut String) -> Result<()> {
        let Method { constant, path, request, response, .. } = self;
        writeln!(code, "const {constant}: ::grpcio::Method<{request}, {response}> = ::grpcio::Method {{")?;
        writeln!(code, "    ty: ::grpcio::MethodType::Unary,\n    name: {path:?},")?;
        for marshaller in ["req_mar", "resp_mar"] {
            writeln!(code, "    {marshaller}: ::grpcio::Marshaller {{ ser: ::grpcio::pb_ser, de: ::grpcio::pb_de }},")?;
        }
        writeln!(code, "}};")?;
        Ok(())
    }

    fn write_calls(&self, code: &mut String) -> Result<()> {
        let Method { function, constant, request, response, .. } = self;
        let receiver = format!("::grpcio::ClientUnaryReceiver<{response}>");
        for (suffix, call, result) in [("", "unary_call", response), ("_async", "unary_call_async", &receiver)] {
            let named = format!("{function}{suffix}");
            writeln!(code, "    pub fn {named}(&self, req: &{request}) -> ::grpcio::Result<{result}> {{")?;
            writeln!(code, "        self.{named}_opt(req, ::grpcio::CallOption::default())\n    }}")?;
            writeln!(
                code,
                "    pub fn {named}_opt(&self, req: &{request}, opt: ::grpcio::CallOption) -> ::grpcio::Result<{result}> {{"
            )?;
            writeln!(code, "        self.client.{call}(&{constant}, req, opt)\n    }}")?;
        }
        Ok(())
    }
}

/// `GetPluginInfo` as `get_plugin_info`.
fn snake_case(name: &str) -> String {
    let mut snake = String::new();
    for (position, c) in name.char_indices() {
        if c.is_ascii_uppercase() && position > 0 {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    snake
}

/// Writes generated code without its inner attributes and inner docs.
///
/// `include!` accepts neither. They hold nothing but lint allowances, and one of those, for `unsafe_code`, would not
/// compile in a crate that forbids unsafe code, although rust-protobuf writes none.
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
