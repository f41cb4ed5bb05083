//! Each operation of the CUDA device on the same inputs as the reference.
//!
//! Inputs are bf16 on the device, so the tests round theirs first. Bounds: an f32 sum of `K`
//! products is off by at most `(K + 2) · 2⁻²⁴ · Σ|w x|` in any order; a weight that had to be
//! widened to bf16, or an activation that was rounded on the way, by `2⁻⁸` of itself, so the sum by
//! `2⁻⁸ · Σ|w x|`; a stored result by `2⁻⁸` of itself.

use crate::device::{device, full};
use crate::emulator::kernels;
use crate::harness::{BatchBuilder, Rng, Spec, Table, encode, tokens};
use crate::probes::{
    Filling, attended, chain, decoded, embedded, gated, normed, projected, queries_and_pool,
};
use forerun::device::reference::ReferenceDevice;
use forerun::device::{BlockType, KvType, Mask, Shape};
use forerun::ids::TokenId;
use half::bf16;

/// Half a unit in the last place of bf16, relative to the power of two below.
const BF16: f64 = 1.0 / 256.0;
const F32: f64 = 1.0 / (1 << 24) as f64;

/// Types the device keeps as they are, or widens without loss.
const EXACT: [BlockType; 6] = [
    BlockType::BF16,
    BlockType::Q8_0,
    BlockType::Q4_0,
    BlockType::Q5_0,
    BlockType::Q4_K,
    BlockType::Q6_K,
];

fn rounded(values: Vec<f32>) -> Vec<f32> {
    values.into_iter().map(|v| bf16::from_f32(v).to_f32()).collect()
}

fn reference() -> ReferenceDevice {
    ReferenceDevice::new(KvType::Bf16)
}

/// `Σ|w x|`.
fn magnitude(w: &[f32], x: &[f32]) -> f64 {
    w.iter().zip(x).map(|(w, x)| f64::from(w * x).abs()).sum()
}

/// What a sum may be off by before it is stored.
fn sum_bound(kind: BlockType, w: &[f32], x: &[f32]) -> f64 {
    let weights = if EXACT.contains(&kind) { 0.0 } else { BF16 };
    magnitude(w, x) * ((w.len() + 8) as f64 * F32 + weights)
}

#[test]
fn an_embedding_is_the_decoded_row_rounded_once() {
    if !kernels() {
        return;
    }
    let device = device();
    let ids: Vec<TokenId> = [0, 36, 15, 16, 36, 1].map(TokenId).to_vec();
    for kind in BlockType::ALL {
        let bytes = encode(kind, 37, 512, 1.0, &mut Rng(1));
        let got = embedded(&device, kind, &bytes, &ids);
        let want = embedded(&reference(), kind, &bytes, &ids);
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            let want = f32::from_bits(*want);
            // Widened formats are rounded when they are packed, once more at most here.
            assert_eq!(f32::from_bits(*got), bf16::from_f32(want).to_f32(), "{kind} element {i}");
        }
    }
}

#[test]
fn a_projection_is_within_its_bound_for_every_block_type_and_row_count() {
    if !kernels() {
        return;
    }
    let counts = [1, 2, 3, 7, 8, 9, 16, 17, 64, 65, 100];
    for (case, kind) in BlockType::ALL.into_iter().enumerate() {
        for (n, k) in [(19, 256), (64, 1280)] {
            // One for each: a device gives nothing back before its end.
            let device = device();
            for (i, rows) in counts.into_iter().enumerate() {
                if !full() && (i + case) % 3 != 0 {
                    continue;
                }
                let mut rng = Rng(n as u64);
                let bytes = encode(kind, n, k, 0.1, &mut rng);
                let w = decoded(kind, n, k, &bytes);
                let bias = rng.vector(n, 1.0);
                let x = rounded(rng.vector(rows * k, 2.0));
                let hidden = rounded(rng.vector(rows * n, 1.0));
                let sizes = (kind, n, k);
                let got = projected(&device, sizes, (&bytes, &bias), &x, &hidden);
                let want = projected(&reference(), sizes, (&bytes, &bias), &x, &hidden);
                for i in 0..rows * n {
                    let (t, r) = (i / n, i % n);
                    let bound = sum_bound(kind, &w[r * k..][..k], &x[t * k..][..k]);
                    let bound = bound + (BF16 + 4.0 * F32) * f64::from(want[i].abs()) + 1e-30;
                    let off = f64::from((got[i] - want[i]).abs());
                    assert!(
                        off <= bound,
                        "{kind} {n} x {k}, {rows} rows, {t}.{r}: {off} > {bound}"
                    );
                }
            }
        }
    }
}

#[test]
fn the_gated_half_is_within_its_bound_for_every_block_type() {
    if !kernels() {
        return;
    }
    let device = device();
    for kind in BlockType::ALL {
        let spec = Spec::new(1, [1, 1, 32, 16], kind, 2);
        let (c, f) = (spec.shape.hidden, spec.shape.ffn);
        for rows in if full() { vec![1, 7, 9, 17, 65] } else { vec![7, 17] } {
            let mut rng = Rng(3);
            let bytes = [(); 2].map(|()| encode(kind, f, c, 0.1, &mut rng));
            let [gate, up] = [0, 1].map(|i| decoded(kind, f, c, &bytes[i]));
            let norm = rng.vector(c, 1.0);
            let x = rounded(rng.vector(rows * c, 3.0));
            let both = [&bytes[0][..], &bytes[1]];
            let got = gated(&device, &spec, both, &norm, &x);
            let want = gated(&reference(), &spec, both, &norm, &x);
            for t in 0..rows {
                let normed = normed(&x[t * c..][..c], &norm, spec.shape.rms_eps);
                for n in 0..f {
                    let exact = |w: &[f32]| -> f64 {
                        w.iter().zip(&normed).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum()
                    };
                    let (wg, wu) = (&gate[n * c..][..c], &up[n * c..][..c]);
                    let (g, u) = (exact(wg), exact(wu));
                    // The normed row is rounded to bf16 on its way.
                    let [eg, eu] = [wg, wu]
                        .map(|w| 1.1 * sum_bound(kind, w, &normed) + BF16 * magnitude(w, &normed));
                    let silu = (g / (1.0 + (-g).exp())).abs();
                    let bound = 1.1 * eg * (u.abs() + eu) + silu * eu;
                    let (got, want) = (got[t * f + n], want[t * f + n]);
                    let bound = bound + (BF16 + 16.0 * F32) * f64::from(want.abs()) + 1e-30;
                    let off = f64::from((got - want).abs());
                    assert!(off <= bound, "{kind}, {rows} rows, {t}.{n}: {off} > {bound}");
                }
            }
        }
    }
}

#[test]
fn queries_keys_and_values_are_those_of_the_reference() {
    if !kernels() {
        return;
    }
    let device = device();
    for (heads, rows, start) in [
        ([1, 1, 32, 16], 1, 0),
        ([6, 2, 64, 16], 7, 13),
        ([7, 1, 80, 64], 65, 60),
        ([14, 2, 128, 16], 2, 1000),
    ] {
        for (bias, head_norm) in [(true, false), (false, true)] {
            for kind in [BlockType::BF16, BlockType::Q4_K] {
                let mut spec = Spec::new(2, heads, kind, 2);
                (spec.bias, spec.head_norm) = (bias, head_norm);
                let got = queries_and_pool(&device, &spec, rows, start);
                let want = queries_and_pool(&reference(), &spec, rows, start);
                for (got, want) in got.iter().zip(&want) {
                    assert_eq!(got.len(), want.len());
                    let largest = want.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
                    for (i, (got, want)) in got.iter().zip(want).enumerate() {
                        // 256 products of a rounded activation each, random signs: far below the
                        // sum of their magnitudes; then one rounding.
                        let off = (got - want).abs();
                        let bound = largest * 0.01 + want.abs() * BF16 as f32;
                        assert!(off <= bound, "element {i} off by {off}, {heads:?}, {kind}");
                    }
                }
            }
        }
    }
}

#[test]
fn attention_is_that_of_the_reference_over_heads_pages_and_masks() {
    if !kernels() {
        return;
    }
    let ratios = [(1, 32), (2, 64), (3, 64), (4, 32), (5, 128), (6, 80), (7, 128), (8, 32)];
    let lengths = [
        (1, 0),
        (1, 14),
        (2, 1),
        (7, 15),
        (1, 16),
        (3, 62),
        (1, 63),
        (9, 64),
        (100, 17),
        (1, 255),
        (2, 255),
        (17, 300),
        (65, 500),
        (1, 1000),
        (7, 1000),
    ];
    let mut case = 0;
    for (r, (ratio, d)) in ratios.into_iter().enumerate() {
        // One for each: a device gives nothing back before its end.
        let device = device();
        for (l, (rows, prefix_len)) in lengths.into_iter().enumerate() {
            case += 1;
            if !full() && (l + r) % 4 != 0 {
                continue;
            }
            let page_tokens = if case % 2 == 0 { 16 } else { 64 };
            let g = 1 + case % 2;
            let spec = Spec::new(1, [ratio * g, g, d, page_tokens], BlockType::F32, 2);
            let shape = Shape { hidden: 32, rms_eps: 0.0, ..spec.shape };
            let pages = |tokens: usize| tokens.div_ceil(page_tokens) as u32;
            let mut branch = Table::new(0, pages(prefix_len + rows));
            let fill = Filling {
                batches: (prefix_len > 0)
                    .then(|| BatchBuilder::default().causal(&vec![0; prefix_len], &branch).build())
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
                _ => {
                    let mut rng = Rng(case as u64);
                    let bits = (0..rows).map(|i| 1 << i | rng.word() & ((1 << i) - 1)).collect();
                    (&branch, &own, Mask::Tree(bits))
                }
            };
            let batch = BatchBuilder::default().group(&ids, prefix, own, mask).build();
            let want = attended(&reference(), &shape, &batch, &fill);
            let got = attended(&device, &shape, &batch, &fill);
            let largest = want[1].iter().fold(0.0_f32, |m, v| m.max(v.abs()));
            for (i, (got, want)) in got[0].iter().zip(&want[0]).enumerate() {
                // Weights are rounded to bf16 before they meet the values, and so is the result.
                let off = (got - want).abs();
                assert!(
                    off <= BF16 as f32 * largest,
                    "element {i} off by {off} of {largest}: H/G {ratio}, D {d}, P {page_tokens}, \
                     {rows} rows after {prefix_len}"
                );
            }
        }
    }
}

#[test]
fn the_whole_chain_stays_near_the_reference() {
    if !kernels() {
        return;
    }
    let device = device();
    for kind in [BlockType::BF16, BlockType::Q8_0, BlockType::Q4_K, BlockType::Q6_K] {
        let spec = Spec::new(2, [6, 2, 64, 16], kind, 2);
        let (got, want) = (chain(&device, spec), chain(&reference(), spec));
        let largest = want.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        let off = got.iter().zip(&want).fold(0.0_f32, |m, (a, b)| m.max((a - b).abs()));
        eprintln!("{kind}: {} of the largest logit", off / largest);
        // bf16 between any two operations: some ten roundings of 0.4 % each, of random sign.
        assert!(off <= 0.04 * largest, "{kind}: {off} of {largest}");
    }
}
