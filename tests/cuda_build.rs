//! What `build.rs` made of the CUDA kernels: complete, without spills, one parameter each.
//!
//! No GPU and no driver is needed. Without nvcc at build time there is nothing to look at, and the
//! tests say so; `FORERUN_REQUIRE_KERNELS=1` makes that a failure.

#![cfg(feature = "cuda")]

#[path = "../src/device/cuda/kernels.rs"]
#[allow(dead_code, reason = "the runtime uses the rest")]
mod kernels;

use kernels::{Built, Image, ImageKind, KernelFile};

/// The kernels; none where the tests are to be skipped.
fn built() -> Option<&'static Built> {
    let built = kernels::built();
    if built.is_none() {
        let required = std::env::var("FORERUN_REQUIRE_KERNELS").is_ok_and(|value| value == "1");
        assert!(!required, "built without CUDA kernels; fix: {}", Built::FIX);
        eprintln!("skipped: built without CUDA kernels; fix: {}", Built::FIX);
    }
    built
}

fn images(built: &Built) -> impl Iterator<Item = (&KernelFile, &Image)> {
    built.files.iter().flat_map(|file| file.images.iter().map(move |image| (file, image)))
}

fn text(image: &Image) -> String {
    String::from_utf8(image.load()).expect("PTX is text")
}

/// Names and parameters of the kernels in PTX.
fn entries(ptx: &str) -> Vec<(&str, usize)> {
    let declarations =
        ptx.split(".entry ").skip(1).map(|rest| rest.split(')').next().unwrap_or(rest));
    let parts = declarations.map(|declaration| declaration.split_once('(').expect("a list"));
    parts.map(|(name, list)| (name, list.matches(".param").count())).collect()
}

#[test]
fn every_file_has_ptx_for_both_generations_and_the_same_cubins() {
    let Some(built) = built() else { return };
    let archs = built.archs();
    for ptx in ["compute_80", "compute_90"] {
        assert!(archs.contains(&ptx), "{ptx} is not among {archs:?}");
    }
    for file in built.files {
        let mut own: Vec<_> = file.images.iter().map(Image::arch).collect();
        let mut all = archs.clone();
        own.sort_unstable();
        all.sort_unstable();
        assert_eq!(own, all, "{}", file.subject);
    }
    for (file, image) in images(built).filter(|(_, image)| image.kind() == ImageKind::Ptx) {
        let (text, (major, minor)) = (text(image), image.capability());
        assert!(text.ends_with('\0'), "{}: PTX is a C string", file.subject);
        assert!(text.contains(&format!("\n.target sm_{major}{minor}\n")), "{}", file.subject);
    }
}

#[test]
fn every_kernel_takes_one_parameter_and_has_a_name_of_its_own() {
    let Some(built) = built() else { return };
    let mut names: Vec<_> = built.files.iter().flat_map(|file| file.entries).collect();
    assert!(names.iter().all(|name| name.starts_with("forerun_")), "{names:?}");
    names.sort_unstable();
    let kernels = names.len();
    names.dedup();
    assert_eq!((names.len(), kernels), (kernels, built.count()), "two kernels share a name");
    for (file, image) in images(built).filter(|(_, image)| image.kind() == ImageKind::Ptx) {
        let text = text(image);
        let mut found = entries(&text);
        found.sort_unstable();
        let expected: Vec<_> = file.entries.iter().map(|&name| (name, 1)).collect();
        assert_eq!(found, expected, "{} for {}", file.subject, image.arch());
        for name in file.entries {
            assert_eq!(built.file_of(name).map(|file| file.subject), Some(file.subject));
        }
    }
    assert!(built.file_of("forerun_nothing").is_none());
}

#[test]
fn no_kernel_spills_or_uses_local_memory_on_any_architecture() {
    let Some(built) = built() else { return };
    let mut wrong = vec![];
    for (file, image) in images(built).filter(|(_, image)| image.kind() == ImageKind::Cubin) {
        let usage = image.usage();
        let mut names: Vec<_> = usage.iter().map(|usage| usage.entry.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, file.entries, "ptxas reports every kernel of {}", file.subject);
        for usage in usage {
            let registers = usage.registers;
            assert!((1..=255).contains(&registers), "{}: {registers} registers", usage.entry);
            if (usage.spilled_bytes, usage.stack_bytes) != (0, 0) {
                wrong.push(format!("{} {usage:?}", image.arch()));
            }
        }
    }
    assert!(wrong.is_empty(), "local memory:\n{}", wrong.join("\n"));
}

#[test]
fn images_do_not_tell_where_they_were_built() {
    let Some(built) = built() else { return };
    let here = env!("CARGO_MANIFEST_DIR");
    for (file, image) in images(built) {
        let (bytes, what) = (image.load(), format!("{} for {}", file.subject, image.arch()));
        assert!(!String::from_utf8_lossy(&bytes).contains(here), "{what}");
        if image.kind() == ImageKind::Ptx {
            let text = text(image);
            let names: Vec<_> = text.lines().filter(|line| line.contains("\t.file\t")).collect();
            assert!(names.iter().any(|name| name.contains("\"kernels/")), "{what}: no line tables");
            assert!(!names.iter().any(|name| name.contains("\"/")), "{what}: {names:?}");
        }
    }
}
