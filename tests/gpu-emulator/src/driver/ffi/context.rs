//! `cuCtx*`: contexts and which one is current to a thread.

use super::Status;
use super::arguments::{Bytes, Out};
use super::session::{Kind, enter, with_contexts};
use crate::driver::failure::{Code, Outcome, ensure, failure};
use crate::driver::state::handles::Handle;
use crate::driver::state::stream;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetCurrent(context: Out<Handle>) -> Status {
    enter(Kind::Query, "cuCtxGetCurrent", |_| {
        context.set(with_contexts(|stack| stack.last().copied().unwrap_or_default()))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxSetCurrent(context: Handle) -> Status {
    enter(Kind::Query, "cuCtxSetCurrent", |driver| {
        if !context.is_null() {
            driver.context(context)?;
        }
        with_contexts(|stack| {
            stack.pop();
            if !context.is_null() {
                stack.push(context);
            }
        });
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxPushCurrent_v2(context: Handle) -> Status {
    enter(Kind::Query, "cuCtxPushCurrent_v2", |driver| {
        driver.context(context)?;
        with_contexts(|stack| stack.push(context));
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxPopCurrent_v2(context: Out<Handle>) -> Status {
    enter(Kind::Query, "cuCtxPopCurrent_v2", |_| {
        let popped = with_contexts(Vec::pop);
        context.set_if_wanted(popped.ok_or(Code::InvalidContext)?);
        Ok(())
    })
}

fn create(name: &'static str, context: Out<Handle>, flags: u32, device: i32) -> Status {
    enter(Kind::Work, name, |driver| {
        ensure!(device == 0, InvalidDevice, "device {device}; there is one, number 0");
        ensure!(!context.is_null(), InvalidValue, "a null pointer for the context");
        let made = driver.create_context(flags);
        with_contexts(|stack| stack.push(made));
        context.set(made)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxCreate_v2(context: Out<Handle>, flags: u32, device: i32) -> Status {
    create("cuCtxCreate_v2", context, flags, device)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxCreate_v3(
    context: Out<Handle>,
    _affinity: Bytes,
    _affinities: i32,
    flags: u32,
    device: i32,
) -> Status {
    create("cuCtxCreate_v3", context, flags, device)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxCreate_v4(
    context: Out<Handle>,
    _params: Bytes,
    flags: u32,
    device: i32,
) -> Status {
    create("cuCtxCreate_v4", context, flags, device)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxDestroy_v2(context: Handle) -> Status {
    enter(Kind::Work, "cuCtxDestroy_v2", |driver| {
        driver.context(context)?;
        driver.complete_everything()?;
        driver.destroy_context(context)?;
        with_contexts(|stack| stack.retain(|other| *other != context));
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxSynchronize() -> Status {
    enter(Kind::Work, "cuCtxSynchronize", |driver| {
        driver.call.host_sync = true;
        let targets = driver.context_targets()?;
        driver.complete(&targets)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetDevice(device: Out<i32>) -> Status {
    enter(Kind::Query, "cuCtxGetDevice", |driver| {
        driver.current_context()?;
        device.set(0)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetFlags(flags: Out<u32>) -> Status {
    enter(Kind::Query, "cuCtxGetFlags", |driver| {
        let context = driver.current_context()?;
        flags.set(driver.context(context)?.flags)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxSetFlags(flags: u32) -> Status {
    enter(Kind::Quiet, "cuCtxSetFlags", |driver| {
        let context = driver.current_context()?;
        driver.context_mut(context)?.flags = flags;
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetId(context: Handle, id: Out<u64>) -> Status {
    enter(Kind::Query, "cuCtxGetId", |driver| {
        let context = if context.is_null() { driver.current_context()? } else { context };
        driver.context(context)?;
        id.set(u64::from(driver.context_number(context)))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetApiVersion(context: Handle, version: Out<u32>) -> Status {
    enter(Kind::Query, "cuCtxGetApiVersion", |driver| {
        if !context.is_null() {
            driver.context(context)?;
        }
        version.set(crate::driver::device::DRIVER_VERSION as u32)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetStreamPriorityRange(
    lowest: Out<i32>,
    highest: Out<i32>,
) -> Status {
    enter(Kind::Query, "cuCtxGetStreamPriorityRange", |driver| {
        driver.current_context()?;
        lowest.set_if_wanted(stream::PRIORITIES.0);
        highest.set_if_wanted(stream::PRIORITIES.1);
        Ok(())
    })
}

/// Limits the driver knows, by number, with what they are until somebody sets them.
const LIMITS: [(u32, u64); 7] =
    [(0, 1024), (1, 1 << 20), (2, 8 << 20), (3, 2), (4, 2048), (5, 64), (6, 0)];

fn default_limit(limit: u32) -> Outcome<u64> {
    let known = LIMITS.iter().find(|(number, _)| *number == limit);
    known
        .map(|(_, value)| *value)
        .ok_or_else(|| failure(Code::UnsupportedLimit, format!("limit {limit} is not emulated")))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetLimit(value: Out<usize>, limit: u32) -> Status {
    enter(Kind::Query, "cuCtxGetLimit", |driver| {
        let context = driver.current_context()?;
        let default = default_limit(limit)?;
        value.set(driver.context(context)?.limits.get(&limit).copied().unwrap_or(default) as usize)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxSetLimit(limit: u32, value: usize) -> Status {
    enter(Kind::Quiet, "cuCtxSetLimit", |driver| {
        let context = driver.current_context()?;
        default_limit(limit)?;
        driver.context_mut(context)?.limits.insert(limit, value as u64);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetCacheConfig(config: Out<u32>) -> Status {
    enter(Kind::Query, "cuCtxGetCacheConfig", |driver| {
        driver.current_context()?;
        config.set(0)
    })
}

/// Accepted and without effect: there is no cache to divide.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxSetCacheConfig(config: u32) -> Status {
    enter(Kind::Quiet, "cuCtxSetCacheConfig", |driver| {
        driver.current_context()?;
        ensure!(config < 4, InvalidValue, "cache configuration {config}");
        Ok(())
    })
}
