//! Lanes of AVX-512 with VNNI: 16 f32, 16 i32 or 64 bytes.
//!
//! One instruction per lane operation wherever there is one, so that what the tests of the 16-lane
//! portable level establish carries over. `vpdpbusd` multiplies unsigned by signed bytes: signed
//! weights are offset by 128, which the kernels take off with the sum of the other side. Invariant:
//! an [`Avx512`] exists only where the processor has the extensions named in [`Avx512::detect`].

#![expect(clippy::needless_range_loop, reason = "`q` counts weights and bytes alike")]

use super::{Kernel, Simd};
use core::arch::x86_64::*;
use half::{bf16, f16};

/// The token of this level.
#[derive(Debug, Clone, Copy)]
pub struct Avx512(());

impl Avx512 {
    /// The token, if this processor has AVX-512 F, BW, DQ, VL and VNNI, and what AVX2 has.
    #[inline]
    #[must_use]
    pub fn detect() -> Option<Self> {
        let has = std::arch::is_x86_feature_detected!("avx512f")
            && std::arch::is_x86_feature_detected!("avx512bw")
            && std::arch::is_x86_feature_detected!("avx512dq")
            && std::arch::is_x86_feature_detected!("avx512vl")
            && std::arch::is_x86_feature_detected!("avx512vnni")
            && super::Avx2::detect().is_some();
        has.then_some(Self(()))
    }
}

/// Runs `kernel`, compiled with this level's instructions.
#[inline]
pub(super) fn enter<K: Kernel>(kernel: K, simd: Avx512) -> K::Output {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    fn compiled<K: Kernel>(kernel: K, simd: Avx512) -> K::Output {
        kernel.run(simd)
    }
    // SAFETY: the token proves that the processor has the extensions.
    unsafe { compiled(kernel, simd) }
}

// SAFETY, for every block below unless it says more: `self` proves that the processor has the
// extensions, and pointers are valid by the contract of the trait's method. Loads and stores are
// the unaligned ones.
impl Simd for Avx512 {
    const LANES: usize = 16;
    const WIDE_DOTS: bool = true;
    const SIGNED_OFFSET_BITS: Option<i32> = Some(7);
    type F32 = __m512;
    type I32 = __m512i;
    type Bytes = __m512i;

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        // SAFETY: see above the impl.
        unsafe { _mm512_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn load_ptr(self, from: *const f32) -> __m512 {
        // SAFETY: see above the impl.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store_ptr(self, to: *mut f32, v: __m512) {
        // SAFETY: see above the impl.
        unsafe { _mm512_storeu_ps(to, v) }
    }
    #[inline(always)]
    unsafe fn load_bf16_ptr(self, from: *const bf16) -> __m512 {
        // SAFETY: see above the impl.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16_ptr(self, to: *mut bf16, v: __m512) {
        // SAFETY: see above the impl. In integers, because the bf16 instruction flushes denormals.
        unsafe {
            let bits = _mm512_castps_si512(v);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
            let rounded = _mm512_add_epi32(bits, bias);
            let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x40_0000));
            let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
            let chosen = _mm512_mask_blend_epi32(is_nan, rounded, quiet);
            let words = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(chosen));
            _mm256_storeu_si256(to.cast(), words);
        }
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs_ptr(self, from: *const bf16) -> (__m512, __m512) {
        // SAFETY: see above the impl.
        unsafe {
            let pairs = _mm512_loadu_si512(from.cast());
            let first = _mm512_slli_epi32::<16>(pairs);
            let second = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32 as i32));
            (_mm512_castsi512_ps(first), _mm512_castsi512_ps(second))
        }
    }
    #[inline(always)]
    unsafe fn load_f16_ptr(self, from: *const f16) -> __m512 {
        // SAFETY: see above the impl.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above the impl.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above the impl.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above the impl.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above the impl.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above the impl.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above the impl.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn abs(self, v: __m512) -> __m512 {
        // SAFETY: see above the impl.
        unsafe { _mm512_abs_ps(v) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: see above the impl.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn round(self, v: __m512) -> __m512 {
        // SAFETY: see above the impl.
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v) }
    }
    #[inline(always)]
    fn scale_by_power(self, v: __m512, n: __m512) -> __m512 {
        // SAFETY: see above the impl.
        unsafe {
            let exponent = _mm512_slli_epi32::<23>(_mm512_cvtps_epi32(n));
            _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(v), exponent))
        }
    }
    #[inline(always)]
    fn zero_below(self, bound: __m512, x: __m512, v: __m512) -> __m512 {
        // SAFETY: see above the impl.
        unsafe {
            let below = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(x, bound);
            _mm512_mask_blend_ps(below, v, _mm512_setzero_ps())
        }
    }
    #[inline(always)]
    fn sum(self, v: __m512) -> f32 {
        // SAFETY: see above the impl.
        unsafe {
            let high = _mm512_extractf32x8_ps::<1>(v);
            let eight = _mm256_add_ps(_mm512_castps512_ps256(v), high);
            let high = _mm256_extractf128_ps::<1>(eight);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), high);
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    fn max_lane(self, v: __m512) -> f32 {
        // SAFETY: see above the impl.
        unsafe { _mm512_reduce_max_ps(v) }
    }

    #[inline(always)]
    fn splat_i32(self, value: i32) -> __m512i {
        // SAFETY: see above the impl.
        unsafe { _mm512_set1_epi32(value) }
    }
    #[inline(always)]
    fn add_i32(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: see above the impl.
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    fn shift_left_i32(self, v: __m512i, bits: i32) -> __m512i {
        // SAFETY: see above the impl. The count is a constant after inlining.
        unsafe { _mm512_sll_epi32(v, _mm_cvtsi32_si128(bits)) }
    }
    #[inline(always)]
    unsafe fn load_i32_ptr(self, from: *const i32) -> __m512i {
        // SAFETY: see above the impl.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn store_i32_ptr(self, to: *mut i32, v: __m512i) {
        // SAFETY: see above the impl.
        unsafe { _mm512_storeu_si512(to.cast(), v) }
    }
    #[inline(always)]
    fn sum_i32(self, v: __m512i) -> i32 {
        // SAFETY: see above the impl.
        unsafe { _mm512_reduce_add_epi32(v) }
    }
    #[inline(always)]
    fn to_f32(self, v: __m512i) -> __m512 {
        // SAFETY: see above the impl.
        unsafe { _mm512_cvtepi32_ps(v) }
    }
    #[inline(always)]
    fn round_to_i32(self, v: __m512) -> __m512i {
        // SAFETY: see above the impl.
        unsafe { _mm512_cvtps_epi32(v) }
    }
    #[inline(always)]
    unsafe fn store_i8_ptr(self, to: *mut i8, v: __m512i) {
        // SAFETY: see above the impl; 16 bytes are written.
        unsafe { _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(v)) }
    }

    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        // SAFETY: see above the impl; a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[inline(always)]
    unsafe fn load_bytes_ptr(self, from: *const u8) -> __m512i {
        // SAFETY: see above the impl.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    fn splat_u8(self, value: u8) -> __m512i {
        // SAFETY: see above the impl.
        unsafe { _mm512_set1_epi8(value as i8) }
    }
    #[inline(always)]
    fn and(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: see above the impl.
        unsafe { _mm512_and_si512(a, b) }
    }
    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: see above the impl.
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    fn shift_right<const BITS: i32>(self, v: __m512i) -> __m512i {
        // SAFETY: see above the impl. The count is a constant after inlining.
        unsafe { _mm512_srl_epi16(v, _mm_cvtsi32_si128(BITS)) }
    }
    #[inline(always)]
    fn shift_left<const BITS: i32>(self, v: __m512i) -> __m512i {
        // SAFETY: see above the impl. The count is a constant after inlining.
        unsafe { _mm512_sll_epi16(v, _mm_cvtsi32_si128(BITS)) }
    }

    #[inline(always)]
    unsafe fn dot<const Q: usize, const R: usize>(
        self,
        mut acc: [__m512i; R],
        w: [__m512i; Q],
        x: [*const i8; R],
    ) -> [__m512i; R] {
        // SAFETY: see above the impl; quad `q` is the four bytes from `4 q`. The rows inside,
        // because one row's chain alone leaves the multipliers idle seven cycles of eight.
        unsafe {
            for q in 0..Q {
                for r in 0..R {
                    let quad = _mm512_set1_epi32(x[r].add(4 * q).cast::<i32>().read_unaligned());
                    acc[r] = _mm512_dpbusd_epi32(acc[r], w[q], quad);
                }
            }
        }
        acc
    }
    #[inline(always)]
    fn signed_weights(self, w: __m512i) -> __m512i {
        // SAFETY: see above the impl.
        unsafe { _mm512_xor_si512(w, _mm512_set1_epi8(-128)) }
    }
    #[inline(always)]
    unsafe fn dot_signed<const Q: usize, const R: usize>(
        self,
        acc: [__m512i; R],
        w: [__m512i; Q],
        x: [*const i8; R],
    ) -> [__m512i; R] {
        // SAFETY: the caller's contract is that of `dot`.
        unsafe { self.dot(acc, w, x) }
    }
    #[inline(always)]
    unsafe fn load_scales_ptr(self, from: *const i8) -> __m512i {
        // SAFETY: see above the impl.
        unsafe { _mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn dot_scaled<const Q: usize, const R: usize>(
        self,
        mut acc: [__m512i; R],
        w: [__m512i; Q],
        x: [*const i8; R],
        scales: __m512i,
    ) -> [__m512i; R] {
        // SAFETY: see above the impl; the contract of `dot` is the caller's.
        unsafe {
            let dots = self.dot([_mm512_setzero_si512(); R], w, x);
            for r in 0..R {
                acc[r] = _mm512_add_epi32(acc[r], _mm512_mullo_epi32(dots[r], scales));
            }
        }
        acc
    }
    #[inline(always)]
    unsafe fn load_pairs_ptr(self, first: *const i8, second: *const i8) -> __m512i {
        // SAFETY: see above the impl.
        unsafe {
            let (a, b) = (_mm_loadu_si128(first.cast()), _mm_loadu_si128(second.cast()));
            let pairs = _mm256_set_m128i(_mm_unpackhi_epi8(a, b), _mm_unpacklo_epi8(a, b));
            _mm512_cvtepi8_epi16(pairs)
        }
    }
    #[inline(always)]
    unsafe fn dot_pairs(self, acc: __m512i, pairs: __m512i, x: *const i16) -> __m512i {
        // SAFETY: see above the impl.
        unsafe {
            _mm512_dpwssd_epi32(acc, pairs, _mm512_set1_epi32(x.cast::<i32>().read_unaligned()))
        }
    }
}
