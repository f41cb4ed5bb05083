//! Every rule of the executor: broken by a minimal kernel it is a fault, kept it is silence.

#![allow(
    clippy::unwrap_used,
    clippy::precedence,
    clippy::type_complexity,
    reason = "a test may fail by panicking, and spells out what an instruction does"
)]

mod support;

use gpu_emulator::launch::FaultKind;
use support::{Device, Params, faults, kernel, run, runs};

// --- out of bounds, lifetime, alignment, written ------------------------------------------------

#[test]
fn an_address_shifted_past_the_end_is_out_of_bounds() {
    let load =
        |offset: u32| format!("ld.global.u32 %r10, [%rd4+{offset}];\nst.global.u32 [%rd1], %r10;");
    assert_eq!(runs(&load(16380), 1)[0], 4095);
    let message = faults(FaultKind::OutOfBounds, &load(16384), 1);
    assert!(message.contains("'in'") && message.contains("PTX line"), "{message}");
    let store = "mov.u32 %r10, 1;\nst.global.u32 [%rd3+16380], %r10;";
    runs(store, 1);
    let message = faults(FaultKind::OutOfBounds, store, 32);
    assert!(message.contains("thread (1, 0, 0)"), "{message}");
}

#[test]
fn a_null_pointer_is_named_one() {
    let message = faults(FaultKind::OutOfBounds, "mov.u64 %rd9, 8;\nld.global.u32 %r9, [%rd9];", 1);
    assert!(message.contains("null"), "{message}");
}

#[test]
fn shared_memory_ends_where_it_ends() {
    runs("st.shared.u32 [tile+4092], %r1;", 1);
    faults(FaultKind::OutOfBounds, "st.shared.u32 [tile+4096], %r1;", 1);
}

#[test]
fn a_freed_buffer_is_not_read() {
    let device = Device::new(&kernel("ld.global.u32 %r10, [%rd4];\nst.global.u32 [%rd3], %r10;"));
    let (out, input) = (device.words(&[0; 32], "out"), device.words(&[7; 32], "scratch"));
    let params = Params::default().u64(out).u64(input).u32(0);
    device.launch("test", [1, 1, 1], [32, 1, 1], &params.0).unwrap();
    device.memory.free(input).unwrap();
    let fault = device.launch("test", [1, 1, 1], [32, 1, 1], &params.0).unwrap_err();
    assert_eq!(fault.kind, FaultKind::OutOfBounds);
    assert!(fault.message.contains("use after free") && fault.message.contains("'scratch'"));
}

#[test]
fn vectors_start_at_multiples_of_their_size() {
    let load = |offset: u32| {
        format!(
            "ld.global.v4.u32 {{%r10,%r11,%r12,%r13}}, [%rd4+{offset}];\nst.global.u32 [%rd3], %r11;"
        )
    };
    assert_eq!(runs(&load(16), 1)[0], 5);
    faults(FaultKind::Misaligned, &load(8), 1);
    faults(FaultKind::Misaligned, "ld.global.u32 %r9, [%rd4+2];", 1);
    faults(FaultKind::Misaligned, "mov.u64 %rd9, 0;\nst.shared.u64 [tile+4], %rd9;", 1);
}

#[test]
fn what_nobody_wrote_is_not_read() {
    let device = Device::new(&kernel("ld.global.u32 %r10, [%rd4+4];\nst.global.u32 [%rd3], %r10;"));
    let (out, input) = (device.words(&[0; 32], "out"), device.empty(128, "in"));
    device.memory.write(input, &[1; 4]).unwrap();
    let params = Params::default().u64(out).u64(input).u32(0);
    let fault = device.launch("test", [1, 1, 1], [1, 1, 1], &params.0).unwrap_err();
    assert_eq!(fault.kind, FaultKind::Uninitialised);
    device.memory.write(input + 4, &[1; 4]).unwrap();
    device.launch("test", [1, 1, 1], [1, 1, 1], &params.0).unwrap();

    faults(FaultKind::Uninitialised, "ld.shared.u32 %r10, [tile];\nst.global.u32 [%rd3], %r10;", 1);
    let local = |before: &str| {
        format!(
            ".local .align 4 .b8 mine[16];\n{before}\nld.local.u32 %r10, [mine+4];\nst.global.u32 [%rd3], %r10;"
        )
    };
    faults(FaultKind::Uninitialised, &local(""), 1);
    assert_eq!(runs(&local("st.local.u32 [mine+4], %r1;"), 32)[31], 31);
    faults(FaultKind::OutOfBounds, &local("st.local.u32 [mine+16], %r1;"), 1);
}

// --- shared-memory races ------------------------------------------------------------------------

/// Every thread writes its word and reads its neighbour's in the next warp.
fn exchange(between: &str) -> String {
    format!(
        "st.shared.u32 [%r4], %r1;\n{between}\nxor.b32 %r5, %r2, 128;\nadd.u32 %r5, %r3, %r5;\n\
         ld.shared.u32 %r10, [%r5];\nst.global.u32 [%rd3], %r10;"
    )
}

/// The same with a neighbour in the same warp.
fn exchange_in_warp(between: &str) -> String {
    exchange(between).replace("%r2, 128", "%r2, 4")
}

#[test]
fn a_missing_barrier_is_a_race() {
    let out = runs(&exchange("bar.sync 0;"), 64);
    assert!((0..64).all(|i| out[i as usize] == i ^ 32));
    // Whoever comes first is told: uninitialised when the reader does, a race when the writer does.
    for seed in 0..12 {
        let options = gpu_emulator::launch::Options { seed, threads: 1 };
        let fault = support::run_grid(&exchange(""), 1, 64, options).unwrap_err();
        let known = matches!(fault.kind, FaultKind::SharedRace | FaultKind::Uninitialised);
        assert!(known, "{fault}");
    }
}

#[test]
fn a_missing_barrier_before_overwriting_is_a_race() {
    let again = |between: &str| {
        exchange("bar.sync 0;")
            + &format!("\n{between}\nadd.u32 %r1, %r1, 1;\nst.shared.u32 [%r4], %r1;")
    };
    runs(&again("bar.sync 0;"), 64);
    let message = faults(FaultKind::SharedRace, &again(""), 64);
    assert!(message.contains("barrier between"), "{message}");
}

#[test]
fn lanes_of_a_warp_are_not_in_lockstep() {
    let out = runs(&exchange_in_warp("bar.warp.sync 0xffffffff;"), 32);
    assert!((0..32).all(|i| out[i as usize] == i ^ 1));
    let message = faults(FaultKind::SharedRace, &exchange_in_warp(""), 32);
    assert!(message.contains("lockstep"), "{message}");
    let shuffle = "shfl.sync.bfly.b32 %r20, %r1, 1, 31, 0xffffffff;";
    faults(FaultKind::SharedRace, &exchange_in_warp(shuffle), 32);
}

#[test]
fn a_barrier_of_some_warps_orders_those_warps() {
    let named = |id: &str| format!("bar.sync {id}, 64;");
    runs(&exchange(&named("1")), 64);
    // Warps 0, 1 meet at one barrier, 2 and 3 at another; the exchange stays inside each pair.
    let pairs = "shr.u32 %r6, %r1, 6;\nadd.u32 %r6, %r6, 1;\nbar.sync %r6, 64;";
    runs(&exchange(pairs), 128);
    let crossed = exchange(pairs).replace("%r2, 128", "%r2, 256");
    for seed in 0..6 {
        let options = gpu_emulator::launch::Options { seed, threads: 1 };
        let fault = support::run_grid(&crossed, 1, 128, options).unwrap_err();
        assert!(matches!(fault.kind, FaultKind::SharedRace | FaultKind::Uninitialised), "{fault}");
    }
}

#[test]
fn producers_arrive_and_consumers_wait() {
    let body = |producer: &str| {
        format!(
            "setp.ge.u32 %p1, %r1, 32;\n@%p1 bra CONSUME;\nst.shared.u32 [%r4], %r1;\n{producer}\n\
             bra END;\nCONSUME:\nbar.sync 1, 64;\nld.shared.u32 %r10, [%r4+-128];\n\
             st.global.u32 [%rd3], %r10;\nEND:\nret;"
        )
    };
    let out = runs(&body("bar.arrive 1, 64;"), 64);
    assert!((32..64).all(|i| out[i as usize] == i - 32));
    let late = body("bar.arrive 1, 64;\nadd.u32 %r1, %r1, 7;\nst.shared.u32 [%r4], %r1;");
    for seed in 0..6 {
        let options = gpu_emulator::launch::Options { seed, threads: 1 };
        let fault = support::run_grid(&late, 1, 64, options).unwrap_err();
        assert_eq!(fault.kind, FaultKind::SharedRace, "a store after the arrival: {fault}");
    }
}

#[test]
fn atomics_of_many_threads_do_not_race_and_a_plain_read_waits_for_a_barrier() {
    let body = |between: &str| {
        format!(
            "setp.ne.u32 %p1, %r1, 0;\nmov.u32 %r9, 0;\n@!%p1 st.shared.u32 [tile], %r9;\nbar.sync 0;\n\
             mov.u32 %r8, 1;\nred.shared.add.u32 [tile], %r8;\n{between}\nld.shared.u32 %r10, [tile];\n\
             st.global.u32 [%rd3], %r10;"
        )
    };
    let out = runs(&body("bar.sync 0;"), 128);
    assert!(out[..128].iter().all(|n| *n == 128));
    faults(FaultKind::SharedRace, &body(""), 128);
}

// --- cp.async -----------------------------------------------------------------------------------

/// Two copies in two groups, then a wait, then thread `i` reads what thread `i ^ flip` copied.
fn copies(wait: &str, flip: u32, read: u32) -> String {
    format!(
        "shl.b32 %r5, %r1, 4;\ncvt.u64.u32 %rd5, %r5;\nadd.u64 %rd6, %rd4, %rd5;\nadd.u32 %r6, %r3, %r5;\n\
         cp.async.cg.shared.global [%r6], [%rd6], 16;\ncp.async.commit_group;\n\
         cp.async.cg.shared.global [%r6+1024], [%rd6+1024], 16;\ncp.async.commit_group;\n{wait}\n\
         xor.b32 %r7, %r5, {};\nadd.u32 %r7, %r3, %r7;\nld.shared.u32 %r10, [%r7+{read}];\n\
         st.global.u32 [%rd3], %r10;",
        flip * 16
    )
}

#[test]
fn a_copy_is_there_after_its_wait_and_a_barrier() {
    let out = runs(&copies("cp.async.wait_group 0;\nbar.sync 0;", 1, 1024), 64);
    assert!((0..64u32).all(|i| out[i as usize] == 256 + (i ^ 1) * 4));
    let out = runs(&copies("cp.async.wait_group 1;\nbar.sync 0;", 1, 0), 64);
    assert!((0..64u32).all(|i| out[i as usize] == (i ^ 1) * 4));
    let out = runs(&copies("cp.async.wait_all;", 0, 1024), 64);
    assert!((0..64u32).all(|i| out[i as usize] == 256 + i * 4), "its own, with no barrier");
}

#[test]
fn a_weakened_wait_group_is_found() {
    let message = faults(
        FaultKind::UnwaitedCopy,
        &copies("cp.async.wait_group 1;\nbar.sync 0;", 1, 1024),
        64,
    );
    assert!(message.contains("cp.async") && message.contains("PTX line"), "{message}");
    faults(FaultKind::UnwaitedCopy, &copies("bar.sync 0;", 0, 0), 64);
    faults(FaultKind::SharedRace, &copies("cp.async.wait_group 0;", 1, 1024), 32);
}

#[test]
fn a_copy_fills_with_zeros_what_it_does_not_read() {
    let body = "shl.b32 %r5, %r1, 4;\ncvt.u64.u32 %rd5, %r5;\nadd.u64 %rd6, %rd4, %rd5;\n\
        add.u32 %r6, %r3, %r5;\nmov.u32 %r8, 8;\n\
        cp.async.cg.shared.global [%r6], [%rd6+4], 16, %r8;\n";
    faults(FaultKind::Misaligned, body, 32);
    let body = body.replace("+4", "+16")
        + "cp.async.wait_all;\nld.shared.v4.u32 {%r10,%r11,%r12,%r13}, [%r6];\n\
           add.u32 %r10, %r10, %r11;\nadd.u32 %r12, %r12, %r13;\nshl.b32 %r12, %r12, 16;\n\
           add.u32 %r10, %r10, %r12;\nst.global.u32 [%rd3], %r10;";
    let out = runs(&body, 32);
    assert!((0..32u32).all(|i| out[i as usize] == 2 * (4 + i * 4) + 1));
    // Nothing is read, so the source may be anywhere.
    let nothing = body.replace("mov.u32 %r8, 8;", "mov.u32 %r8, 0;\nmov.u64 %rd6, 0;");
    assert!(runs(&nothing, 32)[..32].iter().all(|w| *w == 0));
}

// --- synchronisation ----------------------------------------------------------------------------

#[test]
fn a_divergent_barrier_is_illegal() {
    let half = "setp.ge.u32 %p1, %r1, 16;\n@%p1 bra AROUND;\nbar.sync 0;\nAROUND:\n";
    let message = faults(FaultKind::IllegalSync, &format!("{half}st.global.u32 [%rd3], %r1;"), 32);
    assert!(message.contains("divergence"), "{message}");
    faults(FaultKind::IllegalSync, &format!("{half}bar.sync 0;"), 32);
    faults(
        FaultKind::IllegalSync,
        "setp.lt.u32 %p1, %r1, 16;\n@%p1 bar.sync 0;\nst.global.u32 [%rd3], %r1;",
        32,
    );
    // Threads that have left do not count; code after an if is reached together.
    runs(
        "setp.ge.u32 %p1, %r1, 16;\n@%p1 bra OUT;\nbar.sync 0;\nst.global.u32 [%rd3], %r1;\nOUT:\nret;",
        32,
    );
    let after = "setp.ge.u32 %p1, %r1, 16;\n@%p1 bra AFTER;\nadd.u32 %r1, %r1, 100;\nAFTER:\nbar.sync 0;\nst.global.u32 [%rd3], %r1;";
    let out = runs(after, 64);
    assert!((0..64).all(|i| out[i as usize] == if i < 16 { i + 100 } else { i }));
}

#[test]
fn a_barrier_some_warp_never_reaches_is_a_deadlock() {
    let body = |count: &str| {
        format!(
            "setp.ge.u32 %p1, %r1, 32;\n@%p1 bra OTHER;\nbar.sync 1{count};\nOTHER:\nbar.sync 0;"
        )
    };
    let message = faults(FaultKind::Deadlock, &body(", 64"), 64);
    assert!(message.contains("PTX line"), "{message}");
    runs(&body(", 32"), 64);
    faults(FaultKind::IllegalSync, "bar.sync 1, 33;", 64);
    let different = "setp.ge.u32 %p1, %r1, 32;\n@%p1 bra OTHER;\nbar.sync 1, 64;\nbra END;\nOTHER:\nbar.sync 1, 96;\nEND:\nret;";
    faults(FaultKind::IllegalSync, different, 64);
}

#[test]
fn a_loop_nobody_ends_is_a_deadlock() {
    let spin =
        "WAIT:\nld.volatile.global.u32 %r10, [%rd1];\nsetp.eq.u32 %p1, %r10, 0;\n@%p1 bra WAIT;";
    let message = faults(FaultKind::Deadlock, spin, 64);
    assert!(message.contains("spins"), "{message}");
}

/// Every CTA counts itself in `out[0]`, then waits until there are `arrivals`: its first thread
/// reads the count and tells the others through shared memory, between barriers.
fn waits_together(arrivals: u32) -> String {
    format!(
        "mov.u32 %r10, 1;\nsetp.ne.u32 %p1, %r1, 0;\n@!%p1 red.global.add.u32 [%rd1], %r10;\n\
         WAIT:\nbar.sync 0;\n@%p1 bra READ;\nld.volatile.global.u32 %r11, [%rd1];\n\
         st.shared.u32 [tile], %r11;\nREAD:\nbar.sync 0;\nld.shared.u32 %r12, [tile];\n\
         setp.lt.u32 %p2, %r12, {arrivals};\n@%p2 bra WAIT;\nst.global.u32 [%rd3+128], %r12;"
    )
}

#[test]
fn a_cta_that_waits_between_barriers_lets_the_others_run_and_is_a_deadlock_without_them() {
    for seed in 0..6 {
        let options = gpu_emulator::launch::Options { seed, threads: 1 };
        let (out, _) = support::run_grid(&waits_together(5), 5, 64, options).unwrap();
        assert!(out[32..96].iter().all(|count| *count == 5));
        let fault = support::run_grid(&waits_together(6), 5, 64, options).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Deadlock, "{fault}");
        assert!(fault.message.contains("spins"), "{fault}");
    }
}

#[test]
fn a_shuffle_names_lanes_that_execute_it() {
    let shuffle = |mask: &str| {
        format!("shfl.sync.down.b32 %r10, %r1, 1, 31, {mask};\nst.global.u32 [%rd3], %r10;")
    };
    let out = runs(&shuffle("0xffffffff"), 32);
    assert!((0..31).all(|i| out[i as usize] == i + 1) && out[31] == 31);
    // Lanes 16 to 31 have exited.
    let early = |mask: &str| "setp.ge.u32 %p1, %r1, 16;\n@%p1 exit;\n".to_owned() + &shuffle(mask);
    let message = faults(FaultKind::IllegalSync, &early("0xffffffff"), 32);
    assert!(message.contains("exited"), "{message}");
    let message = faults(FaultKind::IllegalSync, &early("0x0000ffff"), 32);
    assert!(message.contains("from lane 16"), "{message}");
    assert_eq!(runs(&early("0x0000ffff").replace("1, 31", "1, 15"), 32)[4], 5);
    // A lane that is not in its own mask.
    faults(FaultKind::IllegalSync, &shuffle("0x7fffffff"), 32);
    // One half shuffles, the other is elsewhere for good.
    let elsewhere = "setp.ge.u32 %p1, %r1, 16;\n@%p1 bra ELSE;\nshfl.sync.bfly.b32 %r10, %r1, 1, 31, -1;\nbra END;\n\
        ELSE:\nshfl.sync.bfly.b32 %r10, %r1, 2, 31, -1;\nEND:\nst.global.u32 [%rd3], %r10;";
    faults(FaultKind::IllegalSync, elsewhere, 32);
    // And each half with a mask of its own.
    let halves = elsewhere.replacen("-1", "0x0000ffff", 1).replacen("-1", "0xffff0000", 1);
    let out = runs(&halves, 32);
    assert_eq!((out[4], out[20]), (5, 22));
}

#[test]
fn a_warp_barrier_waits_for_the_lanes_it_names() {
    let apart = "setp.ge.u32 %p1, %r1, 16;\n@%p1 bra ELSE;\nbar.warp.sync -1;\nbra END;\nELSE:\n{other}\nEND:\nst.global.u32 [%rd3], %r1;";
    runs(&apart.replace("{other}", "bar.warp.sync -1;"), 32);
    faults(FaultKind::IllegalSync, &apart.replace("{other}", "bar.sync 0;"), 32);
    // Lanes that have exited are not waited for.
    runs(&apart.replace("{other}", "exit;"), 32);
}

#[test]
fn trap_and_assertions_stop_the_kernel() {
    let message = faults(FaultKind::Trap, "setp.eq.u32 %p1, %r1, 5;\n@%p1 trap;", 32);
    assert!(message.contains("thread (5, 0, 0)"), "{message}");
}

#[test]
fn a_launch_keeps_the_limits() {
    assert!(run("ret;", 1024).is_ok());
    assert_eq!(run("ret;", 1025).unwrap_err().kind, FaultKind::Trap);
    let big = kernel("ret;").replace("tile[4096]", "tile[49156]");
    let device = Device::new(&big);
    let params = Params::default().u64(0).u64(0).u32(0);
    let fault = device.launch("test", [1, 1, 1], [32, 1, 1], &params.0).unwrap_err();
    assert!(fault.message.contains("49156"), "{fault}");
    let mut device = Device::new(&kernel("ret;"));
    device.dynamic_shared_bytes = 227 * 1024;
    assert!(device.launch("test", [1, 1, 1], [32, 1, 1], &params.0).is_err());
    device.dynamic_shared_bytes -= 4096;
    assert!(device.launch("test", [1, 1, 1], [32, 1, 1], &params.0).is_ok());
    assert!(device.launch("test", [1, 70_000, 1], [32, 1, 1], &params.0).is_err());
    assert!(device.launch("test", [1, 1, 1], [32, 1, 1], &[0; 8]).is_err(), "too few parameters");
}

// --- launches that may begin early --------------------------------------------------------------

/// Runs a kernel behind one that stored to `stored` buffers and may not have ended, under some
/// seeds: always without a fault, or always with one, whose message comes back.
#[track_caller]
fn early(body: &str, threads: u32, stored: &[&str]) -> Result<(), String> {
    let mut outcomes = (0..6).map(|seed| {
        let mut device = Device::new(&kernel(body));
        device.options.seed = seed;
        let (out, input) = (device.words(&[0; 64], "out"), device.words(&[7; 64], "in"));
        let params = Params::default().u64(out).u64(input).u32(64);
        let stored: Vec<u64> =
            stored.iter().map(|name| if *name == "out" { out } else { input }).collect();
        let (grid, block) = ([2, 1, 1], [threads, 1, 1]);
        let outcome = device.launch_behind(Some(&stored), "test", grid, block, &params.0);
        // What does not begin early need not wait.
        device.launch("test", grid, block, &params.0).unwrap();
        outcome.map(|_| ()).map_err(|fault| {
            assert_eq!(fault.kind, FaultKind::UnwaitedKernel, "{fault}");
            assert!(fault.message.contains("griddepcontrol.wait"), "{fault}");
            fault.message
        })
    });
    let first = outcomes.next().expect("six seeds");
    assert!(outcomes.all(|outcome| outcome.is_ok() == first.is_ok()), "{first:?}");
    first
}

#[test]
fn nothing_is_stored_before_the_kernels_before_have_ended() {
    let store = "st.global.u32 [%rd3], %r1;";
    assert_eq!(early(&format!("griddepcontrol.wait;\n{store}"), 64, &[]), Ok(()));
    for (store, what) in [
        (store, "stores"),
        ("mov.u32 %r9, 1;\nred.global.add.u32 [%rd1], %r9;", "stores"),
        ("mov.u32 %r9, 1;\natom.global.add.u32 %r10, [%rd1], %r9;", "stores"),
    ] {
        let message = early(&format!("{store}\ngriddepcontrol.wait;"), 64, &[]).unwrap_err();
        let site = message.contains(what) && message.contains("'out'");
        assert!(site && message.contains("PTX line"), "{message}");
    }
    // Shared memory is the CTA's own.
    assert_eq!(early("st.shared.u32 [%r4], %r1;\ngriddepcontrol.wait;", 64, &[]), Ok(()));
    let launch = "griddepcontrol.launch_dependents;";
    early(&format!("{launch}\n{store}\ngriddepcontrol.wait;"), 64, &[]).unwrap_err();
}

#[test]
fn nothing_that_an_unfinished_kernel_stored_to_is_loaded() {
    let load = "ld.global.u32 %r10, [%rd4];";
    let copy = "cp.async.ca.shared.global [%r4], [%rd4], 4;";
    let one = format!("setp.eq.u32 %p1, %r1, 37;\n@%p1 {load}");
    for load in [load, copy, "ld.global.v4.u32 {%r10,%r11,%r12,%r13}, [%rd4];", &one] {
        let behind = format!("griddepcontrol.wait;\n{load}\ncp.async.wait_all;");
        assert_eq!(early(&behind, 64, &["in"]), Ok(()));
        let before = format!("{load}\ncp.async.wait_all;\ngriddepcontrol.wait;");
        assert_eq!(early(&before, 64, &["out"]), Ok(()), "nobody stored to it");
        let message = early(&before, 64, &["out", "in"]).unwrap_err();
        assert!(message.contains("loads") && message.contains("'in'"), "{message}");
    }
    let message = early(&format!("{one}\ngriddepcontrol.wait;"), 64, &["in"]).unwrap_err();
    assert!(message.contains("thread (37, 0, 0)"), "{message}");
}

#[test]
fn what_an_unfinished_kernel_stored_to_is_no_constant() {
    let load = |kind: &str| format!("griddepcontrol.wait;\nld.global{kind}.u32 %r10, [%rd4];");
    assert_eq!(early(&load(""), 64, &["in"]), Ok(()));
    assert_eq!(early(&load(".nc"), 64, &["out"]), Ok(()));
    for kind in [".nc", ".nc.L1::no_allocate"] {
        let message = early(&load(kind), 64, &["out", "in"]).unwrap_err();
        assert!(message.contains("ld.global.nc") && message.contains("'in'"), "{message}");
    }
}

#[test]
fn a_thread_that_exits_has_waited() {
    let some = |what: &str| format!("setp.ge.u32 %p1, %r1, 40;\n{what}");
    assert_eq!(early(&some("griddepcontrol.wait;\n@%p1 exit;"), 64, &[]), Ok(()));
    for body in ["ret;", "bar.sync 0;", &some("@%p1 exit;\ngriddepcontrol.wait;")] {
        assert!(early(body, 64, &[]).unwrap_err().contains("exits"));
    }
    // One thread does not wait for the others of its warp, whatever it would do on hardware.
    let divergent = some("@!%p1 griddepcontrol.wait;\nbar.sync 0;\n@%p1 griddepcontrol.wait;");
    assert_eq!(early(&divergent, 64, &[]), Ok(()));
    let store = divergent.replace("bar.sync 0;", "st.global.u32 [%rd3], %r1;");
    let message = early(&store, 64, &[]).unwrap_err();
    assert!(message.contains("(40, 0, 0)") || message.contains("(32, 0, 0)"), "{message}");
}

#[test]
fn what_is_loaded_early_is_counted() {
    let device = Device::new(&kernel(
        "ld.global.u32 %r10, [%rd4];\ngriddepcontrol.wait;\nld.global.u32 %r11, [%rd4];\n\
         griddepcontrol.launch_dependents;",
    ));
    let (out, input) = (device.words(&[0; 64], "out"), device.words(&[7; 64], "in"));
    let params = Params::default().u64(out).u64(input).u32(64);
    let counts = |unfinished: Option<&[u64]>| {
        let launched =
            device.launch_behind(unfinished, "test", [3, 1, 1], [64, 1, 1], &params.0).unwrap();
        let (waits, launches) = (launched.dependency_waits, launched.dependency_launches);
        (launched.load_requests, launched.early_load_requests, waits, launches)
    };
    assert_eq!(counts(Some(&[out][..])), (12, 6, 6, 6));
    assert_eq!(counts(None), (12, 0, 6, 6));
}
