//! Compiles `kernels/**/*.cu` into the crate, where an nvcc is at hand.
//!
//! Every file outside `kernels/common` becomes PTX for each virtual architecture, and a cubin for
//! each real one *assembled from that PTX*: what the software GPU executes in tests is what a GPU
//! gets. The images lie compressed in `OUT_DIR`, listed by a generated `kernels.rs` that
//! `src/device/cuda/kernels.rs` includes. Invariant: a kernel that does not compile, or an nvcc
//! that was named and is not there, fails the build; only where no nvcc can be found is the list
//! empty, and a warning says so. Files whose sources did not change are not compiled again.

use flate2::{Compression, write::ZlibEncoder};
use std::collections::BTreeSet;
use std::env::{self, consts::EXE_SUFFIX};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write as _;
use std::iter;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Compute capabilities, in tenths, that PTX is made for.
const VIRTUAL: [u32; 2] = [80, 90];
/// What cubins are made for unless `FORERUN_CUDA_ARCHS` says otherwise.
const REAL: &str = "sm_80,sm_86,sm_89,sm_90a,sm_100";
const COMPILER_FLAGS: [&str; 6] = ["-std=c++17", "-O3", "-lineinfo", "-I", "kernels", "-ptx"];
/// Debug sections would repeat the PTX in every cubin and make it three times as large.
const ASSEMBLER_FLAGS: [&str; 4] = ["-O3", "-Xptxas", "-v,-suppress-debug-info", "-cubin"];
/// What to do where there is none. Packages that come later change nothing cargo watches.
const FIX: &str = "run `pip install nvidia-cuda-nvcc nvidia-cuda-cccl` (or name an nvcc by NVCC or \
                   CUDA_HOME), then `touch build.rs` and build again";

type Result<T> = std::result::Result<T, String>;

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return ExitCode::SUCCESS;
    }
    println!("cargo::rerun-if-changed=kernels");
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            message.lines().for_each(|line| println!("cargo::error={line}"));
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<()> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    println!("cargo::rustc-check-cfg=cfg(forerun_kernels)");
    let built = match find_nvcc()? {
        Some(nvcc) => {
            // Tests that run single kernels exist only where there are kernels.
            println!("cargo::rustc-cfg=forerun_kernels");
            compile(&Nvcc::at(nvcc)?, &out)?
        }
        None => {
            println!("cargo::warning=no nvcc found: built without CUDA kernels; fix: {FIX}");
            "None".to_owned()
        }
    };
    let table = format!("static BUILT: Option<Built> = {built};\nconst FIX: &str = {FIX:?};\n");
    write(&out.join("kernels.rs"), table.as_bytes())
}

/// Compiles every file on as many threads as cargo has jobs; what came of it, as Rust source.
fn compile(nvcc: &Nvcc, out: &Path) -> Result<String> {
    let archs = nvcc.archs()?;
    let mut files = vec![];
    find_sources(Path::new("kernels"), &mut files)?;
    files.sort();
    if files.is_empty() {
        return Ok("None".to_owned());
    }
    let mut units = vec![];
    for path in &files {
        for ptx in VIRTUAL {
            let cubins = archs.iter().filter(|arch| assembled_from(arch) == Some(ptx)).collect();
            units.push(Unit { path, ptx: format!("compute_{ptx}"), cubins });
        }
    }
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        while let Some(unit) = units.get(next.fetch_add(1, Ordering::Relaxed)) {
            // After a failure the other threads finish what they have begun and begin nothing.
            unit.make(nvcc, out).inspect_err(|_| next.store(units.len(), Ordering::Relaxed))?;
        }
        Ok(())
    };
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..jobs).map(|_| scope.spawn(work)).collect();
        let results = threads.into_iter().map(|t| t.join().unwrap_or(Err("a panic".to_owned())));
        // Joins all of them before the first failure is reported.
        results.collect::<Vec<_>>().into_iter().collect::<Result<()>>()
    })?;

    let mut list = String::new();
    for units in units.chunks(VIRTUAL.len()) {
        list += &described(units, out)?;
    }
    let version = &nvcc.version;
    Ok(format!("Some(Built {{ nvcc: {version:?}, files: &[\n{list}] }})"))
}

/// One file for one virtual architecture: its PTX, and the cubins assembled from that.
struct Unit<'a> {
    path: &'a Path,
    /// As in `compute_90`.
    ptx: String,
    /// As in `sm_90a`.
    cubins: Vec<&'a String>,
}

impl Unit<'_> {
    /// `attention/decode.cu` is `attention_decode`.
    fn subject(&self) -> String {
        let inside = self.path.strip_prefix("kernels").unwrap_or(self.path).with_extension("");
        inside.components().map(|c| c.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("_")
    }

    /// A file in `OUT_DIR`.
    fn target(&self, arch: &str, extension: &str) -> String {
        format!("{}.{arch}.{extension}", self.subject())
    }

    /// Compiles, unless what lies in `out` was made of the same sources by the same compiler.
    fn make(&self, nvcc: &Nvcc, out: &Path) -> Result<()> {
        let mut sources = BTreeSet::new();
        add_included(self.path, &mut sources)?;
        sources.insert(PathBuf::from("build.rs"));
        let texts = sources.iter().map(|source| read(source)).collect::<Result<Vec<_>>>()?;
        let mut hasher = DefaultHasher::new();
        (texts, &nvcc.version, &self.cubins).hash(&mut hasher);
        let key = format!("{:016x}", hasher.finish());
        let key_file = out.join(self.target(&self.ptx, "key"));
        if fs::read_to_string(&key_file).is_ok_and(|made| made == key) {
            return Ok(());
        }
        let ptx_file = out.join(self.target(&self.ptx, "ptx"));
        let log = nvcc.run(&COMPILER_FLAGS, &self.ptx, self.path, &ptx_file)?;
        let ptx = without_local_paths(&read(&ptx_file)?);
        write(&ptx_file, ptx.as_bytes())?;
        // The driver takes PTX as a C string.
        self.keep(&self.ptx, &[ptx.as_bytes(), b"\0"].concat(), &log, out)?;
        for arch in &self.cubins {
            let cubin_file = out.join(self.target(arch, "cubin"));
            let log = nvcc.run(&ASSEMBLER_FLAGS, arch, &ptx_file, &cubin_file)?;
            let cubin = fs::read(&cubin_file).map_err(|e| failure(&cubin_file, e))?;
            self.keep(arch, &cubin, &log, out)?;
        }
        write(&key_file, key.as_bytes())
    }

    /// Leaves an image, deflated, and what the compiler said where the program is built from.
    fn keep(&self, arch: &str, image: &[u8], log: &str, out: &Path) -> Result<()> {
        let path = out.join(self.target(arch, "z"));
        let mut encoder = ZlibEncoder::new(vec![], Compression::best());
        let packed = encoder.write_all(image).and_then(|()| encoder.finish());
        write(&path, &packed.map_err(|e| failure(&path, e))?)?;
        write(&out.join(self.target(arch, "log")), log.as_bytes())
    }
}

/// The `KernelFile` of one file's units, as Rust source.
fn described(units: &[Unit], out: &Path) -> Result<String> {
    let (mut entries, mut images) = (BTreeSet::new(), String::new());
    for unit in units {
        let ptx = read(&out.join(unit.target(&unit.ptx, "ptx")))?;
        let names = ptx.lines().filter_map(|line| line.split_once(".entry ")?.1.split('(').next());
        entries.extend(names.map(str::to_owned));
        for arch in iter::once(&unit.ptx).chain(unit.cubins.iter().copied()) {
            let (packed, log) = (unit.target(arch, "z"), unit.target(arch, "log"));
            images += &format!(
                "Image {{ arch: {arch:?}, packed: include_bytes!({packed:?}), log: \
                 include_str!({log:?}) }},\n"
            );
        }
    }
    if entries.is_empty() {
        return Err(format!("{}: no kernel in it", units[0].path.display()));
    }
    let (subject, entries) = (units[0].subject(), Vec::from_iter(entries));
    Ok(format!(
        "KernelFile {{ subject: {subject:?}, entries: &{entries:?}, images: &[\n{images}] }},\n"
    ))
}

/// An nvcc that runs.
struct Nvcc {
    path: PathBuf,
    /// As in `13.5.37`.
    version: String,
}

impl Nvcc {
    fn at(path: PathBuf) -> Result<Self> {
        println!("cargo::rerun-if-changed={}", path.display());
        let mut nvcc = Self { path, version: String::new() };
        let said = nvcc.call(&["--version"])?;
        let version = said.rsplit_once(", V").and_then(|(_, v)| v.split_whitespace().next());
        let unknown = || format!("{} says no version:\n{said}", nvcc.path.display());
        nvcc.version = version.ok_or_else(unknown)?.to_owned();
        Ok(nvcc)
    }

    /// What to make cubins for. An nvcc too old for one of the default architectures leaves it out;
    /// one that was asked for by name must do.
    fn archs(&self) -> Result<Vec<String>> {
        let asked = watched("FORERUN_CUDA_ARCHS");
        let list = asked.as_deref().unwrap_or(REAL).split(',').map(str::trim);
        let mut archs: Vec<_> = list.filter(|a| !a.is_empty()).map(str::to_owned).collect();
        if let Some(wrong) = archs.iter().find(|arch| assembled_from(arch).is_none()) {
            return Err(format!(
                "FORERUN_CUDA_ARCHS: expected a list like `{REAL}`, from sm_80 on, got `{wrong}`"
            ));
        }
        if asked.is_none() {
            let known = self.call(&["--list-gpu-code"])?;
            archs.retain(|arch| known.lines().any(|known| known == arch.trim_end_matches('a')));
        }
        Ok(archs)
    }

    /// Compiles `from` to `to`; what was said meanwhile.
    fn run(&self, flags: &[&str], arch: &str, from: &Path, to: &Path) -> Result<String> {
        let (arch, to, from) =
            (format!("-arch={arch}"), to.to_string_lossy(), from.to_string_lossy());
        let said = self.call(&[flags, &[&arch, "-o", &to, &from]].concat())?;
        for line in said.lines().filter(|line| line.contains("warning")) {
            println!("cargo::warning={line}");
        }
        Ok(said)
    }

    fn call(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(&self.path).args(arguments).output();
        let output = output.map_err(|e| failure(&self.path, e))?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        if !output.status.success() {
            return Err(format!("{} {}:\n{said}", self.path.display(), arguments.join(" ")));
        }
        Ok(said)
    }
}

/// An nvcc by `NVCC`, `CUDA_HOME`, `CUDA_PATH`, `PATH`, or of an installed Python package. Only
/// variables that were asked are watched: another `PATH` need not mean another build.
fn find_nvcc() -> Result<Option<PathBuf>> {
    if let Some(path) = watched("NVCC").filter(|path| !path.is_empty()) {
        return Ok(Some(PathBuf::from(path)));
    }
    let inside = |folder: PathBuf| {
        Some(folder.join(format!("nvcc{EXE_SUFFIX}"))).filter(|nvcc| nvcc.is_file())
    };
    for home in ["CUDA_HOME", "CUDA_PATH"] {
        if let Some(nvcc) = watched(home).and_then(|home| inside(Path::new(&home).join("bin"))) {
            return Ok(Some(nvcc));
        }
    }
    let path = watched("PATH").unwrap_or_default();
    if let Some(nvcc) = env::split_paths(&path).find_map(inside) {
        return Ok(Some(nvcc));
    }
    let environment = PathBuf::from(watched("VIRTUAL_ENV").unwrap_or_default());
    let pythons = ["bin/python", "Scripts/python"].map(|python| environment.join(python));
    let pythons = pythons.into_iter().chain(["python3", "python"].map(PathBuf::from));
    Ok(pythons.into_iter().find_map(|python| {
        let question = "import nvidia; print(*nvidia.__path__, sep='\\n')";
        let output = Command::new(python).args(["-c", question]).output().ok()?;
        let folders = String::from_utf8(output.stdout).ok()?;
        let toolkits = folders.lines().filter_map(|folder| fs::read_dir(folder).ok()).flatten();
        toolkits.flatten().filter_map(|toolkit| inside(toolkit.path().join("bin"))).max()
    }))
}

/// The number of the PTX that a cubin for `sm_90a` or the like is assembled from.
fn assembled_from(arch: &str) -> Option<u32> {
    let number = arch.strip_prefix("sm_")?.trim_end_matches('a').parse().ok()?;
    VIRTUAL.into_iter().filter(|&ptx| ptx <= number).max()
}

fn find_sources(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(|e| failure(folder, e))? {
        let path = entry.map_err(|e| failure(folder, e))?.path();
        if path.is_dir() && !path.ends_with("common") {
            find_sources(&path, found)?;
        } else if path.extension().is_some_and(|e| e == "cu") {
            found.push(path);
        }
    }
    Ok(())
}

/// Adds `path` and what it includes of ours.
fn add_included(path: &Path, sources: &mut BTreeSet<PathBuf>) -> Result<()> {
    if !sources.insert(path.canonicalize().map_err(|e| failure(path, e))?) {
        return Ok(());
    }
    for line in read(path)?.lines() {
        let Some((_, rest)) = line.split_once("#include \"") else { continue };
        let name = rest.split('"').next().unwrap_or_default();
        let beside = path.parent().unwrap_or(Path::new("")).join(name);
        let included = [beside, Path::new("kernels").join(name)].into_iter().find(|p| p.is_file());
        included.map_or(Ok(()), |included| add_included(&included, sources))?;
    }
    Ok(())
}

/// PTX names its sources absolutely; the program shall not tell where it was built.
fn without_local_paths(ptx: &str) -> String {
    let here = env::current_dir().unwrap_or_default();
    let shorter = |line: &str| {
        let (number, path) = line.strip_prefix("\t.file")?.split_once('"')?;
        let path = Path::new(path.trim_end_matches(['"', '\n']));
        let name = Path::new(path.file_name()?);
        let path = path.strip_prefix(&here).unwrap_or(name).display();
        Some(format!("\t.file{number}\"{path}\"\n"))
    };
    ptx.split_inclusive('\n').map(|line| shorter(line).unwrap_or(line.to_owned())).collect()
}

/// An environment variable whose change runs this again.
fn watched(name: &str) -> Option<String> {
    println!("cargo::rerun-if-env-changed={name}");
    env::var(name).ok()
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|e| failure(path, e))
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).map_err(|e| failure(path, e))
}

fn failure(path: &Path, error: std::io::Error) -> String {
    format!("{}: {error}", path.display())
}
