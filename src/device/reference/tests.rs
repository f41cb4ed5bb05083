//! The reference against numbers worked out by hand.

use super::ops;
use super::*;
use crate::device::{BlockType, HeadRow, Mask, RowGroup, SampleRow, Span};
use crate::ids::{BranchId, PageId, Role, TokenId};
use crate::sample::{Key, Purpose, SamplingParams};

const LIMITS: PassLimits = PassLimits { rows: 8, full_rows: 8, positions: 64 };

/// One layer, one head, `C = D = 2`, pages of 16 tokens.
const SHAPE: Shape = Shape {
    hidden: 2,
    heads: 1,
    kv_heads: 1,
    head_dim: 2,
    ffn: 2,
    vocab: 2,
    rms_eps: 0.0,
    layers: 1,
    page_tokens: 16,
    page_bytes: 2 * 16 * 2 * 4,
};

fn matrix(device: &ReferenceDevice, cols: usize, values: &[f32]) -> ReferenceMatrix {
    let bytes: &[u8] = bytemuck::cast_slice(values);
    let rows = values.len() / cols;
    device.matrix(MatrixView { name: "m", rows, cols, kind: BlockType::F32, bytes }).unwrap()
}

fn linear(device: &ReferenceDevice, values: &[f32]) -> Linear<ReferenceDevice> {
    Linear { matrix: matrix(device, 2, values), bias: None }
}

fn batch(tokens: &[u32], page: u32) -> RaggedBatch {
    RaggedBatch {
        tokens: tokens.iter().map(|t| TokenId(*t)).collect(),
        positions: (0..tokens.len() as u32).collect(),
        groups: vec![RowGroup {
            rows: 0..tokens.len(),
            prefix: Span::default(),
            own: Span { pages: 0..1, len: 0 },
            mask: Mask::Causal,
        }],
        pages: vec![PageId(page)],
        ..RaggedBatch::default()
    }
}

#[test]
fn a_norm_divides_by_the_root_mean_square() {
    // Mean square of (3, 4, 0, 0) is 25/4, its root 2.5.
    let x = ops::rms_norm_rows(&[3.0, 4.0, 0.0, 0.0], &[1.0, 2.0, 3.0, 4.0], 0.0);
    assert_eq!(x, [1.2, 3.2, 0.0, 0.0]);
    let mut head = [3.0, 4.0];
    ops::rms_norm_head(&mut head, &[1.0, 1.0], 0.0);
    assert!((head[0] - 3.0 / 12.5_f64.sqrt()).abs() < 1e-15);
}

#[test]
fn a_quarter_turn_swaps_the_halves_of_a_head() {
    let mut head = [1.0, 2.0, 3.0, 4.0];
    // The first pair (1, 3) turns by 90 degrees, the second (2, 4) stays.
    ops::rotate(&mut head, &[0.0, 1.0, 1.0, 0.0]);
    assert_eq!(head, [-3.0, 2.0, 1.0, 4.0]);
}

#[test]
fn attention_weighs_values_by_the_softmax_of_scaled_scores() {
    // D = 1: scores are ln 3 and 0, so the weights are 3/4 and 1/4.
    let (keys, values) = ([[3_f32.ln()], [0.0]], [[8.0_f32], [4.0]]);
    let mut out = [0.0];
    let rows = |all: &'static [[f32; 1]]| all.iter().map(|r| &r[..]);
    ops::attend(
        &[1.0],
        rows(Box::leak(Box::new(keys))),
        rows(Box::leak(Box::new(values))),
        &mut out,
    );
    assert!((out[0] - 7.0).abs() < 1e-6);
}

#[test]
fn keys_are_rotated_values_are_not_and_both_are_rounded_to_the_type_of_the_pool() {
    for kv in [KvType::F32, KvType::Bf16] {
        let device = ReferenceDevice::new(kv);
        let weights = QkvWeights {
            norm: device.vector(&[1.0, 1.0]).unwrap(),
            q: linear(&device, &[1.0, 0.0, 0.0, 1.0]),
            k: linear(&device, &[1.0, 0.0, 0.0, 1.0]),
            v: linear(&device, &[1.0, 0.0, 0.0, 1.0]),
            q_norm: None,
            k_norm: None,
        };
        // Position 0 turns by 90 degrees.
        let rope = device.vector(&[0.0, 1.0]).unwrap();
        let hidden = ReferenceBuffer(vec![3.0, 4.0]);
        let mut q = device.buffer(2, Element::Activation, "q").unwrap();
        let shape = Shape { page_bytes: 2 * 16 * 2 * kv.bytes(), ..SHAPE };
        let mut pool = device.buffer(3 * shape.page_bytes, Element::KvByte, "pool").unwrap();
        let batch = batch(&[0], 2);
        device.qkv(&(), &shape, 0, &weights, &rope, &batch, &hidden, &mut q, &mut pool).unwrap();
        let (a, b) = ((3.0 / 12.5_f64.sqrt()) as f32, (4.0 / 12.5_f64.sqrt()) as f32);
        assert_eq!(q.0, [-b, a]);
        let stored = |v| if kv == KvType::F32 { v } else { bf16::from_f32(v).to_f32() };
        let page = device.read(&(), &pool, 2 * 2 * 16 * 2, 64).unwrap();
        assert_eq!(page[..2], [stored(-b), stored(a)]);
        assert_eq!(page[32..34], [stored(a), stored(b)]);
        assert!(pool.0[..2 * 64].iter().all(|v| *v == 0.0), "another page was written");
    }
}

#[test]
fn the_gate_passes_through_the_logistic_function() {
    let device = ReferenceDevice::new(KvType::F32);
    let weights = GateUpWeights {
        norm: device.vector(&[1.0, 1.0]).unwrap(),
        matrices: [
            matrix(&device, 2, &[0.0, 0.0, 1.0, 0.0]),
            matrix(&device, 2, &[1.0, 1.0, 0.0, 2.0]),
        ],
    };
    let hidden = ReferenceBuffer(vec![1.0, 1.0]);
    let mut act = device.buffer(2, Element::Activation, "act").unwrap();
    device.gate_up(&(), &SHAPE, &weights, &batch(&[0], 0), &hidden, &mut act).unwrap();
    let silu_of_one = 1.0 / (1.0 + (-1.0_f64).exp());
    assert_eq!(act.0, [0.0, (silu_of_one * 2.0) as f32]);
}

#[test]
fn a_projection_adds_to_the_residual() {
    let device = ReferenceDevice::new(KvType::F32);
    let weights = Linear {
        matrix: matrix(&device, 2, &[1.0, 2.0, 3.0, 4.0]),
        bias: Some(device.vector(&[0.5, -0.5]).unwrap()),
    };
    let x = ReferenceBuffer(vec![1.0, 1.0]);
    let mut hidden = ReferenceBuffer(vec![10.0, 20.0]);
    device.project(&(), &weights, &batch(&[0], 0), &x, &vec![], &mut hidden).unwrap();
    assert_eq!(hidden.0, [13.5, 26.5]);
}

#[test]
fn heads_report_the_row_that_is_not_finite_and_ties_go_to_the_lower_id() {
    let device = ReferenceDevice::new(KvType::F32);
    let norm = device.vector(&[1.0, 1.0]).unwrap();
    let head = matrix(&device, 2, &[0.0, 0.0, 1.0, 0.0, 0.0, 1.0]);
    let weights = HeadWeights { norm: &norm, matrix: &head };
    let mut batch = batch(&[0, 0], 0);
    let row = |row, kind| HeadRow::new(row, kind);
    batch.heads = vec![
        row(0, HeadKind::Argmax),
        row(0, HeadKind::Labels(vec![TokenId(2), TokenId(1)])),
        row(0, HeadKind::LogProb(TokenId(1))),
        row(0, HeadKind::Full),
    ];
    batch.samples = vec![SampleRow {
        logits_row: 0,
        params: SamplingParams::greedy(),
        key: Key {
            seed: 0,
            branch: BranchId::ROOT,
            position: 0,
            role: Role::Base,
            purpose: Purpose::Draw,
        },
        prompt: Vec::new(),
        generated: Vec::new(),
    }];
    let mut logits = device.buffer(3, Element::Logit, "logits").unwrap();
    let mut results = device.results(&LIMITS).unwrap();
    let hidden = ReferenceBuffer(vec![1.0, 1.0, f32::NAN, 1.0]);
    let mut run = |batch: &RaggedBatch| {
        device.head(&(), &SHAPE, &weights, batch, &hidden, &mut logits, &mut results).unwrap();
        device.sample(&(), batch, &logits, &mut results).unwrap();
        let batches = std::slice::from_ref(batch);
        device.collect(&(), batches, std::slice::from_mut(&mut results)).unwrap().remove(0)
    };
    // Logits are 0, 1, 1.
    let found = run(&batch);
    assert_eq!(found.heads[0], HeadResult::Argmax { id: TokenId(1), logit: 1.0 });
    assert_eq!(found.heads[1], HeadResult::Labels(vec![0.5, 0.5]));
    let HeadResult::LogProb(log_prob) = found.heads[2] else { panic!("{:?}", found.heads[2]) };
    let e = std::f32::consts::E;
    assert!((log_prob - (e / (1.0 + 2.0 * e)).ln()).abs() < 1e-6);
    assert_eq!(found.heads[3], HeadResult::Full(0));
    assert_eq!(found.samples[0].id, TokenId(1));
    assert_eq!(found.non_finite_row, None);

    batch.heads.push(row(1, HeadKind::Argmax));
    assert_eq!(run(&batch).non_finite_row, Some(1));
    let first = device.first_non_finite(&(), &hidden, 2, 2).unwrap();
    assert_eq!(first, Some(1));
}

#[test]
fn a_copy_takes_the_first_rows_of_every_plane() {
    let device = ReferenceDevice::new(KvType::F32);
    let shape = Shape { layers: 2, page_bytes: 2 * SHAPE.page_bytes, ..SHAPE };
    let page = 2 * 2 * 16 * 2;
    let mut pool = ReferenceBuffer((0..2 * page).map(|i| i as f32).collect());
    let copy = PageCopy { from: PageId(1), to: PageId(0), tokens: 3 };
    device.copy_pages(&(), &shape, &[copy], &mut pool).unwrap();
    for i in 0..page {
        let copied = i % 32 < 3 * 2;
        assert_eq!(pool.0[i], (if copied { page + i } else { i }) as f32, "element {i}");
    }
}

#[test]
fn nothing_is_allocated_after_the_seal() {
    let device = ReferenceDevice::new(KvType::F32);
    device.seal();
    assert!(device.buffer(1, Element::Logit, "logits").is_err());
    assert!(device.vector(&[1.0]).is_err());
}
