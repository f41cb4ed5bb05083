//! The development problems of the pair `tiny`.

const PROBLEMS: &str = include_str!("../../src/assets/tiny/problems_dev.jsonl");

/// The questions of the first `n`.
pub(crate) fn questions(n: usize) -> Vec<String> {
    let question = |line| {
        let problem: serde_json::Value = serde_json::from_str(line).expect("a JSON line");
        problem["problem"].as_str().expect("a question").to_owned()
    };
    PROBLEMS.lines().take(n).map(question).collect()
}
