//! Products: how the work is cut, and what happens to the results.
//!
//! The panels of all matrices of a call are cut into tasks of about equal bytes, so a decode step
//! streams each weight once and threads finish together. A task goes through its panels in
//! *strips* small enough to stay in the second-level cache while every tile of rows passes over
//! them. Invariant: a strip's values do not depend on how tasks, strips and tiles were cut.
//! Read next: `integer`.

use super::activations::{TILE, tile_rows};
use super::float::FloatStrip;
use super::integer::{IntegerStrip, Strip};
use super::layout::{BLOCK, PANEL};
use super::super_blocks::SuperStrip;
use super::{Activations, Matrix, formats, plain, super_formats};
use crate::device::BlockType;
use crate::device::cpu::simd::{Kernel, Simd, SimdLevel};
use crate::device::cpu::threads::Threads;
use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

/// Panels of a strip at most.
pub(super) const STRIP_PANELS: usize = 16;
/// Bytes of a strip's weights where several tiles pass over it: a quarter of a usual L2 cache.
const STRIP_BYTES: usize = 256 << 10;
/// Bounds on the weights of one task: handing out less costs, and the last large one is waited for.
const TASK_BYTES: Range<usize> = 32 << 10..512 << 10;

/// One matrix of [`multiply_each`].
#[derive(Debug)]
pub struct Product<'a> {
    /// `[N, K]`.
    pub matrix: &'a Matrix,
    /// The first so many of `N` are wanted; columns of `out` behind them stay.
    pub features: usize,
    /// `[N]`, added to every row of the product.
    pub bias: Option<&'a [f32]>,
    /// Adds to `out` instead of overwriting it.
    pub add: bool,
    /// `[T, N]`.
    pub out: &'a mut [f32],
}

impl Product<'_> {
    /// That hold the features.
    fn panels(&self) -> usize {
        assert!(self.features <= self.matrix.rows, "{} of {}", self.features, self.matrix.rows);
        self.features.div_ceil(PANEL)
    }
}

/// `out[t, n] = Σ_k w[n, k] x[t, k]` for the first `features` of `n`; `out` is `[T, N]`, and what
/// lies behind them stays.
///
/// # Panics
/// If the shapes disagree or `x` was prepared without the form `w` needs; so do all products here.
pub fn multiply(
    threads: &Threads,
    simd: SimdLevel,
    w: &Matrix,
    features: usize,
    x: &Activations,
    out: &mut [f32],
) {
    let product = Product { matrix: w, features, bias: None, add: false, out };
    multiply_each(threads, simd, x, &mut [product]);
}

/// `out[t, n] += Σ_k w[n, k] x[t, k] + bias[n]`; `out` is `[T, N]`.
pub fn multiply_add(
    threads: &Threads,
    simd: SimdLevel,
    w: &Matrix,
    bias: Option<&[f32]>,
    x: &Activations,
    out: &mut [f32],
) {
    let product = Product { matrix: w, features: w.rows, bias, add: true, out };
    multiply_each(threads, simd, x, &mut [product]);
}

/// Several matrices over the same rows, shared out to the threads once.
pub fn multiply_each(
    threads: &Threads,
    simd: SimdLevel,
    x: &Activations,
    products: &mut [Product<'_>],
) {
    let bytes = products.iter().map(|p| p.panels() * p.matrix.layout.panel_bytes()).sum();
    let cuts: Vec<Cut> =
        products.iter().map(|p| Cut::new(p.matrix, p.panels(), bytes, threads)).collect();
    let work: Vec<_> = products
        .iter_mut()
        .map(|p| {
            check(p.matrix, x);
            assert!(p.bias.is_none_or(|b| b.len() == p.matrix.rows), "length of the bias");
            (p.matrix, p.bias, p.add, Columns::new(p.out, x.rows(), p.matrix.rows))
        })
        .collect();
    threads.run(cuts.iter().map(|cut| cut.tasks).sum(), &|mut task| {
        for (cut, (matrix, bias, add, out)) in cuts.iter().zip(&work) {
            if task >= cut.tasks {
                task -= cut.tasks;
                continue;
            }
            let (panels, per_strip) =
                (cut.panels(task), strip_panels(matrix.layout.panel_bytes(), x));
            each_strip(simd, [*matrix], x, panels, per_strip, &mut |strip| {
                let [values] = strip.values;
                // SAFETY: tasks have distinct panels, and strips of a task distinct rows of them.
                let to = unsafe { out.part(strip.row, strip.columns.clone()) };
                finish(values, bias.map(|b| &b[strip.columns.clone()]), *add, to);
            });
            break;
        }
    });
}

/// `out[t, f] = silu(g) * u` with `g = gate x` and `u = up x`; `out` is `[T, F]`.
pub fn multiply_gate_up(
    threads: &Threads,
    simd: SimdLevel,
    gate: &Matrix,
    up: &Matrix,
    x: &Activations,
    out: &mut [f32],
) {
    check(gate, x);
    check(up, x);
    assert_eq!(gate.rows, up.rows, "features of gate and up");
    let cut = Cut::new(gate, gate.panels(), gate.bytes(), threads);
    let out = Columns::new(out, x.rows(), gate.rows);
    let per_strip = strip_panels(gate.layout.panel_bytes() + up.layout.panel_bytes(), x);
    threads.run(cut.tasks, &|task| {
        each_strip(simd, [gate, up], x, cut.panels(task), per_strip, &mut |strip| {
            let [gate, up] = strip.values;
            simd.dispatch(SiluTimes { gate, up });
            // SAFETY: tasks have distinct panels, and strips of a task distinct rows of them.
            let to = unsafe { out.part(strip.row, strip.columns.clone()) };
            to.copy_from_slice(&gate[..to.len()]);
        });
    });
}

/// `out[i] = Σ_k w[rows[i], k] x[x_row, k]`: the bits of the full product, reading only the panels
/// that hold the rows asked for.
pub fn multiply_rows_subset(
    threads: &Threads,
    simd: SimdLevel,
    w: &Matrix,
    rows: &[usize],
    x: &Activations,
    x_row: usize,
    out: &mut [f32],
) {
    check(w, x);
    assert_eq!(rows.len(), out.len(), "one place per row");
    assert!(rows.iter().all(|row| *row < w.rows), "rows below {}", w.rows);
    let out = Columns::new(out, 1, rows.len());
    threads.run_split(rows.len(), rows.len().div_ceil(16), &|range| {
        // SAFETY: the ranges are distinct.
        let to = unsafe { out.part(0, range.clone()) };
        let mut values = [0.0; PANEL];
        let mut computed = None;
        for (row, to) in rows[range].iter().zip(to) {
            let panel = row / PANEL;
            // Labels such as digits are neighbours: one panel serves many.
            if computed != Some(panel) {
                strip(simd, w, panel..panel + 1, x, x_row..x_row + 1, &mut values);
                computed = Some(panel);
            }
            *to = values[row % PANEL];
        }
    });
}

pub(super) fn check(w: &Matrix, x: &Activations) {
    assert_eq!(w.cols, x.cols(), "columns of matrix and activations");
    assert!(x.has(w.need()), "activations were not prepared for {}", w.kind());
}

/// How the first panels of a matrix are cut into tasks.
struct Cut {
    panels: usize,
    per_task: usize,
    tasks: usize,
}

impl Cut {
    /// For a call that reads `bytes` in all.
    fn new(matrix: &Matrix, panels: usize, bytes: usize, threads: &Threads) -> Self {
        if threads.count() == 1 {
            return Self { panels, per_task: panels, tasks: 1 };
        }
        let wanted = (bytes / (threads.count() * 8)).clamp(TASK_BYTES.start, TASK_BYTES.end);
        let per_task = (wanted / matrix.layout.panel_bytes()).clamp(1, panels);
        Self { panels, per_task, tasks: panels.div_ceil(per_task) }
    }

    fn panels(&self, task: usize) -> Range<usize> {
        task * self.per_task..self.panels.min((task + 1) * self.per_task)
    }
}

/// An output `[T, N]` written by columns from several threads.
#[derive(Clone, Copy)]
pub(super) struct Columns<'a> {
    start: *mut f32,
    rows: usize,
    width: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: `part` demands that parts in use at the same time are disjoint.
unsafe impl Send for Columns<'_> {}
// SAFETY: as above.
unsafe impl Sync for Columns<'_> {}

impl<'a> Columns<'a> {
    pub(super) fn new(out: &'a mut [f32], rows: usize, width: usize) -> Self {
        assert_eq!(out.len(), rows * width, "output of {rows} rows and {width} columns");
        Self { start: out.as_mut_ptr(), rows, width, borrow: PhantomData }
    }

    /// Columns `columns` of row `row`.
    ///
    /// # Safety
    /// Nobody else uses these places while the result lives.
    #[expect(clippy::mut_from_ref, reason = "a part of an output shared by columns")]
    pub(super) unsafe fn part(&self, row: usize, columns: Range<usize>) -> &mut [f32] {
        assert!(row < self.rows && columns.start <= columns.end && columns.end <= self.width);
        // SAFETY: inside the borrowed output; exclusive by the contract.
        unsafe {
            let at = self.start.add(row * self.width + columns.start);
            std::slice::from_raw_parts_mut(at, columns.len())
        }
    }
}

/// One row of a strip, handed to a consumer.
pub(super) struct StripRow<'a, const M: usize> {
    /// The row of the activations.
    pub row: usize,
    /// The columns of the product, without the padding of the last panel.
    pub columns: Range<usize>,
    /// The values of each matrix, padding included.
    pub values: [&'a mut [f32]; M],
}

thread_local! {
    /// Strips of two matrices; kept because a decode step computes a thousand strips.
    static STRIPS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Panels of a strip such that its weights stay in the cache while all tiles of `x` pass.
fn strip_panels(panel_bytes: usize, x: &Activations) -> usize {
    if x.rows() <= TILE { STRIP_PANELS } else { (STRIP_BYTES / panel_bytes).clamp(1, STRIP_PANELS) }
}

/// Multiplies panels `panels` of each of `matrices` with every row of `x`, in strips of `per_strip`
/// (at most [`STRIP_PANELS`]), and hands each row of each strip to `consume`.
pub(super) fn each_strip<const M: usize>(
    simd: SimdLevel,
    matrices: [&Matrix; M],
    x: &Activations,
    panels: Range<usize>,
    per_strip: usize,
    consume: &mut dyn FnMut(StripRow<'_, M>),
) {
    let n = matrices[0].rows;
    STRIPS.with_borrow_mut(|values| {
        values.resize(values.len().max(M * TILE * STRIP_PANELS * PANEL), 0.0);
        for first in panels.clone().step_by(per_strip) {
            let panels = first..panels.end.min(first + per_strip);
            let width = panels.len() * PANEL;
            let columns = first * PANEL..n.min(panels.end * PANEL);
            for start in (0..x.rows()).step_by(TILE) {
                let (_, rows) = tile_rows(start, x.rows());
                let mut parts = values.chunks_exact_mut(TILE * STRIP_PANELS * PANEL);
                let mut strips = matrices.map(|matrix| {
                    let part = parts.next().expect("a part per matrix");
                    let part = &mut part[..rows * width];
                    strip(simd, matrix, panels.clone(), x, start..start + rows, part);
                    part.chunks_exact_mut(width)
                });
                for row in start..start + rows {
                    let values = strips.each_mut().map(|s| s.next().expect("a row of the tile"));
                    consume(StripRow { row, columns: columns.clone(), values });
                }
            }
        }
    });
}

/// `out[r, i]`, `[rows][panels * 16]`: panels `panels` of `w` times rows `rows` of one tile.
fn strip(
    simd: SimdLevel,
    w: &Matrix,
    panels: Range<usize>,
    x: &Activations,
    rows: Range<usize>,
    out: &mut [f32],
) {
    use BlockType as B;
    let job = Job { w, panels, x, rows, out };
    match w.kind() {
        B::F32 => simd.dispatch(job.float::<plain::F32>()),
        B::F16 => simd.dispatch(job.float::<plain::F16>()),
        B::BF16 => simd.dispatch(job.float::<plain::Bf16>()),
        B::Q8_0 => simd.dispatch(job.integer::<formats::Q80>()),
        B::Q4_0 => simd.dispatch(job.integer::<formats::Q40>()),
        B::Q4_1 => simd.dispatch(job.integer::<formats::Q41>()),
        B::Q5_0 => simd.dispatch(job.integer::<formats::Q50>()),
        B::Q5_1 => simd.dispatch(job.integer::<formats::Q51>()),
        B::Q4_K => simd.dispatch(job.super_blocks::<super_formats::Q4K>()),
        B::Q5_K => simd.dispatch(job.super_blocks::<super_formats::Q5K>()),
        B::Q6_K => simd.dispatch(job.super_blocks::<super_formats::Q6K>()),
    }
}

/// The arguments of [`strip`].
struct Job<'a> {
    w: &'a Matrix,
    panels: Range<usize>,
    x: &'a Activations,
    rows: Range<usize>,
    out: &'a mut [f32],
}

impl<'a> Job<'a> {
    fn panels(&self) -> (&'a [u8], usize) {
        let panel_bytes = self.w.layout.panel_bytes();
        let bytes = self.panels.start * panel_bytes..self.panels.end * panel_bytes;
        (&self.w.storage.as_slice()[bytes], panel_bytes)
    }

    fn float<F>(self) -> FloatStrip<'a, F> {
        let (panels, panel_bytes) = self.panels();
        let x = self.x.padded_rows(self.rows.clone());
        debug_assert_eq!(x.len(), self.rows.len() * self.w.layout.cells() * BLOCK);
        FloatStrip {
            panels,
            panel_bytes,
            x,
            rows: self.rows.len(),
            out: self.out,
            format: PhantomData,
        }
    }

    fn integer<F>(self) -> IntegerStrip<'a, F> {
        let (blocks, stride) = self.x.tile_of(self.rows.start);
        IntegerStrip { strip: self.strip(blocks, stride), format: PhantomData }
    }

    fn super_blocks<F>(self) -> SuperStrip<'a, F> {
        let (blocks, stride) = self.x.super_tile_of(self.rows.start);
        SuperStrip { strip: self.strip(blocks, stride), format: PhantomData }
    }

    fn strip<B>(self, blocks: &'a [B], stride: usize) -> Strip<'a, B> {
        let (panels, panel_bytes) = self.panels();
        Strip {
            panels,
            panel_bytes,
            x: &blocks[self.rows.start % TILE..],
            stride,
            rows: self.rows.len(),
            out: self.out,
        }
    }
}

/// Bias and residual of one row of a strip: `to (+)= value + bias`.
fn finish(values: &[f32], bias: Option<&[f32]>, add: bool, to: &mut [f32]) {
    let values = &values[..to.len()];
    match (bias, add) {
        (None, false) => to.copy_from_slice(values),
        (None, true) => to.iter_mut().zip(values).for_each(|(to, v)| *to += v),
        (Some(bias), false) => {
            to.iter_mut().zip(values).zip(bias).for_each(|((to, v), b)| *to = v + b);
        }
        (Some(bias), true) => {
            to.iter_mut().zip(values).zip(bias).for_each(|((to, v), b)| *to += v + b);
        }
    }
}

/// `gate = silu(gate) * up`, whole panels.
struct SiluTimes<'a> {
    gate: &'a mut [f32],
    up: &'a [f32],
}

impl Kernel for SiluTimes<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let up = self.up.chunks_exact(S::LANES);
        for (gate, up) in self.gate.chunks_exact_mut(S::LANES).zip(up) {
            let product = simd.mul(simd.silu(simd.load(gate)), simd.load(up));
            simd.store(gate, product);
        }
    }
}
