//! Claims about `architecture.rs`.

use super::*;
use crate::model::hf_config::{Fields, architecture};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/load");

fn llama() -> Architecture {
    Architecture {
        family: Family::Llama,
        layers: 2,
        hidden: 64,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        ffn: 128,
        vocab: 100,
        context: 128,
        rms_eps: 1e-5,
        rope: Rope { theta: 10_000.0, scaling: RopeScaling::None, dim: 16 },
        tied_head: true,
        qk_norm: false,
        qkv_bias: false,
    }
}

#[test]
fn rotary_frequencies_are_those_of_transformers() {
    let goldens = std::fs::read(format!("{FIXTURES}/rope.json")).unwrap();
    let goldens: serde_json::Value = serde_json::from_slice(&goldens).unwrap();
    for golden in goldens.as_array().unwrap() {
        let name = &golden["name"];
        let config = golden["config"].as_object().unwrap();
        let architecture = architecture(Fields::new(Blame("config.json"), config)).unwrap();
        let (frequencies, attention) = architecture.rope_frequencies();
        assert_eq!(attention, golden["attention_factor"].as_f64().unwrap() as f32, "{name}");
        let expected = golden["inverse_frequencies"].as_array().unwrap();
        assert_eq!(frequencies.len(), expected.len(), "{name}");
        for (i, (got, expected)) in frequencies.iter().zip(expected).enumerate() {
            let expected = expected.as_f64().unwrap();
            // Both are rounded to f32 once; f64 noise may move the rounding by one ulp.
            let error = (f64::from(*got) - expected).abs() / expected;
            assert!(error < 1.2e-7, "{name}: frequency {i} is {got}, expected {expected}");
        }
    }
}

#[test]
fn frequency_factors_divide_each_frequency() {
    let mut factored = llama();
    let plain = factored.rope_frequencies().0;
    let factors: Vec<f32> = (0..8).map(|i| (1 << i) as f32).collect();
    factored.rope.scaling = RopeScaling::Factors(factors.clone());
    let (frequencies, attention) = factored.rope_frequencies();
    assert_eq!(attention, 1.0);
    for ((got, plain), factor) in frequencies.iter().zip(&plain).zip(&factors) {
        assert_eq!(*got, plain / factor); // Exact: the factors are powers of two.
    }
}

#[test]
fn sizes_that_disagree_are_refused_by_name() {
    type Change = fn(&mut Architecture);
    let changes: [(Change, &str); 14] = [
        (|a| a.kv_heads = 3, "m: number of key-value heads: expected a divisor of the 4 query"),
        (|a| a.layers = 0, "m: number of layers: expected 1 to 1024, got 0"),
        (|a| a.hidden = usize::MAX, "m: hidden size"),
        (|a| a.vocab = 1 << 40, "m: vocabulary size"),
        (|a| a.context = 0, "m: context length"),
        (|a| a.ffn = 0, "m: feed-forward size"),
        (|a| a.head_dim = 15, "m: head dimension: expected an even number, got 15"),
        (|a| a.rms_eps = f32::NAN, "m: RMS norm epsilon"),
        (|a| a.rope.dim = 8, "m: rotary dimension 8 of 16 is not supported"),
        (|a| a.rope.theta = 0.0, "m: rope theta"),
        (|a| a.rope.theta = f64::NAN, "m: rope theta"),
        (|a| a.rope.scaling = RopeScaling::Linear { factor: 0.0 }, "m: rope scaling factor"),
        (|a| a.rope.scaling = RopeScaling::Factors(vec![1.0; 7]), "m: number of rope frequency"),
        (|a| a.rope.scaling = RopeScaling::Factors(vec![0.0; 8]), "m: rope scaling frequency"),
    ];
    llama().validate("m").unwrap();
    for (change, message) in changes {
        let mut architecture = llama();
        change(&mut architecture);
        let error = architecture.validate("m").unwrap_err().to_string();
        assert!(error.starts_with(message), "{error:?} does not start with {message:?}");
    }
}
