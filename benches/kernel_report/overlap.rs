//! Two models on one GPU: what the counts mean to the model of `forerun::bench::overlap`.

use crate::counts::{Launch, Region};
use crate::measure::{CONTEXT, LABELS, Measured, Op, Pass, SCORED_ROWS};
use crate::report::Model;
use crate::shapes::{CODER_0_5B, CODER_1_5B, Fixture, Part, QWQ_32B, R1_1_5B};
use forerun::bench::overlap::table::{StepSizes, predictions};
use forerun::bench::overlap::{Kernel, Round};

/// Base and draft of pairs people run.
const PAIRS: [[Fixture; 2]; 2] = [[QWQ_32B, R1_1_5B], [CODER_1_5B, CODER_0_5B]];
/// Percents of the SMs for the draft.
const DRAFT_PCTS: [u32; 4] = [12, 25, 50, 75];
/// Operations of an `mma.m16n8k16`.
const MMA_FLOP: f64 = 2.0 * 16.0 * 8.0 * 16.0;

fn kernel(measured: &Measured, launch: &Launch) -> Kernel {
    let distinct = match measured.op {
        Op::Attention => measured.kv_bytes.min(launch.bytes(Region::Kv)),
        _ => measured.weight_bytes.min(launch.bytes(Region::Weights)),
    };
    Kernel {
        ctas: launch.ctas() as usize,
        bytes: distinct as f64,
        flop: launch.mmas as f64 * MMA_FLOP,
    }
}

/// The launches of a whole pass; none where it was not measured.
fn pass(model: &Model, pass: Pass) -> Option<Vec<Kernel>> {
    let all = |measured: &Measured| -> Vec<Kernel> {
        measured.launches.iter().map(|launch| kernel(measured, launch)).collect()
    };
    let mut kernels = all(model.of(Part::Layer, pass, Op::Embed)?);
    for (part, count) in model.layers() {
        let layer: Vec<Kernel> = model.layer(part, pass).into_iter().flat_map(all).collect();
        if layer.is_empty() {
            return None;
        }
        kernels.extend(std::iter::repeat_n(layer, count).flatten());
    }
    kernels.extend(all(model.of(Part::Head, pass, Op::Head)?));
    Some(kernels)
}

/// Rounds of every pair of which both were measured, in every overlap mode.
pub(crate) fn table(models: &[Model]) -> String {
    let mut text = String::new();
    let [tokens, suffix] = SCORED_ROWS;
    let step = StepSizes { tokens, score_rows: tokens + suffix, labels: LABELS, before: CONTEXT };
    for [of_base, of_draft] in PAIRS {
        for base in models.iter().filter(|m| m.fixture == of_base) {
            let draft = models.iter().find(|m| m.fixture == of_draft && m.mix == base.mix);
            let draft = draft.and_then(|draft| pass(draft, Pass::Decode));
            let base_passes = pass(base, Pass::Decode).zip(pass(base, Pass::Score));
            let Some((token, (rewritten, score))) = draft.zip(base_passes) else { continue };
            let written = token.repeat(tokens);
            let rounds = [
                Round { draft: written.clone(), base: score },
                Round { draft: written, base: rewritten.repeat(tokens) },
            ];
            text += &format!(
                "### {} beside {}, {} (model)\n\n{}\n",
                of_base.name,
                of_draft.name,
                base.mix.name(),
                predictions(&rounds, step, &DRAFT_PCTS)
            );
        }
    }
    text
}
