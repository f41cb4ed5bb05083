//! A safetensors file beside a valid configuration.
#![no_main]

use libfuzzer_sys::fuzz_target;

const CONFIG: &[u8] = include_bytes!("../../tests/fixtures/load/llama/config.json");

fuzz_target!(|bytes: &[u8]| {
    forerun_fuzz::open_folder(&[("config.json", CONFIG), ("model.safetensors", bytes)]);
});
