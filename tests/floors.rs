//! The layout's rules, checked on the source itself: who imports whom, how long files get, what
//! every file starts with.

use std::fs;
use std::path::{Path, PathBuf};

/// Modules by floor; a module imports only from lower floors. Floor 0 is a vocabulary: its modules
/// may name each other.
const FLOORS: &[&[&str]] = &[
    &["ids", "config", "error", "telemetry", "sample"],
    &["device", "text"],
    &["kv"],
    &["model", "schedule"],
    &["policy"],
    &["engine"],
    &["bench", "eval", "server"],
    &["cli"],
];

/// Lines a file may have before its tests.
const LINES_MAX: usize = 520;
const COLUMNS_MAX: usize = 100;

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|modules| modules.contains(&module))
}

/// Files of a folder and those below it that end in one of `extensions`.
fn files(folder: &str, extensions: &[&str]) -> Vec<PathBuf> {
    let mut files = vec![];
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a readable source folder") {
            let path = entry.expect("a readable entry").path();
            if path.is_dir() && !path.ends_with("target") {
                folders.push(path);
            } else if path.extension().is_some_and(|e| extensions.iter().any(|x| e == *x)) {
                files.push(path);
            }
        }
    }
    files.sort();
    assert!(!files.is_empty());
    files
}

fn rust_files(folder: &str) -> Vec<PathBuf> {
    files(folder, &["rs"])
}

/// The module a source file belongs to: `src/kv/pool.rs` and `src/kv.rs` are both `kv`.
fn module(path: &Path) -> String {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let inside = path.strip_prefix(src).expect("a file under src");
    let first = inside.components().next().expect("a file name").as_os_str();
    first.to_string_lossy().trim_end_matches(".rs").to_owned()
}

/// Modules named after `crate::`, comments left out. Braced lists are looked into one level deep.
fn imports(source: &str) -> Vec<String> {
    let code: String = source
        .lines()
        .map(|l| l.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n");
    let name = |s: &str| -> String {
        s.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let mut found = vec![];
    for rest in code.split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            None => found.push(name(rest)),
            Some(list) => {
                let mut depth = 0;
                let mut start = true;
                for (i, c) in list.char_indices() {
                    if start && !c.is_whitespace() {
                        found.push(name(&list[i..]));
                        start = false;
                    }
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => start = true,
                        _ => {}
                    }
                }
            }
        }
    }
    found
}

#[test]
fn a_module_imports_only_from_lower_floors() {
    let mut wrong = vec![];
    for path in rust_files("src") {
        let own = module(&path);
        if ["lib", "main"].contains(&own.as_str()) {
            continue;
        }
        let own_floor = floor(&own).unwrap_or_else(|| panic!("{own} has no floor"));
        let source = fs::read_to_string(&path).expect("a readable source file");
        for other in imports(&source) {
            let Some(other_floor) = floor(&other) else { continue };
            let vocabulary = own_floor == 0 && other_floor == 0;
            if other != own && other_floor >= own_floor && !vocabulary {
                wrong.push(format!("{} imports {other}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_import_check_sees_plain_and_braced_imports() {
    let source = "use crate::kv::Pool;\nuse crate::{engine::{A, B}, text};\n// crate::cli\n";
    assert_eq!(imports(source), ["kv", "engine", "text"]);
}

#[test]
fn the_pure_floors_have_no_clock_threads_or_files() {
    for path in rust_files("src") {
        let own = module(&path);
        if !["schedule", "policy", "kv", "sample"].contains(&own.as_str()) {
            continue;
        }
        let source = fs::read_to_string(&path).expect("a readable source file");
        for word in ["std::time", "std::thread", "std::fs", "std::net", "SystemTime", "Instant"] {
            assert!(!source.contains(word), "{} uses {word}", path.display());
        }
    }
}

#[test]
fn every_file_says_what_it_is_and_stays_readable() {
    let mut wrong = vec![];
    let rust = ["src", "tests", "benches"].map(|folder| (folder, "//!", rust_files(folder)));
    let kernels = ("kernels", "//", files("kernels", &["cu", "cuh"]));
    for (folder, header, files) in rust.into_iter().chain([kernels]) {
        for path in files {
            let source = fs::read_to_string(&path).expect("a readable source file");
            let name = path.display();
            if !source.starts_with(header) && !source.starts_with("#!") {
                wrong.push(format!("{name} has no header"));
            }
            let any_length = path.ends_with("tests.rs") || ["tests", "kernels"].contains(&folder);
            let lines = source.lines().take_while(|l| !l.starts_with("#[cfg(test)]")).count();
            if lines > LINES_MAX && !any_length {
                wrong.push(format!(
                    "{name} has {lines} lines before its tests, {LINES_MAX} allowed"
                ));
            }
            // PTX in strings keeps its own lines.
            if name.to_string().contains("gpu-emulator/tests/") {
                continue;
            }
            for (i, line) in source.lines().enumerate() {
                if line.chars().count() > COLUMNS_MAX && !line.contains("http") {
                    wrong.push(format!("{name}:{} has more than {COLUMNS_MAX} columns", i + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
