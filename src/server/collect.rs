//! From an engine's events to the text a client sees.
//!
//! A drafted step may still be taken back, and what went out over HTTP cannot: text is released
//! only once its tokens are *settled*. Settled ids become characters, characters are searched for
//! stop strings, and what remains is divided into reasoning and content; each stage holds back what
//! may still turn out to belong to a stop string or a tag. Invariant: the deltas put together do
//! not depend on how tokens arrived. Read next: [`super::generate`], which drives this.

use super::tools::{Calls, ToolCall};
use crate::engine::{Event, TokenLogprob};
use crate::ids::TokenId;
use crate::policy::{Note, Origin};
use crate::text::{Detokenizer, StopMatcher, StopStrings, Tokenizer};
use std::collections::VecDeque;

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

/// What one event adds to a reply.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Delta {
    /// Of the thinking, where it is told apart.
    pub(super) reasoning: String,
    /// Of the reply.
    pub(super) content: String,
    /// Calls of tools that are complete.
    pub(super) calls: Vec<ToolCall>,
    /// The tokens that settled, where log-probabilities were asked for.
    pub(super) tokens: Vec<(TokenId, TokenLogprob)>,
}

impl Delta {
    /// Whether there is nothing to tell.
    pub(super) fn is_empty(&self) -> bool {
        let Self { reasoning, content, calls, tokens } = self;
        reasoning.is_empty() && content.is_empty() && calls.is_empty() && tokens.is_empty()
    }
}

/// Tokens of a reply by who put them there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) draft: u32,
    pub(super) base: u32,
    pub(super) injected: u32,
    /// Of all these, inside the thinking.
    pub(super) reasoning: u32,
}

impl Counts {
    /// Tokens a model wrote.
    pub(super) fn written(&self) -> u32 {
        self.draft + self.base
    }
}

/// How a reply is to be read.
#[derive(Debug, Clone, Default)]
pub(super) struct Reading {
    /// Strings that end the reply; none of them is part of it.
    pub(super) stop: Vec<String>,
    /// Tell thinking and content apart.
    pub(super) split: bool,
    /// The prompt leaves a thinking open.
    pub(super) thinking: bool,
    /// Steps are written that may be taken back: by whom is said by the event.
    pub(super) steps: bool,
    /// The draft's steps are judged.
    pub(super) judged: bool,
    /// Log-probabilities of tokens may come after the tokens.
    pub(super) told: bool,
    /// Calls of tools are taken out of the content.
    pub(super) calls: bool,
}

/// Collects one reply.
pub(super) struct Collector<'a> {
    tokenizer: &'a Tokenizer,
    /// Tokens that may still be taken back.
    pending: VecDeque<(TokenId, Origin, Option<TokenLogprob>)>,
    /// Tail index of the first of them.
    settled: u32,
    /// Tail index behind the last step that was kept.
    kept: u32,
    /// A token settles only with its log-probability.
    told: bool,
    /// No more steps: every token settles at once.
    answering: bool,
    judged: bool,
    characters: Detokenizer,
    stops: Stops,
    parts: Parts,
    counts: Counts,
}

impl<'a> Collector<'a> {
    /// A collector of ids in `tokenizer`'s numbering.
    pub(super) fn new(tokenizer: &'a Tokenizer, reading: &Reading) -> Self {
        Self {
            tokenizer,
            pending: VecDeque::new(),
            settled: 0,
            kept: 0,
            told: reading.told,
            answering: !reading.steps,
            judged: reading.judged,
            characters: Detokenizer::new(),
            stops: Stops::new(reading.stop.clone()),
            parts: Parts::new(reading.split, reading.thinking, reading.calls),
            counts: Counts::default(),
        }
    }

    /// What an event adds.
    pub(super) fn event(&mut self, event: &Event) -> Delta {
        let mut delta = Delta::default();
        match event {
            Event::Tokens { ids, origin, logprobs, .. } => {
                let mut logprobs = logprobs.iter().cloned();
                self.pending.extend(ids.iter().map(|id| (*id, *origin, logprobs.next())));
            }
            Event::Logprobs { at, logprobs } => {
                let at = at.saturating_sub(self.settled) as usize;
                for (token, logprob) in self.pending.iter_mut().skip(at).zip(logprobs) {
                    token.2 = Some(logprob.clone());
                }
            }
            Event::RolledBack { to } => {
                self.pending.truncate(to.saturating_sub(self.settled) as usize);
            }
            Event::Note(Note::StepKept { end, .. }) => self.kept = *end,
            Event::Note(Note::AnswerBegan { at, .. }) => {
                self.kept = *at;
                self.answering = true;
            }
            _ => {}
        }
        while self.front_is_final() {
            self.settle(&mut delta);
        }
        delta
    }

    /// The end: everything settles, nothing is held back any more.
    pub(super) fn finish(&mut self) -> Delta {
        let mut delta = Delta::default();
        while !self.pending.is_empty() {
            self.settle(&mut delta);
        }
        let rest = self.characters.finish();
        let text = self.stops.push(&rest) + &self.stops.finish();
        self.parts.push(&text, &mut delta);
        self.parts.finish(&mut delta);
        delta
    }

    /// Whether a stop string has come: the reply is complete, whatever follows.
    pub(super) fn is_stopped(&self) -> bool {
        self.stops.hit
    }

    /// The tokens that settled so far.
    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    /// Whether the oldest pending token can no longer be taken back.
    fn front_is_final(&self) -> bool {
        match self.pending.front() {
            None => false,
            Some((.., logprob)) if self.told && logprob.is_none() => false,
            Some(_) if self.answering || self.settled < self.kept => true,
            // An end of turn inside the thinking is replaced by the close marker.
            Some((id, ..)) if self.is_hidden(*id) => false,
            Some((_, Origin::Draft, _)) => !self.judged,
            Some((_, origin, _)) => *origin == Origin::Base,
        }
    }

    fn settle(&mut self, delta: &mut Delta) {
        let Some((id, origin, logprob)) = self.pending.pop_front() else { return };
        self.settled += 1;
        if self.stops.hit {
            return;
        }
        match origin {
            Origin::Draft => self.counts.draft += 1,
            Origin::Base => self.counts.base += 1,
            Origin::Injected => self.counts.injected += 1,
        }
        self.counts.reasoning += u32::from(self.parts.state == State::Thinking);
        delta.tokens.extend(logprob.map(|logprob| (id, logprob)));
        if self.is_hidden(id) {
            return;
        }
        let text = self.characters.push(self.tokenizer.token_bytes(id));
        let text = self.stops.push(&text);
        self.parts.push(&text, delta);
    }

    /// Control tokens are not text; the tags of the thinking are, whatever their kind.
    fn is_hidden(&self, id: TokenId) -> bool {
        let tag = [OPEN.as_bytes(), CLOSE.as_bytes()].contains(&self.tokenizer.token_bytes(id));
        self.tokenizer.is_special(id) && !tag
    }
}

/// Cuts a text at the first stop string.
struct Stops {
    matcher: StopMatcher,
    held: String,
    released_bytes: usize,
    hit: bool,
}

impl Stops {
    fn new(strings: Vec<String>) -> Self {
        let matcher = StopStrings::new(strings).matcher();
        Self { matcher, held: String::new(), released_bytes: 0, hit: false }
    }

    /// The text that can be shown now.
    fn push(&mut self, text: &str) -> String {
        if self.hit {
            return String::new();
        }
        self.held.push_str(text);
        let keep = match self.matcher.push(text.as_bytes()) {
            Some(stop) => {
                self.hit = true;
                stop.start - self.released_bytes
            }
            None => self.held.len() - self.matcher.held_bytes(),
        };
        let rest = self.held.split_off(keep);
        let shown = std::mem::replace(&mut self.held, rest);
        self.released_bytes += shown.len();
        shown
    }

    /// What was held back for a stop string that did not come.
    fn finish(&mut self) -> String {
        let rest = std::mem::take(&mut self.held);
        if self.hit { String::new() } else { rest }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing written yet but space: a tag may open.
    Start,
    /// Between the tags.
    Thinking,
    /// All that comes is content.
    Content,
}

/// Divides a text at the tags of its thinking.
struct Parts {
    state: State,
    held: String,
    /// Space at the beginning of a part is dropped.
    begun: bool,
    split: bool,
    /// Looks for calls of tools in the content.
    calls: Option<Calls>,
}

impl Parts {
    fn new(split: bool, thinking: bool, calls: bool) -> Self {
        let state = if thinking { State::Thinking } else { State::Start };
        let calls = calls.then(Calls::default);
        Self { state, held: String::new(), begun: false, split, calls }
    }

    fn push(&mut self, text: &str, delta: &mut Delta) {
        self.held.push_str(text);
        if self.state == State::Start {
            let written = self.held.trim_start();
            if let Some(rest) = written.strip_prefix(OPEN) {
                let rest = rest.to_owned();
                if !self.split {
                    delta.content.push_str(&self.held[..self.held.len() - rest.len()]);
                }
                (self.held, self.state) = (rest, State::Thinking);
            } else if OPEN.starts_with(written) {
                return;
            } else {
                (self.state, self.begun) = (State::Content, true);
            }
        }
        if self.state == State::Thinking {
            if let Some(at) = self.held.find(CLOSE) {
                let after = self.held.split_off(at);
                self.release(delta);
                self.held = if self.split { after[CLOSE.len()..].to_owned() } else { after };
                (self.state, self.begun) = (State::Content, false);
            } else {
                let tail = (0..CLOSE.len()).rev().find(|n| self.held.ends_with(&CLOSE[..*n]));
                let rest = self.held.split_off(self.held.len() - tail.unwrap_or(0));
                self.release(delta);
                self.held = rest;
                return;
            }
        }
        self.release(delta);
    }

    fn finish(&mut self, delta: &mut Delta) {
        if self.state == State::Start {
            self.begun = true;
        }
        self.release(delta);
        if let Some(calls) = &mut self.calls {
            calls.finish(delta);
        }
    }

    /// Shows what is held as part of the present state.
    fn release(&mut self, delta: &mut Delta) {
        let text = std::mem::take(&mut self.held);
        let text = if self.begun || !self.split { text.as_str() } else { text.trim_start() };
        self.begun |= !text.is_empty();
        match (self.state, &mut self.calls) {
            (State::Thinking, _) if self.split => delta.reasoning.push_str(text),
            (State::Content, Some(calls)) => calls.push(text, delta),
            _ => delta.content.push_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Engine, EngineOptions, Pair};
    use crate::ids::Role;
    use proptest::prelude::*;

    fn parts(pieces: &[&str], split: bool, thinking: bool) -> (String, String) {
        let (mut parts, mut delta) = (Parts::new(split, thinking, false), Delta::default());
        pieces.iter().for_each(|piece| parts.push(piece, &mut delta));
        parts.finish(&mut delta);
        (delta.reasoning, delta.content)
    }

    #[test]
    fn thinking_and_content_are_told_apart_whoever_opened_the_tag() {
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(parts(&["a\n</think>\n\nb "], true, true), pair("a\n", "b "));
        assert_eq!(parts(&[" <think>\na</think>b"], true, false), pair("a", "b"));
        assert_eq!(parts(&["say <think> aloud"], true, false), pair("", "say <think> aloud"));
        assert_eq!(parts(&["a</think>b"], false, true), pair("", "a</think>b"), "left in");
        let whole = " <think>a</think>\nb";
        assert_eq!(parts(&[whole], false, false), pair("", whole), "left as it is");
        assert_eq!(parts(&["  <thi"], true, false), pair("", "  <thi"), "nothing is lost");
        assert_eq!(parts(&["open end </th"], true, true), pair("open end </th", ""));
    }

    proptest! {
        #[test]
        fn the_parts_do_not_depend_on_how_the_text_was_cut(
            cuts in prop::collection::vec(0usize..40, 0..8), split: bool, thinking: bool,
        ) {
            let text = " <think>\nläng < </thi</think>\n\n</think> end";
            let mut cuts: Vec<_> = cuts.into_iter().filter(|c| text.is_char_boundary(*c)).collect();
            cuts.sort_unstable();
            let mut pieces = vec![];
            let mut from = 0;
            for cut in cuts.into_iter().chain([text.len()]) {
                pieces.push(&text[from..cut]);
                from = cut;
            }
            prop_assert_eq!(parts(&pieces, split, thinking), parts(&[text], split, thinking));
        }

        #[test]
        fn text_before_a_stop_string_is_all_that_is_shown(
            text in "[ab]{0,12}", stop in "[ab]{1,4}", cut in 0usize..12,
        ) {
            let mut stops = Stops::new(vec![stop.clone()]);
            let at = cut.min(text.len());
            let shown = stops.push(&text[..at]) + &stops.push(&text[at..]) + &stops.finish();
            prop_assert_eq!(shown, text.split(stop.as_str()).next().unwrap_or_default());
        }
    }

    fn tokens(ids: &[TokenId], origin: Origin) -> Event {
        Event::Tokens { at: 0, ids: ids.to_vec(), text: String::new(), origin, logprobs: vec![] }
    }

    #[test]
    fn a_rejected_step_is_never_shown() {
        let engine = Engine::start(EngineOptions::new(Pair::tiny())).unwrap();
        let tokenizer = engine.tokenizer(Role::Base).unwrap();
        let ids = |text: &str| tokenizer.encode(text).unwrap();
        let reading = Reading { steps: true, judged: true, ..Reading::default() };
        let mut collector = Collector::new(tokenizer, &reading);
        assert!(collector.event(&tokens(&ids("wrong"), Origin::Draft)).is_empty());
        collector.event(&Event::RolledBack { to: 0 });
        let delta = collector.event(&tokens(&ids("right"), Origin::Base));
        assert_eq!(delta.content, "right", "the base's own words are final at once");
        assert_eq!(collector.finish(), Delta::default());
        assert_eq!(collector.counts().written() as usize, ids("right").len());
    }

    #[test]
    fn control_tokens_are_counted_and_not_shown() {
        let engine = Engine::start(EngineOptions::new(Pair::tiny())).unwrap();
        let tokenizer = engine.tokenizer(Role::Base).unwrap();
        let ids = tokenizer.encode("a</think>b<|im_end|>").unwrap();
        let mut collector = Collector::new(tokenizer, &Reading::default());
        let delta = collector.event(&tokens(&ids, Origin::Base));
        assert_eq!(delta.content, "a</think>b");
        assert_eq!(collector.counts().base as usize, ids.len());
    }

    #[test]
    fn calls_of_tools_are_taken_out_of_the_answer_and_not_of_the_thinking() {
        let engine = Engine::start(EngineOptions::new(Pair::tiny())).unwrap();
        let tokenizer = engine.tokenizer(Role::Base).unwrap();
        let call = "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"n\": 1}}\n</tool_call>";
        let ids = tokenizer.encode(&format!("I could {call}</think>\n{call}<|im_end|>")).unwrap();
        for split in [true, false] {
            let reading = Reading { split, thinking: true, calls: true, ..Reading::default() };
            let mut collector = Collector::new(tokenizer, &reading);
            let (mut content, mut reasoning, mut calls) = (String::new(), String::new(), 0);
            let deltas: Vec<_> =
                ids.iter().map(|id| collector.event(&tokens(&[*id], Origin::Base))).collect();
            for delta in deltas.into_iter().chain([collector.finish()]) {
                content.push_str(&delta.content);
                reasoning.push_str(&delta.reasoning);
                calls += delta.calls.len();
            }
            let thought = format!("I could {call}");
            let expected = if split { String::new() } else { thought.clone() + "</think>" };
            assert_eq!((content, calls), (expected, 1));
            assert_eq!(reasoning, if split { thought } else { String::new() });
        }
    }
}
