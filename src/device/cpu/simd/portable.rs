//! Lanes as plain arrays: the meaning of every operation, on every processor.
//!
//! `Portable<8>` is the level of processors without AVX2; the compiler turns the loops into
//! whatever vectors the target has. `Portable<16>` follows the byte conventions of AVX-512 and
//! lets tests run the kernels at that width. Invariant: integer results equal those of the other
//! levels bit for bit. Read next: `avx2`.

use super::Simd;
use half::{bf16, f16};

/// The token of the portable level with `N` lanes.
#[derive(Debug, Clone, Copy)]
pub struct Portable<const N: usize>;

/// Adding and taking off `1.5 * 2^23` rounds to a whole number.
const ROUNDER: f32 = 12_582_912.0;

#[inline(always)]
fn zip<const N: usize>(a: [f32; N], b: [f32; N], f: impl Fn(f32, f32) -> f32) -> [f32; N] {
    let mut out = a;
    for i in 0..N {
        out[i] = f(a[i], b[i]);
    }
    out
}

#[inline(always)]
fn map<const N: usize, T: Copy, U: Copy + Default>(v: [T; N], f: impl Fn(T) -> U) -> [U; N] {
    let mut out = [U::default(); N];
    for i in 0..N {
        out[i] = f(v[i]);
    }
    out
}

/// # Safety
/// `from` is valid for reads of `N` values.
#[inline(always)]
unsafe fn read<T, const N: usize>(from: *const T) -> [T; N] {
    // SAFETY: by the contract of this function; an array has the layout of its elements.
    unsafe { from.cast::<[T; N]>().read_unaligned() }
}

/// # Safety
/// `to` is valid for writes of `N` values.
#[inline(always)]
unsafe fn write<T, const N: usize>(to: *mut T, values: [T; N]) {
    // SAFETY: by the contract of this function; an array has the layout of its elements.
    unsafe { to.cast::<[T; N]>().write_unaligned(values) }
}

/// The nearest bf16, ties to even; a NaN becomes a quiet one.
#[inline(always)]
fn to_bf16(v: f32) -> bf16 {
    let bits = v.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let quiet = bits >> 16 | 0x40;
    bf16::from_bits(if v.is_nan() { quiet } else { rounded } as u16)
}

#[inline(always)]
fn halves<const N: usize, T: Copy>(mut v: [T; N], f: impl Fn(T, T) -> T) -> T {
    let mut width = N / 2;
    while width > 0 {
        for i in 0..width {
            v[i] = f(v[i], v[i + width]);
        }
        width /= 2;
    }
    v[0]
}

impl<const N: usize> Simd for Portable<N> {
    const LANES: usize = N;
    const WIDE_DOTS: bool = N == 16;
    const SIGNED_OFFSET_BITS: Option<i32> = if N == 16 { Some(7) } else { None };
    type F32 = [f32; N];
    type I32 = [i32; N];
    type Bytes = [[u8; 4]; N];

    #[inline(always)]
    fn splat(self, value: f32) -> [f32; N] {
        [value; N]
    }
    #[inline(always)]
    unsafe fn load_ptr(self, from: *const f32) -> [f32; N] {
        // SAFETY: the caller's contract; so in every pointer form below.
        unsafe { read(from) }
    }
    #[inline(always)]
    unsafe fn store_ptr(self, to: *mut f32, v: [f32; N]) {
        // SAFETY: the caller's contract.
        unsafe { write(to, v) }
    }
    #[inline(always)]
    unsafe fn load_bf16_ptr(self, from: *const bf16) -> [f32; N] {
        // SAFETY: the caller's contract.
        map(unsafe { read(from) }, bf16::to_f32)
    }
    #[inline(always)]
    unsafe fn store_bf16_ptr(self, to: *mut bf16, v: [f32; N]) {
        // SAFETY: the caller's contract.
        unsafe { write(to, map(v, to_bf16)) }
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs_ptr(self, from: *const bf16) -> ([f32; N], [f32; N]) {
        // SAFETY: the caller's contract.
        let pairs: [[bf16; 2]; N] = unsafe { read(from.cast()) };
        (map(pairs, |p| p[0].to_f32()), map(pairs, |p| p[1].to_f32()))
    }
    #[inline(always)]
    unsafe fn load_f16_ptr(self, from: *const f16) -> [f32; N] {
        // SAFETY: the caller's contract.
        map(unsafe { read(from) }, f16::to_f32)
    }

    #[inline(always)]
    fn add(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn max(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn abs(self, v: [f32; N]) -> [f32; N] {
        map(v, f32::abs)
    }
    #[inline(always)]
    fn fma(self, a: [f32; N], b: [f32; N], c: [f32; N]) -> [f32; N] {
        let mut out = c;
        for i in 0..N {
            // Without the instruction `mul_add` is a call of a hundred nanoseconds.
            out[i] = if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
                a[i].mul_add(b[i], c[i])
            } else {
                a[i] * b[i] + c[i]
            };
        }
        out
    }
    #[inline(always)]
    fn round(self, v: [f32; N]) -> [f32; N] {
        map(v, |v| (v + ROUNDER) - ROUNDER)
    }
    #[inline(always)]
    fn scale_by_power(self, v: [f32; N], n: [f32; N]) -> [f32; N] {
        zip(v, n, |v, n| f32::from_bits(v.to_bits().wrapping_add((n as i32 as u32) << 23)))
    }
    #[inline(always)]
    fn zero_below(self, bound: [f32; N], x: [f32; N], v: [f32; N]) -> [f32; N] {
        let below = zip(x, bound, |x, b| if x < b { 1.0 } else { 0.0 });
        zip(below, v, |below, v| if below == 1.0 { 0.0 } else { v })
    }
    #[inline(always)]
    fn sum(self, v: [f32; N]) -> f32 {
        halves(v, |a, b| a + b)
    }
    #[inline(always)]
    fn max_lane(self, v: [f32; N]) -> f32 {
        halves(v, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn splat_i32(self, value: i32) -> [i32; N] {
        [value; N]
    }
    #[inline(always)]
    fn add_i32(self, a: [i32; N], b: [i32; N]) -> [i32; N] {
        let mut out = a;
        for i in 0..N {
            out[i] = a[i].wrapping_add(b[i]);
        }
        out
    }
    #[inline(always)]
    fn shift_left_i32(self, v: [i32; N], bits: i32) -> [i32; N] {
        map(v, |v| v << bits)
    }
    #[inline(always)]
    unsafe fn load_i32_ptr(self, from: *const i32) -> [i32; N] {
        // SAFETY: the caller's contract.
        unsafe { read(from) }
    }
    #[inline(always)]
    unsafe fn store_i32_ptr(self, to: *mut i32, v: [i32; N]) {
        // SAFETY: the caller's contract.
        unsafe { write(to, v) }
    }
    #[inline(always)]
    fn sum_i32(self, v: [i32; N]) -> i32 {
        halves(v, i32::wrapping_add)
    }
    #[inline(always)]
    fn to_f32(self, v: [i32; N]) -> [f32; N] {
        map(v, |v| v as f32)
    }
    #[inline(always)]
    fn round_to_i32(self, v: [f32; N]) -> [i32; N] {
        map(v, |v| ((v + ROUNDER) - ROUNDER) as i32)
    }
    #[inline(always)]
    unsafe fn store_i8_ptr(self, to: *mut i8, v: [i32; N]) {
        // SAFETY: the caller's contract.
        unsafe { write(to, map(v, |v| v as i8)) }
    }

    #[inline(always)]
    fn prefetch(self, _: *const u8) {}
    #[inline(always)]
    unsafe fn load_bytes_ptr(self, from: *const u8) -> [[u8; 4]; N] {
        // SAFETY: the caller's contract.
        unsafe { read(from.cast()) }
    }
    #[inline(always)]
    fn splat_u8(self, value: u8) -> [[u8; 4]; N] {
        [[value; 4]; N]
    }
    #[inline(always)]
    fn and(self, a: [[u8; 4]; N], b: [[u8; 4]; N]) -> [[u8; 4]; N] {
        let mut out = a;
        for i in 0..N {
            out[i] = (u32::from_le_bytes(a[i]) & u32::from_le_bytes(b[i])).to_le_bytes();
        }
        out
    }
    #[inline(always)]
    fn or(self, a: [[u8; 4]; N], b: [[u8; 4]; N]) -> [[u8; 4]; N] {
        let mut out = a;
        for i in 0..N {
            out[i] = (u32::from_le_bytes(a[i]) | u32::from_le_bytes(b[i])).to_le_bytes();
        }
        out
    }
    #[inline(always)]
    fn shift_right<const BITS: i32>(self, v: [[u8; 4]; N]) -> [[u8; 4]; N] {
        map(v, |[a, b, c, d]| {
            let low = (u16::from_le_bytes([a, b]) >> BITS).to_le_bytes();
            let high = (u16::from_le_bytes([c, d]) >> BITS).to_le_bytes();
            [low[0], low[1], high[0], high[1]]
        })
    }
    #[inline(always)]
    fn shift_left<const BITS: i32>(self, v: [[u8; 4]; N]) -> [[u8; 4]; N] {
        map(v, |[a, b, c, d]| {
            let low = (u16::from_le_bytes([a, b]) << BITS).to_le_bytes();
            let high = (u16::from_le_bytes([c, d]) << BITS).to_le_bytes();
            [low[0], low[1], high[0], high[1]]
        })
    }

    #[inline(always)]
    unsafe fn dot<const Q: usize, const R: usize>(
        self,
        mut acc: [[i32; N]; R],
        w: [[[u8; 4]; N]; Q],
        x: [*const i8; R],
    ) -> [[i32; N]; R] {
        for (acc, x) in acc.iter_mut().zip(x) {
            for (q, w) in w.iter().enumerate() {
                // SAFETY: the caller's contract: `4 Q` bytes.
                let x: [i8; 4] = unsafe { read(x.add(4 * q)) };
                for lane in 0..N {
                    for j in 0..4 {
                        acc[lane] += i32::from(w[lane][j]) * i32::from(x[j]);
                    }
                }
            }
        }
        acc
    }
    #[inline(always)]
    fn signed_weights(self, w: [[u8; 4]; N]) -> [[u8; 4]; N] {
        if N == 16 { map(w, |w| map(w, |b| b ^ 0x80)) } else { w }
    }
    #[inline(always)]
    unsafe fn dot_signed<const Q: usize, const R: usize>(
        self,
        mut acc: [[i32; N]; R],
        w: [[[u8; 4]; N]; Q],
        x: [*const i8; R],
    ) -> [[i32; N]; R] {
        if N == 16 {
            // SAFETY: the caller's contract.
            return unsafe { self.dot(acc, w, x) };
        }
        for (acc, x) in acc.iter_mut().zip(x) {
            for (q, w) in w.iter().enumerate() {
                // SAFETY: the caller's contract: `4 Q` bytes.
                let x: [i8; 4] = unsafe { read(x.add(4 * q)) };
                for lane in 0..N {
                    for j in 0..4 {
                        acc[lane] += i32::from(w[lane][j] as i8) * i32::from(x[j]);
                    }
                }
            }
        }
        acc
    }
    #[inline(always)]
    unsafe fn load_scales_ptr(self, from: *const i8) -> [i32; N] {
        // SAFETY: the caller's contract.
        map(unsafe { read::<i8, N>(from) }, i32::from)
    }
    #[inline(always)]
    unsafe fn dot_scaled<const Q: usize, const R: usize>(
        self,
        mut acc: [[i32; N]; R],
        w: [[[u8; 4]; N]; Q],
        x: [*const i8; R],
        scales: [i32; N],
    ) -> [[i32; N]; R] {
        // SAFETY: the caller's contract.
        let dots = unsafe { self.dot([[0; N]; R], w, x) };
        for (acc, dots) in acc.iter_mut().zip(dots) {
            for lane in 0..N {
                acc[lane] += dots[lane] * scales[lane];
            }
        }
        acc
    }
    #[inline(always)]
    unsafe fn load_pairs_ptr(self, first: *const i8, second: *const i8) -> [i32; N] {
        // SAFETY: the caller's contract.
        let (a, b): ([i8; N], [i8; N]) = unsafe { (read(first), read(second)) };
        let mut out = [0; N];
        for lane in 0..N {
            // The second in the upper half, the first, as 16 bits, in the lower one.
            out[lane] = i32::from(b[lane]) << 16 | i32::from(i16::from(a[lane]) as u16);
        }
        out
    }
    #[inline(always)]
    unsafe fn dot_pairs(self, acc: [i32; N], pairs: [i32; N], x: *const i16) -> [i32; N] {
        // SAFETY: the caller's contract.
        let [a, b]: [i16; 2] = unsafe { read(x) };
        let mut out = acc;
        for lane in 0..N {
            let (first, second) = (i32::from(pairs[lane] as i16), pairs[lane] >> 16);
            out[lane] += first * i32::from(a) + second * i32::from(b);
        }
        out
    }
}
