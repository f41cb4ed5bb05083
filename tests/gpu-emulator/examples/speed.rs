//! How long the executor takes for one warp instruction of each kind, on one host thread.
//!
//! `cargo run --release -p gpu-emulator --example speed [part of a name]...`. These are times of
//! the interpreter on this machine's processor; they say nothing about any GPU.
#![allow(
    clippy::unwrap_used,
    clippy::precedence,
    clippy::type_complexity,
    reason = "a test may fail by panicking, and spells out what an instruction does"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use support::{Device, Params, kernel};

/// Processor time of this thread: other programs do not count.
fn cpu_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes the structure it is given and nothing else.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// Nanoseconds of one of `copies` copies of `line` in a loop of one full warp.
fn measure(setup: &str, line: &str, copies: usize) -> f64 {
    const ROUNDS: u32 = 2000;
    let body = |lines: usize| {
        format!(
            "{setup}\nmov.u32 %r60, 0;\nLOOP:\n{}add.u32 %r60, %r60, 1;\n\
             setp.lt.u32 %p7, %r60, {ROUNDS};\n@%p7 bra LOOP;",
            format!("{line}\n").repeat(lines)
        )
    };
    let time = |lines: usize| {
        let device = Device::new(&kernel(&body(lines)));
        let out = device.words(&[0; 4096], "out");
        let input = device.words(&[1; 4096], "in");
        let params = Params::default().u64(out).u64(input).u32(0);
        (0..5)
            .map(|_| {
                let start = cpu_seconds();
                device.launch("test", [1, 1, 1], [32, 1, 1], &params.0).unwrap();
                cpu_seconds() - start
            })
            .fold(f64::MAX, f64::min)
    };
    (time(copies) - time(0)) * 1e9 / (f64::from(ROUNDS) * copies as f64)
}

fn main() {
    let address = "mul.wide.u32 %rd5, %r1, 16;\nadd.u64 %rd6, %rd4, %rd5;\nshl.b32 %r5, %r1, 4;\n\
                   add.u32 %r6, %r3, %r5;\nmov.u32 %r20, 1;\nmov.u32 %r21, 2;\nmov.u32 %r22, 3;\n\
                   mov.u32 %r23, 4;\nst.shared.v4.u32 [%r6], {%r20,%r21,%r22,%r23};\nbar.sync 0;\n\
                   mov.b32 %f1, 1.0;\nmov.b32 %f2, 0.5;\nmul.wide.u32 %rd7, %r1, 256;\n\
                   add.u64 %rd7, %rd4, %rd7;";
    let lines = [
        ("add.u32", "add.u32 %r30, %r30, %r1;"),
        ("add.u64", "add.u64 %rd9, %rd9, %rd4;"),
        ("mad.lo.u32", "mad.lo.u32 %r30, %r1, %r2, %r30;"),
        ("setp + selp", "setp.lt.u32 %p1, %r1, %r30;\nselp.b32 %r31, %r1, %r30, %p1;"),
        ("add.u32 predicated off", "@%p6 add.u32 %r30, %r30, %r1;"),
        ("fma.rn.f32", "fma.rn.f32 %f3, %f1, %f2, %f3;"),
        ("ld.global.u32 dense", "ld.global.u32 %r30, [%rd4];"),
        ("ld.global.v4.u32 dense", "ld.global.v4.u32 {%r30,%r31,%r32,%r33}, [%rd6];"),
        ("ld.global.u32 strided", "ld.global.u32 %r30, [%rd7];"),
        ("st.global.u32 dense", "st.global.u32 [%rd3], %r1;"),
        ("ld.shared.u32 dense", "ld.shared.u32 %r30, [%r4];"),
        ("ld.shared.u32 broadcast", "ld.shared.u32 %r30, [tile];"),
        ("ld.shared.v4.u32", "ld.shared.v4.u32 {%r30,%r31,%r32,%r33}, [%r6];"),
        ("st.shared.u32 dense", "st.shared.u32 [%r4+2048], %r1;"),
        ("st.shared.v4.u32", "st.shared.v4.u32 [%r6+2048], {%r1,%r1,%r1,%r1};"),
        ("ldmatrix.x4", "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r30,%r31,%r32,%r33}, [%r6];"),
        ("shfl.bfly", "shfl.sync.bfly.b32 %r30, %r1, 1, 31, -1;"),
        ("bar.warp.sync", "bar.warp.sync -1;"),
        ("bar.sync (one warp)", "bar.sync 0;"),
        (
            "cp.async 16 + wait",
            "cp.async.cg.shared.global [%r6+512], [%rd6], 16;\ncp.async.wait_all;",
        ),
        ("red.shared.add", "red.shared.add.u32 [%r4+1024], %r1;"),
        ("atom.global.add", "atom.global.add.u32 %r30, [%rd3], %r1;"),
        (
            "mma.m16n8k16 bf16",
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f4,%f5,%f6,%f7}, \
             {%r20,%r21,%r22,%r23}, {%r20,%r21}, {%f4,%f5,%f6,%f7};",
        ),
        (
            "mma.m16n8k16 f16",
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f4,%f5,%f6,%f7}, \
             {%r20,%r21,%r22,%r23}, {%r20,%r21}, {%f4,%f5,%f6,%f7};",
        ),
        (
            "mma.m16n8k32 s8",
            "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%r40,%r41,%r42,%r43}, \
             {%r20,%r21,%r22,%r23}, {%r20,%r21}, {%r40,%r41,%r42,%r43};",
        ),
    ];
    // Arguments choose the kinds whose names contain one of them.
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let chosen = |name: &str| wanted.is_empty() || wanted.iter().any(|w| name.contains(w));
    for (name, line) in lines.into_iter().filter(|(name, _)| chosen(name)) {
        println!(
            "{name:26} {:7.1} ns",
            measure(&format!("{address}\nst.shared.u32 [%r4+1024], %r1;"), line, 50)
        );
    }
}
