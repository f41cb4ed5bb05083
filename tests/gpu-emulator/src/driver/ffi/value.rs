//! `cuStreamWriteValue*`, `cuStreamWaitValue*` and their batches: words of device memory as
//! signals.

use super::Status;
use super::arguments::In;
use super::session::{Kind, Session};
use super::stream::on_stream;
use crate::driver::failure::{Code, Outcome, ensure, failure};
use crate::driver::state::handles::Handle;
use crate::driver::state::work::{Comparison, Word, Work};

const FLUSH: u32 = 1 << 30;

fn write(driver: &mut Session, stream: Handle, word: Word, flags: u32) -> Outcome {
    ensure!(flags & !1 == 0, InvalidValue, "write flags {flags:#x}");
    driver.check_word(&word)?;
    driver.enqueue(stream, Work::WriteWord(word)).map(|_| ())
}

fn wait(driver: &mut Session, stream: Handle, word: Word, flags: u32) -> Outcome {
    let comparison = match flags & !FLUSH {
        0 => Comparison::AtLeast,
        1 => Comparison::Equal,
        2 => Comparison::And,
        3 => Comparison::Nor,
        other => return Err(failure(Code::InvalidValue, format!("wait flags {other:#x}"))),
    };
    driver.check_word(&word)?;
    driver.enqueue(stream, Work::WaitWord(word, comparison)).map(|_| ())
}

fn narrow(address: u64, value: u32) -> Word {
    Word { address, value: value.into(), bytes: 4 }
}

fn wide(address: u64, value: u64) -> Word {
    Word { address, value, bytes: 8 }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamWriteValue32_v2(
    stream: Handle,
    address: u64,
    value: u32,
    flags: u32,
) -> Status {
    on_stream(Kind::Work, "cuStreamWriteValue32_v2", stream, |driver, stream| {
        write(driver, stream, narrow(address, value), flags)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamWriteValue64_v2(
    stream: Handle,
    address: u64,
    value: u64,
    flags: u32,
) -> Status {
    on_stream(Kind::Work, "cuStreamWriteValue64_v2", stream, |driver, stream| {
        write(driver, stream, wide(address, value), flags)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamWaitValue32_v2(
    stream: Handle,
    address: u64,
    value: u32,
    flags: u32,
) -> Status {
    on_stream(Kind::Work, "cuStreamWaitValue32_v2", stream, |driver, stream| {
        wait(driver, stream, narrow(address, value), flags)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamWaitValue64_v2(
    stream: Handle,
    address: u64,
    value: u64,
    flags: u32,
) -> Status {
    on_stream(Kind::Work, "cuStreamWaitValue64_v2", stream, |driver, stream| {
        wait(driver, stream, wide(address, value), flags)
    })
}

/// `CUstreamBatchMemOpParams`: a union of 48 bytes whose members agree on where things are.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct MemoryOperation {
    operation: u32,
    padding: u32,
    address: u64,
    value: u64,
    flags: u32,
    padding_behind: u32,
    rest: [u64; 2],
}

const _: () = assert!(size_of::<MemoryOperation>() == 48);

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamBatchMemOp_v2(
    stream: Handle,
    count: u32,
    operations: In<MemoryOperation>,
    flags: u32,
) -> Status {
    on_stream(Kind::Work, "cuStreamBatchMemOp_v2", stream, |driver, stream| {
        ensure!(flags == 0 && count <= 256, InvalidValue, "{count} operations, flags {flags:#x}");
        for item in operations.all(count as usize)? {
            let MemoryOperation { operation, address, value, flags, .. } = item;
            match operation {
                1 => wait(driver, stream, narrow(address, value as u32), flags)?,
                2 => write(driver, stream, narrow(address, value as u32), flags)?,
                4 => wait(driver, stream, wide(address, value), flags)?,
                5 => write(driver, stream, wide(address, value), flags)?,
                3 | 6 => {}
                other => {
                    let reason = format!("memory operation {other}");
                    return Err(failure(Code::InvalidValue, reason));
                }
            }
        }
        Ok(())
    })
}
