//! What the results of a pass mean: tokens of tails, outcomes of commands.
//!
//! The way back from [`super::assemble`]. A drawn token is appended and looked at for everything
//! that may end its decode; a task that is complete becomes an outcome for the policy. Read next:
//! [`super::runner`].

use super::live::{DecodeTask, Live, Task, Vocabulary};
use super::request::TokenLogprob;
use super::slot::{Read, Slot};
use super::window::{self, Draws, WindowState};
use crate::device::{HeadResult, Results};
use crate::error::RequestError;
use crate::ids::{BranchId, Role, TokenId};
use crate::kv::Pool;
use crate::policy::command::TokenStats;
use crate::policy::{Outcome, StopCause};
use crate::sample::Sampled;

/// What the host made of rows of logits, for one slot.
#[derive(Default)]
pub(super) struct Looked {
    /// Row by row, as the slot wanted.
    pub(super) alternatives: Vec<Vec<(TokenId, f32)>>,
    /// A token under a grammar.
    pub(super) drawn: Option<Sampled>,
}

/// What a slot's results mean for its request: an outcome when its task is complete. What a scoring
/// has to tell comes one by one, see [`super::score::told`].
pub(super) fn read(
    slot: &Slot,
    role: Role,
    live: &mut Live,
    pool: &mut Pool,
    vocabulary: &Vocabulary,
    results: &Results,
    looked: Looked,
) -> Result<Option<Outcome>, RequestError> {
    let branch = slot.branch;
    let mut alternatives = looked.alternatives.into_iter();
    let told = results.heads[slot.told.0.clone()].iter().map(|head| match head {
        HeadResult::LogProb(logprob) => TokenLogprob {
            logprob: *logprob,
            alternatives: alternatives.next().unwrap_or_default(),
        },
        other => unreachable!("a log-probability head returned {other:?}"),
    });
    let told: Vec<_> = told.collect();
    live.tell(slot.told.1, told);
    let tail = live.branches.get_mut(&branch).expect("live branch");
    let task = tail.tasks[role.index()].as_mut().expect("an active task");
    match (task, &slot.read) {
        (Task::Decode(_), Read::Constrained(_)) => {
            let sampled = &looked.drawn.expect("the host has drawn");
            let told = Some((sampled, alternatives.next().unwrap_or_default()));
            drawn(live, pool, (role, branch), sampled.id, told, vocabulary)
        }
        (task @ (Task::Decode(_) | Task::Propose(_)), read) => {
            let proposes = matches!(task, Task::Propose(_));
            let Some(draws) = Draws::of(*read, results) else { return Ok(None) };
            if draws.len() > 1 {
                return window::verified(live, pool, branch, &draws, vocabulary);
            }
            let (id, sampled) = draws.get(0);
            let alternatives = alternatives.next().unwrap_or_default();
            if proposes {
                window::proposed(live, branch, id, &alternatives, vocabulary);
                return Ok(None);
            }
            let told = sampled.map(|sampled| (sampled, alternatives));
            drawn(live, pool, (role, branch), id, told, vocabulary)
        }
        (Task::Score(task), _) => {
            task.read(slot, results);
            Ok(None)
        }
        (Task::Span { range, logprobs }, _) => {
            let heads = results.heads[slot.logprobs.clone()].iter();
            logprobs.extend(heads.map(|head| match head {
                HeadResult::LogProb(p) => *p,
                other => unreachable!("a log-probability head returned {other:?}"),
            }));
            if logprobs.len() < range.len() {
                return Ok(None);
            }
            let logprobs = std::mem::take(logprobs);
            tail.tasks[role.index()] = None;
            Ok(Some(Outcome::Spanned { branch, role, logprobs }))
        }
    }
}

/// Appends a drawn token and says whether the decode ends with it.
pub(super) fn drawn(
    live: &mut Live,
    pool: &mut Pool,
    at: (Role, BranchId),
    own_id: TokenId,
    sampled: Option<(&Sampled, Vec<(TokenId, f32)>)>,
    vocabulary: &Vocabulary,
) -> Result<Option<Outcome>, RequestError> {
    let (role, branch) = at;
    let id = vocabulary.read_from(role, own_id)?;
    let tells = match live.branches[&branch].tasks[role.index()].as_ref() {
        Some(Task::Decode(task)) => task.decode.want.logprob,
        _ => false,
    };
    let (sampled, alternatives) = sampled.map_or((None, vec![]), |(s, a)| (Some(s), a));
    let logprob = sampled.filter(|_| tells).map(|s| s.logprob);
    let logprobs = logprob.map(|logprob| TokenLogprob { logprob, alternatives });
    live.append(branch, &[id], role.into(), logprobs.into_iter().collect(), vocabulary);
    let tail_max = live.tail_max;
    let tail = live.branches.get_mut(&branch).expect("live branch");
    let len = tail.ids.len();
    let Some(Task::Decode(task)) = tail.tasks[role.index()].as_mut() else {
        unreachable!("only a decode draws")
    };
    let want = task.decode.want;
    if let (true, Some(s)) = (want.any(), sampled) {
        task.stats.push(TokenStats {
            entropy: want.entropy.then_some(s.entropy_nats),
            top1: want.top1.then_some(s.top1_prob),
            logprob: want.logprob.then_some(s.logprob),
        });
    }
    let cause = stop_cause(task, id, sampled, len, vocabulary)
        .or_else(|| (len >= tail_max).then_some(StopCause::Context));
    let Some(stop) = cause else {
        task.window = WindowState::Open;
        // Two ids of a model may be one id of the tail. What the model sees is the tail's.
        if vocabulary.to_model(role, id)? != own_id {
            live.forget_ahead(pool, at, 1);
        }
        return Ok(None);
    };
    let range = task.start..len as u32;
    let stats = std::mem::take(&mut task.stats);
    tail.tasks[role.index()] = None;
    live.forget_ahead(pool, at, 0);
    Ok(Some(Outcome::Decoded { branch, role, range, stop, stats }))
}

fn stop_cause(
    task: &mut DecodeTask,
    id: TokenId,
    sampled: Option<&Sampled>,
    len: usize,
    vocabulary: &Vocabulary,
) -> Option<StopCause> {
    let until = &task.decode.until;
    let count = len as u32 - task.start;
    let entropy = sampled.map(|s| s.entropy_nats);
    let exceeds = |bound: Option<f32>| bound.zip(entropy).is_some_and(|(bound, h)| h > bound);
    if count == 1 && exceeds(until.first_entropy_above) {
        return Some(StopCause::Entropy);
    }
    if until.ids.contains(&id) {
        return Some(StopCause::Id(id));
    }
    let bytes = vocabulary.tokenizer.token_bytes(id);
    let hit = task.matcher.push(bytes).filter(|h| h.string > 0 || count >= until.first_string_from);
    if let Some(hit) = hit {
        return Some(StopCause::String(hit.string));
    }
    if task.sentence.push(bytes).is_some() && until.sentence_end {
        return Some(StopCause::SentenceEnd);
    }
    let below = until.entropy_below.zip(entropy).is_some_and(|(bound, h)| h < bound);
    if exceeds(until.entropy_above) || below {
        return Some(StopCause::Entropy);
    }
    (count >= until.limit).then_some(StopCause::Limit)
}
