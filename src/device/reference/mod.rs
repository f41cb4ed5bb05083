//! The reference device: every operation written the plain way, to be read and to be tested
//! against.
//!
//! Matrices are decoded to f32 when they are loaded. Inputs, outputs and keys are f32 (keys and
//! values may be rounded to bf16); inside an operation everything is f64 and rounded once at its
//! end, so a faster device is compared with the nearest f32 of the true value rather than with
//! another order of summation. Invariant: no row's result reads another row's activations.
//! Read next: `ops`, the definitions themselves.

mod ops;
#[cfg(test)]
mod tests;

use super::blocks::dequantize_row;
use super::{
    Device, DeviceInfo, Element, GateUpWeights, HeadKind, HeadResult, HeadWeights, KvType, Linear,
    MatrixView, PageCopy, PassLimits, QkvWeights, RaggedBatch, Results, Shape,
};
use crate::error::DeviceError;
use crate::ids::Role;
use crate::sample::{Scratch, sample};
use half::bf16;
use std::sync::atomic::{AtomicBool, Ordering};

/// A device that computes slowly and plainly, on all cores.
#[derive(Debug)]
pub struct ReferenceDevice {
    kv: KvType,
    threads: usize,
    sealed: AtomicBool,
}

/// A buffer of the reference device: f32 whatever the element; keys and values rounded on append
/// where the pool's type is bf16.
#[derive(Debug)]
pub struct ReferenceBuffer(Vec<f32>);

/// A matrix decoded to f32, `[rows, cols]`.
#[derive(Debug)]
pub struct ReferenceMatrix {
    rows: usize,
    cols: usize,
    values: Vec<f32>,
}

/// What heads and samplers found, and the width of the rows of logits they left.
#[derive(Debug, Default)]
pub struct ReferenceResults {
    vocab: usize,
    found: Results,
}

impl ReferenceMatrix {
    fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.cols..][..self.cols]
    }
}

impl ReferenceDevice {
    /// A reference device that keeps keys and values as `kv`.
    #[must_use]
    pub fn new(kv: KvType) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self { kv, threads, sealed: AtomicBool::new(false) }
    }

    fn check_unsealed(&self, what: &str) -> Result<(), DeviceError> {
        if self.sealed.load(Ordering::Relaxed) {
            return Err(DeviceError::Failed(format!("{what}: allocation after start-up")));
        }
        Ok(())
    }

    fn round_kv(&self, value: f64) -> f32 {
        match self.kv {
            KvType::F32 => value as f32,
            KvType::Bf16 => bf16::from_f32(value as f32).to_f32(),
        }
    }

    /// Elements from the start of the pool to a page's plane.
    fn plane(&self, shape: &Shape, page: usize, layer: usize, which: usize, head: usize) -> usize {
        page * (shape.page_bytes / self.kv.bytes()) + shape.plane(layer, which, head)
    }
}

impl Device for ReferenceDevice {
    type Buffer = ReferenceBuffer;
    type Matrix = ReferenceMatrix;
    type GateUp = [Self::Matrix; 2];
    type Vector = Vec<f32>;
    type Stream = ();
    type Batch = RaggedBatch;
    type Results = ReferenceResults;

    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            kind: "reference",
            name: "plain loops, f64 sums".to_owned(),
            units: self.threads,
            memory_bytes: u64::MAX,
        }
    }

    fn kv_type(&self) -> KvType {
        self.kv
    }

    fn buffer(
        &self,
        count: usize,
        element: Element,
        what: &str,
    ) -> Result<ReferenceBuffer, DeviceError> {
        self.check_unsealed(what)?;
        let count = match element {
            Element::Activation | Element::Logit => count,
            Element::KvByte => count / self.kv.bytes(),
        };
        Ok(ReferenceBuffer(vec![0.0; count]))
    }

    fn matrix(&self, view: MatrixView<'_>) -> Result<ReferenceMatrix, DeviceError> {
        self.check_unsealed(view.name)?;
        let MatrixView { name, rows, cols, kind, bytes } = view;
        let mut values = vec![0.0; rows * cols];
        let row_bytes = kind.row_bytes(cols).expect("whole blocks in every row");
        assert_eq!(bytes.len(), rows * row_bytes, "{name}: bytes of {rows} x {cols} {kind}");
        ops::for_each_row(self.threads, &mut values, cols, |row, out| {
            dequantize_row(kind, &bytes[row * row_bytes..][..row_bytes], out);
        });
        Ok(ReferenceMatrix { rows, cols, values })
    }

    fn gate_up_matrices(
        &self,
        gate: MatrixView<'_>,
        up: MatrixView<'_>,
    ) -> Result<Self::GateUp, DeviceError> {
        Ok([self.matrix(gate)?, self.matrix(up)?])
    }

    fn vector(&self, values: &[f32]) -> Result<Vec<f32>, DeviceError> {
        self.check_unsealed("vector")?;
        Ok(values.to_vec())
    }

    fn results(&self, _limits: &PassLimits) -> Result<ReferenceResults, DeviceError> {
        self.check_unsealed("results")?;
        Ok(ReferenceResults::default())
    }

    fn stream(&self, _role: Role, _shape: &Shape, _limits: &PassLimits) -> Result<(), DeviceError> {
        Ok(())
    }

    fn seal(&self) {
        self.sealed.store(true, Ordering::Relaxed);
    }

    fn stage(&self, _stream: &(), batch: RaggedBatch) -> Result<RaggedBatch, DeviceError> {
        Ok(batch)
    }

    fn embed(
        &self,
        _stream: &(),
        table: &ReferenceMatrix,
        batch: &RaggedBatch,
        _next_norm: &Vec<f32>,
        hidden: &mut ReferenceBuffer,
    ) -> Result<(), DeviceError> {
        for (token, out) in batch.tokens.iter().zip(hidden.0.chunks_exact_mut(table.cols)) {
            out.copy_from_slice(table.row(token.index()));
        }
        Ok(())
    }

    fn qkv(
        &self,
        _stream: &(),
        shape: &Shape,
        layer: usize,
        weights: &QkvWeights<Self>,
        rope: &Vec<f32>,
        batch: &RaggedBatch,
        hidden: &ReferenceBuffer,
        q: &mut ReferenceBuffer,
        pool: &mut ReferenceBuffer,
    ) -> Result<(), DeviceError> {
        let (rows, head_dim) = (batch.rows(), shape.head_dim);
        let hidden = &hidden.0[..rows * shape.hidden];
        let x = ops::rms_norm_rows(hidden, &weights.norm, shape.rms_eps);
        let mut queries = self.linear(&weights.q, &x);
        let mut keys = self.linear(&weights.k, &x);
        let values = self.linear(&weights.v, &x);

        let heads_of = |all: &mut [f64], heads: usize, norm: Option<&Vec<f32>>| {
            for (t, row) in all.chunks_exact_mut(heads * head_dim).enumerate() {
                let angles = &rope[batch.positions[t] as usize * head_dim..][..head_dim];
                for head in row.chunks_exact_mut(head_dim) {
                    if let Some(weight) = norm {
                        ops::rms_norm_head(head, weight, shape.rms_eps);
                    }
                    ops::rotate(head, angles);
                }
            }
        };
        heads_of(&mut queries, shape.heads, weights.q_norm.as_ref());
        heads_of(&mut keys, shape.kv_heads, weights.k_norm.as_ref());

        for (out, value) in q.0.iter_mut().zip(&queries) {
            *out = *value as f32;
        }
        for group in &batch.groups {
            for (i, t) in group.rows.clone().enumerate() {
                let (page, slot) = batch.place(&group.own, group.own.len + i, shape.page_tokens);
                for (which, source) in [&keys, &values].into_iter().enumerate() {
                    for head in 0..shape.kv_heads {
                        let plane = self.plane(shape, page.index(), layer, which, head);
                        let from = &source[(t * shape.kv_heads + head) * head_dim..][..head_dim];
                        let to = &mut pool.0[plane + slot * head_dim..][..head_dim];
                        for (to, from) in to.iter_mut().zip(from) {
                            *to = self.round_kv(*from);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn keep_rows(
        &self,
        _stream: &(),
        shape: &Shape,
        batch: &RaggedBatch,
        q: &mut ReferenceBuffer,
        hidden: &mut ReferenceBuffer,
    ) -> Result<(), DeviceError> {
        batch.keep_rows(&mut q.0, shape.heads * shape.head_dim);
        batch.keep_rows(&mut hidden.0, shape.hidden);
        Ok(())
    }

    fn attention(
        &self,
        _stream: &(),
        shape: &Shape,
        layer: usize,
        batch: &RaggedBatch,
        q: &ReferenceBuffer,
        pool: &ReferenceBuffer,
        out: &mut ReferenceBuffer,
    ) -> Result<(), DeviceError> {
        let (heads, head_dim) = (shape.heads, shape.head_dim);
        let out = &mut out.0[..batch.rows() * heads * head_dim];
        ops::for_each_row(self.threads, out, head_dim, |item, out| {
            let (t, head) = (item / heads, item % heads);
            let kv_head = head / (heads / shape.kv_heads);
            let group = batch.groups.iter().find(|g| g.rows.contains(&t)).expect("groups cover");
            let i = t - group.rows.start;
            let planes = |which| {
                (0..group.visible(i)).map(move |j| {
                    let (page, slot) = batch.key(group, i, j, shape.page_tokens);
                    let plane = self.plane(shape, page.index(), layer, which, kv_head);
                    &pool.0[plane + slot * head_dim..][..head_dim]
                })
            };
            ops::attend(&q.0[item * head_dim..][..head_dim], planes(0), planes(1), out);
        });
        Ok(())
    }

    fn project(
        &self,
        _stream: &(),
        weights: &Linear<Self>,
        batch: &RaggedBatch,
        x: &ReferenceBuffer,
        _next_norm: &Vec<f32>,
        hidden: &mut ReferenceBuffer,
    ) -> Result<(), DeviceError> {
        let x = &x.0[..batch.rows() * weights.matrix.cols];
        for (out, y) in hidden.0.iter_mut().zip(self.linear(weights, x)) {
            *out = (f64::from(*out) + y) as f32;
        }
        Ok(())
    }

    fn gate_up(
        &self,
        _stream: &(),
        shape: &Shape,
        weights: &GateUpWeights<Self>,
        batch: &RaggedBatch,
        hidden: &ReferenceBuffer,
        act: &mut ReferenceBuffer,
    ) -> Result<(), DeviceError> {
        let hidden = &hidden.0[..batch.rows() * shape.hidden];
        let x = ops::rms_norm_rows(hidden, &weights.norm, shape.rms_eps);
        let [gate, up] = weights.matrices.each_ref().map(|m| ops::matmul(self.threads, m, &x));
        for ((out, gate), up) in act.0.iter_mut().zip(gate).zip(up) {
            *out = (gate / (1.0 + (-gate).exp()) * up) as f32;
        }
        Ok(())
    }

    fn head(
        &self,
        _stream: &(),
        shape: &Shape,
        weights: &HeadWeights<'_, Self>,
        batch: &RaggedBatch,
        hidden: &ReferenceBuffer,
        logits: &mut ReferenceBuffer,
        results: &mut ReferenceResults,
    ) -> Result<(), DeviceError> {
        let vocab = weights.matrix.rows;
        *results = ReferenceResults { vocab, found: Results::default() };
        let results = &mut results.found;
        let mut full_rows = 0;
        for head in &batch.heads {
            let hidden = &hidden.0[head.row * shape.hidden..][..shape.hidden];
            let x = ops::rms_norm_rows(hidden, weights.norm, shape.rms_eps);
            let mut row: Vec<f32> = match &head.kind {
                HeadKind::Labels(ids) => ids
                    .iter()
                    .map(|id| ops::dot(weights.matrix.row(id.index()), &x) as f32)
                    .collect(),
                _ => ops::matmul(self.threads, weights.matrix, &x)
                    .iter()
                    .map(|y| *y as f32)
                    .collect(),
            };
            row.truncate(head.ids(row.len()));
            if row.iter().any(|logit| !logit.is_finite()) {
                let first = results.non_finite_row.map_or(head.row, |r| r.min(head.row));
                results.non_finite_row = Some(first);
            }
            results.heads.push(match &head.kind {
                HeadKind::Argmax => ops::argmax(&row),
                HeadKind::Labels(_) => HeadResult::Labels(ops::softmax(&row)),
                HeadKind::LogProb(id) => HeadResult::LogProb(ops::log_prob(&row, id.index())),
                HeadKind::Full => {
                    // What nobody asked for is nothing to rely on.
                    row.resize(vocab, f32::NAN);
                    logits.0[full_rows * vocab..][..vocab].copy_from_slice(&row);
                    full_rows += 1;
                    HeadResult::Full(full_rows - 1)
                }
            });
        }
        Ok(())
    }

    fn sample(
        &self,
        _stream: &(),
        batch: &RaggedBatch,
        logits: &ReferenceBuffer,
        results: &mut ReferenceResults,
    ) -> Result<(), DeviceError> {
        let mut scratch = Scratch::default();
        let vocab = results.vocab;
        let ids = batch.ids_of_full_rows(vocab);
        results.found.samples.clear();
        for row in &batch.samples {
            let logits = &logits.0[row.logits_row * vocab..][..ids[row.logits_row]];
            let drawn = sample(logits, &row.params, &row.history(), &row.key, &mut scratch);
            results.found.samples.push(drawn);
        }
        Ok(())
    }

    fn copy_pages(
        &self,
        _stream: &(),
        shape: &Shape,
        copies: &[PageCopy],
        pool: &mut ReferenceBuffer,
    ) -> Result<(), DeviceError> {
        for copy in copies {
            for layer in 0..shape.layers {
                for which in 0..2 {
                    for head in 0..shape.kv_heads {
                        let from = self.plane(shape, copy.from.index(), layer, which, head);
                        let to = self.plane(shape, copy.to.index(), layer, which, head);
                        let count = copy.tokens * shape.head_dim;
                        pool.0.copy_within(from..from + count, to);
                    }
                }
            }
        }
        Ok(())
    }

    fn feed(
        &self,
        _stream: &(),
        _before: &RaggedBatch,
        results: &ReferenceResults,
        batch: &mut RaggedBatch,
    ) -> Result<(), DeviceError> {
        batch.feed(&results.found);
        Ok(())
    }

    fn collect(
        &self,
        _stream: &(),
        _batches: &[RaggedBatch],
        results: &mut [ReferenceResults],
    ) -> Result<Vec<Results>, DeviceError> {
        Ok(results.iter_mut().map(|r| std::mem::take(&mut r.found)).collect())
    }

    fn read(
        &self,
        _stream: &(),
        buffer: &ReferenceBuffer,
        start: usize,
        count: usize,
    ) -> Result<Vec<f32>, DeviceError> {
        Ok(buffer.0[start..][..count].to_vec())
    }

    fn first_non_finite(
        &self,
        _stream: &(),
        buffer: &ReferenceBuffer,
        rows: usize,
        width: usize,
    ) -> Result<Option<usize>, DeviceError> {
        let mut all = buffer.0.chunks_exact(width).take(rows);
        Ok(all.position(|row| row.iter().any(|v| !v.is_finite())))
    }
}

impl ReferenceDevice {
    /// `W x + b` for every row of `x`, unrounded.
    fn linear(&self, weights: &Linear<Self>, x: &[f32]) -> Vec<f64> {
        let mut y = ops::matmul(self.threads, &weights.matrix, x);
        if let Some(bias) = &weights.bias {
            for row in y.chunks_exact_mut(weights.matrix.rows) {
                for (y, b) in row.iter_mut().zip(bias) {
                    *y += f64::from(*b);
                }
            }
        }
        y
    }
}
