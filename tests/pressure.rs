//! The engine when pages, places or patience run out.

#[path = "common/problems.rs"]
mod problems;

use forerun::engine::{
    Completion, Engine, EngineOptions, Event, Events, Pair, PolicyOptions, Prompt, Reply, Request,
    Urgency,
};
use forerun::error::{EngineError, KvError, RequestError};
use forerun::ids::Role;
use forerun::policy::{FinishWhy, Note, PolicyKind};
use forerun::sample::SamplingOverrides;
use problems::questions;
use std::time::{Duration, Instant};

/// An engine whose pool holds one request at full context and not a page more.
fn tight(max_model_len: u32, batch_rows_max: usize, sequences_max: usize) -> Engine {
    tight_ahead(max_model_len, batch_rows_max, sequences_max, 0)
}

/// The same, with a draft that is so many steps ahead.
fn tight_ahead(
    max_model_len: u32,
    batch_rows_max: usize,
    sequences_max: usize,
    draft_ahead: u32,
) -> Engine {
    let options = |bytes| EngineOptions {
        max_model_len: Some(max_model_len),
        kv_cache_memory_bytes: Some(bytes),
        batch_rows_max,
        sequences_max,
        draft_ahead: Some(draft_ahead),
        ..EngineOptions::new(Pair::tiny())
    };
    match Engine::start(options(1 << 16)).err().expect("too small") {
        EngineError::Kv(KvError::TooSmall { needed_bytes, .. }) => {
            Engine::start(options(needed_bytes)).expect("just enough")
        }
        other => panic!("{other}"),
    }
}

fn roomy(sequences_max: usize) -> Engine {
    Engine::start(EngineOptions { sequences_max, ..EngineOptions::new(Pair::tiny()) })
        .expect("the pair starts")
}

/// Everything a listener is told, times left out.
#[derive(Default)]
struct Heard {
    tokens: Vec<String>,
    /// By tail index; how many come at once depends on how a prefill was cut.
    logprobs: Vec<String>,
    others: Vec<String>,
}

fn heard(events: Events) -> (Reply, Heard) {
    let (mut reply, mut all) = (None, Heard::default());
    for event in events {
        match event {
            Event::Finished(end) => reply = Some(*end),
            Event::Failed(error) => panic!("{error}"),
            Event::Started(_) => {}
            Event::Tokens { at, ids, text, origin, logprobs } => {
                let drawn = logprobs.iter().zip(at..).map(|(told, at)| format!("{at} {told:?}"));
                all.logprobs.extend(drawn);
                all.tokens.push(format!("{at} {ids:?} {text:?} {origin:?}"));
            }
            Event::Logprobs { at, logprobs } => {
                let read = logprobs.iter().zip(at..).map(|(told, at)| format!("{at} {told:?}"));
                all.logprobs.extend(read);
            }
            other => all.others.push(format!("{other:?}")),
        }
    }
    (reply.expect("an end"), all)
}

fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(30), "{what}: not within 30 s");
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn all_pages_are_back(engine: &Engine) -> bool {
    let load = engine.load();
    load.free_pages + load.evictable_pages == load.pages && load.running + load.waiting == 0
}

/// What the engine is asked in the test below.
enum Ask {
    Pair(Request),
    Alone(Completion),
}

impl Ask {
    fn submit(&self, engine: &Engine) -> Events {
        match self {
            Self::Pair(request) => engine.submit(request.clone()),
            Self::Alone(completion) => engine.complete(completion),
        }
        .expect("room")
    }
}

fn a_lot() -> Vec<Ask> {
    let mut all = vec![];
    for (i, question) in questions(4).iter().enumerate() {
        let sampling = SamplingOverrides {
            temperature: Some([0.0, 1.0][i % 2]),
            seed: Some(i as u64),
            ..SamplingOverrides::default()
        };
        // How much is drafted under lookahead when something is decided is a matter of timing.
        for policy in PolicyKind::ALL.into_iter().filter(|p| *p != PolicyKind::Lookahead) {
            let sampling = sampling.clone();
            let options = PolicyOptions { step_logprobs: true, ..PolicyOptions::default() };
            let request = Request { policy, sampling, options, ..Request::ask(question) };
            let logprobs = (policy != PolicyKind::Draft).then_some(2);
            all.push(Ask::Pair(Request { logprobs, ..request }));
        }
        // Long ones, so that pages run out.
        for role in Role::ALL {
            let completion = Completion::new(role, Prompt::Text(question.clone()));
            let (ignore_end_of_turn, sampling) = (true, sampling.clone());
            all.push(Ask::Alone(Completion { ignore_end_of_turn, sampling, ..completion }));
        }
    }
    all
}

#[test]
fn a_request_that_gave_its_pages_back_says_what_it_would_have_said() {
    let requests = a_lot();
    let alone: Vec<_> = {
        let options = EngineOptions {
            max_model_len: Some(600),
            sequences_max: 1,
            ..EngineOptions::new(Pair::tiny())
        };
        let engine = Engine::start(options).expect("the pair starts");
        requests.iter().map(|r| heard(r.submit(&engine))).collect()
    };
    // The second cuts scorings into pieces, so that some are interrupted between them.
    for batch_rows_max in [512, 16] {
        let engine = tight(600, batch_rows_max, 16);
        let together: Vec<_> = requests.iter().map(|r| r.submit(&engine)).collect();
        for ((reply, events), (want, want_events)) in together.into_iter().map(heard).zip(&alone) {
            assert_eq!(reply.ids, want.ids);
            assert_eq!(events.tokens, want_events.tokens);
            assert_eq!(events.logprobs, want_events.logprobs);
            assert_eq!(events.others, want_events.others);
            let steps = |reply: &Reply| -> Vec<_> {
                let of = |s: &forerun::engine::StepReport| (s.score, s.logprobs.clone(), s.drafted);
                reply.steps.iter().map(of).collect()
            };
            assert_eq!(steps(&reply), steps(want));
        }
        let load = engine.load();
        assert!(load.preemptions > 0, "the pool was never full: {load:?}");
        assert!(all_pages_are_back(&engine), "{load:?}");
    }
}

#[test]
fn steps_that_are_scored_together_survive_that_their_pages_are_given_back() {
    let sampling = |i: usize| SamplingOverrides {
        temperature: Some([0.0, 1.0][i % 2]),
        seed: Some(i as u64),
        ..SamplingOverrides::default()
    };
    let request = |(i, question): (usize, &String)| {
        let options = PolicyOptions { step_logprobs: true, ..PolicyOptions::default() };
        Request { options, sampling: sampling(i), ..Request::ask(question) }
    };
    let requests: Vec<_> = questions(12).iter().enumerate().map(request).collect();
    let plain = EngineOptions {
        max_model_len: Some(600),
        sequences_max: 1,
        ..EngineOptions::new(Pair::tiny())
    };
    let plain = Engine::start(plain).expect("the pair starts");
    let engine = tight_ahead(600, 24, 16, 4);
    // Between them some that grow to the end of the context, so that pages run out.
    let long = Completion {
        ignore_end_of_turn: true,
        ..Completion::new(Role::Base, Prompt::Text("1 + 1".into()))
    };
    let (mut together, mut others) = (vec![], vec![]);
    for request in &requests {
        others.push(engine.complete(&long).expect("room"));
        together.push(engine.submit(request.clone()).expect("room"));
    }
    for (events, request) in together.into_iter().zip(&requests) {
        let want = plain.answer(request.clone()).expect("a reply");
        let got = events.reply().expect("a reply");
        assert_eq!(got.ids, want.ids);
        let steps = |reply: &Reply| -> Vec<_> {
            let of = |s: &forerun::engine::StepReport| (s.score, s.logprobs.clone(), s.drafted);
            reply.steps.iter().map(of).collect()
        };
        assert_eq!(steps(&got), steps(&want));
    }
    others.into_iter().for_each(|events| assert!(events.reply().is_ok()));
    let load = engine.load();
    assert!(load.preemptions > 0, "the pool was never full: {load:?}");
    assert!(all_pages_are_back(&engine), "{load:?}");
}

#[test]
fn a_lower_priority_number_takes_the_place_of_a_higher_one() {
    let engine = roomy(1);
    let long = || Completion {
        ignore_end_of_turn: true,
        ..Completion::new(Role::Base, Prompt::Text("1 + 1".into()))
    };
    let alone = engine.complete(&long()).expect("room").reply().expect("a reply");
    let first = engine.complete(&long()).expect("room");
    wait_until("running", || engine.load().running == 1);
    let urgency = Urgency { priority: -1, timeout: None };
    let short = Completion { tokens_max: Some(4), urgency, ..long() };
    let equal = Completion { tokens_max: Some(4), ..long() };
    let last = engine.complete(&equal).expect("room");
    let quick = engine.complete(&short).expect("room").reply().expect("a reply");
    assert_eq!(quick.ids, alone.ids[..4]);
    let load = engine.load();
    assert_eq!((load.preemptions, load.running + load.waiting), (1, 2), "both others still run");
    let reply = first.reply().expect("a reply");
    assert_eq!(
        (reply.ids, reply.tokens.cached_base),
        (alone.ids.clone(), alone.tokens.cached_base)
    );
    assert_eq!(last.reply().expect("a reply").ids, alone.ids[..4]);
    assert_eq!(engine.load().preemptions, 1, "an equal one waits");
}

#[test]
fn cancelling_gives_both_models_pages_back_within_one_engine_step() {
    let engine = roomy(4);
    let mut cancelled = 0;
    for question in questions(6) {
        let options = PolicyOptions { threshold: Some(5.0), ..PolicyOptions::default() };
        let events = engine.submit(Request { options, ..Request::ask(&question) }).expect("room");
        let (mut scored, mut cancelled_at) = (0, None);
        let cancel = events.canceller();
        for event in events {
            match event {
                Event::Note(Note::StepScored { .. }) => {
                    scored += 1;
                    // By the second both models have read, and the load shows it.
                    if scored == 2 {
                        let used = engine.load().used_pages;
                        assert!(used.iter().all(|pages| *pages > 0), "{used:?}");
                        cancel.store(true, std::sync::atomic::Ordering::Relaxed);
                        cancelled_at = Some(engine.load().steps);
                    }
                }
                Event::Finished(reply) => {
                    let load = engine.load();
                    if let (FinishWhy::Cancelled, Some(before)) = (reply.finish, cancelled_at) {
                        // The step under way may have looked already; the one after it has not.
                        assert!(load.steps <= before + 2, "{} steps", load.steps - before);
                        cancelled += 1;
                    }
                    assert_eq!(load.free_pages + load.evictable_pages, load.pages);
                }
                Event::Failed(error) => panic!("{error}"),
                _ => {}
            }
        }
    }
    assert!(cancelled > 0, "every request was faster");
}

#[test]
fn who_is_not_done_in_time_is_told_so_whether_it_runs_or_waits() {
    let engine = roomy(1);
    let endless = |timeout_ms| Completion {
        ignore_end_of_turn: true,
        urgency: Urgency { priority: 0, timeout: Some(Duration::from_millis(timeout_ms)) },
        ..Completion::new(Role::Base, Prompt::Text("1 + 1".into()))
    };
    let running = engine.complete(&endless(60)).expect("room");
    let waiting = engine.complete(&endless(5)).expect("room");
    for (events, ms) in [(waiting, 5), (running, 60)] {
        match events.reply() {
            Err(RequestError::TimedOut { timeout_ms }) => assert_eq!(timeout_ms, ms),
            Err(other) => panic!("{other}"),
            // A fast machine may be done before.
            Ok(reply) => assert!(reply.total_ms <= ms as f64 && ms == 60, "{}", reply.total_ms),
        }
    }
    assert!(all_pages_are_back(&engine), "{:?}", engine.load());
}

#[test]
fn after_a_reset_nothing_is_found_of_the_requests_before() {
    let engine = roomy(1);
    let ask = || engine.answer(Request::ask(&questions(1)[0])).expect("a reply");
    let cached = |reply: &Reply| (reply.tokens.cached_draft, reply.tokens.cached_base);
    let first = ask();
    assert_eq!(cached(&first), (0, 0));
    let again = ask();
    assert!(again.tokens.cached_base > 0, "nothing to forget");
    engine.reset_prefix_cache();
    let reset = ask();
    assert_eq!((cached(&reset), reset.ids), ((0, 0), first.ids));
    assert!(all_pages_are_back(&engine), "{:?}", engine.load());
}
