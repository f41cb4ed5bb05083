//! The ablation of `benches/ablation` on the embedded pair: what every row keeps, accepts and
//! throws away, to the token.
//!
//! The goldens (`tests/fixtures/ablation/tiny.json`) are what this test wrote with
//! `FORERUN_BLESS=1`, and every instruction set the processor has is held to the same ones. They
//! differ in last bits, which turn no decision on these problems as long as nothing is rounded:
//! the pair's weights are bf16, so that activations are never int8, and keys and values are kept
//! in f32, because in bf16 a last bit now and then becomes a step of 2⁻⁸. (One gate of one step
//! here does depend on that rounding.)

use forerun::device::KvType;
use forerun::device::cpu::simd::SimdLevel;
use forerun::device::cpu::{CpuDevice, CpuOptions};
use forerun::engine::{Engine, EngineOptions, Pair, PolicyOptions};
use forerun::eval::drive::{self, Pace};
use forerun::eval::{Record, Variant, problem};
use forerun::policy::{Gates, PolicyKind, Proposer, WindowSize};
use forerun::sample::{Readout, SamplingOverrides};
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

const DATA: &str = include_str!("../src/assets/tiny/problems_dev.jsonl");
const PROBLEMS: usize = 16;

/// A row: its name, and the row whose replies it has, token by token, if it only saves time.
struct Row {
    name: &'static str,
    says_like: Option<&'static str>,
    policy: PolicyKind,
    options: PolicyOptions,
    sampling: SamplingOverrides,
    draft_ahead: u32,
}

/// The rows of `benches/ablation/run.sh`, at sizes that suit the pair: its steps have some fifteen
/// tokens, and the score its judge was trained for is the expected digit.
fn rows() -> Vec<Row> {
    use PolicyKind::{Base, Draft, SpecDecode, SpecReason, SpecReasonDecode};
    let greedy = SamplingOverrides { temperature: Some(0.0), ..SamplingOverrides::default() };
    let warm = SamplingOverrides {
        temperature: Some(0.6),
        top_p: Some(0.95),
        seed: Some(1),
        ..SamplingOverrides::default()
    };
    let row = |name, says_like, policy, options| Row {
        name,
        says_like,
        policy,
        options,
        sampling: greedy.clone(),
        draft_ahead: 0,
    };
    let plain = PolicyOptions::default;
    let by = |by, k| PolicyOptions {
        proposer: Some(by),
        window: Some(WindowSize::Fixed(k)),
        ..PolicyOptions::default()
    };
    let tree = PolicyOptions { branches: Some(2), ..by(Proposer::Draft, 4) };
    let salvage = PolicyOptions { salvage: true, ..by(Proposer::Ngram, 8) };
    let merged = Gates { merge_tokens: Some(24), ..Gates::default() };
    let gated = Gates { entropy_max: Some(0.5), confidence_min: Some(0.95), ..Gates::default() };
    let with = |gates| PolicyOptions { gates, ..PolicyOptions::default() };
    let paper = PolicyOptions {
        threshold: Some(7.0),
        readout: Some(Readout::Greedy),
        ..PolicyOptions::default()
    };
    let mut rows = vec![
        row("base", None, Base, plain()),
        row("draft", None, Draft, plain()),
        row("spec-decode (draft)", Some("base"), SpecDecode, by(Proposer::Draft, 4)),
        row("spec-decode (draft, tree)", Some("base"), SpecDecode, tree),
        row("spec-decode (n-gram)", Some("base"), SpecDecode, by(Proposer::Ngram, 8)),
        row("specreason, greedy digit, 7", None, SpecReason, paper),
        row("specreason", None, SpecReason, plain()),
        row("+decode", Some("specreason"), SpecReasonDecode, by(Proposer::Ngram, 8)),
        row("+salvage", Some("specreason"), SpecReasonDecode, salvage.clone()),
        row("+draft-ahead", Some("specreason"), SpecReasonDecode, salvage),
        row("steps merged", None, SpecReason, with(merged)),
        row("gated", None, SpecReason, with(gated)),
        row("base, sampled", None, Base, plain()),
        row(
            "spec-decode (n-gram), sampled",
            Some("base, sampled"),
            SpecDecode,
            by(Proposer::Ngram, 8),
        ),
        row("specreason, sampled", None, SpecReason, plain()),
    ];
    for row in &mut rows {
        row.draft_ahead = u32::from(row.name == "+draft-ahead");
        if row.name.ends_with("sampled") {
            row.sampling = warm.clone();
        }
    }
    rows
}

/// The records of a row, made on one instruction set.
fn records(row: &Row, simd: SimdLevel) -> Vec<Record> {
    let cpu = CpuOptions { threads: Some(2), simd: Some(simd), kv: KvType::F32, widen: false };
    let device = CpuDevice::new(cpu).expect("a CPU");
    let mut options = EngineOptions::new(Pair::tiny());
    options.draft_ahead = Some(row.draft_ahead);
    let engine = Engine::start_on(device, options).expect("the pair starts");
    let variant = Variant::new(&engine, row.policy, row.options.clone(), row.sampling.clone());
    let (variants, mut records) = ([variant], vec![]);
    let problems = problem::parse(DATA, "the development problems").expect("problems");
    let pace = Pace { concurrency: 1, timed: 0 };
    let jobs = drive::jobs(&problems[..PROBLEMS], &variants, &[], pace);
    drive::run(&engine, &jobs, 1, &AtomicBool::new(false), &mut |record| {
        records.push(record);
        Ok(())
    })
    .expect("every request ends");
    records
}

/// What a golden says of a row.
fn counts(records: &[Record]) -> Value {
    let sum = |of: fn(&Record) -> u32| records.iter().map(of).sum::<u32>();
    json!({
        "correct": records.iter().filter(|r| r.correct).count(),
        "tokens": sum(|r| r.tokens),
        "by_draft": sum(|r| r.draft_tokens),
        "wasted": sum(|r| r.wasted),
        "accepted": sum(|r| r.accepted),
        "rewritten": sum(|r| r.rewritten),
        "proposed": sum(|r| r.proposed),
        "matched": sum(|r| r.matched),
        "salvaged": sum(|r| r.salvaged),
    })
}

#[test]
fn every_row_keeps_accepts_and_wastes_what_the_goldens_say() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ablation/tiny.json");
    let golden: Value = std::fs::read_to_string(&path)
        .map(|text| serde_json::from_str(&text).expect("JSON"))
        .unwrap_or_default();
    let bless = std::env::var_os("FORERUN_BLESS").is_some();
    let mut written = Map::new();
    for (i, simd) in SimdLevel::available().into_iter().enumerate() {
        let mut replies: Vec<(&str, Vec<String>)> = vec![];
        for row in rows() {
            let records = records(&row, simd);
            assert_eq!(records.len(), PROBLEMS);
            let (got, what) = (counts(&records), format!("{}, {}", row.name, simd.name()));
            let said: Vec<_> = records.into_iter().map(|record| record.reply).collect();
            if let Some(like) = row.says_like {
                let like = replies.iter().find(|(name, _)| *name == like).expect("an earlier row");
                assert_eq!(said, like.1, "{what}: tokens of the replies");
            }
            replies.push((row.name, said));
            match bless && i == 0 {
                true => drop(written.insert(row.name.to_owned(), got)),
                false if bless => assert_eq!(got, written[row.name], "{what}"),
                false => assert_eq!(got, golden["rows"][row.name], "{what}"),
            }
        }
    }
    if bless {
        let generator = "FORERUN_BLESS=1 cargo test --release --test ablation";
        let fixture = json!({"generator": generator, "problems": PROBLEMS, "rows": written});
        let text = serde_json::to_string_pretty(&fixture).expect("JSON") + "\n";
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("writable");
        std::fs::write(&path, text).expect("writable");
    }
}
