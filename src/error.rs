//! Every failure, one enum per boundary.
//!
//! Messages say what, where, expected, got and what to do; lower case, no full stop. The edges map
//! them to exit codes and HTTP statuses.

use thiserror::Error;

/// A model file, folder or pair that cannot be used. Raised before memory for weights is taken.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A file could not be read.
    #[error("{path}: {source}")]
    Io {
        /// The path as the user gave it or as derived from it.
        path: String,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A field or tensor is not what the format demands.
    #[error("{file}: {what}: expected {expected}, got {got}")]
    Malformed {
        /// The file.
        file: String,
        /// The tensor or field.
        what: String,
        /// What a valid file has there.
        expected: String,
        /// What this one has.
        got: String,
    },
    /// Valid, but not something this engine runs.
    #[error("{file}: {what} {got} is not supported; supported: {supported}")]
    Unsupported {
        /// The file.
        file: String,
        /// The tensor or field.
        what: String,
        /// What the file asks for.
        got: String,
        /// What would work.
        supported: String,
    },
    /// The two models of a pair cannot work together.
    #[error("pair mismatch: {0}")]
    Pair(String),
    /// The tokenizer or the chat template of the model is unusable.
    #[error("{file}: {source}")]
    Text {
        /// The file.
        file: String,
        /// The reason.
        source: TextError,
    },
    /// The device refused memory or a weight.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// Tokenizers, chat templates and judge texts.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TextError {
    /// The tokenizer cannot be built.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The chat template does not parse, or fails while it renders.
    #[error("chat template: {0}")]
    Template(String),
    /// A judge file that cannot be used.
    #[error("judge: {0}")]
    Judge(String),
    /// A grammar or schema that replies cannot be held to.
    #[error("grammar: {0}")]
    Grammar(String),
}

/// The device: memory, kernels, non-finite results.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// Start-up memory does not suffice.
    #[error("{what} needs {needed_bytes} bytes, {available_bytes} are available; {advice}")]
    OutOfMemory {
        /// What was to be allocated.
        what: String,
        /// Bytes asked for.
        needed_bytes: u64,
        /// Bytes there are.
        available_bytes: u64,
        /// What to change.
        advice: String,
    },
    /// The device asked for cannot be had.
    #[error("device {device}: {reason}")]
    Unavailable {
        /// As the user named it.
        device: String,
        /// Why not, and what to do.
        reason: String,
    },
    /// A forward pass produced NaN or infinity.
    #[error("non-finite values in {model} at layer {layer}, token index {token}")]
    NonFinite {
        /// Which model.
        model: String,
        /// The first layer whose output is not finite.
        layer: String,
        /// The position of the row in its sequence.
        token: u32,
    },
    /// The device cannot be used any more; every request on it ends with this.
    #[error("the device is lost: {0}; restart the program")]
    Lost(String),
    /// Anything else a device reports.
    #[error("device: {0}")]
    Failed(String),
}

/// The shared KV pool.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum KvError {
    /// No page is free and nothing may be evicted.
    #[error("the KV pool is full: {needed_pages} pages needed, {free_pages} free or evictable")]
    Full {
        /// Pages the operation needs.
        needed_pages: usize,
        /// Pages it could have got.
        free_pages: usize,
    },
    /// The pool is too small for the models and the context asked for.
    #[error(
        "the KV pool of {pool_bytes} bytes is too small: one request at {context} tokens needs \
         {needed_bytes} bytes; lower --max-model-len or raise --kv-cache-memory-bytes"
    )]
    TooSmall {
        /// The size asked for.
        pool_bytes: u64,
        /// The context one request may reach.
        context: u32,
        /// What one request of that length needs for both models.
        needed_bytes: u64,
    },
    /// The models give no page layout.
    #[error("{what}: expected {expected}, got {got}")]
    Layout {
        /// What is wrong.
        what: String,
        /// What would do.
        expected: String,
        /// What is there.
        got: String,
    },
}

/// A request the engine refuses or ends with an error.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The rendered prompt leaves no room to generate.
    #[error(
        "the prompt has {prompt} tokens for the {role} model, the context holds {context}; \
         shorten it or raise --max-model-len"
    )]
    PromptTooLong {
        /// Tokens of the rendered prompt.
        prompt: usize,
        /// The model that cannot hold it.
        role: crate::ids::Role,
        /// The context limit in force.
        context: u32,
    },
    /// A parameter is out of range or contradicts another.
    #[error("{field}: {reason}")]
    Invalid {
        /// The parameter.
        field: &'static str,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// A model emitted a special token its partner has no counterpart for.
    #[error(
        "the {role} model emitted special token {id} ({text}), which its partner does not have"
    )]
    UnmappedToken {
        /// Who emitted it.
        role: crate::ids::Role,
        /// The id in that model's numbering.
        id: u32,
        /// Its text.
        text: String,
    },
    /// It was not done within the time it was given.
    #[error("not done within {timeout_ms} ms; ask for less or raise the timeout")]
    TimedOut {
        /// From submission on.
        timeout_ms: u64,
    },
    /// The engine is gone.
    #[error("the engine has stopped: {0}")]
    EngineStopped(String),
    /// The prompt cannot be rendered.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The pool cannot hold this request.
    #[error(transparent)]
    Kv(#[from] KvError),
    /// The forward pass failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// Starting a server.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ServeError {
    /// A port cannot be had.
    #[error("{address}: {source}")]
    Bind {
        /// As the user gave it, with its host.
        address: String,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A setting that cannot be honoured.
    #[error("{field}: {reason}")]
    Invalid {
        /// The setting.
        field: &'static str,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// The threads, sockets or signals of the server cannot be had.
    #[error("the server cannot start: {0}")]
    Runtime(std::io::Error),
}

/// Starting an engine.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A model or a pair cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The device cannot be had.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The pool cannot be laid out.
    #[error(transparent)]
    Kv(#[from] KvError),
    /// Settings that contradict each other.
    #[error("{field}: {reason}")]
    Invalid {
        /// The setting.
        field: &'static str,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// A judge, label or template of the pair is unusable.
    #[error(transparent)]
    Text(#[from] TextError),
}
