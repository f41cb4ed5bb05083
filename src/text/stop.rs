//! Stop strings over a stream of token bytes.
//!
//! A stop string may span tokens or end inside one (`.\n\n` is one token in most vocabularies).
//! The matcher walks one failure automaton per string, so its whole state is one number per
//! string and cloning it for a forked branch is cheap. Invariant: the first hit does not depend
//! on how the stream was cut. Read next: [`super::StepSplitter`].

use std::sync::Arc;

/// One stop string with its failure table (Knuth, Morris, Pratt).
#[derive(Debug, PartialEq, Eq)]
struct Pattern {
    bytes: Vec<u8>,
    /// `fallback[n]`: longest proper suffix of the first `n` bytes that is also their prefix.
    fallback: Vec<usize>,
}

impl Pattern {
    fn new(text: String) -> Self {
        let bytes = text.into_bytes();
        let mut fallback = vec![0; bytes.len() + 1];
        let mut matched = 0;
        for at in 1..bytes.len() {
            while matched > 0 && bytes[at] != bytes[matched] {
                matched = fallback[matched];
            }
            if bytes[at] == bytes[matched] {
                matched += 1;
            }
            fallback[at + 1] = matched;
        }
        Self { bytes, fallback }
    }

    /// The number of bytes matched after one more byte, given that `matched` were before.
    fn advance(&self, mut matched: usize, byte: u8) -> usize {
        while matched > 0 && self.bytes[matched] != byte {
            matched = self.fallback[matched];
        }
        matched + usize::from(self.bytes[matched] == byte)
    }
}

/// A set of stop strings, prepared once and shared by every matcher over it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopStrings {
    patterns: Arc<[Pattern]>,
}

impl StopStrings {
    /// Prepares the strings. Indices in [`StopHit`] are positions in `strings`; an empty string
    /// keeps its index and never matches.
    #[must_use]
    pub fn new(strings: Vec<String>) -> Self {
        Self { patterns: strings.into_iter().map(Pattern::new).collect() }
    }

    /// True if nothing can ever match.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.patterns.iter().all(|pattern| pattern.bytes.is_empty())
    }

    /// A matcher at the start of a stream.
    #[must_use]
    pub fn matcher(&self) -> StopMatcher {
        StopMatcher {
            patterns: Arc::clone(&self.patterns),
            matched: vec![0; self.patterns.len()],
            seen_bytes: 0,
        }
    }
}

/// Where a stop string was found, in bytes from the start of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopHit {
    /// Which of the strings.
    pub string: usize,
    /// Offset of its first byte.
    pub start: usize,
    /// Offset just past its last byte.
    pub end: usize,
}

/// Looks for stop strings in a stream that arrives in pieces. Clone it to fork the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopMatcher {
    patterns: Arc<[Pattern]>,
    matched: Vec<usize>,
    seen_bytes: usize,
}

impl StopMatcher {
    /// Adds the bytes of one token. Returns the match that ends earliest; of several that end at
    /// the same byte, the one that starts first.
    ///
    /// After a hit the rest of `bytes` counts towards the offsets but is not searched, and the
    /// next push starts matching afresh: a stopped token is never cut.
    pub fn push(&mut self, bytes: &[u8]) -> Option<StopHit> {
        let base = self.seen_bytes;
        self.seen_bytes += bytes.len();
        for (at, &byte) in bytes.iter().enumerate() {
            let end = base + at + 1;
            let mut hit: Option<StopHit> = None;
            for (string, pattern) in self.patterns.iter().enumerate() {
                if pattern.bytes.is_empty() {
                    continue;
                }
                let matched = pattern.advance(self.matched[string], byte);
                self.matched[string] = matched;
                if matched == pattern.bytes.len() {
                    let start = end - matched;
                    if hit.is_none_or(|other| start < other.start) {
                        hit = Some(StopHit { string, start, end });
                    }
                }
            }
            if hit.is_some() {
                self.restart();
                return hit;
            }
        }
        None
    }

    /// Bytes at the end of the stream that may be the beginning of a stop string. A streaming
    /// client must not be shown them yet.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.matched.iter().copied().max().unwrap_or(0)
    }

    /// Bytes pushed so far.
    #[must_use]
    pub fn seen_bytes(&self) -> usize {
        self.seen_bytes
    }

    /// Forgets partial matches; offsets go on counting.
    pub fn restart(&mut self) {
        self.matched.fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stops(strings: &[&str]) -> StopStrings {
        StopStrings::new(strings.iter().map(ToString::to_string).collect())
    }

    /// The whole text searched by brute force.
    fn naive(strings: &[String], text: &[u8]) -> Option<StopHit> {
        for end in 1..=text.len() {
            let mut best: Option<StopHit> = None;
            for (string, s) in strings.iter().enumerate() {
                if !s.is_empty() && text[..end].ends_with(s.as_bytes()) {
                    let start = end - s.len();
                    if best.is_none_or(|hit| start < hit.start) {
                        best = Some(StopHit { string, start, end });
                    }
                }
            }
            if best.is_some() {
                return best;
            }
        }
        None
    }

    #[test]
    fn a_delimiter_inside_a_token_is_found() {
        let mut matcher = stops(&["\n\n"]).matcher();
        assert_eq!(matcher.push(b"so 4"), None);
        assert_eq!(matcher.push(b".\n\n"), Some(StopHit { string: 0, start: 5, end: 7 }));
    }

    #[test]
    fn a_delimiter_across_tokens_is_found_and_held_back() {
        let mut matcher = stops(&["\n\n", "Answer:"]).matcher();
        assert_eq!(matcher.push(b"x\n"), None);
        assert_eq!(matcher.held_bytes(), 1);
        let fork = matcher.clone();
        assert_eq!(matcher.push(b"\ny"), Some(StopHit { string: 0, start: 1, end: 3 }));
        let mut fork = fork;
        assert_eq!(fork.push(b"Ans"), None);
        assert_eq!(fork.push(b"wer:"), Some(StopHit { string: 1, start: 2, end: 9 }));
    }

    #[test]
    fn a_longer_string_ending_at_the_same_byte_wins() {
        let mut matcher = stops(&["b", "ab", ""]).matcher();
        assert_eq!(matcher.push(b"cab"), Some(StopHit { string: 1, start: 1, end: 3 }));
    }

    #[test]
    fn offsets_go_on_after_a_hit() {
        let mut matcher = stops(&["ab"]).matcher();
        assert_eq!(matcher.push(b"abab").map(|hit| hit.end), Some(2));
        assert_eq!(matcher.push(b"ab").map(|hit| (hit.start, hit.end)), Some((4, 6)));
    }

    proptest! {
        #[test]
        fn the_first_hit_equals_a_search_of_the_whole_text(
            strings in prop::collection::vec("[ab]{0,4}", 0..4),
            tokens in prop::collection::vec("[abc]{0,4}", 0..16),
        ) {
            let text = tokens.concat();
            let mut matcher = StopStrings::new(strings.clone()).matcher();
            let hit = tokens.iter().find_map(|token| matcher.push(token.as_bytes()));
            prop_assert_eq!(hit, naive(&strings, text.as_bytes()));
        }

        #[test]
        fn held_bytes_are_the_longest_prefix_at_the_end(
            strings in prop::collection::vec("[ab]{1,4}", 1..4),
            text in "[abc]{0,20}",
        ) {
            let mut matcher = StopStrings::new(strings.clone()).matcher();
            prop_assume!(matcher.push(text.as_bytes()).is_none());
            let longest = (0..=text.len())
                .filter(|&n| strings.iter().any(|s| s.starts_with(&text[text.len() - n..])))
                .max()
                .unwrap_or(0);
            prop_assert_eq!(matcher.held_bytes(), longest);
        }
    }
}
