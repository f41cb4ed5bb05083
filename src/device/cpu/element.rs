//! The stored type of keys and values, as the kernels see it.
//!
//! Widening is exact and narrowing rounds to nearest even, in full vectors and in tails alike, so
//! an element has the same bits wherever it sits.

use super::simd::Simd;
use half::bf16;

/// An element of the KV pool.
pub(super) trait KvElement: bytemuck::Pod + Send + Sync {
    /// `to[i] = from[i]`.
    fn widen<S: Simd>(simd: S, from: &[Self], to: &mut [f32]);
    /// `to[i] = from[i]`, rounded.
    fn narrow<S: Simd>(simd: S, from: &[f32], to: &mut [Self]);
}

impl KvElement for bf16 {
    #[inline(always)]
    fn widen<S: Simd>(simd: S, from: &[Self], to: &mut [f32]) {
        let mut to = to[..from.len()].chunks_exact_mut(S::LANES);
        let mut from = from.chunks_exact(S::LANES);
        for (to, from) in (&mut to).zip(&mut from) {
            simd.store(to, simd.load_bf16(from));
        }
        for (to, from) in to.into_remainder().iter_mut().zip(from.remainder()) {
            *to = from.to_f32();
        }
    }

    #[inline(always)]
    fn narrow<S: Simd>(simd: S, from: &[f32], to: &mut [Self]) {
        let mut to = to[..from.len()].chunks_exact_mut(S::LANES);
        let mut from = from.chunks_exact(S::LANES);
        for (to, from) in (&mut to).zip(&mut from) {
            simd.store_bf16(to, simd.load(from));
        }
        for (to, from) in to.into_remainder().iter_mut().zip(from.remainder()) {
            *to = Self::from_f32(*from);
        }
    }
}

impl KvElement for f32 {
    #[inline(always)]
    fn widen<S: Simd>(_simd: S, from: &[Self], to: &mut [f32]) {
        to[..from.len()].copy_from_slice(from);
    }

    #[inline(always)]
    fn narrow<S: Simd>(_simd: S, from: &[f32], to: &mut [Self]) {
        to[..from.len()].copy_from_slice(from);
    }
}
