//! `mma.sync`: one warp multiplies two small matrices and adds a third.
//!
//! Numerics, for floating-point types: products are exact, they are summed in f64 in ascending
//! order of k, C is added last, and the sum is rounded once, to nearest even, to D's type. Hardware
//! differs from that and from generation to generation; this is closer to the true sum than any.
//! Every element is computed alike wherever in the tile it stands. A NaN result is 0x7fffffff.
//! Layouts are those of the PTX manual; lane `l` is group `g = l / 4`, thread `t = l % 4` of it.

use super::fault::{Outcome, Wrong};
use super::registers::{Plane, Registers};
use super::step::Step;
use crate::ptx::ir::{Mma, Type};
use half::f16;

/// Columns of B and D; A and D have twice as many rows.
const COLUMNS: usize = 8;
/// The most columns of A.
const DEPTH: usize = 32;

/// What is multiplied and summed.
trait Number: Copy + Default {
    /// `self * b + sum`; the product is exact, so fusing changes nothing but speed.
    fn times<const FUSED: bool>(self, b: Self, sum: Self) -> Self;
}

impl Number for f64 {
    #[inline(always)]
    fn times<const FUSED: bool>(self, b: Self, sum: Self) -> Self {
        if FUSED { self.mul_add(b, sum) } else { self * b + sum }
    }
}

impl Number for i32 {
    #[inline(always)]
    fn times<const FUSED: bool>(self, b: Self, sum: Self) -> Self {
        self * b + sum
    }
}

/// How a register of A or B is read.
trait Format: Copy {
    type Number: Number;
    /// Element `e` of a register.
    fn get(self, word: u32, e: usize) -> Self::Number;
}

#[derive(Clone, Copy)]
struct Bf16;
#[derive(Clone, Copy)]
struct Half;
#[derive(Clone, Copy)]
struct Tf32;
/// Eight-bit floats: e4m3, or else e5m2.
#[derive(Clone, Copy)]
struct Eight {
    e4m3: bool,
}
/// Bytes: signed, or not.
#[derive(Clone, Copy)]
struct Byte {
    signed: bool,
}

impl Format for Bf16 {
    type Number = f64;
    #[inline(always)]
    fn get(self, word: u32, e: usize) -> f64 {
        f32::from_bits(if e == 0 { word << 16 } else { word & 0xffff_0000 }).into()
    }
}

impl Format for Half {
    type Number = f64;
    #[inline(always)]
    fn get(self, word: u32, e: usize) -> f64 {
        half_to_f32(word >> (16 * e) & 0xffff).into()
    }
}

impl Format for Tf32 {
    type Number = f64;
    /// The low 13 bits of an operand are not read.
    #[inline(always)]
    fn get(self, word: u32, _: usize) -> f64 {
        f32::from_bits(word & 0xffff_e000).into()
    }
}

impl Format for Eight {
    type Number = f64;
    #[inline(always)]
    fn get(self, word: u32, e: usize) -> f64 {
        let bits = word >> (8 * e) & 0xff;
        (if self.e4m3 { e4m3_to_f32(bits) } else { half_to_f32(bits << 8) }).into()
    }
}

impl Format for Byte {
    type Number = i32;
    #[inline(always)]
    fn get(self, word: u32, e: usize) -> i32 {
        let byte = (word >> (8 * e)) as u8;
        if self.signed { i32::from(byte as i8) } else { i32::from(byte) }
    }
}

/// A and B as numbers, `W` elements to a register.
struct Tiles<T, const W: usize> {
    /// As the registers hold them: `[register][element][lane]`.
    a: [[[T; 32]; W]; 4],
    /// `[row][column]`.
    b: [[T; COLUMNS]; DEPTH],
}

impl<T: Number, const W: usize> Tiles<T, W> {
    #[inline(always)]
    fn new<L, R>(a: &[Plane], b: &[Plane], left: L, right: R) -> Self
    where
        L: Format<Number = T>,
        R: Format<Number = T>,
    {
        let mut tiles = Self { a: [[[T::default(); 32]; W]; 4], b: [[T::default(); 8]; DEPTH] };
        for (plane, to) in a.iter().zip(&mut tiles.a) {
            for (e, to) in to.iter_mut().enumerate() {
                for (word, to) in plane.iter().zip(to) {
                    *to = left.get(*word, e);
                }
            }
        }
        for (plane, rows) in b.iter().zip(tiles.b.chunks_exact_mut(4 * W)) {
            for t in 0..4 {
                for e in 0..W {
                    for (column, to) in rows[t * W + e].iter_mut().enumerate() {
                        *to = right.get(plane[column * 4 + t], e);
                    }
                }
            }
        }
        tiles
    }

    /// The product, in ascending order of k, four rows at a time; `registers` are those of B.
    #[inline(always)]
    fn multiply<const FUSED: bool>(&self, registers: usize) -> Product<T> {
        let mut sums = [[T::default(); COLUMNS]; 16];
        for (block, sums) in sums.chunks_exact_mut(4).enumerate() {
            let (half, group) = (block / 2, block % 2 * 4);
            let mut part = [[T::default(); COLUMNS]; 4];
            for (r, rows) in self.b.chunks_exact(4 * W).enumerate().take(registers.min(2)) {
                for (t, rows) in rows.chunks_exact(W).enumerate() {
                    for (a, b) in self.a[r * 2 + half].iter().zip(rows) {
                        for (row, part) in part.iter_mut().enumerate() {
                            let a = a[(group + row) * 4 + t];
                            for (sum, b) in part.iter_mut().zip(b) {
                                *sum = a.times::<FUSED>(*b, *sum);
                            }
                        }
                    }
                }
            }
            sums.copy_from_slice(&part);
        }
        sums
    }
}

/// `A * B`, by rows.
type Product<T> = [[T; COLUMNS]; 16];

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn wide_product<L, R, const W: usize>(
    a: &[Plane],
    b: &[Plane],
    left: L,
    right: R,
) -> Product<L::Number>
where
    L: Format,
    R: Format<Number = L::Number>,
{
    Tiles::<L::Number, W>::new(a, b, left, right).multiply::<true>(b.len())
}

/// The product of registers of `W` elements, by code for the processor at hand.
fn product<L, R, const W: usize>(a: &[Plane], b: &[Plane], left: L, right: R) -> Product<L::Number>
where
    L: Format,
    R: Format<Number = L::Number>,
{
    #[cfg(target_arch = "x86_64")]
    if super::alu::is_wide() {
        // SAFETY: `is_wide` has found the features the function is compiled for.
        return unsafe { wide_product::<L, R, W>(a, b, left, right) };
    }
    Tiles::<L::Number, W>::new(a, b, left, right).multiply::<false>(b.len())
}

/// The float a 16-bit IEEE half says, by a multiplication that normalises subnormals.
#[inline(always)]
fn half_to_f32(bits: u32) -> f32 {
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits(0x7780_0000);
    let special = if bits & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(magnitude.to_bits() | special | (bits & 0x8000) << 16)
}

/// The float an 8-bit e4m3 says.
fn e4m3_to_f32(bits: u32) -> f32 {
    if bits & 0x7f == 0x7f {
        return f32::NAN;
    }
    let magnitude = f32::from_bits((bits & 0x7f) << 20) * f32::from_bits(0x7b80_0000);
    f32::from_bits(magnitude.to_bits() | (bits & 0x80) << 24)
}

/// Row and column of D's 32-bit register `r` in a lane.
#[inline(always)]
fn accumulator(r: usize, lane: usize) -> (usize, usize) {
    (lane / 4 + r / 2 * 8, lane % 4 * 2 + r % 2)
}

fn float_product(mma: &Mma, a: &[Plane], b: &[Plane], c: &[Plane]) -> [Plane; 4] {
    let [d_ty, a_ty, b_ty, c_ty] = mma.types;
    let eight = |ty: Type| Eight { e4m3: ty == Type::E4m3 };
    let mut sums = match a_ty {
        Type::Bf16 => product::<_, _, 2>(a, b, Bf16, Bf16),
        Type::F16 => product::<_, _, 2>(a, b, Half, Half),
        Type::Tf32 => product::<_, _, 1>(a, b, Tf32, Tf32),
        _ => product::<_, _, 4>(a, b, eight(a_ty), eight(b_ty)),
    };
    add(&mut sums, c, c_ty);
    round(&sums, d_ty)
}

/// Adds C.
fn add(sums: &mut [[f64; COLUMNS]; 16], c: &[Plane], ty: Type) {
    for (r, plane) in c.iter().enumerate() {
        for (lane, word) in plane.iter().enumerate() {
            if ty == Type::F16 {
                let (row, column) = accumulator(r * 2, lane);
                sums[row][column] += f64::from(half_to_f32(word & 0xffff));
                sums[row][column + 1] += f64::from(half_to_f32(word >> 16));
            } else {
                let (row, column) = accumulator(r, lane);
                sums[row][column] += f64::from(f32::from_bits(*word));
            }
        }
    }
}

/// Rounds to D's type and puts the elements where its registers have them.
fn round(sums: &[[f64; COLUMNS]; 16], ty: Type) -> [Plane; 4] {
    let half_bits = |sum: f64| {
        let bits = if sum.is_nan() { 0x7fff } else { f16::from_f64(sum).to_bits() };
        u32::from(bits)
    };
    let float_bits = |sum: f64| if sum.is_nan() { 0x7fff_ffff } else { (sum as f32).to_bits() };
    let mut planes = [[0; 32]; 4];
    for (r, plane) in planes.iter_mut().enumerate() {
        for (lane, word) in plane.iter_mut().enumerate() {
            if ty != Type::F16 {
                let (row, column) = accumulator(r, lane);
                *word = float_bits(sums[row][column]);
            } else if r < 2 {
                let (row, column) = accumulator(r * 2, lane);
                *word = half_bits(sums[row][column]) | half_bits(sums[row][column + 1]) << 16;
            }
        }
    }
    planes
}

/// Exact products of bytes, whose sums fit 32 bits; C is added in 64.
fn integer_product(mma: &Mma, a: &[Plane], b: &[Plane], c: &[Plane]) -> [Plane; 4] {
    let [_, a_ty, b_ty, _] = mma.types;
    let byte = |ty: Type| Byte { signed: ty == Type::S8 };
    let sums = product::<_, _, 4>(a, b, byte(a_ty), byte(b_ty));
    let mut planes = [[0; 32]; 4];
    for ((r, plane), c) in planes.iter_mut().enumerate().zip(c) {
        for ((lane, word), c) in plane.iter_mut().enumerate().zip(c) {
            let (row, column) = accumulator(r, lane);
            let sum = i64::from(sums[row][column]) + i64::from(*c as i32);
            let kept = sum.clamp(i32::MIN.into(), i32::MAX.into());
            *word = if mma.satfinite { kept } else { sum } as u32;
        }
    }
    planes
}

/// Elements of a 32-bit register of A, when the shape is one this file knows.
fn width(mma: &Mma) -> Option<usize> {
    let [d, a, b, c] = mma.types;
    let float_accumulator = d == Type::F32 && c == Type::F32;
    let width = match (a, b) {
        (Type::Bf16, Type::Bf16) if float_accumulator => 2,
        (Type::F16, Type::F16)
            if float_accumulator
                || (matches!(d, Type::F16 | Type::F32) && matches!(c, Type::F16 | Type::F32)) =>
        {
            2
        }
        (Type::Tf32, Type::Tf32) if float_accumulator => 1,
        (Type::E4m3 | Type::E5m2, Type::E4m3 | Type::E5m2) if float_accumulator => 4,
        (Type::S8 | Type::U8, Type::S8 | Type::U8) if d == Type::S32 && c == Type::S32 => 4,
        _ => return None,
    };
    let accumulators = |ty: Type| if ty == Type::F16 { 2 } else { 4 };
    let registers = mma.k as usize / (4 * width);
    let fits = (mma.m, mma.n) == (16, 8)
        && mma.k as usize == registers * 4 * width
        && (registers == 1 || registers == 2)
        && mma.a_row
        && !mma.b_row
        && mma.a.len() == 2 * registers
        && mma.b.len() == registers
        && mma.c.len() == accumulators(c)
        && mma.d.len() == accumulators(d);
    fits.then_some(width)
}

impl Step<'_, '_> {
    /// One `mma.sync` of a whole warp.
    pub(super) fn mma(&mut self, mma: &Mma) -> Outcome {
        if width(mma).is_none() {
            let Mma { m, n, k, types, .. } = mma;
            let detail = format!("mma.m{m}n{n}k{k} of {types:?}");
            return Err(Wrong::unsupported(detail));
        }
        execute(mma, self.registers());
        Ok(())
    }
}

/// Executes an mma whose shape is known.
fn execute(mma: &Mma, registers: &mut Registers) {
    let mut planes = [[0u32; 32]; 12];
    let (a, b) = (mma.a.len(), mma.b.len());
    let sources = mma.a.iter().chain(&mma.b).chain(&mma.c);
    for (plane, source) in planes.iter_mut().zip(sources) {
        *plane = registers.words(*source);
    }
    let (a, rest) = planes.split_at(a);
    let (b, rest) = rest.split_at(b);
    let c = &rest[..mma.c.len()];
    let result = if mma.types[0] == Type::S32 {
        integer_product(mma, a, b, c)
    } else {
        float_product(mma, a, b, c)
    };
    for (dst, plane) in mma.d.iter().zip(result) {
        registers.planes[*dst as usize] = plane;
    }
}

#[cfg(test)]
mod tests;
