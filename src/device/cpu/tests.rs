//! Claims that need levels only unit tests have: sixteen portable lanes stand for AVX-512.

use super::*;
use crate::device::{Mask, RowGroup, Span};
use crate::ids::{PageId, Role, TokenId};
use std::ops::Range;

/// `H = 6`, `G = 2`, with a head that is no whole number of sixteen-lane vectors.
fn shape(kv: KvType) -> Shape {
    let (kv_heads, head_dim, page_tokens) = (2, 40, 16);
    Shape {
        hidden: 32,
        heads: 6,
        kv_heads,
        head_dim,
        ffn: 32,
        vocab: 2,
        rms_eps: 1e-6,
        layers: 1,
        page_tokens,
        page_bytes: 2 * kv_heads * page_tokens * head_dim * kv.bytes(),
    }
}

/// `rows` new rows after `len` keys, in pages 0 to `pages`.
fn batch(rows: usize, len: usize, pages: usize) -> RaggedBatch {
    RaggedBatch {
        tokens: vec![TokenId(0); rows],
        positions: (0..rows).map(|i| (len + i) as u32).collect(),
        groups: vec![RowGroup {
            rows: 0..rows,
            prefix: Span::default(),
            own: Span { pages: 0..pages, len },
            mask: Mask::Causal,
        }],
        pages: (0..pages as u32).map(PageId).collect(),
        ..RaggedBatch::default()
    }
}

/// Numbers in `[-1, 1)` without a pattern.
fn numbers(count: usize, seed: u32) -> impl Iterator<Item = f32> {
    (0..count as u32).map(move |i| {
        let x = (i + 1).wrapping_mul(0x9e37_79b9 ^ seed).wrapping_mul(0x85eb_ca6b);
        (x ^ (x >> 15)).wrapping_mul(0xc2b2_ae35) as i32 as f32 / (1_u32 << 31) as f32
    })
}

/// Attention outputs over a pool of `numbers`, as bits.
fn attend(simd: SimdLevel, kv: KvType, rows: usize, len: usize) -> Vec<u32> {
    attend_rows(simd, kv, rows, len, 0..rows)
}

/// The same, for some of the rows only.
fn attend_rows(
    simd: SimdLevel,
    kv: KvType,
    all: usize,
    len: usize,
    wanted: Range<usize>,
) -> Vec<u32> {
    let device =
        CpuDevice::new(CpuOptions { threads: Some(1), simd: Some(simd), kv, widen: false })
            .unwrap();
    let shape = shape(kv);
    let pages = (len + all).div_ceil(shape.page_tokens);
    let width = shape.heads * shape.head_dim;
    let (rows, len) = (wanted.len(), len + wanted.start);
    let [mut q, mut out] =
        [(); 2].map(|()| device.buffer(rows * width, Element::Activation, "rows").unwrap());
    for (to, from) in
        q.floats_mut().iter_mut().zip(numbers(all * width, 1).skip(wanted.start * width))
    {
        *to = 3.0 * from;
    }
    let mut pool = device.buffer(pages * shape.page_bytes, Element::KvByte, "pool").unwrap();
    let values = numbers(pages * shape.page_bytes / kv.bytes(), 2);
    match kv {
        KvType::Bf16 => {
            let elements = pool.region.as_mut_slice::<bf16>().iter_mut();
            elements.zip(values).for_each(|(to, from)| *to = bf16::from_f32(from));
        }
        KvType::F32 => {
            let elements = pool.region.as_mut_slice::<f32>().iter_mut();
            elements.zip(values).for_each(|(to, from)| *to = from);
        }
    }
    let limits = PassLimits { rows, full_rows: 0, positions: 2048 };
    let stream = device.stream(Role::Base, &shape, &limits).unwrap();
    let batch = batch(rows, len, pages);
    device.attention(&stream, &shape, 0, &batch, &q, &pool, &mut out).unwrap();
    out.floats()[..rows * width].iter().map(|v| v.to_bits()).collect()
}

#[test]
fn attention_has_the_same_bits_at_eight_and_at_sixteen_lanes() {
    for kv in [KvType::Bf16, KvType::F32] {
        for (rows, len) in [(1, 0), (1, 530), (7, 1020), (40, 500)] {
            let eight = attend(SimdLevel::Portable, kv, rows, len);
            let sixteen = attend(SimdLevel::Portable16, kv, rows, len);
            assert!(eight.iter().any(|v| *v != 0), "nothing was computed");
            assert!(eight == sixteen, "{rows} rows after {len} keys, {kv:?}");
        }
    }
}

#[test]
fn a_query_has_the_same_bits_in_every_group_of_lanes() {
    // One KV head at a time: 6 heads over 2 KV heads make tiles of 3 queries a row.
    let width = 6 * 40;
    for simd in SimdLevel::available() {
        let rows = 11;
        let together = attend(simd, KvType::F32, rows, 505);
        for (first, last) in [(0, 1), (3, 5), (9, 11), (2, 9)] {
            let part = attend_rows(simd, KvType::F32, rows, 505, first..last);
            assert!(
                part == together[first * width..last * width],
                "{first}..{last}, {}",
                simd.name()
            );
        }
    }
}

#[test]
fn a_partial_vector_is_stored_like_a_whole_one() {
    struct Scale<'a>(&'a [f32], &'a mut [f32]);
    impl simd::Kernel for Scale<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: simd::Simd>(self, simd: S) {
            let weight = vec![1.0; self.0.len()];
            RmsNorm { x: self.0, weight: &weight, eps: 0.0, out: self.1 }.run(simd);
        }
    }
    for level in SimdLevel::available() {
        for width in [1, 7, 8, 9, 16, 31, 33, 100] {
            // One value repeated has that value as its root mean square.
            let x = vec![-3.0; width];
            let mut out = vec![0.0; width];
            level.dispatch(Scale(&x, &mut out));
            assert!(out.iter().all(|v| (v + 1.0).abs() < 1e-6), "{width}, {}", level.name());
        }
    }
}

#[test]
fn memory_beyond_what_the_machine_has_is_refused_before_it_is_taken() {
    let device = CpuDevice::new(CpuOptions { threads: Some(1), ..CpuOptions::default() }).unwrap();
    let error = device.buffer(usize::MAX / 8, Element::Activation, "hidden states").unwrap_err();
    assert!(matches!(error, DeviceError::OutOfMemory { .. }), "{error}");
    device.seal();
    let error = device.buffer(1, Element::KvByte, "KV pool").unwrap_err().to_string();
    assert!(error.contains("KV pool") && error.contains("after start-up"), "{error}");
    let bytes = [0; 4];
    let view = MatrixView {
        name: "w",
        rows: 1,
        cols: 1,
        kind: crate::device::BlockType::F32,
        bytes: &bytes,
    };
    assert!(device.matrix(view).is_err());
}
