//! Strings to tokens and back: tokenizers, chat templates, steps, reasoning tags, answers.
//!
//! Everything here is pure and knows nothing of models or devices. The invariant: a running
//! sequence is a list of ids; text is only ever derived from it, never fed back into it.
//! Read next: `tokenizer` for ids and bytes, `template` for prompts, `stop` and `step` for
//! where a decode ends.

mod answer;
mod detokenize;
mod gguf_vocab;
#[cfg(feature = "grammar")]
mod grammar;
mod id_map;
mod python;
mod reasoning;
mod step;
mod stop;
mod template;
mod tokenizer;

#[cfg(test)]
mod tests;

pub use answer::{equal, extract, extract_gsm8k};
pub use detokenize::Detokenizer;
pub use gguf_vocab::{GgufVocab, SUPPORTED_PRE};
#[cfg(feature = "grammar")]
pub use grammar::Grammars;
pub use id_map::{IdMap, SpecialRoles};
pub use reasoning::{ReasoningState, ReasoningTags, ReasoningTracker, SplitText, split_reasoning};
pub use step::{SentenceEnd, StepSplitter, Steps, steps};
pub use stop::{StopHit, StopMatcher, StopStrings};
pub use template::{ChatTemplate, Message, RenderOptions, SpecialText};
pub use tokenizer::Tokenizer;
