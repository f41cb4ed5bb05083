//! From records to rows, and from rows to a table.
//!
//! A row's standard error is the binomial one, `sqrt(p (1 - p) / n)`. Policies run on the same
//! problems, so a difference to the base is taken problem by problem: its standard error is far
//! smaller than that of two independent rates.

use super::drive::Variant;
use super::problem::Problem;
use super::record::Record;
use crate::policy::PolicyKind;
use crate::telemetry::Phase;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap, HashSet};

/// One policy on all problems.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Its name, where the user gave it one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Who did what.
    pub policy: PolicyKind,
    /// Accept from this score on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f32>,
    /// Layout of the judge; `null` where nothing is judged.
    pub judge: Option<String>,
    /// Share of correct answers.
    pub accuracy: f64,
    /// Its standard error.
    pub accuracy_se: f64,
    /// Problems.
    pub n: usize,
    /// Problems whose request ran alone: latencies and phases are theirs.
    pub timed: usize,
    /// Mean time of a request; `null` where none ran alone.
    pub latency_s: Option<f64>,
    /// Median of the same.
    pub latency_median_s: Option<f64>,
    /// The quartiles around it, by linear interpolation.
    pub latency_quartiles_s: Option<[f64; 2]>,
    /// Mean tokens written and kept.
    pub tokens: f64,
    /// Share of scored steps that were accepted; `null` where nothing was scored.
    pub acceptance: Option<f64>,
    /// Share of the kept tokens the draft wrote.
    pub draft_share: f64,
    /// Mean tokens the draft wrote in vain.
    pub wasted: f64,
    /// Share of the tokens proposed to the base that it drew too; `null` where none was.
    pub agreement: Option<f64>,
    /// Mean tokens of rejected steps that the base wrote again.
    pub salvaged: f64,
    /// Mean milliseconds by phase: of requests that ran alone, if any did.
    pub ms: BTreeMap<String, f64>,
    /// Against the base alone, where it ran on the same problems.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vs_base: Option<Paired>,
}

/// A row against the base, problem by problem.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Paired {
    /// Accuracy minus the base's.
    pub accuracy: f64,
    /// Standard error of the difference.
    pub se: f64,
    /// Problems both have.
    pub n: usize,
    /// Problems only this row solves.
    pub gained: usize,
    /// Problems only the base solves.
    pub lost: usize,
    /// Problems with the base's own reply, token by token.
    pub same: usize,
    /// The base's mean time over this row's, on problems where both ran alone.
    pub speedup: Option<f64>,
}

/// The rows of `variants` over `problems`; a variant without any record has none.
#[must_use]
pub fn rows(records: &[Record], variants: &[Variant], problems: &[Problem]) -> Vec<Row> {
    let ids: HashSet<_> = problems.iter().map(|p| p.id.as_str()).collect();
    let of = |variant: &Variant| {
        let key = variant.key();
        let mine = records.iter().filter(|r| ids.contains(r.id.as_str()) && r.key() == key);
        let mine: Vec<_> = mine.collect();
        let alone = once(mine.iter().copied().filter(|r| !r.concurrent));
        // What ran alone counts first: where a window is chosen by time, counts depend on it.
        (once(alone.iter().chain(&mine).copied()), alone)
    };
    let mut rows = vec![];
    for variant in variants {
        let mine = of(variant);
        let Some(mut row) = row(&mine, variant) else { continue };
        if variant.policy != PolicyKind::Base {
            let is_base = |v: &&Variant| v.policy == PolicyKind::Base && v.draws_like(variant);
            let base = variants.iter().find(is_base).map(of);
            row.vs_base = base.and_then(|base| paired(&mine, &base));
        }
        rows.push(row);
    }
    rows
}

/// The records of a row, one a problem, and those of them that were made alone.
type Records<'a> = (Vec<&'a Record>, Vec<&'a Record>);

/// The first record of every problem.
fn once<'a>(records: impl Iterator<Item = &'a Record>) -> Vec<&'a Record> {
    let mut seen = HashSet::new();
    records.filter(|r| seen.insert(r.id.as_str())).collect()
}

fn row((records, alone): &Records<'_>, variant: &Variant) -> Option<Row> {
    if records.is_empty() {
        return None;
    }
    let timed = if alone.is_empty() { records } else { alone };
    let times = sorted_s(alone);
    let n = records.len() as f64;
    let sum =
        |value: fn(&Record) -> u32| -> f64 { records.iter().map(|r| f64::from(value(r))).sum() };
    let accuracy = records.iter().filter(|r| r.correct).count() as f64 / n;
    let (accepted, rewritten) = (sum(|r| r.accepted), sum(|r| r.rewritten));
    let scored = accepted + rewritten;
    let tokens = sum(|r| r.tokens);
    let phase = |name: &str| -> f64 {
        let ms = timed.iter().map(|r| r.ms.get(name).copied().unwrap_or(0.0));
        ms.sum::<f64>() / timed.len() as f64
    };
    let proposed = sum(|r| r.proposed);
    Some(Row {
        name: variant.name.clone(),
        policy: variant.policy,
        threshold: variant.threshold(),
        judge: variant.judge.clone(),
        accuracy,
        accuracy_se: standard_error(accuracy, records.len()),
        n: records.len(),
        timed: alone.len(),
        latency_s: mean(&times),
        latency_median_s: quantile(&times, 0.5),
        latency_quartiles_s: quantile(&times, 0.25)
            .zip(quantile(&times, 0.75))
            .map(|(low, high)| [low, high]),
        tokens: tokens / n,
        acceptance: (scored > 0.0).then(|| accepted / scored),
        draft_share: if tokens > 0.0 { sum(|r| r.draft_tokens) / tokens } else { 0.0 },
        wasted: sum(|r| r.wasted) / n,
        agreement: (proposed > 0.0).then(|| sum(|r| r.matched) / proposed),
        salvaged: sum(|r| r.salvaged) / n,
        ms: Phase::ALL.iter().map(|p| (p.name().to_owned(), phase(p.name()))).collect(),
        vs_base: None,
    })
}

/// The standard error of a rate: `sqrt(p (1 - p) / n)`; 0 for no trials.
#[must_use]
pub fn standard_error(p: f64, n: usize) -> f64 {
    if n == 0 { 0.0 } else { (p * (1.0 - p) / n as f64).sqrt() }
}

fn sorted_s(records: &[&Record]) -> Vec<f64> {
    let mut times: Vec<_> = records.iter().map(|r| r.total_ms / 1e3).collect();
    times.sort_by(f64::total_cmp);
    times
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// A quantile of sorted values, by linear interpolation between the two around it.
fn quantile(sorted: &[f64], p: f64) -> Option<f64> {
    let at = p * (sorted.len().checked_sub(1)? as f64);
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    Some(low + (high - low) * at.fract())
}

/// Pairs of records of the same problem.
fn both<'a>(mine: &[&'a Record], base: &[&'a Record]) -> Vec<(&'a Record, &'a Record)> {
    let base: HashMap<_, _> = base.iter().map(|r| (r.id.as_str(), *r)).collect();
    mine.iter().filter_map(|r| Some((*r, *base.get(r.id.as_str())?))).collect()
}

fn paired(mine: &Records<'_>, base: &Records<'_>) -> Option<Paired> {
    let pairs = both(&mine.0, &base.0);
    if pairs.is_empty() {
        return None;
    }
    let n = pairs.len() as f64;
    let gained = pairs.iter().filter(|(m, b)| m.correct && !b.correct).count();
    let lost = pairs.iter().filter(|(m, b)| !m.correct && b.correct).count();
    let accuracy = (gained as f64 - lost as f64) / n;
    // The differences are -1, 0 and 1: their mean square is the share of problems that differ.
    let variance = (gained + lost) as f64 / n - accuracy * accuracy;
    let same = pairs.iter().filter(|(m, b)| !m.reply.is_empty() && m.reply == b.reply).count();
    let timed = both(&mine.1, &base.1);
    let sum = |of: fn(&(&Record, &Record)) -> f64| -> f64 { timed.iter().map(of).sum() };
    let (ours, theirs) = (sum(|t| t.0.total_ms), sum(|t| t.1.total_ms));
    Some(Paired {
        accuracy,
        se: (variance.max(0.0) / n).sqrt(),
        n: pairs.len(),
        gained,
        lost,
        same,
        speedup: (!timed.is_empty()).then(|| theirs / ours),
    })
}

/// The rows as a markdown table.
#[must_use]
pub fn markdown(rows: &[Row]) -> String {
    let mut head: Vec<String> = [
        "policy",
        "judge",
        "n",
        "accuracy",
        "vs base",
        "same reply",
        "timed",
        "latency s (quartiles)",
        "speed-up",
        "tokens",
        "wasted",
        "accepted",
        "agreed",
        "salvaged",
        "by draft",
    ]
    .map(str::to_owned)
    .to_vec();
    head.extend(Phase::ALL.iter().map(|p| format!("{} ms", p.name())));
    let rule = std::iter::repeat_n("---:".to_owned(), head.len() - 2);
    let mut lines =
        vec![head.clone(), ["---".into(), "---".into()].into_iter().chain(rule).collect()];
    lines.extend(rows.iter().map(cells));
    let mut out = String::new();
    for line in lines {
        out.push_str(&format!("| {} |\n", line.join(" | ")));
    }
    out
}

fn cells(row: &Row) -> Vec<String> {
    let dash = || "-".to_owned();
    let percent = |share: f64| format!("{:.0} %", 100.0 * share);
    let latency = match (row.latency_median_s, row.latency_quartiles_s) {
        (Some(median), Some([low, high])) => format!("{median:.3} ({low:.3} to {high:.3})"),
        _ => "n/a (concurrent)".to_owned(),
    };
    let mut cells = vec![
        super::record::key(row.name.as_deref(), row.policy, row.threshold),
        row.judge.clone().unwrap_or_else(dash),
        row.n.to_string(),
        format!("{:.3} ± {:.3}", row.accuracy, row.accuracy_se),
        row.vs_base.map_or_else(dash, |p| format!("{:+.3} ± {:.3}", p.accuracy, p.se)),
        row.vs_base.map_or_else(dash, |p| format!("{} of {}", p.same, p.n)),
        row.timed.to_string(),
        latency,
        row.vs_base.and_then(|p| p.speedup).map_or_else(dash, |s| format!("{s:.2}")),
        format!("{:.1}", row.tokens),
        format!("{:.1}", row.wasted),
        row.acceptance.map_or_else(dash, percent),
        row.agreement.map_or_else(dash, percent),
        format!("{:.1}", row.salvaged),
        percent(row.draft_share),
    ];
    let phase = |p: &Phase| row.ms.get(p.name()).copied().unwrap_or(0.0);
    cells.extend(Phase::ALL.iter().map(|p| format!("{:.1}", phase(p))));
    cells
}
