//! Owns the part of docs/flags.md that is made of the command line itself, so that the page is never older than the program.

use do_csi_plugin::config;

/// What stands around the part that is made.
const BEGIN: &str = "<!-- made by `make pages` -->\n";
const END: &str = "<!-- until here -->\n";

/// What the help of a flag says when the official driver does not have it.
const OURS: &str = "not in the official driver";

/// The page as it has to be: what people wrote, and between the marks what the program says of itself.
///
/// # Panics
/// When the page has no marks.
pub(crate) fn page(old: &str) -> String {
    let (before, rest) = old.split_once(BEGIN).expect("docs/flags.md has no mark where the flags begin");
    let (_, after) = rest.split_once(END).expect("docs/flags.md has no mark where the flags end");
    format!("{before}{BEGIN}{}{END}{after}", flags())
}

fn flags() -> String {
    let command = config::command();
    let shown = || command.get_arguments().filter_map(|arg| Some((arg.get_long()?, arg)));
    let mut table = "| flag | environment | default | official driver |\n|---|---|---|---|\n".to_owned();
    let mut texts = String::new();
    for (name, arg) in shown().filter(|(name, _)| !["help", "version"].contains(name)) {
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let variable = arg.get_env().and_then(|name| name.to_str()).map(|name| format!("`{name}`")).unwrap_or_default();
        let defaults: Vec<&str> = arg.get_default_values().iter().filter_map(|value| value.to_str()).collect();
        let default = defaults.join(" ");
        let default = if default.is_empty() { "none".to_owned() } else { format!("`{default}`") };
        let official = if help.contains(OURS) { "no" } else { "yes" };
        table.push_str(&format!("| [`--{name}`](#--{name}) | {variable} | {default} | {official} |\n"));
        let sentence = help.replace(&format!(" ({OURS})"), "").replace(&format!("({OURS}; "), "(");
        texts.push_str(&format!("\n### --{name}\n\n{}\n", as_sentence(&sentence)));
    }
    format!("\n{table}{texts}\n")
}

fn as_sentence(text: &str) -> String {
    let end = if text.ends_with(['.', '!', '?']) { "" } else { "." };
    format!("{text}{end}")
}
