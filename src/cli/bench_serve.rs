//! `forerun bench serve`: load on an OpenAI-compatible server, this one or another.

use super::eval::Format;
use crate::bench::load::{Goodput, Load, load_table};
use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

/// Questions of the embedded pair's own kind.
const QUESTIONS: &str = include_str!("../assets/tiny/problems_dev.jsonl");
/// How long a server may be silent.
const PATIENCE: Duration = Duration::from_secs(600);

/// Flags of the verb, with the words of `vllm bench serve`.
#[derive(Debug, Args)]
pub(super) struct BenchServeArgs {
    /// The server; http only
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8000")]
    #[arg(env = "FORERUN_URL", hide_env_values = true)]
    url: String,
    /// Model to ask [default: the server's first]
    #[arg(long, value_name = "NAME", env = "FORERUN_SERVED_MODEL", hide_env_values = true)]
    model: Option<String>,
    /// Clients that ask at the same time, one row each
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,4,8,16")]
    #[arg(env = "FORERUN_CONCURRENCY", hide_env_values = true)]
    concurrency: Vec<usize>,
    /// Requests a second, at random moments; without it each client asks when it was answered
    #[arg(long, value_name = "PER_S", env = "FORERUN_RATE", hide_env_values = true)]
    rate: Option<f64>,
    /// Requests of each row
    #[arg(long, value_name = "N", default_value_t = 32)]
    #[arg(env = "FORERUN_NUM_PROMPTS", hide_env_values = true)]
    num_prompts: usize,
    /// Questions: JSON lines with `question`, `problem` or `prompt` [default: the embedded ones]
    #[arg(long, value_name = "FILE", env = "FORERUN_DATA", hide_env_values = true)]
    data: Option<PathBuf>,
    /// Tokens of a reply, at most
    #[arg(long, value_name = "N", default_value_t = 256)]
    #[arg(env = "FORERUN_MAX_TOKENS", hide_env_values = true)]
    max_tokens: u32,
    /// More fields of every request, as a JSON object, such as '{"forerun":{"policy":"base"}}'
    #[arg(long, value_name = "JSON", default_value = "{\"temperature\":0}")]
    #[arg(env = "FORERUN_EXTRA_BODY", hide_env_values = true)]
    extra_body: String,
    /// Limits of a good request in milliseconds: ttft:MS, tpot:MS, e2el:MS
    #[arg(long, value_name = "WHAT:MS,…", value_delimiter = ',')]
    #[arg(env = "FORERUN_GOODPUT", hide_env_values = true)]
    goodput: Vec<String>,
    /// Key to send
    #[arg(long, value_name = "KEY", env = "FORERUN_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// How to print the table
    #[arg(short = 'o', long, visible_alias = "output", value_name = "FORMAT")]
    #[arg(default_value = "md", env = "FORERUN_FORMAT", hide_env_values = true)]
    format: Format,
}

impl BenchServeArgs {
    /// Sends the load of every row and prints the table.
    pub(super) fn run(&self) -> Result<()> {
        let mut load = self.load()?;
        let reports: Vec<_> = self
            .concurrency
            .iter()
            .map(|&concurrency| {
                load.concurrency = concurrency;
                load.run()
            })
            .collect();
        let mut out = std::io::stdout().lock();
        match self.format {
            Format::Md => write!(out, "{}", load_table(&reports))?,
            Format::Json => {
                serde_json::to_writer_pretty(&mut out, &reports)?;
                writeln!(out)?;
            }
        }
        out.flush()?;
        match reports.iter().find_map(|r| r.first_error.as_ref()) {
            Some(error) => bail!("some requests failed, the first with: {error}"),
            None => Ok(()),
        }
    }

    fn load(&self) -> Result<Load> {
        let address = self.url.strip_prefix("http://").map(|rest| rest.trim_end_matches('/'));
        let address = address
            .filter(|a| !a.is_empty() && !a.contains('/'))
            .with_context(|| format!("--url: expected http://HOST:PORT, got {:?}", self.url))?;
        let address = match address.contains(':') {
            true => address.to_owned(),
            false => format!("{address}:80"),
        };
        if self.rate.is_some_and(|rate| !(rate.is_finite() && rate > 0.0)) {
            bail!("--rate: expected more than 0 requests a second");
        }
        if self.concurrency.contains(&0) || self.num_prompts == 0 {
            bail!("--concurrency and --num-prompts: expected at least 1");
        }
        let mut body: Value = serde_json::from_str(&self.extra_body).context("--extra-body")?;
        if !body.is_object() {
            bail!("--extra-body: expected a JSON object");
        }
        body["max_tokens"] = json!(self.max_tokens);
        let mut load = Load {
            address,
            api_key: self.api_key.clone(),
            body,
            questions: self.questions()?,
            requests: self.num_prompts,
            concurrency: 1,
            rate: self.rate,
            goodput: self.goodput()?,
            patience: PATIENCE,
        };
        let model = match &self.model {
            Some(name) => name.clone(),
            None => load.first_model().map_err(|error| anyhow!("{}: {error}", self.url))?,
        };
        load.body["model"] = json!(model);
        Ok(load)
    }

    fn questions(&self) -> Result<Vec<String>> {
        let (name, text) = match &self.data {
            None => ("the embedded problems".to_owned(), QUESTIONS.to_owned()),
            Some(path) => {
                let name = path.display().to_string();
                let text = std::fs::read_to_string(path).with_context(|| name.clone())?;
                (name, text)
            }
        };
        let question = |(number, line): (usize, &str)| {
            let at = || format!("{name}, line {}", number + 1);
            let record: Value = serde_json::from_str(line).with_context(at)?;
            let fields = ["question", "problem", "prompt"].iter();
            let text = fields.filter_map(|field| record[*field].as_str()).next();
            text.map(str::to_owned)
                .with_context(|| format!("{}: expected question, problem or prompt", at()))
        };
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let questions: Vec<_> = lines.map(question).collect::<Result<_>>()?;
        if questions.is_empty() {
            bail!("{name}: expected at least one question");
        }
        Ok(questions)
    }

    fn goodput(&self) -> Result<Goodput> {
        let mut limits = Goodput::default();
        for limit in &self.goodput {
            let (name, ms) = limit.split_once(':').unwrap_or((limit, ""));
            let ms = ms.parse().ok();
            let field = match name {
                "ttft" => &mut limits.ttft_ms,
                "tpot" => &mut limits.tpot_ms,
                "e2el" => &mut limits.e2el_ms,
                _ => bail!("--goodput: expected ttft:MS, tpot:MS or e2el:MS, got {limit:?}"),
            };
            *field = ms;
            if ms.is_none() {
                bail!("--goodput: expected milliseconds after {name}:, got {limit:?}");
            }
        }
        Ok(limits)
    }
}
