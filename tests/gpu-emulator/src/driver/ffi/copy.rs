//! `cuMemcpy*` and `cuMemset*`.
//!
//! The synchronous ones are work of the default stream that the host waits for (device to device
//! and memsets excepted, which the hardware does not wait for either).

use super::Status;
use super::arguments::Bytes;
use super::session::{Kind, Session, enter};
use super::stream::on_stream;
use crate::driver::failure::{Outcome, ensure};
use crate::driver::state::copy::Copied;
use crate::driver::state::handles::Handle;
use crate::driver::state::host_memory::HostSpan;
use crate::driver::state::work::Fill;

/// The caller's host memory.
fn span(host: Bytes, bytes: usize) -> Outcome<HostSpan> {
    ensure!(host.address() != 0 || bytes == 0, InvalidValue, "a null pointer to host memory");
    // SAFETY: the contract of the copies: the range is valid, and until a pinned copy has finished
    // nobody else touches it.
    Ok(unsafe { HostSpan::new(host.address(), bytes) })
}

/// Notes a copy in the log and waits for it where it must be waited for.
fn settle(driver: &mut Session, copied: Copied, wait: bool) -> Outcome {
    driver.call.pageable = copied.pageable;
    match copied.operation {
        Some(operation) if wait => {
            driver.call.host_sync = true;
            driver.complete(&[operation])
        }
        _ => Ok(()),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// The call returns when the copy is done.
    Always,
    /// The call returns at once, unless pageable memory forbids it.
    ForPageable,
}

fn upload(
    name: &'static str,
    stream: Handle,
    destination: u64,
    source: Bytes,
    bytes: usize,
    wait: Wait,
) -> Status {
    on_stream(Kind::Work, name, stream, |driver, stream| {
        driver.call.bytes = Some(bytes as u64);
        let copied = driver.upload(stream, destination, span(source, bytes)?)?;
        // Pageable bytes are staged at the call, so an asynchronous upload never waits.
        settle(driver, copied, wait == Wait::Always)
    })
}

fn download(
    name: &'static str,
    stream: Handle,
    destination: Bytes,
    source: u64,
    bytes: usize,
    wait: Wait,
) -> Status {
    on_stream(Kind::Work, name, stream, |driver, stream| {
        driver.call.bytes = Some(bytes as u64);
        let copied = driver.download(stream, span(destination, bytes)?, source)?;
        settle(driver, copied, wait == Wait::Always || copied.pageable)
    })
}

fn within(name: &'static str, stream: Handle, to: u64, from: u64, bytes: usize) -> Status {
    on_stream(Kind::Work, name, stream, |driver, stream| {
        driver.call.bytes = Some(bytes as u64);
        let copied = driver.copy(stream, to, from, bytes as u64)?;
        settle(driver, copied, false)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoD_v2(to: u64, from: Bytes, bytes: usize) -> Status {
    upload("cuMemcpyHtoD_v2", Handle::NULL, to, from, bytes, Wait::Always)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoDAsync_v2(
    to: u64,
    from: Bytes,
    bytes: usize,
    stream: Handle,
) -> Status {
    upload("cuMemcpyHtoDAsync_v2", stream, to, from, bytes, Wait::ForPageable)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoH_v2(to: Bytes, from: u64, bytes: usize) -> Status {
    download("cuMemcpyDtoH_v2", Handle::NULL, to, from, bytes, Wait::Always)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoHAsync_v2(
    to: Bytes,
    from: u64,
    bytes: usize,
    stream: Handle,
) -> Status {
    download("cuMemcpyDtoHAsync_v2", stream, to, from, bytes, Wait::ForPageable)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) -> Status {
    within("cuMemcpyDtoD_v2", Handle::NULL, to, from, bytes)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoDAsync_v2(
    to: u64,
    from: u64,
    bytes: usize,
    stream: Handle,
) -> Status {
    within("cuMemcpyDtoDAsync_v2", stream, to, from, bytes)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyPeerAsync(
    to: u64,
    _to_context: Handle,
    from: u64,
    _from_context: Handle,
    bytes: usize,
    stream: Handle,
) -> Status {
    within("cuMemcpyPeerAsync", stream, to, from, bytes)
}

/// A copy whose addresses say where they are.
fn unified(
    name: &'static str,
    stream: Handle,
    to: u64,
    from: u64,
    bytes: usize,
    wait: Wait,
) -> Status {
    on_stream(Kind::Work, name, stream, |driver, stream| {
        driver.call.bytes = Some(bytes as u64);
        // SAFETY: as in `span`; an address the device does not have is the host's.
        let host = |address: u64| unsafe { HostSpan::new(address as usize, bytes) };
        let copied = match (driver.is_device_address(to), driver.is_device_address(from)) {
            (true, true) => driver.copy(stream, to, from, bytes as u64)?,
            (true, false) => driver.upload(stream, to, host(from))?,
            (false, true) => driver.download(stream, host(to), from)?,
            (false, false) => driver.host_copy(stream, host(to), host(from))?,
        };
        settle(driver, copied, wait == Wait::Always || copied.pageable)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpy(to: u64, from: u64, bytes: usize) -> Status {
    unified("cuMemcpy", Handle::NULL, to, from, bytes, Wait::Always)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyAsync(to: u64, from: u64, bytes: usize, stream: Handle) -> Status {
    unified("cuMemcpyAsync", stream, to, from, bytes, Wait::ForPageable)
}

fn fill(name: &'static str, stream: Handle, fill: Fill) -> Status {
    on_stream(Kind::Work, name, stream, |driver, stream| {
        driver.call.bytes = Some(fill.bytes());
        driver.fill(stream, fill).map(|_| ())
    })
}

fn row(destination: u64, value: u32, element_bytes: u32, count: usize) -> Fill {
    let width = count as u64;
    Fill { destination, value, element_bytes, width, height: 1, pitch_bytes: 0 }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemsetD8_v2(to: u64, value: u8, count: usize) -> Status {
    fill("cuMemsetD8_v2", Handle::NULL, row(to, value.into(), 1, count))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemsetD16_v2(to: u64, value: u16, count: usize) -> Status {
    fill("cuMemsetD16_v2", Handle::NULL, row(to, value.into(), 2, count))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemsetD32_v2(to: u64, value: u32, count: usize) -> Status {
    fill("cuMemsetD32_v2", Handle::NULL, row(to, value, 4, count))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemsetD8Async(
    to: u64,
    value: u8,
    count: usize,
    stream: Handle,
) -> Status {
    fill("cuMemsetD8Async", stream, row(to, value.into(), 1, count))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemsetD16Async(
    to: u64,
    value: u16,
    count: usize,
    stream: Handle,
) -> Status {
    fill("cuMemsetD16Async", stream, row(to, value.into(), 2, count))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemsetD32Async(
    to: u64,
    value: u32,
    count: usize,
    stream: Handle,
) -> Status {
    fill("cuMemsetD32Async", stream, row(to, value, 4, count))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemsetD2D8Async(
    destination: u64,
    pitch: usize,
    value: u8,
    width: usize,
    height: usize,
    stream: Handle,
) -> Status {
    let rows = Fill {
        height: height as u64,
        pitch_bytes: pitch as u64,
        ..row(destination, value.into(), 1, width)
    };
    fill("cuMemsetD2D8Async", stream, rows)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemsetD2D32Async(
    destination: u64,
    pitch: usize,
    value: u32,
    width: usize,
    height: usize,
    stream: Handle,
) -> Status {
    let rows = Fill {
        height: height as u64,
        pitch_bytes: pitch as u64,
        ..row(destination, value, 4, width)
    };
    fill("cuMemsetD2D32Async", stream, rows)
}

/// Accepted and without effect: there is one kind of memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxResetPersistingL2Cache() -> Status {
    enter(Kind::Quiet, "cuCtxResetPersistingL2Cache", |_| Ok(()))
}
