//! The tables of `forerun bench --overlap-sweep`: what each mode did, and what the model says of
//! it.

use super::passes::{Logits, ModelSizes, PassSizes};
use super::timeline::Timeline;
use super::{GPUS, Gpu, Mode, Prediction, Round, assumptions};
use crate::ids::Role;
use std::fmt::Write as _;

/// What one mode did.
#[derive(Debug, Clone, PartialEq)]
pub struct ModeRun {
    /// As the flags name it.
    pub mode: String,
    /// SMs by [`Role::index`], where each model has its own.
    pub sms: Option<[u32; 2]>,
    /// Turns of the engine.
    pub steps: u64,
    /// The passes.
    pub timeline: Timeline,
    /// Tokens of the reply.
    pub tokens: u64,
    /// From submission to the end of the reply; nothing where a time would say nothing.
    pub ms: Option<f64>,
}

/// What each mode did, as a table.
#[must_use]
pub fn runs(runs: &[ModeRun]) -> String {
    let mut text = String::from(
        "| overlap | SMs draft + base | engine steps | draft passes | base passes | draft's \
         beside the base's | base's beside the draft's | tokens | ms | tokens/s |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for run in runs {
        let sms = run.sms.map_or("all".to_owned(), |[draft, base]| format!("{draft} + {base}"));
        let [draft, base] = Role::ALL.map(|role| run.timeline.passes(role));
        let [draft_beside, base_beside] = Role::ALL.map(|role| run.timeline.overlapped(role));
        let time = run.ms.map_or("| | |".to_owned(), |ms| {
            format!("| {ms:.1} | {:.1} |", run.tokens as f64 * 1e3 / ms.max(1e-9))
        });
        let _ = writeln!(
            text,
            "| {} | {sms} | {} | {draft} | {base} | {draft_beside} | {base_beside} | {} {time}",
            run.mode, run.steps, run.tokens
        );
    }
    text
}

/// The sizes of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepSizes {
    /// Tokens of a step.
    pub tokens: usize,
    /// Rows the base reads to score one.
    pub score_rows: usize,
    /// Labels of a score.
    pub labels: usize,
    /// Keys in both pools before it.
    pub before: usize,
}

impl StepSizes {
    /// The draft writes a step while the base scores one, and while it rewrites one.
    #[must_use]
    pub fn rounds(&self, draft: &ModelSizes, base: &ModelSizes) -> [Round; 2] {
        let written = |model: &ModelSizes| {
            let tokens = self.before..self.before + self.tokens;
            tokens.flat_map(|before| model.pass(PassSizes::decode(before))).collect::<Vec<_>>()
        };
        let score = PassSizes {
            rows: self.score_rows,
            before: self.before,
            logits: Logits::Labels(self.labels),
        };
        let draft = written(draft);
        [
            Round { draft: draft.clone(), base: base.pass(score) },
            Round { draft, base: written(base) },
        ]
    }
}

/// The modes of a sweep on a GPU: off, two streams, and every different split of `draft_pcts`.
fn modes(gpu: &Gpu, draft_pcts: &[u32]) -> Vec<(String, Mode)> {
    let mut modes = vec![("off".to_owned(), Mode::Off), ("stream".to_owned(), Mode::Stream)];
    for draft in draft_pcts.iter().map(|pct| gpu.split(*pct)) {
        let split = Mode::Split(draft);
        if modes.iter().all(|mode| mode.1 != split) {
            modes.push((format!("green-ctx {draft} + {}", gpu.sms - draft), split));
        }
    }
    modes
}

/// What the model says of the rounds of `step`, one with a score and one with a rewrite, in every
/// mode on every GPU, with what each model takes alone above it: a table that says why a split
/// helps or not.
#[must_use]
pub fn predictions(rounds: &[Round; 2], step: StepSizes, draft_pcts: &[u32]) -> String {
    let mut text = format!(
        "A round, by a model: the draft writes {} tokens while the base scores {} rows, or \
         rewrites {} tokens; {} keys before them. {}\n\n\
         | GPU | overlap | score: ms | of off | bound by | rewrite: ms | of off | bound by |\n\
         |---|---|---:|---:|---|---:|---:|---|\n",
        step.tokens,
        step.score_rows,
        step.tokens,
        step.before,
        assumptions()
    );
    let bound = |p: &Prediction| {
        let bound = p.bound().map(|(b, share)| format!("{} {:.0} %", b.name(), 100.0 * share));
        bound.unwrap_or_default()
    };
    for gpu in &GPUS {
        let off = rounds.each_ref().map(|round| round.predict(gpu, Mode::Off).us);
        let mut line = |name: &str, predicted: [Prediction; 2]| {
            let cells = predicted.iter().zip(off).map(|(p, off)| {
                format!("{:.3} | {:.0} % | {}", p.us / 1e3, 100.0 * p.us / off, bound(p))
            });
            let cells: Vec<_> = cells.collect();
            let _ = writeln!(text, "| {} | {name} | {} |", gpu.name, cells.join(" | "));
        };
        let alone = |role: Role| {
            rounds.each_ref().map(|round| {
                let mut round = round.clone();
                match role {
                    Role::Draft => round.base.clear(),
                    Role::Base => round.draft.clear(),
                }
                round.predict(gpu, Mode::Off)
            })
        };
        line("draft alone", alone(Role::Draft));
        line("base alone", alone(Role::Base));
        for (name, mode) in modes(gpu, draft_pcts) {
            line(&name, rounds.each_ref().map(|round| round.predict(gpu, mode)));
        }
    }
    text
}
