//! Writes what is made of the command line: `do-pages flags PAGE` brings the page of flags up to date, `do-pages dist DIRECTORY`
//! writes the manual page and the completions of three shells, `do-pages sbom FILE PACKAGES` the list of parts (CycloneDX), and
//! `do-pages licenses FILE` the texts of their licences, both from what `cargo tree --prefix none --format '{p}|{l}'` prints to it.

#![allow(clippy::expect_used, clippy::print_stderr, reason = "a tool of the build may fail loudly")]

mod dist;
mod flags;
mod licenses;
mod sbom;

use std::error::Error;
use std::fs;
use std::io::read_to_string;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["flags", page] => write_flags(Path::new(page)),
        ["dist", directory] => dist::write_dist(Path::new(directory)),
        ["sbom", file, packages] => write_sbom(Path::new(file), Path::new(packages)),
        ["licenses", file] => write_licenses(Path::new(file)),
        _ => Err("usage: do-pages flags PAGE | dist DIRECTORY | sbom FILE PACKAGES | licenses FILE".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("do-pages: {err}");
            ExitCode::FAILURE
        }
    }
}

fn write_flags(page: &Path) -> Result<(), Box<dyn Error>> {
    fs::write(page, flags::page(&fs::read_to_string(page)?))?;
    Ok(())
}

fn write_licenses(file: &Path) -> Result<(), Box<dyn Error>> {
    fs::write(file, licenses::text(&read_to_string(std::io::stdin())?)?)?;
    Ok(())
}

fn write_sbom(file: &Path, packages: &Path) -> Result<(), Box<dyn Error>> {
    fs::write(file, sbom::document(&read_to_string(std::io::stdin())?, packages)?)?;
    Ok(())
}
