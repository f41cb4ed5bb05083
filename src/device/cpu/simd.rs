//! Lanes: one generic kernel body for every instruction set, chosen at run time.
//!
//! A kernel is written once over [`Simd`], a handful of thin lane operations, and
//! [`SimdLevel::dispatch`] compiles and calls it for the level in use. The lane operations are
//! methods of a token that exists only where the processor has the instructions, so calling them
//! is safe.
//!
//! Invariant: an operation does the same thing to every lane, and every sum over lanes is one fixed
//! tree; so a kernel that is row-invariant at one width is so at all.
//! Read next: [`portable`] for the meaning of each operation, then [`avx2`] and [`avx512`].

pub mod portable;

#[cfg(target_arch = "x86_64")]
pub mod avx2;
#[cfg(target_arch = "x86_64")]
pub mod avx512;
#[cfg(test)]
mod tests;

use crate::error::DeviceError;
use half::{bf16, f16};
use portable::Portable;

#[cfg(target_arch = "x86_64")]
use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
use avx512::Avx512;

/// Bytes that memory moves at once.
const CACHE_LINE: usize = 64;

/// The environment variable that forces a level.
pub const SIMD_VARIABLE: &str = "FORERUN_SIMD";

/// An instruction set kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SimdLevel {
    /// Plain arrays of 8 lanes, on every processor.
    Portable,
    /// Plain arrays of 16 lanes with the byte conventions of AVX-512: lets tests run the kernels at
    /// that width on any processor.
    #[cfg(test)]
    Portable16,
    /// AVX2 with FMA and F16C, 8 lanes.
    Avx2,
    /// AVX-512 F, BW, DQ, VL and VNNI, 16 lanes.
    Avx512,
}

/// A kernel body over any level.
///
/// Mark `run`, and every generic function it calls, `#[inline(always)]`: the instructions are only
/// available inside the entry point of [`SimdLevel::dispatch`].
pub trait Kernel {
    /// What the kernel returns.
    type Output;
    /// Computes with the lanes of `simd`.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

impl SimdLevel {
    /// The best level of this processor.
    #[must_use]
    pub fn detect() -> Self {
        *Self::available().last().expect("the portable level is always available")
    }

    /// All levels of this processor, the slowest first.
    #[must_use]
    pub fn available() -> Vec<Self> {
        let mut levels = vec![Self::Portable];
        #[cfg(test)]
        levels.push(Self::Portable16);
        #[cfg(target_arch = "x86_64")]
        {
            levels.extend(Avx2::detect().map(|_| Self::Avx2));
            levels.extend(Avx512::detect().map(|_| Self::Avx512));
        }
        levels
    }

    /// The level named by `FORERUN_SIMD`, by default the best one.
    ///
    /// # Errors
    /// If the variable names no level, or one this processor does not have.
    pub fn from_env() -> Result<Self, DeviceError> {
        match std::env::var(SIMD_VARIABLE) {
            Ok(name) => Self::from_name(&name),
            Err(_) => Ok(Self::detect()),
        }
    }

    /// The available level with this name.
    ///
    /// # Errors
    /// If there is none of this name, or this processor does not have it.
    pub fn from_name(name: &str) -> Result<Self, DeviceError> {
        let available = Self::available();
        if let Some(level) = available.iter().find(|level| level.name() == name) {
            return Ok(*level);
        }
        let names: Vec<_> = available.iter().map(|level| level.name()).collect();
        Err(DeviceError::Unavailable {
            device: "cpu".into(),
            reason: format!(
                "{SIMD_VARIABLE} asks for {name:?}, this processor has {}; set one of these or \
                 unset it",
                names.join(", ")
            ),
        })
    }

    /// The name `FORERUN_SIMD` takes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            #[cfg(test)]
            Self::Portable16 => "portable16",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    /// f32 of a vector, [`Simd::LANES`].
    #[must_use]
    pub fn lanes(self) -> usize {
        struct Lanes;
        impl Kernel for Lanes {
            type Output = usize;
            fn run<S: Simd>(self, _: S) -> usize {
                S::LANES
            }
        }
        self.dispatch(Lanes)
    }

    /// Runs `kernel` compiled for this level.
    ///
    /// # Panics
    /// If this processor does not have the level.
    #[inline]
    pub fn dispatch<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Self::Portable => kernel.run(Portable::<8>),
            #[cfg(test)]
            Self::Portable16 => kernel.run(Portable::<16>),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => avx2::enter(kernel, Avx2::detect().expect("AVX2, FMA and F16C")),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => avx512::enter(kernel, Avx512::detect().expect("AVX-512 and VNNI")),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 => panic!("{} on another architecture", self.name()),
        }
    }
}

impl std::fmt::Display for SimdLevel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Lane operations of one instruction set. `L` below is [`Simd::LANES`].
///
/// A vector is `L` f32, `L` i32 or `4 L` bytes; the four bytes that share a lane are a *quad*, the
/// unit of the integer dot product.
pub trait Simd: Copy + Send + Sync + 'static {
    /// f32 per vector: 8 or 16.
    const LANES: usize;
    /// Whether dots are summed in 32 bits all along, so that the bound of [`Simd::dot`] is none.
    const WIDE_DOTS: bool;
    /// What [`Simd::signed_weights`] adds to every signed byte, to be taken off again where
    /// [`Simd::dot_signed`] is used: `2^bits`, or nothing.
    const SIGNED_OFFSET_BITS: Option<i32>;
    /// `L` f32.
    type F32: Copy;
    /// `L` i32.
    type I32: Copy;
    /// `4 L` bytes.
    type Bytes: Copy;

    /// All lanes `value`.
    fn splat(self, value: f32) -> Self::F32;
    /// # Safety
    /// `from` is valid for reads of `L` f32; any alignment.
    unsafe fn load_ptr(self, from: *const f32) -> Self::F32;
    /// # Safety
    /// `to` is valid for writes of `L` f32; any alignment.
    unsafe fn store_ptr(self, to: *mut f32, v: Self::F32);
    /// # Safety
    /// `from` is valid for reads of `L` bf16; any alignment.
    unsafe fn load_bf16_ptr(self, from: *const bf16) -> Self::F32;
    /// Rounds to the nearest, ties to even; a NaN stays one.
    ///
    /// # Safety
    /// `to` is valid for writes of `L` bf16; any alignment.
    unsafe fn store_bf16_ptr(self, to: *mut bf16, v: Self::F32);
    /// `L` pairs of bf16: the first of each pair, and the second of each.
    ///
    /// # Safety
    /// `from` is valid for reads of `2 L` bf16; any alignment.
    unsafe fn load_bf16_pairs_ptr(self, from: *const bf16) -> (Self::F32, Self::F32);
    /// # Safety
    /// `from` is valid for reads of `L` f16; any alignment.
    unsafe fn load_f16_ptr(self, from: *const f16) -> Self::F32;

    /// `a + b`.
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a - b`.
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a * b`.
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a / b`.
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// The larger; `b` where either is a NaN.
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// The smaller; `b` where either is a NaN.
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// Clears the sign.
    fn abs(self, v: Self::F32) -> Self::F32;
    /// `a * b + c`, rounded once where the processor can.
    fn fma(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// The nearest whole number, ties to even, for `|v| < 2^22`.
    fn round(self, v: Self::F32) -> Self::F32;
    /// `v * 2^n` for whole `n` in `-126..=127` and `v` in `[0.5, 2]`.
    fn scale_by_power(self, v: Self::F32, n: Self::F32) -> Self::F32;
    /// The sum of the lanes: lane `i` and `i + L/2` first, then halving.
    fn sum(self, v: Self::F32) -> f32;
    /// The largest lane.
    fn max_lane(self, v: Self::F32) -> f32;

    /// All lanes `value`.
    fn splat_i32(self, value: i32) -> Self::I32;
    /// `a + b`, wrapping.
    fn add_i32(self, a: Self::I32, b: Self::I32) -> Self::I32;
    /// `v * 2^bits`, wrapping; make `bits` a constant.
    fn shift_left_i32(self, v: Self::I32, bits: i32) -> Self::I32;
    /// The sum of the lanes.
    fn sum_i32(self, v: Self::I32) -> i32;
    /// # Safety
    /// `from` is valid for reads of `L` i32; any alignment.
    unsafe fn load_i32_ptr(self, from: *const i32) -> Self::I32;
    /// # Safety
    /// `to` is valid for writes of `L` i32; any alignment.
    unsafe fn store_i32_ptr(self, to: *mut i32, v: Self::I32);
    /// Each lane as f32.
    fn to_f32(self, v: Self::I32) -> Self::F32;
    /// Each lane rounded to the nearest, ties to even; `i32::MIN` or 0 where that does not fit.
    fn round_to_i32(self, v: Self::F32) -> Self::I32;
    /// Stores lanes in `-128..=127` as bytes.
    ///
    /// # Safety
    /// `to` is valid for writes of `L` bytes.
    unsafe fn store_i8_ptr(self, to: *mut i8, v: Self::I32);

    /// Asks for the cache line at `at`, wherever it points; a hint without an effect on any value.
    fn prefetch(self, at: *const u8);
    /// # Safety
    /// `from` is valid for reads of `4 L` bytes; any alignment.
    unsafe fn load_bytes_ptr(self, from: *const u8) -> Self::Bytes;
    /// All bytes `value`.
    fn splat_u8(self, value: u8) -> Self::Bytes;
    /// Bitwise and.
    fn and(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    /// Bitwise or.
    fn or(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    /// Each pair of bytes, as a little-endian u16, shifted right: mask what comes across.
    fn shift_right<const BITS: i32>(self, v: Self::Bytes) -> Self::Bytes;
    /// Each pair of bytes, as a little-endian u16, shifted left: mask what comes across.
    fn shift_left<const BITS: i32>(self, v: Self::Bytes) -> Self::Bytes;

    /// For each of `R` rows `acc[l] + Σ_q Σ_j w[q][4 l + j] * x[4 q + j]`, exact: every lane
    /// against the same `4 Q` signed bytes at the row's `x`. Where dots are not
    /// [wide](Simd::WIDE_DOTS), the caller keeps `2 * Q * max(w) * 127 <= 32767`. Several rows at
    /// once are several chains of additions at once.
    ///
    /// # Safety
    /// Every `x` is valid for reads of `4 Q` bytes.
    unsafe fn dot<const Q: usize, const R: usize>(
        self,
        acc: [Self::I32; R],
        w: [Self::Bytes; Q],
        x: [*const i8; R],
    ) -> [Self::I32; R];
    /// Signed bytes in the form [`Simd::dot_signed`] reads.
    fn signed_weights(self, w: Self::Bytes) -> Self::Bytes;
    /// As [`Simd::dot`] with weights from [`Simd::signed_weights`]: the result is too large by
    /// the offset, see [`Simd::SIGNED_OFFSET_BITS`], times the sum of the `4 Q` bytes. Every byte
    /// at `x` is above -128.
    ///
    /// # Safety
    /// Every `x` is valid for reads of `4 Q` bytes.
    unsafe fn dot_signed<const Q: usize, const R: usize>(
        self,
        acc: [Self::I32; R],
        w: [Self::Bytes; Q],
        x: [*const i8; R],
    ) -> [Self::I32; R];
    /// `L` signed bytes in the form [`Simd::dot_scaled`] reads.
    ///
    /// # Safety
    /// `from` is valid for reads of `L` bytes.
    unsafe fn load_scales_ptr(self, from: *const i8) -> Self::I32;
    /// `acc[l] + scale[l] * Σ_q Σ_j w[q][4 l + j] * x[4 q + j]`, exact, with scales from
    /// [`Simd::load_scales_ptr`]; otherwise as [`Simd::dot`].
    ///
    /// # Safety
    /// Every `x` is valid for reads of `4 Q` bytes.
    unsafe fn dot_scaled<const Q: usize, const R: usize>(
        self,
        acc: [Self::I32; R],
        w: [Self::Bytes; Q],
        x: [*const i8; R],
        scales: Self::I32,
    ) -> [Self::I32; R];
    /// `L` pairs of signed bytes in the form [`Simd::dot_pairs`] reads.
    ///
    /// # Safety
    /// Both are valid for reads of `L` bytes.
    unsafe fn load_pairs_ptr(self, first: *const i8, second: *const i8) -> Self::I32;
    /// `acc[l] + first[l] * x[0] + second[l] * x[1]`, exact, with `pairs` of
    /// [`Simd::load_pairs_ptr`].
    ///
    /// # Safety
    /// `x` is valid for reads of 2 values; any alignment.
    unsafe fn dot_pairs(self, acc: Self::I32, pairs: Self::I32, x: *const i16) -> Self::I32;

    /// [`Simd::prefetch`] of every line of `bytes` bytes from `at` on.
    #[inline(always)]
    fn prefetch_all(self, at: *const u8, bytes: usize) {
        for line in (0..bytes).step_by(CACHE_LINE) {
            self.prefetch(at.wrapping_add(line));
        }
    }

    /// The first `L` values.
    ///
    /// # Panics
    /// If `from` is shorter; so do all slice forms below.
    #[inline(always)]
    fn load(self, from: &[f32]) -> Self::F32 {
        assert!(from.len() >= Self::LANES, "{} values for {} lanes", from.len(), Self::LANES);
        // SAFETY: the length was checked.
        unsafe { self.load_ptr(from.as_ptr()) }
    }
    /// Stores into the first `L` places.
    #[inline(always)]
    fn store(self, to: &mut [f32], v: Self::F32) {
        assert!(to.len() >= Self::LANES, "{} places for {} lanes", to.len(), Self::LANES);
        // SAFETY: the length was checked; the borrow is exclusive.
        unsafe { self.store_ptr(to.as_mut_ptr(), v) }
    }
    /// The first `L` values, widened.
    #[inline(always)]
    fn load_bf16(self, from: &[bf16]) -> Self::F32 {
        assert!(from.len() >= Self::LANES, "{} values for {} lanes", from.len(), Self::LANES);
        // SAFETY: the length was checked.
        unsafe { self.load_bf16_ptr(from.as_ptr()) }
    }
    /// Rounds to the nearest, ties to even, into the first `L` places.
    #[inline(always)]
    fn store_bf16(self, to: &mut [bf16], v: Self::F32) {
        assert!(to.len() >= Self::LANES, "{} places for {} lanes", to.len(), Self::LANES);
        // SAFETY: the length was checked; the borrow is exclusive.
        unsafe { self.store_bf16_ptr(to.as_mut_ptr(), v) }
    }

    /// `e^v` to 2 ulp; 0 below -87.3, and at 88.3 and above the value there (2.2e38): sums of
    /// exponentials are taken relative to a maximum. A NaN stays one.
    ///
    /// `e^v = 2^n e^r` with `n = round(v / ln 2)` and `|r| <= ln 2 / 2`, `e^r` by its Taylor
    /// polynomial of degree 7 (remainder below 6e-9 relative).
    #[inline(always)]
    fn exp(self, v: Self::F32) -> Self::F32 {
        let low = self.splat(-87.3);
        // `max` and `min` keep their second operand where one is a NaN.
        let clamped = self.min(self.splat(88.3), self.max(low, v));
        let n = self.round(self.mul(clamped, self.splat(std::f32::consts::LOG2_E)));
        // ln 2 in two parts, the first with few enough bits that `n * high` is exact.
        let r = self.fma(n, self.splat(-0.693_359_4), clamped);
        let r = self.fma(n, self.splat(2.121_944_4e-4), r);
        let mut p = self.splat(1.0 / 5040.0);
        for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            p = self.fma(p, r, self.splat(coefficient));
        }
        self.zero_below(low, v, self.scale_by_power(p, n))
    }
    /// `v` where `x >= bound` or either is a NaN, else 0.
    fn zero_below(self, bound: Self::F32, x: Self::F32, v: Self::F32) -> Self::F32;

    /// `v / (1 + e^-v)`.
    #[inline(always)]
    fn silu(self, v: Self::F32) -> Self::F32 {
        let e = self.exp(self.sub(self.splat(0.0), v));
        self.div(v, self.add(self.splat(1.0), e))
    }
}
