//! JSON schemas as constraints on tokens, by `llguidance`.
//!
//! The trie of the vocabulary is built once; a schema is compiled once per request, and every
//! reply follows it with a parser of its own. Special tokens are never text here: only an end of
//! the turn may come, and only where the text is complete. JSON is written in one line, with one
//! space behind a comma and a colon, unless the schema's own `x-guidance` says otherwise.

use super::Tokenizer;
use crate::error::TextError;
use crate::ids::TokenId;
use crate::sample::{Constraint, Grammar};
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use std::sync::Arc;

/// Compiles schemas for one vocabulary.
pub struct Grammars {
    factory: Arc<ParserFactory>,
}

impl Grammars {
    /// For `tokenizer`; a text ends with one of `ends`.
    ///
    /// # Errors
    /// When the model has no end of turn, or the vocabulary cannot be laid out.
    pub fn new(tokenizer: &Tokenizer, ends: &[TokenId]) -> Result<Self, TextError> {
        let Some(end) = ends.first() else {
            return Err(TextError::Grammar("the model has no end of turn".into()));
        };
        let word = |id: u32| {
            let bytes = tokenizer.token_bytes(TokenId(id));
            if tokenizer.is_special(TokenId(id)) || tokenizer.is_added(TokenId(id)) {
                [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat()
            } else {
                bytes.to_vec()
            }
        };
        let words: Vec<Vec<u8>> = (0..tokenizer.vocab_len() as u32).map(word).collect();
        let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, end.0), &words);
        let ends: Vec<u32> = ends.iter().map(|id| id.0).collect();
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie.with_eos_tokens(&ends)));
        let mut factory = ParserFactory::new(&env, InferenceCapabilities::default(), &[])
            .map_err(|error| TextError::Grammar(error.to_string()))?;
        factory.quiet();
        Ok(Self { factory: Arc::new(factory) })
    }

    /// Texts that are JSON of this schema.
    ///
    /// # Errors
    /// When the schema is invalid, or asks for what cannot be enforced.
    pub fn json(&self, schema: &serde_json::Value) -> Result<Grammar, TextError> {
        let mut schema = schema.clone();
        if let Some(object) = schema.as_object_mut() {
            // Free space between tokens of JSON is where small models lose themselves.
            let style = serde_json::json!({"whitespace_flexible": false, "item_separator": ", ",
                "key_separator": ": "});
            object.entry("x-guidance").or_insert(style);
        }
        let grammar = TopLevelGrammar::from_json_schema(schema);
        let parser = self.factory.create_parser(grammar);
        let matcher = Matcher::new(parser);
        if let Some(error) = matcher.get_error() {
            let first = error.lines().next().unwrap_or_default().to_owned();
            return Err(TextError::Grammar(first));
        }
        // A parser may be moved between threads, but not shared by them.
        let first = std::sync::Mutex::new(matcher);
        Ok(Grammar::new(move || {
            let matcher = first.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            Box::new(Followed(matcher.deep_clone()))
        }))
    }
}

struct Followed(Matcher);

impl Constraint for Followed {
    fn allowed(&mut self) -> Result<Vec<u32>, String> {
        let mask = self.0.compute_mask_or_eos().map_err(|error| error.to_string())?;
        Ok(mask.as_slice().to_vec())
    }

    fn push(&mut self, ids: &[TokenId]) -> Result<(), String> {
        let ids: Vec<u32> = ids.iter().map(|id| id.0).collect();
        self.0.consume_tokens(&ids).map_err(|error| error.to_string())
    }

    fn forget(&mut self, n: usize) -> Result<(), String> {
        self.0.rollback(n).map_err(|error| error.to_string())
    }

    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(Self(self.0.deep_clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const TOKENIZER: &[u8] = include_bytes!("../assets/tiny/base/tokenizer.json");

    fn tiny() -> (Tokenizer, Grammars) {
        let tokenizer = Tokenizer::from_json(TOKENIZER).unwrap();
        let end = tokenizer.id_of("<|im_end|>").unwrap();
        let grammars = Grammars::new(&tokenizer, &[end]).unwrap();
        (tokenizer, grammars)
    }

    fn allows(constraint: &mut Box<dyn Constraint>, id: TokenId) -> bool {
        constraint.allowed().unwrap()[id.index() / 32] >> (id.0 % 32) & 1 == 1
    }

    /// Feeds a text token by token; the text up to where a token was refused.
    fn accepted(tokenizer: &Tokenizer, grammar: &Grammar, text: &str) -> usize {
        let mut constraint = grammar.begin();
        let ids = tokenizer.encode(text).unwrap();
        for (i, id) in ids.iter().enumerate() {
            if !allows(&mut constraint, *id) {
                return tokenizer.decode(&ids[..i]).len();
            }
            constraint.push(&[*id]).unwrap();
        }
        text.len()
    }

    #[test]
    fn a_text_is_allowed_as_far_as_the_schema_goes() {
        let (tokenizer, grammars) = tiny();
        let schema = json!({"type": "object", "properties": {"n": {"type": "integer"}},
            "required": ["n"], "additionalProperties": false});
        let grammar = grammars.json(&schema).unwrap();
        for text in ["{\"n\": 12}", "{\"n\": 0}"] {
            assert_eq!(accepted(&tokenizer, &grammar, text), text.len(), "{text}");
        }
        for text in ["{\"m\": 1}", "{\"n\":  1}", "{\"n\": true}", "[1]", "12", "Tom"] {
            assert!(accepted(&tokenizer, &grammar, text) < text.len(), "{text}");
        }
    }

    #[test]
    fn the_turn_ends_where_the_text_is_complete_and_nowhere_else() {
        let (tokenizer, grammars) = tiny();
        let end = tokenizer.id_of("<|im_end|>").unwrap();
        let grammar = grammars.json(&json!({"type": "object"})).unwrap();
        let mut constraint = grammar.begin();
        assert!(!allows(&mut constraint, end));
        constraint.push(&tokenizer.encode("{}").unwrap()).unwrap();
        let mut fork = constraint.fork();
        assert!(allows(&mut constraint, end) && allows(&mut fork, end));
        constraint.forget(tokenizer.encode("{}").unwrap().len()).unwrap();
        assert!(!allows(&mut constraint, end), "taken back");
        assert!(allows(&mut fork, end), "a fork goes its own way");
    }

    #[test]
    fn a_schema_that_cannot_be_enforced_is_refused() {
        let (_, grammars) = tiny();
        for schema in [json!({"type": "string", "pattern": "(?=a)"}), json!({"type": "nonsense"})] {
            let error = grammars.json(&schema).unwrap_err().to_string();
            assert!(error.starts_with("grammar: "), "{error}");
        }
    }
}
