//! Paged attention: which split of which rows is computed where, and how splits are put together.
//!
//! A row's keys ([`RaggedBatch::key`]) are cut into splits of [`ATTENTION_SPLIT_KEYS`]. A *unit* is
//! one split of one KV head for a tile of rows of one group; [`super::split`] leaves the maximum,
//! the sum and the weighted values of every row and head of the unit. Then each row folds its
//! splits in order. Long batches run in waves, so that the partial results stay small.
//!
//! Invariant: a row's bits depend on its query, its keys and their order; not on tiles, waves,
//! threads or the other rows. Slots no row sees are never read.

use super::Pool;
use super::disjoint::Disjoint;
use super::element::KvElement;
use super::simd::SimdLevel;
use super::split::{self, Split};
use super::threads::Threads;
use crate::config::ATTENTION_SPLIT_KEYS;
use crate::device::{RaggedBatch, RowGroup, Shape};
use crate::sample::exp_nonpositive;
use std::ops::Range;

/// Query vectors (rows times heads of one KV head) one unit aims at.
const TILE_QUERIES: usize = 64;
/// f32 of partial results one wave may hold, 8 MiB; a single row may need more.
const PARTIALS_MAX: usize = 2 << 20;

/// Attention of one layer.
pub(super) struct Attention<'a, E> {
    pub(super) shape: &'a Shape,
    pub(super) layer: usize,
    pub(super) batch: &'a RaggedBatch,
    /// `[T, H, D]`.
    pub(super) queries: &'a [f32],
    pub(super) pool: Pool<&'a [E]>,
}

/// Memory that attention keeps between passes.
#[derive(Debug, Default)]
pub(super) struct AttentionScratch {
    units: Vec<Unit>,
    /// Where the partial results of each row of the wave begin.
    offsets: Vec<usize>,
    partials: Vec<f32>,
}

/// One split of one KV head for some rows of a group.
#[derive(Debug)]
struct Unit {
    group: usize,
    /// Rows of the group, from 0.
    rows: Range<usize>,
    kv_head: usize,
    split: usize,
}

impl<E: KvElement> Attention<'_, E> {
    /// Fills `out`, `[T, H, D]`, on all threads.
    pub(super) fn run(
        &self,
        threads: &Threads,
        simd: SimdLevel,
        scratch: &mut AttentionScratch,
        out: &mut [f32],
    ) {
        let row_width = self.shape.heads * self.shape.head_dim;
        let mut first = 0;
        while first < self.batch.rows() {
            let wave = self.plan_wave(first, scratch);
            first = wave.end;
            let AttentionScratch { units, offsets, partials } = &mut *scratch;
            let shared = Disjoint::new(partials);
            threads.run(units.len(), &|u| self.compute(simd, &units[u], &wave, offsets, &shared));
            let rows = Disjoint::new(&mut out[wave.start * row_width..wave.end * row_width]);
            threads.run(wave.len(), &|r| {
                // SAFETY: valid: asserted by `part`; exclusive: one task per row.
                let out = unsafe { rows.part(r * row_width..(r + 1) * row_width) };
                self.fold(&partials[offsets[r]..offsets[r + 1]], out);
            });
        }
    }

    /// f32 of one partial result: maximum, sum, `[D]` weighted values.
    fn partial_width(&self) -> usize {
        2 + self.shape.head_dim
    }

    /// Chooses the rows of the next wave and cuts them into units.
    fn plan_wave(&self, first: usize, scratch: &mut AttentionScratch) -> Range<usize> {
        let AttentionScratch { units, offsets, partials } = scratch;
        units.clear();
        offsets.clear();
        offsets.push(0);
        let (mut end, mut floats) = (first, 0);
        for (g, group) in self.batch.groups.iter().enumerate() {
            let from = group.rows.start.max(end);
            for t in from..group.rows.end {
                let splits = group.visible(t - group.rows.start).div_ceil(ATTENTION_SPLIT_KEYS);
                let more = splits * self.shape.heads * self.partial_width();
                if end > first && floats + more > PARTIALS_MAX {
                    break;
                }
                floats += more;
                offsets.push(floats);
                end = t + 1;
            }
            if from < end {
                self.cut(g, from - group.rows.start..end - group.rows.start, units);
            }
            if end < group.rows.end {
                break;
            }
        }
        if partials.len() < floats {
            partials.resize(floats, 0.0);
        }
        first..end
    }

    /// Cuts `rows` of a group into units, every split of every KV head.
    fn cut(&self, g: usize, rows: Range<usize>, units: &mut Vec<Unit>) {
        let group = &self.batch.groups[g];
        let per_kv_head = self.shape.heads / self.shape.kv_heads;
        let tile = (TILE_QUERIES / per_kv_head).max(1);
        let visible = |rows: &Range<usize>| rows.clone().map(|i| group.visible(i)).max();
        let splits = visible(&rows).unwrap_or(0).div_ceil(ATTENTION_SPLIT_KEYS);
        for kv_head in 0..self.shape.kv_heads {
            for split in 0..splits {
                // Beyond the shared keys of a tree every row has keys of its own.
                let shared = (split + 1) * ATTENTION_SPLIT_KEYS <= group.shared_keys()
                    || group.mask == crate::device::Mask::Causal;
                let step = if shared { tile } else { 1 };
                for start in rows.clone().step_by(step) {
                    let rows = start..rows.end.min(start + step);
                    if visible(&rows) > Some(split * ATTENTION_SPLIT_KEYS) {
                        units.push(Unit { group: g, rows, kv_head, split });
                    }
                }
            }
        }
    }

    fn compute(
        &self,
        simd: SimdLevel,
        unit: &Unit,
        wave: &Range<usize>,
        offsets: &[usize],
        partials: &Disjoint<'_, f32>,
    ) {
        let Shape { heads, kv_heads, head_dim, .. } = *self.shape;
        let per_kv_head = heads / kv_heads;
        let group = &self.batch.groups[unit.group];
        let first_key = unit.split * ATTENTION_SPLIT_KEYS;
        let planes = [0, 1].map(|which| self.shape.plane(self.layer, which, unit.kv_head));
        let width = self.partial_width();
        split::with_scratch(|scratch| {
            simd.dispatch(Split {
                head_dim,
                heads: per_kv_head,
                rows: unit.rows.len(),
                query: |i: usize, head: usize| {
                    let t = group.rows.start + unit.rows.start + i;
                    let at = (t * heads + unit.kv_head * per_kv_head + head) * head_dim;
                    &self.queries[at..at + head_dim]
                },
                visible: |i: usize| {
                    let keys = group.visible(unit.rows.start + i).saturating_sub(first_key);
                    keys.min(ATTENTION_SPLIT_KEYS)
                },
                key: |j: usize| {
                    // Rows of a unit share their keys; the last row sees the most of them.
                    let at = self.slot(group, unit.rows.end - 1, first_key + j);
                    &self.pool.elements[planes[0] + at..][..head_dim]
                },
                value: |j: usize| {
                    let at = self.slot(group, unit.rows.end - 1, first_key + j);
                    &self.pool.elements[planes[1] + at..][..head_dim]
                },
                partial: |i: usize, head: usize| {
                    let row = group.rows.start + unit.rows.start + i - wave.start;
                    let head = unit.kv_head * per_kv_head + head;
                    let at = offsets[row] + (unit.split * heads + head) * width;
                    // SAFETY: valid: asserted by `part`; exclusive: one unit per row, head, split.
                    unsafe { partials.part(at..at + width) }
                },
                scratch,
            });
        });
    }

    /// Elements from a plane of page 0 to the `j`-th key that row `i` of `group` sees.
    #[inline(always)]
    fn slot(&self, group: &RowGroup, i: usize, j: usize) -> usize {
        let (page, slot) = self.batch.key(group, i, j, self.shape.page_tokens);
        page.index() * self.pool.page_elements + slot * self.shape.head_dim
    }

    /// Puts the splits of one row together, in order. `partials` is `[splits][H][2 + D]`.
    fn fold(&self, partials: &[f32], out: &mut [f32]) {
        let width = self.partial_width();
        let (heads, head_dim) = (self.shape.heads, self.shape.head_dim);
        for (head, out) in out.chunks_exact_mut(head_dim).enumerate() {
            let mut splits =
                partials.chunks_exact(heads * width).map(|s| &s[head * width..][..width]);
            let Some(start) = splits.next() else {
                out.fill(0.0);
                continue;
            };
            let (mut max, mut sum) = (start[0], start[1]);
            out.copy_from_slice(&start[2..]);
            for next in splits {
                let larger = max.max(next[0]);
                let (old, new) = (exp_nonpositive(max - larger), exp_nonpositive(next[0] - larger));
                for (out, v) in out.iter_mut().zip(&next[2..]) {
                    *out = *out * old + v * new;
                }
                sum = sum * old + next[1] * new;
                max = larger;
            }
            for v in out {
                *v /= sum;
            }
        }
    }
}
