//! Passes seen before, as graphs.
//!
//! A pass is a list of launches; everything that varies between two passes of the same shape lies
//! in the staged batch, so an equal list is an equal pass. The first time a list is run launch by
//! launch, the second time it is captured, from then on it is one call. Invariant: a graph is only
//! ever replayed for a list equal to the one it was captured from, compared in full.

use super::driver::Graph;
use super::launch::Launch;
use std::collections::HashMap;

/// Lists remembered per stream; when there are more, the least recently used one goes.
const LISTS_MAX: usize = 64;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Graphs {
    entries: HashMap<u64, Entry>,
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    launches: Vec<Launch>,
    graph: Option<Graph>,
    used: u64,
}

/// What to do with a list.
pub(super) enum Plan<'a> {
    /// Run it launch by launch.
    Launch,
    /// Capture it, and put the graph here.
    Capture(&'a mut Option<Graph>),
    /// Replay this.
    Replay(&'a Graph),
}

impl Graphs {
    /// Decides, and remembers that the list was seen.
    pub(super) fn plan(&mut self, launches: &[Launch]) -> Plan<'_> {
        self.clock += 1;
        let key = fingerprint(launches);
        let known = self.entries.get(&key).is_some_and(|e| e.launches == launches);
        if !known {
            // Two lists with one fingerprint take turns in its place: slower, never wrong.
            let entry = Entry { launches: launches.to_vec(), graph: None, used: self.clock };
            self.entries.insert(key, entry);
            self.forget_one();
            return Plan::Launch;
        }
        let entry = self.entries.get_mut(&key).expect("just seen");
        entry.used = self.clock;
        match entry.graph {
            Some(ref graph) => Plan::Replay(graph),
            None => Plan::Capture(&mut entry.graph),
        }
    }

    fn forget_one(&mut self) {
        if self.entries.len() > LISTS_MAX {
            let oldest = self.entries.iter().min_by_key(|(_, e)| e.used).map(|(key, _)| *key);
            self.entries.remove(&oldest.expect("there are entries"));
        }
    }
}

/// FNV-1a over 64-bit words: a list is some ten thousand of them and hashed once a pass.
fn fingerprint(launches: &[Launch]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |word: u64| hash = (hash ^ word).wrapping_mul(0x0000_0100_0000_01b3);
    for launch in launches {
        add(launch.kernel.as_ptr() as u64);
        launch.grid.iter().for_each(|n| add(u64::from(*n)));
        add(u64::from(launch.threads) << 32 | u64::from(launch.shared_bytes));
        launch.params().iter().for_each(|word| add(*word));
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::super::launch::KernelParams;
    use super::*;
    use bytemuck::{Pod, Zeroable};

    #[derive(Clone, Copy, Pod, Zeroable)]
    #[repr(C)]
    struct Params(u64);

    impl KernelParams for Params {
        const KERNEL: &'static str = "forerun_test";
    }

    fn list(value: u64) -> Vec<Launch> {
        vec![Launch::new([1, 1, 1], 32, 0, &Params(value)); 3]
    }

    #[test]
    fn a_list_is_launched_then_captured() {
        let mut graphs = Graphs::default();
        assert!(matches!(graphs.plan(&list(1)), Plan::Launch));
        assert!(matches!(graphs.plan(&list(2)), Plan::Launch));
        assert!(matches!(graphs.plan(&list(1)), Plan::Capture(_)));
        assert!(matches!(graphs.plan(&list(1)[..2]), Plan::Launch));
    }

    #[test]
    fn the_least_recently_used_list_is_forgotten_first() {
        let mut graphs = Graphs::default();
        for value in 0..LISTS_MAX as u64 {
            graphs.plan(&list(value));
        }
        graphs.plan(&list(0));
        graphs.plan(&list(LISTS_MAX as u64));
        assert_eq!(graphs.entries.len(), LISTS_MAX);
        assert!(matches!(graphs.plan(&list(0)), Plan::Capture(_)));
        assert!(matches!(graphs.plan(&list(1)), Plan::Launch));
    }
}
