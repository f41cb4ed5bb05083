//! The engine: two models, one pool, many requests.
//!
//! ```no_run
//! use forerun::engine::{Engine, EngineOptions, Event, Pair, Request};
//!
//! let engine = Engine::start(EngineOptions::new(Pair::tiny()))?;
//! for event in engine.submit(Request::ask("Tom has 3 apples and buys 4 more. How many?"))? {
//!     match event {
//!         Event::Tokens { text, .. } => print!("{text}"),
//!         Event::Finished(reply) => println!("\nanswer: {:?}", reply.answer),
//!         Event::Failed(error) => return Err(error.into()),
//!         _ => {}
//!     }
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`Engine::start`] loads the pair, prints its memory plan and refuses what cannot fit; after it
//! the device allocates nothing. Dropping [`Events`] cancels the request. Read next: `request`
//! for what goes in and out, `runner.rs` for the loop.

mod assemble;
mod branches;
mod completion;
mod guard;
mod judge;
mod listener;
mod live;
mod logprobs;
mod memory;
mod pair;
mod places;
mod prepare;
mod progress;
mod reply;
mod request;
mod results;
mod runner;
mod score;
mod slot;
mod start;
mod trace;
mod window;

pub use completion::{Completion, Prompt};
pub use judge::JudgeText;
pub use memory::MemoryPlan;
pub use pair::{
    CATALOGUE, CatalogueEntry, ModelSource, Origin as ModelOrigin, Pair, PairSettings, Thinking,
};
pub use places::Load;
pub use request::{
    Event, PhaseCost, PolicyOptions, Reply, Request, Settings, StepReport, TokenCounts,
    TokenLogprob, Tuned, Urgency,
};
pub use start::{DeviceChoice, EngineOptions, LoadProgress};

use crate::device::{Device, DeviceInfo};
#[cfg(feature = "grammar")]
use crate::error::TextError;
use crate::error::{EngineError, RequestError};
use crate::ids::{RequestId, Role, TokenId};
#[cfg(feature = "grammar")]
use crate::sample::Grammar;
use crate::text::Tokenizer;
use live::Submission;
use prepare::Prepared;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// A running engine. Cheap to share behind an [`Arc`]; dropping it ends the engine's thread after
/// the requests in progress.
pub struct Engine {
    prepared: Arc<Prepared>,
    inbox: Option<SyncSender<Submission>>,
    next_id: AtomicU64,
    thread: Mutex<Option<JoinHandle<()>>>,
    device: DeviceInfo,
    plan: MemoryPlan,
    load: Arc<Mutex<Load>>,
    forget_prefixes: Arc<AtomicBool>,
}

impl Engine {
    /// Loads a pair and starts the engine's thread.
    ///
    /// # Errors
    /// When a model cannot be loaded, the two do not fit together, a setting contradicts another,
    /// or memory does not suffice. Nothing is left behind.
    pub fn start(options: EngineOptions) -> Result<Self, EngineError> {
        start::start(options)
    }

    /// The same on a device of your own; [`EngineOptions::device`] counts for nothing.
    ///
    /// # Errors
    /// As [`Engine::start`].
    pub fn start_on(device: impl Device, options: EngineOptions) -> Result<Self, EngineError> {
        start::start_on(device, options)
    }

    /// Queues a request.
    ///
    /// # Errors
    /// When the request is invalid, does not fit the context, or the engine has stopped.
    pub fn submit(&self, request: Request) -> Result<Events, RequestError> {
        self.queue(|id, events, cancelled| {
            self.prepared.submission(&request, id, events, cancelled)
        })
    }

    /// Queues a completion: one model continues a prompt, without steps.
    ///
    /// # Errors
    /// As [`Engine::submit`].
    pub fn complete(&self, completion: &Completion) -> Result<Events, RequestError> {
        self.queue(|id, events, cancelled| {
            self.prepared.completion(completion, id, events, cancelled)
        })
    }

    /// Lets no request from now on find keys and values that requests before it left: it then
    /// takes as long as the first one.
    pub fn reset_prefix_cache(&self) {
        self.forget_prefixes.store(true, Ordering::Relaxed);
    }

    fn queue(
        &self,
        prepare: impl FnOnce(
            RequestId,
            Sender<Event>,
            Arc<AtomicBool>,
        ) -> Result<Submission, RequestError>,
    ) -> Result<Events, RequestError> {
        let id = RequestId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let (events, receiver) = std::sync::mpsc::channel();
        let cancelled = Arc::new(AtomicBool::new(false));
        let submission = prepare(id, events, cancelled.clone())?;
        let prompts = submission.prompts.clone();
        let inbox = self.inbox.as_ref().expect("present until drop");
        inbox
            .send(submission)
            .map_err(|_| RequestError::EngineStopped("its thread has ended".into()))?;
        Ok(Events { receiver, cancelled, prompts })
    }

    /// Runs a request to its end.
    ///
    /// # Errors
    /// As [`Engine::submit`], and whatever ends the request.
    pub fn answer(&self, request: Request) -> Result<Reply, RequestError> {
        self.submit(request)?.reply()
    }

    /// What is known about the prompt before it runs: a note when the pair is unlikely to know its
    /// subject.
    #[must_use]
    pub fn domain_notice(&self, question: &str) -> Option<String> {
        self.prepared.domain_notice(question)
    }

    /// The rendered prompt of a model, in its own numbering.
    ///
    /// # Errors
    /// When the template fails.
    pub fn render(&self, request: &Request, role: Role) -> Result<Vec<TokenId>, RequestError> {
        self.prepared.render(request, role)
    }

    /// The ids a [`Completion`] of this prompt would feed, in the model's own numbering.
    ///
    /// # Errors
    /// When the engine runs without that model, the template fails, or a prompt is empty or names
    /// tokens that do not exist.
    pub fn prompt_ids(&self, role: Role, prompt: &Prompt) -> Result<Vec<TokenId>, RequestError> {
        self.prepared.prompt_ids(role, prompt)
    }

    /// A model's tokenizer. Generated ids are in the base's numbering, whoever wrote them.
    #[must_use]
    pub fn tokenizer(&self, role: Role) -> Option<&Tokenizer> {
        self.prepared.texts[role.index()].as_ref().map(|text| &text.tokenizer)
    }

    /// Whether the turn that a prompt leaves open is inside its thinking; false for a model the
    /// engine runs without.
    #[must_use]
    pub fn opens_thinking(&self, role: Role, prompt: &[TokenId]) -> bool {
        self.prepared.opens_thinking(role, prompt)
    }

    /// What holds a reply to JSON of this schema.
    ///
    /// # Errors
    /// When the schema is invalid, or asks for what cannot be enforced.
    #[cfg(feature = "grammar")]
    pub fn json_grammar(&self, schema: &serde_json::Value) -> Result<Grammar, TextError> {
        self.prepared.json_grammar(schema)
    }

    /// The text of generated ids.
    #[must_use]
    pub fn decode(&self, ids: &[TokenId]) -> String {
        self.prepared.tokenizer().decode(ids)
    }

    /// The device in use.
    #[must_use]
    pub fn device(&self) -> &DeviceInfo {
        &self.device
    }

    /// How memory was divided at start-up.
    #[must_use]
    pub fn memory_plan(&self) -> &MemoryPlan {
        &self.plan
    }

    /// What the engine is busy with, as of its last step.
    #[must_use]
    pub fn load(&self) -> Load {
        *self.load.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pair's settings.
    #[must_use]
    pub fn pair(&self) -> &Pair {
        &self.prepared.pair
    }

    /// The context of both models.
    #[must_use]
    pub fn max_model_len(&self) -> u32 {
        self.prepared.max_model_len
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.inbox = None;
        let thread = self.thread.lock().map(|mut t| t.take()).unwrap_or_default();
        if let Some(thread) = thread {
            // A panic on the engine's thread was already reported by its hook.
            let _ = thread.join();
        }
    }
}

/// The events of one request, in order. Dropping it cancels the request.
pub struct Events {
    receiver: Receiver<Event>,
    cancelled: Arc<AtomicBool>,
    prompts: [Vec<TokenId>; 2],
}

impl Events {
    /// What a model read, in its own numbering; empty for a model the request does not run.
    #[must_use]
    pub fn prompt(&self, role: Role) -> &[TokenId] {
        &self.prompts[role.index()]
    }

    /// Asks the engine to end the request; its last event still comes.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Cancels from elsewhere, such as a signal handler.
    #[must_use]
    pub fn canceller(&self) -> Arc<AtomicBool> {
        self.cancelled.clone()
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// Whatever ended the request.
    pub fn reply(self) -> Result<Reply, RequestError> {
        for event in self.receiver.iter() {
            match event {
                Event::Finished(reply) => return Ok(*reply),
                Event::Failed(error) => return Err(error),
                _ => {}
            }
        }
        Err(RequestError::EngineStopped("its thread ended during the request".into()))
    }
}

impl Iterator for Events {
    type Item = Event;

    /// The next event; `None` after the terminal one. An engine that died says so once.
    fn next(&mut self) -> Option<Event> {
        self.receiver.recv().ok()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.cancel();
    }
}

#[cfg(test)]
mod tests;
