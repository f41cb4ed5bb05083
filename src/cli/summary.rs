//! What a finished reply comes to: the table under a transcript, and the object of `--json`.

use super::ui::{Ink, Paint, duration};
use crate::engine::Reply;
use crate::policy::PolicyKind;
use crate::telemetry::Phase;
use anyhow::Result;
use serde_json::{Map, Value, json};

/// The table: what was decided, where tokens and time went, and what the base alone would have
/// taken.
pub(super) fn table(reply: &Reply, paint: Paint) -> String {
    let settings = &reply.settings;
    let mut rows: Vec<(&str, String)> = vec![];
    rows.push(("answer", reply.answer.clone().unwrap_or_else(|| "none found".into())));
    rows.push(("finish", reply_finish(reply)));
    rows.push(("steps", steps(reply)));
    let tokens = &reply.tokens;
    rows.push((
        "tokens",
        format!(
            "{} by the draft, {} by the base, {} injected, {} wasted",
            tokens.draft, tokens.base, tokens.injected, tokens.wasted
        ),
    ));
    if tokens.proposed + tokens.salvaged > 0 {
        let salvaged = match tokens.salvaged {
            0 => String::new(),
            n => format!(", {n} of rejected steps written again at once"),
        };
        let (proposed, matched) = (tokens.proposed, tokens.matched);
        rows.push(("proposed", format!("{proposed} tokens, {matched} agreed{salvaged}")));
    }
    let phases = Phase::ALL.iter().filter(|p| reply.phase(**p).ms > 0.0);
    let phases: Vec<_> =
        phases.map(|p| format!("{} {}", p.name(), duration(reply.phase(*p).ms))).collect();
    rows.push(("time", format!("{}: {}", duration(reply.total_ms), phases.join(", "))));
    rows.push(("speed", format!("{:.1} tokens a second", tokens_per_second(reply))));
    if settings.policy != PolicyKind::Base {
        rows.push(("base only", base_only(reply)));
    }
    if let Some(asked) = settings.token_budget_asked {
        rows.push((
            "budget",
            format!(
                "{} thinking tokens instead of {asked}: the context of {} has no more room",
                settings.token_budget, settings.max_model_len
            ),
        ));
    }
    let mut out = String::from("\n");
    for (head, value) in rows {
        let head = paint.paint(Ink::Strong, &format!("{head:<10}"));
        out.push_str(&format!("{head} {value}\n"));
    }
    out
}

fn reply_finish(reply: &Reply) -> String {
    serde_json::to_value(reply.finish)
        .ok()
        .and_then(|v| v.as_str().map(str::to_owned))
        .unwrap_or_default()
}

fn steps(reply: &Reply) -> String {
    let kept = reply.steps.len();
    let drafted = reply.steps.iter().filter(|s| s.drafted > 0).count();
    match reply.acceptance() {
        Some(share) => format!(
            "{kept}: {drafted} drafted, {} accepted ({:.0} %), {} rewritten",
            reply.accepted,
            100.0 * share,
            reply.rewritten
        ),
        None => format!("{kept}: {drafted} drafted, none scored"),
    }
}

/// Kept tokens that a model wrote, over the whole time.
fn tokens_per_second(reply: &Reply) -> f64 {
    let kept = f64::from(reply.tokens.draft + reply.tokens.base);
    if reply.total_ms > 0.0 { kept * 1e3 / reply.total_ms } else { 0.0 }
}

fn base_only(reply: &Reply) -> String {
    match reply.base_only_ms_estimate() {
        Some(ms) => format!(
            "{} estimated, from how fast the base wrote here: {:.2} times as long",
            duration(ms),
            ms / reply.total_ms.max(1e-3)
        ),
        None if reply.tokens.base > 0 => {
            "cannot be estimated: the base wrote several tokens a pass; compare --policy base"
                .into()
        }
        None => "cannot be estimated: the base wrote nothing in this run".into(),
    }
}

/// The object of `--json`: the reply, and milliseconds by phase.
///
/// # Errors
/// Never in practice: a reply has only string keys.
pub(super) fn json(reply: &Reply) -> Result<Value> {
    let mut ms = Map::new();
    for phase in Phase::ALL {
        ms.insert(phase.name().to_owned(), json!(reply.phase(phase).ms));
    }
    ms.insert("total".into(), json!(reply.total_ms));
    ms.insert("base_only_estimate".into(), json!(reply.base_only_ms_estimate()));
    let mut object = serde_json::to_value(reply)?;
    object["tokens_per_second"] = json!(tokens_per_second(reply));
    object["ms"] = Value::Object(ms);
    Ok(object)
}
