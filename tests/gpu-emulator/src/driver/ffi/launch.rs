//! `cuLaunch*`: parameter bytes are copied at the call, by the sizes the PTX declares.

use super::Status;
use super::arguments::{In, Pointers};
use super::session::{Kind, Session};
use super::stream::on_stream;
use crate::driver::failure::{Code, Outcome, ensure, failure};
use crate::driver::state::handles::Handle;
use crate::driver::state::launch::LaunchRequest;

/// End of the list of extra options.
const PARAM_END: usize = 0;
/// The option before a pointer to the packed parameters.
const PARAM_BUFFER_POINTER: usize = 1;
/// The option before a pointer to their size.
const PARAM_BUFFER_SIZE: usize = 2;

/// Reads the parameters of a launch, from one pointer each or from one packed buffer.
pub(super) fn read_params(
    driver: &Session,
    function: Handle,
    pointers: Pointers,
    extra: Pointers,
) -> Outcome<Vec<u8>> {
    let (layout, total_bytes) = driver.param_layout(function)?;
    let mut params = vec![0; total_bytes as usize];
    if !extra.is_null() {
        ensure!(pointers.is_null(), InvalidValue, "both kernelParams and extra are given");
        return read_packed(extra, params);
    }
    ensure!(
        layout.is_empty() || !pointers.is_null(),
        InvalidValue,
        "no parameters are given; the PTX declares {}",
        layout.len()
    );
    for (index, (offset, size)) in layout.into_iter().enumerate() {
        // SAFETY: by contract there is one pointer for each parameter the kernel declares.
        let pointer = unsafe { pointers.at(index) };
        ensure!(pointer.address() != 0, InvalidValue, "parameter {index} is a null pointer");
        // SAFETY: by contract it points to a value of the parameter's size.
        let value = unsafe { pointer.prefix(size as usize) }?;
        params[offset as usize..(offset + size) as usize].copy_from_slice(&value);
    }
    Ok(params)
}

fn read_packed(extra: Pointers, mut params: Vec<u8>) -> Outcome<Vec<u8>> {
    let mut buffer = None;
    let mut bytes = None;
    let mut index = 0;
    loop {
        // SAFETY: the list goes on until PARAM_END, which has not come yet.
        match unsafe { extra.at(index) }.address() {
            PARAM_END => break,
            // SAFETY: every option but the end has a value behind it.
            PARAM_BUFFER_POINTER => buffer = Some(unsafe { extra.at(index + 1) }),
            // SAFETY: as above.
            PARAM_BUFFER_SIZE => bytes = Some(unsafe { extra.at(index + 1) }),
            other => return Err(failure(Code::InvalidValue, format!("launch option {other}"))),
        }
        index += 2;
    }
    let (Some(buffer), Some(bytes)) = (buffer, bytes) else {
        return Err(failure(Code::InvalidValue, "a packed launch without buffer or size"));
    };
    // SAFETY: the option's value points to a size_t.
    let size = unsafe { bytes.prefix(size_of::<usize>()) }?;
    let size = usize::from_le_bytes(size.try_into().expect("as many bytes as a usize has"));
    ensure!(
        size == params.len(),
        InvalidValue,
        "{size} packed bytes; the PTX declares {}",
        params.len()
    );
    // SAFETY: the buffer has as many bytes as the caller says.
    params.copy_from_slice(&unsafe { buffer.prefix(size) }?);
    Ok(params)
}

fn launch(
    name: &'static str,
    stream: Handle,
    pointers: Pointers,
    extra: Pointers,
    request: LaunchRequest,
) -> Status {
    on_stream(Kind::Work, name, stream, |driver, stream| {
        let kernel = driver.function_info(request.function)?.entry().name.clone();
        driver.call.kernel = Some(kernel);
        driver.call.shape = Some((request.grid, request.block));
        driver.call.programmatic = request.programmatic;
        let params = read_params(driver, request.function, pointers, extra)?;
        driver.launch(stream, &LaunchRequest { params, ..request }).map(|_| ())
    })
}

/// A launch of nothing but CTAs; its parameters are still to be read.
fn request(
    function: Handle,
    grid: [u32; 3],
    block: [u32; 3],
    dynamic_shared_bytes: u32,
) -> LaunchRequest {
    LaunchRequest {
        function,
        grid,
        block,
        dynamic_shared_bytes,
        params: Vec::new(),
        cooperative: false,
        programmatic: false,
        cluster: [1; 3],
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernel(
    function: Handle,
    grid_x: u32,
    grid_y: u32,
    grid_z: u32,
    block_x: u32,
    block_y: u32,
    block_z: u32,
    dynamic_shared_bytes: u32,
    stream: Handle,
    pointers: Pointers,
    extra: Pointers,
) -> Status {
    let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
    let request = request(function, grid, block, dynamic_shared_bytes);
    launch("cuLaunchKernel", stream, pointers, extra, request)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchCooperativeKernel(
    function: Handle,
    grid_x: u32,
    grid_y: u32,
    grid_z: u32,
    block_x: u32,
    block_y: u32,
    block_z: u32,
    dynamic_shared_bytes: u32,
    stream: Handle,
    pointers: Pointers,
) -> Status {
    let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
    let request = request(function, grid, block, dynamic_shared_bytes);
    let request = LaunchRequest { cooperative: true, ..request };
    launch("cuLaunchCooperativeKernel", stream, pointers, Pointers::NULL, request)
}

/// `CUlaunchConfig`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct LaunchConfig {
    grid: [u32; 3],
    block: [u32; 3],
    dynamic_shared_bytes: u32,
    stream: Handle,
    attributes: In<LaunchAttribute>,
    attribute_count: u32,
}

/// `CUlaunchAttribute`: the value is a union of 64 bytes.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(8))]
pub struct LaunchAttribute {
    id: u32,
    pad: u32,
    value: [u32; 16],
}

/// Numbers of `CUlaunchAttributeID` that change what is run.
mod attribute {
    pub(super) const COOPERATIVE: u32 = 2;
    pub(super) const CLUSTER_DIMENSION: u32 = 4;
    pub(super) const PROGRAMMATIC_STREAM_SERIALIZATION: u32 = 6;
    pub(super) const PROGRAMMATIC_EVENT: u32 = 7;
    pub(super) const LAUNCH_COMPLETION_EVENT: u32 = 12;
    pub(super) const LAST: u32 = 14;
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernelEx(
    config: In<LaunchConfig>,
    function: Handle,
    pointers: Pointers,
    extra: Pointers,
) -> Status {
    let request =
        config.get().and_then(|config| Ok((config.stream, request_of(config, function)?)));
    match request {
        Ok((stream, request)) => launch("cuLaunchKernelEx", stream, pointers, extra, request),
        Err(refused) => super::session::enter(Kind::Work, "cuLaunchKernelEx", |_| Err(refused)),
    }
}

fn request_of(config: LaunchConfig, function: Handle) -> Outcome<LaunchRequest> {
    let mut request = LaunchRequest {
        function,
        grid: config.grid,
        block: config.block,
        dynamic_shared_bytes: config.dynamic_shared_bytes,
        params: Vec::new(),
        cooperative: false,
        programmatic: false,
        cluster: [1; 3],
    };
    for LaunchAttribute { id, value, .. } in
        config.attributes.all(config.attribute_count as usize)?
    {
        match id {
            attribute::COOPERATIVE => request.cooperative = value[0] != 0,
            attribute::CLUSTER_DIMENSION => request.cluster = [value[0], value[1], value[2]],
            attribute::PROGRAMMATIC_STREAM_SERIALIZATION => request.programmatic = value[0] != 0,
            attribute::PROGRAMMATIC_EVENT | attribute::LAUNCH_COMPLETION_EVENT => {
                let reason = format!("launch attribute {id} is not emulated");
                return Err(failure(Code::NotSupported, reason));
            }
            hint if hint <= attribute::LAST => {}
            other => {
                let reason = format!("there is no launch attribute {other}");
                return Err(failure(Code::InvalidValue, reason));
            }
        }
    }
    Ok(request)
}
