//! `forerun bench`: how fast one model reads and writes.

use super::bench_overlap::OverlapArgs;
use super::eval::Format;
use super::{models, ui};
use crate::bench::roofline::{self, Profile, Stopwatch};
use crate::bench::{self, Measurement, ModelFacts, Row};
use crate::config;
use crate::device::cpu::{CpuDevice, CpuOptions};
#[cfg(feature = "cuda")]
use crate::device::cuda::CudaDevice;
use crate::device::reference::ReferenceDevice;
use crate::device::{Device, KvType};
use crate::engine::DeviceChoice;
use crate::ids::Role;
use crate::model::checkpoint::Checkpoint;
use crate::model::{PassLimits, Solo};
use crate::telemetry::Track;
use anyhow::{Result, bail};
use clap::builder::RangedU64ValueParser;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use std::io::{IsTerminal, Write};
use std::time::Instant;

/// What else can be measured.
#[derive(Debug, Subcommand)]
enum What {
    /// Measure a server under load: any that speaks OpenAI's protocol
    Serve(Box<super::bench_serve::BenchServeArgs>),
}

/// Flags of the verb, with llama-bench's letters.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    what: Option<What>,
    /// A folder, a .gguf file, a hub id or a catalogue name
    #[arg(short = 'm', long, value_name = "M", default_value = "tiny-base")]
    #[arg(env = "FORERUN_MODEL", hide_env_values = true)]
    pub(super) model: String,
    /// Tokens of a prompt, one row each; 0 skips prompts
    #[arg(short = 'p', long, value_name = "N,…", value_delimiter = ',')]
    #[arg(default_value = "512", env = "FORERUN_N_PROMPT", hide_env_values = true)]
    n_prompt: Vec<u32>,
    /// Tokens of a generation, one row each; 0 skips generations
    #[arg(short = 'n', long, value_name = "N,…", value_delimiter = ',')]
    #[arg(default_value = "128", env = "FORERUN_N_GEN", hide_env_values = true)]
    n_gen: Vec<u32>,
    /// Tokens in the cache before each row
    #[arg(short = 'd', long, value_name = "N,…", value_delimiter = ',')]
    #[arg(default_value = "0", env = "FORERUN_N_DEPTH", hide_env_values = true)]
    n_depth: Vec<u32>,
    /// Sequences of a generation that decode side by side, one row each
    #[arg(short = 's', long, value_name = "N,…", value_delimiter = ',')]
    #[arg(default_value = "1", env = "FORERUN_SEQUENCES", hide_env_values = true)]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(1..=256))]
    sequences: Vec<usize>,
    /// Repetitions of each row, after one that warms up
    #[arg(short = 'r', long, value_name = "N", default_value_t = 5)]
    #[arg(env = "FORERUN_REPETITIONS", hide_env_values = true)]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(1..=100_000))]
    repetitions: usize,
    /// How to print the table
    #[arg(short = 'o', long, visible_alias = "output", value_name = "FORMAT")]
    #[arg(default_value = "md", env = "FORERUN_FORMAT", hide_env_values = true)]
    pub(super) format: Format,
    /// Where to run: auto, cpu, cuda or reference
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    #[arg(env = "FORERUN_DEVICE", hide_env_values = true)]
    pub(super) device: DeviceChoice,
    /// CPU threads [default: all physical cores]
    #[arg(short = 't', long, value_name = "N", env = "FORERUN_THREADS", hide_env_values = true)]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(1..=4096))]
    threads: Option<usize>,
    /// Measure what the processor could do at best too, and compare each operation with it
    #[arg(long, env = "FORERUN_ROOFLINE", hide_env_values = true)]
    roofline: bool,
    /// Measure on the software GPU too, whose times say nothing about a GPU
    #[arg(long, env = "FORERUN_EMULATED_TIMES", hide_env_values = true)]
    pub(super) emulated_times: bool,
    #[command(flatten)]
    overlap: OverlapArgs,
    #[command(flatten)]
    pub(super) trace: super::args::TraceArgs,
    /// Choices of the CUDA device.
    #[cfg(feature = "cuda")]
    #[command(flatten)]
    pub(super) cuda: super::args::CudaArgs,
}

impl BenchArgs {
    /// Measures every row and prints the table.
    pub(super) fn run(&self) -> Result<()> {
        if let Some(What::Serve(load)) = &self.what {
            return load.run();
        }
        if self.overlap.overlap_sweep {
            return self.overlap.run(self);
        }
        self.overlap.check_unused()?;
        let sizes = |list: &[u32]| list.iter().map(|n| *n as usize).collect::<Vec<_>>();
        let depths = sizes(&self.n_depth);
        let (prompts, generations) = (sizes(&self.n_prompt), sizes(&self.n_gen));
        let rows = bench::rows(&prompts, &generations, &depths, &self.sequences);
        if rows.is_empty() {
            bail!("nothing to measure: -p and -n are both 0");
        }
        let checkpoint = models::open(&models::source(&self.model)?)?;
        let context = checkpoint.architecture().context;
        let longest = rows.iter().max_by_key(|r| r.len()).expect("there are rows");
        if longest.len() > context as usize {
            bail!(
                "{} takes {} tokens, but {} has a context of {context}",
                longest.name(),
                longest.len(),
                self.model
            );
        }
        if self.roofline && !matches!(self.device, DeviceChoice::Auto | DeviceChoice::Cpu) {
            bail!("--roofline measures the processor; use --device cpu");
        }
        if self.roofline && self.format != Format::Md {
            bail!("--roofline prints a table; use --format md");
        }
        let mut roofline = String::new();
        let measured = match self.device {
            #[cfg(feature = "cuda")]
            DeviceChoice::Cuda => {
                self.measure(CudaDevice::open(&self.cuda.options())?, &checkpoint, &rows, None)?
            }
            #[cfg(not(feature = "cuda"))]
            DeviceChoice::Cuda => {
                bail!("--device cuda: built without the feature `cuda`; use --device cpu")
            }
            DeviceChoice::Reference => {
                self.measure(ReferenceDevice::new(KvType::F32), &checkpoint, &rows, None)?
            }
            DeviceChoice::Auto | DeviceChoice::Cpu => {
                let cpu = CpuOptions { threads: self.threads, ..CpuOptions::default() };
                let device = CpuDevice::new(cpu)?;
                let roof = self.roofline.then(|| device.roof());
                let mut profiles = vec![];
                let asked = roof.is_some().then_some(&mut profiles);
                let measured = self.measure(device, &checkpoint, &rows, asked)?;
                if let Some(roof) = roof {
                    roofline = roofline::markdown(&roof, &profiles);
                }
                measured
            }
        };
        let mut out = std::io::stdout().lock();
        match self.format {
            Format::Md => write!(out, "{}{roofline}", bench::markdown(&measured))?,
            Format::Json => {
                serde_json::to_writer_pretty(&mut out, &measured)?;
                writeln!(out)?;
            }
        }
        Ok(())
    }

    /// Measures every row; `profiles` takes the times of the operations of each.
    fn measure<D: Device>(
        &self,
        device: D,
        checkpoint: &Checkpoint,
        rows: &[Row],
        mut profiles: Option<&mut Vec<Profile>>,
    ) -> Result<Vec<Measurement>> {
        ui::check_times(&device.info(), self.emulated_times)?;
        let longest = rows.iter().map(Row::len).max().unwrap_or(1);
        let sequences = rows.iter().map(|r| r.sequences).max().unwrap_or(1);
        let limits = PassLimits {
            rows: longest.min(config::BATCH_ROWS_MAX).max(sequences),
            full_rows: 1,
            positions: longest,
        };
        let mut solo = Solo::load_many(device, checkpoint, limits, sequences)?;
        let watch = Stopwatch::default();
        if profiles.is_some() {
            solo.observe(watch.observer());
        }
        let ids = bench::stream(longest, checkpoint.architecture().vocab);
        let facts = ModelFacts::of(checkpoint, &self.model);
        let trace = self.trace.begin()?;
        let bar = bar(rows.len() * (self.repetitions + 1));
        let mut measured = vec![];
        for row in rows {
            bar.set_message(row.name());
            let mut runs = 0;
            let mut began = Instant::now();
            let samples = bench::measure(&mut solo, &ids, row, self.repetitions, &mut || {
                // The first one warms up.
                if runs == 0 {
                    watch.restart();
                }
                runs += 1;
                bar.inc(1);
                if let Some(trace) = &trace {
                    let args = json!({ "depth": row.depth, "tokens": row.tokens() });
                    trace.span(Track::Model(Role::Base), &row.name(), began, args);
                }
                began = Instant::now();
            })?;
            if let Some(profiles) = &mut profiles {
                let kv_bytes = solo.device().kv_type().bytes();
                let costs = roofline::costs(checkpoint, row, limits.rows, kv_bytes)?;
                let (seconds, runs) = (watch.seconds(), self.repetitions);
                profiles.push(Profile { row: *row, costs, seconds, runs });
            }
            measured.push(Measurement::new(&solo, &facts, row, samples));
        }
        bar.finish_and_clear();
        Ok(measured)
    }
}

/// A bar on stderr; invisible where it is no terminal. It is only drawn between runs.
fn bar(total: usize) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:24} {pos} of {len}  {msg}");
    let style = style.expect("a constant template parses");
    ProgressBar::new(total as u64).with_style(style)
}
