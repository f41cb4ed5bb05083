//! The command line as users and scripts meet it: outputs, exit codes, one-line errors.

#![cfg(feature = "cli")]

use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// The program without anything of the user's environment.
fn forerun(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forerun"));
    command.args(arguments).env_clear().stdin(Stdio::null());
    command.env("FORERUN_MODELS", "/nonexistent").env("HOME", "/nonexistent");
    command
}

struct Ran {
    out: String,
    err: String,
    code: i32,
}

fn run(command: &mut Command) -> Ran {
    let output = command.output().expect("the program starts");
    Ran {
        out: String::from_utf8(output.stdout).expect("UTF-8"),
        err: String::from_utf8(output.stderr).expect("UTF-8"),
        code: output.status.code().expect("no signal"),
    }
}

/// The object `--json` prints.
fn json(arguments: &[&str]) -> Value {
    let arguments = [&["run", "--json"], arguments].concat();
    let ran = run(&mut forerun(&arguments));
    assert_eq!(ran.code, 0, "{arguments:?}: {}", ran.err);
    assert_eq!(ran.out.lines().count(), 1);
    serde_json::from_str(&ran.out).expect("one JSON object")
}

/// The one line a failing run prints, without `error: `.
fn error(arguments: &[&str]) -> String {
    refused(&mut forerun(arguments), &format!("{arguments:?}"))
}

fn refused(command: &mut Command, what: &str) -> String {
    let ran = run(command);
    assert_eq!(ran.code, 2, "{what}: {}", ran.err);
    assert_eq!(ran.out, "", "{what} printed something");
    assert_eq!(ran.err.lines().count(), 1, "{what}: {}", ran.err);
    let line = ran.err.strip_prefix("error: ").unwrap_or_else(|| panic!("{what}: {}", ran.err));
    line.trim_end().to_owned()
}

const QUESTION: &str = "Mia bakes 22 cookies. She sells half of the cookies. She bakes 11 more \
                        cookies. How many cookies are left?";

#[test]
fn without_arguments_the_built_in_question_is_answered() {
    let ran = run(&mut forerun(&["run"]));
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    for part in [
        "No question given; here is one the pair tiny can answer:\nNina reads 14 pages",
        "\n[draft ",
        " rejected] ",
        "\n[base] ",
        "\n[base answer] The answer is \\boxed{90}.\n",
        "\nanswer     90\n",
        "\nfinish     stop\n",
        " drafted, ",
        " rewritten\n",
        "\ntokens     ",
        "\ntime       ",
        "\nspeed      ",
        "\nbase only  ",
        // The context is smaller than the default budget, and the table says so.
        "\nbudget     900 thinking tokens instead of 8192: the context of 1024",
    ] {
        assert!(ran.out.contains(part), "{part:?} is not in {}", ran.out);
    }
    assert!(!ran.out.contains(['\x1b', '\r']), "escape sequences in a file: {}", ran.out);
}

#[test]
fn json_is_one_object_with_every_key() {
    let reply = json(&[]);
    assert_eq!(reply["answer"], "90");
    assert_eq!(reply["finish"], "stop");
    assert!(reply["text"].as_str().unwrap().contains("\\boxed{90}"));
    let steps = reply["steps"].as_array().unwrap();
    let mut origins: Vec<_> = steps.iter().map(|s| s["origin"].as_str().unwrap()).collect();
    origins.sort_unstable();
    origins.dedup();
    assert_eq!(origins, ["base", "draft"], "some accepted, some rewritten");
    for step in steps {
        assert!(step["text"].is_string() && step["score"].is_number(), "{step}");
        assert!(step["tokens"].as_u64().unwrap() > 0 && step["ms"].as_f64().unwrap() > 0.0);
    }
    let tokens = &reply["tokens"];
    let count = |key: &str| tokens[key].as_u64().unwrap_or_else(|| panic!("{key} in {tokens}"));
    let ids = reply["ids"].as_array().unwrap();
    assert!(ids.iter().all(Value::is_u64));
    assert_eq!(count("draft") + count("base") + count("injected"), ids.len() as u64);
    assert!(count("wasted") > 0 && count("prompt_base") > 0 && count("prompt_draft") > 0);
    let ms = &reply["ms"];
    let phases = ["prompt", "draft", "score", "rewrite", "answer", "host"];
    let sum: f64 = phases.iter().map(|p| ms[p].as_f64().unwrap()).sum();
    let total = ms["total"].as_f64().unwrap();
    assert!((sum - total).abs() < 1e-6 * total, "the phases are the whole: {ms}");
    assert!(ms["base_only_estimate"].as_f64().unwrap() > 0.0, "the base wrote steps: {ms}");
    assert_eq!(reply["settings"]["pair"], "tiny");
    assert_eq!(reply["settings"]["token_budget_asked"], 8192);
}

#[test]
fn a_question_comes_from_the_argument_or_standard_input() {
    let argument = json(&[QUESTION]);
    assert_eq!(argument["answer"], "22");
    for arguments in [&["run", "--json"][..], &["run", "--json", "-"][..]] {
        let mut child = forerun(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        writeln!(child.stdin.take().unwrap(), "{QUESTION}\n").unwrap();
        let output = child.wait_with_output().unwrap();
        let piped: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(piped["ids"], argument["ids"], "{arguments:?}");
    }
    assert_eq!(error(&["run", " "]), "the question is empty");
    assert_eq!(error(&["run", "-"]), "the question on standard input is empty");
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_seed_others() {
    let with = |seed: &str| json(&["--temperature", "1.5", "--seed", seed, QUESTION]);
    let (first, again) = (with("7"), with("7"));
    for key in ["text", "ids", "answer", "finish", "tokens", "settings"] {
        assert_eq!(first[key], again[key], "{key}");
    }
    assert_eq!(first["settings"]["seed"], 7);
    assert!((1..5).any(|seed| with(&seed.to_string())["ids"] != first["ids"]));
}

#[test]
fn policies_and_answerers_are_who_they_say() {
    for (policy, writes) in [("base", "base"), ("draft", "draft")] {
        let reply = json(&["--policy", policy]);
        let steps = reply["steps"].as_array().unwrap();
        assert!(steps.iter().all(|s| s["origin"] == writes && s["score"].is_null()), "{policy}");
        assert_eq!(reply["settings"]["answer_by"], writes);
    }
    let last = json(&["--answer-by", "last", "--threshold=-1"]);
    assert_eq!(last["tokens"]["base"], 0);
    let first = json(&["--first-n", "1"]);
    assert_eq!(first["steps"][0]["origin"], "base");
    assert!(first["steps"][0]["score"].is_null());
    let logprobs = json(&["--step-logprobs"]);
    let step = logprobs["steps"].as_array().unwrap().iter().find(|s| s["origin"] == "draft");
    let step = step.expect("an accepted step");
    assert_eq!(step["logprobs"].as_array().unwrap().len() as u64, step["tokens"].as_u64().unwrap());
}

#[test]
fn lookahead_that_finds_nothing_to_be_the_same_says_what_base_says() {
    let base = json(&["--policy", "base", QUESTION]);
    for ahead in ["0", "4"] {
        let flags = ["--policy", "lookahead", "--threshold", "10", "--draft-ahead", ahead];
        let reply = json(&[&flags[..], &[QUESTION]].concat());
        assert_eq!(reply["ids"], base["ids"]);
        assert_eq!(reply["settings"]["policy"], "lookahead");
        assert_eq!(reply["settings"]["judge"], "compare");
        assert!(reply["ms"]["base_only_estimate"].is_null(), "its steps were not written alone");
    }
}

#[test]
fn every_alias_sets_what_its_name_sets() {
    let pairs: &[(&[&str], &[&str])] = &[
        (&["--threshold", "3"], &["--reason-threshold", "3"]),
        (&["--score", "mean"], &["--score", "average"]),
        (
            &["--score", "prob", "--score-cutoff", "0.3"],
            &["--reason-score=prob", "--score-cutoff=.3"],
        ),
        (&["--first-n", "2"], &["--reason-first-n-base-steps", "2"]),
        (&["--token-budget", "40"], &["--reason-token-budget", "40"]),
        (&["--step-tokens", "9"], &["--reason-step-max-tokens", "9"]),
        (&["--step-delimiter", "\n\n"], &["--reason-step-delimiter", r"\n\n"]),
        (&["--temperature", "0.5"], &["--temp", "0.5"]),
        (&["--max-model-len", "512"], &["--ctx-size", "512"]),
        (&["--max-model-len", "512"], &["-c", "512"]),
        (&["--threads", "1"], &["-t", "1"]),
        (&["--repetition-penalty", "1.3"], &["--repeat-penalty", "1.3"]),
        (
            &["--base", "tiny-base", "--draft", "tiny-draft"],
            &["-m", "tiny-base", "-md", "tiny-draft"],
        ),
        (
            &["--base", "tiny-base", "--draft", "tiny-draft"],
            &["--model", "tiny-base", "--draft-model", "tiny-draft"],
        ),
    ];
    for (ours, theirs) in pairs {
        let (ours, theirs) =
            (json(&[ours, &[QUESTION][..]].concat()), json(&[theirs, &[QUESTION][..]].concat()));
        assert_eq!(ours["settings"], theirs["settings"], "{theirs}");
        assert_eq!(ours["ids"], theirs["ids"]);
    }
}

#[test]
fn the_environment_mirrors_flags_and_a_flag_wins() {
    let mut command = forerun(&["run", "--threshold", "2", QUESTION]);
    command.env("FORERUN_JSON", "1").env("FORERUN_THRESHOLD", "9").env("FORERUN_SCORE", "greedy");
    command.env("FORERUN_TOKEN_BUDGET", "60").env("FORERUN_SEED", "5").env("FORERUN_TOP_K", "3");
    command.env("FORERUN_MAX_MODEL_LEN", "600").env("FORERUN_DEVICE", "reference");
    command.env("FORERUN_LOGIT_BIAS", "5:-1.5,6:1").env("FORERUN_JUDGE", "prefix");
    let ran = run(&mut command);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    let settings = &serde_json::from_str::<Value>(&ran.out).unwrap()["settings"];
    let expected = [
        ("threshold", 2.into()),
        ("score", "greedy".into()),
        ("token_budget", 60.into()),
        ("seed", 5.into()),
        ("top_k", 3.into()),
        ("max_model_len", 600.into()),
        ("device", "reference".into()),
        ("judge", Value::from("prefix")),
    ];
    for (key, value) in expected {
        let (found, wanted) = (&settings[key], &value);
        let same = found == wanted || (found.is_number() && found.as_f64() == wanted.as_f64());
        assert!(same, "{key}: {found}, expected {wanted}");
    }
    let line = refused(forerun(&["run"]).env("FORERUN_TOP_P", "7"), "FORERUN_TOP_P");
    assert_eq!(line, "top_p: expected more than 0 and at most 1, got 7");
    let line = refused(forerun(&["list"]).env("FORERUN_LOG", "=="), "FORERUN_LOG");
    assert!(line.starts_with("FORERUN_LOG="), "{line}");
}

#[test]
fn every_bad_flag_is_one_line_that_names_it() {
    let cases: &[(&[&str], &[&str])] = &[
        (&["frobnicate"], &["unrecognized subcommand 'frobnicate'"]),
        (&["run", "--tempature", "1"], &["'--tempature'", "tip: ", "'--temperature'"]),
        (&["run", "a", "b"], &["unexpected argument 'b'"]),
        (
            &["run", "--policy", "x"],
            &["--policy", "there are base, draft, spec-decode, specreason, "],
        ),
        (&["run", "--device", "x"], &["--device", "auto, cpu, cuda and reference"]),
        (&["run", "--device", "cuda"], &["device cuda: ", "use --device cpu"]),
        (&["run", "--score", "x"], &["--score", "greedy, mean (or average) or prob"]),
        (&["run", "--answer-by", "x"], &["--answer-by", "base, draft, last"]),
        (&["run", "--reasoning", "x"], &["--reasoning", "[possible values: auto, tags, none]"]),
        (&["run", "--threshold", "x"], &["--threshold"]),
        (&["run", "--threshold", "nan"], &["threshold: expected a number"]),
        (&["run", "--score-cutoff", "2"], &["--score-cutoff: expected a probability from 0 to 1"]),
        (&["run", "--threads", "0"], &["--threads", "0 is not in 1..=4096"]),
        (&["run", "--max-model-len", "0"], &["--max-model-len"]),
        (&["run", "--max-model-len", "9999"], &["expected 1 to 1024", "got 9999"]),
        (&["run", "--kv-cache-memory-bytes", "2X"], &["--kv-cache-memory-bytes", "512M or 2G"]),
        (&["run", "--token-budget", "0"], &["token budget: expected 1 to"]),
        (&["run", "--step-tokens", "0"], &["step tokens: expected 1 to"]),
        (&["run", "--step-delimiter="], &["step delimiter: expected at least one character"]),
        (&["run", "--step-delimiter", r"\x"], &["--step-delimiter: \\x is not understood"]),
        (&["run", "--temperature", "-1"], &["temperature: expected 0 or more, got -1"]),
        (&["run", "--temperature", "inf"], &["temperature: expected 0 or more, got inf"]),
        (&["run", "--top-p", "0"], &["top_p: expected more than 0"]),
        (&["run", "--top-k", "-1"], &["--top-k"]),
        (&["run", "--min-p", "1.5"], &["min_p: expected from 0 to 1"]),
        (&["run", "--seed", "x"], &["--seed"]),
        (&["run", "--repetition-penalty", "0"], &["repetition_penalty: expected more than 0"]),
        (&["run", "--presence-penalty", "-3"], &["presence_penalty: expected from -2 to 2"]),
        (&["run", "--frequency-penalty", "3"], &["frequency_penalty: expected from -2 to 2"]),
        (&["run", "--logit-bias", "5"], &["--logit-bias", "expected ID:BIAS such as 42:-1.5"]),
        (&["run", "--logit-bias", "5:1,5:2"], &["token 5 is listed twice"]),
        (&["run", "--logit-bias", "576:1"], &["576 is outside the vocabulary of 576 tokens"]),
        (&["run", "--judge", "x"], &["there is no judge \"x\"; expected turn, prefix, "]),
        (&["run", "--policy", "lookahead", "--judge", "turn"], &["layout compare, not turn"]),
        (&["run", "--draft-ahead", "17"], &["--draft-ahead", "17 is not in 0..=16"]),
        (&["run", "--score-batch", "0"], &["--score-batch", "0 is not in 1..=17"]),
        (&["run", "--judge", "/nonexistent.json"], &["--judge /nonexistent.json: "]),
        (&["run", "--pair", "x"], &["there is no pair \"x\"; there are tiny, qwen2.5-coder"]),
        (&["run", "--pair", "qwen2.5-coder"], &["run: forerun pull qwen2.5-coder"]),
        (&["run", "--pair", "qwq-r1"], &["Qwen/QwQ-32B", "run: forerun pull qwq-r1"]),
        (&["run", "--draft", "tiny-draft"], &["--draft needs --base M, or --pair NAME"]),
        (&["run", "-m", "tiny-base", "--policy", "draft"], &["needs a draft model: add --draft M"]),
        (&["inspect"], &["<M>"]),
        (&["inspect", "x"], &["there is no model \"x\"", "smollm2-135m, tiny-base"]),
    ];
    for (arguments, parts) in cases {
        let line = error(arguments);
        for part in *parts {
            assert!(line.contains(part), "{arguments:?}: {part:?} is not in {line:?}");
        }
    }
}

#[test]
fn missing_and_broken_model_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let refused = |name: &str| {
        let line = error(&["run", "--base", &path(name), "q"]);
        assert_eq!(error(&["inspect", &path(name)]), line, "inspect says what run says");
        line
    };
    assert_eq!(refused("none.gguf"), format!("{}: no such file or folder", path("none.gguf")));
    fs::write(path("text.gguf"), "this is no model").unwrap();
    assert!(refused("text.gguf").contains("expected \"GGUF\""));
    fs::write(path("empty.gguf"), "").unwrap();
    assert!(refused("empty.gguf").starts_with(&path("empty.gguf")));
    fs::create_dir(path("folder")).unwrap();
    assert!(refused("folder").starts_with(&format!("{}/config.json: ", path("folder"))));
    // A folder whose weights were cut short.
    copy_tiny("base", &folder.path().join("cut"));
    let weights = folder.path().join("cut/model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    assert!(refused("cut").contains("model.safetensors"));
    // A pulled model that is not there, and a hub id that is nowhere.
    assert!(error(&["run", "-m", "smollm2-135m"]).ends_with("run: forerun pull smollm2-135m"));
    assert!(error(&["run", "-m", "a/b"]).ends_with("run: forerun pull a/b"));
    fs::write(path("judge.json"), r#"{"layout": "turn", "words": 1}"#).unwrap();
    let line = error(&["run", "--judge", &path("judge.json")]);
    assert!(line.starts_with(&format!("--judge {}: judge: ", path("judge.json"))), "{line}");
}

fn copy_tiny(role: &str, to: &Path) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/assets/tiny").join(role);
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("the embedded files") {
        let entry = entry.expect("a readable entry");
        fs::copy(entry.path(), to.join(entry.file_name())).expect("a copy");
    }
}

#[test]
fn a_pair_from_folders_runs_and_one_with_two_vocabularies_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (base, draft) = (folder.path().join("base"), folder.path().join("draft"));
    copy_tiny("base", &base);
    copy_tiny("draft", &draft);
    let (base, draft) = (base.display().to_string(), draft.display().to_string());
    let flags = ["--pair", "tiny", "--base", &base, "--draft", &draft];
    let folders = json(&flags);
    assert_eq!(folders["ids"], json(&[])["ids"], "the same pair, from files");
    // Two ordinary tokens change places.
    let path = folder.path().join("draft/tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    let [a, b] = [vocab["a"].clone(), vocab["b"].clone()];
    vocab.insert("a".into(), b.clone());
    vocab.insert("b".into(), a.clone());
    fs::write(&path, tokenizer.to_string()).unwrap();
    let line = error(&[&["run"], &flags[..]].concat());
    assert!(line.starts_with("pair mismatch: "), "{line}");
    let first = a.as_u64().min(b.as_u64()).unwrap();
    assert!(line.contains(&format!("token {first}")), "the first difference is named: {line}");
}

#[test]
fn what_does_not_fit_is_refused_with_sizes() {
    let long = "How many? ".repeat(2000);
    let line = error(&["run", &long]);
    let sizes: Vec<u64> = line
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect();
    assert!(line.starts_with("the prompt has ") && line.contains("--max-model-len"), "{line}");
    assert!(sizes[0] > 1024 && sizes[1] == 1024, "{line}");
    let line = error(&["run", "--kv-cache-memory-bytes", "64K"]);
    assert!(line.starts_with("the KV pool of 65536 bytes is too small: one request"), "{line}");
    let line = error(&["run", "--kv-cache-memory-bytes", "100T"]);
    assert!(line.contains("109951162777600") || line.contains("104857600.0 MiB"), "{line}");
    assert!(line.contains("lower --kv-cache-memory-bytes"), "{line}");
}

#[test]
fn a_reply_that_reaches_its_limits_says_length() {
    let reply = json(&["--max-model-len", "140", "--policy", "base", "--threshold", "0"]);
    assert_eq!(reply["finish"], "length", "{reply}");
    let capped = json(&["--token-budget", "5", "--policy", "base"]);
    assert!(
        capped["tokens"]["injected"].as_u64().unwrap() > 0,
        "the thinking was closed: {capped}"
    );
    assert!(capped["settings"].get("token_budget_asked").is_none());
}

#[test]
fn a_question_outside_the_pairs_domain_gets_a_note() {
    let ran = run(&mut forerun(&["run", "--json", "Who wrote the Odyssey, and when?"]));
    assert_eq!(ran.code, 0);
    assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
    assert!(
        ran.err.starts_with("note: the pair tiny only knows arithmetic word problems"),
        "{}",
        ran.err
    );
    assert!(serde_json::from_str::<Value>(&ran.out).is_ok());
    assert_eq!(run(&mut forerun(&["run", "--json", QUESTION])).err, "");
}

#[test]
fn verbose_shows_the_memory_plan_on_standard_error() {
    for ran in [
        run(&mut forerun(&["run", "-v", "--json", QUESTION])),
        run(forerun(&["run", "--json", QUESTION]).env("FORERUN_LOG", "forerun=info")),
    ] {
        assert!(ran.err.contains("memory: weights base"), "{}", ran.err);
        assert!(ran.err.contains("KV pool: "), "{}", ran.err);
        assert!(serde_json::from_str::<Value>(&ran.out).is_ok());
    }
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let mut child = forerun(&["run", "--device", "reference"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert!(first.starts_with("No question given"));
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
}

/// Sends the signal of Ctrl-C.
#[cfg(unix)]
fn interrupt(child: &Child) {
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(sent.expect("kill starts").success());
}

#[test]
#[cfg(unix)]
fn ctrl_c_ends_a_run_cleanly_and_the_reply_says_cancelled() {
    // Slow, and endless enough to be met in the middle: the ends of turn and step are forbidden.
    let slow =
        "--device reference --policy base --step-tokens 900 --logit-bias 0:-100,2:-100,4:-100";
    let mut arguments = vec!["run", "--json", "Who wrote the Odyssey?"];
    arguments.extend(slow.split(' '));
    // The note is written once the request runs.
    let mut child = forerun(&arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut note = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut note).unwrap();
    assert!(note.starts_with("note: "), "{note}");
    interrupt(&child);
    let mut out = String::new();
    child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{out}");
    let reply: Value = serde_json::from_str(&out).expect("a whole object");
    assert_eq!(reply["finish"], "cancelled");
}

#[test]
fn list_shows_what_is_here_and_how_to_get_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("smollm2-135m.gguf"), "half of it").unwrap();
    let ran = run(forerun(&["list"]).env("FORERUN_MODELS", folder.path()));
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    let row = |name: &str| {
        let found = ran.out.lines().find(|l| l.split_whitespace().next() == Some(name));
        found.unwrap_or_else(|| panic!("{name} is not in {}", ran.out)).to_owned()
    };
    assert!(row("tiny").contains("embedded"));
    assert!(row("qwen2.5-coder").contains("forerun pull qwen2.5-coder"));
    assert!(row("qwen2.5-coder-0.5b").contains("forerun pull qwen2.5-coder-0.5b"));
    assert!(row("smollm2-135m").contains("damaged: 10 B of 93.8 MiB"));
    assert!(ran.out.contains(&folder.path().display().to_string()));
}

#[test]
fn inspect_shows_a_model_without_loading_it() {
    let ran = run(&mut forerun(&["inspect", "tiny"]));
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    for part in [
        "model         tiny-base\n",
        "model         tiny-draft\n",
        "llama: 6 layers, hidden 192, feed-forward 384, 6 query heads and 2 KV heads of 32",
        "variants      tied head",
        "context       1024 tokens",
        "parameters    2.0 M in 56 tensors",
        "quantisation  BF16",
        // 6 layers x (key and value) x 2 heads x 32 elements x 2 bytes.
        "1.5 KiB of bf16 KV kept",
        "tokenizer.json; 576 tokens",
        "<|im_end|> 2",
        "template      present",
    ] {
        assert!(ran.out.contains(part), "{part:?} is not in {}", ran.out);
    }
    assert!(!ran.out.contains("model.layers.0"));
    let listed = run(&mut forerun(&["inspect", "tiny-draft", "--tensors"])).out;
    let row = listed.lines().find(|l| l.starts_with("model.layers.1.mlp.gate_proj.weight"));
    let words: Vec<_> = row.expect("every tensor has a row").split_whitespace().collect();
    assert_eq!(words[1..], ["BF16", "256", "x", "128", "64.0", "KiB"]);
}

#[test]
fn devices_names_what_there_is_and_why_cuda_is_not() {
    let ran = run(&mut forerun(&["devices"]));
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    let cpu = ran.out.lines().find(|l| l.starts_with("cpu ")).expect("a CPU");
    assert!(cpu.contains(" thread") && cpu.ends_with(" available"), "{cpu}");
    let without = "cuda       built without CUDA kernels";
    let there = ran.out.contains(" kernels for sm_80") && ran.out.contains("by nvcc ");
    assert!(there || ran.out.contains(without) && ran.out.contains("fix: "), "{}", ran.out);
}

#[test]
fn help_goes_to_standard_output() {
    for arguments in [&[][..], &["--help"][..], &["run", "-h"][..], &["--version"][..]] {
        let ran = run(&mut forerun(arguments));
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{arguments:?}");
        assert!(ran.out.contains("forerun"), "{arguments:?}: {}", ran.out);
    }
}
