//! Which page of the one shared KV pool belongs to which branch of which model.
//!
//! Both models live in one allocation cut into pages of one size; any free page serves either.
//! This module hands out page numbers and lengths and never sees a byte of KV: pure host logic,
//! no device, no clock, the same answers for the same calls.
//!
//! The one invariant: sequences share beginnings. Two holders of a page (sequences, or a sequence
//! and the prefix tree) also share every page before it, and nobody writes a page with two holders.
//!
//! Read next: [`PoolLayout`] (how a page is cut), then [`Pool`] (the operations).

mod layout;
mod pool;
mod prefix;
mod table;
#[cfg(test)]
mod tests;

pub use layout::{ModelKv, PoolLayout};
pub use pool::{Append, PageCopy, Pool};
pub use table::SeqId;
