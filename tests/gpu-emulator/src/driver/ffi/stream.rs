//! `cuStream*`: queues, their waits, and capture.

use super::Status;
use super::arguments::{Bytes, Out};
use super::session::{Kind, Session, enter};
use crate::driver::failure::{Code, Outcome, ensure, failure};
use crate::driver::state::capture::Mode;
use crate::driver::state::handles::Handle;
use crate::driver::state::work::{HostCall, HostFunction, Work};

/// A call about a stream: resolved, and noted in the log.
pub(super) fn on_stream(
    kind: Kind,
    name: &'static str,
    stream: Handle,
    act: impl FnOnce(&mut Session, Handle) -> Outcome,
) -> Status {
    enter(kind, name, |driver| {
        let stream = driver.stream(stream)?;
        driver.note_stream(stream);
        act(driver, stream)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreate(stream: Out<Handle>, flags: u32) -> Status {
    enter(Kind::Work, "cuStreamCreate", |driver| {
        let made = driver.create_stream(flags, 0)?;
        driver.note_stream(made);
        stream.set(made)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreateWithPriority(
    stream: Out<Handle>,
    flags: u32,
    priority: i32,
) -> Status {
    enter(Kind::Work, "cuStreamCreateWithPriority", |driver| {
        let made = driver.create_stream(flags, priority)?;
        driver.note_stream(made);
        stream.set(made)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamDestroy_v2(stream: Handle) -> Status {
    on_stream(Kind::Work, "cuStreamDestroy_v2", stream, |driver, stream| {
        driver.destroy_stream(stream)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamSynchronize(stream: Handle) -> Status {
    on_stream(Kind::Work, "cuStreamSynchronize", stream, |driver, stream| {
        driver.call.host_sync = true;
        let targets = driver.stream_targets(stream)?;
        driver.complete(&targets)
    })
}

/// Answers whether everything is done, then lets the device advance: a host that polls sees the
/// end some polls later.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamQuery(stream: Handle) -> Status {
    on_stream(Kind::Work, "cuStreamQuery", stream, |driver, stream| {
        let targets = driver.stream_targets(stream)?;
        let Some(target) = targets.last() else { return Ok(()) };
        driver.advance(*target);
        driver.healthy()?;
        Err(Code::NotReady.into())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamWaitEvent(stream: Handle, event: Handle, flags: u32) -> Status {
    on_stream(Kind::Work, "cuStreamWaitEvent", stream, |driver, stream| {
        ensure!(flags == 0, NotSupported, "wait flags {flags:#x} are not emulated");
        driver.wait_event(stream, event)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamGetPriority(stream: Handle, priority: Out<i32>) -> Status {
    on_stream(Kind::Quiet, "cuStreamGetPriority", stream, |driver, stream| {
        priority.set(driver.stream_info(stream)?.priority)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamGetFlags(stream: Handle, flags: Out<u32>) -> Status {
    on_stream(Kind::Quiet, "cuStreamGetFlags", stream, |driver, stream| {
        flags.set(driver.stream_info(stream)?.flags)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamGetCtx(stream: Handle, context: Out<Handle>) -> Status {
    on_stream(Kind::Quiet, "cuStreamGetCtx", stream, |driver, stream| {
        context.set(driver.stream_info(stream)?.context)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamGetId(stream: Handle, id: Out<u64>) -> Status {
    on_stream(Kind::Quiet, "cuStreamGetId", stream, |driver, stream| {
        id.set(u64::from(driver.stream_number(stream)))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamGetDevice(stream: Handle, device: Out<i32>) -> Status {
    on_stream(Kind::Quiet, "cuStreamGetDevice", stream, |_, _| device.set(0))
}

/// Accepted and without effect: there is no managed memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamAttachMemAsync(
    stream: Handle,
    _address: u64,
    _bytes: usize,
    _flags: u32,
) -> Status {
    on_stream(Kind::Work, "cuStreamAttachMemAsync", stream, |_, _| {
        Err(super::control::unsupported("managed memory"))
    })
}

fn mode_of(mode: u32) -> Outcome<Mode> {
    match mode {
        0 => Ok(Mode::Global),
        1 => Ok(Mode::ThreadLocal),
        2 => Ok(Mode::Relaxed),
        other => Err(failure(Code::InvalidValue, format!("capture mode {other}"))),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamBeginCapture_v2(stream: Handle, mode: u32) -> Status {
    on_stream(Kind::Work, "cuStreamBeginCapture_v2", stream, |driver, stream| {
        driver.begin_capture(stream, mode_of(mode)?)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamEndCapture(stream: Handle, graph: Out<Handle>) -> Status {
    on_stream(Kind::Work, "cuStreamEndCapture", stream, |driver, stream| {
        graph.set(Handle::NULL)?;
        let made = driver.end_capture(stream)?;
        graph.set(made)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamIsCapturing(stream: Handle, status: Out<u32>) -> Status {
    on_stream(Kind::Quiet, "cuStreamIsCapturing", stream, |driver, stream| {
        status.set(driver.capture_status(stream)?.0 as u32)
    })
}

fn capture_info(
    name: &'static str,
    stream: Handle,
    status: Out<u32>,
    id: Out<u64>,
    wants_more: bool,
) -> Status {
    on_stream(Kind::Quiet, name, stream, |driver, stream| {
        let (state, number) = driver.capture_status(stream)?;
        ensure!(!wants_more, NotSupported, "the graph of a running capture is not emulated");
        status.set(state as u32)?;
        id.set_if_wanted(number);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamGetCaptureInfo_v2(
    stream: Handle,
    status: Out<u32>,
    id: Out<u64>,
    graph: Out<Handle>,
    dependencies: Bytes,
    _count: Out<usize>,
) -> Status {
    let more = !graph.is_null() || dependencies.address() != 0;
    capture_info("cuStreamGetCaptureInfo_v2", stream, status, id, more)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamGetCaptureInfo_v3(
    stream: Handle,
    status: Out<u32>,
    id: Out<u64>,
    graph: Out<Handle>,
    dependencies: Bytes,
    _edges: Bytes,
    _count: Out<usize>,
) -> Status {
    let more = !graph.is_null() || dependencies.address() != 0;
    capture_info("cuStreamGetCaptureInfo_v3", stream, status, id, more)
}

/// The function runs outside the lock, when its turn has come, on the thread that drives the
/// device then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchHostFunc(
    stream: Handle,
    function: Option<HostFunction>,
    data: Bytes,
) -> Status {
    on_stream(Kind::Work, "cuLaunchHostFunc", stream, |driver, stream| {
        let function =
            function.ok_or_else(|| failure(Code::InvalidValue, "a null host function"))?;
        let call = HostCall { function, data: data.address() };
        driver.enqueue(stream, Work::Host(call)).map(|_| ())
    })
}
