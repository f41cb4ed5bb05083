//! model.

pub mod architecture;
pub mod checkpoint;
mod file_bytes;
mod gguf;
mod gguf_model;
mod hf_config;
mod hf_folder;
mod safetensors;
pub mod tensors;

pub use architecture::{Architecture, Family, Rope, RopeScaling};
pub use checkpoint::{Checkpoint, GenerationDefaults, GgufVocab, SpecialText, TokenizerSource};
pub use file_bytes::FileBytes;
pub use tensors::{Format, TensorInfo, TensorName, TensorView};
