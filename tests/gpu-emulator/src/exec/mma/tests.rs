//! Every supported shape against plain loops over matrices, with fragments cut and pasted by the
//! formulas of the PTX manual, written out per type and not shared with the code under test.

use super::*;
use crate::exec::random::Random;
use crate::ptx::ir::Operand;
use half::bf16;

/// `(row, column)` of element `i` of A's fragment in `lane`, from the manual's tables.
fn a_at(bits: usize, i: usize, lane: usize) -> (usize, usize) {
    let (group, thread) = (lane >> 2, lane % 4);
    match bits {
        // a0, a1: row g; a2, a3: row g + 8; a4...: columns + 8.
        16 => {
            let row = if i % 4 < 2 { group } else { group + 8 };
            let column = thread * 2 + (i & 1) + if i < 4 { 0 } else { 8 };
            (row, column)
        }
        // a0: row g; a1: row g + 8; a2, a3: columns + 4.
        32 => (group + if i % 2 == 1 { 8 } else { 0 }, thread + if i < 2 { 0 } else { 4 }),
        _ => {
            let row = if (i / 4).is_multiple_of(2) { group } else { group + 8 };
            (row, thread * 4 + (i & 3) + if i < 8 { 0 } else { 16 })
        }
    }
}

fn b_at(bits: usize, i: usize, lane: usize) -> (usize, usize) {
    let (group, thread) = (lane >> 2, lane % 4);
    let row = match bits {
        16 => thread * 2 + (i & 1) + if i < 2 { 0 } else { 8 },
        32 => thread + if i < 1 { 0 } else { 4 },
        _ => thread * 4 + (i & 3) + if i < 4 { 0 } else { 16 },
    };
    (row, group)
}

fn c_at(i: usize, lane: usize) -> (usize, usize) {
    (if i < 2 { lane >> 2 } else { (lane >> 2) + 8 }, (lane % 4) * 2 + (i & 1))
}

struct Case {
    a: Type,
    b: Type,
    c: Type,
    d: Type,
    k: usize,
}

fn random_bits(random: &mut Random, ty: Type) -> u32 {
    let bits = random.next() as u32;
    match ty {
        Type::F16 => f16::from_f32((bits as i32 >> 20) as f32 / 256.0).to_bits().into(),
        Type::Bf16 => bf16::from_f32((bits as i32 >> 20) as f32 / 256.0).to_bits().into(),
        Type::Tf32 | Type::F32 => ((bits as i32 >> 12) as f32 / 4096.0).to_bits(),
        Type::E4m3 => {
            if bits & 0x7f == 0x7f {
                0
            } else {
                bits & 0xff
            }
        }
        Type::E5m2 => bits & 0xf3,
        Type::S8 | Type::U8 => bits & 0xff,
        _ => bits,
    }
}

fn value(ty: Type, bits: u32) -> f64 {
    match ty {
        Type::F16 => f16::from_bits(bits as u16).to_f64(),
        Type::Bf16 => bf16::from_bits(bits as u16).to_f64(),
        Type::Tf32 => f64::from(f32::from_bits(bits & !0x1fff)),
        Type::E5m2 => f16::from_bits((bits << 8) as u16).to_f64(),
        Type::E4m3 => {
            let (exponent, fraction) = ((bits >> 3 & 15) as i32, f64::from(bits & 7));
            let magnitude = if exponent == 0 {
                fraction / 8.0 * 2f64.powi(-6)
            } else {
                (1.0 + fraction / 8.0) * 2f64.powi(exponent - 7)
            };
            if bits & 0x80 != 0 { -magnitude } else { magnitude }
        }
        Type::S8 => f64::from(bits as u8 as i8),
        Type::U8 => f64::from(bits as u8),
        Type::S32 => f64::from(bits as i32),
        _ => f64::from(f32::from_bits(bits)),
    }
}

/// Cuts a matrix of element bits into fragments of packed registers.
fn cut(
    registers: usize,
    bits: usize,
    at: fn(usize, usize, usize) -> (usize, usize),
    matrix: &[Vec<u32>],
) -> Vec<Plane> {
    let each = 32 / bits;
    (0..registers)
        .map(|r| {
            std::array::from_fn(|lane| {
                (0..each).fold(0, |word, e| {
                    let (row, column) = at(bits, r * each + e, lane);
                    word | matrix[row][column] << (e * bits)
                })
            })
        })
        .collect()
}

fn check(case: &Case, seed: u64) {
    let Case { a, b, c, d, k } = *case;
    let mut random = Random::new(seed, k as u64);
    let mut matrix = |rows: usize, columns: usize, ty| -> Vec<Vec<u32>> {
        (0..rows).map(|_| (0..columns).map(|_| random_bits(&mut random, ty)).collect()).collect()
    };
    let (left, right, add) = (matrix(16, k, a), matrix(k, 8, b), matrix(16, 8, c));
    let bits = a.bits() as usize;
    let registers = k * bits / 128;
    let half_c = c == Type::F16;
    let c_cut = |_: usize, i: usize, lane: usize| c_at(i, lane);
    let mut planes = cut(2 * registers, bits, a_at, &left);
    planes.extend(cut(registers, bits, b_at, &right));
    planes.extend(cut(if half_c { 2 } else { 4 }, if half_c { 16 } else { 32 }, c_cut, &add));
    let sources = planes.len();
    let half_d = d == Type::F16;
    planes.resize(sources + if half_d { 2 } else { 4 }, [0; 32]);
    let operands = |range: std::ops::Range<usize>| -> Vec<Operand> {
        range.map(|p| Operand::Plane(p as u32)).collect()
    };
    let mma = Mma {
        m: 16,
        n: 8,
        k: k as u32,
        a_row: true,
        b_row: false,
        types: [d, a, b, c],
        satfinite: false,
        d: (sources as u32..planes.len() as u32).collect(),
        a: operands(0..2 * registers),
        b: operands(2 * registers..3 * registers),
        c: operands(3 * registers..sources),
    };
    assert_eq!(width(&mma), Some(32 / bits), "m16n8k{k} {a:?} is known");
    let mut file = Registers::new(planes.len() as u32, 0);
    file.planes = planes;
    execute(&mma, &mut file);
    for lane in 0..32 {
        for i in 0..4 {
            let (row, column) = c_at(i, lane);
            let dot: f64 = (0..k)
                .map(|k| value(a, left[row][k]) * value(b, right[k][column]))
                .fold(0.0, |sum, product| sum + product);
            let sum = dot + value(c, add[row][column]);
            let got = if half_d {
                file.planes[sources + i / 2][lane] >> (i % 2 * 16) & 0xffff
            } else {
                file.planes[sources + i][lane]
            };
            let expected = match d {
                Type::F16 => u32::from(f16::from_f64(sum).to_bits()),
                Type::S32 => (dot as i64 + i64::from(add[row][column] as i32)) as u32,
                _ => (sum as f32).to_bits(),
            };
            assert_eq!(got, expected, "m16n8k{k} {a:?} row {row} column {column}");
        }
    }
}

#[test]
fn every_supported_shape_multiplies_as_plain_loops_do() {
    use Type::{Bf16, E4m3, E5m2, F16, F32, S8, S32, Tf32, U8};
    let shapes = [
        (Bf16, Bf16, F32, F32, &[8, 16][..]),
        (F16, F16, F32, F32, &[8, 16]),
        (F16, F16, F16, F16, &[8, 16]),
        (F16, F16, F16, F32, &[16]),
        (Tf32, Tf32, F32, F32, &[4, 8]),
        (E4m3, E4m3, F32, F32, &[16, 32]),
        (E5m2, E4m3, F32, F32, &[32]),
        (S8, S8, S32, S32, &[16, 32]),
        (U8, S8, S32, S32, &[32]),
        (S8, U8, S32, S32, &[32]),
        (U8, U8, S32, S32, &[16, 32]),
    ];
    for (a, b, c, d, depths) in shapes {
        for k in depths {
            for seed in 0..8 {
                check(&Case { a, b, c, d, k: *k }, seed);
            }
        }
    }
}

#[test]
fn halves_of_every_bit_pattern_become_the_float_they_say() {
    for bits in 0..=0xffffu32 {
        let expected = f16::from_bits(bits as u16).to_f32();
        let got = half_to_f32(bits);
        assert!(
            got == expected && got.is_sign_negative() == expected.is_sign_negative()
                || got.is_nan() && expected.is_nan(),
            "{bits:#x}: {got} for {expected}"
        );
    }
    for bits in 0..=0xffu32 {
        let (got, expected) = (f64::from(e4m3_to_f32(bits)), value(Type::E4m3, bits));
        assert!(got == expected || got.is_nan() && bits & 0x7f == 0x7f, "{bits:#x}");
    }
}

#[test]
fn an_unknown_shape_is_not_taken_for_a_known_one() {
    let mma = Mma {
        m: 8,
        n: 8,
        k: 4,
        a_row: true,
        b_row: false,
        types: [Type::F32, Type::F16, Type::F16, Type::F32],
        satfinite: false,
        d: vec![0; 8],
        a: vec![Operand::Plane(0); 2],
        b: vec![Operand::Plane(0); 2],
        c: vec![Operand::Plane(0); 8],
    };
    assert_eq!(width(&mma), None);
}
