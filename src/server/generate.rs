//! From a submitted request to what its handler hears: the bridge between threads and tasks.
//!
//! Submitting renders and tokenises, and events are waited for, so both happen on threads made for
//! blocking. A reply's thread collects events into deltas and sends them through a bounded channel;
//! [`Replies`] is the receiving end. Invariant: when [`Replies`] is dropped, the engine is told to
//! end every request behind it, and their places come back when it has.

use super::collect::{Collector, Counts, Delta, Reading};
use super::errors::ApiError;
use super::{Place, Port, Shared};
use crate::engine::{Completion, Engine, Event, Events, Reply, Request};
use crate::error::RequestError;
use crate::ids::{Role, TokenId};
use crate::policy::FinishWhy;
use crate::sample::Grammar;
use axum::http::StatusCode;
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::sync::mpsc;

/// Deltas that may wait for a slow client before its reply's thread waits too.
const DELTAS_WAITING_MAX: usize = 64;

/// What an engine is asked.
#[derive(Debug, Clone)]
pub(super) enum Ask {
    /// The pair answers.
    Pair(Request),
    /// One model continues.
    Alone(Completion),
}

/// A request of one choice: what is asked, and how the reply is read.
#[derive(Debug, Clone)]
pub(super) struct Job {
    pub(super) ask: Ask,
    pub(super) reading: Reading,
    /// The field the prompt came in.
    pub(super) route: &'static str,
    /// What the reply has to follow; the same for all jobs of a request.
    pub(super) schema: Option<Arc<Value>>,
}

/// What a handler hears of one choice.
#[derive(Debug)]
pub(super) enum Told {
    /// More of it.
    Delta(usize, Delta),
    /// Its end.
    Done(usize, Box<Done>),
    /// Something ended all of it.
    Failed(ApiError),
}

/// How a choice ended.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) finish: &'static str,
    pub(super) counts: Counts,
    pub(super) index: usize,
    /// Tokens of the reported prompt that lay in the prefix cache.
    pub(super) cached: u32,
    pub(super) reply: Reply,
}

/// The receiving end of one request's choices. Dropping it cancels what is not finished.
pub(super) struct Replies {
    receiver: mpsc::Receiver<Told>,
    cancels: Vec<Arc<AtomicBool>>,
    /// Of each choice: what the model read, in its own numbering.
    pub(super) prompts: Vec<Vec<TokenId>>,
}

impl Replies {
    /// Hears all of it: `add` gets every delta with its choice; returns how each choice ended.
    ///
    /// # Errors
    /// When something ended all of it, or a reply's thread ended without a word.
    pub(super) async fn all(
        &mut self,
        choices: usize,
        mut add: impl FnMut(usize, Delta),
    ) -> Result<Vec<Done>, ApiError> {
        let mut done: Vec<Option<Done>> = (0..choices).map(|_| None).collect();
        while let Some(told) = self.receiver.recv().await {
            match told {
                Told::Delta(index, delta) => add(index, delta),
                Told::Done(index, end) => done[index] = Some(*end),
                Told::Failed(error) => return Err(error),
            }
        }
        done.into_iter().collect::<Option<_>>().ok_or_else(incomplete)
    }

    /// The next thing told, for a stream; `None` after the last.
    pub(super) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Told>> {
        self.receiver.poll_recv(context)
    }

    /// Tokens of all prompts, each counted once though it may have several choices.
    pub(super) fn prompt_tokens(&self, choices: usize) -> usize {
        self.prompts.iter().step_by(choices.max(1)).map(Vec::len).sum()
    }
}

impl Drop for Replies {
    fn drop(&mut self) {
        self.cancels.iter().for_each(|cancel| cancel.store(true, Ordering::Relaxed));
    }
}

impl Ask {
    /// The model whose prompt is reported, and whose numbering alternatives have.
    pub(super) fn role(&self) -> Role {
        match self {
            Self::Pair(request) if !request.policy.uses(Role::Base) => Role::Draft,
            Self::Pair(_) => Role::Base,
            Self::Alone(completion) => completion.role,
        }
    }

    fn follow(&mut self, grammar: Option<Grammar>) {
        match self {
            Self::Pair(request) => request.grammar = grammar,
            Self::Alone(completion) => completion.grammar = grammar,
        }
    }

    fn submit(&self, engine: &Engine) -> Result<Events, RequestError> {
        match self {
            Self::Pair(request) => engine.submit(request.clone()),
            Self::Alone(completion) => engine.complete(completion),
        }
    }
}

/// Submits one job per choice, in order.
///
/// # Errors
/// When there is no place, or the engine refuses one of them; then none runs.
pub(super) async fn start(port: &Port, jobs: Vec<Job>) -> Result<Replies, ApiError> {
    port.engine()?;
    let places = port.shared.places.take(jobs.len())?;
    let shared = port.shared.clone();
    let submit = move || {
        let engine = shared.engine.get().expect("seen above, and never taken away");
        let grammar = jobs.first().and_then(|job| job.schema.as_deref());
        let grammar = grammar.map(|schema| engine.json_grammar(schema)).transpose();
        let grammar = grammar.map_err(|error| ApiError::field("response_format", error))?;
        let mut submitted = vec![];
        for (mut job, place) in jobs.into_iter().zip(places) {
            let began = Instant::now();
            job.ask.follow(grammar.clone());
            let events = job.ask.submit(engine).map_err(|e| ApiError::engine(&e, job.route))?;
            let role = job.ask.role();
            job.reading.thinking = engine.opens_thinking(role, events.prompt(role));
            submitted.push(Submitted { job, place, events, began });
        }
        Ok::<_, ApiError>(submitted)
    };
    let submitted = tokio::task::spawn_blocking(submit).await.map_err(|_| panicked())??;
    let (sender, receiver) = mpsc::channel(DELTAS_WAITING_MAX);
    let cancels = submitted.iter().map(|s| s.events.canceller()).collect();
    let prompt = |s: &Submitted| s.events.prompt(s.job.ask.role()).to_vec();
    let prompts = submitted.iter().map(prompt).collect();
    for (index, submitted) in submitted.into_iter().enumerate() {
        let (shared, sender) = (port.shared.clone(), sender.clone());
        tokio::task::spawn_blocking(move || listen(&shared, index, submitted, &sender));
    }
    Ok(Replies { receiver, cancels, prompts })
}

struct Submitted {
    job: Job,
    place: Place,
    events: Events,
    began: Instant,
}

/// A reply whose thread ended without a word.
pub(super) fn incomplete() -> ApiError {
    let message = "the reply ended unexpectedly";
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
}

fn panicked() -> ApiError {
    let message = "the server failed to prepare this request";
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
}

/// Listens to the engine until the request ends; a handler that has gone is told no more.
fn listen(shared: &Shared, index: usize, submitted: Submitted, sender: &mpsc::Sender<Told>) {
    let Submitted { job, place, events, began } = submitted;
    let engine = shared.engine.get().expect("it gave the events");
    let tokenizer = engine.tokenizer(Role::Base).expect("an engine always has a base");
    let role = job.ask.role();
    let prompt_tokens = events.prompt(role).len();
    let mut observed = shared.metrics.waiting(began, prompt_tokens);
    let mut collector = Collector::new(tokenizer, &job.reading);
    let cancel = events.canceller();
    let send = |told| {
        if sender.blocking_send(told).is_err() {
            cancel.store(true, Ordering::Relaxed);
        }
    };
    let (mut ended, mut called) = (None, false);
    for event in events {
        if matches!(event, Event::Started(_)) {
            observed.started();
        }
        match event {
            Event::Finished(reply) => ended = Some(Ok(reply)),
            Event::Failed(error) => ended = Some(Err(error)),
            event if !collector.is_stopped() => {
                let delta = collector.event(&event);
                called |= !delta.calls.is_empty();
                if !delta.is_empty() {
                    observed.delta();
                    send(Told::Delta(index, delta));
                }
                if collector.is_stopped() {
                    cancel.store(true, Ordering::Relaxed);
                }
            }
            _ => {}
        }
    }
    // Whoever hears of the end may ask again at once.
    drop(place);
    let gone = || RequestError::EngineStopped("its thread ended during the request".into());
    match ended.unwrap_or_else(|| Err(gone())) {
        Ok(reply) => {
            let rest = collector.finish();
            called |= !rest.calls.is_empty();
            let finish = match reply.finish {
                _ if collector.is_stopped() => "stop",
                FinishWhy::Stop if called => "tool_calls",
                FinishWhy::Stop => "stop",
                FinishWhy::Length => "length",
                FinishWhy::Cancelled => "abort",
            };
            let counts = collector.counts();
            observed.finished(finish, counts, &reply);
            if !rest.is_empty() {
                send(Told::Delta(index, rest));
            }
            let cached = match role {
                Role::Base => reply.tokens.cached_base,
                Role::Draft => reply.tokens.cached_draft,
            };
            let done = Done { finish, counts, index, cached, reply: *reply };
            send(Told::Done(index, Box::new(done)));
        }
        Err(error) => {
            observed.failed(&error);
            send(Told::Failed(ApiError::engine(&error, job.route)));
        }
    }
}
