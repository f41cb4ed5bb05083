//! What the kernels must keep to at the shapes of real models: counted on the software GPU, read
//! off the machine code, and predicted by the model of the kernel report
//! (`benches/kernel_report`).
//!
//! Each bound is in `contracts.rs`. Needs kernels, and a disassembler for the machine code; without
//! them the tests say so, or fail where `FORERUN_REQUIRE_KERNELS` is set.

#![cfg(feature = "cuda")]

#[path = "../benches/kernel_report/contracts.rs"]
mod contracts;
#[path = "../benches/kernel_report/counts.rs"]
mod counts;
#[path = "../src/device/cuda/kernels.rs"]
#[allow(dead_code, reason = "the runtime uses the rest")]
mod kernels;
#[path = "kernel_contracts/machine_code.rs"]
mod machine_code;
#[path = "../benches/kernel_report/measure.rs"]
mod measure;
#[path = "../benches/kernel_report/model.rs"]
#[allow(dead_code, reason = "the report prints the rest")]
mod model;
#[path = "../benches/kernel_report/report.rs"]
mod report;
#[path = "../benches/kernel_report/sass.rs"]
#[allow(dead_code, reason = "the report prints the rest")]
mod sass;
#[path = "../benches/kernel_report/shapes.rs"]
#[allow(dead_code, reason = "the report has more models")]
mod shapes;
#[path = "kernel_contracts/timelines.rs"]
mod timelines;
#[path = "../benches/kernel_report/weights.rs"]
mod weights;

use contracts::{Contract, contracts};
use measure::{Pass, measure};
use report::Model;
use shapes::{CODER_0_5B, Fixture, Mix, QWQ_32B, R1_1_5B};
use std::sync::{Mutex, PoisonError};

/// Whether there is what a test needs: not without saying so.
fn present(what: &str, is_present: bool, fix: &str) -> bool {
    if !is_present {
        let required = std::env::var_os("FORERUN_REQUIRE_KERNELS").is_some();
        assert!(!required, "no {what} although FORERUN_REQUIRE_KERNELS is set; fix: {fix}");
        eprintln!("skipped: no {what}; fix: {fix}");
    }
    is_present
}

fn describe(contract: &Contract) -> String {
    let Contract { what, of, bound, reached, is_model } = contract;
    let model = if *is_model { " (model)" } else { "" };
    let holds = if contract.holds() { "kept" } else { "not kept" };
    format!("{what}{model}, {of}: {bound:?}, reached {reached}: {holds}")
}

/// One driver a process: devices follow one another.
static DRIVER: Mutex<()> = Mutex::new(());

/// Measures, and asserts every contract that can be said something of.
fn check(measured: &[(Fixture, Mix, &[Pass], &[Pass])]) {
    if !present("CUDA kernels", kernels::built().is_some(), kernels::Built::FIX) {
        return;
    }
    present("disassembler", sass::find().is_some(), sass::FIX);
    let compilation = sass::compilation().unwrap_or_else(|e| panic!("{e}"));
    let driver = DRIVER.lock().unwrap_or_else(PoisonError::into_inner);
    let measured = measured.iter().map(|(fixture, mix, passes, heads)| {
        let measured = measure(fixture, *mix, passes, heads);
        Model { fixture: *fixture, mix: *mix, measured }
    });
    let models: Vec<Model> = measured.collect();
    drop(driver);
    for launch in models.iter().flat_map(|m| &m.measured).flat_map(|m| &m.launches) {
        for place in &launch.replay_places {
            eprintln!("bank replays of {} at {place}", launch.kernel);
        }
    }
    let all = contracts(&models, &compilation);
    all.iter().for_each(|contract| eprintln!("{}", describe(contract)));
    let broken: Vec<String> = all.iter().filter(|c| !c.holds()).map(describe).collect();
    assert!(broken.is_empty(), "contracts not kept:\n{}", broken.join("\n"));
}

/// A full-size layer at one and eight rows.
const FEW_ROWS: &[Pass] = &[Pass::Decode, Pass::Verify];
/// One token of all ids, one of the first, and ten labels.
const HEADS: &[Pass] = &[Pass::Decode, Pass::Propose, Pass::Score];

#[test]
fn kernels_at_the_sizes_of_a_0_5b_model_keep_their_contracts() {
    check(&[
        (CODER_0_5B, Mix::Bf16, FEW_ROWS, &[]),
        (CODER_0_5B, Mix::Q4_K_M, FEW_ROWS, &[Pass::Propose]),
    ]);
}

/// Those of `Qwen2.5-Coder-1.5B` are the same.
#[test]
fn kernels_at_the_sizes_of_a_1_5b_model_keep_their_contracts() {
    check(&[(R1_1_5B, Mix::Bf16, &Pass::ALL, HEADS), (R1_1_5B, Mix::Q4_K_M, &Pass::ALL, HEADS)]);
}

#[test]
fn kernels_at_the_sizes_of_a_32b_model_keep_their_contracts() {
    check(&[(QWQ_32B, Mix::Bf16, &Pass::ALL, HEADS), (QWQ_32B, Mix::Q4_K_M, FEW_ROWS, &[])]);
}
