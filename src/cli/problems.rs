//! Flags of the verbs that run a file of problems: which, and how many at the same time.

use super::ui;
use crate::engine::Engine;
use crate::eval::drive::Pace;
use crate::eval::{Problem, problem};
use anyhow::Result;
use clap::Args;
use clap::builder::RangedU64ValueParser;
use std::path::PathBuf;

/// The problems of an evaluation, and how they run.
#[derive(Debug, Clone, Args)]
pub(super) struct ProblemArgs {
    /// Problems: JSON lines with `question` (or `problem`), `answer`, and `id` if they have one
    #[arg(long, value_name = "FILE.jsonl", env = "FORERUN_DATA", hide_env_values = true)]
    pub(super) data: PathBuf,
    /// Use only so many problems
    #[arg(long, value_name = "N", env = "FORERUN_LIMIT", hide_env_values = true)]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    limit: Option<usize>,
    /// Skip so many problems first
    #[arg(long, value_name = "K", default_value_t = 0)]
    #[arg(env = "FORERUN_OFFSET", hide_env_values = true)]
    pub(super) offset: usize,
    /// Requests at the same time; only those that run alone have latencies
    #[arg(long, value_name = "C", default_value_t = 1)]
    #[arg(env = "FORERUN_CONCURRENCY", hide_env_values = true)]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(1..=64))]
    pub(super) concurrency: usize,
    /// Run the first N problems alone whatever --concurrency says, so that they have latencies
    /// [default: 0; calibrate: 8]
    #[arg(long, value_name = "N", env = "FORERUN_TIMED", hide_env_values = true)]
    pub(super) timed: Option<usize>,
    /// Measure on the software GPU too, whose times say nothing about a GPU
    #[arg(long, env = "FORERUN_EMULATED_TIMES", hide_env_values = true)]
    emulated_times: bool,
}

impl ProblemArgs {
    /// The problems asked for.
    pub(super) fn read(&self) -> Result<Vec<Problem>> {
        Ok(problem::read(&self.data, self.offset, self.limit)?)
    }

    /// How many run at the same time.
    pub(super) fn pace(&self) -> Pace {
        Pace { concurrency: self.concurrency, timed: self.timed.unwrap_or(0) }
    }

    /// An error where times would be those of the software GPU and nobody asked for them.
    pub(super) fn check_times(&self, engine: &Engine) -> Result<()> {
        ui::check_times(engine.device(), self.emulated_times)
    }
}
