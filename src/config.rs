//! Every default, in one place, each with its source.

/// Tokens one step may have before it is cut (SpecReason's code: `max_tokens=512`).
pub const STEP_TOKENS_MAX: u32 = 512;
/// Generated thinking tokens one request may keep (SpecReason §5.1).
pub const TOKEN_BUDGET: u32 = 8192;
/// Accept a step whose score reaches this (SpecReason's command line).
pub const THRESHOLD: f32 = 7.0;
/// What ends a step.
pub const STEP_DELIMITER: &str = "\n\n";
/// Temperature of SpecReason's evaluation (§5.1), used where a model states none.
pub const TEMPERATURE: f32 = 0.6;
/// Nucleus of SpecReason's evaluation (§5.1), used where a model states none.
pub const TOP_P: f32 = 0.95;
/// The smallest number of tokens a page holds; a power of two.
pub const PAGE_TOKENS_MIN: u32 = 16;
/// The context one request may use where neither the model nor the user sets a smaller one.
pub const MODEL_LEN_MAX: u32 = 8192;
/// Rows of one forward pass: long prompts are cut into chunks of at most this many tokens.
pub const BATCH_ROWS_MAX: usize = 512;
/// Rows of one pass that may ask for full logits.
pub const LOGIT_ROWS_MAX: usize = 64;
/// Requests the engine works on at the same time.
pub const SEQUENCES_MAX: usize = 8;
/// Requests that may wait for a place.
pub const QUEUE_MAX: usize = 256;
/// Where the server listens: only this machine can reach it (llama-server's default; mistral.rs
/// listens everywhere, which users did not expect).
pub const SERVE_HOST: &str = "127.0.0.1";
/// The server's port (vLLM).
pub const SERVE_PORT: u16 = 8000;
/// Bytes of a request's body: a context of a million tokens in text, with room.
pub const BODY_BYTES_MAX: usize = 8 << 20;
/// Choices of one request, over all its prompts; each takes a place.
pub const CHOICES_MAX: usize = 16;
/// Stop strings of one request (OpenAI: 4).
pub const STOP_STRINGS_MAX: usize = 16;
/// Alternatives of one token that may be asked for (OpenAI).
pub const TOP_LOGPROBS_MAX: u32 = 20;
/// Tokens of a plain completion that states no limit (OpenAI, vLLM).
pub const COMPLETION_TOKENS: u32 = 16;
/// Seconds replies in progress may take once the server was told to end.
pub const DRAIN_S: u64 = 30;
/// Keys one attention split covers. Part of the numerics: the order of summation depends on it.
pub const ATTENTION_SPLIT_KEYS: usize = 512;
/// A head looks at all ids or at the first of them, so many times this: devices multiply the rows
/// of a head in groups of as many.
pub const FIRST_IDS_STEP: usize = 256;
/// Tokens the answer phase may take.
pub const ANSWER_TOKENS_MAX: u32 = 1024;
/// Tokens proposed to a decode at a time, at most (SpecReason §4.2 proposes 5).
pub const WINDOW_MAX: u32 = 8;
/// Tokens proposed in one place, at most: a tree of 8 places then fits one 64-bit mask.
pub const BRANCHES_MAX: u32 = 4;
/// Steps the draft may write beyond the first that is not decided, at most.
pub const DRAFT_AHEAD_MAX: u32 = 16;
/// Drafted steps one pass scores, at most: all that can be there.
pub const SCORE_BATCH_MAX: u32 = DRAFT_AHEAD_MAX + 1;
/// The same under the policy `lookahead`, where nobody says (Lookahead Reasoning drafts 6 steps).
pub const LOOKAHEAD_STEPS: u32 = 6;
/// Longer drafted steps are not compared with the base's own (Lookahead Reasoning's steps have 100
/// tokens at most).
pub const COMPARE_TOKENS_MAX: u32 = 128;
/// Phrases in which a model doubts what it wrote (Speculative Thinking, arXiv 2504.12329, and
/// R1-style traces).
pub const HESITATIONS: [&str; 7] =
    ["wait", "hmm", "alternatively", "hold on", "let me check", "think again", "another way"];
