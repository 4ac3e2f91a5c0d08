//! The page at `/`, for a person who looks rather than reads.
//!
//! Owns its words and its looks. It is one text without scripts and without anything from elsewhere; all that comes from outside
//! the program is escaped. It shows what is in memory already, so a dead disk or a slow API holds it up as little as a scrape.

mod html;

use std::fmt::{self, Write};
use std::time::{Duration, Instant, SystemTime};

use crate::host::mount_report::Counts;
use crate::metrics::events::{Event, EventKind};
use crate::metrics::running::RunningCall;
use crate::ops::diagnosis::{Finding, Severity};
use crate::ops::figures::{Figures, Space};
use crate::ops::page::html::{Text, WithCode, moment, percent, size, span};

const STYLE: &str = include_str!("page.css");
/// From which fill a bar has another colour.
const NEARLY_FULL: u64 = 85;
const FULL: u64 = 95;
/// From which age figures are said to be old; they are read every few seconds.
const OLD: Duration = Duration::from_secs(15);

/// What the page is made from.
#[derive(Debug)]
pub(super) struct View {
    /// Which droplet this is, in words.
    pub(super) node: String,
    /// The driver's name and the services.
    pub(super) about: String,
    /// Since when the program runs.
    pub(super) started: Instant,
    /// Why no calls are taken, if so.
    pub(super) not_ready: Option<String>,
    /// What is wrong, the most severe first.
    pub(super) findings: Vec<Finding>,
    /// The volumes that are here.
    pub(super) volumes: Vec<Figures>,
    /// The calls that are being worked on.
    pub(super) calls: Vec<RunningCall>,
    /// Requests that an hour has, and how many are left.
    pub(super) quota: Option<(i64, i64)>,
    /// How long attaches took; see [`attach_times`](crate::metrics::attach_times).
    pub(super) attach_times: Vec<(Option<f64>, u64)>,
    /// The last events, the newest first.
    pub(super) events: Vec<Event>,
    /// When it was made.
    pub(super) now: SystemTime,
}

/// Writes the page.
///
/// # Errors
/// None but what writing to a string has.
pub(super) fn render(view: &View) -> Result<String, fmt::Error> {
    let mut out = String::with_capacity(16 << 10);
    write!(
        out,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"refresh\" content=\"15\">\n<link rel=\"icon\" href=\"data:,\">\n\
         <title>{0} - do-csi-plugin</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n",
        Text(&view.node)
    )?;
    head(&mut out, view)?;
    out.push_str("<main>\n");
    findings(&mut out, &view.findings)?;
    volumes(&mut out, &view.volumes)?;
    calls(&mut out, &view.calls)?;
    quota(&mut out, view.quota)?;
    attach_times(&mut out, &view.attach_times)?;
    events(&mut out, &view.events)?;
    write!(
        out,
        "</main>\n<footer><p>{} &middot; <a href=\"/metrics\">metrics</a> <a href=\"/health\">health</a> \
         <a href=\"/readyz\">readyz</a> <a href=\"/livez\">livez</a></p></footer>\n</body>\n</html>\n",
        Text(moment(view.now))
    )?;
    Ok(out)
}

fn head(out: &mut String, view: &View) -> fmt::Result {
    let state = match &view.not_ready {
        None => "<span class=\"tag good\">ready</span>".to_owned(),
        Some(why) => format!("<span class=\"tag bad\">not ready</span> <span class=\"bad\">{}</span>", Text(why)),
    };
    writeln!(
        out,
        "<header><h1>{} {state}</h1>\n<p>do-csi-plugin {} &middot; {} &middot; running for {}</p></header>",
        Text(&view.node),
        env!("CARGO_PKG_VERSION"),
        Text(&view.about),
        span(view.started.elapsed())
    )
}

fn nothing(out: &mut String, text: &str) {
    out.push_str("<p class=\"soft\">");
    out.push_str(text);
    out.push_str("</p>\n");
}

fn bar(filled: u64, class: &str) -> String {
    format!("<div class=\"bar {class}\"><i style=\"width:{filled}%\"></i></div>")
}

/// The colour of a bar that is better not full.
fn fill_class(filled: u64) -> &'static str {
    match filled {
        FULL.. => "bad",
        NEARLY_FULL..FULL => "warn",
        0..NEARLY_FULL => "",
    }
}

fn findings(out: &mut String, all: &[Finding]) -> fmt::Result {
    writeln!(out, "<section class=\"wide\"><h2>What is wrong ({})</h2>", all.len())?;
    if all.is_empty() {
        nothing(out, "Nothing that is seen from here.");
    } else {
        out.push_str("<ul>\n");
        for Finding { severity, reason, message, cure, .. } in all {
            let class = match severity {
                Severity::Critical => "bad",
                Severity::Warning => "warn",
                Severity::Notice => "soft",
            };
            let (message, cure) = (WithCode(message), WithCode(cure));
            write!(out, "<li><span class=\"tag {class}\">{severity}</span> <b>{reason}</b> {message}")?;
            writeln!(out, "<p class=\"soft\">{cure}</p></li>")?;
        }
        out.push_str("</ul>\n");
    }
    out.push_str("</section>\n");
    Ok(())
}

fn volumes(out: &mut String, volumes: &[Figures]) -> fmt::Result {
    writeln!(out, "<section class=\"wide\"><h2>Volumes here ({})</h2>", volumes.len())?;
    if volumes.is_empty() {
        nothing(out, "None.");
    } else {
        out.push_str("<ul class=\"columns\">\n");
        volumes.iter().try_for_each(|figures| volume(out, figures))?;
        out.push_str("</ul>\n");
    }
    out.push_str("</section>\n");
    Ok(())
}

fn volume(out: &mut String, figures: &Figures) -> fmt::Result {
    write!(out, "<li><div class=\"row\"><b>{}</b><span>", Text(figures.name()))?;
    if figures.is_read_only() {
        out.push_str("<span class=\"tag warn\">read-only</span> ");
    }
    if let Some(time) = figures.silent_for() {
        write!(out, "<span class=\"tag bad\">silent for {}</span> ", span(time))?;
    } else if let Some(age) = figures.age().filter(|age| *age > OLD) {
        write!(out, "<span class=\"tag warn\">read {} ago</span> ", span(age))?;
    }
    let disk = figures.volume.disk.as_ref().map(|disk| disk.node.display().to_string()).unwrap_or_default();
    write!(out, "{} <code>{}</code></span></div>", Text(figures.filesystem()), Text(disk))?;
    match figures.space() {
        Space { bytes: Some(bytes), inodes, .. } => {
            let filled = filled(&bytes);
            write!(out, "{}", bar(filled, fill_class(filled)))?;
            let (used, all) = (size(bytes.used), size(bytes.total));
            write!(out, "<div class=\"row\"><span>{used} of {all} used</span><span>{filled} %")?;
            if let Some(Counts { total, used, .. }) = inodes {
                write!(out, ", inodes {} %", percent(used, total))?;
            }
            out.push_str("</span></div>");
        }
        Space { size: Some(all), .. } => write!(out, "<p class=\"soft\">{}, raw</p>", size(all))?,
        Space { size: None, .. } if figures.age().is_none() => out.push_str("<p class=\"soft\">not mounted</p>"),
        Space { size: None, .. } => out.push_str("<p class=\"soft\">how full it is is not known</p>"),
    }
    let id = figures.volume.id.clone().unwrap_or_default();
    for (what, names) in [("id", id), ("used by", figures.users().join(", "))] {
        if !names.is_empty() {
            write!(out, "<p class=\"soft\">{what} <code>{}</code></p>", Text(names))?;
        }
    }
    out.push_str("</li>\n");
    Ok(())
}

/// How full it is, rounded up as df(1) does: what only root may take is taken from nobody.
fn filled(bytes: &Counts) -> u64 {
    bytes.percent_used().unwrap_or_default().min(100)
}

fn calls(out: &mut String, calls: &[RunningCall]) -> fmt::Result {
    writeln!(out, "<section><h2>Running calls ({})</h2>", calls.len())?;
    if calls.is_empty() {
        nothing(out, "None.");
    } else {
        out.push_str("<ul>\n");
        for RunningCall { number, label, came, waits_for, .. } in calls {
            let (label, age) = (Text(label), span(came.elapsed()));
            write!(out, "<li><div class=\"row\"><code>{number} {label}</code><b>{age}</b></div>")?;
            if let Some((what, since)) = waits_for {
                let (what, since) = (Text(what), span(since.elapsed()));
                write!(out, "<p class=\"soft\">waits for {what}, for {since}</p>")?;
            }
            out.push_str("</li>\n");
        }
        out.push_str("</ul>\n");
    }
    out.push_str("</section>\n");
    Ok(())
}

fn quota(out: &mut String, quota: Option<(i64, i64)>) -> fmt::Result {
    out.push_str("<section><h2>Quota of DigitalOcean's API</h2>\n");
    let numbers = quota.and_then(|(limit, left)| Some((u64::try_from(limit).ok()?, u64::try_from(left).ok()?)));
    match numbers {
        Some((limit, left)) => {
            let filled = percent(left, limit);
            let class = match filled {
                0..5 => "bad",
                5..15 => "warn",
                15.. => "",
            };
            writeln!(
                out,
                "{}<p>{left} of {limit} requests are left in this hour ({filled} %)</p>",
                bar(filled, class)
            )?;
        }
        None => nothing(out, "No reply has told of it yet."),
    }
    out.push_str("</section>\n");
    Ok(())
}

/// Width and height of a column of the histogram, with the room for its labels.
const COLUMN: usize = 64;
const HEIGHT: u64 = 120;

/// The columns from the one before the first that has anything to the one after the last. Pure.
fn without_empty_ends(times: &[(Option<f64>, u64)]) -> &[(Option<f64>, u64)] {
    let has_any = |(_, count): &(Option<f64>, u64)| *count > 0;
    let from = times.iter().position(has_any).unwrap_or_default().saturating_sub(1);
    let to = times.iter().rposition(has_any).unwrap_or_default().saturating_add(2).min(times.len());
    times.get(from..to).unwrap_or(times)
}

fn attach_times(out: &mut String, times: &[(Option<f64>, u64)]) -> fmt::Result {
    let total: u64 = times.iter().map(|(_, count)| count).sum();
    writeln!(out, "<section><h2>How long attaches took ({total})</h2>")?;
    let Some(most) = times.iter().map(|(_, count)| *count).max().filter(|most| *most > 0) else {
        nothing(out, "None has completed since the plugin was started.");
        out.push_str("</section>\n");
        return Ok(());
    };
    let times = without_empty_ends(times);
    let width = times.len().saturating_mul(COLUMN);
    writeln!(out, "<svg viewBox=\"0 0 {width} 160\" role=\"img\" aria-label=\"Histogram of the times of attaches\">")?;
    writeln!(out, "<line x1=\"0\" y1=\"140\" x2=\"{width}\" y2=\"140\"/>")?;
    for (index, (limit, count)) in times.iter().enumerate() {
        let left = index.saturating_mul(COLUMN);
        let middle = left.saturating_add(COLUMN / 2);
        if *count > 0 {
            let height = count.saturating_mul(HEIGHT).checked_div(most).unwrap_or_default().max(2);
            let top = 140_u64.saturating_sub(height);
            let inner = COLUMN.saturating_sub(8);
            let x = left.saturating_add(4);
            write!(out, "<rect x=\"{x}\" y=\"{top}\" width=\"{inner}\" height=\"{height}\"/>")?;
            write!(out, "<text x=\"{middle}\" y=\"{}\">{count}</text>", top.saturating_sub(5))?;
        }
        match limit {
            Some(limit) => writeln!(out, "<text x=\"{middle}\" y=\"155\">&le; {limit} s</text>")?,
            None => writeln!(out, "<text x=\"{middle}\" y=\"155\">longer</text>")?,
        }
    }
    out.push_str("</svg></section>\n");
    Ok(())
}

fn events(out: &mut String, events: &[Event]) -> fmt::Result {
    writeln!(out, "<section class=\"wide\"><h2>Last events ({})</h2>", events.len())?;
    if events.is_empty() {
        nothing(out, "None since the plugin was started.");
    } else {
        out.push_str("<ul>\n");
        for Event { at, kind, text } in events {
            let class = match kind {
                EventKind::Failed => "bad",
                EventKind::TakenOver | EventKind::Released => "warn",
                EventKind::Attached | EventKind::Detached | EventKind::Resized | EventKind::Formatted => "good",
            };
            let word = kind.as_str().replace('_', " ");
            let (at, text) = (moment(*at), Text(text));
            writeln!(
                out,
                "<li><span class=\"soft\">{at}</span> <span class=\"tag {class}\">{word}</span> {text}</li>"
            )?;
        }
        out.push_str("</ul>\n");
    }
    out.push_str("</section>\n");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::inventory::VolumeState;
    use crate::host::mount_report::Usage;
    use crate::ops::diagnosis::{Reason, Subject};
    use crate::ops::figures::tests::volume;

    const EVIL: &str = "<script>alert('x')</script>&\"";

    fn view() -> View {
        let mut volume = volume(VolumeState::Silent(Duration::from_secs(7)));
        volume.id = Some(EVIL.to_owned());
        volume.fs = Some(EVIL.to_owned());
        volume.mounts.remove(0);
        volume.mounts.iter_mut().for_each(|mount| mount.user = Some(EVIL.to_owned()));
        let subject = Subject::volume(&EVIL, &EVIL);
        let finding = Finding::new(Reason::DiskNotRunning, &subject, EVIL.to_owned(), EVIL.to_owned());
        let counts = Counts { total: 100, used: 90, available: 10 };
        let figures = Figures {
            volume,
            findings: Vec::new(),
            io: None,
            usage: vec![Usage::Bytes(counts)],
            read_at: Instant::now(),
        };
        let waits_for = Some((EVIL.to_owned(), Instant::now()));
        let call = RunningCall {
            number: 7,
            method: "NodeStageVolume",
            label: EVIL.to_owned(),
            came: Instant::now(),
            waits_for,
        };
        let now = SystemTime::UNIX_EPOCH;
        View {
            node: EVIL.to_owned(),
            about: EVIL.to_owned(),
            started: Instant::now(),
            not_ready: Some(EVIL.to_owned()),
            findings: vec![finding],
            volumes: vec![figures],
            calls: vec![call],
            quota: Some((5000, 100)),
            attach_times: vec![(Some(0.5), 1), (Some(5.0), 4), (None, 0)],
            events: vec![Event { at: now, kind: EventKind::Failed, text: EVIL.to_owned() }],
            now,
        }
    }

    #[test]
    fn whatever_it_shows_is_text_and_never_markup() {
        let page = render(&view()).unwrap();
        assert!(!page.contains("<script") && !page.contains("alert('"), "{page}");
        assert_eq!(page.matches("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&amp;&quot;").count(), 12, "{page}");
        assert!(!page.contains("http://") && !page.contains("https://"), "nothing is from elsewhere: {page}");
        for tag in ["section", "ul", "li", "main", "svg", "div", "p", "span", "code", "b", "header", "footer"] {
            let opened = page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}: {page}");
        }
    }

    #[test]
    fn the_histogram_leaves_out_what_is_empty_at_its_ends() {
        let of = |counts: &[u64]| counts.iter().map(|count| (None, *count)).collect::<Vec<_>>();
        for (counts, want) in [
            (&[0, 0, 0, 1, 0, 2, 0, 0][..], &[0, 1, 0, 2, 0][..]),
            (&[3, 0, 0], &[3, 0]),
            (&[0, 0, 3], &[0, 3]),
            (&[1], &[1]),
        ] {
            assert_eq!(without_empty_ends(&of(counts)), of(want), "{counts:?}");
        }
    }

    #[test]
    fn a_bar_is_as_long_as_what_it_shows_and_says_by_its_colour_when_somebody_should_look() {
        let page = render(&view()).unwrap();
        assert!(page.contains("<div class=\"bar warn\"><i style=\"width:90%\">"), "{page}");
        assert!(page.contains("<div class=\"bar bad\"><i style=\"width:2%\">"), "the quota: {page}");
        assert!(page.contains("height=\"120\"") && page.contains("height=\"30\""), "{page}");
        let mut empty = view();
        (empty.volumes, empty.calls, empty.events) = (Vec::new(), Vec::new(), Vec::new());
        empty.findings.clear();
        (empty.quota, empty.attach_times, empty.not_ready) = (None, vec![(None, 0)], None);
        let page = render(&empty).unwrap();
        assert!(!page.contains("<li>") && !page.contains("<svg") && page.contains(">ready<"), "{page}");
    }
}
