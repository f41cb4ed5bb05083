//! `cuEvent*`: marks in streams.

use super::Status;
use super::arguments::Out;
use super::session::{Kind, enter};
use super::stream::on_stream;
use crate::driver::failure::{Code, ensure};
use crate::driver::state::handles::Handle;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventCreate(event: Out<Handle>, flags: u32) -> Status {
    enter(Kind::Work, "cuEventCreate", |driver| {
        let made = driver.create_event(flags)?;
        event.set(made)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventDestroy_v2(event: Handle) -> Status {
    enter(Kind::Work, "cuEventDestroy_v2", |driver| driver.destroy_event(event))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventRecord(event: Handle, stream: Handle) -> Status {
    on_stream(Kind::Work, "cuEventRecord", stream, |driver, stream| {
        driver.record_event(event, stream)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventRecordWithFlags(
    event: Handle,
    stream: Handle,
    flags: u32,
) -> Status {
    on_stream(Kind::Work, "cuEventRecordWithFlags", stream, |driver, stream| {
        ensure!(flags == 0, NotSupported, "record flags {flags:#x} are not emulated");
        driver.record_event(event, stream)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventSynchronize(event: Handle) -> Status {
    enter(Kind::Work, "cuEventSynchronize", |driver| {
        driver.call.host_sync = true;
        match driver.event_target(event)? {
            Some(target) => driver.complete(&[target]),
            None => Ok(()),
        }
    })
}

/// Answers whether the event has happened, then lets the device advance.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventQuery(event: Handle) -> Status {
    enter(Kind::Work, "cuEventQuery", |driver| {
        let Some(target) = driver.event_target(event)? else { return Ok(()) };
        if !driver.is_pending(target) {
            return Ok(());
        }
        driver.advance(target);
        driver.healthy()?;
        Err(Code::NotReady.into())
    })
}

/// A meaningless number: a thousandth for every operation enqueued between the two events.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime(
    milliseconds: Out<f32>,
    start: Handle,
    end: Handle,
) -> Status {
    enter(Kind::Work, "cuEventElapsedTime", |driver| {
        milliseconds.set(driver.event_milliseconds(start, end)?)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime_v2(
    milliseconds: Out<f32>,
    start: Handle,
    end: Handle,
) -> Status {
    enter(Kind::Work, "cuEventElapsedTime_v2", |driver| {
        milliseconds.set(driver.event_milliseconds(start, end)?)
    })
}
