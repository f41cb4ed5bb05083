//! What works row by row: the embedding, and from sums to queries and the cache.

use super::weights::{
    NONE, Weights, assert_close, assert_prepared, batch, gpu, half_ulp, preparation,
};
use crate::device::cuda::ops::embed::{EmbedParams, embed};
use crate::device::cuda::ops::rope_append::{RopeAppendBuffers, rope_append};
use crate::device::cuda::samples::Random;
use crate::device::{BlockType, Shape};
use half::bf16;

#[test]
fn an_embedding_row_is_the_decoded_row_rounded_once() {
    for kind in BlockType::ALL {
        let cols = if kind.is_plain() { 77 } else { kind.block_elements() * 3 };
        let (vocab, mut random) = (37, Random(1));
        let gpu = gpu(1);
        let weights = Weights::random(&gpu, kind, vocab, cols, &mut random);
        let tokens: Vec<i32> = (0..9).map(|_| random.below(vocab) as i32).collect();
        let mut batch = batch(&gpu, [tokens.len() as i32, 0, 0, 0, 0, 0, 0, 0]);
        batch.tokens = gpu.upload(&tokens, "tokens");
        let hidden = gpu.unwritten(16 * cols * 2, "hidden");
        let norm = random.floats(cols);
        let next = preparation(&gpu, 16, &norm);
        let params = EmbedParams { batch, table: weights.matrix, fed: NONE, hidden, next };
        gpu.run(&embed(16, &params));
        let got: Vec<bf16> = gpu.read(hidden, tokens.len() * cols);
        assert_prepared(&gpu, &next, &got, &norm);
        for (row, token) in tokens.iter().enumerate() {
            for col in 0..cols {
                let expected = weights.values[*token as usize * cols + col] as f32;
                assert_eq!(got[row * cols + col], bf16::from_f32(expected), "{kind} {token} {col}");
            }
        }
    }
}

/// Runs `rope_append` and checks queries and pool against f64.
fn check_rope(head_dim: usize, heads: usize, kv_heads: usize, normed: bool, rows: usize) {
    let what = format!("D {head_dim} H {heads} G {kv_heads} normed {normed}");
    let mut random = Random(head_dim as u64 + rows as u64);
    let gpu = gpu(head_dim as u64);
    let (layers, layer, page_tokens, pages, positions) = (3, 1, 16, 5, 50);
    let page_elements = layers * 2 * kv_heads * page_tokens * head_dim;
    let shape = Shape {
        hidden: 0,
        heads,
        kv_heads,
        head_dim,
        ffn: 0,
        vocab: 0,
        rms_eps: 1e-6,
        layers,
        page_tokens,
        page_bytes: page_elements * 2 + 64,
    };
    let width = (heads + 2 * kv_heads) * head_dim;
    let y = random.floats(rows * width);
    let rope: Vec<f32> = random.floats(positions * head_dim);
    let norms: [Vec<f32>; 2] = std::array::from_fn(|_| random.floats(head_dim));
    let at: Vec<i32> = (0..rows).map(|_| random.below(positions) as i32).collect();
    // Every row a slot of its own, not in order.
    let slots: Vec<i32> =
        (0..rows).map(|t| ((t * 37 + 11) % (pages * page_tokens)) as i32).collect();
    let mut batch = batch(&gpu, [rows as i32, 0, 0, 0, 0, 0, 0, 0]);
    batch.positions = gpu.upload(&at, "positions");
    batch.slots = gpu.upload(&slots, "slots");
    let q = gpu.unwritten(rows * heads * head_dim * 2, "q");
    let pool = gpu.unwritten(pages * shape.page_bytes, "pool");
    let [q_norm, k_norm] = norms.each_ref().map(|n| gpu.upload(n, "norm"));
    let buffers = RopeAppendBuffers {
        batch,
        y: gpu.upload(&y, "y"),
        rope: gpu.upload(&rope, "rope"),
        q_norm: if normed { q_norm } else { NONE },
        k_norm: if normed { k_norm } else { NONE },
        q,
        pool,
    };
    gpu.run(&rope_append(rows + 2, &shape, layer, &buffers));
    let queries: Vec<bf16> = gpu.read(q, rows * heads * head_dim);
    for t in 0..rows {
        for head in 0..heads + 2 * kv_heads {
            let mut x: Vec<f64> = y[t * width + head * head_dim..][..head_dim]
                .iter()
                .map(|v| f64::from(*v))
                .collect();
            let magnitude = |x: &[f64]| x.iter().fold(0.0_f64, |a, b| a.max(b.abs()));
            if head < heads + kv_heads {
                if normed {
                    let mean = x.iter().map(|v| v * v).sum::<f64>() / head_dim as f64;
                    let scale = 1.0 / (mean + 1e-6).sqrt();
                    let norm = &norms[usize::from(head >= heads)];
                    for (x, g) in x.iter_mut().zip(norm) {
                        *x *= scale * f64::from(*g);
                    }
                }
                let (half, angles) = (head_dim / 2, &rope[at[t] as usize * head_dim..][..head_dim]);
                for i in 0..half {
                    let (a, b) = (x[i], x[i + half]);
                    let (c, s) = (f64::from(angles[i]), f64::from(angles[i + half]));
                    (x[i], x[i + half]) = (a * c - b * s, b * c + a * s);
                }
            }
            let got: Vec<bf16> = if head < heads {
                queries[(t * heads + head) * head_dim..][..head_dim].to_vec()
            } else {
                let (which, kv_head) = ((head - heads) / kv_heads, (head - heads) % kv_heads);
                let (page, slot) =
                    (slots[t] as usize / page_tokens, slots[t] as usize % page_tokens);
                let element = shape.plane(layer, which, kv_head) + slot * head_dim;
                gpu.read(pool.offset(page * shape.page_bytes + element * 2), head_dim)
            };
            let got: Vec<f64> = got.iter().map(|v| v.to_f64()).collect();
            let error = magnitude(&x) * 2f64.powi(-20);
            let expected: Vec<(f64, f64)> = x.iter().map(|v| (*v, half_ulp(*v) + error)).collect();
            assert_close(&format!("{what}, row {t} head {head}"), &got, &expected);
        }
    }
    // Another layer's planes stay as they were.
    let first = gpu.untouched(pool, shape.plane(1, 0, 0) * 2);
    assert!(first, "{what}: layer 0 of page 0 was written");
}

#[test]
fn queries_and_cached_keys_are_rotated_and_values_are_not() {
    for head_dim in [2, 6, 32, 64, 80, 96, 100, 128, 256] {
        check_rope(head_dim, 4, 2, false, 3);
        check_rope(head_dim, 3, 1, true, 7);
    }
}
