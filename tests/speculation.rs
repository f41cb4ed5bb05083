//! Token-level speculation end to end: whatever is proposed, the base says what it says alone.
//!
//! `FORERUN_FULL=1` asks 50 questions under the whole product of windows and proposers.

#[path = "common/models.rs"]
mod models;
#[path = "common/problems.rs"]
mod problems;
#[path = "common/rollback.rs"]
mod rollback;

use forerun::device::cpu::{CpuDevice, CpuOptions};
use forerun::engine::{
    DeviceChoice, Engine, EngineOptions, Event, ModelSource, Pair, PolicyOptions, Reply, Request,
    Thinking, Urgency,
};
use forerun::policy::{AnswerBy, DraftVocab, PolicyKind, Proposer, WindowSize};
use forerun::sample::SamplingOverrides;
use forerun::telemetry::{Phase, Trace};
use problems::questions;
use serde_json::Value;
use std::sync::{Arc, Mutex};

fn engine(change: impl FnOnce(&mut EngineOptions)) -> Engine {
    let mut options = EngineOptions::new(Pair::tiny());
    options.device = DeviceChoice::Cpu;
    change(&mut options);
    Engine::start(options).expect("the pair starts")
}

fn full() -> bool {
    std::env::var_os("FORERUN_FULL").is_some()
}

fn proposing(by: Proposer, window: WindowSize) -> PolicyOptions {
    PolicyOptions { proposer: Some(by), window: Some(window), ..PolicyOptions::default() }
}

fn warm() -> SamplingOverrides {
    SamplingOverrides {
        temperature: Some(0.9),
        top_p: Some(0.95),
        seed: Some(7),
        ..SamplingOverrides::default()
    }
}

fn penalised() -> SamplingOverrides {
    SamplingOverrides { repetition_penalty: Some(1.1), ..warm() }
}

/// Replies to all questions, side by side.
fn ask(
    engine: &Engine,
    questions: &[String],
    policy: PolicyKind,
    options: &PolicyOptions,
    sampling: &SamplingOverrides,
) -> Vec<Reply> {
    let submit = |question: &String| {
        let (options, sampling) = (options.clone(), sampling.clone());
        let request = Request { policy, options, sampling, ..Request::ask(question) };
        engine.submit(request).expect("a place")
    };
    let all: Vec<_> = questions.iter().map(submit).collect();
    all.into_iter().map(|events| events.reply().expect("a reply")).collect()
}

/// The same where there is one place and the later is the more urgent: each parks the one before
/// it, in the middle of what that writes.
fn ask_parking(
    engine: &Engine,
    questions: &[String],
    policy: PolicyKind,
    options: &PolicyOptions,
    sampling: &SamplingOverrides,
) -> Vec<Reply> {
    let submit = |(i, question): (usize, &String)| {
        let (options, sampling) = (options.clone(), sampling.clone());
        let urgency = Urgency { priority: -(i as i32), timeout: None };
        let request = Request { policy, options, sampling, urgency, ..Request::ask(question) };
        let mut events = engine.submit(request).expect("a place in the queue");
        let begun = events.find(|event| matches!(event, Event::Tokens { .. }));
        assert!(begun.is_some(), "a reply has tokens");
        events
    };
    let all: Vec<_> = questions.iter().enumerate().map(submit).collect();
    all.into_iter().map(|events| events.reply().expect("a reply")).collect()
}

fn assert_same(got: &[Reply], want: &[Reply], what: &str) {
    for (got, want) in got.iter().zip(want) {
        assert_eq!(got.ids, want.ids, "{what}");
        assert_eq!(got.tokens.base, want.tokens.base, "{what}: origins");
        assert_eq!((got.accepted, got.rewritten), (want.accepted, want.rewritten), "{what}");
        assert_eq!(got.finish, want.finish, "{what}");
    }
}

#[test]
fn a_tree_finds_tokens_a_chain_does_not() {
    let (engine, questions) = (engine(|_| {}), questions(12));
    let matched = |branches| {
        let options = PolicyOptions {
            branches: Some(branches),
            ..proposing(Proposer::Draft, WindowSize::Fixed(3))
        };
        let greedy = SamplingOverrides::default();
        let replies = ask(&engine, &questions, PolicyKind::SpecDecode, &options, &greedy);
        let passes: u32 = replies.iter().map(|r| r.phase(Phase::Answer).passes).sum();
        let passes: u32 =
            passes + replies.iter().map(|r| r.phase(Phase::Rewrite).passes).sum::<u32>();
        (counts(&replies), passes)
    };
    let (chain, tree) = (matched(1), matched(3));
    assert!(tree.0.0 > chain.0.0, "{tree:?}: more is proposed than in {chain:?}");
    assert!(tree.1 < chain.1, "{tree:?}: fewer passes of the base than {chain:?}");
}

#[test]
fn a_trace_holds_passes_decisions_windows_and_pages() {
    let text = Shared::default();
    let trace = Arc::new(Trace::to(text.clone()).expect("a trace"));
    let engine = engine(|o| o.trace = Some(trace.clone()));
    let options =
        PolicyOptions { salvage: true, ..proposing(Proposer::Draft, WindowSize::Fixed(3)) };
    let greedy = SamplingOverrides::default();
    let policy = PolicyKind::SpecReasonDecode;
    let replies = ask(&engine, &questions(6), policy, &options, &greedy);
    drop((engine, trace));
    let events: Vec<Value> =
        serde_json::from_slice(&text.0.lock().expect("a lock")).expect("an array in JSON");
    let named = |name: &str| events.iter().filter(|e| e["name"] == name).collect::<Vec<_>>();
    for name in ["draft", "score", "propose", "verify", "salvage", "rollback", "pages", "prompt"] {
        assert!(!named(name).is_empty(), "no {name}");
    }
    let sum = |of: fn(&Reply) -> u32| replies.iter().map(of).sum::<u32>() as usize;
    assert_eq!(named("accept").len(), sum(|r| r.accepted));
    assert_eq!(named("reject").len(), sum(|r| r.rewritten));
    assert!(named("accept").iter().all(|e| e["args"]["score"].is_number()));
    let proposed: usize = named("verify")
        .iter()
        .map(|e| e["args"]["proposed"].as_array().expect("token ids").len())
        .sum();
    assert_eq!(proposed, sum(|r| r.tokens.proposed));
    // Nothing begins before the trace does or lasts less than no time.
    let spans = events.iter().filter(|e| e["ph"] == "X");
    assert!(spans.clone().count() > 0);
    assert!(
        spans.into_iter().all(|e| e["ts"].as_f64() >= Some(0.0) && e["dur"].as_f64() >= Some(0.0))
    );
}

#[test]
fn every_page_comes_back_whatever_was_proposed() {
    let text = Shared::default();
    let trace = Arc::new(Trace::to(text.clone()).expect("a trace"));
    let engine = engine(|o| o.trace = Some(trace.clone()));
    let questions = questions(8);
    for by in [Proposer::Draft, Proposer::Ngram] {
        for branches in [1, 4] {
            let options = PolicyOptions {
                branches: Some(branches),
                salvage: true,
                ..proposing(by, WindowSize::Fixed(8))
            };
            for policy in [PolicyKind::SpecDecode, PolicyKind::SpecReasonDecode] {
                ask(&engine, &questions, policy, &options, &warm());
                let request = Request { policy, ..Request::ask(&questions[0]) };
                let request = Request { options: options.clone(), ..request };
                // Cancelled in the middle.
                drop(engine.submit(request).expect("a place").take(9).collect::<Vec<_>>());
            }
        }
    }
    drop((engine, trace));
    let events: Vec<Value> =
        serde_json::from_slice(&text.0.lock().expect("a lock")).expect("an array in JSON");
    let last = events.iter().rfind(|e| e["name"] == "pages").expect("pages");
    let pages = |who: &str| last["args"][who].as_u64().expect("a count");
    assert_eq!(pages("evictable"), pages("draft") + pages("base"), "somebody holds a page");
}

/// Bytes that survive their writer.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("a lock").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Tokens proposed, and those of them that stayed.
fn counts(replies: &[Reply]) -> (u32, u32) {
    let sum = |of: fn(&Reply) -> u32| replies.iter().map(of).sum();
    (sum(|r| r.tokens.proposed), sum(|r| r.tokens.matched))
}

#[test]
fn whatever_is_proposed_the_base_says_what_it_says_alone() {
    let questions = questions(if full() { 50 } else { 4 });
    let windows: &[u32] = if full() { &[0, 1, 2, 3, 4, 5, 6, 7, 8] } else { &[0, 1, 4, 8] };
    let cached = engine(|_| {});
    let one_place = engine(|o| o.sequences_max = 1);
    for sampling in [SamplingOverrides::default(), warm(), penalised()] {
        let no_options = PolicyOptions::default();
        let want = ask(&engine(|_| {}), &questions, PolicyKind::Base, &no_options, &sampling);
        for by in [Proposer::Draft, Proposer::Ngram] {
            let chains = windows.iter().map(|k| WindowSize::Fixed(*k)).chain([WindowSize::Auto]);
            let chains = chains.map(|window| (window, 1));
            let trees = if full() { 1..=8 } else { 3..=3 };
            let trees = trees.flat_map(|k| [2, 4].map(|b| (WindowSize::Fixed(k), b)));
            for (window, branches) in chains.chain(trees).chain([(WindowSize::Auto, 2)]) {
                let what = format!("{by:?}, {window:?}, {branches} branches, {sampling:?}");
                let options = PolicyOptions { branches: Some(branches), ..proposing(by, window) };
                // The second engine's prefix cache knows every prompt by now, the first none.
                let fresh = engine(|_| {});
                for (engine, cache) in [(&fresh, "empty cache"), (&cached, "warm cache")] {
                    let got = ask(engine, &questions, PolicyKind::SpecDecode, &options, &sampling);
                    assert_same(&got, &want, &format!("{what}, {cache}"));
                    let (proposed, matched) = counts(&got);
                    if let WindowSize::Fixed(k) = window {
                        assert_eq!(proposed > 0, k > 0, "{what}");
                        assert_eq!(matched > 0, k > 0, "{what}");
                        assert!(matched <= proposed);
                    }
                    let drafts = got.iter().map(|r| r.tokens.prompt_draft).sum::<u32>();
                    assert_eq!(drafts > 0, by == Proposer::Draft);
                    assert_eq!(engine.load().preemptions, 0);
                }
                // A short reply may be done before the next request is there, and on a busy machine
                // many times in a row: then once more.
                let before = one_place.load().preemptions;
                let parked = (0..500).any(|_| {
                    let policy = PolicyKind::SpecDecode;
                    let got = ask_parking(&one_place, &questions, policy, &options, &sampling);
                    assert_same(&got, &want, &format!("{what}, parked"));
                    one_place.load().preemptions > before
                });
                assert!(parked, "{what}: nobody was parked");
            }
        }
    }
}

#[test]
fn a_draft_that_proposes_from_its_first_ids_changes_no_token() {
    let questions = questions(6);
    for sampling in [SamplingOverrides::default(), warm(), penalised()] {
        let (text, plain) = (Shared::default(), PolicyOptions::default());
        let want = ask(&engine(|_| {}), &questions, PolicyKind::Base, &plain, &sampling);
        let beyond = want.iter().flat_map(|r| &r.ids).filter(|id| id.0 >= 256).count();
        assert!(beyond > 0, "the base writes ids that are not proposed");
        let trace = Arc::new(Trace::to(text.clone()).expect("a trace"));
        let engine = engine(|o| o.trace = Some(trace.clone()));
        // Leaves whole rows of the draft's logits where windows will write shorter ones.
        ask(&engine, &questions, PolicyKind::Draft, &plain, &warm());
        for branches in [1, 3] {
            let options = PolicyOptions {
                branches: Some(branches),
                draft_vocab: Some(DraftVocab::First(200)),
                ..proposing(Proposer::Draft, WindowSize::Fixed(4))
            };
            let got = ask(&engine, &questions, PolicyKind::SpecDecode, &options, &sampling);
            assert_same(&got, &want, &format!("{branches} branches, {sampling:?}"));
            assert!(counts(&got).1 > 0, "what is proposed agrees now and then");
        }
        drop((engine, trace));
        let events: Vec<Value> =
            serde_json::from_slice(&text.0.lock().expect("a lock")).expect("an array in JSON");
        let proposed = events.iter().filter_map(|e| e["args"]["proposed"].as_array());
        let proposed: Vec<u64> = proposed.flatten().filter_map(Value::as_u64).collect();
        assert!(proposed.len() > 100 && proposed.iter().all(|id| *id < 256), "rounded up to 256");
    }
}

#[test]
fn rewritten_steps_and_the_answer_are_those_of_specreason() {
    let questions = questions(if full() { 50 } else { 8 });
    for sampling in [SamplingOverrides::default(), warm(), penalised()] {
        for (run_ahead, draft_ahead) in [(1, 0), (3, 1), (8, 3)] {
            let engine = engine(|o| {
                (o.run_ahead, o.draft_ahead) = (Some(run_ahead), Some(draft_ahead));
            });
            let plain = PolicyOptions::default();
            let want = ask(&engine, &questions, PolicyKind::SpecReason, &plain, &sampling);
            assert!(want.iter().any(|r| r.rewritten > 0) && want.iter().any(|r| r.accepted > 0));
            for by in [Proposer::Draft, Proposer::Ngram] {
                for window in [WindowSize::Fixed(1), WindowSize::Fixed(5), WindowSize::Auto] {
                    let options = proposing(by, window);
                    let policy = PolicyKind::SpecReasonDecode;
                    let got = ask(&engine, &questions, policy, &options, &sampling);
                    assert_same(&got, &want, &format!("{by:?}, {window:?}, {sampling:?}"));
                    assert!(window == WindowSize::Auto || counts(&got).1 > 0);
                }
            }
        }
    }
}

#[test]
fn salvage_saves_tokens_of_rejected_steps_and_changes_none() {
    let (engine, questions) = (engine(|_| {}), questions(12));
    for sampling in [SamplingOverrides::default(), warm()] {
        for policy in [PolicyKind::SpecReason, PolicyKind::SpecReasonDecode] {
            let plain = PolicyOptions::default();
            let want = ask(&engine, &questions, policy, &plain, &sampling);
            let options = PolicyOptions { salvage: true, ..plain };
            let got = ask(&engine, &questions, policy, &options, &sampling);
            assert_same(&got, &want, "salvage");
            assert!(want.iter().all(|r| r.tokens.salvaged == 0));
            let salvaged: u32 = got.iter().map(|r| r.tokens.salvaged).sum();
            let wasted: u32 = got.iter().map(|r| r.tokens.wasted).sum();
            assert!(salvaged > 0 && salvaged <= wasted, "{salvaged} of {wasted}");
        }
    }
}

#[test]
fn a_window_never_passes_the_end_of_the_context_or_of_a_budget() {
    let questions = questions(4);
    for max_model_len in [100, 120, 150] {
        let engine = engine(|o| o.max_model_len = Some(max_model_len));
        for tokens_max in [None, Some(1), Some(2), Some(9)] {
            let options = |by| PolicyOptions { tokens_max, ..proposing(by, WindowSize::Fixed(8)) };
            let plain = options(Proposer::Draft);
            let greedy = SamplingOverrides::default();
            let want = ask(&engine, &questions, PolicyKind::Base, &plain, &greedy);
            for by in [Proposer::Draft, Proposer::Ngram] {
                let got = ask(&engine, &questions, PolicyKind::SpecDecode, &options(by), &greedy);
                assert_same(&got, &want, &format!("{max_model_len}, {tokens_max:?}"));
            }
        }
    }
}

#[test]
fn a_pair_without_a_draft_looks_tokens_up() {
    let engine = engine(|o| o.pair.draft = None);
    let questions = questions(4);
    let (none, greedy) = (PolicyOptions::default(), SamplingOverrides::default());
    let want = ask(&engine, &questions, PolicyKind::Base, &none, &greedy);
    let got = ask(&engine, &questions, PolicyKind::SpecDecode, &none, &greedy);
    assert_same(&got, &want, "n-gram");
    assert!(got.iter().all(|r| r.settings.speculation.unwrap().by == Proposer::Ngram));
    let drafted = proposing(Proposer::Draft, WindowSize::Auto);
    let request =
        Request { policy: PolicyKind::SpecDecode, options: drafted, ..Request::ask(&questions[0]) };
    let error = engine.answer(request).expect_err("there is no draft").to_string();
    assert!(error.contains("draft"), "{error}");
}

#[test]
fn an_answer_by_the_draft_is_never_proposed_to() {
    let engine = engine(|_| {});
    let options = PolicyOptions {
        answer_by: Some(AnswerBy::Draft),
        threshold: Some(0.0),
        ..proposing(Proposer::Draft, WindowSize::Fixed(4))
    };
    let greedy = SamplingOverrides::default();
    let got = ask(&engine, &questions(3), PolicyKind::SpecReasonDecode, &options, &greedy);
    assert_eq!(counts(&got), (0, 0), "the base wrote nothing");
}

#[test]
fn a_window_that_was_rolled_back_leaves_the_kv_as_if_never_fed() {
    rollback::leaves_no_trace(|| CpuDevice::new(CpuOptions::default()).expect("a CPU"));
}

#[test]
fn a_rejected_step_among_several_leaves_the_base_kv_as_if_never_seen() {
    let cpu = || CpuDevice::new(CpuOptions::default()).expect("a CPU");
    rollback::scored_together_leave_no_trace(cpu);
}

#[test]
fn a_real_pair_says_what_its_base_says_alone() {
    if !full() {
        eprintln!("skipped: some minutes; FORERUN_FULL=1 runs it");
        return;
    }
    let names = ["qwen2.5-coder-1.5b", "qwen2.5-coder-0.5b"];
    let [Some(base), Some(draft)] = names.map(models::model_path) else { return };
    let (base, draft) = (ModelSource::Path(base), ModelSource::Path(draft));
    let pair = Pair::custom(base, Some(draft), Thinking::None);
    let engine = engine(|o| o.pair = pair);
    let questions = questions(50);
    let limited = |options| PolicyOptions { tokens_max: Some(64), ..options };
    let greedy = SamplingOverrides { temperature: Some(0.0), ..SamplingOverrides::default() };
    let plain = limited(PolicyOptions::default());
    let want = ask(&engine, &questions, PolicyKind::Base, &plain, &greedy);
    for k in [1, 4, 8] {
        for by in [Proposer::Draft, Proposer::Ngram] {
            let options = limited(proposing(by, WindowSize::Fixed(k)));
            let got = ask(&engine, &questions, PolicyKind::SpecDecode, &options, &greedy);
            assert_same(&got, &want, &format!("{by:?}, {k}"));
            let (proposed, matched) = counts(&got);
            eprintln!("{by:?}, {k}: {matched} of {proposed} proposed tokens agreed");
        }
    }
}
