//! From a finished request to its reply.

use super::live::{Live, Vocabulary};
use super::request::{Reply, TokenCounts};
use crate::ids::BranchId;
use crate::policy::{FinishWhy, Origin};
use crate::telemetry::Phase;
use crate::text;

/// Writes the reply of a request whose tail is still in place.
pub(super) fn write(live: &Live, finish: FinishWhy, vocabulary: &Vocabulary) -> Reply {
    let root = &live.branches[&BranchId::ROOT];
    let count = |origin| root.origins.iter().filter(|o| **o == origin).count() as u32;
    let tokens = TokenCounts {
        prompt_draft: live.prompts[0].len() as u32,
        prompt_base: live.prompts[1].len() as u32,
        cached_draft: live.report.cached[0].unwrap_or(0),
        cached_base: live.report.cached[1].unwrap_or(0),
        draft: count(Origin::Draft),
        base: count(Origin::Base),
        injected: count(Origin::Injected),
        wasted: live.report.wasted,
        proposed: live.report.proposed,
        matched: live.report.matched,
        salvaged: live.report.salvaged,
    };
    let mut shown = root.ids.as_slice();
    if let [head @ .., last] = shown
        && finish == FinishWhy::Stop
        && vocabulary.tokenizer.is_special(*last)
    {
        shown = head;
    }
    let all = vocabulary.tokenizer.decode(shown);
    let final_text = match live.report.answer_at {
        Some(at) => vocabulary.tokenizer.decode(&shown[(at as usize).min(shown.len())..]),
        None => all.clone(),
    };
    // The answer phase speaks last; a thinking that was cut short may still hold an answer.
    let answer = text::extract(&final_text).or_else(|| text::extract(&all));
    let total_ms = live.submitted.elapsed().as_secs_f64() * 1e3;
    let mut cost = live.report.cost;
    let on_device: f64 = cost.iter().map(|c| c.ms).sum();
    cost[Phase::Host as usize].ms = (total_ms - on_device).max(0.0);
    Reply {
        id: live.id,
        text: all,
        final_text: final_text.trim().to_owned(),
        answer,
        finish,
        steps: live.report.steps.clone(),
        accepted: live.report.accepted,
        rewritten: live.report.rewritten,
        gated: live.report.gated,
        ids: root.ids.clone(),
        tokens,
        cost,
        total_ms,
        settings: live.settings.clone(),
    }
}
