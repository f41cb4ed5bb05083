//! A checkpoint's tensors on a device, each still in the block type of its file.
//!
//! Invariant: one [`Weights`] per file. When base and draft are the same file they share it.
//! Read next: [`super::forward`].

use super::architecture::Architecture;
use super::checkpoint::Checkpoint;
use super::tensors::TensorName;
use crate::device::{Device, GateUpWeights, HeadWeights, Linear, MatrixView, QkvWeights, blocks};
use crate::error::{DeviceError, LoadError};

/// Weights of one layer.
pub struct LayerWeights<D: Device> {
    /// Norm and projections before attention.
    pub qkv: QkvWeights<D>,
    /// Output projection, `[C, H*D]`.
    pub output: Linear<D>,
    /// Norm and the two gated projections.
    pub gate_up: GateUpWeights<D>,
    /// Down projection, `[C, F]`.
    pub down: Linear<D>,
}

/// All weights of one model.
pub struct Weights<D: Device> {
    embed: D::Matrix,
    head: Option<D::Matrix>,
    final_norm: D::Vector,
    /// In order.
    pub layers: Vec<LayerWeights<D>>,
}

impl<D: Device> Weights<D> {
    /// Loads every tensor. `progress` hears the bytes of each as it lands.
    ///
    /// # Errors
    /// When the device has no room. The checkpoint itself was validated when it was opened.
    pub fn load(
        device: &D,
        checkpoint: &Checkpoint,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Self, LoadError> {
        let architecture = checkpoint.architecture();
        let mut loader = Loader { device, checkpoint, progress };
        // The device has its own copy: what was read of the file would count as memory twice. So
        // the largest tensors come first, while there is nothing else.
        let embed = loader.matrix(TensorName::Embed)?;
        checkpoint.release();
        let head = (!architecture.tied_head).then(|| loader.matrix(TensorName::Head));
        let head = head.transpose()?;
        checkpoint.release();
        let layers = (0..architecture.layers).map(|l| {
            let layer = loader.layer(architecture, l);
            checkpoint.release();
            layer
        });
        let layers = layers.collect::<Result<_, _>>()?;
        Ok(Self { embed, head, final_norm: loader.vector(TensorName::FinalNorm)?, layers })
    }

    /// Bytes that [`Weights::load`] will take from `device`.
    ///
    /// # Errors
    /// If a tensor is missing.
    pub fn planned_bytes(device: &D, checkpoint: &Checkpoint) -> Result<u64, LoadError> {
        use TensorName as T;
        let a = checkpoint.architecture();
        let layer = |l| [T::Q(l), T::K(l), T::V(l), T::O(l), T::Down(l)];
        let whole = [T::Embed].into_iter().chain((!a.tied_head).then_some(T::Head));
        let mut bytes = checkpoint.file_bytes();
        for name in whole.chain((0..a.layers).flat_map(layer)) {
            let tensor = checkpoint.tensor(name)?;
            bytes += device.matrix_bytes(tensor.rows, tensor.cols, tensor.kind);
            bytes -= tensor.bytes.len() as u64;
        }
        for l in 0..a.layers {
            let (gate, up) = (checkpoint.tensor(T::Gate(l))?, checkpoint.tensor(T::Up(l))?);
            bytes += device.gate_up_bytes(gate.rows, gate.cols, [gate.kind, up.kind]);
            bytes -= (gate.bytes.len() + up.bytes.len()) as u64;
        }
        Ok(bytes)
    }

    /// The token embedding, `[V, C]`.
    #[must_use]
    pub fn embed(&self) -> &D::Matrix {
        &self.embed
    }

    /// The norm weight that layer `layer` begins with; behind the last layer the final norm's.
    #[must_use]
    pub fn norm_of(&self, layer: usize) -> &D::Vector {
        self.layers.get(layer).map_or(&self.final_norm, |layer| &layer.qkv.norm)
    }

    /// Final norm and head.
    #[must_use]
    pub fn head(&self) -> HeadWeights<'_, D> {
        HeadWeights { norm: &self.final_norm, matrix: self.head.as_ref().unwrap_or(&self.embed) }
    }
}

struct Loader<'a, D: Device> {
    device: &'a D,
    checkpoint: &'a Checkpoint,
    progress: &'a mut dyn FnMut(u64),
}

impl<D: Device> Loader<'_, D> {
    fn layer(&mut self, a: &Architecture, l: usize) -> Result<LayerWeights<D>, LoadError> {
        use TensorName as T;
        let qk = |name| a.qk_norm.then_some(name);
        let bias = |name| a.qkv_bias.then_some(name);
        Ok(LayerWeights {
            qkv: QkvWeights {
                norm: self.vector(T::AttnNorm(l))?,
                q: self.rotated(a, T::Q(l), bias(T::QBias(l)))?,
                k: self.rotated(a, T::K(l), bias(T::KBias(l)))?,
                v: self.linear(T::V(l), bias(T::VBias(l)))?,
                q_norm: self.optional(qk(T::QNorm(l)))?,
                k_norm: self.optional(qk(T::KNorm(l)))?,
            },
            output: self.linear(T::O(l), None)?,
            gate_up: GateUpWeights {
                norm: self.vector(T::FfnNorm(l))?,
                matrices: self.gate_up(l)?,
            },
            down: self.linear(T::Down(l), None)?,
        })
    }

    fn linear(
        &mut self,
        matrix: TensorName,
        bias: Option<TensorName>,
    ) -> Result<Linear<D>, LoadError> {
        Ok(Linear { matrix: self.matrix(matrix)?, bias: self.optional(bias)? })
    }

    /// Queries or keys.
    fn rotated(
        &mut self,
        a: &Architecture,
        matrix: TensorName,
        bias: Option<TensorName>,
    ) -> Result<Linear<D>, LoadError> {
        let matrix = match a.qk_norm {
            true => self.matrix(matrix),
            false => self.packed(matrix, |device, view| device.rotary_matrix(view, a.head_dim)),
        };
        Ok(Linear { matrix: matrix?, bias: self.optional(bias)? })
    }

    fn matrix(&mut self, name: TensorName) -> Result<D::Matrix, LoadError> {
        self.packed(name, D::matrix)
    }

    fn packed(
        &mut self,
        name: TensorName,
        pack: impl FnOnce(&D, MatrixView<'_>) -> Result<D::Matrix, DeviceError>,
    ) -> Result<D::Matrix, LoadError> {
        let tensor = self.checkpoint.tensor(name)?;
        let matrix = pack(self.device, tensor.view())?;
        (self.progress)(tensor.bytes.len() as u64);
        Ok(matrix)
    }

    fn gate_up(&mut self, l: usize) -> Result<D::GateUp, LoadError> {
        let names = [TensorName::Gate(l), TensorName::Up(l)];
        let [gate, up] = names.map(|name| self.checkpoint.tensor(name));
        let (gate, up) = (gate?, up?);
        let matrices = self.device.gate_up_matrices(gate.view(), up.view())?;
        (self.progress)((gate.bytes.len() + up.bytes.len()) as u64);
        Ok(matrices)
    }

    fn optional(&mut self, name: Option<TensorName>) -> Result<Option<D::Vector>, LoadError> {
        name.map(|n| self.vector(n)).transpose()
    }

    fn vector(&mut self, name: TensorName) -> Result<D::Vector, LoadError> {
        let tensor = self.checkpoint.tensor(name)?;
        let mut values = vec![0.0; tensor.rows * tensor.cols];
        blocks::dequantize_row(tensor.kind, &tensor.bytes, &mut values);
        (self.progress)(tensor.bytes.len() as u64);
        self.device.vector(&values).map_err(|e: DeviceError| e.into())
    }
}
