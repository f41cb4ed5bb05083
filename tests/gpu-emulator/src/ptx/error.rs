//! The one error of parsing: where, what stood there, what was wrong with it.

use std::fmt;

/// PTX the emulator cannot take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseError {
    /// Line of the PTX text, from 1.
    pub line: u32,
    /// That line, trimmed.
    pub text: String,
    /// What is wrong with it.
    pub message: String,
}

impl ParseError {
    /// An error at a line of `text`.
    pub(crate) fn at(text: &str, line: u32, message: impl Into<String>) -> Self {
        let shown = text.lines().nth(line.saturating_sub(1) as usize).unwrap_or_default();
        let mut shown = shown.trim().to_owned();
        if let Some((cut, _)) = shown.char_indices().nth(200) {
            shown.truncate(cut);
            shown.push_str(" ...");
        }
        Self { line, text: shown, message: message.into() }
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PTX line {}: {}: `{}`", self.line, self.message, self.text)
    }
}

impl std::error::Error for ParseError {}
