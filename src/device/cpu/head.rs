//! Final norm, head and sampling, for the rows that want a result.
//!
//! Argmax and log-probability rows share one streaming pass over the head's weights and never store
//! a row of logits; label rows multiply their few weight rows; full rows are stored. The same
//! logit has the same bits in all of them. Read next: [`super::matrix::HeadScan`].

use super::disjoint::Disjoint;
use super::matrix::{Activations, HeadScan, Matrix, ScanRow, multiply, multiply_rows_subset};
use super::norm::RmsNorm;
use super::simd::SimdLevel;
use super::threads::Threads;
use crate::device::{HeadKind, HeadResult, RaggedBatch, Results, Shape};
use crate::ids::TokenId;
use crate::sample::{self, Sampled, softmax_labels};
use std::cell::RefCell;

/// What heads and samplers found, and the width of the rows of logits they left.
#[derive(Debug, Default)]
pub struct CpuResults {
    vocab: usize,
    pub(super) found: Results,
}

/// Memory that heads keep between passes.
#[derive(Default)]
pub(super) struct HeadScratch {
    x: Activations,
    scan: HeadScan,
    /// Batch rows that `x` was prepared from.
    rows: Vec<usize>,
    /// What is wanted of each scanned row.
    wanted: Vec<ScanRow>,
    /// The scanned row of each argmax and log-probability head, in the order of the heads.
    scanned_by: Vec<usize>,
    label_rows: Vec<usize>,
    label_logits: Vec<f32>,
}

/// Norm and head over one batch.
pub(super) struct Heads<'a> {
    pub(super) threads: &'a Threads,
    pub(super) simd: SimdLevel,
    pub(super) shape: &'a Shape,
    /// `[C]`.
    pub(super) norm: &'a [f32],
    /// `[V, C]`.
    pub(super) matrix: &'a Matrix,
    pub(super) batch: &'a RaggedBatch,
    /// `[T, C]`.
    pub(super) hidden: &'a [f32],
}

impl Heads<'_> {
    /// Replaces `results`, and fills a row of `logits` per full head.
    pub(super) fn run(
        &self,
        scratch: &mut HeadScratch,
        logits: &mut [f32],
        results: &mut CpuResults,
    ) {
        *results = CpuResults { vocab: self.matrix.rows(), found: Results::default() };
        // Every head is overwritten below by the pass of its kind.
        results.found.heads.resize(self.batch.heads.len(), HeadResult::Full(0));
        self.scanned(scratch, &mut results.found);
        self.labelled(scratch, &mut results.found);
        self.full(scratch, logits, &mut results.found);
    }

    /// Prepares the normed rows `scratch.rows`.
    fn prepare(&self, scratch: &mut HeadScratch) {
        let width = self.shape.hidden;
        let HeadScratch { x, rows, .. } = scratch;
        x.prepare_with(
            self.threads,
            self.simd,
            rows.len(),
            width,
            self.matrix.need(),
            &|i, out| {
                let x = &self.hidden[rows[i] * width..][..width];
                let norm = RmsNorm { x, weight: self.norm, eps: self.shape.rms_eps, out };
                self.simd.dispatch(norm);
            },
        );
    }

    fn scanned(&self, scratch: &mut HeadScratch, found: &mut Results) {
        scratch.rows.clear();
        scratch.wanted.clear();
        scratch.scanned_by.clear();
        let wanted = |kind: &HeadKind| match kind {
            HeadKind::Argmax => Some(None),
            HeadKind::LogProb(id) => Some(Some(id.index())),
            HeadKind::Labels(_) | HeadKind::Full => None,
        };
        for head in &self.batch.heads {
            let Some(target) = wanted(&head.kind) else { continue };
            let ids = head.ids(self.matrix.rows());
            // An argmax and a log-probability of one row, side by side, share its scan.
            match (scratch.rows.last(), scratch.wanted.last_mut()) {
                (Some(row), Some(last))
                    if (*row, last.ids) == (head.row, ids)
                        && (target.is_none() || last.target.is_none()) =>
                {
                    last.target = last.target.or(target);
                }
                _ => {
                    scratch.rows.push(head.row);
                    scratch.wanted.push(ScanRow { ids, target });
                }
            }
            scratch.scanned_by.push(scratch.rows.len() - 1);
        }
        if scratch.rows.is_empty() {
            return;
        }
        self.prepare(scratch);
        let any_target = scratch.wanted.iter().any(|row| row.target.is_some());
        let HeadScratch { x, scan, wanted: rows, scanned_by, .. } = scratch;
        let scanned = scan.scan(self.threads, self.simd, self.matrix, x, any_target, rows);
        let mut scanned_by = scanned_by.iter();
        for (head, result) in self.batch.heads.iter().zip(&mut found.heads) {
            let Some(target) = wanted(&head.kind) else { continue };
            let row = &scanned[*scanned_by.next().expect("one entry per scanned head")];
            *result = match target {
                None => HeadResult::Argmax { id: TokenId(row.id as u32), logit: row.logit },
                Some(_) => HeadResult::LogProb(row.target_logit - row.log_sum_exp),
            };
            note_finite(&mut found.non_finite_row, head.row, row.finite);
        }
    }

    fn labelled(&self, scratch: &mut HeadScratch, found: &mut Results) {
        scratch.rows.clear();
        let labels = |kind: &HeadKind| matches!(kind, HeadKind::Labels(_));
        scratch.rows.extend(self.batch.heads.iter().filter(|h| labels(&h.kind)).map(|h| h.row));
        if scratch.rows.is_empty() {
            return;
        }
        self.prepare(scratch);
        let HeadScratch { x, label_rows, label_logits, .. } = scratch;
        let mut x_row = 0;
        for (head, result) in self.batch.heads.iter().zip(&mut found.heads) {
            let HeadKind::Labels(ids) = &head.kind else { continue };
            label_rows.clear();
            label_rows.extend(ids.iter().map(|id| id.index()));
            label_logits.clear();
            label_logits.resize(ids.len(), 0.0);
            let (threads, simd) = (self.threads, self.simd);
            multiply_rows_subset(threads, simd, self.matrix, label_rows, x, x_row, label_logits);
            let finite = label_logits.iter().all(|l| l.is_finite());
            note_finite(&mut found.non_finite_row, head.row, finite);
            *result = HeadResult::Labels(softmax_labels(label_logits));
            x_row += 1;
        }
    }

    fn full(&self, scratch: &mut HeadScratch, logits: &mut [f32], found: &mut Results) {
        scratch.rows.clear();
        for (head, result) in self.batch.heads.iter().zip(&mut found.heads) {
            if head.kind == HeadKind::Full {
                *result = HeadResult::Full(scratch.rows.len());
                scratch.rows.push(head.row);
            }
        }
        if scratch.rows.is_empty() {
            return;
        }
        self.prepare(scratch);
        let vocab = self.matrix.rows();
        let ids = self.batch.ids_of_full_rows(vocab);
        let most = ids.iter().copied().max().expect("a full row");
        let logits = &mut logits[..scratch.rows.len() * vocab];
        multiply(self.threads, self.simd, self.matrix, most, &scratch.x, logits);
        for ((row, ids), logits) in scratch.rows.iter().zip(ids).zip(logits.chunks_exact(vocab)) {
            let finite = logits[..ids].iter().all(|l| l.is_finite());
            note_finite(&mut found.non_finite_row, *row, finite);
        }
    }
}

fn note_finite(first: &mut Option<usize>, row: usize, finite: bool) {
    if !finite {
        *first = Some(first.map_or(row, |f| f.min(row)));
    }
}

thread_local! {
    static SCRATCH: RefCell<sample::Scratch> = RefCell::default();
}

/// Draws a token for every sampled row, one row per task.
pub(super) fn draw(
    threads: &Threads,
    batch: &RaggedBatch,
    logits: &[f32],
    results: &mut CpuResults,
) {
    let vocab = results.vocab;
    let blank = Sampled { id: TokenId(0), logprob: 0.0, entropy_nats: 0.0, top1_prob: 0.0 };
    results.found.samples.clear();
    results.found.samples.resize(batch.samples.len(), blank);
    let samples = Disjoint::new(&mut results.found.samples);
    let ids = batch.ids_of_full_rows(vocab);
    threads.run(batch.samples.len(), &|i| {
        let row = &batch.samples[i];
        let logits = &logits[row.logits_row * vocab..][..ids[row.logits_row]];
        SCRATCH.with_borrow_mut(|scratch| {
            let drawn = sample::sample(logits, &row.params, &row.history(), &row.key, scratch);
            // SAFETY: valid: asserted by `part`; exclusive: one task per element.
            let sample = unsafe { samples.part(i..i + 1) };
            sample[0] = drawn;
        });
    });
}
