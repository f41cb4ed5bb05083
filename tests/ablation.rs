//! What each addition to SpecReason does on the embedded pair: counts against a golden file.
//!
//! Counts, never times. They come from the reference device, whose f32 loops are the same on every
//! machine. `UPDATE_GOLDEN=1 cargo test --test ablation` writes the file anew.

use forerun::engine::{DeviceChoice, Engine, EngineOptions, Pair, PolicyOptions, Request};
use forerun::eval::problem;
use forerun::policy::{Gates, PolicyKind, Proposer, WindowSize};
use std::path::Path;

const PROBLEMS: &str = include_str!("../src/assets/tiny/problems_dev.jsonl");
const COUNT: usize = 12;

/// Every row: its name, its policy, its options.
fn rows() -> Vec<(&'static str, PolicyKind, PolicyOptions)> {
    use PolicyKind::{Base, Draft, SpecDecode, SpecReason, SpecReasonDecode};
    let plain = PolicyOptions::default;
    let windows = |by| PolicyOptions {
        proposer: Some(by),
        window: Some(WindowSize::Fixed(4)),
        ..PolicyOptions::default()
    };
    let gates = |gates| PolicyOptions { gates, ..windows(Proposer::Draft) };
    let merge = Gates { merge_tokens: Some(32), ..Gates::default() };
    let entropy = Gates { entropy_max: Some(0.5), ..Gates::default() };
    let confidence = Gates { confidence_min: Some(0.95), ..Gates::default() };
    vec![
        ("base", Base, plain()),
        ("draft", Draft, plain()),
        ("spec-decode, draft", SpecDecode, windows(Proposer::Draft)),
        ("spec-decode, n-gram", SpecDecode, windows(Proposer::Ngram)),
        ("specreason", SpecReason, plain()),
        ("specreason+decode", SpecReasonDecode, windows(Proposer::Draft)),
        ("salvage", SpecReasonDecode, PolicyOptions { salvage: true, ..windows(Proposer::Draft) }),
        ("merged steps", SpecReasonDecode, gates(merge)),
        ("entropy gate", SpecReasonDecode, gates(entropy)),
        ("confidence gate", SpecReasonDecode, gates(confidence)),
    ]
}

#[test]
fn token_accept_and_waste_counts_equal_the_goldens() {
    let problems = problem::parse(PROBLEMS, "problems_dev.jsonl").expect("the pair's problems");
    let options =
        EngineOptions { device: DeviceChoice::Reference, ..EngineOptions::new(Pair::tiny()) };
    let engine = Engine::start(options).expect("the pair starts");
    let mut table = String::from(
        "row: correct; steps accepted, rewritten, left to the base; tokens by the draft, by the \
         base, wasted; proposed, agreed; salvaged\n",
    );
    for (name, policy, options) in rows() {
        let submit = |problem: &problem::Problem| {
            let request =
                Request { policy, options: options.clone(), ..Request::ask(&problem.question) };
            engine.submit(request).expect("a place")
        };
        let all: Vec<_> = problems[..COUNT].iter().map(submit).collect();
        let replies: Vec<_> =
            all.into_iter().map(|events| events.reply().expect("a reply")).collect();
        let right = problems.iter().zip(&replies).filter(|(problem, reply)| {
            let answer = reply.answer.as_deref();
            answer.is_some_and(|answer| forerun::text::equal(answer, &problem.answer))
        });
        let sum = |of: fn(&forerun::engine::Reply) -> u32| -> u32 { replies.iter().map(of).sum() };
        table.push_str(&format!(
            "{name}: {}; {}, {}, {}; {}, {}, {}; {}, {}; {}\n",
            right.count(),
            sum(|r| r.accepted),
            sum(|r| r.rewritten),
            sum(|r| r.gated),
            sum(|r| r.tokens.draft),
            sum(|r| r.tokens.base),
            sum(|r| r.tokens.wasted),
            sum(|r| r.tokens.proposed),
            sum(|r| r.tokens.matched),
            sum(|r| r.tokens.salvaged),
        ));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ablation.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &table).expect("a writable fixture");
    }
    let golden = std::fs::read_to_string(&path).expect("tests/fixtures/ablation.txt");
    assert_eq!(table, golden, "the counts changed; UPDATE_GOLDEN=1 writes them anew");
}
