//! The state file: records as JSON lines, appended as they are made.
//!
//! Invariant: a file that was opened ends in a complete line, whatever cut it off before, and no
//! other program appends to it while it is open.

use super::EvalError;
use super::drive::Variant;
use super::problem::Problem;
use super::record::Record;
use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

/// Records of earlier runs and of this one, and the file they are kept in, if any.
#[derive(Debug, Default)]
pub struct State {
    records: Vec<Record>,
    file: Option<(File, String)>,
    /// What happened to a last line that was cut off.
    pub notice: Option<String>,
}

impl State {
    /// Opens or makes a state file.
    ///
    /// # Errors
    /// [`EvalError::Io`], also when another run has it open; [`EvalError::Line`] for a line, other
    /// than a cut-off last one, that is no record.
    pub fn open(path: &Path) -> Result<Self, EvalError> {
        let name = path.display().to_string();
        let io = |source| EvalError::Io { path: name.clone(), source };
        let mut options = OpenOptions::new();
        let mut file = options.read(true).append(true).create(true).open(path).map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(io(std::io::Error::other("another forerun eval is writing to it")));
            }
            // Some file systems have no locks; two runs at once are then the user's business.
            Err(TryLockError::Error(_)) => {}
        }
        let mut bytes = vec![];
        file.read_to_end(&mut bytes).map_err(io)?;
        let (records, kept, notice) = parse(&bytes, &name)?;
        if kept < bytes.len() {
            file.set_len(kept as u64).map_err(io)?;
        } else if bytes.last().is_some_and(|b| *b != b'\n') {
            file.write_all(b"\n").map_err(io)?;
        }
        file.seek(SeekFrom::End(0)).map_err(io)?;
        Ok(Self { records, file: Some((file, name)), notice })
    }

    /// Every record, oldest first.
    #[must_use]
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Adds a record, in the file first.
    ///
    /// # Errors
    /// [`EvalError::Io`] when it cannot be written.
    pub fn push(&mut self, record: Record) -> Result<(), EvalError> {
        if let Some((file, name)) = &mut self.file {
            let mut line = serde_json::to_vec(&record).expect("a record has only string keys");
            line.push(b'\n');
            // One write: what is cut off, if anything, is the end of the last line.
            file.write_all(&line).map_err(|source| EvalError::Io { path: name.clone(), source })?;
        }
        self.records.push(record);
        Ok(())
    }

    /// Checks that the records of the rows asked for belong to them.
    ///
    /// # Errors
    /// [`EvalError::Settings`] or [`EvalError::Line`] for the first that does not.
    pub fn check(&self, variants: &[Variant], problems: &[Problem]) -> Result<(), EvalError> {
        let path = self.file.as_ref().map(|(_, name)| name.clone()).unwrap_or_default();
        let variants: HashMap<_, _> = variants.iter().map(|v| (v.key(), v)).collect();
        let problems: HashMap<_, _> = problems.iter().map(|p| (p.id.as_str(), p)).collect();
        for (i, record) in self.records.iter().enumerate() {
            let (path, line, policy) = (path.clone(), i + 1, record.key());
            let Some(variant) = variants.get(&policy) else { continue };
            if let Some((name, found, asked)) = difference(record, variant) {
                return Err(EvalError::Settings { path, line, policy, name, found, asked });
            }
            let Some(problem) = problems.get(record.id.as_str()) else { continue };
            if record.problem != problem.fingerprint() {
                let reason = format!(
                    "the problem {} had another question or answer when this record was made; \
                     use another --out file",
                    record.id
                );
                return Err(EvalError::Line { path, line, reason });
            }
        }
        Ok(())
    }
}

/// The first setting in which a record differs from a variant: name, the record's, the variant's.
fn difference(record: &Record, variant: &Variant) -> Option<(String, String, String)> {
    let names = variant.settings.keys().chain(record.settings.keys());
    let show = |value: Option<&serde_json::Value>| match value {
        Some(value) => value.to_string(),
        None => "not set".to_owned(),
    };
    names.into_iter().find_map(|name| {
        let (found, asked) = (record.settings.get(name), variant.settings.get(name));
        (found != asked).then(|| (name.clone(), show(found), show(asked)))
    })
}

/// The records of a file, how many of its bytes they are, and what is to be said of the rest.
fn parse(bytes: &[u8], name: &str) -> Result<(Vec<Record>, usize, Option<String>), EvalError> {
    let mut records = vec![];
    let mut kept = 0;
    for (i, line) in bytes.split_inclusive(|b| *b == b'\n').enumerate() {
        match serde_json::from_slice(line) {
            Ok(record) => records.push(record),
            Err(_) if !line.ends_with(b"\n") => {
                let notice = format!(
                    "{name}:{}: the last line is cut off; it is removed and its problem runs again",
                    i + 1
                );
                return Ok((records, kept, Some(notice)));
            }
            Err(error) => {
                let reason = format!("expected a record of forerun eval: {error}");
                return Err(EvalError::Line { path: name.into(), line: i + 1, reason });
            }
        }
        kept += line.len();
    }
    Ok((records, kept, None))
}
