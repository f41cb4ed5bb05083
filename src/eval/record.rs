//! What is remembered of one problem under one policy.

use super::drive::Variant;
use super::fingerprint;
use super::problem::Problem;
use crate::engine::Reply;
use crate::policy::{FinishWhy, PolicyKind};
use crate::telemetry::Phase;
use crate::text;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// One line of a state file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The problem.
    pub id: String,
    /// The row's name, where the user gave it one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row: Option<String>,
    /// Who did what.
    pub policy: PolicyKind,
    /// Accept from this score on; only where steps are judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f32>,
    /// Whether the answer is the reference answer.
    pub correct: bool,
    /// The answer found, if any.
    pub answer: Option<String>,
    /// Why the reply ended.
    pub finish: FinishWhy,
    /// Tokens the models wrote and the reply kept.
    pub tokens: u32,
    /// Of these, the draft's.
    pub draft_tokens: u32,
    /// Tokens the draft wrote in vain.
    pub wasted: u32,
    /// Tokens proposed to the base one by one.
    #[serde(default)]
    pub proposed: u32,
    /// Of these, what the base drew too.
    #[serde(default)]
    pub matched: u32,
    /// Tokens of rejected steps the base wrote again.
    #[serde(default)]
    pub salvaged: u32,
    /// Scores of drafted steps, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scores: Vec<f32>,
    /// Steps scored and accepted.
    pub accepted: u32,
    /// Steps scored and rewritten.
    pub rewritten: u32,
    /// Milliseconds by phase.
    pub ms: BTreeMap<String, f64>,
    /// Milliseconds from submission to end.
    pub total_ms: f64,
    /// Other requests ran at the same time: the times are no latencies.
    pub concurrent: bool,
    /// Seed of this request.
    pub seed: u64,
    /// A short name of the reply's tokens: equal where they are. Empty in older files.
    #[serde(default)]
    pub reply: String,
    /// Which question and reference answer this was: [`Problem::fingerprint`].
    pub problem: String,
    /// What the reply depends on besides.
    pub settings: Map<String, Value>,
}

impl Record {
    /// What is to be remembered of a reply.
    #[must_use]
    pub fn new(problem: &Problem, variant: &Variant, reply: &Reply, concurrent: bool) -> Self {
        let tokens = &reply.tokens;
        let correct = reply.answer.as_deref().is_some_and(|a| text::equal(a, &problem.answer));
        Self {
            id: problem.id.clone(),
            row: variant.name.clone(),
            policy: variant.policy,
            threshold: variant.threshold(),
            correct,
            answer: reply.answer.clone(),
            finish: reply.finish,
            tokens: tokens.draft + tokens.base,
            draft_tokens: tokens.draft,
            wasted: tokens.wasted,
            proposed: tokens.proposed,
            matched: tokens.matched,
            salvaged: tokens.salvaged,
            scores: reply.steps.iter().filter_map(|step| step.score).collect(),
            accepted: reply.accepted,
            rewritten: reply.rewritten,
            ms: Phase::ALL.iter().map(|p| (p.name().to_owned(), reply.phase(*p).ms)).collect(),
            total_ms: reply.total_ms,
            concurrent,
            seed: reply.settings.seed,
            reply: fingerprint(reply.ids.iter().map(|id| id.0.to_le_bytes())),
            problem: problem.fingerprint(),
            settings: variant.settings.clone(),
        }
    }

    /// The row it counts for.
    #[must_use]
    pub fn key(&self) -> String {
        key(self.row.as_deref(), self.policy, self.threshold)
    }
}

/// The name of a row: its own, else the policy, and its threshold where it has one.
#[must_use]
pub fn key(name: Option<&str>, policy: PolicyKind, threshold: Option<f32>) -> String {
    match (name, threshold) {
        (Some(name), _) => name.to_owned(),
        (None, Some(threshold)) => format!("{policy}@{threshold}"),
        (None, None) => policy.to_string(),
    }
}
