//! One model on a device with a pool of its own: what benches, tests and experiments run.
//!
//! No policies, no events: ids in, results out, one sequence or several side by side. The engine
//! does not use it.

use super::checkpoint::Checkpoint;
use super::forward::{Model, Operation, PassLimits};
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
    sequences: Vec<SeqId>,
    /// The one that `feed` and its like act on.
    selected: usize,
    observer: Option<Box<Observer>>,
}

/// Hears of every operation of every pass.
pub type Observer = dyn FnMut(Operation);

const ROLE: Role = Role::Base;

impl<D: Device> Solo<D> {
    /// Loads a model with room for one sequence of `limits.positions` tokens.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn load(device: D, checkpoint: &Checkpoint, limits: PassLimits) -> Result<Self, LoadError> {
        Self::load_many(device, checkpoint, limits, 1)
    }

    /// Loads a model with room for `sequences` sequences of `limits.positions` tokens each, the
    /// first of them selected.
    ///
    /// # Errors
    /// When the device has no room.
    ///
    /// # Panics
    /// If `sequences` is 0.
    pub fn load_many(
        device: D,
        checkpoint: &Checkpoint,
        limits: PassLimits,
        sequences: usize,
    ) -> Result<Self, LoadError> {
        assert!(sequences > 0, "no sequence to feed");
        let a = checkpoint.architecture();
        let kv = ModelKv {
            layers: a.layers,
            kv_heads: a.kv_heads,
            head_dim: a.head_dim,
            element_bytes: device.kv_type().bytes(),
        };
        let spare = 4 * crate::config::PAGE_TOKENS_MIN as usize;
        let tokens = sequences * (limits.positions + spare);
        let layout = PoolLayout::choose([None, Some(kv)], kv.token_bytes() * tokens as u64)
            .map_err(|e| crate::error::DeviceError::Failed(e.to_string()))?;
        let weights = Arc::new(Weights::load(&device, checkpoint, &mut |_| {})?);
        let model = Model::new(&device, ROLE.name(), ROLE, a.clone(), weights, &layout, limits)?;
        let pages = device.buffer(layout.used_bytes() as usize, Element::KvByte, "the KV pool")?;
        device.seal();
        let mut pool = Pool::new(layout);
        let sequences = (0..sequences).map(|_| pool.create(ROLE)).collect();
        Ok(Self { device, model, pages, pool, sequences, selected: 0, observer: None })
    }

    /// Lets `observer` hear of every operation from now on, as [`Model::launch_observed`] does.
    pub fn observe(&mut self, observer: Box<Observer>) {
        self.observer = Some(observer);
    }

    /// Makes sequence `index` the one that the methods for one sequence act on.
    ///
    /// # Panics
    /// If there is no such sequence.
    pub fn select(&mut self, index: usize) {
        assert!(index < self.sequences.len(), "sequence {index} of {}", self.sequences.len());
        self.selected = index;
    }

    fn seq(&self) -> SeqId {
        self.sequences[self.selected]
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
        self.pool.len(self.seq())
    }

    /// Whether nothing was fed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets everything beyond `len` tokens.
    pub fn truncate(&mut self, len: usize) {
        self.pool.truncate(self.seq(), len);
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
        for (i, id) in self.pool.table(self.seq()).iter().enumerate() {
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
        let mut batch = RaggedBatch { heads, ..RaggedBatch::default() };
        self.append(self.seq(), ids, &mut batch)?;
        self.run(batch)
    }

    /// Feeds `ids` and, after each of some places, a suffix that leaves nothing behind: all in one
    /// pass. A place is how many tokens of the sequence its suffix comes after. Returns the
    /// probabilities of `labels` after each suffix, in their order.
    ///
    /// # Errors
    /// As [`Solo::feed`].
    ///
    /// # Panics
    /// If a place is beyond the sequence, or a suffix is empty.
    pub fn score(
        &mut self,
        ids: &[TokenId],
        suffixes: &[(usize, &[TokenId])],
        labels: &[TokenId],
    ) -> Result<Vec<Vec<f32>>, LoadError> {
        let mut batch = RaggedBatch::default();
        if !ids.is_empty() {
            self.append(self.seq(), ids, &mut batch)?;
        }
        let mut scratches = vec![];
        for (place, suffix) in suffixes {
            assert!(*place <= self.len(), "place {place} of {} tokens", self.len());
            let scratch = self.pool.create_scratch(ROLE);
            scratches.push(scratch);
            self.append(scratch, suffix, &mut batch)?;
            let pages = batch.pages.len();
            batch.pages.extend_from_slice(self.pool.table(self.seq()));
            let group = batch.groups.last_mut().expect("just appended");
            group.prefix = Span { pages: pages..batch.pages.len(), len: *place };
            let row = group.rows.end - 1;
            let rows = group.rows.clone();
            batch.positions[rows].iter_mut().for_each(|position| *position += *place as u32);
            let kind = HeadKind::Labels(labels.to_vec());
            batch.heads.push(HeadRow::new(row, kind));
        }
        let results = self.run(batch);
        scratches.into_iter().for_each(|scratch| self.pool.release(scratch));
        let probs = results?.heads.into_iter().map(|head| match head {
            HeadResult::Labels(probs) => probs,
            other => unreachable!("a label head returned {other:?}"),
        });
        Ok(probs.collect())
    }

    /// Appends `ids` to a sequence, and their rows to a batch.
    fn append(
        &mut self,
        seq: SeqId,
        ids: &[TokenId],
        batch: &mut RaggedBatch,
    ) -> Result<(), LoadError> {
        let start = self.pool.len(seq);
        let appended = self.pool.append(seq, ids.len());
        let appended = appended.map_err(|e| crate::error::DeviceError::Failed(e.to_string()))?;
        self.model.copy_pages(&self.device, appended.copy.as_slice(), &mut self.pages)?;
        let (first_row, first_page) = (batch.tokens.len(), batch.pages.len());
        batch.pages.extend_from_slice(self.pool.table(seq));
        batch.tokens.extend_from_slice(ids);
        batch.positions.extend((start..start + ids.len()).map(|p| p as u32));
        let own = Span { pages: first_page..batch.pages.len(), len: start };
        let rows = first_row..batch.tokens.len();
        batch.groups.push(RowGroup { rows, prefix: Span::default(), own, mask: Mask::Causal });
        Ok(())
    }

    fn run(&mut self, batch: RaggedBatch) -> Result<Results, LoadError> {
        let Self { model, device, pages, observer, .. } = self;
        let mut unheard = |_| ();
        let done = observer.as_deref_mut().unwrap_or(&mut unheard);
        let pass = model.launch_observed(device, pages, vec![batch], done)?;
        Ok(self.model.collect(&self.device, &mut self.pages, &pass)?.remove(0))
    }

    /// Feeds `ids` in one pass and returns the most likely token after them.
    ///
    /// # Errors
    /// As [`Solo::feed`].
    pub fn next(&mut self, ids: &[TokenId]) -> Result<TokenId, LoadError> {
        let row = ids.len() - 1;
        let results = self.feed(ids, vec![HeadRow::new(row, HeadKind::Argmax)])?;
        Ok(argmax(&results.heads[0]))
    }

    /// Feeds the first sequences one of `ids` each, all in one pass, and returns the most likely
    /// token after each.
    ///
    /// # Errors
    /// As [`Solo::feed`].
    ///
    /// # Panics
    /// If there are more ids than sequences.
    pub fn next_each(&mut self, ids: &[TokenId]) -> Result<Vec<TokenId>, LoadError> {
        assert!(ids.len() <= self.sequences.len(), "{} ids, fewer sequences", ids.len());
        let heads = (0..ids.len()).map(|row| HeadRow::new(row, HeadKind::Argmax)).collect();
        let mut batch = RaggedBatch { heads, ..RaggedBatch::default() };
        for (index, id) in ids.iter().enumerate() {
            self.append(self.sequences[index], std::slice::from_ref(id), &mut batch)?;
        }
        Ok(self.run(batch)?.heads.iter().map(argmax).collect())
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
            let heads = (0..chunk.len()).map(|row| HeadRow::new(row, HeadKind::Full));
            self.feed(chunk, heads.collect())?;
            for row in 0..chunk.len() {
                out.push(self.model.logits(&self.device, row)?);
            }
        }
        Ok(out)
    }
}

fn argmax(result: &HeadResult) -> TokenId {
    match result {
        HeadResult::Argmax { id, .. } => *id,
        other => unreachable!("an argmax head returned {other:?}"),
    }
}
