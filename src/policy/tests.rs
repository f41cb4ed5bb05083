//! Drives the policies with scripted models: a model is a hash of its tail, so two runs that keep
//! the same tail see the same tokens, and hostile outcomes are one seed away.

use super::command::TokenStats;
use super::steps::*;
use super::*;
use crate::sample::{Readout, SamplingParams};
use proptest::prelude::*;
use std::sync::Arc;

pub(super) const END_OF_TURN: TokenId = TokenId(0);
pub(super) const CLOSE: TokenId = TokenId(1);
pub(super) const DELIMITER: TokenId = TokenId(2);

pub(super) struct Script {
    seed: u64,
    /// Tail ids and who wrote them.
    pub(super) tail: Vec<(TokenId, Origin)>,
    ids: Vec<TokenId>,
    context: usize,
    /// Places of each scoring.
    scored: Vec<usize>,
}

impl Tails for Script {
    fn ids(&self, _: BranchId) -> &[TokenId] {
        &self.ids
    }
}

pub(super) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// What a model writes: one of twelve tokens, the ends of turns and thoughts less often.
pub(super) fn token(hash: u64) -> TokenId {
    let id = hash % 12;
    TokenId(if id < 2 && !(hash >> 32).is_multiple_of(4) { id + 3 } else { id } as u32)
}

impl Script {
    fn hash(&self, salt: u64) -> u64 {
        self.hash_of(self.ids.len(), salt)
    }

    fn hash_of(&self, len: usize, salt: u64) -> u64 {
        let fold = |h, t: &TokenId| mix(h ^ u64::from(t.0).wrapping_mul(0x9e37_79b9));
        self.ids[..len].iter().fold(mix(self.seed ^ salt), fold)
    }

    fn push(&mut self, id: TokenId, origin: Origin) {
        self.tail.push((id, origin));
        self.ids.push(id);
    }

    fn decode(&mut self, d: &Decode) -> Outcome {
        let start = self.ids.len() as u32;
        assert!(d.until.limit >= 1, "a decode must be allowed one token");
        let mut stats = vec![];
        let stop = loop {
            if self.ids.len() >= self.context {
                break StopCause::Context;
            }
            let id = token(self.hash(1 + d.role.index() as u64));
            self.push(id, d.role.into());
            let count = self.ids.len() as u32 - start;
            stats.push(TokenStats {
                entropy: d.want.entropy.then(|| (self.hash(5) % 8) as f32),
                top1: d.want.top1.then(|| (1 + self.hash(6) % 8) as f32 / 8.0),
                logprob: None,
            });
            let hesitates = |bound| stats[0].entropy.is_some_and(|entropy| entropy > bound);
            if count == 1 && d.until.first_entropy_above.is_some_and(hesitates) {
                break StopCause::Entropy;
            }
            if d.until.ids.contains(&id) {
                break StopCause::Id(id);
            }
            if id == DELIMITER && !d.until.strings.is_empty() && count >= d.until.first_string_from
            {
                break StopCause::String(0);
            }
            if self.ids.len() as u32 - start == d.until.limit {
                break StopCause::Limit;
            }
        };
        let range = start..self.ids.len() as u32;
        Outcome::Decoded { branch: d.branch, role: d.role, range, stop, stats }
    }

    /// A score depends on the place, on what comes before it and on its suffix.
    fn score(&self, s: &Score) -> Vec<Outcome> {
        let place = |place: &ScorePlace| {
            let mut probs = vec![0.0; s.labels.len()];
            let salt = 9 + place.suffix.len() as u64;
            probs[(self.hash_of(place.end as usize, salt) % 10) as usize] = 1.0;
            Outcome::Scored { branch: s.branch, role: s.role, probs, logprobs: vec![] }
        };
        s.places.iter().map(place).collect()
    }

    /// Runs to the end and returns the reason and the notes.
    fn run(&mut self, policy: &mut dyn Policy) -> (FinishWhy, Vec<Note>) {
        let mut notes = vec![];
        let mut queue = vec![Outcome::Started];
        for turns in 0..100_000 {
            assert!(!queue.is_empty(), "a policy without a command in flight is stuck");
            // A cancelled command is told of at once; of two models at work either may be first.
            let is_cancelled = |outcome: &Outcome| matches!(outcome, Outcome::Cancelled { .. });
            let any = || mix(self.seed ^ turns) as usize % queue.len();
            let next = queue.iter().position(is_cancelled).unwrap_or_else(any);
            // Places of one scoring are told in their order, and in half of the runs late.
            let is_score = |outcome: &Outcome| matches!(outcome, Outcome::Scored { .. });
            let other = queue.iter().position(|outcome| !is_score(outcome));
            let next = match is_score(&queue[next]) {
                true => other
                    .filter(|_| self.seed.is_multiple_of(2))
                    .or_else(|| queue.iter().position(is_score))
                    .expect("just seen"),
                false => next,
            };
            let turn = policy.next(self, queue.remove(next));
            notes.extend(turn.notes);
            let mut in_flight = 0;
            for command in turn.commands {
                match command {
                    Command::Decode(d) => {
                        in_flight += 1;
                        let outcome = self.decode(&d);
                        queue.push(outcome);
                    }
                    Command::Score(s) => {
                        in_flight += 1;
                        self.scored.push(s.places.len());
                        queue.extend(self.score(&s));
                    }
                    Command::Inject { ids, .. } => {
                        cancel(&mut queue);
                        ids.into_iter().for_each(|id| self.push(id, Origin::Injected));
                    }
                    Command::Rollback { len, .. } => {
                        cancel(&mut queue);
                        assert!(len as usize <= self.ids.len());
                        self.tail.truncate(len as usize);
                        self.ids.truncate(len as usize);
                    }
                    Command::Finish { why } => {
                        assert!(in_flight == 0 && queue.is_empty(), "finished with work in flight");
                        return (why, notes);
                    }
                    other => panic!("unexpected {other:?}"),
                }
            }
        }
        panic!("no end in sight");
    }
}

/// What becomes of commands in flight when the tail changes under them.
fn cancel(queue: &mut [Outcome]) {
    for outcome in queue {
        if let Outcome::Decoded { branch, role, .. } | Outcome::Scored { branch, role, .. } =
            outcome
        {
            *outcome = Outcome::Cancelled { branch: *branch, role: *role };
        }
    }
}

pub(super) fn settings(
    writer: Role,
    threshold: Option<f32>,
    budget: u32,
    tags: bool,
) -> StepwiseSettings {
    let ids = |n: u32| -> Arc<[TokenId]> { (100..100 + n).map(TokenId).collect() };
    StepwiseSettings {
        writer,
        first_n: 0,
        judge: threshold.map(|threshold| Judge {
            suffix: ids(5),
            suffix_after_open_step: ids(6),
            suffix_after_turn: ids(4),
            labels: ids(10),
            readout: Readout::Greedy,
            threshold,
            cutoff: 0.5,
            step_logprobs: false,
        }),
        delimiter: "\n\n".into(),
        step_tokens_max: 9,
        token_budget: budget,
        answer_tokens_max: 12,
        tokens_max: u32::MAX,
        stop_on_repeat: true,
        reasoning: if tags {
            Reasoning::Tags { close: Close::Id(CLOSE), close_ids: vec![CLOSE] }
        } else {
            Reasoning::None
        },
        answer_by: AnswerBy::Draft,
        end_of_turn: vec![END_OF_TURN],
        sampling: Arc::new(SamplingParams::greedy()),
        base_want: Want::default(),
        draft_ahead: 0,
        score_batch: 1,
        speculation: None,
        salvage: false,
        gates: Gates::default(),
        hesitations: vec![],
    }
}

pub(super) fn run(
    seed: u64,
    context: usize,
    s: StepwiseSettings,
) -> (Script, FinishWhy, Vec<Note>) {
    let mut script = Script { seed, tail: vec![], ids: vec![], context, scored: vec![] };
    let (why, notes) = script.run(&mut Stepwise::new(s));
    (script, why, notes)
}

fn some_gates() -> impl Strategy<Value = Gates> {
    let entropy = prop::option::of(0f32..8.0);
    let confidence = prop::option::of(0f32..1.0);
    (entropy, confidence, prop::option::of(0u32..12)).prop_map(
        |(entropy_max, confidence_min, merge_tokens)| Gates {
            entropy_max,
            confidence_min,
            merge_tokens,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_run_ends_once_within_its_budgets(
        seed: u64, threshold in 0f32..11.0, budget in 1u32..80, tags: bool, context in 1usize..120,
        first_n in 0u32..4, tokens_max in 1u32..90, draft_ahead in 0u32..5, gates in some_gates(),
        score_batch in 1u32..4,
    ) {
        let s = StepwiseSettings {
            first_n,
            tokens_max,
            draft_ahead,
            score_batch,
            gates,
            ..settings(Role::Draft, Some(threshold), budget, tags)
        };
        let (script, _, notes) = run(seed, context, s);
        let answer = notes.iter().find_map(|n| match n {
            Note::AnswerBegan { at, .. } => Some(*at as usize),
            _ => None,
        });
        let is_sampled = |t: &&(TokenId, Origin)| t.1 != Origin::Injected;
        let sampled = |t: &[(TokenId, Origin)]| t.iter().filter(is_sampled).count();
        let cut = answer.unwrap_or(script.tail.len());
        prop_assert!(sampled(&script.tail[..cut]) <= budget as usize);
        prop_assert!(sampled(&script.tail[cut..]) <= 12);
        prop_assert!(sampled(&script.tail) <= tokens_max as usize);
    }

    #[test]
    fn kept_steps_tile_the_reply(seed: u64, threshold in 0f32..11.0, tags: bool) {
        let (script, _, notes) = run(seed, 400, settings(Role::Draft, Some(threshold), 60, tags));
        let mut at = 0;
        for note in &notes {
            if let Note::StepKept { start, end, writer, .. } = note {
                prop_assert_eq!(*start, at);
                prop_assert!(end > start);
                let by = Origin::from(*writer);
                let ok = |t: &(TokenId, Origin)| t.1 == by || t.1 == Origin::Injected;
                prop_assert!(script.tail[*start as usize..*end as usize].iter().all(ok));
                at = *end;
            }
        }
    }

    #[test]
    fn threshold_zero_answered_by_the_draft_is_the_draft(seed: u64, tags: bool) {
        let (spec, why, _) = run(seed, 400, settings(Role::Draft, Some(0.0), 60, tags));
        let (alone, why_alone, _) = run(seed, 400, settings(Role::Draft, None, 60, tags));
        prop_assert_eq!(spec.tail, alone.tail);
        prop_assert_eq!(why, why_alone);
    }

    #[test]
    fn an_impossible_threshold_answered_by_the_base_is_the_base(seed: u64, tags: bool) {
        let by_base = |s| StepwiseSettings { answer_by: AnswerBy::Base, ..s };
        let (spec, ..) = run(seed, 400, by_base(settings(Role::Draft, Some(10.0), 60, tags)));
        let (alone, ..) = run(seed, 400, by_base(settings(Role::Base, None, 60, tags)));
        prop_assert_eq!(spec.tail, alone.tail);
    }

    #[test]
    fn drafting_ahead_and_scoring_together_change_neither_the_reply_nor_what_was_decided(
        seed: u64, threshold in 0f32..11.0, budget in 1u32..120, tags: bool,
        context in 1usize..200, tokens_max in 1u32..150, first_n in 0u32..3,
        gates in prop_oneof![2 => Just(Gates::default()), 1 => some_gates()],
    ) {
        let s = settings(Role::Draft, Some(threshold), budget, tags);
        let s = StepwiseSettings { tokens_max, gates, first_n, ..s };
        let (behind, why, notes) = run(seed, context, s.clone());
        for draft_ahead in [1, 2, 4] {
            for score_batch in [1, 2, 5] {
                let s = StepwiseSettings { draft_ahead, score_batch, ..s.clone() };
                let (ahead, why_ahead, mut notes_ahead) = run(seed, context, s);
                prop_assert_eq!(&ahead.tail, &behind.tail);
                prop_assert_eq!(why_ahead, why);
                for note in &mut notes_ahead {
                    if let Note::StepScored { ahead, .. } = note {
                        *ahead = 0;
                    }
                }
                prop_assert_eq!(&notes_ahead, &notes);
                let most = score_batch.min(draft_ahead.max(1)) as usize;
                prop_assert!(ahead.scored.iter().all(|places| *places <= most));
            }
        }
    }

    #[test]
    fn thinking_holds_exactly_one_close_marker_when_it_ends(seed: u64, budget in 1u32..40) {
        let (script, _, notes) = run(seed, 400, settings(Role::Draft, Some(5.0), budget, true));
        for note in &notes {
            if let Note::AnswerBegan { at, .. } = note {
                let closes = script.ids[..*at as usize].iter().filter(|id| **id == CLOSE).count();
                prop_assert_eq!(closes, 1);
                prop_assert_eq!(script.ids[*at as usize - 1], CLOSE);
            }
        }
    }
}

/// A draft that says the same step again and again.
struct Parrot(Vec<TokenId>);

impl Tails for Parrot {
    fn ids(&self, _: BranchId) -> &[TokenId] {
        &self.0
    }
}

#[test]
fn a_step_repeated_word_for_word_ends_the_thinking() {
    let mut parrot = Parrot(vec![]);
    let mut policy = Stepwise::new(settings(Role::Draft, None, 1000, true));
    let mut turn = policy.next(&parrot, Outcome::Started);
    for _ in 0..3 {
        let start = parrot.0.len() as u32;
        parrot.0.extend([TokenId(7), DELIMITER]);
        turn = policy.next(
            &parrot,
            Outcome::Decoded {
                branch: BranchId::ROOT,
                role: Role::Draft,
                range: start..start + 2,
                stop: StopCause::String(0),
                stats: vec![],
            },
        );
    }
    assert!(
        turn.notes
            .iter()
            .any(|n| matches!(n, Note::AnswerBegan { why: ThinkingEnd::Repeated, .. }))
    );
    assert!(matches!(&turn.commands[0], Command::Inject { ids, .. } if ids == &[CLOSE]));
}

#[test]
fn a_rejected_step_is_rolled_back_before_the_base_writes() {
    let tails = Parrot(vec![TokenId(7), DELIMITER]);
    let mut policy = Stepwise::new(settings(Role::Draft, Some(7.0), 1000, true));
    policy.next(&tails, Outcome::Started);
    policy.next(
        &tails,
        Outcome::Decoded {
            branch: BranchId::ROOT,
            role: Role::Draft,
            range: 0..2,
            stop: StopCause::String(0),
            stats: vec![],
        },
    );
    let mut probs = vec![0.0; 10];
    probs[3] = 1.0;
    let turn = policy.next(
        &tails,
        Outcome::Scored { branch: BranchId::ROOT, role: Role::Base, probs, logprobs: vec![] },
    );
    assert!(matches!(turn.commands[0], Command::Rollback { len: 0, .. }));
    assert!(matches!(&turn.commands[1], Command::Decode(d) if d.role == Role::Base));
    assert!(matches!(turn.notes[0], Note::StepScored { accepted: false, drafted: 2, .. }));
}

#[test]
fn the_next_step_is_drafted_while_one_is_scored_and_taken_over_when_it_is_kept() {
    let mut tails = Parrot(vec![TokenId(7), DELIMITER]);
    let settings =
        StepwiseSettings { draft_ahead: 1, ..settings(Role::Draft, Some(7.0), 1000, true) };
    let mut policy = Stepwise::new(settings);
    let decoded = |range: std::ops::Range<u32>| Outcome::Decoded {
        branch: BranchId::ROOT,
        role: Role::Draft,
        range,
        stop: StopCause::String(0),
        stats: vec![],
    };
    let drafts = |commands: &[Command]| {
        commands.iter().any(|c| matches!(c, Command::Decode(d) if d.role == Role::Draft))
    };
    let scores = |commands: &[Command]| commands.iter().any(|c| matches!(c, Command::Score(_)));
    policy.next(&tails, Outcome::Started);
    let turn = policy.next(&tails, decoded(0..2));
    assert!(scores(&turn.commands) && drafts(&turn.commands), "{:?}", turn.commands);
    tails.0.extend([TokenId(8), DELIMITER]);
    let turn = policy.next(&tails, decoded(2..4));
    assert!(turn.commands.is_empty(), "the second step waits for the first one's score");
    let mut probs = vec![0.0; 10];
    probs[9] = 1.0;
    let turn = policy.next(
        &tails,
        Outcome::Scored { branch: BranchId::ROOT, role: Role::Base, probs, logprobs: vec![] },
    );
    assert!(scores(&turn.commands) && drafts(&turn.commands), "{:?}", turn.commands);
    let kept: Vec<_> = turn.notes.iter().filter(|n| matches!(n, Note::StepKept { .. })).collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
}

#[test]
fn steps_that_wait_are_scored_together_and_a_rejected_one_takes_those_behind_it() {
    let settings = settings(Role::Draft, Some(7.0), 1000, true);
    let settings = StepwiseSettings { draft_ahead: 3, score_batch: 9, ..settings };
    let (mut tails, mut policy) = (Parrot(vec![]), Stepwise::new(settings));
    let places = |commands: &[Command]| -> Vec<u32> {
        let scores = commands.iter().filter_map(|c| match c {
            Command::Score(score) => Some(score.places.iter().map(|place| place.end)),
            _ => None,
        });
        scores.flatten().collect()
    };
    let drafts = |commands: &[Command]| {
        commands.iter().any(|c| matches!(c, Command::Decode(d) if d.role == Role::Draft))
    };
    let scored = |digit: usize| {
        let mut probs = vec![0.0; 10];
        probs[digit] = 1.0;
        Outcome::Scored { branch: BranchId::ROOT, role: Role::Base, probs, logprobs: vec![] }
    };
    policy.next(&tails, Outcome::Started);
    for step in 0..4 {
        tails.0.extend([TokenId(5 + step), DELIMITER]);
        let turn = policy.next(
            &tails,
            Outcome::Decoded {
                branch: BranchId::ROOT,
                role: Role::Draft,
                range: 2 * step..2 * step + 2,
                stop: StopCause::String(0),
                stats: vec![],
            },
        );
        let first: &[u32] = if step == 0 { &[2] } else { &[] };
        assert_eq!(places(&turn.commands), first, "the base scores the first meanwhile");
        assert_eq!(drafts(&turn.commands), step < 3, "three steps beyond the first");
        assert_eq!(policy.undecided_from(), 2);
    }
    let turn = policy.next(&tails, scored(9));
    assert_eq!(places(&turn.commands), [4, 6, 8]);
    assert!(drafts(&turn.commands));
    assert_eq!(policy.undecided_from(), 4);
    let turn = policy.next(&tails, scored(9));
    assert!(turn.commands.is_empty(), "the others are under way: {:?}", turn.commands);
    assert_eq!(policy.undecided_from(), 6);
    let turn = policy.next(&tails, scored(0));
    assert!(matches!(turn.commands[0], Command::Rollback { len: 4, .. }));
    assert!(matches!(&turn.commands[1], Command::Decode(d) if d.role == Role::Base));
    assert!(matches!(turn.notes[0], Note::StepScored { index: 2, drafted: 2, ahead: 2, .. }));
    for role in Role::ALL {
        let turn = policy.next(&tails, Outcome::Cancelled { branch: BranchId::ROOT, role });
        assert!(turn.commands.is_empty() && turn.notes.is_empty());
    }
}

/// Notes of a run of which something is known whatever the seed.
fn notes_of(seed: u64, threshold: f32, gates: Gates, hesitations: Vec<Vec<TokenId>>) -> Vec<Note> {
    let s = settings(Role::Draft, Some(threshold), 60, false);
    run(seed, 400, StepwiseSettings { gates, hesitations, ..s }).2
}

proptest! {
    #[test]
    fn a_hesitating_draft_leaves_the_step_to_the_base(seed: u64) {
        let all = Gates { entropy_max: Some(-1.0), ..Gates::default() };
        let notes = notes_of(seed, 0.0, all, vec![]);
        let gated = notes.iter().filter(|n| matches!(n, Note::StepGated { .. })).count();
        let kept: Vec<_> = notes
            .iter()
            .filter_map(|n| match n {
                Note::StepKept { writer, .. } => Some(*writer),
                _ => None,
            })
            .collect();
        prop_assert!(gated > 0 && gated == kept.len());
        prop_assert!(kept.iter().all(|writer| *writer == Role::Base));
        let scored = notes.iter().any(|n| matches!(n, Note::StepScored { .. }));
        prop_assert!(!scored);
        let none = Gates { entropy_max: Some(8.0), ..Gates::default() };
        let plain = notes_of(seed, 5.0, Gates::default(), vec![]);
        prop_assert_eq!(notes_of(seed, 5.0, none, vec![]), plain);
    }

    #[test]
    fn a_sure_draft_is_not_scored_unless_it_hesitates_in_words(seed: u64) {
        let sure = Gates { confidence_min: Some(0.0), ..Gates::default() };
        let scored = |notes: Vec<Note>| {
            notes.iter().filter(|n| matches!(n, Note::StepScored { .. })).count()
        };
        let kept = |notes: &[Note]| {
            notes.iter().filter(|n| matches!(n, Note::StepKept { .. })).count()
        };
        let all = notes_of(seed, 0.0, sure, vec![]);
        // The step that ends the turn is scored, and one that says what the last one said.
        let few = scored(all.clone());
        prop_assert!(few <= kept(&all));
        let every: Vec<_> = (0..12).map(|id| vec![TokenId(id)]).collect();
        let forced = notes_of(seed, 0.0, sure, every);
        prop_assert_eq!(scored(forced.clone()), kept(&forced));
        let never = Gates { confidence_min: Some(1.1), ..Gates::default() };
        prop_assert_eq!(notes_of(seed, 0.0, never, vec![]), forced);
    }

    #[test]
    fn merged_steps_are_long_or_end_otherwise(seed: u64) {
        let merged = Gates { merge_tokens: Some(6), ..Gates::default() };
        let s = settings(Role::Draft, Some(0.0), 60, false);
        let s = StepwiseSettings { gates: merged, ..s };
        let (script, _, notes) = run(seed, 400, s);
        let ends = notes.iter().filter_map(|n| match n {
            Note::StepKept { start, end, writer: Role::Draft, .. } => Some((*start, *end)),
            _ => None,
        });
        let ends: Vec<_> = ends.collect();
        // The last may end with the budget.
        for (start, end) in ends.into_iter().rev().skip(1) {
            let delimited = script.ids[end as usize - 1] == DELIMITER;
            prop_assert!(!delimited || end - start >= 6);
        }
    }
}
