//! `cuMem*` that allocate, free and describe memory, of the device and pinned.

use super::Status;
use super::arguments::{Bytes, Out};
use super::control::unsupported;
use super::session::{Kind, Session, enter};
use super::stream::on_stream;
use crate::driver::failure::{Code, Outcome, ensure, failure};
use crate::driver::state::handles::Handle;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(address: Out<u64>, bytes: usize) -> Status {
    enter(Kind::Work, "cuMemAlloc_v2", |driver| {
        driver.call.bytes = Some(bytes as u64);
        let made = driver.allocate(bytes as u64, "")?;
        address.set(made)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocPitch_v2(
    address: Out<u64>,
    pitch: Out<usize>,
    width_bytes: usize,
    height: usize,
    element_bytes: u32,
) -> Status {
    enter(Kind::Work, "cuMemAllocPitch_v2", |driver| {
        ensure!([4, 8, 16].contains(&element_bytes), InvalidValue, "elements of {element_bytes}");
        let row_bytes = width_bytes.next_multiple_of(512);
        let made = driver.allocate((row_bytes * height) as u64, "")?;
        pitch.set(row_bytes)?;
        address.set(made)
    })
}

/// Waits for the whole device first, as the hardware's driver does.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFree_v2(address: u64) -> Status {
    enter(Kind::Work, "cuMemFree_v2", |driver| {
        if address == 0 {
            return Ok(());
        }
        driver.check_free(address)?;
        driver.complete_everything()?;
        driver.free(address)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocAsync(
    address: Out<u64>,
    bytes: usize,
    stream: Handle,
) -> Status {
    on_stream(Kind::Work, "cuMemAllocAsync", stream, |driver, stream| {
        driver.call.bytes = Some(bytes as u64);
        let made = driver.allocate_async(stream, bytes as u64, "")?;
        address.set(made)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocFromPoolAsync(
    address: Out<u64>,
    bytes: usize,
    pool: Handle,
    stream: Handle,
) -> Status {
    on_stream(Kind::Work, "cuMemAllocFromPoolAsync", stream, |driver, stream| {
        driver.check_pool(pool)?;
        driver.call.bytes = Some(bytes as u64);
        let made = driver.allocate_async(stream, bytes as u64, "")?;
        address.set(made)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFreeAsync(address: u64, stream: Handle) -> Status {
    on_stream(Kind::Work, "cuMemFreeAsync", stream, |driver, stream| {
        driver.free_async(stream, address)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) -> Status {
    enter(Kind::Quiet, "cuMemGetInfo_v2", |driver| {
        driver.current_context()?;
        let (free_bytes, total_bytes) = driver.memory_info();
        free.set(free_bytes as usize)?;
        total.set(total_bytes as usize)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetAddressRange_v2(
    base: Out<u64>,
    bytes: Out<usize>,
    address: u64,
) -> Status {
    enter(Kind::Quiet, "cuMemGetAddressRange_v2", |driver| {
        let found = driver.memory.allocation(address);
        let found =
            found.ok_or_else(|| failure(Code::NotFound, driver.memory.describe(address)))?;
        base.set_if_wanted(found.base);
        bytes.set_if_wanted(found.bytes as usize);
        Ok(())
    })
}

fn pinned(driver: &mut Session, result: Out<usize>, bytes: usize, flags: u32) -> Outcome {
    driver.call.bytes = Some(bytes as u64);
    ensure!(!result.is_null(), InvalidValue, "a null pointer for the address");
    let host = driver.allocate_pinned(bytes, flags)?;
    result.set(host)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocHost_v2(host: Out<usize>, bytes: usize) -> Status {
    enter(Kind::Work, "cuMemAllocHost_v2", |driver| pinned(driver, host, bytes, 0))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostAlloc(host: Out<usize>, bytes: usize, flags: u32) -> Status {
    enter(Kind::Work, "cuMemHostAlloc", |driver| {
        ensure!(flags & !7 == 0, InvalidValue, "flags {flags:#x}");
        pinned(driver, host, bytes, flags)
    })
}

/// Waits for the whole device first: a copy may still use the block.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFreeHost(host: Bytes) -> Status {
    enter(Kind::Work, "cuMemFreeHost", |driver| {
        driver.complete_everything()?;
        driver.free_pinned(host.address())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostRegister_v2(host: Bytes, bytes: usize, flags: u32) -> Status {
    enter(Kind::Work, "cuMemHostRegister_v2", |driver| {
        driver.call.bytes = Some(bytes as u64);
        driver.register_host(host.address(), bytes, flags)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostUnregister(host: Bytes) -> Status {
    enter(Kind::Work, "cuMemHostUnregister", |driver| {
        driver.complete_everything()?;
        driver.unregister_host(host.address())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostGetDevicePointer_v2(
    address: Out<u64>,
    host: Bytes,
    flags: u32,
) -> Status {
    enter(Kind::Quiet, "cuMemHostGetDevicePointer_v2", |driver| {
        ensure!(flags == 0, InvalidValue, "flags {flags:#x}");
        address.set(driver.device_address_of_host(host.address())?)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostGetFlags(flags: Out<u32>, host: Bytes) -> Status {
    enter(Kind::Quiet, "cuMemHostGetFlags", |driver| {
        let block = driver.pinned_block(host.address());
        let block = block.ok_or_else(|| failure(Code::InvalidValue, "not pinned memory"))?;
        flags.set(block.flags)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocManaged(
    _address: Out<u64>,
    _bytes: usize,
    _flags: u32,
) -> Status {
    enter(Kind::Work, "cuMemAllocManaged", |_| Err(unsupported("managed memory")))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemPoolSetAttribute(pool: Handle, attribute: u32, _: Bytes) -> Status {
    enter(Kind::Quiet, "cuMemPoolSetAttribute", |driver| {
        driver.check_pool(pool)?;
        ensure!((1..=8).contains(&attribute), InvalidValue, "pool attribute {attribute}");
        Ok(())
    })
}

/// Usage attributes answer what the device has allocated; policies answer 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemPoolGetAttribute(
    pool: Handle,
    attribute: u32,
    value: Out<u64>,
) -> Status {
    enter(Kind::Quiet, "cuMemPoolGetAttribute", |driver| {
        driver.check_pool(pool)?;
        let (free, total) = driver.memory_info();
        match attribute {
            1..=3 => Out::<i32>::from(value).set(0),
            4 => value.set(0),
            5..=8 => value.set(total - free),
            other => Err(failure(Code::InvalidValue, format!("pool attribute {other}"))),
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemPoolTrimTo(pool: Handle, _bytes: usize) -> Status {
    enter(Kind::Quiet, "cuMemPoolTrimTo", |driver| driver.check_pool(pool))
}

/// Numbers of `CUpointer_attribute` that are answered.
mod pointer {
    pub(super) const CONTEXT: u32 = 1;
    pub(super) const MEMORY_TYPE: u32 = 2;
    pub(super) const DEVICE_POINTER: u32 = 3;
    pub(super) const HOST_POINTER: u32 = 4;
    pub(super) const IS_MANAGED: u32 = 8;
    pub(super) const DEVICE_ORDINAL: u32 = 9;
    pub(super) const RANGE_START_ADDR: u32 = 11;
    pub(super) const RANGE_SIZE: u32 = 12;
    pub(super) const MAPPED: u32 = 13;
}

/// What lies at an address: the device side, the host side, and the range.
struct Place {
    host: bool,
    device_address: u64,
    host_address: u64,
    start: u64,
    bytes: u64,
}

fn place(driver: &Session, address: u64) -> Outcome<Place> {
    if let Some(found) = driver.memory.allocation(address) {
        return Ok(Place {
            host: false,
            device_address: address,
            host_address: 0,
            start: found.base,
            bytes: found.bytes,
        });
    }
    let block = driver.pinned_block(address as usize).ok_or_else(|| {
        failure(Code::InvalidValue, format!("{address:#x} is no address the driver knows"))
    })?;
    let inside = address - block.host as u64;
    Ok(Place {
        host: true,
        device_address: block.device.map_or(0, |device| device + inside),
        host_address: address,
        start: block.host as u64,
        bytes: block.bytes as u64,
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuPointerGetAttribute(
    value: Out<u64>,
    attribute: u32,
    address: u64,
) -> Status {
    enter(Kind::Quiet, "cuPointerGetAttribute", |driver| {
        let place = place(driver, address)?;
        match attribute {
            pointer::CONTEXT => value.set(driver.current_root()?.0),
            pointer::MEMORY_TYPE => Out::<u32>::from(value).set(if place.host { 1 } else { 2 }),
            pointer::DEVICE_POINTER => value.set(place.device_address),
            pointer::HOST_POINTER if place.host => value.set(place.host_address),
            pointer::HOST_POINTER => Err(failure(Code::InvalidValue, "device memory only")),
            pointer::IS_MANAGED => Out::<u8>::from(value).set(0),
            pointer::DEVICE_ORDINAL => Out::<i32>::from(value).set(0),
            pointer::RANGE_START_ADDR => value.set(place.start),
            pointer::RANGE_SIZE => value.set(place.bytes),
            pointer::MAPPED => Out::<u8>::from(value).set(1),
            other => Err(unsupported(&format!("pointer attribute {other}"))),
        }
    })
}
