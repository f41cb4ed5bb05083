//! Gives registers places by their lifetimes, as few planes as are live at once.
//!
//! Compilers write every value to a register of its own; kept apart they would make a warp's
//! registers megabytes that no cache holds. A lane's registers are its own, so lifetimes are those
//! of one thread's program, whatever the other lanes do. A guarded write may leave the old value,
//! so it ends no lifetime.
//! The invariant: two registers share a plane only if no point of the program has both alive.

use super::accesses::{Access, File, each_register, reads_before_writing};
use super::ir::{Instruction, Op};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A register as declared: its first plane and how many it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unit {
    pub(super) plane: u32,
    pub(super) planes: u32,
}

/// Places the registers of a body anew. `units` are all declared data registers, by rising plane;
/// the results are the planes and predicates the body now needs.
pub(super) fn compact(body: &mut [Instruction], units: &[Unit], predicates: u32) -> [u32; 2] {
    let planes = units.last().map_or(0, |unit| unit.plane + unit.planes);
    let mut unit_at = vec![0u32; planes as usize];
    for (index, unit) in units.iter().enumerate() {
        unit_at[unit.plane as usize] = index as u32;
    }
    // Values are numbered: data registers first, then predicates.
    let data = units.len();
    let number = |file: File, index: u32| match file {
        File::Planes => unit_at[index as usize] as usize,
        File::Predicates => data + index as usize,
    };
    let lifetimes = Lifetimes::of(body, data + predicates as usize, &number);
    let mut places = Places::default();
    let mut flags = Places::default();
    let mut place_of = vec![0u32; lifetimes.spans.len()];
    for value in lifetimes.in_order() {
        let (start, end) = lifetimes.spans[value];
        place_of[value] = if value < data {
            places.take(start, end, units[value].planes)
        } else {
            flags.take(start, end, 1)
        };
    }
    for instruction in body {
        if let Some(guard) = &mut instruction.guard {
            guard.predicate = place_of[number(File::Predicates, guard.predicate)];
        }
        each_register(&mut instruction.op, &mut |_, file, index| {
            *index = place_of[number(file, *index)];
        });
    }
    [places.in_use.len() as u32, flags.in_use.len() as u32]
}

/// Where each value is alive, as one span of program points; instruction `i` reads at `2i` and
/// writes at `2i + 1`.
struct Lifetimes {
    /// First and last point, `(MAX, 0)` for a value never touched.
    spans: Vec<(u32, u32)>,
}

impl Lifetimes {
    fn of(body: &mut [Instruction], values: usize, number: &dyn Fn(File, u32) -> usize) -> Self {
        let mut lifetimes = Self { spans: vec![(u32::MAX, 0); values] };
        let blocks = blocks(body);
        let mut flow: Vec<Flow> =
            blocks.iter().map(|block| lifetimes.scan(body, block.clone(), number)).collect();
        let successors: Vec<Vec<usize>> =
            blocks.iter().map(|block| successors(body, &blocks, block.end)).collect();
        settle(&mut flow, &successors);
        for (block, flow) in blocks.iter().zip(&flow) {
            for value in flow.live_in.members() {
                lifetimes.touch(value, 2 * block.start as u32);
            }
            for value in flow.live_out.members() {
                lifetimes.touch(value, 2 * block.end as u32 - 1);
            }
        }
        lifetimes
    }

    fn touch(&mut self, value: usize, point: u32) {
        let (start, end) = &mut self.spans[value];
        *start = point.min(*start);
        *end = point.max(*end);
    }

    /// Records the accesses of a block and sums it up for the data flow.
    fn scan(
        &mut self,
        body: &mut [Instruction],
        block: std::ops::Range<usize>,
        number: &dyn Fn(File, u32) -> usize,
    ) -> Flow {
        let mut flow = Flow::new(self.spans.len());
        for at in block {
            let guard = body[at].guard;
            let point = 2 * at as u32;
            // Where results may not lie on sources they are alive with them.
            let write_point = point + u32::from(reads_before_writing(&body[at].op));
            if let Some(guard) = guard {
                let value = number(File::Predicates, guard.predicate);
                flow.read(value);
                self.touch(value, point);
            }
            let mut written = Vec::new();
            each_register(&mut body[at].op, &mut |access, file, index| {
                let value = number(file, *index);
                if access == Access::Read {
                    flow.read(value);
                    self.touch(value, point);
                } else {
                    written.push(value);
                }
            });
            for value in written {
                self.touch(value, write_point);
                self.touch(value, point + 1);
                if guard.is_none() {
                    flow.killed.insert(value);
                }
            }
        }
        flow
    }

    /// Values that are touched at all, by rising start.
    fn in_order(&self) -> Vec<usize> {
        let mut order: Vec<usize> =
            (0..self.spans.len()).filter(|value| self.spans[*value].0 != u32::MAX).collect();
        order.sort_by_key(|value| self.spans[*value]);
        order
    }
}

/// Runs of instructions entered only at their start and left only at their end.
fn blocks(body: &[Instruction]) -> Vec<std::ops::Range<usize>> {
    let mut starts = vec![false; body.len() + 1];
    starts[0] = true;
    for (at, instruction) in body.iter().enumerate() {
        match &instruction.op {
            Op::Bra { target, .. } => starts[*target as usize] = true,
            Op::BrxIdx { targets, .. } => {
                targets.iter().for_each(|target| starts[*target as usize] = true);
            }
            Op::Ret { .. } | Op::Exit | Op::Trap => {}
            _ => continue,
        }
        starts[at + 1] = true;
    }
    let mut edges: Vec<usize> = (0..body.len()).filter(|at| starts[*at]).collect();
    edges.push(body.len());
    edges.windows(2).map(|pair| pair[0]..pair[1]).collect()
}

/// Blocks that may follow the one ending before `end`.
fn successors(body: &[Instruction], blocks: &[std::ops::Range<usize>], end: usize) -> Vec<usize> {
    let Some(last) = end.checked_sub(1).and_then(|at| body.get(at)) else {
        return Vec::new();
    };
    let mut next: Vec<usize> = match &last.op {
        Op::Bra { target, .. } => vec![*target as usize],
        Op::BrxIdx { targets, .. } => targets.iter().map(|target| *target as usize).collect(),
        _ => Vec::new(),
    };
    let leaves = matches!(
        last.op,
        Op::Bra { .. } | Op::BrxIdx { .. } | Op::Ret { .. } | Op::Exit | Op::Trap
    );
    if !leaves || last.guard.is_some() {
        next.push(end);
    }
    // A target behind the last instruction is a return.
    next.iter().filter_map(|at| blocks.binary_search_by_key(at, |block| block.start).ok()).collect()
}

/// A block's part in the data flow.
struct Flow {
    /// Read before any write of it that ends the old value.
    exposed: Bits,
    /// Written for certain.
    killed: Bits,
    live_in: Bits,
    live_out: Bits,
}

impl Flow {
    fn new(values: usize) -> Self {
        let none = || Bits(vec![0; values.div_ceil(64)]);
        Self { exposed: none(), killed: none(), live_in: none(), live_out: none() }
    }

    fn read(&mut self, value: usize) {
        if !self.killed.contains(value) {
            self.exposed.insert(value);
        }
    }
}

/// Carries liveness backwards until nothing changes.
fn settle(flow: &mut [Flow], successors: &[Vec<usize>]) {
    let mut changes = true;
    while changes {
        changes = false;
        for block in (0..flow.len()).rev() {
            let mut out = std::mem::take(&mut flow[block].live_out);
            for next in &successors[block] {
                out.add(&flow[*next].live_in);
            }
            let Flow { exposed, killed, live_in, live_out } = &mut flow[block];
            for (i, word) in live_in.0.iter_mut().enumerate() {
                let now = exposed.0[i] | (out.0[i] & !killed.0[i]);
                changes |= now != *word;
                *word = now;
            }
            *live_out = out;
        }
    }
}

/// A set of values.
#[derive(Debug, Clone, Default)]
struct Bits(Vec<u64>);

impl Bits {
    fn insert(&mut self, value: usize) {
        self.0[value / 64] |= 1 << (value % 64);
    }

    fn contains(&self, value: usize) -> bool {
        self.0[value / 64] >> (value % 64) & 1 != 0
    }

    fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(word, other)| *word |= other);
    }

    fn members(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().enumerate().flat_map(|(word, bits)| {
            (0..64).filter(move |bit| bits >> bit & 1 != 0).map(move |bit| 64 * word + bit)
        })
    }
}

/// Planes (or predicates) handed out in order of lifetimes' starts.
#[derive(Default)]
struct Places {
    in_use: Vec<bool>,
    /// Ends of what is in use, soonest first.
    ends: BinaryHeap<Reverse<(u32, u32, u32)>>,
}

impl Places {
    /// The lowest place free from `start` to `end`; wide registers are aligned to their width, so
    /// that two never overlap in part.
    fn take(&mut self, start: u32, end: u32, width: u32) -> u32 {
        while let Some(Reverse((last, place, width))) = self.ends.peek().copied() {
            if last >= start {
                break;
            }
            self.ends.pop();
            self.in_use[place as usize..(place + width) as usize].fill(false);
        }
        let step = width as usize;
        let mut place = 0;
        while self.in_use.iter().skip(place).take(step).any(|used| *used) {
            place += step;
        }
        if self.in_use.len() < place + step {
            self.in_use.resize(place + step, false);
        }
        self.in_use[place..place + step].fill(true);
        self.ends.push(Reverse((end, place as u32, width)));
        place as u32
    }
}
