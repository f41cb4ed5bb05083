//! Choosing a policy and its knobs for a pair: the fastest that answers no worse than the base.
//!
//! Three rounds of rows over the same problems. The first asks how steps are to be judged
//! (threshold, read-out, layout), the second what helps beside that, one addition at a time, the
//! third takes together what helped alone. The base competes in all of them. Everything here is
//! pure; records come from [`super::drive`].

use super::table::Row;
use crate::engine::{JudgeText, PolicyOptions};
use crate::policy::{PolicyKind, Proposer};
use crate::sample::Readout;

/// A row of a round.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Its name in tables and state files.
    pub name: String,
    /// Who does what.
    pub policy: PolicyKind,
    /// Knobs.
    pub options: PolicyOptions,
}

const THRESHOLDS: [f32; 4] = [3.0, 5.0, 7.0, 9.0];

/// The base, and every way to judge.
#[must_use]
pub fn judging() -> Vec<Candidate> {
    let base =
        Candidate { name: "base".into(), policy: PolicyKind::Base, options: Default::default() };
    let mut rows = vec![base];
    for layout in ["turn", "prefix"] {
        for readout in [Readout::Greedy, Readout::Mean] {
            for threshold in THRESHOLDS {
                rows.push(Candidate {
                    name: format!("{layout} {}@{threshold}", readout.name()),
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

/// The chosen row with one thing more.
#[must_use]
pub fn additions(chosen: &Candidate) -> Vec<Candidate> {
    let with = |what: &str, add: &dyn Fn(&mut Candidate)| {
        let mut row = chosen.clone();
        row.name = format!("{} + {what}", chosen.name);
        add(&mut row);
        row
    };
    let speculating = match chosen.policy.judges() {
        true => PolicyKind::SpecReasonDecode,
        false => PolicyKind::SpecDecode,
    };
    let mut rows = vec![chosen.clone()];
    for (what, by) in [("draft", Proposer::Draft), ("n-gram", Proposer::Ngram)] {
        rows.push(with(&format!("decode {what}"), &|row| {
            (row.policy, row.options.proposer) = (speculating, Some(by));
        }));
    }
    if chosen.policy.judges() {
        rows.push(with("salvage", &|row| row.options.salvage = true));
        for tokens in [32, 64] {
            rows.push(with(&format!("merge {tokens}"), &|row| {
                row.options.gates.merge_tokens = Some(tokens);
            }));
        }
        for nats in [0.5, 1.0, 2.0] {
            rows.push(with(&format!("entropy {nats}"), &|row| {
                row.options.gates.entropy_max = Some(nats);
            }));
        }
        for p in [0.9, 0.95] {
            rows.push(with(&format!("confidence {p}"), &|row| {
                row.options.gates.confidence_min = Some(p);
            }));
        }
    }
    rows
}

/// The chosen row with everything that made it faster alone: of alternatives the fastest.
///
/// `rows` are the measured rows of `candidates`, whose first is the chosen one.
#[must_use]
pub fn together(candidates: &[Candidate], rows: &[Row]) -> Option<Candidate> {
    let (chosen, added) = candidates.split_first()?;
    let latency = |name: &str| {
        let row = rows.iter().find(|row| row.name.as_deref() == Some(name))?;
        row.latency_s.filter(|_| is_no_worse(row))
    };
    let plain = latency(&chosen.name)?;
    let faster = |pick: &dyn Fn(&Candidate) -> bool| {
        let helped = added.iter().filter(|c| pick(c));
        let timed = helped.filter_map(|c| Some((latency(&c.name)?, c))).filter(|t| t.0 < plain);
        timed.min_by(|a, b| a.0.total_cmp(&b.0)).map(|t| t.1)
    };
    let mut all = chosen.clone();
    let mut names = vec![chosen.name.clone()];
    let mut take = |pick: &dyn Fn(&Candidate) -> bool, add: &dyn Fn(&mut Candidate, &Candidate)| {
        if let Some(helped) = faster(pick) {
            add(&mut all, helped);
            names.push(helped.name.replace(&format!("{} + ", chosen.name), ""));
        }
    };
    let gates = |c: &Candidate| c.options.gates;
    let own = gates(chosen);
    take(&|c| c.policy != chosen.policy, &|all, c| {
        (all.policy, all.options.proposer) = (c.policy, c.options.proposer);
    });
    take(&|c| c.options.salvage && !chosen.options.salvage, &|all, _| all.options.salvage = true);
    take(&|c| gates(c).merge_tokens != own.merge_tokens, &|all, c| {
        all.options.gates.merge_tokens = gates(c).merge_tokens;
    });
    take(&|c| gates(c).entropy_max != own.entropy_max, &|all, c| {
        all.options.gates.entropy_max = gates(c).entropy_max;
    });
    take(&|c| gates(c).confidence_min != own.confidence_min, &|all, c| {
        all.options.gates.confidence_min = gates(c).confidence_min;
    });
    all.name = names.join(" + ");
    // Of nothing or one thing there is a row already.
    (names.len() > 2).then_some(all)
}

/// Whether a row's accuracy is not below the base's by more than the standard error of the
/// difference. The base itself is no worse.
#[must_use]
pub fn is_no_worse(row: &Row) -> bool {
    row.vs_base.is_none_or(|paired| paired.accuracy + paired.se >= 0.0)
}

/// The fastest row that is no worse than the base; `None` where there are no latencies.
#[must_use]
pub fn choose(rows: &[Row]) -> Option<&Row> {
    let timed = rows.iter().filter(|row| is_no_worse(row) && row.latency_s.is_some());
    timed.min_by(|a, b| a.latency_s.unwrap_or(f64::MAX).total_cmp(&b.latency_s.unwrap_or(f64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::table::Paired;
    use crate::policy::Gates;

    fn row(name: &str, latency_s: f64, accuracy: f64, se: f64) -> Row {
        let paired = Paired { accuracy, se, n: 50, gained: 0, lost: 0, same: 0, speedup: None };
        Row {
            name: Some(name.into()),
            policy: PolicyKind::SpecReason,
            threshold: None,
            judge: None,
            accuracy: 0.5,
            accuracy_se: 0.07,
            n: 50,
            timed: 50,
            latency_s: Some(latency_s),
            latency_median_s: Some(latency_s),
            latency_quartiles_s: None,
            tokens: 100.0,
            acceptance: None,
            draft_share: 0.0,
            wasted: 0.0,
            agreement: None,
            salvaged: 0.0,
            ms: Default::default(),
            vs_base: (name != "base").then_some(paired),
        }
    }

    #[test]
    fn the_fastest_row_that_is_no_worse_is_chosen() {
        let rows = [
            row("base", 9.0, 0.0, 0.0),
            row("fast and wrong", 1.0, -0.10, 0.04),
            row("fast enough", 3.0, -0.02, 0.03),
            row("slow", 5.0, 0.05, 0.03),
        ];
        assert_eq!(choose(&rows).unwrap().name.as_deref(), Some("fast enough"));
        assert_eq!(choose(&rows[..2]).unwrap().name.as_deref(), Some("base"));
        let concurrent = Row { latency_s: None, ..rows[0].clone() };
        assert!(choose(&[concurrent]).is_none(), "no latency, no choice");
    }

    #[test]
    fn every_round_keeps_what_it_starts_from() {
        let judging = judging();
        assert_eq!(judging.len(), 1 + 2 * 2 * THRESHOLDS.len());
        assert!(judging.iter().all(|c| !c.options.gates.any()));
        let added = additions(&judging[3]);
        assert_eq!(added[0].name, judging[3].name);
        let names: std::collections::HashSet<_> = added.iter().map(|c| &c.name).collect();
        assert_eq!(names.len(), added.len(), "names tell rows apart");
        assert_eq!(additions(&judging[0]).len(), 3, "the base has nothing to gate");
    }

    #[test]
    fn what_helped_alone_is_taken_together() {
        let candidates = additions(&judging()[3]);
        let chosen = candidates[0].name.clone();
        let rows: Vec<_> = candidates
            .iter()
            .map(|c| match c.name.strip_prefix(&format!("{chosen} + ")) {
                None => row(&c.name, 4.0, 0.0, 0.0),
                Some("decode n-gram") => row(&c.name, 3.0, 0.0, 0.0),
                Some("decode draft") => row(&c.name, 3.5, 0.0, 0.0),
                Some("merge 64") => row(&c.name, 3.9, 0.0, 0.0),
                Some("confidence 0.9") => row(&c.name, 1.0, -0.2, 0.05),
                Some(_) => row(&c.name, 4.5, 0.0, 0.0),
            })
            .collect();
        let all = together(&candidates, &rows).unwrap();
        assert_eq!(all.policy, PolicyKind::SpecReasonDecode);
        assert_eq!(all.options.proposer, Some(Proposer::Ngram));
        assert_eq!(all.options.gates, Gates { merge_tokens: Some(64), ..Gates::default() });
        assert_eq!(all.name, format!("{chosen} + decode n-gram + merge 64"));
        assert!(together(&candidates[..1], &rows).is_none(), "nothing to take together");
    }
}
