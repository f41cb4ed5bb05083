//! Where a reasoning step ends.
//!
//! A step ends after the whole token that completes its delimiter: ids are never cut, so a step
//! in KV is always a run of whole tokens. Sentence ends are a second, finer boundary that some
//! policies decode up to. Read next: [`super::StopMatcher`].

use std::ops::Range;

use super::stop::{StopMatcher, StopStrings};
use super::tokenizer::Tokenizer;
use crate::ids::TokenId;

/// Tells, token by token, when a step is complete. Clone it to fork.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepSplitter {
    matcher: StopMatcher,
}

impl StepSplitter {
    /// A splitter at the start of a step. An empty delimiter never ends a step.
    #[must_use]
    pub fn new(delimiter: &str) -> Self {
        Self { matcher: StopStrings::new(vec![delimiter.to_owned()]).matcher() }
    }

    /// Adds one token; true if the step ends after it. The next token begins the next step.
    pub fn push(&mut self, token_bytes: &[u8]) -> bool {
        self.matcher.push(token_bytes).is_some()
    }

    /// Forgets a half-seen delimiter, as when a step is cut by its token limit.
    pub fn restart(&mut self) {
        self.matcher.restart();
    }
}

/// The steps of a token sequence, in order and without gaps; the last may be unfinished.
#[derive(Debug, Clone)]
pub struct Steps<'a> {
    ids: &'a [TokenId],
    tokenizer: &'a Tokenizer,
    splitter: StepSplitter,
    at: usize,
}

/// Splits `ids` into steps that end with `delimiter`.
#[must_use]
pub fn steps<'a>(ids: &'a [TokenId], tokenizer: &'a Tokenizer, delimiter: &str) -> Steps<'a> {
    Steps { ids, tokenizer, splitter: StepSplitter::new(delimiter), at: 0 }
}

impl Iterator for Steps<'_> {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        let start = self.at;
        while let Some(&id) = self.ids.get(self.at) {
            self.at += 1;
            if self.splitter.push(self.tokenizer.token_bytes(id)) {
                break;
            }
        }
        (start < self.at).then_some(start..self.at)
    }
}

/// Finds the ends of sentences in a byte stream: `.`, `!` or `?`, then closing quotes or
/// brackets, then white space; or a line break. `3.14` is not an end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SentenceEnd {
    seen_bytes: usize,
    after_mark: bool,
}

impl SentenceEnd {
    /// A matcher at the start of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes. Returns the offset, from the start of the stream, just past the first white
    /// space that confirms an end. The rest of `bytes` is counted but not searched.
    pub fn push(&mut self, bytes: &[u8]) -> Option<usize> {
        let base = self.seen_bytes;
        self.seen_bytes += bytes.len();
        for (at, &byte) in bytes.iter().enumerate() {
            let ends = byte == b'\n' || (self.after_mark && byte.is_ascii_whitespace());
            if ends {
                self.after_mark = false;
                return Some(base + at + 1);
            }
            self.after_mark = match byte {
                b'.' | b'!' | b'?' => true,
                b'"' | b'\'' | b')' | b']' | b'}' | b'*' | b'$' => self.after_mark,
                _ => false,
            };
        }
        None
    }

    /// True if a sentence would end here, should nothing more follow. A caller that wants to stop
    /// before the next token exists asks this, at the risk of cutting `3.` from `14`.
    #[must_use]
    pub fn ends_here(&self) -> bool {
        self.after_mark
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first_end(text: &str) -> Option<usize> {
        SentenceEnd::new().push(text.as_bytes())
    }

    #[test]
    fn a_decimal_point_is_not_the_end_of_a_sentence() {
        assert_eq!(first_end("it is 3.14 and more"), None);
        assert_eq!(first_end("it is 3. Then"), Some(9));
        assert_eq!(first_end("(it is.) Then"), Some(9));
        assert_eq!(first_end("a line\nb"), Some(7));
        assert_eq!(first_end("why?! so"), Some(6));
        assert_eq!(first_end("e.g.x"), None);
    }

    #[test]
    fn a_sentence_end_may_span_tokens() {
        let mut matcher = SentenceEnd::new();
        assert_eq!(matcher.push(b"so 4."), None);
        assert!(matcher.ends_here());
        assert_eq!(matcher.clone().push(b"5"), None);
        assert_eq!(matcher.push(b" Next"), Some(6));
        assert!(!matcher.ends_here());
    }

    #[test]
    fn a_step_splitter_forgets_a_half_delimiter_on_restart() {
        let mut splitter = StepSplitter::new("\n\n");
        assert!(!splitter.push(b"a\n"));
        splitter.restart();
        assert!(!splitter.push(b"\nb"));
        assert!(splitter.push(b"c\n\n\n"));
        assert!(!StepSplitter::new("").push(b"\n\n"));
    }
}
