//! Green contexts and the SM resources they are made from.
//!
//! A `CUdevResource` says how many SMs it has; which ones is in its opaque bytes, where we keep it.

use super::Status;
use super::arguments::{In, Out};
use super::session::{Kind, enter};
use crate::driver::failure::{Outcome, ensure};
use crate::driver::state::green;
use crate::driver::state::handles::Handle;
use std::ops::Range;

const TYPE_INVALID: u32 = 0;
const TYPE_SM: u32 = 1;
/// Marks a resource this driver made, so that a forged one is found out.
const SEAL: u32 = 0x464F_5245;

/// `CUdevResource`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Resource {
    kind: u32,
    seal: u32,
    first_sm: u32,
    padding: [u32; 21],
    sm_count: u32,
    rest: [u32; 11],
}

const _: () = assert!(size_of::<Resource>() == 144 && align_of::<Resource>() == 4);

impl Resource {
    fn of(sms: &Range<u32>) -> Self {
        let kind = if sms.is_empty() { TYPE_INVALID } else { TYPE_SM };
        Self {
            kind,
            seal: SEAL,
            first_sm: sms.start,
            padding: [0; 21],
            sm_count: sms.len() as u32,
            rest: [0; 11],
        }
    }

    fn sms(&self) -> Outcome<Range<u32>> {
        ensure!(self.kind == TYPE_SM, InvalidResourceType, "resource type {}", self.kind);
        ensure!(
            self.seal == SEAL,
            InvalidResourceConfiguration,
            "a resource the driver did not make"
        );
        Ok(self.first_sm..self.first_sm + self.sm_count)
    }
}

fn check_type(kind: u32) -> Outcome {
    ensure!(kind == TYPE_SM, InvalidResourceType, "resource type {kind}; only SMs are emulated");
    Ok(())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetDevResource(
    device: i32,
    resource: Out<Resource>,
    kind: u32,
) -> Status {
    enter(Kind::Work, "cuDeviceGetDevResource", |driver| {
        ensure!(device == 0, InvalidDevice, "device {device}");
        check_type(kind)?;
        resource.set(Resource::of(&(0..driver.settings.sm_count)))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetDevResource(
    context: Handle,
    resource: Out<Resource>,
    kind: u32,
) -> Status {
    enter(Kind::Work, "cuCtxGetDevResource", |driver| {
        check_type(kind)?;
        let sms = match driver.context(context)?.green {
            Some(green) => driver.green(green)?.sms.clone(),
            None => 0..driver.settings.sm_count,
        };
        resource.set(Resource::of(&sms))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGreenCtxGetDevResource(
    green: Handle,
    resource: Out<Resource>,
    kind: u32,
) -> Status {
    enter(Kind::Work, "cuGreenCtxGetDevResource", |driver| {
        check_type(kind)?;
        resource.set(Resource::of(&driver.green(green)?.sms))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevSmResourceSplitByCount(
    result: Out<Resource>,
    groups: Out<u32>,
    input: In<Resource>,
    remaining: Out<Resource>,
    flags: u32,
    minimum: u32,
) -> Status {
    enter(Kind::Work, "cuDevSmResourceSplitByCount", |driver| {
        let sms = input.get()?.sms()?;
        let capability = driver.settings.capability;
        let wanted = if result.is_null() { None } else { Some(groups.get()?) };
        let (parts, rest) = green::split(capability, sms, wanted, minimum, flags)?;
        groups.set(parts.len() as u32)?;
        if !result.is_null() {
            result.set_all(&parts.iter().map(Resource::of).collect::<Vec<_>>())?;
            remaining.set_if_wanted(Resource::of(&rest));
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevResourceGenerateDesc(
    descriptor: Out<Handle>,
    resources: In<Resource>,
    count: u32,
) -> Status {
    enter(Kind::Work, "cuDevResourceGenerateDesc", |driver| {
        let resources = resources.all(count as usize)?;
        let parts = resources.iter().map(Resource::sms).collect::<Outcome<Vec<_>>>()?;
        let made = driver.describe_sms(&parts)?;
        descriptor.set(made)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGreenCtxCreate(
    green: Out<Handle>,
    descriptor: Handle,
    device: i32,
    flags: u32,
) -> Status {
    enter(Kind::Work, "cuGreenCtxCreate", |driver| {
        ensure!(device == 0, InvalidDevice, "device {device}");
        let made = driver.create_green(descriptor, flags)?;
        green.set(made)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGreenCtxDestroy(green: Handle) -> Status {
    enter(Kind::Work, "cuGreenCtxDestroy", |driver| {
        driver.green(green)?;
        driver.complete_everything()?;
        driver.destroy_green(green)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxFromGreenCtx(context: Out<Handle>, green: Handle) -> Status {
    enter(Kind::Work, "cuCtxFromGreenCtx", |driver| context.set(driver.green(green)?.context))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGreenCtxStreamCreate(
    stream: Out<Handle>,
    green: Handle,
    flags: u32,
    priority: i32,
) -> Status {
    enter(Kind::Work, "cuGreenCtxStreamCreate", |driver| {
        let made = driver.create_green_stream(green, flags, priority)?;
        driver.note_stream(made);
        stream.set(made)
    })
}

/// Null where the stream is not of a green context.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamGetGreenCtx(stream: Handle, green: Out<Handle>) -> Status {
    super::stream::on_stream(Kind::Quiet, "cuStreamGetGreenCtx", stream, |driver, stream| {
        green.set(driver.stream_info(stream)?.green.unwrap_or_default())
    })
}
