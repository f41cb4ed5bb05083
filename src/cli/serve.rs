//! `forerun serve`: the OpenAI-compatible server, from flags to the end of the last reply.
//!
//! One line per port goes to standard output once requests are taken; everything else is log.

use super::args::{EngineArgs, PairArgs};
use super::{EXIT_INTERRUPTED, ui};
use crate::config;
use crate::engine::{Engine, Request};
use crate::policy::PolicyKind;
use crate::server::{Listen, Server, ServerOptions};
use anyhow::{Context, Result, bail};
use clap::Args;
use clap::builder::{FalseyValueParser, RangedU64ValueParser};
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Flags of the verb.
#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    pair: PairArgs,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    pub(super) server: ServerArgs,
}

/// Where and for whom the server is there.
#[derive(Debug, Args)]
#[command(next_help_heading = "Server")]
pub(super) struct ServerArgs {
    /// Host of every port that names none; 0.0.0.0 is every network of this machine
    #[arg(long, value_name = "HOST", default_value = config::SERVE_HOST)]
    #[arg(env = "FORERUN_HOST", hide_env_values = true)]
    host: String,
    /// Port that answers as the pair and as each model alone [default: 8000, or none with --listen]
    #[arg(long, value_name = "PORT", env = "FORERUN_PORT", hide_env_values = true)]
    port: Option<u16>,
    /// Another port, which may answer as one model only: PORT or HOST:PORT, then =MODEL; repeatable
    #[arg(long, value_name = "ADDR[=MODEL]", value_delimiter = ',')]
    #[arg(env = "FORERUN_LISTEN", hide_env_values = true)]
    listen: Vec<Listen>,
    /// Name of the pair in requests; -base and -draft behind it are its models [default: its own]
    #[arg(long, value_name = "NAME", env = "FORERUN_SERVED_MODEL_NAME", hide_env_values = true)]
    served_model_name: Option<String>,
    /// Key every request but those to /health has to carry
    #[arg(long, value_name = "KEY", env = "FORERUN_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Origin whose web pages may ask, such as https://example.org, or * for all; repeatable
    #[arg(long, value_name = "ORIGIN", value_delimiter = ',')]
    #[arg(env = "FORERUN_CORS_ORIGIN", hide_env_values = true)]
    cors_origin: Vec<String>,
    /// Requests worked on at the same time
    #[arg(long, value_name = "N", default_value_t = config::SEQUENCES_MAX)]
    #[arg(env = "FORERUN_MAX_NUM_SEQS", hide_env_values = true)]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(1..=4096))]
    max_num_seqs: usize,
    /// Requests that may wait for their turn; more are told to come back (429)
    #[arg(long, value_name = "N", default_value_t = config::QUEUE_MAX)]
    #[arg(env = "FORERUN_MAX_QUEUED_REQUESTS", hide_env_values = true)]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(0..=4096))]
    max_queued_requests: usize,
    /// Size a request's body may have, such as 8M
    #[arg(long, value_name = "BYTES", value_parser = super::args::parse_bytes)]
    #[arg(env = "FORERUN_MAX_BODY_BYTES", hide_env_values = true)]
    max_body_bytes: Option<u64>,
    /// Seconds replies in progress get after SIGTERM or Ctrl-C; a second signal ends at once
    #[arg(long, value_name = "SECONDS", default_value_t = config::DRAIN_S)]
    #[arg(env = "FORERUN_DRAIN_SECONDS", hide_env_values = true)]
    drain_seconds: u64,
    /// Log lines as JSON objects, with their time
    #[arg(long, value_parser = FalseyValueParser::new())]
    #[arg(env = "FORERUN_LOG_JSON", hide_env_values = true)]
    pub(super) log_json: bool,
    /// Take requests without having run one
    #[arg(long, value_parser = FalseyValueParser::new())]
    #[arg(env = "FORERUN_NO_WARMUP", hide_env_values = true)]
    no_warmup: bool,
}

impl ServerArgs {
    fn options(&self) -> Result<ServerOptions> {
        let mut listen = self.listen.clone();
        let port = self.port.or(listen.is_empty().then_some(config::SERVE_PORT));
        listen.extend(port.map(|port| Listen { address: port.to_string(), model: None }));
        if self.api_key.as_deref() == Some("") {
            bail!("--api-key: expected a key, got nothing");
        }
        let bytes = self.max_body_bytes.map(usize::try_from).transpose();
        Ok(ServerOptions {
            host: self.host.clone(),
            listen,
            api_key: self.api_key.clone(),
            cors_origins: self.cors_origin.clone(),
            served_model_name: self.served_model_name.clone(),
            body_bytes_max: bytes.context("--max-body-bytes")?.unwrap_or(config::BODY_BYTES_MAX),
            places: self.max_num_seqs + self.max_queued_requests,
            drain: Duration::from_secs(self.drain_seconds),
        })
    }
}

impl ServeArgs {
    /// Binds, loads, serves until a signal comes, drains.
    pub(super) fn run(self) -> Result<ExitCode> {
        let pair = self.pair.resolve()?;
        let server = Server::bind(&self.server.options()?, &pair)?;
        let mut options = self.engine.options(pair)?;
        options.sequences_max = self.server.max_num_seqs;
        let engine = Engine::start(options)?;
        if engine.device().is_emulated() {
            tracing::warn!("this is the software GPU: its times say nothing about any GPU's");
        }
        if !self.server.no_warmup {
            warm_up(&engine)?;
        }
        let mut signal = server.signals()?;
        server.ready(engine);
        for (address, models) in server.ports() {
            writeln!(
                std::io::stdout().lock(),
                "listening on http://{address} as {}",
                models.join(", ")
            )?;
        }
        signal();
        let hurry = Arc::new(AtomicBool::new(false));
        let seen = hurry.clone();
        std::thread::spawn(move || {
            signal();
            seen.store(true, Ordering::Relaxed);
        });
        server.drain(&hurry);
        let cut = hurry.load(Ordering::Relaxed);
        Ok(if cut { ExitCode::from(EXIT_INTERRUPTED) } else { ExitCode::SUCCESS })
    }
}

/// One short request through every kind of pass: what is compiled or captured on first use is.
fn warm_up(engine: &Engine) -> Result<()> {
    let pair = engine.pair();
    let policy = if pair.draft.is_some() { PolicyKind::default() } else { PolicyKind::Base };
    let mut request = Request { policy, ..Request::ask(pair.settings.example) };
    request.options.tokens_max = Some(8);
    request.options.step_tokens_max = Some(4);
    let reply = engine.answer(request).context("the warm-up request")?;
    tracing::info!("warm after {}", ui::duration(reply.total_ms));
    Ok(())
}
