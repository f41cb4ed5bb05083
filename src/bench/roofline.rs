//! Achieved against possible: what each operation of a pass took, and what it could take at best.
//!
//! An operation's bound is the longer of reading its bytes once at the machine's read rate and of
//! its products at the peak of their kind. Invariant: no pass has read faster than the roof it is
//! compared with: the best of them raises it.

use super::Row;
use crate::device::cpu::Roof;
use crate::error::LoadError;
use crate::model::checkpoint::Checkpoint;
use crate::model::forward::Operation;
use crate::model::{Architecture, TensorName};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// The time each operation took, summed over the passes since [`Stopwatch::restart`].
#[derive(Debug, Clone)]
pub struct Stopwatch(Rc<RefCell<Laps>>);

#[derive(Debug)]
struct Laps {
    last: Instant,
    taken: BTreeMap<Operation, Duration>,
}

impl Default for Stopwatch {
    fn default() -> Self {
        Self(Rc::new(RefCell::new(Laps { last: Instant::now(), taken: BTreeMap::new() })))
    }
}

impl Stopwatch {
    /// Forgets what was measured.
    pub fn restart(&self) {
        *self.0.borrow_mut() = Laps { last: Instant::now(), taken: BTreeMap::new() };
    }

    /// An observer for [`crate::model::Solo::observe`]. What the host does between two passes
    /// counts as part of the embedding of the second.
    #[must_use]
    pub fn observer(&self) -> Box<dyn FnMut(Operation)> {
        let laps = Rc::clone(&self.0);
        Box::new(move |operation| {
            let mut laps = laps.borrow_mut();
            let now = Instant::now();
            let lap = now - std::mem::replace(&mut laps.last, now);
            *laps.taken.entry(operation).or_default() += lap;
        })
    }

    /// Seconds of each operation, in the order of a pass.
    #[must_use]
    pub fn seconds(&self) -> BTreeMap<Operation, f64> {
        self.0.borrow().taken.iter().map(|(o, d)| (*o, d.as_secs_f64())).collect()
    }
}

/// What an operation cannot do without.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cost {
    /// Bytes read from memory.
    pub bytes: f64,
    /// Products of int8.
    pub int8_macs: f64,
    /// Products of f32.
    pub float_macs: f64,
}

impl Cost {
    fn add(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.int8_macs += other.int8_macs;
        self.float_macs += other.float_macs;
    }

    /// Seconds under a roof.
    #[must_use]
    pub fn seconds(&self, roof: &Roof) -> f64 {
        let products =
            self.int8_macs / roof.int8_macs_per_s + self.float_macs / roof.float_macs_per_s;
        products.max(self.bytes / roof.bytes_per_s)
    }
}

/// The cost of one run of `row`: every pass reads every weight once, and every key and value that
/// it sees once a sequence. `kv_bytes` is of one element of the pool.
///
/// # Errors
/// If a tensor is missing.
pub fn costs(
    checkpoint: &Checkpoint,
    row: &Row,
    rows_max: usize,
    kv_bytes: usize,
) -> Result<BTreeMap<Operation, Cost>, LoadError> {
    use TensorName as T;
    let a = checkpoint.architecture();
    let mut costs: BTreeMap<Operation, Cost> = BTreeMap::new();
    for (rows, first) in passes(row, rows_max) {
        let mut matrix = |operation, name, rows: usize| -> Result<(), LoadError> {
            let tensor = checkpoint.tensor(name)?;
            let macs = (tensor.rows * tensor.cols * rows) as f64;
            let (int8_macs, float_macs) =
                if tensor.kind.is_plain() { (0.0, macs) } else { (macs, 0.0) };
            let cost = Cost { bytes: tensor.bytes.len() as f64, int8_macs, float_macs };
            costs.entry(operation).or_default().add(cost);
            Ok(())
        };
        for l in 0..a.layers {
            for name in [T::Q(l), T::K(l), T::V(l)] {
                matrix(Operation::Qkv, name, rows * row.sequences)?;
            }
            matrix(Operation::Output, T::O(l), rows * row.sequences)?;
            matrix(Operation::GateUp, T::Gate(l), rows * row.sequences)?;
            matrix(Operation::GateUp, T::Up(l), rows * row.sequences)?;
            matrix(Operation::Down, T::Down(l), rows * row.sequences)?;
        }
        let head = if a.tied_head { T::Embed } else { T::Head };
        // Of a prompt only the last row has a head.
        if row.prompt == 0 || first + rows == row.len() {
            matrix(Operation::Head, head, row.sequences)?;
        }
        let attention = attention(a, first, rows, row.sequences, kv_bytes);
        costs.entry(Operation::Attention).or_default().add(attention);
    }
    Ok(costs)
}

/// Rows of each sequence and the keys before them, pass after pass.
fn passes(row: &Row, rows_max: usize) -> Vec<(usize, usize)> {
    let step = if row.prompt > 0 { rows_max } else { 1 };
    (row.depth..row.len()).step_by(step).map(|at| (step.min(row.len() - at), at)).collect()
}

fn attention(
    a: &Architecture,
    first: usize,
    rows: usize,
    sequences: usize,
    kv_bytes: usize,
) -> Cost {
    let visible: usize = (first + 1..=first + rows).sum();
    let layers = (a.layers * sequences) as f64;
    let per_key = 2 * a.kv_heads * a.head_dim * kv_bytes;
    Cost {
        bytes: layers * ((first + rows) * per_key) as f64,
        int8_macs: 0.0,
        // Scores and weighted values.
        float_macs: layers * (2 * visible * a.heads * a.head_dim) as f64,
    }
}

/// What one row cost and took.
#[derive(Debug, Clone)]
pub struct Profile {
    /// The row.
    pub row: Row,
    /// Of one run.
    pub costs: BTreeMap<Operation, Cost>,
    /// Of all runs.
    pub seconds: BTreeMap<Operation, f64>,
    /// How often it ran.
    pub runs: usize,
}

/// One line of the table.
#[derive(Debug, Clone, PartialEq)]
struct Line {
    /// The row it belongs to, as the bench names it.
    row: String,
    /// The operation, or `all`.
    operation: String,
    /// Milliseconds of one run of the row.
    ms: f64,
    /// Bytes read a second, in GB.
    gb_per_s: f64,
    /// Products a second, in billions.
    gmac_per_s: f64,
    /// Milliseconds it would take under the roof.
    possible_ms: f64,
}

/// The lines of one row.
fn lines(profile: &Profile, roof: &Roof) -> Vec<Line> {
    let Profile { row, costs, seconds, runs } = profile;
    let line = |operation: String, cost: Cost, possible: f64, seconds: f64| Line {
        row: row.name(),
        operation,
        ms: seconds * 1e3,
        gb_per_s: cost.bytes / seconds / 1e9,
        gmac_per_s: (cost.int8_macs + cost.float_macs) / seconds / 1e9,
        possible_ms: possible * 1e3,
    };
    let (mut all, mut possible, mut taken) = (Cost::default(), 0.0, 0.0);
    let mut lines = vec![];
    for (operation, seconds) in seconds {
        let cost = costs.get(operation).copied().unwrap_or_default();
        let (seconds, least) = (seconds / *runs as f64, cost.seconds(roof));
        all.add(cost);
        possible += least;
        taken += seconds;
        let name = match operation {
            Operation::Embed => "host, embedding".to_owned(),
            other => format!("{other:?}").to_lowercase(),
        };
        lines.push(line(name, cost, least, seconds));
    }
    lines.push(line("all".to_owned(), all, possible, taken));
    lines
}

/// The roof, its read rate raised to what the fastest operation reached with more data than a cache
/// holds.
fn raise(roof: &Roof, profiles: &[Profile]) -> Roof {
    let lines = profiles.iter().flat_map(|p| lines(p, roof));
    let fastest = lines.filter(|l| l.operation == "all").map(|l| l.gb_per_s * 1e9);
    Roof { bytes_per_s: fastest.fold(roof.bytes_per_s, f64::max), ..*roof }
}

/// Achieved against possible as a table, under a sentence that names the roof.
#[must_use]
pub fn markdown(roof: &Roof, profiles: &[Profile]) -> String {
    let roof = raise(roof, profiles);
    let giga = |v: f64| v / 1e9;
    let mut out = format!(
        "\nRoof, measured in this run: reads {:.1} GB/s, int8 {:.0} GMAC/s, f32 {:.0} GMAC/s\n\n\
         | test | operation | ms | GB/s | GMAC/s | possible ms | achieved |\n\
         | --- | --- | ---: | ---: | ---: | ---: | ---: |\n",
        giga(roof.bytes_per_s),
        giga(roof.int8_macs_per_s),
        giga(roof.float_macs_per_s)
    );
    for l in profiles.iter().flat_map(|p| lines(p, &roof)) {
        out.push_str(&format!(
            "| {} | {} | {:.2} | {:.1} | {:.0} | {:.2} | {:.0} % |\n",
            l.row,
            l.operation,
            l.ms,
            l.gb_per_s,
            l.gmac_per_s,
            l.possible_ms,
            100.0 * l.possible_ms / l.ms
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOF: Roof = Roof { bytes_per_s: 1e9, int8_macs_per_s: 4e9, float_macs_per_s: 2e9 };

    #[test]
    fn the_bound_is_the_longer_of_reading_and_computing() {
        let cost = |bytes, int8_macs, float_macs| Cost { bytes, int8_macs, float_macs };
        assert_eq!(cost(1e9, 2e9, 0.0).seconds(&ROOF), 1.0);
        assert_eq!(cost(1e9, 4e9, 2e9).seconds(&ROOF), 2.0);
    }

    #[test]
    fn a_prompt_goes_in_passes_and_a_generation_token_by_token() {
        let prompt = Row { prompt: 5, generate: 0, depth: 3, sequences: 1 };
        assert_eq!(passes(&prompt, 4), [(4, 3), (1, 7)]);
        let generation = Row { prompt: 0, generate: 2, depth: 3, sequences: 8 };
        assert_eq!(passes(&generation, 4), [(1, 3), (1, 4)]);
    }

    #[test]
    fn the_sum_of_all_operations_is_the_last_line() {
        let row = Row { prompt: 0, generate: 1, depth: 0, sequences: 1 };
        let cost = Cost { bytes: 1e9, int8_macs: 0.0, float_macs: 0.0 };
        let costs = BTreeMap::from([(Operation::Qkv, cost), (Operation::Down, cost)]);
        let seconds = BTreeMap::from([
            (Operation::Embed, 1.0),
            (Operation::Qkv, 4.0),
            (Operation::Down, 3.0),
        ]);
        let lines = lines(&Profile { row, costs, seconds, runs: 2 }, &ROOF);
        assert_eq!(lines.len(), 4);
        assert_eq!((lines[3].ms, lines[3].possible_ms, lines[3].gb_per_s), (4e3, 2e3, 0.5));
    }

    #[test]
    fn the_roof_is_never_below_what_an_operation_reached() {
        let row = Row { prompt: 0, generate: 1, depth: 0, sequences: 1 };
        let cost = Cost { bytes: 3e9, int8_macs: 0.0, float_macs: 0.0 };
        let costs = BTreeMap::from([(Operation::Down, cost)]);
        let profile =
            Profile { row, costs, seconds: BTreeMap::from([(Operation::Down, 1.0)]), runs: 1 };
        assert_eq!(raise(&ROOF, &[profile]).bytes_per_s, 3e9);
        assert_eq!(raise(&ROOF, &[]).bytes_per_s, 1e9);
    }
}
