//! The memory plan: where every byte goes, decided before any is taken.

use crate::error::{DeviceError, EngineError, KvError};
use crate::ids::Role;
use crate::kv::{ModelKv, PoolLayout};

/// How memory is divided at start-up.
#[derive(Debug, Clone)]
pub struct MemoryPlan {
    /// Bytes of the weights by role; a shared file counts once, for the base.
    pub weights_bytes: [u64; 2],
    /// Activations and logits by role.
    pub workspace_bytes: [u64; 2],
    /// The shared KV pool.
    pub pool_bytes: u64,
    /// Bytes there were.
    pub available_bytes: u64,
    /// How the pool is laid out, in words.
    pub pool: String,
}

impl MemoryPlan {
    /// The sum.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.weights_bytes.iter().sum::<u64>()
            + self.workspace_bytes.iter().sum::<u64>()
            + self.pool_bytes
    }

    /// Refuses what cannot fit.
    pub(super) fn check(&self) -> Result<(), EngineError> {
        if self.total_bytes() <= self.available_bytes {
            return Ok(());
        }
        Err(EngineError::Device(DeviceError::OutOfMemory {
            what: self.to_string(),
            needed_bytes: self.total_bytes(),
            available_bytes: self.available_bytes,
            advice: "lower --kv-cache-memory-bytes or --max-model-len, or take a smaller model"
                .into(),
        }))
    }
}

impl std::fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [draft, base] = self.weights_bytes.map(mib);
        let workspace = mib(self.workspace_bytes.iter().sum());
        let (pool, available) = (mib(self.pool_bytes), mib(self.available_bytes));
        write!(
            f,
            "memory: weights base {base:.1} MiB, draft {draft:.1} MiB; KV pool {pool:.1} MiB; \
             workspace {workspace:.1} MiB; of {available:.0} MiB available"
        )
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// The pool's size where the user names none: room for every sequence at full context, within half
/// of what is left after the weights.
pub(super) fn default_pool_bytes(
    models: &[Option<ModelKv>; 2],
    context: u32,
    sequences: usize,
    left_bytes: u64,
) -> u64 {
    let token_bytes: u64 = models.iter().flatten().map(|m| m.token_bytes()).sum();
    // A request needs up to a page more than its tokens, and a scratch suffix.
    let request = token_bytes * (u64::from(context) + 512);
    (request * sequences as u64).min(left_bytes / 2).max(request)
}

/// Lays out the pool and checks that one request at full context fits.
pub(super) fn lay_out(
    models: [Option<ModelKv>; 2],
    pool_bytes: u64,
    context: u32,
    scratch: u32,
) -> Result<PoolLayout, KvError> {
    let layout = PoolLayout::choose(models, pool_bytes)?;
    layout.check_capacity(context, scratch)?;
    Ok(layout)
}

/// The role whose weights are counted when both are the same file.
pub(super) const SHARED_ROLE: Role = Role::Base;
