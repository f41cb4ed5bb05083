//! Flags that say how tokens are drawn.

use crate::ids::TokenId;
use crate::sample::{SamplingOverrides, SamplingParams};
use anyhow::Result;
use clap::Args;

/// How tokens are drawn, by either model.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Sampling (defaults: the pair's, then the model's own)")]
pub(in crate::cli) struct SamplingArgs {
    /// Divides the logits; 0 always takes the likeliest token
    #[arg(long, visible_alias = "temp", value_name = "T")]
    #[arg(env = "FORERUN_TEMPERATURE", hide_env_values = true, allow_negative_numbers = true)]
    pub(in crate::cli) temperature: Option<f32>,
    /// Keep the fewest likeliest tokens whose probabilities reach this sum
    #[arg(long, value_name = "P", env = "FORERUN_TOP_P", hide_env_values = true)]
    #[arg(allow_negative_numbers = true)]
    pub(in crate::cli) top_p: Option<f32>,
    /// Keep this many of the likeliest tokens; 0 keeps all
    #[arg(long, value_name = "K", env = "FORERUN_TOP_K", hide_env_values = true)]
    #[arg(allow_negative_numbers = true)]
    pub(in crate::cli) top_k: Option<u32>,
    /// Keep tokens at least this fraction as likely as the likeliest
    #[arg(long, value_name = "P", env = "FORERUN_MIN_P", hide_env_values = true)]
    #[arg(allow_negative_numbers = true)]
    pub(in crate::cli) min_p: Option<f32>,
    /// Seed of every random number of the request [default: 0]
    #[arg(short = 's', long, value_name = "N", env = "FORERUN_SEED", hide_env_values = true)]
    #[arg(allow_negative_numbers = true)]
    pub(in crate::cli) seed: Option<u64>,
    /// Weakens tokens that occurred, by division; 1 is off
    #[arg(long, visible_alias = "repeat-penalty", value_name = "R")]
    #[arg(
        env = "FORERUN_REPETITION_PENALTY",
        hide_env_values = true,
        allow_negative_numbers = true
    )]
    pub(in crate::cli) repetition_penalty: Option<f32>,
    /// Subtracted once from tokens of the output
    #[arg(long, value_name = "X", env = "FORERUN_PRESENCE_PENALTY", hide_env_values = true)]
    #[arg(allow_negative_numbers = true)]
    pub(in crate::cli) presence_penalty: Option<f32>,
    /// Subtracted from tokens of the output, once per occurrence
    #[arg(long, value_name = "X", env = "FORERUN_FREQUENCY_PENALTY", hide_env_values = true)]
    #[arg(allow_negative_numbers = true)]
    pub(in crate::cli) frequency_penalty: Option<f32>,
    /// Added to the logit of one token; repeat the flag or separate by commas
    #[arg(long, value_name = "ID:BIAS", value_delimiter = ',', value_parser = parse_bias)]
    #[arg(env = "FORERUN_LOGIT_BIAS", hide_env_values = true)]
    pub(in crate::cli) logit_bias: Vec<(TokenId, f32)>,
}

impl SamplingArgs {
    /// The overrides of a request.
    pub(in crate::cli) fn overrides(&self) -> Result<SamplingOverrides> {
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

fn parse_bias(text: &str) -> Result<(TokenId, f32), String> {
    let expected = || format!("expected ID:BIAS such as 42:-1.5, got {text:?}");
    let (id, bias) = text.split_once(':').ok_or_else(expected)?;
    let id = id.trim().parse().map_err(|_| expected())?;
    let bias = bias.trim().parse().map_err(|_| expected())?;
    Ok((TokenId(id), bias))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bias_is_an_id_and_a_number() {
        assert_eq!(parse_bias("42:-1.5"), Ok((TokenId(42), -1.5)));
        for bad in ["42", "x:1", "-1:1", "1:", "1:one"] {
            assert!(parse_bias(bad).unwrap_err().contains("ID:BIAS"), "{bad}");
        }
    }
}
