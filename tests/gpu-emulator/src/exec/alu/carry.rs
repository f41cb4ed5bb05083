//! Extended-precision arithmetic through the carry flag, one bit a lane. Subtraction keeps a
//! borrow in it.

use super::both_ways;
use super::lanes::Lane;
use crate::exec::registers::{LANES, Registers};
use crate::ptx::ir::{CarryOp, IntType, Operand};

both_ways! {
    pub(crate) fn execute(r: &mut Registers, mask: u32, op: CarryOp, ty: IntType,
        flags: [bool; 2], dst: u32, abc: [Operand; 3]) = execute_lanes;
}

/// `flags` are whether the flag is read and whether it is written.
#[inline(always)]
fn execute_lanes(
    r: &mut Registers,
    mask: u32,
    op: CarryOp,
    ty: IntType,
    [carry_in, carry_out]: [bool; 2],
    dst: u32,
    abc: [Operand; 3],
) {
    let before = if carry_in { r.carry } else { 0 };
    let carried = match (ty, op) {
        (IntType::U64 | IntType::S64, CarryOp::Add) => {
            of::<u64>(r, mask, before, dst, abc, |a, b, _, f| add(a, b, f.into()))
        }
        (IntType::U64 | IntType::S64, CarryOp::Sub) => {
            of::<u64>(r, mask, before, dst, abc, |a, b, _, f| subtract(a, b, f.into()))
        }
        (IntType::U64 | IntType::S64, _) => of::<u64>(r, mask, before, dst, abc, |a, b, c, f| {
            let (low, high) = product(a, b, ty == IntType::S64);
            add(if op == CarryOp::MadLo { low } else { high }, c, f.into())
        }),
        (_, CarryOp::Add) => of::<u32>(r, mask, before, dst, abc, |a, b, _, f| {
            let sum = u64::from(a) + u64::from(b) + u64::from(f);
            (sum as u32, sum >> 32 != 0)
        }),
        (_, CarryOp::Sub) => of::<u32>(r, mask, before, dst, abc, |a, b, _, f| {
            let difference = i64::from(a) - i64::from(b) - i64::from(f);
            (difference as u32, difference < 0)
        }),
        _ => of::<u32>(r, mask, before, dst, abc, |a, b, c, f| {
            let signed = i64::from(a as i32) * i64::from(b as i32);
            let product =
                if ty == IntType::S32 { signed as u64 } else { u64::from(a) * u64::from(b) };
            let part = if op == CarryOp::MadLo { product as u32 } else { (product >> 32) as u32 };
            let sum = u64::from(part) + u64::from(c) + u64::from(f);
            (sum as u32, sum >> 32 != 0)
        }),
    };
    if carry_out {
        r.carry = (r.carry & !mask) | (carried & mask);
    }
}

/// Writes `f(a, b, c, flag)` and gives the new flags.
#[inline(always)]
fn of<T: Lane>(
    r: &mut Registers,
    mask: u32,
    before: u32,
    dst: u32,
    [a, b, c]: [Operand; 3],
    f: impl Fn(T, T, T, u32) -> (T, bool),
) -> u32 {
    let (a, b, c) = (T::read(r, a), T::read(r, b), T::read(r, c));
    let (mut out, mut bits) = ([T::default(); LANES], [0u32; LANES]);
    for i in 0..LANES {
        let (value, carried) = f(a[i], b[i], c[i], before >> i & 1);
        out[i] = value;
        bits[i] = if carried { 1 << i } else { 0 };
    }
    T::write(r, dst, mask, &out);
    bits.iter().fold(0, |all, bit| all | bit)
}

fn add(a: u64, b: u64, flag: u64) -> (u64, bool) {
    let sum = u128::from(a) + u128::from(b) + u128::from(flag);
    (sum as u64, sum >> 64 != 0)
}

fn subtract(a: u64, b: u64, flag: u64) -> (u64, bool) {
    let difference = i128::from(a) - i128::from(b) - i128::from(flag);
    (difference as u64, difference < 0)
}

/// Low and high part of a product.
fn product(a: u64, b: u64, signed: bool) -> (u64, u64) {
    let high = if signed {
        ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64
    } else {
        ((u128::from(a) * u128::from(b)) >> 64) as u64
    };
    (a.wrapping_mul(b), high)
}
