//! Choosing a policy and its knobs for a pair: the fastest that answers no worse than the base.
//!
//! Candidates come in rounds: how steps are judged (threshold, read-out, layout), then what helps
//! beside that, one addition at a time, then what helped taken together. A round first times all
//! of its candidates alone on a few problems; then those that are faster than what is chosen so
//! far are tried on more problems, fastest first, until one is no worse than the base. Where a
//! candidate says what is chosen already says, nothing has to be tried ([`Candidate::says_like`]),
//! and where a record's scores decide every step as another threshold would, that record is the
//! other threshold's too ([`replay`]). Everything here is pure; records come from [`super::drive`].

use super::drive::Variant;
use super::record::Record;
use super::table::Row;
use crate::engine::{JudgeText, PolicyOptions};
use crate::policy::{PolicyKind, Proposer, WindowSize};
use crate::sample::Readout;
use serde_json::json;

/// What a candidate changes; of those that change the same, one is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// How steps are judged, if at all.
    Judge,
    /// Who proposes tokens, how many at a time and in one place.
    Window,
    /// Whether rejected steps are salvaged.
    Salvage,
    /// How short a step may be.
    Merge,
    /// How much a draft may hesitate.
    Entropy,
    /// How sure a draft has to be to go unscored.
    Confidence,
    /// Several of these.
    Together,
}

/// A row of a round.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Its name in tables and state files.
    pub name: String,
    /// What it changes of the candidate it comes from.
    pub change: Change,
    /// Who does what.
    pub policy: PolicyKind,
    /// Knobs.
    pub options: PolicyOptions,
}

const THRESHOLDS: [f32; 4] = [3.0, 5.0, 7.0, 9.0];

impl Candidate {
    /// The base alone.
    #[must_use]
    pub fn base() -> Self {
        let options = PolicyOptions::default();
        Self { name: "base".into(), change: Change::Judge, policy: PolicyKind::Base, options }
    }

    /// Whether it says what `other` says, token by token: all they differ in is time.
    #[must_use]
    pub fn says_like(&self, other: &Self) -> bool {
        let words = |candidate: &Self| {
            let policy = match candidate.policy {
                PolicyKind::SpecDecode => PolicyKind::Base,
                PolicyKind::SpecReasonDecode => PolicyKind::SpecReason,
                alone => alone,
            };
            let options = PolicyOptions {
                proposer: None,
                window: None,
                branches: None,
                salvage: false,
                ..candidate.options.clone()
            };
            (policy, json!(options))
        };
        words(self) == words(other)
    }

    fn with(&self, what: &str, change: Change, add: impl FnOnce(&mut Self)) -> Self {
        let mut row = Self { name: format!("{} + {what}", self.name), change, ..self.clone() };
        add(&mut row);
        row
    }
}

/// Every way to judge.
#[must_use]
pub fn judging() -> Vec<Candidate> {
    let mut rows = vec![];
    for layout in ["turn", "prefix"] {
        for readout in [Readout::Greedy, Readout::Mean] {
            for threshold in THRESHOLDS {
                rows.push(Candidate {
                    name: format!("{layout} {}@{threshold}", readout.name()),
                    change: Change::Judge,
                    policy: PolicyKind::SpecReason,
                    options: PolicyOptions {
                        threshold: Some(threshold),
                        readout: Some(readout),
                        judge: JudgeText::built_in(layout),
                        ..PolicyOptions::default()
                    },
                });
            }
        }
    }
    rows
}

/// What is chosen, with one thing more.
#[must_use]
pub fn additions(chosen: &Candidate) -> Vec<Candidate> {
    let speculating = match chosen.policy.judges() {
        true => PolicyKind::SpecReasonDecode,
        false => PolicyKind::SpecDecode,
    };
    let mut rows = vec![];
    let windows = [
        ("draft", Proposer::Draft, WindowSize::Auto, 1),
        ("draft 2", Proposer::Draft, WindowSize::Fixed(2), 1),
        ("draft 4", Proposer::Draft, WindowSize::Fixed(4), 1),
        ("draft 4 x 2", Proposer::Draft, WindowSize::Fixed(4), 2),
        ("n-gram", Proposer::Ngram, WindowSize::Auto, 1),
        ("n-gram 4", Proposer::Ngram, WindowSize::Fixed(4), 1),
        ("n-gram 8", Proposer::Ngram, WindowSize::Fixed(8), 1),
        ("n-gram 8 x 2", Proposer::Ngram, WindowSize::Fixed(8), 2),
    ];
    for (what, by, window, branches) in windows {
        rows.push(chosen.with(&format!("decode {what}"), Change::Window, |row| {
            row.policy = speculating;
            row.options.proposer = Some(by);
            row.options.window = Some(window);
            row.options.branches = Some(branches);
        }));
    }
    if !chosen.policy.judges() {
        return rows;
    }
    rows.push(chosen.with("salvage", Change::Salvage, |row| row.options.salvage = true));
    for tokens in [32, 64] {
        rows.push(chosen.with(&format!("merge {tokens}"), Change::Merge, |row| {
            row.options.gates.merge_tokens = Some(tokens);
        }));
    }
    for nats in [0.5, 1.0, 2.0] {
        rows.push(chosen.with(&format!("entropy {nats}"), Change::Entropy, |row| {
            row.options.gates.entropy_max = Some(nats);
        }));
    }
    for p in [0.9, 0.95] {
        rows.push(chosen.with(&format!("confidence {p}"), Change::Confidence, |row| {
            row.options.gates.confidence_min = Some(p);
        }));
    }
    rows
}

/// What is chosen, with all of `helped`; `None` where that is nothing new.
#[must_use]
pub fn together(chosen: &Candidate, helped: &[Candidate]) -> Option<Candidate> {
    if helped.len() < 2 {
        return None;
    }
    let prefix = format!("{} + ", chosen.name);
    let names: Vec<_> = helped.iter().map(|c| c.name.replace(&prefix, "")).collect();
    Some(chosen.with(&names.join(" + "), Change::Together, |all| {
        for one in helped {
            let (to, from) = (&mut all.options, &one.options);
            match one.change {
                Change::Judge | Change::Together => {}
                Change::Window => {
                    all.policy = one.policy;
                    (to.proposer, to.window, to.branches) =
                        (from.proposer, from.window, from.branches);
                }
                Change::Salvage => to.salvage = from.salvage,
                Change::Merge => to.gates.merge_tokens = from.gates.merge_tokens,
                Change::Entropy => to.gates.entropy_max = from.gates.entropy_max,
                Change::Confidence => to.gates.confidence_min = from.gates.confidence_min,
            }
        }
    }))
}

/// The candidates that are faster than `than_s`, fastest first.
#[must_use]
pub fn faster<'a>(
    candidates: &'a [Candidate],
    rows: &[Row],
    than_s: f64,
) -> Vec<(&'a Candidate, f64)> {
    let latency =
        |c: &Candidate| rows.iter().find(|row| row.name.as_deref() == Some(&c.name))?.latency_s;
    let mut all: Vec<_> = candidates.iter().filter_map(|c| Some((c, latency(c)?))).collect();
    all.retain(|(_, s)| *s < than_s);
    all.sort_by(|a, b| a.1.total_cmp(&b.1));
    all
}

/// Whether a row's accuracy is not below the base's by more than the standard error of the
/// difference. The base itself is no worse.
#[must_use]
pub fn is_no_worse(row: &Row) -> bool {
    row.vs_base.is_none_or(|paired| paired.accuracy + paired.se >= 0.0)
}

/// Whether a row is worse than the base by more than twice the standard error of the difference:
/// more problems are not worth their time.
#[must_use]
pub fn is_hopeless(row: &Row) -> bool {
    row.vs_base.is_some_and(|paired| paired.accuracy + 2.0 * paired.se < 0.0)
}

/// The record of another threshold as one of `variant`, if that would have decided every step of
/// the reply as was done.
#[must_use]
pub fn replay(record: &Record, variant: &Variant) -> Option<Record> {
    let (old, new) = record.threshold.zip(variant.threshold())?;
    let same = |name: &String| {
        name == "threshold" || record.settings.get(name) == variant.settings.get(name)
    };
    let names = record.settings.keys().chain(variant.settings.keys());
    // Under `prob` a score depends on the threshold it was read with.
    let prob = variant.settings.get("score") == Some(&json!(Readout::Prob));
    let complete = record.scores.len() as u32 == record.accepted + record.rewritten;
    let decides_alike = record.scores.iter().all(|s| (*s >= old) == (*s >= new));
    let stands = !prob && complete && decides_alike && names.into_iter().all(same);
    stands.then(|| Record {
        row: variant.name.clone(),
        threshold: variant.threshold(),
        settings: variant.settings.clone(),
        ..record.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::table::Paired;
    use crate::policy::{FinishWhy, Gates};
    use crate::sample::SamplingOverrides;

    fn row(name: &str, latency_s: Option<f64>, vs_base: Option<(f64, f64)>) -> Row {
        let paired = |(accuracy, se)| Paired {
            accuracy,
            se,
            n: 50,
            gained: 0,
            lost: 0,
            same: 0,
            speedup: None,
        };
        Row {
            name: Some(name.into()),
            policy: PolicyKind::SpecReason,
            threshold: None,
            judge: None,
            accuracy: 0.5,
            accuracy_se: 0.07,
            n: 50,
            timed: 50,
            latency_s,
            latency_median_s: latency_s,
            latency_quartiles_s: None,
            tokens: 100.0,
            acceptance: None,
            draft_share: 0.0,
            wasted: 0.0,
            agreement: None,
            salvaged: 0.0,
            ms: Default::default(),
            vs_base: vs_base.map(paired),
        }
    }

    #[test]
    fn only_what_is_faster_is_tried_and_the_fastest_first() {
        let candidates = judging();
        let mut rows: Vec<_> = candidates.iter().map(|c| row(&c.name, Some(9.0), None)).collect();
        (rows[4].latency_s, rows[7].latency_s, rows[2].latency_s) = (Some(3.0), Some(2.0), None);
        let names: Vec<_> =
            faster(&candidates, &rows, 9.0).iter().map(|f| f.0.name.as_str()).collect();
        assert_eq!(names, [candidates[7].name.as_str(), candidates[4].name.as_str()]);
        assert!(faster(&candidates, &rows, 2.0).is_empty());
    }

    #[test]
    fn a_loss_within_its_error_is_none_and_one_beyond_twice_of_it_is_hopeless() {
        for (vs_base, no_worse, hopeless) in [
            (None, true, false),
            (Some((0.1, 0.02)), true, false),
            (Some((-0.02, 0.03)), true, false),
            (Some((-0.05, 0.03)), false, false),
            (Some((-0.10, 0.04)), false, true),
        ] {
            let row = row("a", None, vs_base);
            assert_eq!((is_no_worse(&row), is_hopeless(&row)), (no_worse, hopeless), "{vs_base:?}");
        }
    }

    #[test]
    fn additions_that_change_no_token_are_known() {
        let judged = &judging()[3];
        let changes = |chosen: &Candidate| -> Vec<_> {
            additions(chosen).iter().map(|c| (c.change, c.says_like(chosen))).collect()
        };
        for (change, alike) in changes(judged) {
            assert_eq!(alike, matches!(change, Change::Window | Change::Salvage), "{change:?}");
        }
        let base = Candidate::base();
        assert!(changes(&base).iter().all(|c| *c == (Change::Window, true)));
        assert!(!base.says_like(judged) && !judging()[0].says_like(judged));
        let names: std::collections::HashSet<_> =
            additions(judged).into_iter().map(|c| c.name).collect();
        assert_eq!(names.len(), additions(judged).len(), "names tell rows apart");
    }

    #[test]
    fn what_helped_alone_is_taken_together() {
        let chosen = &judging()[3];
        let all = additions(chosen);
        let named = |what: &str| {
            all.iter().find(|c| c.name.ends_with(&format!("+ {what}"))).expect(what).clone()
        };
        let helped = [named("decode n-gram 8 x 2"), named("salvage"), named("merge 64")];
        let both = together(chosen, &helped).unwrap();
        assert_eq!(both.policy, PolicyKind::SpecReasonDecode);
        assert_eq!(both.options.proposer, Some(Proposer::Ngram));
        assert_eq!(both.options.window, Some(WindowSize::Fixed(8)));
        assert_eq!((both.options.branches, both.options.salvage), (Some(2), true));
        assert_eq!(both.options.gates, Gates { merge_tokens: Some(64), ..Gates::default() });
        assert_eq!(both.options.threshold, chosen.options.threshold);
        assert_eq!(
            both.name,
            format!("{} + decode n-gram 8 x 2 + salvage + merge 64", chosen.name)
        );
        assert!(together(chosen, &helped[..1]).is_none(), "there is a row of it");
    }

    #[test]
    fn a_record_stands_for_every_threshold_that_decides_alike() {
        let variant = |readout: Readout, threshold: f32| Variant {
            name: Some(format!("at {threshold}")),
            policy: PolicyKind::SpecReason,
            options: PolicyOptions { threshold: Some(threshold), ..PolicyOptions::default() },
            sampling: SamplingOverrides::default(),
            judge: None,
            settings: json!({"score": readout, "threshold": threshold})
                .as_object()
                .unwrap()
                .clone(),
        };
        let made = variant(Readout::Greedy, 7.0);
        let record = Record {
            id: "1".into(),
            row: made.name.clone(),
            policy: made.policy,
            threshold: made.threshold(),
            correct: true,
            answer: None,
            finish: FinishWhy::Stop,
            tokens: 10,
            draft_tokens: 5,
            wasted: 5,
            proposed: 0,
            matched: 0,
            salvaged: 0,
            scores: vec![9.0, 5.0, 7.0],
            accepted: 2,
            rewritten: 1,
            ms: Default::default(),
            total_ms: 1.0,
            concurrent: false,
            seed: 0,
            reply: "x".into(),
            problem: "p".into(),
            settings: made.settings.clone(),
        };
        for (threshold, stands) in [(5.0, false), (5.5, true), (7.0, true), (7.5, false)] {
            let other = variant(Readout::Greedy, threshold);
            let copy = replay(&record, &other);
            assert_eq!(copy.is_some(), stands, "{threshold}");
            if let Some(copy) = copy {
                assert_eq!((copy.row, copy.threshold), (other.name, Some(threshold)));
                assert_eq!((copy.settings, copy.reply), (other.settings, record.reply.clone()));
            }
        }
        let mean = variant(Readout::Mean, 6.0);
        assert!(replay(&record, &mean).is_none(), "another read-out reads other scores");
        let partial = Record { scores: vec![9.0], ..record.clone() };
        assert!(replay(&partial, &variant(Readout::Greedy, 6.0)).is_none(), "not all are known");
        let prob = variant(Readout::Prob, 7.0);
        let record = Record { settings: prob.settings.clone(), ..record };
        assert!(replay(&record, &variant(Readout::Prob, 6.0)).is_none());
    }
}
