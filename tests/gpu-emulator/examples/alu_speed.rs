//! Times one warp instruction of each kind: `cargo run --release -p gpu-emulator --example
//! alu_speed`. The figures are the median (and the best) of 401 runs of
//! 200 instructions on one thread: short runs, so that a busy machine disturbs few of them.

#![allow(clippy::print_stdout, clippy::unwrap_used)] // a tool for the terminal

use gpu_emulator::exec::alu;
use gpu_emulator::exec::registers::Registers;
use gpu_emulator::ptx::parse_as_written;
use std::time::Instant;

const LINES: &[&str] = &[
    "mov.b32 %r1, %r2;",
    "add.s32 %r1, %r2, %r3;",
    "add.s32 %r1, %r2, 7;",
    "and.b32 %r1, %r2, 7;",
    "mad.lo.s32 %r1, %r2, %r3, %r4;",
    "mul.hi.u32 %r1, %r2, %r3;",
    "mul.wide.u32 %d1, %r2, 4;",
    "add.s64 %d1, %d2, %d3;",
    "cvt.u64.u32 %d1, %r2;",
    "cvt.u32.u64 %r1, %d2;",
    "div.u32 %r1, %r2, %r3;",
    "shl.b32 %r1, %r2, 3;",
    "shr.s32 %r1, %r2, %r3;",
    "shl.b64 %d1, %d2, 3;",
    "shf.l.wrap.b32 %r1, %r2, %r3, 5;",
    "lop3.b32 %r1, %r2, %r3, %r4, 0xE8;",
    "prmt.b32 %r1, %r2, %r3, 0x5410;",
    "bfe.u32 %r1, %r2, 4, 8;",
    "bfi.b32 %r1, %r2, %r3, 4, 8;",
    "popc.b32 %r1, %r2;",
    "clz.b32 %r1, %r2;",
    "dp4a.s32.s32 %r1, %r2, %r3, %r4;",
    "add.cc.u32 %r1, %r2, %r3;",
    "add.f32 %f1, %f2, %f3;",
    "fma.rn.f32 %f1, %f2, %f3, %f4;",
    "fma.rn.ftz.f32 %f1, %f2, %f3, %f4;",
    "max.f32 %f1, %f2, %f3;",
    "div.rn.f32 %f1, %f2, %f3;",
    "add.rz.f32 %f1, %f2, %f3;",
    "rcp.approx.ftz.f32 %f1, %f2;",
    "rsqrt.approx.f32 %f1, %f2;",
    "ex2.approx.ftz.f32 %f1, %f2;",
    "lg2.approx.f32 %f1, %f2;",
    "tanh.approx.f32 %f1, %f2;",
    "sin.approx.f32 %f1, %f2;",
    "fma.rn.f64 %e1, %e2, %e3, %e4;",
    "add.bf16x2 %r1, %r2, %r3;",
    "fma.rn.bf16x2 %r1, %r2, %r3, %r4;",
    "fma.rn.f16x2 %r1, %r2, %r3, %r4;",
    "max.bf16x2 %r1, %r2, %r3;",
    "cvt.rn.f32.s32 %f1, %r2;",
    "cvt.rn.f32.s8 %f1, %r2;",
    "cvt.rzi.s32.f32 %r1, %f2;",
    "cvt.f32.bf16 %f1, %h2;",
    "cvt.f32.f16 %f1, %h2;",
    "cvt.rn.bf16.f32 %h1, %f2;",
    "cvt.rn.f16.f32 %h1, %f2;",
    "cvt.rn.bf16x2.f32 %r1, %f2, %f3;",
    "cvt.s32.s8 %r1, %r2;",
    "cvt.rn.satfinite.e4m3x2.f32 %h1, %f2, %f3;",
    "setp.lt.s32 %p1, %r2, %r3;",
    "setp.gt.f32 %p1, %f2, %f3;",
    "setp.ne.s64 %p1, %d2, %d3;",
    "selp.b32 %r1, %r2, %r3, %p2;",
    "mov.b32 %r1, {%h2, %h3};",
    "mov.b32 {%h1, %h2}, %r3;",
    "mov.b64 %d1, {%r2, %r3};",
];

fn main() {
    for line in LINES {
        let text = format!(
            ".version 8.7\n.target sm_90\n.entry k() {{ .reg .pred %p<8>; .reg .b16 %h<8>; \
             .reg .b32 %r<8>; .reg .f32 %f<8>; .reg .b64 %d<8>; .reg .f64 %e<8>;\n{line}\n}}"
        );
        let function = parse_as_written(&text).unwrap().functions.remove(0);
        let mut registers = Registers::new(function.planes, function.predicates);
        for (i, plane) in registers.planes.iter_mut().enumerate() {
            for (lane, word) in plane.iter_mut().enumerate() {
                *word = if (16..24).contains(&i) {
                    (0.25 + lane as f32 * 0.37 + i as f32).to_bits()
                } else {
                    (lane as u32 * 0x9E37 + i as u32) & 0x3FFF
                };
            }
        }
        let op = &function.body[0].op;
        let time = |mask: u32, registers: &mut Registers| {
            let mut runs: Vec<f64> = (0..401)
                .map(|_| {
                    let start = Instant::now();
                    for _ in 0..200 {
                        std::hint::black_box(alu::execute(
                            std::hint::black_box(op),
                            registers,
                            mask,
                        ));
                    }
                    start.elapsed().as_nanos() as f64 / 200.0
                })
                .collect();
            runs.sort_by(f64::total_cmp);
            (runs[200], runs[0])
        };
        let full = time(u32::MAX, &mut registers);
        let part = time(0x5A5A_0FF3, &mut registers);
        println!("{:7.1} ns ({:6.1})  {:7.1} ns masked  {line}", full.0, full.1, part.0);
    }
}
