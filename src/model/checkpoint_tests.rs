//! Claims about `checkpoint.rs`.

use super::*;
use crate::device::blocks::{BlockType, dequantize_row};
use crate::model::{Family, RopeScaling};

fn fixture(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/load")).join(name)
}

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(fixture(name)).unwrap()
}

fn open(name: &str) -> Checkpoint {
    Checkpoint::open(&fixture(name)).unwrap()
}

/// The message for the files of a folder after `change`.
fn folder_error(name: &str, change: impl Fn(&mut Vec<(String, FileBytes)>)) -> String {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(fixture(name)).unwrap() {
        let entry = entry.unwrap();
        let file = entry.file_name().into_string().unwrap();
        files.push((file, std::fs::read(entry.path()).unwrap().into()));
    }
    change(&mut files);
    Checkpoint::from_files("m", files).unwrap_err().to_string()
}

fn gguf_error(bytes: Vec<u8>) -> String {
    Checkpoint::from_gguf("m.gguf", bytes.into()).unwrap_err().to_string()
}

/// Where `text` ends in `bytes`.
fn after(bytes: &[u8], text: &str) -> usize {
    let start = bytes.windows(text.len()).position(|window| window == text.as_bytes());
    start.expect("the fixture has this text") + text.len()
}

fn values(checkpoint: &Checkpoint, name: TensorName) -> Vec<f32> {
    let view = checkpoint.tensor(name).unwrap();
    assert_eq!((view.rows, view.cols), name.shape(checkpoint.architecture()), "{name:?}");
    let mut values = vec![f32::NAN; view.rows * view.cols];
    let row_bytes = view.kind.row_bytes(view.cols).unwrap();
    assert_eq!(view.bytes.len(), view.rows * row_bytes);
    for (row, out) in view.bytes.chunks(row_bytes).zip(values.chunks_mut(view.cols)) {
        dequantize_row(view.kind, row, out);
    }
    values
}

#[test]
fn a_llama_gguf_has_the_rows_of_its_folder() {
    let (folder, gguf) = (open("llama"), open("llama.gguf"));
    for name in TensorName::all(folder.architecture()) {
        if name == TensorName::K(0) {
            // Stored as Q8_0: what was quantised and decoded in the folder's order.
            let expected = bytes("llama.k_proj.f32");
            let got: Vec<u8> =
                values(&gguf, name).iter().flat_map(|value| value.to_le_bytes()).collect();
            assert!(got == expected, "the rows of {name:?} are not those of the folder");
        } else {
            assert!(values(&folder, name) == values(&gguf, name), "{name:?} differs");
        }
    }
    assert_eq!(gguf.tensor(TensorName::Q(0)).unwrap().kind, BlockType::BF16);
    assert_eq!(gguf.tensor(TensorName::K(0)).unwrap().kind, BlockType::Q8_0);
}

#[test]
fn qwen_ggufs_are_not_permuted() {
    let (folder, gguf) = (open("qwen2"), open("qwen2.gguf"));
    for name in TensorName::all(folder.architecture()) {
        let exact = gguf.tensor(name).unwrap().kind == BlockType::F32;
        let (a, b) = (values(&folder, name), values(&gguf, name));
        let error = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(if exact { error == 0.0 } else { error < 0.4 }, "{name:?}: off by {error}");
    }
    let kind = |name| gguf.tensor(name).unwrap().kind;
    assert_eq!(kind(TensorName::Embed), BlockType::Q4_0);
    assert_eq!(kind(TensorName::Q(0)), BlockType::Q4_1);
    assert_eq!(kind(TensorName::K(0)), BlockType::Q5_0);
    assert_eq!(kind(TensorName::V(0)), BlockType::Q5_1);
    assert_eq!(kind(TensorName::O(0)), BlockType::F16);
}

#[test]
fn both_formats_describe_the_same_architecture() {
    for name in ["llama", "qwen2", "qwen3"] {
        let (folder, gguf) = (open(name), open(&format!("{name}.gguf")));
        let mut from_gguf = gguf.architecture().clone();
        match name {
            "llama" => {
                let factors = RopeScaling::Factors(vec![1.0, 1.0, 2.0, 8.0]);
                assert_eq!(from_gguf.rope.scaling, factors);
            }
            "qwen2" => {
                let RopeScaling::Yarn { factor, original_context, attention_factor, .. } =
                    from_gguf.rope.scaling
                else {
                    panic!("not yarn: {:?}", from_gguf.rope);
                };
                assert_eq!((factor, original_context, from_gguf.rope.theta), (4.0, 64, 1e6));
                assert!((attention_factor - 1.138_629_436).abs() < 1e-9); // 0.1 ln 4 + 1
                from_gguf.rope.theta = 10_000.0;
            }
            _ => assert_eq!(from_gguf.rope.scaling, RopeScaling::None),
        }
        from_gguf.rope.scaling = RopeScaling::None;
        assert_eq!(&from_gguf, folder.architecture());
    }
}

#[test]
fn a_tied_head_is_the_embedding() {
    let tied = open("llama");
    assert!(tied.architecture().tied_head);
    assert_eq!(tied.tensor(TensorName::Head).unwrap().name, "model.embed_tokens.weight");
    let untied = open("qwen2");
    assert_eq!(untied.tensor(TensorName::Head).unwrap().name, "lm_head.weight");
    let error = tied.tensor(TensorName::QNorm(0)).unwrap_err().to_string();
    assert!(error.contains("self_attn.q_norm.weight: expected a tensor that llama models have"));
}

#[test]
fn a_sharded_folder_opens_as_one_model() {
    let sharded = open("qwen3");
    assert_eq!(sharded.tensors().len(), TensorName::all(sharded.architecture()).len());
    let shard = "model-00002-of-00002.safetensors";
    let missing = folder_error("qwen3", |files| files.retain(|(name, _)| name != shard));
    assert!(missing.starts_with("m/model-00002-of-00002.safetensors: "), "{missing}");
    // Names alternate between the shards, so neither has all of what the index says of it.
    let swapped = folder_error("qwen3", |files| {
        files.retain(|(name, _)| name != shard);
        let first = bytes("qwen3/model-00001-of-00002.safetensors");
        files.push((shard.to_owned(), first.into()));
    });
    assert!(swapped.contains("index.json: tensor "), "{swapped}");
}

#[test]
fn text_settings_come_from_the_files_of_a_folder() {
    let llama = open("llama");
    assert_eq!(llama.chat_template().unwrap(), "{{ bos_token }}{{ messages[0]['content'] }}");
    let special = llama.special_text();
    assert_eq!(special.bos.as_deref(), Some("<|bos|>"));
    assert_eq!(special.eos.as_deref(), Some("<|im_end|>"));
    assert_eq!((special.unk.as_deref(), special.pad.as_deref()), (Some("<unk>"), None));
    assert_eq!((llama.eos_ids(), llama.bos(), llama.add_bos()), (vec![2, 3], Some(1), true));
    let defaults = llama.generation_defaults();
    assert_eq!((defaults.temperature, defaults.top_p), (Some(0.6), Some(0.95)));
    assert_eq!((defaults.top_k, defaults.min_p), (Some(20), None));
    assert_eq!((defaults.repetition_penalty, defaults.do_sample), (Some(1.1), Some(true)));
    assert!(matches!(llama.tokenizer_source(), Ok(TokenizerSource::Json(json)) if json[0] == b'{'));

    let qwen2 = open("qwen2");
    assert_eq!(qwen2.chat_template().unwrap(), "from the file"); // Not tokenizer_config.json's.
    assert_eq!((qwen2.eos_ids(), qwen2.add_bos()), (vec![2], false));
    let qwen3 = open("qwen3");
    assert_eq!((qwen3.chat_template(), qwen3.special_text().bos.clone()), (None, None));
}

#[test]
fn text_settings_come_from_the_metadata_of_a_gguf() {
    let llama = open("llama.gguf");
    assert_eq!(llama.chat_template().unwrap(), "{{ messages[0]['content'] }}");
    assert_eq!(llama.special_text().eos.as_deref(), Some("<|im_end|>"));
    assert_eq!(llama.special_text().unk.as_deref(), Some("<unk>"));
    // The eos id, the end-of-turn id; each once although both also end turns by their text.
    assert_eq!((llama.eos_ids(), llama.bos(), llama.add_bos()), (vec![2, 3], Some(1), true));
    // Here <|endoftext|> is known by its text alone.
    let qwen2 = open("qwen2.gguf");
    assert_eq!((qwen2.eos_ids(), qwen2.add_bos()), (vec![2, 3], false));
    let Ok(TokenizerSource::Gguf(vocab)) = qwen2.tokenizer_source() else {
        panic!("no vocabulary");
    };
    assert_eq!((&*vocab.model, &*vocab.pre), ("gpt2", "qwen2"));
    assert_eq!((vocab.tokens.len(), &*vocab.tokens[23]), (24, "t"));
    assert_eq!((vocab.token_types[3], vocab.token_types[4]), (3, 1));
    assert_eq!(vocab.merges, ["a b", "c d"]);
    assert_eq!((vocab.bos, vocab.eos, vocab.add_bos), (Some(1), Some(2), false));
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    for name in ["llama.gguf", "qwen2.gguf", "qwen3.gguf"] {
        let mut whole = bytes(name);
        // The writer pads the last tensor, and padding may be missing.
        let data_end = open(name).stored.iter().map(|tensor| tensor.bytes.end).max();
        whole.truncate(data_end.unwrap());
        Checkpoint::from_gguf("m.gguf", whole.clone().into()).unwrap();
        for length in (0..whole.len()).filter(|n| *n < 4096 || n % 97 == 0) {
            gguf_error(whole[..length].to_vec());
        }
        gguf_error(whole[..whole.len() - 1].to_vec());
    }
    let whole = bytes("llama/model.safetensors");
    for length in (0..whole.len()).filter(|n| *n < 2048 || n % 97 == 0) {
        let error = folder_error("llama", |files| {
            files.retain(|(name, _)| name != "model.safetensors");
            files.push(("model.safetensors".to_owned(), whole[..length].to_vec().into()));
        });
        assert!(error.starts_with("m/model.safetensors: "), "{error}");
    }
}

#[test]
fn a_wrong_tensor_of_a_gguf_is_named_with_what_was_expected() {
    let valid = bytes("qwen3.gguf");
    let changed = |tensor: &str, at: usize, value: &[u8]| {
        let mut bytes = valid.clone();
        let at = after(&bytes, tensor) + at;
        bytes[at..at + value.len()].copy_from_slice(value);
        gguf_error(bytes)
    };
    // After the name of a matrix: u32 dimensions, two u64 sizes, u32 type, u64 offset.
    assert_eq!(
        changed("blk.1.ffn_up.weight", 20, &16u32.to_le_bytes()),
        "m.gguf: tensor blk.1.ffn_up.weight IQ2_XXS (type 16) is not supported; supported: \
         F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q4_K Q5_K Q6_K"
    );
    assert_eq!(
        changed("blk.1.ffn_up.weight", 12, &32u64.to_le_bytes()),
        "m.gguf: tensor blk.1.ffn_up.weight: expected shape [64, 32], got [32, 32]"
    );
    assert_eq!(
        changed("blk.1.ffn_up.weigh", 0, b"x"),
        "m.gguf: tensor blk.1.ffn_up.weight: expected shape [64, 32], got no tensor of this name"
    );
    let overlap = changed("blk.1.ffn_up.weight", 24, &0u64.to_le_bytes());
    assert!(overlap.contains("expected data of its own from offset"), "{overlap}");
    // A norm in a quantised type would need a decoder nobody runs on norms.
    let mut quantised_norm = valid.clone();
    let at = after(&valid, "output_norm.weight") + 12;
    quantised_norm[at..at + 4].copy_from_slice(&8u32.to_le_bytes());
    let error = gguf_error(quantised_norm);
    assert!(error.contains("output_norm.weight Q8_0 is not supported; supported: F32 F16 BF16"));
}

#[test]
fn wrong_metadata_of_a_gguf_is_named() {
    let valid = bytes("qwen3.gguf");
    let number = |key: &str, value: u32| {
        let mut bytes = valid.clone();
        let at = after(&bytes, key) + 4; // After the value's type.
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        gguf_error(bytes)
    };
    let error = number("qwen3.block_count", 3);
    assert!(error.starts_with("m.gguf: tensor blk.2.attn_norm.weight: expected shape [32]"));
    let error = number("qwen3.block_count", 1);
    assert!(error.starts_with("m.gguf: tensor blk.1."), "{error}");
    assert!(error.contains("only tensors that a qwen3 model of 1 layers uses"), "{error}");
    let error = number("qwen3.attention.head_count", 3);
    assert!(error.contains("number of key-value heads: expected a divisor of the 3"), "{error}");
    let error = number("qwen3.attention.value_length", 4);
    assert!(error.contains("attention.value_length 4 is not supported; supported: 8"), "{error}");
    let error = number("qwen3.embedding_length", u32::MAX);
    assert!(error.contains("hidden size: expected 1 to 131072, got 4294967295"), "{error}");
    let error = number("tokenizer.ggml.eos_token_id", 24);
    assert!(error.contains("tokenizer.ggml.eos_token_id: expected an id below 24"), "{error}");

    let mut other = valid.clone();
    let at = after(&other, "general.architecture") + 4 + 8;
    other[at..at + 5].copy_from_slice(b"gemma");
    let error = gguf_error(other);
    assert!(error.contains("general.architecture gemma is not supported; supported: llama, qwen2"));
}

#[test]
fn a_wrong_tensor_of_a_folder_is_named_with_what_was_expected() {
    let with_config = |from: &str, to: &str| {
        folder_error("qwen2", |files| {
            let config = String::from_utf8(bytes("qwen2/config.json")).unwrap();
            assert!(config.contains(from));
            files.retain(|(name, _)| name != "config.json");
            let config = config.replace(from, to).into_bytes();
            files.push(("config.json".to_owned(), config.into()));
        })
    };
    assert_eq!(
        with_config("\"intermediate_size\": 64", "\"intermediate_size\": 65"),
        "m/model.safetensors: tensor model.layers.0.mlp.gate_proj.weight: expected shape \
         [65, 32], got [64, 32]"
    );
    assert_eq!(
        with_config("\"num_hidden_layers\": 1", "\"num_hidden_layers\": 2"),
        "m: tensor model.layers.1.input_layernorm.weight: expected shape [32], got no tensor of \
         this name"
    );
    assert_eq!(
        with_config("Qwen2ForCausalLM", "LlamaForCausalLM"),
        "m/model.safetensors: tensor model.layers.0.self_attn.k_proj.bias is not supported; \
         supported: only tensors that a llama model of 1 layers uses"
    );
    let without = |name: &str| folder_error("qwen2", |files| files.retain(|(n, _)| n != name));
    assert!(without("config.json").starts_with("m/config.json: "));
    assert!(without("model.safetensors").starts_with("m/model.safetensors: "));
}

#[test]
fn a_path_that_is_not_there_is_named() {
    let error = Checkpoint::open(Path::new("no/such.gguf")).unwrap_err().to_string();
    assert!(error.starts_with("no/such.gguf: "), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("config.json: "), "{error}");
    let empty = folder.path().join("empty.gguf");
    std::fs::write(&empty, b"").unwrap();
    let error = Checkpoint::open(&empty).unwrap_err().to_string();
    assert!(error.contains("magic: expected 4 bytes"), "{error}");
}

#[test]
fn inspection_lists_every_tensor_of_the_file() {
    let gguf = open("qwen2.gguf");
    let embed = TensorInfo {
        name: "token_embd.weight".to_owned(),
        kind: "Q4_0".to_owned(),
        shape: vec![24, 32],
        bytes: 24 * 18,
    };
    assert!(gguf.tensors().contains(&embed));
    assert_eq!(gguf.file_bytes(), bytes("qwen2.gguf").len() as u64);
    assert_eq!(gguf.architecture().family, Family::Qwen2);
    let line = ("qwen2.block_count".to_owned(), "1".to_owned());
    assert!(gguf.metadata_summary().contains(&line));
}
