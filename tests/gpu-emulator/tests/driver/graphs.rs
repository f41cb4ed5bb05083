//! Graphs through cudarc: captured, launched again and again, changed.

use super::support::*;
use cudarc::driver::sys::{self, CUgraphInstantiate_flags, CUresult};
use cudarc::driver::{CudaGraph, CudaSlice, CudaStream};
use std::sync::Arc;

const THREAD: sys::CUstreamCaptureMode =
    sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;

/// Captures `x = 2 x; x = x + y` with `y` tripled in a second stream meanwhile.
fn capture(
    kernels: &Kernels,
    a: &Arc<CudaStream>,
    b: &Arc<CudaStream>,
    x: &mut CudaSlice<u32>,
    y: &mut CudaSlice<u32>,
) -> CudaGraph {
    a.begin_capture(THREAD).unwrap();
    b.join(a).unwrap();
    kernels.affine(b, y, 3, 0).unwrap();
    kernels.affine(a, x, 2, 0).unwrap();
    a.join(b).unwrap();
    a.memcpy_dtod(y, x).unwrap();
    kernels.affine(a, x, 1, 1).unwrap();
    a.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap()
}

#[test]
fn a_captured_graph_gives_the_same_under_every_seed_and_runs_only_when_launched() {
    for seed in SEEDS {
        let device = device(&[("FORERUN_EMULATOR_SEED", &seed.to_string())]);
        let kernels = device.kernels();
        let (a, b) = (device.context.new_stream().unwrap(), device.context.new_stream().unwrap());
        let mut x = a.clone_htod(&[5_u32; 32]).unwrap();
        let mut y = a.clone_htod(&[1_u32; 32]).unwrap();
        a.synchronize().unwrap();
        let graph = capture(&kernels, &a, &b, &mut x, &mut y);
        assert_eq!(a.clone_dtoh(&x).unwrap(), [5; 32]);
        graph.upload().unwrap();
        for launches in 1..4 {
            graph.launch().unwrap();
            let wanted = 3_u32.pow(launches) + 1;
            assert_eq!(a.clone_dtoh(&x).unwrap(), [wanted; 32], "seed {seed}");
        }
    }
}

#[test]
fn an_allocation_inside_a_capture_is_cudas_error_and_the_stream_is_usable_after() {
    let device = device(&[]);
    let stream = device.context.new_stream().unwrap();
    stream.begin_capture(THREAD).unwrap();
    let refused = code(stream.alloc_zeros::<u32>(4));
    assert_eq!(refused, CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    let status = stream.capture_status().unwrap();
    assert_eq!(status, sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_INVALIDATED);
    let ended = code(stream.end_capture(CUgraphInstantiate_flags(0)));
    assert_eq!(ended, CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    let words = stream.clone_htod(&[1_u32, 2]).unwrap();
    assert_eq!(stream.clone_dtoh(&words).unwrap(), [1, 2]);
}

#[test]
fn waiting_inside_a_capture_is_cudas_error() {
    let device = device(&[]);
    let stream = device.context.new_stream().unwrap();
    stream.begin_capture(THREAD).unwrap();
    let refused = code(stream.synchronize());
    assert_eq!(refused, CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    assert!(stream.end_capture(CUgraphInstantiate_flags(0)).is_err());
}

#[test]
fn a_kernel_nodes_parameters_change_for_later_launches() {
    let device = device(&[]);
    let kernels = device.kernels();
    let stream = device.context.new_stream().unwrap();
    let mut words = stream.clone_htod(&[1_u32; 32]).unwrap();
    stream.begin_capture(THREAD).unwrap();
    kernels.affine(&stream, &mut words, 1, 1).unwrap();
    let graph = stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap();
    graph.launch().unwrap();

    let mut node = std::ptr::null_mut();
    let mut count = 1;
    // SAFETY: the graph is live and there is room for one node.
    unsafe { sys::cuGraphGetNodes(graph.cu_graph(), &mut node, &mut count) }.result().unwrap();
    assert_eq!(count, 1);
    // SAFETY: all-zero is a valid value of the structure, and the call fills it.
    let mut params: sys::CUDA_KERNEL_NODE_PARAMS = unsafe { std::mem::zeroed() };
    // SAFETY: the node is live.
    unsafe { sys::cuGraphKernelNodeGetParams_v2(node, &mut params) }.result().unwrap();
    assert_eq!((params.gridDimX, params.blockDimX), (1, 32));
    let (mut address, mut factor, mut add) = (pointer(&stream, &words), 10_u32, 22_u32);
    let mut pointers = [
        (&raw mut address).cast(),
        (&raw mut factor).cast(),
        (&raw mut add).cast::<std::ffi::c_void>(),
    ];
    params.kernelParams = pointers.as_mut_ptr();
    let executable = graph.cu_graph_exec();
    // SAFETY: the node is of the graph the executable was made from; the parameters are live.
    unsafe { sys::cuGraphExecKernelNodeSetParams_v2(executable, node, &params) }.result().unwrap();
    graph.launch().unwrap();
    assert_eq!(stream.clone_dtoh(&words).unwrap(), [42; 32]);

    let report = device.emulator.report();
    let log = report["log"].as_array().unwrap();
    let launch = log.iter().rfind(|entry| entry["call"] == "cuGraphLaunch").unwrap();
    assert_eq!(report["graphs"][launch["graph"].to_string()], serde_json::json!(["affine"]));
}

fn pointer(stream: &Arc<CudaStream>, words: &CudaSlice<u32>) -> u64 {
    use cudarc::driver::DevicePtr;
    words.device_ptr(stream).0
}

#[test]
fn an_executable_takes_the_parameters_of_a_graph_of_its_shape() {
    let device = device(&[]);
    let kernels = device.kernels();
    let stream = device.context.new_stream().unwrap();
    let mut words = stream.clone_htod(&[1_u32; 32]).unwrap();
    let mut record = |adds: &[u32]| {
        stream.begin_capture(THREAD).unwrap();
        for add in adds {
            kernels.affine(&stream, &mut words, 1, *add).unwrap();
        }
        stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap()
    };
    let (graph, same, longer) = (record(&[1]), record(&[41]), record(&[1, 1]));
    let update = |from: &CudaGraph| {
        let mut info = sys::CUgraphExecUpdateResultInfo {
            result: sys::CUgraphExecUpdateResult::CU_GRAPH_EXEC_UPDATE_ERROR,
            errorNode: std::ptr::null_mut(),
            errorFromNode: std::ptr::null_mut(),
        };
        // SAFETY: both graphs are live and there is a place for the result.
        let status =
            unsafe { sys::cuGraphExecUpdate_v2(graph.cu_graph_exec(), from.cu_graph(), &mut info) };
        (status, info.result)
    };
    use sys::CUgraphExecUpdateResult as Update;
    assert_eq!(
        update(&longer),
        (
            CUresult::CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE,
            Update::CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED
        )
    );
    assert_eq!(update(&same), (CUresult::CUDA_SUCCESS, Update::CU_GRAPH_EXEC_UPDATE_SUCCESS));
    graph.launch().unwrap();
    assert_eq!(stream.clone_dtoh(&words).unwrap(), [42; 32]);

    let report = device.emulator.report();
    let log = report["log"].as_array().unwrap();
    let launch = log.iter().rfind(|entry| entry["call"] == "cuGraphLaunch").unwrap();
    assert_eq!(report["graphs"][launch["graph"].to_string()], serde_json::json!(["affine"]));
}
