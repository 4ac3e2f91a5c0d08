//! Which of the snapshots that are taken again and again are to be kept.
//!
//! Owns the setting `--keep`, and nothing of snapshots themselves.

use std::fmt;
use std::str::FromStr;

/// How many may be kept: DigitalOcean keeps 25 of a volume, and the next one needs a place before an old one goes.
///
/// Source: product documentation, "Snapshots", limits.
const MOST: usize = 24;

/// A span of the calendar, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Period {
    /// An hour.
    Hourly,
    /// A day.
    Daily,
    /// A week, from Monday on.
    Weekly,
    /// A month.
    Monthly,
}

impl Period {
    const ALL: [Period; 4] = [Period::Hourly, Period::Daily, Period::Weekly, Period::Monthly];

    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Period::Hourly => "hourly",
            Period::Daily => "daily",
            Period::Weekly => "weekly",
            Period::Monthly => "monthly",
        }
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How many snapshots of each period are kept: the newest of each of so many periods that have one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keep(Vec<(Period, usize)>);

impl Keep {
    /// The periods, each once, with how many of them are kept, at least one.
    #[must_use]
    pub fn rules(&self) -> &[(Period, usize)] {
        &self.0
    }
}

impl FromStr for Keep {
    type Err = String;

    fn from_str(text: &str) -> Result<Keep, String> {
        let mut rules: Vec<(Period, usize)> = Vec::new();
        for part in text.split(',') {
            let (word, count) = part.split_once('=').ok_or_else(|| format!("{part:?} is not PERIOD=COUNT"))?;
            let period = Period::ALL.into_iter().find(|period| period.as_str() == word);
            let period = period.ok_or_else(|| format!("{word:?} is not hourly, daily, weekly or monthly"))?;
            let count = count.parse().ok().filter(|count| *count > 0);
            let count = count.ok_or_else(|| format!("{part:?}: how many is a number from 1 on"))?;
            if rules.iter().any(|(known, _)| *known == period) {
                return Err(format!("{period} is there twice"));
            }
            rules.push((period, count));
        }
        let sum = rules.iter().fold(0_usize, |sum, (_, count)| sum.saturating_add(*count));
        if sum > MOST {
            return Err(format!(
                "{sum} snapshots are too many: DigitalOcean keeps 25 of a volume, and the next one needs a place, so at \
                 most {MOST}"
            ));
        }
        Ok(Keep(rules))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_said_by_periods_and_fits_into_what_digitalocean_keeps() {
        let keep: Keep = "daily=7,weekly=4".parse().unwrap();
        assert_eq!(keep.rules(), [(Period::Daily, 7), (Period::Weekly, 4)]);
        assert!("hourly=24".parse::<Keep>().is_ok());
        for (wrong, words) in [
            ("", "PERIOD=COUNT"),
            ("daily", "PERIOD=COUNT"),
            ("daily=0", "from 1 on"),
            ("daily=-1", "from 1 on"),
            ("daily=x", "from 1 on"),
            ("yearly=1", "not hourly"),
            ("daily=1,daily=2", "twice"),
            ("daily=20,weekly=5", "25 snapshots are too many"),
            ("hourly=18446744073709551615,daily=1", "too many"),
        ] {
            let refusal = wrong.parse::<Keep>().unwrap_err();
            assert!(refusal.contains(words), "{wrong}: {refusal}");
        }
    }
}
