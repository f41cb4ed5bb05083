//! `forerun calibrate`: chooses a policy and its knobs for a pair, and keeps them in a file.

use super::args::{EngineArgs, PairArgs, SamplingArgs};
use super::problems::ProblemArgs;
use super::ui;
use crate::engine::{Engine, Tuned};
use crate::eval::calibrate::{self, Candidate};
use crate::eval::drive::{self, Pace};
use crate::eval::{self, Problem, Record, Row, State, Variant, table};
use crate::sample::SamplingOverrides;
use anyhow::{Context, Result, bail};
use clap::Args;
use std::io::Write;
use std::ops::Range;
use std::path::PathBuf;
use std::slice;
use std::sync::atomic::AtomicBool;

/// Problems every candidate is timed on, unless --timed says otherwise.
const TIMED: usize = 8;
/// Problems between two looks at whether a candidate still has a chance.
const CHUNK: usize = 20;

/// Flags of the verb.
#[derive(Debug, Args)]
pub(super) struct CalibrateArgs {
    #[command(flatten)]
    problems: ProblemArgs,
    /// Keep every result in this file and go on from it
    #[arg(long, value_name = "STATE.jsonl", env = "FORERUN_OUT", hide_env_values = true)]
    out: PathBuf,
    /// Where the choice goes: what `--tuned` reads
    #[arg(long, value_name = "FILE.json", env = "FORERUN_SAVE", hide_env_values = true)]
    save: PathBuf,
    #[command(flatten)]
    pair: PairArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

impl CalibrateArgs {
    /// Runs the rounds, prints their tables, writes the choice.
    pub(super) fn run(self) -> Result<()> {
        let problems = self.problems.read()?;
        let mut pair = self.pair.resolve()?;
        if pair.draft.is_none() {
            bail!("calibrate chooses how two models work together: name a pair, or add --draft M");
        }
        // What an earlier calibration chose must not colour this one.
        pair.settings.tuned = None;
        let name = pair.name.clone();
        let state = State::open(&self.out)?;
        if let Some(notice) = &state.notice {
            ui::note(notice);
        }
        let mut options = self.engine.options(pair)?;
        options.sequences_max = options.sequences_max.max(self.problems.concurrency);
        let engine = Engine::start(options)?;
        self.problems.check_times(&engine)?;
        let timed = self.problems.timed.unwrap_or(TIMED).clamp(1, problems.len());
        let mut session = Session {
            engine,
            sampling: self.sampling.overrides()?,
            problems,
            pace: Pace { timed, ..self.problems.pace() },
            state,
            rounds: 0,
        };

        let mut best = Candidate::base();
        session.begin(&best)?;
        for candidates in [|_: &Candidate| calibrate::judging(), calibrate::additions] {
            let mut helped = session.round(&best, &candidates(&best))?;
            let each: Vec<_> = helped.iter().map(|timed| timed.candidate.clone()).collect();
            if let Some(all) = calibrate::together(&best, &each) {
                helped.extend(session.round(&best, &[all])?);
            }
            let fastest = helped.into_iter().min_by(|a, b| a.of_best.total_cmp(&b.of_best));
            best = fastest.map_or(best, |timed| timed.candidate);
        }
        let Candidate { name: row, policy, options, .. } = best;
        let tuned = Tuned { pair: name, policy, options };
        let json = serde_json::to_string_pretty(&tuned)? + "\n";
        std::fs::write(&self.save, json).with_context(|| format!("--save {:?}", self.save))?;
        writeln!(std::io::stdout(), "chosen: {row}, kept in {}", self.save.display())?;
        Ok(())
    }
}

/// A candidate that is faster than what was best before its round.
struct Timed {
    candidate: Candidate,
    /// Its mean latency on the timed problems, of what that took in the same round.
    of_best: f64,
}

/// What is measured with, and what was.
struct Session {
    engine: Engine,
    sampling: SamplingOverrides,
    problems: Vec<Problem>,
    pace: Pace,
    state: State,
    rounds: usize,
}

impl Session {
    /// Runs the base on all problems.
    fn begin(&mut self, base: &Candidate) -> Result<()> {
        let (variant, all) = (self.variant(base), self.problems.len());
        self.state.check(slice::from_ref(&variant), &self.problems)?;
        self.measure(&variant, 0..all, self.pace)
    }

    /// Times all candidates and, beside them, `best` again; then tries those that are faster: of
    /// every change the fastest that is no worse than the base.
    fn round(&mut self, best: &Candidate, candidates: &[Candidate]) -> Result<Vec<Timed>> {
        self.rounds += 1;
        let again = Variant {
            name: Some(format!("{}, round {}", best.name, self.rounds)),
            ..self.variant(best)
        };
        let mut variants = vec![self.variant(&Candidate::base()), again.clone()];
        variants.extend(candidates.iter().map(|candidate| self.variant(candidate)));
        self.state.check(&variants, &self.problems)?;
        ui::note(&format!("{} candidates", candidates.len()));
        for problem in 0..self.pace.timed {
            // In turns, so that a machine that slows down slows all of them.
            let which = problem..problem + 1;
            self.make(&again, which.clone(), self.pace)?;
            for variant in &variants[2..] {
                self.measure(variant, which.clone(), self.pace)?;
            }
        }
        let rows = self.rows(&variants, self.pace.timed);
        writeln!(std::io::stdout(), "{}", table::markdown(&rows))?;
        let best_s = rows[1].latency_s.context("what is best so far has no latency")?;
        let mut helped: Vec<Timed> = vec![];
        for (candidate, latency_s) in calibrate::faster(candidates, &rows, best_s) {
            let is_taken = helped.iter().any(|timed| timed.candidate.change == candidate.change);
            if !is_taken && (candidate.says_like(best) || self.holds_up(candidate)?) {
                let of_best = latency_s / best_s;
                helped.push(Timed { candidate: candidate.clone(), of_best });
            }
        }
        Ok(helped)
    }

    /// Whether a candidate answers no worse than the base, on as many problems as it takes to see.
    fn holds_up(&mut self, candidate: &Candidate) -> Result<bool> {
        let variants = [&Candidate::base(), candidate].map(|c| self.variant(c));
        let mut done = self.pace.timed;
        loop {
            let row = self.rows(&variants, done).pop().context("a candidate has no records")?;
            let (last, hopeless) = (done == self.problems.len(), calibrate::is_hopeless(&row));
            if last || hopeless {
                let fits = calibrate::is_no_worse(&row) && !hopeless;
                let lost = row.vs_base.map_or(0.0, |paired| paired.accuracy);
                let word = if fits { "no worse" } else { "worse" };
                ui::note(&format!("{}: {lost:+.3} after {done} problems: {word}", candidate.name));
                return Ok(fits);
            }
            let next = (done + CHUNK).min(self.problems.len());
            self.measure(&variants[1], done..next, Pace { timed: 0, ..self.pace })?;
            done = next;
        }
    }

    /// Makes the records of some problems that are not there yet, or takes over those that another
    /// threshold made.
    fn measure(&mut self, variant: &Variant, which: Range<usize>, pace: Pace) -> Result<()> {
        let problems = &self.problems[which.clone()];
        let key = variant.key();
        for problem in problems {
            let mine = |r: &&Record| r.id == problem.id && (!r.concurrent || pace.timed == 0);
            let known: Vec<_> = self.state.records().iter().filter(mine).collect();
            if !known.iter().any(|record| record.key() == key)
                && let Some(copy) = known.iter().find_map(|r| calibrate::replay(r, variant))
            {
                self.state.push(copy)?;
            }
        }
        self.make(variant, which, pace)
    }

    /// Makes the records of some problems that are not there yet.
    fn make(&mut self, variant: &Variant, which: Range<usize>, pace: Pace) -> Result<()> {
        let problems = &self.problems[which];
        let jobs = drive::jobs(problems, slice::from_ref(variant), self.state.records(), pace);
        let never = AtomicBool::new(false);
        let state = &mut self.state;
        drive::run(&self.engine, &jobs, pace.concurrency, &never, &mut |r| state.push(r))?;
        Ok(())
    }

    fn variant(&self, candidate: &Candidate) -> Variant {
        let (policy, options) = (candidate.policy, candidate.options.clone());
        let variant = Variant::new(&self.engine, policy, options, self.sampling.clone());
        Variant { name: Some(candidate.name.clone()), ..variant }
    }

    /// Rows over the first problems.
    fn rows(&self, variants: &[Variant], problems: usize) -> Vec<Row> {
        eval::rows(self.state.records(), variants, &self.problems[..problems])
    }
}
