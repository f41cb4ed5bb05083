//! The policy `lookahead` end to end on the embedded pair, which was never taught to compare steps:
//! what it finds to be the same is noise, and everything else must hold all the more.

#[path = "common/problems.rs"]
mod problems;
#[path = "common/timeline.rs"]
mod timeline;

use forerun::engine::{
    Completion, Engine, EngineOptions, Event, JudgeText, Pair, PolicyOptions, Prompt, Reply,
    Request,
};
use forerun::error::{EngineError, KvError};
use forerun::ids::{Role, TokenId};
use forerun::policy::{FinishWhy, Note, Origin, PolicyKind};
use forerun::sample::{Readout, SamplingOverrides};
use problems::questions;
use timeline::Timeline;

fn engine(change: impl FnOnce(&mut EngineOptions)) -> Engine {
    let mut options = EngineOptions::new(Pair::tiny());
    change(&mut options);
    Engine::start(options).expect("the pair starts")
}

fn warm() -> SamplingOverrides {
    SamplingOverrides { temperature: Some(1.0), seed: Some(11), ..SamplingOverrides::default() }
}

/// Accepts what the base finds to be the same from a mean digit of `threshold` on.
fn request(question: &str, threshold: f32, sampling: &SamplingOverrides) -> Request {
    let options = PolicyOptions {
        threshold: Some(threshold),
        readout: Some(Readout::Mean),
        ..PolicyOptions::default()
    };
    let (policy, sampling) = (PolicyKind::Lookahead, sampling.clone());
    Request { policy, options, sampling, ..Request::ask(question) }
}

/// Replies to everything at once, so that passes hold branches of several requests.
fn replies(engine: &Engine, requests: &[Request]) -> Vec<Reply> {
    let all: Vec<_> = requests.iter().map(|r| engine.submit(r.clone()).expect("room")).collect();
    all.into_iter().map(|events| events.reply().expect("a reply")).collect()
}

/// What does not depend on how far the draft was when something was decided.
#[derive(Debug, PartialEq)]
struct Decided {
    ids: Vec<TokenId>,
    finish: FinishWhy,
    kept_and_rewritten: [u32; 2],
    /// Text, writer and the bits of the score.
    steps: Vec<(String, Origin, Option<u32>)>,
}

fn decided(reply: &Reply) -> Decided {
    let steps = reply.steps.iter();
    Decided {
        ids: reply.ids.clone(),
        finish: reply.finish,
        kept_and_rewritten: [reply.accepted, reply.rewritten],
        steps: steps.map(|s| (s.text.clone(), s.origin, s.score.map(f32::to_bits))).collect(),
    }
}

/// Requests of which some keep drafted steps and some do not.
fn mixed(n: usize) -> Vec<Request> {
    let mut all = vec![];
    for question in questions(n) {
        for sampling in [SamplingOverrides::default(), warm()] {
            for threshold in [0.0, 3.0, 4.5, 100.0] {
                all.push(request(&question, threshold, &sampling));
            }
        }
    }
    all
}

#[test]
fn where_no_step_says_the_same_the_reply_is_the_bases_greedy_or_sampled() {
    for draft_ahead in [0, 1, 3, 6] {
        let engine = engine(|o| o.draft_ahead = Some(draft_ahead));
        let mut scored = 0;
        for question in questions(6) {
            for sampling in [SamplingOverrides::default(), warm()] {
                let spec = request(&question, 100.0, &sampling);
                let base = Request { policy: PolicyKind::Base, ..spec.clone() };
                let [spec, base] = [spec, base].map(|r| engine.answer(r).expect("a reply"));
                assert_eq!(spec.ids, base.ids, "{draft_ahead} ahead, {question}");
                assert_eq!(spec.finish, base.finish);
                let asked = spec.steps.iter().filter(|step| step.score.is_some());
                assert!(asked.clone().all(|step| step.origin == Origin::Base));
                scored += asked.count();
            }
        }
        assert!(scored > 0, "the base was asked now and then");
    }
}

#[test]
fn how_far_either_model_is_ahead_changes_neither_the_reply_nor_what_was_decided() {
    let requests = mixed(3);
    let alone: Vec<Reply> = {
        let engine = engine(|o| o.draft_ahead = Some(0));
        requests.iter().map(|r| engine.answer(r.clone()).expect("a reply")).collect()
    };
    let count = |of: fn(&Reply) -> u32| alone.iter().map(of).sum::<u32>();
    assert!(
        count(|r| r.accepted) > 0 && count(|r| r.rewritten) > 0 && count(|r| r.tokens.draft) > 0
    );
    for (draft_ahead, run_ahead, batch_rows_max) in [(1, 1, 512), (4, 3, 512), (6, 8, 24)] {
        let engine = engine(|o| {
            (o.draft_ahead, o.run_ahead) = (Some(draft_ahead), Some(run_ahead));
            o.batch_rows_max = batch_rows_max;
        });
        for (got, want) in replies(&engine, &requests).iter().zip(&alone) {
            assert_eq!(decided(got), decided(want), "{draft_ahead} ahead, run {run_ahead}");
        }
        assert!(all_pages_are_back(&engine));
    }
}

#[test]
fn models_that_write_alike_never_have_to_be_compared() {
    let pair = Pair { draft: Some(Pair::tiny().base), ..Pair::tiny() };
    let engine = Engine::start(EngineOptions::new(pair)).expect("the pair starts");
    for question in questions(4) {
        let spec = request(&question, 100.0, &SamplingOverrides::default());
        let base = Request { policy: PolicyKind::Base, ..spec.clone() };
        let [spec, base] = [spec, base].map(|r| engine.answer(r).expect("a reply"));
        assert_eq!(spec.ids, base.ids);
        assert!(spec.accepted > 0 && spec.rewritten == 0 && spec.tokens.wasted == 0);
        assert!(spec.steps.iter().all(|step| step.score.is_none()));
    }
}

#[test]
fn events_replay_to_the_reply_and_nobody_hears_of_a_step_before_its_turn() {
    let engine = engine(|o| (o.draft_ahead, o.run_ahead) = (Some(4), Some(4)));
    let mut decided = [0, 0];
    for request in mixed(3) {
        let (mut ids, mut origins, mut began, mut kept): (Vec<TokenId>, Vec<Origin>, _, _) =
            (vec![], vec![], 0, 0);
        for event in engine.submit(request).expect("room") {
            match event {
                Event::Tokens { at, ids: new, origin, .. } => {
                    assert_eq!(at as usize, ids.len(), "tokens are heard of in order");
                    origins.extend(new.iter().map(|_| origin));
                    ids.extend(new);
                }
                Event::RolledBack { to } => {
                    assert!(to >= kept, "what is kept stays");
                    ids.truncate(to as usize);
                    origins.truncate(to as usize);
                }
                Event::Note(Note::StepBegan { .. }) => began = kept,
                Event::Note(Note::StepScored { accepted, drafted, .. }) => {
                    decided[usize::from(accepted)] += 1;
                    if accepted {
                        assert_eq!(ids.len() as u32 - began, drafted, "and nothing of the next");
                    }
                }
                Event::Note(Note::StepKept { start, end, writer, .. }) => {
                    assert_eq!(start, kept);
                    let writer = Origin::from(writer);
                    let step = &origins[start as usize..ids.len().min(end as usize)];
                    let ok = |origin: &Origin| [writer, Origin::Injected].contains(origin);
                    assert!(step.iter().all(ok), "{step:?} by {writer:?}");
                    kept = end;
                }
                Event::Finished(reply) => assert_eq!(reply.ids, ids),
                Event::Failed(error) => panic!("{error}"),
                _ => {}
            }
        }
    }
    assert!(decided.iter().all(|n| *n > 0), "{decided:?}");
}

fn all_pages_are_back(engine: &Engine) -> bool {
    let load = engine.load();
    load.free_pages + load.evictable_pages == load.pages
}

#[test]
fn where_pages_run_out_the_reply_is_the_same() {
    let requests = mixed(2);
    let alone: Vec<Reply> = {
        let engine = engine(|o| o.max_model_len = Some(700));
        requests.iter().map(|r| engine.answer(r.clone()).expect("a reply")).collect()
    };
    let tight = |bytes: u64| {
        Engine::start(EngineOptions {
            max_model_len: Some(700),
            kv_cache_memory_bytes: Some(bytes),
            ..EngineOptions::new(Pair::tiny())
        })
    };
    let needed = match tight(1 << 16).err().expect("too small") {
        EngineError::Kv(KvError::TooSmall { needed_bytes, .. }) => needed_bytes,
        other => panic!("{other}"),
    };
    // Room for one request at full context, which with all its branches may take more.
    let engine = tight(needed).expect("just enough");
    // Between them some that grow to the end of the context, so that pages run out.
    let long = Completion {
        ignore_end_of_turn: true,
        ..Completion::new(Role::Base, Prompt::Text("1 + 1".into()))
    };
    let (mut all, mut others) = (vec![], vec![]);
    for request in &requests {
        others.push(engine.complete(&long).expect("room"));
        all.push(engine.submit(request.clone()).expect("room"));
    }
    for (events, want) in all.into_iter().zip(&alone) {
        assert_eq!(decided(&events.reply().expect("a reply")), decided(want));
    }
    others.into_iter().for_each(|events| assert!(events.reply().is_ok()));
    // And each with nothing but itself, so that it has nobody's pages but its own to give back.
    for (request, want) in requests.iter().zip(&alone) {
        assert_eq!(decided(&engine.answer(request.clone()).expect("a reply")), decided(want));
    }
    assert!(engine.load().preemptions > 0, "the pool was never full");
    assert!(all_pages_are_back(&engine));
}

#[test]
fn what_only_a_base_that_reads_every_drafted_step_can_tell_is_refused_by_name() {
    let engine = engine(|_| {});
    let plain = || request("1 + 1", 5.0, &SamplingOverrides::default());
    let with = |change: fn(&mut Request)| {
        let mut request = plain();
        change(&mut request);
        engine.answer(request).expect_err("refused").to_string()
    };
    assert!(with(|r| r.logprobs = Some(2)).contains("lookahead"));
    assert!(with(|r| r.options.step_logprobs = true).contains("lookahead"));
    let turn = with(|r| r.options.judge = JudgeText::built_in("turn"));
    assert!(turn.contains("layout compare, not turn"), "{turn}");
    let judge = JudgeText::Compare { instruction: "same?".into(), prefill: "".into() };
    let mut request = plain();
    request.options.judge = Some(judge);
    let error = engine.answer(request).expect_err("refused").to_string();
    assert!(error.contains("{step}"), "{error}");
    let mut scoring = Request::ask("1 + 1");
    scoring.options.judge = JudgeText::built_in("compare");
    let error = engine.answer(scoring).expect_err("refused").to_string();
    assert!(error.contains("--policy lookahead"), "{error}");
}

#[test]
fn a_trace_shows_several_versions_in_one_pass_of_the_base() {
    let timeline = Timeline::default();
    let trace = Some(timeline.trace());
    let engine = engine(|o| (o.trace, o.run_ahead) = (trace, Some(8)));
    for request in mixed(2) {
        engine.answer(request).expect("a reply");
    }
    drop(engine);
    let events = timeline.events();
    // A pass of the base names a request once for each of its branches.
    let named = |name: &str| events.iter().filter(|e| e["name"] == name).count();
    for name in ["accept", "reject", "score", "step kept", "rollback"] {
        assert!(named(name) > 0, "{name}");
    }
    let several = |e: &&serde_json::Value| {
        e["name"].as_str().is_some_and(|name| name.contains("rewrite"))
            && e["args"]["requests"].as_array().is_some_and(|requests| {
                requests.len() as u64 > e["args"]["passes"].as_u64().unwrap_or(0)
            })
    };
    assert!(events.iter().any(|e| several(&e)), "versions of several steps side by side");
}
