//! The command line: one file per verb, shared flags in `args.rs`.
//!
//! A verb turns its flags into calls of the engine and prints the result on standard output; notes,
//! log lines and bars go to standard error. Invariant: whatever is wrong with the flags, the files
//! or the request ends in exactly one line `error: …` on standard error and exit code
//! `EXIT_USAGE`, before anything was printed on standard output.

mod args;
mod bench;
mod bench_overlap;
mod bench_serve;
mod calibrate;
mod devices;
mod doctor;
mod eval;
mod inspect;
mod list;
mod models;
mod problems;
mod pull;
mod run;
#[cfg(feature = "serve")]
mod serve;
mod summary;
mod transcript;
mod ui;

use anyhow::{Context, Result};
use clap::builder::FalseyValueParser;
use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// The exit code of every error a user can cause.
const EXIT_USAGE: u8 = 2;
/// The exit code after Ctrl-C, as shells expect it: 128 and the signal's number.
const EXIT_INTERRUPTED: u8 = 130;

/// Runs a small draft model and a large base model side by side: the draft writes each reasoning
/// step, the base scores it and keeps it or rewrites it.
#[derive(Parser)]
#[command(
    name = "forerun",
    bin_name = "forerun",
    version,
    arg_required_else_help = true,
    max_term_width = 100
)]
struct Cli {
    /// Show how start-up goes; FORERUN_LOG=debug shows more
    #[arg(short, long, global = true, value_parser = FalseyValueParser::new())]
    #[arg(env = "FORERUN_VERBOSE", hide_env_values = true)]
    verbose: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Answer a question, showing who wrote each step
    Run(Box<run::RunArgs>),
    /// Answer over HTTP, in OpenAI's protocol
    #[cfg(feature = "serve")]
    Serve(Box<serve::ServeArgs>),
    /// Bring a model or a pair onto this machine
    Pull(pull::PullArgs),
    /// Show the pairs and models known by name, and which are present
    List(list::ListArgs),
    /// Show what a model file holds
    Inspect(inspect::InspectArgs),
    /// Show what this program can run on
    Devices(devices::DevicesArgs),
    /// Measure how fast one model reads and writes, in llama-bench's rows
    Bench(Box<bench::BenchArgs>),
    /// Choose a policy and its knobs for a pair from a file of problems
    ///
    /// In three rounds: how steps are judged, what helps beside that (windows of proposed tokens by
    /// either proposer, as chains and trees, salvage, gates), and what helped taken together. All
    /// candidates of a round are timed alone on the first --timed problems; the faster ones are
    /// tried on the others, --concurrency at a time, until one is no worse than the base. A reply
    /// that another threshold would not have changed is not written twice. How far the draft
    /// writes ahead is not chosen: that is a matter of the engine, not of a request, and changes
    /// no token; `eval --row` with --draft-ahead compares it.
    Calibrate(Box<calibrate::CalibrateArgs>),
    /// Measure what speculation costs here, and say whether it pays
    Doctor(Box<doctor::DoctorArgs>),
    /// Measure accuracy, time and tokens of policies on a file of problems
    Eval(Box<eval::EvalArgs>),
}

/// Runs the program with the arguments of the process.
pub fn main() -> ExitCode {
    let arguments = std::env::args_os().map(long_spelling);
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => return explain(&error),
    };
    #[cfg(feature = "serve")]
    let json = matches!(&cli.verb, Verb::Serve(args) if args.server.log_json);
    #[cfg(not(feature = "serve"))]
    let json = false;
    match start_log(cli.verbose, json).and_then(|()| dispatch(cli.verb)) {
        Ok(code) => code,
        // Whoever read our output has seen enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => fail(&describe(&error)),
    }
}

fn dispatch(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Run(args) => return args.run(),
        #[cfg(feature = "serve")]
        Verb::Serve(args) => return args.run(),
        Verb::Eval(args) => return args.run(),
        Verb::Pull(args) => args.run()?,
        Verb::List(args) => args.run()?,
        Verb::Inspect(args) => args.run()?,
        Verb::Devices(args) => args.run()?,
        Verb::Bench(args) => args.run()?,
        Verb::Doctor(args) => args.run()?,
        Verb::Calibrate(args) => args.run()?,
    }
    Ok(ExitCode::SUCCESS)
}

/// llama.cpp's `-md` is not a spelling clap can be told about.
fn long_spelling(argument: OsString) -> OsString {
    if argument == "-md" { "--draft".into() } else { argument }
}

/// Help and version go to standard output; everything else clap says becomes one line.
fn explain(error: &clap::Error) -> ExitCode {
    let help = matches!(
        error.kind(),
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    );
    let rendered = error.render();
    if help {
        let colours = ui::Paint::stdout().ansi;
        let text = if colours { rendered.ansi().to_string() } else { rendered.to_string() };
        // A reader that is gone needs no help.
        let _ = std::io::stdout().write_all(text.as_bytes());
        return ExitCode::SUCCESS;
    }
    fail(&usage(error))
}

/// What clap says, in one line.
fn usage(error: &clap::Error) -> String {
    usage_line(&error.render().to_string())
}

/// What clap says without its usage block: `problem; tip`.
fn usage_line(rendered: &str) -> String {
    let mut line = String::new();
    for paragraph in rendered.split("\n\n").map(ui::one_line) {
        if let Some(problem) = paragraph.strip_prefix("error: ") {
            line.push_str(problem);
        } else if paragraph.starts_with("tip: ") {
            line.push_str("; ");
            line.push_str(&paragraph);
        }
    }
    line
}

fn fail(message: &str) -> ExitCode {
    // Without a place to complain to, the exit code has to do.
    let _ = writeln!(std::io::stderr(), "error: {}", ui::one_line(message));
    ExitCode::from(EXIT_USAGE)
}

/// An error and its causes on one line. Many messages already quote their cause: it is said once.
fn describe(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(|cause| ui::one_line(&cause.to_string())) {
        if line.is_empty() {
            line = cause;
        } else if !line.contains(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Log lines go to standard error: short ones for people, or a JSON object each.
fn start_log(verbose: bool, json: bool) -> Result<()> {
    let filter = match std::env::var("FORERUN_LOG") {
        Ok(directives) if !directives.is_empty() => {
            EnvFilter::try_new(&directives).with_context(|| format!("FORERUN_LOG={directives}"))?
        }
        _ => EnvFilter::new(if verbose { "forerun=info" } else { "forerun=warn" }),
    };
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(!json && std::io::stderr().is_terminal())
        .with_target(false);
    if json {
        log.json().flatten_event(true).init();
    } else {
        log.without_time().init();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_flags_do_not_contradict_each_other() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_has_its_environment_variable() {
        let named = |id: &str| format!("FORERUN_{}", id.to_ascii_uppercase());
        for verb in Cli::command().get_subcommands() {
            let flags = verb.get_arguments().filter(|a| a.get_long().is_some_and(|l| l != "help"));
            for flag in flags.filter(|a| a.get_long() != Some("version")) {
                let long = flag.get_long().expect("filtered").replace('-', "_");
                let env = flag.get_env().map(|e| e.to_string_lossy().into_owned());
                assert_eq!(env, Some(named(&long)), "{} --{long}", verb.get_name());
            }
        }
    }

    #[test]
    fn a_usage_error_is_one_line_with_its_tip() {
        let error = Cli::try_parse_from(["forerun", "run", "--tempature", "1"]).err().unwrap();
        let line = usage_line(&error.render().to_string());
        assert!(line.starts_with("unexpected argument '--tempature' found; tip: "), "{line}");
        assert!(line.contains("--temperature") && !line.contains("Usage"), "{line}");
    }

    #[test]
    fn a_cause_that_is_already_quoted_is_not_repeated() {
        let io = std::io::Error::other("no such disk");
        let error = crate::error::LoadError::Io { path: "m.gguf".into(), source: io };
        assert_eq!(describe(&anyhow::Error::new(error)), "m.gguf: no such disk");
        let error = anyhow::Error::msg("inner\nline").context("outer");
        assert_eq!(describe(&error), "outer: inner line");
    }
}
