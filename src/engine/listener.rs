//! What the listener of a request is told of its growing tail.
//!
//! Ids become text a piece at a time, and never half a character. Tokens beyond a step that is
//! being scored are withheld: invariant, nobody hears of a step before the one before it is
//! decided.

use super::request::{Event, TokenLogprob};
use super::trace;
use crate::ids::{RequestId, TokenId};
use crate::policy::Origin;
use crate::telemetry::Trace;
use crate::text::{Detokenizer, Tokenizer};
use std::sync::Arc;
use std::sync::mpsc::Sender;

/// The sending end of a request's events.
pub(super) struct Listener {
    events: Sender<Event>,
    characters: Detokenizer,
    /// [`Event::Tokens`] in order.
    withheld: Vec<Event>,
    /// Hears of decisions too.
    trace: Option<(Arc<Trace>, RequestId)>,
}

impl Listener {
    pub(super) fn new(events: Sender<Event>, trace: Option<(Arc<Trace>, RequestId)>) -> Self {
        Self { events, characters: Detokenizer::default(), withheld: vec![], trace }
    }

    pub(super) fn tell(&self, event: Event) {
        if let Some((trace, request)) = &self.trace {
            trace::event(trace, *request, &event);
        }
        // A receiver that is gone has set the cancel flag; there is nobody left to tell.
        let _ = self.events.send(event);
    }

    /// `ids` were appended to the tail from `at` on; what lies from `undecided` on is withheld.
    pub(super) fn appended(
        &mut self,
        (at, undecided): (u32, u32),
        ids: &[TokenId],
        origin: Origin,
        logprobs: Vec<TokenLogprob>,
        tokenizer: &Tokenizer,
    ) {
        let text = ids.iter().map(|id| self.characters.push(tokenizer.token_bytes(*id))).collect();
        self.withheld.push(Event::Tokens { at, ids: ids.to_vec(), text, origin, logprobs });
        self.tell_until(undecided);
    }

    /// Tells of everything withheld that begins before tail index `undecided`.
    pub(super) fn tell_until(&mut self, undecided: u32) {
        let told = self.withheld.partition_point(|event| begins_before(event, undecided));
        for event in self.withheld.drain(..told).collect::<Vec<_>>() {
            self.tell(event);
        }
    }

    /// The tail was cut to `len` tokens. A policy rolls back to a step boundary, which is the end
    /// of a whole token: a character that was begun is forgotten.
    pub(super) fn rolled_back(&mut self, len: u32) {
        self.withheld.retain(|event| begins_before(event, len));
        self.characters = Detokenizer::default();
        self.tell(Event::RolledBack { to: len });
    }
}

fn begins_before(event: &Event, index: u32) -> bool {
    matches!(event, Event::Tokens { at, .. } if *at < index)
}
