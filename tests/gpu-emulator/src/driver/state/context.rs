//! Contexts: the primary one, others, and those of green contexts.
//!
//! A context owns its default stream. A green context's shares everything else with the primary
//! context, its *root*: what is made under one may be used under the other.

use super::Driver;
use super::handles::{Handle, Kind};
use super::queue::OperationId;
use super::stream::Stream;
use crate::driver::failure::{Code, Outcome, ensure, failure};

/// One context.
#[derive(Debug)]
pub struct Context {
    /// The context whose objects this one shares; itself unless it is a green context's.
    pub root: Option<Handle>,
    /// Its legacy default stream.
    pub legacy_stream: Handle,
    /// The green context it was made from.
    pub green: Option<Handle>,
    /// `cuCtxSetFlags`.
    pub flags: u32,
    /// Last operations of blocking streams that were destroyed before they had run.
    pub orphans: Vec<OperationId>,
    /// Limits that were set, by number.
    pub limits: std::collections::BTreeMap<u32, u64>,
}

/// The device's primary context and who holds it.
#[derive(Debug, Default)]
pub struct Primary {
    handle: Option<Handle>,
    retained: u32,
    /// Flags for when it is made.
    pub flags: u32,
}

impl Primary {
    /// Whether anybody holds it.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.retained > 0
    }
}

impl Driver {
    /// The context of the calling thread.
    ///
    /// # Errors
    /// `InvalidContext` when there is none or it was destroyed.
    pub fn current_context(&self) -> Outcome<Handle> {
        let context = self.caller.context.ok_or_else(|| {
            failure(Code::InvalidContext, "no context is current to the calling thread")
        })?;
        self.contexts.get(context)?;
        Ok(context)
    }

    /// The context itself.
    ///
    /// # Errors
    /// `InvalidContext` when it is not live.
    pub fn context(&self, context: Handle) -> Outcome<&Context> {
        self.contexts.get(context)
    }

    /// The context, to change it.
    ///
    /// # Errors
    /// `InvalidContext` when it is not live.
    pub fn context_mut(&mut self, context: Handle) -> Outcome<&mut Context> {
        self.contexts.get_mut(context)
    }

    /// The context whose objects `context` shares.
    ///
    /// # Errors
    /// `InvalidContext` when it is not live.
    pub fn root_of(&self, context: Handle) -> Outcome<Handle> {
        Ok(self.contexts.get(context)?.root.unwrap_or(context))
    }

    /// The root of the calling thread's context.
    ///
    /// # Errors
    /// `InvalidContext` when there is none.
    pub fn current_root(&self) -> Outcome<Handle> {
        self.root_of(self.current_context()?)
    }

    /// Makes a context with its default stream.
    pub(super) fn new_context(&mut self, root: Option<Handle>, green: Option<Handle>) -> Handle {
        let context = self.contexts.insert(Context {
            root,
            legacy_stream: Handle::NULL,
            green,
            flags: 0,
            orphans: Vec::new(),
            limits: std::collections::BTreeMap::new(),
        });
        let legacy = Stream::legacy(context, root.unwrap_or(context), green);
        let legacy_stream = self.streams.insert(legacy);
        if let Ok(made) = self.contexts.get_mut(context) {
            made.legacy_stream = legacy_stream;
        }
        context
    }

    /// Holds the primary context, making it the first time.
    pub fn retain_primary(&mut self) -> Handle {
        self.primary.retained += 1;
        if let Some(handle) = self.primary.handle {
            return handle;
        }
        let handle = self.new_context(None, None);
        let flags = self.primary.flags;
        if let Ok(context) = self.contexts.get_mut(handle) {
            context.flags = flags;
        }
        self.primary.handle = Some(handle);
        handle
    }

    /// Lets go of the primary context; the last one to do so destroys what it owns.
    ///
    /// # Errors
    /// `InvalidContext` when nobody holds it.
    pub fn release_primary(&mut self) -> Outcome {
        ensure!(self.primary.retained > 0, InvalidContext, "nobody holds the primary context");
        self.primary.retained -= 1;
        if self.primary.retained == 0
            && let Some(handle) = self.primary.handle.take()
        {
            self.destroy_objects_of(handle);
        }
        Ok(())
    }

    /// The primary context, where somebody holds it.
    #[must_use]
    pub fn primary(&self) -> &Primary {
        &self.primary
    }

    /// The primary context, to set its flags.
    pub fn primary_mut(&mut self) -> &mut Primary {
        &mut self.primary
    }

    /// The handle of the primary context while somebody holds it.
    #[must_use]
    pub fn primary_handle(&self) -> Option<Handle> {
        self.primary.handle
    }

    /// Makes a context beside the primary one.
    pub fn create_context(&mut self, flags: u32) -> Handle {
        let handle = self.new_context(None, None);
        if let Ok(context) = self.contexts.get_mut(handle) {
            context.flags = flags;
        }
        handle
    }

    /// Destroys a context that [`Self::create_context`] made.
    ///
    /// # Errors
    /// `InvalidContext` when it is the primary one, a green context's, or not live.
    pub fn destroy_context(&mut self, context: Handle) -> Outcome {
        let green = self.contexts.get(context)?.green.is_some();
        ensure!(
            self.primary.handle != Some(context) && !green,
            InvalidContext,
            "cuCtxDestroy of a primary or green context"
        );
        self.destroy_objects_of(context);
        Ok(())
    }

    /// Removes a root context and everything made under it. Its work must have finished.
    fn destroy_objects_of(&mut self, root: Handle) {
        self.contexts.remove(root).ok();
        self.contexts.retain(|context| context.root != Some(root));
        self.streams.retain(|stream| stream.root != root);
        self.events.retain(|event| event.root != root);
        self.functions.retain(|function| function.root != root);
        self.modules.retain(|module| module.root != root);
        self.green_contexts.retain(|green| green.root != root);
        self.captures.clear();
        for address in self.device.owned_by(root) {
            self.device.forget(address);
            self.memory.free(address).ok();
            self.report.freed(address);
        }
    }

    /// The number of a context in logs.
    #[must_use]
    pub fn context_number(&self, context: Handle) -> u32 {
        Kind::Context.number_of(context)
    }
}
