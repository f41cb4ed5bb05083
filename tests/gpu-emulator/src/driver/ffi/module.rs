//! `cuModule*`: PTX in, functions and variables out.

use super::Status;
use super::arguments::{Bytes, Out, Text};
use super::session::{Kind, Session, enter};
use crate::driver::failure::{Code, Outcome, failure};
use crate::driver::image;
use crate::driver::state::handles::Handle;
use std::ffi::c_void;

/// PTX text for this device out of an image of unknown length.
fn ptx_of(driver: &mut Session, image: Bytes) -> Outcome<String> {
    let device = driver.settings.capability;
    // SAFETY: every image, PTX text included, has at least four bytes: text ends in NUL, and one
    // shorter than that would not hold a directive.
    let magic = unsafe { image.prefix(4) }?;
    let word = u32::from_le_bytes([magic[0], magic[1], magic[2], magic[3]]);
    if magic == image::ELF_MAGIC {
        // A runtime that has cubins and PTX asks with the cubin first.
        driver.call.is_question = true;
        return Err(image::cubin_refusal());
    }
    if word == image::FAT_BINARY_WRAPPER_MAGIC {
        // SAFETY: the descriptor is two words and a pointer to the fat binary.
        let descriptor = unsafe { image.prefix(16) }?;
        let pointer = usize::from_le_bytes(
            descriptor[8..16].try_into().expect("eight bytes are eight bytes"),
        );
        return ptx_of_fat_binary(Bytes::at(pointer as *const c_void), device);
    }
    if word == image::FAT_BINARY_MAGIC {
        return ptx_of_fat_binary(image, device);
    }
    // SAFETY: what is neither a cubin nor a fat binary is text that ends in NUL, by contract.
    let text = unsafe { image.until_nul(image::IMAGE_BYTES_MAX) }?;
    image::text_of(&text)
}

fn ptx_of_fat_binary(image: Bytes, device: crate::driver::settings::Capability) -> Outcome<String> {
    // SAFETY: the magic word says that a fat binary's header is there.
    let header = unsafe { image.prefix(image::FAT_BINARY_HEADER_BYTES) }?;
    let bytes = image::fat_binary_bytes(&header)?;
    // SAFETY: the header says how long the fat binary is.
    let whole = unsafe { image.prefix(bytes) }?;
    image::ptx_of_fat_binary(&whole, device)
}

fn load(driver: &mut Session, module: Out<Handle>, ptx: Outcome<String>) -> Outcome {
    let loaded = ptx.and_then(|ptx| driver.load_module(&ptx));
    match loaded {
        Ok(made) => module.set(made),
        Err(refused) => {
            if refused.code == Code::InvalidPtx {
                driver.report.failed(&refused);
            }
            Err(refused)
        }
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadData(module: Out<Handle>, image: Bytes) -> Status {
    enter(Kind::Work, "cuModuleLoadData", |driver| {
        let ptx = ptx_of(driver, image);
        load(driver, module, ptx)
    })
}

/// The compiler's options are ignored: there is no compiler.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadDataEx(
    module: Out<Handle>,
    image: Bytes,
    _count: u32,
    _options: Bytes,
    _values: Bytes,
) -> Status {
    enter(Kind::Work, "cuModuleLoadDataEx", |driver| {
        let ptx = ptx_of(driver, image);
        load(driver, module, ptx)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadFatBinary(module: Out<Handle>, image: Bytes) -> Status {
    enter(Kind::Work, "cuModuleLoadFatBinary", |driver| {
        let ptx = ptx_of(driver, image);
        load(driver, module, ptx)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoad(module: Out<Handle>, path: Text) -> Status {
    enter(Kind::Work, "cuModuleLoad", |driver| {
        let path = path.read()?;
        let bytes = std::fs::read(&path)
            .map_err(|error| failure(Code::FileNotFound, format!("{path}: {error}")))?;
        let device = driver.settings.capability;
        let ptx = if bytes.starts_with(&image::ELF_MAGIC) {
            Err(image::cubin_refusal())
        } else if bytes.starts_with(&image::FAT_BINARY_MAGIC.to_le_bytes()) {
            image::ptx_of_fat_binary(&bytes, device)
        } else {
            image::text_of(&bytes)
        };
        load(driver, module, ptx)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleUnload(module: Handle) -> Status {
    enter(Kind::Work, "cuModuleUnload", |driver| {
        driver.complete_everything()?;
        driver.unload_module(module)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(
    function: Out<Handle>,
    module: Handle,
    name: Text,
) -> Status {
    enter(Kind::Work, "cuModuleGetFunction", |driver| {
        let found = driver.function(module, &name.read()?)?;
        function.set(found)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunctionCount(count: Out<u32>, module: Handle) -> Status {
    enter(Kind::Quiet, "cuModuleGetFunctionCount", |driver| {
        count.set(driver.entries(module)?.len() as u32)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleEnumerateFunctions(
    functions: Out<Handle>,
    count: u32,
    module: Handle,
) -> Status {
    enter(Kind::Quiet, "cuModuleEnumerateFunctions", |driver| {
        let names = driver.entries(module)?;
        let wanted = names.iter().take(count as usize);
        let handles =
            wanted.map(|name| driver.function(module, name)).collect::<Outcome<Vec<_>>>()?;
        functions.set_all(&handles)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetGlobal_v2(
    address: Out<u64>,
    bytes: Out<usize>,
    module: Handle,
    name: Text,
) -> Status {
    enter(Kind::Quiet, "cuModuleGetGlobal_v2", |driver| {
        let (at, size) = driver.variable(module, &name.read()?)?;
        address.set_if_wanted(at);
        bytes.set_if_wanted(size as usize);
        Ok(())
    })
}

/// Everything is loaded at once.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetLoadingMode(mode: Out<u32>) -> Status {
    enter(Kind::Quiet, "cuModuleGetLoadingMode", |_| mode.set(1))
}
