//! `forerun eval`: a table of policies on a file of problems.

use super::EXIT_INTERRUPTED;
use super::args::{self, EngineArgs, KnobArgs, PairArgs, PolicyArgs, SamplingArgs};
use super::problems::ProblemArgs;
use super::{ui, usage};
use crate::config::DRAFT_AHEAD_MAX;
use crate::engine::{Engine, Pair, PolicyOptions};
use crate::eval::{self, Record, State, Variant, drive, table};
use crate::ids::Role;
use crate::policy::PolicyKind;
use crate::sample::SamplingOverrides;
use anyhow::{Context, Result, anyhow, bail};
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
    #[command(flatten)]
    problems: ProblemArgs,
    /// Keep every result in this file and go on from it; without one a broken-off run is lost
    #[arg(long, value_name = "STATE.jsonl", env = "FORERUN_OUT", hide_env_values = true)]
    out: Option<PathBuf>,
    /// How to print the table
    #[arg(short = 'o', long, visible_alias = "output", value_name = "FORMAT")]
    #[arg(default_value = "md", env = "FORERUN_FORMAT", hide_env_values = true)]
    format: Format,
    /// Policies to compare [default: base,draft,specreason; base without a draft model]
    #[arg(long, value_name = "POLICY,…", value_delimiter = ',', help_heading = "Policy")]
    #[arg(env = "FORERUN_POLICY", hide_env_values = true)]
    policy: Vec<PolicyKind>,
    /// Accept a step from this score on; each of a list is a row [default: the pair's]
    #[arg(long, visible_alias = "reason-threshold", value_name = "SCORE,…")]
    #[arg(value_delimiter = ',', help_heading = "Policy", allow_negative_numbers = true)]
    #[arg(env = "FORERUN_THRESHOLD", hide_env_values = true)]
    threshold: Vec<f32>,
    /// A row of its own: NAME=FLAGS, flags of its policy, its sampling, --tuned and --draft-ahead
    /// as `run` takes them, instead of those given for all rows; repeatable
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
        let problems = self.problems.read()?;
        let mut pair = self.pair.resolve()?;
        // What a calibration chose is given to rows, so that their records tell of it.
        let tuned = pair.settings.tuned.take().map(|tuned| tuned.options).unwrap_or_default();
        let asked = self.asked(&pair, &tuned)?;
        if !asked.iter().any(|row| drive::runs_draft(row.policy, &row.options)) {
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
        let mut variants = vec![];
        // An engine drafts ahead or does not: rows that differ in it run one engine after another.
        for rows in by_engine(asked) {
            let mut options = self.engine.options(pair.clone())?;
            options.draft_ahead = rows[0].1.draft_ahead.or(options.draft_ahead);
            options.sequences_max = options.sequences_max.max(self.problems.concurrency);
            let engine = Engine::start(options)?;
            self.problems.check_times(&engine)?;
            let places: Vec<_> = rows.iter().map(|(place, _)| *place).collect();
            let mine = rows.into_iter().map(|(_, row)| row.variant(&engine, &sampling));
            let mine: Vec<_> = mine.collect();
            state.check(&mine, &problems)?;
            let jobs = drive::jobs(&problems, &mine, state.records(), self.problems.pace());
            if !state.records().is_empty() {
                let all = problems.len() * mine.len();
                ui::note(&format!("{} of {all} results are there already", all - jobs.len()));
            }
            let mut progress = Progress::new(&mine, jobs.len());
            interrupt.arm();
            let (concurrency, stop) = (self.problems.concurrency, &interrupt.stop);
            let ran = drive::run(&engine, &jobs, concurrency, stop, &mut |record| {
                progress.add(&record);
                state.push(record)
            });
            progress.end();
            ran?;
            let (done, all) = (progress.done, jobs.len());
            variants.extend(places.into_iter().zip(mine));
            if done == all {
                continue;
            }
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
        variants.sort_by_key(|(place, _)| *place);
        let variants: Vec<_> = variants.into_iter().map(|(_, variant)| variant).collect();
        self.print(&eval::rows(state.records(), &variants, &problems), &variants)?;
        Ok(ExitCode::SUCCESS)
    }

    /// The rows, as named by `--row` or by policies and thresholds.
    fn asked(&self, pair: &Pair, tuned: &PolicyOptions) -> Result<Vec<Asked>> {
        let mut rows: Vec<Asked> = vec![];
        for row in &self.row {
            let row = Asked::parse(row, pair, &self.knobs.options(None)?.or(tuned))?;
            if rows.iter().any(|other| other.name == row.name) {
                bail!("--row names {} twice", row.name.unwrap_or_default());
            }
            rows.push(row);
        }
        for policy in if rows.is_empty() { self.policies(pair)? } else { vec![] } {
            let judged = policy.judges() && !self.threshold.is_empty();
            let thresholds: Vec<_> = self.threshold.iter().copied().map(Some).collect();
            for threshold in if judged { thresholds } else { vec![None] } {
                let options = self.knobs.options(threshold)?.or(tuned);
                rows.push(Asked { policy, options, ..Asked::default() });
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
                let report = Report { rows, settings, data: self.problems.data.display(), seed };
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
                    self.problems.data.display(),
                    self.problems.offset,
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
#[derive(Default)]
struct Asked {
    name: Option<String>,
    policy: PolicyKind,
    options: PolicyOptions,
    /// What differs from the sampling of all rows.
    sampling: SamplingOverrides,
    /// What differs from the engine of all rows.
    draft_ahead: Option<u32>,
}

/// The flags of a row.
#[derive(clap::Parser)]
#[command(no_binary_name = true)]
struct RowFlags {
    #[command(flatten)]
    policy: PolicyArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[arg(long)]
    tuned: Option<PathBuf>,
    #[arg(long, value_parser = clap::value_parser!(u32).range(0..=i64::from(DRAFT_AHEAD_MAX)))]
    draft_ahead: Option<u32>,
}

impl Asked {
    /// Reads `NAME=FLAGS`; what the flags leave open is as in `knobs`.
    fn parse(row: &str, pair: &Pair, knobs: &PolicyOptions) -> Result<Self> {
        let parts = row.split_once('=').map(|(name, flags)| (name.trim(), flags));
        let Some((name, flags)) = parts.filter(|(name, _)| !name.is_empty()) else {
            bail!("--row: expected NAME=FLAGS, such as base=--policy base, got {row:?}");
        };
        let flags = RowFlags::try_parse_from(flags.split_whitespace());
        let flags = flags.map_err(|e| anyhow!("--row {name}: {}", usage(&e)))?;
        let RowFlags { mut policy, sampling, tuned, draft_ahead } = flags;
        let context = || format!("--row {name}");
        let tuned = tuned.as_deref().map(|path| args::tuned(path, pair)).transpose();
        let tuned = tuned.with_context(context)?;
        policy.policy = policy.policy.or(tuned.as_ref().map(|tuned| tuned.policy));
        let below = tuned.map_or_else(|| knobs.clone(), |tuned| tuned.options.or(knobs));
        Ok(Self {
            name: Some(name.to_owned()),
            policy: policy.kind(pair).with_context(context)?,
            options: policy.options().with_context(context)?.or(&below),
            sampling: sampling.overrides().with_context(context)?,
            draft_ahead,
        })
    }

    fn variant(self, engine: &Engine, sampling: &SamplingOverrides) -> Variant {
        let sampling = self.sampling.or(sampling);
        let mut variant = Variant::new(engine, self.policy, self.options, sampling);
        variant.name = self.name;
        if let Some(ahead) = self.draft_ahead {
            // No token depends on it; what is wasted does.
            variant.settings.insert("draft_ahead".to_owned(), ahead.into());
        }
        variant
    }
}

/// Rows with their places in the table, in groups that one engine can run.
fn by_engine(rows: Vec<Asked>) -> Vec<Vec<(usize, Asked)>> {
    let mut groups: Vec<Vec<(usize, Asked)>> = vec![];
    for (place, row) in rows.into_iter().enumerate() {
        match groups.iter_mut().find(|group| group[0].1.draft_ahead == row.draft_ahead) {
            Some(group) => group.push((place, row)),
            None => groups.push(vec![(place, row)]),
        }
    }
    groups
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
