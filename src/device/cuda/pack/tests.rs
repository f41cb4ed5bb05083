//! Packed matrices taken apart again by the rules of `weights.cuh`, written here a second time and
//! element by element, against the plain decoding of the file's bytes.

use super::super::samples::{Random, random_bytes};
use super::*;
use half::f16;

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Element (`row`, `col`) of a packed matrix: the inverse of the layout, one element at a time.
fn element(packing: &Packing, packed: &[u8], row: usize, col: usize) -> f32 {
    let panel = &packed[row / 16 * packing.panel_bytes()..][..packing.panel_bytes()];
    let (g, high) = (row % 8, row % 16 / 8);
    let (step, within) = (col / 32, col % 32);
    let (mma, t, e) = (within / 16, within % 16 / 4, within % 4);
    let (unit, in_unit) = (step / 4, step % 4);
    let lane = 4 * g + t;
    let nibble = |block: &[u8]| {
        let word = unit % 2 * 1024 + in_unit / 2 * 512 + lane * 16 + high * 8 + in_unit % 2 * 4;
        let word = u32::from_le_bytes(block[word..word + 4].try_into().unwrap());
        let element = mma * 4 + e;
        word >> (4 * (element / 2 + 4 * (element % 2))) & 15
    };
    match packing.format {
        Format::Bf16 => {
            let at = step * 1024 + high * 512 + lane * 16 + (mma * 4 + e) * 2;
            bf16::from_le_bytes([panel[at], panel[at + 1]]).to_f32()
        }
        Format::Q8_0 => {
            let unit = &panel[unit * 2176..];
            let quant = unit[128 + in_unit * 512 + lane * 16 + high * 8 + mma * 4 + e] as i8;
            f32::from(quant) * half_at(unit, g * 16 + high * 8 + in_unit * 2)
        }
        Format::Q4_K => {
            let block = &panel[unit / 2 * 2304..][..2304];
            let row = &block[(g + 8 * high) * 16..][..16];
            let h = unit % 2;
            let low = |at: usize| row[at + in_unit] >> (4 * h) & 15;
            let two = |bit: usize| row[12 + in_unit] >> (bit + 2 * h) & 3;
            let (scale, minimum) = (low(4) | two(0) << 4, low(8) | two(4) << 4);
            let d = half_at(row, 0) * f32::from(scale);
            d * nibble(&block[256..]) as f32 - half_at(row, 2) * f32::from(minimum)
        }
        Format::Q6_K => {
            let block = &panel[unit / 2 * 3360..][..3360];
            let word = 2048 + unit % 2 * 512 + lane * 16 + high * 8 + in_unit / 2 * 4;
            let word = u32::from_le_bytes(block[word..word + 4].try_into().unwrap());
            let bit = 8 * (in_unit % 2) + 2 * (mma * 2 + e / 2) + 16 * (e % 2);
            let quant = (nibble(block) | (word >> bit & 3) << 4) as i32 - 32;
            let scale = block[3072 + unit % 2 * 128 + g * 16 + high * 8 + in_unit * 2 + mma] as i8;
            half_at(block, 3328 + g * 4 + high * 2) * f32::from(scale) * quant as f32
        }
    }
}

fn sizes(kind: BlockType) -> Vec<(usize, usize)> {
    match kind.block_elements() {
        1 => vec![(1, 1), (7, 31), (16, 32), (17, 33), (40, 77), (5, 128), (9, 300)],
        32 => vec![(1, 32), (16, 96), (17, 128), (33, 160), (40, 256), (3, 224)],
        _ => vec![(1, 256), (16, 512), (17, 768), (40, 256)],
    }
}

#[test]
fn every_block_type_packs_to_what_its_plain_decoding_says() {
    let mut random = Random(1);
    for kind in BlockType::ALL {
        for (rows, cols) in sizes(kind) {
            let bytes = random_bytes(kind, rows, cols, &mut random);
            let packing = Packing::new(rows, cols, kind);
            let view = MatrixView { name: "test", rows, cols, kind, bytes: &bytes };
            let packed = Source::Plain(view).pack();
            let mut expected = vec![0.0; cols];
            for row in 0..rows {
                let row_bytes = kind.row_bytes(cols).unwrap();
                dequantize_row(kind, &bytes[row * row_bytes..][..row_bytes], &mut expected);
                for (col, expected) in expected.iter().enumerate() {
                    let expected = match packing.format {
                        Format::Bf16 => bf16::from_f32(*expected).to_f32(),
                        _ => *expected,
                    };
                    let got = element(&packing, &packed, row, col);
                    assert_eq!(
                        got.to_bits(),
                        expected.to_bits(),
                        "{kind} [{rows}, {cols}] at ({row}, {col}): {got} for {expected}"
                    );
                }
            }
        }
    }
}

#[test]
fn packing_adds_no_bytes_but_padding_and_the_stated_widening() {
    for kind in BlockType::ALL {
        for (rows, blocks) in [(16, 1), (48, 4)] {
            let cols = 256 * blocks;
            let packing = Packing::new(rows, cols, kind);
            let file = kind.row_bytes(cols).unwrap() * rows;
            match kind {
                BlockType::F32 => assert_eq!(packing.bytes() * 2, file),
                _ => assert_eq!(packing.bytes(), file + packing.widening_bytes, "{kind}"),
            }
        }
    }
    let widened = |kind| Packing::new(16, 256, kind).widening_bytes;
    assert_eq!(widened(BlockType::Q4_K), 0);
    assert_eq!(widened(BlockType::F16), 0);
    assert_eq!(widened(BlockType::Q4_0), 16 * 8 * 16, "sixteen bytes for each block of 32");
    assert_eq!(widened(BlockType::Q5_K), 16 * (512 - 176));
}

#[test]
fn rows_and_columns_of_padding_are_zeros() {
    let (rows, cols) = (3, 33);
    let ones: Vec<u8> = (0..rows * cols).flat_map(|_| bf16::ONE.to_le_bytes()).collect();
    let view = MatrixView { name: "ones", rows, cols, kind: BlockType::BF16, bytes: &ones };
    let packing = Packing::new(rows, cols, BlockType::BF16);
    let packed = Source::Plain(view).pack();
    assert_eq!(packed.len(), 2048);
    for row in 0..16 {
        for col in 0..64 {
            let inside = row < rows && col < cols;
            assert_eq!(element(&packing, &packed, row, col), f32::from(u8::from(inside)));
        }
    }
}

#[test]
fn any_range_of_panels_can_be_packed_alone() {
    let (rows, cols, kind) = (70, 256, BlockType::Q6_K);
    let bytes = random_bytes(kind, rows, cols, &mut Random(2));
    let view = MatrixView { name: "test", rows, cols, kind, bytes: &bytes };
    let packing = Packing::new(rows, cols, kind);
    let whole = Source::Plain(view).pack();
    let mut part = vec![1; 2 * packing.panel_bytes()];
    Source::Plain(view).pack_panels(3..5, &mut part);
    assert_eq!(part, whole[3 * packing.panel_bytes()..]);
    Source::Plain(view).pack_panels(1..1, &mut []);
}

#[test]
fn rotary_order_puts_both_elements_of_a_pair_in_one_panel() {
    let (heads, cols) = (3, 64);
    for head_dim in [16, 32, 80, 128] {
        let (rows, kind) = (heads * head_dim, BlockType::Q8_0);
        let bytes = random_bytes(kind, rows, cols, &mut Random(3));
        let view = MatrixView { name: "test", rows, cols, kind, bytes: &bytes };
        let rotary = Source::rotary(view, head_dim).unwrap();
        let (plain, packed) = (Source::Plain(view).pack(), rotary.pack());
        let packing = rotary.packing();
        for (head, pair) in (0..heads).flat_map(|h| (0..head_dim / 2).map(move |i| (h, i))) {
            let low = head * head_dim + pair;
            let at = head * head_dim + pair / 8 * 16 + pair % 8;
            for (at, row) in [(at, low), (at + 8, low + head_dim / 2)] {
                for col in 0..cols {
                    let expected = element(&packing, &plain, row, col);
                    assert_eq!(element(&packing, &packed, at, col), expected, "{head_dim} {row}");
                }
            }
        }
    }
    let view = MatrixView { name: "t", rows: 300, cols: 64, kind: BlockType::Q8_0, bytes: &[] };
    assert!(Source::rotary(view, 100).is_none(), "such heads do not end with a panel");
}

#[test]
fn pairs_put_the_same_rows_of_two_matrices_in_one_panel() {
    let (cols, mut random) = (256, Random(4));
    for (rows, kinds) in [
        (40, [BlockType::Q4_K; 2]),
        (13, [BlockType::Q6_K; 2]),
        (24, [BlockType::Q8_0, BlockType::Q5_0]),
        (8, [BlockType::Q4_K, BlockType::Q6_K]),
    ] {
        let bytes = kinds.map(|kind| random_bytes(kind, rows, cols, &mut random));
        let view =
            |i: usize| MatrixView { name: "test", rows, cols, kind: kinds[i], bytes: &bytes[i] };
        let pairs = Source::Pairs([view(0), view(1)]);
        let (packing, packed) = (pairs.packing(), pairs.pack());
        let mut expected = vec![0.0; cols];
        for (which, kind) in kinds.into_iter().enumerate() {
            let row_bytes = kind.row_bytes(cols).unwrap();
            for row in 0..rows {
                dequantize_row(kind, &bytes[which][row * row_bytes..][..row_bytes], &mut expected);
                for (col, expected) in expected.iter().enumerate() {
                    let expected = match packing.format {
                        Format::Bf16 => bf16::from_f32(*expected).to_f32(),
                        _ => *expected,
                    };
                    let at = row / 8 * 16 + which * 8 + row % 8;
                    let got = element(&packing, &packed, at, col);
                    assert_eq!(got.to_bits(), expected.to_bits(), "{kinds:?} {which} {row} {col}");
                }
            }
        }
        for row in rows..packing.rows / 2 {
            let at = row / 8 * 16 + row % 8;
            let zero = |at: usize| element(&packing, &packed, at, 0) == 0.0;
            assert!(zero(at) && zero(at + 8), "padding of {kinds:?}");
        }
    }
    let widening = |kinds| Packing::pairs(16, 256, kinds).widening_bytes;
    assert_eq!(widening([BlockType::Q4_K; 2]), 0);
    let apart = 16 * (512 - BlockType::Q4_K.row_bytes(256).unwrap());
    assert_eq!(widening([BlockType::Q4_K, BlockType::BF16]), apart, "both must have one format");
}
