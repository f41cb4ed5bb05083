//! A branch whose tokens have to follow a grammar.
//!
//! The grammar binds from the first token of the reply, or from the first after its thinking: the
//! close marker is looked for in the bytes of the tail, whoever wrote them, so it does not matter
//! in which step or window it came. A token under the grammar is drawn on the host, from the
//! model's raw row; such a row has no part in a chain of passes that runs ahead. Invariant: what
//! the constraint was told is the tail from its beginning on.

use super::assemble;
use super::live::{Live, Task, Vocabulary};
use crate::error::RequestError;
use crate::ids::{BranchId, Role, TokenId};
use crate::sample::{self, Constraint, Grammar, History, Sampled, Scratch};
use crate::text::{StopMatcher, StopStrings, Tokenizer};

const CLOSE: &str = "</think>";

/// See the module.
pub(super) struct Guard {
    grammar: Grammar,
    /// Looks for the end of the thinking; nothing where the grammar binds from the start.
    close: StopStrings,
    matcher: StopMatcher,
    /// Tail tokens looked at for it.
    scanned: usize,
    /// Tail index from which on the grammar binds, once known.
    start: Option<usize>,
    constraint: Box<dyn Constraint>,
    /// Tail tokens it was told of, from `start` on.
    told: usize,
}

impl Guard {
    /// Of an empty tail; `thinking` is open at its beginning or not.
    pub(super) fn new(grammar: Grammar, thinking: bool) -> Self {
        let close = StopStrings::new(vec![CLOSE.into()]);
        let start = (!thinking).then_some(0);
        let (matcher, constraint) = (close.matcher(), grammar.begin());
        Self { grammar, close, matcher, scanned: 0, start, constraint, told: 0 }
    }

    /// Another for a fork of the branch.
    pub(super) fn fork(&self) -> Self {
        Self {
            grammar: self.grammar.clone(),
            close: self.close.clone(),
            matcher: self.matcher.clone(),
            constraint: self.constraint.fork(),
            ..*self
        }
    }

    /// Looks at what the tail has become; whether its next token is bound.
    pub(super) fn binds(&mut self, tail: &[TokenId], tokenizer: &Tokenizer) -> bool {
        while self.start.is_none() && self.scanned < tail.len() {
            let bytes = tokenizer.token_bytes(tail[self.scanned]);
            self.scanned += 1;
            if self.matcher.push(bytes).is_some() {
                self.start = Some(self.scanned);
            }
        }
        self.start.is_some()
    }

    /// The tail was cut to `len` tokens.
    pub(super) fn cut(&mut self, len: usize) -> Result<(), RequestError> {
        match self.start {
            Some(start) if start <= len => {
                let gone = self.told.saturating_sub(len - start);
                self.told -= gone;
                if gone > 0 {
                    self.constraint.forget(gone).map_err(failed)?;
                }
            }
            // The marker went too, or was never there.
            _ if self.scanned > len => {
                *self = Self::new(self.grammar.clone(), true);
            }
            _ => {}
        }
        Ok(())
    }

    /// The tokens of which the next one is drawn, base numbering: bit `id % 32` of word `id / 32`.
    pub(super) fn allowed(&mut self, tail: &[TokenId]) -> Result<Vec<u32>, RequestError> {
        let start = self.start.expect("a bound token");
        let new = &tail[start + self.told..];
        self.constraint.push(new).map_err(failed)?;
        self.told += new.len();
        self.constraint.allowed().map_err(failed)
    }
}

/// Draws the next token of a decode under its branch's grammar, from the model's row of logits.
pub(super) fn draw(
    at: (Role, BranchId),
    live: &mut Live,
    vocabulary: &Vocabulary,
    logits: &[f32],
) -> Result<Sampled, RequestError> {
    let (role, branch) = at;
    let tail = live.branches.get_mut(&branch).expect("live branch");
    let allowed = tail.guard.as_mut().expect("a bound token").allowed(&tail.ids)?;
    let Some(Task::Decode(task)) = &tail.tasks[role.index()] else {
        unreachable!("only a decode draws")
    };
    let params = &task.decode.sampling;
    let history = History { prompt: &live.prompts[role.index()], generated: &tail.ids };
    let key = assemble::key(params, (role, task.decode.draws_as), tail.ids.len());
    let allows = |own| allows(&allowed, vocabulary, role, own);
    Ok(sample::sample_allowed(logits, allows, params, &history, &key, &mut Scratch::default()))
}

/// Whether `own`, in the numbering of `role`, is among the allowed.
fn allows(allowed: &[u32], vocabulary: &Vocabulary, role: Role, own: TokenId) -> bool {
    let id = if role == Role::Base { Some(own) } else { vocabulary.map.to_base(own) };
    let bit = |id: TokenId| Some(allowed.get(id.index() / 32)? >> (id.0 % 32) & 1 == 1);
    id.and_then(bit).unwrap_or(false)
}

fn failed(reason: String) -> RequestError {
    RequestError::Invalid { field: "response_format", reason }
}
