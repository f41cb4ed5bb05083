//! Whole answers: the pair `tiny` on the emulated device against the CPU device, in every mode.
//!
//! Where two texts part, the f32 reference has to call it a near-tie: the two best tokens of the
//! model that wrote there at most 0.25 nat apart, or a step's score next to the threshold.

use crate::device::full;
use crate::emulator::{kernels, options};
use crate::models::model_path;
use crate::peers::top2_gap;
use crate::problems::questions;
use forerun::device::KvType;
use forerun::device::cpu::{CpuDevice, CpuOptions};
use forerun::device::cuda::{CudaDevice, CudaOptions, Overlap};
use forerun::device::reference::ReferenceDevice;
use forerun::engine::{
    DeviceChoice, Engine, EngineOptions, ModelSource, Pair, PolicyOptions, Reply, Request,
};
use forerun::ids::{Role, TokenId};
use forerun::model::{Checkpoint, PassLimits, Solo};
use forerun::policy::PolicyKind;

const NEAR_TIE_NAT: f32 = 0.25;
/// Scores are expectations over ten digits; bf16 activations move them by some hundredths.
const NEAR_THRESHOLD: f32 = 0.15;

fn engine(device: DeviceChoice, cuda: CudaOptions, run_ahead: Option<usize>) -> Engine {
    let options = EngineOptions {
        device,
        cuda,
        run_ahead,
        max_model_len: Some(512),
        ..EngineOptions::new(Pair::tiny())
    };
    Engine::start(options).unwrap_or_else(|e| panic!("{e}"))
}

fn answers(engine: &Engine, questions: &[String], policy: PolicyKind) -> Vec<Reply> {
    let ask = |question: &String| {
        let options = PolicyOptions::default();
        engine.answer(Request { policy, options, ..Request::ask(question) }).unwrap()
    };
    questions.iter().map(ask).collect()
}

/// The gap between the two best tokens of one model of the pair after `ids`, in f32.
fn gap(role: Role, prompt: &[TokenId], tail: &[TokenId]) -> f32 {
    let pair = Pair::tiny();
    let source = if role == Role::Base { &pair.base } else { pair.draft.as_ref().unwrap() };
    let ModelSource::Embedded(files) = source else { panic!("tiny is embedded") };
    let checkpoint = Checkpoint::embedded(files).unwrap();
    let limits = PassLimits { rows: 512, full_rows: 512, positions: 1024 };
    let mut solo = Solo::load(ReferenceDevice::new(KvType::F32), &checkpoint, limits).unwrap();
    let ids: Vec<TokenId> = prompt.iter().chain(tail).copied().collect();
    top2_gap(solo.logits(&ids).unwrap().pop().unwrap())
}

/// Asserts that two replies are equal up to a near-tie; returns whether they are equal.
fn same_or_near_tie(engine: &Engine, question: &str, cpu: &Reply, cuda: &Reply) -> bool {
    if cpu.ids == cuda.ids {
        return true;
    }
    let at = cpu.ids.iter().zip(&cuda.ids).take_while(|(a, b)| a == b).count();
    let gaps = Role::ALL.map(|role| {
        let prompt = engine.render(&Request::ask(question), role).unwrap();
        gap(role, &prompt, &cpu.ids[..at])
    });
    let tie = gaps.iter().any(|gap| *gap <= NEAR_TIE_NAT);
    let threshold = engine.pair().settings.threshold;
    let scores = cpu.steps.iter().chain(&cuda.steps).filter_map(|step| step.score);
    let close = scores.into_iter().any(|score| (score - threshold).abs() <= NEAR_THRESHOLD);
    assert!(
        tie || close,
        "parts at token {at} of {question:?}: gaps {gaps:?}, no score near {threshold}"
    );
    eprintln!("near-tie at token {at}: gaps {gaps:?}, a score near the threshold: {close}");
    false
}

#[test]
fn answers_are_those_of_the_cpu_up_to_near_ties() {
    if !kernels() {
        return;
    }
    // Some ten seconds each; `FORERUN_FULL=1` asks them under every policy.
    let questions = questions(20);
    let cpu = engine(DeviceChoice::Cpu, CudaOptions::default(), None);
    let cuda = engine(DeviceChoice::Cuda, options(), None);
    let policies = [PolicyKind::SpecReason, PolicyKind::Base, PolicyKind::Draft];
    for policy in policies.into_iter().take(if full() { 3 } else { 1 }) {
        let want = answers(&cpu, &questions, policy);
        let got = answers(&cuda, &questions, policy);
        let pairs = questions.iter().zip(want.iter().zip(&got));
        let same = pairs.filter(|(q, (w, g))| same_or_near_tie(&cpu, q, w, g)).count();
        eprintln!("{policy:?}: {same} of {} identical to the CPU's", questions.len());
        assert!(same * 2 >= questions.len(), "{policy:?}: only {same} identical");
    }
}

#[test]
fn graphs_overlap_run_ahead_dependent_launch_and_architecture_change_no_token() {
    if !kernels() {
        return;
    }
    let questions = questions(if full() { 20 } else { 1 });
    let ids = |cuda: CudaOptions, run_ahead: Option<usize>| -> Vec<Vec<TokenId>> {
        let engine = engine(DeviceChoice::Cuda, cuda, run_ahead);
        let replies = answers(&engine, &questions, PolicyKind::SpecReason);
        replies.into_iter().map(|reply| reply.ids).collect()
    };
    let want = ids(options(), None);
    assert_eq!(ids(options(), Some(1)), want, "one token at a time");
    for (what, cuda) in [
        ("without graphs", CudaOptions { graphs: false, ..options() }),
        ("kernel after kernel", CudaOptions { dependent_launch: false, ..options() }),
        (
            "without graphs, kernel after kernel",
            CudaOptions { graphs: false, dependent_launch: false, ..options() },
        ),
        ("one pass at a time", CudaOptions { overlap: Overlap::Off, ..options() }),
        ("green contexts", CudaOptions { overlap: Overlap::GreenContexts, ..options() }),
        ("as compute_80", CudaOptions { image: Some("compute_80".into()), ..options() }),
        ("as compute_90", CudaOptions { image: Some("compute_90".into()), ..options() }),
    ] {
        assert_eq!(ids(cuda, None), want, "{what}");
    }
}

#[test]
fn four_requests_side_by_side_say_what_each_says_alone() {
    if !kernels() {
        return;
    }
    let questions = questions(4);
    let cuda = CudaOptions { overlap: Overlap::Stream, ..options() };
    let engine = engine(DeviceChoice::Cuda, cuda, None);
    let alone = answers(&engine, &questions, PolicyKind::SpecReason);
    let submit = |question: &String| {
        let policy = PolicyKind::SpecReason;
        engine.submit(Request { policy, ..Request::ask(question) }).expect("a place")
    };
    let all: Vec<_> = questions.iter().map(submit).collect();
    for (events, alone) in all.into_iter().zip(alone) {
        assert_eq!(events.reply().expect("a reply").ids, alone.ids);
    }
}

#[test]
fn smollm2_writes_the_same_first_tokens_as_on_the_cpu() {
    if !kernels() {
        return;
    }
    let Some(path) = model_path("smollm2-135m") else { return };
    let checkpoint = Checkpoint::open(&path).unwrap();
    // Some ids of each text that llama.cpp was asked to continue.
    let texts = include_str!("../fixtures/llama_cpp/smollm2-135m.json");
    let texts: serde_json::Value = serde_json::from_str(texts).unwrap();
    let prompts = texts["prompts"].as_array().unwrap().iter().map(|prompt| {
        let ids = prompt["ids"].as_array().unwrap();
        ids.iter().map(|id| TokenId(id.as_u64().unwrap() as u32)).collect::<Vec<_>>()
    });
    let limits = PassLimits { rows: 64, full_rows: 1, positions: 256 };
    let cuda = CudaDevice::open(&options()).unwrap();
    let mut cuda = Solo::load(cuda, &checkpoint, limits).unwrap();
    let cpu = CpuDevice::new(CpuOptions::default()).unwrap();
    let mut cpu = Solo::load(cpu, &checkpoint, limits).unwrap();
    for (i, prompt) in prompts.enumerate().take(if full() { 8 } else { 1 }) {
        cpu.truncate(0);
        cuda.truncate(0);
        let want = cpu.greedy(&prompt, 8).unwrap();
        let got = cuda.greedy(&prompt, 8).unwrap();
        let same = want.iter().zip(&got).take_while(|(a, b)| a == b).count();
        if same == want.len() {
            continue;
        }
        let f32 = CpuOptions { kv: KvType::F32, widen: true, ..CpuOptions::default() };
        let mut exact = Solo::load(CpuDevice::new(f32).unwrap(), &checkpoint, limits).unwrap();
        let ids: Vec<TokenId> = prompt.iter().chain(&want[..same]).copied().collect();
        let (last, before) = ids.split_last().unwrap();
        for chunk in before.chunks(limits.rows) {
            exact.feed(chunk, vec![]).unwrap();
        }
        let gap = top2_gap(exact.logits(&[*last]).unwrap().remove(0));
        eprintln!("prompt {i} parts at token {same}, where the gap is {gap:.3} nat");
        assert!(gap <= NEAR_TIE_NAT, "prompt {i} parts at token {same}: {gap} nat");
    }
}
