//! How many blocks fit an SM, and the attributes of functions.
//!
//! PTX does not say how many registers a thread will have, so registers are the one resource left
//! out: the answers are upper bounds, and `NUM_REGS` is 0, "unknown".

use super::Driver;
use super::handles::Handle;
use crate::driver::failure::{Code, Outcome, ensure, failure};
use crate::driver::settings::{
    BLOCKS_PER_SM, RESERVED_SHARED_BYTES, THREADS_PER_BLOCK, THREADS_PER_SM,
};

/// Numbers of `CUfunction_attribute`.
mod attribute {
    pub(super) const MAX_THREADS_PER_BLOCK: u32 = 0;
    pub(super) const SHARED_SIZE_BYTES: u32 = 1;
    pub(super) const CONST_SIZE_BYTES: u32 = 2;
    pub(super) const LOCAL_SIZE_BYTES: u32 = 3;
    pub(super) const NUM_REGS: u32 = 4;
    pub(super) const PTX_VERSION: u32 = 5;
    pub(super) const BINARY_VERSION: u32 = 6;
    pub(super) const MAX_DYNAMIC_SHARED_SIZE_BYTES: u32 = 8;
    pub(super) const PREFERRED_SHARED_MEMORY_CARVEOUT: u32 = 9;
    pub(super) const LAST: u32 = 15;
}

impl Driver {
    /// An attribute of a function, by its number in `CUfunction_attribute`.
    ///
    /// # Errors
    /// `InvalidValue` for an unknown number, `InvalidHandle` when it is not live.
    pub fn function_attribute(&self, function: Handle, number: u32) -> Outcome<i32> {
        let function = self.functions.get(function)?;
        let entry = function.entry();
        let value = match number {
            attribute::MAX_THREADS_PER_BLOCK => entry
                .limits
                .max_threads
                .or(entry.limits.required_threads)
                .map_or(THREADS_PER_BLOCK, |limit| limit.iter().product()),
            attribute::SHARED_SIZE_BYTES => entry.static_shared_bytes,
            attribute::LOCAL_SIZE_BYTES => entry.local_bytes,
            attribute::CONST_SIZE_BYTES | attribute::NUM_REGS => 0,
            attribute::PTX_VERSION => {
                crate::driver::image::Target::of(&format!(
                    ".target {}\n",
                    function.loaded.module.target
                ))?
                .number
            }
            attribute::BINARY_VERSION => self.settings.capability.number(),
            attribute::MAX_DYNAMIC_SHARED_SIZE_BYTES => function.dynamic_shared_bytes_max,
            other if other <= attribute::LAST => {
                return Ok(function.attributes.get(&other).copied().unwrap_or_default());
            }
            other => return Err(failure(Code::InvalidValue, format!("attribute {other}"))),
        };
        Ok(value as i32)
    }

    /// Sets an attribute of a function.
    ///
    /// # Errors
    /// `InvalidValue` for one that cannot be set or a value beyond the device.
    pub fn set_function_attribute(&mut self, function: Handle, number: u32, value: i32) -> Outcome {
        let most = self.settings.capability.shared_bytes_per_block_optin();
        let function = self.functions.get_mut(function)?;
        match number {
            attribute::MAX_DYNAMIC_SHARED_SIZE_BYTES => {
                let most = most - function.entry().static_shared_bytes;
                ensure!(
                    u32::try_from(value).is_ok_and(|bytes| bytes <= most),
                    InvalidValue,
                    "{value} bytes of dynamic shared memory for {}; the device has {most}",
                    function.entry().name
                );
                function.dynamic_shared_bytes_max = value as u32;
            }
            attribute::PREFERRED_SHARED_MEMORY_CARVEOUT..=attribute::LAST => {
                function.attributes.insert(number, value);
            }
            other => {
                return Err(failure(Code::InvalidValue, format!("attribute {other} is fixed")));
            }
        }
        Ok(())
    }

    /// Blocks of a function that fit an SM at once, registers not counted.
    ///
    /// # Errors
    /// `InvalidHandle` when it is not live, `InvalidValue` for no threads or too many.
    pub fn blocks_per_sm(
        &self,
        function: Handle,
        threads: u32,
        dynamic_shared_bytes: u32,
    ) -> Outcome<u32> {
        let function = self.functions.get(function)?;
        ensure!(
            (1..=THREADS_PER_BLOCK).contains(&threads),
            InvalidValue,
            "a block of {threads} threads"
        );
        let shared =
            function.entry().static_shared_bytes + dynamic_shared_bytes + RESERVED_SHARED_BYTES;
        let by_shared = self.settings.capability.shared_bytes_per_sm() / shared;
        let by_threads = THREADS_PER_SM / threads.next_multiple_of(32);
        Ok(by_shared.min(by_threads).min(BLOCKS_PER_SM))
    }

    /// Dynamic shared memory a block may have when `blocks` of them share an SM, bytes.
    ///
    /// # Errors
    /// `InvalidHandle` when it is not live, `InvalidValue` when so many do not fit.
    pub fn dynamic_shared_bytes_for(
        &self,
        function: Handle,
        blocks: u32,
        threads: u32,
    ) -> Outcome<u32> {
        let fit = self.blocks_per_sm(function, threads, 0)?;
        ensure!((1..=fit).contains(&blocks), InvalidValue, "{blocks} blocks; {fit} fit an SM");
        let capability = self.settings.capability;
        let fixed = self.functions.get(function)?.entry().static_shared_bytes;
        let share = capability.shared_bytes_per_sm() / blocks - RESERVED_SHARED_BYTES - fixed;
        Ok(share.min(capability.shared_bytes_per_block_optin() - fixed))
    }

    /// The block size with the most resident threads, and the blocks that fill the device.
    /// `dynamic_shared_bytes` says what a block of so many threads needs.
    ///
    /// # Errors
    /// `InvalidHandle` when the function is not live.
    pub fn best_block(
        &self,
        function: Handle,
        limit: u32,
        dynamic_shared_bytes: impl Fn(u32) -> u32,
    ) -> Outcome<(u32, u32)> {
        let most = self.function_attribute(function, attribute::MAX_THREADS_PER_BLOCK)? as u32;
        let most = if limit == 0 { most } else { most.min(limit) };
        let mut best = (0, 0, 0);
        for threads in (1..=most.div_ceil(32)).rev().map(|warps| (warps * 32).min(most)) {
            let blocks = self.blocks_per_sm(function, threads, dynamic_shared_bytes(threads))?;
            if blocks * threads > best.0 {
                best = (blocks * threads, threads, blocks);
            }
        }
        Ok((best.2 * self.settings.sm_count, best.1))
    }
}
