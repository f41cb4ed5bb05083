//! Whole kernels, compiled by nvcc, against the same computed in plain loops; and what the counters
//! say of patterns whose answer is known. Every result must be the same under every seed and number
//! of host threads.
#![allow(
    clippy::unwrap_used,
    clippy::precedence,
    clippy::type_complexity,
    reason = "a test may fail by panicking, and spells out what an instruction does"
)]

mod support;

use gpu_emulator::launch::{Counters, Fault, FaultKind, Options};
use support::{Device, Params, kernel, run_grid};

const PROBES: &str = include_str!("fixtures/exec/probes.80.ptx");

const RUNS: [Options; 5] = [
    Options { seed: 0, threads: 1 },
    Options { seed: 1, threads: 1 },
    Options { seed: 2, threads: 2 },
    Options { seed: 77, threads: 3 },
    Options { seed: 78, threads: 1 },
];

/// Runs `check` on a device of its own for each seed; all must return the same.
#[track_caller]
fn under_every_seed<T: PartialEq + std::fmt::Debug>(mut check: impl FnMut(Device) -> T) -> T {
    let mut first = None;
    for options in RUNS {
        let mut device = Device::new(PROBES);
        device.options = options;
        let result = check(device);
        match &first {
            None => first = Some(result),
            Some(first) => assert!(*first == result, "{options:?} gives another result"),
        }
    }
    first.expect("there are runs")
}

/// Numbers that look random and are the same everywhere.
fn noise(seed: u32) -> impl FnMut() -> u32 {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    }
}

fn bf16_values(count: usize, seed: u32) -> Vec<half::bf16> {
    let mut next = noise(seed);
    (0..count).map(|_| half::bf16::from_f32((next() % 512) as f32 / 128.0 - 2.0)).collect()
}

fn bf16_buffer(device: &Device, values: &[half::bf16], label: &str) -> u64 {
    let at = device.empty(values.len() * 2, label);
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    device.memory.write(at, &bytes).expect("the buffer is as long");
    at
}

#[test]
fn a_gemm_of_copies_ldmatrix_and_mma_is_the_product() {
    for (m, n, k) in [(64, 32, 32), (64, 32, 96), (100, 40, 72), (1, 8, 8), (130, 33, 200)] {
        let (a, b) = (bf16_values(m * k, 1), bf16_values(n * k, 2));
        let got = under_every_seed(|device| {
            let (da, db) = (bf16_buffer(&device, &a, "a"), bf16_buffer(&device, &b, "b"));
            let dc = device.empty(m * n * 4, "c");
            let params = Params::default().u64(da).u64(db).u64(dc);
            let params = params.u32(m as u32).u32(n as u32).u32(k as u32);
            let grid = [n.div_ceil(32) as u32, m.div_ceil(64) as u32, 1];
            let counters = device.launch("gemm", grid, [128, 1, 1], &params.0).unwrap();
            assert_eq!(counters.shared_replays, 0, "the swizzle has no bank conflicts");
            device.read_floats(dc, m * n)
        });
        for row in 0..m {
            for column in 0..n {
                let expected: f64 =
                    (0..k).map(|i| a[row * k + i].to_f64() * b[column * k + i].to_f64()).sum();
                let value = f64::from(got[row * n + column]);
                let near = (value - expected).abs() <= 1e-5 * expected.abs().max(1.0);
                assert!(near, "{m}x{n}x{k} at {row}, {column}: {value} for {expected}");
            }
        }
    }
}

#[test]
fn a_gemm_counts_what_it_must_do() {
    let (m, n, k) = (64, 32, 96);
    let device = Device::new(PROBES);
    let da = bf16_buffer(&device, &bf16_values(m * k, 1), "a");
    let db = bf16_buffer(&device, &bf16_values(n * k, 2), "b");
    let dc = device.empty(m * n * 4, "c");
    let params = Params::default().u64(da).u64(db).u64(dc);
    let params = params.u32(m as u32).u32(n as u32).u32(k as u32);
    let counters = device.launch("gemm", [1, 1, 1], [128, 1, 1], &params.0).unwrap();
    assert_eq!(counters.instructions["mma"], (m / 16 * n / 8 * k / 16) as u64);
    // Each byte of A and B once, in whole sectors; each word of C once, in half sectors' worth.
    assert_eq!(counters.sectors_loaded[&da], (m * k * 2 / 32) as u64);
    assert_eq!(counters.sectors_loaded[&db], (n * k * 2 / 32) as u64);
    assert_eq!(counters.ideal_load_sectors, ((m + n) * k * 2 / 32) as u64);
    assert_eq!(counters.instructions["ldmatrix"], (4 * (k / 16) * (1 + 4)) as u64);
    assert_eq!(counters.instructions["barrier"], (4 * 2 * k / 32) as u64);
}

#[test]
fn a_softmax_of_shuffles_and_shared_memory_sums_to_one() {
    for (threads, n) in [(32, 7), (64, 64), (256, 1000), (1024, 1500)] {
        let mut next = noise(3);
        let x: Vec<f32> = (0..3 * n).map(|_| (next() % 1000) as f32 / 100.0 - 5.0).collect();
        let got = under_every_seed(|device| {
            let (dx, dy) = (device.floats(&x, "x"), device.empty(x.len() * 4, "y"));
            let params = Params::default().u64(dx).u64(dy).u32(n as u32);
            device.launch("softmax", [3, 1, 1], [threads, 1, 1], &params.0).unwrap();
            device.read_floats(dy, x.len())
        });
        for (x, y) in x.chunks(n).zip(got.chunks(n)) {
            let top = x.iter().copied().fold(f32::MIN, f32::max);
            let sum: f64 = x.iter().map(|x| f64::from(x - top).exp()).sum();
            for (x, y) in x.iter().zip(y) {
                let expected = f64::from(x - top).exp() / sum;
                assert!((f64::from(*y) - expected).abs() < 1e-6, "{y} for {expected}");
            }
        }
    }
}

#[test]
fn a_histogram_counts_and_the_last_cta_sees_all_the_others() {
    let mut next = noise(4);
    let x: Vec<u32> = (0..5000).map(|_| next()).collect();
    let got = under_every_seed(|device| {
        let (dx, bins) = (device.words(&x, "x"), device.words(&[0; 64], "bins"));
        let (done, total) = (device.words(&[0], "done"), device.words(&[0], "total"));
        let params = Params::default().u64(dx).u32(x.len() as u32).u64(bins).u64(done).u64(total);
        device.launch("histogram", [7, 1, 1], [96, 1, 1], &params.0).unwrap();
        (device.read(bins, 64), device.read(total, 1)[0])
    });
    let expected: Vec<u32> =
        (0..64).map(|bin| x.iter().filter(|x| **x % 64 == bin).count() as u32).collect();
    assert_eq!(got, (expected, 5000));
}

fn fibonacci(n: i32) -> i32 {
    if n < 2 { n } else { fibonacci(n - 1) + fibonacci(n - 2) }
}

#[test]
fn calls_recursion_pointers_switches_and_stacks_do_what_c_does() {
    let n = 9;
    let got = under_every_seed(|device| {
        let out = device.empty(64 * 4, "out");
        let params = Params::default().u64(out).u32(n);
        device.launch("calls", [1, 1, 1], [64, 1, 1], &params.0).unwrap();
        device.read(out, 64)
    });
    let table = [3, 1, 4, 1];
    for (i, got) in (0i32..).zip(got) {
        let mut s: i32 = (0..n as i32).map(|j| i * ((i + j * 7) & 15)).sum();
        match i & 7 {
            0 => s += 100,
            1 => s ^= 3,
            2 => s *= 5,
            3 => s -= 9,
            4 => s |= 64,
            5 => s &= 1023,
            6 => s = -s,
            _ => s = 7,
        }
        let k = i & 7;
        let high = (((1i64 << 40) - i64::from(k)) >> 32) as i32;
        let unary = if i & 1 == 0 { 2 * i } else { i * i };
        s += i * k + table[(k & 3) as usize] + high + fibonacci(k) + unary + 42;
        assert_eq!(got as i32, s, "thread {i}");
    }
}

#[test]
fn lanes_that_loop_for_different_times_meet_again() {
    let x: Vec<u32> = (1..=96).collect();
    let got = under_every_seed(|device| {
        let (dx, out) = (device.words(&x, "x"), device.empty(96 * 4, "out"));
        let params = Params::default().u64(dx).u64(out);
        device.launch("collatz", [1, 1, 1], [96, 1, 1], &params.0).unwrap();
        device.read(out, 96)
    });
    let steps = |mut v: u32| {
        let mut s = 0;
        while v != 1 {
            v = if v % 2 == 1 { 3 * v + 1 } else { v / 2 };
            s += 1;
        }
        s
    };
    let expected: Vec<u32> = x.iter().map(|v| steps(*v)).collect();
    for (i, got) in got.iter().enumerate() {
        let most = expected[i / 32 * 32..i / 32 * 32 + 32].iter().max().unwrap();
        assert_eq!(*got, expected[i] | most << 16);
    }
}

#[test]
fn a_lock_is_passed_between_lanes_warps_and_ctas() {
    let got = under_every_seed(|device| {
        let (lock, count) = (device.words(&[0], "lock"), device.words(&[0], "count"));
        let params = Params::default().u64(lock).u64(count);
        device.launch("locked", [3, 1, 1], [64, 1, 1], &params.0).unwrap();
        device.read(count, 1)[0]
    });
    assert_eq!(got, 3 * 64 * 3);
}

#[test]
fn ctas_that_wait_for_one_another_all_arrive() {
    let got = under_every_seed(|mut device| {
        device.spin_limit = 1000;
        let (arrived, out) = (device.words(&[0], "arrived"), device.empty(20 * 64 * 4, "out"));
        let params = Params::default().u64(arrived).u64(out);
        device.launch("together", [20, 1, 1], [64, 1, 1], &params.0).unwrap();
        device.read(out, 20 * 64)
    });
    assert!(got.iter().all(|n| *n == 20));
}

#[test]
fn a_producer_and_a_consumer_share_two_slots() {
    let n = 9;
    let input: Vec<u32> = (0..n * 32).map(|i| i * i).collect();
    let got = under_every_seed(|device| {
        let (din, out) = (device.words(&input, "in"), device.empty(input.len() * 4, "out"));
        let params = Params::default().u64(din).u64(out).u32(n);
        device.launch("pipeline", [1, 1, 1], [64, 1, 1], &params.0).unwrap();
        device.read(out, input.len())
    });
    assert!((0..got.len()).all(|i| got[i] == input[i ^ 1] * 3));
}

// --- counters -----------------------------------------------------------------------------------

fn counters(body: &str) -> Counters {
    run_grid(body, 1, 32, Options { seed: 0, threads: 1 }).unwrap_or_else(|f| panic!("{f}")).1
}

fn loaded(counters: &Counters) -> u64 {
    counters.sectors_loaded.values().sum()
}

#[test]
fn sectors_are_counted_by_pattern() {
    let load = |address: &str| {
        format!("{address}\nadd.u64 %rd6, %rd4, %rd5;\nld.global.u32 %r10, [%rd6];")
    };
    let dense = counters(&load("mov.u64 %rd5, %rd2;"));
    assert_eq!((loaded(&dense), dense.ideal_load_sectors, dense.load_requests), (4, 4, 1));
    let shifted = counters(&load("add.u64 %rd5, %rd2, 4;"));
    assert_eq!((loaded(&shifted), shifted.ideal_load_sectors), (5, 4));
    let strided = counters(&load("mul.wide.u32 %rd5, %r1, 128;"));
    assert_eq!((loaded(&strided), strided.ideal_load_sectors), (32, 4));
    let one = counters(&load("mov.u64 %rd5, 64;"));
    assert_eq!((loaded(&one), one.ideal_load_sectors), (1, 1));
    let some = counters(
        &load("mov.u64 %rd5, %rd2;\nsetp.lt.u32 %p1, %r1, 8;").replace("ld.g", "@%p1 ld.g"),
    );
    assert_eq!((loaded(&some), some.ideal_load_sectors), (1, 1));
    let store = counters("st.global.v4.u32 [%rd1], {%r1,%r1,%r1,%r1};");
    assert_eq!(store.sectors_stored.values().sum::<u64>(), 1);
}

#[test]
fn bank_conflicts_are_counted_by_pattern() {
    let store = |stride: u32| {
        let c = counters(&format!(
            "mul.lo.u32 %r5, %r1, {stride};\nadd.u32 %r5, %r3, %r5;\nst.shared.u32 [%r5], %r1;"
        ));
        (c.shared_wavefronts, c.shared_replays)
    };
    assert_eq!(store(4), (1, 0));
    assert_eq!(store(8), (2, 1));
    assert_eq!(store(64), (16, 15));
    assert_eq!(store(128), (32, 31));
    assert_eq!(store(124), (1, 0));
    let wide = |row: u32| {
        let c = counters(&format!(
            "mul.lo.u32 %r5, %r1, {row};\nadd.u32 %r5, %r3, %r5;\nst.shared.v4.u32 [%r5], {{%r1,%r1,%r1,%r1}};"
        ));
        (c.shared_wavefronts, c.shared_replays)
    };
    assert_eq!(wide(16), (4, 0));
    assert_eq!(wide(128), (32, 28));
    assert_eq!(wide(112), (4, 0));
}

#[test]
fn instructions_are_counted_by_class() {
    let c = counters(
        "ld.global.u32 %r10, [%rd4];\nbar.sync 0;\nshfl.sync.bfly.b32 %r11, %r10, 1, 31, -1;\nst.global.u32 [%rd3], %r11;\nred.global.add.u32 [%rd3], %r11;",
    );
    let of = |class: &str| c.instructions.get(class).copied().unwrap_or(0);
    assert_eq!(of("global_load"), 1);
    assert_eq!(of("global_store"), 1);
    assert_eq!(of("barrier"), 1);
    assert_eq!(of("shuffle"), 1);
    assert_eq!(of("atomic"), 1);
    assert_eq!(of("mma"), 0);
}

#[test]
fn a_fault_names_the_line_of_the_source() {
    let device = Device::new(PROBES);
    let params = Params::default().u64(16).u64(16).u32(5);
    let fault = device.launch("softmax", [1, 1, 1], [32, 1, 1], &params.0).unwrap_err();
    assert!(fault.message.contains("probes.cu:"), "{fault}");
    assert!(fault.message.contains("CTA (0, 0, 0)") && fault.message.contains("thread (0, 0, 0)"));
}

#[test]
fn ldmatrix_gives_the_lanes_the_elements_the_manual_says() {
    // Element (row, column) of the tile's matrix m holds 64 m + 8 row + column.
    for (form, count, transpose) in
        [("x1", 1, ""), ("x2", 2, ".trans"), ("x4", 4, ""), ("x4", 4, ".trans")]
    {
        let list = |first: usize| {
            (0..count).map(|i| format!("%r{}", first + i)).collect::<Vec<_>>().join(",")
        };
        let mut body = String::from(
            "shl.b32 %r5, %r1, 3;\n\
             mov.u32 %r6, 0;\n",
        );
        for i in 0..4 {
            // Lane l writes row l: elements 8 l + 2 i and the next.
            body += &format!(
                "add.u32 %r7, %r5, {};\nadd.u32 %r8, %r7, 1;\nshl.b32 %r8, %r8, 16;\nor.b32 %r7, %r7, %r8;\nshl.b32 %r9, %r1, 4;\nadd.u32 %r9, %r3, %r9;\nst.shared.u32 [%r9+{}], %r7;\n",
                2 * i,
                4 * i
            );
        }
        body += &format!(
            "bar.warp.sync -1;\nldmatrix.sync.aligned.m8n8.{form}{transpose}.shared.b16 {{{}}}, [%r9];\n",
            list(20)
        );
        for i in 0..count {
            body += &format!("st.global.u32 [%rd3+{}], %r{};\n", 128 * i, 20 + i);
        }
        let out = support::runs(&body, 32);
        for matrix in 0..count as u32 {
            for lane in 0..32u32 {
                let element = |row: u32, column: u32| 64 * matrix + 8 * row + column;
                let (a, b) = (lane / 4, lane % 4 * 2);
                let (low, high) = if transpose.is_empty() {
                    (element(a, b), element(a, b + 1))
                } else {
                    (element(b, a), element(b + 1, a))
                };
                assert_eq!(
                    out[(32 * matrix + lane) as usize],
                    low | high << 16,
                    "{form}{transpose}"
                );
            }
        }
    }
}

#[test]
fn one_parsed_module_runs_again_and_again() {
    let device = Device::new(&kernel(
        "ld.global.u32 %r10, [%rd3];\nadd.u32 %r10, %r10, 1;\nst.global.u32 [%rd3], %r10;",
    ));
    let out = device.words(&[0; 64], "out");
    let params = Params::default().u64(out).u64(out).u32(0);
    for _ in 0..10 {
        device.launch("test", [1, 1, 1], [64, 1, 1], &params.0).unwrap();
    }
    assert!(device.read(out, 64).iter().all(|n| *n == 10));
}

// --- mutants ------------------------------------------------------------------------------------

/// The product of one CTA's tile by the kernel `gemm` of a module, or its fault.
fn gemm_of(ptx: &str, seed: u64) -> Result<Vec<u32>, Fault> {
    let (m, n, k) = (64, 32, 96);
    let mut device = Device::new(ptx);
    device.options.seed = seed;
    device.spin_limit = 1 << 14;
    let da = bf16_buffer(&device, &bf16_values(m * k, 1), "a");
    let db = bf16_buffer(&device, &bf16_values(n * k, 2), "b");
    let dc = device.empty(m * n * 4, "c");
    let params = Params::default().u64(da).u64(db).u64(dc);
    let params = params.u32(m as u32).u32(n as u32).u32(k as u32);
    device.launch("gemm", [1, 1, 1], [128, 1, 1], &params.0)?;
    Ok(device.read(dc, m * n))
}

/// Every line of the kernel `gemm` that holds `what`, with the module that has another line there.
fn mutants(what: &str, change: impl Fn(&str) -> String) -> Vec<(usize, String)> {
    let lines: Vec<&str> = PROBES.lines().collect();
    let start = lines.iter().position(|l| l.contains(".entry gemm(")).expect("gemm is there");
    let end = start + lines[start..].iter().position(|l| *l == "}").expect("and ends");
    (start..end)
        .filter(|at| lines[*at].contains(what))
        .map(|at| {
            let changed = change(lines[at]);
            let mutant = lines.iter().enumerate().map(|(i, l)| if i == at { &changed } else { *l });
            (at + 1, mutant.collect::<Vec<_>>().join("\n"))
        })
        .collect()
}

/// Asserts that every mutant breaks one of these rules under every one of some seeds.
#[track_caller]
fn all_break(mutants: &[(usize, String)], rules: &[FaultKind]) {
    for (line, mutant) in mutants {
        for seed in 0..4 {
            let result = gemm_of(mutant, seed);
            let fault = result.expect_err(&format!("line {line}, seed {seed}"));
            assert!(rules.contains(&fault.kind), "line {line}, seed {seed}: {fault}");
            assert!(fault.message.contains("PTX line"), "{fault}");
        }
    }
}

fn gone(_: &str) -> String {
    String::new()
}

#[test]
fn a_compiled_kernel_without_one_of_its_barriers_is_a_fault_under_every_seed() {
    let all = mutants("bar.sync", gone);
    assert!(all.len() >= 2, "one before the tile is read and one before it is overwritten");
    all_break(&all, &[FaultKind::SharedRace, FaultKind::Uninitialised, FaultKind::UnwaitedCopy]);
}

#[test]
fn a_compiled_kernel_that_waits_for_fewer_copies_is_a_fault_under_every_seed() {
    let later = |line: &str| line.replace("wait_group 1", "wait_group 2");
    let weakened = mutants("cp.async.wait_group", later);
    let uncommitted = mutants("cp.async.commit_group", gone);
    assert!(!weakened.is_empty() && uncommitted.len() >= 2);
    for all in [weakened, uncommitted, mutants("cp.async.wait_group", gone)] {
        all_break(&all, &[FaultKind::UnwaitedCopy]);
    }
}

/// `line` with another offset of its last address.
fn shifted(line: &str, by: u32) -> String {
    let open = line.rfind('[').expect("an address");
    let close = open + line[open..].find([']', '+']).expect("closes");
    let rest = line[close..].trim_start_matches(|c| c != ']');
    format!("{}+{by}{rest}", &line[..close])
}

/// The mutants of [`mutants`] whose changed line is executed: the unrolled copies for other sizes
/// are not.
fn executed(what: &str, change: impl Fn(&str) -> String) -> Vec<(usize, String)> {
    let stops = mutants(what, |_| "trap;".to_owned());
    let reached = |mutant: &str| gemm_of(mutant, 0).is_err_and(|f| f.kind == FaultKind::Trap);
    let all = mutants(what, change).into_iter().zip(stops);
    let all: Vec<_> =
        all.filter(|(_, (_, stop))| reached(stop)).map(|(mutant, _)| mutant).collect();
    assert!(!all.is_empty(), "{what}");
    all
}

#[test]
fn a_compiled_kernel_with_an_address_shifted_a_little_faults_or_errs() {
    let right = gemm_of(PROBES, 0).expect("the kernel is right");
    for what in ["ldmatrix", "st.global", "cp.async.cg"] {
        for (line, mutant) in executed(what, |line| shifted(line, 48)) {
            for seed in 0..4 {
                let unseen = gemm_of(&mutant, seed).is_ok_and(|result| result == right);
                assert!(!unseen, "{what} of line {line} may be anywhere, seed {seed}");
            }
        }
    }
}

#[test]
fn a_compiled_kernel_with_an_address_shifted_far_is_out_of_bounds() {
    for what in ["ldmatrix", "st.global", "cp.async.cg"] {
        all_break(&executed(what, |line| shifted(line, 1 << 20)), &[FaultKind::OutOfBounds]);
    }
}

#[test]
fn a_compiled_kernel_with_an_address_shifted_off_its_alignment_is_misaligned() {
    for (what, by) in [("ldmatrix", 8), ("st.global", 2), ("cp.async.cg", 8)] {
        all_break(&executed(what, |line| shifted(line, by)), &[FaultKind::Misaligned]);
    }
}

// --- warp functions -----------------------------------------------------------------------------

/// What 32 lanes get from `line`, which puts its result in `%r10`; lane `l` has `7 l % 5` in `%r5`.
fn of_a_warp(line: &str) -> Vec<u32> {
    let body = format!(
        "mul.lo.u32 %r5, %r1, 7;\nrem.u32 %r5, %r5, 5;\nsetp.gt.u32 %p1, %r5, 2;\n\
         setp.ge.u32 %p2, %r5, 0;\nmov.u32 %r6, 5;\n{line}\nst.global.u32 [%rd3], %r10;"
    );
    support::runs(&body, 32)[..32].to_vec()
}

#[test]
fn votes_matches_reductions_and_elections_are_what_the_manual_says() {
    let value = |lane: u32| lane * 7 % 5;
    let lanes_of = |holds: &dyn Fn(u32) -> bool| {
        (0..32).fold(0u32, |mask, lane| mask | u32::from(holds(lane)) << lane)
    };
    let every = |expected: u32, line: &str| {
        assert!(of_a_warp(line).iter().all(|got| *got == expected), "{line}");
    };
    every(lanes_of(&|l| value(l) > 2), "vote.sync.ballot.b32 %r10, %p1, -1;");
    let select = "selp.u32 %r10, 1, 0, %p3;";
    every(1, &format!("vote.sync.any.pred %p3, %p1, -1;\n{select}"));
    every(0, &format!("vote.sync.all.pred %p3, %p1, -1;\n{select}"));
    every(1, &format!("vote.sync.all.pred %p3, %p2, -1;\n{select}"));
    every(0, &format!("vote.sync.uni.pred %p3, %p1, -1;\n{select}"));
    every(1, &format!("vote.sync.uni.pred %p3, !%p2, -1;\n{select}"));
    every((0..32).map(value).sum(), "redux.sync.add.u32 %r10, %r5, -1;");
    every(4, "redux.sync.max.u32 %r10, %r5, -1;");
    every(u32::MAX, "sub.u32 %r5, %r5, 1;\nredux.sync.min.s32 %r10, %r5, -1;");
    every(7, "redux.sync.or.b32 %r10, %r5, -1;");
    every(u32::MAX, "activemask.b32 %r10;");
    every(u32::MAX, "match.all.sync.b32 %r10|%p3, %r6, -1;");
    every(0, "match.all.sync.b32 %r10|%p3, %r5, -1;");
    let any = of_a_warp("match.any.sync.b32 %r10, %r5, -1;");
    for (lane, got) in (0u32..).zip(any) {
        assert_eq!(got, lanes_of(&|l| value(l) == value(lane)));
    }
    let elected = of_a_warp("elect.sync %r11|%p3, -1;\nselp.u32 %r10, 1, 0, %p3;");
    assert_eq!(elected.iter().sum::<u32>(), 1);
}

#[test]
fn barriers_count_and_combine_over_the_whole_cta() {
    let body = |form: &str, select: &str| {
        format!("setp.lt.u32 %p1, %r1, 40;\n{form}\n{select}\nst.global.u32 [%rd3], %r10;")
    };
    let select = "selp.u32 %r10, 1, 0, %p3;";
    let all = |body: String| {
        let out = support::runs(&body, 96);
        assert!(out[..96].iter().all(|w| *w == out[0]));
        out[0]
    };
    assert_eq!(all(body("barrier.sync.aligned 0;\nbar.red.popc.u32 %r10, 0, %p1;", "")), 40);
    assert_eq!(all(body("bar.red.or.pred %p3, 1, %p1;", select)), 1);
    assert_eq!(all(body("bar.red.and.pred %p3, 1, %p1;", select)), 0);
    assert_eq!(all(body("bar.red.and.pred %p3, 1, !%p3;", select)), 1);
}

#[test]
fn matrices_stored_and_transposed_come_back() {
    // Word w of the tile ends as the word that lane w loads after a round trip.
    let body = "mul.lo.u32 %r5, %r1, 65537;\nadd.u32 %r5, %r5, 4096;\nshl.b32 %r6, %r1, 4;\n\
        add.u32 %r6, %r3, %r6;\nstmatrix.sync.aligned.m8n8.x1.shared.b16 [%r6], {%r5};\n\
        bar.warp.sync -1;\nld.shared.u32 %r10, [%r4];\nst.global.u32 [%rd3], %r10;\n\
        movmatrix.sync.aligned.m8n8.trans.b16 %r11, %r5;\nst.global.u32 [%rd3+128], %r11;";
    let out = support::runs(body, 32);
    let word = |lane: u32| lane * 65537 + 4096;
    let element =
        |row: u32, column: u32| word(row * 4 + column / 2) >> (16 * (column % 2)) & 0xffff;
    for lane in 0..32u32 {
        assert_eq!(out[lane as usize], word(lane));
        let (row, column) = (lane / 4, lane % 4 * 2);
        let transposed = element(column, row) | element(column + 1, row) << 16;
        assert_eq!(out[32 + lane as usize], transposed);
    }
}
