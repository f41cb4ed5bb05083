//! The parser against what compilers really emit, and against every instruction form by itself.

#![allow(clippy::unwrap_used)] // a test's own helpers may panic

use gpu_emulator::ptx::ir::{self, Base, Kind, Op, Operand, Space, Symbol, Type};
use gpu_emulator::ptx::{ParseError, parse, parse_as_written};
use std::path::Path;

fn fixtures() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ptx");
    let mut found: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "ptx"))
        .map(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, std::fs::read_to_string(path).unwrap())
        })
        .collect();
    found.sort();
    assert!(found.len() >= 6);
    found
}

fn fixture(name: &str) -> ir::Module {
    let (_, text) = fixtures().into_iter().find(|(n, _)| n == name).unwrap();
    parse(&text).unwrap()
}

fn function<'m>(module: &'m ir::Module, part: &str) -> &'m ir::Function {
    module
        .functions
        .iter()
        .find(|f| f.name.contains(part) && f.kind != Kind::Extern)
        .unwrap_or_else(|| panic!("no function {part}"))
}

/// A kernel with one register of every kind and the given lines in it.
fn kernel(lines: &str) -> Result<ir::Module, ParseError> {
    parse_as_written(&format!(
        ".version 8.7\n.target sm_90a\n.address_size 64\n\
         .global .align 16 .b8 buffer[64];\n.const .align 4 .b8 table[16];\n\
         .extern .shared .align 16 .b8 dynamic[];\n\
         .func (.param .b32 result) callee(.param .b32 x, .param .b64 y);\n\
         .visible .entry kernel(.param .u64 pointer, .param .u32 count)\n{{\n\
         .reg .pred %p<9>;\n.reg .b16 %h<9>;\n.reg .b32 %r<40>;\n.reg .f32 %f<20>;\n\
         .reg .b64 %d<9>;\n.reg .f64 %e<9>;\n.reg .b128 %q<3>;\n\
         .local .align 8 .b8 depot[32];\n.shared .align 4 .b8 tile[128];\n\
         {lines}\nret;\n}}\n"
    ))
}

fn one(line: &str) -> Op {
    let module = kernel(line).unwrap_or_else(|error| panic!("{error}"));
    let body = &function(&module, "kernel").body;
    assert_eq!(body.len(), 2, "{line}: {body:?}");
    body[0].op.clone()
}

#[test]
fn everything_nvcc_emitted_for_the_probes_is_understood() {
    for (name, text) in fixtures() {
        let module = parse(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        for function in &module.functions {
            for instruction in &function.body {
                let shown = text.lines().nth(instruction.line as usize - 1).unwrap();
                assert!(shown.contains(|c: char| c.is_ascii_lowercase()), "{name}: {shown}");
                if let Op::Bra { target, .. } = instruction.op {
                    assert!(target as usize <= function.body.len());
                }
            }
        }
    }
}

#[test]
fn cut_off_text_never_panics() {
    let refuses = |text: &str| {
        let ends = (0..text.len()).step_by(97).filter(|end| text.is_char_boundary(*end));
        ends.filter(|end| parse(&text[..*end]).is_err()).count()
    };
    std::thread::scope(|scope| {
        for (name, text) in fixtures() {
            scope.spawn(move || {
                let refused = refuses(&text);
                assert!(refused > text.len() / 97 / 3, "{name}: {refused}");
            });
        }
    });
}

#[test]
fn variables_keep_their_bytes_and_their_addresses() {
    let module = fixture("arithmetic.80.ptx");
    let named = |name: &str| {
        let index = module.variables.iter().position(|v| v.name == name).unwrap();
        (index as u32, &module.variables[index])
    };
    let (_, table) = named("table");
    assert_eq!((table.space, table.size, table.align), (Space::Const, 32, 4));
    let floats: Vec<f32> =
        table.init.chunks(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect();
    assert_eq!(floats, [1.0, -2.5, 0.0, 3e-40, 1e30, 6.0, 7.0, 8.0]);
    assert!(named("zeros").1.init.is_empty());
    assert_eq!(named("counter").1.init, 7u32.to_le_bytes());
    let (doubles, _) = named("doubles");
    let middle = named("middle").1;
    assert_eq!(middle.relocations.len(), 1);
    let relocation = middle.relocations[0];
    assert_eq!((relocation.offset, relocation.addend), (8, 16));
    assert_eq!(relocation.symbol, Symbol::Variable(doubles));
    let ops = named("ops").1;
    for (relocation, name) in ops.relocations.iter().zip(["plus", "minus"]) {
        let Symbol::Function(index) = relocation.symbol else { panic!() };
        assert!(module.functions[index as usize].name.contains(name));
    }
}

#[test]
fn parameters_limits_and_frames_are_laid_out() {
    let module = fixture("arithmetic.80.ptx");
    let calls = function(&module, "_Z5calls");
    assert_eq!(calls.limits.max_threads, Some([128, 1, 1]));
    assert_eq!(calls.limits.min_ctas_per_sm, Some(2));
    let places: Vec<_> = calls.params.iter().map(|p| (p.offset, p.size, p.align)).collect();
    assert_eq!(places, [(0, 24, 8), (24, 8, 8)]);
    assert_eq!((calls.param_bytes, calls.local_bytes), (32, 16));
    let helper = function(&module, "helper");
    assert_eq!(helper.kind, Kind::Device);
    assert_eq!(helper.params[2].offset, 8);
    assert_eq!((helper.returns[0].offset, helper.param_bytes), (32, 36));
    let indirect = function(&module, "indirect");
    assert!(indirect.body.iter().any(|i| matches!(
        &i.op,
        Op::Call { callee: ir::Callee::Indirect(_), args, returns, .. }
            if args.len() == 2 && returns[0].callee_offset == 8
    )));
}

#[test]
fn source_lines_follow_the_instructions() {
    let module = fixture("arithmetic.80.ptx");
    assert_eq!(module.files[&1], "arithmetic.cu");
    let plus = function(&module, "_Z4plusii");
    let source = include_str!("fixtures/ptx/arithmetic.cu").lines();
    let line = source.clone().position(|l| l.contains("int plus(")).unwrap() as u32 + 1;
    assert!(plus.body.iter().all(|i| i.source == Some((1, line))));
}

#[test]
fn shared_variables_are_placed_per_kernel() {
    let module = fixture("warp.80.ptx");
    let reduce = function(&module, "_Z6reduce");
    let names: Vec<_> = reduce.shared.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    let mut ends: Vec<_> = reduce.shared.iter().map(|s| (s.offset, s.offset + s.size)).collect();
    ends.sort_unstable();
    assert!(ends.windows(2).all(|w| w[0].1 <= w[1].0), "{ends:?}");
    assert_eq!(reduce.static_shared_bytes, ends.last().unwrap().1);
    assert!(reduce.shared.iter().all(|s| s.offset % s.align == 0));
    let copies = function(&module, "_Z6copies");
    assert!(copies.shared.iter().any(|s| s.dynamic && s.offset == copies.dynamic_shared_offset));
    assert_eq!((copies.static_shared_bytes, copies.dynamic_shared_offset), (1024, 1024));
    for function in &module.functions {
        for instruction in &function.body {
            let shown = format!("{:?}", instruction.op);
            assert!(!shown.contains("PendingShared"), "{shown}");
        }
    }
}

#[test]
fn shared_variables_of_called_functions_lie_alike_in_every_kernel() {
    let module = parse(
        ".version 8.0\n.target sm_80\n.address_size 64\n\
         .shared .align 4 .b8 common[100];\n.extern .shared .align 16 .b8 tail[];\n\
         .func f() { .reg .b32 %r<3>; mov.u32 %r1, common; st.shared.b32 [tail+4], %r1; ret; }\n\
         .entry a() { .shared .align 8 .b8 own[8]; .reg .b32 %r<3>; mov.u32 %r1, own; call f; }\n\
         .entry b() { .shared .align 4 .b8 own[52]; .reg .b32 %r<3>; mov.u32 %r1, own;\
           ld.shared.b32 %r2, [common+8]; call.uni f; }\n\
         .entry c() { .shared .align 4 .b8 own[52]; .reg .b32 %r<3>; mov.u32 %r1, own+4; }\n",
    )
    .unwrap();
    let mov = |name: &str| match function(&module, name).body[0].op {
        Op::Mov { a: Operand::Immediate(at), .. } => at,
        ref other => panic!("{other:?}"),
    };
    assert_eq!((mov("f"), mov("a"), mov("b"), mov("c")), (0, 104, 100, 4));
    let places = |name: &str| {
        let f = function(&module, name);
        (f.static_shared_bytes, f.dynamic_shared_offset)
    };
    assert_eq!(places("a"), (112, 112));
    assert_eq!(places("b"), (152, 160));
    assert_eq!(places("c").0, 52);
    assert!(matches!(
        function(&module, "f").body[1].op,
        Op::Store {
            address: ir::Address { base: Base::Symbol(Symbol::DynamicShared), offset: 4 },
            ..
        }
    ));
}

#[test]
fn nested_scopes_hide_names() {
    let module = kernel(
        "{ .reg .b32 t; .reg .pred q; mov.b32 t, 1; { .reg .b32 t; mov.b32 t, 2; } \
         mov.b32 t, 3;\nLOOP: @q bra LOOP; bra DONE; DONE: }\n\
         { .reg .b32 u; mov.b32 u, 4;\nLOOP: bra LOOP; bra OUT; }\nOUT: mov.b32 %r1, 5;",
    )
    .unwrap();
    let f = function(&module, "kernel");
    let written: Vec<_> = f
        .body
        .iter()
        .filter_map(|i| match i.op {
            Op::Mov { dst, .. } => Some(dst),
            _ => None,
        })
        .collect();
    assert_eq!(written[0], written[2]);
    assert_ne!(written[0], written[1]);
    assert_ne!(written[0], written[3]);
    let targets: Vec<_> = f
        .body
        .iter()
        .filter_map(|i| match i.op {
            Op::Bra { target, .. } => Some(target),
            _ => None,
        })
        .collect();
    assert_eq!(targets, [3, 5, 6, 8]);
    assert_eq!(f.body[3].guard.map(|g| g.negated), Some(false));
}

#[test]
fn registers_are_planes_and_immediates_bits_of_the_type() {
    assert_eq!(
        one("add.s32 %r2, %r1, -5;"),
        Op::Int {
            op: ir::IntOp::Add,
            ty: ir::IntType::S32,
            dst: 9 + 2,
            a: Operand::Plane(9 + 1),
            b: Operand::Immediate(0xFFFF_FFFB),
        }
    );
    assert_eq!(
        one("mov.b64 %d1, -1;"),
        Op::Mov { bits: 64, dst: 9 + 40 + 20 + 2, a: Operand::Immediate(u64::MAX) }
    );
    let Op::Float { b, .. } = one("add.f64 %e1, %e2, 0dBFF0000000000000;") else { panic!() };
    assert_eq!(b, Operand::Immediate((-1f64).to_bits()));
    let Op::Float { b, .. } = one("mul.f32 %f1, %f2, 0f3F800000;") else { panic!() };
    assert_eq!(b, Operand::Immediate(1f32.to_bits().into()));
}

#[test]
fn special_registers_are_read_into_registers() {
    use ir::SpecialRegister as S;
    assert!(matches!(one("mov.u32 %r1, %tid.y;"), Op::ReadSpecial { special: S::Tid(1), .. }));
    assert!(matches!(one("mov.u64 %d1, %clock64;"), Op::ReadSpecial { special: S::Clock64, .. }));
    let module =
        kernel("cvt.u64.u32 %d1, %ctaid.z;\nmad.lo.s32 %r1, %ntid.x, %r2, %tid.x;").unwrap();
    let body = &function(&module, "kernel").body;
    assert_eq!(body.len(), 6);
    let Op::ReadSpecial { dst, special: S::Ctaid(2) } = body[0].op else { panic!() };
    assert!(matches!(body[1].op, Op::Cvt { a: Operand::Plane(p), .. } if p == dst.plane));
}

#[test]
fn addresses_resolve_to_bases_and_offsets() {
    let load = |line: &str| match one(line) {
        Op::Load { space, address, .. } => (space, address.base, address.offset),
        other => panic!("{other:?}"),
    };
    assert_eq!(load("ld.param.u32 %r1, [count];"), (Space::Param, Base::Absolute, 8));
    assert_eq!(load("ld.param.u32 %r1, [pointer+4];"), (Space::Param, Base::Absolute, 4));
    assert_eq!(
        load("ld.global.u32 %r1, [buffer+12];"),
        (Space::Global, Base::Symbol(Symbol::Variable(0)), 12)
    );
    assert_eq!(
        load("ld.const.u32 %r1, [table+8];"),
        (Space::Const, Base::Symbol(Symbol::Variable(1)), 8)
    );
    assert_eq!(load("ld.shared.u32 %r1, [tile+8];"), (Space::Shared, Base::Absolute, 8));
    assert_eq!(load("ld.shared.u32 %r1, [%r2+-8];"), (Space::Shared, Base::Register32(11), -8));
    assert_eq!(
        load("ld.local.u32 %r1, [depot+4];"),
        (Space::Local, Base::Symbol(Symbol::LocalFrame), 4)
    );
    assert_eq!(load("ld.u32 %r1, [%d1];"), (Space::Generic, Base::Register64(71), 0));
    assert!(matches!(
        one("mov.u64 %d1, depot;"),
        Op::AddressOf { base: Base::Symbol(Symbol::LocalFrame), offset: 0, .. }
    ));
    assert!(matches!(
        one("mov.u64 %d1, buffer+8;"),
        Op::AddressOf { base: Base::Symbol(Symbol::Variable(0)), offset: 8, .. }
    ));
    assert!(matches!(
        one("mov.u64 %d1, count;"),
        Op::AddressOf { base: Base::Symbol(Symbol::ParamFrame), offset: 8, .. }
    ));
}

#[test]
fn calls_pair_their_parameters() {
    let module = kernel(
        "{ .param .b32 a; .param .b64 b; .param .b32 r;\nst.param.b32 [a], %r1;\n\
         st.param.b64 [b+0], %d1; call.uni (r), callee, (a, b); ld.param.b32 %r2, [r]; }",
    )
    .unwrap();
    let f = function(&module, "kernel");
    let Op::Call { args, returns, uniform: true, .. } = &f.body[2].op else { panic!() };
    let copy =
        |caller_offset, callee_offset, bytes| ir::ParamCopy { caller_offset, callee_offset, bytes };
    assert_eq!(*args, [copy(0, 0, 4), copy(8, 8, 8)]);
    assert_eq!(*returns, [copy(16, 16, 4)]);
    assert_eq!(f.call_bytes, 20);
    assert!(matches!(f.body[3].op, Op::Load { space: Space::CallParam, .. }));
}

#[test]
fn branch_tables_resolve() {
    let module = kernel(
        "ts: .branchtargets A, B, A;\n@%p1 brx.idx %r1, ts;\nA: mov.b32 %r1, 1;\nB: mov.b32 %r1, 2;",
    )
    .unwrap();
    let Op::BrxIdx { targets, .. } = &function(&module, "kernel").body[0].op else { panic!() };
    assert_eq!(*targets, [1, 2, 1]);
}

/// One line of every form; what it must become is checked by kind in `every_form_is_known`.
const FORMS: &str = "
add.u16 %h1, %h2, 3; sub.s64 %d1, %d2, %d3; add.sat.s32 %r1, %r2, %r3; add.s16x2 %r1, %r2, %r3;
mul.lo.u64 %d1, %d2, %d3; mul.hi.s16 %h1, %h2, %h3; mul.wide.s16 %r1, %h1, %h2;
mul.wide.u32 %d1, %r1, 4; mad.lo.s32 %r1, %r2, %r3, %r4; mad.hi.sat.s32 %r1, %r2, %r3, %r4;
mad.wide.u32 %d1, %r1, %r2, %d2; mul24.lo.s32 %r1, %r2, %r3; mad24.hi.u32 %r1, %r2, %r3, %r4;
sad.u32 %r1, %r2, %r3, %r4; div.s16 %h1, %h2, %h3; rem.u64 %d1, %d2, %d3; abs.s64 %d1, %d2;
neg.s16 %h1, %h2; min.u16 %h1, %h2, %h3; max.relu.s32 %r1, %r2, %r3; max.s16x2 %r1, %r2, %r3;
add.cc.u32 %r1, %r2, %r3; addc.u32 %r1, %r2, 0; addc.cc.s64 %d1, %d2, %d3; sub.cc.u64 %d1, %d2, %d3;
subc.u32 %r1, %r2, %r3; mad.lo.cc.u32 %r1, %r2, %r3, %r4; madc.hi.cc.u64 %d1, %d2, %d3, %d4;
and.b16 %h1, %h2, %h3; or.b64 %d1, %d2, %d3; xor.pred %p1, %p2, %p3; and.pred %p1, %p2, !%p3;
not.b32 %r1, %r2; not.pred %p1, %p2; cnot.b32 %r1, %r2; shl.b64 %d1, %d2, %r1; shr.s16 %h1, %h2, %r1;
shr.b32 %r1, %r2, 4; shf.l.wrap.b32 %r1, %r2, %r3, %r4; shf.r.clamp.b32 %r1, %r2, %r3, 7;
lop3.b32 %r1, %r2, %r3, %r4, 0xE8; prmt.b32 %r1, %r2, %r3, 0x5140; prmt.b32.f4e %r1, %r2, %r3, %r4;
bfe.s64 %d1, %d2, %r1, %r2; bfi.b32 %r1, %r2, %r3, 0, 8; bfind.u32 %r1, %r2;
bfind.shiftamt.s64 %r1, %d2; brev.b64 %d1, %d2; clz.b64 %r1, %d2; popc.b32 %r1, %r2;
bmsk.clamp.b32 %r1, %r2, %r3; szext.wrap.s32 %r1, %r2, %r3; dp4a.u32.s32 %r1, %r2, %r3, %r4;
dp2a.hi.s32.u32 %r1, %r2, %r3, %r4;
add.f32 %f1, %f2, %f3; add.rz.ftz.sat.f32 %f1, %f2, %f3; sub.rm.f64 %e1, %e2, %e3; mul.rp.f32 %f1, %f2, %f3;
fma.rn.f32 %f1, %f2, %f3, %f4; fma.rn.relu.bf16x2 %r1, %r2, %r3, %r4; fma.rn.f16 %h1, %h2, %h3, %h4;
mad.rn.f64 %e1, %e2, %e3, %e4; add.f16x2 %r1, %r2, %r3; mul.bf16 %h1, %h2, %h3; sub.rn.bf16x2 %r1, %r2, %r3;
div.rn.f32 %f1, %f2, %f3; div.full.ftz.f32 %f1, %f2, %f3; div.approx.f32 %f1, %f2, %f3; div.rz.f64 %e1, %e2, %e3;
min.NaN.f32 %f1, %f2, %f3; max.ftz.f32 %f1, %f2, %f3; max.NaN.xorsign.abs.bf16x2 %r1, %r2, %r3;
min.f64 %e1, %e2, %e3; max.f32 %f1, %f2, %f3, %f4; abs.ftz.f32 %f1, %f2; neg.f64 %e1, %e2; abs.bf16x2 %r1, %r2;
neg.f16 %h1, %h2; copysign.f64 %e1, %e2, %e3; testp.subnormal.f32 %p1, %f1; rcp.rn.f32 %f1, %f2;
rcp.approx.ftz.f64 %e1, %e2; sqrt.rn.f64 %e1, %e2; sqrt.approx.ftz.f32 %f1, %f2; rsqrt.approx.f32 %f1, %f2;
rsqrt.approx.ftz.f64 %e1, %e2; sin.approx.ftz.f32 %f1, %f2; cos.approx.f32 %f1, %f2; lg2.approx.f32 %f1, %f2;
ex2.approx.ftz.f32 %f1, %f2; ex2.approx.ftz.bf16x2 %r1, %r2; ex2.approx.f16 %h1, %h2; tanh.approx.bf16 %h1, %h2;
setp.eq.s32 %p1, %r1, 0; setp.lo.u64 %p1, %d1, %d2; setp.gtu.ftz.f32 %p1|%p2, %f1, %f2;
setp.lt.and.s32 %p1, %r1, %r2, !%p3; setp.nan.f64 %p1, %e1, %e1; setp.lt.bf16x2 %p1|%p2, %r1, %r2;
setp.ne.b16 %p1, %h1, 0; set.gt.u32.f32 %r1, %f1, %f2; set.eq.f32.s32 %f1, %r1, %r2; set.lt.or.s32.u32 %r1, %r2, %r3, %p1;
set.gt.bf16x2.bf16x2 %r1, %r2, %r3; set.eq.f16.f16 %h1, %h2, %h3;
selp.b32 %r1, %r2, 0, %p1; selp.f64 %e1, %e2, %e3, %p1; selp.u16 %h1, 1, 0, %p1; slct.f32.s32 %f1, %f2, %f3, %r1;
slct.u64.f32 %d1, %d2, %d3, %f1;
cvt.u64.u32 %d1, %r1; cvt.s8.s32 %h1, %r1; cvt.u32.u8 %r1, %h1; cvt.sat.u8.s32 %h1, %r1; cvt.rn.f32.s32 %f1, %r1;
cvt.rzi.ftz.s32.f32 %r1, %f1; cvt.rni.s64.f64 %d1, %e1; cvt.rn.f32.f64 %f1, %e1; cvt.f64.f32 %e1, %f1;
cvt.ftz.f32.f16 %f1, %h1; cvt.f32.bf16 %f1, %h1; cvt.rn.bf16.f32 %h1, %f1; cvt.rz.relu.f16.f32 %h1, %f1;
cvt.rn.bf16x2.f32 %r1, %f1, %f2; cvt.rz.f16x2.f32 %r1, %f1, %f2; cvt.rn.satfinite.e4m3x2.f32 %h1, %f1, %f2;
cvt.rn.satfinite.relu.e5m2x2.f16x2 %h1, %r1; cvt.rn.f16x2.e4m3x2 %r1, %h1; cvt.rna.tf32.f32 %r1, %f1;
cvt.rni.f32.f32 %f1, %f2; cvt.sat.f32.f32 %f1, %f2; cvt.rpi.f16.f16 %h1, %h2; cvt.rn.f16.s64 %h1, %d1;
cvt.pack.sat.u8.s32.b32 %r1, %r2, %r3, %r4; cvt.pack.sat.s16.s32 %r1, %r2, %r3;
mov.b16 %h1, 0x3C00; mov.f32 %f1, 0f00000000; mov.pred %p1, %p2; mov.pred %p1, -1; mov.b128 %q1, %q2;
mov.b32 %r1, {%h1, %h2}; mov.b64 {%r1, %r2}, %d1; mov.b64 %d1, {%h1, %h2, %h3, %h4}; mov.b32 {_, %h1}, %r1;
mov.b128 %q1, {%d1, %d2}; mov.b32 %r1, {%h1, %h2, %h3, %h4}; mov.b32 %f1, %r1; mov.u64 %d1, callee;
cvta.to.global.u64 %d1, %d2; cvta.shared.u64 %d1, %d2; cvta.local.u64 %d1, %d2; isspacep.shared %p1, %d1;
ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%r1, %r2, %r3, %r4}, [%d1+16]; ld.volatile.shared.f32 %f1, [%r1];
ld.acquire.gpu.global.u32 %r1, [%d1]; ld.relaxed.sys.b64 %d1, [%d2]; ld.global.cg.v2.f64 {%e1, %e2}, [%d1];
ld.global.u8 %h1, [%d1]; ld.global.s8 %r1, [%d1]; ld.global.b16 %h1, [%d1]; ldu.global.u32 %r1, [%d1];
ld.global.L1::evict_last.L2::cache_hint.b32 %r1, [%d1], %d2; ld.local.v2.b32 {%r1, _}, [%d1]; ld.const.v4.f32 {%f1, %f2, %f3, %f4}, [table];
ld.global.b128 %q1, [%d1]; ld.shared::cta.b64 %d1, [%r1]; ld.global.v8.b32 {%r1, %r2, %r3, %r4, %r5, %r6, %r7, %r8}, [%d1];
st.global.u32 [%d1], 7; st.shared.v4.f32 [%r1], {%f1, %f2, %f3, %f4}; st.release.gpu.global.u32 [%d1], %r1;
st.global.cs.u8 [%d1], %h1; st.b8 [%d1], %r1; st.volatile.global.f64 [%d1], %e1; st.global.L1::evict_first.b16 [%d1], %h1;
prefetch.global.L2 [%d1]; prefetch.global.L2::evict_last [%d1]; prefetchu.L1 [%d1];
createpolicy.fractional.L2::evict_first.b64 %d1, 1.0; createpolicy.fractional.L2::evict_last.L2::evict_unchanged.b64 %d1, 0.5;
atom.global.add.u32 %r1, [%d1], 1; atom.shared.cas.b32 %r1, [%r2], %r3, %r4; atom.add.noftz.f16x2 %r1, [%d1], %r2;
atom.relaxed.gpu.global.exch.b64 %d1, [%d2], %d3; atom.acq_rel.sys.inc.u32 %r1, [%d1], 9; atom.cas.b16 %h1, [%d1], %h2, %h3;
red.global.add.f32 [%d1], %f1; red.release.gpu.global.add.u32 [%d1], 1; red.global.add.noftz.bf16x2 [%d1], %r1;
red.global.v2.f32.add [%d1], {%f1, %f2}; atom.global.min.s64 %d1, [%d2], %d3; red.shared.or.b32 [%r1], %r2; atom.global.add.f64 %e1, [%d1], %e2;
membar.gl; membar.cta; fence.acq_rel.gpu; fence.sc.sys; fence.proxy.async; fence.proxy.async.shared::cta; fence.mbarrier_init.release.cluster;
cp.async.ca.shared.global [%r1], [%d1], 4; cp.async.cg.shared.global.L2::128B [%r1+16], [%d1+16], 16, %r2;
cp.async.ca.shared.global [%r1], [%d1], 8, %p1; cp.async.cg.shared.global.L2::cache_hint [%r1], [%d1], 16, %d2;
cp.async.commit_group; cp.async.wait_group 2; cp.async.wait_all; cp.async.mbarrier.arrive.noinc.shared.b64 [%r1];
mbarrier.init.shared::cta.b64 [%r1], 32; mbarrier.inval.shared.b64 [%r1]; mbarrier.arrive.shared.b64 %d1, [%r1];
mbarrier.arrive.shared.b64 _, [%r1], 4; mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], %r2;
mbarrier.arrive.release.cta.shared::cta.b64 %d1, [%r1]; mbarrier.arrive_drop.noComplete.shared.b64 %d1, [%r1], 2;
mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%r1], 64; mbarrier.test_wait.shared.b64 %p1, [%r1], %d1;
mbarrier.try_wait.parity.shared::cta.b64 %p1, [%r1], %r2, 0x989680; mbarrier.pending_count.b64 %r1, %d1;
bra L; bra.uni L; exit; trap; brkpt; ret.uni; nanosleep.u32 100; griddepcontrol.wait; griddepcontrol.launch_dependents;
shfl.sync.bfly.b32 %r1|%p1, %r2, 16, 31, -1; shfl.sync.up.b32 %r1, %r2, 1, 0, %r3; vote.sync.ballot.b32 %r1, !%p1, 0xffffffff;
vote.sync.any.pred %p1, %p2, %r1; match.any.sync.b64 %r1, %d1, -1; match.all.sync.b32 %r1|%p1, %r2, -1;
redux.sync.add.s32 %r1, %r2, -1; redux.sync.xor.b32 %r1, %r2, %r3; redux.sync.max.NaN.f32 %f1, %f2, -1;
activemask.b32 %r1; elect.sync _|%p1, -1; elect.sync %r1|%p1, %r2; bar.warp.sync -1; bar.sync 0; bar.sync 1, 64;
barrier.sync 0; barrier.cta.sync.aligned %r1, %r2; bar.arrive 1, 64; bar.red.popc.u32 %r1, 0, %p1; bar.red.and.pred %p1, 0, 64, !%p2;
barrier.cluster.arrive.relaxed.aligned; barrier.cluster.wait.aligned;
mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1,%f2,%f3,%f4}, {%r1,%r2,%r3,%r4}, {%r5,%r6}, {%f1,%f2,%f3,%f4};
mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%r1,%r2}, {%r1,%r2,%r3,%r4}, {%r5,%r6}, {%r7,%r8};
mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%f1,%f2,%f3,%f4}, {%r1,%r2}, {%r5}, {%f1,%f2,%f3,%f4};
mma.sync.aligned.m16n8k32.row.col.satfinite.s32.u8.s8.s32 {%r1,%r2,%r3,%r4}, {%r1,%r2,%r3,%r4}, {%r5,%r6}, {%r1,%r2,%r3,%r4};
mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {%f1,%f2,%f3,%f4}, {%r1,%r2}, {%r5}, {%f1,%f2,%f3,%f4};
mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e5m2.f32 {%f1,%f2,%f3,%f4}, {%r1,%r2,%r3,%r4}, {%r5,%r6}, {%f1,%f2,%f3,%f4};
mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%e1,%e2}, {%e3}, {%e4}, {%e1,%e2};
ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%r1,%r2,%r3,%r4}, [%r5+16]; ldmatrix.sync.aligned.m8n8.x1.shared::cta.b16 {%r1}, [%r2];
stmatrix.sync.aligned.m8n8.x2.shared.b16 [%r1], {%r2, %r3}; movmatrix.sync.aligned.m8n8.trans.b16 %r1, %r2;
";

#[test]
fn every_form_is_known() {
    let mut count = 0;
    for form in FORMS.split(';').map(str::trim).filter(|form| !form.is_empty()) {
        let module =
            kernel(&format!("@!%p8 {form};\nL:")).unwrap_or_else(|e| panic!("{form}: {e}"));
        let body = &function(&module, "kernel").body;
        assert_eq!(body.len(), 2, "{form}");
        let guard = body[0].guard.unwrap();
        assert!(guard.negated && guard.predicate == 8);
        count += 1;
    }
    assert!(count > 250, "{count}");
}

#[test]
fn what_is_not_known_is_an_error_naming_the_line() {
    let cases = [
        ("frob.b32 %r1, %r2;", "instruction `frob`"),
        ("add.fast.s32 %r1, %r2, %r3;", "modifier `.fast`"),
        ("add.s32 %r1, %r2;", "3 operands"),
        ("add.s32 %r1, %r2, %d1;", "64 bits"),
        ("add.s32 %r1, %r2, %r40;", "not declared"),
        ("add.s32 %r1, %r2, %r01;", "not declared"),
        ("add.s32 %p1, %r2, %r3;", "not a data register"),
        ("add.b32 %r1, %r2, %r3;", "untyped"),
        ("add.f32 %f1, %f2, 1;", "float is expected"),
        ("add.rz.bf16 %h1, %h2, %h3;", "nearest"),
        ("@%q bra L;", "not declared"),
        ("bra NOWHERE;", "NOWHERE"),
        ("L: L: exit;", "twice"),
        (".reg .b32 %r<3>;", "twice"),
        ("ld.global.u64 %r1, [%d1];", "narrower"),
        ("ld.global.v3.u32 {%r1, %r2, %r3}, [%d1];", "registers expected"),
        ("ld.global.v2.u32 %r1, [%d1];", "2 registers"),
        ("ld.shared.u32 %r1, [buffer];", "Global memory"),
        ("st.const.u32 [table], %r1;", "constant"),
        ("ld.acquire.global.u32 %r1, [%d1];", "scope"),
        ("atom.global.add.b32 %r1, [%d1], %r2;", "atomic"),
        ("cvt.f32.s32 %f1, %r1;", "rounding"),
        ("cvt.s32.f32 %r1, %f1;", "rounding"),
        ("cvt.rn.e4m3x2.f32 %h1, %f1, %f2;", "satfinite"),
        (
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1,%f2,%f3}, {%r1,%r2,%r3,%r4}, \
          {%r5,%r6}, {%f1,%f2,%f3,%f4};",
            "4 registers",
        ),
        (
            "mma.sync.aligned.m32n8k16.row.col.f32.bf16.bf16.f32 {%f1}, {%r1}, {%r5}, {%f1};",
            "m32n8k16",
        ),
        ("wgmma.fence.sync.aligned;", "wgmma"),
        ("cp.async.bulk.commit_group;", "bulk"),
        ("cp.async.cg.shared.global [%r1], [%d1], 8;", "16"),
        ("shfl.up.b32 %r1, %r2, 1, 0;", "`.sync`"),
        ("call nowhere;", "nowhere"),
        ("call callee, (%r1, %r2);", "`.param`"),
        ("mov.u32 %r1, %nonsense;", "%nonsense"),
        ("mov.u32 %r1, %tid.w;", "component"),
        ("lop3.b32 %r1, %r2, %r3, %r4, 256;", "255"),
        (".surfref x;", "surfref"),
        ("add.s32 %r1, %r2, %r3", "expected"),
    ];
    let mut wrong = Vec::new();
    for (line, part) in cases {
        // The line under test is the 19th.
        match kernel(line) {
            Ok(_) => wrong.push(format!("{line}: accepted")),
            Err(e) if !e.message.contains(part) || !(19..=20).contains(&e.line) => {
                wrong.push(format!("{line}: line {}: {}", e.line, e.message));
            }
            Err(error) => assert!(!error.text.is_empty()),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    for text in ["", ".version 8.0\n.texref x;", ".version 8.0\n.address_size 32", "garbage", "}"] {
        assert!(parse(text).is_err(), "{text:?}");
    }
}

#[test]
fn other_compilers_spelling_is_understood() {
    let module = parse(
        "//\n.version 8.4\n.target sm_80\n.address_size 64\n\
         .extern .shared .align 16 .b8 global_smem[];\n\
         .visible .entry add_kernel(\n.param .u64 .ptr .global .align 1 add_kernel_param_0,\n\
         .param .u32 add_kernel_param_1\n)\n.reqntid 128, 1, 1\n.maxnreg 64\n{\n\
         .reg .pred \t%p<7>;\n.reg .b32 \t%r<30>;\n.reg .b64 \t%rd<11>;\n.loc\t1 8 0\n$L__func_begin0:\n\
         ld.param.u64 \t%rd1, [add_kernel_param_0];\n$L__tmp0:\nmov.u32 \t%r1, global_smem;\n\
         // begin inline asm\nmov.u32 %r2, 0x0;\n\
         @%p1 ld.global.v4.b32 { %r3, %r4, %r5, %r6 }, [ %rd1 + 0 ];\n// end inline asm\n\
         .loc\t1 12 1, function_name $L__info_string0+0, inlined_at 1 9 3\n\
         bar.sync \t0;\n{ .reg .b16 tmp; mov.b32 {tmp, _}, %r3; }\nret;\n$L__func_end0:\n}\n\
         .file\t1 \"/somewhere/add.py\"\n.section\t.debug_abbrev\n{\n.b8 1\n.b8 17\n}\n\
         .section\t.debug_info\n{\n.b32 .debug_abbrev\n.b64 $L__func_begin0\n}\n\
         .section\t.debug_macinfo\t{\t}\n",
    )
    .unwrap();
    let f = &module.functions[0];
    assert_eq!(f.limits.required_threads, Some([128, 1, 1]));
    assert_eq!(f.limits.max_registers, Some(64));
    assert_eq!(f.params[1].offset, 8);
    assert!(matches!(&f.body[3].op, Op::Load { ty: Type::B32, dsts, .. } if dsts.len() == 4));
    assert_eq!(f.body[4].source, Some((1, 12)));
}

#[test]
fn registers_never_alive_together_share_planes() {
    let text = |body: &str| {
        format!(
            ".version 8.0\n.target sm_80\n.entry k(.param .u64 p) {{ .reg .pred %p<9>; \
             .reg .b32 %r<99>; .reg .b64 %d<99>;\n{body}\nret; }}"
        )
    };
    let planes = |body: &str| parse(&text(body)).unwrap().functions[0].planes;
    // A chain of values needs one place, a wide one two and in an even place.
    let chain: String = (1..90).map(|i| format!("add.s32 %r{}, %r{i}, 1;", i + 1)).collect();
    assert_eq!(planes(&chain), 1);
    assert_eq!(planes("mov.b32 %r1, 1; mul.wide.u32 %d1, %r1, 4; cvt.u32.u64 %r2, %d1;"), 2);
    // Values that meet at the end are alive together.
    let all: String = (1..9).map(|i| format!("mov.b32 %r{i}, {i};")).collect();
    let sum: String = (1..9).map(|i| format!("add.s32 %r0, %r0, %r{i};")).collect();
    assert_eq!(planes(&format!("mov.b32 %r0, 0; {all}{sum}")), 9);
    // A value set before a loop and read in it lives through all of it, and so does its counter.
    let body = "mov.b32 %r1, 5; mov.b32 %r2, 0;\nL: add.s32 %r3, %r2, %r1; mov.b32 %r4, %r3;\n\
                add.s32 %r2, %r4, 1; setp.lt.s32 %p1, %r2, 99; @%p1 bra L;";
    assert_eq!(planes(body), 3);
    // A guarded write may leave what was there.
    let body = "mov.b32 %r1, 5; mov.b32 %r2, 7; @%p1 mov.b32 %r1, %r2; add.s32 %r3, %r1, 1;";
    assert_eq!(planes(body), 2);
    // What a load writes never lies on its own address.
    let module = parse(&text("mov.b64 %d1, 64; ld.global.v2.b32 {%r1, %r2}, [%d1];")).unwrap();
    let Op::Load { dsts, address, .. } = &module.functions[0].body[1].op else { panic!() };
    let Base::Register64(base) = address.base else { panic!() };
    assert!(dsts.iter().flatten().all(|r| r.plane != base && r.plane != base + 1));
    assert_ne!(dsts[0].unwrap().plane, dsts[1].unwrap().plane);
    assert!(function(&fixture("arithmetic.80.ptx"), "floats").planes < 100);
}

/// Straight-line programs give the same results wherever their registers lie.
#[test]
fn compacting_changes_no_result() {
    use gpu_emulator::exec::alu;
    use gpu_emulator::exec::registers::Registers;
    let mut state = 9u64;
    let mut random = |below: u64| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for _ in 0..200 {
        let mut body = String::from("mov.b32 %r0, 1; mov.b64 %d0, 3; setp.eq.s32 %p0, %r0, %r0;\n");
        for i in 1..60 {
            let (a, b) = (random(i), random(i));
            let line = match random(6) {
                0 => format!("mul.wide.u32 %d{i}, %r{a}, 77; mov.b32 %r{i}, %r{b};"),
                1 => format!("mov.b64 {{%r{i}, _}}, %d{a}; add.s64 %d{i}, %d{a}, %d{b};"),
                2 => format!("mov.b64 %d{i}, {{%r{a}, %r{b}}}; xor.b32 %r{i}, %r{a}, %r{b};"),
                3 => format!(
                    "setp.lt.s32 %p{i}, %r{a}, %r{b}; selp.b64 %d{i}, %d{a}, %d{b}, %p{i}; \
                     mov.b32 %r{i}, 9; @%p{i} mov.b32 %r{i}, %r{a};"
                ),
                4 => format!("add.s32 %r{i}, %r{a}, %r{b}; cvt.u64.u32 %d{i}, %r{i};"),
                _ => format!("cvt.u32.u64 %r{i}, %d{a}; mad.wide.u32 %d{i}, %r{b}, 5, %d{a};"),
            };
            body.push_str(&line);
            body.push('\n');
        }
        body.push_str(
            "mov.b64 {%r98, %r97}, %d59; xor.b32 %r99, %r98, %r97; xor.b32 %r99, %r99, %r59;",
        );
        let text = format!(
            ".version 8.0\n.target sm_80\n.entry k() {{ .reg .pred %p<99>; .reg .b32 %r<100>; \
             .reg .b64 %d<99>;\n{body} }}"
        );
        let run = |module: ir::Module| {
            let f = &module.functions[0];
            let mut registers = Registers::new(f.planes, f.predicates);
            let mut last = 0;
            for instruction in &f.body {
                let mask = registers.guarded(instruction.guard, u32::MAX);
                assert!(alu::execute(&instruction.op, &mut registers, mask));
                if let Op::Int { dst, .. } = instruction.op {
                    last = dst;
                }
            }
            (registers.planes[last as usize], f.planes)
        };
        let (apart, many) = run(parse_as_written(&text).unwrap());
        let (shared, few) = run(parse(&text).unwrap());
        assert_eq!(apart, shared, "{text}");
        assert!(few < many / 2, "{few} of {many}");
    }
}
