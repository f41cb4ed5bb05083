//! Files to weights, and one forward pass over a ragged batch.
//!
//! [`checkpoint::Checkpoint`] opens a Hugging Face folder, a GGUF file or the embedded pair without
//! copying anything and rejects what cannot run before memory is taken. [`weights::Weights`] puts it
//! on a device. [`forward::Model`] runs it. Every other module serves one of these three.

pub mod forward;
pub mod solo;
pub mod weights;

pub use forward::{InFlight, Model, PassLimits};
pub use solo::Solo;
pub use weights::Weights;
