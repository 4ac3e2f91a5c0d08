//! The manual page, the completions of shells and the help, which are made of the command line: each has every flag.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use crate::dist::write_dist;
use crate::support::single_plugin::bare;

/// The headings of the help, those for tests last.
const HEADINGS: [&str; 5] = ["Service:", "DigitalOcean:", "Node:", "Log:", "For tests and unusual places:"];

fn flags() -> Vec<String> {
    do_csi_plugin::config::command().get_arguments().filter_map(|arg| arg.get_long().map(str::to_owned)).collect()
}

fn written() -> TempDir {
    let dir = TempDir::new().unwrap();
    write_dist(dir.path()).unwrap();
    dir
}

#[test]
fn every_flag_is_in_the_manual_page_and_in_each_completion() {
    let dir = written();
    for (file, mark) in [
        ("do-csi-plugin.8", "\\-\\-"),
        ("do-csi-plugin.bash", "--"),
        ("do-csi-plugin.fish", "-l "),
        ("_do-csi-plugin", "--"),
    ] {
        let text = fs::read_to_string(dir.path().join(file)).unwrap();
        for flag in flags() {
            let shown = format!("{mark}{}", if file.ends_with(".8") { flag.replace('-', "\\-") } else { flag });
            assert!(text.contains(&shown), "{file} has no {shown}");
        }
    }
}

#[test]
fn bash_completes_a_flag_and_the_values_of_one() {
    let dir = written();
    let script = r#"
        source "$1"
        function=$(complete -p do-csi-plugin | sed 's/.*-F \([^ ]*\).*/\1/')
        complete_word() {
            COMP_WORDS=(do-csi-plugin "$@")
            COMP_CWORD=$#
            COMPREPLY=()
            "$function" do-csi-plugin "${COMP_WORDS[$COMP_CWORD]}" "${COMP_WORDS[$COMP_CWORD - 1]}"
            echo "${COMPREPLY[@]}"
        }
        complete_word --token-f
        complete_word --mode c
        complete_word --log-format ""
    "#;
    let output = bare(Path::new("bash"))
        .args(["-c", script, "bash"])
        .arg(dir.path().join("do-csi-plugin.bash"))
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout.clone()).unwrap();
    assert_eq!(said.lines().collect::<Vec<_>>(), ["--token-file", "controller", "text logfmt json"], "{output:?}");
}

#[test]
fn the_help_has_each_flag_under_a_heading_and_those_for_tests_last() {
    let help = do_csi_plugin::config::command().render_help().to_string();
    let at =
        HEADINGS.map(|heading| help.find(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("{heading}: {help}")));
    assert!(at.is_sorted(), "{at:?}");
    for arg in do_csi_plugin::config::command().get_arguments() {
        let is_own = ["help", "version"].contains(&arg.get_id().as_str());
        assert!(is_own || arg.get_help_heading().is_some(), "{} has no heading", arg.get_id());
        let is_for_tests = arg.get_help().is_some_and(|help| help.to_string().contains("for tests"));
        let heading = arg.get_help_heading().unwrap_or_default();
        assert!(!is_for_tests || heading.starts_with("For tests"), "{} is under {heading}", arg.get_id());
    }
}
