//! Work that was enqueued and has not run: a graph of operations and what each waits for.
//!
//! Streams, events, the default stream's rules and graphs all reduce to one thing: an operation
//! runs after certain earlier ones. Nothing else orders two operations, so a dependency nobody
//! declared is free to be broken by the [scheduler](super::scheduler).
//! Invariant: `ready` holds exactly the pending operations whose prerequisites have all finished.

use std::collections::{BTreeMap, BTreeSet};

/// An operation, numbered in the order of the calls that enqueued them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OperationId(pub u64);

#[derive(Debug)]
struct Pending<W> {
    work: Option<W>,
    waits_for: BTreeSet<OperationId>,
    followers: Vec<OperationId>,
}

/// The pending operations, each carrying work of type `W`.
#[derive(Debug)]
pub struct Queue<W> {
    next: u64,
    pending: BTreeMap<OperationId, Pending<W>>,
    ready: BTreeSet<OperationId>,
}

impl<W> Default for Queue<W> {
    fn default() -> Self {
        Self { next: 1, pending: BTreeMap::new(), ready: BTreeSet::new() }
    }
}

impl<W> Queue<W> {
    /// Enqueues work behind the operations in `after` (those already finished do not matter).
    pub fn push(&mut self, work: W, after: impl IntoIterator<Item = OperationId>) -> OperationId {
        let id = OperationId(self.next);
        self.next += 1;
        let waits_for: BTreeSet<_> =
            after.into_iter().filter(|other| self.pending.contains_key(other)).collect();
        for other in &waits_for {
            if let Some(other) = self.pending.get_mut(other) {
                other.followers.push(id);
            }
        }
        if waits_for.is_empty() {
            self.ready.insert(id);
        }
        self.pending.insert(id, Pending { work: Some(work), waits_for, followers: Vec::new() });
        id
    }

    /// Whether the operation has not finished.
    #[must_use]
    pub fn is_pending(&self, id: OperationId) -> bool {
        self.pending.contains_key(&id)
    }

    /// Whether anything has not finished.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Every operation that has not finished.
    pub fn pending(&self) -> impl Iterator<Item = OperationId> + '_ {
        self.pending.keys().copied()
    }

    /// The work of an operation that has not started.
    #[must_use]
    pub fn work(&self, id: OperationId) -> Option<&W> {
        self.pending.get(&id)?.work.as_ref()
    }

    /// Operations that could start now, oldest first.
    pub fn ready(&self) -> impl Iterator<Item = OperationId> + '_ {
        self.ready.iter().copied()
    }

    /// Starts a ready operation: it is no longer ready, and still pending until [`Self::finish`].
    pub fn start(&mut self, id: OperationId) -> Option<W> {
        if !self.ready.remove(&id) {
            return None;
        }
        self.pending.get_mut(&id)?.work.take()
    }

    /// Declares a started operation finished; what waited only for it becomes ready.
    pub fn finish(&mut self, id: OperationId) {
        let Some(done) = self.pending.remove(&id) else { return };
        for follower in done.followers {
            let Some(pending) = self.pending.get_mut(&follower) else { continue };
            pending.waits_for.remove(&id);
            if pending.waits_for.is_empty() && pending.work.is_some() {
                self.ready.insert(follower);
            }
        }
    }

    /// The pending operations among `targets` and everything they wait for.
    #[must_use]
    pub fn needed(&self, targets: impl IntoIterator<Item = OperationId>) -> BTreeSet<OperationId> {
        let mut needed = BTreeSet::new();
        let mut open: Vec<_> = targets.into_iter().collect();
        while let Some(id) = open.pop() {
            if let Some(pending) = self.pending.get(&id)
                && needed.insert(id)
            {
                open.extend(&pending.waits_for);
            }
        }
        needed
    }

    /// Drops everything that has not finished, as a device that failed does.
    pub fn abandon(&mut self) {
        self.pending.clear();
        self.ready.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(queue: &Queue<&str>) -> Vec<OperationId> {
        queue.ready().collect()
    }

    #[test]
    fn an_operation_is_ready_when_all_it_waits_for_has_finished() {
        let mut queue = Queue::default();
        let a = queue.push("a", []);
        let b = queue.push("b", []);
        let c = queue.push("c", [a, b]);
        assert_eq!(ready(&queue), [a, b]);
        assert_eq!(queue.start(c), None);
        assert_eq!(queue.start(a), Some("a"));
        assert_eq!(ready(&queue), [b]);
        queue.finish(a);
        assert_eq!(ready(&queue), [b]);
        queue.start(b);
        queue.finish(b);
        assert_eq!(ready(&queue), [c]);
        assert!(queue.is_pending(c) && !queue.is_pending(a));
    }

    #[test]
    fn a_finished_prerequisite_holds_nobody_up() {
        let mut queue = Queue::default();
        let a = queue.push("a", []);
        queue.start(a);
        queue.finish(a);
        let b = queue.push("b", [a]);
        assert_eq!(ready(&queue), [b]);
    }

    #[test]
    fn needed_is_the_targets_and_what_they_wait_for_and_nothing_else() {
        let mut queue = Queue::default();
        let a = queue.push("a", []);
        let b = queue.push("b", [a]);
        let other = queue.push("other", []);
        let c = queue.push("c", [b]);
        let after = queue.push("after", [c]);
        let needed = queue.needed([c]);
        assert_eq!(needed.into_iter().collect::<Vec<_>>(), [a, b, c]);
        assert!(queue.is_pending(other) && queue.is_pending(after));
    }
}
