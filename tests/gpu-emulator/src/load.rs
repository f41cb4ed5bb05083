//! Opens the shared library of this crate, so that it *is* the CUDA driver of the process.
//!
//! For tests: call [`Emulator::open`] before anything touches CUDA. The library's soname is
//! `libcuda.so`, so `cudarc` finds it already loaded. [`Emulator`] also reaches the entry points no
//! real driver has: marks in the log, names of buffers, seeds, injected failures, the report.
//! Nothing here is linked against the driver: it is found beside the running executable.

use std::ffi::{CStr, CString, c_char, c_void};
use std::path::{Path, PathBuf};

/// The file cargo makes of this crate.
const FILE: &str = "libgpu_emulator.so";

/// The opened driver. It stays loaded until the process ends.
#[derive(Debug, Clone, Copy)]
pub struct Emulator {
    library: *mut c_void,
}

// SAFETY: the handle is only read, and the loader's functions may be called from any thread.
unsafe impl Send for Emulator {}
// SAFETY: as above.
unsafe impl Sync for Emulator {}

impl Emulator {
    /// Opens the library beside the running executable (or the folders cargo puts it in).
    ///
    /// # Errors
    /// A sentence that says where it was looked for, or what the loader said.
    pub fn open() -> Result<Self, String> {
        Self::open_at(&path()?)
    }

    /// Opens the library at `path`.
    ///
    /// # Errors
    /// What the loader said.
    pub fn open_at(path: &Path) -> Result<Self, String> {
        let text = CString::new(path.as_os_str().as_encoded_bytes())
            .map_err(|_| format!("{} has a NUL inside", path.display()))?;
        // SAFETY: the library's constructors are those of a Rust cdylib: they do nothing.
        let library = unsafe { libc::dlopen(text.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
        if library.is_null() {
            return Err(format!("cannot open {}: {}", path.display(), loader_error()));
        }
        Ok(Self { library })
    }

    /// Marks a place in the log of driver calls.
    ///
    /// # Panics
    /// As every method here: when the device refuses, or is not initialised.
    pub fn mark(&self, text: &str) {
        self.with_text("forerun_emulator_mark", text);
    }

    /// Names the allocation that starts at `address`.
    pub fn label(&self, address: u64, label: &str) {
        // SAFETY: the type is that of the symbol.
        let call: unsafe extern "C" fn(u64, *const c_char) -> u32 =
            unsafe { self.symbol("forerun_emulator_label") };
        let label = c_text(label);
        // SAFETY: the text is alive during the call.
        check("forerun_emulator_label", unsafe { call(address, label.as_ptr()) });
    }

    /// Names a part of an allocation and gives it bounds of its own.
    pub fn carve(&self, address: u64, bytes: u64, label: &str) {
        // SAFETY: the type is that of the symbol.
        let call: unsafe extern "C" fn(u64, u64, *const c_char) -> u32 =
            unsafe { self.symbol("forerun_emulator_carve") };
        let label = c_text(label);
        // SAFETY: the text is alive during the call.
        check("forerun_emulator_carve", unsafe { call(address, bytes, label.as_ptr()) });
    }

    /// Declares a range of device memory unwritten.
    pub fn forget(&self, address: u64, bytes: u64) {
        // SAFETY: the type is that of the symbol.
        let call: unsafe extern "C" fn(u64, u64) -> u32 =
            unsafe { self.symbol("forerun_emulator_forget") };
        // SAFETY: numbers only.
        check("forerun_emulator_forget", unsafe { call(address, bytes) });
    }

    /// Schedules from now on by another seed.
    pub fn set_seed(&self, seed: u64) {
        // SAFETY: the type is that of the symbol.
        let call: unsafe extern "C" fn(u64) -> u32 =
            unsafe { self.symbol("forerun_emulator_set_seed") };
        // SAFETY: numbers only.
        check("forerun_emulator_set_seed", unsafe { call(seed) });
    }

    /// Makes the `n`-th launch of `kernel` from now on fail.
    pub fn fail(&self, kernel: &str, n: u64) {
        self.with_text("forerun_emulator_fail", &format!("{kernel}:{n}"));
    }

    /// Throws the device away, with its failure, and makes a fresh one from the environment, where
    /// `overrides` of its variables win. Every handle becomes stale; no other thread may be inside
    /// the driver.
    pub fn reset(&self, overrides: &[(&str, &str)]) {
        let words: Vec<_> =
            overrides.iter().map(|(name, value)| format!("{name}={value}")).collect();
        self.with_text("forerun_emulator_reset", &words.join(" "));
    }

    /// Forgets the kernels, calls and failures reported so far.
    pub fn clear_report(&self) {
        self.plain("forerun_emulator_clear_report");
    }

    /// The report so far.
    ///
    /// # Panics
    /// When the temporary folder cannot be written.
    #[must_use]
    pub fn report(&self) -> serde_json::Value {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = format!("forerun-emulator-{}-{number}.json", std::process::id());
        let path = std::env::temp_dir().join(name);
        self.with_text("forerun_emulator_write_report_to", &path.to_string_lossy());
        let text = std::fs::read_to_string(&path).expect("the report was written just now");
        std::fs::remove_file(&path).ok();
        serde_json::from_str(&text).expect("the report is JSON")
    }

    fn plain(&self, name: &str) {
        // SAFETY: the symbols without arguments have this type.
        let call: unsafe extern "C" fn() -> u32 = unsafe { self.symbol(name) };
        // SAFETY: no arguments.
        check(name, unsafe { call() });
    }

    fn with_text(&self, name: &str, text: &str) {
        // SAFETY: the symbols that take text have this type.
        let call: unsafe extern "C" fn(*const c_char) -> u32 = unsafe { self.symbol(name) };
        let text = c_text(text);
        // SAFETY: the text is alive during the call.
        check(name, unsafe { call(text.as_ptr()) });
    }

    /// A symbol of the library.
    ///
    /// # Safety
    /// `F` is the function pointer type of that symbol.
    unsafe fn symbol<F: Copy>(&self, name: &str) -> F {
        assert_eq!(size_of::<F>(), size_of::<*mut c_void>(), "a function pointer");
        let text = c_text(name);
        // SAFETY: the handle is open and the text alive.
        let address = unsafe { libc::dlsym(self.library, text.as_ptr()) };
        assert!(!address.is_null(), "the library has no symbol {name}");
        // SAFETY: not null, of the size of `F`, which the caller vouches is its type.
        unsafe { std::mem::transmute_copy(&address) }
    }
}

fn c_text(text: &str) -> CString {
    CString::new(text).expect("no NUL in a name")
}

fn check(name: &str, status: u32) {
    assert_eq!(status, 0, "{name} answered {status}");
}

fn loader_error() -> String {
    // SAFETY: the text belongs to the loader and is copied at once.
    unsafe {
        let text = libc::dlerror();
        if text.is_null() { String::new() } else { CStr::from_ptr(text).to_string_lossy().into() }
    }
}

/// Where the library is: beside the executable, above it, or in `deps` beside it.
///
/// # Errors
/// A sentence that says where it was looked for.
pub fn path() -> Result<PathBuf, String> {
    let executable = std::env::current_exe().map_err(|error| error.to_string())?;
    let folder = executable.parent().ok_or("the executable has no folder")?;
    let mut folders = vec![folder.to_path_buf(), folder.join("deps")];
    folders.extend(folder.parent().map(Path::to_path_buf));
    let found = folders.iter().map(|folder| folder.join(FILE)).find(|path| path.exists());
    found.ok_or_else(|| format!("no {FILE} in {folders:?}; build the package gpu-emulator"))
}
