//! Flags that say who writes, who judges and when it ends.

use crate::engine::{JudgeText, Pair, PolicyOptions};
use crate::ids::Role;
use crate::policy::{AnswerBy, DraftVocab, Gates, PolicyKind, Proposer, WindowSize};
use crate::sample::Readout;
use anyhow::{Context, Result, bail};
use clap::Args;
use clap::builder::FalseyValueParser;
use std::path::Path;

/// Who writes, who judges, and when it ends.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Policy")]
pub(in crate::cli) struct PolicyArgs {
    /// base, draft, spec-decode, specreason, specreason+decode or lookahead [default: specreason;
    /// base without a draft model]
    #[arg(long, value_name = "POLICY", env = "FORERUN_POLICY", hide_env_values = true)]
    pub(in crate::cli) policy: Option<PolicyKind>,
    /// Accept a step from this score on [default: the pair's; 7 in general]
    #[arg(long, visible_alias = "reason-threshold", value_name = "SCORE")]
    #[arg(env = "FORERUN_THRESHOLD", hide_env_values = true, allow_negative_numbers = true)]
    pub(in crate::cli) threshold: Option<f32>,
    /// Everything else.
    #[command(flatten)]
    pub(in crate::cli) knobs: KnobArgs,
}

/// The knobs of a policy, apart from those an evaluation takes lists of.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Policy")]
pub(in crate::cli) struct KnobArgs {
    /// Score read-out: greedy, mean (or average) or prob
    #[arg(long, visible_alias = "reason-score", value_name = "READOUT")]
    #[arg(env = "FORERUN_SCORE", hide_env_values = true)]
    pub(in crate::cli) score: Option<Readout>,
    /// For --score prob: the probability of reaching the threshold that accepts [default: 0.5]
    #[arg(long, value_name = "P", env = "FORERUN_SCORE_CUTOFF", hide_env_values = true)]
    #[arg(allow_negative_numbers = true)]
    pub(in crate::cli) score_cutoff: Option<f32>,
    /// Judge: turn, prefix, with lookahead compare, or a judge file of your own
    #[arg(long, value_name = "turn|prefix|compare|FILE.json")]
    #[arg(env = "FORERUN_JUDGE", hide_env_values = true)]
    pub(in crate::cli) judge: Option<String>,
    /// Steps the base writes before the draft's turn comes [default: 0]
    #[arg(long, visible_alias = "reason-first-n-base-steps", value_name = "STEPS")]
    #[arg(env = "FORERUN_FIRST_N", hide_env_values = true, allow_negative_numbers = true)]
    pub(in crate::cli) first_n: Option<u32>,
    /// Thinking tokens one reply may keep [default: 8192, clamped to the context]
    #[arg(long, visible_alias = "reason-token-budget", value_name = "TOKENS")]
    #[arg(env = "FORERUN_TOKEN_BUDGET", hide_env_values = true, allow_negative_numbers = true)]
    pub(in crate::cli) token_budget: Option<u32>,
    /// Tokens one step may have [default: 512]
    #[arg(long, visible_alias = "reason-step-max-tokens", value_name = "TOKENS")]
    #[arg(env = "FORERUN_STEP_TOKENS", hide_env_values = true, allow_negative_numbers = true)]
    pub(in crate::cli) step_tokens: Option<u32>,
    /// What ends a step; \n, \t and \\ are understood [default: a blank line]
    #[arg(long, visible_alias = "reason-step-delimiter", value_name = "TEXT")]
    #[arg(env = "FORERUN_STEP_DELIMITER", hide_env_values = true)]
    pub(in crate::cli) step_delimiter: Option<String>,
    /// Who writes the answer after the thinking: base, draft or last [default: base]
    #[arg(long, value_name = "WHO", env = "FORERUN_ANSWER_BY", hide_env_values = true)]
    pub(in crate::cli) answer_by: Option<AnswerBy>,
    /// Stop when two steps in a row are the same [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true", value_parser = FalseyValueParser::new())]
    #[arg(env = "FORERUN_STOP_ON_REPEAT", hide_env_values = true)]
    pub(in crate::cli) stop_on_repeat: Option<bool>,
    /// Record the base's log-probability of every drafted token (in --json)
    #[arg(long, value_parser = FalseyValueParser::new())]
    #[arg(env = "FORERUN_STEP_LOGPROBS", hide_env_values = true)]
    pub(in crate::cli) step_logprobs: bool,
    /// Who proposes tokens to the base, with spec-decode and specreason+decode: draft or ngram
    /// [default: draft; ngram without a draft model]
    #[arg(long, value_name = "WHO", env = "FORERUN_PROPOSER", hide_env_values = true)]
    pub(in crate::cli) proposer: Option<Proposer>,
    /// Tokens proposed at a time: 0 to 8, or auto for as many as pay [default: auto]
    #[arg(long, visible_alias = "num-speculative-tokens", value_name = "TOKENS")]
    #[arg(env = "FORERUN_WINDOW", hide_env_values = true)]
    pub(in crate::cli) window: Option<WindowSize>,
    /// Tokens proposed in one place, 1 to 4: more than one make a tree [default: 1]
    #[arg(long, value_name = "N", env = "FORERUN_BRANCHES", hide_env_values = true)]
    pub(in crate::cli) branches: Option<u32>,
    /// Ids the draft proposes from: the first so many, all, or auto for as many as pay [default:
    /// auto]
    #[arg(long, value_name = "IDS", env = "FORERUN_DRAFT_VOCAB", hide_env_values = true)]
    pub(in crate::cli) draft_vocab: Option<DraftVocab>,
    /// Let the base keep what it would have written itself of a step it rejected
    #[arg(long, value_parser = FalseyValueParser::new())]
    #[arg(env = "FORERUN_SALVAGE", hide_env_values = true)]
    pub(in crate::cli) salvage: bool,
    /// Let the base write a step whose first drafted token has more entropy than this, in nats
    #[arg(long, value_name = "NATS", env = "FORERUN_GATE_ENTROPY", hide_env_values = true)]
    #[arg(allow_negative_numbers = true)]
    pub(in crate::cli) gate_entropy: Option<f32>,
    /// Keep a step unscored whose tokens the draft gave at least this probability in the mean
    #[arg(long, value_name = "P", env = "FORERUN_GATE_CONFIDENCE", hide_env_values = true)]
    #[arg(allow_negative_numbers = true)]
    pub(in crate::cli) gate_confidence: Option<f32>,
    /// Score a drafted step only once it has so many tokens: short ones are scored together
    #[arg(long, value_name = "TOKENS", env = "FORERUN_MERGE_TOKENS", hide_env_values = true)]
    pub(in crate::cli) merge_tokens: Option<u32>,
}

impl PolicyArgs {
    /// The policy to run a pair with: without a draft the base is alone.
    pub(in crate::cli) fn kind(&self, pair: &Pair) -> Result<PolicyKind> {
        let default = if pair.draft.is_some() { PolicyKind::default() } else { PolicyKind::Base };
        let tuned = pair.settings.tuned.as_ref().map(|tuned| tuned.policy);
        let kind = self.policy.or(tuned).unwrap_or(default);
        if pair.draft.is_none() && kind.uses(Role::Draft) {
            bail!("--policy {kind} needs a draft model: add --draft M, or use --policy base");
        }
        Ok(kind)
    }

    /// The overrides of a request.
    pub(in crate::cli) fn options(&self) -> Result<PolicyOptions> {
        self.knobs.options(self.threshold)
    }
}

impl KnobArgs {
    /// The overrides of a request with a threshold.
    pub(in crate::cli) fn options(&self, threshold: Option<f32>) -> Result<PolicyOptions> {
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
    fn escapes_of_a_delimiter_become_characters() {
        assert_eq!(unescape(r"\n\n").unwrap(), "\n\n");
        assert_eq!(unescape(r"a\\n\t").unwrap(), "a\\n\t");
        assert_eq!(unescape(r"\q").unwrap_err().to_string().matches("\\q").count(), 1);
        assert!(unescape("\\").is_err());
    }
}
