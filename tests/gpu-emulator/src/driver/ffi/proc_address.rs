//! `cuGetProcAddress`: symbols by their names without a version.

use super::Status;
use super::arguments::{Out, Text};
use super::control::plain;
use crate::driver::failure::{Code, Outcome, failure};
use std::ffi::{CString, c_void};

const FOUND: u32 = 0;
const NOT_FOUND: u32 = 1;

/// Names that were given to another symbol in CUDA 12.
const RENAMED: [(&str, &str); 1] = [("cuGraphInstantiate", "cuGraphInstantiateWithFlags")];

/// Newest versions first.
const SUFFIXES: [&str; 2] = ["_v2", ""];

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetProcAddress_v2(
    symbol: Text,
    function: Out<usize>,
    _version: i32,
    _flags: u64,
    status: Out<u32>,
) -> Status {
    plain("cuGetProcAddress_v2", || {
        let name = symbol.read()?;
        let renamed = RENAMED.iter().find(|(old, _)| *old == name).map(|(_, new)| *new);
        let name = renamed.unwrap_or(&name);
        for suffix in SUFFIXES {
            if let Some(address) = own_symbol(&format!("{name}{suffix}"))? {
                status.set_if_wanted(FOUND);
                return function.set(address);
            }
        }
        status.set_if_wanted(NOT_FOUND);
        function.set(0)?;
        Err(failure(Code::NotFound, format!("{name} is not emulated")))
    })
}

/// Address of a symbol of this very library.
fn own_symbol(name: &str) -> Outcome<Option<usize>> {
    let name = CString::new(name)
        .map_err(|_| failure(Code::InvalidValue, "a symbol name with a NUL inside"))?;
    let inside: unsafe extern "C" fn(u32) -> Status = super::control::cuInit;
    // SAFETY: all-zero is a valid Dl_info: four pointers or integers.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: the address is that of a function of this library, `info` is ours.
    if unsafe { libc::dladdr(inside as *const c_void, &mut info) } == 0 {
        return Ok(None);
    }
    // SAFETY: the name comes from the loader and is alive while the library is.
    let library = unsafe { libc::dlopen(info.dli_fname, libc::RTLD_NOW | libc::RTLD_NOLOAD) };
    if library.is_null() {
        return Ok(None);
    }
    // SAFETY: the handle was opened just now.
    let address = unsafe { libc::dlsym(library, name.as_ptr()) };
    // SAFETY: closes what was opened above; the library stays, somebody else holds it.
    unsafe { libc::dlclose(library) };
    Ok((!address.is_null()).then_some(address as usize))
}
