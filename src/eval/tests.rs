//! Claims about the pure parts: rows, records, tables.

use super::drive::Pace;
use super::*;
use crate::engine::PolicyOptions;
use crate::policy::{FinishWhy, PolicyKind};
use crate::sample::SamplingOverrides;
use serde_json::json;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

fn problems(n: usize) -> Vec<Problem> {
    let lines: Vec<_> = (0..n).map(|i| format!(r#"{{"problem":"{i}+1?","answer":{i}}}"#)).collect();
    problem::parse(&lines.join("\n"), "data").unwrap()
}

fn variant(policy: PolicyKind, threshold: Option<f32>) -> Variant {
    Variant {
        name: None,
        policy,
        options: PolicyOptions { threshold, ..PolicyOptions::default() },
        sampling: SamplingOverrides::default(),
        judge: threshold.map(|_| "turn".to_owned()),
        settings: json!({"pair": "tiny", "top_p": 0.95}).as_object().unwrap().clone(),
    }
}

fn record(problem: &Problem, variant: &Variant, correct: bool, total_ms: f64) -> Record {
    Record {
        id: problem.id.clone(),
        row: variant.name.clone(),
        policy: variant.policy,
        threshold: variant.threshold(),
        correct,
        answer: Some("1".into()),
        finish: FinishWhy::Stop,
        tokens: 10,
        draft_tokens: 4,
        wasted: 3,
        proposed: 8,
        matched: 6,
        salvaged: 2,
        scores: vec![7.3, 8.0, 1.5],
        accepted: 2,
        rewritten: 1,
        ms: BTreeMap::from([("draft".to_owned(), 8.0)]),
        total_ms,
        concurrent: false,
        seed: 0,
        reply: "same".into(),
        problem: problem.fingerprint(),
        settings: variant.settings.clone(),
    }
}

/// One request at a time.
const ALONE: Pace = Pace { concurrency: 1, timed: 0 };

/// A state file in a folder that lives as long as the first value.
fn file(content: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.jsonl");
    std::fs::File::create(&path).unwrap().write_all(content).unwrap();
    (folder, path)
}

fn line(record: &Record) -> String {
    format!("{}\n", serde_json::to_string(record).unwrap())
}

#[test]
fn answers_are_numbers_texts_or_what_follows_the_hashes() {
    let text = concat!(
        r#"{"question":"a?","answer":90}"#,
        "\n\n",
        r#"{"problem":"b?","answer":"2 + 2 = 4\n#### 1,234","id":"x"}"#,
        "\n",
        r#"{"question":"c?","problem":"not this","answer":" \\frac{1}{2} ","id":7}"#,
    );
    let read = problem::parse(text, "f").unwrap();
    let seen: Vec<_> =
        read.iter().map(|p| (p.id.as_str(), p.question.as_str(), p.answer.as_str())).collect();
    assert_eq!(seen, [("#1", "a?", "90"), ("x", "b?", "1234"), ("7", "c?", r"\frac{1}{2}")]);
    assert_eq!(read.iter().map(|p| p.index).collect::<Vec<_>>(), [0, 1, 2]);
}

#[test]
fn a_bad_line_is_named_by_file_and_line() {
    let good = r#"{"question":"a?","answer":1,"id":"1"}"#;
    let bad = [
        ("{", "not JSON"),
        ("[]", "\"question\""),
        (r#"{"answer":1}"#, "\"question\""),
        (r#"{"question":"  ","answer":1}"#, "not empty"),
        (r#"{"question":"b?"}"#, "\"answer\""),
        (r#"{"question":"b?","answer":null}"#, "\"answer\""),
        (r#"{"question":"b?","answer":[1]}"#, "a number or a text"),
        (r#"{"question":"b?","answer":"so #### "}"#, "after"),
        (r#"{"question":"b?","answer":1,"id":"1"}"#, "line 1"),
    ];
    for (line, expected) in bad {
        let error = problem::parse(&format!("{good}\n{line}\n"), "f").unwrap_err().to_string();
        assert!(error.starts_with("f:2: ") && error.contains(expected), "{line}: {error}");
    }
}

#[test]
fn offset_and_limit_keep_the_index_of_the_file() {
    let lines: Vec<_> = (0..5).map(|i| format!(r#"{{"problem":"{i}?","answer":{i}}}"#)).collect();
    let (_folder, path) = file(lines.join("\n").as_bytes());
    let some = problem::read(&path, 1, Some(2)).unwrap();
    assert_eq!(some.iter().map(|p| p.index).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(problem::read(&path, 4, None).unwrap().len(), 1);
    let error = problem::read(&path, 5, None).unwrap_err();
    assert!(matches!(error, EvalError::NoProblems { have: 5, offset: 5, .. }), "{error}");
}

#[test]
fn fingerprints_are_fnv_1a() {
    // The published 64-bit FNV-1a of "foobar", continued by the byte that ends a text.
    let after = (0x8594_4171_f739_67e8_u64 ^ 0xff).wrapping_mul(0x0100_0000_01b3);
    assert_eq!(fingerprint(["foobar"]), format!("{after:016x}"));
    assert_ne!(fingerprint(["ab", "c"]), fingerprint(["a", "bc"]));
}

#[test]
fn records_come_back_from_the_file_as_they_went_in() {
    let (_folder, path) = file(b"");
    let (problems, spec) = (problems(2), variant(PolicyKind::SpecReason, Some(5.3)));
    let written: Vec<_> = problems.iter().map(|p| record(p, &spec, true, 0.1)).collect();
    let mut state = State::open(&path).unwrap();
    for record in &written {
        state.push(record.clone()).unwrap();
    }
    drop(state);
    let state = State::open(&path).unwrap();
    assert_eq!(state.records(), written);
    assert_eq!(state.notice, None);
    state.check(std::slice::from_ref(&spec), &problems).unwrap();
}

#[test]
fn a_cut_off_last_line_is_removed_and_said() {
    let (problems, base) = (problems(2), variant(PolicyKind::Base, None));
    let whole = line(&record(&problems[0], &base, true, 1.0));
    let second = line(&record(&problems[1], &base, true, 1.0));
    for cut in [1, 20, second.len() - 2] {
        let (_folder, path) = file(format!("{whole}{}", &second[..cut]).as_bytes());
        let mut state = State::open(&path).unwrap();
        assert_eq!(state.records().len(), 1, "{cut}");
        assert!(state.notice.as_deref().is_some_and(|n| n.contains(":2: ")), "{:?}", state.notice);
        state.push(record(&problems[1], &base, true, 1.0)).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{whole}{second}"), "{cut}");
    }
}

#[test]
fn a_last_line_that_lacks_only_its_end_is_kept() {
    let (problems, base) = (problems(2), variant(PolicyKind::Base, None));
    let whole = line(&record(&problems[0], &base, true, 1.0));
    let (_folder, path) = file(whole.trim_end().as_bytes());
    let state = State::open(&path).unwrap();
    assert_eq!((state.records().len(), &state.notice), (1, &None));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), whole);
}

#[test]
fn a_line_in_the_middle_that_is_no_record_is_an_error() {
    let base = variant(PolicyKind::Base, None);
    let good = line(&record(&problems(1)[0], &base, true, 1.0));
    let (_folder, path) = file(format!("{good}{{\"id\":1}}\n{good}").as_bytes());
    let error = State::open(&path).unwrap_err().to_string();
    assert!(error.contains("state.jsonl:2: expected a record"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 3, "nothing was removed");
}

#[test]
fn two_runs_cannot_write_to_one_file() {
    let (_folder, path) = file(b"");
    let _first = State::open(&path).unwrap();
    let error = State::open(&path).unwrap_err().to_string();
    assert!(error.contains("another forerun eval"), "{error}");
}

#[test]
fn other_settings_of_the_same_row_are_named() {
    let (problems, base) = (problems(1), variant(PolicyKind::Base, None));
    let mut state = State::default();
    state.push(record(&problems[0], &base, true, 1.0)).unwrap();
    let mut other = base.clone();
    other.settings.insert("top_p".into(), json!(0.9));
    let error = state.check(std::slice::from_ref(&other), &problems).unwrap_err().to_string();
    assert!(error.contains("base record") && error.contains("top_p 0.95"), "{error}");
    assert!(error.contains("has 0.9;"), "{error}");
    other.settings = base.settings.clone();
    other.settings.insert("more".into(), json!(1));
    let error = state.check(&[other], &problems).unwrap_err().to_string();
    assert!(error.contains("more not set"), "{error}");
    // Records of rows nobody asks for may be anything.
    state.check(&[variant(PolicyKind::SpecReason, Some(5.0))], &problems).unwrap();
}

#[test]
fn a_record_of_another_question_with_the_same_id_is_an_error() {
    let base = variant(PolicyKind::Base, None);
    let mut state = State::default();
    state.push(record(&problems(1)[0], &base, true, 1.0)).unwrap();
    let other = problem::parse(r#"{"problem":"another?","answer":0}"#, "f").unwrap();
    let error = state.check(&[base], &other).unwrap_err().to_string();
    assert!(error.contains("#1") && error.contains("another question"), "{error}");
}

#[test]
fn only_what_has_no_record_is_left_to_do_problem_by_problem() {
    let problems = problems(2);
    let variants = [
        variant(PolicyKind::Base, None),
        variant(PolicyKind::SpecReason, Some(3.0)),
        variant(PolicyKind::SpecReason, Some(5.0)),
    ];
    let done = [record(&problems[0], &variants[1], true, 1.0)];
    let left: Vec<_> = drive::jobs(&problems, &variants, &done, ALONE)
        .iter()
        .map(|job| format!("{} {}", job.problem.id, job.variant.key()))
        .collect();
    let expected = ["#1 base", "#1 specreason@5", "#2 base", "#2 specreason@3", "#2 specreason@5"];
    assert_eq!(left, expected);
}

#[test]
fn a_problem_that_ran_in_company_runs_again_where_its_latency_is_wanted() {
    let (problems, base) = (problems(4), [variant(PolicyKind::Base, None)]);
    let mut done: Vec<_> = problems
        .iter()
        .take(3)
        .map(|p| Record { concurrent: true, ..record(p, &base[0], true, 1.0) })
        .collect();
    let left = |records: &[Record], concurrency, timed| -> Vec<_> {
        let jobs = drive::jobs(&problems, &base, records, Pace { concurrency, timed });
        jobs.iter().map(|job| (job.problem.index, job.alone)).collect()
    };
    assert_eq!(left(&done, 8, 0), [(3, false)]);
    assert_eq!(left(&done, 1, 0), [(3, true)]);
    assert_eq!(left(&done, 8, 2), [(0, true), (1, true), (3, false)]);
    done.push(record(&problems[0], &base[0], true, 1.0));
    assert_eq!(left(&done, 8, 2), [(1, true), (3, false)]);
}

#[test]
fn rates_means_and_medians_are_those_of_the_records() {
    let (problems, spec) = (problems(4), variant(PolicyKind::SpecReason, Some(5.0)));
    let times = [1000.0, 2000.0, 4000.0, 9000.0];
    let mut records: Vec<_> = problems
        .iter()
        .zip(times)
        .enumerate()
        .map(|(i, (p, ms))| record(p, &spec, i != 3, ms))
        .collect();
    // Neither a second record of a problem nor one of a problem not asked for counts.
    records.push(record(&problems[0], &spec, false, 1.0));
    records.push(Record { id: "other".into(), ..records[0].clone() });
    let rows = rows(&records, std::slice::from_ref(&spec), &problems);
    let [row] = rows.as_slice() else { panic!("{rows:?}") };
    assert_eq!((row.n, row.accuracy), (4, 0.75));
    assert!((row.accuracy_se - 0.216_506_350_946_109_66).abs() < 1e-15);
    assert_eq!((row.latency_s, row.latency_median_s), (Some(4.0), Some(3.0)));
    // numpy.quantile([1, 2, 4, 9], [0.25, 0.75])
    assert_eq!((row.timed, row.latency_quartiles_s), (4, Some([1.75, 5.25])));
    assert_eq!((row.tokens, row.wasted, row.draft_share), (10.0, 3.0, 0.4));
    assert_eq!(row.acceptance, Some(2.0 / 3.0));
    assert_eq!((row.agreement, row.salvaged), (Some(0.75), 2.0));
    assert_eq!((row.ms["draft"], row.ms["host"]), (8.0, 0.0));
}

#[test]
fn differences_to_the_base_are_taken_problem_by_problem() {
    let problems = problems(4);
    let [base, draft] = [PolicyKind::Base, PolicyKind::Draft].map(|p| variant(p, None));
    let mut records = vec![];
    for (i, p) in problems.iter().enumerate() {
        records.push(record(p, &base, i < 3, 2000.0));
        records.push(record(p, &draft, i == 0 || i == 3, 500.0));
    }
    let rows = rows(&records, &[base, draft], &problems);
    assert_eq!(rows[0].vs_base, None);
    let paired = rows[1].vs_base.unwrap();
    assert_eq!((paired.n, paired.gained, paired.lost), (4, 1, 2));
    assert_eq!((paired.accuracy, paired.speedup), (-0.25, Some(4.0)));
    assert_eq!(paired.same, 4, "equal replies are told from equal marks");
    // numpy.std([0, -1, -1, 1]) / 2
    assert!((paired.se - 0.414_578_098_794_425).abs() < 1e-12, "{}", paired.se);
}

#[test]
fn times_of_requests_that_ran_together_are_no_latencies() {
    let (problems, base) = (problems(1), variant(PolicyKind::Base, None));
    let together = Record { concurrent: true, ..record(&problems[0], &base, true, 1.0) };
    let rows = rows(&[together], &[base], &problems);
    assert_eq!((rows[0].latency_s, rows[0].latency_median_s), (None, None));
    assert!(table::markdown(&rows).contains("n/a (concurrent)"));
}

#[test]
fn latencies_and_phases_are_of_requests_that_ran_alone_accuracy_is_of_all() {
    let problems = problems(3);
    let [base, draft] = [PolicyKind::Base, PolicyKind::Draft].map(|p| variant(p, None));
    let together = |p, v, correct| Record {
        concurrent: true,
        ms: BTreeMap::from([("draft".to_owned(), 1e6)]),
        ..record(p, v, correct, 1e9)
    };
    let mut records: Vec<_> = problems
        .iter()
        .flat_map(|p| [together(p, &base, true), together(p, &draft, true)])
        .collect();
    for (i, p) in problems.iter().take(2).enumerate() {
        records.push(record(p, &base, true, 3000.0));
        records.push(record(p, &draft, true, if i == 0 { 1000.0 } else { 2000.0 }));
    }
    let rows = rows(&records, &[base, draft], &problems);
    assert_eq!((rows[1].n, rows[1].timed, rows[1].latency_s), (3, 2, Some(1.5)));
    assert_eq!((rows[1].ms["draft"], rows[1].vs_base.unwrap().speedup), (8.0, Some(2.0)));
}

#[test]
fn sampled_rows_are_compared_with_the_sampled_base() {
    let problems = problems(2);
    let drawn = |policy, name: &str, temperature: f32| {
        let mut variant = Variant { name: Some(name.into()), ..variant(policy, None) };
        variant.settings.insert("sampling".into(), json!({ "temperature": temperature }));
        variant
    };
    let variants = [
        drawn(PolicyKind::Base, "greedy base", 0.0),
        drawn(PolicyKind::Base, "sampled base", 0.5),
        drawn(PolicyKind::SpecDecode, "sampled", 0.5),
        drawn(PolicyKind::SpecDecode, "unmatched", 0.25),
    ];
    let mut records = vec![];
    for p in &problems {
        for v in &variants {
            records.push(record(p, v, v.key() != "greedy base", 1.0));
        }
    }
    records[2].reply = "another".into();
    let rows = rows(&records, &variants, &problems);
    let paired = rows[2].vs_base.unwrap();
    assert_eq!((paired.accuracy, paired.same), (0.0, 1));
    assert_eq!(rows[3].vs_base, None, "nothing was drawn like it");
}

#[test]
fn rows_of_one_policy_are_told_apart_by_name() {
    let problems = problems(2);
    let named = |name: &str| Variant {
        name: Some(name.into()),
        ..variant(PolicyKind::SpecReasonDecode, Some(7.0))
    };
    let variants = [named("chain"), named("n-gram")];
    let records: Vec<_> = problems
        .iter()
        .flat_map(|p| variants.iter().map(move |v| (p, v)))
        .map(|(p, v)| record(p, v, v.key() == "chain", 1.0))
        .collect();
    assert!(drive::jobs(&problems, &variants, &records, ALONE).is_empty());
    let rows = rows(&records, &variants, &problems);
    let accuracies: Vec<_> =
        rows.iter().map(|r| (r.name.as_deref().unwrap(), r.accuracy)).collect();
    assert_eq!(accuracies, [("chain", 1.0), ("n-gram", 0.0)]);
    assert!(table::markdown(&rows).contains("| n-gram | turn |"));
}

#[test]
fn every_line_of_the_table_has_the_same_columns() {
    let problems = problems(1);
    let variants = [variant(PolicyKind::Base, None), variant(PolicyKind::SpecReason, Some(5.5))];
    let records: Vec<_> = variants.iter().map(|v| record(&problems[0], v, true, 1.0)).collect();
    let text = table::markdown(&rows(&records, &variants, &problems));
    let columns: Vec<_> = text.lines().map(|l| l.matches('|').count()).collect();
    assert_eq!(columns, [22; 4], "{text}");
    assert!(text.contains("| specreason@5.5 | turn | 1 | 1.000 ± 0.000 | +0.000"), "{text}");
}
