//! `forerun bench --overlap-sweep` as a researcher calls it.

use crate::emulator::{kernels, library, on_hardware};
use std::process::Command;

/// The cells of the table's row that begins with `mode`.
fn row<'a>(text: &'a str, mode: &str) -> Vec<&'a str> {
    let begin = format!("| {mode} ");
    let line = text.lines().find(|line| line.starts_with(&begin));
    let line = line.unwrap_or_else(|| panic!("no row {mode} in\n{text}"));
    line.split('|').map(str::trim).collect()
}

#[test]
fn a_sweep_counts_every_mode_and_times_none_on_the_software_gpu() {
    if !kernels() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut sweep = Command::new(env!("CARGO_BIN_EXE_forerun"));
    sweep.args(["bench", "--overlap-sweep", "--device", "cuda", "--sweep-sm-pct", "25,50"]);
    sweep.args(["--tokens-max", "40", "--trace"]).arg(folder.path().join("t.json"));
    if !on_hardware() {
        sweep.arg("--cuda-driver").arg(library());
    }
    let out = sweep.output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8(out.stdout).unwrap();
    eprintln!("{text}");

    let number = |mode: &str, column: usize| -> u64 {
        row(&text, mode)[column].parse().unwrap_or_else(|e| panic!("{mode}, {column}: {e}\n{text}"))
    };
    // Engine steps, passes of both, those beside the other's, tokens.
    for mode in ["off", "stream", "green-ctx 25 %"] {
        for column in [3, 4, 5, 8] {
            assert!(number(mode, column) > 0, "{mode}, column {column}:\n{text}");
        }
        assert_eq!(number(mode, 8), number("off", 8), "tokens:\n{text}");
        let beside = [number(mode, 6), number(mode, 7)];
        if mode == "off" {
            assert_eq!(beside, [0, 0], "one pass at a time:\n{text}");
        } else {
            assert!(beside.iter().all(|n| *n > 0), "{mode} overlaps nothing:\n{text}");
        }
        assert_eq!(row(&text, mode)[9].is_empty(), !on_hardware(), "a time:\n{text}");
        let trace =
            folder.path().join(format!("t.{}.json", mode.replace(" %", "").replace(' ', "-")));
        let events: Vec<serde_json::Value> =
            serde_json::from_slice(&std::fs::read(trace).unwrap()).unwrap();
        assert!(events.iter().any(|event| event["name"] == "score"), "{mode}: no score traced");
    }
    if !on_hardware() {
        // Of 16 SMs in parts of 8 there is one split; the second is told of, not repeated.
        assert_eq!(row(&text, "green-ctx 25 %")[2], "8 + 8");
        assert!(!text.contains("| green-ctx 50 %"), "{text}");
        assert!(String::from_utf8_lossy(&out.stderr).contains("green-ctx 50 % is left out"));
        assert!(text.contains("counts only"), "{text}");
    }
    // And what the model says, labelled.
    assert!(text.contains("Model, nothing measured"), "{text}");
    for gpu in ["A100", "H100", "H200"] {
        assert!(text.contains(&format!("| {gpu} | stream |")), "{text}");
    }
}
