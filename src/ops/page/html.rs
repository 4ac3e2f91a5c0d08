//! Pieces of HTML, and the escaping of whatever is put into them.

use std::fmt;
use std::time::{Duration, SystemTime};

use jiff::{Timestamp, Unit};

/// A text that can stand anywhere in a page, also between quotes of an attribute: it is never taken for markup.
#[derive(Debug)]
pub(super) struct Text<T>(pub(super) T);

impl<T: fmt::Display> fmt::Display for Text<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.to_string().chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                c if c.is_control() => f.write_str(" ")?,
                c => write!(f, "{c}")?,
            }
        }
        Ok(())
    }
}

/// A text in which what stands between backticks is a command, as messages have it: that is shown as code. Where a backtick has no
/// other, it is a letter.
#[derive(Debug)]
pub(super) struct WithCode<'a>(pub(super) &'a str);

impl fmt::Display for WithCode<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.matches('`').count() % 2 == 1 {
            return Text(self.0).fmt(f);
        }
        self.0.split('`').enumerate().try_for_each(|(number, part)| {
            let part = Text(part);
            if number % 2 == 1 { write!(f, "<code>{part}</code>") } else { write!(f, "{part}") }
        })
    }
}

/// A number of bytes as people say it.
pub(super) fn size(bytes: u64) -> String {
    const STEP: u64 = 1024;
    let mut unit = ("B", 1_u64);
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        let Some(larger) = unit.1.checked_mul(STEP).filter(|larger| bytes >= *larger) else { break };
        unit = (next, larger);
    }
    let tenths = u128::from(bytes).saturating_mul(10) / u128::from(unit.1);
    if unit.1 == 1 || tenths % 10 == 0 || tenths >= 1000 {
        format!("{} {}", tenths / 10, unit.0)
    } else {
        format!("{}.{} {}", tenths / 10, tenths % 10, unit.0)
    }
}

/// A time as people say it: `850 ms`, `12 s`, `3 min`, `5 h`, `2 d`.
pub(super) fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0 => format!("{} ms", time.as_millis()),
        1..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        172_800.. => format!("{} d", seconds / 86_400),
    }
}

/// A moment, to the second, in UTC.
pub(super) fn moment(at: SystemTime) -> String {
    let at = Timestamp::try_from(at).and_then(|at| at.round(Unit::Second));
    at.map_or_else(|_| "?".to_owned(), |at| at.to_string())
}

/// How many hundredths a part is of a whole; none of nothing.
pub(super) fn percent(part: u64, whole: u64) -> u64 {
    let hundredths = u128::from(part).saturating_mul(100).checked_div(u128::from(whole)).unwrap_or_default();
    u64::try_from(hundredths.min(100)).unwrap_or(100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_put_in_is_ever_markup() {
        assert_eq!(Text("<b a=\"1\" c='2'>&\u{1b}\n").to_string(), "&lt;b a=&quot;1&quot; c=&#39;2&#39;&gt;&amp;  ");
        assert_eq!(Text("Grüße").to_string(), "Grüße");
    }

    #[test]
    fn commands_in_a_message_are_code_and_no_markup_either() {
        for (text, want) in [
            ("run `a <b>` or `c`", "run <code>a &lt;b&gt;</code> or <code>c</code>"),
            ("nothing & none", "nothing &amp; none"),
            ("one ` alone <", "one ` alone &lt;"),
        ] {
            assert_eq!(WithCode(text).to_string(), want);
        }
    }

    #[test]
    fn numbers_are_said_as_people_say_them() {
        for (bytes, want) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (10 << 30, "10 GiB"),
            (16 << 40, "16 TiB"),
            (u64::MAX, "16777215 TiB"),
        ] {
            assert_eq!(size(bytes), want);
        }
        for (ms, want) in
            [(850, "850 ms"), (12_900, "12 s"), (119_000, "119 s"), (120_000, "2 min"), (7_200_000, "2 h")]
        {
            assert_eq!(span(Duration::from_millis(ms)), want);
        }
        assert_eq!(span(Duration::from_secs(3 * 86_400)), "3 d");
        assert_eq!((percent(1, 3), percent(5, 5), percent(9, 5), percent(1, 0)), (33, 100, 100, 0));
        assert_eq!(moment(SystemTime::UNIX_EPOCH + Duration::from_millis(1_700)), "1970-01-01T00:00:02Z");
    }
}
