//! Flags that several verbs share.
//!
//! Each struct turns into one thing the engine takes; a flag wins over its variable `FORERUN_…`.

use super::{models, ui};
use crate::config::{DRAFT_AHEAD_MAX, SCORE_BATCH_MAX};
use crate::device::CHAIN_MAX;
#[cfg(feature = "cuda")]
use crate::device::cuda::{CudaOptions, Overlap};
use crate::engine::{
    DeviceChoice, EngineOptions, JudgeText, ModelSource, Pair, PolicyOptions, Thinking, Tuned,
};
use crate::ids::{Role, TokenId};
use crate::policy::{AnswerBy, DraftVocab, Gates, PolicyKind, Proposer, WindowSize};
use crate::sample::{Readout, SamplingOverrides, SamplingParams};
use crate::telemetry::Trace;
use anyhow::{Context, Result, bail};
use clap::Args;
use clap::builder::{FalseyValueParser, RangedU64ValueParser};
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

/// Who writes, who judges, and when it ends.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Policy")]
pub(super) struct PolicyArgs {
    /// base, draft, spec-decode, specreason, specreason+decode or lookahead [default: specreason;
    /// base without a draft model]
    #[arg(long, value_name = "POLICY", env = "FORERUN_POLICY", hide_env_values = true)]
    pub(super) policy: Option<PolicyKind>,
    /// Accept a step from this score on [default: the pair's; 7 in general]
    #[arg(long, visible_alias = "reason-threshold", value_name = "SCORE")]
    #[arg(env = "FORERUN_THRESHOLD", hide_env_values = true, allow_negative_numbers = true)]
    pub(super) threshold: Option<f32>,
    /// Everything else.
    #[command(flatten)]
    pub(super) knobs: KnobArgs,
}

/// The knobs of a policy, apart from those an evaluation takes lists of.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Policy")]
pub(super) struct KnobArgs {
    /// Score read-out: greedy, mean (or average) or prob
    #[arg(long, visible_alias = "reason-score", value_name = "READOUT")]
    #[arg(env = "FORERUN_SCORE", hide_env_values = true)]
    pub(super) score: Option<Readout>,
    /// For --score prob: the probability of reaching the threshold that accepts [default: 0.5]
    #[arg(long, value_name = "P", env = "FORERUN_SCORE_CUTOFF", hide_env_values = true)]
    #[arg(allow_negative_numbers = true)]
    pub(super) score_cutoff: Option<f32>,
    /// Judge: turn, prefix, with lookahead compare, or a judge file of your own
    #[arg(long, value_name = "turn|prefix|compare|FILE.json")]
    #[arg(env = "FORERUN_JUDGE", hide_env_values = true)]
    pub(super) judge: Option<String>,
    /// Steps the base writes before the draft's turn comes [default: 0]
    #[arg(long, visible_alias = "reason-first-n-base-steps", value_name = "STEPS")]
    #[arg(env = "FORERUN_FIRST_N", hide_env_values = true, allow_negative_numbers = true)]
    pub(super) first_n: Option<u32>,
    /// Thinking tokens one reply may keep [default: 8192, clamped to the context]
    #[arg(long, visible_alias = "reason-token-budget", value_name = "TOKENS")]
    #[arg(env = "FORERUN_TOKEN_BUDGET", hide_env_values = true, allow_negative_numbers = true)]
    pub(super) token_budget: Option<u32>,
    /// Tokens one step may have [default: 512]
    #[arg(long, visible_alias = "reason-step-max-tokens", value_name = "TOKENS")]
    #[arg(env = "FORERUN_STEP_TOKENS", hide_env_values = true, allow_negative_numbers = true)]
    pub(super) step_tokens: Option<u32>,
    /// What ends a step; \n, \t and \\ are understood [default: a blank line]
    #[arg(long, visible_alias = "reason-step-delimiter", value_name = "TEXT")]
    #[arg(env = "FORERUN_STEP_DELIMITER", hide_env_values = true)]
    pub(super) step_delimiter: Option<String>,
    /// Who writes the answer after the thinking: base, draft or last [default: base]
    #[arg(long, value_name = "WHO", env = "FORERUN_ANSWER_BY", hide_env_values = true)]
    pub(super) answer_by: Option<AnswerBy>,
    /// Stop when two steps in a row are the same [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true", value_parser = FalseyValueParser::new())]
    #[arg(env = "FORERUN_STOP_ON_REPEAT", hide_env_values = true)]
    pub(super) stop_on_repeat: Option<bool>,
    /// Record the base's log-probability of every drafted token (in --json)
    #[arg(long, value_parser = FalseyValueParser::new())]
    #[arg(env = "FORERUN_STEP_LOGPROBS", hide_env_values = true)]
    pub(super) step_logprobs: bool,
    /// Who proposes tokens to the base, with spec-decode and specreason+decode: draft or ngram
    /// [default: draft; ngram without a draft model]
    #[arg(long, value_name = "WHO", env = "FORERUN_PROPOSER", hide_env_values = true)]
    pub(super) proposer: Option<Proposer>,
    /// Tokens proposed at a time: 0 to 8, or auto for as many as pay [default: auto]
    #[arg(long, visible_alias = "num-speculative-tokens", value_name = "TOKENS")]
    #[arg(env = "FORERUN_WINDOW", hide_env_values = true)]
    pub(super) window: Option<WindowSize>,
    /// Tokens proposed in one place, 1 to 4: more than one make a tree [default: 1]
    #[arg(long, value_name = "N", env = "FORERUN_BRANCHES", hide_env_values = true)]
    pub(super) branches: Option<u32>,
    /// Ids the draft proposes from: the first so many, all, or auto for as many as pay [default:
    /// auto]
    #[arg(long, value_name = "IDS", env = "FORERUN_DRAFT_VOCAB", hide_env_values = true)]
    pub(super) draft_vocab: Option<DraftVocab>,
    /// Let the base keep what it would have written itself of a step it rejected
    #[arg(long, value_parser = FalseyValueParser::new())]
    #[arg(env = "FORERUN_SALVAGE", hide_env_values = true)]
    pub(super) salvage: bool,
    /// Let the base write a step whose first drafted token has more entropy than this, in nats
    #[arg(long, value_name = "NATS", env = "FORERUN_GATE_ENTROPY", hide_env_values = true)]
    #[arg(allow_negative_numbers = true)]
    pub(super) gate_entropy: Option<f32>,
    /// Keep a step unscored whose tokens the draft gave at least this probability in the mean
    #[arg(long, value_name = "P", env = "FORERUN_GATE_CONFIDENCE", hide_env_values = true)]
    #[arg(allow_negative_numbers = true)]
    pub(super) gate_confidence: Option<f32>,
    /// Score a drafted step only once it has so many tokens: short ones are scored together
    #[arg(long, value_name = "TOKENS", env = "FORERUN_MERGE_TOKENS", hide_env_values = true)]
    pub(super) merge_tokens: Option<u32>,
}

impl PolicyArgs {
    /// The policy to run a pair with: without a draft the base is alone.
    pub(super) fn kind(&self, pair: &Pair) -> Result<PolicyKind> {
        let default = if pair.draft.is_some() { PolicyKind::default() } else { PolicyKind::Base };
        let tuned = pair.settings.tuned.as_ref().map(|tuned| tuned.policy);
        let kind = self.policy.or(tuned).unwrap_or(default);
        if pair.draft.is_none() && kind.uses(Role::Draft) {
            bail!("--policy {kind} needs a draft model: add --draft M, or use --policy base");
        }
        Ok(kind)
    }

    /// The overrides of a request.
    pub(super) fn options(&self) -> Result<PolicyOptions> {
        self.knobs.options(self.threshold)
    }
}

impl KnobArgs {
    /// The overrides of a request with a threshold.
    pub(super) fn options(&self, threshold: Option<f32>) -> Result<PolicyOptions> {
        if let Some(p) = self.score_cutoff.filter(|p| !(0.0..=1.0).contains(p)) {
            bail!("--score-cutoff: expected a probability from 0 to 1, got {p}");
        }
        let options = PolicyOptions {
            threshold,
            readout: self.score,
            cutoff: self.score_cutoff,
            judge: self.judge.as_deref().map(read_judge).transpose()?,
            first_n: self.first_n,
            step_tokens_max: self.step_tokens,
            token_budget: self.token_budget,
            tokens_max: None,
            step_delimiter: self.step_delimiter.as_deref().map(unescape).transpose()?,
            answer_by: self.answer_by,
            stop_on_repeat: self.stop_on_repeat,
            step_logprobs: self.step_logprobs,
            proposer: self.proposer,
            window: self.window,
            branches: self.branches,
            draft_vocab: self.draft_vocab,
            salvage: self.salvage,
            gates: Gates {
                entropy_max: self.gate_entropy,
                confidence_min: self.gate_confidence,
                merge_tokens: self.merge_tokens,
            },
        };
        options.validate()?;
        Ok(options)
    }
}

fn read_judge(name: &str) -> Result<JudgeText> {
    if let Some(judge) = JudgeText::built_in(name) {
        return Ok(judge);
    }
    if !name.ends_with(".json") && !Path::new(name).exists() {
        bail!(
            "--judge: there is no judge {name:?}; expected turn, prefix, compare or a .json file"
        );
    }
    let json = std::fs::read_to_string(name).with_context(|| format!("--judge {name}"))?;
    JudgeText::parse(&json).with_context(|| format!("--judge {name}"))
}

/// How tokens are drawn, by either model.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Sampling (defaults: the pair's, then the model's own)")]
pub(super) struct SamplingArgs {
    /// Divides the logits; 0 always takes the likeliest token
    #[arg(long, visible_alias = "temp", value_name = "T")]
    #[arg(env = "FORERUN_TEMPERATURE", hide_env_values = true, allow_negative_numbers = true)]
    pub(super) temperature: Option<f32>,
    /// Keep the fewest likeliest tokens whose probabilities reach this sum
    #[arg(long, value_name = "P", env = "FORERUN_TOP_P", hide_env_values = true)]
    #[arg(allow_negative_numbers = true)]
    pub(super) top_p: Option<f32>,
    /// Keep this many of the likeliest tokens; 0 keeps all
    #[arg(long, value_name = "K", env = "FORERUN_TOP_K", hide_env_values = true)]
    #[arg(allow_negative_numbers = true)]
    pub(super) top_k: Option<u32>,
    /// Keep tokens at least this fraction as likely as the likeliest
    #[arg(long, value_name = "P", env = "FORERUN_MIN_P", hide_env_values = true)]
    #[arg(allow_negative_numbers = true)]
    pub(super) min_p: Option<f32>,
    /// Seed of every random number of the request [default: 0]
    #[arg(short = 's', long, value_name = "N", env = "FORERUN_SEED", hide_env_values = true)]
    #[arg(allow_negative_numbers = true)]
    pub(super) seed: Option<u64>,
    /// Weakens tokens that occurred, by division; 1 is off
    #[arg(long, visible_alias = "repeat-penalty", value_name = "R")]
    #[arg(
        env = "FORERUN_REPETITION_PENALTY",
        hide_env_values = true,
        allow_negative_numbers = true
    )]
    pub(super) repetition_penalty: Option<f32>,
    /// Subtracted once from tokens of the output
    #[arg(long, value_name = "X", env = "FORERUN_PRESENCE_PENALTY", hide_env_values = true)]
    #[arg(allow_negative_numbers = true)]
    pub(super) presence_penalty: Option<f32>,
    /// Subtracted from tokens of the output, once per occurrence
    #[arg(long, value_name = "X", env = "FORERUN_FREQUENCY_PENALTY", hide_env_values = true)]
    #[arg(allow_negative_numbers = true)]
    pub(super) frequency_penalty: Option<f32>,
    /// Added to the logit of one token; repeat the flag or separate by commas
    #[arg(long, value_name = "ID:BIAS", value_delimiter = ',', value_parser = parse_bias)]
    #[arg(env = "FORERUN_LOGIT_BIAS", hide_env_values = true)]
    pub(super) logit_bias: Vec<(TokenId, f32)>,
}

impl SamplingArgs {
    /// The overrides of a request.
    pub(super) fn overrides(&self) -> Result<SamplingOverrides> {
        let overrides = SamplingOverrides {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: (!self.logit_bias.is_empty()).then(|| self.logit_bias.clone()),
            seed: self.seed,
        };
        SamplingParams::with_defaults(&overrides, &SamplingOverrides::default()).validate()?;
        Ok(overrides)
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

fn parse_bias(text: &str) -> Result<(TokenId, f32), String> {
    let expected = || format!("expected ID:BIAS such as 42:-1.5, got {text:?}");
    let (id, bias) = text.split_once(':').ok_or_else(expected)?;
    let id = id.trim().parse().map_err(|_| expected())?;
    let bias = bias.trim().parse().map_err(|_| expected())?;
    Ok((TokenId(id), bias))
}

/// Replaces `\n`, `\t` and `\\`, which shells make hard to type.
fn unescape(text: &str) -> Result<String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, c == '\\') {
            (_, false) => out.push(c),
            _ => match chars.next() {
                Some('n') => out.push('\n'),
                Some('t') => out.push('\t'),
                Some('\\') => out.push('\\'),
                other => bail!(
                    "--step-delimiter: \\{} is not understood; there are \\n, \\t and \\\\",
                    other.map(String::from).unwrap_or_default()
                ),
            },
        }
    }
    Ok(out)
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

    #[test]
    fn escapes_of_a_delimiter_become_characters() {
        assert_eq!(unescape(r"\n\n").unwrap(), "\n\n");
        assert_eq!(unescape(r"a\\n\t").unwrap(), "a\\n\t");
        assert_eq!(unescape(r"\q").unwrap_err().to_string().matches("\\q").count(), 1);
        assert!(unescape("\\").is_err());
    }

    #[test]
    fn a_bias_is_an_id_and_a_number() {
        assert_eq!(parse_bias("42:-1.5"), Ok((TokenId(42), -1.5)));
        for bad in ["42", "x:1", "-1:1", "1:", "1:one"] {
            assert!(parse_bias(bad).unwrap_err().contains("ID:BIAS"), "{bad}");
        }
    }
}
