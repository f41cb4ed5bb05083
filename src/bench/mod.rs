//! How fast one model reads and writes: llama-bench's rows on this engine's forward pass.
//!
//! `pp N` reads N tokens with the likeliest next token of the last one; `tg N` feeds N tokens one
//! at a time, each with its likeliest successor, and `tg N x S` does so for S sequences in one pass
//! each, counting the tokens of all. A depth `d` puts d tokens into the KV cache before
//! the clock starts. Invariant: whatever is in the cache is a prefix of one fixed stream of ids, so
//! going from row to row computes only what is missing, and every repetition does the same work.

pub mod cost;
pub mod load;
pub mod overlap;
pub mod roofline;

use crate::device::Device;
use crate::error::LoadError;
use crate::ids::TokenId;
use crate::model::Solo;
use crate::model::checkpoint::Checkpoint;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// What is timed: a prompt or a generation, never both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Tokens read; 0 in a generation.
    pub prompt: usize,
    /// Tokens written; 0 in a prompt.
    pub generate: usize,
    /// Tokens in the cache before.
    pub depth: usize,
    /// Sequences side by side, each with its own cache; 1 in a prompt.
    pub sequences: usize,
}

impl Row {
    /// The name llama-bench gives it; it has none for several sequences.
    #[must_use]
    pub fn name(&self) -> String {
        let mut kind = match self.prompt {
            0 => format!("tg{}", self.generate),
            prompt => format!("pp{prompt}"),
        };
        if self.sequences > 1 {
            kind += &format!(" x{}", self.sequences);
        }
        match self.depth {
            0 => kind,
            depth => format!("{kind} @ d{depth}"),
        }
    }

    /// Tokens computed while the clock runs.
    #[must_use]
    pub fn tokens(&self) -> usize {
        (self.prompt + self.generate) * self.sequences
    }

    /// Tokens of each sequence at the end.
    #[must_use]
    pub fn len(&self) -> usize {
        self.depth + self.prompt + self.generate
    }

    /// Whether nothing is computed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tokens() == 0
    }
}

/// Every combination, prompts before generations; sizes of 0 are left out.
#[must_use]
pub fn rows(
    prompts: &[usize],
    generations: &[usize],
    depths: &[usize],
    sequences: &[usize],
) -> Vec<Row> {
    let mut rows = vec![];
    for depth in depths {
        let sizes = prompts.iter().filter(|n| **n > 0);
        rows.extend(sizes.map(|n| Row { prompt: *n, generate: 0, depth: *depth, sequences: 1 }));
    }
    for depth in depths {
        for sequences in sequences.iter().copied() {
            let row = |n: &usize| Row { prompt: 0, generate: *n, depth: *depth, sequences };
            rows.extend(generations.iter().filter(|n| **n > 0).map(row));
        }
    }
    rows
}

/// A fixed stream of ids that looks like text to a model: `len` ids below `vocab`.
#[must_use]
pub fn stream(len: usize, vocab: usize) -> Vec<TokenId> {
    // The lower half of a vocabulary holds ordinary tokens; special ones come last.
    let ordinary = (vocab as u64 / 2).max(1);
    let mut state = 1_u64;
    let mut next = || {
        // Knuth's MMIX generator; the low bits of such a generator repeat early.
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        TokenId(((state >> 33) % ordinary) as u32)
    };
    (0..len).map(|_| next()).collect()
}

/// Nanoseconds of `repetitions` runs of a row, after one that warms up. `ids` is the stream every
/// row of `solo` uses; `done` is called after each run.
///
/// # Errors
/// When the device fails.
///
/// # Panics
/// If `ids` is shorter than a sequence of the row, or `solo` has fewer sequences.
pub fn measure<D: Device>(
    solo: &mut Solo<D>,
    ids: &[TokenId],
    row: &Row,
    repetitions: usize,
    done: &mut dyn FnMut(),
) -> Result<Vec<u64>, LoadError> {
    let end = row.len();
    assert!(end <= ids.len(), "a row of {end} tokens on a stream of {}", ids.len());
    let rows_max = solo.model().limits().rows;
    for sequence in (0..row.sequences).rev() {
        solo.select(sequence);
        if solo.len() < row.depth {
            let missing = &ids[solo.len()..row.depth];
            for chunk in missing.chunks(rows_max) {
                solo.feed(chunk, vec![])?;
            }
        }
    }
    let mut samples_ns = vec![];
    for repetition in 0..=repetitions {
        for sequence in (0..row.sequences).rev() {
            solo.select(sequence);
            solo.truncate(row.depth);
        }
        let begin = Instant::now();
        if row.prompt > 0 {
            let mut chunks = ids[row.depth..end].chunks(rows_max).peekable();
            while let Some(chunk) = chunks.next() {
                match chunks.peek() {
                    Some(_) => drop(solo.feed(chunk, vec![])?),
                    None => drop(solo.next(chunk)?),
                }
            }
        } else {
            for id in &ids[row.depth..end] {
                solo.next_each(&vec![*id; row.sequences])?;
            }
        }
        let ns = begin.elapsed().as_nanos() as u64;
        if repetition > 0 {
            samples_ns.push(ns);
        }
        done();
    }
    Ok(samples_ns)
}

/// Mean and sample standard deviation; the latter is 0 for a single sample.
#[must_use]
pub fn mean_and_deviation(samples: &[f64]) -> (f64, f64) {
    let n = samples.len() as f64;
    let mean = samples.iter().sum::<f64>() / n.max(1.0);
    if samples.len() < 2 {
        return (mean, 0.0);
    }
    let squares: f64 = samples.iter().map(|s| (s - mean).powi(2)).sum();
    (mean, (squares / (n - 1.0)).sqrt())
}

/// What is known of the model without running it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelFacts {
    /// The file, as the user named it.
    pub model_filename: String,
    /// Family, size and the block type most of its bytes have.
    pub model_type: String,
    /// Bytes of its tensors.
    pub model_size: u64,
    /// Elements of its tensors.
    pub model_n_params: u64,
}

impl ModelFacts {
    /// The facts of an opened model.
    #[must_use]
    pub fn of(checkpoint: &Checkpoint, name: &str) -> Self {
        let tensors = checkpoint.tensors();
        let mut by_type: BTreeMap<&str, u64> = BTreeMap::new();
        for tensor in &tensors {
            *by_type.entry(&tensor.kind).or_default() += tensor.bytes;
        }
        let elements = |shape: &[usize]| shape.iter().map(|n| *n as u64).product::<u64>();
        let params = tensors.iter().map(|t| elements(&t.shape)).sum();
        let kind = by_type.iter().max_by_key(|(_, bytes)| **bytes).map_or("", |(kind, _)| kind);
        let family = checkpoint.architecture().family;
        Self {
            model_filename: name.to_owned(),
            model_type: format!("{family} {} {kind}", parameters(params)),
            model_size: tensors.iter().map(|t| t.bytes).sum(),
            model_n_params: params,
        }
    }
}

/// A count of parameters as llama-bench writes it.
#[must_use]
pub fn parameters(count: u64) -> String {
    match count as f64 {
        n if n >= 1e9 => format!("{:.2} B", n / 1e9),
        n => format!("{:.2} M", n / 1e6),
    }
}

/// A row that was measured, with llama-bench's keys.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measurement {
    /// The model.
    #[serde(flatten)]
    pub model: ModelFacts,
    /// Processor and instruction set.
    pub cpu_info: String,
    /// Where it ran.
    pub backends: &'static str,
    /// Threads that computed.
    pub n_threads: usize,
    /// Rows of one pass at most.
    pub n_ubatch: usize,
    /// Tokens read.
    pub n_prompt: usize,
    /// Tokens written.
    pub n_gen: usize,
    /// Tokens in the cache before.
    pub n_depth: usize,
    /// Sequences side by side.
    pub n_sequences: usize,
    /// When it was measured, in UTC.
    pub test_time: String,
    /// Mean duration.
    pub avg_ns: u64,
    /// Standard deviation of the same.
    pub stddev_ns: u64,
    /// Mean of the tokens a second of each repetition.
    pub avg_ts: f64,
    /// Standard deviation of the same.
    pub stddev_ts: f64,
    /// Duration of each repetition.
    pub samples_ns: Vec<u64>,
    /// Tokens a second of each repetition.
    pub samples_ts: Vec<f64>,
}

impl Measurement {
    /// What a row's samples come to on a device.
    #[must_use]
    pub fn new<D: Device>(
        solo: &Solo<D>,
        model: &ModelFacts,
        row: &Row,
        samples_ns: Vec<u64>,
    ) -> Self {
        let info = solo.device().info();
        let rate = |ns: &u64| row.tokens() as f64 * 1e9 / (*ns).max(1) as f64;
        let samples_ts: Vec<f64> = samples_ns.iter().map(rate).collect();
        let (avg_ts, stddev_ts) = mean_and_deviation(&samples_ts);
        let durations: Vec<f64> = samples_ns.iter().map(|ns| *ns as f64).collect();
        let (avg_ns, stddev_ns) = mean_and_deviation(&durations);
        Self {
            model: model.clone(),
            backends: match info.kind {
                "cuda" if info.is_emulated() => "CUDA (emulated)",
                "cuda" => "CUDA",
                "reference" => "reference",
                _ => "CPU",
            },
            cpu_info: info.name,
            n_threads: info.units,
            n_ubatch: solo.model().limits().rows,
            n_prompt: row.prompt,
            n_gen: row.generate,
            n_depth: row.depth,
            n_sequences: row.sequences,
            test_time: utc(SystemTime::now()),
            avg_ns: avg_ns as u64,
            stddev_ns: stddev_ns as u64,
            avg_ts,
            stddev_ts,
            samples_ns,
            samples_ts,
        }
    }

    /// The row this measures.
    #[must_use]
    pub fn row(&self) -> Row {
        Row {
            prompt: self.n_prompt,
            generate: self.n_gen,
            depth: self.n_depth,
            sequences: self.n_sequences,
        }
    }
}

/// Measurements as llama-bench's markdown table.
#[must_use]
pub fn markdown(measurements: &[Measurement]) -> String {
    let mut out = String::from(
        "| model | size | params | backend | threads | test | t/s |\n\
         | --- | ---: | ---: | --- | ---: | ---: | ---: |\n",
    );
    for m in measurements {
        let (model, size) = (&m.model, m.model.model_size as f64 / (1 << 20) as f64);
        out.push_str(&format!(
            "| {} | {size:.2} MiB | {} | {} | {} | {} | {:.2} ± {:.2} |\n",
            model.model_type,
            parameters(model.model_n_params),
            m.backends,
            m.n_threads,
            m.row().name(),
            m.avg_ts,
            m.stddev_ts
        ));
    }
    out
}

/// A time as `2025-01-31T12:00:00Z`.
fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (mut days, second) = (seconds / 86_400, seconds % 86_400);
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{year}-{month:02}-{:02}T{hour:02}:{minute:02}:{:02}Z", days + 1, second % 60)
}

#[cfg(test)]
mod tests;
