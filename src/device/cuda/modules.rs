//! The kernels of this program, loaded into a device.
//!
//! Each file of kernels is loaded once, from the first of its images that the driver takes: machine
//! code for this very architecture, else PTX, which the driver compiles. Which one it was changes
//! the time to load, never a result. Invariant: every parameter struct has the layout the kernels
//! were compiled with; loading compares them.
//! Read next: [`super::kernels`], where the images come from.

use super::driver::{Context, Function, Module};
use super::kernels::{self, Built};
use super::ops;
use crate::error::DeviceError;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// One kernel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kernel {
    pub(super) function: Function,
    /// Whether it waits for the kernels before it, so that it may begin before they have ended:
    /// what is compiled for 9.0 does (`kernels/common/dependent.cuh`).
    pub(super) waits: bool,
}

/// Every kernel, ready to launch.
#[derive(Debug)]
pub(super) struct Modules {
    kernels: HashMap<&'static str, Kernel>,
    /// By the file they were compiled from.
    modules: HashMap<&'static str, Module>,
    /// The images that were loaded, as nvcc names their architectures.
    pub(super) archs: BTreeSet<&'static str>,
}

impl Modules {
    /// Loads every file; `image` names the only architecture to take, such as `compute_80`.
    ///
    /// # Errors
    /// When there are no kernels, or the driver takes none of a file's images.
    pub(super) fn load(context: &Arc<Context>, image: Option<&str>) -> Result<Self, DeviceError> {
        let unavailable =
            |reason: String| DeviceError::Unavailable { device: "cuda".into(), reason };
        let Some(built) = kernels::built() else {
            return Err(unavailable(format!("built without CUDA kernels; fix: {}", Built::FIX)));
        };
        let (major, minor) =
            (context.properties.capability / 10, context.properties.capability % 10);
        let mut loaded =
            Self { kernels: HashMap::new(), modules: HashMap::new(), archs: BTreeSet::new() };
        for file in built.files {
            let subject = file.subject;
            let asked = image.map_or(String::new(), |name| format!(" as {name}"));
            let mut failure =
                format!("no {subject} kernels{asked} for compute capability {major}.{minor}");
            let mut images = file.images_for(major, minor);
            images.retain(|candidate| image.is_none_or(|name| candidate.arch() == name));
            let module = images.iter().find_map(|image| {
                let name = format!("{subject} ({})", image.arch());
                match Module::load(context, &name, &image.load()) {
                    Ok(module) => {
                        loaded.archs.insert(image.arch());
                        Some((module, image.capability() >= (9, 0)))
                    }
                    Err(error) => {
                        tracing::debug!("{error}; trying the next image");
                        failure = error.to_string();
                        None
                    }
                }
            });
            let (module, waits) = module.ok_or_else(|| unavailable(failure))?;
            for entry in file.entries {
                let kernel = Kernel { function: module.function(entry)?, waits };
                loaded.kernels.insert(entry, kernel);
            }
            loaded.modules.insert(subject, module);
        }
        loaded.check_layouts()?;
        Ok(loaded)
    }

    /// Compares every parameter struct with what the kernels were compiled with.
    fn check_layouts(&self) -> Result<(), DeviceError> {
        for (subject, name, ours) in ops::layouts() {
            let module = self.modules.get(subject).ok_or_else(|| {
                DeviceError::Failed(format!("no {subject} kernels in this program; build again"))
            })?;
            let theirs = module.words(name)?;
            if theirs != ours {
                return Err(DeviceError::Failed(format!(
                    "{name}: the kernels have {theirs:?}, the program has {ours:?}; build again"
                )));
            }
        }
        Ok(())
    }

    /// A kernel by name.
    ///
    /// # Errors
    /// When no file has it.
    pub(super) fn get(&self, name: &str) -> Result<Kernel, DeviceError> {
        let found = self.kernels.get(name).copied();
        found.ok_or_else(|| DeviceError::Failed(format!("no kernel {name} in this program")))
    }
}
