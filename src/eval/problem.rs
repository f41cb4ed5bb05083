//! Problems: a JSON object a line, with a question and a reference answer.
//!
//! `question` or `problem` holds the question; `answer` a number or a string, in which GSM8K's
//! `#### 42` is understood; `id` is optional. Unknown fields are left alone.

use super::{EvalError, fingerprint};
use crate::text;
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;

/// One problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file's own id, or `#n` with the number of the line.
    pub id: String,
    /// What is asked.
    pub question: String,
    /// The reference answer.
    pub answer: String,
    /// Position among the problems of the file, from 0; it is added to the seed.
    pub index: usize,
}

impl Problem {
    /// A short name of what is asked and expected, by which a record knows its problem again.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        fingerprint([&self.question, &self.answer])
    }
}

/// Reads the problems `offset..offset + limit` of a file.
///
/// # Errors
/// [`EvalError::Line`] for the first bad line, wherever it is; [`EvalError::NoProblems`] when
/// nothing is left.
pub fn read(path: &Path, offset: usize, limit: Option<usize>) -> Result<Vec<Problem>, EvalError> {
    let name = path.display().to_string();
    let io = |source| EvalError::Io { path: name.clone(), source };
    let text = std::fs::read_to_string(path).map_err(io)?;
    let all = parse(&text, &name)?;
    let have = all.len();
    let some: Vec<_> = all.into_iter().skip(offset).take(limit.unwrap_or(usize::MAX)).collect();
    if some.is_empty() {
        return Err(EvalError::NoProblems { path: name, have, offset });
    }
    Ok(some)
}

/// Parses JSON lines; blank ones are skipped.
///
/// # Errors
/// [`EvalError::Line`] for the first bad line.
pub fn parse(text: &str, name: &str) -> Result<Vec<Problem>, EvalError> {
    let mut problems = vec![];
    let mut seen = HashMap::new();
    for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
        let at = |reason| EvalError::Line { path: name.into(), line: i + 1, reason };
        let problem = one(line, i + 1, problems.len()).map_err(at)?;
        if let Some(first) = seen.insert(problem.id.clone(), i + 1) {
            return Err(at(format!("the id {:?} is already on line {first}", problem.id)));
        }
        problems.push(problem);
    }
    Ok(problems)
}

fn one(line: &str, number: usize, index: usize) -> Result<Problem, String> {
    let object: Value = serde_json::from_str(line).map_err(|e| format!("not JSON: {e}"))?;
    let field = |name: &str| object.get(name).filter(|v| !v.is_null());
    let question = field("question")
        .or_else(|| field("problem"))
        .ok_or("expected a field \"question\" or \"problem\"")?;
    let question = question.as_str().map(str::trim).filter(|q| !q.is_empty());
    let question = question.ok_or("expected a question that is a string and not empty")?;
    let answer = match field("answer").ok_or("expected a field \"answer\"")? {
        Value::Number(number) => number.to_string(),
        Value::String(text) if text.contains("####") => {
            text::extract_gsm8k(text).ok_or("expected an answer after \"####\", found none")?
        }
        Value::String(text) if !text.trim().is_empty() => text.trim().to_owned(),
        other => return Err(format!("expected \"answer\" to be a number or a text, got {other}")),
    };
    let id = match field("id") {
        None => format!("#{number}"),
        Some(Value::String(id)) => id.clone(),
        Some(Value::Number(id)) => id.to_string(),
        Some(other) => {
            return Err(format!("expected \"id\" to be a text or a number, got {other}"));
        }
    };
    Ok(Problem { id, question: question.to_owned(), answer, index })
}
