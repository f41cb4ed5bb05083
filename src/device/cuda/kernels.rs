//! The compiled kernels inside this program: what `build.rs` made of `kernels/**/*.cu`.
//!
//! A file of kernels has one image for each architecture: PTX, which a driver compiles when it
//! loads it, and cubins, which it need not. Invariant: every file has the same architectures, PTX
//! among them, or there is nothing at all because there was no nvcc. Images lie deflated, so that a
//! program is not ten times as large; [`Image::load`] inflates one. Read next: `build.rs`.

use std::io::Read;

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// All there is.
#[derive(Debug)]
pub(crate) struct Built {
    /// Version of the nvcc that compiled it, as in `13.5.37`.
    pub(crate) nvcc: &'static str,
    /// By subject, at least one.
    pub(crate) files: &'static [KernelFile],
}

/// What became of one `.cu` file.
#[derive(Debug)]
pub(crate) struct KernelFile {
    /// `attention` for `kernels/attention.cu`.
    pub(crate) subject: &'static str,
    /// Names of its kernels.
    pub(crate) entries: &'static [&'static str],
    /// One for each architecture.
    pub(crate) images: &'static [Image],
}

/// What a driver loads as a module.
#[derive(Debug)]
pub(crate) struct Image {
    /// As nvcc names it: `compute_80`, `sm_90a`.
    arch: &'static str,
    packed: &'static [u8],
    /// What ptxas said of it; of PTX nothing.
    log: &'static str,
}

/// How far an image is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ImageKind {
    /// Text; the driver compiles it for any GPU from its architecture on, and must be as new as
    /// the nvcc that wrote it.
    Ptx,
    /// Machine code for GPUs of its major version, from its minor version on.
    Cubin,
}

/// What ptxas reports of one kernel on one architecture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Usage {
    /// The kernel.
    pub(crate) entry: String,
    /// A thread's.
    pub(crate) registers: u32,
    /// Stores and loads of registers that did not fit, a thread's.
    pub(crate) spilled_bytes: u32,
    /// Local memory of a thread, spills among it.
    pub(crate) stack_bytes: u32,
    /// A CTA's, without what a launch adds.
    pub(crate) static_shared_bytes: u32,
}

/// The kernels of this program; none where it was built without an nvcc.
pub(crate) fn built() -> Option<&'static Built> {
    BUILT.as_ref()
}

impl Built {
    /// How to get kernels where there are none.
    pub(crate) const FIX: &'static str = FIX;

    /// The file with the kernel of that name.
    pub(crate) fn file_of(&self, entry: &str) -> Option<&'static KernelFile> {
        self.files.iter().find(|file| file.entries.contains(&entry))
    }

    /// How many kernels there are.
    pub(crate) fn count(&self) -> usize {
        self.files.iter().map(|file| file.entries.len()).sum()
    }

    /// What every file has images for, as nvcc names it, cubins first.
    pub(crate) fn archs(&self) -> Vec<&'static str> {
        let mut images: Vec<_> = self.files[0].images.iter().collect();
        images.sort_by_key(|image| (image.kind() == ImageKind::Ptx, image.capability()));
        images.into_iter().map(|image| image.arch).collect()
    }

    /// Version of the PTX, as in `9.5`.
    pub(crate) fn ptx_version(&self) -> String {
        let ptx = self.files[0].images.iter().find(|image| image.kind() == ImageKind::Ptx);
        let text = String::from_utf8(ptx.map(Image::load).unwrap_or_default()).unwrap_or_default();
        let version = text.lines().find_map(|line| line.strip_prefix(".version "));
        version.unwrap_or("unknown").to_owned()
    }
}

impl KernelFile {
    /// Images that run on a GPU of this compute capability, the best first: the cubin closest to
    /// it, then PTX. A driver that refuses one may take the next.
    pub(crate) fn images_for(&self, major: u32, minor: u32) -> Vec<&'static Image> {
        let fits = |image: &&Image| image.runs_on(major, minor);
        let mut images: Vec<_> = self.images.iter().filter(fits).collect();
        images.sort_by_key(|image| std::cmp::Reverse((image.kind(), image.capability())));
        images
    }

    /// The PTX for `compute_<major><minor>`.
    pub(crate) fn ptx(&self, major: u32, minor: u32) -> Option<&'static Image> {
        let exactly = |image: &&Image| image.capability() == (major, minor);
        self.images.iter().filter(|image| image.kind() == ImageKind::Ptx).find(exactly)
    }
}

impl Image {
    /// As nvcc names it: `compute_80`, `sm_90a`.
    pub(crate) fn arch(&self) -> &'static str {
        self.arch
    }

    /// How far it is compiled.
    pub(crate) fn kind(&self) -> ImageKind {
        if self.arch.starts_with("sm_") { ImageKind::Cubin } else { ImageKind::Ptx }
    }

    /// The compute capability it is made for: major, minor.
    pub(crate) fn capability(&self) -> (u32, u32) {
        let digits = self.arch.bytes().filter(u8::is_ascii_digit);
        let tenths = digits.fold(0, |number, digit| number * 10 + u32::from(digit - b'0'));
        (tenths / 10, tenths % 10)
    }

    /// Whether a GPU of this compute capability can run it.
    pub(crate) fn runs_on(&self, major: u32, minor: u32) -> bool {
        let own = self.capability();
        match self.kind() {
            ImageKind::Ptx => own <= (major, minor),
            // `sm_90a` has what only 9.0 has.
            ImageKind::Cubin if self.arch.ends_with('a') => own == (major, minor),
            ImageKind::Cubin => own.0 == major && own.1 <= minor,
        }
    }

    /// The bytes `cuModuleLoadData` takes; PTX with its terminating zero.
    ///
    /// # Panics
    /// Never on what `build.rs` wrote.
    pub(crate) fn load(&self) -> Vec<u8> {
        let mut bytes = vec![];
        let inflated = flate2::read::ZlibDecoder::new(self.packed).read_to_end(&mut bytes);
        inflated.expect("build.rs deflated it");
        bytes
    }

    /// What each of its kernels needs; of PTX nothing is known.
    pub(crate) fn usage(&self) -> Vec<Usage> {
        usage(self.log)
    }
}

/// What `ptxas -v` said about each kernel.
fn usage(log: &str) -> Vec<Usage> {
    let of_entry = |part: &str| {
        // A function that was not inlined has properties of its own: the most of any counts.
        let most = |what: &str| {
            let before = part.match_indices(what).map(|(at, _)| part[..at].trim_end());
            let digits = before.map(|text| text.rsplit(|c: char| !c.is_ascii_digit()).next());
            digits.filter_map(|digits| digits?.parse::<u32>().ok()).max().unwrap_or(0)
        };
        Usage {
            entry: part.split('\'').next().unwrap_or_default().to_owned(),
            registers: most("registers"),
            spilled_bytes: most("bytes spill stores") + most("bytes spill loads"),
            stack_bytes: most("bytes stack frame").max(most("bytes cumulative stack size")),
            static_shared_bytes: most("bytes smem"),
        }
    };
    log.split("Compiling entry function '").skip(1).map(of_entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(arch: &'static str) -> Image {
        Image { arch, packed: &[], log: "" }
    }

    #[test]
    fn the_closest_cubin_comes_first_and_ptx_after_all_cubins() {
        let images: &'static [Image] = Box::leak(Box::new(
            ["compute_80", "compute_90", "sm_80", "sm_86", "sm_89", "sm_90a", "sm_100"].map(image),
        ));
        let file = KernelFile { subject: "", entries: &[], images };
        let of = |major, minor| -> Vec<_> {
            file.images_for(major, minor).into_iter().map(Image::arch).collect()
        };
        assert_eq!(of(8, 0), ["sm_80", "compute_80"]);
        assert_eq!(of(8, 9), ["sm_89", "sm_86", "sm_80", "compute_80"]);
        assert_eq!(of(8, 7), ["sm_86", "sm_80", "compute_80"]);
        assert_eq!(of(9, 0), ["sm_90a", "compute_90", "compute_80"]);
        // Nothing made for 9.0 alone runs elsewhere; a cubin runs on later minors of its major.
        assert_eq!(of(9, 1), ["compute_90", "compute_80"]);
        assert_eq!(of(10, 3), ["sm_100", "compute_90", "compute_80"]);
        assert_eq!(of(12, 0), ["compute_90", "compute_80"]);
        assert_eq!(of(7, 5), [""; 0]);
        assert_eq!(file.ptx(9, 0).map(Image::arch), Some("compute_90"));
        assert!(file.ptx(8, 6).is_none());
    }

    #[test]
    fn usage_is_read_from_what_ptxas_says() {
        let log = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'one' for 'sm_90a'
ptxas info    : Function properties for one
    56 bytes stack frame, 112 bytes spill stores, 96 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 56 bytes cumulative stack size, 4096 bytes smem
ptxas info    : Compile time = 1419.365 ms
ptxas info    : Compiling entry function 'two' for 'sm_90a'
ptxas info    : Function properties for two
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 0 barriers, 512 bytes cmem[0]
ptxas info    : Function properties for called
    8 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
";
        let of = |entry: &str, registers, spilled_bytes, stack_bytes, static_shared_bytes| Usage {
            entry: entry.to_owned(),
            registers,
            spilled_bytes,
            stack_bytes,
            static_shared_bytes,
        };
        assert_eq!(usage(log), [of("one", 255, 208, 56, 4096), of("two", 40, 0, 8, 0)]);
        assert_eq!(usage("ptxas info    : 0 bytes gmem"), []);
    }
}
