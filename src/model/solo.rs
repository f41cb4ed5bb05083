//! One model on a device with a pool of its own: what benches, tests and experiments run.
//!
//! No policies, no events: ids in, results out, one sequence. The engine does not use it.

use super::checkpoint::Checkpoint;
use super::forward::{Model, PassLimits};
use super::weights::Weights;
use crate::device::{
    Device, Element, HeadKind, HeadResult, HeadRow, Mask, RaggedBatch, Results, RowGroup, Span,
};
use crate::error::LoadError;
use crate::ids::{Role, TokenId};
use crate::kv::{ModelKv, Pool, PoolLayout, SeqId};
use std::sync::Arc;

/// See the module.
pub struct Solo<D: Device> {
    device: D,
    model: Model<D>,
    pages: D::Buffer,
    pool: Pool,
    seq: SeqId,
}

const ROLE: Role = Role::Base;

impl<D: Device> Solo<D> {
    /// Loads a model with room for one sequence of `limits.positions` tokens.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn load(device: D, checkpoint: &Checkpoint, limits: PassLimits) -> Result<Self, LoadError> {
        let a = checkpoint.architecture();
        let kv = ModelKv {
            layers: a.layers,
            kv_heads: a.kv_heads,
            head_dim: a.head_dim,
            element_bytes: device.kv_type().bytes(),
        };
        let tokens = limits.positions + 4 * crate::config::PAGE_TOKENS_MIN as usize;
        let layout = PoolLayout::choose([None, Some(kv)], kv.token_bytes() * tokens as u64)
            .map_err(|e| crate::error::DeviceError::Failed(e.to_string()))?;
        let weights = Arc::new(Weights::load(&device, checkpoint, &mut |_| {})?);
        let model = Model::new(&device, ROLE.name(), ROLE, a.clone(), weights, &layout, limits)?;
        let pages = device.buffer(layout.used_bytes() as usize, Element::KvByte, "the KV pool")?;
        device.seal();
        let mut pool = Pool::new(layout);
        let seq = pool.create(ROLE);
        Ok(Self { device, model, pages, pool, seq })
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &Model<D> {
        &self.model
    }

    /// Tokens fed so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pool.len(self.seq)
    }

    /// Whether nothing was fed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets everything beyond `len` tokens.
    pub fn truncate(&mut self, len: usize) {
        self.pool.truncate(self.seq, len);
    }

    /// Every key and value of the tokens fed, page by page and plane by plane.
    ///
    /// # Errors
    /// When the device fails.
    pub fn kv(&self) -> Result<Vec<f32>, LoadError> {
        let (a, layout) = (self.model.architecture(), self.pool.layout());
        let page_tokens = layout.page_tokens(ROLE);
        let page = layout.page_bytes() as usize / self.device.kv_type().bytes();
        let plane = page_tokens * a.head_dim;
        let mut all = vec![];
        for (i, id) in self.pool.table(self.seq).iter().enumerate() {
            let filled = (self.len() - i * page_tokens).min(page_tokens) * a.head_dim;
            for start in (0..a.layers * 2 * a.kv_heads).map(|p| id.index() * page + p * plane) {
                all.extend(self.model.read(&self.device, &self.pages, start, filled)?);
            }
        }
        Ok(all)
    }

    /// Feeds `ids` in one pass; `heads` name rows of this pass.
    ///
    /// # Errors
    /// When the pool is full or the device fails.
    pub fn feed(&mut self, ids: &[TokenId], heads: Vec<HeadRow>) -> Result<Results, LoadError> {
        let start = self.len();
        let appended = self.pool.append(self.seq, ids.len());
        let appended = appended.map_err(|e| crate::error::DeviceError::Failed(e.to_string()))?;
        self.model.copy_pages(&self.device, appended.copy.as_slice(), &mut self.pages)?;
        let pages = self.pool.table(self.seq).to_vec();
        let own = Span { pages: 0..pages.len(), len: start };
        let group =
            RowGroup { rows: 0..ids.len(), prefix: Span::default(), own, mask: Mask::Causal };
        let batch = RaggedBatch {
            tokens: ids.to_vec(),
            positions: (start..start + ids.len()).map(|p| p as u32).collect(),
            groups: vec![group],
            pages,
            heads,
            ..RaggedBatch::default()
        };
        let pass = self.model.launch(&self.device, &mut self.pages, vec![batch])?;
        Ok(self.model.collect(&self.device, &mut self.pages, &pass)?.remove(0))
    }

    /// Feeds `ids` in one pass and returns the most likely token after them.
    ///
    /// # Errors
    /// As [`Solo::feed`].
    pub fn next(&mut self, ids: &[TokenId]) -> Result<TokenId, LoadError> {
        let row = ids.len() - 1;
        let results = self.feed(ids, vec![HeadRow { row, kind: HeadKind::Argmax }])?;
        match results.heads[0] {
            HeadResult::Argmax { id, .. } => Ok(id),
            ref other => unreachable!("an argmax head returned {other:?}"),
        }
    }

    /// Feeds `prompt` in chunks of the pass limit, then decodes `n` tokens greedily.
    ///
    /// # Errors
    /// As [`Solo::feed`].
    pub fn greedy(&mut self, prompt: &[TokenId], n: usize) -> Result<Vec<TokenId>, LoadError> {
        let mut token = TokenId(0);
        for chunk in prompt.chunks(self.model.limits().rows) {
            token = self.next(chunk)?;
        }
        let mut out = vec![token];
        while out.len() < n {
            token = self.next(&[token])?;
            out.push(token);
        }
        Ok(out)
    }

    /// Feeds `ids` and returns the full logits of every row, `[ids.len()][V]`.
    ///
    /// # Errors
    /// As [`Solo::feed`].
    pub fn logits(&mut self, ids: &[TokenId]) -> Result<Vec<Vec<f32>>, LoadError> {
        let limits = self.model.limits();
        let mut out = vec![];
        for chunk in ids.chunks(limits.rows.min(limits.full_rows)) {
            let heads = (0..chunk.len()).map(|row| HeadRow { row, kind: HeadKind::Full });
            self.feed(chunk, heads.collect())?;
            for row in 0..chunk.len() {
                out.push(self.model.logits(&self.device, row)?);
            }
        }
        Ok(out)
    }
}
