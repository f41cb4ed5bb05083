//! Matrix products on the shapes of a 1.5B model: `cargo bench --bench matrix [TYPE ...]`.
//!
//! One row (decode) is bound by memory: GB of weights a second. Many rows (scoring, prefill) are
//! bound by arithmetic: GFLOP/s, two per multiplication. Weights rotate through several copies, so
//! that a decode step finds none of them in the cache. Figures are the best of several rounds:
//! other work on the machine only ever slows one down.

#![expect(clippy::print_stdout, reason = "a benchmark prints")]

use forerun::device::cpu::matrix::{Activations, Matrix, multiply};
use forerun::device::cpu::simd::SimdLevel;
use forerun::device::cpu::threads::Threads;
use forerun::device::{BlockType, MatrixView};
use half::f16;
use std::time::{Duration, Instant};

/// `[out features, in features]`: the down and the gate projection of Qwen2.5-1.5B.
const SHAPES: [(usize, usize); 2] = [(1536, 8960), (8960, 1536)];
/// Weights of one round: larger than any cache.
const ROUND_BYTES: usize = 192 << 20;
/// How long one figure is measured.
const PATIENCE: Duration = Duration::from_millis(600);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let (threads, simd) = (Threads::from_env()?, SimdLevel::from_env()?);
    println!("{} threads, {simd}; GB/s at one row, GFLOP/s at the others", threads.count());
    println!(
        "{:5} {:>11} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8}",
        "type", "shape", "T=1", "T=4", "T=8", "T=16", "T=32", "T=128"
    );
    for kind in BlockType::ALL {
        if !wanted.is_empty() && !wanted.iter().any(|name| name == kind.name()) {
            continue;
        }
        for (rows, cols) in SHAPES {
            let copies = round(kind, rows, cols)?;
            let mut line = format!("{kind:5} {:>11}", format!("{rows}x{cols}"));
            for tokens in [1, 4, 8, 16, 32, 128] {
                let seconds = best_seconds(&threads, simd, &copies, tokens);
                let figure = if tokens == 1 {
                    copies[0].bytes() as f64 / seconds / 1e9
                } else {
                    (2 * rows * cols * tokens) as f64 / seconds / 1e9
                };
                line += &format!(" {figure:8.1}");
            }
            println!("{line}");
        }
    }
    Ok(())
}

/// Copies of one matrix of pseudo-random quants that together exceed the caches.
fn round(
    kind: BlockType,
    rows: usize,
    cols: usize,
) -> Result<Vec<Matrix>, Box<dyn std::error::Error>> {
    let size = kind.row_bytes(cols).ok_or("whole blocks")? * rows;
    let mut state = 1_u32;
    let mut bytes = vec![0; size];
    for byte in &mut bytes {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // Halves and floats made of such bytes are never infinite: the exponent is not all ones.
        *byte = (state >> 24) as u8 & 0x3f;
    }
    let scale = f16::from_f32(0.01).to_le_bytes();
    if !kind.is_plain() {
        bytes
            .chunks_exact_mut(kind.block_bytes())
            .for_each(|block| block[..2].copy_from_slice(&scale));
    }
    let view = MatrixView { name: "bench", rows, cols, kind, bytes: &bytes };
    let copies = (ROUND_BYTES / size).clamp(2, 64);
    Ok((0..copies).map(|_| Matrix::pack(view)).collect::<Result<_, _>>()?)
}

/// Seconds of one product with `tokens` rows, preparing the rows included.
fn best_seconds(threads: &Threads, simd: SimdLevel, copies: &[Matrix], tokens: usize) -> f64 {
    let (n, k) = (copies[0].rows(), copies[0].cols());
    let x: Vec<f32> = (0..tokens * k).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
    let mut out = vec![0.0; tokens * n];
    let mut activations = Activations::new();
    let (started, mut best) = (Instant::now(), f64::MAX);
    // Decode is judged by whole rounds: a single product may be lucky with the cache.
    let per_figure = if tokens == 1 { copies.len() } else { 1 };
    for first in (0..copies.len()).step_by(per_figure).cycle() {
        let start = Instant::now();
        for w in &copies[first..first + per_figure] {
            activations.prepare(threads, simd, &x, tokens, k, w.need());
            multiply(threads, simd, w, w.rows(), &activations, &mut out);
        }
        best = best.min(start.elapsed().as_secs_f64() / per_figure as f64);
        if started.elapsed() > PATIENCE {
            break;
        }
    }
    best
}
