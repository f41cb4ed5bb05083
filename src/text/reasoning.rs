//! Inside or outside of `<think>`.
//!
//! Models open the tag themselves or find it opened by the prompt, and tags are one added token
//! or several ordinary ones. One small machine serves all four cases: it is fed tokens, first the
//! open turn of the prompt, then what is generated. Invariant: thinking happens once; after the
//! close tag nothing reopens it. Read next: [`super::StopMatcher`] for tags that are plain text.

use super::id_map::SpecialRoles;
use super::stop::{StopMatcher, StopStrings};
use super::tokenizer::Tokenizer;
use crate::ids::TokenId;

/// Where a sequence stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReasoningState {
    /// Not thinking yet.
    Outside,
    /// Between the tags.
    Thinking,
    /// Past the close tag: the answer.
    Done,
}

/// The tags of a model, as ids where they are single tokens, else as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReasoningTags {
    /// Id of the opening tag, if it is one added token.
    pub open: Option<TokenId>,
    /// Id of the closing tag, if it is one added token.
    pub close: Option<TokenId>,
    /// Text of the opening tag.
    pub open_text: String,
    /// Text of the closing tag.
    pub close_text: String,
}

impl ReasoningTags {
    /// `<think>` and `</think>` with the ids of a model's roles.
    #[must_use]
    pub fn think(roles: &SpecialRoles) -> Self {
        Self {
            open: roles.think,
            close: roles.close_think,
            open_text: "<think>".to_owned(),
            close_text: "</think>".to_owned(),
        }
    }
}

const OPEN: usize = 0;
const CLOSE: usize = 1;

/// Follows the state token by token. Clone it to fork.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReasoningTracker {
    state: ReasoningState,
    open: Option<TokenId>,
    close: Option<TokenId>,
    /// Only the tags without an id.
    texts: StopMatcher,
}

impl ReasoningTracker {
    /// A tracker outside of any tag.
    #[must_use]
    pub fn new(tags: &ReasoningTags) -> Self {
        let text = |id: Option<TokenId>, text: &String| {
            // An empty string never matches: a tag with an id is found by id alone.
            if id.is_some() { String::new() } else { text.clone() }
        };
        let texts = vec![text(tags.open, &tags.open_text), text(tags.close, &tags.close_text)];
        Self {
            state: ReasoningState::Outside,
            open: tags.open,
            close: tags.close,
            texts: StopStrings::new(texts).matcher(),
        }
    }

    /// A tracker at the end of a rendered prompt. Only the turn left open counts: whatever stands
    /// before the last control token (a user quoting `<think>`, an earlier answer) is ignored.
    #[must_use]
    pub fn after_prompt(tags: &ReasoningTags, tokenizer: &Tokenizer, prompt: &[TokenId]) -> Self {
        let mut tracker = Self::new(tags);
        let tag = |id: TokenId| Some(id) == tags.open || Some(id) == tags.close;
        let turn = prompt.iter().rposition(|&id| tokenizer.is_special(id) && !tag(id));
        for &id in &prompt[turn.map_or(0, |at| at + 1)..] {
            tracker.push(id, tokenizer.token_bytes(id));
        }
        tracker
    }

    /// Adds one token and returns the state after it.
    pub fn push(&mut self, id: TokenId, token_bytes: &[u8]) -> ReasoningState {
        let hit = self.texts.push(token_bytes).map(|hit| hit.string);
        let opens = hit == Some(OPEN) || self.open == Some(id);
        let closes = hit == Some(CLOSE) || self.close == Some(id);
        self.state = match self.state {
            ReasoningState::Outside if opens => ReasoningState::Thinking,
            // A close tag without an open one: the prompt opened it in a way that was not seen.
            ReasoningState::Outside | ReasoningState::Thinking if closes => ReasoningState::Done,
            state => state,
        };
        self.state
    }

    /// The state now.
    #[must_use]
    pub fn state(&self) -> ReasoningState {
        self.state
    }
}

/// A finished text, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplitText {
    /// What was thought, without tags; `None` if nothing was opened.
    pub reasoning: Option<String>,
    /// What follows the close tag; empty if thinking never ended.
    pub answer: String,
}

/// Splits a generated text at the tags. `started_thinking` says that the prompt had opened the
/// tag already. White space around the parts is dropped.
#[must_use]
pub fn split_reasoning(text: &str, tags: &ReasoningTags, started_thinking: bool) -> SplitText {
    let trimmed = text.trim_start();
    let opened = trimmed.strip_prefix(tags.open_text.as_str());
    let body = opened.unwrap_or(text);
    match body.split_once(tags.close_text.as_str()) {
        Some((reasoning, answer)) => SplitText {
            reasoning: Some(reasoning.trim().to_owned()),
            answer: answer.trim().to_owned(),
        },
        None if started_thinking || opened.is_some() => {
            SplitText { reasoning: Some(body.trim().to_owned()), answer: String::new() }
        }
        None => SplitText { reasoning: None, answer: text.trim().to_owned() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(open: Option<u32>, close: Option<u32>) -> ReasoningTags {
        ReasoningTags::think(&SpecialRoles {
            think: open.map(TokenId),
            close_think: close.map(TokenId),
            ..SpecialRoles::default()
        })
    }

    #[test]
    fn tags_with_ids_are_found_by_id_and_not_by_text() {
        let mut tracker = ReasoningTracker::new(&tags(Some(3), Some(4)));
        assert_eq!(tracker.push(TokenId(9), b"<think>"), ReasoningState::Outside);
        assert_eq!(tracker.push(TokenId(3), b"<think>"), ReasoningState::Thinking);
        assert_eq!(tracker.push(TokenId(9), b"</think>"), ReasoningState::Thinking);
        assert_eq!(tracker.push(TokenId(4), b"</think>"), ReasoningState::Done);
        assert_eq!(tracker.push(TokenId(3), b"<think>"), ReasoningState::Done);
    }

    #[test]
    fn tags_of_several_tokens_are_found_by_text() {
        let mut tracker = ReasoningTracker::new(&tags(None, None));
        for (bytes, state) in [
            (&b"<th"[..], ReasoningState::Outside),
            (b"ink>\n", ReasoningState::Thinking),
            (b"so 4</", ReasoningState::Thinking),
            (b"think", ReasoningState::Thinking),
            (b">\n\n", ReasoningState::Done),
        ] {
            assert_eq!(tracker.push(TokenId(0), bytes), state);
        }
    }

    #[test]
    fn a_finished_text_is_split_whoever_opened_the_tag() {
        let tags = tags(None, None);
        let split = |text, started| split_reasoning(text, &tags, started);
        let parts = |reasoning: Option<&str>, answer: &str| SplitText {
            reasoning: reasoning.map(str::to_owned),
            answer: answer.to_owned(),
        };
        assert_eq!(split("<think>\na\n</think>\n\nb", false), parts(Some("a"), "b"));
        assert_eq!(split("a\n</think>\n\nb", true), parts(Some("a"), "b"));
        assert_eq!(split("a\n</think>\n\nb", false), parts(Some("a"), "b"));
        assert_eq!(split("a and more", true), parts(Some("a and more"), ""));
        assert_eq!(split("just b", false), parts(None, "just b"));
    }
}
