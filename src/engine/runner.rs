//! The engine's thread: plans to passes, passes to outcomes, outcomes to events.
//!
//! One turn of the loop is an *engine step*: take in submissions, plan a pass for each model that
//! is idle, launch them, collect what is done (at least one), let every policy whose command is
//! complete answer. So neither model waits for the other's pass; where passes run as they are
//! launched both are done at once. Nothing here assumes that there is one request. Invariants: no
//! pass is launched while another that somebody has given up is under way, because its pages may
//! already be somebody else's; every submission ends in exactly one terminal event, and its pages
//! are back in the pool before that event is sent.

use super::assemble::{self, Assembly};
use super::guard;
use super::live::{Live, Submission, Vocabulary};
use super::places::Load;
use super::request::Event;
use super::results::{self, Looked};
use super::slot::Slot;
use super::{reply, score, trace};
use crate::device::{Device, Results};
use crate::error::{DeviceError, KvError, RequestError};
use crate::ids::{BranchId, RequestId, Role};
use crate::kv::Pool;
use crate::model::{InFlight, Model};
use crate::policy::FinishWhy;
use crate::policy::speculation::Costs;
use crate::sample;
use crate::schedule::{self, Budget};
use crate::telemetry::Trace;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The engine's thread-local state.
pub(super) struct Runner<D: Device> {
    pub(super) device: D,
    pub(super) models: [Option<Model<D>>; 2],
    pub(super) pages: D::Buffer,
    pub(super) pool: Pool,
    pub(super) vocabulary: Vocabulary,
    pub(super) inbox: Receiver<Submission>,
    pub(super) sequences_max: usize,
    /// Tokens a decode draws between two looks of the host, at most.
    pub(super) run_ahead: usize,
    pub(super) waiting: VecDeque<Submission>,
    pub(super) live: Vec<Live>,
    /// What passes cost so far.
    pub(super) costs: Costs,
    /// Passes under way, by role.
    pub(super) flights: [Option<Flight<D>>; 2],
    /// Who could not go on in this step for want of pages, and what it was told.
    pub(super) starved: Option<(RequestId, KvError)>,
    /// Shown to whoever asks the engine.
    pub(super) load: Arc<Mutex<Load>>,
    /// Set by whoever wants cached prefixes gone.
    pub(super) forget_prefixes: Arc<AtomicBool>,
    /// Where everything is written down, if anywhere.
    pub(super) trace: Option<Arc<Trace>>,
    /// Why nothing can run any more.
    pub(super) lost: Option<String>,
}

/// A chain of one model's passes that was launched and not yet collected.
pub(super) struct Flight<D: Device> {
    in_flight: InFlight<D>,
    /// Of each pass of the chain.
    slots: Vec<Vec<Slot>>,
    rows: usize,
    began: Instant,
    launch_ms: f64,
}

impl<D: Device> Runner<D> {
    /// Runs until every handle is gone.
    pub(super) fn run(mut self) {
        while self.receive() {
            // What was set before a submission was sent is seen with it.
            if self.forget_prefixes.swap(false, Ordering::Relaxed) {
                self.pool.clear_prefixes();
            }
            self.admit();
            self.launch();
            self.collect_done();
            self.end_if_lost();
            self.end_cancelled();
            self.relieve();
            self.collect_given_up();
            self.retire();
        }
    }

    /// Takes in submissions; sleeps when there is nothing to do. False when nobody can submit.
    fn receive(&mut self) -> bool {
        if self.live.is_empty() && self.waiting.is_empty() {
            match self.inbox.recv() {
                Ok(submission) => self.waiting.push_back(submission),
                Err(_) => return false,
            }
        }
        loop {
            match self.inbox.try_recv() {
                Ok(submission) => self.waiting.push_back(submission),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => {
                    return !(self.live.is_empty() && self.waiting.is_empty());
                }
            }
        }
    }

    /// Launches a chain of passes of every model that is idle and has something to do.
    fn launch(&mut self) {
        for role in Role::ALL {
            if self.flights[role.index()].is_some() {
                continue;
            }
            let Some(model) = &self.models[role.index()] else { continue };
            let limits = model.limits();
            let started = Instant::now();
            let mut tasks = vec![];
            for (index, live) in self.live.iter_mut().enumerate() {
                if live.finished.is_some() || live.parked {
                    continue;
                }
                let branches: Vec<BranchId> = live.branches.keys().copied().collect();
                for branch in branches {
                    live.open_window(branch, &self.costs, &self.vocabulary);
                    if let Some(work) = assemble::wanted(live, &mut self.pool, (role, branch)) {
                        tasks.push((index, branch, work));
                    }
                }
            }
            let budget = Budget { rows: limits.rows, full_rows: limits.full_rows };
            let work: Vec<_> = tasks.iter().map(|t| t.2.clone()).collect();
            let grants = schedule::plan(&work, budget);
            let looked_at =
                tasks.iter().any(|t| assemble::wants_logits(&self.live[t.0], (role, t.1)));
            let mut assembly = Assembly::new(if looked_at { 1 } else { self.run_ahead });
            for ((index, branch, _), rows) in tasks.into_iter().zip(grants) {
                if rows > 0 && self.live[index].finished.is_none() {
                    self.add(&mut assembly, index, (role, branch), rows);
                }
            }
            let rows = assembly.rows();
            if rows == 0 {
                continue;
            }
            let Assembly { passes: chain, copies, .. } = assembly;
            let (chain, slots): (Vec<_>, Vec<_>) = chain.into_iter().unzip();
            let model = self.models[role.index()].as_mut().expect("just seen");
            let launched = model
                .copy_pages(&self.device, &copies, &mut self.pages)
                .and_then(|()| model.launch(&self.device, &mut self.pages, chain));
            match launched {
                Ok(in_flight) => {
                    let launch_ms = started.elapsed().as_secs_f64() * 1e3;
                    let began = started;
                    self.flights[role.index()] =
                        Some(Flight { in_flight, slots, rows, began, launch_ms });
                }
                Err(error) => self.fail(slots.iter().flatten(), &error),
            }
        }
    }

    /// Adds rows of a task; without pages for them, not even the drafts', it has to wait. A window
    /// is given up first: its decode is planned again in the next step.
    fn add(&mut self, assembly: &mut Assembly, index: usize, at: (Role, BranchId), rows: usize) {
        loop {
            let live = &mut self.live[index];
            match assembly.add(live, &mut self.pool, &self.vocabulary, at, rows) {
                Ok(()) => return,
                Err(RequestError::Kv(full)) => {
                    if live.drop_window(&mut self.pool, at.1) {
                        return;
                    }
                    if !self.release_a_draft() {
                        self.starved = Some((self.live[index].id, full));
                        return;
                    }
                }
                Err(error) => {
                    live.finished = Some(Err(error));
                    return;
                }
            }
        }
    }

    /// Waits until a model is done, and collects every one that is.
    fn collect_done(&mut self) {
        let started = Instant::now();
        let both = self.flights.iter().all(Option::is_some);
        let mut done: Vec<Role> = vec![];
        while both && done.is_empty() {
            // A failure shows when it is collected.
            let is_done = |role: &Role| {
                let model = self.models[role.index()].as_ref().expect("it launched the pass");
                model.is_done(&self.device).unwrap_or(true)
            };
            done = Role::ALL.into_iter().filter(is_done).collect();
            if done.is_empty() {
                std::thread::yield_now();
            }
        }
        // What both waited for counts once.
        let mut waited_ms = started.elapsed().as_secs_f64() * 1e3;
        for role in if both { done } else { Role::ALL.to_vec() } {
            if let Some(mut flight) = self.flights[role.index()].take() {
                flight.launch_ms += std::mem::take(&mut waited_ms);
                self.collect(role, &flight);
            }
        }
    }

    /// Waits for passes that hold rows of a command that is no longer in flight, or of a request
    /// that has ended: what they write must not meet what comes next.
    pub(super) fn collect_given_up(&mut self) {
        for role in Role::ALL {
            let given_up = |flight: &Flight<D>| {
                flight.slots.iter().flatten().any(|slot| !self.is_awaited(role, slot))
            };
            if self.flights[role.index()].as_ref().is_some_and(given_up) {
                let flight = self.flights[role.index()].take().expect("just seen");
                self.collect(role, &flight);
            }
        }
    }

    pub(super) fn index_of(&self, id: RequestId) -> Option<usize> {
        self.live.iter().position(|live| live.id == id)
    }

    /// Whether the command a slot belongs to still waits for its results.
    fn is_awaited(&self, role: Role, slot: &Slot) -> bool {
        let live = self.index_of(slot.request).map(|i| &self.live[i]);
        live.is_some_and(|live| {
            live.finished.is_none() && live.serial(role, slot.branch) == Some(slot.serial)
        })
    }

    fn collect(&mut self, role: Role, flight: &Flight<D>) {
        let started = Instant::now();
        let model = self.models[role.index()].as_mut().expect("it launched the pass");
        let results = match model.collect(&self.device, &mut self.pages, &flight.in_flight) {
            Ok(results) => results,
            Err(error) => return self.fail(flight.slots.iter().flatten(), &error),
        };
        let ms = flight.launch_ms + started.elapsed().as_secs_f64() * 1e3;
        self.count_costs(role, flight, ms);
        if let Some(trace) = &self.trace {
            trace::passes(trace, role, &flight.slots, flight.rows, flight.began);
            trace::pages(trace, &self.pool);
        }
        for (slots, results) in flight.slots.iter().zip(&results) {
            for slot in slots {
                let index = self.index_of(slot.request).expect("a request outlives its passes");
                if let Some(trace) = &self.trace {
                    trace::slot(trace, role, slot, results, &self.live[index], flight.began);
                }
                let report = &mut self.live[index].report;
                for (phase, rows) in slot.shares().into_iter().filter(|s| s.1 > 0) {
                    report.add_cost(phase, ms * rows as f64 / flight.rows as f64, rows as u32);
                }
                // The task may have ended meanwhile: with a token of an earlier pass of the chain,
                // or by a policy's answer to the other model's pass.
                if !self.is_awaited(role, slot) {
                    continue;
                }
                match self.look(role, slot) {
                    Ok(looked) => self.deliver(slot, role, results, looked),
                    Err(RequestError::Device(error)) => self.fail([slot], &error),
                    Err(error) => self.live[index].finished = Some(Err(error)),
                }
            }
        }
    }

    /// Learns what a pass costs from one in which everybody draws.
    fn count_costs(&mut self, role: Role, flight: &Flight<D>, ms: f64) {
        let draws: Option<Vec<usize>> = flight.slots.iter().flatten().map(Slot::draws).collect();
        let most = draws.and_then(|draws| draws.into_iter().max());
        let ms = ms / flight.slots.len() as f64;
        match (role, most) {
            (Role::Draft, Some(_)) => self.costs.add_draft(ms),
            (Role::Base, Some(draws)) => self.costs.add_base(draws - 1, ms),
            (_, None) => {}
        }
    }

    /// Reads the rows of logits that the host has to see itself.
    fn look(&mut self, role: Role, slot: &Slot) -> Result<Looked, RequestError> {
        let model = self.models[role.index()].as_ref().expect("it launched the pass");
        let (rows, n) = slot.alternatives.clone();
        let index = self.index_of(slot.request).expect("somebody awaits it");
        let ids = self.live[index].first_ids((role, slot.branch));
        let of = |row: &[f32]| sample::likeliest(&row[..ids.unwrap_or(row.len())], n);
        let likeliest = |row| model.logits(&self.device, row).map(|row| of(&row));
        let alternatives = rows.map(likeliest).collect::<Result<_, _>>()?;
        let mut looked = Looked { alternatives, drawn: None };
        if let Some(row) = slot.constrained() {
            let logits = model.logits(&self.device, row)?;
            let (live, at) = (&mut self.live[index], (role, slot.branch));
            looked.drawn = Some(guard::draw(at, live, &self.vocabulary, &logits)?);
        }
        Ok(looked)
    }

    fn deliver(&mut self, slot: &Slot, role: Role, told: &Results, looked: Looked) {
        let index = self.index_of(slot.request).expect("somebody awaits it");
        let live = &mut self.live[index];
        let (pool, vocabulary) = (&mut self.pool, &self.vocabulary);
        match results::read(slot, role, live, pool, vocabulary, told, looked) {
            Ok(Some(outcome)) => live.advance(pool, vocabulary, outcome),
            Ok(None) => {}
            Err(error) => live.finished = Some(Err(error)),
        }
        while let Some(outcome) = score::told(live, pool, (role, slot.branch)) {
            live.advance(pool, vocabulary, outcome);
        }
    }

    /// Ends every request, waiting ones too, once the device is lost.
    fn end_if_lost(&mut self) {
        let Some(why) = &self.lost else { return };
        let error = || RequestError::Device(DeviceError::Lost(why.clone()));
        self.live.extend(self.waiting.drain(..).map(|s| Live::new(s, self.trace.as_ref())));
        for live in &mut self.live {
            live.finished = Some(Err(error()));
        }
    }

    /// Ends every request that took part in a failed pass.
    fn fail<'a>(&mut self, slots: impl IntoIterator<Item = &'a Slot>, error: &DeviceError) {
        if let DeviceError::Lost(why) = error {
            self.lost = Some(why.clone());
        }
        for slot in slots {
            let again = || match error {
                DeviceError::NonFinite { model, layer, token } => DeviceError::NonFinite {
                    model: model.clone(),
                    layer: layer.clone(),
                    token: *token,
                },
                DeviceError::Lost(why) => DeviceError::Lost(why.clone()),
                other => DeviceError::Failed(other.to_string()),
            };
            let index = self.index_of(slot.request).expect("a request outlives its passes");
            self.live[index].finished = Some(Err(RequestError::Device(again())));
        }
    }

    fn end_cancelled(&mut self) {
        let now = Instant::now();
        for submission in std::mem::take(&mut self.waiting) {
            if submission.is_over(now) {
                self.live.push(Live::new(submission, self.trace.as_ref()));
            } else {
                self.waiting.push_back(submission);
            }
        }
        for live in self.live.iter_mut().filter(|live| live.finished.is_none()) {
            if live.is_cancelled() {
                live.forget_undecided();
                live.finished = Some(Ok(FinishWhy::Cancelled));
            } else if live.deadline.is_some_and(|deadline| deadline <= now) {
                live.finished = Some(Err(timed_out(live.deadline, live.submitted)));
            }
        }
    }

    /// Sends the terminal events of everything that ended.
    fn retire(&mut self) {
        for live in self.live.iter_mut().filter(|live| live.finished.is_some()) {
            live.release(&mut self.pool, &self.vocabulary);
        }
        // Who hears of an end finds its pages and its place free.
        self.show_load();
        let vocabulary = &self.vocabulary;
        self.live.retain_mut(|live| {
            if live.finished.is_none() {
                return true;
            }
            let event = match live.finished.take().expect("just seen") {
                Ok(why) => Event::Finished(Box::new(reply::write(live, why, vocabulary))),
                Err(error) => Event::Failed(error),
            };
            live.emit(event);
            if let Some(trace) = &self.trace {
                trace::pages(trace, &self.pool);
            }
            false
        });
    }
}

fn timed_out(deadline: Option<Instant>, submitted: Instant) -> RequestError {
    let timeout = deadline.map_or(Duration::ZERO, |deadline| deadline - submitted);
    RequestError::TimedOut { timeout_ms: timeout.as_millis() as u64 }
}
