//! What a line of the log looks like: its sentence, and its keys with their values, in each of the forms.
//!
//! Owns the quoting: whatever a request or a tool said, a line is one line, and a value ends where it should. What is logged, and
//! where the line goes, is not known here.
//!
//! Every form has the same keys. `time`, `level` and `msg` are those of each line, then come `call` and `seq`, the RPC and the
//! number of the call, and what the call is about; then the line's own. A key that a line has itself is not repeated for its call.

use std::fmt::{self, Write};

use log::Record;
use log::kv::{Error, Key, Value, VisitSource, VisitValue};
use serde_json::{Map, Number};

use crate::activity::Call;
use crate::config::LogFormat;
use crate::error::OneLine;

/// Most bytes of a sentence, or of one value.
const MAX_TEXT: usize = 16 << 10;

/// Writes a line with its end; `time` is the moment as RFC 3339 has it.
pub(super) fn write_line(format: LogFormat, time: &str, record: &Record<'_>, call: Option<&Call>) -> Vec<u8> {
    let mut pairs = Pairs::default();
    // It fails only if a visit does, and these never do.
    let _always_well = record.key_values().visit(&mut pairs).is_ok();
    let pairs = pairs.0;
    let mut line = match format {
        LogFormat::Text => text(time, record, call, &pairs),
        LogFormat::Logfmt => logfmt(time, record, call, &pairs),
        LogFormat::Json => json(time, record, call, &pairs),
    };
    line.push('\n');
    line.into_bytes()
}

/// A value of a key, as far as the forms treat it differently.
#[derive(Debug, Clone, PartialEq)]
enum Shown {
    Number(Number),
    Flag(bool),
    Text(String),
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Shown::Number(number) => number.fmt(f),
            Shown::Flag(flag) => flag.fmt(f),
            Shown::Text(text) => text.fmt(f),
        }
    }
}

impl From<Shown> for serde_json::Value {
    fn from(shown: Shown) -> serde_json::Value {
        match shown {
            Shown::Number(number) => serde_json::Value::Number(number),
            Shown::Flag(flag) => serde_json::Value::Bool(flag),
            Shown::Text(text) => serde_json::Value::String(text),
        }
    }
}

/// The keys of a record with their values, without those that have none.
#[derive(Debug, Default)]
struct Pairs(Vec<(String, Shown)>);

impl<'kvs> VisitSource<'kvs> for Pairs {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
        let mut kind = Kind::default();
        value.visit(&mut kind)?;
        if let Some(shown) = kind.0 {
            self.0.push((key.to_string(), shown));
        }
        Ok(())
    }
}

#[derive(Default)]
struct Kind(Option<Shown>);

impl Kind {
    fn set_text(&mut self, text: impl fmt::Display) {
        let mut shown = String::new();
        // A value that cannot be shown has shown what it could.
        let _as_far_as_it_goes = Bounded { out: &mut shown, room: MAX_TEXT }.write_fmt(format_args!("{text}")).is_ok();
        self.0 = Some(Shown::Text(shown));
    }
}

impl<'v> VisitValue<'v> for Kind {
    fn visit_any(&mut self, value: Value<'_>) -> Result<(), Error> {
        self.set_text(value);
        Ok(())
    }

    fn visit_null(&mut self) -> Result<(), Error> {
        self.0 = None;
        Ok(())
    }

    fn visit_u64(&mut self, value: u64) -> Result<(), Error> {
        self.0 = Some(Shown::Number(value.into()));
        Ok(())
    }

    fn visit_i64(&mut self, value: i64) -> Result<(), Error> {
        self.0 = Some(Shown::Number(value.into()));
        Ok(())
    }

    fn visit_bool(&mut self, value: bool) -> Result<(), Error> {
        self.0 = Some(Shown::Flag(value));
        Ok(())
    }

    fn visit_borrowed_str(&mut self, value: &'v str) -> Result<(), Error> {
        self.set_text(value);
        Ok(())
    }

    fn visit_str(&mut self, value: &str) -> Result<(), Error> {
        self.set_text(value);
        Ok(())
    }
}

/// Passes on as many bytes as there is room for.
struct Bounded<'a> {
    out: &'a mut String,
    room: usize,
}

impl Write for Bounded<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = (0..=text.len().min(self.room)).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
        self.room -= end;
        self.out.push_str(text.get(..end).unwrap_or_default());
        Ok(())
    }
}

/// The sentence, on one line.
fn sentence(record: &Record<'_>) -> String {
    let mut text = String::new();
    // As above.
    let _as_far_as_it_goes = OneLine::new(&mut text, MAX_TEXT).write_fmt(*record.args()).is_ok();
    text
}

fn text(time: &str, record: &Record<'_>, call: Option<&Call>, pairs: &[(String, Shown)]) -> String {
    let mut line = format!("{time} {:5} ", record.level());
    if let Some(call) = call {
        line.push_str(&format!("[{} {}", call.number, call.rpc));
        call.about().iter().for_each(|(key, value)| push_pair(&mut line, key, value));
        line.push_str("] ");
    }
    line.push_str(&sentence(record));
    pairs.iter().for_each(|(key, value)| push_pair(&mut line, key, &value.to_string()));
    line
}

fn logfmt(time: &str, record: &Record<'_>, call: Option<&Call>, pairs: &[(String, Shown)]) -> String {
    let mut line = format!("time={time} level={}", record.level().as_str().to_lowercase());
    push_pair(&mut line, "msg", &sentence(record));
    if let Some(call) = call {
        push_pair(&mut line, "call", call.rpc);
        push_pair(&mut line, "seq", &call.number.to_string());
        let own = |key: &str| pairs.iter().any(|(one, _)| one == key);
        call.about().iter().filter(|(key, _)| !own(key)).for_each(|(key, value)| push_pair(&mut line, key, value));
    }
    pairs.iter().for_each(|(key, value)| push_pair(&mut line, key, &value.to_string()));
    line
}

fn json(time: &str, record: &Record<'_>, call: Option<&Call>, pairs: &[(String, Shown)]) -> String {
    let mut line = Map::new();
    line.insert("time".to_owned(), time.into());
    line.insert("level".to_owned(), record.level().as_str().to_lowercase().into());
    line.insert("msg".to_owned(), sentence(record).into());
    if let Some(call) = call {
        line.insert("call".to_owned(), call.rpc.into());
        line.insert("seq".to_owned(), call.number.into());
        call.about().iter().for_each(|(key, value)| drop(line.insert(key.to_owned(), value.into())));
    }
    pairs.iter().for_each(|(key, value)| drop(line.insert(key.clone(), value.clone().into())));
    // JSON leaves some control characters as they are, all of them inside texts.
    serde_json::Value::Object(line).to_string().chars().fold(String::new(), |mut line, c| {
        if c.is_control() {
            line.push_str(&escaped(c))
        } else {
            line.push(c)
        }
        line
    })
}

/// A control character as JSON and the readers of logfmt take it.
fn escaped(c: char) -> String {
    format!("\\u{:04x}", u32::from(c))
}

/// Appends ` key=value`, the value in quotes where it would not end by itself.
fn push_pair(line: &mut String, key: &str, value: &str) {
    line.push(' ');
    line.push_str(key);
    line.push('=');
    let is_plain = |c: char| !c.is_whitespace() && !c.is_control() && !matches!(c, '"' | '=' | '\\' | ']');
    if !value.is_empty() && value.chars().all(is_plain) {
        line.push_str(value);
        return;
    }
    line.push('"');
    for c in value.chars() {
        match c {
            '"' => line.push_str("\\\""),
            '\\' => line.push_str("\\\\"),
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            c if c.is_control() => line.push_str(&escaped(c)),
            c => line.push(c),
        }
    }
    line.push('"');
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use log::Level;
    use proptest::prelude::*;

    use super::*;
    use crate::activity::About;

    /// A line with this sentence and these values, in the call of a volume.
    fn line(format: LogFormat, said: &str, value: &str) -> String {
        let about = About::default().with("volume", "v 1").with("name", "blog");
        let mut call = Arc::try_unwrap(Call::new("NodeStageVolume", about, Instant::now())).unwrap();
        call.number = 17;
        let pairs = [("name", Value::from(value)), ("ms", 7_u64.into()), ("none", Value::null())];
        let mut record = Record::builder();
        record.level(Level::Info).key_values(&pairs);
        let line = write_line(format, "TIME", &record.args(format_args!("{said}")).build(), Some(&call));
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn each_form_has_the_same_keys() {
        assert_eq!(
            line(LogFormat::Text, "all done", "b=c"),
            "TIME INFO  [17 NodeStageVolume volume=\"v 1\" name=blog] all done name=\"b=c\" ms=7\n"
        );
        assert_eq!(
            line(LogFormat::Logfmt, "all done", "b\n"),
            "time=TIME level=info msg=\"all done\" call=NodeStageVolume seq=17 volume=\"v 1\" name=\"b\\n\" ms=7\n"
        );
        assert_eq!(
            line(LogFormat::Json, "done", "\"b\""),
            "{\"call\":\"NodeStageVolume\",\"level\":\"info\",\"ms\":7,\"msg\":\"done\",\"name\":\"\\\"b\\\"\",\"seq\":17,\
             \"time\":\"TIME\",\"volume\":\"v 1\"}\n"
        );
    }

    /// Reads a line of logfmt back, as strictly as its readers do.
    fn read_logfmt(line: &str) -> Vec<(String, String)> {
        let mut pairs = Vec::new();
        let mut rest = line.trim_end_matches('\n');
        while !rest.is_empty() {
            let (key, after) = rest.split_once('=').unwrap();
            let (value, after) = match after.strip_prefix('"') {
                None => after.split_once(' ').map_or((after.to_owned(), ""), |(value, rest)| (value.to_owned(), rest)),
                Some(_) => {
                    let mut escaped = serde_json::Deserializer::from_str(after).into_iter::<String>();
                    let value = escaped.next().unwrap().unwrap();
                    (value, after[escaped.byte_offset()..].trim_start())
                }
            };
            pairs.push((key.to_owned(), value));
            rest = after;
        }
        pairs
    }

    proptest! {
        #[test]
        fn whatever_was_said_a_line_is_one_line_and_gives_every_value_back(said in any::<String>(), value in any::<String>()) {
            for format in [LogFormat::Text, LogFormat::Logfmt, LogFormat::Json] {
                let line = line(format, &said, &value);
                prop_assert!(!line.trim_end_matches('\n').chars().any(char::is_control), "{:?}", line);
            }
            let pairs = read_logfmt(&line(LogFormat::Logfmt, &said, &value));
            prop_assert!(pairs.contains(&("name".to_owned(), value.clone())), "{:?}", pairs);
            prop_assert_eq!(pairs.last().map(|(key, _)| key.as_str()), Some("ms"));
            let object: serde_json::Value = serde_json::from_str(&line(LogFormat::Json, &said, &value)).unwrap();
            prop_assert_eq!(object["name"].as_str(), Some(value.as_str()));
        }
    }
}
