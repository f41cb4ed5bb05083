//! RMS norm of one row.
//!
//! Sums run in four vectors side by side, then a tail padded with zeros; the order depends on the
//! width of the row and of the lanes only.

use super::simd::{Kernel, Simd};

/// Lanes of the widest level.
pub(super) const LANES_MAX: usize = 16;

/// `out = x * weight / sqrt(mean(x²) + eps)`; all three have the same length.
pub(super) struct RmsNorm<'a> {
    pub(super) x: &'a [f32],
    pub(super) weight: &'a [f32],
    pub(super) eps: f32,
    pub(super) out: &'a mut [f32],
}

impl Kernel for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let scale = simd.splat(inverse_rms(simd, self.x, self.eps));
        let (mut out, mut x) = (self.out.chunks_mut(S::LANES), self.x.chunks(S::LANES));
        for weight in self.weight.chunks(S::LANES) {
            let (Some(out), Some(x)) = (out.next(), x.next()) else { break };
            let scaled = simd.mul(load_part(simd, x), scale);
            store_part(simd, out, simd.mul(scaled, load_part(simd, weight)));
        }
    }
}

/// `head *= weight / sqrt(mean(head²) + eps)`, for one head.
#[inline(always)]
pub(super) fn norm_in_place<S: Simd>(simd: S, head: &mut [f32], weight: &[f32], eps: f32) {
    let scale = simd.splat(inverse_rms(simd, head, eps));
    for (head, weight) in head.chunks_mut(S::LANES).zip(weight.chunks(S::LANES)) {
        let scaled = simd.mul(load_part(simd, head), scale);
        store_part(simd, head, simd.mul(scaled, load_part(simd, weight)));
    }
}

#[inline(always)]
fn inverse_rms<S: Simd>(simd: S, x: &[f32], eps: f32) -> f32 {
    let mut sums = [simd.splat(0.0); 4];
    for quad in x.chunks(4 * S::LANES) {
        for (sum, part) in sums.iter_mut().zip(quad.chunks(S::LANES)) {
            let v = load_part(simd, part);
            *sum = simd.fma(v, v, *sum);
        }
    }
    let [a, b, c, d] = sums;
    let total = simd.sum(simd.add(simd.add(a, b), simd.add(c, d)));
    1.0 / (total / x.len() as f32 + eps).sqrt()
}

/// At most one vector of values; missing lanes are zero.
#[inline(always)]
pub(super) fn load_part<S: Simd>(simd: S, from: &[f32]) -> S::F32 {
    if from.len() >= S::LANES {
        return simd.load(from);
    }
    let mut padded = [0.0; LANES_MAX];
    padded[..from.len()].copy_from_slice(from);
    simd.load(&padded)
}

/// Stores the lanes there is room for.
#[inline(always)]
pub(super) fn store_part<S: Simd>(simd: S, to: &mut [f32], v: S::F32) {
    if to.len() >= S::LANES {
        return simd.store(to, v);
    }
    let mut padded = [0.0; LANES_MAX];
    simd.store(&mut padded, v);
    to.copy_from_slice(&padded[..to.len()]);
}
