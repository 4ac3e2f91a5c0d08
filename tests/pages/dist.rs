//! Owns the manual page and the completions of shells, which are made of the command line itself.

use std::error::Error;
use std::fs;
use std::path::Path;

use clap_complete::aot::{Shell, generate_to};
use clap_mangen::Man;
use do_csi_plugin::config;

/// Writes the manual page and the completions for bash, fish and zsh into a directory, which is made if it is not there.
pub(crate) fn write_dist(directory: &Path) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(directory)?;
    let mut command = config::command();
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        generate_to(shell, &mut command, "do-csi-plugin", directory)?;
    }
    // Without a date, so that two builds write the same bytes.
    let mut page = Vec::new();
    Man::new(command).section("8").render(&mut page)?;
    fs::write(directory.join("do-csi-plugin.8"), page)?;
    Ok(())
}
