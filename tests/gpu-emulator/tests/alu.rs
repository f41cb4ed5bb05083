//! Every register-only instruction against Rust's own semantics, and rounding against the
//! processor's own rounding modes.
//!
//! A test writes PTX, parses it and executes it for many inputs, 32 lanes at a time, once for all
//! lanes and once for some, when the others must keep what they held.

#![allow(clippy::unwrap_used)] // a test's own helpers may panic
#![allow(clippy::precedence, clippy::type_complexity)] // tables of formulas, written as formulas

use gpu_emulator::exec::alu;
use gpu_emulator::exec::registers::Registers;
use gpu_emulator::ptx::ir::{Function, Op};
use gpu_emulator::ptx::parse_as_written;
use half::{bf16, f16};

const HEADER: &str = ".version 8.7\n.target sm_90\n.address_size 64\n.entry k() {\n\
    .reg .pred %p<8>; .reg .b16 %h<8>; .reg .b32 %r<8>; .reg .f32 %f<8>; .reg .b64 %d<8>;\n\
    .reg .f64 %e<8>;\n";

/// First plane of a register of the header, and its planes.
fn place(name: &str) -> (u32, u32) {
    let index: u32 = name[2..].parse().unwrap();
    match &name[..2] {
        "%h" => (index, 1),
        "%r" => (8 + index, 1),
        "%f" => (16 + index, 1),
        "%d" => (24 + 2 * index, 2),
        "%e" => (40 + 2 * index, 2),
        other => panic!("{other}"),
    }
}

fn program(lines: &str) -> Function {
    let text = format!("{HEADER}{lines}\n}}\n");
    parse_as_written(&text).unwrap_or_else(|error| panic!("{error}")).functions[0].clone()
}

fn step(function: &Function, registers: &mut Registers, mask: u32) {
    for instruction in &function.body {
        let mask = registers.guarded(instruction.guard, mask);
        assert!(alu::execute(&instruction.op, registers, mask), "{:?}", instruction.op);
    }
}

fn load(registers: &mut Registers, name: &str, lane: usize, bits: u64) {
    if let Some(index) = name.strip_prefix("%p") {
        let predicate = &mut registers.predicates[index.parse::<usize>().unwrap()];
        *predicate = (*predicate & !(1 << lane)) | (bits as u32 & 1) << lane;
        return;
    }
    match place(name) {
        (plane, 1) => registers.set_lane32(plane, lane, bits as u32),
        (plane, _) => registers.set_lane64(plane, lane, bits),
    }
}

fn fetch(registers: &Registers, name: &str, lane: usize) -> u64 {
    if let Some(index) = name.strip_prefix("%p") {
        return u64::from(registers.predicates[index.parse::<usize>().unwrap()] >> lane & 1);
    }
    match place(name) {
        (plane, 1) => registers.planes[plane as usize][lane].into(),
        (plane, _) => registers.lane64(plane, lane),
    }
}

/// Runs `lines` for every row of `rows` (values of `sources`) and compares `out` with `expected`.
fn check_rows(
    lines: &str,
    sources: &[&str],
    out: &str,
    rows: &[Vec<u64>],
    expected: impl Fn(&[u64]) -> u64,
) {
    const SOME: u32 = 0x5A0F_33C1;
    const OLD: u64 = 0x0000_1234_0000_5678;
    let function = program(lines);
    for rows in rows.chunks(32) {
        for mask in [u32::MAX, SOME] {
            let mut registers = Registers::new(function.planes, function.predicates);
            for lane in 0..32 {
                load(&mut registers, out, lane, OLD);
                for (name, value) in sources.iter().zip(&rows[lane % rows.len()]) {
                    load(&mut registers, name, lane, *value);
                }
            }
            let before: Vec<u64> = (0..32).map(|lane| fetch(&registers, out, lane)).collect();
            step(&function, &mut registers, mask);
            for lane in 0..32 {
                let row = &rows[lane % rows.len()];
                let found = fetch(&registers, out, lane);
                let wanted = if mask >> lane & 1 != 0 { expected(row) } else { before[lane] };
                assert_eq!(
                    found, wanted,
                    "{lines} of {row:x?} in lane {lane} of {mask:#x}: {found:#x}, not {wanted:#x}"
                );
            }
        }
    }
}

fn product(columns: &[&[u64]]) -> Vec<Vec<u64>> {
    columns.iter().fold(vec![vec![]], |rows, column| {
        rows.iter()
            .flat_map(|row| column.iter().map(|v| [row.as_slice(), &[*v]].concat()))
            .collect()
    })
}

fn check1(line: &str, out: &str, source: &str, values: &[u64], expected: impl Fn(u64) -> u64) {
    check_rows(line, &[source], out, &product(&[values]), |row| expected(row[0]));
}

fn check2(line: &str, out: &str, source: [&str; 2], values: &[u64], f: impl Fn(u64, u64) -> u64) {
    check_rows(line, &source, out, &product(&[values, values]), |row| f(row[0], row[1]));
}

fn check3(
    line: &str,
    out: &str,
    source: [&str; 3],
    values: &[u64],
    f: impl Fn(u64, u64, u64) -> u64,
) {
    let rows = product(&[values, values, values]);
    check_rows(line, &source, out, &rows, |row| f(row[0], row[1], row[2]));
}

/// A small generator, so that a failure is the same every time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }
}

const SIZES: [(u32, &str); 3] = [(16, "%h"), (32, "%r"), (64, "%d")];

fn edges(bits: u32) -> Vec<u64> {
    let all = if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
    let top = 1u64 << (bits - 1);
    let mut values = vec![0, 1, 2, 7, 0x55, top - 1, top, top + 1, all - 1, all, all / 3];
    let mut random = Random(bits.into());
    values.extend((0..6).map(|_| random.next() & all));
    values
}

fn signed(value: u64, bits: u32) -> i128 {
    (((value << (64 - bits)) as i64) >> (64 - bits)).into()
}

fn cut(value: i128, bits: u32) -> u64 {
    if bits == 64 { value as u64 } else { value as u64 & ((1 << bits) - 1) }
}

#[test]
fn integer_arithmetic_wraps_like_rust() {
    type Reference = fn(i128, i128, u32) -> i128;
    let table: [(&str, Reference); 11] = [
        ("add", |a, b, _| a + b),
        ("sub", |a, b, _| a - b),
        ("mul.lo", i128_wrapping_mul),
        ("mul.hi", |a, b, bits| multiply_high(a, b, bits)),
        ("min", |a, b, _| a.min(b)),
        ("max", |a, b, _| a.max(b)),
        ("div", |a, b, _| if b == 0 { -1 } else { a / b }),
        ("rem", |a, b, _| if b == 0 { a } else { a % b }),
        ("and", |a, b, _| a & b),
        ("or", |a, b, _| a | b),
        ("xor", |a, b, _| a ^ b),
    ];
    for (bits, register) in SIZES {
        let names = [1, 2].map(|i| format!("{register}{i}"));
        let names = [names[0].as_str(), &names[1]];
        let out = format!("{register}0");
        for (op, reference) in table {
            let logic = matches!(op, "and" | "or" | "xor");
            for kind in if logic { &["b"][..] } else { &["u", "s"] } {
                let line = format!("{op}.{kind}{bits} {out}, {}, {};", names[0], names[1]);
                check2(&line, &out, names, &edges(bits), |a, b| {
                    let (a, b) = if *kind == "s" {
                        (signed(a, bits), signed(b, bits))
                    } else {
                        (a.into(), b.into())
                    };
                    cut(reference(a, b, bits), bits)
                });
            }
        }
    }
}

fn i128_wrapping_mul(a: i128, b: i128, _: u32) -> i128 {
    a.wrapping_mul(b)
}

/// The upper half of a product of `bits` wide factors; of 64 bits unsigned it overflows i128.
fn multiply_high(a: i128, b: i128, bits: u32) -> i128 {
    match a.checked_mul(b) {
        Some(product) => product >> bits,
        None => ((a as u128).wrapping_mul(b as u128) >> bits) as i128,
    }
}

#[test]
fn saturating_absolute_and_unary_integers() {
    check2("add.sat.s32 %r0, %r1, %r2;", "%r0", ["%r1", "%r2"], &edges(32), |a, b| {
        u64::from((a as i32).saturating_add(b as i32) as u32)
    });
    check2("sub.sat.s32 %r0, %r1, %r2;", "%r0", ["%r1", "%r2"], &edges(32), |a, b| {
        u64::from((a as i32).saturating_sub(b as i32) as u32)
    });
    check2("max.relu.s32 %r0, %r1, %r2;", "%r0", ["%r1", "%r2"], &edges(32), |a, b| {
        (a as i32).max(b as i32).max(0) as u64
    });
    for (bits, register) in SIZES {
        let (out, a) = (format!("{register}0"), format!("{register}1"));
        let one = |op: &str, f: &dyn Fn(u64) -> u64| {
            check1(&format!("{op}{bits} {out}, {a};"), &out, &a, &edges(bits), f);
        };
        one("neg.s", &|v| cut(-signed(v, bits), bits));
        one("abs.s", &|v| cut(signed(v, bits).abs(), bits));
        one("not.b", &|v| cut(!i128::from(v), bits));
        one("cnot.b", &|v| u64::from(v == 0));
    }
    for (bits, register) in [(32, "%r"), (64, "%d")] {
        let a = format!("{register}1");
        let one = |op: &str, f: &dyn Fn(u64) -> u64| {
            check1(&format!("{op}{bits} %r0, {a};"), "%r0", &a, &edges(bits), f);
        };
        one("popc.b", &|v| v.count_ones().into());
        one("clz.b", &|v| u64::from(v.leading_zeros() - (64 - bits)));
        let find = |v: u64| (0..bits).rev().find(|i| v >> i & 1 != 0);
        let find_signed = |v: u64| {
            let sign = v >> (bits - 1) & 1;
            (0..bits).rev().find(|i| v >> i & 1 != sign)
        };
        let position = |found: Option<u32>| found.map_or(0xFFFF_FFFF, u64::from);
        let distance = |found: Option<u32>| found.map_or(0xFFFF_FFFF, |i| (bits - 1 - i).into());
        one("bfind.u", &|v| position(find(v)));
        one("bfind.s", &|v| position(find_signed(v)));
        one("bfind.shiftamt.u", &|v| distance(find(v)));
        one("bfind.shiftamt.s", &|v| distance(find_signed(v)));
        let out = format!("{register}0");
        check1(&format!("brev.b{bits} {out}, {a};"), &out, &a, &edges(bits), |v| {
            (0..bits).fold(0, |all, i| all | (v >> i & 1) << (bits - 1 - i))
        });
    }
}

#[test]
fn multiply_add_keeps_the_part_it_names() {
    let values: Vec<u64> = edges(32).into_iter().step_by(2).collect();
    for (kind, read) in
        [("u", (|v| v.into()) as fn(u64) -> i128), ("s", (|v| signed(v, 32)) as fn(u64) -> i128)]
    {
        let line = |form: &str| format!("mad.{form}.{kind}32 %r0, %r1, %r2, %r3;");
        let names = ["%r1", "%r2", "%r3"];
        check3(&line("lo"), "%r0", names, &values, |a, b, c| cut(read(a) * read(b) + read(c), 32));
        check3(&line("hi"), "%r0", names, &values, |a, b, c| {
            cut((read(a) * read(b) >> 32) + read(c), 32)
        });
        let long = edges(64);
        let rows = product(&[&values, &values, &long[..8]]);
        let wide = format!("mad.wide.{kind}32 %d0, %r1, %r2, %d3;");
        check_rows(&wide, &["%r1", "%r2", "%d3"], "%d0", &rows, |row| {
            cut(read(row[0]) * read(row[1]) + i128::from(row[2]), 64)
        });
        let wide = format!("mul.wide.{kind}32 %d0, %r1, %r2;");
        check2(&wide, "%d0", ["%r1", "%r2"], &edges(32), |a, b| cut(read(a) * read(b), 64));
        let short = |v: u64| if kind == "s" { signed(v, 16) } else { v.into() };
        let wide = format!("mul.wide.{kind}16 %r0, %h1, %h2;");
        check2(&wide, "%r0", ["%h1", "%h2"], &edges(16), |a, b| cut(short(a) * short(b), 32));
        let sad = format!("sad.{kind}32 %r0, %r1, %r2, %r3;");
        check3(&sad, "%r0", names, &values, |a, b, c| {
            cut((read(a) - read(b)).abs() + i128::from(c), 32)
        });
        let low =
            |v: u64| if kind == "s" { signed(v & 0xFF_FFFF, 24) } else { (v & 0xFF_FFFF).into() };
        let line = format!("mul24.hi.{kind}32 %r0, %r1, %r2;");
        check2(&line, "%r0", ["%r1", "%r2"], &edges(32), |a, b| cut(low(a) * low(b) >> 16, 32));
        let line = format!("mad24.lo.{kind}32 %r0, %r1, %r2, %r3;");
        check3(&line, "%r0", names, &values, |a, b, c| cut(low(a) * low(b) + i128::from(c), 32));
    }
    check3(
        "mad.hi.sat.s32 %r0, %r1, %r2, %r3;",
        "%r0",
        ["%r1", "%r2", "%r3"],
        &values,
        |a, b, c| {
            let sum = (signed(a, 32) * signed(b, 32) >> 32) + signed(c, 32);
            cut(sum.clamp(i32::MIN.into(), i32::MAX.into()), 32)
        },
    );
    let long: Vec<u64> = edges(64).into_iter().step_by(2).collect();
    check3("mad.lo.u64 %d0, %d1, %d2, %d3;", "%d0", ["%d1", "%d2", "%d3"], &long, |a, b, c| {
        a.wrapping_mul(b).wrapping_add(c)
    });
}

#[test]
fn carry_chains_add_and_multiply_wide_numbers() {
    let values = edges(64);
    check2(
        "mov.b64 {%r1, %r2}, %d1; mov.b64 {%r3, %r4}, %d2; add.cc.u32 %r1, %r1, %r3;\n\
         addc.u32 %r2, %r2, %r4; mov.b64 %d0, {%r1, %r2};",
        "%d0",
        ["%d1", "%d2"],
        &values,
        u64::wrapping_add,
    );
    check2(
        "mov.b64 {%r1, %r2}, %d1; mov.b64 {%r3, %r4}, %d2; sub.cc.u32 %r1, %r1, %r3;\n\
         subc.cc.u32 %r2, %r2, %r4; subc.u32 %r5, 0, 0; mov.b64 %d0, {%r1, %r5};",
        "%d0",
        ["%d1", "%d2"],
        &values,
        |a, b| (a.wrapping_sub(b) & 0xFFFF_FFFF) | if a < b { 0xFFFF_FFFF << 32 } else { 0 },
    );
    // The upper 64 bits of a 64 by 64 bit product, the long way.
    check2(
        "mov.b64 {%r1, %r2}, %d1; mov.b64 {%r3, %r4}, %d2;\n\
         mul.hi.u32 %r5, %r1, %r3; mad.lo.cc.u32 %r5, %r1, %r4, %r5; madc.hi.u32 %r6, %r1, %r4, 0;\n\
         mad.lo.cc.u32 %r5, %r2, %r3, %r5; madc.hi.cc.u32 %r6, %r2, %r3, %r6; addc.u32 %r7, 0, 0;\n\
         mad.lo.cc.u32 %r6, %r2, %r4, %r6; madc.hi.u32 %r7, %r2, %r4, %r7; mov.b64 %d0, {%r6, %r7};",
        "%d0",
        ["%d1", "%d2"],
        &values,
        |a, b| (u128::from(a) * u128::from(b) >> 64) as u64,
    );
    check2(
        "add.cc.u64 %d3, %d1, %d2; addc.u64 %d0, 5, 0;",
        "%d0",
        ["%d1", "%d2"],
        &values,
        |a, b| 5 + u64::from(a.checked_add(b).is_none()),
    );
}

#[test]
fn shifts_clamp_and_funnels_wrap() {
    let amounts = [0, 1, 5, 15, 16, 31, 32, 33, 63, 64, 65, 1000, 0xFFFF_FFFF];
    for (bits, register) in SIZES {
        let rows = product(&[&edges(bits), &amounts]);
        let (out, a) = (format!("{register}0"), format!("{register}1"));
        for (op, kind) in [("shl", "b"), ("shr", "b"), ("shr", "u"), ("shr", "s")] {
            let line = format!("{op}.{kind}{bits} {out}, {a}, %r2;");
            check_rows(&line, &[&a, "%r2"], &out, &rows, |row| {
                let by = row[1].min(bits.into());
                match (op, kind) {
                    ("shl", _) => cut(i128::from(row[0]) << by, bits),
                    (_, "s") => cut(signed(row[0], bits) >> by, bits),
                    _ => cut(i128::from(row[0]) >> by, bits),
                }
            });
        }
    }
    let words = edges(32);
    let rows = product(&[&words[..8], &words[..8], &amounts]);
    for (left, wrap) in [(true, true), (true, false), (false, true), (false, false)] {
        let line = format!(
            "shf.{}.{}.b32 %r0, %r1, %r2, %r3;",
            if left { "l" } else { "r" },
            if wrap { "wrap" } else { "clamp" }
        );
        check_rows(&line, &["%r1", "%r2", "%r3"], "%r0", &rows, |row| {
            let by = if wrap { row[2] % 32 } else { row[2].min(32) };
            let both = row[1] << 32 | row[0];
            if left {
                (u128::from(both) << by >> 32) as u32 as u64
            } else {
                both >> by & 0xFFFF_FFFF
            }
        });
    }
}

#[test]
fn logic_tables_permutes_and_fields() {
    let words = edges(32);
    for lut in [0x00, 0x80, 0xE8, 0x96, 0xCA, 0x3C, 0xFE, 0xFF, 0x1B] {
        let line = format!("lop3.b32 %r0, %r1, %r2, %r3, {lut};");
        check3(&line, "%r0", ["%r1", "%r2", "%r3"], &words[..9], |a, b, c| {
            (0..32).fold(0, |all, i| {
                let index = (a >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1);
                all | (lut >> index & 1) << i
            })
        });
    }
    let selectors = [0x3210, 0x5140, 0x7654, 0x0123, 0x8888, 0xFEDC, 0x9C4B, 0xFFFF_3210];
    let rows = product(&[&words, &words[..6], &selectors]);
    check_rows("prmt.b32 %r0, %r1, %r2, %r3;", &["%r1", "%r2", "%r3"], "%r0", &rows, |row| {
        let both = (row[1] << 32 | row[0]).to_le_bytes();
        (0..4).fold(0, |all, i| {
            let selector = row[2] >> (4 * i) & 15;
            let byte = both[selector as usize & 7];
            let byte = if selector & 8 == 0 { byte } else { ((byte as i8) >> 7) as u8 };
            all | u64::from(byte) << (8 * i)
        })
    });
    let modes: [(&str, [[usize; 4]; 4]); 6] = [
        ("f4e", [[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5], [3, 4, 5, 6]]),
        ("b4e", [[0, 7, 6, 5], [1, 0, 7, 6], [2, 1, 0, 7], [3, 2, 1, 0]]),
        ("rc8", [[0; 4], [1; 4], [2; 4], [3; 4]]),
        ("ecl", [[0, 1, 2, 3], [1, 1, 2, 3], [2, 2, 2, 3], [3, 3, 3, 3]]),
        ("ecr", [[0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 2, 2], [0, 1, 2, 3]]),
        ("rc16", [[0, 1, 0, 1], [2, 3, 2, 3], [0, 1, 0, 1], [2, 3, 2, 3]]),
    ];
    for (mode, bytes) in modes {
        let rows = product(&[&[0x4433_2211], &[0x8877_6655], &[0, 1, 2, 3]]);
        let line = format!("prmt.b32.{mode} %r0, %r1, %r2, %r3;");
        check_rows(&line, &["%r1", "%r2", "%r3"], "%r0", &rows, |row| {
            let chosen = bytes[row[2] as usize];
            (0..4).fold(0, |all, i| all | (0x11 * (chosen[i] as u64 + 1)) << (8 * i))
        });
    }
    let places = [0, 1, 5, 8, 31, 32, 33, 63, 64, 100, 255, 256 + 4];
    for (bits, register) in [(32u32, "%r"), (64, "%d")] {
        let rows = product(&[&edges(bits), &places, &places]);
        let (out, a) = (format!("{register}0"), format!("{register}1"));
        for kind in ["u", "s"] {
            let line = format!("bfe.{kind}{bits} {out}, {a}, %r2, %r3;");
            check_rows(&line, &[&a, "%r2", "%r3"], &out, &rows, |row| {
                let (position, length) = (row[1] & 255, row[2] & 255);
                let bit = |i: u64| row[0] >> i & 1;
                let top = (position + length).saturating_sub(1).min(u64::from(bits) - 1);
                let fill = if kind == "s" && length > 0 { bit(top) } else { 0 };
                (0..u64::from(bits)).fold(0, |all, i| {
                    let inside = i < length && position + i < u64::from(bits);
                    all | (if inside { bit(position + i) } else { fill }) << i
                })
            });
        }
        let b = format!("{register}4");
        let values = edges(bits);
        let rows = product(&[&values[..6], &values[4..9], &places, &places]);
        let line = format!("bfi.b{bits} {out}, {a}, {b}, %r2, %r3;");
        check_rows(&line, &[&a, &b, "%r2", "%r3"], &out, &rows, |row| {
            let (position, length) = (row[2] & 255, row[3] & 255);
            (0..length).filter(|i| position + i < u64::from(bits)).fold(row[1], |all, i| {
                let at = position + i;
                all & !(1 << at) | (row[0] >> i & 1) << at
            })
        });
    }
    let rows = product(&[&places, &places]);
    check_rows("bmsk.clamp.b32 %r0, %r1, %r2;", &["%r1", "%r2"], "%r0", &rows, |row| {
        let (start, length) = (row[0].min(32), row[1].min(32));
        (start..(start + length).min(32)).fold(0, |all, i| all | 1 << i)
    });
    let rows = product(&[&edges(32), &places]);
    check_rows("szext.clamp.s32 %r0, %r1, %r2;", &["%r1", "%r2"], "%r0", &rows, |row| {
        let length = row[1].min(32) as u32;
        if length == 0 { 0 } else { cut(signed(row[0], length.max(1)), 32) }
    });
}

#[test]
fn small_dot_products_and_packed_integers() {
    let words = &edges(32)[2..];
    for (kinds, a_signed, b_signed) in
        [("u32.u32", false, false), ("s32.s32", true, true), ("u32.s32", false, true)]
    {
        let part = |word: u64, i: u32, bits: u32, is_signed: bool| {
            let raw = word >> (i * bits) & ((1 << bits) - 1);
            if is_signed { signed(raw, bits) } else { raw.into() }
        };
        let line = format!("dp4a.{kinds} %r0, %r1, %r2, %r3;");
        check3(&line, "%r0", ["%r1", "%r2", "%r3"], words, |a, b, c| {
            let sum = (0..4).map(|i| part(a, i, 8, a_signed) * part(b, i, 8, b_signed));
            cut(sum.sum::<i128>() + i128::from(c), 32)
        });
        let line = format!("dp2a.hi.{kinds} %r0, %r1, %r2, %r3;");
        check3(&line, "%r0", ["%r1", "%r2", "%r3"], words, |a, b, c| {
            let sum = (0..2).map(|i| part(a, i, 16, a_signed) * part(b, i + 2, 8, b_signed));
            cut(sum.sum::<i128>() + i128::from(c), 32)
        });
    }
    let both = |a: u64, b: u64, f: &dyn Fn(u64, u64) -> u64| {
        f(a & 0xFFFF, b & 0xFFFF) & 0xFFFF | (f(a >> 16, b >> 16) & 0xFFFF) << 16
    };
    check2("add.u16x2 %r0, %r1, %r2;", "%r0", ["%r1", "%r2"], words, |a, b| {
        both(a, b, &|a, b| a + b)
    });
    check2("min.s16x2 %r0, %r1, %r2;", "%r0", ["%r1", "%r2"], words, |a, b| {
        both(a, b, &|a, b| (a as i16).min(b as i16) as u64)
    });
    check2("max.relu.s16x2 %r0, %r1, %r2;", "%r0", ["%r1", "%r2"], words, |a, b| {
        both(a, b, &|a, b| (a as i16).max(b as i16).max(0) as u64)
    });
}

#[test]
fn moves_pack_unpack_and_select() {
    let words = edges(32);
    let longs = edges(64);
    check1("mov.b64 %d0, %d1;", "%d0", "%d1", &longs, |v| v);
    check1("mov.b64 {%r2, %r0}, %d1;", "%r0", "%d1", &longs, |v| v >> 32);
    check1("mov.b64 {_, %h2, %h0, _}, %d1;", "%h0", "%d1", &longs, |v| v >> 32 & 0xFFFF);
    check2("mov.b64 %d0, {%r1, %r2};", "%d0", ["%r1", "%r2"], &words, |a, b| b << 32 | a);
    check2("mov.b32 %r0, {%h1, %h2};", "%r0", ["%h1", "%h2"], &edges(16), |a, b| b << 16 | a);
    check1("mov.b32 %r0, {0, %h1};", "%r0", "%h1", &edges(16), |a| a << 16);
    check1("mov.b32 {%h0, %h1}, %r1;", "%h0", "%r1", &words, |v| v & 0xFFFF);
    check1("mov.b32 %r0, {%h1, 0x12, %h1, 0xFF};", "%r0", "%h1", &edges(16), |v| {
        v & 255 | 0x1200 | (v & 255) << 16 | 0xFF00_0000
    });
    check2(
        "mov.b64 {%r1, %r2}, %d1; mov.b64 %d0, {%r2, %r1};",
        "%d0",
        ["%d1", "%d1"],
        &longs,
        |_, b| b.rotate_left(32),
    );
    let rows = product(&[&longs, &longs, &[0, 1]]);
    check_rows("selp.b64 %d0, %d1, %d2, %p3;", &["%d1", "%d2", "%p3"], "%d0", &rows, |row| {
        if row[2] != 0 { row[0] } else { row[1] }
    });
    let rows = product(&[&words, &[0, 1]]);
    check_rows("selp.b32 %r0, %r1, -7, %p3;", &["%r1", "%p3"], "%r0", &rows, |row| {
        if row[1] != 0 { row[0] } else { 0xFFFF_FFF9 }
    });
    let rows = product(&[&words[..4], &words[4..8], &words]);
    check_rows("slct.b32.s32 %r0, %r1, %r2, %r3;", &["%r1", "%r2", "%r3"], "%r0", &rows, |row| {
        if row[2] as i32 >= 0 { row[0] } else { row[1] }
    });
    let rows = product(&[&words[..2], &words[4..6], &singles()]);
    check_rows("slct.b32.f32 %r0, %r1, %r2, %f3;", &["%r1", "%r2", "%f3"], "%r0", &rows, |row| {
        if single(row[2]) >= 0.0 { row[0] } else { row[1] }
    });
    let rows = product(&[&[0, 1], &[0, 1]]);
    for (op, f) in [
        ("and", (|a, b| a & b) as fn(u64, u64) -> u64),
        ("or", |a, b| a | b),
        ("xor", |a, b| a ^ b),
    ] {
        let line = format!("{op}.pred %p0, %p1, !%p2;");
        check_rows(&line, &["%p1", "%p2"], "%p0", &rows, |row| f(row[0], row[1] ^ 1));
    }
    check_rows("not.pred %p0, %p1;", &["%p1"], "%p0", &product(&[&[0, 1]]), |row| row[0] ^ 1);
    check_rows(
        "@!%p1 mov.b32 %r0, 9;",
        &["%p1", "%r0"],
        "%r0",
        &product(&[&[0, 1], &[3]]),
        |row| {
            if row[0] == 0 { 9 } else { 3 }
        },
    );
}

fn single(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

fn bits32(value: f32) -> u64 {
    if value.is_nan() { 0x7FFF_FFFF } else { value.to_bits().into() }
}

fn singles() -> Vec<u64> {
    let named = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        0.5,
        1.5,
        3.0,
        -7.25,
        f32::MAX,
        f32::MIN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        f32::MIN_POSITIVE,
        1e-45,
        -1e-45,
        1.17e-38,
        1e-20,
        3.4e38,
        16_777_216.0,
        1.000_000_1,
        0.333_333_34,
    ];
    let mut random = Random(32);
    named
        .iter()
        .map(|v: &f32| u64::from(v.to_bits()))
        .chain((0..10).map(|_| random.next() & 0xFFFF_FFFF))
        .collect()
}

fn doubles() -> Vec<u64> {
    let named = [
        0.0,
        -0.0,
        1.0,
        -1.5,
        0.1,
        1e300,
        -1e300,
        1e-300,
        5e-324,
        f64::MAX,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::MIN_POSITIVE,
        1e-310,
        9_007_199_254_740_993.0,
        1e16,
    ];
    let mut random = Random(64);
    named.iter().map(|v: &f64| v.to_bits()).chain((0..8).map(|_| random.next())).collect()
}

#[test]
fn single_arithmetic_is_rusts_with_one_nan() {
    let names = ["%f1", "%f2"];
    let table: [(&str, fn(f32, f32) -> f32); 4] = [
        ("add", |a, b| a + b),
        ("sub", |a, b| a - b),
        ("mul", |a, b| a * b),
        ("div.rn", |a, b| a / b),
    ];
    let flush = |v: f32| if v.is_subnormal() { 0f32.copysign(v) } else { v };
    for (op, f) in table {
        let values = singles();
        check2(&format!("{op}.f32 %f0, %f1, %f2;"), "%f0", names, &values, |a, b| {
            bits32(f(single(a), single(b)))
        });
        check2(&format!("{op}.ftz.f32 %f0, %f1, %f2;"), "%f0", names, &values, |a, b| {
            bits32(flush(f(flush(single(a)), flush(single(b)))))
        });
        if op != "div.rn" {
            check2(&format!("{op}.sat.f32 %f0, %f1, %f2;"), "%f0", names, &values, |a, b| {
                let value = f(single(a), single(b));
                bits32(if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) + 0.0 })
            });
        }
    }
    let values: Vec<u64> = singles().into_iter().step_by(2).collect();
    check3("fma.rn.f32 %f0, %f1, %f2, %f3;", "%f0", ["%f1", "%f2", "%f3"], &values, |a, b, c| {
        bits32(single(a).mul_add(single(b), single(c)))
    });
    check1("neg.f32 %f0, %f1;", "%f0", "%f1", &singles(), |a| a ^ 1 << 31);
    check1("abs.f32 %f0, %f1;", "%f0", "%f1", &singles(), |a| a & 0x7FFF_FFFF);
    check1("sqrt.rn.f32 %f0, %f1;", "%f0", "%f1", &singles(), |a| bits32(single(a).sqrt()));
    check1("rcp.rn.f32 %f0, %f1;", "%f0", "%f1", &singles(), |a| bits32(1.0 / single(a)));
    check2("copysign.f32 %f0, %f1, %f2;", "%f0", names, &singles(), |a, b| {
        a & 0x8000_0000 | b & 0x7FFF_FFFF
    });
}

#[test]
fn extremes_order_zeros_and_treat_nan_as_told() {
    let least = |a: f32, b: f32| {
        let a_wins = b.is_nan() || a.total_cmp(&b).is_lt();
        if a_wins && !a.is_nan() { a } else { b }
    };
    let names = ["%f1", "%f2"];
    let values = singles();
    check2("min.f32 %f0, %f1, %f2;", "%f0", names, &values, |a, b| {
        bits32(least(single(a), single(b)))
    });
    check2("max.f32 %f0, %f1, %f2;", "%f0", names, &values, |a, b| {
        bits32(-least(-single(a), -single(b)))
    });
    check2("max.NaN.f32 %f0, %f1, %f2;", "%f0", names, &values, |a, b| {
        let (a, b) = (single(a), single(b));
        bits32(if a.is_nan() || b.is_nan() { f32::NAN } else { -least(-a, -b) })
    });
    let plain: Vec<u64> = values.iter().copied().filter(|v| !single(*v).is_nan()).collect();
    check2("min.xorsign.abs.f32 %f0, %f1, %f2;", "%f0", names, &plain, |a, b| {
        let least = single(a).abs().min(single(b).abs());
        bits32(least) | (a ^ b) & 0x8000_0000
    });
    check3("max.f32 %f0, %f1, %f2, %f3;", "%f0", ["%f1", "%f2", "%f3"], &plain[..12], |a, b, c| {
        let max = |a: f32, b: f32| -least(-a, -b);
        bits32(max(max(single(a), single(b)), single(c)))
    });
    let doubles = doubles();
    check2("min.f64 %e0, %e1, %e2;", "%e0", ["%e1", "%e2"], &doubles, |a, b| {
        let (a, b) = (f64::from_bits(a), f64::from_bits(b));
        let least = match (a.is_nan(), b.is_nan()) {
            (true, _) => b,
            (_, true) => a,
            _ if a.total_cmp(&b).is_lt() => a,
            _ => b,
        };
        least.to_bits()
    });
}

/// The processor's own directed rounding, as the reference for ours.
#[cfg(target_arch = "x86_64")]
mod hardware {
    /// MXCSR with all exceptions masked and the rounding control of a PTX suffix.
    fn control(rounding: &str) -> u32 {
        0x1F80
            | match rounding {
                "rn" => 0,
                "rm" => 0x2000,
                "rp" => 0x4000,
                _ => 0x6000,
            }
    }

    macro_rules! with_rounding {
        ($name:ident, $type:ty, $instruction:literal) => {
            pub(crate) fn $name(a: $type, b: $type, rounding: &str) -> $type {
                let (mut out, new, mut old) = (a, control(rounding), 0u32);
                // SAFETY: the control register is restored before the block ends, and the
                // memory operands are live locals.
                unsafe {
                    core::arch::asm!(
                        "stmxcsr [{old}]", "ldmxcsr [{new}]",
                        concat!($instruction, " {out}, {b}"),
                        "ldmxcsr [{old}]",
                        old = in(reg) &mut old, new = in(reg) &new,
                        out = inout(xmm_reg) out, b = in(xmm_reg) b,
                    );
                }
                out
            }
        };
    }

    with_rounding!(add32, f32, "addss");
    with_rounding!(sub32, f32, "subss");
    with_rounding!(mul32, f32, "mulss");
    with_rounding!(div32, f32, "divss");
    with_rounding!(sqrt32, f32, "sqrtss");
    with_rounding!(add64, f64, "addsd");
    with_rounding!(sub64, f64, "subsd");
    with_rounding!(mul64, f64, "mulsd");
    with_rounding!(div64, f64, "divsd");
    with_rounding!(sqrt64, f64, "sqrtsd");

    macro_rules! fused_with_rounding {
        ($name:ident, $type:ty, $instruction:literal) => {
            pub(crate) fn $name(a: $type, b: $type, c: $type, rounding: &str) -> $type {
                let (mut out, new, mut old) = (c, control(rounding), 0u32);
                // SAFETY: as above; the caller has checked that the processor has FMA.
                unsafe {
                    core::arch::asm!(
                        "stmxcsr [{old}]", "ldmxcsr [{new}]",
                        concat!($instruction, " {out}, {a}, {b}"),
                        "ldmxcsr [{old}]",
                        old = in(reg) &mut old, new = in(reg) &new,
                        out = inout(xmm_reg) out, a = in(xmm_reg) a, b = in(xmm_reg) b,
                    );
                }
                out
            }
        };
    }

    fused_with_rounding!(fma32, f32, "vfmadd231ss");
    fused_with_rounding!(fma64, f64, "vfmadd231sd");
}

#[cfg(target_arch = "x86_64")]
#[test]
fn directed_rounding_is_the_processors() {
    use hardware as hw;
    let mut random = Random(7);
    // Close exponents, so that every bit of both matters, beside the named edges.
    let mut values = singles();
    values.extend((0..12).map(|_| (random.next() & 0x81FF_FFFF | 0x3E00_0000) & 0xFFFF_FFFF));
    let bits64 = |v: f64| v.to_bits();
    for rounding in ["rz", "rm", "rp"] {
        type Two32 = fn(f32, f32, &str) -> f32;
        let singles: [(&str, Two32); 4] =
            [("add", hw::add32), ("sub", hw::sub32), ("mul", hw::mul32), ("div", hw::div32)];
        for (op, f) in singles {
            let line = format!("{op}.{rounding}.f32 %f0, %f1, %f2;");
            check2(&line, "%f0", ["%f1", "%f2"], &values, |a, b| {
                bits32(f(single(a), single(b), rounding))
            });
        }
        check1(&format!("sqrt.{rounding}.f32 %f0, %f1;"), "%f0", "%f1", &values, |a| {
            bits32(hw::sqrt32(0.0, single(a), rounding))
        });
        check1(&format!("rcp.{rounding}.f32 %f0, %f1;"), "%f0", "%f1", &values, |a| {
            bits32(hw::div32(1.0, single(a), rounding))
        });
        if std::arch::is_x86_feature_detected!("fma") {
            let line = format!("fma.{rounding}.f32 %f0, %f1, %f2, %f3;");
            let names = ["%f1", "%f2", "%f3"];
            check3(&line, "%f0", names, &values, |a, b, c| {
                bits32(hw::fma32(single(a), single(b), single(c), rounding))
            });
        }
        type Two64 = fn(f64, f64, &str) -> f64;
        let doubles_table: [(&str, Two64); 4] =
            [("add", hw::add64), ("sub", hw::sub64), ("mul", hw::mul64), ("div", hw::div64)];
        let wide: Vec<u64> =
            doubles().into_iter().filter(|v| !f64::from_bits(*v).is_nan()).collect();
        let nan = |v: u64| if f64::from_bits(v).is_nan() { f64::NAN.to_bits() } else { v };
        for (op, f) in doubles_table {
            let line = format!("{op}.{rounding}.f64 %e0, %e1, %e2;");
            let rows = product(&[&wide, &wide]);
            let rows: Vec<_> = rows
                .into_iter()
                .filter(|row| !f(f64::from_bits(row[0]), f64::from_bits(row[1]), rounding).is_nan())
                .collect();
            check_rows(&line, &["%e1", "%e2"], "%e0", &rows, |row| {
                nan(bits64(f(f64::from_bits(row[0]), f64::from_bits(row[1]), rounding)))
            });
        }
        let positive: Vec<u64> = wide.iter().copied().filter(|v| v >> 63 == 0).collect();
        check1(&format!("sqrt.{rounding}.f64 %e0, %e1;"), "%e0", "%e1", &positive, |a| {
            bits64(hw::sqrt64(0.0, f64::from_bits(a), rounding))
        });
        if std::arch::is_x86_feature_detected!("fma") {
            let near: Vec<u64> =
                (0..12).map(|_| random.next() & 0x803F_FFFF_FFFF_FFFF | 0x3FC0 << 48).collect();
            let line = format!("fma.{rounding}.f64 %e0, %e1, %e2, %e3;");
            check3(&line, "%e0", ["%e1", "%e2", "%e3"], &near, |a, b, c| {
                let [a, b, c] = [a, b, c].map(f64::from_bits);
                bits64(hw::fma64(a, b, c, rounding))
            });
        }
    }
}

#[test]
fn double_arithmetic_is_rusts() {
    let values: Vec<u64> = doubles().into_iter().filter(|v| !f64::from_bits(*v).is_nan()).collect();
    let table: [(&str, fn(f64, f64) -> f64); 4] = [
        ("add", |a, b| a + b),
        ("sub", |a, b| a - b),
        ("mul", |a, b| a * b),
        ("div.rn", |a, b| a / b),
    ];
    for (op, f) in table {
        let rows: Vec<_> = product(&[&values, &values])
            .into_iter()
            .filter(|row| !f(f64::from_bits(row[0]), f64::from_bits(row[1])).is_nan())
            .collect();
        let line = format!("{op}.f64 %e0, %e1, %e2;");
        check_rows(&line, &["%e1", "%e2"], "%e0", &rows, |row| {
            f(f64::from_bits(row[0]), f64::from_bits(row[1])).to_bits()
        });
    }
    let finite = &values[..9];
    check3("fma.rn.f64 %e0, %e1, %e2, %e3;", "%e0", ["%e1", "%e2", "%e3"], finite, |a, b, c| {
        f64::from_bits(a).mul_add(f64::from_bits(b), f64::from_bits(c)).to_bits()
    });
}

#[test]
fn approximations_are_within_an_ulp_and_right_at_the_edges() {
    let table: [(&str, fn(f64) -> f64); 9] = [
        ("rcp", |x| 1.0 / x),
        ("sqrt", f64::sqrt),
        ("rsqrt", |x| 1.0 / x.sqrt()),
        ("ex2", f64::exp2),
        ("lg2", f64::log2),
        ("sin", f64::sin),
        ("cos", f64::cos),
        ("tanh", f64::tanh),
        ("rcp.approx.ftz", |x| 1.0 / x),
    ];
    let mut random = Random(3);
    let mut values = singles();
    values.extend((0..2000).map(|_| random.next() & 0xFFFF_FFFF));
    values.extend((0..2000).map(|i| u64::from((-160.0 + 0.16 * i as f32).to_bits())));
    for (op, f) in table {
        let ftz = op.contains("ftz");
        let line =
            if ftz { format!("{op}.f32 %f0, %f1;") } else { format!("{op}.approx.f32 %f0, %f1;") };
        let function = program(&line);
        for chunk in values.chunks(32) {
            let mut registers = Registers::new(function.planes, function.predicates);
            for (lane, value) in chunk.iter().enumerate() {
                load(&mut registers, "%f1", lane, *value);
            }
            step(&function, &mut registers, u32::MAX);
            for (lane, value) in chunk.iter().enumerate() {
                let mut x = single(*value);
                if ftz && x.is_subnormal() {
                    x = 0f32.copysign(x);
                }
                let mut wanted = f(x.into()) as f32;
                if ftz && wanted.is_subnormal() {
                    wanted = 0f32.copysign(wanted);
                }
                let found = single(fetch(&registers, "%f0", lane));
                let close = found == wanted
                    || (found.is_nan() && wanted.is_nan())
                    || found == wanted.next_up()
                    || found == wanted.next_down();
                assert!(close, "{line} of {x:e}: {found:e}, not {wanted:e}");
            }
        }
    }
    let exact =
        [(0.0f32, 1.0f32), (3.0, 8.0), (-149.0, 1e-45), (128.0, f32::INFINITY), (-200.0, 0.0)];
    for (x, wanted) in exact {
        check1("ex2.approx.f32 %f0, %f1;", "%f0", "%f1", &[x.to_bits().into()], |_| bits32(wanted));
    }
    for (x, wanted) in [(1.0f32, 0.0f32), (8.0, 3.0), (0.125, -3.0), (0.0, f32::NEG_INFINITY)] {
        check1("lg2.approx.f32 %f0, %f1;", "%f0", "%f1", &[x.to_bits().into()], |_| bits32(wanted));
    }
}

#[test]
fn comparisons_are_rusts_and_unordered_ones_take_nan() {
    let orders: [(&str, fn(i128, i128) -> bool); 6] = [
        ("eq", |a, b| a == b),
        ("ne", |a, b| a != b),
        ("lt", |a, b| a < b),
        ("le", |a, b| a <= b),
        ("gt", |a, b| a > b),
        ("ge", |a, b| a >= b),
    ];
    for (bits, register) in SIZES {
        let names = [1, 2].map(|i| format!("{register}{i}"));
        let names = [names[0].as_str(), &names[1]];
        for (op, f) in orders {
            for kind in ["u", "s"] {
                let line = format!("setp.{op}.{kind}{bits} %p0, {}, {};", names[0], names[1]);
                check2(&line, "%p0", names, &edges(bits), |a, b| {
                    let read = |v| if kind == "s" { signed(v, bits) } else { i128::from(v) };
                    u64::from(f(read(a), read(b)))
                });
            }
        }
    }
    let floats: [(&str, fn(f64, f64) -> bool); 14] = [
        ("eq", |a, b| a == b),
        ("ne", |a, b| a != b && !a.is_nan() && !b.is_nan()),
        ("lt", |a, b| a < b),
        ("le", |a, b| a <= b),
        ("gt", |a, b| a > b),
        ("ge", |a, b| a >= b),
        ("equ", |a, b| a == b || a.is_nan() || b.is_nan()),
        ("neu", |a, b| a != b),
        ("ltu", |a, b| a < b || a.is_nan() || b.is_nan()),
        ("leu", |a, b| a <= b || a.is_nan() || b.is_nan()),
        ("gtu", |a, b| a > b || a.is_nan() || b.is_nan()),
        ("geu", |a, b| a >= b || a.is_nan() || b.is_nan()),
        ("num", |a, b| !a.is_nan() && !b.is_nan()),
        ("nan", |a, b| a.is_nan() || b.is_nan()),
    ];
    let halves: Vec<u64> =
        [0x0000, 0x8000, 0x3C00, 0xBC00, 0x7C00, 0xFC00, 0x7E00, 0x0001, 0x3C01].into();
    for (op, f) in floats {
        check2(
            &format!("setp.{op}.f32 %p0, %f1, %f2;"),
            "%p0",
            ["%f1", "%f2"],
            &singles(),
            |a, b| f(single(a).into(), single(b).into()).into(),
        );
        let mut wide = doubles();
        wide.push(f64::NAN.to_bits());
        check2(&format!("setp.{op}.f64 %p0, %e1, %e2;"), "%p0", ["%e1", "%e2"], &wide, |a, b| {
            f(f64::from_bits(a), f64::from_bits(b)).into()
        });
        check2(&format!("setp.{op}.f16 %p0, %h1, %h2;"), "%p0", ["%h1", "%h2"], &halves, |a, b| {
            f(f16::from_bits(a as u16).into(), f16::from_bits(b as u16).into()).into()
        });
        let line = format!("set.{op}.u32.f32 %r0, %f1, %f2;");
        check2(&line, "%r0", ["%f1", "%f2"], &singles(), |a, b| {
            if f(single(a).into(), single(b).into()) { 0xFFFF_FFFF } else { 0 }
        });
    }
    let rows = product(&[&edges(32), &edges(32), &[0, 1]]);
    for (line, f) in [
        ("setp.lt.and.s32 %p0|%p1, %r1, %r2, %p3;", (|t, c| t && c) as fn(bool, bool) -> bool),
        ("setp.lt.or.s32 %p0|%p1, %r1, %r2, !%p3;", |t, c| t || !c),
        ("setp.lt.xor.s32 %p0|%p1, %r1, %r2, %p3;", |t, c| t != c),
    ] {
        let sources = ["%r1", "%r2", "%p3"];
        check_rows(line, &sources, "%p0", &rows, |row| {
            f((row[0] as i32) < row[1] as i32, row[2] != 0).into()
        });
        check_rows(line, &sources, "%p1", &rows, |row| {
            f((row[0] as i32) >= row[1] as i32, row[2] != 0).into()
        });
    }
    let pairs: Vec<u64> =
        halves.iter().flat_map(|a| halves.iter().map(move |b| a << 16 | b)).collect();
    let low = |v: u64| f16::from_bits(v as u16);
    let high = |v: u64| f16::from_bits((v >> 16) as u16);
    check2("setp.lt.f16x2 %p0|%p1, %r1, %r2;", "%p0", ["%r1", "%r2"], &pairs, |a, b| {
        (low(a) < low(b)).into()
    });
    check2("setp.lt.f16x2 %p0|%p1, %r1, %r2;", "%p1", ["%r1", "%r2"], &pairs, |a, b| {
        (high(a) < high(b)).into()
    });
    check2("set.gt.f16x2.f16x2 %r0, %r1, %r2;", "%r0", ["%r1", "%r2"], &pairs, |a, b| {
        let one = |is| if is { 0x3C00 } else { 0 };
        one(low(a) > low(b)) | one(high(a) > high(b)) << 16
    });
    check2("set.lt.f32.s32 %f0, %r1, %r2;", "%f0", ["%r1", "%r2"], &edges(32), |a, b| {
        if (a as i32) < b as i32 { 0x3F80_0000 } else { 0 }
    });
    for (op, f) in [
        ("finite", f32::is_finite as fn(f32) -> bool),
        ("infinite", f32::is_infinite),
        ("notanumber", f32::is_nan),
        ("normal", f32::is_normal),
        ("subnormal", f32::is_subnormal),
    ] {
        check1(&format!("testp.{op}.f32 %p0, %f1;"), "%p0", "%f1", &singles(), |a| {
            f(single(a)).into()
        });
    }
}

fn half_nan(bits: u16, is_nan: bool) -> u64 {
    if is_nan { 0x7FFF } else { bits.into() }
}

fn from_f16(value: f16) -> u64 {
    half_nan(value.to_bits(), value.is_nan())
}

fn from_bf16(value: bf16) -> u64 {
    half_nan(value.to_bits(), value.is_nan())
}

#[test]
fn all_16_bit_floats_widen_exactly() {
    let all: Vec<u64> = (0..=0xFFFF).collect();
    check1("cvt.f32.f16 %f0, %h1;", "%f0", "%h1", &all, |v| {
        bits32(f16::from_bits(v as u16).to_f32())
    });
    check1("cvt.f32.bf16 %f0, %h1;", "%f0", "%h1", &all, |v| {
        bits32(bf16::from_bits(v as u16).to_f32())
    });
    check1("cvt.f32.f16 %f1, %h1; cvt.rn.f16.f32 %h0, %f1;", "%h0", "%h1", &all, |v| {
        from_f16(f16::from_bits(v as u16))
    });
    check1("cvt.f64.f16 %e0, %h1;", "%e0", "%h1", &all, |v| {
        let value = f16::from_bits(v as u16);
        if value.is_nan() { f64::NAN.to_bits() } else { value.to_f64().to_bits() }
    });
}

#[test]
fn narrowing_to_16_bits_rounds_like_the_half_crate() {
    let mut random = Random(16);
    let mut values: Vec<u64> = (0..=0xFFFF)
        .flat_map(|high: u64| [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF].map(|low| high << 16 | low))
        .collect();
    // Halfway cases of f16, and their neighbours.
    values.extend((0..0x7C00u16).flat_map(|h| {
        let middle = (f16::from_bits(h).to_f32() + f16::from_bits(h + 1).to_f32()) / 2.0;
        let bits = u64::from(middle.to_bits());
        [bits.saturating_sub(1), bits, bits + 1]
    }));
    values.extend((0..50_000).map(|_| random.next() & 0xFFFF_FFFF));
    check1("cvt.rn.f16.f32 %h0, %f1;", "%h0", "%f1", &values, |v| {
        from_f16(f16::from_f32(single(v)))
    });
    check1("cvt.rn.bf16.f32 %h0, %f1;", "%h0", "%f1", &values, |v| {
        from_bf16(bf16::from_f32(single(v)))
    });
    let pairs: Vec<Vec<u64>> = values.windows(2).step_by(7).map(<[u64]>::to_vec).collect();
    check_rows("cvt.rn.bf16x2.f32 %r0, %f1, %f2;", &["%f1", "%f2"], "%r0", &pairs, |row| {
        from_bf16(bf16::from_f32(single(row[0]))) << 16 | from_bf16(bf16::from_f32(single(row[1])))
    });
    check_rows("cvt.rn.f16x2.f32 %r0, %f1, %f2;", &["%f1", "%f2"], "%r0", &pairs, |row| {
        from_f16(f16::from_f32(single(row[0]))) << 16 | from_f16(f16::from_f32(single(row[1])))
    });
    let relu = |v: u64| if single(v) <= 0.0 { 0 } else { v };
    check_rows("cvt.rn.relu.bf16x2.f32 %r0, %f1, %f2;", &["%f1", "%f2"], "%r0", &pairs, |row| {
        let part = |v| from_bf16(bf16::from_f32(single(relu(v))));
        part(row[0]) << 16 | part(row[1])
    });
    // Truncation keeps the bits of bf16 as they are.
    check1("cvt.rz.bf16.f32 %h0, %f1;", "%h0", "%f1", &values, |v| {
        half_nan((v >> 16) as u16, single(v).is_nan())
    });
    let towards_zero = |v: u64| {
        let near = f16::from_f32(single(v));
        let beyond = near.to_f32().abs() > single(v).abs();
        if beyond { from_f16(f16::from_bits(near.to_bits() - 1)) } else { from_f16(near) }
    };
    check1("cvt.rz.f16.f32 %h0, %f1;", "%h0", "%f1", &values, towards_zero);
    check1("cvt.rna.tf32.f32 %r0, %f1;", "%r0", "%f1", &values, |v| {
        if single(v).is_nan() {
            0x7FFF_FFFF
        } else if single(v).is_infinite() {
            v
        } else {
            v + 0x1000 & !0x1FFF
        }
    });
    check1("cvt.rn.f16.f64 %h0, %e1;", "%h0", "%e1", &doubles(), |v| {
        from_f16(f16::from_f64(f64::from_bits(v)))
    });
}

#[test]
fn half_arithmetic_rounds_once() {
    let mut random = Random(5);
    let mut values: Vec<u64> = vec![
        0, 0x8000, 0x3C00, 0xBC00, 0x0001, 0x8001, 0x03FF, 0x0400, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00,
        0x7E01, 0x1400, 0x3BFF, 0x3C01,
    ];
    values.extend((0..60).map(|_| random.next() & 0xFFFF));
    values.extend((0..20).map(|_| random.next() & 0x83FF | 0x3000));
    let names = ["%h1", "%h2"];
    type Two = fn(f64, f64) -> f64;
    let table: [(&str, Two); 3] =
        [("add", |a, b| a + b), ("sub", |a, b| a - b), ("mul", |a, b| a * b)];
    for (op, f) in table {
        // An f64 has more than twice the bits, so rounding twice is rounding once.
        check2(&format!("{op}.f16 %h0, %h1, %h2;"), "%h0", names, &values, |a, b| {
            let [a, b] = [a, b].map(|v| f16::from_bits(v as u16).to_f64());
            from_f16(f16::from_f64(f(a, b)))
        });
        check2(&format!("{op}.bf16 %h0, %h1, %h2;"), "%h0", names, &values, |a, b| {
            let [a, b] = [a, b].map(|v| bf16::from_bits(v as u16).to_f64());
            from_bf16(bf16::from_f64(f(a, b)))
        });
        let pairs: Vec<u64> = values.windows(2).map(|w| w[0] << 16 | w[1]).collect();
        check2(&format!("{op}.bf16x2 %r0, %r1, %r2;"), "%r0", ["%r1", "%r2"], &pairs, |a, b| {
            let one = |a: u64, b: u64| {
                let [a, b] = [a, b].map(|v| bf16::from_bits(v as u16).to_f64());
                from_bf16(bf16::from_f64(f(a, b)))
            };
            one(a >> 16, b >> 16) << 16 | one(a & 0xFFFF, b & 0xFFFF)
        });
    }
    let finite: Vec<u64> = values.iter().copied().filter(|v| v & 0x7C00 != 0x7C00).collect();
    check3(
        "fma.rn.f16 %h0, %h1, %h2, %h3;",
        "%h0",
        ["%h1", "%h2", "%h3"],
        &finite[..60],
        |a, b, c| fused_f16(a as u16, b as u16, c as u16),
    );
    // A product halfway between two bf16 values, and an addend far below both.
    let case = |c: u64| vec![0x3F81u64, 0x3F90, c];
    for (c, wanted) in [(0, 0x3F91), (0x0080, 0x3F91), (0x8080, 0x3F91)] {
        let exact = 1.0078125f64 * 1.125;
        assert_eq!(bf16::from_f64(exact).to_bits(), 0x3F91);
        let names = ["%h1", "%h2", "%h3"];
        check_rows("fma.rn.bf16 %h0, %h1, %h2, %h3;", &names, "%h0", &[case(c)], |_| wanted);
    }
    // 1.5 * 1.0078125 = 1.51171875 lies halfway between 0x3FC1 and 0x3FC2.
    for (c, wanted) in [(0, 0x3FC2), (0x0080, 0x3FC2), (0x8080, 0x3FC1)] {
        let row = vec![0x3FC0, 0x3F81, c];
        let names = ["%h1", "%h2", "%h3"];
        check_rows("fma.rn.bf16 %h0, %h1, %h2, %h3;", &names, "%h0", &[row], |_| wanted);
    }
    let pair = product(&[&[0xC000_4000], &[0x3F80_3F80], &[0x3F80_3F80]]);
    check_rows(
        "fma.rn.relu.bf16x2 %r0, %r1, %r2, %r3;",
        &["%r1", "%r2", "%r3"],
        "%r0",
        &pair,
        |_| 0x4040,
    );
    check2(
        "max.NaN.bf16x2 %r0, %r1, %r2;",
        "%r0",
        ["%r1", "%r2"],
        &[0x7FC0_3F80, 0x8000_0000],
        |a, b| match (a >> 31, b >> 31) {
            (0, _) | (_, 0) => 0x7FFF_3F80,
            _ => 0x8000_0000,
        },
    );
    check2("min.f16 %h0, %h1, %h2;", "%h0", names, &values, |a, b| {
        let [x, y] = [a, b].map(|v| f16::from_bits(v as u16));
        match (x.is_nan(), y.is_nan()) {
            (true, _) => from_f16(y),
            (_, true) => from_f16(x),
            _ if x.total_cmp(&y).is_lt() => a,
            _ => b,
        }
    });
    check1("neg.bf16 %h0, %h1;", "%h0", "%h1", &values, |a| a ^ 0x8000);
    check1("abs.f16 %h0, %h1;", "%h0", "%h1", &values, |a| a & 0x7FFF);
    check1("ex2.approx.f16 %h0, %h1;", "%h0", "%h1", &finite, |a| {
        from_f16(f16::from_f64(f16::from_bits(a as u16).to_f64().exp2()))
    });
    check1("tanh.approx.bf16 %h0, %h1;", "%h0", "%h1", &finite, |a| {
        from_bf16(bf16::from_f64(bf16::from_bits(a as u16).to_f64().tanh()))
    });
}

/// `a * b + c` of finite f16, in whole multiples of 2^-48, rounded by looking for the nearest.
fn fused_f16(a: u16, b: u16, c: u16) -> u64 {
    let scaled = |bits: u16| -> i128 {
        // Every finite f16 is a whole multiple of 2^-24.
        (f16::from_bits(bits).to_f64() * 2f64.powi(24)) as i128
    };
    let exact = scaled(a) * scaled(b) + (scaled(c) << 24);
    if exact == 0 {
        let signs = (a ^ b) >> 15 & 1 == 1 && c >> 15 == 1;
        let product_zero = scaled(a) == 0 || scaled(b) == 0;
        return if signs && product_zero { 0x8000 } else { 0 };
    }
    let magnitude = exact.unsigned_abs() as i128;
    // The largest f16 not above, by bisection on the bits, which order like the values.
    let (mut low, mut high) = (0u16, 0x7C00u16);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if scaled(middle) << 24 <= magnitude { low = middle } else { high = middle }
    }
    let above = if high == 0x7C00 { 65536i128 << 48 } else { scaled(high) << 24 };
    let (down, up) = (magnitude - (scaled(low) << 24), above - magnitude);
    let nearest = if down < up || (down == up && low & 1 == 0) { low } else { high };
    u64::from(nearest) | if exact < 0 { 0x8000 } else { 0 }
}

#[test]
fn conversions_between_integers_extend_cut_and_clamp() {
    let types = [
        ("u8", 8, false),
        ("s8", 8, true),
        ("u16", 16, false),
        ("s16", 16, true),
        ("u32", 32, false),
        ("s32", 32, true),
        ("u64", 64, false),
        ("s64", 64, true),
    ];
    let register = |bits: u32| match bits {
        64 => "%d",
        32 => "%r",
        _ => "%h",
    };
    for (to, to_bits, to_signed) in types {
        for (from, from_bits, from_signed) in types {
            for sat in ["", ".sat"] {
                let (out, a) = (register(to_bits), register(from_bits));
                let line = format!("cvt{sat}.{to}.{from} {out}0, {a}1;");
                let (out, a) = (format!("{out}0"), format!("{a}1"));
                let register_bits = to_bits.max(16);
                check1(&line, &out, &a, &edges(from_bits.max(16)), |v| {
                    let v = if from_bits == 8 { v & 255 } else { v };
                    let value = if from_signed { signed(v, from_bits) } else { v.into() };
                    let range = |bits: u32| match to_signed {
                        true => (-1i128 << (bits - 1), (1i128 << (bits - 1)) - 1),
                        false => (0, (1i128 << bits) - 1),
                    };
                    let (least, most) = range(to_bits);
                    let value = if sat.is_empty() { value } else { value.clamp(least, most) };
                    let kept = cut(value, to_bits);
                    let kept = if to_signed { signed(kept, to_bits) } else { kept.into() };
                    cut(kept, register_bits)
                });
            }
        }
    }
    check1("cvt.u32.u8 %r0, %h1;", "%r0", "%h1", &edges(16), |v| v & 255);
    check1("cvt.s8.s32 %r0, %r1;", "%r0", "%r1", &edges(32), |v| cut(signed(v & 255, 8), 32));
    check1("cvt.s64.s8 %d0, %r1;", "%d0", "%r1", &edges(32), |v| cut(signed(v & 255, 8), 64));
    check3(
        "cvt.pack.sat.u8.s32.b32 %r0, %r1, %r2, %r3;",
        "%r0",
        ["%r1", "%r2", "%r3"],
        &edges(32),
        |a, b, c| {
            let byte = |v: u64| (v as i32).clamp(0, 255) as u64;
            byte(b) | byte(a) << 8 | (c & 0xFFFF) << 16
        },
    );
    check2("cvt.pack.sat.s16.s32 %r0, %r1, %r2;", "%r0", ["%r1", "%r2"], &edges(32), |a, b| {
        let half = |v: u64| (v as i32).clamp(-32768, 32767) as u64 & 0xFFFF;
        half(b) | half(a) << 16
    });
}

#[test]
fn floats_to_integers_round_clamp_and_zero_nan() {
    type Round = fn(f64) -> f64;
    let roundings: [(&str, Round); 4] = [
        ("rni", f64::round_ties_even),
        ("rzi", f64::trunc),
        ("rmi", f64::floor),
        ("rpi", f64::ceil),
    ];
    let mut values = singles();
    for base in [
        0.5f32,
        1.5,
        2.5,
        -0.5,
        -1.5,
        127.5,
        255.5,
        65_535.5,
        2_147_483_648.0,
        4_294_967_296.0,
        9.3e18,
        1.9e19,
    ] {
        values.extend([base, -base, base.next_down()].map(|v| u64::from(v.to_bits())));
    }
    let wide: Vec<u64> = values.iter().map(|v| f64::from(single(*v)).to_bits()).collect();
    for (suffix, round) in roundings {
        for (to, out, bits, is_signed) in [
            ("u8", "%h0", 8u32, false),
            ("s8", "%h0", 8, true),
            ("u16", "%h0", 16, false),
            ("s16", "%h0", 16, true),
            ("u32", "%r0", 32, false),
            ("s32", "%r0", 32, true),
            ("u64", "%d0", 64, false),
            ("s64", "%d0", 64, true),
        ] {
            let reference = |value: f64, from_double: bool| {
                let (least, most) = match is_signed {
                    true => (-1i128 << (bits - 1), (1i128 << (bits - 1)) - 1),
                    false => (0, (1i128 << bits) - 1),
                };
                let whole = if value.is_nan() {
                    if from_double || bits == 64 { 1 << (bits - 1) } else { 0 }
                } else {
                    (round(value) as i128).clamp(least, most)
                };
                let kept = cut(whole, bits);
                cut(if is_signed { signed(kept, bits) } else { kept.into() }, bits.max(16))
            };
            check1(&format!("cvt.{suffix}.{to}.f32 {out}, %f1;"), out, "%f1", &values, |v| {
                reference(single(v).into(), false)
            });
            check1(&format!("cvt.{suffix}.{to}.f64 {out}, %e1;"), out, "%e1", &wide, |v| {
                reference(f64::from_bits(v), true)
            });
            let halves: Vec<u64> = (0..=0xFFFF).step_by(37).collect();
            check1(&format!("cvt.{suffix}.{to}.f16 {out}, %h1;"), out, "%h1", &halves, |v| {
                reference(f16::from_bits(v as u16).into(), false)
            });
        }
        check1(&format!("cvt.{suffix}.f32.f32 %f0, %f1;"), "%f0", "%f1", &values, |v| {
            bits32(round(single(v).into()) as f32)
        });
        check1(&format!("cvt.{suffix}.f64.f64 %e0, %e1;"), "%e0", "%e1", &wide[..12], |v| {
            round(f64::from_bits(v)).to_bits()
        });
        check1(&format!("cvt.{suffix}.f16.f16 %h0, %h1;"), "%h0", "%h1", &edges(16), |v| {
            from_f16(f16::from_f64(round(f16::from_bits(v as u16).into())))
        });
    }
    check1("cvt.rzi.ftz.s32.f32 %r0, %f1;", "%r0", "%f1", &values, |v| {
        u64::from(single(v) as i32 as u32)
    });
}

#[test]
fn integers_to_floats_round_once_in_every_direction() {
    let mut values = edges(64);
    values.extend([
        16_777_217,
        16_777_219,
        33_554_434,
        0x7FFF_FF80_0000_0000,
        0xFFFF_FF7F_FFFF_FFFF,
        0x8000_0080_0000_0000,
        0x8000_0080_0000_0001,
        9_007_199_254_740_993,
        65_519,
        65_520,
        2049,
    ]);
    let below = |exact: i128, near: f32| -> f32 {
        // f32 values this large are whole.
        if near.is_infinite() || near as i128 > exact { near.next_down() } else { near }
    };
    for (from, a, bits, is_signed) in [
        ("u32", "%r1", 32, false),
        ("s32", "%r1", 32, true),
        ("u64", "%d1", 64, false),
        ("s64", "%d1", 64, true),
    ] {
        let read = move |v: u64| {
            let v = cut(v.into(), bits);
            if is_signed { signed(v, bits) } else { v.into() }
        };
        let values: Vec<u64> = values.iter().map(|v| cut((*v).into(), bits)).collect();
        check1(&format!("cvt.rn.f32.{from} %f0, {a};"), "%f0", a, &values, |v| {
            bits32(read(v) as f32)
        });
        check1(&format!("cvt.rn.f64.{from} %e0, {a};"), "%e0", a, &values, |v| {
            (read(v) as f64).to_bits()
        });
        check1(&format!("cvt.rm.f32.{from} %f0, {a};"), "%f0", a, &values, |v| {
            bits32(below(read(v), read(v) as f32))
        });
        check1(&format!("cvt.rp.f32.{from} %f0, {a};"), "%f0", a, &values, |v| {
            bits32(-below(-read(v), -read(v) as f32) + 0.0)
        });
        check1(&format!("cvt.rz.f32.{from} %f0, {a};"), "%f0", a, &values, |v| {
            let exact = read(v);
            let value = below(exact.abs(), exact.abs() as f32);
            bits32(if exact < 0 { -value } else { value })
        });
        check1(&format!("cvt.rn.f16.{from} %h0, {a};"), "%h0", a, &values, |v| {
            let exact = read(v);
            // Beyond 2^53 f16 is infinite anyway.
            from_f16(f16::from_f64(exact as f64))
        });
    }
    check1("cvt.rn.f32.f64 %f0, %e1;", "%f0", "%e1", &doubles(), |v| {
        bits32(f64::from_bits(v) as f32)
    });
    check1("cvt.rz.f32.f64 %f0, %e1;", "%f0", "%e1", &doubles(), |v| {
        let exact = f64::from_bits(v);
        let near = exact as f32;
        let beyond = f64::from(near).abs() > exact.abs();
        bits32(if beyond { f32::from_bits(near.to_bits() - 1) } else { near })
    });
    check1("cvt.sat.f32.f32 %f0, %f1;", "%f0", "%f1", &singles(), |v| {
        let v = single(v);
        bits32(if v.is_nan() { 0.0 } else { v.clamp(0.0, 1.0) + 0.0 })
    });
    check1("cvt.ftz.f32.f32 %f0, %f1;", "%f0", "%f1", &singles(), |v| {
        let v = single(v);
        bits32(if v.is_subnormal() { 0f32.copysign(v) } else { v })
    });
}

/// Values of the 8-bit formats from their definition.
fn eight(bits: u8, e4m3: bool) -> f64 {
    let (mantissa, bias) = if e4m3 { (3, 7) } else { (2, 15) };
    let (field, fraction) = ((bits & 0x7F) >> mantissa, f64::from(bits & ((1 << mantissa) - 1)));
    let special = if e4m3 { bits & 0x7F == 0x7F } else { bits & 0x7C == 0x7C };
    let one = f64::from(1u32 << mantissa);
    let value = match (special, field) {
        (true, _) if !e4m3 && bits & 3 == 0 => f64::INFINITY,
        (true, _) => f64::NAN,
        (_, 0) => fraction / one * 2f64.powi(1 - bias),
        _ => (1.0 + fraction / one) * 2f64.powi(i32::from(field) - bias),
    };
    if bits & 0x80 != 0 { -value } else { value }
}

#[test]
fn eight_bit_floats_widen_exactly_and_narrow_to_the_nearest() {
    let all: Vec<u64> = (0..=255).map(|v| v << 8 | (v * 7 & 255)).collect();
    let mut random = Random(8);
    for (name, e4m3) in [("e4m3x2", true), ("e5m2x2", false)] {
        check1(&format!("cvt.rn.f16x2.{name} %r0, %h1;"), "%r0", "%h1", &all, |v| {
            let one = |b: u64| from_f16(f16::from_f64(eight(b as u8, e4m3)));
            one(v & 255) | one(v >> 8) << 16
        });
        let largest = if e4m3 { 0x7E } else { 0x7B };
        let nearest = |value: f64| -> u64 {
            if value.is_nan() {
                return 0x7F;
            }
            let sign = if value.is_sign_negative() { 0x80 } else { 0 };
            let distance = |b: &u8| ((eight(*b, e4m3) - value.abs().min(1e6)).abs(), b & 1);
            let best = (0..=largest).min_by(|a, b| distance(a).partial_cmp(&distance(b)).unwrap());
            sign | u64::from(best.unwrap())
        };
        let mut values: Vec<u64> = singles();
        for b in 0..largest {
            let middle = (eight(b, e4m3) + eight(b + 1, e4m3)) / 2.0;
            for v in [middle as f32, (middle as f32).next_up(), (middle as f32).next_down()] {
                values.extend([v, -v].map(|v| u64::from(v.to_bits())));
            }
        }
        values.extend((0..500).map(|_| random.next() & 0x83FF_FFFF | 0x3C00_0000));
        let rows: Vec<Vec<u64>> = values.windows(2).map(<[u64]>::to_vec).collect();
        let line = format!("cvt.rn.satfinite.{name}.f32 %h0, %f1, %f2;");
        check_rows(&line, &["%f1", "%f2"], "%h0", &rows, |row| {
            nearest(single(row[0]).into()) << 8 | nearest(single(row[1]).into())
        });
        let line = format!("cvt.rn.satfinite.relu.{name}.f16x2 %h0, %r1;");
        let pairs: Vec<u64> = (0..2000).map(|_| random.next() & 0xFFFF_FFFF).collect();
        check1(&line, "%h0", "%r1", &pairs, |v| {
            let one = |v: u64| {
                let value = f64::from(f16::from_bits(v as u16));
                nearest(if value <= 0.0 { 0.0 } else { value })
            };
            one(v & 0xFFFF) | one(v >> 16) << 8
        });
    }
}

#[test]
fn instructions_of_other_families_are_left_alone() {
    let function = program("mov.u32 %r1, %tid.x; bar.sync 0; ld.global.u32 %r2, [%d1]; ret;");
    let mut registers = Registers::new(function.planes, function.predicates);
    for instruction in &function.body {
        assert!(!alu::execute(&instruction.op, &mut registers, u32::MAX));
    }
    assert!(matches!(function.body[0].op, Op::ReadSpecial { .. }));
}
