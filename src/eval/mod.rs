//! Accuracy, latency and tokens of policies on a file of problems.
//!
//! Every finished request becomes one [`Record`], appended to a state file at once: an evaluation
//! takes hours, and what was measured must survive its end. A table is computed from records alone,
//! so that it does not matter in how many sittings they were made. Invariant: records of one row
//! were made with the same settings; anything else is an error that names the difference.
//! Read next: [`drive`] for the only part that needs an engine, [`table`] for the numbers.

pub mod calibrate;
pub mod drive;
pub mod problem;
pub mod record;
pub mod state;
pub mod table;
#[cfg(test)]
mod tests;

pub use drive::{Job, Variant};
pub use problem::Problem;
pub use record::Record;
pub use state::State;
pub use table::{Row, rows};

use crate::error::RequestError;
use std::hash::Hasher;
use thiserror::Error;

/// Why an evaluation cannot start or go on.
#[derive(Debug, Error)]
pub enum EvalError {
    /// A line of a file is not what it should be.
    #[error("{path}:{line}: {reason}")]
    Line {
        /// The file.
        path: String,
        /// Counted from 1.
        line: usize,
        /// Expected and found.
        reason: String,
    },
    /// The state file holds records of other settings.
    #[error(
        "{path}:{line}: this {policy} record was made with {name} {found}, but this run has \
         {asked}; use the same flags, or another --out file"
    )]
    Settings {
        /// The state file.
        path: String,
        /// Counted from 1.
        line: usize,
        /// Whose record.
        policy: String,
        /// The setting.
        name: String,
        /// What the record has.
        found: String,
        /// What the run has.
        asked: String,
    },
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The system's word.
        source: std::io::Error,
    },
    /// The file has no problems in the asked range.
    #[error("{path}: no problems left: it has {have}, --offset is {offset}")]
    NoProblems {
        /// The file.
        path: String,
        /// Problems in it.
        have: usize,
        /// How many were skipped.
        offset: usize,
    },
    /// The engine refused or failed a problem.
    #[error("problem {id}, policy {policy}: {source}")]
    Request {
        /// The problem.
        id: String,
        /// The policy.
        policy: String,
        /// The engine's word.
        source: RequestError,
    },
}

/// A short name of some texts, the same on every machine and in every version: 64-bit FNV-1a.
fn fingerprint(texts: impl IntoIterator<Item = impl AsRef<[u8]>>) -> String {
    let mut hash = Fnv(0xcbf2_9ce4_8422_2325);
    for text in texts {
        hash.write(text.as_ref());
        // A byte that UTF-8 never holds keeps ("ab", "c") apart from ("a", "bc").
        hash.write(&[0xff]);
    }
    format!("{:016x}", hash.finish())
}

struct Fnv(u64);

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}
