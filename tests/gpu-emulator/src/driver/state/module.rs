//! Modules and functions: PTX accepted, parsed, its variables placed in device memory.

use super::Driver;
use super::handles::{Handle, Kind};
use crate::driver::failure::{Code, Outcome, ensure, failure};
use crate::driver::image;
use crate::driver::settings::SHARED_BYTES_PER_BLOCK;
use crate::launch::LoadedModule;
use crate::memory::FUNCTION_BASE;
use crate::ptx::ir;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::sync::Arc;

/// One loaded module.
#[derive(Debug)]
pub struct Module {
    /// The root context it was loaded in.
    pub root: Handle,
    /// What is launched from it.
    pub loaded: Arc<LoadedModule>,
    /// Addresses of its variables, to be freed with it.
    owned: Vec<u64>,
}

/// One entry of a module.
#[derive(Debug)]
pub struct Function {
    /// The root context of its module.
    pub root: Handle,
    /// Its module.
    pub module: Handle,
    /// The program.
    pub loaded: Arc<LoadedModule>,
    /// Index of the entry in the program.
    pub index: usize,
    /// Its name as C text, alive as long as the function is.
    pub name: CString,
    /// `MAX_DYNAMIC_SHARED_SIZE_BYTES` as set, or the default.
    pub dynamic_shared_bytes_max: u32,
    /// Other attributes that were set, by number.
    pub attributes: BTreeMap<u32, i32>,
}

impl Function {
    /// The entry.
    #[must_use]
    pub fn entry(&self) -> &ir::Function {
        &self.loaded.module.functions[self.index]
    }
}

impl Driver {
    /// Loads PTX text into the current context.
    ///
    /// # Errors
    /// `NoBinaryForGpu` for a newer target, `InvalidPtx` with the parser's message, `OutOfMemory`.
    pub fn load_module(&mut self, ptx: &str) -> Outcome<Handle> {
        self.refuse_unsafe_call("a module load")?;
        let root = self.current_root()?;
        image::accept_ptx(ptx, self.settings.capability)?;
        let module =
            (self.machine.parse)(ptx).map_err(|message| failure(Code::InvalidPtx, message))?;
        self.check_static_limits(&module)?;
        let (addresses, owned) = self.place_variables(&module)?;
        let loaded = Arc::new(LoadedModule { module, addresses });
        self.write_initial_values(&loaded)?;
        Ok(self.modules.insert(Module { root, loaded, owned }))
    }

    fn check_static_limits(&self, module: &ir::Module) -> Outcome {
        for entry in module.functions.iter().filter(|f| f.kind == ir::Kind::Entry) {
            ensure!(
                entry.static_shared_bytes <= SHARED_BYTES_PER_BLOCK,
                InvalidPtx,
                "{} has {} bytes of static shared memory; {SHARED_BYTES_PER_BLOCK} are allowed",
                entry.name,
                entry.static_shared_bytes
            );
        }
        Ok(())
    }

    fn place_variables(
        &mut self,
        module: &ir::Module,
    ) -> Outcome<(BTreeMap<String, u64>, Vec<u64>)> {
        let mut addresses = BTreeMap::new();
        let mut owned = Vec::new();
        for variable in &module.variables {
            ensure!(
                !variable.external,
                InvalidPtx,
                "{} is declared .extern and no module defines it",
                variable.name
            );
            if variable.size == 0 {
                continue;
            }
            let address = self.allocate_now(variable.size, &variable.name)?;
            owned.push(address);
            addresses.insert(variable.name.clone(), address);
        }
        Ok((addresses, owned))
    }

    fn write_initial_values(&mut self, loaded: &LoadedModule) -> Outcome {
        for variable in &loaded.module.variables {
            let Some(address) = loaded.addresses.get(&variable.name) else { continue };
            let mut bytes = variable.init.clone();
            bytes.resize(variable.size as usize, 0);
            for relocation in &variable.relocations {
                let target = symbol_address(loaded, relocation.symbol)?;
                let value = target.wrapping_add_signed(relocation.addend).to_le_bytes();
                let at = relocation.offset as usize;
                let width = usize::from(relocation.bytes);
                bytes[at..at + width].copy_from_slice(&value[..width]);
            }
            self.memory
                .write(*address, &bytes)
                .map_err(|violation| failure(Code::Unknown, violation.to_string()))?;
        }
        Ok(())
    }

    /// Unloads a module. The caller has waited for the device.
    ///
    /// # Errors
    /// `InvalidHandle` when it is not live.
    pub fn unload_module(&mut self, module: Handle) -> Outcome {
        self.refuse_unsafe_call("a module unload")?;
        let gone = self.modules.remove(module)?;
        self.functions.retain(|function| function.module != module);
        for address in gone.owned {
            self.device.forget(address);
            self.report.freed(address);
            self.memory
                .free(address)
                .map_err(|violation| failure(Code::Unknown, violation.to_string()))?;
        }
        Ok(())
    }

    /// The entry of that name. Asking twice gives one handle.
    ///
    /// # Errors
    /// `NotFound` when there is none, `InvalidHandle` when the module is not live.
    pub fn function(&mut self, module: Handle, name: &str) -> Outcome<Handle> {
        let from = self.modules.get(module)?;
        let functions = &from.loaded.module.functions;
        let index = functions.iter().position(|f| f.kind == ir::Kind::Entry && f.name == name);
        let Some(index) = index else {
            let reason = format!("the module has no kernel named {name}");
            return Err(failure(Code::NotFound, reason));
        };
        let known = self.functions.iter().find(|(_, f)| f.module == module && f.index == index);
        if let Some((handle, _)) = known {
            return Ok(handle);
        }
        let function = Function {
            root: from.root,
            module,
            loaded: Arc::clone(&from.loaded),
            index,
            name: CString::new(name)
                .map_err(|_| failure(Code::InvalidValue, "a name with a NUL inside"))?,
            dynamic_shared_bytes_max: SHARED_BYTES_PER_BLOCK - functions[index].static_shared_bytes,
            attributes: BTreeMap::new(),
        };
        Ok(self.functions.insert(function))
    }

    /// The function.
    ///
    /// # Errors
    /// `InvalidHandle` when it is not live.
    pub fn function_info(&self, function: Handle) -> Outcome<&Function> {
        self.functions.get(function)
    }

    /// Every entry of a module, in its order.
    ///
    /// # Errors
    /// `InvalidHandle` when it is not live.
    pub fn entries(&self, module: Handle) -> Outcome<Vec<String>> {
        let functions = &self.modules.get(module)?.loaded.module.functions;
        let entries = functions.iter().filter(|f| f.kind == ir::Kind::Entry);
        Ok(entries.map(|f| f.name.clone()).collect())
    }

    /// Address and bytes of a module's variable.
    ///
    /// # Errors
    /// `NotFound` when there is none, `InvalidHandle` when the module is not live.
    pub fn variable(&self, module: Handle, name: &str) -> Outcome<(u64, u64)> {
        let loaded = &self.modules.get(module)?.loaded;
        let address = loaded.addresses.get(name);
        let variable = loaded.module.variables.iter().find(|variable| variable.name == name);
        match (address, variable) {
            (Some(address), Some(variable)) => Ok((*address, variable.size)),
            _ => Err(failure(Code::NotFound, format!("the module has no variable named {name}"))),
        }
    }

    /// The number of a module in logs.
    #[must_use]
    pub fn module_number(&self, module: Handle) -> u32 {
        Kind::Module.number_of(module)
    }
}

fn symbol_address(loaded: &LoadedModule, symbol: ir::Symbol) -> Outcome<u64> {
    let name = match symbol {
        ir::Symbol::Function(index) => return Ok(FUNCTION_BASE + u64::from(index)),
        ir::Symbol::Variable(index) => {
            loaded.module.variables.get(index as usize).map(|variable| &variable.name)
        }
        _ => None,
    };
    name.and_then(|name| loaded.addresses.get(name)).copied().ok_or_else(|| {
        failure(Code::InvalidPtx, format!("an initialiser holds the address of {symbol:?}"))
    })
}
