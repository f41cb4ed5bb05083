//! What the environment says about the device that is pretended.
//!
//! Read once, at `cuInit`; a value that cannot be understood is an error there, never a default.

use super::failure::{Code, Outcome, ensure, failure};

/// The capability whose limits and rules the device follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Capability {
    /// 8.0, an A100.
    Sm80,
    /// 9.0, an H100.
    Sm90,
}

impl Capability {
    /// Ten times the capability: 80 or 90, as in `sm_80`.
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::Sm80 => 80,
            Self::Sm90 => 90,
        }
    }

    /// Shared memory of an SM, bytes.
    #[must_use]
    pub fn shared_bytes_per_sm(self) -> u32 {
        match self {
            Self::Sm80 => 164 << 10,
            Self::Sm90 => 228 << 10,
        }
    }

    /// Shared memory a block may opt in to, bytes: all but the kilobyte the system keeps.
    #[must_use]
    pub fn shared_bytes_per_block_optin(self) -> u32 {
        self.shared_bytes_per_sm() - RESERVED_SHARED_BYTES
    }
}

/// Shared memory a block may use without asking, bytes.
pub const SHARED_BYTES_PER_BLOCK: u32 = 48 << 10;
/// Shared memory the system keeps of each block, bytes.
pub const RESERVED_SHARED_BYTES: u32 = 1 << 10;
/// Threads of a block at most.
pub const THREADS_PER_BLOCK: u32 = 1024;
/// Threads resident on an SM at most (64 warps).
pub const THREADS_PER_SM: u32 = 2048;
/// Blocks resident on an SM at most.
pub const BLOCKS_PER_SM: u32 = 32;

/// A launch that must fail: the `n`-th of `kernel`, counted from one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Injection {
    /// The kernel's name.
    pub kernel: String,
    /// Which launch of it, from one.
    pub launch: u64,
}

impl Injection {
    /// Reads `kernel_name:N`.
    ///
    /// # Errors
    /// `InvalidValue` when it is not of that form.
    pub fn parse(text: &str) -> Outcome<Self> {
        let parts = text.rsplit_once(':').and_then(|(kernel, n)| Some((kernel, n.parse().ok()?)));
        match parts {
            Some((kernel, launch)) if !kernel.is_empty() && launch > 0 => {
                Ok(Self { kernel: kernel.to_owned(), launch })
            }
            _ => Err(failure(
                Code::InvalidValue,
                format!("FORERUN_EMULATOR_FAIL is {text:?}; expected kernel_name:N with N from 1"),
            )),
        }
    }
}

/// The pretended device and how its work is scheduled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `FORERUN_EMULATOR_CC`, 80 or 90.
    pub capability: Capability,
    /// `FORERUN_EMULATOR_SMS`.
    pub sm_count: u32,
    /// `FORERUN_EMULATOR_MEMORY_BYTES`.
    pub memory_bytes: u64,
    /// `FORERUN_EMULATOR_THREADS`, host threads that run CTAs.
    pub threads: usize,
    /// `FORERUN_EMULATOR_SEED`, of the order of operations, CTAs and warps.
    pub seed: u64,
    /// `FORERUN_EMULATOR_FAIL`.
    pub injection: Option<Injection>,
    /// `FORERUN_EMULATOR_REPORT`, where the report goes.
    pub report: Option<std::path::PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            capability: Capability::Sm90,
            sm_count: 16,
            memory_bytes: 4 << 30,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            seed: 0,
            injection: None,
            report: None,
        }
    }
}

impl Settings {
    /// What the environment says, with defaults for what it does not.
    ///
    /// # Errors
    /// `InvalidValue` naming the variable and its value.
    pub fn from_environment() -> Outcome<Self> {
        Self::from_environment_with(&[])
    }

    /// As [`Self::from_environment`], where `overrides` win over the environment.
    ///
    /// # Errors
    /// `InvalidValue` naming the variable and its value.
    pub fn from_environment_with(overrides: &[(&str, &str)]) -> Outcome<Self> {
        Self::from_variables(|name| {
            let given = overrides.iter().find(|(key, _)| *key == name);
            let value = given.map(|(_, value)| (*value).to_owned());
            value.or_else(|| std::env::var(name).ok()).filter(|value| !value.is_empty())
        })
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Outcome<Self> {
        let number = |name: &str, default: u64| match variable(name) {
            None => Ok(default),
            Some(text) => text.trim().parse::<u64>().map_err(|_| {
                failure(Code::InvalidValue, format!("{name} is {text:?}; expected a whole number"))
            }),
        };
        let default = Self::default();
        let capability = match number("FORERUN_EMULATOR_CC", 90)? {
            80 => Capability::Sm80,
            90 => Capability::Sm90,
            other => {
                let reason = format!("FORERUN_EMULATOR_CC is {other}; expected 80 or 90");
                return Err(failure(Code::InvalidValue, reason));
            }
        };
        let sm_count = number("FORERUN_EMULATOR_SMS", u64::from(default.sm_count))?;
        ensure!((1..=1024).contains(&sm_count), InvalidValue, "FORERUN_EMULATOR_SMS is {sm_count}");
        let threads = number("FORERUN_EMULATOR_THREADS", default.threads as u64)?;
        ensure!(
            (1..=1024).contains(&threads),
            InvalidValue,
            "FORERUN_EMULATOR_THREADS is {threads}"
        );
        Ok(Self {
            capability,
            sm_count: sm_count as u32,
            memory_bytes: number("FORERUN_EMULATOR_MEMORY_BYTES", default.memory_bytes)?,
            threads: threads as usize,
            seed: number("FORERUN_EMULATOR_SEED", 0)?,
            injection: variable("FORERUN_EMULATOR_FAIL")
                .map(|text| Injection::parse(&text))
                .transpose()?,
            report: variable("FORERUN_EMULATOR_REPORT").map(Into::into),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Outcome<Settings> {
        Settings::from_variables(|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn nothing_set_is_a_small_hopper() {
        assert_eq!(read(&[]).unwrap(), Settings::default());
    }

    #[test]
    fn every_variable_is_read() {
        let settings = read(&[
            ("FORERUN_EMULATOR_CC", "80"),
            ("FORERUN_EMULATOR_SMS", "108"),
            ("FORERUN_EMULATOR_MEMORY_BYTES", "1048576"),
            ("FORERUN_EMULATOR_THREADS", "3"),
            ("FORERUN_EMULATOR_SEED", "7"),
            ("FORERUN_EMULATOR_FAIL", "attention:12"),
            ("FORERUN_EMULATOR_REPORT", "report.json"),
        ])
        .unwrap();
        assert_eq!(settings.capability, Capability::Sm80);
        assert_eq!((settings.sm_count, settings.memory_bytes), (108, 1 << 20));
        assert_eq!((settings.threads, settings.seed), (3, 7));
        let injection = settings.injection.unwrap();
        assert_eq!((injection.kernel.as_str(), injection.launch), ("attention", 12));
    }

    #[test]
    fn a_value_that_cannot_be_understood_names_its_variable() {
        for (name, value) in [
            ("FORERUN_EMULATOR_CC", "86"),
            ("FORERUN_EMULATOR_SMS", "0"),
            ("FORERUN_EMULATOR_SEED", "x"),
            ("FORERUN_EMULATOR_FAIL", "attention"),
            ("FORERUN_EMULATOR_FAIL", "attention:0"),
        ] {
            assert!(read(&[(name, value)]).unwrap_err().reason.contains(name), "{name}={value}");
        }
    }
}
