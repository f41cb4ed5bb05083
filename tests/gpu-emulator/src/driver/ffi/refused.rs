//! Entry points a runtime may ask for and must do without: each answers "not supported".
//!
//! They are here so that a caller gets a code and a sentence instead of a missing symbol.

use super::Status;
use super::control::unsupported;
use super::session::{Kind, enter};

macro_rules! refused {
    ($($name:ident ($($argument:ty),*): $what:literal;)*) => { $(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($(_: $argument),*) -> Status {
            enter(Kind::Work, stringify!($name), |_| Err(unsupported($what)))
        }
    )* };
}

// The arguments are never looked at: every one is a register's worth.
refused! {
    cuTensorMapEncodeTiled(usize, u32, u32, usize, usize, usize, usize, usize, u32, u32, u32, u32):
        "a tensor map";
    cuTensorMapReplaceAddress(usize, usize): "a tensor map";
    cuLinkCreate_v2(u32, usize, usize, usize): "the linker";
    cuMemPoolCreate(usize, usize): "a memory pool beside the default one";
    cuMemPoolDestroy(usize): "a memory pool beside the default one";
    cuMemAdvise_v2(u64, usize, u32, u64): "managed memory";
    cuMemPrefetchAsync_v2(u64, usize, u64, u32, usize): "managed memory";
    cuImportExternalMemory(usize, usize): "external memory";
    cuDestroyExternalMemory(usize): "external memory";
    cuExternalMemoryGetMappedBuffer(usize, usize, usize): "external memory";
    cuOccupancyMaxActiveClusters(usize, usize, usize): "clusters";
    cuOccupancyMaxPotentialClusterSize(usize, usize, usize): "clusters";
    cuGraphAddMemcpyNode(usize, usize, usize, usize, usize, usize): "a hand-made copy node";
    cuGraphAddDependencies(usize, usize, usize, usize): "a dependency added later";
    cuGraphClone(usize, usize): "a clone of a graph";
    cuStreamBeginCaptureToGraph(usize, usize, usize, usize, usize, u32): "capture into a graph";
    cuLibraryLoadData(usize, usize, usize, usize, u32, usize, usize, u32): "a CUlibrary";
    cuGetExportTable(usize, usize): "the table of undocumented functions";
    cuCtxEnablePeerAccess(usize, u32): "a second device";
    cuDeviceCanAccessPeer(usize, i32, i32): "a second device";
    cuIpcGetMemHandle(usize, u64): "another process";
}
