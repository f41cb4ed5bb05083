//! `cuDevice*`: what the device is.

use super::Status;
use super::arguments::Out;
use super::session::{Kind, Session, enter};
use crate::driver::device;
use crate::driver::failure::{Code, Outcome, ensure, failure};
use crate::driver::state::handles::Handle;

fn check(device: i32) -> Outcome {
    ensure!(device == 0, InvalidDevice, "device {device}; there is one, number 0");
    Ok(())
}

/// Answers a question about device 0.
fn ask(name: &'static str, device: i32, act: impl FnOnce(&mut Session) -> Outcome) -> Status {
    enter(Kind::Query, name, |driver| {
        check(device)?;
        act(driver)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(count: Out<i32>) -> Status {
    enter(Kind::Query, "cuDeviceGetCount", |_| count.set(1))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(device: Out<i32>, ordinal: i32) -> Status {
    ask("cuDeviceGet", ordinal, |_| device.set(0))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(name: Out<u8>, length: i32, device: i32) -> Status {
    ask("cuDeviceGetName", device, |_| {
        let room = usize::try_from(length).unwrap_or_default();
        ensure!(room > 0, InvalidValue, "no room for a name");
        let mut text = device::NAME.as_bytes().to_vec();
        text.truncate(room - 1);
        text.push(0);
        name.set_all(&text)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetUuid(uuid: Out<[u8; 16]>, device: i32) -> Status {
    ask("cuDeviceGetUuid", device, |_| uuid.set(device::UUID))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetUuid_v2(uuid: Out<[u8; 16]>, device: i32) -> Status {
    ask("cuDeviceGetUuid_v2", device, |_| uuid.set(device::UUID))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: Out<usize>, device: i32) -> Status {
    ask("cuDeviceTotalMem_v2", device, |driver| bytes.set(driver.memory_info().1 as usize))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetAttribute(
    value: Out<i32>,
    attribute: u32,
    device: i32,
) -> Status {
    ask("cuDeviceGetAttribute", device, |driver| {
        let answer = device::attribute(&driver.settings, attribute);
        value.set(answer.ok_or_else(|| {
            failure(Code::InvalidValue, format!("there is no device attribute {attribute}"))
        })?)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetPCIBusId(text: Out<u8>, length: i32, device: i32) -> Status {
    ask("cuDeviceGetPCIBusId", device, |_| {
        ensure!(length >= 13, InvalidValue, "room for {length} bytes; 13 are needed");
        text.set_all(b"0000:00:00.0\0")
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetDefaultMemPool(pool: Out<Handle>, device: i32) -> Status {
    ask("cuDeviceGetDefaultMemPool", device, |driver| pool.set(driver.default_pool()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetMemPool(pool: Out<Handle>, device: i32) -> Status {
    ask("cuDeviceGetMemPool", device, |driver| pool.set(driver.default_pool()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceSetMemPool(device: i32, pool: Handle) -> Status {
    ask("cuDeviceSetMemPool", device, |driver| driver.check_pool(pool))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: Out<Handle>, device: i32) -> Status {
    enter(Kind::Work, "cuDevicePrimaryCtxRetain", |driver| {
        check(device)?;
        ensure!(!context.is_null(), InvalidValue, "a null pointer for the context");
        context.set(driver.retain_primary())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRelease_v2(device: i32) -> Status {
    enter(Kind::Work, "cuDevicePrimaryCtxRelease_v2", |driver| {
        check(device)?;
        driver.complete_everything()?;
        driver.release_primary()
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxGetState(
    device: i32,
    flags: Out<u32>,
    active: Out<i32>,
) -> Status {
    ask("cuDevicePrimaryCtxGetState", device, |driver| {
        flags.set(driver.primary().flags)?;
        active.set(i32::from(driver.primary().is_active()))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxSetFlags_v2(device: i32, flags: u32) -> Status {
    ask("cuDevicePrimaryCtxSetFlags_v2", device, |driver| {
        driver.primary_mut().flags = flags;
        let primary = driver.primary_handle();
        match primary {
            Some(context) => {
                driver.context_mut(context)?.flags = flags;
                Ok(())
            }
            None => Ok(()),
        }
    })
}
