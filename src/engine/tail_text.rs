//! The text of a growing tail, a piece at a time.

use crate::ids::TokenId;
use crate::text::{Detokenizer, Tokenizer};

/// Turns appended ids into text; never emits half a character.
#[derive(Default)]
pub(super) struct TailText {
    detokenizer: Detokenizer,
}

impl TailText {
    /// The text these ids complete.
    pub(super) fn push(&mut self, ids: &[TokenId], tokenizer: &Tokenizer) -> String {
        ids.iter().map(|id| self.detokenizer.push(tokenizer.token_bytes(*id))).collect()
    }

    /// Forgets a character that was begun and not completed. A policy rolls back to a step
    /// boundary, which is the end of a whole token.
    pub(super) fn roll_back(&mut self) {
        self.detokenizer = Detokenizer::default();
    }
}
