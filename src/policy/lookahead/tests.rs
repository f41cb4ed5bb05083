//! Drives the machine with scripted models on branches: what a model writes or says is a hash of
//! the tail it stands on, and of several things in flight any may be done first.

use super::super::tests::{DELIMITER, mix, run, settings, token};
use super::super::{AnswerBy, Origin};
use super::*;
use crate::policy::{Decode, StopCause};
use proptest::prelude::*;
use std::collections::BTreeMap;

type Tail = Vec<(TokenId, Origin)>;

struct World {
    seed: u64,
    tails: BTreeMap<BranchId, Tail>,
    ids: BTreeMap<BranchId, Vec<TokenId>>,
    context: usize,
    /// In how many of twelve places the draft would write what the base would.
    alike: u64,
    /// The most branches there were.
    branches: usize,
}

impl Tails for World {
    fn ids(&self, branch: BranchId) -> &[TokenId] {
        &self.ids[&branch]
    }
}

impl World {
    fn hash(&self, ids: &[TokenId], salt: u64) -> u64 {
        let fold = |h, t: &TokenId| mix(h ^ u64::from(t.0).wrapping_mul(0x9e37_79b9));
        ids.iter().fold(mix(self.seed ^ salt), fold)
    }

    fn push(&mut self, branch: BranchId, id: TokenId, origin: Origin) {
        self.tails.get_mut(&branch).unwrap().push((id, origin));
        self.ids.get_mut(&branch).unwrap().push(id);
    }

    fn cut(&mut self, branch: BranchId, len: usize) {
        self.tails.get_mut(&branch).unwrap().truncate(len);
        self.ids.get_mut(&branch).unwrap().truncate(len);
    }

    fn decode(&mut self, d: &Decode) -> Outcome {
        assert_eq!(d.draws_as, BranchId::ROOT, "as whatever the branch may become");
        let start = self.ids[&d.branch].len() as u32;
        let stop = loop {
            let ids = &self.ids[&d.branch];
            if ids.len() >= self.context {
                break StopCause::Context;
            }
            let alike = self.hash(ids, 7) % 12 < self.alike;
            let role = if alike { Role::Base } else { d.role };
            // The base's are those of the other tests' scripted base.
            let id = token(self.hash(ids, 1 + role.index() as u64));
            self.push(d.branch, id, d.role.into());
            if d.until.ids.contains(&id) {
                break StopCause::Id(id);
            }
            if id == DELIMITER && !d.until.strings.is_empty() {
                break StopCause::String(0);
            }
            if self.ids[&d.branch].len() as u32 - start == d.until.limit {
                break StopCause::Limit;
            }
        };
        let range = start..self.ids[&d.branch].len() as u32;
        Outcome::Decoded { branch: d.branch, role: d.role, range, stop, stats: vec![] }
    }

    fn compare(&self, s: &Score) -> Outcome {
        let [place] = s.places.as_slice() else { panic!("one comparison a branch") };
        let ids = &self.ids[&s.branch];
        assert_eq!(ids.len(), place.end as usize, "after the base's own step");
        let quoted = place.suffix[1..place.suffix.len() - 2].last();
        assert_eq!((ids.last(), quoted), (Some(&DELIMITER), Some(&DELIMITER)), "whole steps");
        let mut probs = vec![0.0; s.labels.len()];
        let both = [ids, &place.suffix[..]].concat();
        probs[(self.hash(&both, 9) % 10) as usize] = 1.0;
        Outcome::Scored { branch: s.branch, role: s.role, probs, logprobs: vec![] }
    }

    /// Runs to the end and returns the reason and the notes.
    fn run(&mut self, policy: &mut Lookahead) -> (FinishWhy, Vec<Note>) {
        let (mut notes, mut queue, mut next_branch) = (vec![], vec![Outcome::Started], 1);
        let mut told: Vec<Outcome> = vec![];
        for turns in 0..100_000 {
            // What a command comes to at once is told before anything that takes time.
            let outcome = if told.is_empty() {
                assert!(!queue.is_empty(), "a policy without a command in flight is stuck");
                queue.remove(mix(self.seed ^ turns) as usize % queue.len())
            } else {
                told.remove(0)
            };
            let turn = policy.next(self, outcome);
            notes.extend(turn.notes);
            let tip = self.ids[&BranchId::ROOT].len() as u32;
            assert!(policy.undecided_from() == u32::MAX || policy.undecided_from() <= tip);
            for command in turn.commands {
                match command {
                    Command::Decode(d) => {
                        assert!(!queue.iter().any(|o| of(o) == Some((d.branch, d.role))));
                        let outcome = self.decode(&d);
                        queue.push(outcome);
                    }
                    Command::Score(s) => {
                        assert!(!queue.iter().any(|o| of(o) == Some((s.branch, s.role))));
                        queue.push(self.compare(&s));
                    }
                    Command::Fork { branch, n: 1 } => {
                        let fork = BranchId(next_branch);
                        next_branch += 1;
                        self.tails.insert(fork, self.tails[&branch].clone());
                        self.ids.insert(fork, self.ids[&branch].clone());
                        self.branches = self.branches.max(self.tails.len());
                        told.push(Outcome::Forked { branches: vec![fork] });
                    }
                    Command::Keep { branch } => {
                        let (tail, ids) = (self.tails[&branch].clone(), self.ids[&branch].clone());
                        self.tails = BTreeMap::from([(BranchId::ROOT, tail)]);
                        self.ids = BTreeMap::from([(BranchId::ROOT, ids)]);
                        queue.clear();
                    }
                    Command::Drop { branch } => {
                        self.tails.remove(&branch);
                        self.ids.remove(&branch);
                        queue.retain(|o| of(o).is_none_or(|at| at.0 != branch));
                    }
                    Command::Inject { branch, ids } => {
                        assert!(!queue.iter().any(|o| of(o).is_some_and(|at| at.0 == branch)));
                        ids.into_iter().for_each(|id| self.push(branch, id, Origin::Injected));
                    }
                    Command::Rollback { branch, len } => {
                        assert!(!queue.iter().any(|o| of(o).is_some_and(|at| at.0 == branch)));
                        self.cut(branch, len as usize);
                    }
                    Command::Finish { why } => return (why, notes),
                    other => panic!("unexpected {other:?}"),
                }
            }
        }
        panic!("no end in sight");
    }
}

fn of(outcome: &Outcome) -> Option<(BranchId, Role)> {
    match outcome {
        Outcome::Decoded { branch, role, .. } | Outcome::Scored { branch, role, .. } => {
            Some((*branch, *role))
        }
        _ => None,
    }
}

fn both(budget: u32, tags: bool) -> StepwiseSettings {
    let settings = settings(Role::Draft, None, budget, tags);
    StepwiseSettings { answer_by: AnswerBy::Base, draft_ahead: 3, ..settings }
}

struct Run {
    tail: Tail,
    why: FinishWhy,
    notes: Vec<Note>,
    branches: usize,
}

/// A run whose base finds that two steps say the same from a digit of `threshold` on.
fn look(seed: u64, alike: u64, context: usize, threshold: f32, settings: StepwiseSettings) -> Run {
    let comparison = Comparison {
        before: vec![TokenId(200)],
        after: vec![TokenId(201), TokenId(202)],
        tokens_max: 6,
        labels: (100..110).map(TokenId).collect(),
        readout: Readout::Greedy,
        threshold,
        cutoff: 0.5,
    };
    let tails = BTreeMap::from([(BranchId::ROOT, vec![])]);
    let ids = BTreeMap::from([(BranchId::ROOT, vec![])]);
    let mut world = World { seed, tails, ids, context, alike, branches: 1 };
    let (why, notes) = world.run(&mut Lookahead::new(settings, comparison));
    let tail = world.tails.remove(&BranchId::ROOT).unwrap();
    Run { tail, why, notes, branches: world.branches }
}

/// What was decided, without what depends on how far the draft was meanwhile.
fn decisions(notes: &[Note]) -> Vec<Note> {
    let strip = |note: &Note| match note.clone() {
        Note::StepScored { index, score, accepted, logprobs, .. } => {
            Note::StepScored { index, score, accepted, drafted: 0, ahead: 0, logprobs }
        }
        other => other,
    };
    notes.iter().map(strip).collect()
}

fn accepted(notes: &[Note]) -> usize {
    notes.iter().filter(|n| matches!(n, Note::StepScored { accepted: true, .. })).count()
}

fn rejected(notes: &[Note]) -> usize {
    notes.iter().filter(|n| matches!(n, Note::StepScored { accepted: false, .. })).count()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn where_no_step_says_the_same_the_reply_is_the_bases(
        seed: u64, alike in 0u64..12, budget in 1u32..80, tags: bool, context in 1usize..120,
        draft_ahead in 0u32..5, first_n in 0u32..3, tokens_max in 1u32..90,
    ) {
        let s = StepwiseSettings { draft_ahead, first_n, tokens_max, ..both(budget, tags) };
        let alone = StepwiseSettings { writer: Role::Base, first_n: 0, ..s.clone() };
        let (base, why, _) = run(seed, context, alone);
        let ids = |tail: &[(TokenId, Origin)]| tail.iter().map(|t| t.0).collect::<Vec<_>>();
        let spec = look(seed, alike, context, 10.0, s);
        // Steps that both models wrote alike are the draft's, and the same.
        prop_assert_eq!(ids(&spec.tail), ids(&base.tail));
        prop_assert_eq!(spec.why, why);
    }

    #[test]
    fn how_far_the_draft_looks_ahead_changes_neither_the_reply_nor_what_was_decided(
        seed: u64, alike in 0u64..13, threshold in 0f32..11.0, budget in 1u32..80, tags: bool,
        context in 1usize..120, tokens_max in 1u32..90,
    ) {
        let s = StepwiseSettings { tokens_max, draft_ahead: 0, ..both(budget, tags) };
        let want = look(seed, alike, context, threshold, s.clone());
        prop_assert!(want.branches <= 2);
        for draft_ahead in [1, 2, 5] {
            let s = StepwiseSettings { draft_ahead, ..s.clone() };
            let got = look(seed, alike, context, threshold, s);
            prop_assert_eq!(&got.tail, &want.tail);
            prop_assert_eq!(got.why, want.why);
            prop_assert_eq!(decisions(&got.notes), decisions(&want.notes));
            prop_assert!(got.branches <= 2 + draft_ahead as usize);
        }
    }

    #[test]
    fn every_reply_keeps_its_budgets_and_its_steps_tile_it(
        seed: u64, alike in 0u64..13, threshold in 0f32..11.0, budget in 1u32..80, tags: bool,
        tokens_max in 1u32..90,
    ) {
        let s = StepwiseSettings { tokens_max, ..both(budget, tags) };
        let spec = look(seed, alike, 400, threshold, s);
        let mut at = 0;
        for note in &spec.notes {
            if let Note::StepKept { start, end, writer, .. } = note {
                prop_assert_eq!(*start, at);
                prop_assert!(end > start);
                let by = Origin::from(*writer);
                let ok = |t: &(TokenId, Origin)| t.1 == by || t.1 == Origin::Injected;
                prop_assert!(spec.tail[*start as usize..*end as usize].iter().all(ok));
                at = *end;
            }
        }
        let is_sampled = |t: &&(TokenId, Origin)| t.1 != Origin::Injected;
        let sampled = |t: &[(TokenId, Origin)]| t.iter().filter(is_sampled).count();
        let answer = spec.notes.iter().find_map(|n| match n {
            Note::AnswerBegan { at, .. } => Some(*at as usize),
            _ => None,
        });
        let cut = answer.unwrap_or(spec.tail.len());
        prop_assert!(sampled(&spec.tail[..cut]) <= budget as usize);
        prop_assert!(sampled(&spec.tail) <= tokens_max as usize);
    }

    #[test]
    fn models_that_write_alike_need_no_comparison(seed: u64, budget in 1u32..80, tags: bool) {
        let spec = look(seed, 12, 400, 10.0, both(budget, tags));
        for note in &spec.notes {
            if let Note::StepScored { score, .. } = note {
                prop_assert_eq!(*score, None);
            }
        }
        let by_base = |n: &&Note| matches!(n, Note::StepKept { writer: Role::Base, .. });
        prop_assert_eq!(spec.notes.iter().filter(by_base).count(), 0);
        prop_assert_eq!(rejected(&spec.notes), 0);
    }
}

#[test]
fn drafted_steps_are_kept_and_others_give_way() {
    let runs: Vec<_> = (0..400).map(|seed| look(seed, 9, 400, 5.0, both(60, false))).collect();
    let count = |f: fn(&[Note]) -> usize| runs.iter().map(|run| f(&run.notes)).sum::<usize>();
    let asked = |note: &&Note| matches!(note, Note::StepScored { score: Some(_), .. });
    let asked = runs.iter().flat_map(|run| &run.notes).filter(asked).count();
    let counts = (count(accepted), count(rejected), asked);
    assert!(counts.0 > 100 && counts.1 > 100 && counts.2 > 50, "{counts:?}");
    assert!(runs.iter().any(|run| run.branches == 5), "four versions side by side");
}
