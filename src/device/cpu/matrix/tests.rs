//! Products against the f32 product with dequantised weights, and row invariance bit for bit.

use super::layout::SUPER_BLOCK;
use super::quantise::{Block, Block32, Block256, Quantise};
use super::*;
use crate::device::cpu::simd::SimdLevel;
use crate::device::cpu::threads::Threads;
use crate::sample::argmax;
use half::f16;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In `-1..1`.
    fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.float()).collect()
    }
}

/// Random bytes of a matrix: any quants, scales and minimums of a usual size.
fn random_bytes(kind: BlockType, rows: usize, cols: usize, random: &mut Random) -> Vec<u8> {
    let size = kind.row_bytes(cols).unwrap() * rows;
    let mut bytes: Vec<u8> = (0..size).map(|_| random.next() as u8).collect();
    for block in bytes.chunks_exact_mut(kind.block_bytes()) {
        let (halves, at): (usize, usize) = match kind {
            BlockType::F32 => {
                block.copy_from_slice(&random.float().to_le_bytes());
                continue;
            }
            BlockType::BF16 => {
                block.copy_from_slice(&half::bf16::from_f32(random.float()).to_le_bytes());
                continue;
            }
            BlockType::F16 | BlockType::Q8_0 | BlockType::Q4_0 | BlockType::Q5_0 => (1, 0),
            BlockType::Q4_1 | BlockType::Q5_1 | BlockType::Q4_K | BlockType::Q5_K => (2, 0),
            BlockType::Q6_K => (1, 208),
        };
        for half in 0..halves {
            let value = f16::from_f32(random.float() * 0.05);
            block[at + 2 * half..][..2].copy_from_slice(&value.to_le_bytes());
        }
    }
    bytes
}

fn view(kind: BlockType, rows: usize, cols: usize, bytes: &[u8]) -> MatrixView<'_> {
    MatrixView { name: "test", rows, cols, kind, bytes }
}

fn matrix(kind: BlockType, rows: usize, cols: usize, random: &mut Random) -> Matrix {
    let bytes = random_bytes(kind, rows, cols, random);
    Matrix::pack(view(kind, rows, cols, &bytes)).unwrap()
}

/// Columns that are whole blocks of the type but no round number.
fn odd_cols(kind: BlockType) -> usize {
    match kind.block_elements() {
        1 => 77,
        32 => 32 * 7,
        _ => 256 * 3,
    }
}

fn levels() -> Vec<SimdLevel> {
    let levels = SimdLevel::available();
    if !levels.contains(&SimdLevel::Avx512) {
        eprintln!("skipped: no AVX-512 on this machine");
    }
    levels
}

/// In all forms that so many columns can have.
fn prepared(threads: &Threads, simd: SimdLevel, x: &[f32], cols: usize) -> Activations {
    let mut activations = Activations::new();
    let whole = cols.is_multiple_of(SUPER_BLOCK);
    let need = if whole { Need::INT8_32 | Need::INT8_256 } else { Need::INT8_32 };
    activations.prepare(threads, simd, x, x.len() / cols, cols, Need::FLOAT | need);
    activations
}

fn product(threads: &Threads, simd: SimdLevel, w: &Matrix, x: &[f32]) -> Vec<f32> {
    let x = prepared(threads, simd, x, w.cols());
    let mut out = vec![f32::NAN; x.rows() * w.rows()];
    multiply(threads, simd, w, w.rows(), &x, &mut out);
    out
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn packing_keeps_every_byte_of_every_block_type() {
    let mut random = Random(1);
    for kind in BlockType::ALL {
        for (rows, blocks) in [(1, 1), (16, 2), (37, 3)] {
            let cols =
                if kind.is_plain() { 32 * blocks - 7 } else { kind.block_elements() * blocks };
            let row_bytes = kind.row_bytes(cols).unwrap();
            // Any byte whatever, scales too: packing must not look at values.
            let bytes: Vec<u8> = (0..rows * row_bytes).map(|_| random.next() as u8).collect();
            let matrix = Matrix::pack(view(kind, rows, cols, &bytes)).unwrap();
            for (row, expected) in bytes.chunks_exact(row_bytes).enumerate() {
                let mut found = Vec::new();
                let panel = matrix.panel(row / PANEL);
                matrix.layout.each_block(panel, row % PANEL, |_, b| found.extend_from_slice(b));
                found.truncate(row_bytes);
                assert_eq!(found, expected, "{kind}, row {row} of {rows}");
            }
        }
    }
}

#[test]
fn a_packed_matrix_has_the_bytes_of_the_file() {
    let mut random = Random(2);
    for kind in BlockType::ALL {
        let w = matrix(kind, 48, 512, &mut random);
        assert_eq!(w.bytes(), 48 * kind.row_bytes(512).unwrap(), "{kind}");
        assert_eq!((w.rows(), w.cols(), w.kind()), (48, 512, kind));
    }
}

#[test]
fn rows_decode_as_they_do_in_the_file() {
    let mut random = Random(3);
    for kind in BlockType::ALL {
        let cols = odd_cols(kind);
        let bytes = random_bytes(kind, 21, cols, &mut random);
        let w = Matrix::pack(view(kind, 21, cols, &bytes)).unwrap();
        let row_bytes = kind.row_bytes(cols).unwrap();
        let (mut expected, mut found) = (vec![0.0; cols], vec![0.0; cols]);
        for row in 0..21 {
            dequantize_row(kind, &bytes[row * row_bytes..][..row_bytes], &mut expected);
            w.dequantize_row(row, &mut found);
            assert_eq!(bits(&found), bits(&expected), "{kind}, row {row}");
        }
    }
}

#[test]
fn a_widened_matrix_holds_the_decoded_rows() {
    let mut random = Random(13);
    for kind in BlockType::ALL {
        let cols = odd_cols(kind);
        let bytes = random_bytes(kind, 21, cols, &mut random);
        let narrow = Matrix::pack(view(kind, 21, cols, &bytes)).unwrap();
        let wide = Matrix::pack_widened(view(kind, 21, cols, &bytes)).unwrap();
        assert_eq!((wide.kind(), wide.need()), (BlockType::F32, Need::FLOAT));
        let (mut expected, mut found) = (vec![0.0; cols], vec![0.0; cols]);
        for row in 0..21 {
            narrow.dequantize_row(row, &mut expected);
            wide.dequantize_row(row, &mut found);
            assert_eq!(bits(&found), bits(&expected), "{kind}, row {row}");
        }
    }
}

#[test]
fn sizes_that_contradict_each_other_are_errors() {
    for (rows, cols, size) in [(0, 32, 0), (2, 33, 36), (2, 32, 35), (usize::MAX, 32, 18)] {
        let bytes = vec![0; size];
        let error = Matrix::pack(view(BlockType::Q4_0, rows, cols, &bytes)).unwrap_err();
        assert!(error.to_string().contains("test"), "{error}");
    }
}

/// The product in f64 with dequantised weights, and a bound on how far a kernel may be from it.
///
/// Quantising `x` moves an element by at most half of `max|x| / 127` of its block of 32 or 256 (a
/// hair more where the reciprocal rounds up). With blocks of 32 the scale and the sum are then
/// rounded to f16, each part of the product by at most 2^-11: a scaled quant and an offset are at
/// most a few times the heaviest weight of their block. f32 arithmetic adds, for every block, a few
/// roundings of terms whose magnitudes are `scale * dot`, `offset * sum` and the running total; 32
/// + blocks roundings of the sum of magnitudes, offsets included, cover them.
fn reference(w: &Matrix, x: &[f32]) -> Vec<(f64, f64)> {
    let cols = w.cols();
    let block = w.kind().block_elements().max(32);
    let quantised = !w.kind().is_plain();
    let half = if quantised && block == 32 { 2.0_f64.powi(-11) } else { 0.0 };
    let roundings = (32.0 + cols as f64 / 32.0) * 2.0_f64.powi(-24);
    let mut out = Vec::new();
    let mut row = vec![0.0; cols];
    let decoded: Vec<Vec<f32>> = (0..w.rows())
        .map(|r| {
            w.dequantize_row(r, &mut row);
            row.clone()
        })
        .collect();
    for x in x.chunks_exact(cols) {
        for w_row in &decoded {
            let (mut exact, mut bound) = (0.0, 0.0);
            for (w_block, x) in w_row.chunks(block).zip(x.chunks(block)) {
                let largest = f64::from(x.iter().fold(0.0_f32, |m, v| m.max(v.abs())));
                let heaviest = f64::from(w_block.iter().fold(0.0_f32, |m, v| m.max(v.abs())));
                for (w, x) in w_block.iter().zip(x) {
                    let (w, x) = (f64::from(*w), f64::from(*x));
                    exact += w * x;
                    if quantised {
                        bound += w.abs() * largest / 254.0 * 1.0001;
                    }
                    bound += half * 3.0 * heaviest * x.abs();
                    bound += roundings * (w * x).abs().max(3.0 * heaviest * largest);
                }
            }
            out.push((exact, bound));
        }
    }
    out
}

/// `x` as blocks `B`, one after another.
fn quantised<B: Block>(simd: SimdLevel, x: &[f32]) -> Vec<B> {
    let mut blocks = vec![B::ZERO; x.len() / B::COLS];
    simd.dispatch(Quantise { x, to: blocks.as_mut_ptr(), stride: 1 });
    blocks
}

#[test]
fn blocks_of_32_are_those_of_the_format() {
    let mut random = Random(20);
    let mut x = random.floats(32 * 50);
    x[..32].fill(0.0);
    // Rounds to even: 2.5 and 3.5 steps.
    (x[32], x[33], x[34]) = (127.0, 2.5, 3.5);
    for simd in levels() {
        let blocks = quantised::<Block32>(simd, &x);
        assert_eq!(blocks[0], Block32::ZERO);
        assert_eq!(blocks[1].q[..3], [127, 2, 4]);
        for (block, x) in blocks.iter().zip(x.chunks(32)) {
            let largest = x.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
            let scale = f16::from_f32(largest / 127.0);
            assert_eq!(block.scale, scale.to_f32());
            let sum: i32 = block.q.iter().map(|q| i32::from(*q)).sum();
            assert_eq!(block.minus_sum, -sum);
            assert_eq!(block.sum, f16::from_f32(largest / 127.0 * sum as f32).to_f32());
            for (q, x) in block.q.iter().zip(x) {
                let exact = f64::from(*x) * 127.0 / f64::from(largest.max(1e-30));
                assert!((f64::from(*q) - exact).abs() <= 0.5001, "{q} for {exact}");
            }
        }
    }
}

#[test]
fn blocks_of_256_take_the_element_of_largest_magnitude_to_minus_127() {
    let mut random = Random(21);
    let mut x = random.floats(256 * 20);
    x[..256].fill(0.0);
    // A tie: the first one counts.
    (x[256 + 9], x[256 + 200]) = (2.0, -2.0);
    (x[512 + 9], x[512 + 200]) = (-2.0, 2.0);
    for simd in levels() {
        let blocks = quantised::<Block256>(simd, &x);
        assert_eq!(blocks[0], Block256::ZERO);
        assert_eq!((blocks[1].q[9], blocks[1].q[200]), (-127, 127));
        assert_eq!((blocks[2].q[9], blocks[2].q[200]), (-127, 127));
        for (block, x) in blocks.iter().zip(x.chunks(256)).skip(1) {
            let heaviest = x.iter().fold(0.0_f32, |m, v| if v.abs() > m.abs() { *v } else { m });
            assert_eq!(block.scale, 1.0 / (-127.0 / heaviest));
            for (q, x) in block.q.iter().zip(x) {
                let exact = f64::from(*x) * -127.0 / f64::from(heaviest);
                assert!((f64::from(*q) - exact).abs() <= 0.5001, "{q} for {exact}");
            }
            let sum = |q: &[i8]| -> i16 { -q.iter().map(|q| i16::from(*q)).sum::<i16>() };
            let halves: Vec<_> = block.q.chunks(16).map(sum).collect();
            let groups: Vec<_> = block.q.chunks(32).map(sum).collect();
            assert_eq!(block.minus_half_sums[..], halves);
            assert_eq!(block.minus_sums[..], groups);
        }
    }
}

#[test]
fn a_block_that_f16_cannot_scale_stays_finite() {
    let x = [3.0e7_f32; 32];
    for simd in levels() {
        let block = quantised::<Block32>(simd, &x)[0];
        assert_eq!((block.scale, block.q), (3.0e7 / 127.0, [127; 32]));
        assert!((block.sum / 32.0 - 3.0e7).abs() < 10.0);
    }
}

#[test]
fn products_are_within_the_bound_of_quantised_activations_at_every_level() {
    let mut random = Random(4);
    let threads = Threads::new(2).unwrap();
    for kind in BlockType::ALL {
        let cols = odd_cols(kind);
        let w = matrix(kind, 45, cols, &mut random);
        let x = random.floats(5 * cols);
        let expected = reference(&w, &x);
        for simd in levels() {
            for (i, (y, (exact, bound))) in
                product(&threads, simd, &w, &x).iter().zip(&expected).enumerate()
            {
                let error = (f64::from(*y) - exact).abs();
                assert!(error <= *bound, "{kind} {simd} [{i}]: {y}, not {exact} ± {bound}");
            }
        }
    }
}

#[test]
fn integer_weights_and_activations_give_exact_products() {
    // x is a multiple of its scale, so quantisation is exact; weights are small integers; every
    // partial sum is a whole number below 2^24: the result has no rounding at all.
    let mut random = Random(5);
    let threads = Threads::new(2).unwrap();
    for kind in BlockType::ALL.into_iter().filter(|k| !k.is_plain()) {
        let cols = odd_cols(kind);
        let mut bytes = random_bytes(kind, 20, cols, &mut random);
        for block in bytes.chunks_exact_mut(kind.block_bytes()) {
            let one = f16::ONE.to_le_bytes();
            match kind {
                BlockType::Q6_K => {
                    block[208..].copy_from_slice(&one);
                    block[192..208].iter_mut().for_each(|s| *s = (*s & 3).wrapping_sub(2));
                }
                BlockType::Q4_K | BlockType::Q5_K => {
                    block[..2].copy_from_slice(&one);
                    block[2..4].copy_from_slice(&one);
                    // Scales and minimums below four, in every one of the packed places.
                    block[4..12].iter_mut().for_each(|s| *s &= 3);
                    block[12..16].iter_mut().for_each(|s| *s &= 0x33);
                }
                BlockType::Q4_1 | BlockType::Q5_1 => {
                    block[..2].copy_from_slice(&one);
                    block[2..4].copy_from_slice(&f16::from_f32(-3.0).to_le_bytes());
                }
                _ => block[..2].copy_from_slice(&one),
            }
        }
        let w = Matrix::pack(view(kind, 20, cols, &bytes)).unwrap();
        let mut x: Vec<f32> = (0..3 * cols).map(|_| (random.next() % 21) as f32 - 10.0).collect();
        // The largest of every block is 127, so the scale is exactly 1 or -1, and the sum of a
        // block of 32 is a whole number that f16 holds.
        x.iter_mut().step_by(32).for_each(|v| *v = 127.0);
        let expected: Vec<f32> = reference(&w, &x).iter().map(|(exact, _)| *exact as f32).collect();
        for simd in levels() {
            assert_eq!(product(&threads, simd, &w, &x), expected, "{kind} {simd}");
        }
    }
}

#[test]
fn a_row_alone_in_seven_and_in_any_chunk_of_300_gives_the_same_bits() {
    let mut random = Random(6);
    let threads = [Threads::new(1).unwrap(), Threads::new(3).unwrap()];
    for kind in BlockType::ALL {
        let cols = odd_cols(kind);
        let w = matrix(kind, 35, cols, &mut random);
        let x = random.floats(300 * cols);
        for simd in levels() {
            let whole = product(&threads[0], simd, &w, &x);
            for chunks in [&[1, 7, 31, 32, 33, 64, 100, 32][..], &[100, 200], &[2, 3, 5, 290]] {
                let mut row = 0;
                for rows in chunks {
                    let part = &x[row * cols..(row + rows) * cols];
                    let alone = product(&threads[row % 2], simd, &w, part);
                    let expected = &whole[row * 35..(row + rows) * 35];
                    assert!(
                        bits(&alone) == bits(expected),
                        "{kind} {simd}: rows {row}..{}",
                        row + rows
                    );
                    row += rows;
                }
                assert_eq!(row, 300);
            }
            for row in [0, 31, 32, 150, 299] {
                let alone = product(&threads[1], simd, &w, &x[row * cols..(row + 1) * cols]);
                assert!(bits(&alone) == bits(&whole[row * 35..][..35]), "{kind} {simd}: row {row}");
            }
        }
    }
}

#[test]
fn rows_of_a_label_set_have_the_bits_of_the_full_product() {
    let mut random = Random(7);
    let threads = Threads::new(2).unwrap();
    for kind in BlockType::ALL {
        let w = matrix(kind, 100, odd_cols(kind), &mut random);
        let x = random.floats(40 * w.cols());
        for simd in levels() {
            let whole = product(&threads, simd, &w, &x);
            let x = prepared(&threads, simd, &x, w.cols());
            let rows = [15, 16, 17, 99, 3, 15, 64];
            for x_row in [0, 31, 32, 39] {
                let mut out = [f32::NAN; 7];
                multiply_rows_subset(&threads, simd, &w, &rows, &x, x_row, &mut out);
                let expected = rows.map(|row| whole[x_row * 100 + row]);
                assert_eq!(bits(&out), bits(&expected), "{kind} {simd}");
            }
        }
    }
}

#[test]
fn biases_and_residuals_are_added_in_one_order() {
    let mut random = Random(8);
    let threads = Threads::new(2).unwrap();
    let w = matrix(BlockType::Q4_K, 50, 256, &mut random);
    let v = matrix(BlockType::Q6_K, 33, 256, &mut random);
    let (x, bias, before) = (random.floats(6 * 256), random.floats(50), random.floats(6 * 50));
    for simd in levels() {
        let (plain, plain_v) = (product(&threads, simd, &w, &x), product(&threads, simd, &v, &x));
        let x = prepared(&threads, simd, &x, 256);
        let biased: Vec<f32> = plain.iter().enumerate().map(|(i, y)| y + bias[i % 50]).collect();
        let added: Vec<f32> = biased.iter().zip(&before).map(|(y, b)| b + y).collect();
        let (mut out, mut out_v) = (before.clone(), vec![0.0; 6 * 33]);
        multiply_add(&threads, simd, &w, Some(&bias), &x, &mut out);
        assert_eq!(bits(&out), bits(&added));
        let mut products = [
            Product {
                matrix: &w,
                features: w.rows(),
                bias: Some(&bias),
                add: false,
                out: &mut out,
            },
            Product { matrix: &v, features: v.rows(), bias: None, add: false, out: &mut out_v },
        ];
        multiply_each(&threads, simd, &x, &mut products);
        assert_eq!((bits(&out), bits(&out_v)), (bits(&biased), bits(&plain_v)));
    }
}

#[test]
fn gate_and_up_are_fused_without_changing_either_product() {
    let mut random = Random(9);
    let threads = Threads::new(2).unwrap();
    for (rows, kind) in [(1, BlockType::Q4_K), (50, BlockType::Q4_K), (5, BlockType::BF16)] {
        let gate = matrix(kind, 70, 256, &mut random);
        let up = matrix(BlockType::Q6_K, 70, 256, &mut random);
        let x = random.floats(rows * 256);
        for simd in levels() {
            let (g, u) = (product(&threads, simd, &gate, &x), product(&threads, simd, &up, &x));
            let x = prepared(&threads, simd, &x, 256);
            let mut out = vec![f32::NAN; rows * 70];
            multiply_gate_up(&threads, simd, &gate, &up, &x, &mut out);
            for ((y, g), u) in out.iter().zip(&g).zip(&u) {
                let exact = f64::from(*g) / (1.0 + (-f64::from(*g)).exp()) * f64::from(*u);
                // Below e^-88 the exponential is capped.
                let bound = exact.abs() * 1e-6 + 1e-30;
                assert!((f64::from(*y) - exact).abs() <= bound, "{y}, not {exact}");
            }
        }
    }
}

fn scan_rows(ids: &[usize], targets: &[Option<usize>]) -> Vec<ScanRow> {
    ids.iter().zip(targets).map(|(ids, target)| ScanRow { ids: *ids, target: *target }).collect()
}

#[test]
fn a_streaming_head_finds_what_full_rows_hold() {
    let mut random = Random(10);
    let threads = [Threads::new(1).unwrap(), Threads::new(3).unwrap()];
    let w = matrix(BlockType::Q6_K, 1000, 256, &mut random);
    let x = random.floats(40 * 256);
    for simd in levels() {
        let logits = product(&threads[0], simd, &w, &x);
        let x = prepared(&threads[0], simd, &x, 256);
        let targets: Vec<_> = (0..40).map(|t| (t % 3 != 0).then_some(t * 24)).collect();
        let (mut scan, wanted) = (HeadScan::default(), scan_rows(&[1000; 40], &targets));
        let found = scan.scan(&threads[0], simd, &w, &x, true, &wanted).to_vec();
        for (t, (row, logits)) in found.iter().zip(logits.chunks_exact(1000)).enumerate() {
            let mut best = 0;
            for (i, logit) in logits.iter().enumerate() {
                if *logit > logits[best] {
                    best = i;
                }
            }
            assert_eq!((row.id, row.logit, row.finite), (best, logits[best], true));
            assert_eq!(row.target_logit, targets[t].map_or(0.0, |id| logits[id]));
            let max = f64::from(row.logit);
            let sum: f64 = logits.iter().map(|l| (f64::from(*l) - max).exp()).sum();
            let exact = max + sum.ln();
            assert!((f64::from(row.log_sum_exp) - exact).abs() < 1e-6 * (1.0 + exact.abs()));
        }
        assert_eq!(scan.scan(&threads[1], simd, &w, &x, true, &wanted), found);
        let mut alone = Activations::new();
        for t in [0, 7, 39] {
            let need = w.need();
            alone.prepare(&threads[0], simd, x.row(t), 1, 256, need);
            assert_eq!(scan.scan(&threads[1], simd, &w, &alone, true, &wanted[t..=t])[0], found[t]);
        }
    }
}

#[test]
fn a_row_that_looks_at_the_first_ids_finds_what_they_hold_whoever_shares_the_pass() {
    let mut random = Random(13);
    let threads = Threads::new(3).unwrap();
    let w = matrix(BlockType::Q8_0, 1000, 256, &mut random);
    let x = random.floats(5 * 256);
    for simd in levels() {
        let logits = product(&threads, simd, &w, &x);
        let x = prepared(&threads, simd, &x, 256);
        for ids in [[512, 256, 768, 256, 512], [256; 5], [1000, 256, 512, 1000, 768]] {
            let mut scan = HeadScan::default();
            let found = scan.scan(&threads, simd, &w, &x, false, &scan_rows(&ids, &[None; 5]));
            for ((row, logits), ids) in found.iter().zip(logits.chunks_exact(1000)).zip(ids) {
                let best = argmax(&logits[..ids]).index();
                assert_eq!((row.id, row.logit), (best, logits[best]), "of {ids}");
            }
        }
        let mut first = vec![f32::NAN; 5 * 1000];
        multiply(&threads, simd, &w, 512, &x, &mut first);
        for (first, all) in first.chunks_exact(1000).zip(logits.chunks_exact(1000)) {
            assert_eq!(first[..512], all[..512]);
            assert!(first[512..].iter().all(|logit| logit.is_nan()), "what nobody asked for");
        }
    }
}

#[test]
fn equal_logits_go_to_the_lower_id_even_across_chunks() {
    let threads = Threads::new(3).unwrap();
    // Rows 300 and 700 are ones, all others zeros.
    let mut bytes = vec![0; 1000 * 32 * 4];
    for row in [300, 700] {
        for value in bytes[row * 128..][..128].chunks_exact_mut(4) {
            value.copy_from_slice(&1.0_f32.to_le_bytes());
        }
    }
    let w = Matrix::pack(view(BlockType::F32, 1000, 32, &bytes)).unwrap();
    for simd in levels() {
        for (sign, id) in [(1.0, 300), (-1.0, 0)] {
            let x = prepared(&threads, simd, &[sign; 32], 32);
            let whole = scan_rows(&[1000], &[None]);
            let found = HeadScan::default().scan(&threads, simd, &w, &x, false, &whole)[0];
            assert_eq!((found.id, found.logit), (id, if sign > 0.0 { 32.0 } else { 0.0 }));
        }
    }
}

#[test]
fn a_non_finite_input_reaches_the_output_of_its_row_only() {
    let mut random = Random(11);
    let threads = Threads::new(2).unwrap();
    for kind in BlockType::ALL {
        let w = matrix(kind, 20, odd_cols(kind), &mut random);
        for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = random.floats(3 * w.cols());
            x[w.cols() + 40] = poison;
            for simd in levels() {
                let y = product(&threads, simd, &w, &x);
                assert!(y[..20].iter().chain(&y[40..]).all(|v| v.is_finite()), "{kind} {simd}");
                assert!(y[20..40].iter().all(|v| !v.is_finite()), "{kind} {simd}");
                let x = prepared(&threads, simd, &x, w.cols());
                let mut scan = HeadScan::default();
                let wanted = scan_rows(&[20; 3], &[None; 3]);
                let rows = scan.scan(&threads, simd, &w, &x, true, &wanted);
                assert_eq!([true, false, true], [rows[0].finite, rows[1].finite, rows[2].finite]);
            }
        }
    }
}

#[test]
fn activations_shrink_and_grow_without_leaving_traces() {
    let mut random = Random(12);
    let threads = Threads::new(2).unwrap();
    let simd = SimdLevel::detect();
    let mut reused = Activations::new();
    for (rows, cols) in [(40, 100), (3, 33), (33, 512), (1, 7), (70, 64), (2, 512), (2, 100)] {
        let x = random.floats(rows * cols);
        let both = if cols == 512 { Need::INT8_32 | Need::INT8_256 } else { Need::INT8_32 };
        reused.prepare(&threads, simd, &x, rows, cols, both);
        let fresh = prepared(&threads, simd, &x, cols);
        for t in 0..rows {
            assert_eq!(reused.row(t), &x[t * cols..][..cols]);
            assert_eq!(reused.padded_rows(t..t + 1), fresh.padded_rows(t..t + 1));
            assert_eq!(reused.tile_of(t), fresh.tile_of(t));
            if cols == 512 {
                assert_eq!(reused.super_tile_of(t), fresh.super_tile_of(t));
            }
        }
    }
}
