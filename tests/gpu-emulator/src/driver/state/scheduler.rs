//! Which ready operation runs next, and when: everything a real device leaves open, by seed.
//!
//! Four tempers, because each finds another kind of mistake. `seed % 4` picks one, and the rest of
//! the seed shuffles within it:
//! - 0 *last moment*: nothing runs until somebody waits for it, and then only what he waits for.
//!   Finds results that are read, or overwritten on the host, before they can be there.
//! - 1 *others first*: as above, but everything that he does not wait for and that may run, runs
//!   before. Finds buffers that are overwritten while an older operation still needs them.
//! - 2 *whim*: any ready operation, at any call.
//! - 3 *at once*: everything runs when it is enqueued. Finds inputs written after the enqueuing.

use super::queue::OperationId;
use std::collections::BTreeSet;

/// When operations run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Temper {
    /// Only what is waited for, only then.
    LastMoment,
    /// Everything that is not waited for, then what is.
    OthersFirst,
    /// Anything, any time.
    Whim,
    /// Everything as soon as it may.
    AtOnce,
}

/// A small generator of numbers (SplitMix64); equal seeds give equal schedules.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// The dice of that seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// One of `0..count`; `count` is not zero.
    pub fn pick(&mut self, count: usize) -> usize {
        (self.roll() % count as u64) as usize
    }
}

/// Chooses operations.
#[derive(Debug, Clone)]
pub struct Scheduler {
    temper: Temper,
    dice: Dice,
}

impl Scheduler {
    /// The scheduler of that seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let temper = match seed % 4 {
            0 => Temper::LastMoment,
            1 => Temper::OthersFirst,
            2 => Temper::Whim,
            _ => Temper::AtOnce,
        };
        Self { temper, dice: Dice::new(seed) }
    }

    /// Its temper.
    #[must_use]
    pub fn temper(&self) -> Temper {
        self.temper
    }

    /// How many operations to run, unasked, after a call that enqueued something.
    pub fn unasked(&mut self) -> usize {
        match self.temper {
            Temper::LastMoment | Temper::OthersFirst => 0,
            Temper::AtOnce => usize::MAX,
            Temper::Whim => match self.dice.pick(4) {
                0 => 1 + self.dice.pick(4),
                _ => 0,
            },
        }
    }

    /// The next operation to run while somebody waits for `needed`; `None` when none is ready.
    pub fn next(
        &mut self,
        ready: &[OperationId],
        needed: &BTreeSet<OperationId>,
    ) -> Option<OperationId> {
        let (wanted, others): (Vec<_>, Vec<_>) = ready.iter().partition(|id| needed.contains(id));
        let choices = match self.temper {
            // Nothing else can help when what is wanted waits for a word of memory.
            Temper::LastMoment | Temper::AtOnce if wanted.is_empty() => others,
            Temper::LastMoment | Temper::AtOnce => wanted,
            Temper::OthersFirst if !others.is_empty() => others,
            Temper::OthersFirst => wanted,
            Temper::Whim => wanted.into_iter().chain(others).collect(),
        };
        if choices.is_empty() { None } else { Some(choices[self.dice.pick(choices.len())]) }
    }

    /// The next operation to run when nobody waits for anything.
    pub fn any(&mut self, ready: &[OperationId]) -> Option<OperationId> {
        if ready.is_empty() { None } else { Some(ready[self.dice.pick(ready.len())]) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::queue::Queue;
    use super::*;

    /// Two chains, `a1 a2` and `b1 b2`; returns the order in which `a2` was reached.
    fn order(seed: u64) -> Vec<&'static str> {
        let mut queue = Queue::default();
        let a1 = queue.push("a1", []);
        let a2 = queue.push("a2", [a1]);
        let b1 = queue.push("b1", []);
        queue.push("b2", [b1]);
        let mut scheduler = Scheduler::new(seed);
        let needed = queue.needed([a2]);
        let mut order = Vec::new();
        while queue.is_pending(a2) {
            let id = scheduler.next(&queue.ready().collect::<Vec<_>>(), &needed).unwrap();
            order.push(queue.start(id).unwrap());
            queue.finish(id);
        }
        order
    }

    #[test]
    fn at_the_last_moment_only_what_is_waited_for_runs() {
        assert_eq!(order(0), ["a1", "a2"]);
        assert_eq!(order(4), ["a1", "a2"]);
    }

    #[test]
    fn others_first_runs_everything_else_before() {
        assert_eq!(order(1), ["b1", "b2", "a1", "a2"]);
    }

    #[test]
    fn whim_reaches_every_interleaving_over_the_seeds() {
        let orders: BTreeSet<_> = (0..200).map(|n| order(2 + 4 * n)).collect();
        // b1 and b2 may fall in none, one or two of the three gaps before a2: six orders.
        assert_eq!(orders.len(), 6);
    }

    #[test]
    fn a_seed_is_one_schedule() {
        assert_eq!(order(42), order(42));
    }
}
