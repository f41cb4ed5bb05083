//! Runs problems through an engine: the one part of an evaluation that needs models.
//!
//! Policies take turns problem by problem, so that a machine that slows down slows all of them, and
//! an evaluation that is broken off still compares them on the same problems.

use super::problem::Problem;
use super::record::{self, Record};
use super::{EvalError, fingerprint};
use crate::config;
use crate::engine::{Engine, ModelSource, PolicyOptions, Request};
use crate::ids::Role;
use crate::policy::{AnswerBy, PolicyKind, Proposer};
use crate::sample::{CUTOFF, SamplingOverrides};
use serde_json::{Map, Value, json};
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;

/// A row to be: a policy and everything its replies depend on.
#[derive(Debug, Clone)]
pub struct Variant {
    /// Its name, where the user gave it one.
    pub name: Option<String>,
    /// Who does what.
    pub policy: PolicyKind,
    /// Knobs of the policy.
    pub options: PolicyOptions,
    /// Sampling; the index of the problem is added to the seed.
    pub sampling: SamplingOverrides,
    /// Layout of the judge, where steps are judged.
    pub judge: Option<String>,
    /// What replies depend on, by name: records with other values do not mix.
    pub settings: Map<String, Value>,
}

impl Variant {
    /// A row of a policy on an engine.
    #[must_use]
    pub fn new(
        engine: &Engine,
        policy: PolicyKind,
        options: PolicyOptions,
        sampling: SamplingOverrides,
    ) -> Self {
        let pair = engine.pair();
        let mut settings = Map::new();
        let mut set = |name: &str, value: Value| settings.insert(name.to_owned(), value);
        set("pair", json!(pair.name));
        set("base", json!(file_name(&pair.base)));
        if let Some(draft) = pair.draft.as_ref().filter(|_| runs_draft(policy, &options)) {
            set("draft", json!(file_name(draft)));
        }
        set("device", json!(engine.device().kind));
        set("processor", json!(engine.device().name));
        set("threads", json!(engine.device().units));
        set("max_model_len", json!(engine.max_model_len()));
        set("token_budget", json!(options.token_budget.unwrap_or(config::TOKEN_BUDGET)));
        set("step_tokens", json!(options.step_tokens_max.unwrap_or(config::STEP_TOKENS_MAX)));
        set("step_delimiter", json!(options.step_delimiter));
        set("answer_by", json!(options.answer_by));
        set("stop_on_repeat", json!(options.stop_on_repeat.unwrap_or(true)));
        set("sampling", short(&sampling));
        let mut options = options;
        let mut layout = None;
        if policy.judges() {
            let threshold = *options.threshold.get_or_insert(pair.settings.threshold);
            let judge = options.judge.clone();
            let judge = judge.unwrap_or_else(|| pair.settings.judge_of(policy));
            set("threshold", short(&threshold));
            set("score", json!(options.readout.unwrap_or(pair.settings.readout)));
            set("score_cutoff", short(&options.cutoff.unwrap_or(CUTOFF)));
            set("judge", json!(judge.layout()));
            set("judge_text", json!(fingerprint([json!(judge).to_string()])));
            set("first_n", json!(options.first_n.unwrap_or(0)));
            set("step_logprobs", json!(options.step_logprobs));
            if options.salvage {
                set("salvage", json!(true));
            }
            if options.gates.any() {
                set("gates", short(&options.gates));
            }
            layout = Some(judge.layout().to_owned());
        }
        if policy.speculates() {
            set("proposer", json!(options.proposer));
            set("window", json!(options.window.unwrap_or_default()));
            set("branches", json!(options.branches.unwrap_or(1)));
            if options.proposer != Some(Proposer::Ngram) {
                set("draft_vocab", json!(options.draft_vocab.unwrap_or_default()));
            }
        }
        Self { name: None, policy, options, sampling, judge: layout, settings }
    }

    /// Accept from this score on, where steps are judged.
    #[must_use]
    pub fn threshold(&self) -> Option<f32> {
        self.options.threshold.filter(|_| self.policy.judges())
    }

    /// Whether tokens are drawn as `other` draws them.
    #[must_use]
    pub fn draws_like(&self, other: &Self) -> bool {
        self.settings.get("sampling") == other.settings.get("sampling")
    }

    /// The name of the row.
    #[must_use]
    pub fn key(&self) -> String {
        record::key(self.name.as_deref(), self.policy, self.threshold())
    }
}

/// Whether anything is asked of the draft model.
#[must_use]
pub fn runs_draft(policy: PolicyKind, options: &PolicyOptions) -> bool {
    policy.uses(Role::Draft)
        || options.answer_by == Some(AnswerBy::Draft)
        || policy.speculates() && options.proposer != Some(Proposer::Ngram)
}

/// A value as its shortest text reads: 0.6 for the `f32` nearest to it. Only such numbers come back
/// from a file as they went in.
fn short<T: serde::Serialize>(value: &T) -> Value {
    let text = serde_json::to_string(value).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

/// A model's name without the folders above it, which differ from machine to machine.
fn file_name(source: &ModelSource) -> String {
    match source {
        ModelSource::Path(path) => {
            path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
        }
        ModelSource::Embedded(_) => source.to_string(),
    }
}

/// How many requests run at the same time, and which run alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Requests at the same time.
    pub concurrency: usize,
    /// Of the first so many problems latencies are wanted: their requests run alone.
    pub timed: usize,
}

/// One request to make.
#[derive(Debug, Clone, Copy)]
pub struct Job<'a> {
    /// The problem.
    pub problem: &'a Problem,
    /// The row it counts for.
    pub variant: &'a Variant,
    /// Whether nothing else may run meanwhile.
    pub alone: bool,
}

/// What is left to do, problem by problem: what has no record, or no latency where one is wanted.
#[must_use]
pub fn jobs<'a>(
    problems: &'a [Problem],
    variants: &'a [Variant],
    records: &[Record],
    pace: Pace,
) -> Vec<Job<'a>> {
    let done: HashSet<_> = records.iter().map(|r| (r.id.as_str(), r.key(), r.concurrent)).collect();
    let is_done = |problem: &Problem, variant: &Variant, timed: bool| {
        let has = |concurrent| done.contains(&(problem.id.as_str(), variant.key(), concurrent));
        has(false) || has(true) && !timed
    };
    let mut jobs = vec![];
    for (i, problem) in problems.iter().enumerate() {
        let timed = i < pace.timed;
        let left = variants.iter().filter(|variant| !is_done(problem, variant, timed));
        let alone = timed || pace.concurrency == 1;
        jobs.extend(left.map(|variant| Job { problem, variant, alone }));
    }
    jobs
}

/// Runs jobs in order, those that may have company `concurrency` at a time, and hands each record
/// to `done` as it is made. Once `stop` is set no job is begun, and those in progress end as usual.
///
/// # Errors
/// The first request that fails, or whatever `done` returns; jobs in progress end before.
pub fn run(
    engine: &Engine,
    jobs: &[Job<'_>],
    concurrency: usize,
    stop: &AtomicBool,
    done: &mut dyn FnMut(Record) -> Result<(), EvalError>,
) -> Result<(), EvalError> {
    for jobs in jobs.chunk_by(|a, b| a.alone == b.alone) {
        let concurrency = if jobs[0].alone { 1 } else { concurrency };
        run_equal(engine, jobs, concurrency, stop, done)?;
    }
    Ok(())
}

/// Runs jobs that are all alone or all in company.
fn run_equal(
    engine: &Engine,
    jobs: &[Job<'_>],
    concurrency: usize,
    stop: &AtomicBool,
    done: &mut dyn FnMut(Record) -> Result<(), EvalError>,
) -> Result<(), EvalError> {
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..concurrency.min(jobs.len()) {
            let sender = sender.clone();
            let (next, failed) = (&next, &failed);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) && !failed.load(Ordering::Relaxed) {
                    let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
                    if sender.send(one(engine, job)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        let mut result = Ok(());
        for record in receiver {
            // The first error counts; records that come after it are still worth keeping.
            let written = record.and_then(&mut *done);
            if written.is_err() {
                failed.store(true, Ordering::Relaxed);
                result = result.and(written);
            }
        }
        result
    })
}

fn one(engine: &Engine, job: &Job<'_>) -> Result<Record, EvalError> {
    let Job { problem, variant, alone } = *job;
    if alone {
        // Of the rows of one problem the first would else pay for the prompt of all.
        engine.reset_prefix_cache();
    }
    let mut sampling = variant.sampling.clone();
    sampling.seed = Some(sampling.seed.unwrap_or(0).wrapping_add(problem.index as u64));
    let request = Request {
        policy: variant.policy,
        sampling,
        options: variant.options.clone(),
        ..Request::ask(&problem.question)
    };
    let reply = engine.answer(request).map_err(|source| EvalError::Request {
        id: problem.id.clone(),
        policy: variant.key(),
        source,
    })?;
    Ok(Record::new(problem, variant, &reply, !alone))
}
