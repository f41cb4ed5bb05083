//! Green contexts: the device's SMs in two parts, one for each model.
//!
//! A partition changes which SMs run a grid, never its tiles, so results stay the same to the bit.
//! Read next: [`super::stream::Overlap`], the switch.

use super::driver::{Context, Queue, check};
use crate::error::DeviceError;
use crate::ids::Role;
use cudarc::driver::sys;
use std::sync::Arc;

/// One part of the SMs, and what keeps it.
#[derive(Debug)]
struct Part {
    context: Arc<Context>,
    raw: sys::CUgreenCtx,
    sms: u32,
}

// SAFETY: a handle the driver lets any thread use.
unsafe impl Send for Part {}
// SAFETY: as above.
unsafe impl Sync for Part {}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = self.context.bind();
        // SAFETY: created in `Part::new`, destroyed once, after the queues that belong to it.
        let _ = unsafe { sys::cuGreenCtxDestroy(self.raw) };
    }
}

/// Both parts.
#[derive(Debug)]
pub(super) struct Partition {
    /// By [`Role::index`].
    parts: [Part; 2],
}

impl Partition {
    /// Gives the draft about `draft_pct` percent of the SMs, as the hardware can split them.
    ///
    /// # Errors
    /// When the driver has no green contexts, or no such split exists.
    pub(super) fn new(context: &Arc<Context>, draft_pct: u32) -> Result<Self, DeviceError> {
        let all = context.properties.sms as u32;
        let wanted = (all * draft_pct / 100).max(1);
        let at = || format!("--overlap green-ctx: splitting {all} SMs at {draft_pct} %");
        let mut input = empty();
        let kind = sys::CUdevResourceType::CU_DEV_RESOURCE_TYPE_SM;
        // SAFETY: a valid device and a place for the answer.
        let got = unsafe { sys::cuDeviceGetDevResource(context.device(), &raw mut input, kind) };
        check(got.result(), at)?;
        let (mut group, mut rest, mut groups) = (empty(), empty(), 1);
        // SAFETY: one group is asked for and there is room for one; all places are writable.
        let split = unsafe {
            sys::cuDevSmResourceSplitByCount(
                &raw mut group,
                &raw mut groups,
                &raw const input,
                &raw mut rest,
                0,
                wanted,
            )
        };
        check(split.result(), at)?;
        if groups != 1 || count(&rest) == 0 {
            return Err(DeviceError::Unavailable {
                device: "cuda".into(),
                reason: format!("{}: nothing would be left for the base", at()),
            });
        }
        let [draft, base] = [group, rest].map(|resource| Part::new(context, resource, &at));
        Ok(Self { parts: [draft?, base?] })
    }

    /// A queue on the SMs of `role`.
    pub(super) fn queue(
        &self,
        context: &Arc<Context>,
        role: Role,
        name: &str,
    ) -> Result<Queue, DeviceError> {
        let part = &self.parts[role.index()];
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the green context is alive and `raw` is writable.
        let made = unsafe { sys::cuGreenCtxStreamCreate(&raw mut raw, part.raw, flags, 0) };
        check(made.result(), || format!("cuGreenCtxStreamCreate {name}"))?;
        Ok(Queue::from_raw(context, name, raw))
    }

    /// SMs by [`Role::index`].
    pub(super) fn sms(&self) -> [u32; 2] {
        self.parts.each_ref().map(|part| part.sms)
    }
}

impl Part {
    fn new(
        context: &Arc<Context>,
        mut resource: sys::CUdevResource,
        at: &dyn Fn() -> String,
    ) -> Result<Self, DeviceError> {
        let mut description = std::ptr::null_mut();
        // SAFETY: one valid resource and a place for its description.
        let made =
            unsafe { sys::cuDevResourceGenerateDesc(&raw mut description, &raw mut resource, 1) };
        check(made.result(), at)?;
        let flags = sys::CUgreenCtxCreate_flags::CU_GREEN_CTX_DEFAULT_STREAM as u32;
        let mut raw = std::ptr::null_mut();
        // SAFETY: a description made above, for the device it was made of.
        let made =
            unsafe { sys::cuGreenCtxCreate(&raw mut raw, description, context.device(), flags) };
        check(made.result(), at)?;
        Ok(Self { context: context.clone(), raw, sms: count(&resource) })
    }
}

fn empty() -> sys::CUdevResource {
    // SAFETY: integers and bytes, for which zero is a value; the driver fills it in.
    unsafe { std::mem::zeroed() }
}

fn count(resource: &sys::CUdevResource) -> u32 {
    // SAFETY: only called on resources of SMs, or on zeros.
    unsafe { resource.__bindgen_anon_1.sm.smCount }
}
