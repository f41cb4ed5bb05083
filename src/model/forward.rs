//! One forward pass: a ragged batch in, wanted results out.
//!
//! [`Model::launch`] enqueues a pass, or a chain of them, on the model's own stream and returns at
//! once on an asynchronous device; [`Model::collect`] waits. The engine launches both models before
//! it collects either. Invariant: after [`Model::new`] a pass takes no memory from the device.

use super::architecture::Architecture;
use super::weights::Weights;
pub use crate::device::PassLimits;
use crate::device::{CHAIN_MAX, Device, Element, PageCopy, RaggedBatch, Results, Shape};
use crate::error::DeviceError;
use crate::ids::Role;
use crate::kv::PoolLayout;
use std::sync::Arc;

/// Activations of one pass, reused by every pass.
struct Workspace<D: Device> {
    hidden: D::Buffer,
    q: D::Buffer,
    attended: D::Buffer,
    act: D::Buffer,
    logits: D::Buffer,
    /// One a pass of a chain.
    results: Vec<D::Results>,
}

/// A model on a device, with its stream and workspace.
pub struct Model<D: Device> {
    /// Name used in errors and reports.
    pub name: String,
    architecture: Architecture,
    shape: Shape,
    limits: PassLimits,
    weights: Arc<Weights<D>>,
    rope: D::Vector,
    stream: D::Stream,
    workspace: Workspace<D>,
}

/// The parts of a pass, as [`Model::launch_observed`] tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// Rows of the embedding.
    Embed,
    /// Norm, projections, rotation and the append to the pool.
    Qkv,
    /// Attention over the pool.
    Attention,
    /// The projection after attention.
    Output,
    /// Norm, gate and up.
    GateUp,
    /// The projection after them.
    Down,
    /// Final norm, head and sampling.
    Head,
}

/// A chain of passes that was launched and not yet collected.
pub struct InFlight<D: Device> {
    /// Each as its heads see it: whole, or what was split off for them.
    batches: Vec<D::Batch>,
    /// For the error path.
    origins: Vec<Origin<D>>,
}

/// Where the rows of a pass come from.
struct Origin<D: Device> {
    /// The pass as its first layers see it, if that is another batch.
    body: Option<D::Batch>,
    /// Of its rows.
    positions: Vec<u32>,
    /// Of the rows that were split off: which of these they are.
    kept: Vec<usize>,
}

impl<D: Device> Model<D> {
    /// Takes the workspace for `limits`.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn new(
        device: &D,
        name: &str,
        role: Role,
        architecture: Architecture,
        weights: Arc<Weights<D>>,
        layout: &PoolLayout,
        limits: PassLimits,
    ) -> Result<Self, DeviceError> {
        let a = &architecture;
        let shape = Shape {
            page_tokens: layout.page_tokens(role),
            page_bytes: layout.page_bytes() as usize,
            ..a.shape()
        };
        let buffer = |width: usize, what: &str| {
            device.buffer(limits.rows * width, Element::Activation, &format!("{what} of {name}"))
        };
        let workspace = Workspace {
            hidden: buffer(a.hidden, "hidden states")?,
            q: buffer(a.heads * a.head_dim, "queries")?,
            attended: buffer(a.heads * a.head_dim, "attention outputs")?,
            act: buffer(a.ffn, "feed-forward activations")?,
            logits: device.buffer(
                limits.full_rows * a.vocab,
                Element::Logit,
                &format!("logits of {name}"),
            )?,
            results: (0..CHAIN_MAX).map(|_| device.results(&limits)).collect::<Result<_, _>>()?,
        };
        let rope = device.vector(&rope_table(a, limits.positions))?;
        let stream = device.stream(role, &shape, &limits)?;
        Ok(Self {
            name: name.into(),
            shape,
            limits,
            weights,
            rope,
            stream,
            workspace,
            architecture,
        })
    }

    /// Sizes and settings of the model.
    #[must_use]
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// The largest pass there is room for.
    #[must_use]
    pub fn limits(&self) -> PassLimits {
        self.limits
    }

    /// Copies pages ahead of a pass that will write to the copies.
    ///
    /// # Errors
    /// On a device failure.
    pub fn copy_pages(
        &self,
        device: &D,
        copies: &[PageCopy],
        pool: &mut D::Buffer,
    ) -> Result<(), DeviceError> {
        if copies.is_empty() {
            return Ok(());
        }
        device.copy_pages(&self.stream, &self.shape, copies, pool)
    }

    /// Enqueues passes that follow one another without the host: rows of each may be fed by the one
    /// before.
    ///
    /// # Errors
    /// On a device failure.
    ///
    /// # Panics
    /// If a batch contradicts itself or exceeds the limits, or there are more than [`CHAIN_MAX`]:
    /// the engine built them wrongly.
    pub fn launch(
        &mut self,
        device: &D,
        pool: &mut D::Buffer,
        chain: Vec<RaggedBatch>,
    ) -> Result<InFlight<D>, DeviceError> {
        self.launch_observed(device, pool, chain, &mut |_| ())
    }

    /// As [`Self::launch`]; `done` hears of each operation when it is enqueued, which on a device
    /// that runs them at once is when it has ended.
    ///
    /// # Errors
    /// As [`Self::launch`].
    ///
    /// # Panics
    /// As [`Self::launch`].
    pub fn launch_observed(
        &mut self,
        device: &D,
        pool: &mut D::Buffer,
        chain: Vec<RaggedBatch>,
        done: &mut dyn FnMut(Operation),
    ) -> Result<InFlight<D>, DeviceError> {
        assert!(chain.len() <= CHAIN_MAX, "{} passes in a chain", chain.len());
        let mut flight = InFlight { batches: vec![], origins: vec![] };
        for batch in chain {
            let (batch, origin) = self.enqueue(device, pool, batch, &flight.batches, done)?;
            flight.batches.push(batch);
            flight.origins.push(origin);
        }
        device.submit(&self.stream)?;
        Ok(flight)
    }

    /// Enqueues one pass behind those `before`.
    fn enqueue(
        &mut self,
        device: &D,
        pool: &mut D::Buffer,
        mut batch: RaggedBatch,
        before: &[D::Batch],
        done: &mut dyn FnMut(Operation),
    ) -> Result<(D::Batch, Origin<D>), DeviceError> {
        let (limits, page_tokens) = (self.limits, self.shape.page_tokens);
        if let Err(what) = batch.validate(self.architecture.vocab, page_tokens, limits.positions) {
            panic!("malformed batch for {}: {what}", self.name);
        }
        assert!(batch.rows() <= limits.rows && batch.full_rows() <= limits.full_rows);
        assert!(batch.fed.is_empty() || !before.is_empty(), "no pass before the first");
        let wanted = batch.split_off_wanted();
        let mut origin = Origin { body: None, positions: batch.positions.clone(), kept: vec![] };
        let mut batch = device.stage(&self.stream, batch)?;
        let w = &mut self.workspace;
        if let Some(last) = before.last() {
            device.feed(&self.stream, last, &w.results[before.len() - 1], &mut batch)?;
        }
        let (table, norm) = (self.weights.embed(), self.weights.norm_of(0));
        device.embed(&self.stream, table, &batch, norm, &mut w.hidden)?;
        done(Operation::Embed);
        let last = self.shape.layers - 1;
        for layer in 0..last {
            self.append(device, layer, &batch, pool, done)?;
            self.attend(device, layer, &batch, pool, done)?;
        }
        // Behind the last layer's keys and values only the rows that are asked for count.
        self.append(device, last, &batch, pool, done)?;
        match wanted {
            None => {}
            Some(wanted) if wanted.rows() == 0 => return Ok((batch, origin)),
            Some(wanted) => {
                origin.kept.clone_from(&wanted.kept);
                let wanted = device.stage(&self.stream, wanted)?;
                let w = &mut self.workspace;
                device.keep_rows(&self.stream, &self.shape, &wanted, &mut w.q, &mut w.hidden)?;
                origin.body = Some(std::mem::replace(&mut batch, wanted));
            }
        }
        self.attend(device, last, &batch, pool, done)?;
        let w = &mut self.workspace;
        let head = self.weights.head();
        let (stream, shape, results) = (&self.stream, &self.shape, &mut w.results[before.len()]);
        device.head(stream, shape, &head, &batch, &w.hidden, &mut w.logits, results)?;
        device.sample(stream, &batch, &w.logits, results)?;
        done(Operation::Head);
        Ok((batch, origin))
    }

    /// Whether [`Self::collect`] would not wait.
    ///
    /// # Errors
    /// On a device failure.
    pub fn is_done(&self, device: &D) -> Result<bool, DeviceError> {
        device.is_done(&self.stream)
    }

    /// Waits for a chain; the results of each of its passes.
    ///
    /// # Errors
    /// On a device failure, or [`DeviceError::NonFinite`] naming layer and token.
    pub fn collect(
        &mut self,
        device: &D,
        pool: &mut D::Buffer,
        flight: &InFlight<D>,
    ) -> Result<Vec<Results>, DeviceError> {
        let results = &mut self.workspace.results[..flight.batches.len()];
        let results = device.collect(&self.stream, &flight.batches, results)?;
        let bad = results.iter().enumerate().find_map(|(i, r)| Some((i, r.non_finite_row?)));
        match bad {
            None => Ok(results),
            Some((pass, row)) => Err(self.locate_non_finite(device, pool, flight, pass, row)?),
        }
    }

    /// Row `row` of the logits of the last pass, `[V]`; for tests and traces.
    ///
    /// # Errors
    /// On a device failure.
    pub fn logits(&self, device: &D, row: usize) -> Result<Vec<f32>, DeviceError> {
        let vocab = self.architecture.vocab;
        device.read(&self.stream, &self.workspace.logits, row * vocab, vocab)
    }

    /// `count` elements of the pool from `start`; for tests.
    pub(super) fn read(
        &self,
        device: &D,
        pool: &D::Buffer,
        start: usize,
        count: usize,
    ) -> Result<Vec<f32>, DeviceError> {
        device.read(&self.stream, pool, start, count)
    }

    /// The first half of a layer: queries, and keys and values in their places.
    fn append(
        &mut self,
        device: &D,
        layer: usize,
        batch: &D::Batch,
        pool: &mut D::Buffer,
        done: &mut dyn FnMut(Operation),
    ) -> Result<(), DeviceError> {
        let (stream, shape, w) = (&self.stream, &self.shape, &mut self.workspace);
        let weights = &self.weights.layers[layer].qkv;
        device.qkv(stream, shape, layer, weights, &self.rope, batch, &w.hidden, &mut w.q, pool)?;
        done(Operation::Qkv);
        Ok(())
    }

    /// The rest of it.
    fn attend(
        &mut self,
        device: &D,
        layer: usize,
        batch: &D::Batch,
        pool: &D::Buffer,
        done: &mut dyn FnMut(Operation),
    ) -> Result<(), DeviceError> {
        let (stream, shape, w) = (&self.stream, &self.shape, &mut self.workspace);
        let weights = &self.weights.layers[layer];
        device.attention(stream, shape, layer, batch, &w.q, pool, &mut w.attended)?;
        done(Operation::Attention);
        let norm = &weights.gate_up.norm;
        device.project(stream, &weights.output, batch, &w.attended, norm, &mut w.hidden)?;
        done(Operation::Output);
        device.gate_up(stream, shape, &weights.gate_up, batch, &w.hidden, &mut w.act)?;
        done(Operation::GateUp);
        let norm = self.weights.norm_of(layer + 1);
        device.project(stream, &weights.down, batch, &w.act, norm, &mut w.hidden)?;
        done(Operation::Down);
        Ok(())
    }

    /// Runs the pass again, layer by layer, to say where the first bad value appears. Writing the
    /// same keys and values to the same slots again changes nothing.
    fn locate_non_finite(
        &mut self,
        device: &D,
        pool: &mut D::Buffer,
        flight: &InFlight<D>,
        pass: usize,
        head_row: usize,
    ) -> Result<DeviceError, DeviceError> {
        let Origin { body, positions, kept } = &flight.origins[pass];
        let batch = body.as_ref().unwrap_or(&flight.batches[pass]);
        let head_row = kept.get(head_row).copied().unwrap_or(head_row);
        let (rows, width) = (positions.len(), self.shape.hidden);
        let error = |layer: String, row: usize| DeviceError::NonFinite {
            model: self.name.clone(),
            layer,
            token: positions[row],
        };
        let (table, norm) = (self.weights.embed(), self.weights.norm_of(0));
        device.embed(&self.stream, table, batch, norm, &mut self.workspace.hidden)?;
        let found = device.first_non_finite(&self.stream, &self.workspace.hidden, rows, width)?;
        if let Some(row) = found {
            return Ok(error("embedding".into(), row));
        }
        for layer in 0..self.shape.layers {
            self.append(device, layer, batch, pool, &mut |_| ())?;
            self.attend(device, layer, batch, pool, &mut |_| ())?;
            let found =
                device.first_non_finite(&self.stream, &self.workspace.hidden, rows, width)?;
            if let Some(row) = found {
                let model = self.name.clone();
                let token = positions[row];
                return Ok(DeviceError::NonFinite { model, layer: layer.to_string(), token });
            }
        }
        let model = self.name.clone();
        Ok(DeviceError::NonFinite { model, layer: "head".into(), token: positions[head_row] })
    }
}

/// `[positions][cos: D/2, sin: D/2]`, computed in f64 and rounded once.
fn rope_table(a: &Architecture, positions: usize) -> Vec<f32> {
    let (frequencies, factor) = a.rope_frequencies();
    let mut table = Vec::with_capacity(positions * a.head_dim);
    for position in 0..positions {
        let angles = frequencies.iter().map(|f| position as f64 * f64::from(*f));
        table.extend(angles.clone().map(|x| (x.cos() * f64::from(factor)) as f32));
        table.extend(angles.map(|x| (x.sin() * f64::from(factor)) as f32));
    }
    table
}
