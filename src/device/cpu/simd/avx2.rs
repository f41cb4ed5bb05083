//! Lanes of AVX2 with FMA and F16C: 8 f32, 8 i32 or 32 bytes.
//!
//! Byte dot products go through `vpmaddubsw`, whose 16-bit sums the caller's bound keeps from
//! saturating; several quads are added in 16 bits before one `vpmaddwd` widens them. Signed weights
//! need the sign trick (`|w|` times `x` with the sign of `w`). Invariant: an [`Avx2`] exists only
//! where the processor has the three extensions. Read next: `avx512`.

#![expect(clippy::needless_range_loop, reason = "`q` counts weights and bytes alike")]

use super::{Kernel, Simd};
use core::arch::x86_64::*;
use half::{bf16, f16};

/// The token of this level.
#[derive(Debug, Clone, Copy)]
pub struct Avx2(());

impl Avx2 {
    /// The token, if this processor has AVX2, FMA and F16C.
    #[inline]
    #[must_use]
    pub fn detect() -> Option<Self> {
        let has = std::arch::is_x86_feature_detected!("avx2")
            && std::arch::is_x86_feature_detected!("fma")
            && std::arch::is_x86_feature_detected!("f16c");
        has.then_some(Self(()))
    }
}

/// Runs `kernel`, compiled with this level's instructions.
#[inline]
pub(super) fn enter<K: Kernel>(kernel: K, simd: Avx2) -> K::Output {
    #[target_feature(enable = "avx2,fma,f16c")]
    fn compiled<K: Kernel>(kernel: K, simd: Avx2) -> K::Output {
        kernel.run(simd)
    }
    // SAFETY: the token proves that the processor has the three extensions.
    unsafe { compiled(kernel, simd) }
}

// SAFETY, for every block below unless it says more: `self` proves that the processor has AVX2, FMA
// and F16C, and pointers are valid by the contract of the trait's method. Loads and stores are the
// unaligned ones.
impl Simd for Avx2 {
    const LANES: usize = 8;
    const WIDE_DOTS: bool = false;
    const SIGNED_OFFSET_BITS: Option<i32> = None;
    type F32 = __m256;
    type I32 = __m256i;
    type Bytes = __m256i;

    #[inline(always)]
    fn splat(self, value: f32) -> __m256 {
        // SAFETY: see above the impl.
        unsafe { _mm256_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn load_ptr(self, from: *const f32) -> __m256 {
        // SAFETY: see above the impl.
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store_ptr(self, to: *mut f32, v: __m256) {
        // SAFETY: see above the impl.
        unsafe { _mm256_storeu_ps(to, v) }
    }
    #[inline(always)]
    unsafe fn load_bf16_ptr(self, from: *const bf16) -> __m256 {
        // SAFETY: see above the impl.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16_ptr(self, to: *mut bf16, v: __m256) {
        // SAFETY: see above the impl.
        unsafe {
            let bits = _mm256_castps_si256(v);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
            let rounded = _mm256_add_epi32(bits, bias);
            let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
            let is_nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
            let chosen = _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, is_nan));
            let packed = _mm256_packus_epi32(chosen, chosen);
            let ordered = _mm256_permute4x64_epi64::<0b00_00_10_00>(packed);
            _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(ordered));
        }
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs_ptr(self, from: *const bf16) -> (__m256, __m256) {
        // SAFETY: see above the impl.
        unsafe {
            let pairs = _mm256_loadu_si256(from.cast());
            let first = _mm256_slli_epi32::<16>(pairs);
            let second = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000_u32 as i32));
            (_mm256_castsi256_ps(first), _mm256_castsi256_ps(second))
        }
    }
    #[inline(always)]
    unsafe fn load_f16_ptr(self, from: *const f16) -> __m256 {
        // SAFETY: see above the impl.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see above the impl.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see above the impl.
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see above the impl.
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see above the impl.
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see above the impl.
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: see above the impl.
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    fn abs(self, v: __m256) -> __m256 {
        // SAFETY: see above the impl.
        unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), v) }
    }
    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: see above the impl.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn round(self, v: __m256) -> __m256 {
        // SAFETY: see above the impl.
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v) }
    }
    #[inline(always)]
    fn scale_by_power(self, v: __m256, n: __m256) -> __m256 {
        // SAFETY: see above the impl.
        unsafe {
            let exponent = _mm256_slli_epi32::<23>(_mm256_cvtps_epi32(n));
            _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(v), exponent))
        }
    }
    #[inline(always)]
    fn zero_below(self, bound: __m256, x: __m256, v: __m256) -> __m256 {
        // SAFETY: see above the impl.
        unsafe { _mm256_andnot_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(x, bound), v) }
    }
    #[inline(always)]
    fn sum(self, v: __m256) -> f32 {
        // SAFETY: see above the impl.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    fn max_lane(self, v: __m256) -> f32 {
        // SAFETY: see above the impl.
        unsafe {
            let four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    fn splat_i32(self, value: i32) -> __m256i {
        // SAFETY: see above the impl.
        unsafe { _mm256_set1_epi32(value) }
    }
    #[inline(always)]
    fn add_i32(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: see above the impl.
        unsafe { _mm256_add_epi32(a, b) }
    }
    #[inline(always)]
    fn shift_left_i32(self, v: __m256i, bits: i32) -> __m256i {
        // SAFETY: see above the impl. The count is a constant after inlining.
        unsafe { _mm256_sll_epi32(v, _mm_cvtsi32_si128(bits)) }
    }
    #[inline(always)]
    unsafe fn load_i32_ptr(self, from: *const i32) -> __m256i {
        // SAFETY: see above the impl.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }
    #[inline(always)]
    unsafe fn store_i32_ptr(self, to: *mut i32, v: __m256i) {
        // SAFETY: see above the impl.
        unsafe { _mm256_storeu_si256(to.cast(), v) }
    }
    #[inline(always)]
    fn sum_i32(self, v: __m256i) -> i32 {
        // SAFETY: see above the impl.
        unsafe {
            let four = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
            let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b11_10>(four));
            _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<0b01>(two)))
        }
    }
    #[inline(always)]
    fn to_f32(self, v: __m256i) -> __m256 {
        // SAFETY: see above the impl.
        unsafe { _mm256_cvtepi32_ps(v) }
    }
    #[inline(always)]
    fn round_to_i32(self, v: __m256) -> __m256i {
        // SAFETY: see above the impl.
        unsafe { _mm256_cvtps_epi32(v) }
    }
    #[inline(always)]
    unsafe fn store_i8_ptr(self, to: *mut i8, v: __m256i) {
        // SAFETY: see above the impl; 8 bytes are written.
        unsafe {
            let words =
                _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
            _mm_storel_epi64(to.cast(), _mm_packs_epi16(words, words));
        }
    }

    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        // SAFETY: see above the impl; a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[inline(always)]
    unsafe fn load_bytes_ptr(self, from: *const u8) -> __m256i {
        // SAFETY: see above the impl.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }
    #[inline(always)]
    fn splat_u8(self, value: u8) -> __m256i {
        // SAFETY: see above the impl.
        unsafe { _mm256_set1_epi8(value as i8) }
    }
    #[inline(always)]
    fn and(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: see above the impl.
        unsafe { _mm256_and_si256(a, b) }
    }
    #[inline(always)]
    fn or(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: see above the impl.
        unsafe { _mm256_or_si256(a, b) }
    }
    #[inline(always)]
    fn shift_right<const BITS: i32>(self, v: __m256i) -> __m256i {
        // SAFETY: see above the impl.
        unsafe { _mm256_srli_epi16::<BITS>(v) }
    }
    #[inline(always)]
    fn shift_left<const BITS: i32>(self, v: __m256i) -> __m256i {
        // SAFETY: see above the impl.
        unsafe { _mm256_slli_epi16::<BITS>(v) }
    }

    #[inline(always)]
    unsafe fn dot<const Q: usize, const R: usize>(
        self,
        acc: [__m256i; R],
        w: [__m256i; Q],
        x: [*const i8; R],
    ) -> [__m256i; R] {
        // SAFETY: the caller's contract.
        unsafe { self.dot_scaled(acc, w, x, _mm256_set1_epi16(1)) }
    }
    #[inline(always)]
    fn signed_weights(self, w: __m256i) -> __m256i {
        w
    }
    #[inline(always)]
    unsafe fn dot_signed<const Q: usize, const R: usize>(
        self,
        mut acc: [__m256i; R],
        w: [__m256i; Q],
        x: [*const i8; R],
    ) -> [__m256i; R] {
        // SAFETY: see above the impl; quad `q` is the four bytes from `4 q`.
        unsafe {
            for r in 0..R {
                for q in 0..Q {
                    let signed = _mm256_sign_epi8(splat_quad(x[r].add(4 * q)), w[q]);
                    // At most 2 * 128 * 127 = 32512: a pair cannot saturate.
                    let sums = _mm256_maddubs_epi16(_mm256_abs_epi8(w[q]), signed);
                    let sums = _mm256_madd_epi16(sums, _mm256_set1_epi16(1));
                    acc[r] = _mm256_add_epi32(acc[r], sums);
                }
            }
        }
        acc
    }
    #[inline(always)]
    unsafe fn load_scales_ptr(self, from: *const i8) -> __m256i {
        // SAFETY: the caller's contract. Both halves of a lane get the scale.
        unsafe { self.load_pairs_ptr(from, from) }
    }
    #[inline(always)]
    unsafe fn dot_scaled<const Q: usize, const R: usize>(
        self,
        mut acc: [__m256i; R],
        w: [__m256i; Q],
        x: [*const i8; R],
        scales: __m256i,
    ) -> [__m256i; R] {
        // SAFETY: see above the impl. The widening multiplication takes the scale along. Row after
        // row: the weights alone fill half the registers.
        unsafe {
            for r in 0..R {
                let dots = _mm256_madd_epi16(half_dots(w, x[r]), scales);
                acc[r] = _mm256_add_epi32(acc[r], dots);
            }
        }
        acc
    }
    #[inline(always)]
    unsafe fn load_pairs_ptr(self, first: *const i8, second: *const i8) -> __m256i {
        // SAFETY: see above the impl.
        unsafe {
            let (a, b) = (_mm_loadl_epi64(first.cast()), _mm_loadl_epi64(second.cast()));
            _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(a, b))
        }
    }
    #[inline(always)]
    unsafe fn dot_pairs(self, acc: __m256i, pairs: __m256i, x: *const i16) -> __m256i {
        // SAFETY: see above the impl.
        unsafe { _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, splat_quad(x.cast()))) }
    }
}

/// The dot of every lane in two halves of 16 bits: bytes 0 and 1 of each quad, and bytes 2 and 3.
///
/// # Safety
/// The processor has AVX2; `x` is valid for reads of `4 Q` bytes.
#[inline(always)]
unsafe fn half_dots<const Q: usize>(w: [__m256i; Q], x: *const i8) -> __m256i {
    // SAFETY: by the contract of this function; quad `q` is the four bytes from `4 q`.
    unsafe {
        let mut sums = _mm256_maddubs_epi16(w[0], splat_quad(x));
        for q in 1..Q {
            let quad = splat_quad(x.add(4 * q));
            sums = _mm256_add_epi16(sums, _mm256_maddubs_epi16(w[q], quad));
        }
        sums
    }
}

/// The four bytes at `x` in every lane.
///
/// # Safety
/// The processor has AVX2; `x` is valid for reads of 4 bytes.
#[inline(always)]
unsafe fn splat_quad(x: *const i8) -> __m256i {
    // SAFETY: by the contract of this function.
    unsafe { _mm256_set1_epi32(x.cast::<i32>().read_unaligned()) }
}
