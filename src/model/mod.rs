//! Files to weights, and one forward pass over a ragged batch.
//!
//! [`Checkpoint`] opens a Hugging Face folder, a GGUF file or the embedded pair without copying
//! anything and rejects what cannot run before memory is taken. [`Weights`] puts it on a device.
//! [`Model`] runs it. Every other module serves one of these three.

pub mod architecture;
pub mod checkpoint;
mod file_bytes;
pub mod forward;
mod gguf;
mod gguf_model;
mod hf_config;
mod hf_folder;
mod safetensors;
pub mod solo;
pub mod tensors;
pub mod weights;

pub use architecture::{Architecture, Family, Rope, RopeScaling};
pub use checkpoint::{Checkpoint, GenerationDefaults, TokenizerSource};
pub use file_bytes::FileBytes;
pub use forward::{InFlight, Model, Operation, PassLimits};
pub use solo::Solo;
pub use tensors::{Format, TensorInfo, TensorName, TensorView};
pub use weights::Weights;
