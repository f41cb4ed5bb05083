//! `forerun run`: answers one question and shows who wrote what.

use super::args::{EngineArgs, PairArgs, PolicyArgs, SamplingArgs};
use super::transcript::{Screen, Transcript};
use super::ui::{Ink, Paint};
use super::{EXIT_INTERRUPTED, summary, ui};
use crate::engine::{Engine, Event, Events, Pair, Reply, Request};
use crate::eval::drive;
use crate::policy::FinishWhy;
use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use clap::builder::FalseyValueParser;
use std::io::{IsTerminal, Read, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// Longer input than this is no question.
const PROMPT_BYTES_MAX: u64 = 16 << 20;

/// Flags of the verb.
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// The question [default: standard input; without one, an example the pair can answer]
    prompt: Option<String>,
    #[command(flatten)]
    pair: PairArgs,
    #[command(flatten)]
    policy: PolicyArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    engine: EngineArgs,
    /// Print one JSON object at the end instead of a transcript
    #[arg(long, value_parser = FalseyValueParser::new())]
    #[arg(env = "FORERUN_JSON", hide_env_values = true)]
    json: bool,
}

impl RunArgs {
    /// Loads, asks, prints.
    pub(super) fn run(self) -> Result<ExitCode> {
        let options = self.policy.options()?;
        let sampling = self.sampling.overrides()?;
        let mut pair = self.pair.resolve()?;
        let policy = self.policy.kind(&pair)?;
        let tuned = pair.settings.tuned.as_ref().map(|tuned| &tuned.options);
        if !drive::runs_draft(
            policy,
            &tuned.map_or_else(|| options.clone(), |tuned| options.or(tuned)),
        ) {
            // Nobody would ask it anything.
            pair.draft = None;
        }
        let asked = question(self.prompt.as_deref())?;
        let example = asked.is_none();
        let question = asked.unwrap_or_else(|| pair.settings.example.to_owned());
        let request = Request { policy, sampling, options, ..Request::ask(&question) };

        let interrupt = Interrupt::install()?;
        let engine = Engine::start(self.engine.options(pair)?)?;
        if engine.device().is_emulated() {
            ui::note("this is the software GPU: the times below are the emulator's, not a GPU's");
        }
        let events = engine.submit(request)?;
        interrupt.redirect_to(&events);
        if let Some(notice) = engine.domain_notice(&question) {
            ui::note(&notice);
        }
        let reply = if self.json {
            let reply = events.reply()?;
            writeln!(std::io::stdout().lock(), "{}", summary::json(&reply)?)?;
            reply
        } else {
            show(events, engine.pair(), example.then_some(question.as_str()))?
        };
        Ok(match reply.finish {
            FinishWhy::Cancelled => ExitCode::from(EXIT_INTERRUPTED),
            _ => ExitCode::SUCCESS,
        })
    }
}

/// Prints the transcript and the table.
fn show(events: Events, pair: &Pair, example: Option<&str>) -> Result<Reply> {
    let paint = Paint::stdout();
    let mut transcript = Transcript::new(std::io::stdout(), paint, Screen::of_stdout);
    for event in events {
        if let (Event::Started(_), Some(question)) = (&event, example) {
            let head = format!("No question given; here is one the pair {} can answer:", pair.name);
            writeln!(std::io::stdout(), "{}\n{question}\n", paint.paint(Ink::Aside, &head))?;
        }
        transcript.event(&event)?;
        match event {
            Event::Finished(reply) => {
                write!(transcript.into_inner(), "{}", summary::table(&reply, paint))?;
                return Ok(*reply);
            }
            Event::Failed(error) => return Err(error.into()),
            _ => {}
        }
    }
    Err(anyhow!("the engine has stopped: its thread ended during the request"))
}

/// What the user asks, if anything: the argument, or standard input where it is no terminal.
fn question(prompt: Option<&str>) -> Result<Option<String>> {
    match prompt {
        Some("-") => {}
        Some(prompt) if prompt.trim().is_empty() => bail!("the question is empty"),
        Some(prompt) => return Ok(Some(prompt.to_owned())),
        None if std::io::stdin().is_terminal() => return Ok(None),
        None => {}
    }
    let mut text = String::new();
    let stdin = std::io::stdin().lock();
    stdin
        .take(PROMPT_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .context("the question on standard input")?;
    if text.len() as u64 > PROMPT_BYTES_MAX {
        bail!("the question on standard input is longer than {PROMPT_BYTES_MAX} bytes");
    }
    let text = text.trim();
    match (text.is_empty(), prompt) {
        (false, _) => Ok(Some(text.to_owned())),
        // Services and build machines run programs with an empty standard input.
        (true, None) => Ok(None),
        (true, Some(_)) => bail!("the question on standard input is empty"),
    }
}

/// Ctrl-C: ends the program while it loads, cancels the request while one runs; a second one ends
/// the program in any case.
struct Interrupt {
    request: Arc<OnceLock<Arc<AtomicBool>>>,
}

impl Interrupt {
    fn install() -> Result<Self> {
        let request: Arc<OnceLock<Arc<AtomicBool>>> = Arc::default();
        let seen = request.clone();
        ctrlc::set_handler(move || match seen.get() {
            Some(cancelled) if !cancelled.swap(true, Ordering::Relaxed) => {}
            _ => std::process::exit(EXIT_INTERRUPTED.into()),
        })
        .context("cannot listen for Ctrl-C")?;
        Ok(Self { request })
    }

    fn redirect_to(&self, events: &Events) {
        // One request a run: there is nothing to replace.
        let _ = self.request.set(events.canceller());
    }
}
