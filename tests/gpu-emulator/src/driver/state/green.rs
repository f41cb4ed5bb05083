//! Green contexts: a part of the SMs with streams of its own.
//!
//! Splits follow the capability's rules: on 8.x groups of at least 4 SMs in steps of 2, on 9.0 at
//! least 8 in steps of 8 (2 and 2 where co-scheduling is ignored). A part is a contiguous range.

use super::Driver;
use super::handles::Handle;
use crate::driver::failure::{Code, Outcome, ensure, failure};
use crate::driver::settings::Capability;
use std::ops::Range;

/// `CU_GREEN_CTX_DEFAULT_STREAM`, which is required.
pub const DEFAULT_STREAM: u32 = 1;
/// `CU_DEV_SM_RESOURCE_SPLIT_IGNORE_SM_COSCHEDULING`.
pub const IGNORE_COSCHEDULING: u32 = 1;
const KNOWN_SPLIT_FLAGS: u32 = 3;

/// One green context.
#[derive(Debug)]
pub struct GreenContext {
    /// Its SMs.
    pub sms: Range<u32>,
    /// The context it was converted to.
    pub context: Handle,
    /// The primary context.
    pub root: Handle,
}

/// SMs from which a green context may be made.
#[derive(Debug)]
pub struct Descriptor {
    /// The SMs.
    pub sms: Range<u32>,
}

/// The smallest group and the step of group sizes.
#[must_use]
pub fn group_rule(capability: Capability, flags: u32) -> (u32, u32) {
    match capability {
        Capability::Sm80 => (4, 2),
        Capability::Sm90 if flags & IGNORE_COSCHEDULING != 0 => (2, 2),
        Capability::Sm90 => (8, 8),
    }
}

/// Splits SMs into at most `groups` groups (or as many as there are) of at least `minimum` each;
/// answers them and what remains.
///
/// # Errors
/// `InvalidValue` for unknown flags, `InvalidResourceConfiguration` when not one group fits.
pub fn split(
    capability: Capability,
    sms: Range<u32>,
    groups: Option<u32>,
    minimum: u32,
    flags: u32,
) -> Outcome<(Vec<Range<u32>>, Range<u32>)> {
    ensure!(flags & !KNOWN_SPLIT_FLAGS == 0, InvalidValue, "split flags {flags:#x}");
    let (least, step) = group_rule(capability, flags);
    let size = minimum.max(least).next_multiple_of(step);
    let fit = sms.len() as u32 / size;
    let count = groups.unwrap_or(fit).min(fit);
    ensure!(
        count > 0,
        InvalidResourceConfiguration,
        "{} SMs hold no group of {size} (asked for {minimum}; the rule is at least {least} in \
         steps of {step})",
        sms.len()
    );
    let parts = (0..count).map(|i| sms.start + i * size..sms.start + (i + 1) * size).collect();
    Ok((parts, sms.start + count * size..sms.end))
}

/// The SMs of a stream: its green context's, or all.
pub(super) fn sms_of(driver: &Driver, green: Option<Handle>) -> Outcome<Range<u32>> {
    match green {
        Some(green) => Ok(driver.green_contexts.get(green)?.sms.clone()),
        None => Ok(0..driver.settings.sm_count),
    }
}

impl Driver {
    /// Joins parts that follow one another into a descriptor.
    ///
    /// # Errors
    /// `InvalidResourceConfiguration` when they do not, or reach beyond the device.
    pub fn describe_sms(&mut self, parts: &[Range<u32>]) -> Outcome<Handle> {
        let mut parts = parts.to_vec();
        parts.sort_by_key(|part| part.start);
        let contiguous = parts.windows(2).all(|pair| pair[0].end == pair[1].start);
        let (Some(first), Some(last)) = (parts.first(), parts.last()) else {
            return Err(failure(Code::InvalidValue, "no resources"));
        };
        let sms = first.start..last.end;
        ensure!(
            contiguous && !sms.is_empty() && sms.end <= self.settings.sm_count,
            InvalidResourceConfiguration,
            "SMs {parts:?} are no contiguous part of {}",
            self.settings.sm_count
        );
        Ok(self.descriptors.insert(Descriptor { sms }))
    }

    /// Makes a green context.
    ///
    /// # Errors
    /// `InvalidValue` without `CU_GREEN_CTX_DEFAULT_STREAM`, `InvalidHandle` for a stale
    /// descriptor.
    pub fn create_green(&mut self, descriptor: Handle, flags: u32) -> Outcome<Handle> {
        ensure!(flags == DEFAULT_STREAM, InvalidValue, "green context flags {flags:#x}");
        let sms = self.descriptors.get(descriptor)?.sms.clone();
        let root = self.retain_primary();
        let green = self.green_contexts.insert(GreenContext { sms, context: Handle::NULL, root });
        let context = self.new_context(Some(root), Some(green));
        self.green_contexts.get_mut(green)?.context = context;
        Ok(green)
    }

    /// The green context.
    ///
    /// # Errors
    /// `InvalidHandle` when it is not live.
    pub fn green(&self, green: Handle) -> Outcome<&GreenContext> {
        self.green_contexts.get(green)
    }

    /// Makes a stream on a green context's SMs. It must be non-blocking.
    ///
    /// # Errors
    /// `InvalidValue` for other flags, `InvalidHandle` when the green context is not live.
    pub fn create_green_stream(
        &mut self,
        green: Handle,
        flags: u32,
        priority: i32,
    ) -> Outcome<Handle> {
        let context = self.green_contexts.get(green)?.context;
        ensure!(
            flags == super::stream::NON_BLOCKING,
            InvalidValue,
            "a green context's stream must be CU_STREAM_NON_BLOCKING; flags {flags:#x}"
        );
        self.create_stream_in(context, Some(green), flags, priority)
    }

    /// Destroys a green context with its streams. Its work must have finished.
    ///
    /// # Errors
    /// `InvalidHandle` when it is not live.
    pub fn destroy_green(&mut self, green: Handle) -> Outcome {
        let gone = self.green_contexts.remove(green)?;
        self.streams.retain(|stream| stream.green != Some(green));
        self.contexts.remove(gone.context)?;
        self.release_primary()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(
        capability: Capability,
        total: u32,
        groups: Option<u32>,
        minimum: u32,
    ) -> (Vec<usize>, usize) {
        let (parts, rest) = split(capability, 0..total, groups, minimum, 0).unwrap();
        (parts.iter().map(ExactSizeIterator::len).collect(), rest.len())
    }

    #[test]
    fn groups_follow_the_rule_of_the_capability() {
        assert_eq!(sizes(Capability::Sm80, 108, Some(1), 33), (vec![34], 74));
        assert_eq!(sizes(Capability::Sm80, 16, None, 1), (vec![4; 4], 0));
        assert_eq!(sizes(Capability::Sm90, 132, Some(2), 60), (vec![64, 64], 4));
        assert_eq!(sizes(Capability::Sm90, 16, Some(9), 3), (vec![8, 8], 0));
    }

    #[test]
    fn a_group_larger_than_the_device_is_refused_with_the_rule() {
        let refused = split(Capability::Sm90, 0..16, Some(1), 17, 0).unwrap_err();
        assert_eq!(refused.code, Code::InvalidResourceConfiguration);
        assert!(refused.reason.contains("steps of 8"));
    }
}
