//! `cuGraph*`: captured or hand-made graphs, and their executable copies.

use super::Status;
use super::arguments::{Bytes, In, Out, Pointers};
use super::launch::read_params;
use super::session::{Kind, Session, enter};
use super::stream::on_stream;
use crate::driver::failure::{Code, Outcome, ensure, failure};
use crate::driver::state::graph::UpdateResult;
use crate::driver::state::handles::Handle;
use crate::driver::state::launch::LaunchRequest;
use crate::driver::state::work::{Fill, HostCall, HostFunction, Work};

/// Flags of instantiation that mean anything here: all but launches from the device.
const INSTANTIATE_FLAGS: u64 = 1 | 2 | 8;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphCreate(graph: Out<Handle>, flags: u32) -> Status {
    enter(Kind::Work, "cuGraphCreate", |driver| {
        ensure!(flags == 0, InvalidValue, "graph flags {flags:#x}");
        let made = driver.create_graph();
        graph.set(made)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphDestroy(graph: Handle) -> Status {
    enter(Kind::Work, "cuGraphDestroy", |driver| driver.destroy_graph(graph))
}

fn instantiate(driver: &mut Session, graph: Handle, flags: u64) -> Outcome<Handle> {
    ensure!(
        flags & !INSTANTIATE_FLAGS == 0,
        NotSupported,
        "instantiation flags {flags:#x} are not emulated"
    );
    driver.instantiate(graph, flags)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphInstantiateWithFlags(
    executable: Out<Handle>,
    graph: Handle,
    flags: u64,
) -> Status {
    enter(Kind::Work, "cuGraphInstantiateWithFlags", |driver| {
        let made = instantiate(driver, graph, flags)?;
        executable.set(made)
    })
}

/// `CUDA_GRAPH_INSTANTIATE_PARAMS`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct InstantiateParams {
    flags: u64,
    upload_stream: Handle,
    error_node: Handle,
    result: u32,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphInstantiateWithParams(
    executable: Out<Handle>,
    graph: Handle,
    params: Out<InstantiateParams>,
) -> Status {
    enter(Kind::Work, "cuGraphInstantiateWithParams", |driver| {
        let wanted = params.get()?;
        let made = instantiate(driver, graph, wanted.flags)?;
        params.set(InstantiateParams { error_node: Handle::NULL, result: 0, ..wanted })?;
        executable.set(made)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphExecDestroy(executable: Handle) -> Status {
    enter(Kind::Work, "cuGraphExecDestroy", |driver| driver.destroy_executable(executable))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphExecGetFlags(executable: Handle, flags: Out<u64>) -> Status {
    enter(Kind::Quiet, "cuGraphExecGetFlags", |driver| {
        flags.set(driver.executable(executable)?.flags)
    })
}

/// Work without effect in the order of the stream: there is nothing to upload.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphUpload(executable: Handle, stream: Handle) -> Status {
    on_stream(Kind::Work, "cuGraphUpload", stream, |driver, stream| {
        driver.executable(executable)?;
        driver.refuse_in_capture(stream)?;
        driver.enqueue(stream, Work::Mark).map(|_| ())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphLaunch(executable: Handle, stream: Handle) -> Status {
    on_stream(Kind::Work, "cuGraphLaunch", stream, |driver, stream| {
        driver.call.graph = Some(driver.executable_number(executable));
        driver.launch_graph(executable, stream).map(|_| ())
    })
}

/// `CUgraphExecUpdateResultInfo`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct UpdateInfo {
    result: u32,
    error_node: Handle,
    error_from_node: Handle,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphExecUpdate_v2(
    executable: Handle,
    graph: Handle,
    info: Out<UpdateInfo>,
) -> Status {
    enter(Kind::Work, "cuGraphExecUpdate_v2", |driver| {
        let (result, node) = driver.update_executable(executable, graph)?;
        info.set(UpdateInfo {
            result: result as u32,
            error_node: node.unwrap_or_default(),
            error_from_node: Handle::NULL,
        })?;
        ensure!(result == UpdateResult::Success, GraphExecUpdateFailure, "{result:?}");
        Ok(())
    })
}

/// `CUDA_KERNEL_NODE_PARAMS`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct KernelNodeParams {
    function: Handle,
    grid: [u32; 3],
    block: [u32; 3],
    dynamic_shared_bytes: u32,
    pointers: Pointers,
    extra: Pointers,
    kernel: Handle,
    context: Handle,
}

fn request_of(driver: &Session, params: In<KernelNodeParams>) -> Outcome<LaunchRequest> {
    let node = params.get()?;
    ensure!(
        !node.function.is_null() && node.kernel.is_null(),
        NotSupported,
        "a kernel node without a CUfunction (CUkernel is not emulated)"
    );
    Ok(LaunchRequest {
        function: node.function,
        grid: node.grid,
        block: node.block,
        dynamic_shared_bytes: node.dynamic_shared_bytes,
        params: read_params(driver, node.function, node.pointers, node.extra)?,
        cooperative: false,
        programmatic: false,
        cluster: [1; 3],
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphExecKernelNodeSetParams_v2(
    executable: Handle,
    node: Handle,
    params: In<KernelNodeParams>,
) -> Status {
    enter(Kind::Work, "cuGraphExecKernelNodeSetParams_v2", |driver| {
        let request = request_of(driver, params)?;
        driver.set_executable_kernel(executable, node, &request)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphKernelNodeSetParams_v2(
    node: Handle,
    params: In<KernelNodeParams>,
) -> Status {
    enter(Kind::Work, "cuGraphKernelNodeSetParams_v2", |driver| {
        let request = request_of(driver, params)?;
        driver.set_kernel_node(node, &request)
    })
}

/// Answers everything but the parameters themselves, whose pointers are null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphKernelNodeGetParams_v2(
    node: Handle,
    params: Out<KernelNodeParams>,
) -> Status {
    enter(Kind::Quiet, "cuGraphKernelNodeGetParams_v2", |driver| {
        let kernel = driver.kernel_node(node)?;
        params.set(KernelNodeParams {
            function: kernel.function,
            grid: kernel.launch.grid,
            block: kernel.launch.block,
            dynamic_shared_bytes: kernel.launch.dynamic_shared_bytes,
            pointers: Pointers::NULL,
            extra: Pointers::NULL,
            kernel: Handle::NULL,
            context: Handle::NULL,
        })
    })
}

/// Adds a node, made by `work`, that waits for `count` others.
fn add(
    name: &'static str,
    node: Out<Handle>,
    graph: Handle,
    waits_for: In<Handle>,
    count: usize,
    work: impl FnOnce(&mut Session) -> Outcome<Work>,
) -> Status {
    enter(Kind::Work, name, |driver| {
        let work = work(driver)?;
        let made = driver.add_node(graph, &waits_for.all(count)?, work)?;
        node.set(made)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphAddKernelNode_v2(
    node: Out<Handle>,
    graph: Handle,
    waits_for: In<Handle>,
    count: usize,
    params: In<KernelNodeParams>,
) -> Status {
    add("cuGraphAddKernelNode_v2", node, graph, waits_for, count, |driver| {
        let request = request_of(driver, params)?;
        let stream = driver.stream(Handle::NULL)?;
        Ok(Work::Kernel(Box::new(driver.prepare(&request, stream)?)))
    })
}

/// `CUDA_MEMSET_NODE_PARAMS`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct MemsetNodeParams {
    destination: u64,
    pitch: usize,
    value: u32,
    element_bytes: u32,
    width: usize,
    height: usize,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphAddMemsetNode(
    node: Out<Handle>,
    graph: Handle,
    waits_for: In<Handle>,
    count: usize,
    params: In<MemsetNodeParams>,
    _context: Handle,
) -> Status {
    add("cuGraphAddMemsetNode", node, graph, waits_for, count, |driver| {
        let params = params.get()?;
        ensure!(
            [1, 2, 4].contains(&params.element_bytes),
            InvalidValue,
            "elements of {} bytes",
            params.element_bytes
        );
        let fill = Fill {
            destination: params.destination,
            value: params.value,
            element_bytes: params.element_bytes,
            width: params.width as u64,
            height: params.height as u64,
            pitch_bytes: params.pitch as u64,
        };
        driver.check_fill(&fill)?;
        Ok(Work::Fill(fill))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphAddEmptyNode(
    node: Out<Handle>,
    graph: Handle,
    waits_for: In<Handle>,
    count: usize,
) -> Status {
    add("cuGraphAddEmptyNode", node, graph, waits_for, count, |_| Ok(Work::Mark))
}

/// `CUDA_HOST_NODE_PARAMS`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct HostNodeParams {
    function: Option<HostFunction>,
    data: Bytes,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphAddHostNode(
    node: Out<Handle>,
    graph: Handle,
    waits_for: In<Handle>,
    count: usize,
    params: In<HostNodeParams>,
) -> Status {
    add("cuGraphAddHostNode", node, graph, waits_for, count, |_| {
        let HostNodeParams { function, data } = params.get()?;
        let function =
            function.ok_or_else(|| failure(Code::InvalidValue, "a null host function"))?;
        Ok(Work::Host(HostCall { function, data: data.address() }))
    })
}

/// Writes handles as the graph queries do: the count alone without an array, else up to the
/// caller's count, with nulls after the last.
fn list(handles: &[Handle], results: Out<Handle>, count: Out<usize>) -> Outcome {
    if results.is_null() {
        return count.set(handles.len());
    }
    let room = count.get()?;
    let mut listed: Vec<_> = handles.iter().copied().take(room).collect();
    let found = listed.len();
    listed.resize(room, Handle::NULL);
    results.set_all(&listed)?;
    count.set(found)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphGetNodes(
    graph: Handle,
    nodes: Out<Handle>,
    count: Out<usize>,
) -> Status {
    enter(Kind::Quiet, "cuGraphGetNodes", |driver| list(&driver.graph(graph)?.names, nodes, count))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphGetRootNodes(
    graph: Handle,
    nodes: Out<Handle>,
    count: Out<usize>,
) -> Status {
    enter(Kind::Quiet, "cuGraphGetRootNodes", |driver| {
        let graph = driver.graph(graph)?;
        let named = graph.nodes.iter().zip(&graph.names);
        let roots: Vec<_> =
            named.filter(|(node, _)| node.waits_for.is_empty()).map(|(_, name)| *name).collect();
        list(&roots, nodes, count)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphNodeGetDependencies(
    node: Handle,
    nodes: Out<Handle>,
    count: Out<usize>,
) -> Status {
    enter(Kind::Quiet, "cuGraphNodeGetDependencies", |driver| {
        list(&driver.node_waits(node)?, nodes, count)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphNodeGetType(node: Handle, kind: Out<u32>) -> Status {
    enter(Kind::Quiet, "cuGraphNodeGetType", |driver| kind.set(driver.node(node)?.work.node_type()))
}
