//! Heads that never store a row of logits: the largest one, and the sum of exponentials.
//!
//! The vocabulary is cut into chunks of 256 features. Each chunk of each row is reduced as soon as
//! its logits exist, to a maximum, where it is, and the sum of exponentials relative to it; the
//! chunks are then combined in order. Invariant: chunks and their order are fixed, so the results
//! depend neither on the threads nor on the other rows. Read next: `multiply`.

use super::layout::PANEL;
use super::multiply::{STRIP_PANELS, check, each_strip};
use super::{Activations, Matrix};
use crate::config::FIRST_IDS_STEP;
use crate::device::cpu::simd::{Kernel, Simd, SimdLevel};
use crate::device::cpu::threads::Threads;

/// Features reduced together: one strip.
const CHUNK: usize = STRIP_PANELS * PANEL;
const _: () = assert!(FIRST_IDS_STEP.is_multiple_of(CHUNK), "the first ids are whole chunks");

/// What is wanted of one row of logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScanRow {
    /// It looks at the first so many ids: all of them, or whole chunks.
    pub ids: usize,
    /// The id whose logit is told too.
    pub target: Option<usize>,
}

/// What a head found in one row of logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowSummary {
    /// The largest logit's index, ties to the lower one.
    pub id: usize,
    /// The largest logit.
    pub logit: f32,
    /// `ln Σ exp(logit)`, in nats; 0 unless asked for.
    pub log_sum_exp: f32,
    /// The logit of this row's target; 0 without one.
    pub target_logit: f32,
    /// No logit is a NaN or an infinity. Otherwise the other fields are meaningless.
    pub finite: bool,
}

/// One chunk of one row.
#[derive(Debug, Clone, Copy)]
struct Partial {
    max: f32,
    id: usize,
    /// `Σ exp(logit - max)`.
    sum: f32,
    target: f32,
    finite: bool,
}

impl Partial {
    const NONE: Self = Self { max: f32::NEG_INFINITY, id: 0, sum: 0.0, target: 0.0, finite: true };
}

/// Streams heads; keeps its scratch memory from call to call.
#[derive(Debug, Default)]
pub struct HeadScan {
    /// `[T][chunks]`.
    partials: Vec<Partial>,
    rows: Vec<RowSummary>,
}

impl HeadScan {
    /// One summary per row of `x`, each as `wanted` says.
    ///
    /// # Panics
    /// If the shapes disagree, a target is no row of `w`, `x` was prepared without the form `w`
    /// needs, or a row looks at a part of a chunk.
    pub fn scan(
        &mut self,
        threads: &Threads,
        simd: SimdLevel,
        w: &Matrix,
        x: &Activations,
        log_sum_exp: bool,
        wanted: &[ScanRow],
    ) -> &[RowSummary] {
        check(w, x);
        assert_eq!(wanted.len(), x.rows(), "what is wanted of each row");
        let whole = |ids: usize| ids == w.rows || ids < w.rows && ids.is_multiple_of(CHUNK);
        assert!(wanted.iter().all(|row| whole(row.ids)), "whole chunks of {}", w.rows);
        let mut targets = wanted.iter().filter_map(|row| row.target);
        assert!(targets.all(|target| target < w.rows), "targets below {}", w.rows);
        // No row asks for more.
        let most = wanted.iter().map(|row| row.ids).max().unwrap_or(w.rows);
        let chunks = most.div_ceil(CHUNK);
        self.partials.clear();
        self.partials.resize(x.rows() * chunks, Partial::NONE);
        let places = Places(self.partials.as_mut_ptr());
        threads.run(chunks, &|chunk| {
            let panels = chunk * STRIP_PANELS..w.panels().min((chunk + 1) * STRIP_PANELS);
            each_strip(simd, [w], x, panels, STRIP_PANELS, &mut |strip| {
                let [values] = strip.values;
                let logits = &values[..strip.columns.len()];
                let mut partial = simd.dispatch(Reduce { logits, log_sum_exp });
                partial.id += strip.columns.start;
                if let Some(target) = wanted[strip.row].target
                    && strip.columns.contains(&target)
                {
                    partial.target = logits[target - strip.columns.start];
                }
                // SAFETY: the vector has a place for every row and chunk, and stays borrowed; this
                // task is the only one with this chunk.
                unsafe { places.at(strip.row * chunks + chunk).write(partial) };
            });
        });
        self.rows.clear();
        let rows = self.partials.chunks_exact(chunks).zip(wanted);
        let own = |wanted: &ScanRow| wanted.ids.div_ceil(CHUNK);
        self.rows.extend(rows.map(|(row, wanted)| combine(&row[..own(wanted)], log_sum_exp)));
        &self.rows
    }
}

/// Where chunks leave their results, from several threads.
struct Places(*mut Partial);

// SAFETY: every task writes places of its own chunk only.
unsafe impl Sync for Places {}

impl Places {
    /// # Safety
    /// `index` is inside the vector.
    unsafe fn at(&self, index: usize) -> *mut Partial {
        // SAFETY: by the contract of this function.
        unsafe { self.0.add(index) }
    }
}

/// Reduces the logits of one chunk; the id is relative to the chunk.
struct Reduce<'a> {
    logits: &'a [f32],
    log_sum_exp: bool,
}

impl Kernel for Reduce<'_> {
    type Output = Partial;
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Partial {
        // Features that do not exist count as minus infinity: never the largest, exponential 0.
        let mut logits = [f32::NEG_INFINITY; CHUNK];
        logits[..self.logits.len()].copy_from_slice(self.logits);
        let mut largest = simd.splat(f32::NEG_INFINITY);
        for values in logits.chunks_exact(S::LANES) {
            largest = simd.max(simd.load(values), largest);
        }
        let max = simd.max_lane(largest);
        let finite = self.logits.iter().all(|v| v.is_finite());
        let id = self.logits.iter().position(|v| *v == max).unwrap_or(0);
        let mut sum = simd.splat(0.0);
        if self.log_sum_exp {
            for values in logits.chunks_exact(S::LANES) {
                let relative = simd.sub(simd.load(values), simd.splat(max));
                sum = simd.add(sum, simd.exp(relative));
            }
        }
        Partial { max, id, sum: simd.sum(sum), target: 0.0, finite }
    }
}

/// Combines the chunks of a row, in order.
fn combine(chunks: &[Partial], log_sum_exp: bool) -> RowSummary {
    let mut best = Partial::NONE;
    for chunk in chunks {
        // Strictly larger: ties stay with the lower index.
        if chunk.max > best.max {
            (best.max, best.id) = (chunk.max, chunk.id);
        }
        best.finite &= chunk.finite;
        best.target += chunk.target;
    }
    let sum: f64 =
        chunks.iter().map(|c| f64::from(c.sum) * f64::from(c.max - best.max).exp()).sum();
    RowSummary {
        id: best.id,
        logit: best.max,
        log_sum_exp: if log_sum_exp { (f64::from(best.max) + sum.ln()) as f32 } else { 0.0 },
        target_logit: best.target,
        finite: best.finite,
    }
}
