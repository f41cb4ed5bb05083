//! The pure rules of drawing and accepting a token, and of reading a score off label logits.
//!
//! Nothing here touches a device, a clock or global state: every function maps numbers to numbers,
//! so the tests compare against closed forms. The one invariant: **sums are integer sums**.
//! Probabilities are fixed-point masses, so a parallel scan on a GPU, whatever its order, picks the
//! same token from the same logits as the loops below.
//!
//! Read next: [`Key`] (which random number), [`process`] (logits to a distribution), [`draw()`] (a
//! distribution to a token), [`Window`] (what survives of proposed tokens), [`score`] (the judge).

mod accept;
#[cfg(test)]
mod chi_square;
mod constraint;
mod distribution;
mod draw;
mod label;
mod params;
mod penalty;
mod philox;
mod stats;
mod window;

pub use accept::{Accepted, ChainUniforms, accept_chain, accepts_token, residual};
pub use constraint::{Constraint, Grammar, sample_allowed};
pub use distribution::{Distribution, Entry, MASS_ONE, draw, exp_nonpositive, mass};
pub use draw::{Sampled, Scratch, process, sample};
pub use label::{CUTOFF, ParseReadoutError, Readout, accepts, score, softmax_labels};
pub use params::{SamplingOverrides, SamplingParams, TEMPERATURE_MIN};
pub use penalty::History;
pub use philox::{Key, Purpose, philox4x32_10, uniform, uniform_from_word, uniforms4};
pub use stats::{Stats, argmax, likeliest, stats};
pub use window::Window;
