//! The manual page, the completions of shells and the help, which are made of the command line: each has every flag.

use std::fs;
use std::path::Path;

use do_csi_plugin::config::command::subcommands;
use tempfile::TempDir;

use crate::dist::write_dist;
use crate::sbom;
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
fn every_command_is_in_the_manual_page_and_in_each_completion_with_its_own_flags() {
    let dir = written();
    let page = fs::read_to_string(dir.path().join("do-csi-plugin.8")).unwrap();
    let parts: Vec<&str> = page.split(".SH \"COMMAND ").skip(1).collect();
    assert_eq!(parts.len(), subcommands().len(), "{page}");
    for (command, part) in subcommands().iter().zip(parts) {
        assert!(part.starts_with(&command.get_name().to_uppercase()), "{part}");
        let shared = flags();
        for flag in command.get_arguments().filter_map(|arg| arg.get_long()) {
            let is_shared = shared.iter().any(|known| known == flag);
            let shown = format!("\\-\\-{}", flag.replace('-', "\\-"));
            assert!(is_shared || flag == "help" || part.contains(&shown), "{} {flag}: {part}", command.get_name());
            for file in ["do-csi-plugin.bash", "do-csi-plugin.fish", "_do-csi-plugin"] {
                let text = fs::read_to_string(dir.path().join(file)).unwrap();
                assert!(text.contains(command.get_name()) && text.contains(flag), "{file}: {flag}");
            }
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
        complete_word doct
        complete_word doctor --fi
        complete_word snapshot --keep daily=7 --dry
    "#;
    let output = bare(Path::new("bash"))
        .args(["-c", script, "bash"])
        .arg(dir.path().join("do-csi-plugin.bash"))
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout.clone()).unwrap();
    assert_eq!(
        said.lines().collect::<Vec<_>>(),
        ["--token-file", "controller", "text logfmt json", "doctor", "--fix", "--dry-run"],
        "{output:?}"
    );
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

#[test]
fn the_list_of_parts_has_the_packages_of_the_image_and_every_weakness_that_the_page_on_security_names() {
    let dir = TempDir::new().unwrap();
    let status = "Package: e2fsprogs\nArchitecture: amd64\nVersion: 1.47.2-3+b3\n";
    fs::write(dir.path().join("e2fsprogs"), status).unwrap();
    let text = sbom::document("ureq v3.5.2|MIT OR Apache-2.0\n", dir.path()).unwrap();
    assert!(text.contains("pkg:deb/debian/e2fsprogs@1.47.2-3%2Bb3?arch=amd64"), "{text}");
    assert!(text.contains("pkg:cargo/ureq@3.5.2"), "{text}");
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/security.md");
    let page = fs::read_to_string(page).unwrap();
    let (_, section) = page.split_once("## Known weaknesses of gRPC").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let named: Vec<&str> =
        section.split("CVE-").skip(1).map(|rest| rest.split([',', ' ', ')']).next().unwrap()).collect();
    assert!(named.len() > 10, "{named:?}");
    for name in named {
        assert!(text.contains(&format!("\"CVE-{name}\"")), "CVE-{name} is on the page, not in the list");
    }
}
