//! Flags that several verbs share.
//!
//! Each struct turns into one thing the engine takes; a flag wins over its variable `FORERUN_…`.

mod policy;
mod sampling;

use super::{models, ui};
use crate::config::{DRAFT_AHEAD_MAX, SCORE_BATCH_MAX};
use crate::device::CHAIN_MAX;
#[cfg(feature = "cuda")]
use crate::device::cuda::{CudaOptions, Overlap};
use crate::engine::{DeviceChoice, EngineOptions, ModelSource, Pair, Thinking, Tuned};
use crate::telemetry::Trace;
use anyhow::{Context, Result, bail};
use clap::Args;
use clap::builder::RangedU64ValueParser;
pub(super) use policy::{KnobArgs, PolicyArgs};
pub(super) use sampling::SamplingArgs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Which two models run.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Models")]
pub(super) struct PairArgs {
    /// Pair of the catalogue [default: tiny]; see `forerun list`
    #[arg(long, value_name = "NAME", env = "FORERUN_PAIR", hide_env_values = true)]
    pub(super) pair: Option<String>,
    /// Base model: a folder, a .gguf file, a hub id or a catalogue name
    #[arg(short = 'm', long, visible_alias = "model", value_name = "M")]
    #[arg(env = "FORERUN_BASE", hide_env_values = true)]
    pub(super) base: Option<String>,
    /// Draft model, given like the base [alias: -md]
    #[arg(long, visible_alias = "draft-model", value_name = "M")]
    #[arg(env = "FORERUN_DRAFT", hide_env_values = true)]
    pub(super) draft: Option<String>,
    /// Does the pair think between tags: auto (as its template says), tags or none
    #[arg(long, value_name = "HOW", env = "FORERUN_REASONING", hide_env_values = true)]
    pub(super) reasoning: Option<Reasoning>,
    /// Policy and knobs that `calibrate` chose for this pair; other flags win
    #[arg(long, value_name = "FILE.json", env = "FORERUN_TUNED", hide_env_values = true)]
    pub(super) tuned: Option<PathBuf>,
}

/// `--reasoning`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Reasoning {
    /// What the catalogue or the base's chat template says.
    Auto,
    /// Between `<think>` and `</think>`.
    Tags,
    /// The whole reply is stepped.
    None,
}

impl PairArgs {
    /// The pair these flags name, its files found.
    pub(super) fn resolve(&self) -> Result<Pair> {
        let mut pair = self.untuned()?;
        pair.settings.tuned = self.tuned.as_deref().map(|path| tuned(path, &pair)).transpose()?;
        Ok(pair)
    }

    fn untuned(&self) -> Result<Pair> {
        let source = |name: &Option<String>| name.as_deref().map(models::source).transpose();
        let (base, draft) = (source(&self.base)?, source(&self.draft)?);
        let mut pair = match (&self.pair, base) {
            (None, Some(base)) => {
                let thinking = match self.reasoning {
                    Some(Reasoning::Tags) => Thinking::Tags,
                    Some(Reasoning::None) => Thinking::None,
                    Some(Reasoning::Auto) | None => thinking_of(&base)?,
                };
                return Ok(Pair::custom(base, draft, thinking));
            }
            (None, None) if draft.is_some() => {
                bail!("--draft needs --base M, or --pair NAME whose draft it replaces")
            }
            (name, base) => models::pair(name.as_deref().unwrap_or("tiny"), base, draft)?,
        };
        match self.reasoning {
            Some(Reasoning::Tags) => pair.settings.thinking = Thinking::Tags,
            Some(Reasoning::None) => pair.settings.thinking = Thinking::None,
            Some(Reasoning::Auto) | None => {}
        }
        Ok(pair)
    }
}

/// What a calibration chose for `pair`.
pub(super) fn tuned(path: &Path, pair: &Pair) -> Result<Tuned> {
    let context = || format!("--tuned {}", path.display());
    let json = std::fs::read_to_string(path).with_context(context)?;
    let tuned: Tuned = serde_json::from_str(&json).with_context(context)?;
    tuned.options.validate().with_context(context)?;
    if tuned.pair != pair.name {
        bail!("{}: chosen for the pair {}, but this is {}", context(), tuned.pair, pair.name);
    }
    Ok(tuned)
}

/// Whether a model thinks, as far as its chat template knows.
fn thinking_of(base: &ModelSource) -> Result<Thinking> {
    let template = models::open(base)?.chat_template();
    let thinks = template.is_some_and(|template| template.contains("</think>"));
    Ok(if thinks { Thinking::Tags } else { Thinking::None })
}

/// Where and in how much memory the engine runs.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Engine")]
pub(super) struct EngineArgs {
    /// Where to run: auto, cpu, cuda or reference
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    #[arg(env = "FORERUN_DEVICE", hide_env_values = true)]
    pub(super) device: DeviceChoice,
    /// CPU threads [default: all physical cores]
    #[arg(short = 't', long, value_name = "N", env = "FORERUN_THREADS", hide_env_values = true)]
    #[arg(allow_negative_numbers = true)]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(1..=4096))]
    pub(super) threads: Option<usize>,
    /// Context of both models, in tokens [default: theirs, at most 8192]
    #[arg(short = 'c', long, visible_alias = "ctx-size", value_name = "TOKENS")]
    #[arg(env = "FORERUN_MAX_MODEL_LEN", hide_env_values = true, allow_negative_numbers = true)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) max_model_len: Option<u32>,
    /// Size of the KV pool both models share, such as 512M or 2G
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    #[arg(env = "FORERUN_KV_CACHE_MEMORY_BYTES", hide_env_values = true)]
    pub(super) kv_cache_memory_bytes: Option<u64>,
    /// Tokens a model writes before the program looks [default: 4 on a GPU, else 1]
    #[arg(long, value_name = "TOKENS", env = "FORERUN_RUN_AHEAD", hide_env_values = true)]
    #[arg(allow_negative_numbers = true)]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(1..=CHAIN_MAX as u64))]
    pub(super) run_ahead: Option<usize>,
    /// Steps the draft may write beyond the first that the base has not decided on; 0 is off
    /// [default: 1 where both models run at the same time, else 0; with lookahead 6]
    #[arg(long, value_name = "STEPS", env = "FORERUN_DRAFT_AHEAD", hide_env_values = true)]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=i64::from(DRAFT_AHEAD_MAX)))]
    pub(super) draft_ahead: Option<u32>,
    /// Drafted steps the base scores in one pass, at most [default: as many as wait for it]
    #[arg(long, value_name = "STEPS", env = "FORERUN_SCORE_BATCH", hide_env_values = true)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(SCORE_BATCH_MAX)))]
    pub(super) score_batch: Option<u32>,
    #[command(flatten)]
    pub(super) trace: TraceArgs,
    /// Choices of the CUDA device.
    #[cfg(feature = "cuda")]
    #[command(flatten)]
    pub(super) cuda: CudaArgs,
}

/// Where a timeline is written.
#[derive(Debug, Clone, Args)]
pub(super) struct TraceArgs {
    /// Write a timeline of everything to this file, for Perfetto or chrome://tracing
    #[arg(long, value_name = "FILE.json", env = "FORERUN_TRACE", hide_env_values = true)]
    trace: Option<PathBuf>,
}

impl TraceArgs {
    /// Where it is written, if anywhere.
    #[cfg(feature = "cuda")]
    pub(super) fn path(&self) -> Option<&Path> {
        self.trace.as_deref()
    }

    /// The trace, begun.
    pub(super) fn begin(&self) -> Result<Option<Arc<Trace>>> {
        let Some(path) = &self.trace else { return Ok(None) };
        let trace = Trace::create(path).with_context(|| format!("--trace {}", path.display()))?;
        Ok(Some(Arc::new(trace)))
    }
}

/// How a CUDA device is used.
#[cfg(feature = "cuda")]
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "CUDA")]
pub(super) struct CudaArgs {
    /// Share of the device's memory that may be taken
    #[arg(long, value_name = "SHARE", default_value_t = CudaOptions::default().memory_utilization)]
    #[arg(env = "FORERUN_GPU_MEMORY_UTILIZATION", hide_env_values = true)]
    #[arg(value_parser = parse_share)]
    pub(super) gpu_memory_utilization: f64,
    /// How the two models share the device: off (one pass at a time), stream or green-ctx
    #[arg(long, value_name = "MODE", default_value = "stream")]
    #[arg(env = "FORERUN_OVERLAP", hide_env_values = true)]
    pub(super) overlap: Overlap,
    /// Percent of the SMs the draft gets with --overlap green-ctx
    #[arg(long, value_name = "PERCENT", default_value_t = CudaOptions::default().draft_sm_pct)]
    #[arg(env = "FORERUN_DRAFT_SM_PCT", hide_env_values = true)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=99))]
    pub(super) draft_sm_pct: u32,
    /// Launch every kernel by itself instead of replaying CUDA graphs
    #[arg(long, env = "FORERUN_ENFORCE_EAGER", hide_env_values = true)]
    pub(super) enforce_eager: bool,
    /// Let no kernel begin before the one before it has ended, where compute capability 9.0 could
    #[arg(long, env = "FORERUN_NO_DEPENDENT_LAUNCH", hide_env_values = true)]
    pub(super) no_dependent_launch: bool,
    /// Driver library to open instead of the system's, such as the software GPU of the tests
    #[arg(long, value_name = "PATH", env = "FORERUN_CUDA_DRIVER", hide_env_values = true)]
    pub(super) cuda_driver: Option<PathBuf>,
    /// Architecture to load kernels of, such as compute_80 [default: the best there is]
    #[arg(long, value_name = "ARCH", env = "FORERUN_CUDA_IMAGE", hide_env_values = true)]
    pub(super) cuda_image: Option<String>,
}

#[cfg(feature = "cuda")]
impl CudaArgs {
    /// Options of the device.
    pub(super) fn options(&self) -> CudaOptions {
        CudaOptions {
            memory_utilization: self.gpu_memory_utilization,
            overlap: self.overlap,
            draft_sm_pct: self.draft_sm_pct,
            graphs: !self.enforce_eager,
            dependent_launch: !self.no_dependent_launch,
            driver: self.cuda_driver.clone(),
            image: self.cuda_image.clone(),
            ..CudaOptions::default()
        }
    }
}

#[cfg(feature = "cuda")]
fn parse_share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if share > 0.0 && share <= 1.0 => Ok(share),
        _ => Err("expected a number above 0 and at most 1, such as 0.9".into()),
    }
}

impl EngineArgs {
    /// Start-up options for a pair, with a progress bar on a terminal.
    pub(super) fn options(&self, pair: Pair) -> Result<EngineOptions> {
        let mut options = EngineOptions::new(pair);
        options.device = self.device;
        options.threads = self.threads;
        #[cfg(feature = "cuda")]
        {
            options.cuda = self.cuda.options();
        }
        options.max_model_len = self.max_model_len;
        options.kv_cache_memory_bytes = self.kv_cache_memory_bytes;
        options.run_ahead = self.run_ahead;
        options.draft_ahead = self.draft_ahead;
        options.score_batch = self.score_batch;
        options.trace = self.trace.begin()?;
        options.progress = Some(Box::new(ui::loading_bar()));
        Ok(options)
    }
}

/// A number of bytes with an optional binary suffix: `512M`, `2G`, `2GiB`, `1048576`.
pub(super) fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let suffix = text[digits.len()..].trim().to_ascii_lowercase();
    let shift = match suffix.trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(format!("expected a size such as 512M or 2G, got {text:?}")),
    };
    let number: u64 =
        digits.parse().map_err(|_| format!("expected a size such as 512M or 2G, got {text:?}"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text} is more than 16 EiB"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_binary_suffixes() {
        let good = [
            ("0", 0),
            ("1048576", 1 << 20),
            ("512M", 512 << 20),
            ("2G", 2 << 30),
            ("3GiB", 3 << 30),
            ("4kb", 4 << 10),
            ("1 T", 1 << 40),
        ];
        for (text, bytes) in good {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for bad in ["", "M", "1.5G", "-1", "2X", "2GG", "99999999999T", "1M2"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }
}
