//! Shifts, three-input logic, byte permutes, bit fields and small dot products.

use super::both_ways;
use super::lanes::{Lane, long2, long3, map2};
use crate::exec::registers::{LANES, Registers};
use crate::ptx::ir::{IntType, Operand, PrmtMode};

both_ways! {
    pub(crate) fn shl(r: &mut Registers, mask: u32, ty: IntType, dst: u32, a: Operand,
        b: Operand) = shl_lanes;
    pub(crate) fn shr(r: &mut Registers, mask: u32, ty: IntType, dst: u32, a: Operand,
        b: Operand) = shr_lanes;
    pub(crate) fn shf(r: &mut Registers, mask: u32, left: bool, wrap: bool, dst: u32,
        abc: [Operand; 3]) = shf_lanes;
    pub(crate) fn lop3(r: &mut Registers, mask: u32, lut: u8, dst: u32,
        abc: [Operand; 3]) = lop3_lanes;
    pub(crate) fn prmt(r: &mut Registers, mask: u32, mode: PrmtMode, dst: u32,
        abc: [Operand; 3]) = prmt_lanes;
    pub(crate) fn bfe(r: &mut Registers, mask: u32, ty: IntType, dst: u32,
        abc: [Operand; 3]) = bfe_lanes;
    pub(crate) fn bfi(r: &mut Registers, mask: u32, ty: IntType, dst: u32,
        abcd: [Operand; 4]) = bfi_lanes;
    pub(crate) fn dp4a(r: &mut Registers, mask: u32, signed: [bool; 2], dst: u32,
        abc: [Operand; 3]) = dp4a_lanes;
}

#[inline(always)]
fn shl_lanes(r: &mut Registers, mask: u32, ty: IntType, dst: u32, a: Operand, b: Operand) {
    match ty {
        IntType::U16 | IntType::S16 => {
            map2(r, mask, dst, a, b, |a: u16, b: u32| if b < 16 { a << b } else { 0 })
        }
        IntType::U64 | IntType::S64 => {
            map2(r, mask, dst, a, b, |a: u64, b: u32| if b < 64 { a << b } else { 0 })
        }
        _ => map2(r, mask, dst, a, b, |a: u32, b: u32| if b < 32 { a << b } else { 0 }),
    }
}

#[inline(always)]
fn shr_lanes(r: &mut Registers, mask: u32, ty: IntType, dst: u32, a: Operand, b: Operand) {
    match ty {
        IntType::U16 => {
            map2(r, mask, dst, a, b, |a: u16, b: u32| if b < 16 { a >> b } else { 0 });
        }
        IntType::S16 => map2(r, mask, dst, a, b, |a: i16, b: u32| a >> b.min(15)),
        IntType::U64 => {
            map2(r, mask, dst, a, b, |a: u64, b: u32| if b < 64 { a >> b } else { 0 });
        }
        IntType::S64 => map2(r, mask, dst, a, b, |a: i64, b: u32| a >> b.min(63)),
        IntType::S32 => map2(r, mask, dst, a, b, |a: i32, b: u32| a >> b.min(31)),
        _ => map2(r, mask, dst, a, b, |a: u32, b: u32| if b < 32 { a >> b } else { 0 }),
    }
}

#[inline(always)]
fn shf_lanes(r: &mut Registers, mask: u32, left: bool, wrap: bool, dst: u32, abc: [Operand; 3]) {
    let amount = |c: u32| if wrap { c & 31 } else { c.min(32) };
    if left {
        long3(r, mask, dst, abc, |a: u32, b: u32, c: u32| {
            let both = u64::from(b) << 32 | u64::from(a);
            ((both << amount(c)) >> 32) as u32
        });
    } else {
        long3(r, mask, dst, abc, |a: u32, b: u32, c: u32| {
            let both = u64::from(b) << 32 | u64::from(a);
            (both >> amount(c)) as u32
        });
    }
}

#[inline(always)]
fn lop3_lanes(r: &mut Registers, mask: u32, lut: u8, dst: u32, abc: [Operand; 3]) {
    // Bit `4a + 2b + c` of the table, as all ones or none.
    let bit = |index: u32| 0u32.wrapping_sub(u32::from(lut) >> index & 1);
    let t: [u32; 8] = std::array::from_fn(|index| bit(index as u32));
    let pick = |which: u32, one: u32, zero: u32| zero ^ (which & (one ^ zero));
    long3(r, mask, dst, abc, |a: u32, b: u32, c: u32| {
        let high = pick(b, pick(c, t[7], t[6]), pick(c, t[5], t[4]));
        let low = pick(b, pick(c, t[3], t[2]), pick(c, t[1], t[0]));
        pick(a, high, low)
    });
}

#[inline(always)]
fn prmt_lanes(r: &mut Registers, mask: u32, mode: PrmtMode, dst: u32, abc: [Operand; 3]) {
    // Four selectors of four bits; the top one of each spreads the byte's sign.
    let selectors = |c: u32| -> u32 {
        let c = c & 3;
        match mode {
            PrmtMode::Index => c,
            PrmtMode::F4e => 0x3210 + 0x1111 * c,
            PrmtMode::B4e => {
                let at = |back: u32| (c + 8 - back) & 7;
                at(0) | at(1) << 4 | at(2) << 8 | at(3) << 12
            }
            PrmtMode::Rc8 => 0x1111 * c,
            PrmtMode::Ecl => {
                let at = |byte: u32| byte.max(c);
                at(0) | at(1) << 4 | at(2) << 8 | at(3) << 12
            }
            PrmtMode::Ecr => {
                let at = |byte: u32| byte.min(c);
                at(0) | at(1) << 4 | at(2) << 8 | at(3) << 12
            }
            PrmtMode::Rc16 => 0x1010 + 0x2222 * (c & 1),
        }
    };
    let byte = |both: u64, selector: u32| -> u32 {
        let value = (both >> (8 * (selector & 7))) as u32 & 0xFF;
        let sign = 0u32.wrapping_sub(value >> 7) & 0xFF;
        if selector & 8 == 0 { value } else { sign }
    };
    let permute = |a: u32, b: u32, s: u32| {
        let both = u64::from(b) << 32 | u64::from(a);
        byte(both, s)
            | byte(both, s >> 4) << 8
            | byte(both, s >> 8) << 16
            | byte(both, s >> 12) << 24
    };
    if mode == PrmtMode::Index {
        long3(r, mask, dst, abc, permute);
    } else {
        long3(r, mask, dst, abc, |a, b, c| permute(a, b, selectors(c)));
    }
}

/// The field of `length` bits from `position`, extended with zeros or the field's sign.
#[inline(always)]
fn extract(a: u64, position: u32, length: u32, width: u32, signed: bool) -> u64 {
    let (position, length) = (position & 0xFF, length & 0xFF);
    if length == 0 {
        return 0;
    }
    let top = (position + length - 1).min(width - 1);
    let fill = if signed && a >> top & 1 != 0 { u64::MAX } else { 0 };
    let field = if position < 64 { a >> position } else { 0 };
    // Bits of the source that the field really has.
    let taken = if position < width { length.min(width - position) } else { 0 };
    let keep = if taken >= 64 { u64::MAX } else { (1 << taken) - 1 };
    (field & keep) | (fill & !keep)
}

#[inline(always)]
fn bfe_lanes(r: &mut Registers, mask: u32, ty: IntType, dst: u32, abc: [Operand; 3]) {
    let signed = matches!(ty, IntType::S32 | IntType::S64);
    if matches!(ty, IntType::U64 | IntType::S64) {
        long3(r, mask, dst, abc, |a: u64, b: u32, c: u32| extract(a, b, c, 64, signed));
    } else {
        long3(r, mask, dst, abc, |a: u32, b: u32, c: u32| {
            extract(u64::from(a), b, c, 32, signed) as u32
        });
    }
}

#[inline(always)]
fn bfi_lanes(r: &mut Registers, mask: u32, ty: IntType, dst: u32, [a, b, c, d]: [Operand; 4]) {
    let (position, length) = (u32::read(r, c), u32::read(r, d));
    let insert = |a: u64, b: u64, position: u32, length: u32| {
        let (position, length) = (position & 0xFF, length & 0xFF);
        let ones = if length >= 64 { u64::MAX } else { (1 << length) - 1 };
        let field = if position < 64 { ones << position } else { 0 };
        let value = if position < 64 { a << position } else { 0 };
        (value & field) | (b & !field)
    };
    if ty == IntType::U64 {
        let (a, b) = (u64::read(r, a), u64::read(r, b));
        let mut out = [0u64; LANES];
        for i in 0..LANES {
            out[i] = insert(a[i], b[i], position[i], length[i]);
        }
        r.write_longs(dst, mask, &out);
    } else {
        let (a, b) = (u32::read(r, a), u32::read(r, b));
        let mut out = [0u32; LANES];
        for i in 0..LANES {
            out[i] = insert(a[i].into(), b[i].into(), position[i], length[i]) as u32;
        }
        r.write_words(dst, mask, &out);
    }
}

/// A mask of `b` bits from bit `a`.
pub(super) fn bmsk(r: &mut Registers, mask: u32, wrap: bool, dst: u32, a: Operand, b: Operand) {
    let bound = |value: u32| if wrap { value & 31 } else { value.min(32) };
    long2(r, mask, dst, a, b, |a: u32, b: u32| {
        let ones = (1u64 << bound(b)) - 1;
        (ones << bound(a)) as u32
    });
}

/// Extends the low `b` bits of `a` with zeros or their sign.
pub(super) fn szext(
    r: &mut Registers,
    mask: u32,
    wrap: bool,
    signed: bool,
    dst: u32,
    a: Operand,
    b: Operand,
) {
    long2(r, mask, dst, a, b, |a: u32, b: u32| {
        let length = if wrap { b & 31 } else { b.min(32) };
        extract(u64::from(a), 0, length, 32, signed) as u32
    });
}

/// Byte `index` of a word as the type says.
#[inline(always)]
fn byte_of(word: u32, index: u32, signed: bool) -> i32 {
    let byte = (word >> (8 * index)) as u8;
    if signed { i32::from(byte as i8) } else { i32::from(byte) }
}

#[inline(always)]
fn dp4a_lanes(r: &mut Registers, mask: u32, signed: [bool; 2], dst: u32, abc: [Operand; 3]) {
    match signed {
        [false, false] => dp4a_of::<false, false>(r, mask, dst, abc),
        [false, true] => dp4a_of::<false, true>(r, mask, dst, abc),
        [true, false] => dp4a_of::<true, false>(r, mask, dst, abc),
        [true, true] => dp4a_of::<true, true>(r, mask, dst, abc),
    }
}

#[inline(always)]
fn dp4a_of<const A: bool, const B: bool>(
    r: &mut Registers,
    mask: u32,
    dst: u32,
    abc: [Operand; 3],
) {
    long3(r, mask, dst, abc, |a: i32, b: i32, c: i32| {
        let a_byte = |up: u32| if A { a << up >> 24 } else { ((a << up) as u32 >> 24) as i32 };
        let b_byte = |up: u32| if B { b << up >> 24 } else { ((b << up) as u32 >> 24) as i32 };
        let (low, high) =
            (a_byte(24) * b_byte(24) + a_byte(16) * b_byte(16), a_byte(8) * b_byte(8));
        c.wrapping_add(low).wrapping_add(high).wrapping_add(a_byte(0) * b_byte(0))
    });
}

/// Two 16-bit values of `a` times two bytes of `b`.
pub(super) fn dp2a(
    r: &mut Registers,
    mask: u32,
    signed: [bool; 2],
    high: bool,
    dst: u32,
    abc: [Operand; 3],
) {
    long3(r, mask, dst, abc, |a: u32, b: u32, c: u32| {
        (0..2).fold(c, |sum, i| {
            let half = (a >> (16 * i)) as u16;
            let half = if signed[0] { i32::from(half as i16) } else { i32::from(half) };
            let byte = byte_of(b, i + 2 * u32::from(high), signed[1]);
            sum.wrapping_add(half.wrapping_mul(byte) as u32)
        })
    });
}
