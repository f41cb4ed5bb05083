//! One tokenizer, exact in both directions.
//!
//! Encoding is the `tokenizers` crate; decoding is a table of the exact bytes of every id, so
//! that streaming, stop strings and step boundaries work on bytes and never re-encode.
//! Invariant: the bytes of the ids of a text, joined, are the (normalised) text, if the
//! vocabulary has all its bytes. Only BPE is supported, byte-level (GPT-2, Llama 3, Qwen) or
//! SentencePiece-style with byte fallback.
//! Read next: `gguf_vocab` for tokenizers out of GGUF metadata.

use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock};

use serde_json::Value;
use tokenizers::{Model, Normalizer, OffsetType, PreTokenizedString, PreTokenizer};

use super::gguf_vocab::{self, GgufVocab};
use crate::error::TextError;
use crate::ids::TokenId;

/// Ids may have gaps, but not so many that a forged id could ask for a huge table.
const ID_GAP_MAX: usize = 65_536;

/// How token texts stand for bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Alphabet {
    /// Every byte is one printable character (GPT-2's table).
    ByteLevel,
    /// Text with U+2581 for the space, and `<0x0A>` for bytes that have no piece.
    SentencePiece,
}

/// What an id is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Padding of the vocabulary: the model has a row, the tokenizer has no text.
    Absent,
    /// Produced by merging ordinary text.
    Ordinary,
    /// Added beside the merges and shown as text, like `<tool_call>`.
    Added,
    /// Added, and a control token, like `<|im_end|>`.
    Special,
}

/// What one source (JSON or GGUF) says about a tokenizer.
pub(super) struct Parts {
    pub(super) hf: tokenizers::Tokenizer,
    pub(super) alphabet: Alphabet,
    /// Merges by rank, as pairs of ids.
    pub(super) merges: Vec<(u32, u32)>,
}

struct Inner {
    hf: tokenizers::Tokenizer,
    alphabet: Alphabet,
    merges: Vec<(u32, u32)>,
    kinds: Vec<Kind>,
    /// The bytes of all ids, one after the other; id `i` ends at `ends[i]`.
    bytes: Vec<u8>,
    ends: Vec<u32>,
    added: BTreeMap<TokenId, String>,
}

/// A tokenizer. Cloning shares it.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_len", &self.vocab_len())
            .field("alphabet", &self.inner.alphabet)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads a Hugging Face `tokenizer.json`.
    ///
    /// # Errors
    /// If the bytes are not such a file, or describe something other than a byte-level or
    /// SentencePiece-style BPE.
    pub fn from_json(bytes: &[u8]) -> Result<Self, TextError> {
        Self::from_parts(guarded(|| parts_from_json(bytes))?)
    }

    /// Builds the tokenizer that GGUF metadata describes, with the ids of the original.
    ///
    /// # Errors
    /// If `tokenizer.ggml.model` or `tokenizer.ggml.pre` is not known, or the lists contradict
    /// each other.
    pub fn from_gguf(vocab: &GgufVocab) -> Result<Self, TextError> {
        Self::from_parts(guarded(|| gguf_vocab::parts(vocab))?)
    }

    fn from_parts(parts: Parts) -> Result<Self, TextError> {
        let Parts { hf, alphabet, merges } = parts;
        let vocab = hf.get_vocab(false);
        let added_tokens = hf.get_added_tokens_decoder();
        let ids = vocab.values().chain(added_tokens.keys());
        let len = ids.max().map_or(0, |&id| id as usize + 1);
        let entries = vocab.len() + added_tokens.len();
        if len > entries + ID_GAP_MAX {
            return Err(invalid(format!(
                "highest id: expected at most {} for {entries} tokens, got {}",
                entries + ID_GAP_MAX,
                len - 1
            )));
        }
        let mut kinds = vec![Kind::Absent; len];
        let mut texts: Vec<&str> = vec![""; len];
        for (text, &id) in &vocab {
            kinds[id as usize] = Kind::Ordinary;
            texts[id as usize] = text;
        }
        let mut added = BTreeMap::new();
        for (&id, token) in &added_tokens {
            kinds[id as usize] = if token.special { Kind::Special } else { Kind::Added };
            texts[id as usize] = &token.content;
            added.insert(TokenId(id), token.content.clone());
        }
        let mut bytes = Vec::new();
        let mut ends = Vec::with_capacity(len);
        for (kind, text) in kinds.iter().zip(&texts) {
            match kind {
                Kind::Absent => {}
                Kind::Ordinary => ordinary_bytes(alphabet, text, &mut bytes),
                Kind::Added | Kind::Special => bytes.extend_from_slice(text.as_bytes()),
            }
            ends.push(u32::try_from(bytes.len()).map_err(|_| {
                invalid("the texts of all tokens exceed 4 GiB together".to_owned())
            })?);
        }
        Ok(Self { inner: Arc::new(Inner { hf, alphabet, merges, kinds, bytes, ends, added }) })
    }

    /// Ids of `text`. The text of an added token becomes that token; no bos is added.
    ///
    /// A byte that the vocabulary lacks is dropped, as the original tokenizer does: SmolLM2 has no
    /// tokens for some control characters and for the lead bytes of the unused planes.
    ///
    /// # Errors
    /// If the pipeline of a foreign `tokenizer.json` fails on this text.
    pub fn encode(&self, text: &str) -> Result<Vec<TokenId>, TextError> {
        guarded(|| {
            let encoding = self.inner.hf.encode_fast(text, false).map_err(failed)?;
            Ok(encoding.get_ids().iter().copied().map(TokenId).collect())
        })
    }

    /// Ids of `text` taken as plain text: `<|im_end|>` typed by a user stays seven characters.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_ordinary(&self, text: &str) -> Result<Vec<TokenId>, TextError> {
        guarded(|| {
            let hf = &self.inner.hf;
            let mut pieces = PreTokenizedString::from(text);
            if let Some(normalizer) = hf.get_normalizer() {
                pieces.normalize(|piece| normalizer.normalize(piece)).map_err(failed)?;
            }
            if let Some(pre_tokenizer) = hf.get_pre_tokenizer() {
                pre_tokenizer.pre_tokenize(&mut pieces).map_err(failed)?;
            }
            pieces.tokenize(|piece| hf.get_model().tokenize(piece.get())).map_err(failed)?;
            let encoding = pieces.into_encoding(None, 0, OffsetType::None).map_err(failed)?;
            Ok(encoding.get_ids().iter().copied().map(TokenId).collect())
        })
    }

    /// The text of `ids`, special tokens included; bytes that are no UTF-8 become U+FFFD.
    #[must_use]
    pub fn decode(&self, ids: &[TokenId]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| self.token_bytes(id)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The exact bytes of one token; empty for padding and for ids beyond the vocabulary.
    #[must_use]
    pub fn token_bytes(&self, id: TokenId) -> &[u8] {
        let Inner { bytes, ends, .. } = &*self.inner;
        let Some(&end) = ends.get(id.index()) else { return &[] };
        let start = id.index().checked_sub(1).map_or(0, |before| ends[before]);
        &bytes[start as usize..end as usize]
    }

    /// True for control tokens such as `<|im_end|>`, which a reader of the text should not see.
    #[must_use]
    pub fn is_special(&self, id: TokenId) -> bool {
        self.kind(id) == Kind::Special
    }

    /// True for every token added beside the merges: control tokens, and visible ones like
    /// `<tool_call>` (or `<think>` in most models). These are the ids that differ in a pair.
    #[must_use]
    pub fn is_added(&self, id: TokenId) -> bool {
        matches!(self.kind(id), Kind::Special | Kind::Added)
    }

    pub(super) fn kind(&self, id: TokenId) -> Kind {
        self.inner.kinds.get(id.index()).copied().unwrap_or(Kind::Absent)
    }

    /// The token whose text is exactly `text`, an added one before an ordinary one.
    #[must_use]
    pub fn id_of(&self, text: &str) -> Option<TokenId> {
        if let Some((&id, _)) = self.inner.added.iter().find(|(_, added)| *added == text) {
            return Some(id);
        }
        let piece: String = match self.inner.alphabet {
            Alphabet::ByteLevel => text.bytes().map(|byte| BYTE_CHARS[byte as usize]).collect(),
            Alphabet::SentencePiece => text.replace(' ', "\u{2581}"),
        };
        let id = TokenId(self.inner.hf.get_model().token_to_id(&piece)?);
        (self.token_bytes(id) == text.as_bytes()).then_some(id)
    }

    /// One past the highest id that has a text. The model may have more rows: padding.
    #[must_use]
    pub fn vocab_len(&self) -> usize {
        self.inner.kinds.len()
    }

    /// Control tokens and their texts, by id.
    pub fn special_tokens(&self) -> impl Iterator<Item = (TokenId, &str)> {
        self.added_tokens().filter(|&(id, _)| self.is_special(id))
    }

    /// All added tokens and their texts, by id; see [`Tokenizer::is_added`].
    pub fn added_tokens(&self) -> impl Iterator<Item = (TokenId, &str)> {
        self.inner.added.iter().map(|(&id, text)| (id, text.as_str()))
    }

    /// Checks that two models can share one sequence of ids: the same ordinary tokens at the same
    /// ids and the same merges. Added tokens and padding may differ.
    ///
    /// # Errors
    /// A message that names the first difference.
    pub fn compare(&self, other: &Self) -> Result<(), String> {
        if self.inner.alphabet != other.inner.alphabet {
            return Err(format!(
                "one tokenizer is {:?}, the other {:?}",
                self.inner.alphabet, other.inner.alphabet
            ));
        }
        let len = self.vocab_len().max(other.vocab_len());
        for id in (0..u32::try_from(len).unwrap_or(u32::MAX)).map(TokenId) {
            if self.kind(id) != Kind::Ordinary && other.kind(id) != Kind::Ordinary {
                continue;
            }
            if self.kind(id) != other.kind(id) || self.token_bytes(id) != other.token_bytes(id) {
                return Err(format!("token {id}: {} vs {}", self.describe(id), other.describe(id)));
            }
        }
        let (mine, theirs) = (&self.inner.merges, &other.inner.merges);
        let first = (0..mine.len().max(theirs.len())).find(|&i| mine.get(i) != theirs.get(i));
        let Some(rank) = first else { return Ok(()) };
        Err(format!(
            "merge {rank}: {} vs {}",
            self.describe_merge(mine.get(rank)),
            other.describe_merge(theirs.get(rank))
        ))
    }

    fn describe(&self, id: TokenId) -> String {
        let text = String::from_utf8_lossy(self.token_bytes(id));
        match self.kind(id) {
            Kind::Absent => "nothing".to_owned(),
            Kind::Ordinary => format!("{text:?}"),
            Kind::Added | Kind::Special => format!("added token {text:?}"),
        }
    }

    fn describe_merge(&self, merge: Option<&(u32, u32)>) -> String {
        merge.map_or("nothing".to_owned(), |&(left, right)| {
            format!("{} + {}", self.describe(TokenId(left)), self.describe(TokenId(right)))
        })
    }
}

pub(super) fn invalid(message: String) -> TextError {
    TextError::Tokenizer(message)
}

// By value, to be named in `map_err`.
#[allow(clippy::needless_pass_by_value)]
pub(super) fn failed(error: tokenizers::Error) -> TextError {
    TextError::Tokenizer(error.to_string())
}

/// Runs code of the `tokenizers` crate on foreign input: it indexes and unwraps freely, and a bad
/// file must not take the process down.
fn guarded<T>(work: impl FnOnce() -> Result<T, TextError>) -> Result<T, TextError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        Err(invalid("the tokenizer file is inconsistent: its pipeline panicked".to_owned()))
    })
}

fn parts_from_json(bytes: &[u8]) -> Result<Parts, TextError> {
    let json: Value =
        serde_json::from_slice(bytes).map_err(|error| invalid(format!("not JSON: {error}")))?;
    let model = &json["model"];
    let kind = model["type"].as_str().unwrap_or("BPE");
    if kind != "BPE" || !model["merges"].is_array() {
        return Err(invalid(format!("model type {kind} is not supported; supported: BPE")));
    }
    // A prefix is cut from merges bytewise inside the crate, and dropout is random.
    for field in ["continuing_subword_prefix", "end_of_word_suffix", "dropout"] {
        let value = &model[field];
        if !(value.is_null() || value == "" || value.as_f64() == Some(0.0)) {
            return Err(invalid(format!("model.{field}: expected null, got {value}")));
        }
    }
    let alphabet = if ["decoder", "pre_tokenizer", "normalizer"]
        .iter()
        .any(|part| mentions(&json[part], "ByteLevel"))
    {
        Alphabet::ByteLevel
    } else if model["byte_fallback"] == true || mentions(&json["decoder"], "Metaspace") {
        Alphabet::SentencePiece
    } else {
        return Err(invalid(
            "neither a ByteLevel pre-tokenizer nor SentencePiece byte fallback; \
             supported: these two"
                .to_owned(),
        ));
    };
    let merges = merges_from_json(model)?;
    let mut hf = tokenizers::Tokenizer::from_bytes(bytes).map_err(failed)?;
    // What transformers also resets: a prompt is never cut or padded behind the caller's back.
    hf.with_truncation(None).map_err(failed)?;
    hf.with_padding(None);
    for token in json["added_tokens"].as_array().into_iter().flatten() {
        let (Some(text), Some(id)) = (token["content"].as_str(), token["id"].as_u64()) else {
            continue;
        };
        let got = hf.token_to_id(text).map(u64::from);
        if !text.is_empty() && got != Some(id) {
            return Err(invalid(format!(
                "added token {text:?}: expected id {id}, got {got:?} from the vocabulary; \
                 ids of added tokens must follow the vocabulary without gaps"
            )));
        }
    }
    Ok(Parts { hf, alphabet, merges })
}

fn merges_from_json(model: &Value) -> Result<Vec<(u32, u32)>, TextError> {
    let id = |text: &str| model["vocab"][text].as_u64().and_then(|id| u32::try_from(id).ok());
    let merges = model["merges"].as_array().map_or(&[][..], Vec::as_slice);
    let mut pairs = Vec::with_capacity(merges.len());
    for (rank, merge) in merges.iter().enumerate() {
        let pair = match merge {
            Value::String(text) => text.split_once(' '),
            pair => pair[0].as_str().zip(pair[1].as_str()),
        };
        let ids = pair.and_then(|(left, right)| id(left).zip(id(right)));
        pairs.push(ids.ok_or_else(|| {
            invalid(format!("merge {rank}: expected two known tokens, got {merge}"))
        })?);
    }
    Ok(pairs)
}

/// True if `value` is, or contains in a sequence, a component of this type.
fn mentions(value: &Value, kind: &str) -> bool {
    match value {
        Value::Object(fields) => {
            fields.get("type").is_some_and(|found| found == kind)
                || fields.values().any(|inner| mentions(inner, kind))
        }
        Value::Array(items) => items.iter().any(|inner| mentions(inner, kind)),
        _ => false,
    }
}

/// GPT-2's byte alphabet: printable Latin-1 stands for itself, the other 68 bytes follow from
/// U+0100 on, in order.
pub(super) static BYTE_CHARS: LazyLock<[char; 256]> = LazyLock::new(|| {
    let mut next = 0x100;
    std::array::from_fn(|byte| {
        let byte = byte as u8;
        match byte {
            b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
            _ => {
                next += 1;
                char::from_u32(next - 1).expect("below the surrogates")
            }
        }
    })
});

static CHAR_BYTES: LazyLock<HashMap<char, u8>> =
    LazyLock::new(|| (0..=255_u8).map(|byte| (BYTE_CHARS[byte as usize], byte)).collect());

/// Appends the bytes an ordinary token stands for.
fn ordinary_bytes(alphabet: Alphabet, text: &str, bytes: &mut Vec<u8>) {
    match alphabet {
        Alphabet::ByteLevel => {
            let decoded: Option<Vec<u8>> =
                text.chars().map(|char| CHAR_BYTES.get(&char).copied()).collect();
            // A token outside the alphabet is plain text, as in the ByteLevel decoder.
            bytes.extend(decoded.unwrap_or_else(|| text.as_bytes().to_vec()));
        }
        Alphabet::SentencePiece => match byte_piece(text) {
            Some(byte) => bytes.push(byte),
            None => bytes.extend_from_slice(text.replace('\u{2581}', " ").as_bytes()),
        },
    }
}

/// The byte of a SentencePiece byte token such as `<0x0A>`.
pub(super) fn byte_piece(text: &str) -> Option<u8> {
    let hex = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let upper = hex.len() == 2 && hex.bytes().all(|c| matches!(c, b'0'..=b'9' | b'A'..=b'F'));
    upper.then(|| u8::from_str_radix(hex, 16).ok()).flatten()
}
