//! The README names tests and settings that exist.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

use std::collections::BTreeSet;
use std::path::Path;

/// A file of this package.
fn text(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// What stands between backticks, in the second column of tables of mistakes.
fn named_tests(readme: &str) -> Vec<(String, String)> {
    let start = readme.find("## Mistakes made on purpose").unwrap();
    let section = &readme[start..start + readme[start..].find("## The report").unwrap()];
    let cells = section.lines().filter(|line| line.starts_with('|')).filter_map(|line| {
        let cell = line.split('|').nth(2)?.trim();
        cell.strip_prefix('`')?.strip_suffix('`')?.rsplit_once("::")
    });
    cells.map(|(place, name)| (place.to_owned(), name.to_owned())).collect()
}

/// The names of the tests of a file.
fn tests_of(place: &str) -> BTreeSet<String> {
    let source = text(&match place.split_once("::") {
        Some(("state", file)) => format!("src/driver/state/tests/{file}.rs"),
        Some(("kernels", file)) => format!("../../src/device/cuda/ops/emulated/{file}.rs"),
        Some((folder, file)) => format!("tests/{folder}/{file}.rs"),
        None => format!("tests/{place}.rs"),
    });
    source
        .split("#[test]\nfn ")
        .skip(1)
        .map(|rest| rest[..rest.find('(').unwrap()].to_owned())
        .collect()
}

#[test]
fn every_mistake_of_the_readme_has_its_test() {
    let named = named_tests(&text("README.md"));
    assert!(named.len() > 40, "only {} rows are understood", named.len());
    for (place, name) in &named {
        assert!(tests_of(place).contains(name), "{place} has no test {name}");
    }
}

#[test]
fn every_checker_has_its_row() {
    let named: BTreeSet<String> =
        named_tests(&text("README.md")).into_iter().map(|(_, name)| name).collect();
    for name in tests_of("checkers") {
        // The tests there of kernels without a mistake.
        let right =
            ["a_copy_is_there_after_its_wait_and_a_barrier", "what_is_loaded_early_is_counted"];
        assert!(
            right.contains(&name.as_str()) || named.contains(&name),
            "the README does not list {name}"
        );
    }
}

#[test]
fn every_variable_is_described_and_read() {
    let variables = |text: &str| -> BTreeSet<String> {
        let parts = text.split("FORERUN_EMULATOR_").skip(1);
        let end = |part: &str| part.find(|c: char| !c.is_ascii_uppercase() && c != '_');
        parts.map(|part| part[..end(part).unwrap()].to_owned()).collect()
    };
    assert_eq!(variables(&text("README.md")), variables(&text("src/driver/settings.rs")));
}
