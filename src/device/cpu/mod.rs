//! The CPU device: SIMD kernels, a thread pool, f32 activations, a pool of bf16 keys and values.
//!
//! Operations run when they are enqueued; a stream only owns the scratch memory of its model, so
//! after the first passes nothing is allocated. Invariant: which thread computes what, at which
//! tile, never changes a bit of a row (see [`matrix`] and `attention`).
//! Read next: [`simd`] and [`threads`] for the means, [`matrix`] for the products, `attention`.

mod attention;
mod disjoint;
mod element;
mod head;
pub mod matrix;
mod memory;
mod norm;
mod roof;
mod rope;
pub mod simd;
mod split;
#[cfg(test)]
mod tests;
pub mod threads;

use super::{
    Device, DeviceInfo, Element, GateUpWeights, HeadWeights, KvType, Linear, MatrixView, PageCopy,
    PassLimits, QkvWeights, RaggedBatch, Results, Shape,
};
use crate::error::DeviceError;
use crate::ids::Role;
use attention::{Attention, AttentionScratch};
use half::bf16;
pub use head::CpuResults;
use head::{HeadScratch, Heads};
use matrix::{Activations, Matrix, Need, Product};
use memory::{Account, Region, Reservation};
use norm::RmsNorm;
pub use roof::Roof;
use roof::processor_name;
use simd::SimdLevel;
use std::cell::RefCell;
use std::sync::Arc;
use threads::Threads;

/// Choices of a [`CpuDevice`]; the default follows the environment and the processor.
#[derive(Debug, Clone, Copy, Default)]
pub struct CpuOptions {
    /// Threads that compute, the caller among them; by default `FORERUN_THREADS` or one per
    /// physical core.
    pub threads: Option<usize>,
    /// Instruction set; by default `FORERUN_SIMD` or the best there is.
    pub simd: Option<SimdLevel>,
    /// How keys and values are stored.
    pub kv: KvType,
    /// Widens weights to f32 when they are loaded, so that no activation is rounded to int8: for
    /// comparisons, at up to eight times the memory.
    pub widen: bool,
}

/// The processor this program runs on, as a device.
pub struct CpuDevice {
    kv: KvType,
    widen: bool,
    simd: SimdLevel,
    threads: Threads,
    account: Arc<Account>,
}

/// Activations and logits in f32, or a pool in the device's [`KvType`].
#[derive(Debug)]
pub struct CpuBuffer {
    region: Region,
    element: Element,
}

/// A packed matrix and the memory it is accounted for.
pub struct CpuMatrix {
    matrix: Matrix,
    _reservation: Reservation,
}

/// A small vector and the memory it is accounted for.
#[derive(Debug)]
pub struct CpuVector {
    values: Vec<f32>,
    _reservation: Reservation,
}

/// Scratch memory of one model's passes.
#[derive(Default)]
pub struct CpuStream(RefCell<Scratch>);

#[derive(Default)]
struct Scratch {
    x: Activations,
    /// `[T, G, D]` before they go to their pages.
    keys: Vec<f32>,
    values: Vec<f32>,
    attention: AttentionScratch,
    head: HeadScratch,
}

/// The pool as elements. `T` is `&[E]` or `&mut [E]`.
struct Pool<T> {
    elements: T,
    /// Elements of one page.
    page_elements: usize,
}

impl CpuDevice {
    /// Starts the threads and looks at the memory there is.
    ///
    /// # Errors
    /// If a thread cannot be started, or the instruction set asked for is not to be had.
    pub fn new(options: CpuOptions) -> Result<Self, DeviceError> {
        let simd = match options.simd {
            Some(level) => SimdLevel::from_name(level.name())?,
            None => SimdLevel::from_env()?,
        };
        let threads = match options.threads {
            Some(threads) => Threads::new(threads)?,
            None => Threads::from_env()?,
        };
        let account = Arc::new(Account::of_this_machine());
        Ok(Self { kv: options.kv, widen: options.widen, simd, threads, account })
    }

    /// What this processor could do at best, measured now.
    #[must_use]
    pub fn roof(&self) -> Roof {
        Roof::measure(&self.threads, self.simd)
    }

    /// Prepares the normed rows of `hidden` for matrices that need `need`.
    fn prepare_normed(
        &self,
        x: &mut Activations,
        shape: &Shape,
        weight: &[f32],
        rows: usize,
        hidden: &[f32],
        need: Need,
    ) {
        let width = shape.hidden;
        x.prepare_with(&self.threads, self.simd, rows, width, need, &|t, out| {
            let x = &hidden[t * width..][..width];
            self.simd.dispatch(RmsNorm { x, weight, eps: shape.rms_eps, out });
        });
    }

    /// Elements of one page; panics if planes would not fit into it.
    fn page_elements(&self, shape: &Shape) -> usize {
        let elements = shape.page_bytes / self.kv.bytes();
        assert!(shape.plane(shape.layers, 0, 0) <= elements, "planes of {shape:?} exceed a page");
        elements
    }
}

impl CpuBuffer {
    fn floats(&self) -> &[f32] {
        debug_assert_ne!(self.element, Element::KvByte, "the pool is not a buffer of f32");
        self.region.as_slice()
    }

    fn floats_mut(&mut self) -> &mut [f32] {
        debug_assert_ne!(self.element, Element::KvByte, "the pool is not a buffer of f32");
        self.region.as_mut_slice()
    }
}

impl Device for CpuDevice {
    type Buffer = CpuBuffer;
    type Matrix = CpuMatrix;
    type GateUp = [Self::Matrix; 2];
    type Vector = CpuVector;
    type Stream = CpuStream;
    type Batch = RaggedBatch;
    type Results = CpuResults;

    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            kind: "cpu",
            name: format!("{} ({})", processor_name(), self.simd.name()),
            units: self.threads.count(),
            memory_bytes: self.account.available_bytes(),
        }
    }

    fn kv_type(&self) -> KvType {
        self.kv
    }

    fn buffer(&self, count: usize, element: Element, what: &str) -> Result<CpuBuffer, DeviceError> {
        let element_bytes = match element {
            Element::Activation | Element::Logit => size_of::<f32>(),
            Element::KvByte => 1,
        };
        let bytes = count.saturating_mul(element_bytes);
        Ok(CpuBuffer { region: Region::new(&self.account, what, bytes)?, element })
    }

    fn matrix(&self, view: MatrixView<'_>) -> Result<CpuMatrix, DeviceError> {
        let bytes = if self.widen {
            (view.rows as u64).saturating_mul(view.cols as u64).saturating_mul(4)
        } else {
            view.bytes.len() as u64
        };
        let reservation = self.account.reserve(view.name, bytes)?;
        let matrix = if self.widen { Matrix::pack_widened(view)? } else { Matrix::pack(view)? };
        Ok(CpuMatrix { matrix, _reservation: reservation })
    }

    fn gate_up_matrices(
        &self,
        gate: MatrixView<'_>,
        up: MatrixView<'_>,
    ) -> Result<Self::GateUp, DeviceError> {
        Ok([self.matrix(gate)?, self.matrix(up)?])
    }

    fn vector(&self, values: &[f32]) -> Result<CpuVector, DeviceError> {
        let reservation = self.account.reserve("vector", size_of_val(values) as u64)?;
        Ok(CpuVector { values: values.to_vec(), _reservation: reservation })
    }

    fn results(&self, _limits: &PassLimits) -> Result<CpuResults, DeviceError> {
        Ok(CpuResults::default())
    }

    fn stream(
        &self,
        _role: Role,
        _shape: &Shape,
        _limits: &PassLimits,
    ) -> Result<CpuStream, DeviceError> {
        Ok(CpuStream::default())
    }

    fn seal(&self) {
        self.account.seal();
    }

    fn stage(&self, _stream: &CpuStream, batch: RaggedBatch) -> Result<RaggedBatch, DeviceError> {
        Ok(batch)
    }

    fn embed(
        &self,
        _stream: &CpuStream,
        table: &CpuMatrix,
        batch: &RaggedBatch,
        _next_norm: &CpuVector,
        hidden: &mut CpuBuffer,
    ) -> Result<(), DeviceError> {
        let rows = hidden.floats_mut().chunks_exact_mut(table.matrix.cols());
        for (token, out) in batch.tokens.iter().zip(rows) {
            table.matrix.dequantize_row(token.index(), out);
        }
        Ok(())
    }

    fn qkv(
        &self,
        stream: &CpuStream,
        shape: &Shape,
        layer: usize,
        weights: &QkvWeights<Self>,
        rope: &CpuVector,
        batch: &RaggedBatch,
        hidden: &CpuBuffer,
        q: &mut CpuBuffer,
        pool: &mut CpuBuffer,
    ) -> Result<(), DeviceError> {
        let Scratch { x, keys, values, .. } = &mut *stream.0.borrow_mut();
        let rows = batch.rows();
        let [wq, wk, wv] = [&weights.q, &weights.k, &weights.v];
        let need = [wq, wk, wv].map(|w| w.matrix.matrix.need()).into_iter();
        let need = need.reduce(|a, b| a | b).expect("three matrices");
        self.prepare_normed(x, shape, &weights.norm.values, rows, hidden.floats(), need);

        let kv_count = rows * shape.kv_heads * shape.head_dim;
        for scratch in [&mut *keys, &mut *values] {
            if scratch.len() < kv_count {
                scratch.resize(kv_count, 0.0);
            }
        }
        let queries = &mut q.floats_mut()[..rows * shape.heads * shape.head_dim];
        let (keys, values) = (&mut keys[..kv_count], &mut values[..kv_count]);
        let mut products = [
            product(wq, false, queries),
            product(wk, false, &mut *keys),
            product(wv, false, &mut *values),
        ];
        matrix::multiply_each(&self.threads, self.simd, x, &mut products);

        let append = rope::Append {
            shape,
            layer,
            batch,
            rope: &rope.values,
            q_norm: weights.q_norm.as_ref().map(|v| &v.values[..]),
            k_norm: weights.k_norm.as_ref().map(|v| &v.values[..]),
            keys,
            values,
            queries: &mut q.floats_mut()[..rows * shape.heads * shape.head_dim],
        };
        let page_elements = self.page_elements(shape);
        let region = &mut pool.region;
        match self.kv {
            KvType::Bf16 => {
                let elements = region.as_mut_slice::<bf16>();
                append.run(&self.threads, self.simd, Pool { elements, page_elements });
            }
            KvType::F32 => {
                let elements = region.as_mut_slice::<f32>();
                append.run(&self.threads, self.simd, Pool { elements, page_elements });
            }
        }
        Ok(())
    }

    fn keep_rows(
        &self,
        _stream: &CpuStream,
        shape: &Shape,
        batch: &RaggedBatch,
        q: &mut CpuBuffer,
        hidden: &mut CpuBuffer,
    ) -> Result<(), DeviceError> {
        batch.keep_rows(q.floats_mut(), shape.heads * shape.head_dim);
        batch.keep_rows(hidden.floats_mut(), shape.hidden);
        Ok(())
    }

    fn attention(
        &self,
        stream: &CpuStream,
        shape: &Shape,
        layer: usize,
        batch: &RaggedBatch,
        q: &CpuBuffer,
        pool: &CpuBuffer,
        out: &mut CpuBuffer,
    ) -> Result<(), DeviceError> {
        let Scratch { attention, .. } = &mut *stream.0.borrow_mut();
        let (queries, out) = (q.floats(), out.floats_mut());
        let page_elements = self.page_elements(shape);
        match self.kv {
            KvType::Bf16 => {
                let pool = Pool { elements: pool.region.as_slice::<bf16>(), page_elements };
                Attention { shape, layer, batch, queries, pool }.run(
                    &self.threads,
                    self.simd,
                    attention,
                    out,
                );
            }
            KvType::F32 => {
                let pool = Pool { elements: pool.region.as_slice::<f32>(), page_elements };
                Attention { shape, layer, batch, queries, pool }.run(
                    &self.threads,
                    self.simd,
                    attention,
                    out,
                );
            }
        }
        Ok(())
    }

    fn project(
        &self,
        stream: &CpuStream,
        weights: &Linear<Self>,
        batch: &RaggedBatch,
        x: &CpuBuffer,
        _next_norm: &CpuVector,
        hidden: &mut CpuBuffer,
    ) -> Result<(), DeviceError> {
        let Scratch { x: prepared, .. } = &mut *stream.0.borrow_mut();
        let (rows, matrix) = (batch.rows(), &weights.matrix.matrix);
        let x = &x.floats()[..rows * matrix.cols()];
        prepared.prepare(&self.threads, self.simd, x, rows, matrix.cols(), matrix.need());
        let hidden = &mut hidden.floats_mut()[..rows * matrix.rows()];
        let mut products = [product(weights, true, hidden)];
        matrix::multiply_each(&self.threads, self.simd, prepared, &mut products);
        Ok(())
    }

    fn gate_up(
        &self,
        stream: &CpuStream,
        shape: &Shape,
        weights: &GateUpWeights<Self>,
        batch: &RaggedBatch,
        hidden: &CpuBuffer,
        act: &mut CpuBuffer,
    ) -> Result<(), DeviceError> {
        let Scratch { x, .. } = &mut *stream.0.borrow_mut();
        let [gate, up] = weights.matrices.each_ref().map(|m| &m.matrix);
        let rows = batch.rows();
        let need = gate.need() | up.need();
        self.prepare_normed(x, shape, &weights.norm.values, rows, hidden.floats(), need);
        let act = &mut act.floats_mut()[..rows * gate.rows()];
        matrix::multiply_gate_up(&self.threads, self.simd, gate, up, x, act);
        Ok(())
    }

    fn head(
        &self,
        stream: &CpuStream,
        shape: &Shape,
        weights: &HeadWeights<'_, Self>,
        batch: &RaggedBatch,
        hidden: &CpuBuffer,
        logits: &mut CpuBuffer,
        results: &mut CpuResults,
    ) -> Result<(), DeviceError> {
        let Scratch { head, .. } = &mut *stream.0.borrow_mut();
        let heads = Heads {
            threads: &self.threads,
            simd: self.simd,
            shape,
            norm: &weights.norm.values,
            matrix: &weights.matrix.matrix,
            batch,
            hidden: hidden.floats(),
        };
        heads.run(head, logits.floats_mut(), results);
        Ok(())
    }

    fn sample(
        &self,
        _stream: &CpuStream,
        batch: &RaggedBatch,
        logits: &CpuBuffer,
        results: &mut CpuResults,
    ) -> Result<(), DeviceError> {
        head::draw(&self.threads, batch, logits.floats(), results);
        Ok(())
    }

    fn copy_pages(
        &self,
        _stream: &CpuStream,
        shape: &Shape,
        copies: &[PageCopy],
        pool: &mut CpuBuffer,
    ) -> Result<(), DeviceError> {
        let page_elements = self.page_elements(shape);
        let bytes: &mut [u8] = pool.region.as_mut_slice();
        let element_bytes = self.kv.bytes();
        for copy in copies {
            let count = copy.tokens * shape.head_dim * element_bytes;
            for plane in 0..shape.layers * 2 * shape.kv_heads {
                // Planes lie one after another, `[P, D]` each.
                let plane = plane * shape.page_tokens * shape.head_dim;
                let at = |page: usize| (page * page_elements + plane) * element_bytes;
                let (from, to) = (at(copy.from.index()), at(copy.to.index()));
                bytes.copy_within(from..from + count, to);
            }
        }
        Ok(())
    }

    fn feed(
        &self,
        _stream: &CpuStream,
        _before: &RaggedBatch,
        results: &CpuResults,
        batch: &mut RaggedBatch,
    ) -> Result<(), DeviceError> {
        batch.feed(&results.found);
        Ok(())
    }

    fn collect(
        &self,
        _stream: &CpuStream,
        _batches: &[RaggedBatch],
        results: &mut [CpuResults],
    ) -> Result<Vec<Results>, DeviceError> {
        Ok(results.iter_mut().map(|r| std::mem::take(&mut r.found)).collect())
    }

    fn read(
        &self,
        _stream: &CpuStream,
        buffer: &CpuBuffer,
        start: usize,
        count: usize,
    ) -> Result<Vec<f32>, DeviceError> {
        Ok(match (buffer.element, self.kv) {
            (Element::KvByte, KvType::Bf16) => {
                let elements = &buffer.region.as_slice::<bf16>()[start..][..count];
                elements.iter().map(|e| e.to_f32()).collect()
            }
            _ => buffer.region.as_slice::<f32>()[start..][..count].to_vec(),
        })
    }

    fn first_non_finite(
        &self,
        _stream: &CpuStream,
        buffer: &CpuBuffer,
        rows: usize,
        width: usize,
    ) -> Result<Option<usize>, DeviceError> {
        let mut all = buffer.floats().chunks_exact(width).take(rows);
        Ok(all.position(|row| row.iter().any(|v| !v.is_finite())))
    }
}

/// The product of a weight and its bias.
fn product<'a>(weights: &'a Linear<CpuDevice>, add: bool, out: &'a mut [f32]) -> Product<'a> {
    let bias = weights.bias.as_ref().map(|b| &b.values[..]);
    let matrix = &weights.matrix.matrix;
    Product { matrix, features: matrix.rows(), bias, add, out }
}
