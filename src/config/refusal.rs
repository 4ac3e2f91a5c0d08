//! What a command line that is not taken is answered with.
//!
//! Owns the hints: the flag or the command that was meant, how a value is written, which variable a value is from. Each answer is
//! one line.

use std::ffi::{OsStr, OsString};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, CommandFactory};

use crate::config::parse::parse_bool;
use crate::config::{Early, Flags, SWITCHES, variable};
use crate::spelling::distance;

/// The names of the commands.
const COMMANDS: [&str; 3] = ["volumes", "doctor", "snapshot"];
/// In how many places a word may differ from a command's name and still be meant as it.
const SLIPS: usize = 2;

/// What a command line that clap does not take ends with; `args` is that line.
pub(super) fn early(err: &clap::Error, args: &[OsString]) -> Early {
    use clap::error::ErrorKind::{DisplayHelp, DisplayVersion};
    if matches!(err.kind(), DisplayHelp | DisplayVersion) {
        return Early::Answer(err.to_string());
    }
    let text = err.to_string();
    // The first paragraph says what is wrong, and which values there are; after it come guesses and the usage.
    let paragraph: Vec<&str> = text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
    let line = paragraph.join(" ");
    let line = line.strip_prefix("error: ").unwrap_or(&line);
    let hint = switch_before_value(args).map(|flag| format!("a switch takes its value after an equals sign, {flag}"));
    match hint.or_else(|| meant_flag(err)).or_else(|| meant_command(err, args)).or_else(|| variable_of(err, args)) {
        Some(hint) => Early::Refusal(format!("{line}; {hint} (see --help)")),
        None => Early::Refusal(format!("{line} (see --help)")),
    }
}

/// The flag that was probably meant by one that does not exist.
fn meant_flag(err: &clap::Error) -> Option<String> {
    let ContextValue::String(flag) = err.get(ContextKind::SuggestedArg)? else { return None };
    Some(format!("did you mean {flag}?"))
}

/// The variable that a value is from which clap does not take: it names the flag alone.
fn variable_of(err: &clap::Error, args: &[OsString]) -> Option<String> {
    let ContextValue::String(shown) = err.get(ContextKind::InvalidArg)? else { return None };
    let flag = shown.split(' ').next()?;
    let is_given = args.iter().filter_map(|arg| arg.to_str()).any(|arg| arg.split('=').next() == Some(flag));
    let flags = Flags::command();
    let arg =
        flags.get_arguments().find(|arg| arg.get_long() == flag.strip_prefix("--") && arg.get_long().is_some())?;
    let name = arg.get_env().and_then(OsStr::to_str).filter(|name| !is_given && variable(name).is_some())?;
    Some(format!("it is from {name}"))
}

/// A switch that is followed by the word that was meant as its value, as both should have been written.
fn switch_before_value(args: &[OsString]) -> Option<String> {
    let is_switch = |flag: &str| SWITCHES.iter().any(|name| flag.strip_prefix("--") == Some(&name.replace('_', "-")));
    let takes = |flag: &str, value: &str| match flag {
        "--watch" => value.parse::<u64>().is_ok(),
        flag => is_switch(flag) && parse_bool(flag, value).is_ok(),
    };
    let pairs =
        args.iter().zip(args.iter().skip(1)).filter_map(|(flag, value)| Some((flag.to_str()?, value.to_str()?)));
    let mut meant = pairs.filter(|(flag, value)| takes(flag, value));
    meant.next().map(|(flag, value)| format!("{flag}={value}"))
}

/// What was probably meant by a word that stands where none is taken.
fn meant_command(err: &clap::Error, args: &[OsString]) -> Option<String> {
    let ContextValue::String(word) = err.get(ContextKind::InvalidArg)? else { return None };
    if err.kind() != ErrorKind::UnknownArgument || word.starts_with('-') {
        return None;
    }
    // The program's own name may stand before it.
    let command = args.iter().take(2).filter_map(|word| word.to_str()).find(|word| COMMANDS.contains(word));
    match command {
        Some("volumes") => return Some(format!("of one volume tells `do-csi-plugin doctor {word}`")),
        Some("doctor") => return Some("it looks at one volume or at all".to_owned()),
        Some(_) | None => {}
    }
    if COMMANDS.contains(&word.as_str()) {
        return Some(format!("a command comes first: do-csi-plugin {word}"));
    }
    let nearest = COMMANDS.into_iter().min_by_key(|name| distance(name, word))?;
    Some(if distance(nearest, word) <= SLIPS {
        format!("did you mean the command {nearest}?")
    } else {
        "the commands are volumes, doctor and snapshot".to_owned()
    })
}

/// What is wrong with a setting, with the variable that it is from: who has set that has given no flag. Pure.
pub(super) fn with_variable(line: String, matches: &ArgMatches) -> String {
    let Some((flag, why)) = line.split_once(": ") else { return line };
    let is_it = |arg: &Arg| flag.strip_prefix("--").is_some_and(|flag| arg.get_long() == Some(flag));
    let is_of_variable = |arg: &Arg| matches.value_source(arg.get_id().as_str()) == Some(ValueSource::EnvVariable);
    let flags = Flags::command();
    let variable =
        flags.get_arguments().find(|arg| is_it(arg)).filter(|arg| is_of_variable(arg)).and_then(Arg::get_env);
    match variable {
        Some(variable) => format!("{} ({flag}): {why}", variable.to_string_lossy()),
        None => line,
    }
}
