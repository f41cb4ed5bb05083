//! The vocabulary of a GGUF file, written as lines: model, pre-tokenizer, bos, then tokens with
//! their type in front, then after an empty line the merges.
#![no_main]

use forerun::text::{GgufVocab, Tokenizer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let mut lines = text.split('\n');
    let mut line = || lines.next().unwrap_or_default();
    let mut vocab = GgufVocab {
        model: line().to_owned(),
        pre: line().to_owned(),
        tokens: Vec::new(),
        token_types: Vec::new(),
        scores: Vec::new(),
        merges: Vec::new(),
        bos: line().parse().ok(),
        eos: None,
        add_bos: false,
    };
    for token in lines.by_ref().take_while(|line| !line.is_empty()) {
        let mut characters = token.chars();
        let kind = characters.next().and_then(|c| c.to_digit(10)).unwrap_or(1);
        vocab.tokens.push(characters.as_str().to_owned());
        vocab.token_types.push(kind as i32);
        vocab.scores.push(-(vocab.tokens.len() as f32));
    }
    vocab.merges = lines.map(str::to_owned).collect();
    if let Ok(tokenizer) = Tokenizer::from_gguf(&vocab) {
        if let Ok(ids) = tokenizer.encode("a Ünï\n\n3.14 <|im_end|>") {
            let _ = tokenizer.decode(&ids);
        }
    }
});
