//! Softmax attention over one split of keys, for a tile of rows and the heads of one KV head.
//!
//! Lanes are queries where scores are computed and elements of a head where values are summed, so
//! there is no sum over lanes: a score adds its products in the order of the head's elements, the
//! softmax its terms and each output element its values in the order of the keys. All scores of a
//! split are computed before the first exponential, so nothing is rescaled inside a split.
//!
//! Invariant: each query's arithmetic is the same in every lane, tile and key block, and stops at
//! the last key that query sees.

use super::element::KvElement;
use super::norm::LANES_MAX;
use super::simd::{Kernel, Simd};
use crate::config::ATTENTION_SPLIT_KEYS;
use std::cell::RefCell;
use std::ops::Range;

/// Keys widened to f32 at a time.
const KEY_BLOCK: usize = 32;
/// Vectors of sums side by side, and queries whose values are summed together: eight independent
/// chains hide the latency of a fused multiply-add.
const VECTORS: usize = 2;
const ROWS: usize = 4;

/// Whether there are registers for sixteen chains, which load half as much for each.
#[inline(always)]
const fn wide<S: Simd>() -> bool {
    S::LANES == LANES_MAX
}

/// One unit of work. `i` counts rows of the tile, `j` keys of the split.
pub(super) struct Split<'s, Q, N, K, V, P> {
    /// `D`.
    pub(super) head_dim: usize,
    /// Query heads that share the KV head.
    pub(super) heads: usize,
    /// Rows of the tile.
    pub(super) rows: usize,
    /// The query of row `i` and head: `[D]`.
    pub(super) query: Q,
    /// Keys of the split that row `i` sees.
    pub(super) visible: N,
    /// Key `j`: `[D]`.
    pub(super) key: K,
    /// Value `j`: `[D]`.
    pub(super) value: V,
    /// Where row `i` and head leave maximum, sum and `[D]` weighted values.
    pub(super) partial: P,
    pub(super) scratch: &'s mut Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Lends this thread's scratch memory, which only ever grows.
pub(super) fn with_scratch<R>(f: impl FnOnce(&mut Vec<f32>) -> R) -> R {
    SCRATCH.with_borrow_mut(f)
}

/// Sizes shared by the loops below. All rows of scratch are padded to whole vectors.
#[derive(Clone, Copy)]
struct Sizes {
    head_dim: usize,
    /// `head_dim`, padded.
    head_stride: usize,
    /// Query vectors of the tile, padded: the lanes of a row of scores.
    lanes: usize,
}

impl<'q, 'k, 'p, E, Q, N, K, V, P> Kernel for Split<'_, Q, N, K, V, P>
where
    E: KvElement,
    Q: Fn(usize, usize) -> &'q [f32],
    N: Fn(usize) -> usize,
    K: Fn(usize) -> &'k [E],
    V: Fn(usize) -> &'k [E],
    P: Fn(usize, usize) -> &'p mut [f32],
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let queries = self.rows * self.heads;
        let vectors = if queries <= S::LANES { 1 } else { VECTORS };
        let sizes = Sizes {
            head_dim: self.head_dim,
            head_stride: self.head_dim.next_multiple_of(VECTORS * LANES_MAX),
            lanes: queries.next_multiple_of(vectors * S::LANES),
        };
        let keys = (0..self.rows).map(&self.visible).max().unwrap_or(0);
        let parts = [
            sizes.head_dim * sizes.lanes,
            ATTENTION_SPLIT_KEYS * sizes.lanes,
            KEY_BLOCK * sizes.head_stride,
            queries * sizes.head_stride,
            2 * sizes.lanes,
        ];
        let total = parts.iter().sum();
        if self.scratch.len() < total {
            self.scratch.resize(total, 0.0);
        }
        let (turned, rest) = self.scratch.split_at_mut(parts[0]);
        let (scores, rest) = rest.split_at_mut(parts[1]);
        let (block, rest) = rest.split_at_mut(parts[2]);
        let (sums, rest) = rest.split_at_mut(parts[3]);
        let (maxima, totals) = rest[..parts[4]].split_at_mut(sizes.lanes);

        // Queries are turned around, scaled: `[D][lanes]`.
        let scale = 1.0 / (self.head_dim as f32).sqrt();
        turned.fill(0.0);
        for i in 0..self.rows {
            for head in 0..self.heads {
                let lane = i * self.heads + head;
                let query = (self.query)(i, head);
                for (d, q) in query.iter().enumerate() {
                    turned[d * sizes.lanes + lane] = q * scale;
                }
            }
        }

        // Pages lie anywhere: a block of keys, and then of values, is asked for while the one
        // before it is worked on.
        let request = |j: usize| {
            let row = if j < keys { (self.key)(j) } else { (self.value)(j - keys) };
            simd.prefetch_all(row.as_ptr().cast(), size_of_val(row));
        };
        for start in (0..keys).step_by(KEY_BLOCK) {
            let count = KEY_BLOCK.min(keys - start);
            for j in 0..count {
                request((start + j + KEY_BLOCK).min(2 * keys - 1));
                E::widen(simd, (self.key)(start + j), &mut block[j * sizes.head_stride..]);
            }
            let scores = &mut scores[start * sizes.lanes..][..count * sizes.lanes];
            match (vectors, wide::<S>()) {
                (1, false) => score_block::<S, 8, 1>(simd, sizes, block, turned, scores),
                (1, true) => score_block::<S, 16, 1>(simd, sizes, block, turned, scores),
                (_, false) => score_block::<S, 4, VECTORS>(simd, sizes, block, turned, scores),
                (_, true) => score_block::<S, 8, VECTORS>(simd, sizes, block, turned, scores),
            }
        }
        for i in 0..self.rows {
            for j in (self.visible)(i)..keys {
                scores[j * sizes.lanes + i * self.heads..][..self.heads].fill(f32::NEG_INFINITY);
            }
        }
        softmax(simd, &mut scores[..keys * sizes.lanes], maxima, totals);

        sums.fill(0.0);
        for start in (0..keys).step_by(KEY_BLOCK) {
            let count = KEY_BLOCK.min(keys - start);
            for j in 0..count {
                request((keys + start + j + KEY_BLOCK).min(2 * keys - 1));
                E::widen(simd, (self.value)(start + j), &mut block[j * sizes.head_stride..]);
            }
            let weights = &scores[start * sizes.lanes..][..count * sizes.lanes];
            // Keys of this block that a query sees.
            let seen =
                |lane: usize| (self.visible)(lane / self.heads).saturating_sub(start).min(count);
            let mut lane = 0;
            while lane < queries {
                // A lone query would wait for its own sums: leave groups of two or three instead.
                let group = match queries - lane {
                    rest @ 1..=3 => rest,
                    5 | 6 => 3,
                    _ => ROWS,
                };
                let mut common = count;
                for l in lane..lane + group {
                    common = common.min(seen(l));
                }
                match group {
                    1 => sum_values::<S, 1>(simd, sizes, weights, block, 0..common, lane, sums),
                    2 => sum_values::<S, 2>(simd, sizes, weights, block, 0..common, lane, sums),
                    3 => sum_values::<S, 3>(simd, sizes, weights, block, 0..common, lane, sums),
                    _ => sum_values::<S, ROWS>(simd, sizes, weights, block, 0..common, lane, sums),
                }
                for l in lane..lane + group {
                    sum_values::<S, 1>(simd, sizes, weights, block, common..seen(l), l, sums);
                }
                lane += group;
            }
        }

        for i in 0..self.rows {
            if (self.visible)(i) == 0 {
                continue;
            }
            for head in 0..self.heads {
                let lane = i * self.heads + head;
                let out = (self.partial)(i, head);
                out[0] = maxima[lane];
                out[1] = totals[lane];
                out[2..].copy_from_slice(&sums[lane * sizes.head_stride..][..self.head_dim]);
            }
        }
    }
}

/// Scores of a block of keys: `scores[j][lane] = Σ_d block[j][d] * turned[d][lane]`.
#[inline(always)]
fn score_block<S: Simd, const KEYS: usize, const NV: usize>(
    simd: S,
    sizes: Sizes,
    block: &[f32],
    turned: &[f32],
    scores: &mut [f32],
) {
    let count = scores.len() / sizes.lanes;
    let mut j = 0;
    while j + KEYS <= count {
        let keys = &block[j * sizes.head_stride..];
        score_keys::<S, KEYS, NV>(simd, sizes, keys, turned, &mut scores[j * sizes.lanes..]);
        j += KEYS;
    }
    while j < count {
        let keys = &block[j * sizes.head_stride..];
        score_keys::<S, 1, NV>(simd, sizes, keys, turned, &mut scores[j * sizes.lanes..]);
        j += 1;
    }
}

#[inline(always)]
fn score_keys<S: Simd, const KEYS: usize, const NV: usize>(
    simd: S,
    sizes: Sizes,
    keys: &[f32],
    turned: &[f32],
    scores: &mut [f32],
) {
    let mut rows = [&keys[..0]; KEYS];
    for (r, row) in rows.iter_mut().enumerate() {
        *row = &keys[r * sizes.head_stride..][..sizes.head_dim];
    }
    for column in (0..sizes.lanes).step_by(NV * S::LANES) {
        let mut sums = [[simd.splat(0.0); NV]; KEYS];
        for (d, queries) in turned.chunks_exact(sizes.lanes).enumerate() {
            let queries = &queries[column..][..NV * S::LANES];
            for v in 0..NV {
                let q = simd.load(&queries[v * S::LANES..]);
                for r in 0..KEYS {
                    sums[r][v] = simd.fma(simd.splat(rows[r][d]), q, sums[r][v]);
                }
            }
        }
        for r in 0..KEYS {
            for v in 0..NV {
                simd.store(&mut scores[r * sizes.lanes + column + v * S::LANES..], sums[r][v]);
            }
        }
    }
}

/// `scores` becomes `exp(score - maximum)` per lane; maxima and sums over the keys are left beside.
#[inline(always)]
fn softmax<S: Simd>(simd: S, scores: &mut [f32], maxima: &mut [f32], totals: &mut [f32]) {
    let lanes = maxima.len();
    for column in (0..lanes).step_by(S::LANES) {
        let mut max = simd.splat(f32::NEG_INFINITY);
        for row in scores.chunks_exact(lanes) {
            // A NaN score is passed over here and comes back below.
            max = simd.max(simd.load(&row[column..]), max);
        }
        let mut total = simd.splat(0.0);
        for row in scores.chunks_exact_mut(lanes) {
            let p = simd.exp(simd.sub(simd.load(&row[column..]), max));
            total = simd.add(total, p);
            simd.store(&mut row[column..], p);
        }
        simd.store(&mut maxima[column..], max);
        simd.store(&mut totals[column..], total);
    }
}

/// `sums[query][d] += Σ_j weights[j][query] * block[j][d]` for `QUERIES` queries from `lane` on and
/// keys `keys` of the block.
#[inline(always)]
fn sum_values<S: Simd, const QUERIES: usize>(
    simd: S,
    sizes: Sizes,
    weights: &[f32],
    block: &[f32],
    keys: Range<usize>,
    lane: usize,
    sums: &mut [f32],
) {
    if keys.is_empty() {
        return;
    }
    if wide::<S>() && sizes.head_dim.is_multiple_of(2 * VECTORS * S::LANES) {
        const WIDER: usize = 2 * VECTORS;
        sum_vectors::<S, QUERIES, WIDER>(simd, sizes, weights, block, keys, lane, sums);
    } else {
        sum_vectors::<S, QUERIES, VECTORS>(simd, sizes, weights, block, keys, lane, sums);
    }
}

/// [`sum_values`], `NV` vectors of elements at a time.
#[inline(always)]
fn sum_vectors<S: Simd, const QUERIES: usize, const NV: usize>(
    simd: S,
    sizes: Sizes,
    weights: &[f32],
    block: &[f32],
    keys: Range<usize>,
    lane: usize,
    sums: &mut [f32],
) {
    let step = NV * S::LANES;
    for d in (0..sizes.head_dim).step_by(step) {
        let mut acc = [[simd.splat(0.0); NV]; QUERIES];
        for (q, acc) in acc.iter_mut().enumerate() {
            for (v, acc) in acc.iter_mut().enumerate() {
                *acc = simd.load(&sums[(lane + q) * sizes.head_stride + d + v * S::LANES..]);
            }
        }
        for j in keys.clone() {
            let weights = &weights[j * sizes.lanes + lane..][..QUERIES];
            let values = &block[j * sizes.head_stride + d..][..step];
            for v in 0..NV {
                let value = simd.load(&values[v * S::LANES..]);
                for q in 0..QUERIES {
                    acc[q][v] = simd.fma(simd.splat(weights[q]), value, acc[q][v]);
                }
            }
        }
        for (q, acc) in acc.iter().enumerate() {
            for (v, acc) in acc.iter().enumerate() {
                simd.store(&mut sums[(lane + q) * sizes.head_stride + d + v * S::LANES..], *acc);
            }
        }
    }
}
