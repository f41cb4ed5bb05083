//! The index of a sharded checkpoint whose shards are valid.
#![no_main]

use libfuzzer_sys::fuzz_target;

const CONFIG: &[u8] = include_bytes!("../../tests/fixtures/load/qwen3/config.json");
const FIRST: &[u8] =
    include_bytes!("../../tests/fixtures/load/qwen3/model-00001-of-00002.safetensors");
const SECOND: &[u8] =
    include_bytes!("../../tests/fixtures/load/qwen3/model-00002-of-00002.safetensors");

fuzz_target!(|bytes: &[u8]| {
    forerun_fuzz::open_folder(&[
        ("config.json", CONFIG),
        ("model.safetensors.index.json", bytes),
        ("model-00001-of-00002.safetensors", FIRST),
        ("model-00002-of-00002.safetensors", SECOND),
    ]);
});
