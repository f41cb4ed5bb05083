//! `forerun eval` on the embedded pair: what is kept, what a rerun adds, what a table says.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/assets/tiny/problems_dev.jsonl");

fn command(flags: &str, out: Option<&Path>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forerun"));
    command.arg("eval").args(flags.split_whitespace());
    if !flags.contains("--data") {
        command.args(["--data", DATA]);
    }
    if let Some(path) = out {
        command.arg("--out").arg(path);
    }
    command
}

fn run(flags: &str, out: Option<&Path>) -> Output {
    command(flags, out).output().expect("the program runs")
}

fn report(flags: &str, out: Option<&Path>) -> Value {
    let done = run(flags, out);
    assert!(done.status.success(), "{}", stderr(&done));
    serde_json::from_slice(&done.stdout).expect("an object in JSON")
}

fn stderr(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// Rows without what depends on the clock.
fn timeless(report: &Value) -> Vec<Value> {
    let mut rows = report["rows"].as_array().expect("rows").clone();
    for row in &mut rows {
        let row = row.as_object_mut().expect("a row");
        row.retain(|key, _| !key.starts_with("latency") && key != "ms");
        row.remove("timed");
        if let Some(paired) = row.get_mut("vs_base") {
            paired["speedup"] = Value::Null;
        }
    }
    rows
}

/// A folder that lives as long as the first value, and a file in it that does not exist.
fn state() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("state.jsonl");
    (folder, path)
}

#[test]
fn a_broken_off_run_goes_on_to_the_same_table() {
    let (_folder, path) = state();
    let flags = "--policy base,draft,specreason --limit 6 --seed 3 -o json";
    let whole = report(flags, Some(&path));
    assert_eq!((&whole["seed"], whole["rows"].as_array().map(Vec::len)), (&3.into(), Some(3)));
    let kept = std::fs::read(&path).expect("the state");
    assert_eq!(kept.iter().filter(|b| **b == b'\n').count(), 18);

    // As after a crash: four records and a half are lost.
    let lines: Vec<_> = kept.split_inclusive(|b| *b == b'\n').collect();
    let mut cut = lines[..13].concat();
    cut.extend(&lines[13][..lines[13].len() / 2]);
    std::fs::write(&path, &cut).expect("the state is writable");
    let again = run(flags, Some(&path));
    assert!(stderr(&again).contains("state.jsonl:14: the last line is cut off"));
    let resumed: Value = serde_json::from_slice(&again.stdout).expect("an object in JSON");
    assert_eq!(timeless(&resumed), timeless(&whole));
    let grown = std::fs::read(&path).expect("the state");
    assert!(grown.starts_with(&lines[..13].concat()), "earlier records are not touched");

    // Nothing is left to do: the same bytes, times included.
    assert_eq!(report(flags, Some(&path)), resumed);
    assert_eq!(std::fs::read(&path).expect("the state"), grown);
}

#[test]
fn acceptance_falls_as_the_threshold_rises() {
    let report = report("--policy specreason --threshold 1,5.5,8.9 --limit 12 -o json", None);
    let rows = report["rows"].as_array().expect("rows");
    let thresholds: Vec<_> = rows.iter().map(|r| r["threshold"].to_string()).collect();
    assert_eq!(thresholds, ["1.0", "5.5", "8.9"]);
    let of = |key: &str| rows.iter().map(|r| r[key].as_f64().expect(key)).collect::<Vec<_>>();
    let acceptance = of("acceptance");
    assert!(acceptance.is_sorted_by(|a, b| a >= b) && acceptance[0] > acceptance[2]);
    let shares = of("draft_share");
    assert!(shares.is_sorted_by(|a, b| a >= b) && shares[0] > shares[2], "{shares:?}");
    assert!(rows.iter().all(|r| r["n"] == 12 && r["judge"].is_string()));
}

#[test]
fn requests_at_the_same_time_give_the_same_answers_and_no_latencies() {
    let flags = "--policy base,specreason --limit 6 -o json";
    let [one, four] = ["1", "4"].map(|c| report(&format!("{flags} --concurrency {c}"), None));
    assert_eq!(timeless(&one), timeless(&four));
    assert!(one["rows"][0]["latency_s"].is_f64() && four["rows"][0]["latency_s"].is_null());
    assert!(four["rows"][0]["ms"]["rewrite"].is_f64());
}

#[test]
fn the_first_problems_run_alone_where_their_latency_is_wanted() {
    let (_folder, path) = state();
    let flags = "--limit 4 -o json --concurrency 4 --policy base,spec-decode --proposer ngram";
    let together = report(flags, Some(&path));
    let both = report(&format!("{flags} --timed 2"), Some(&path));
    let kept = std::fs::read_to_string(&path).expect("the state");
    assert_eq!(kept.lines().count(), 2 * 4 + 2 * 2);
    for (i, row) in both["rows"].as_array().expect("rows").iter().enumerate() {
        assert_eq!((&row["n"], &row["timed"]), (&4.into(), &2.into()));
        assert!(row["latency_s"].is_f64() && row["latency_quartiles_s"].is_array());
        assert_eq!(row["accuracy"], together["rows"][i]["accuracy"]);
    }
    let paired = &both["rows"][1]["vs_base"];
    assert_eq!(paired["same"], 4, "what is looked up changes no token");
    assert!(paired["speedup"].is_f64());
}

#[test]
fn records_of_other_settings_are_not_mixed_in() {
    let (_folder, path) = state();
    report("--policy draft --limit 2 -o json", Some(&path));
    let kept = std::fs::read(&path).expect("the state");
    let other = run("--policy draft --limit 4 --temperature 0.9 -o json", Some(&path));
    assert_eq!(other.status.code(), Some(2));
    let error = stderr(&other);
    assert!(error.contains("state.jsonl:1: this draft record") && error.contains("sampling"));
    assert!(other.stdout.is_empty());
    assert_eq!(std::fs::read(&path).expect("the state"), kept);
    // More problems, and another policy whose knobs differ, do go together.
    let more = report("--policy draft,specreason --limit 3 --score greedy -o json", Some(&path));
    assert_eq!(more["rows"][0]["n"], 3);
}

#[test]
fn a_bad_data_file_is_one_line_with_file_and_line() {
    let (_folder, path) = state();
    let bad = [
        ("{\"question\":\"a?\",\"answer\":1}\nnot json\n", "state.jsonl:2: not JSON"),
        ("{\"question\":\"a?\"}\n", "state.jsonl:1: expected a field \"answer\""),
        ("{\"answer\":1}\n", "state.jsonl:1: expected a field \"question\""),
        ("\n", "no problems left"),
    ];
    for (content, expected) in bad {
        std::fs::write(&path, content).expect("a writable folder");
        let out = run(&format!("--data {}", path.display()), None);
        let error = stderr(&out);
        assert_eq!(out.status.code(), Some(2), "{error}");
        assert!(error.lines().count() == 1 && error.contains(expected), "{error}");
    }
    let missing = run("--data nowhere.jsonl", None);
    assert_eq!(missing.status.code(), Some(2));
    assert!(stderr(&missing).contains("nowhere.jsonl"));
}

#[cfg(unix)]
#[test]
fn an_interrupt_keeps_whole_records_and_says_how_to_go_on() {
    let (_folder, path) = state();
    let mut child = command("--policy base,draft -o json", Some(&path));
    let child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let lines = || std::fs::read_to_string(&path).map_or(0, |text| text.lines().count());
    let begin = std::time::Instant::now();
    while lines() < 3 {
        assert!(begin.elapsed().as_secs() < 120, "no records after two minutes");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(killed.expect("kill runs").success());
    let out = child.wait_with_output().expect("it ends");
    assert_eq!(out.status.code(), Some(130), "{}", stderr(&out));
    assert!(out.stdout.is_empty());
    assert!(stderr(&out).contains("the same command goes on from there"), "{}", stderr(&out));
    let kept = std::fs::read_to_string(&path).expect("the state");
    assert!(kept.ends_with('\n') && lines() < 400);
    assert!(kept.lines().all(|l| serde_json::from_str::<Value>(l).is_ok()));
}

#[test]
fn a_row_is_a_name_and_the_flags_of_its_policy() {
    let rows = "--limit 3 -o json --row base=--policy_base --row look=--policy_spec-decode_\
                --proposer_ngram_--window_4 --row save=--policy_specreason_--salvage \
                --row warm=--policy_base_--temperature_0.9 --token-budget 200 \
                --row ahead=--policy_specreason_--draft-ahead_1_--token-budget_100 \
                --row last=--policy_draft";
    let mut command = command("", None);
    command.args(rows.split_whitespace().map(|word| word.replace('_', " ")));
    let out = command.output().expect("the program runs");
    assert!(out.status.success(), "{}", stderr(&out));
    let report: Value = serde_json::from_slice(&out.stdout).expect("an object in JSON");
    let rows = report["rows"].as_array().expect("rows");
    let names: Vec<_> = rows.iter().map(|row| row["name"].as_str().expect("a name")).collect();
    assert_eq!(names, ["base", "look", "save", "warm", "ahead", "last"]);
    let settings = &report["settings"];
    assert_eq!(settings["warm"]["sampling"]["temperature"], 0.9);
    assert_eq!(settings["base"]["token_budget"], 200, "flags for all rows");
    assert_eq!(settings["ahead"]["token_budget"], 100, "a row's own flags win");
    assert!(rows[3]["vs_base"].is_null() && rows[4]["vs_base"].is_object());
    assert_eq!(rows[1]["accuracy"], rows[0]["accuracy"]);
    assert!(rows[1]["agreement"].as_f64() > Some(0.0) && rows[0]["agreement"].is_null());
    assert!(rows[2]["salvaged"].as_f64() > Some(0.0));
    for (flags, word) in [
        ("--row base", "NAME=FLAGS"),
        ("--row a=--policy", "--row a: "),
        ("--row a=--window=9", "0 to 8"),
        ("--row a= --row a=", "twice"),
        ("--row a= --policy base", "cannot be used with"),
    ] {
        let out = run(flags, None);
        assert_eq!(out.status.code(), Some(2), "{flags}");
        assert!(stderr(&out).contains(word), "{flags}: {}", stderr(&out));
    }
}

#[test]
fn what_calibrate_chooses_is_what_run_does_with_it() {
    let (folder, path) = state();
    let tuned = folder.path().join("tuned.json");
    let forerun = |verb: &str, flags: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_forerun"));
        command.arg(verb).args(flags).stdin(Stdio::null());
        command.output().expect("the program runs")
    };
    let text = |path: &Path| path.to_str().expect("a path in UTF-8").to_owned();
    let (out, save) = (text(&path), text(&tuned));
    let few = ["--limit", "4", "--timed", "2", "--concurrency", "2"];
    let flags = [&["--data", DATA, "--out", &out, "--save", &save], few.as_slice()].concat();
    let first = forerun("calibrate", &flags);
    assert!(first.status.success(), "{}", stderr(&first));
    let chosen = std::fs::read_to_string(&tuned).expect("the choice");
    let chosen: Value = serde_json::from_str(&chosen).expect("an object in JSON");
    assert_eq!(chosen["pair"], "tiny");
    // Thresholds that decide alike share a reply, down to its times.
    let kept = std::fs::read_to_string(&path).expect("the state");
    let times = kept.lines().map(|line| serde_json::from_str::<Value>(line).expect("a record"));
    let times: Vec<_> = times.map(|record| record["total_ms"].to_string()).collect();
    let written: std::collections::HashSet<_> = times.iter().collect();
    assert!(written.len() < times.len(), "{} replies in as many records", times.len());
    // The records are all there: the second time nothing runs, and the choice is the same.
    let again = forerun("calibrate", &flags);
    assert_eq!(again.stdout, first.stdout);
    let reply = forerun("run", &["--json", "--tuned", &save]);
    let reply: Value = serde_json::from_slice(&reply.stdout).expect("an object in JSON");
    assert_eq!(reply["settings"]["policy"], chosen["policy"]);
    let reply = forerun("run", &["--json", "--tuned", &save, "--policy", "draft"]);
    let reply: Value = serde_json::from_slice(&reply.stdout).expect("an object in JSON");
    assert_eq!(reply["settings"]["policy"], "draft", "flags win");
    let row = format!("tuned=--tuned {save}");
    let row = forerun("eval", &["--data", DATA, "--limit", "1", "-o", "json", "--row", &row]);
    let row: Value = serde_json::from_slice(&row.stdout).expect("an object in JSON");
    assert_eq!(row["rows"][0]["policy"], chosen["policy"]);
    std::fs::write(&tuned, r#"{"pair":"other","policy":"base","options":{}}"#).expect("writable");
    let refused = forerun("run", &["--tuned", &save]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains("chosen for the pair other"), "{}", stderr(&refused));
}

#[test]
fn doctor_measures_and_says_what_to_do() {
    let doctor = |flags: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_forerun"));
        command.arg("doctor").args(flags).output().expect("the program runs")
    };
    let out = doctor(&["--data", DATA, "--limit", "2"]);
    assert!(out.status.success(), "{}", stderr(&out));
    let told = String::from_utf8_lossy(&out.stdout).into_owned();
    for word in ["base writes a token", "steps accepted", "model ", "measured "] {
        assert!(told.contains(word), "{word}: {told}");
    }
    let advice = told.contains("times the base") || told.contains("should be off");
    assert!(advice, "{told}");
    let out = doctor(&["--public-runs"]);
    let told = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(told.contains("logged  160.6 s") && told.contains("not measured"), "{told}");
}
