//! `forerun bench` as users and the comparison script call it.

use std::process::{Command, Output};

fn bench(flags: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forerun"));
    command.arg("bench").args(flags.split_whitespace()).output().expect("the program runs")
}

fn rows(flags: &str) -> Vec<serde_json::Value> {
    let out = bench(flags);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).expect("a list in JSON")
}

#[test]
fn json_is_a_list_with_the_keys_of_llama_bench() {
    let rows = rows("-m tiny-draft -p 8,16 -n 4 -d 0,24 -r 2 -o json");
    let sizes: Vec<_> = rows
        .iter()
        .map(|row| ["n_prompt", "n_gen", "n_depth"].map(|key| row[key].as_u64().expect(key)))
        .collect();
    let expected = [[8, 0, 0], [16, 0, 0], [8, 0, 24], [16, 0, 24], [0, 4, 0], [0, 4, 24]];
    assert_eq!(sizes, expected);
    for row in &rows {
        let samples = row["samples_ts"].as_array().expect("samples");
        let rates: Vec<_> = samples.iter().map(|s| s.as_f64().expect("a rate")).collect();
        assert_eq!(rates.len(), 2);
        let (mean, spread) = ((rates[0] + rates[1]) / 2.0, (rates[0] - rates[1]).abs());
        assert!((row["avg_ts"].as_f64().expect("a mean") / mean - 1.0).abs() < 1e-9, "{row}");
        // The sample deviation of two values is their distance over the square root of two.
        let deviation = row["stddev_ts"].as_f64().expect("a deviation");
        assert!((deviation - spread / 2.0_f64.sqrt()).abs() < 1e-6 * mean, "{row}");
        assert_eq!(row["model_filename"], "tiny-draft");
        assert_eq!(row["backends"], "CPU");
        for key in ["model_size", "model_n_params", "n_threads"] {
            assert!(row[key].as_u64().is_some_and(|n| n > 0), "{key}: {row}");
        }
        for key in ["model_type", "test_time"] {
            assert!(row[key].as_str().is_some_and(|t| !t.is_empty()), "{key}: {row}");
        }
    }
}

#[test]
fn a_size_of_zero_skips_its_kind() {
    let generations = rows("-m tiny-draft -p 0 -n 3 -r 1 -o json");
    assert_eq!(generations.len(), 1);
    assert_eq!(generations[0]["n_gen"], 3);
    let prompts = rows("-m tiny-draft -p 3 -n 0 -r 1 -o json");
    assert_eq!(prompts.len(), 1);
    assert_eq!(prompts[0]["n_prompt"], 3);
}

#[test]
fn the_table_names_rows_as_llama_bench_does() {
    let out = bench("-m tiny-draft -p 8 -n 4 -d 0,24 -r 1");
    let text = String::from_utf8(out.stdout).expect("text");
    let tests: Vec<_> = text.lines().skip(2).filter_map(|l| l.split(" | ").nth(5)).collect();
    assert_eq!(tests, ["pp8", "pp8 @ d24", "tg4", "tg4 @ d24"], "{text}");
    assert!(text.starts_with("| model | size | params | backend | threads | test | t/s |\n"));
}

#[test]
fn what_cannot_be_measured_is_one_line_and_exit_code_2() {
    let bad = [
        ("-p 0 -n 0", "nothing to measure"),
        ("-m tiny-base -p 100000 -n 0", "context"),
        ("-m nowhere.gguf", "no such file"),
        ("-r 0", "0"),
        ("--device cuda", "cuda"),
        ("--pair tiny", "--overlap-sweep"),
        ("--overlap-sweep", "expected --device cuda"),
        ("--overlap-sweep --device cpu", "expected --device cuda"),
        ("--overlap-sweep --device cuda -o json", "--format md"),
        ("--overlap-sweep --device cuda --pair nothing", "nothing"),
    ];
    for (flags, expected) in bad {
        let out = bench(flags);
        let error = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(2), "{flags}: {error}");
        assert!(error.lines().count() == 1 && error.contains(expected), "{flags}: {error}");
        assert!(out.stdout.is_empty(), "{flags}");
    }
}
