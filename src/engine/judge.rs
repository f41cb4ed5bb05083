//! The judge's words: what the base reads before it writes a digit.
//!
//! Two layouts for a score. `turn` adds a user turn after the steps, as in the paper (§4.1).
//! `prefix` puts the rubric into the base's prompt, where it is cached, so that the suffix scored
//! each time is a dozen tokens. A third, `compare`, quotes a drafted step after the base's own, for
//! the policy `lookahead`. The texts are files users can replace; one of each is built in.

use crate::error::TextError;
use crate::ids::TokenId;
use crate::text::{ChatTemplate, Message, Tokenizer};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A judge file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "layout", rename_all = "lowercase", deny_unknown_fields)]
pub enum JudgeText {
    /// A judge turn after the steps.
    Turn {
        /// What the user turn asks for.
        instruction: String,
        /// How the base's reply begins; the next token is the digit.
        prefill: String,
    },
    /// The rubric in the prompt, a short suffix after each step.
    Prefix {
        /// Appended to the base's prompt.
        rubric: String,
        /// What follows a step; the next token is the digit.
        suffix: String,
    },
    /// A judge turn after the base's own step, which quotes the draft's.
    Compare {
        /// What the user turn asks for; the drafted step takes the place of `{step}`.
        instruction: String,
        /// How the base's reply begins; the next token is the digit.
        prefill: String,
    },
}

/// Where a drafted step is quoted.
const STEP: &str = "{step}";

impl JudgeText {
    /// The built-in judge of a layout: `turn`, `prefix` or `compare`.
    #[must_use]
    pub fn built_in(name: &str) -> Option<Self> {
        let json = match name {
            "turn" => include_str!("../assets/judge/turn.json"),
            "prefix" => include_str!("../assets/judge/prefix.json"),
            "compare" => include_str!("../assets/judge/compare.json"),
            _ => return None,
        };
        Some(Self::parse(json).expect("the built-in judges parse"))
    }

    /// Reads a judge file.
    ///
    /// # Errors
    /// When it is none of the layouts.
    pub fn parse(json: &str) -> Result<Self, TextError> {
        serde_json::from_str(json).map_err(|e| TextError::Judge(e.to_string()))
    }

    /// The layout's name.
    #[must_use]
    pub fn layout(&self) -> &'static str {
        match self {
            Self::Turn { .. } => "turn",
            Self::Prefix { .. } => "prefix",
            Self::Compare { .. } => "compare",
        }
    }

    /// What the base's prompt carries for this judge.
    #[must_use]
    pub fn rubric(&self) -> Option<&str> {
        match self {
            Self::Turn { .. } | Self::Compare { .. } => None,
            Self::Prefix { rubric, .. } => Some(rubric),
        }
    }
}

/// A judge as token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct JudgeIds {
    pub(super) suffix: Arc<[TokenId]>,
    pub(super) after_open_step: Arc<[TokenId]>,
    pub(super) after_turn: Arc<[TokenId]>,
    pub(super) labels: Arc<[TokenId]>,
}

/// A comparison as token ids: the drafted step stands between the two parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CompareIds {
    pub(super) before: Vec<TokenId>,
    pub(super) after: Vec<TokenId>,
    pub(super) labels: Arc<[TokenId]>,
}

/// What a judge is tokenised against.
pub(super) struct JudgeContext<'a> {
    pub(super) tokenizer: &'a Tokenizer,
    pub(super) template: &'a ChatTemplate,
    pub(super) end_of_turn: &'a [TokenId],
    /// Opens the judge's own reply where the pair thinks in tags.
    pub(super) think: &'a str,
    pub(super) delimiter: &'a str,
}

/// Tokenises a judge and checks that each of the ten digits is one token after it.
///
/// # Errors
/// [`TextError::Judge`] naming the first digit that is not.
pub(super) fn tokenize(text: &JudgeText, c: &JudgeContext<'_>) -> Result<JudgeIds, TextError> {
    let suffix_text = match text {
        JudgeText::Turn { instruction, prefill } => turn(instruction, prefill, c)?,
        JudgeText::Prefix { suffix, .. } => suffix.clone(),
        JudgeText::Compare { .. } => {
            let reason = "a judge of layout compare reads two versions of a step: it is for \
                --policy lookahead; scoring takes turn or prefix";
            return Err(TextError::Judge(reason.into()));
        }
    };
    let suffix = c.tokenizer.encode(&suffix_text)?;
    if suffix.is_empty() {
        return Err(TextError::Judge("the text after a step is empty".into()));
    }
    let labels = labels(c.tokenizer, &suffix_text, &suffix)?;
    let after_turn = match suffix.split_first() {
        Some((first, rest)) if c.end_of_turn.contains(first) && !rest.is_empty() => rest.into(),
        _ => suffix.clone().into(),
    };
    Ok(JudgeIds {
        after_open_step: c.tokenizer.encode(&format!("{}{suffix_text}", c.delimiter))?.into(),
        after_turn,
        suffix: suffix.into(),
        labels,
    })
}

/// Tokenises a comparison and checks that each of the ten digits is one token after it.
///
/// # Errors
/// [`TextError::Judge`] naming the first digit that is not, or what the text lacks.
pub(super) fn tokenize_comparison(
    text: &JudgeText,
    c: &JudgeContext<'_>,
) -> Result<CompareIds, TextError> {
    let JudgeText::Compare { instruction, prefill } = text else {
        return Err(TextError::Judge(format!(
            "--policy lookahead compares two versions of a step and takes a judge of layout \
             compare, not {}",
            text.layout()
        )));
    };
    let text = turn(instruction, prefill, c)?;
    let parts: Vec<&str> = text.split(STEP).collect();
    let [before, after] = parts.as_slice() else {
        let (n, expected) = (parts.len() - 1, "where the drafted step is quoted");
        return Err(TextError::Judge(format!(
            "expected {STEP} once in a judge of layout compare, {expected}, found it {n} times"
        )));
    };
    let (before, after_ids) = (c.tokenizer.encode(before)?, c.tokenizer.encode(after)?);
    let labels = labels(c.tokenizer, after, &after_ids)?;
    Ok(CompareIds { before, after: after_ids, labels })
}

/// A user turn after the steps, and how the base's reply begins.
fn turn(instruction: &str, prefill: &str, c: &JudgeContext<'_>) -> Result<String, TextError> {
    let prefill = format!("{}{prefill}", c.think);
    let messages = [
        Message::new("user", "…"),
        Message::new("assistant", "…"),
        Message::new("user", instruction),
    ];
    c.template.suffix_after(&messages, &prefill)
}

/// The ten digits after a text.
fn labels(tokenizer: &Tokenizer, text: &str, ids: &[TokenId]) -> Result<Arc<[TokenId]>, TextError> {
    ('0'..='9').map(|digit| label(tokenizer, text, ids, digit)).collect()
}

fn label(
    tokenizer: &Tokenizer,
    text: &str,
    suffix: &[TokenId],
    digit: char,
) -> Result<TokenId, TextError> {
    let with = tokenizer.encode(&format!("{text}{digit}"))?;
    match with.split_last() {
        Some((id, head)) if head == suffix => Ok(*id),
        _ => {
            let tail = text.chars().rev().take(12).collect::<Vec<_>>();
            let tail: String = tail.into_iter().rev().collect();
            Err(TextError::Judge(format!(
                "label {digit:?} is not one token of its own after {tail:?}: {} tokens without it, \
                 {} with it; end the text so that a digit stands alone",
                suffix.len(),
                with.len()
            )))
        }
    }
}
