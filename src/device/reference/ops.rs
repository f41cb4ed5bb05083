//! The arithmetic of the reference device, in f64 on f32 inputs.
//!
//! Each function is the definition of what its namesake on a faster device approximates. Results
//! stay f64 where a later step of the same operation continues with them.

use super::super::HeadResult;
use super::ReferenceMatrix;
use crate::ids::TokenId;

/// Calls `f(i, row i of out)` for every row of `width` elements, spread over `threads` threads.
pub(super) fn for_each_row<T: Send>(
    threads: usize,
    out: &mut [T],
    width: usize,
    f: impl Fn(usize, &mut [T]) + Sync,
) {
    let run = |first: usize, part: &mut [T]| {
        for (i, row) in part.chunks_exact_mut(width).enumerate() {
            f(first + i, row);
        }
    };
    let share = (out.len() / width).div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        let run = &run;
        let mut parts = out.chunks_mut(share * width).enumerate();
        let here = parts.next();
        for (p, part) in parts {
            scope.spawn(move || run(p * share, part));
        }
        if let Some((_, part)) = here {
            run(0, part);
        }
    });
}

/// The sum of products, in eight interleaved partial sums so that a compiler can vectorise it.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len(), "a dot product of vectors of different lengths");
    let mut sums = [0.0; 8];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    for (a, b) in a.iter().zip(b) {
        for i in 0..8 {
            sums[i] += f64::from(a[i]) * f64::from(b[i]);
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    sums.iter().sum::<f64>() + rest
}

/// `y[t, n] = W[n, :] · x[t, :]`, `[T, N]`.
pub(super) fn matmul(threads: usize, w: &ReferenceMatrix, x: &[f32]) -> Vec<f64> {
    let rows = x.len() / w.cols;
    if rows == 0 {
        return Vec::new();
    }
    // Rows of weights outside, so that each is read once; the result is then turned around.
    let mut turned = vec![0.0; w.rows * rows];
    for_each_row(threads, &mut turned, rows, |n, out| {
        for (out, x) in out.iter_mut().zip(x.chunks_exact(w.cols)) {
            *out = dot(w.row(n), x);
        }
    });
    let mut y = vec![0.0; w.rows * rows];
    for (n, column) in turned.chunks_exact(rows).enumerate() {
        for (t, value) in column.iter().enumerate() {
            y[t * w.rows + n] = *value;
        }
    }
    y
}

/// `x * weight / sqrt(mean(x²) + eps)` for every row of `weight.len()` elements.
pub(super) fn rms_norm_rows(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len());
    for row in x.chunks_exact(weight.len()) {
        let mean = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / row.len() as f64;
        let scale = 1.0 / (mean + f64::from(eps)).sqrt();
        out.extend(
            row.iter().zip(weight).map(|(v, w)| (f64::from(*v) * scale * f64::from(*w)) as f32),
        );
    }
    out
}

/// The same for one head, in place and unrounded.
pub(super) fn rms_norm_head(head: &mut [f64], weight: &[f32], eps: f32) {
    let mean = head.iter().map(|v| v * v).sum::<f64>() / head.len() as f64;
    let scale = 1.0 / (mean + f64::from(eps)).sqrt();
    for (v, w) in head.iter_mut().zip(weight) {
        *v *= scale * f64::from(*w);
    }
}

/// Rotates the pairs `(i, i + D/2)` of a head by the angles whose cosines, then sines, are given.
pub(super) fn rotate(head: &mut [f64], angles: &[f32]) {
    let (cos, sin) = angles.split_at(head.len() / 2);
    let (low, high) = head.split_at_mut(head.len() / 2);
    for i in 0..low.len() {
        let (a, b, c, s) = (low[i], high[i], f64::from(cos[i]), f64::from(sin[i]));
        (low[i], high[i]) = (a * c - b * s, b * c + a * s);
    }
}

/// `softmax(q · K / sqrt(D)) V`, keys and values in the order in which they are summed.
pub(super) fn attend<'a>(
    q: &[f32],
    keys: impl Iterator<Item = &'a [f32]>,
    values: impl Iterator<Item = &'a [f32]>,
    out: &mut [f32],
) {
    let scale = 1.0 / (q.len() as f64).sqrt();
    let scores: Vec<f64> = keys.map(|key| dot(q, key) * scale).collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut sums = vec![0.0; out.len()];
    let mut total = 0.0;
    for (score, value) in scores.iter().zip(values) {
        let p = (score - max).exp();
        total += p;
        for (sum, v) in sums.iter_mut().zip(value) {
            *sum += p * f64::from(*v);
        }
    }
    for (out, sum) in out.iter_mut().zip(&sums) {
        *out = (sum / total) as f32;
    }
}

/// The largest logit; the lowest id among equals.
pub(super) fn argmax(logits: &[f32]) -> HeadResult {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = id;
        }
    }
    HeadResult::Argmax { id: TokenId(best as u32), logit: logits[best] }
}

/// Probabilities proportional to `exp(logit)`.
pub(super) fn softmax(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> = logits.iter().map(|l| (f64::from(*l) - f64::from(max)).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|w| (w / total) as f32).collect()
}

/// The natural logarithm of the softmax of `logits` at `id`.
pub(super) fn log_prob(logits: &[f32], id: usize) -> f32 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let total: f64 = logits.iter().map(|l| (f64::from(*l) - max).exp()).sum();
    (f64::from(logits[id]) - max - total.ln()) as f32
}
