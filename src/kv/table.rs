//! The sequences of the pool: which pages each holds, in order, and how many tokens of them count.
//!
//! A sequence is one branch of one request on one model. Handles carry a generation, so a handle
//! that outlives its sequence is caught instead of reading somebody else's pages.
//!
//! The one invariant: a sequence of `len` tokens holds exactly the pages `len` tokens need.
//! Read next: [`super::pool`], which keeps it.

use crate::ids::{PageId, Role};

/// A handle of one sequence of the pool. Valid until the sequence is released; every operation
/// panics on a handle that is not, because that is a mistake of the caller, never of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeqId {
    index: u32,
    generation: u32,
}

impl std::fmt::Display for SeqId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "sequence {}.{}", self.index, self.generation)
    }
}

/// One branch of one request on one model.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Sequence {
    /// Whose KV it is.
    pub(super) role: Role,
    /// A scratch sequence never enters the prefix tree.
    pub(super) scratch: bool,
    /// The pages in token order.
    pub(super) pages: Vec<PageId>,
    /// Tokens that count; the last page may have room for more.
    pub(super) len: usize,
}

#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
struct Slot {
    generation: u32,
    live: bool,
    sequence: Sequence,
}

/// All sequences; slots and their page vectors are reused.
#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct SequenceTable {
    slots: Vec<Slot>,
    vacant: Vec<u32>,
}

impl SequenceTable {
    /// A new sequence without pages.
    pub(super) fn insert(&mut self, role: Role, scratch: bool) -> SeqId {
        let index = self.vacant.pop().unwrap_or_else(|| {
            let sequence = Sequence { role, scratch, pages: Vec::new(), len: 0 };
            self.slots.push(Slot { generation: 0, live: false, sequence });
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        slot.live = true;
        slot.sequence.role = role;
        slot.sequence.scratch = scratch;
        SeqId { index, generation: slot.generation }
    }

    /// Ends a sequence that has given up its pages.
    pub(super) fn remove(&mut self, seq: SeqId) {
        let sequence = self.get_mut(seq);
        debug_assert!(sequence.pages.is_empty(), "{seq} still holds pages");
        sequence.len = 0;
        let slot = &mut self.slots[seq.index as usize];
        slot.live = false;
        slot.generation = slot.generation.wrapping_add(1);
        self.vacant.push(seq.index);
    }

    pub(super) fn get(&self, seq: SeqId) -> &Sequence {
        match self.slots.get(seq.index as usize) {
            Some(slot) if slot.live && slot.generation == seq.generation => &slot.sequence,
            _ => panic!("{seq} has been released or is of another pool"),
        }
    }

    pub(super) fn get_mut(&mut self, seq: SeqId) -> &mut Sequence {
        match self.slots.get_mut(seq.index as usize) {
            Some(slot) if slot.live && slot.generation == seq.generation => &mut slot.sequence,
            _ => panic!("{seq} has been released or is of another pool"),
        }
    }

    /// All live sequences.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Sequence> {
        self.slots.iter().filter(|slot| slot.live).map(|slot| &slot.sequence)
    }
}
