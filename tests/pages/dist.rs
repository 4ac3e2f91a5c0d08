//! Owns the manual page and the completions of shells, which are made of the command line itself.

use std::error::Error;
use std::fs;
use std::path::Path;

use clap::Command;
use clap_complete::aot::{Shell, generate_to};
use clap_mangen::Man;
use do_csi_plugin::config;
use do_csi_plugin::config::command::subcommands;

/// Writes the manual page and the completions for bash, fish and zsh into a directory, which is made if it is not there.
pub(crate) fn write_dist(directory: &Path) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(directory)?;
    let mut command = config::command().subcommands(subcommands());
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        generate_to(shell, &mut command, "do-csi-plugin", directory)?;
    }
    join_commands(&directory.join("do-csi-plugin.bash"))?;
    // Without a date, so that two builds write the same bytes.
    let mut page = Vec::new();
    Man::new(config::command()).section("8").render(&mut page)?;
    for command in subcommands() {
        page.extend(section_of(command)?.bytes());
    }
    fs::write(directory.join("do-csi-plugin.8"), page)?;
    Ok(())
}

/// Has bash find the commands: of a program with dashes in its name, clap_complete 4.6 writes the name of a command in two ways,
/// once where it is read and once where its flags are.
fn join_commands(file: &Path) -> Result<(), Box<dyn Error>> {
    let text = fs::read_to_string(file)?;
    fs::write(file, text.replace("do__subcmd__csi__subcmd__plugin__", "do__csi__plugin__"))?;
    Ok(())
}

/// The part of the manual page about a command, with the options that it has beside the plugin's own.
fn section_of(command: Command) -> Result<String, Box<dyn Error>> {
    let own: Vec<String> = config::command().get_arguments().map(|arg| arg.get_id().to_string()).collect();
    let name = command.get_name().to_owned();
    let without_shared = command
        .mut_args(|arg| if own.contains(&arg.get_id().to_string()) { arg.hide(true) } else { arg })
        .bin_name(format!("do-csi-plugin {name}"));
    let man = Man::new(without_shared);
    let mut text = Vec::new();
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    let text = String::from_utf8(text)?;
    Ok(text
        .replace(".SH SYNOPSIS", &format!(".SH \"COMMAND {}\"", name.to_uppercase()))
        .replace(".SH DESCRIPTION", ".PP")
        .replace(".SH OPTIONS", ".PP"))
}
