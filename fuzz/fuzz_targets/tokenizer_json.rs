//! A `tokenizer.json`; what is accepted encodes and decodes.
#![no_main]

use forerun::text::Tokenizer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(tokenizer) = Tokenizer::from_json(bytes) {
        if let Ok(ids) = tokenizer.encode("a Ünï\n\n3.14 <|im_end|>") {
            let _ = tokenizer.decode(&ids);
        }
    }
});
