//! `forerun eval`: a table of policies on a file of problems.

use super::EXIT_INTERRUPTED;
use super::args::{EngineArgs, KnobArgs, PairArgs, PolicyArgs, SamplingArgs};
use super::{ui, usage};
use crate::engine::{Engine, Pair, PolicyOptions};
use crate::eval::{self, Record, State, Variant, drive, problem, table};
use crate::ids::Role;
use crate::policy::{AnswerBy, PolicyKind, Proposer};
use anyhow::{Context, Result, anyhow, bail};
use clap::builder::RangedU64ValueParser;
use clap::{Args, Parser};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Problems between two lines of progress where there is no terminal.
const PROBLEMS_PER_LINE: usize = 10;

/// Flags of the verb.
#[derive(Debug, Args)]
pub(super) struct EvalArgs {
    /// Problems: JSON lines with `question` (or `problem`), `answer`, and `id` if they have one
    #[arg(long, value_name = "FILE.jsonl", env = "FORERUN_DATA", hide_env_values = true)]
    data: PathBuf,
    /// Use only so many problems
    #[arg(long, value_name = "N", env = "FORERUN_LIMIT", hide_env_values = true)]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    limit: Option<usize>,
    /// Skip so many problems first
    #[arg(long, value_name = "K", default_value_t = 0)]
    #[arg(env = "FORERUN_OFFSET", hide_env_values = true)]
    offset: usize,
    /// Keep every result in this file and go on from it; without one a broken-off run is lost
    #[arg(long, value_name = "STATE.jsonl", env = "FORERUN_OUT", hide_env_values = true)]
    out: Option<PathBuf>,
    /// How to print the table
    #[arg(short = 'o', long, visible_alias = "output", value_name = "FORMAT")]
    #[arg(default_value = "md", env = "FORERUN_FORMAT", hide_env_values = true)]
    format: Format,
    /// Requests at the same time; with more than one there are no latencies
    #[arg(long, value_name = "C", default_value_t = 1)]
    #[arg(env = "FORERUN_CONCURRENCY", hide_env_values = true)]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(1..=64))]
    concurrency: usize,
    /// Measure on the software GPU too, whose times say nothing about a GPU
    #[arg(long, env = "FORERUN_EMULATED_TIMES", hide_env_values = true)]
    emulated_times: bool,
    /// Policies to compare [default: base,draft,specreason; base without a draft model]
    #[arg(long, value_name = "POLICY,…", value_delimiter = ',', help_heading = "Policy")]
    #[arg(env = "FORERUN_POLICY", hide_env_values = true)]
    policy: Vec<PolicyKind>,
    /// Accept a step from this score on; each of a list is a row [default: the pair's]
    #[arg(long, visible_alias = "reason-threshold", value_name = "SCORE,…")]
    #[arg(value_delimiter = ',', help_heading = "Policy", allow_negative_numbers = true)]
    #[arg(env = "FORERUN_THRESHOLD", hide_env_values = true)]
    threshold: Vec<f32>,
    /// A row of its own: NAME=FLAGS, the flags of its policy as `run` takes them; repeatable
    #[arg(long, value_name = "NAME=FLAGS", help_heading = "Policy", allow_hyphen_values = true)]
    #[arg(env = "FORERUN_ROW", hide_env_values = true)]
    #[arg(conflicts_with_all = ["policy", "threshold"])]
    row: Vec<String>,
    #[command(flatten)]
    knobs: KnobArgs,
    #[command(flatten)]
    pair: PairArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

/// How a table is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// A markdown table.
    Md,
    /// JSON.
    Json,
}

impl EvalArgs {
    /// Runs what has no record yet, and prints the table.
    pub(super) fn run(self) -> Result<ExitCode> {
        let sampling = self.sampling.overrides()?;
        let problems = problem::read(&self.data, self.offset, self.limit)?;
        let mut pair = self.pair.resolve()?;
        let asked = self.asked(&pair)?;
        if !asked.iter().any(|row| runs_draft(row.policy, &row.options)) {
            // Nobody would ask it anything.
            pair.draft = None;
        }
        let mut state = match &self.out {
            Some(path) => State::open(path)?,
            None => State::default(),
        };
        if let Some(notice) = &state.notice {
            ui::note(notice);
        }

        let interrupt = Interrupt::install()?;
        let mut options = self.engine.options(pair)?;
        options.sequences_max = options.sequences_max.max(self.concurrency);
        let engine = Engine::start(options)?;
        ui::check_times(engine.device(), self.emulated_times)?;
        let variants: Vec<_> = asked
            .into_iter()
            .map(|row| Variant {
                name: row.name,
                ..Variant::new(&engine, row.policy, row.options, sampling.clone())
            })
            .collect();
        state.check(&variants, &problems)?;
        let known = state.records().to_vec();
        let jobs = drive::jobs(&problems, &variants, &known);
        if !known.is_empty() {
            let all = problems.len() * variants.len();
            ui::note(&format!("{} of {all} results are there already", all - jobs.len()));
        }
        let mut progress = Progress::new(&variants, jobs.len());
        interrupt.arm();
        let ran = drive::run(&engine, &jobs, self.concurrency, &interrupt.stop, &mut |record| {
            progress.add(&record);
            state.push(record)
        });
        progress.end();
        ran?;
        if state.records().len() < known.len() + jobs.len() {
            let (done, all) = (progress.done, jobs.len());
            ui::note(&match &self.out {
                Some(path) => format!(
                    "interrupted after {done} of {all} requests, all kept in {}; the same command \
                     goes on from there",
                    path.display()
                ),
                None => format!(
                    "interrupted after {done} of {all} requests, none kept; with --out \
                     STATE.jsonl the same command would go on from there"
                ),
            });
            return Ok(ExitCode::from(EXIT_INTERRUPTED));
        }
        self.print(&eval::rows(state.records(), &variants, &problems), &variants)?;
        Ok(ExitCode::SUCCESS)
    }

    /// The rows, as named by `--row` or by policies and thresholds.
    fn asked(&self, pair: &Pair) -> Result<Vec<Asked>> {
        let mut rows: Vec<Asked> = vec![];
        for row in &self.row {
            let row = Asked::parse(row, pair)?;
            if rows.iter().any(|other| other.name == row.name) {
                bail!("--row names {} twice", row.name.unwrap_or_default());
            }
            rows.push(row);
        }
        for policy in if rows.is_empty() { self.policies(pair)? } else { vec![] } {
            let judged = policy.judges() && !self.threshold.is_empty();
            let thresholds: Vec<_> = self.threshold.iter().copied().map(Some).collect();
            for threshold in if judged { thresholds } else { vec![None] } {
                rows.push(Asked { name: None, policy, options: self.knobs.options(threshold)? });
            }
        }
        Ok(rows)
    }

    /// What to compare: each policy once, and only what the pair can run.
    fn policies(&self, pair: &Pair) -> Result<Vec<PolicyKind>> {
        let mut policies = vec![];
        for policy in &self.policy {
            if !policies.contains(policy) {
                policies.push(*policy);
            }
        }
        if policies.is_empty() {
            policies = vec![PolicyKind::Base, PolicyKind::Draft, PolicyKind::SpecReason];
            policies.retain(|p| pair.draft.is_some() || !p.uses(Role::Draft));
        }
        if let Some(policy) = policies.iter().find(|p| p.uses(Role::Draft))
            && pair.draft.is_none()
        {
            bail!("--policy {policy} needs a draft model: add --draft M, or use --policy base");
        }
        if !self.threshold.is_empty() && !policies.iter().any(|p| p.judges()) {
            bail!("--threshold says nothing without --policy specreason or lookahead");
        }
        let mut seen = vec![];
        for threshold in &self.threshold {
            if seen.contains(threshold) {
                bail!("--threshold names {threshold} twice");
            }
            seen.push(*threshold);
        }
        Ok(policies)
    }

    fn print(&self, rows: &[table::Row], variants: &[Variant]) -> Result<()> {
        let seed = self.sampling.seed.unwrap_or(0);
        let mut out = std::io::stdout().lock();
        match self.format {
            Format::Json => {
                let settings: Map<String, Value> =
                    variants.iter().map(|v| (v.key(), v.settings.clone().into())).collect();
                let report = Report { rows, settings, data: self.data.display(), seed };
                serde_json::to_writer_pretty(&mut out, &report)?;
                writeln!(out)?;
            }
            Format::Md => {
                write!(out, "{}", table::markdown(rows))?;
                let first = variants.first().map(|v| &v.settings);
                let word = |name: &str| {
                    let value = first.and_then(|s| s.get(name));
                    value.map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned))
                };
                writeln!(
                    out,
                    "\n{} problems of {} from {} on, pair {}, seed {seed}, {} ({} threads)",
                    rows.first().map_or(0, |row| row.n),
                    self.data.display(),
                    self.offset,
                    word("pair").unwrap_or_default(),
                    word("processor").unwrap_or_default(),
                    word("threads").unwrap_or_default(),
                )?;
            }
        }
        Ok(())
    }
}

/// A row that was asked for.
struct Asked {
    name: Option<String>,
    policy: PolicyKind,
    options: PolicyOptions,
}

/// The flags of a row.
#[derive(clap::Parser)]
#[command(no_binary_name = true)]
struct RowFlags {
    #[command(flatten)]
    policy: PolicyArgs,
}

impl Asked {
    /// Reads `NAME=FLAGS`.
    fn parse(row: &str, pair: &Pair) -> Result<Self> {
        let parts = row.split_once('=').map(|(name, flags)| (name.trim(), flags));
        let Some((name, flags)) = parts.filter(|(name, _)| !name.is_empty()) else {
            bail!("--row: expected NAME=FLAGS, such as base=--policy base, got {row:?}");
        };
        let flags = RowFlags::try_parse_from(flags.split_whitespace());
        let policy = flags.map_err(|e| anyhow!("--row {name}: {}", usage(&e)))?.policy;
        let kind = policy.kind(pair).with_context(|| format!("--row {name}"))?;
        let options = policy.options().with_context(|| format!("--row {name}"))?;
        Ok(Self { name: Some(name.to_owned()), policy: kind, options })
    }
}

/// Whether anything is asked of the draft model.
pub(super) fn runs_draft(policy: PolicyKind, options: &PolicyOptions) -> bool {
    policy.uses(Role::Draft)
        || options.answer_by == Some(AnswerBy::Draft)
        || policy.speculates() && options.proposer != Some(Proposer::Ngram)
}

/// The object of `-o json`. Written without a detour over [`Value`], which would turn a threshold
/// of 5.3 into the digits of the nearest `f64`.
#[derive(serde::Serialize)]
struct Report<'a> {
    rows: &'a [table::Row],
    settings: Map<String, Value>,
    #[serde(serialize_with = "text")]
    data: std::path::Display<'a>,
    seed: u64,
}

fn text<S: serde::Serializer>(path: &std::path::Display<'_>, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(path)
}

/// Running accuracy on stderr: a bar on a terminal, else now and then a line.
struct Progress {
    bar: Option<ProgressBar>,
    /// Per row: its name, correct answers, problems.
    counts: Vec<(String, usize, usize)>,
    done: usize,
    total: usize,
}

impl Progress {
    fn new(variants: &[Variant], total: usize) -> Self {
        let bar = (std::io::stderr().is_terminal() && total > 0).then(|| {
            let template = "{bar:24} {pos} of {len}, {eta} left  {msg}";
            let style = ProgressStyle::with_template(template).expect("a constant template parses");
            ProgressBar::new(total as u64).with_style(style)
        });
        let counts = variants.iter().map(|v| (v.key(), 0, 0)).collect();
        Self { bar, counts, done: 0, total }
    }

    fn add(&mut self, record: &Record) {
        let key = record.key();
        if let Some((_, correct, all)) = self.counts.iter_mut().find(|(name, ..)| *name == key) {
            *correct += usize::from(record.correct);
            *all += 1;
        }
        self.done += 1;
        match &self.bar {
            Some(bar) => {
                bar.set_message(self.accuracies());
                bar.inc(1);
            }
            None if self.done.is_multiple_of(PROBLEMS_PER_LINE * self.counts.len()) => {
                ui::note(&format!("{} of {}: {}", self.done, self.total, self.accuracies()));
            }
            None => {}
        }
    }

    fn accuracies(&self) -> String {
        let seen = self.counts.iter().filter(|(.., all)| *all > 0);
        let each =
            seen.map(|(name, correct, all)| format!("{name} {:.3}", *correct as f64 / *all as f64));
        ui::one_line(&each.collect::<Vec<_>>().join(", "))
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Ctrl-C: ends the program while it loads; later it lets the requests in progress end and be
/// written. A second one ends the program in any case.
struct Interrupt {
    stop: Arc<AtomicBool>,
    armed: Arc<AtomicBool>,
}

impl Interrupt {
    fn install() -> Result<Self> {
        let (stop, armed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let seen = (stop.clone(), armed.clone());
        ctrlc::set_handler(move || {
            if !seen.1.load(Ordering::Relaxed) || seen.0.swap(true, Ordering::Relaxed) {
                std::process::exit(EXIT_INTERRUPTED.into());
            }
            ui::note("the request in progress ends first; Ctrl-C again stops at once");
        })
        .context("cannot listen for Ctrl-C")?;
        Ok(Self { stop, armed })
    }

    fn arm(&self) {
        self.armed.store(true, Ordering::Relaxed);
    }
}
