//! Every level against plain arithmetic, lane by lane.

use super::*;

/// A generator good enough to spread test values: SplitMix64.
fn values(seed: u64, count: usize) -> impl Iterator<Item = u64> {
    (1..=count as u64).map(move |i| {
        let mut z = seed.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

fn floats(seed: u64, count: usize, span: f32) -> Vec<f32> {
    values(seed, count).map(|z| ((z >> 40) as f32 / (1 << 23) as f32 - 1.0) * span).collect()
}

/// The levels of this machine; says which one is missing.
fn levels() -> Vec<SimdLevel> {
    let levels = SimdLevel::available();
    if !levels.contains(&SimdLevel::Avx512) {
        eprintln!("skipped: no AVX-512 on this machine");
    }
    levels
}

/// Applies a lane function to 64 values.
struct Each<'a, F>(&'a [f32], &'a mut [f32], F);

trait LaneFunction {
    fn apply<S: Simd>(&self, simd: S, v: S::F32) -> S::F32;
}

impl<F: LaneFunction> Kernel for Each<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (from, to) in self.0.chunks_exact(S::LANES).zip(self.1.chunks_exact_mut(S::LANES)) {
            simd.store(to, self.2.apply(simd, simd.load(from)));
        }
    }
}

fn each(level: SimdLevel, from: &[f32], f: impl LaneFunction) -> Vec<f32> {
    let mut out = vec![f32::MAX; from.len()];
    level.dispatch(Each(from, &mut out, f));
    out
}

#[test]
fn an_unknown_or_missing_level_is_an_error_that_names_the_available_ones() {
    let message = SimdLevel::from_name("sse9").unwrap_err().to_string();
    assert!(message.contains("sse9") && message.contains("portable"), "{message}");
    assert_eq!(SimdLevel::from_name("portable").unwrap(), SimdLevel::Portable);
    if !SimdLevel::available().contains(&SimdLevel::Avx512) {
        assert!(SimdLevel::from_name("avx512").is_err());
    }
}

struct Exp;
impl LaneFunction for Exp {
    #[inline(always)]
    fn apply<S: Simd>(&self, simd: S, v: S::F32) -> S::F32 {
        simd.exp(v)
    }
}

#[test]
fn exp_is_within_two_ulp_and_keeps_nan() {
    for level in levels() {
        let mut x = floats(1, 16 * 400, 87.0);
        x.extend(floats(2, 16 * 400, 1.0));
        for (x, y) in x.iter().zip(each(level, &x, Exp)) {
            let exact = f64::from(*x).exp();
            let ulp = exact * f64::from(f32::EPSILON);
            assert!((f64::from(y) - exact).abs() <= 2.0 * ulp, "{level}: exp({x}) = {y}");
        }
        let mut special = vec![0.0; 16];
        special[..5].copy_from_slice(&[f32::NAN, -88.0, -1e30, f32::NEG_INFINITY, 0.0]);
        let y = each(level, &special, Exp);
        assert!(y[0].is_nan());
        assert_eq!(y[1..5], [0.0, 0.0, 0.0, 1.0], "{level}");
    }
}

struct Silu;
impl LaneFunction for Silu {
    #[inline(always)]
    fn apply<S: Simd>(&self, simd: S, v: S::F32) -> S::F32 {
        simd.silu(v)
    }
}

#[test]
fn silu_is_within_four_ulp() {
    for level in levels() {
        let x = floats(3, 16 * 400, 40.0);
        for (x, y) in x.iter().zip(each(level, &x, Silu)) {
            let exact = f64::from(*x) / (1.0 + (-f64::from(*x)).exp());
            let bound = 4.0 * exact.abs() * f64::from(f32::EPSILON);
            assert!((f64::from(y) - exact).abs() <= bound, "{level}: silu({x}) = {y}");
        }
    }
}

/// Reduces one vector's worth of values in every way.
struct Reduce<'a>(&'a [f32]);

impl Kernel for Reduce<'_> {
    type Output = (f32, f32, i32);
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> (f32, f32, i32) {
        let v = simd.load(self.0);
        let scaled = simd.round_to_i32(simd.mul(v, simd.splat(100.0)));
        (simd.sum(v), simd.max_lane(v), simd.sum_i32(scaled))
    }
}

#[test]
fn lanes_are_summed_by_halves_in_one_fixed_tree() {
    for level in levels() {
        let lanes = if matches!(level, SimdLevel::Portable | SimdLevel::Avx2) { 8 } else { 16 };
        for seed in 0..50 {
            let x = floats(seed, lanes, 3.0);
            let mut tree = x.clone();
            while tree.len() > 1 {
                let half = tree.len() / 2;
                tree = (0..half).map(|i| tree[i] + tree[i + half]).collect();
            }
            let whole = x.iter().map(|v| (v * 100.0).round_ties_even() as i32).sum();
            let largest = x.iter().copied().fold(f32::MIN, f32::max);
            assert_eq!(level.dispatch(Reduce(&x)), (tree[0], largest, whole), "{level}");
        }
    }
}

/// Rounds to bf16 and back, and splits pairs.
struct ThroughBf16<'a>(&'a [f32], &'a mut [bf16], &'a mut [f32]);

impl Kernel for ThroughBf16<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for i in (0..self.0.len()).step_by(S::LANES) {
            simd.store_bf16(&mut self.1[i..], simd.load(&self.0[i..]));
            simd.store(&mut self.2[i..], simd.load_bf16(&self.1[i..]));
        }
    }
}

#[test]
fn bf16_rounds_to_the_nearest_even_and_keeps_nan() {
    let mut x: Vec<f32> = values(7, 4096).map(|z| f32::from_bits(z as u32)).collect();
    x.extend(
        [0x3f80_8000, 0x3f81_8000, 0x3f80_8001, 0x7f7f_ffff, 0x7f80_0000, 0x7f80_0001, 0, 1]
            .map(f32::from_bits),
    );
    x.extend([f32::NAN, f32::NEG_INFINITY, -0.0, f32::MIN_POSITIVE, 1e-40, 1.0, 2.0, 3.0]);
    for level in levels() {
        let (mut narrow, mut wide) = (vec![bf16::ZERO; x.len()], vec![0.0; x.len()]);
        level.dispatch(ThroughBf16(&x, &mut narrow, &mut wide));
        for ((x, n), w) in x.iter().zip(&narrow).zip(&wide) {
            let expected = bf16::from_f32(*x);
            assert!(n.to_bits() == expected.to_bits() || n.is_nan() && x.is_nan(), "{level}: {x}");
            assert!(w.to_bits() == n.to_f32().to_bits(), "{level}");
        }
    }
}

/// Dots `4 Q` bytes per lane: unsigned, then signed with the offset taken off.
struct Dots<'a, const Q: usize> {
    w: &'a [u8],
    x: &'a [i8],
    mask: u8,
    out: &'a mut [f32],
    out_signed: &'a mut [f32],
}

impl<const Q: usize> Kernel for Dots<'_, Q> {
    type Output = usize;
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> usize {
        let mut w = [simd.splat_u8(0); Q];
        let mut signed = w;
        for q in 0..Q {
            // SAFETY: the test gives 64 bytes a quad, of which each level reads its own first part.
            let bytes = unsafe { simd.load_bytes_ptr(self.w.as_ptr().add(64 * q)) };
            w[q] = simd.and(bytes, simd.splat_u8(self.mask));
            signed[q] = simd.signed_weights(bytes);
        }
        let zero = simd.splat_i32(0);
        // SAFETY: `x` has `4 Q` bytes.
        let (a, b) = unsafe {
            (
                simd.dot([simd.splat_i32(-3)], w, [self.x.as_ptr()])[0],
                simd.dot_signed([zero], signed, [self.x.as_ptr()])[0],
            )
        };
        let sum: i32 = self.x.iter().map(|x| i32::from(*x)).sum();
        let offset = simd.splat(S::SIGNED_OFFSET_BITS.map_or(0, |bits| -sum << bits) as f32);
        simd.store(self.out, simd.to_f32(a));
        simd.store(self.out_signed, simd.add(simd.to_f32(b), offset));
        S::LANES
    }
}

fn dots_are_exact<const Q: usize>(mask: u8) {
    for level in levels() {
        for seed in 0..40 {
            let mut w: Vec<u8> = values(seed, 64 * Q).map(|z| z as u8).collect();
            let mut x: Vec<i8> = values(seed + 99, 4 * Q).map(|z| (z as i8).max(-127)).collect();
            if seed == 0 {
                w.fill(0xff);
                x.fill(127);
            } else if seed == 1 {
                w.fill(0x80);
                x.fill(-127);
            }
            let (mut out, mut out_signed) = ([0.0; 16], [0.0; 16]);
            let kernel =
                Dots::<Q> { w: &w, x: &x, mask, out: &mut out, out_signed: &mut out_signed };
            let lanes = level.dispatch(kernel);
            for lane in 0..lanes {
                let (mut unsigned, mut signed) = (-3, 0);
                for i in 0..4 * Q {
                    let w = w[64 * (i / 4) + 4 * lane + i % 4];
                    unsigned += i32::from(w & mask) * i32::from(x[i]);
                    signed += i32::from(w as i8) * i32::from(x[i]);
                }
                assert_eq!(out[lane], unsigned as f32, "{level}, {Q} quads, lane {lane}");
                assert_eq!(out_signed[lane], signed as f32, "{level}, {Q} quads, lane {lane}");
            }
        }
    }
}

#[test]
fn byte_dots_are_exact_up_to_the_stated_bound() {
    dots_are_exact::<8>(0x0f);
    dots_are_exact::<4>(0x1f);
    dots_are_exact::<2>(0x3f);
}

/// `scale * dot` of two quads per lane, on top of 5.
struct Scaled<'a>(&'a [u8], &'a [i8], &'a [i8], &'a mut [i32]);

impl Kernel for Scaled<'_> {
    type Output = usize;
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> usize {
        let Self(w, x, scales, out) = self;
        let mask = simd.splat_u8(0x3f);
        // SAFETY: the test gives 64 bytes a quad, 8 of `x` and 16 scales and places.
        unsafe {
            let w = [0, 64].map(|at| simd.and(simd.load_bytes_ptr(w.as_ptr().add(at)), mask));
            let scales = simd.load_scales_ptr(scales.as_ptr());
            let [dots] = simd.dot_scaled([simd.splat_i32(5)], w, [x.as_ptr()], scales);
            simd.store_i32_ptr(out.as_mut_ptr(), dots);
        }
        S::LANES
    }
}

#[test]
fn scaled_byte_dots_are_exact_up_to_the_largest_values() {
    for level in levels() {
        for seed in 0..40 {
            let mut w: Vec<u8> = values(seed, 128).map(|z| z as u8).collect();
            let mut x: Vec<i8> = values(seed + 99, 8).map(|z| (z as i8).max(-127)).collect();
            let mut scales: Vec<i8> = values(seed + 7, 16).map(|z| z as i8).collect();
            if seed == 0 {
                w.fill(0xff);
                x.fill(-127);
                scales.fill(-128);
            }
            let mut out = [0; 16];
            for lane in 0..level.dispatch(Scaled(&w, &x, &scales, &mut out)) {
                let quads = (0..8).map(|i| (w[64 * (i / 4) + 4 * lane + i % 4] & 0x3f, x[i]));
                let dot: i32 = quads.map(|(w, x)| i32::from(w) * i32::from(x)).sum();
                assert_eq!(out[lane], 5 + i32::from(scales[lane]) * dot, "{level}, lane {lane}");
            }
        }
    }
}

/// Pairs of bytes against two values, on top of -9, shifted.
struct Pairs<'a>(&'a [i8], [i16; 2], &'a mut [i32]);

impl Kernel for Pairs<'_> {
    type Output = usize;
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> usize {
        let Self(bytes, x, out) = self;
        // SAFETY: the test gives 32 bytes and 16 places.
        unsafe {
            let pairs = simd.load_pairs_ptr(bytes.as_ptr(), bytes.as_ptr().add(16));
            let sums = simd.dot_pairs(simd.splat_i32(-9), pairs, x.as_ptr());
            simd.store_i32_ptr(out.as_mut_ptr(), simd.shift_left_i32(sums, 5));
            let again = simd.load_i32_ptr(out.as_ptr());
            simd.store_i32_ptr(out.as_mut_ptr(), simd.add_i32(again, simd.splat_i32(1)));
        }
        S::LANES
    }
}

#[test]
fn pairs_of_bytes_meet_their_pair_of_values() {
    for level in levels() {
        for x in [[0, 1], [-4064, 4064], [2032, -1], [i16::MAX, i16::MIN + 1]] {
            let mut bytes: Vec<i8> = values(3, 32).map(|z| z as i8).collect();
            (bytes[0], bytes[16]) = (-128, 127);
            let mut out = [0; 16];
            let lanes = level.dispatch(Pairs(&bytes, x, &mut out));
            for (lane, found) in out[..lanes].iter().enumerate() {
                let of = |i: usize, x: i16| i32::from(bytes[i]) * i32::from(x);
                let sum = of(lane, x[0]) + of(16 + lane, x[1]) - 9;
                assert_eq!(*found, sum * 32 + 1, "{level}, lane {lane}");
            }
        }
    }
}

/// Stores lanes as bytes.
struct Narrow<'a>(&'a [f32], &'a mut [i8]);

impl Kernel for Narrow<'_> {
    type Output = usize;
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> usize {
        let lanes = simd.round_to_i32(simd.load(self.0));
        // SAFETY: the test gives 16 places.
        unsafe { simd.store_i8_ptr(self.1.as_mut_ptr(), lanes) };
        S::LANES
    }
}

#[test]
fn lanes_narrow_to_bytes_without_loss() {
    for level in levels() {
        for first in (-128..112_i8).step_by(16) {
            let from: Vec<f32> = (0..16).map(|i| f32::from(first + i)).collect();
            let mut stored = [0; 16];
            for i in 0..level.dispatch(Narrow(&from, &mut stored)) {
                assert_eq!(f32::from(stored[i]), from[i], "{level}");
            }
        }
    }
}
