//! Start-up: files, texts, memory plan, device, thread; in this order, so that bad input is an
//! error before memory is taken.

use super::memory::{self, MemoryPlan};
use super::pair::{ModelSource, Pair};
use super::places::Load;
use super::prepare::{ModelText, Prepared};
use super::runner::Runner;
use super::{Engine, live::Vocabulary};
use crate::config;
use crate::device::cpu::{CpuDevice, CpuOptions};
#[cfg(feature = "cuda")]
use crate::device::cuda::{CudaDevice, CudaOptions};
use crate::device::reference::ReferenceDevice;
use crate::device::{CHAIN_MAX, Device, Element, KvType};
use crate::error::{DeviceError, EngineError, KvError, LoadError};
use crate::ids::{Role, TokenId};
use crate::kv::{ModelKv, Pool};
use crate::model::checkpoint::{Checkpoint, TokenizerSource};
use crate::model::{Model, PassLimits, Weights};
use crate::policy::speculation::Costs;
use crate::telemetry::Trace;
use crate::text::{ChatTemplate, IdMap, SpecialRoles, Tokenizer};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};

/// Which device to run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The best there is; never the reference.
    #[default]
    Auto,
    /// SIMD kernels on all cores.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
    /// Plain f32 loops: slow, and what everything else is tested against.
    Reference,
}

impl std::str::FromStr for DeviceChoice {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda),
            "reference" => Ok(Self::Reference),
            _ => Err(format!("unknown device {name:?}; there are auto, cpu, cuda and reference")),
        }
    }
}

/// A step of loading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadProgress {
    /// Whose weights.
    pub role: Role,
    /// Bytes loaded since the last call.
    pub bytes: u64,
    /// Bytes of the whole file.
    pub total_bytes: u64,
}

/// How to start an engine.
pub struct EngineOptions {
    /// The models and their settings.
    pub pair: Pair,
    /// Where to run.
    pub device: DeviceChoice,
    /// CPU threads; all physical cores by default.
    pub threads: Option<usize>,
    /// Choices of the CUDA device.
    #[cfg(feature = "cuda")]
    pub cuda: CudaOptions,
    /// The context of both models; by default the smaller of theirs, at most
    /// [`config::MODEL_LEN_MAX`].
    pub max_model_len: Option<u32>,
    /// Bytes of the shared KV pool.
    pub kv_cache_memory_bytes: Option<u64>,
    /// Requests worked on at the same time.
    pub sequences_max: usize,
    /// Rows of one pass.
    pub batch_rows_max: usize,
    /// Tokens a decode draws between two looks of the host, 1 to [`CHAIN_MAX`]; those beyond a
    /// decode's end are thrown away. No token depends on it. Without it the device's choice.
    pub run_ahead: Option<usize>,
    /// Steps the draft may write beyond the first that the base has not decided on, at most
    /// [`config::DRAFT_AHEAD_MAX`]. No token of a reply depends on it. Without it one where the
    /// device runs both models at the same time, else none.
    /// Under the policy `lookahead` then [`config::LOOKAHEAD_STEPS`].
    pub draft_ahead: Option<u32>,
    /// Drafted steps the base scores in one pass, 1 to as many as there can be, which is the
    /// default. No score depends on it.
    pub score_batch: Option<u32>,
    /// Where everything the engine does is written down.
    pub trace: Option<Arc<Trace>>,
    /// Hears how loading proceeds.
    pub progress: Option<Box<dyn FnMut(LoadProgress)>>,
}

impl EngineOptions {
    /// Defaults for a pair.
    #[must_use]
    pub fn new(pair: Pair) -> Self {
        Self {
            pair,
            device: DeviceChoice::default(),
            threads: None,
            #[cfg(feature = "cuda")]
            cuda: CudaOptions::default(),
            max_model_len: None,
            kv_cache_memory_bytes: None,
            sequences_max: config::SEQUENCES_MAX,
            batch_rows_max: config::BATCH_ROWS_MAX,
            run_ahead: None,
            draft_ahead: None,
            score_batch: None,
            trace: None,
            progress: None,
        }
    }
}

/// An opened pair: nothing copied, nothing allocated.
struct Opened {
    checkpoints: [Option<Checkpoint>; 2],
    texts: [Option<ModelText>; 2],
    map: IdMap,
    /// Both roles are the same file.
    shared: bool,
}

pub(super) fn start(options: EngineOptions) -> Result<Engine, EngineError> {
    let opened = open(&options.pair)?;
    match options.device {
        #[cfg(feature = "cuda")]
        DeviceChoice::Cuda => launch(CudaDevice::open(&options.cuda)?, options, opened),
        #[cfg(not(feature = "cuda"))]
        DeviceChoice::Cuda => Err(EngineError::Device(DeviceError::Unavailable {
            device: "cuda".into(),
            reason: "built without the feature `cuda`; use --device cpu".into(),
        })),
        DeviceChoice::Reference => launch(ReferenceDevice::new(KvType::F32), options, opened),
        DeviceChoice::Auto | DeviceChoice::Cpu => {
            let cpu = CpuOptions { threads: options.threads, ..CpuOptions::default() };
            launch(CpuDevice::new(cpu)?, options, opened)
        }
    }
}

pub(super) fn start_on<D: Device>(
    device: D,
    options: EngineOptions,
) -> Result<Engine, EngineError> {
    let opened = open(&options.pair)?;
    launch(device, options, opened)
}

fn open(pair: &Pair) -> Result<Opened, EngineError> {
    let base = open_model(&pair.base)?;
    let base_text = model_text(&base, &pair.base)?;
    let shared = pair.draft.as_ref() == Some(&pair.base);
    let (mut draft, mut draft_text) = (None, None);
    if let Some(source) = &pair.draft {
        let checkpoint = open_model(source)?;
        draft_text = Some(model_text(&checkpoint, source)?);
        draft = Some(checkpoint);
    }
    let partner = draft_text.as_ref().unwrap_or(&base_text);
    let map =
        IdMap::build(&partner.tokenizer, &partner.roles, &base_text.tokenizer, &base_text.roles)
            .map_err(LoadError::Pair)?;
    Ok(Opened {
        checkpoints: [draft, Some(base)],
        texts: [draft_text, Some(base_text)],
        map,
        shared,
    })
}

fn open_model(source: &ModelSource) -> Result<Checkpoint, LoadError> {
    match source {
        ModelSource::Path(path) => Checkpoint::open(path),
        ModelSource::Embedded(files) => Checkpoint::embedded(files),
    }
}

fn model_text(checkpoint: &Checkpoint, source: &ModelSource) -> Result<ModelText, LoadError> {
    let at = |source_error| LoadError::Text { file: source.to_string(), source: source_error };
    let tokenizer = match checkpoint.tokenizer_source()? {
        TokenizerSource::Json(bytes) => Tokenizer::from_json(bytes),
        TokenizerSource::Gguf(vocab) => Tokenizer::from_gguf(&vocab),
    }
    .map_err(at)?;
    let template = checkpoint
        .chat_template()
        .map(|text| ChatTemplate::new(&text, checkpoint.special_text().clone()))
        .transpose()
        .map_err(at)?;
    let end_of_turn = checkpoint.eos_ids().into_iter().map(TokenId).collect();
    let roles = SpecialRoles::with_tags(&tokenizer, end_of_turn);
    let defaults = checkpoint.generation_defaults().clone();
    Ok(ModelText { tokenizer, template, roles, defaults })
}

/// The context both models run with.
fn context(options: &EngineOptions, opened: &Opened) -> Result<u32, EngineError> {
    let trained = opened.checkpoints.iter().flatten().map(|c| c.architecture().context).min();
    let trained = trained.expect("an engine always has a base");
    match options.max_model_len {
        Some(asked) if asked == 0 || asked > trained => Err(EngineError::Invalid {
            field: "max-model-len",
            reason: format!(
                "expected 1 to {trained}, which the models were trained for, got {asked}"
            ),
        }),
        Some(asked) => Ok(asked),
        None => Ok(trained.min(config::MODEL_LEN_MAX)),
    }
}

/// How many steps the draft writes ahead, and how many the base scores at a time.
fn drafting<D: Device>(device: &D, options: &EngineOptions) -> Result<(u32, u32), EngineError> {
    let ahead = options.draft_ahead.unwrap_or_else(|| device.overlaps().into());
    let batch = options.score_batch.unwrap_or(config::SCORE_BATCH_MAX);
    for (field, steps, range) in [
        ("draft-ahead", ahead, 0..=config::DRAFT_AHEAD_MAX),
        ("score-batch", batch, 1..=config::SCORE_BATCH_MAX),
    ] {
        if !range.contains(&steps) {
            let reason =
                format!("expected {} to {} steps, got {steps}", range.start(), range.end());
            return Err(EngineError::Invalid { field, reason });
        }
    }
    Ok((ahead, batch))
}

fn launch<D: Device>(
    device: D,
    mut options: EngineOptions,
    opened: Opened,
) -> Result<Engine, EngineError> {
    let max_model_len = context(&options, &opened)?;
    let run_ahead = options.run_ahead.unwrap_or_else(|| device.run_ahead());
    if !(1..=CHAIN_MAX).contains(&run_ahead) {
        return Err(EngineError::Invalid {
            field: "run-ahead",
            reason: format!("expected 1 to {CHAIN_MAX} tokens, got {run_ahead}"),
        });
    }
    let (draft_ahead, score_batch) = drafting(&device, &options)?;
    let lookahead_steps = options.draft_ahead.unwrap_or(config::LOOKAHEAD_STEPS);
    let info = device.info();
    let limits = PassLimits {
        rows: options.batch_rows_max,
        full_rows: (options.sequences_max * (config::WINDOW_MAX as usize + 1))
            .min(config::LOGIT_ROWS_MAX),
        positions: max_model_len as usize,
    };
    let kv = opened.checkpoints.each_ref().map(|c| {
        c.as_ref().map(|c| ModelKv {
            layers: c.architecture().layers,
            kv_heads: c.architecture().kv_heads,
            head_dim: c.architecture().head_dim,
            element_bytes: device.kv_type().bytes(),
        })
    });
    let mut plan = MemoryPlan {
        weights_bytes: [0; 2],
        workspace_bytes: [0; 2],
        pool_bytes: 0,
        available_bytes: info.memory_bytes,
        pool: String::new(),
    };
    for role in Role::ALL {
        let Some(checkpoint) = &opened.checkpoints[role.index()] else { continue };
        plan.weights_bytes[role.index()] = Weights::planned_bytes(&device, checkpoint)?;
        let shape = checkpoint.architecture().shape();
        plan.workspace_bytes[role.index()] = device.pass_bytes(&shape, &limits);
    }
    if opened.shared {
        plan.weights_bytes[1 - memory::SHARED_ROLE.index()] = 0;
    }
    let left = info.memory_bytes.saturating_sub(plan.total_bytes());
    plan.pool_bytes = options.kv_cache_memory_bytes.unwrap_or_else(|| {
        memory::default_pool_bytes(&kv, max_model_len, options.sequences_max, left)
    });
    let lay_out = |bytes| memory::lay_out(kv, bytes, max_model_len, config::STEP_TOKENS_MAX);
    let layout = match (lay_out(plan.pool_bytes), options.kv_cache_memory_bytes) {
        (Err(KvError::TooSmall { needed_bytes, .. }), None) => {
            // One request at full context fills pages less well than the default supposes.
            plan.pool_bytes = needed_bytes;
            lay_out(needed_bytes)
        }
        (layout, _) => layout,
    }?;
    plan.pool = layout.describe();
    plan.check()?;
    tracing::info!("{plan}");
    tracing::info!("{}", plan.pool);

    let prepared = Prepared {
        pair: options.pair.clone(),
        texts: opened.texts,
        max_model_len,
        device: info.kind,
        draft_ahead,
        lookahead_steps,
        score_batch,
        #[cfg(feature = "grammar")]
        grammars: std::sync::OnceLock::new(),
    };
    // A judge that cannot be used is a start-up error, not the first request's.
    if prepared.pair.draft.is_some() {
        prepared.judge_ids(&prepared.pair.settings.judge, config::STEP_DELIMITER)?;
    }
    let models = load(&device, &mut options, &opened.checkpoints, opened.shared, &layout, limits)?;
    let pages = device.buffer(layout.used_bytes() as usize, Element::KvByte, "the KV pool")?;
    device.seal();
    let vocabulary = Vocabulary {
        tokenizer: prepared.tokenizer().clone(),
        map: opened.map,
        draft_ids: prepared.texts[Role::Draft.index()]
            .as_ref()
            .map_or(0, |text| text.tokenizer.vocab_len()),
    };
    let (inbox, receiver) = std::sync::mpsc::sync_channel(config::QUEUE_MAX);
    let load = Arc::new(Mutex::new(Load::of(&layout)));
    let forget_prefixes = Arc::new(AtomicBool::new(false));
    let runner = Runner {
        device,
        models,
        pages,
        pool: Pool::new(layout),
        vocabulary,
        inbox: receiver,
        sequences_max: options.sequences_max,
        run_ahead,
        waiting: VecDeque::new(),
        live: vec![],
        costs: Costs::default(),
        flights: [None, None],
        starved: None,
        load: load.clone(),
        forget_prefixes: forget_prefixes.clone(),
        trace: options.trace.take(),
        lost: None,
    };
    let thread = std::thread::Builder::new()
        .name("forerun-engine".into())
        .spawn(move || runner.run())
        .map_err(|e| DeviceError::Failed(format!("cannot start the engine's thread: {e}")))?;
    Ok(Engine {
        prepared: Arc::new(prepared),
        inbox: Some(inbox),
        next_id: AtomicU64::new(0),
        thread: Mutex::new(Some(thread)),
        device: info,
        plan,
        load,
        forget_prefixes,
    })
}

fn load<D: Device>(
    device: &D,
    options: &mut EngineOptions,
    checkpoints: &[Option<Checkpoint>; 2],
    shared: bool,
    layout: &crate::kv::PoolLayout,
    limits: PassLimits,
) -> Result<[Option<Model<D>>; 2], EngineError> {
    let mut weights: [Option<Arc<Weights<D>>>; 2] = [None, None];
    for role in [Role::Base, Role::Draft] {
        let Some(checkpoint) = &checkpoints[role.index()] else { continue };
        if shared && role != memory::SHARED_ROLE {
            weights[role.index()] = weights[memory::SHARED_ROLE.index()].clone();
            continue;
        }
        let total_bytes = checkpoint.file_bytes();
        let mut progress = |bytes| {
            if let Some(hear) = &mut options.progress {
                hear(LoadProgress { role, bytes, total_bytes });
            }
        };
        weights[role.index()] = Some(Arc::new(Weights::load(device, checkpoint, &mut progress)?));
    }
    let mut models = [None, None];
    for role in Role::ALL {
        let (Some(checkpoint), Some(weights)) =
            (&checkpoints[role.index()], weights[role.index()].clone())
        else {
            continue;
        };
        let architecture = checkpoint.architecture().clone();
        let model = Model::new(device, role.name(), role, architecture, weights, layout, limits)?;
        models[role.index()] = Some(model);
    }
    Ok(models)
}
