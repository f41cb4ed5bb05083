//! A whole GGUF file: header, metadata, table of tensors, vocabulary.
#![no_main]

use forerun::model::Checkpoint;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(checkpoint) = Checkpoint::from_gguf("fuzz.gguf", bytes.to_vec().into()) {
        forerun_fuzz::exercise(&checkpoint);
    }
});
