//! Shows a reply while it grows: who wrote each step, its score, and what was thrown away.
//!
//! On a colour terminal text appears token by token; a drafted step is faint until the base has
//! scored it, then it is drawn again in the draft's colour or struck through. Elsewhere each step
//! is printed once it is decided, behind a label such as `[draft 7.9]`. The newest piece is always
//! held back: the end of a turn is known to be one only when the reply is done, and is not shown.
//! Invariant: a step starts in the first column, so that its rows can be counted and drawn over.

use super::ui::{Ink, Paint, ink_of};
use crate::engine::{Event, Reply, Settings};
use crate::ids::Role;
use crate::policy::Note;
use crate::sample::Readout;
use std::io::{Result, Write};

/// Text appended by one event.
struct Piece {
    /// Tail index of its first token.
    at: u32,
    text: String,
}

/// A step that is part of the reply for good, not printed yet.
struct Kept {
    /// Tail index after its last token.
    end: u32,
    writer: Role,
}

/// Columns and rows of the terminal.
#[derive(Debug, Clone, Copy)]
pub(super) struct Screen {
    pub(super) columns: usize,
    pub(super) rows: usize,
}

impl Screen {
    /// The terminal behind standard output.
    pub(super) fn of_stdout() -> Self {
        let (rows, columns) = console::Term::stdout().size();
        Self { columns: columns.into(), rows: rows.into() }
    }

    /// Rows that `text` takes when it starts in the first column.
    fn rows_of(self, text: &str) -> usize {
        let (mut row, mut column) = (0, 0);
        for c in text.chars() {
            if c == '\n' {
                (row, column) = (row + 1, 0);
                continue;
            }
            let width = match c {
                '\t' => 8 - column % 8,
                _ => console::measure_text_width(c.encode_utf8(&mut [0; 4])),
            };
            if column + width > self.columns {
                (row, column) = (row + 1, 0);
            }
            column += width;
        }
        row + 1
    }
}

/// Prints the events of one request.
pub(super) struct Transcript<W: Write> {
    out: W,
    paint: Paint,
    screen: fn() -> Screen,
    /// Drafted steps wait for a score.
    judged: bool,
    readout: Readout,
    writer: Role,
    answering: bool,
    /// What was appended since the last thing printed for good.
    pieces: Vec<Piece>,
    /// A drafted step that was rolled back, until its score comes.
    withdrawn: String,
    score: Option<f32>,
    kept: Option<Kept>,
    /// Text on the screen since the last thing printed for good, and its ink.
    block: String,
    block_ink: Ink,
    /// The reply's text so far, as printed for good.
    settled: String,
}

impl<W: Write> Transcript<W> {
    /// A transcript on `out`. `screen` is asked whenever something is drawn again.
    pub(super) fn new(out: W, paint: Paint, screen: fn() -> Screen) -> Self {
        Self {
            out,
            paint,
            screen,
            judged: false,
            readout: Readout::default(),
            writer: Role::Base,
            answering: false,
            pieces: vec![],
            withdrawn: String::new(),
            score: None,
            kept: None,
            block: String::new(),
            block_ink: Ink::Aside,
            settled: String::new(),
        }
    }

    /// Gives the writer back.
    pub(super) fn into_inner(self) -> W {
        self.out
    }

    /// Shows one event.
    ///
    /// # Errors
    /// When nothing can be written any more.
    pub(super) fn event(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::Started(settings) => self.start(settings)?,
            Event::Tokens { at, text, .. } => {
                self.pieces.push(Piece { at: *at, text: visible(text) });
                self.stream()?;
            }
            Event::RolledBack { to } => self.roll_back(*to),
            Event::Note(note) => self.note(note)?,
            Event::Finished(reply) => self.finish(reply)?,
            Event::Logprobs { .. } => {}
            Event::Failed(_) => self.end_line()?,
        }
        self.out.flush()
    }

    fn start(&mut self, settings: &Settings) -> Result<()> {
        self.judged = settings.policy.judges();
        self.readout = settings.score;
        if self.paint.ansi && self.judged {
            let ink = |ink, text| self.paint.paint(ink, text);
            let (draft, base) = (ink(Ink::Draft, "draft"), ink(Ink::Base, "base"));
            let rejected = ink(Ink::Rejected, "rejected");
            writeln!(self.out, "written by {draft} or {base}; {rejected} by the base\n")?;
        }
        Ok(())
    }

    fn roll_back(&mut self, to: u32) {
        let dropped = self.pieces.iter().position(|p| p.at >= to).unwrap_or(self.pieces.len());
        let dropped = self.pieces.split_off(dropped);
        if self.pieces.is_empty() {
            self.withdrawn = dropped.into_iter().map(|p| p.text).collect();
        }
    }

    fn note(&mut self, note: &Note) -> Result<()> {
        match note {
            Note::StepBegan { writer, .. } => {
                self.settle("")?;
                self.writer = *writer;
            }
            Note::StepGated { .. } => {
                let text = std::mem::take(&mut self.withdrawn);
                self.print(&text, Ink::Rejected, &["left to the base"], "draft")?;
                self.writer = Role::Base;
            }
            Note::StepScored { score, accepted: true, .. } => self.score = *score,
            Note::StepScored { score, .. } => {
                let text = std::mem::take(&mut self.withdrawn);
                let score = score.map(|score| self.score_text(score)).unwrap_or_default();
                self.print(&text, Ink::Rejected, &[&score, "rejected"], "draft")?;
                self.writer = Role::Base;
            }
            Note::StepKept { end, writer, .. } => {
                self.kept = Some(Kept { end: *end, writer: *writer });
            }
            Note::AnswerBegan { at, writer, .. } => {
                self.settle("")?;
                let injected = self.take_until(*at);
                if !injected.trim().is_empty() {
                    self.print(&injected, Ink::Aside, &[], "injected")?;
                    self.settled.push_str(&injected);
                }
                (self.answering, self.writer) = (true, *writer);
            }
        }
        Ok(())
    }

    /// The text of the pieces before tail index `end`.
    fn take_until(&mut self, end: u32) -> String {
        let rest = self.pieces.iter().position(|p| p.at >= end).unwrap_or(self.pieces.len());
        self.pieces.drain(..rest).map(|p| p.text).collect()
    }

    /// Prints the kept step for good, without `ending`.
    fn settle(&mut self, ending: &str) -> Result<()> {
        let Some(kept) = self.kept.take() else { return Ok(()) };
        let text = self.take_until(kept.end);
        self.settled.push_str(&text);
        let score = self.score.take().filter(|_| kept.writer == Role::Draft);
        let score = score.map(|s| self.score_text(s)).unwrap_or_default();
        let shown = text.strip_suffix(ending).unwrap_or(&text);
        self.print(shown, ink_of(kept.writer), &[&score], kept.writer.name())
    }

    fn finish(&mut self, reply: &Reply) -> Result<()> {
        let waiting: String = self.pieces.iter().map(|p| p.text.as_str()).collect();
        let all = format!("{}{waiting}", self.settled);
        // What the reply's text lacks at its end is the end of the turn.
        let ending = all.strip_prefix(visible(&reply.text).as_str()).unwrap_or_default().to_owned();
        self.settle(&ending)?;
        let rest: String = self.pieces.drain(..).map(|p| p.text).collect();
        let rest = rest.strip_suffix(ending.as_str()).unwrap_or(&rest).to_owned();
        if rest.is_empty() {
            return self.end_line();
        }
        let name = self.writer.name();
        let ink = if self.judged && !self.answering && self.writer == Role::Draft {
            Ink::Aside
        } else {
            ink_of(self.writer)
        };
        let state = if self.answering { "answer" } else { "unfinished" };
        self.print(&rest, ink, &[state], name)
    }

    fn score_text(&self, score: f32) -> String {
        match self.readout {
            Readout::Prob => format!("{score:.2}"),
            _ => format!("{score:.1}"),
        }
    }

    /// Prints `text` for good. Its remarks stand behind it on a colour terminal, and with the
    /// writer's name before it elsewhere.
    fn print(&mut self, text: &str, ink: Ink, remarks: &[&str], name: &str) -> Result<()> {
        let trimmed = text.trim();
        let remarks: Vec<_> = remarks.iter().copied().filter(|r| !r.is_empty()).collect();
        if !self.paint.ansi {
            let label = [&[name], remarks.as_slice()].concat().join(" ");
            return writeln!(self.out, "[{label}] {trimmed}");
        }
        if ink == self.block_ink && trimmed.starts_with(self.block.as_str()) {
            let rest = &trimmed[self.block.len()..];
            write!(self.out, "{}", self.paint.paint(ink, rest))?;
        } else {
            self.erase()?;
            write!(self.out, "{}", self.paint.paint(ink, trimmed))?;
        }
        self.block.clear();
        // Scores are news; that the last part is the answer, everybody sees.
        let remarks: Vec<_> =
            remarks.into_iter().filter(|r| !["answer", "unfinished"].contains(r)).collect();
        if !remarks.is_empty() {
            let tag = format!(" [{}]", remarks.join(", "));
            write!(self.out, "{}", self.paint.paint(Ink::Aside, &tag))?;
        }
        let space = &text[text.trim_end().len()..];
        let breaks = space.matches('\n').count().clamp(1, 2);
        write!(self.out, "{}", "\n".repeat(breaks))
    }

    /// Shows what has arrived, on a colour terminal, but for the newest piece and space around.
    fn stream(&mut self) -> Result<()> {
        if !self.paint.ansi {
            return Ok(());
        }
        let ink = if self.judged && !self.answering && self.writer == Role::Draft {
            Ink::Aside
        } else {
            ink_of(self.writer)
        };
        let ready = &self.pieces[..self.pieces.len().saturating_sub(1)];
        let text: String = ready.iter().map(|p| p.text.as_str()).collect();
        let text = text.trim();
        if !text.starts_with(self.block.as_str())
            || (ink != self.block_ink && !self.block.is_empty())
        {
            // A rejected draft still stands there until its score is known.
            return Ok(());
        }
        let rest = &text[self.block.len()..];
        if rest.is_empty() {
            return Ok(());
        }
        write!(self.out, "{}", self.paint.paint(ink, rest))?;
        self.block.push_str(rest);
        self.block_ink = ink;
        Ok(())
    }

    /// Removes the block from the screen. One that has scrolled away in part stays.
    fn erase(&mut self) -> Result<()> {
        if self.block.is_empty() {
            return Ok(());
        }
        let screen = (self.screen)();
        let rows = screen.rows_of(&self.block);
        self.block.clear();
        if rows > screen.rows {
            return writeln!(self.out);
        }
        if rows > 1 {
            write!(self.out, "\x1b[{}A", rows - 1)?;
        }
        write!(self.out, "\r\x1b[J")
    }

    fn end_line(&mut self) -> Result<()> {
        if self.block.is_empty() {
            return Ok(());
        }
        self.block.clear();
        writeln!(self.out)
    }
}

/// A model's text without what would steer a terminal.
fn visible(text: &str) -> String {
    let steers = |c: char| c.is_control() && c != '\n' && c != '\t';
    text.chars().map(|c| if steers(c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

#[cfg(test)]
mod tests;
