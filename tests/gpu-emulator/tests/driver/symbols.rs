//! The symbols themselves.

use super::support::*;
use cudarc::driver::sys;
use std::ffi::{CString, c_void};

/// Everything `cudarc` calls for what the runtime uses, and what the runtime calls beside it.
const NEEDED: &str = "
    cuInit cuDeviceGet cuDeviceGetAttribute cuDevicePrimaryCtxRetain cuDevicePrimaryCtxRelease_v2
    cuCtxGetCurrent cuCtxSetCurrent cuCtxSynchronize cuStreamCreate cuStreamCreateWithPriority
    cuStreamDestroy_v2 cuStreamWaitEvent cuStreamBeginCapture_v2 cuStreamEndCapture
    cuGraphInstantiateWithFlags cuGraphUpload cuGraphLaunch cuGraphExecDestroy cuGraphDestroy
    cuEventCreate cuEventRecord cuEventSynchronize cuEventElapsedTime cuEventDestroy_v2
    cuMemAllocAsync cuMemFreeAsync cuMemHostAlloc cuMemFreeHost cuMemcpyHtoDAsync_v2
    cuMemcpyDtoHAsync_v2 cuMemsetD8Async cuModuleLoadData cuModuleGetFunction cuModuleUnload
    cuFuncSetAttribute cuLaunchKernel cuDriverGetVersion cuDeviceGetCount cuDeviceGetName
    cuDeviceGetUuid cuDeviceGetUuid_v2 cuDeviceTotalMem_v2 cuCtxGetStreamPriorityRange
    cuCtxSetFlags cuCtxGetLimit cuCtxSetLimit cuStreamSynchronize cuStreamIsCapturing cuEventQuery
    cuEventElapsedTime_v2 cuMemAlloc_v2 cuMemFree_v2 cuMemGetInfo_v2 cuMemcpyHtoD_v2
    cuMemcpyDtoH_v2 cuMemcpyDtoD_v2 cuMemcpyDtoDAsync_v2 cuMemsetD8_v2 cuMemsetD32Async
    cuModuleLoad cuModuleGetGlobal_v2 cuFuncGetAttribute cuFuncSetCacheConfig
    cuLaunchCooperativeKernel cuLaunchHostFunc cuOccupancyMaxActiveBlocksPerMultiprocessor
    cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags cuOccupancyAvailableDynamicSMemPerBlock
    cuOccupancyMaxPotentialBlockSize cuGetErrorName cuGetErrorString cuDeviceGetDefaultMemPool
    cuMemPoolSetAttribute cuMemPoolTrimTo cuLaunchKernelEx cuMemHostGetDevicePointer_v2
    cuGraphExecKernelNodeSetParams_v2 cuGraphExecUpdate_v2 cuDeviceGetDevResource
    cuDevSmResourceSplitByCount cuDevResourceGenerateDesc cuGreenCtxCreate cuCtxFromGreenCtx
    cuGreenCtxStreamCreate cuGreenCtxDestroy cuTensorMapEncodeTiled cuCtxDestroy_v2
    cuStreamBatchMemOp_v2 cuGetProcAddress_v2 cuStreamGetPriority cuStreamGetFlags cuStreamGetCtx
    cuMemAllocHost_v2 cuMemGetAddressRange_v2 cuPointerGetAttribute cuFuncGetName
    cuModuleLoadDataEx cuLinkCreate_v2 cuStreamQuery";

#[test]
fn every_symbol_that_is_needed_is_there_under_its_own_name_and_its_plain_one() {
    let _device = device(&[]);
    for name in NEEDED.split_whitespace() {
        for asked in [name, name.trim_end_matches("_v2")] {
            let text = CString::new(asked).unwrap();
            let mut function: *mut c_void = std::ptr::null_mut();
            let mut status = sys::CUdriverProcAddressQueryResult_enum::
                CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT;
            // SAFETY: the text is alive and both results have a place.
            let result = unsafe {
                sys::cuGetProcAddress_v2(text.as_ptr(), &mut function, 12080, 0, &mut status)
            };
            assert_eq!(result, sys::CUresult::CUDA_SUCCESS, "{asked}");
            assert!(!function.is_null());
        }
    }
}

#[test]
fn a_missing_symbol_is_not_found() {
    let _device = device(&[]);
    let mut function: *mut c_void = std::ptr::null_mut();
    // SAFETY: as above; a null status is allowed.
    let result = unsafe {
        let status = std::ptr::null_mut();
        sys::cuGetProcAddress_v2(c"cuNoSuchCall".as_ptr(), &mut function, 12080, 0, status)
    };
    assert_eq!(result, sys::CUresult::CUDA_ERROR_NOT_FOUND);
    assert!(function.is_null());
}

#[test]
fn errors_have_their_names_and_texts() {
    let error = cudarc::driver::DriverError(sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    let _device = device(&[]);
    assert_eq!(error.error_name().unwrap(), c"CUDA_ERROR_ILLEGAL_ADDRESS");
    assert_eq!(error.error_string().unwrap(), c"an illegal memory access was encountered");
}

#[test]
fn pointers_say_where_they_are() {
    use cudarc::driver::DevicePtr;
    let device = device(&[]);
    let stream = device.context.new_stream().unwrap();
    let words = stream.alloc_zeros::<u32>(100).unwrap();
    let at = words.device_ptr(&stream).0;
    let (mut base, mut bytes, mut kind) = (0, 0, 0_u32);
    // SAFETY: every result has a place of the right width.
    unsafe {
        sys::cuMemGetAddressRange_v2(&mut base, &mut bytes, at + 50).result().unwrap();
        let attribute = sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE;
        sys::cuPointerGetAttribute((&raw mut kind).cast(), attribute, at + 50).result().unwrap();
    }
    assert_eq!((base, bytes, kind), (at, 400, 2));
    // SAFETY: freed below by its drop.
    let mut pinned = unsafe { device.context.alloc_pinned::<u32>(4) }.unwrap();
    let host = pinned.as_mut_ptr().unwrap();
    let mut device_address = 0;
    // SAFETY: a live pinned block and a place for the result.
    unsafe { sys::cuMemHostGetDevicePointer_v2(&mut device_address, host.cast(), 0) }
        .result()
        .unwrap();
    assert_ne!(device_address, 0);
}
