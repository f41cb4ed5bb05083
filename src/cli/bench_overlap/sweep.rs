//! One engine a mode, one after another, and what each did.

use super::OverlapArgs;
use crate::bench::overlap::passes::ModelSizes;
use crate::bench::overlap::table::{self, ModeRun, StepSizes};
use crate::bench::overlap::timeline::Timeline;
use crate::cli::bench::BenchArgs;
use crate::cli::{models, ui};
use crate::device::Device;
use crate::device::cuda::{CudaDevice, CudaOptions, Overlap};
use crate::engine::{Engine, EngineOptions, Pair, PolicyOptions, Reply, Request};
use crate::sample::SamplingOverrides;
use crate::telemetry::Trace;
use anyhow::{Result, bail};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

impl OverlapArgs {
    /// Runs the question in every mode and prints the tables.
    pub(in crate::cli) fn run(&self, bench: &BenchArgs) -> Result<()> {
        let pair = self.pair(bench)?;
        let options = bench.cuda.options();
        let (mut runs, mut sizes): (Vec<ModeRun>, Option<[ModelSizes; 2]>) = (vec![], None);
        let (mut first, mut name, mut is_timed): (Option<Reply>, _, _) =
            (None, String::new(), false);
        for (mode, overlap, draft_sm_pct) in self.modes() {
            let device =
                CudaDevice::open(&CudaOptions { overlap, draft_sm_pct, ..options.clone() });
            let device = match (device, overlap) {
                (Err(error), Overlap::GreenContexts) => {
                    ui::note(&format!("{mode} is left out: {error}"));
                    continue;
                }
                (device, _) => device?,
            };
            let sms = device.partition_sms();
            if sms.is_some() && runs.iter().any(|run| run.sms == sms) {
                ui::note(&format!("{mode} is left out: the hardware splits as for the one before"));
                continue;
            }
            let info = device.info();
            is_timed = !info.is_emulated() || bench.emulated_times;
            if is_timed {
                ui::check_times(&info, bench.emulated_times)?;
            }
            name = info.name;
            if sizes.is_none() {
                let draft = pair.draft.as_ref().expect("checked");
                let of =
                    |source| ModelSizes::of(&device, &models::open(source)?).map_err(Into::into);
                let both: [Result<ModelSizes>; 2] = [draft, &pair.base].map(of);
                let [draft, base] = both;
                sizes = Some([draft?, base?]);
            }
            let (reply, run) = self.run_mode(bench, device, pair.clone(), mode, is_timed)?;
            let run = ModeRun { sms, ..run };
            let want = first.get_or_insert_with(|| reply.clone());
            if let Some(at) = differs(&want.ids, &reply.ids) {
                bail!("--overlap {} wrote another token {at} than --overlap off: a bug", run.mode);
            }
            runs.push(run);
        }
        let ([draft, base], reply) = sizes.zip(first).expect("off is always run");
        let score_rows = runs.iter().find_map(|run| run.timeline.score_rows());
        let step = step_sizes(&reply, score_rows);
        let mut out = std::io::stdout().lock();
        let tokens = reply.tokens.draft + reply.tokens.base;
        let times = match (is_timed, bench.emulated_times) {
            (false, _) => "the software GPU: counts only, no time measured on it is a GPU's",
            (true, true) => "no time below says anything about a GPU, if this is the software GPU",
            (true, false) => "times from submission to the end of the second reply",
        };
        writeln!(out, "{} on {name} ({times}); {tokens} tokens\n", pair.name)?;
        writeln!(out, "{}", table::runs(&runs))?;
        write!(
            out,
            "{}",
            table::predictions(&step.rounds(&draft, &base), step, &self.sweep_sm_pct)
        )?;
        Ok(())
    }

    /// Names, modes and shares of the SMs, off first.
    fn modes(&self) -> Vec<(String, Overlap, u32)> {
        let split = |pct: &u32| (format!("green-ctx {pct} %"), Overlap::GreenContexts, *pct);
        let default = CudaOptions::default().draft_sm_pct;
        let whole = [("off", Overlap::Off), ("stream", Overlap::Stream)];
        let whole = whole.into_iter().map(|(name, mode)| (name.to_owned(), mode, default));
        whole.chain(self.sweep_sm_pct.iter().map(split)).collect()
    }

    /// One mode: the last reply and what it took. Where it is timed a first one warms up.
    fn run_mode(
        &self,
        bench: &BenchArgs,
        device: CudaDevice,
        pair: Pair,
        mode: String,
        is_timed: bool,
    ) -> Result<(Reply, ModeRun)> {
        let events = Buffer::default();
        let question = self.question.clone().unwrap_or_else(|| pair.settings.example.to_owned());
        let options = EngineOptions {
            trace: Some(Arc::new(Trace::to(events.clone())?)),
            progress: Some(Box::new(ui::loading_bar())),
            ..EngineOptions::new(pair)
        };
        let engine = Engine::start_on(device, options)?;
        let ask = || -> Result<(Reply, u64)> {
            let before = engine.load().steps;
            let reply = engine.answer(Request {
                options: PolicyOptions {
                    tokens_max: Some(self.tokens_max),
                    ..PolicyOptions::default()
                },
                sampling: SamplingOverrides {
                    temperature: Some(0.0),
                    ..SamplingOverrides::default()
                },
                ..Request::ask(&question)
            })?;
            Ok((reply, engine.load().steps - before))
        };
        if is_timed {
            ask()?;
        }
        let (reply, steps) = ask()?;
        drop(engine);
        let bytes = events.take();
        if let Some(path) = bench.trace.path() {
            let path = with_mode(path, &mode);
            std::fs::write(&path, &bytes)
                .map_err(|e| anyhow::anyhow!("--trace {}: {e}", path.display()))?;
        }
        let events: Vec<serde_json::Value> = serde_json::from_slice(&bytes)?;
        let own = events.into_iter().filter(|event| {
            let requests = event["args"]["requests"].as_array();
            requests.is_some_and(|ids| ids.iter().any(|id| *id == reply.id.0))
        });
        let run = ModeRun {
            mode,
            sms: None,
            steps,
            timeline: Timeline::of(&own.collect::<Vec<_>>()),
            tokens: u64::from(reply.tokens.draft + reply.tokens.base),
            ms: is_timed.then_some(reply.total_ms),
        };
        Ok((reply, run))
    }
}

/// Where two lists part; nothing if they are the same.
fn differs<T: PartialEq>(a: &[T], b: &[T]) -> Option<usize> {
    let same = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    (same < a.len().max(b.len())).then_some(same)
}

/// A step like those of the reply, in the middle of it.
fn step_sizes(reply: &Reply, score_rows: Option<f64>) -> StepSizes {
    let scored: Vec<u32> =
        reply.steps.iter().filter(|s| s.score.is_some()).map(|s| s.drafted).collect();
    let mean = scored.iter().sum::<u32>() as f64 / scored.len().max(1) as f64;
    // Without a scored step: as the kernel report has it.
    let tokens = if scored.is_empty() { 30 } else { mean.round().max(1.0) as usize };
    let written = (reply.tokens.draft + reply.tokens.base) / 2;
    StepSizes {
        tokens,
        score_rows: score_rows.map_or(tokens + 12, |rows| rows.round().max(1.0) as usize),
        labels: 10,
        before: (reply.tokens.prompt_base + written) as usize,
    }
}

/// `trace.json` of the mode `green-ctx 25 %` is `trace.green-ctx-25.json`.
fn with_mode(path: &Path, mode: &str) -> PathBuf {
    let mode = mode.trim_end_matches(" %").replace(' ', "-");
    let extension = path.extension().map_or("json".into(), |e| e.to_string_lossy());
    path.with_extension(format!("{mode}.{extension}"))
}

/// Where a trace is kept until its mode is done.
#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Buffer {
    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mode_has_a_trace_of_its_own() {
        let named = |mode| with_mode(Path::new("a/t.json"), mode);
        assert_eq!(named("off"), Path::new("a/t.off.json"));
        assert_eq!(named("green-ctx 25 %"), Path::new("a/t.green-ctx-25.json"));
        assert_eq!(with_mode(Path::new("t"), "off"), Path::new("t.off.json"));
    }

    #[test]
    fn replies_are_compared_to_their_ends() {
        assert_eq!(differs(&[1, 2], &[1, 2]), None);
        assert_eq!(differs(&[1, 2], &[1, 3]), Some(1));
        assert_eq!(differs(&[1, 2], &[1, 2, 3]), Some(2));
    }
}
