//! `forerun calibrate`: chooses a policy and its knobs for a pair, and keeps them in a file.

use super::args::{EngineArgs, PairArgs, ProblemArgs, SamplingArgs};
use super::ui;
use crate::engine::{Engine, Tuned};
use crate::eval::calibrate::{self, Candidate};
use crate::eval::{self, Problem, Row, State, Variant, drive, table};
use anyhow::{Context, Result, bail};
use clap::Args;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

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
        let mut state = State::open(&self.out)?;
        if let Some(notice) = &state.notice {
            ui::note(notice);
        }
        let engine = Engine::start(self.engine.options(pair)?)?;
        self.problems.check_times(&engine)?;

        let mut candidates = calibrate::judging();
        let base = candidates[0].clone();
        let mut rows = self.round(&engine, &problems, &mut state, &base, &candidates)?;
        let chosen = chosen(&candidates, &rows)?;
        candidates = calibrate::additions(&chosen);
        rows = self.round(&engine, &problems, &mut state, &base, &candidates)?;
        if let Some(all) = calibrate::together(&candidates, &rows) {
            candidates.push(all);
            rows = self.round(&engine, &problems, &mut state, &base, &candidates)?;
        }
        let Candidate { name: row, policy, options } = self::chosen(&candidates, &rows)?;
        let tuned = Tuned { pair: name, policy, options };
        let json = serde_json::to_string_pretty(&tuned)? + "\n";
        std::fs::write(&self.save, json).with_context(|| format!("--save {:?}", self.save))?;
        writeln!(std::io::stdout(), "chosen: {row}, kept in {}", self.save.display())?;
        Ok(())
    }

    /// Runs what has no record yet and prints the table of a round.
    fn round(
        &self,
        engine: &Engine,
        problems: &[Problem],
        state: &mut State,
        base: &Candidate,
        candidates: &[Candidate],
    ) -> Result<Vec<Row>> {
        let sampling = self.sampling.overrides()?;
        let has_base = candidates.iter().any(|c| c.name == base.name);
        let rows = if has_base { None } else { Some(base) };
        let variants: Vec<_> = rows
            .into_iter()
            .chain(candidates)
            .map(|c| Variant {
                name: Some(c.name.clone()),
                ..Variant::new(engine, c.policy, c.options.clone(), sampling.clone())
            })
            .collect();
        state.check(&variants, problems)?;
        let known = state.records().to_vec();
        let jobs = drive::jobs(problems, &variants, &known, self.problems.pace());
        ui::note(&format!("{} rows, {} requests to run", variants.len(), jobs.len()));
        // One at a time: latencies decide.
        let never = AtomicBool::new(false);
        drive::run(engine, &jobs, self.problems.concurrency, &never, &mut |record| {
            state.push(record)
        })?;
        let rows = eval::rows(state.records(), &variants, problems);
        writeln!(std::io::stdout(), "{}", table::markdown(&rows))?;
        Ok(rows)
    }
}

fn chosen(candidates: &[Candidate], rows: &[Row]) -> Result<Candidate> {
    let row = calibrate::choose(rows).context("no row has latencies")?;
    let name = row.name.as_deref().unwrap_or_default();
    let found = candidates.iter().find(|c| c.name == name).cloned();
    // The base wins without being a candidate of the round.
    Ok(found.unwrap_or_else(|| calibrate::judging().swap_remove(0)))
}
