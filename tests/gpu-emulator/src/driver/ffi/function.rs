//! `cuFunc*`: attributes of kernels.

use super::Status;
use super::arguments::{Out, StaticText};
use super::session::{Kind, enter};
use crate::driver::failure::{Code, ensure, failure};
use crate::driver::state::handles::Handle;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncGetAttribute(
    value: Out<i32>,
    attribute: u32,
    function: Handle,
) -> Status {
    enter(Kind::Quiet, "cuFuncGetAttribute", |driver| {
        value.set(driver.function_attribute(function, attribute)?)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncSetAttribute(
    function: Handle,
    attribute: u32,
    value: i32,
) -> Status {
    enter(Kind::Work, "cuFuncSetAttribute", |driver| {
        driver.set_function_attribute(function, attribute, value)
    })
}

/// Accepted and without effect: there is no cache to divide.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncSetCacheConfig(function: Handle, config: u32) -> Status {
    enter(Kind::Quiet, "cuFuncSetCacheConfig", |driver| {
        ensure!(config < 4, InvalidValue, "cache configuration {config}");
        driver.function_info(function).map(|_| ())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncGetName(name: Out<StaticText>, function: Handle) -> Status {
    enter(Kind::Quiet, "cuFuncGetName", |driver| {
        name.set(StaticText::of(&driver.function_info(function)?.name))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncGetModule(module: Out<Handle>, function: Handle) -> Status {
    enter(Kind::Quiet, "cuFuncGetModule", |driver| {
        module.set(driver.function_info(function)?.module)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncGetParamInfo(
    function: Handle,
    index: usize,
    offset: Out<usize>,
    size: Out<usize>,
) -> Status {
    enter(Kind::Quiet, "cuFuncGetParamInfo", |driver| {
        let (layout, _) = driver.param_layout(function)?;
        let found = layout.get(index).ok_or_else(|| {
            failure(Code::InvalidValue, format!("parameter {index} of {}", layout.len()))
        })?;
        offset.set(found.0 as usize)?;
        size.set_if_wanted(found.1 as usize);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncIsLoaded(state: Out<u32>, function: Handle) -> Status {
    enter(Kind::Quiet, "cuFuncIsLoaded", |driver| {
        driver.function_info(function)?;
        state.set(1)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncLoad(function: Handle) -> Status {
    enter(Kind::Quiet, "cuFuncLoad", |driver| driver.function_info(function).map(|_| ()))
}
