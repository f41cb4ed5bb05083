//! What a request may say about sampling, and where the rest comes from.
//!
//! Three layers, the first that states a value wins: the request, the model's
//! `generation_config.json`, the engine's defaults in [`crate::config`]. Values are checked once,
//! by [`SamplingParams::validate`]; the rules in [`super::draw`] then never fail.

use serde::{Deserialize, Serialize};

use crate::config;
use crate::error::RequestError;
use crate::ids::TokenId;

/// Temperatures below this are greedy, as in vLLM: dividing by them would overflow.
pub const TEMPERATURE_MIN: f32 = 1e-5;

/// How the next token is chosen. The default is greedy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingParams {
    /// Divides the logits; 0 (or below [`TEMPERATURE_MIN`]) takes the likeliest token.
    pub temperature: f32,
    /// Keep this many of the likeliest tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the fewest likeliest tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this fraction as likely as the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens in prompt or output; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted once from the logit of every token in the output; 0 is off.
    pub presence_penalty: f32,
    /// Subtracted from a token's logit once per occurrence in the output; 0 is off.
    pub frequency_penalty: f32,
    /// Added to the logits of single tokens.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Seed of every random number of the request.
    pub seed: u64,
}

/// Any subset of [`SamplingParams`]: what one layer states.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "every field is described at the field of SamplingParams it sets")]
pub struct SamplingOverrides {
    pub temperature: Option<f32>,
    pub top_k: Option<u32>,
    pub top_p: Option<f32>,
    pub min_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
    pub presence_penalty: Option<f32>,
    pub frequency_penalty: Option<f32>,
    pub logit_bias: Option<Vec<(TokenId, f32)>>,
    pub seed: Option<u64>,
}

impl SamplingOverrides {
    /// What this layer states, else what the layer below states.
    #[must_use]
    pub fn or(&self, below: &Self) -> Self {
        let (a, b) = (self, below);
        Self {
            temperature: a.temperature.or(b.temperature),
            top_k: a.top_k.or(b.top_k),
            top_p: a.top_p.or(b.top_p),
            min_p: a.min_p.or(b.min_p),
            repetition_penalty: a.repetition_penalty.or(b.repetition_penalty),
            presence_penalty: a.presence_penalty.or(b.presence_penalty),
            frequency_penalty: a.frequency_penalty.or(b.frequency_penalty),
            logit_bias: a.logit_bias.as_ref().or(b.logit_bias.as_ref()).cloned(),
            seed: a.seed.or(b.seed),
        }
    }
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self::greedy()
    }
}

impl SamplingParams {
    /// The likeliest token, nothing else.
    #[must_use]
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }

    /// What the request states, else what the model states, else the engine's defaults.
    ///
    /// `model` holds the values of its `generation_config.json`. Where neither speaks, temperature
    /// and top-p are [`config::TEMPERATURE`] and [`config::TOP_P`], and all else is off. The result
    /// is not validated.
    #[must_use]
    pub fn with_defaults(request: &SamplingOverrides, model: &SamplingOverrides) -> Self {
        let off = Self::greedy();
        let stated = request.or(model);
        Self {
            temperature: stated.temperature.unwrap_or(config::TEMPERATURE),
            top_k: stated.top_k.unwrap_or(off.top_k),
            top_p: stated.top_p.unwrap_or(config::TOP_P),
            min_p: stated.min_p.unwrap_or(off.min_p),
            repetition_penalty: stated.repetition_penalty.unwrap_or(off.repetition_penalty),
            presence_penalty: stated.presence_penalty.unwrap_or(off.presence_penalty),
            frequency_penalty: stated.frequency_penalty.unwrap_or(off.frequency_penalty),
            logit_bias: stated.logit_bias.unwrap_or_default(),
            seed: stated.seed.unwrap_or(off.seed),
        }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`RequestError::Invalid`] names the first field out of range, its value and the range.
    pub fn validate(&self) -> Result<(), RequestError> {
        check("temperature", self.temperature, "0 or more", |t| t >= 0.0)?;
        check("top_p", self.top_p, "more than 0 and at most 1", |p| p > 0.0 && p <= 1.0)?;
        check("min_p", self.min_p, "from 0 to 1", |p| (0.0..=1.0).contains(&p))?;
        check("repetition_penalty", self.repetition_penalty, "more than 0", |r| r > 0.0)?;
        let penalty = |x: f32| (-2.0..=2.0).contains(&x);
        check("presence_penalty", self.presence_penalty, "from -2 to 2", penalty)?;
        check("frequency_penalty", self.frequency_penalty, "from -2 to 2", penalty)?;
        let mut ids: Vec<TokenId> = Vec::with_capacity(self.logit_bias.len());
        for &(id, bias) in &self.logit_bias {
            check("logit_bias", bias, "a finite number", |_| true)?;
            ids.push(id);
        }
        ids.sort_unstable();
        match ids.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(RequestError::Invalid {
                field: "logit_bias",
                reason: format!("token {} is listed twice; give each token one bias", pair[0]),
            }),
            None => Ok(()),
        }
    }

    /// Checks what only a model can decide: biased tokens must lie in its vocabulary.
    ///
    /// # Errors
    /// [`RequestError::Invalid`] names the first token outside `0..vocabulary`.
    pub fn validate_for(&self, vocabulary: usize) -> Result<(), RequestError> {
        match self.logit_bias.iter().find(|(id, _)| id.index() >= vocabulary) {
            Some((id, _)) => Err(RequestError::Invalid {
                field: "logit_bias",
                reason: format!("token {id} is outside the vocabulary of {vocabulary} tokens"),
            }),
            None => Ok(()),
        }
    }

    /// Whether the likeliest token is taken and no random number is used.
    #[must_use]
    pub fn is_greedy(&self) -> bool {
        // Not a number counts as greedy: it must not reach a division.
        self.temperature.is_nan() || self.temperature < TEMPERATURE_MIN
    }

    /// Whether the tokens so far change the result.
    #[must_use]
    pub fn needs_history(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
    }

    /// Whether logits change before temperature: by bias or penalties.
    #[must_use]
    pub fn edits_logits(&self) -> bool {
        self.needs_history() || !self.logit_bias.is_empty()
    }
}

fn check(
    field: &'static str,
    value: f32,
    range: &str,
    holds: impl Fn(f32) -> bool,
) -> Result<(), RequestError> {
    if value.is_finite() && holds(value) {
        return Ok(());
    }
    Err(RequestError::Invalid { field, reason: format!("expected {range}, got {value}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(params: &SamplingParams) -> String {
        params.validate().unwrap_err().to_string()
    }

    #[test]
    fn the_default_is_greedy_and_valid() {
        let params = SamplingParams::default();
        assert!(params.validate().is_ok() && params.is_greedy() && !params.edits_logits());
        assert_eq!(serde_json::from_str::<SamplingParams>("{}").unwrap(), params);
    }

    #[test]
    fn every_bad_value_is_refused_by_name() {
        let good = SamplingParams::greedy();
        let nan = f32::NAN;
        let cases = [
            ("temperature", SamplingParams { temperature: -0.1, ..good.clone() }),
            ("temperature", SamplingParams { temperature: f32::INFINITY, ..good.clone() }),
            ("top_p", SamplingParams { top_p: 0.0, ..good.clone() }),
            ("top_p", SamplingParams { top_p: 1.01, ..good.clone() }),
            ("min_p", SamplingParams { min_p: -0.1, ..good.clone() }),
            ("min_p", SamplingParams { min_p: nan, ..good.clone() }),
            ("repetition_penalty", SamplingParams { repetition_penalty: 0.0, ..good.clone() }),
            ("presence_penalty", SamplingParams { presence_penalty: 2.1, ..good.clone() }),
            ("frequency_penalty", SamplingParams { frequency_penalty: nan, ..good.clone() }),
            ("logit_bias", SamplingParams { logit_bias: vec![(TokenId(1), nan)], ..good.clone() }),
            (
                "logit_bias",
                SamplingParams { logit_bias: vec![(TokenId(1), 1.0), (TokenId(1), 2.0)], ..good },
            ),
        ];
        for (field, params) in cases {
            assert!(message(&params).starts_with(field), "{}", message(&params));
        }
    }

    #[test]
    fn a_bias_outside_the_vocabulary_is_refused() {
        let params =
            SamplingParams { logit_bias: vec![(TokenId(10), 1.0)], ..SamplingParams::greedy() };
        assert!(params.validate_for(11).is_ok());
        let message = params.validate_for(10).unwrap_err().to_string();
        assert_eq!(message, "logit_bias: token 10 is outside the vocabulary of 10 tokens");
    }

    #[test]
    fn the_request_overrules_the_model_and_the_model_the_engine() {
        let request = SamplingOverrides { temperature: Some(0.0), ..Default::default() };
        let model = SamplingOverrides {
            temperature: Some(0.7),
            top_k: Some(20),
            repetition_penalty: Some(1.05),
            ..Default::default()
        };
        let merged = SamplingParams::with_defaults(&request, &model);
        let expected = SamplingParams {
            top_k: 20,
            repetition_penalty: 1.05,
            top_p: 0.95,
            ..SamplingParams::greedy()
        };
        assert_eq!(merged, expected);
        let nothing = SamplingOverrides::default();
        assert_eq!(SamplingParams::with_defaults(&nothing, &nothing).temperature, 0.6);
    }

    #[test]
    fn unknown_fields_are_refused() {
        assert!(serde_json::from_str::<SamplingParams>(r#"{"temprature":1}"#).is_err());
        assert!(serde_json::from_str::<SamplingOverrides>(r#"{"top-p":1}"#).is_err());
    }
}
