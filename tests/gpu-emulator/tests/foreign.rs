//! PTX this emulator was not written for: kernels compiled by Triton, against NumPy.
//!
//! `fixtures/triton/generate.py` holds the kernels, made their PTX and computed what is expected,
//! in float64 and from the definitions. Here the PTX runs with every check on, under several seeds
//! and numbers of host threads, which must agree to the bit; the first result is compared.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use gpu_emulator::launch::Options;
use support::{Device, Params};

const RUNS: [Options; 6] = [
    Options { seed: 0, threads: 1 },
    Options { seed: 1, threads: 1 },
    Options { seed: 2, threads: 2 },
    Options { seed: 3, threads: 1 },
    Options { seed: 77, threads: 3 },
    Options { seed: 1078, threads: 1 },
];

/// What `numbers` in `generate.py` gives: multiples of 1/64 in [-2, 2) that look random.
fn numbers(count: usize, seed: u32) -> Vec<f32> {
    (0..count as u32)
        .map(|index| {
            let mut h = index.wrapping_mul(0x9e37_79b1);
            h = h.wrapping_add(seed.wrapping_mul(0x85eb_ca6b));
            h = (h ^ h >> 15).wrapping_mul(0x2c1b_3c6d);
            h = (h ^ h >> 12).wrapping_mul(0x297a_2d39);
            ((h >> 24) as f32 - 128.0) / 64.0
        })
        .collect()
}

/// An argument of a kernel.
enum Argument {
    /// A buffer of these bytes.
    Input(Vec<u8>),
    /// A buffer nobody wrote before, what it holds then, and how far from that it may be: this part
    /// of the value, or of 1 if that is more.
    Output(&'static [u8], f64),
    /// A buffer of zeros to begin with, of 32-bit floats, and what it holds then, exactly.
    Sums(&'static [u8]),
    /// A buffer of zeros to begin with, of 32-bit integers, and what it holds then.
    Counts(&'static [u8]),
    /// A 32-bit value.
    Word(u32),
}

use Argument::{Counts, Input, Output, Sums, Word};

fn f32s(values: &[f32]) -> Argument {
    Input(values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

fn f16s(values: &[f32]) -> Argument {
    Input(values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect())
}

fn bf16s(values: &[f32]) -> Argument {
    Input(values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect())
}

fn count(value: usize) -> Argument {
    Word(u32::try_from(value).unwrap())
}

/// The words of every output of one launch, or the fault.
fn launch(
    ptx: &str,
    grid: [u32; 3],
    arguments: &[Argument],
    options: Options,
) -> Result<Vec<Vec<u32>>, String> {
    // The line above the PTX says what the compiler decided.
    let head = ptx.lines().next().unwrap();
    let number = |after: &str| {
        let words: Vec<&str> = head[..head.find(after).unwrap()].split(' ').collect();
        words.last().unwrap().parse::<u32>().unwrap()
    };
    let mut device = Device::new(ptx);
    device.options = options;
    device.spin_limit = 1 << 14;
    device.dynamic_shared_bytes = number(" bytes of shared memory");
    let mut params = Params::default();
    let mut outputs = Vec::new();
    for (index, argument) in arguments.iter().enumerate() {
        let label = format!("argument {index}");
        let buffer = match argument {
            Word(word) => {
                params = params.u32(*word);
                continue;
            }
            Input(bytes) => {
                let at = device.empty(bytes.len(), &label);
                device.memory.write(at, bytes).unwrap();
                at
            }
            Output(expected, _) => device.empty(expected.len(), &label),
            Sums(expected) | Counts(expected) => device.words(&vec![0; expected.len() / 4], &label),
        };
        params = params.u64(buffer);
        if let Output(expected, _) | Sums(expected) | Counts(expected) = argument {
            outputs.push((buffer, expected.len() / 4));
        }
    }
    // Triton's own scratch buffers, which these kernels do not use.
    let params = params.u64(0).u64(0);
    let name = device.module.module.functions[0].name.clone();
    let block = [number(" threads"), 1, 1];
    device.launch(&name, grid, block, &params.0).map_err(|fault| fault.to_string())?;
    for (at, words) in &outputs {
        assert_eq!(device.memory.first_unwritten(*at, *words as u64 * 4).unwrap(), None);
    }
    Ok(outputs.into_iter().map(|(at, words)| device.read(at, words)).collect())
}

/// A kernel, its CTAs and its arguments.
type Case = (&'static str, [u32; 3], Vec<Argument>);

/// Asserts that every output is what NumPy says, and the same under every seed.
#[track_caller]
fn agrees((ptx, grid, arguments): &Case) {
    let got = launch(ptx, *grid, arguments, RUNS[0]).unwrap();
    for options in &RUNS[1..] {
        let other = launch(ptx, *grid, arguments, *options).unwrap();
        assert!(got == other, "{options:?} gives another result");
    }
    let mut got = got.into_iter();
    for (index, argument) in arguments.iter().enumerate() {
        let (expected, within, integers) = match argument {
            Output(expected, within) => (expected, *within, false),
            Sums(expected) => (expected, 0.0, false),
            Counts(expected) => (expected, 0.0, true),
            Input(_) | Word(_) => continue,
        };
        let words = got.next().expect("one result for each output");
        for (at, (word, expected)) in words.iter().zip(expected.chunks_exact(4)).enumerate() {
            let expected = f64::from(f32::from_le_bytes(expected.try_into().unwrap()));
            let value =
                if integers { f64::from(*word as i32) } else { f64::from(f32::from_bits(*word)) };
            assert!(
                (value - expected).abs() <= within * expected.abs().max(1.0),
                "argument {index}, element {at}: {value} for {expected}"
            );
        }
    }
}

macro_rules! ptx {
    ($kernel:literal) => {
        include_str!(concat!("fixtures/triton/", $kernel, ".80.ptx"))
    };
}

macro_rules! expected {
    ($output:literal) => {
        include_bytes!(concat!("fixtures/triton/", $output, ".f32"))
    };
}

fn softmax() -> Case {
    let y = Output(expected!("softmax.y"), 1e-7);
    (ptx!("softmax"), [9, 1, 1], vec![f32s(&numbers(9 * 300, 1)), y, count(300)])
}

#[test]
fn a_masked_softmax_is_numpys() {
    agrees(&softmax());
}

fn matmul() -> Case {
    let (m, n, k) = (100, 80, 208);
    let (a, b) = (bf16s(&numbers(m * k, 2)), bf16s(&numbers(k * n, 3)));
    let c = Output(expected!("matmul.c"), 1e-6);
    (ptx!("matmul"), [2, 3, 1], vec![a, b, c, count(m), count(n), count(k)])
}

#[test]
fn a_matmul_of_three_stages_of_copies_is_numpys() {
    agrees(&matmul());
}

fn nibbles() -> Case {
    let (m, n, k) = (20, 40, 96);
    let x = numbers(m * k, 4).iter().map(|v| (v * 60.0).round_ties_even() as i8 as u8).collect();
    let w: Vec<u8> = numbers(n * k, 5).iter().map(|v| ((v + 2.0) * 4.0) as u8).collect();
    let w = w.chunks(2).map(|pair| pair[0] | pair[1] << 4).collect();
    let y = Output(expected!("nibbles.y"), 1e-7);
    let scales = f32s(&numbers(n, 6));
    let arguments = vec![Input(x), Input(w), scales, y, count(m), count(n), count(k)];
    (ptx!("nibbles"), [2, 2, 1], arguments)
}

#[test]
fn a_matmul_of_four_bit_weights_on_integer_tensor_cores_is_numpys() {
    agrees(&nibbles());
}

fn layer_norm() -> Case {
    let x = f16s(&numbers(6 * 700, 7));
    let (weight, bias) = (f32s(&numbers(700, 8)), f32s(&numbers(700, 9)));
    let y = Output(expected!("layer_norm.y"), 2e-6);
    let mean = Output(expected!("layer_norm.mean"), 1e-6);
    let scale = Output(expected!("layer_norm.scale"), 1e-6);
    let epsilon = Word(1e-5_f32.to_bits());
    let arguments = vec![x, weight, bias, y, mean, scale, count(700), epsilon];
    (ptx!("layer_norm"), [6, 1, 1], arguments)
}

#[test]
fn a_layer_norm_of_looped_rows_is_numpys() {
    agrees(&layer_norm());
}

fn totals() -> Case {
    // The values are multiples of 1/64, so the order of the additions cannot matter.
    let x = f32s(&numbers(90 * 50, 10));
    let (sums, tops) = (Sums(expected!("totals.sums")), Counts(expected!("totals.tops")));
    let (lock, positive) = (Counts(&[0; 4]), Counts(expected!("totals.count")));
    (ptx!("totals"), [6, 1, 1], vec![x, sums, tops, lock, positive, count(90), count(50)])
}

#[test]
fn totals_joined_by_atomics_and_a_lock_are_numpys() {
    agrees(&totals());
}

fn attention() -> Case {
    let values = |seed| bf16s(&numbers(2 * 90 * 64, seed));
    // Probabilities are rounded to bfloat16 before they meet the values, which are below 2.
    let o = Output(expected!("attention.o"), 4e-3);
    let scale = Word(0.0625_f32.to_bits());
    (ptx!("attention"), [3, 2, 1], vec![values(11), values(12), values(13), o, count(90), scale])
}

#[test]
fn causal_attention_over_blocks_of_keys_is_numpys() {
    agrees(&attention());
}

fn scans() -> Case {
    let x = f32s(&numbers(4 * 200, 14));
    let sums = Output(expected!("scans.sums"), 0.0);
    let states = Output(expected!("scans.states"), 1e-6);
    let sorted = Output(expected!("scans.sorted"), 0.0);
    (ptx!("scans"), [4, 1, 1], vec![x, sums, states, sorted, count(200)])
}

#[test]
fn a_running_sum_a_recurrence_and_a_sort_are_numpys() {
    agrees(&scans());
}

// --- mutants ------------------------------------------------------------------------------------

/// Every line of the PTX that holds one of `what`, with the PTX that has no such line.
fn without<'a>(ptx: &'a str, what: &'a [&str]) -> impl Iterator<Item = (usize, String)> + 'a {
    let lines: Vec<&str> = ptx.lines().collect();
    let chosen = |line: &str| what.iter().any(|what| line.contains(what));
    (0..lines.len()).filter(move |at| chosen(lines[*at])).map(|at| {
        let rest = ptx.lines().enumerate().map(|(i, line)| if i == at { "" } else { line });
        (at + 1, rest.collect::<Vec<_>>().join("\n"))
    })
}

#[test]
fn a_kernel_without_one_of_its_synchronisations_is_a_fault_unless_it_has_another() {
    // Lines that may go: a barrier and a wait right after the same, one of two equal waits in a
    // row, and a first commit that leaves two copies in the second group, which is waited for too.
    let cases: [(Case, &[usize]); 6] = [
        (softmax(), &[]),
        (matmul(), &[85, 228, 229, 298, 299]),
        (nibbles(), &[]),
        (layer_norm(), &[]),
        (attention(), &[151]),
        (scans(), &[]),
    ];
    let mut caught = 0;
    for ((ptx, grid, arguments), spare) in cases {
        let right = launch(ptx, grid, &arguments, RUNS[0]).unwrap();
        for (line, mutant) in without(ptx, &["bar.sync", "commit_group", "wait_group"]) {
            for options in &RUNS[..4] {
                let result = launch(&mutant, grid, &arguments, *options);
                let at =
                    format!("{}: without line {line}: {result:?}", ptx.lines().next().unwrap());
                match result {
                    Ok(result) => assert!(spare.contains(&line) && result == right, "{at}"),
                    Err(fault) => {
                        let kinds = ["SharedRace", "Uninitialised", "UnwaitedCopy"];
                        assert!(kinds.iter().any(|kind| fault.starts_with(kind)), "{at}");
                        assert!(!spare.contains(&line), "{at}");
                        caught += 1;
                    }
                }
            }
        }
    }
    assert_eq!(caught, 69 * 4, "69 mutants under four seeds");
}

#[test]
fn a_lock_that_is_not_released_is_a_deadlock() {
    let (ptx, grid, arguments) = totals();
    let (_, mutant) = without(ptx, &["atom.global.gpu.acq_rel.exch"]).next().unwrap();
    for options in RUNS {
        let fault = launch(&mutant, grid, &arguments, options).unwrap_err();
        assert!(fault.starts_with("Deadlock"), "{fault}");
    }
}
