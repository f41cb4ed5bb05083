//! What the CUDA device asks of the driver while it answers, and what becomes of requests when the
//! device is lost; both from the software GPU, whose log holds every driver call.
//!
//! The log and the device are the process's, so the tests take turns.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

#[path = "cuda/emulator.rs"]
mod emulator;

use emulator::{kernels, library, on_hardware, options};
use forerun::device::cuda::CudaOptions;
use forerun::engine::{DeviceChoice, Engine, EngineOptions, Event, Pair, Request};
use gpu_emulator::load::Emulator;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

static TURN: Mutex<()> = Mutex::new(());

/// Whether the driver has a log, and fails when it is told to.
fn has_log() -> bool {
    if on_hardware() {
        eprintln!("NOT RUN on hardware: only the software GPU logs calls and fails when asked to");
    }
    !on_hardware()
}

fn engine(cuda: CudaOptions) -> Engine {
    let options = EngineOptions {
        device: DeviceChoice::Cuda,
        cuda,
        max_model_len: Some(512),
        ..EngineOptions::new(Pair::tiny())
    };
    Engine::start(options).unwrap_or_else(|e| panic!("{e}"))
}

const QUESTION: &str = "Tom has 3 apples and buys 4 more. How many apples does Tom have?";

/// Calls after the mark, in order.
fn calls_after<'a>(report: &'a Value, mark: &str) -> Vec<&'a Value> {
    assert_eq!(report["log_entries_dropped"], 0, "the log is not whole");
    let log = report["log"].as_array().unwrap();
    let begin = log.iter().position(|entry| entry["mark"] == mark).unwrap();
    log[begin..].iter().filter(|entry| entry["call"].is_string()).collect()
}

#[test]
fn an_engine_step_waits_once_a_model_and_allocates_nothing() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    if !kernels() || !has_log() {
        return;
    }
    let emulator = Emulator::open_at(&library()).unwrap();
    // A chain of passes, as is the default on a GPU, is one engine step too.
    for graphs in [true, false] {
        let engine = engine(CudaOptions { graphs, ..options() });
        emulator.clear_report();
        emulator.mark("started");
        let reply = engine.answer(Request::ask(QUESTION)).unwrap();
        assert!(
            reply.accepted > 0 && reply.rewritten > 0,
            "not the whole of SpecReason: {reply:?}"
        );
        let report = emulator.report();
        let calls = calls_after(&report, "started");
        let mut counts = BTreeMap::new();
        for call in &calls {
            *counts.entry(call["call"].as_str().unwrap()).or_insert(0) += 1;
        }
        eprintln!("graphs {graphs}: {counts:?}");
        let allocating = ["Alloc", "Create", "ModuleLoad", "LibraryLoad", "HostRegister"];
        for name in counts.keys() {
            assert!(!allocating.iter().any(|part| name.contains(part)), "{name} after start-up");
        }

        // What each stream was asked since its last wait.
        let mut since: BTreeMap<u64, Vec<&str>> = BTreeMap::new();
        for call in calls {
            let name = call["call"].as_str().unwrap();
            assert!(call["pageable"].is_null(), "a copy with pageable memory: {call}");
            let Some(stream) = call["stream"].as_u64() else {
                assert!(call["host_sync"].is_null(), "the host waits for everything: {call}");
                continue;
            };
            let asked = since.entry(stream).or_default();
            if call["host_sync"].is_null() {
                asked.push(name);
                continue;
            }
            assert_eq!(name, "cuStreamSynchronize");
            let last = asked.last().copied().unwrap_or_default();
            assert!(last.starts_with("cuMemcpyDtoHAsync"), "a wait for nothing, after {asked:?}");
            let results = asked.iter().filter(|name| name.contains("DtoH")).count();
            assert_eq!(results, 1, "{asked:?}");
            asked.clear();
        }
        assert_eq!(since.len(), 2, "a stream a model");
        drop(engine);
    }
}

/// Launches of one answer with these options, in a report.
fn launches_of(cuda: CudaOptions) -> Value {
    let emulator = Emulator::open_at(&library()).unwrap();
    let engine = engine(cuda);
    emulator.clear_report();
    emulator.mark("started");
    engine.answer(Request::ask(QUESTION)).unwrap();
    emulator.report()
}

/// Whether each launch of a stream asked to begin early, and whether the stream's call before it
/// was a launch too.
fn early_in_streams(report: &Value) -> Vec<(bool, bool)> {
    let mut last: BTreeMap<u64, &str> = BTreeMap::new();
    let mut launches = vec![];
    for call in calls_after(report, "started") {
        let Some(stream) = call["stream"].as_u64() else { continue };
        let name = call["call"].as_str().unwrap();
        let before = last.insert(stream, name);
        if name.starts_with("cuLaunchKernel") {
            launches.push((call["programmatic"] == true, before == Some(name)));
        }
    }
    assert!(launches.len() > 100, "{launches:?}");
    launches
}

#[test]
fn every_launch_but_the_first_of_a_submission_begins_early_where_the_gpu_can() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    if !kernels() || !has_log() {
        return;
    }
    let eager = |change: fn(&mut CudaOptions)| {
        let mut cuda = CudaOptions { graphs: false, ..options() };
        change(&mut cuda);
        launches_of(cuda)
    };
    let report = eager(|_| {});
    let launches = early_in_streams(&report);
    for (early, behind_a_launch) in &launches {
        assert_eq!(early, behind_a_launch, "{launches:?}");
    }
    // What asked for it had it, and loaded weights before its wait.
    let of = |kernel: &Value, count: &str| kernel[count].as_u64().unwrap();
    let kernels = report["kernels"].as_object().unwrap();
    let had: u64 = kernels.values().map(|kernel| of(kernel, "early_launches")).sum();
    assert_eq!(had as usize, launches.iter().filter(|(early, _)| *early).count());
    for matrix in ["project", "qkv", "gate_up", "head"] {
        let kernel = &kernels[&format!("forerun_{matrix}_n8")];
        let (launches, warps) = (of(kernel, "launches"), of(kernel, "dependency_waits"));
        assert!(launches > 0 && of(kernel, "early_load_requests") > warps, "{matrix}: {kernel}");
    }

    // The architecture of the kernels decides, and the switch.
    for change in
        [(|cuda| cuda.image = Some("compute_80".into())) as fn(&mut CudaOptions), |cuda| {
            cuda.dependent_launch = false
        }]
    {
        assert!(early_in_streams(&eager(change)).iter().all(|(early, _)| !early));
    }
}

#[test]
fn graphs_keep_which_launches_begin_early() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    if !kernels() || !has_log() {
        return;
    }
    Emulator::open_at(&library()).unwrap().reset(&[]);
    let report = launches_of(options());
    let graphs = report["early_in_graphs"].as_object().unwrap();
    assert!(!graphs.is_empty(), "no graph was made");
    for kernels in graphs.values() {
        let early = kernels.as_array().unwrap();
        assert!(early.len() > 5 && early[0] == false, "{early:?}");
        assert!(early[1..].iter().all(|early| *early == true), "{early:?}");
    }
}

#[test]
fn a_lost_device_ends_every_request_and_names_the_launches() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    if !kernels() || !has_log() {
        return;
    }
    let emulator = Emulator::open_at(&library()).unwrap();
    for graphs in [false, true] {
        let engine = engine(CudaOptions { graphs, ..options() });
        emulator.fail("forerun_gate_up_n8", 30);
        let handles: Vec<_> =
            (0..3).map(|_| engine.submit(Request::ask(QUESTION)).unwrap()).collect();
        let mut ends = vec![];
        for events in handles {
            let terminal: Vec<_> = events
                .filter(|event| matches!(event, Event::Finished(_) | Event::Failed(_)))
                .collect();
            assert_eq!(terminal.len(), 1, "{terminal:?}");
            let Event::Failed(error) = &terminal[0] else { panic!("finished on a lost device") };
            ends.push(error.to_string());
        }
        // And whoever comes later learns the same.
        ends.push(engine.answer(Request::ask(QUESTION)).unwrap_err().to_string());
        for end in &ends {
            eprintln!("graphs {graphs}: {end}");
            assert!(end.contains("lost"), "{end}");
            assert!(end.contains("CUDA_ERROR_LAUNCH_FAILED (719)"), "{end}");
            assert!(end.contains("forerun_embed <"), "{end}");
        }
        drop(engine);
        emulator.reset(&[]);
    }
}

#[test]
fn bench_times_the_software_gpu_only_when_asked_and_says_what_it_is() {
    if !kernels() || !has_log() {
        return;
    }
    let bench = |flags: &[&str]| {
        std::process::Command::new(env!("CARGO_BIN_EXE_forerun"))
            .args(["bench", "-m", "tiny-draft", "-p", "16", "-n", "0", "-r", "1"])
            .args(["--device", "cuda", "--cuda-driver"])
            .arg(library())
            .args(flags)
            .output()
            .unwrap()
    };
    let refused = bench(&[]);
    assert!(!refused.status.success() && refused.stdout.is_empty(), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--emulated-times"), "{refused:?}");
    let table = bench(&["--emulated-times"]);
    assert!(table.status.success(), "{table:?}");
    assert!(String::from_utf8_lossy(&table.stdout).contains("CUDA (emulated)"), "{table:?}");
}
