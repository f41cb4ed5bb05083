//! What happens before what inside one CTA: the clocks behind the race detector.
//!
//! One time runs for the whole CTA and steps at every synchronisation. An access is stamped with
//! the time at which it was made. A warp knows, of every warp, the time up to which that warp's
//! accesses are ordered before its own; of itself it knows the time up to which its *lanes* are
//! ordered among each other, because lockstep is not assumed. Partial `bar.warp.sync` masks are
//! kept lane by lane, beside, in a table only kernels that use them pay for.
//! Invariant: an access stamped `t` by warp `v` happens before what warp `w` does now
//! if and only if `t <= known[w][v]` (for `v == w`: or the lanes are equal or paired).

/// Warps a CTA can have.
pub(crate) const WARPS: usize = 32;
/// Stamps keep 22 bits of time.
pub(crate) const LAST_TIME: u32 = (1 << 22) - 1;

/// Time up to which each warp's accesses are known.
pub(crate) type Knowledge = [u32; WARPS];

/// The clocks of one CTA.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    /// The time now.
    pub(crate) now: u32,
    warps: usize,
    known: [Knowledge; WARPS],
    /// The least of `known[w]` over the CTA's warps: what is older needs no closer look.
    floor: [u32; WARPS],
    /// `pairs[w][i][j]`: time up to which lane j's accesses are ordered before lane i's.
    pairs: Vec<Option<Box<[[u32; 32]; 32]>>>,
}

impl Order {
    /// Clocks of a CTA of `warps` warps.
    pub(crate) fn new(warps: usize) -> Self {
        Self {
            now: 1,
            warps,
            known: [[0; WARPS]; WARPS],
            floor: [0; WARPS],
            pairs: vec![None; WARPS],
        }
    }

    /// The next CTA: everything so far is over. True when stamps must be cleared first because
    /// time has started again.
    pub(crate) fn next_cta(&mut self, warps: usize) -> bool {
        let restart = self.now > LAST_TIME / 2;
        self.warps = warps;
        if restart {
            *self = Self::new(warps);
        } else {
            let past = self.step();
            self.everybody_knows(past);
        }
        restart
    }

    /// Ends the present moment and returns it.
    fn step(&mut self) -> u32 {
        let past = self.now;
        // At the end of time every access is stamped alike and nothing is reported any more.
        self.now = (self.now + 1).min(LAST_TIME);
        past
    }

    fn everybody_knows(&mut self, past: u32) {
        for warp in 0..self.warps {
            self.known[warp][..self.warps].fill(past);
            self.floor[warp] = past;
        }
    }

    fn set_floor(&mut self, warp: usize) {
        self.floor[warp] = self.known[warp][..self.warps].iter().copied().min().unwrap_or(0);
    }

    /// The time nothing older than which can race with warp `warp`.
    #[inline(always)]
    pub(crate) fn floor(&self, warp: usize) -> u32 {
        self.floor[warp]
    }

    /// What `warp` knows of `other`.
    #[inline(always)]
    pub(crate) fn known(&self, warp: usize, other: usize) -> u32 {
        self.known[warp][other]
    }

    /// What `warp` knows of all warps.
    #[inline(always)]
    pub(crate) fn knowledge(&self, warp: usize) -> &Knowledge {
        &self.known[warp]
    }

    /// Whether everything lane `other` of the same warp did up to `time` is ordered before `lane`.
    pub(crate) fn lanes_ordered(&self, warp: usize, lane: usize, other: usize, time: u32) -> bool {
        lane == other
            || time <= self.known[warp][warp]
            || self.pairs[warp].as_ref().is_some_and(|pairs| time <= pairs[lane][other])
    }

    /// What a warp that arrives at a barrier makes known to those who wait there.
    pub(crate) fn release(&mut self, warp: usize) -> Knowledge {
        let past = self.step();
        let mut knowledge = self.known[warp];
        knowledge[warp] = past;
        knowledge
    }

    /// A warp comes out of a barrier knowing what those who arrived made known.
    pub(crate) fn acquire(&mut self, warp: usize, knowledge: &Knowledge) {
        for (mine, theirs) in self.known[warp].iter_mut().zip(knowledge) {
            *mine = (*mine).max(*theirs);
        }
        self.set_floor(warp);
    }

    /// All warps of the CTA met: everything before is ordered before everything after. True when
    /// stamps must be cleared because time has started again.
    pub(crate) fn everybody_met(&mut self) -> bool {
        if self.now > LAST_TIME / 2 {
            *self = Self::new(self.warps);
            return true;
        }
        let past = self.step();
        self.everybody_knows(past);
        false
    }

    /// `bar.warp.sync`: the lanes of `mask` met; `all` when no living lane is missing.
    pub(crate) fn lanes_met(&mut self, warp: usize, mask: u32, all: bool) {
        let past = self.step();
        if all {
            self.known[warp][warp] = past;
            self.set_floor(warp);
            return;
        }
        let pairs = self.pairs[warp].get_or_insert_with(|| Box::new([[0; 32]; 32]));
        let members = || (0..32usize).filter(move |lane| mask >> lane & 1 == 1);
        let mut joined = [0u32; 32];
        for lane in members() {
            for (all, one) in joined.iter_mut().zip(&pairs[lane]) {
                *all = (*all).max(*one);
            }
        }
        for lane in members() {
            joined[lane] = past;
        }
        for lane in members() {
            pairs[lane] = joined;
        }
    }
}

/// Takes the later of two knowledges.
pub(crate) fn join(into: &mut Knowledge, from: &Knowledge) {
    for (all, one) in into.iter_mut().zip(from) {
        *all = (*all).max(*one);
    }
}
