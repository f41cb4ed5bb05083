//! Edits of raw logits: bias, then penalties, before temperature and truncation.
//!
//! The order is vLLM's and Hugging Face's: bias, repetition penalty (over prompt and output), then
//! frequency and presence penalty (over output). Work is proportional to the tokens named, not to
//! the vocabulary.

use crate::ids::TokenId;

use super::params::SamplingParams;

/// The tokens a request has seen so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct History<'a> {
    /// The rendered prompt; only the repetition penalty looks at it.
    pub prompt: &'a [TokenId],
    /// Everything after the prompt.
    pub generated: &'a [TokenId],
}

/// Per-token marks, `[V]`, all zero between calls.
#[derive(Debug, Default)]
pub(super) struct Marks {
    seen: Vec<bool>,
    counts: Vec<u32>,
}

/// Applies bias and penalties to `logits` in place. Ids outside the vocabulary have no effect.
pub(super) fn apply(
    logits: &mut [f32],
    params: &SamplingParams,
    history: &History<'_>,
    marks: &mut Marks,
) {
    for &(id, bias) in &params.logit_bias {
        if let Some(logit) = logits.get_mut(id.index()) {
            *logit += bias;
        }
    }
    if params.repetition_penalty != 1.0 {
        penalise_repetition(logits, params.repetition_penalty, history, &mut marks.seen);
    }
    if params.presence_penalty != 0.0 || params.frequency_penalty != 0.0 {
        penalise_output(logits, params, history.generated, &mut marks.counts);
    }
}

fn penalise_repetition(
    logits: &mut [f32],
    penalty: f32,
    history: &History<'_>,
    seen: &mut Vec<bool>,
) {
    seen.resize(logits.len(), false);
    let tokens = || history.prompt.iter().chain(history.generated).map(|id| id.index());
    for index in tokens() {
        let Some(seen) = seen.get_mut(index) else { continue };
        if !std::mem::replace(seen, true) {
            let logit = &mut logits[index];
            *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
        }
    }
    for index in tokens() {
        if let Some(seen) = seen.get_mut(index) {
            *seen = false;
        }
    }
}

fn penalise_output(
    logits: &mut [f32],
    params: &SamplingParams,
    generated: &[TokenId],
    counts: &mut Vec<u32>,
) {
    counts.resize(logits.len(), 0);
    for id in generated {
        if let Some(count) = counts.get_mut(id.index()) {
            *count += 1;
        }
    }
    for id in generated {
        // Taking the count both applies it once and leaves the marks clear.
        let count = counts.get_mut(id.index()).map_or(0, std::mem::take);
        if count > 0 {
            let logit = &mut logits[id.index()];
            *logit -= params.frequency_penalty * count as f32;
            *logit -= params.presence_penalty;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROMPT: [TokenId; 3] = [TokenId(0), TokenId(1), TokenId(1)];
    const OUTPUT: [TokenId; 4] = [TokenId(2), TokenId(3), TokenId(2), TokenId(99)];
    const LOGITS: [f32; 6] = [2.0, -2.0, 4.0, -1.0, 0.5, 0.0];

    fn edited(params: &SamplingParams) -> Vec<f32> {
        let history = History { prompt: &PROMPT, generated: &OUTPUT };
        let mut marks = Marks::default();
        let mut first = LOGITS.to_vec();
        apply(&mut first, params, &history, &mut marks);
        let mut second = LOGITS.to_vec();
        apply(&mut second, params, &history, &mut marks);
        assert_eq!(first, second, "marks left over from the first call changed the second");
        first
    }

    #[test]
    fn repetition_divides_positive_and_multiplies_negative_logits_once_per_token() {
        let params = SamplingParams { repetition_penalty: 2.0, ..SamplingParams::greedy() };
        assert_eq!(edited(&params), [1.0, -4.0, 2.0, -2.0, 0.5, 0.0]);
    }

    #[test]
    fn presence_is_taken_once_and_frequency_per_occurrence_in_the_output_only() {
        let params = SamplingParams { presence_penalty: 0.5, ..SamplingParams::greedy() };
        assert_eq!(edited(&params), [2.0, -2.0, 3.5, -1.5, 0.5, 0.0]);
        let params = SamplingParams { frequency_penalty: 0.25, ..SamplingParams::greedy() };
        assert_eq!(edited(&params), [2.0, -2.0, 3.5, -1.25, 0.5, 0.0]);
    }

    #[test]
    fn bias_comes_first_then_repetition_then_the_output_penalties() {
        let params = SamplingParams {
            logit_bias: vec![(TokenId(3), 3.0), (TokenId(5), -1.0), (TokenId(700), 5.0)],
            repetition_penalty: 2.0,
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            ..SamplingParams::greedy()
        };
        // Token 2: 4 / 2 - 2·0.25 - 0.5; token 3: (-1 + 3) / 2 - 0.25 - 0.5.
        assert_eq!(edited(&params), [1.0, -4.0, 1.0, 0.25, 0.5, -1.0]);
    }
}
