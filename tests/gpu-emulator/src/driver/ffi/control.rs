//! Start-up, error texts, and the emulator's own entry points.
//!
//! The `forerun_emulator_*` symbols exist on no real driver. A program under test may look them up
//! to mark places in the log, name buffers, or ask for the report.

use super::Status;
use super::arguments::{Out, StaticText, Text};
use super::session::{self, Kind, enter};
use crate::driver::device;
use crate::driver::failure::{Code, Outcome, ensure, failure};
use crate::driver::settings::Injection;

/// Answers a call that needs no device.
pub(super) fn plain(name: &str, act: impl FnOnce() -> Outcome) -> Status {
    match act() {
        Ok(()) => Code::Success as Status,
        Err(failure) => {
            if !failure.reason.is_empty() {
                eprintln!("forerun emulator: {name}: {failure}");
            }
            failure.code as Status
        }
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuInit(flags: u32) -> Status {
    plain("cuInit", || {
        ensure!(flags == 0, InvalidValue, "flags {flags:#x}");
        session::initialise()
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(version: Out<i32>) -> Status {
    plain("cuDriverGetVersion", || version.set(device::DRIVER_VERSION))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(error: u32, name: Out<StaticText>) -> Status {
    plain("cuGetErrorName", || {
        let code = Code::from_number(error);
        name.set(code.map_or(StaticText::NULL, |code| StaticText::of(code.name())))?;
        code.map(|_| ()).ok_or_else(|| Code::InvalidValue.into())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(error: u32, text: Out<StaticText>) -> Status {
    plain("cuGetErrorString", || {
        let code = Code::from_number(error);
        text.set(code.map_or(StaticText::NULL, |code| StaticText::of(code.text())))?;
        code.map(|_| ()).ok_or_else(|| Code::InvalidValue.into())
    })
}

/// Marks a place in the log.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forerun_emulator_mark(text: Text) -> Status {
    enter(Kind::Anytime, "forerun_emulator_mark", |driver| {
        let text = text.read()?;
        driver.report.mark(&text);
        Ok(())
    })
}

/// Names the allocation that starts at `address`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forerun_emulator_label(address: u64, label: Text) -> Status {
    enter(Kind::Anytime, "forerun_emulator_label", |driver| {
        let label = label.read()?;
        driver.label(address, &label)
    })
}

/// Names a part of an allocation and gives it bounds of its own: from then on an access to that
/// allocation must lie inside one named part.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forerun_emulator_carve(address: u64, bytes: u64, label: Text) -> Status {
    enter(Kind::Anytime, "forerun_emulator_carve", |driver| {
        let label = label.read()?;
        driver.carve(address, bytes, &label)
    })
}

/// Declares a range of device memory unwritten, as when a buffer changes hands.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forerun_emulator_forget(address: u64, bytes: u64) -> Status {
    enter(Kind::Anytime, "forerun_emulator_forget", |driver| driver.forget_contents(address, bytes))
}

/// Schedules from now on by another seed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forerun_emulator_set_seed(seed: u64) -> Status {
    enter(Kind::Anytime, "forerun_emulator_set_seed", |driver| {
        driver.reseed(seed);
        Ok(())
    })
}

/// Makes a launch fail: `kernel_name:N`, counted from now on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forerun_emulator_fail(injection: Text) -> Status {
    enter(Kind::Anytime, "forerun_emulator_fail", |driver| {
        let injection = Injection::parse(&injection.read()?)?;
        driver.inject(injection);
        Ok(())
    })
}

/// Throws the device away and makes a fresh one from the environment, where `overrides`, written
/// `NAME=value` with blanks between them, win. Every handle becomes stale.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forerun_emulator_reset(overrides: Text) -> Status {
    plain("forerun_emulator_reset", || {
        let text = overrides.read()?;
        let pairs = text.split_whitespace().map(|word| {
            word.split_once('=').ok_or_else(|| {
                failure(Code::InvalidValue, format!("{word:?}; expected NAME=value"))
            })
        });
        session::reset(&pairs.collect::<Outcome<Vec<_>>>()?)
    })
}

/// Forgets the kernels, calls and failures reported so far.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forerun_emulator_clear_report() -> Status {
    enter(Kind::Anytime, "forerun_emulator_clear_report", |driver| {
        driver.report.clear();
        Ok(())
    })
}

/// Writes the report to the file `FORERUN_EMULATOR_REPORT` names.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forerun_emulator_write_report() -> Status {
    plain("forerun_emulator_write_report", || session::write_report(None))
}

/// Writes the report to a file.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forerun_emulator_write_report_to(path: Text) -> Status {
    plain("forerun_emulator_write_report_to", || {
        let path = path.read()?;
        session::write_report(Some(path.as_ref()))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuProfilerStart() -> Status {
    enter(Kind::Work, "cuProfilerStart", |_| Ok(()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuProfilerStop() -> Status {
    enter(Kind::Work, "cuProfilerStop", |_| Ok(()))
}

/// The failure of a call that is not emulated.
pub(super) fn unsupported(what: &str) -> crate::driver::failure::Failure {
    failure(Code::NotSupported, format!("{what} is not emulated"))
}
