//! Everything after the three products of `qkv`: per-head norm, rotation, append to the pages.
//!
//! The work is cut by KV head for keys and values (a task writes the planes of its head in every
//! page) and by rows for queries. Invariant: a key is normed and rotated in f32 and rounded once,
//! when it is stored.

use super::Pool;
use super::disjoint::Disjoint;
use super::element::KvElement;
use super::norm::{load_part, norm_in_place, store_part};
use super::simd::{Kernel, Simd, SimdLevel};
use super::threads::Threads;
use crate::device::{RaggedBatch, Shape};

/// Query rows one task rotates.
const QUERY_ROWS: usize = 16;

/// Rotation and append of one layer.
pub(super) struct Append<'a> {
    pub(super) shape: &'a Shape,
    pub(super) layer: usize,
    pub(super) batch: &'a RaggedBatch,
    /// `[positions][cos: D/2, sin: D/2]`.
    pub(super) rope: &'a [f32],
    pub(super) q_norm: Option<&'a [f32]>,
    pub(super) k_norm: Option<&'a [f32]>,
    /// `[T, G, D]` as the products left them; keys are rotated in place.
    pub(super) keys: &'a mut [f32],
    /// `[T, G, D]`.
    pub(super) values: &'a [f32],
    /// `[T, H, D]`, rotated in place.
    pub(super) queries: &'a mut [f32],
}

impl Append<'_> {
    /// Runs it on all threads.
    pub(super) fn run<E: KvElement>(
        self,
        threads: &Threads,
        simd: SimdLevel,
        pool: Pool<&mut [E]>,
    ) {
        let Self { shape, layer, batch, rope, q_norm, k_norm, keys, values, queries } = self;
        let Shape { heads, kv_heads, head_dim, .. } = *shape;
        let rows = batch.rows();
        let Pool { elements, page_elements } = pool;
        let keys = Disjoint::new(&mut keys[..rows * kv_heads * head_dim]);
        let queries = Disjoint::new(&mut queries[..rows * heads * head_dim]);
        let elements = Disjoint::new(elements);

        let append_head = |kv_head: usize| {
            for group in &batch.groups {
                for (i, t) in group.rows.clone().enumerate() {
                    let (page, slot) =
                        batch.place(&group.own, group.own.len + i, shape.page_tokens);
                    let at = (t * kv_heads + kv_head) * head_dim;
                    // SAFETY: valid: asserted by `part`; exclusive: only the task of this KV head
                    // touches this head of a row.
                    let key = unsafe { keys.part(at..at + head_dim) };
                    let store = |which: usize| {
                        let to = page.index() * page_elements
                            + shape.plane(layer, which, kv_head)
                            + slot * head_dim;
                        // SAFETY: valid: asserted by `part`; exclusive: planes of different heads
                        // do not overlap inside a page, nor pages each other (`Pool::new`), and
                        // this task is done with one slot before it takes the next.
                        unsafe { elements.part(to..to + head_dim) }
                    };
                    let angles = &rope[batch.positions[t] as usize * head_dim..][..head_dim];
                    simd.dispatch(Rotate {
                        head: key,
                        head_dim,
                        norm: k_norm,
                        eps: shape.rms_eps,
                        angles,
                    });
                    simd.dispatch(Store { from: key, to: store(0) });
                    simd.dispatch(Store { from: &values[at..at + head_dim], to: store(1) });
                }
            }
        };
        let rotate_queries = |chunk: usize| {
            for t in chunk * QUERY_ROWS..rows.min((chunk + 1) * QUERY_ROWS) {
                let width = heads * head_dim;
                // SAFETY: valid: asserted by `part`; exclusive: chunks of rows do not overlap.
                let row = unsafe { queries.part(t * width..(t + 1) * width) };
                let angles = &rope[batch.positions[t] as usize * head_dim..][..head_dim];
                simd.dispatch(Rotate {
                    head: row,
                    head_dim,
                    norm: q_norm,
                    eps: shape.rms_eps,
                    angles,
                });
            }
        };
        threads.run(
            kv_heads + rows.div_ceil(QUERY_ROWS),
            &|task| match task.checked_sub(kv_heads) {
                None => append_head(task),
                Some(chunk) => rotate_queries(chunk),
            },
        );
    }
}

/// Norms and rotates every head of a row.
struct Rotate<'a> {
    head: &'a mut [f32],
    head_dim: usize,
    norm: Option<&'a [f32]>,
    eps: f32,
    angles: &'a [f32],
}

impl Kernel for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (cos, sin) = self.angles.split_at(self.head_dim / 2);
        for head in self.head.chunks_exact_mut(self.head_dim) {
            if let Some(weight) = self.norm {
                norm_in_place(simd, head, weight, self.eps);
            }
            let (low, high) = head.split_at_mut(self.head_dim / 2);
            let pairs = low.chunks_mut(S::LANES).zip(high.chunks_mut(S::LANES));
            let angles = cos.chunks(S::LANES).zip(sin.chunks(S::LANES));
            for ((low, high), (cos, sin)) in pairs.zip(angles) {
                let (a, b) = (load_part(simd, low), load_part(simd, high));
                let (c, s) = (load_part(simd, cos), load_part(simd, sin));
                store_part(simd, low, simd.sub(simd.mul(a, c), simd.mul(b, s)));
                store_part(simd, high, simd.fma(b, c, simd.mul(a, s)));
            }
        }
    }
}

/// Rounds a head into its slot.
struct Store<'a, E> {
    from: &'a [f32],
    to: &'a mut [E],
}

impl<E: KvElement> Kernel for Store<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        E::narrow(simd, self.from, self.to);
    }
}
