//! `forerun bench --overlap-sweep`: one question in every overlap mode, counted, and what a model
//! of the GPU says of each mode. Here are its flags; what they do is in `sweep`.

#[cfg(feature = "cuda")]
mod sweep;

use super::args::PairArgs;
use super::bench::BenchArgs;
use super::eval::Format;
use crate::engine::{DeviceChoice, Pair};
use anyhow::{Result, bail};
use clap::Args;

/// Flags of the sweep.
#[derive(Debug, Args)]
#[command(next_help_heading = "Overlap sweep")]
pub(super) struct OverlapArgs {
    /// Compare how two models share a GPU: off, stream, and splits of its SMs
    #[arg(long, env = "FORERUN_OVERLAP_SWEEP", hide_env_values = true)]
    pub(super) overlap_sweep: bool,
    /// Pair of the catalogue [default: tiny, or -m M with --draft M]
    #[arg(long, value_name = "NAME", env = "FORERUN_PAIR", hide_env_values = true)]
    pair: Option<String>,
    /// Draft model for the base that -m names
    #[arg(long, visible_alias = "draft-model", value_name = "M")]
    #[arg(env = "FORERUN_DRAFT", hide_env_values = true)]
    draft: Option<String>,
    /// Percents of the SMs the draft gets, one split each
    #[arg(long, value_name = "PERCENT,…", value_delimiter = ',', default_value = "12,25,50,75")]
    #[arg(env = "FORERUN_SWEEP_SM_PCT", hide_env_values = true)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=99))]
    sweep_sm_pct: Vec<u32>,
    /// What is asked [default: an example the pair can answer]
    #[arg(long, value_name = "TEXT", env = "FORERUN_QUESTION", hide_env_values = true)]
    question: Option<String>,
    /// Tokens the reply may have
    #[arg(long, value_name = "TOKENS", default_value_t = 256)]
    #[arg(env = "FORERUN_TOKENS_MAX", hide_env_values = true)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    tokens_max: u32,
}

impl OverlapArgs {
    /// Refuses flags that would count for nothing; what the environment says is for every verb.
    pub(super) fn check_unused(&self) -> Result<()> {
        let given = [
            ("--pair", "FORERUN_PAIR", self.pair.is_some()),
            ("--draft", "FORERUN_DRAFT", self.draft.is_some()),
        ];
        for (flag, variable, is_given) in given {
            if is_given && std::env::var_os(variable).is_none() {
                bail!("{flag} is for --overlap-sweep; bench measures one model, which -m M names");
            }
        }
        Ok(())
    }

    /// The pair to sweep, once it is clear that there is a sweep to be had.
    fn pair(&self, bench: &BenchArgs) -> Result<Pair> {
        if bench.device != DeviceChoice::Cuda {
            bail!(
                "--overlap-sweep compares how two models share a GPU, expected --device cuda; fix: \
                 add --device cuda, without a GPU with --cuda-driver PATH of the software GPU \
                 (tests/gpu-emulator)"
            );
        }
        if bench.format != Format::Md {
            bail!("--overlap-sweep prints tables; use --format md");
        }
        let base = match (&self.pair, &self.draft) {
            (None, Some(_)) => Some(bench.model.clone()),
            _ => None,
        };
        let pair = PairArgs {
            pair: self.pair.clone(),
            base,
            draft: self.draft.clone(),
            reasoning: None,
            tuned: None,
        };
        let pair = pair.resolve()?;
        if pair.draft.is_none() {
            bail!("--overlap-sweep runs two models: name a pair with --pair, or add --draft M");
        }
        Ok(pair)
    }

    /// Runs the question in every mode and prints the tables.
    #[cfg(not(feature = "cuda"))]
    pub(super) fn run(&self, bench: &BenchArgs) -> Result<()> {
        self.pair(bench)?;
        bail!("--overlap-sweep: built without the feature `cuda`")
    }
}
