//! A mutation fuzzer for every parser of foreign bytes, without nightly tools.
//!
//! Valid files are damaged in ways that know their structure (forged counts and sizes, cut, moved
//! and repeated parts) and opened. Whatever comes: no panic, no abort, and never more memory than
//! [`LIVE_BYTES_MAX`], counted by the allocator of this test binary. Each case is a function of
//! its number. `fuzz/` holds coverage-guided targets for the same parsers.
//!
//! `FORERUN_FUZZ_CASES` sets the cases of each target, `FORERUN_FUZZ_FIRST` the number of the
//! first,
//! to repeat one.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a test reports and may panic")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use forerun::device::blocks::dequantize_row;
use forerun::model::{Checkpoint, FileBytes, TensorName};
use forerun::text::{ChatTemplate, GgufVocab, Message, RenderOptions, SpecialText, Tokenizer};
use serde_json::Value;

/// Bytes one case may have allocated at a time. The seeds have at most 44 kB.
const LIVE_BYTES_MAX: usize = 64 << 20;
/// Time one case may take, with room for a machine that does other things.
const CASE_MAX: Duration = Duration::from_secs(10);
const CASES_DEFAULT: u64 = 20_000;
/// The same for tokenizers and templates: most of a case goes into compiling regular expressions,
/// or into the thread a template runs on.
const TEXT_CASES_DEFAULT: u64 = 1000;

/// The system's allocator, counting what is live.
struct Counting;

static LIVE_BYTES: AtomicUsize = AtomicUsize::new(0);
static PEAK_BYTES: AtomicUsize = AtomicUsize::new(0);
/// The case that runs, for a message when the process is about to be aborted.
static CASE: AtomicU64 = AtomicU64::new(0);

impl Counting {
    fn grow(size: usize) {
        let live = LIVE_BYTES.fetch_add(size, Relaxed).saturating_add(size);
        PEAK_BYTES.fetch_max(live, Relaxed);
    }

    fn check(pointer: *mut u8, size: usize) -> *mut u8 {
        if pointer.is_null() {
            // The caller aborts the process next; this is the only chance to say where.
            eprintln!("case {}: an allocation of {size} bytes failed", CASE.load(Relaxed));
        }
        pointer
    }
}

// SAFETY: every call is passed to the system's allocator unchanged; counting touches only atomics.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::grow(layout.size());
        // SAFETY: the caller's promises are passed on.
        Self::check(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::grow(layout.size());
        // SAFETY: the caller's promises are passed on.
        Self::check(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE_BYTES.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LIVE_BYTES.fetch_sub(layout.size(), Relaxed);
        Self::grow(size);
        // SAFETY: the caller's promises are passed on.
        Self::check(unsafe { System.realloc(pointer, layout, size) }, size)
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// SplitMix64: enough for choosing what to break.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, 0 if `n` is 0.
    fn below(&mut self, n: usize) -> usize {
        if n == 0 { 0 } else { (self.next() % n as u64) as usize }
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// An integer at which parsers break: small, a power of two or just beside one, or anything.
    fn interesting(&mut self) -> u64 {
        match self.below(8) {
            0 => 0,
            1 => self.next() % 48,
            2 => self.next(),
            3 => u64::MAX - self.next() % 64,
            _ => (1u64 << self.below(64)).wrapping_add(self.next() % 3).wrapping_sub(1),
        }
    }
}

fn number_from_environment(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}: not a number: {text}")),
        Err(_) => default,
    }
}

/// Runs every case of one target. `case` says whether the damaged input was accepted.
fn run_cases(target: &str, cases_default: u64, case: impl Fn(&mut Random) -> bool) {
    // The counters are the process's, so targets take turns.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let first = number_from_environment("FORERUN_FUZZ_FIRST", 0);
    let count = number_from_environment("FORERUN_FUZZ_CASES", cases_default);
    let started = Instant::now();
    let (mut accepted, mut worst_bytes) = (0u64, 0);
    for number in first..first + count {
        CASE.store(number, Relaxed);
        let live_before = LIVE_BYTES.load(Relaxed);
        PEAK_BYTES.store(live_before, Relaxed);
        let run = || {
            let started = Instant::now();
            let mut random = Random(number.wrapping_mul(0x5851_f42d_4c95_7f2d));
            (catch_unwind(AssertUnwindSafe(|| case(&mut random))), started.elapsed())
        };
        let (outcome, time) = run();
        match outcome {
            Ok(true) => accepted += 1,
            Ok(false) => {}
            Err(_) => panic!(
                "{target}: case {number} panicked; repeat it with FORERUN_FUZZ_FIRST={number} \
                 FORERUN_FUZZ_CASES=1"
            ),
        }
        let bytes = PEAK_BYTES.load(Relaxed).saturating_sub(live_before);
        assert!(bytes <= LIVE_BYTES_MAX, "{target}: case {number} took {bytes} bytes of memory");
        // Once may be the machine, which sleeps or swaps; the same case twice is the parser.
        assert!(time <= CASE_MAX || run().1 <= CASE_MAX, "{target}: case {number} took {time:?}");
        worst_bytes = worst_bytes.max(bytes);
    }
    eprintln!(
        "{target}: {count} cases, {accepted} accepted, at most {worst_bytes} bytes live, {:?}",
        started.elapsed()
    );
    // Damage that is always caught at the door would test nothing behind it.
    assert!(count < 1000 || accepted > count / 500, "{target}: {accepted} of {count} accepted");
    assert!(count < 1000 || accepted < count, "{target}: nothing was refused");
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/load")
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Uses everything an opened checkpoint offers; returns whether it was opened.
fn exercise(opened: Result<Checkpoint, forerun::error::LoadError>) -> bool {
    let checkpoint = match opened {
        Ok(checkpoint) => checkpoint,
        Err(error) => {
            let message = error.to_string();
            assert!(message.len() < 2000, "an error of {} bytes", message.len());
            return false;
        }
    };
    let architecture = checkpoint.architecture();
    assert_eq!(architecture.rope_frequencies().0.len(), architecture.head_dim / 2);
    for name in TensorName::all(architecture).into_iter().chain([TensorName::Head]) {
        let view = checkpoint.tensor(name).expect("open found every tensor");
        assert_eq!((view.rows, view.cols), name.shape(architecture));
        let row_bytes = view.kind.row_bytes(view.cols).expect("open checked the shape");
        assert_eq!(view.bytes.len(), view.rows * row_bytes);
        let mut row = vec![0.0; view.cols];
        dequantize_row(view.kind, &view.bytes[view.bytes.len() - row_bytes..], &mut row);
    }
    // A tokenizer may be missing from a folder; nothing else may go wrong after opening.
    let _ = checkpoint.tokenizer_source();
    let _ = (checkpoint.chat_template(), checkpoint.special_text(), checkpoint.eos_ids());
    let _ = (checkpoint.tensors(), checkpoint.metadata_summary(), checkpoint.file_bytes());
    true
}

/// Copies, removes, repeats, overwrites and cuts without looking at what is there. Most of it
/// happens in the first `header` bytes.
fn damage_bytes(bytes: &mut Vec<u8>, header: usize, random: &mut Random) {
    if bytes.is_empty() {
        return;
    }
    let within = if random.one_in(8) { bytes.len() } else { header.min(bytes.len()) };
    let at = random.below(within);
    match random.below(8) {
        0 => bytes[at] ^= 1 << random.below(8),
        1 => bytes[at] = random.next() as u8,
        2 | 3 => {
            let value = random.interesting().to_le_bytes();
            let width = *random.pick(&[1, 2, 4, 8]);
            let end = (at + width).min(bytes.len());
            bytes[at..end].copy_from_slice(&value[..end - at]);
        }
        4 => bytes.truncate(random.below(bytes.len() + 1)),
        5 => {
            let length = 1 + random.below(32);
            bytes.drain(at..(at + length).min(bytes.len()));
        }
        6 => {
            let from = random.below(within);
            let length = (1 + random.below(64)).min(bytes.len() - from);
            let part = bytes[from..from + length].to_vec();
            bytes.splice(at..at, part);
        }
        _ => {
            let from = random.below(within);
            let length = (1 + random.below(64)).min(bytes.len() - from.max(at));
            bytes.copy_within(from..from + length, at);
        }
    }
}

/// A GGUF file and where its lengths, counts, types, sizes and offsets are.
struct GgufSeed {
    bytes: Vec<u8>,
    /// Position and width of each number of the header.
    numbers: Vec<(usize, usize)>,
    header: usize,
}

impl GgufSeed {
    /// Walks a valid file.
    fn new(bytes: Vec<u8>) -> Self {
        let mut seed = Self { bytes, numbers: Vec::new(), header: 4 };
        seed.number(4); // Version.
        let (tensors, entries) = (seed.number(8), seed.number(8));
        for _ in 0..entries {
            seed.text();
            let kind = seed.number(4);
            seed.value(kind);
        }
        for _ in 0..tensors {
            seed.text();
            for _ in 0..seed.number(4) {
                seed.number(8);
            }
            seed.number(4);
            seed.number(8);
        }
        seed
    }

    fn number(&mut self, width: usize) -> u64 {
        self.numbers.push((self.header, width));
        let mut word = [0; 8];
        word[..width].copy_from_slice(&self.bytes[self.header..self.header + width]);
        self.header += width;
        u64::from_le_bytes(word)
    }

    fn text(&mut self) {
        self.header += self.number(8) as usize;
    }

    fn value(&mut self, kind: u64) {
        match kind {
            0 | 1 | 7 => drop(self.number(1)),
            2 | 3 => drop(self.number(2)),
            4..=6 => drop(self.number(4)),
            8 => self.text(),
            9 => {
                let element = self.number(4);
                let count = self.number(8);
                let recorded = self.numbers.len();
                for _ in 0..count {
                    self.value(element);
                }
                // One element stands for all; or they would be most of what is damaged.
                self.numbers.truncate(recorded + 1);
            }
            _ => drop(self.number(8)),
        }
    }

    fn damaged(&self, random: &mut Random) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        for _ in 0..1 + random.below(3) {
            if random.one_in(2) {
                let &(at, width) = random.pick(&self.numbers);
                // An earlier cut may have removed it.
                if let Some(place) = bytes.get_mut(at..at + width) {
                    place.copy_from_slice(&random.interesting().to_le_bytes()[..width]);
                }
            } else {
                damage_bytes(&mut bytes, self.header, random);
            }
        }
        bytes
    }
}

#[test]
fn damaged_gguf_files_are_opened_or_refused() {
    let seeds = ["llama.gguf", "qwen2.gguf", "qwen3.gguf"]
        .map(|name| GgufSeed::new(read(&fixtures().join(name))));
    run_cases("gguf", CASES_DEFAULT, |random| {
        let bytes = random.pick(&seeds).damaged(random);
        exercise(Checkpoint::from_gguf("damaged.gguf", bytes.into()))
    });
}

/// Damages JSON text: its numbers, its structure, or single bytes.
fn damage_json(text: &mut Vec<u8>, random: &mut Random) {
    const LITERALS: [&str; 14] = [
        "null",
        "true",
        "-1",
        "0",
        "1e999",
        "1.5",
        "\"\"",
        "[]",
        "{}",
        "[[]]",
        "\"\\u0000\"",
        "\"../x.safetensors\"",
        "18446744073709551616",
        "\"BF16\"",
    ];
    let starts_of = |text: &[u8], wanted: fn(u8) -> bool| -> Vec<usize> {
        (0..text.len()).filter(|&i| wanted(text[i]) && (i == 0 || !wanted(text[i - 1]))).collect()
    };
    match random.below(5) {
        0 | 1 => {
            // A number becomes another number, or something else.
            let numbers = starts_of(text, |b| b.is_ascii_digit());
            if numbers.is_empty() {
                return;
            }
            let at = *random.pick(&numbers);
            let length = text[at..].iter().take_while(|b| b.is_ascii_digit()).count();
            let value = if random.one_in(3) {
                (*random.pick(&LITERALS)).to_owned()
            } else {
                random.interesting().to_string()
            };
            text.splice(at..at + length, value.into_bytes());
        }
        2 => {
            // A member or element is removed or repeated.
            let commas = starts_of(text, |b| b == b',');
            if commas.len() < 2 {
                return;
            }
            let nth = random.below(commas.len() - 1);
            let (from, to) = (commas[nth], commas[nth + 1]);
            if random.one_in(2) {
                text.drain(from..to);
            } else {
                let member = text[from..to].to_vec();
                text.splice(from..from, member);
            }
        }
        3 => {
            // A value becomes another kind of value.
            let colons = starts_of(text, |b| b == b':');
            if colons.is_empty() {
                return;
            }
            let at = *random.pick(&colons) + 1;
            let length = text[at..].iter().take_while(|b| !b",}]".contains(b)).count();
            text.splice(at..at + length, random.pick(&LITERALS).bytes());
        }
        _ => {
            let length = text.len();
            damage_bytes(text, length, random);
        }
    }
}

/// The files of a folder, by name.
fn folder(name: &str) -> Vec<(String, Vec<u8>)> {
    let folder = fixtures().join(name);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{e}"));
    let mut files: Vec<(String, Vec<u8>)> = entries
        .map(|entry| entry.expect("a readable folder").path())
        .map(|path| (path.file_name().expect("a file").to_string_lossy().into_owned(), read(&path)))
        .collect();
    files.sort();
    files
}

/// Damages the header of a safetensors file and, mostly, corrects its length afterwards.
fn damage_safetensors(bytes: &mut Vec<u8>, random: &mut Random) {
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("a valid seed")) as usize;
    let mut header = bytes[8..8 + length].to_vec();
    for _ in 0..1 + random.below(2) {
        damage_json(&mut header, random);
    }
    let stated = if random.one_in(8) { random.interesting() } else { header.len() as u64 };
    bytes.splice(8..8 + length, header);
    bytes[..8].copy_from_slice(&stated.to_le_bytes());
    if random.one_in(16) {
        damage_bytes(bytes, 8, random);
    }
}

#[test]
fn damaged_folders_are_opened_or_refused() {
    let seeds = ["llama", "qwen2", "qwen3"].map(folder);
    run_cases("folder", CASES_DEFAULT, |random| {
        let mut files = random.pick(&seeds).clone();
        let nth = random.below(files.len());
        let (name, bytes) = &mut files[nth];
        if name.ends_with(".safetensors") {
            damage_safetensors(bytes, random);
        } else if random.one_in(16) {
            files.remove(nth);
        } else {
            damage_json(bytes, random);
        }
        let files = files.into_iter().map(|(name, bytes)| (name, FileBytes::from(bytes)));
        exercise(Checkpoint::from_files("damaged", files))
    });
}

#[test]
fn damaged_safetensors_headers_are_opened_or_refused() {
    let seeds = ["llama", "qwen2", "qwen3"].map(folder);
    run_cases("safetensors", CASES_DEFAULT, |random| {
        let mut files = random.pick(&seeds).clone();
        let weights: Vec<usize> =
            (0..files.len()).filter(|&i| files[i].0.contains(".safetensors")).collect();
        let (name, bytes) = &mut files[*random.pick(&weights)];
        if name.ends_with(".index.json") {
            damage_json(bytes, random);
        } else {
            damage_safetensors(bytes, random);
        }
        let files = files.into_iter().map(|(name, bytes)| (name, FileBytes::from(bytes)));
        exercise(Checkpoint::from_files("damaged", files))
    });
}

/// Encodes text with everything that can go wrong in it; returns whether there was a tokenizer.
fn encode(tokenizer: Result<Tokenizer, forerun::error::TextError>) -> bool {
    let Ok(tokenizer) = tokenizer else { return false };
    if let Ok(ids) = tokenizer.encode("It's a Ünï \u{1f600}\n\n 3.14<|im_end|> <think>") {
        let _ = tokenizer.decode(&ids);
    }
    true
}

/// The tiny pair's tokenizer with its bytes, its first merges and their tokens alone: small enough
/// that damage often hits something that matters.
fn small_tokenizer_json() -> Value {
    let path = fixtures().join("../text/tiny_tokenizer.json");
    let mut json: Value = serde_json::from_slice(&read(&path)).expect("a valid fixture");
    let merges = json["model"]["merges"].as_array_mut().expect("merges");
    merges.truncate(20);
    let merged: Vec<String> = merges.iter().map(merged_text).collect();
    let vocab = json["model"]["vocab"].as_object_mut().expect("a vocabulary");
    let is_special = |text: &str| text.starts_with('<') && text.ends_with('>');
    vocab.retain(|text, _| text.chars().count() == 1 || is_special(text) || merged.contains(text));
    json
}

/// The token a merge makes, from either spelling of merges.
fn merged_text(merge: &Value) -> String {
    match merge {
        Value::String(pair) => pair.replacen(' ', "", 1),
        parts => parts.as_array().into_iter().flatten().filter_map(Value::as_str).collect(),
    }
}

#[test]
fn damaged_tokenizer_json_is_read_or_refused() {
    let seed = small_tokenizer_json().to_string().into_bytes();
    assert!(encode(Tokenizer::from_json(&seed)));
    run_cases("tokenizer_json", TEXT_CASES_DEFAULT, |random| {
        let mut bytes = seed.clone();
        for _ in 0..1 + random.below(2) {
            damage_json(&mut bytes, random);
        }
        encode(Tokenizer::from_json(&bytes))
    });
}

/// The same tokenizer as GGUF metadata.
fn small_gguf_vocab() -> GgufVocab {
    let json = small_tokenizer_json();
    let vocab = json["model"]["vocab"].as_object().expect("a vocabulary");
    let merges = json["model"]["merges"].as_array().expect("merges");
    let tokens: Vec<String> = vocab.keys().cloned().collect();
    let kind = |text: &String| if text.len() > 2 && text.starts_with('<') { 3 } else { 1 };
    let spaced = |merge: &Value| match merge {
        Value::String(pair) => pair.clone(),
        parts => {
            let parts = parts.as_array().into_iter().flatten();
            parts.filter_map(Value::as_str).collect::<Vec<_>>().join(" ")
        }
    };
    GgufVocab {
        model: "gpt2".to_owned(),
        pre: "qwen2".to_owned(),
        token_types: tokens.iter().map(kind).collect(),
        scores: Vec::new(),
        merges: merges.iter().map(spaced).collect(),
        bos: Some(0),
        eos: Some(2),
        add_bos: false,
        tokens,
    }
}

/// Lies somewhere in a vocabulary.
fn damage_vocab(vocab: &mut GgufVocab, random: &mut Random) {
    const TEXTS: [&str; 8] = ["", " ", "a", "a b", "a  b c", "\u{2581}", "<0xFF>", "<|im_end|>"];
    let text = (*random.pick(&TEXTS)).to_owned();
    let token = random.below(vocab.tokens.len());
    match random.below(10) {
        0 => vocab.model = (*random.pick(&["llama", "gpt2", "bert", ""])).to_owned(),
        1 => vocab.pre = (*random.pick(&["default", "llama-bpe", "smollm", "", "?"])).to_owned(),
        2 => vocab.tokens[token] = text,
        3 => vocab.tokens[token] = vocab.tokens[random.below(vocab.tokens.len())].clone(),
        4 => vocab.tokens.truncate(token),
        5 => {
            let kind = *random.pick(&[0, 1, 2, 3, 4, 5, 6, 7, -1, i32::MAX]);
            // An earlier cut may have removed it.
            if let Some(place) = vocab.token_types.get_mut(token) {
                *place = kind;
            }
        }
        6 => {
            let merge = random.below(vocab.merges.len());
            vocab.merges[merge] = text;
        }
        7 => {
            let merge = vocab.merges[random.below(vocab.merges.len())].clone();
            vocab.merges.insert(random.below(vocab.merges.len()), merge);
        }
        8 => {
            let score = *random.pick(&[f32::NAN, f32::INFINITY, -1.0, 0.0]);
            vocab.scores = vec![score; vocab.tokens.len() + random.below(2)];
        }
        _ => vocab.bos = Some(random.interesting() as u32),
    }
    if vocab.tokens.is_empty() {
        vocab.tokens.push(String::new());
    }
}

#[test]
fn damaged_gguf_vocabularies_are_read_or_refused() {
    let seed = small_gguf_vocab();
    assert!(encode(Tokenizer::from_gguf(&seed)));
    run_cases("gguf_vocab", TEXT_CASES_DEFAULT, |random| {
        let mut vocab = seed.clone();
        for _ in 0..1 + random.below(3) {
            damage_vocab(&mut vocab, random);
        }
        encode(Tokenizer::from_gguf(&vocab))
    });
}

/// Damages a template: its bytes, or its parts put together anew.
fn damage_template(source: &mut Vec<u8>, random: &mut Random) {
    const PARTS: [&str; 18] = [
        "{{",
        "}}",
        "{%",
        "%}",
        "{{- '",
        "' -}}",
        "{% for a in range(99999) %}",
        "{% endfor %}",
        "{% if messages %}",
        "{% endif %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% set ns = namespace(x=messages) %}",
        "{{ 'a' * 999999999 }}",
        "|tojson",
        "[::-1]",
        "{{ raise_exception('no') }}",
        "((((((((((((((((((((((((((((((((",
        ".split(' ')",
    ];
    if random.one_in(2) {
        let at = random.below(source.len() + 1);
        source.splice(at..at, random.pick(&PARTS).bytes());
    } else {
        let length = source.len();
        damage_bytes(source, length, random);
    }
}

#[test]
fn damaged_templates_render_or_are_refused() {
    let folder = fixtures().join("../text/templates");
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{e}"));
    let mut paths: Vec<PathBuf> = entries.map(|e| e.expect("a readable folder").path()).collect();
    paths.sort();
    let seeds: Vec<Vec<u8>> = paths.iter().map(|path| read(path)).collect();
    let messages = [
        Message::new("system", "Be brief."),
        Message::new("user", "1 + 1?"),
        Message::new("assistant", "<think>\nEasy.\n</think>\n\n2"),
        Message::new("user", "2 + 2?"),
    ];
    let specials = SpecialText {
        bos: Some("<s>".to_owned()),
        eos: Some("</s>".to_owned()),
        ..Default::default()
    };
    run_cases("template", TEXT_CASES_DEFAULT, |random| {
        let mut source = random.pick(&seeds).clone();
        for _ in 0..1 + random.below(3) {
            damage_template(&mut source, random);
        }
        let source = String::from_utf8_lossy(&source);
        let Ok(template) = ChatTemplate::new(&source, specials.clone()) else { return false };
        template.render(&messages, &RenderOptions::default()).is_ok()
    });
}
