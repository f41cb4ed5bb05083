//! Gives the shared library the name of the CUDA driver.
//!
//! Once it has been opened by absolute path, the dynamic loader then returns it for
//! `dlopen("libcuda.so")`, which is what `cudarc` asks for. Nothing is installed anywhere.

fn main() {
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libcuda.so");
    println!("cargo:rerun-if-changed=build.rs");
}
