//! What a trace is told of the engine: passes, what they did for each request, decisions, pages.

use super::live::Live;
use super::request::Event;
use super::slot::Slot;
use super::window::Draws;
use crate::device::Results;
use crate::ids::{RequestId, Role};
use crate::kv::Pool;
use crate::policy::Note;
use crate::telemetry::{Phase, Trace, Track};
use serde_json::{Value, json};
use std::time::Instant;

/// A decision or an end, at the moment it is told of.
pub(super) fn event(trace: &Trace, request: RequestId, event: &Event) {
    let (role, name, args) = match event {
        Event::Started(settings) => {
            (Role::Base, "started", json!({ "policy": settings.policy.name() }))
        }
        Event::RolledBack { to } => (Role::Base, "rollback", json!({ "to": to })),
        Event::Note(Note::StepBegan { index, writer }) => {
            (*writer, "step began", json!({ "step": index }))
        }
        Event::Note(Note::StepGated { index, entropy }) => {
            (Role::Draft, "gate", json!({ "step": index, "entropy": entropy }))
        }
        Event::Note(Note::StepScored { index, score, accepted, drafted, ahead, .. }) => (
            Role::Base,
            if *accepted { "accept" } else { "reject" },
            json!({ "step": index, "score": score, "drafted": drafted, "ahead": ahead }),
        ),
        Event::Note(Note::StepKept { index, start, end, writer }) => {
            (*writer, "step kept", json!({ "step": index, "start": start, "end": end }))
        }
        Event::Note(Note::AnswerBegan { at, writer, .. }) => {
            (*writer, "answer began", json!({ "at": at }))
        }
        Event::Finished(reply) => (
            Role::Base,
            "finished",
            json!({ "tokens": reply.tokens, "accepted": reply.accepted,
                "rewritten": reply.rewritten }),
        ),
        Event::Failed(error) => (Role::Base, "failed", json!({ "error": error.to_string() })),
        Event::Tokens { .. } | Event::Logprobs { .. } => return,
    };
    trace.instant(Track::Request(request, role), name, args);
}

/// A chain of passes, on the track of its model.
pub(super) fn passes(trace: &Trace, role: Role, slots: &[Vec<Slot>], rows: usize, began: Instant) {
    let requests: Vec<u64> = slots.iter().flatten().map(|s| s.request.0).collect();
    let mut phases: Vec<Phase> =
        slots.iter().flatten().flat_map(Slot::shares).filter(|s| s.1 > 0).map(|s| s.0).collect();
    phases.sort_unstable();
    phases.dedup();
    let name = phases.iter().map(|p| p.name()).collect::<Vec<_>>().join(", ");
    let args = json!({ "rows": rows, "passes": slots.len(), "requests": requests });
    trace.span(Track::Model(role), &name, began, args);
}

/// What one pass did for a request, before the request hears of it.
pub(super) fn slot(
    trace: &Trace,
    role: Role,
    slot: &Slot,
    results: &Results,
    live: &Live,
    began: Instant,
) {
    let window = live.branches.get(&slot.branch).map(|b| b.window.ids()).unwrap_or_default();
    let drawn: Option<Vec<u32>> = Draws::of(slot.read, results)
        .map(|draws| (0..draws.len()).map(|i| draws.get(i).0.0).collect());
    let verifies = role == Role::Base && drawn.as_ref().is_some_and(|drawn| drawn.len() > 1);
    let name = match (verifies, slot.is_proposal(live, role)) {
        (true, _) if live.report.salvaging => "salvage",
        (true, _) => "verify",
        (_, true) => "propose",
        _ => slot.shares().iter().rev().find(|s| s.1 > 0).map_or("prompt", |s| s.0.name()),
    };
    let mut args = json!({ "rows": slot.rows, "branch": slot.branch.0 });
    if let Some(drawn) = drawn {
        args["drawn"] = drawn.into();
    }
    if verifies {
        args["proposed"] = window.iter().map(|id| id.0).collect::<Vec<_>>().into();
    }
    let scores = slot.labels(results);
    if !scores.is_empty() {
        args["scores"] = json!(scores);
    }
    if let Some(places) = slot.places(live, role) {
        args["places"] = places.into();
    }
    trace.span(Track::Request(live.id, role), name, began, args);
}

/// Pages by who holds them.
pub(super) fn pages(trace: &Trace, pool: &Pool) {
    let pages: Value = json!({
        "draft": pool.pages_in_use(Role::Draft),
        "base": pool.pages_in_use(Role::Base),
        "free": pool.free_pages(),
        "evictable": pool.evictable_pages(),
    });
    trace.pages(pages);
}
