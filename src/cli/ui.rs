//! What is shown where: colours on terminals only, bars on stderr, sizes in words.

use crate::device::DeviceInfo;
use crate::engine::LoadProgress;
use crate::ids::Role;
use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{IsTerminal, Write};

/// A line on stderr beside the output.
pub(super) fn note(text: &str) {
    // A note nobody can read is no reason to stop.
    let _ = writeln!(std::io::stderr(), "note: {text}");
}

/// Lets times of a device be measured: a real one's, or the software GPU's if they were asked for.
///
/// # Errors
/// For the software GPU, if nobody asked.
pub(super) fn check_times(device: &DeviceInfo, emulated_times: bool) -> Result<()> {
    match (device.is_emulated(), emulated_times) {
        (false, _) => {}
        (true, true) => note("this is the software GPU: no time below says anything about a GPU"),
        (true, false) => bail!(
            "{}: no time measured on it says anything about a GPU; --emulated-times measures all \
             the same",
            device.name
        ),
    }
    Ok(())
}

/// Loads and downloads smaller than this show no bar: they are over before one can be read.
const BAR_BYTES_MIN: u64 = 32 << 20;

/// An ANSI style.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ink {
    /// Written by the draft.
    Draft,
    /// Written by the base.
    Base,
    /// Written by nobody, or beside the point.
    Aside,
    /// Thrown away.
    Rejected,
    /// A heading.
    Strong,
}

/// Turns text into coloured text, where colours are wanted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paint {
    /// Whether escape sequences may be written.
    pub(super) ansi: bool,
}

impl Paint {
    /// Colours for standard output: only on a terminal that understands them, and without
    /// `NO_COLOR`.
    pub(super) fn stdout() -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|v| v == "dumb");
        Self { ansi: std::io::stdout().is_terminal() && !refused && !dumb }
    }

    /// The sequence that starts an ink; empty without colours.
    pub(super) fn begin(self, ink: Ink) -> &'static str {
        match (self.ansi, ink) {
            (false, _) => "",
            (_, Ink::Draft) => "\x1b[36m",
            (_, Ink::Base) => "\x1b[33m",
            (_, Ink::Aside) => "\x1b[2m",
            (_, Ink::Rejected) => "\x1b[2;9m",
            (_, Ink::Strong) => "\x1b[1m",
        }
    }

    /// The sequence that ends every ink; empty without colours.
    pub(super) fn end(self) -> &'static str {
        if self.ansi { "\x1b[0m" } else { "" }
    }

    /// `text` in an ink.
    pub(super) fn paint(self, ink: Ink, text: &str) -> String {
        format!("{}{text}{}", self.begin(ink), self.end())
    }
}

/// The ink of a model.
pub(super) fn ink_of(role: Role) -> Ink {
    match role {
        Role::Draft => Ink::Draft,
        Role::Base => Ink::Base,
    }
}

/// A bar on stderr for `total_bytes`; invisible where stderr is no terminal or the wait is short.
pub(super) fn byte_bar(label: &str, total_bytes: u64) -> ProgressBar {
    if total_bytes < BAR_BYTES_MIN || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let template = "{msg:<28} {bar:24} {binary_bytes:>11} of {binary_total_bytes} \
                    {binary_bytes_per_sec}";
    let style = ProgressStyle::with_template(template).expect("a constant template parses");
    ProgressBar::new(total_bytes).with_style(style).with_message(label.to_owned())
}

/// Shows how models load, one bar each.
pub(super) fn loading_bar() -> impl FnMut(LoadProgress) {
    let mut current: Option<(Role, ProgressBar)> = None;
    move |progress| {
        let same = current.as_ref().is_some_and(|(role, _)| *role == progress.role);
        if !same {
            if let Some((_, done)) = current.take() {
                done.finish_and_clear();
            }
            let label = format!("loading the {} model", progress.role);
            current = Some((progress.role, byte_bar(&label, progress.total_bytes)));
        }
        if let Some((_, bar)) = &current {
            bar.inc(progress.bytes);
            if bar.position() >= progress.total_bytes {
                bar.finish_and_clear();
            }
        }
    }
}

/// A number of bytes for people.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// Milliseconds for people.
pub(super) fn duration(ms: f64) -> String {
    if ms < 1000.0 { format!("{ms:.0} ms") } else { format!("{:.2} s", ms / 1e3) }
}

/// A message on one line: what ends up in a log or behind `error:`.
pub(super) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_short() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(491_400_064), "468.6 MiB");
        assert_eq!(duration(12.4), "12 ms");
        assert_eq!(duration(1234.0), "1.23 s");
    }

    #[test]
    fn without_colours_nothing_is_added() {
        assert_eq!(Paint { ansi: false }.paint(Ink::Rejected, "x"), "x");
        assert_eq!(Paint { ansi: true }.paint(Ink::Rejected, "x"), "\x1b[2;9mx\x1b[0m");
    }

    #[test]
    fn one_line_has_no_line_breaks() {
        assert_eq!(one_line("a\n  b\tc "), "a b c");
    }
}
