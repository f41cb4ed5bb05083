//! Each operation of the CPU device on the same inputs as the reference.
//!
//! Bounds. Plain weights are multiplied in f32: a sum of `K` products is off by at most
//! `(K + 2) · 2⁻²⁴ · Σ|w x|` in any order. Quantised weights meet activations rounded to int8 in
//! blocks of 32, K-quants in blocks of 256: each is off by at most half a step, `max|block| / 254`,
//! so the sum by `Σ|w| · max|block| / 254` on top. Blocks of 32 have their scale and sum rounded to
//! f16 besides: `2⁻¹¹` of the scaled quants and of the offsets, each at most three times the
//! heaviest weight of the block. Attention sums up to 1100 products and exponentials of 2 ulp:
//! `1e-5 · max|v|`.

use crate::harness::{BatchBuilder, Rng, Spec, Table, encode, rope_table, tokens};
use crate::probes::{
    Filling, attended, chain, decoded, embedded, gated, normed, projected, queries_and_pool,
};
use crate::{cpu, levels};
use forerun::device::cpu::CpuDevice;
use forerun::device::reference::ReferenceDevice;
use forerun::device::{BlockType, KvType, Mask, Shape};
use forerun::ids::TokenId;

const UNIT: f64 = 1.0 / (1 << 24) as f64;
/// Roundings one product can meet on its way through a sum of 512.
const ROUNDINGS: f64 = 514.0;

/// Every level beside the reference.
pub(crate) fn devices() -> impl Iterator<Item = (CpuDevice, ReferenceDevice, String)> {
    levels().into_iter().map(|simd| {
        let name = simd.name().to_owned();
        (cpu(simd, 2, KvType::F32), ReferenceDevice::new(KvType::F32), name)
    })
}

/// How far a product of a row of weights and a row of activations may be off.
fn product_bound(kind: BlockType, w: &[f32], x: &[f32]) -> f64 {
    let mut bound = 0.0;
    let block = kind.block_elements().max(32);
    for (w, x) in w.chunks(block).zip(x.chunks(block)) {
        let most = |v: &[f32]| v.iter().fold(0.0_f64, |m, v| m.max(f64::from(v.abs())));
        let (heaviest, largest) = (most(w), most(x));
        for (w, x) in w.iter().zip(x) {
            let w = f64::from(w.abs());
            bound += w * f64::from(x.abs()) * ROUNDINGS * UNIT;
            if !kind.is_plain() {
                bound += w * largest / 254.0;
                if block == 32 {
                    bound += 3.0 * heaviest * f64::from(x.abs()) / 2048.0;
                }
            }
        }
    }
    bound
}

#[test]
fn an_embedding_is_the_decoded_row_to_the_last_bit() {
    for kind in BlockType::ALL {
        for (cpu, reference, simd) in devices() {
            let bytes = encode(kind, 37, 512, 1.0, &mut Rng(1));
            let ids: Vec<TokenId> = [0, 36, 15, 16, 36, 1].map(TokenId).to_vec();
            let same =
                embedded(&cpu, kind, &bytes, &ids) == embedded(&reference, kind, &bytes, &ids);
            assert!(same, "{kind}, {simd}");
        }
    }
}

#[test]
fn a_projection_is_within_its_bound_for_every_block_type() {
    for kind in BlockType::ALL {
        for (n, k) in [(19, 256), (64, 512)] {
            for rows in [1, 2, 7, 33] {
                let mut rng = Rng(n as u64);
                let bytes = encode(kind, n, k, 0.1, &mut rng);
                let w = decoded(kind, n, k, &bytes);
                let (bias, x) = (rng.vector(n, 1.0), rng.vector(rows * k, 2.0));
                let hidden = rng.vector(rows * n, 1.0);
                let sizes = (kind, n, k);
                for (cpu, reference, simd) in devices() {
                    let got = projected(&cpu, sizes, (&bytes, &bias), &x, &hidden);
                    let want = projected(&reference, sizes, (&bytes, &bias), &x, &hidden);
                    for i in 0..rows * n {
                        let (t, r) = (i / n, i % n);
                        let bound = product_bound(kind, &w[r * k..][..k], &x[t * k..][..k]);
                        // Bias and residual are added in f32.
                        let bound = bound + 4.0 * UNIT * (2.0 + f64::from(want[i].abs()));
                        let off = f64::from((got[i] - want[i]).abs());
                        assert!(
                            off <= bound,
                            "{kind} {n} x {k}, row {t}.{r}: {off} > {bound}, {simd}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn the_gated_half_is_within_its_bound_for_every_block_type() {
    for kind in BlockType::ALL {
        let spec = Spec::new(1, [1, 1, 32, 16], kind, 4);
        let (c, f, rows) = (spec.shape.hidden, spec.shape.ffn, 7);
        let mut rng = Rng(3);
        let bytes = [(); 2].map(|()| encode(kind, f, c, 0.1, &mut rng));
        let [gate, up] = [0, 1].map(|i| decoded(kind, f, c, &bytes[i]));
        let (norm, x) = (rng.vector(c, 1.0), rng.vector(rows * c, 3.0));
        for (cpu, reference, simd) in devices() {
            let both = [&bytes[0][..], &bytes[1]];
            let got = gated(&cpu, &spec, both, &norm, &x);
            let want = gated(&reference, &spec, both, &norm, &x);
            for t in 0..rows {
                let normed = normed(&x[t * c..][..c], &norm, spec.shape.rms_eps);
                for n in 0..f {
                    let exact = |w: &[f32]| -> f64 {
                        w.iter().zip(&normed).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum()
                    };
                    let (wg, wu) = (&gate[n * c..][..c], &up[n * c..][..c]);
                    let (g, u) = (exact(wg), exact(wu));
                    // The norm itself is off by a few parts in 2²⁴, as if the sums were longer.
                    let [eg, eu] = [wg, wu].map(|w| 1.1 * product_bound(kind, w, &normed));
                    // The slope of silu is below 1.1; 8 roundings for the exponential and the rest.
                    let silu = (g / (1.0 + (-g).exp())).abs();
                    let bound = 1.1 * eg * (u.abs() + eu) + silu * eu + 8.0 * UNIT * silu * u.abs();
                    let (got, want) = (got[t * f + n], want[t * f + n]);
                    let off = f64::from((got - want).abs());
                    assert!(off <= bound + 1e-30, "{kind} row {t}.{n}: {off} > {bound}, {simd}");
                }
            }
        }
    }
}

#[test]
fn queries_keys_and_values_are_those_of_the_reference() {
    for (heads, rows, start) in [
        ([1, 1, 32, 16], 1, 0),
        ([6, 2, 64, 16], 7, 13),
        ([7, 1, 80, 64], 100, 60),
        ([14, 2, 128, 16], 2, 1000),
        // Halves of a head that are no whole vector.
        ([3, 1, 20, 16], 5, 3),
    ] {
        for (bias, head_norm) in [(true, false), (false, true)] {
            let mut spec = Spec::new(2, heads, BlockType::F32, 4);
            (spec.bias, spec.head_norm) = (bias, head_norm);
            for (cpu, reference, simd) in devices() {
                let got = queries_and_pool(&cpu, &spec, rows, start);
                let want = queries_and_pool(&reference, &spec, rows, start);
                for (got, want) in got.iter().zip(&want) {
                    assert_eq!(got.len(), want.len());
                    for (i, (got, want)) in got.iter().zip(want).enumerate() {
                        // Sums of 256 products of about 0.1 each: 258 roundings of at most 8.
                        let bound = 258.0 * UNIT as f32 * 8.0;
                        let off = (got - want).abs();
                        assert!(off <= bound, "element {i} off by {off}, {heads:?}, {simd}");
                    }
                }
            }
        }
    }
}

#[test]
fn attention_is_that_of_the_reference_over_heads_pages_and_masks() {
    let mut case = 0;
    for (ratio, d) in [(1, 32), (3, 64), (6, 80), (7, 128), (7, 20)] {
        for page_tokens in [16, 64] {
            for (rows, prefix_len) in
                [(1, 0), (2, 1), (7, 15), (1, 16), (100, 17), (300, 500), (1, 1100), (7, 1100)]
            {
                case += 1;
                let kv = if case % 2 == 0 { KvType::F32 } else { KvType::Bf16 };
                let g = 1 + case % 2;
                let spec = Spec::new(1, [ratio * g, g, d, page_tokens], BlockType::F32, kv.bytes());
                let shape = Shape { hidden: 32, rms_eps: 0.0, ..spec.shape };
                let pages = |tokens: usize| tokens.div_ceil(page_tokens) as u32;
                let mut branch = Table::new(0, pages(prefix_len + rows));
                let fill = Filling {
                    batches: (prefix_len > 0)
                        .then(|| {
                            BatchBuilder::default().causal(&vec![0; prefix_len], &branch).build()
                        })
                        .into_iter()
                        .collect(),
                    rows: prefix_len,
                    pages: 2 * pages(prefix_len + rows) as usize + 2,
                };
                branch.len = prefix_len;
                let ids = tokens(rows, 1);
                let own = Table::new(1, pages(rows));
                let empty = Table::default();
                let (prefix, own, mask) = match case % 3 {
                    0 => (&empty, &branch, Mask::Causal),
                    1 => (&branch, &own, Mask::Causal),
                    _ if rows > 64 => (&branch, &own, Mask::Causal),
                    // Every row sees itself and about half of those before it.
                    _ => {
                        let mut rng = Rng(case as u64);
                        let bits =
                            (0..rows).map(|i| 1 << i | rng.word() & ((1 << i) - 1)).collect();
                        (&branch, &own, Mask::Tree(bits))
                    }
                };
                let batch = BatchBuilder::default().group(&ids, prefix, own, mask).build();
                let want = attended(&ReferenceDevice::new(kv), &shape, &batch, &fill);
                for simd in levels() {
                    let got = attended(&cpu(simd, 2, kv), &shape, &batch, &fill);
                    assert!(got[1] == want[1], "the pools differ before attention");
                    let largest = want[1].iter().fold(0.0_f32, |m, v| m.max(v.abs()));
                    for (i, (got, want)) in got[0].iter().zip(&want[0]).enumerate() {
                        let off = (got - want).abs();
                        assert!(
                            off <= 1e-5 * largest,
                            "element {i} off by {off} of {largest}: H/G {ratio}, D {d}, P \
                             {page_tokens}, {rows} rows after {prefix_len}, {}",
                            simd.name()
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn the_whole_chain_stays_near_the_reference() {
    for kind in [BlockType::F32, BlockType::Q8_0, BlockType::Q4_K, BlockType::Q6_K] {
        let spec = Spec::new(2, [6, 2, 64, 16], kind, 4);
        for (cpu, reference, simd) in devices() {
            let (got, want) = (chain(&cpu, spec), chain(&reference, spec));
            let largest = want.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
            let off = got.iter().zip(&want).fold(0.0_f32, |m, (a, b)| m.max((a - b).abs()));
            // int8 activations are off by about 0.4 % each; eight products in a row add up.
            let bound = if kind == BlockType::F32 { 1e-5 } else { 0.04 };
            eprintln!("{kind} {simd}: {} of the largest logit", off / largest);
            assert!(off <= bound * largest, "{kind}: {off} of {largest}, {simd}");
        }
    }
}

#[test]
fn a_rotation_table_turns_pairs_by_the_position() {
    let table = rope_table(3, 4);
    assert_eq!(table[..4], [1.0, 1.0, 0.0, 0.0]);
    assert!((table[8] - 2_f32.cos()).abs() < 1e-7 && (table[10] - 2_f32.sin()).abs() < 1e-7);
}
