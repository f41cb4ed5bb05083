//! Claims about `hf_config.rs`.

use super::*;
use serde_json::json;

fn config(changes: &Value) -> Map<String, Value> {
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100,
        "max_position_embeddings": 512,
    });
    let fields = config.as_object_mut().unwrap();
    for (key, value) in changes.as_object().unwrap() {
        fields.insert(key.clone(), value.clone());
    }
    fields.clone()
}

fn read(changes: &Value) -> Result<Architecture, LoadError> {
    architecture(Fields::new(Blame("config.json"), &config(changes)))
}

#[test]
fn absent_fields_have_the_defaults_of_transformers() {
    let llama = read(&json!({})).unwrap();
    assert_eq!((llama.kv_heads, llama.head_dim), (4, 16));
    assert_eq!((llama.rms_eps, llama.rope.theta), (1e-6, 10_000.0));
    assert!(!llama.tied_head && !llama.qk_norm && !llama.qkv_bias);
    let qwen2 = read(&json!({"architectures": ["Qwen2ForCausalLM"]})).unwrap();
    assert!(qwen2.qkv_bias && !qwen2.qk_norm);
    let qwen3 = read(&json!({"architectures": ["Qwen3ForCausalLM"]})).unwrap();
    assert!(qwen3.qk_norm && !qwen3.qkv_bias);
    assert_eq!(qwen3.head_dim, 128);
    let by_type = read(&json!({"architectures": null, "model_type": "qwen2"})).unwrap();
    assert_eq!(by_type.family, Family::Qwen2);
}

#[test]
fn settings_that_would_change_the_computation_are_refused_by_name() {
    for (changes, message) in [
        (json!({"use_sliding_window": true}), "use_sliding_window true is not supported"),
        (json!({"attention_bias": true}), "attention_bias true is not supported"),
        (json!({"mlp_bias": true}), "mlp_bias true"),
        (json!({"hidden_act": "gelu"}), "hidden_act gelu is not supported; supported: silu"),
        (json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor 0.5"),
        (json!({"layer_types": ["full_attention", "sliding_attention"]}), "layer_types"),
        (json!({"quantization_config": {"quant_method": "awq"}}), "quantization_config awq"),
        (json!({"rope_scaling": {"type": "dynamic", "factor": 2}}), "rope scaling type dynamic"),
        (json!({"rope_scaling": {"type": "longrope"}}), "rope scaling type longrope"),
        (json!({"architectures": ["MistralForCausalLM"]}), "architectures MistralForCausalLM"),
        (json!({"architectures": null}), "architectures: expected LlamaForCausalLM, Qwen2For"),
        (json!({"architectures": null, "model_type": "gpt2"}), "model_type gpt2"),
    ] {
        let error = read(&changes).unwrap_err().to_string();
        assert!(error.starts_with(&format!("config.json: {message}")), "{error}");
    }
}

#[test]
fn fields_of_the_wrong_type_or_size_are_refused_by_name() {
    for (changes, message) in [
        (json!({"hidden_size": "64"}), "hidden_size: expected a non-negative integer, got \"64\""),
        (json!({"hidden_size": -1}), "hidden_size: expected a non-negative integer, got -1"),
        (json!({"hidden_size": null}), "hidden_size: expected an integer, got nothing"),
        (json!({"hidden_size": 65}), "num_attention_heads: expected a divisor of hidden_size 65"),
        (json!({"num_attention_heads": 0}), "num_attention_heads: expected a divisor"),
        (json!({"num_hidden_layers": 1u64 << 40}), "num_hidden_layers: expected"),
        (json!({"num_key_value_heads": 3}), "number of key-value heads: expected a divisor"),
        (json!({"num_key_value_heads": 0}), "number of key-value heads"),
        (json!({"rope_scaling": []}), "rope_scaling: expected an object, got a list of 0"),
        (json!({"rope_scaling": {"type": "linear"}}), "factor: expected a number, got nothing"),
        (json!({"tie_word_embeddings": 1}), "tie_word_embeddings: expected true or false, got 1"),
        (json!({"rms_norm_eps": 0}), "RMS norm epsilon"),
    ] {
        let error = read(&changes).unwrap_err().to_string();
        assert!(error.starts_with(&format!("config.json: {message}")), "{error}");
    }
}

#[test]
fn yarn_extends_a_context_that_is_still_the_original() {
    let yarn = |max: u32| {
        read(&json!({"max_position_embeddings": max, "rope_scaling":
            {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}}))
    };
    assert_eq!(yarn(32_768).unwrap().context, 131_072);
    assert_eq!(yarn(131_072).unwrap().context, 131_072);
}

#[test]
fn a_list_of_templates_gives_the_one_named_default() {
    let read = |value: Value| {
        let fields = json!({"chat_template": value});
        chat_template(Fields::new(Blame("t"), fields.as_object().unwrap()))
    };
    let entry = |name: &str| json!({"name": name, "template": format!("from {name}")});
    assert_eq!(read(json!("plain")).unwrap().as_deref(), Some("plain"));
    assert_eq!(read(json!(null)).unwrap(), None);
    assert_eq!(read(json!([])).unwrap(), None);
    assert_eq!(read(json!([entry("a")])).unwrap().as_deref(), Some("from a"));
    let both = json!([entry("rag"), entry("default")]);
    assert_eq!(read(both).unwrap().as_deref(), Some("from default"));
    let error = read(json!([entry("a"), entry("b")])).unwrap_err().to_string();
    assert!(error.contains("chat_template: expected an entry with a template, named default"));
    assert!(read(json!(7)).is_err() && read(json!([7])).is_err());
}
