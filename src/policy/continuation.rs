//! One model writes on until something ends it: no steps, no judge, no answer phase.
//!
//! This is what a plain completion asks of the base or the draft alone. Invariant: one decode, then
//! one [`Command::Finish`].

use super::{Command, Decode, FinishWhy, Outcome, Policy, StopCause, Tails, Turn};

/// The machine. See the module.
pub struct Continuation {
    decode: Option<Decode>,
}

impl Continuation {
    /// A machine at its start; `decode` says who writes and what ends it.
    #[must_use]
    pub fn new(decode: Decode) -> Self {
        Self { decode: Some(decode) }
    }
}

impl Policy for Continuation {
    fn next(&mut self, _tails: &dyn Tails, outcome: Outcome) -> Turn {
        let command = match outcome {
            Outcome::Started => self.decode.take().map(Command::Decode),
            Outcome::Decoded { stop: StopCause::Limit | StopCause::Context, .. } => {
                Some(Command::Finish { why: FinishWhy::Length })
            }
            Outcome::Decoded { .. } => Some(Command::Finish { why: FinishWhy::Stop }),
            Outcome::Cancelled { .. } => Some(Command::Finish { why: FinishWhy::Cancelled }),
            _ => None,
        };
        Turn { commands: command.into_iter().collect(), notes: vec![] }
    }
}
