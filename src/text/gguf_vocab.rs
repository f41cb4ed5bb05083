//! The tokenizer that GGUF metadata describes.
//!
//! GGUF stores tokens, merges and a *name* for the pre-tokenizer; the pattern itself lives in the
//! reader. So this file is a table of names to the patterns of the original `tokenizer.json`
//! files. Invariant: a name not in the table is an error, never a guess, because a wrong pattern
//! yields plausible but wrong ids. Read next: `tokenizer`.

use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::{NFC, Prepend, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior};

use super::tokenizer::{Alphabet, Parts, failed, invalid};
use crate::error::TextError;

/// The `tokenizer.ggml.*` fields of a GGUF file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GgufVocab {
    /// `tokenizer.ggml.model`: `gpt2` (byte-level BPE) or `llama` (SentencePiece).
    pub model: String,
    /// `tokenizer.ggml.pre`; empty where the file has none. Ignored for `llama`.
    pub pre: String,
    /// `tokenizer.ggml.tokens`, by id.
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.token_type`, by id: 1 normal, 2 unknown, 3 control, 4 user defined,
    /// 5 unused, 6 byte. Empty where the file has none: all are normal then.
    pub token_types: Vec<i32>,
    /// `tokenizer.ggml.scores`, by id; only for `llama`.
    pub scores: Vec<f32>,
    /// `tokenizer.ggml.merges`, by rank; only for `gpt2`.
    pub merges: Vec<String>,
    /// `tokenizer.ggml.bos_token_id`.
    pub bos: Option<u32>,
    /// `tokenizer.ggml.eos_token_id`.
    pub eos: Option<u32>,
    /// `tokenizer.ggml.add_bos_token`. Kept for the caller: encoding never adds a bos.
    pub add_bos: bool,
}

const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// SentencePiece pieces are short; a long one would make finding its merges quadratic.
const PIECE_BYTES_MAX: usize = 1024;

/// How ordinary text is cut before merging.
struct Pre {
    names: &'static [&'static str],
    /// Applied one after the other, each splitting what the one before left.
    patterns: &'static [&'static str],
    /// Unicode NFC first.
    nfc: bool,
    /// A piece that is a token is taken whole, whatever the merges say.
    ignore_merges: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const QWEN2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|",
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const DEEPSEEK3: &str = concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|"##,
    r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
/// The letters DeepSeek LLM lists one by one: cased scripts, nearly all of `\p{Lu}\p{Ll}`.
const DEEPSEEK_LETTERS: &str = concat!(
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫ",
    r"ᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\x{1F7D}ᾀ-ᾴᾶ-ᾼ\x{1FBE}ῂ-ῄῆ-ῌῐ-\x{1FD3}ῖ-\x{1FDB}ῠ-Ῥ",
    r"ῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\x{2126}ℨ\x{212A}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿ",
    r"ﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+"
);

/// Every pre-tokenizer name this reader knows.
pub const SUPPORTED_PRE: &[&str] = &[
    "qwen2",
    "deepseek-r1-qwen",
    "llama-bpe",
    "llama3",
    "llama-v3",
    "smollm",
    "starcoder",
    "refact",
    "gpt-2",
    "default",
    "deepseek-llm",
    "deepseek-coder",
    "deepseek-v3",
    "tekken",
];

const PRES: &[Pre] = &[
    Pre { names: &["qwen2", "deepseek-r1-qwen"], patterns: &[QWEN2], nfc: true, ..PLAIN },
    Pre {
        names: &["llama-bpe", "llama3", "llama-v3"],
        patterns: &[LLAMA3],
        ignore_merges: true,
        ..PLAIN
    },
    Pre { names: &["smollm", "starcoder", "refact"], patterns: &[r"\p{N}", GPT2], ..PLAIN },
    Pre { names: &["gpt-2"], patterns: &[GPT2], ..PLAIN },
    // What llama.cpp does for files converted before pre-tokenizers had names.
    Pre {
        names: &["default"],
        patterns: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
        ..PLAIN
    },
    Pre {
        names: &["deepseek-llm"],
        patterns: &[
            "[\r\n]",
            DEEPSEEK_LETTERS,
            r"\s?[!-/:-~！-／：-～‘-‟\x{3000}-。]+",
            r"\s+$",
            r"[一-龥\x{800}-一가-\x{D7FF}]+",
            r"\p{N}+",
        ],
        ..PLAIN
    },
    Pre {
        names: &["deepseek-coder"],
        patterns: &[
            "[\r\n]",
            r"\s?\p{L}+",
            r"\s?\p{P}+",
            r"[一-龥\x{800}-一가-\x{D7FF}]+",
            r"\p{N}",
        ],
        ..PLAIN
    },
    Pre {
        names: &["deepseek-v3"],
        patterns: &[r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3],
        ..PLAIN
    },
    Pre { names: &["tekken"], patterns: &[TEKKEN], ignore_merges: true, ..PLAIN },
];

const PLAIN: Pre = Pre { names: &[], patterns: &[], nfc: false, ignore_merges: false };

/// Checks the lists and builds the tokenizer.
pub(super) fn parts(vocab: &GgufVocab) -> Result<Parts, TextError> {
    let len = vocab.tokens.len();
    for (field, got) in [("token_type", vocab.token_types.len()), ("scores", vocab.scores.len())] {
        if got != 0 && got != len {
            return Err(invalid(format!(
                "tokenizer.ggml.{field}: expected {len} entries as in tokens, got {got}"
            )));
        }
    }
    for (field, id) in [("bos_token_id", vocab.bos), ("eos_token_id", vocab.eos)] {
        if let Some(id) = id.filter(|&id| id as usize >= len) {
            return Err(invalid(format!(
                "tokenizer.ggml.{field}: expected an id below {len}, got {id}"
            )));
        }
    }
    match vocab.model.as_str() {
        "gpt2" => byte_level(vocab),
        "llama" => sentence_piece(vocab),
        other => Err(invalid(format!(
            "tokenizer.ggml.model {other:?} is not supported; supported: gpt2, llama"
        ))),
    }
}

fn byte_level(vocab: &GgufVocab) -> Result<Parts, TextError> {
    let name = if vocab.pre.is_empty() { "default" } else { &vocab.pre };
    let pre = PRES.iter().find(|pre| pre.names.contains(&name)).ok_or_else(|| {
        invalid(format!(
            "tokenizer.ggml.pre {name:?} is not supported; supported: {}",
            SUPPORTED_PRE.join(", ")
        ))
    })?;
    let ids = ids_by_text(vocab);
    let mut merges = Merges::with_capacity(vocab.merges.len());
    let mut pairs = Vec::with_capacity(vocab.merges.len());
    for (rank, merge) in vocab.merges.iter().enumerate() {
        let split = merge.split_once(' ').filter(|(l, r)| !l.is_empty() && !r.is_empty());
        let known = split.and_then(|(l, r)| ids.get(l).copied().zip(ids.get(r).copied()));
        let (Some((left, right)), Some(pair)) = (split, known) else {
            return Err(invalid(format!(
                "tokenizer.ggml.merges[{rank}]: expected two tokens of the vocabulary, \
                 got {merge:?}"
            )));
        };
        merges.push((left.to_owned(), right.to_owned()));
        pairs.push(pair);
    }
    let model = BPE::builder()
        .vocab_and_merges(ids, merges)
        .ignore_merges(pre.ignore_merges)
        .build()
        .map_err(failed)?;
    let mut hf = tokenizers::Tokenizer::new(model);
    if pre.nfc {
        hf.with_normalizer(Some(NFC)).map_err(failed)?;
    }
    let mut stages: Vec<PreTokenizerWrapper> = Vec::new();
    for pattern in pre.patterns {
        let pattern = SplitPattern::Regex((*pattern).to_owned());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(failed)?;
        stages.push(split.into());
    }
    stages.push(ByteLevel::new(false, false, false).into());
    hf.with_pre_tokenizer(Some(PreTokenizers::new(stages)));
    add_tokens(&mut hf, vocab)?;
    Ok(Parts { hf, alphabet: Alphabet::ByteLevel, merges: pairs })
}

fn sentence_piece(vocab: &GgufVocab) -> Result<Parts, TextError> {
    if vocab.scores.is_empty() {
        return Err(invalid(
            "tokenizer.ggml.scores: expected one per token for model llama, got none".to_owned(),
        ));
    }
    let ids = ids_by_text(vocab);
    if let Some(byte) = (0..=255_u8).find(|byte| !ids.contains_key(&format!("<0x{byte:02X}>"))) {
        return Err(invalid(format!(
            "tokenizer.ggml.tokens: expected a byte token <0x{byte:02X}> for model llama, got none"
        )));
    }
    let (merges, pairs) = merges_by_score(vocab, &ids)?;
    let mut builder =
        BPE::builder().vocab_and_merges(ids, merges).byte_fallback(true).fuse_unk(true);
    if let Some(unknown) = (0..vocab.tokens.len()).find(|&id| kind(vocab, id) == UNKNOWN) {
        builder = builder.unk_token(vocab.tokens[unknown].clone());
    }
    let mut hf = tokenizers::Tokenizer::new(builder.build().map_err(failed)?);
    let stages: Vec<NormalizerWrapper> = vec![
        Prepend::new("\u{2581}".to_owned()).into(),
        Replace::new(" ", "\u{2581}").map_err(failed)?.into(),
    ];
    hf.with_normalizer(Some(Normalizers::new(stages))).map_err(failed)?;
    add_tokens(&mut hf, vocab)?;
    Ok(Parts { hf, alphabet: Alphabet::SentencePiece, merges: pairs })
}

/// The merges SentencePiece's scores imply: every way to split a piece into two pieces, best
/// score first. Ties go as in the converter that wrote the original `tokenizer.json`: longer
/// left part, longer right part, lower ids.
fn merges_by_score(vocab: &GgufVocab, ids: &Vocab) -> Result<(Merges, Vec<(u32, u32)>), TextError> {
    struct Candidate<'a> {
        score: f32,
        left: &'a str,
        right: &'a str,
        pair: (u32, u32),
    }
    let mut candidates = Vec::new();
    for (id, piece) in vocab.tokens.iter().enumerate() {
        if !matches!(kind(vocab, id), 1 | USER_DEFINED) {
            continue;
        }
        if piece.len() > PIECE_BYTES_MAX {
            return Err(invalid(format!(
                "tokenizer.ggml.tokens[{id}]: expected at most {PIECE_BYTES_MAX} bytes, got {}",
                piece.len()
            )));
        }
        let first = candidates.len();
        for (at, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(at);
            if let Some(pair) = ids.get(left).copied().zip(ids.get(right).copied()) {
                candidates.push(Candidate { score: vocab.scores[id], left, right, pair });
            }
        }
        candidates[first..].sort_by_key(|candidate| candidate.pair);
    }
    let chars = |text: &str| text.chars().count();
    candidates.sort_by(|a, b| {
        b.score
            .total_cmp(&a.score)
            .then_with(|| chars(b.left).cmp(&chars(a.left)))
            .then_with(|| chars(b.right).cmp(&chars(a.right)))
    });
    let texts = candidates.iter().map(|c| (c.left.to_owned(), c.right.to_owned())).collect();
    Ok((texts, candidates.iter().map(|c| c.pair).collect()))
}

/// Token type of one id; bos and eos are control tokens even where the file has no types.
fn kind(vocab: &GgufVocab, id: usize) -> i32 {
    match vocab.token_types.get(id) {
        Some(&kind) => kind,
        None if [vocab.bos, vocab.eos].iter().flatten().any(|&end| end as usize == id) => CONTROL,
        None => 1,
    }
}

/// All tokens but the unused ones, which stand for padding. A later duplicate wins, as in
/// llama.cpp.
fn ids_by_text(vocab: &GgufVocab) -> Vocab {
    let used = (0..vocab.tokens.len()).filter(|&id| kind(vocab, id) != UNUSED);
    used.map(|id| (vocab.tokens[id].clone(), id as u32)).collect()
}

fn add_tokens(hf: &mut tokenizers::Tokenizer, vocab: &GgufVocab) -> Result<(), TextError> {
    let added = (0..vocab.tokens.len()).filter_map(|id| {
        let special = match kind(vocab, id) {
            UNKNOWN | CONTROL => true,
            USER_DEFINED => false,
            _ => return None,
        };
        Some(AddedToken::from(vocab.tokens[id].clone(), special).normalized(false))
    });
    hf.add_tokens(added).map_err(failed)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_shown_to_users_is_the_table() {
        let table: Vec<_> = PRES.iter().flat_map(|pre| pre.names).copied().collect();
        assert_eq!(table, SUPPORTED_PRE);
    }
}
