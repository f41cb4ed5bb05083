//! Speculation on the software GPU: what is proposed changes no token and leaves no trace.

use crate::device::{device, full};
use crate::emulator::{kernels, options};
use crate::models::model_path;
use crate::problems::questions;
use crate::rollback;
use forerun::engine::{
    DeviceChoice, Engine, EngineOptions, ModelSource, Pair, PolicyOptions, Request, Thinking,
};
use forerun::policy::{DraftVocab, PolicyKind, Proposer, WindowSize};
use forerun::sample::SamplingOverrides;

#[test]
fn a_window_that_was_rolled_back_leaves_the_kv_as_if_never_fed() {
    if kernels() {
        rollback::leaves_no_trace(device);
    }
}

#[test]
fn a_rejected_step_among_several_leaves_the_base_kv_as_if_never_seen() {
    if kernels() {
        rollback::scored_together_leave_no_trace(device);
    }
}

#[test]
fn whatever_is_proposed_the_base_says_what_it_says_alone() {
    if !kernels() {
        return;
    }
    let options = EngineOptions {
        device: DeviceChoice::Cuda,
        cuda: options(),
        max_model_len: Some(512),
        ..EngineOptions::new(Pair::tiny())
    };
    let engine = Engine::start(options).unwrap_or_else(|e| panic!("{e}"));
    let warm = SamplingOverrides { temperature: Some(0.9), seed: Some(7), ..Default::default() };
    let samplings = [SamplingOverrides::default(), warm];
    // Pairwise: each proposer with each sampling, and windows of several lengths.
    let mut windows = [1, 8, 3, 5].into_iter().cycle();
    let mut branches = [1, 2, 3].into_iter().cycle();
    let mut matched = [0; 2];
    let mut vocabs = [DraftVocab::First(256), DraftVocab::All].into_iter().cycle();
    for question in questions(if full() { 10 } else { 1 }) {
        let submit = |policy, options, sampling: &SamplingOverrides| {
            let sampling = SamplingOverrides { ..sampling.clone() };
            let request = Request { policy, options, sampling, ..Request::ask(&question) };
            engine.submit(request).expect("a place")
        };
        for sampling in &samplings {
            let want = submit(PolicyKind::Base, PolicyOptions::default(), sampling);
            let specs = [Proposer::Draft, Proposer::Ngram].map(|by| {
                let window = windows.next().map(WindowSize::Fixed);
                let branches = branches.next();
                let proposer = Some(by);
                let draft_vocab = vocabs.next();
                let options = PolicyOptions {
                    proposer,
                    window,
                    branches,
                    draft_vocab,
                    ..PolicyOptions::default()
                };
                submit(PolicyKind::SpecDecode, options, sampling)
            });
            // Side by side: windows of both share passes with a plain decode.
            let want = want.reply().expect("a reply");
            for (got, matched) in specs.into_iter().zip(&mut matched) {
                let got = got.reply().expect("a reply");
                assert_eq!(got.ids, want.ids, "{:?}", got.settings.speculation);
                assert!(got.tokens.proposed > 0, "{:?}", got.tokens);
                *matched += got.tokens.matched;
            }
        }
    }
    // What is looked up in a short text may be wrong all through one reply.
    assert!(matched.iter().all(|matched| *matched > 0), "{matched:?} by draft and by n-gram");
}

#[test]
fn smollm2_drafting_for_itself_says_what_it_says_alone() {
    if !kernels() || !full() {
        eprintln!("skipped: some minutes; FORERUN_FULL=1 runs it");
        return;
    }
    let Some(path) = model_path("smollm2-135m").map(ModelSource::Path) else { return };
    let options = EngineOptions {
        device: DeviceChoice::Cuda,
        cuda: options(),
        max_model_len: Some(512),
        ..EngineOptions::new(Pair::custom(path.clone(), Some(path), Thinking::None))
    };
    let engine = Engine::start(options).unwrap_or_else(|e| panic!("{e}"));
    let greedy = SamplingOverrides { temperature: Some(0.0), ..SamplingOverrides::default() };
    for question in questions(2) {
        let answer = |policy| {
            let window = Some(WindowSize::Fixed(4));
            let options =
                PolicyOptions { tokens_max: Some(16), window, ..PolicyOptions::default() };
            let sampling = greedy.clone();
            engine.answer(Request { policy, options, sampling, ..Request::ask(&question) }).unwrap()
        };
        let (want, got) = (answer(PolicyKind::Base), answer(PolicyKind::SpecDecode));
        assert_eq!(got.ids, want.ids);
        assert!(got.tokens.matched > 0, "it agrees with itself: {:?}", got.tokens);
    }
}
