//! `cuOccupancy*`: upper bounds, because PTX does not say how many registers a thread takes.

use super::Status;
use super::arguments::Out;
use super::session::{Kind, Session, enter};
use crate::driver::failure::{Outcome, ensure};
use crate::driver::state::handles::Handle;

/// `CUoccupancyB2DSize`: dynamic shared memory for a block of so many threads.
pub type SharedBytesOfBlock = unsafe extern "C" fn(i32) -> usize;

fn blocks(driver: &Session, function: Handle, threads: i32, shared: usize) -> Outcome<i32> {
    ensure!(threads > 0, InvalidValue, "a block of {threads} threads");
    let shared = u32::try_from(shared).unwrap_or(u32::MAX >> 1);
    Ok(driver.blocks_per_sm(function, threads as u32, shared)? as i32)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
    count: Out<i32>,
    function: Handle,
    threads: i32,
    dynamic_shared_bytes: usize,
) -> Status {
    enter(Kind::Quiet, "cuOccupancyMaxActiveBlocksPerMultiprocessor", |driver| {
        count.set(blocks(driver, function, threads, dynamic_shared_bytes)?)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    count: Out<i32>,
    function: Handle,
    threads: i32,
    dynamic_shared_bytes: usize,
    _flags: u32,
) -> Status {
    enter(Kind::Quiet, "cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags", |driver| {
        count.set(blocks(driver, function, threads, dynamic_shared_bytes)?)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuOccupancyAvailableDynamicSMemPerBlock(
    bytes: Out<usize>,
    function: Handle,
    blocks: i32,
    threads: i32,
) -> Status {
    enter(Kind::Quiet, "cuOccupancyAvailableDynamicSMemPerBlock", |driver| {
        ensure!(blocks > 0 && threads > 0, InvalidValue, "{blocks} blocks of {threads} threads");
        let share = driver.dynamic_shared_bytes_for(function, blocks as u32, threads as u32)?;
        bytes.set(share as usize)
    })
}

fn potential(
    name: &'static str,
    grid: Out<i32>,
    block: Out<i32>,
    function: Handle,
    shared_of: Option<SharedBytesOfBlock>,
    dynamic_shared_bytes: usize,
    limit: i32,
) -> Status {
    enter(Kind::Quiet, name, |driver| {
        let shared = |threads: u32| match shared_of {
            // SAFETY: by contract the function may be called with any block size.
            Some(shared_of) => unsafe { shared_of(threads as i32) as u32 },
            None => dynamic_shared_bytes as u32,
        };
        let limit = u32::try_from(limit).unwrap_or_default();
        let (blocks, threads) = driver.best_block(function, limit, shared)?;
        grid.set(blocks as i32)?;
        block.set(threads as i32)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuOccupancyMaxPotentialBlockSize(
    grid: Out<i32>,
    block: Out<i32>,
    function: Handle,
    shared_of: Option<SharedBytesOfBlock>,
    dynamic_shared_bytes: usize,
    limit: i32,
) -> Status {
    let name = "cuOccupancyMaxPotentialBlockSize";
    potential(name, grid, block, function, shared_of, dynamic_shared_bytes, limit)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuOccupancyMaxPotentialBlockSizeWithFlags(
    grid: Out<i32>,
    block: Out<i32>,
    function: Handle,
    shared_of: Option<SharedBytesOfBlock>,
    dynamic_shared_bytes: usize,
    limit: i32,
    _flags: u32,
) -> Status {
    let name = "cuOccupancyMaxPotentialBlockSizeWithFlags";
    potential(name, grid, block, function, shared_of, dynamic_shared_bytes, limit)
}
