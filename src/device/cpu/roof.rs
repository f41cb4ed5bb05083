//! What the processor could do at best: bytes read and products a second, on all threads.
//!
//! Each figure is the best of several kernels and rounds, because other work on a machine only ever
//! takes away. Reading is measured over [`READ_BYTES`], far beyond any cache, with the access
//! patterns of the matrix kernels; products are measured on registers and a few cached lines.

use super::simd::{Kernel, Simd, SimdLevel};
use super::threads::Threads;
use std::hint::black_box;
use std::time::Instant;

/// Bytes read in a round.
const READ_BYTES: usize = 1 << 30;
/// How far ahead the second read kernel asks for lines.
const READ_AHEAD_BYTES: usize = 8 << 10;
/// Rounds of each kernel.
const ROUNDS: usize = 5;
/// Quads, or vectors, of one step of a product kernel, and its independent sums.
const QUADS: usize = 8;
const CHAINS: usize = 8;
/// Steps of a product kernel in a round, for each thread.
const STEPS: usize = 1 << 20;

/// Peaks of a processor.
#[derive(Debug, Clone, Copy)]
pub struct Roof {
    /// Bytes read from memory a second.
    pub bytes_per_s: f64,
    /// Multiplications of int8 with their additions a second.
    pub int8_macs_per_s: f64,
    /// Multiplications of f32 with their additions a second; bf16 weights are multiplied as these.
    pub float_macs_per_s: f64,
}

impl Roof {
    /// Measures for a few seconds, and takes a gibibyte meanwhile.
    #[must_use]
    pub fn measure(threads: &Threads, simd: SimdLevel) -> Self {
        let data = vec![1_u8; READ_BYTES];
        let share = READ_BYTES / threads.count();
        let mut bytes_per_s = 0.0_f64;
        for ahead in [None, Some(READ_AHEAD_BYTES)] {
            let seconds = best_seconds(threads, &|thread| {
                let bytes = &data[thread * share..][..share];
                simd.dispatch(Read { bytes, ahead });
            });
            bytes_per_s = bytes_per_s.max((share * threads.count()) as f64 / seconds);
        }
        let (lanes, count) = (simd.lanes() as f64, threads.count() as f64);
        let products = STEPS as f64 * CHAINS as f64 * QUADS as f64 * lanes * count;
        let int8 = best_seconds(threads, &|_| simd.dispatch(Int8));
        let float = best_seconds(threads, &|_| simd.dispatch(Float));
        Self {
            bytes_per_s,
            // A quad is four products a lane.
            int8_macs_per_s: 4.0 * products / int8,
            float_macs_per_s: products / float,
        }
    }
}

/// The shortest of several rounds in which every thread does `work` once.
fn best_seconds(threads: &Threads, work: &(dyn Fn(usize) + Sync)) -> f64 {
    let round = |_| {
        let begin = Instant::now();
        threads.run(threads.count(), work);
        begin.elapsed().as_secs_f64()
    };
    // One round more, which wakes the threads and fills page tables.
    (0..=ROUNDS).map(round).fold(f64::INFINITY, f64::min)
}

/// Reads every byte once.
struct Read<'a> {
    bytes: &'a [u8],
    ahead: Option<usize>,
}

impl Kernel for Read<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let mut sums = [simd.splat_u8(0); CHAINS];
        let width = 4 * S::LANES;
        for chunk in self.bytes.chunks_exact(CHAINS * width) {
            if let Some(ahead) = self.ahead {
                simd.prefetch_all(chunk.as_ptr().wrapping_add(ahead), chunk.len());
            }
            for (i, sum) in sums.iter_mut().enumerate() {
                // SAFETY: vector `i` of `CHAINS` in the chunk.
                *sum = simd.or(*sum, unsafe { simd.load_bytes_ptr(chunk.as_ptr().add(i * width)) });
            }
        }
        black_box(sums);
    }
}

/// Dots of bytes as the matrix kernels make them, weights in registers.
struct Int8;

impl Kernel for Int8 {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let x = black_box([1_i8; CHAINS * 4 * QUADS]);
        let w = black_box([simd.splat_u8(1); QUADS]);
        let mut sums = [simd.splat_i32(0); CHAINS];
        let rows = std::array::from_fn(|r| x[r * 4 * QUADS..].as_ptr());
        for _ in 0..STEPS {
            // SAFETY: every row has `4 * QUADS` bytes.
            sums = unsafe { simd.dot(sums, w, rows) };
        }
        black_box(sums);
    }
}

/// Fused multiplications and additions on registers.
struct Float;

impl Kernel for Float {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (a, b) = (black_box(simd.splat(1.0)), black_box(simd.splat(1e-6)));
        let mut sums = [simd.splat(0.0); CHAINS];
        for _ in 0..STEPS * QUADS {
            for sum in &mut sums {
                *sum = simd.fma(a, *sum, b);
            }
        }
        black_box(sums);
    }
}

/// The processor's own name, or its architecture where the system does not say.
pub(super) fn processor_name() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("model name"));
    line.and_then(|line| line.split_once(':'))
        .map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}
