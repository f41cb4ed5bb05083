//! What a driver call can answer when it does not succeed: CUDA's codes, and why.
//!
//! The codes, names and texts are the real driver's, because a runtime decides by them (a missing
//! binary means "try the PTX"). The reason is ours: it goes to stderr and to the report.

use crate::launch::FaultKind;
use std::ffi::CStr;
use std::fmt;

macro_rules! codes {
    ($($(#[$meta:meta])* $variant:ident = $value:literal, $name:literal, $text:literal;)*) => {
        /// A `CUresult`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Code {
            $(#[doc = $text] $(#[$meta])* $variant = $value,)*
        }

        impl Code {
            /// Every code that has a name.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The identifier in `cuda.h`.
            #[must_use]
            pub fn name(self) -> &'static CStr {
                match self { $(Self::$variant => $name,)* }
            }

            /// The sentence `cuGetErrorString` answers.
            #[must_use]
            pub fn text(self) -> &'static CStr {
                match self {
                    $(Self::$variant => {
                        const TEXT: &CStr =
                            match CStr::from_bytes_with_nul(concat!($text, "\0").as_bytes()) {
                                Ok(text) => text,
                                Err(_) => panic!("the text holds a NUL"),
                            };
                        TEXT
                    })*
                }
            }
        }
    };
}

codes! {
    Success = 0, c"CUDA_SUCCESS", "no error";
    InvalidValue = 1, c"CUDA_ERROR_INVALID_VALUE", "invalid argument";
    OutOfMemory = 2, c"CUDA_ERROR_OUT_OF_MEMORY", "out of memory";
    NotInitialized = 3, c"CUDA_ERROR_NOT_INITIALIZED", "initialization error";
    NoDevice = 100, c"CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected";
    InvalidDevice = 101, c"CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal";
    InvalidImage = 200, c"CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid";
    InvalidContext = 201, c"CUDA_ERROR_INVALID_CONTEXT", "invalid device context";
    NoBinaryForGpu = 209, c"CUDA_ERROR_NO_BINARY_FOR_GPU",
        "no kernel image is available for execution on the device";
    UnsupportedLimit = 215, c"CUDA_ERROR_UNSUPPORTED_LIMIT",
        "limit is not supported on this architecture";
    InvalidPtx = 218, c"CUDA_ERROR_INVALID_PTX", "a PTX JIT compilation failed";
    FileNotFound = 301, c"CUDA_ERROR_FILE_NOT_FOUND", "file not found";
    InvalidHandle = 400, c"CUDA_ERROR_INVALID_HANDLE", "invalid resource handle";
    NotFound = 500, c"CUDA_ERROR_NOT_FOUND", "named symbol not found";
    NotReady = 600, c"CUDA_ERROR_NOT_READY", "device not ready";
    IllegalAddress = 700, c"CUDA_ERROR_ILLEGAL_ADDRESS",
        "an illegal memory access was encountered";
    LaunchOutOfResources = 701, c"CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES",
        "too many resources requested for launch";
    LaunchTimeout = 702, c"CUDA_ERROR_LAUNCH_TIMEOUT", "the launch timed out and was terminated";
    PrimaryContextActive = 708, c"CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE",
        "cannot set while device is active in this process";
    HostMemoryAlreadyRegistered = 712, c"CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED",
        "part or all of the requested memory range is already mapped";
    HostMemoryNotRegistered = 713, c"CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED",
        "pointer does not correspond to a registered memory region";
    IllegalInstruction = 715, c"CUDA_ERROR_ILLEGAL_INSTRUCTION",
        "an illegal instruction was encountered";
    MisalignedAddress = 716, c"CUDA_ERROR_MISALIGNED_ADDRESS", "misaligned address";
    LaunchFailed = 719, c"CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure";
    CooperativeLaunchTooLarge = 720, c"CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE",
        "too many blocks in cooperative launch";
    NotPermitted = 800, c"CUDA_ERROR_NOT_PERMITTED", "operation not permitted";
    NotSupported = 801, c"CUDA_ERROR_NOT_SUPPORTED", "operation not supported";
    CaptureUnsupported = 900, c"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
        "operation not permitted when stream is capturing";
    CaptureInvalidated = 901, c"CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
        "operation failed due to a previous error during capture";
    CaptureMerge = 902, c"CUDA_ERROR_STREAM_CAPTURE_MERGE",
        "operation would result in a merge of separate capture sequences";
    CaptureUnmatched = 903, c"CUDA_ERROR_STREAM_CAPTURE_UNMATCHED",
        "capture was not ended in the same stream as it began";
    CaptureUnjoined = 904, c"CUDA_ERROR_STREAM_CAPTURE_UNJOINED",
        "capturing stream has unjoined work";
    CaptureIsolation = 905, c"CUDA_ERROR_STREAM_CAPTURE_ISOLATION",
        "dependency created on uncaptured work in another stream";
    CaptureImplicit = 906, c"CUDA_ERROR_STREAM_CAPTURE_IMPLICIT",
        "operation would make the legacy stream depend on a capturing blocking stream";
    CapturedEvent = 907, c"CUDA_ERROR_CAPTURED_EVENT",
        "operation not permitted on an event last recorded in a capturing stream";
    CaptureWrongThread = 908, c"CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD",
        "attempt to terminate a thread-local capture sequence from another thread";
    GraphExecUpdateFailure = 910, c"CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE",
        "the graph update was not performed because it included changes which violated constraints";
    InvalidClusterSize = 912, c"CUDA_ERROR_INVALID_CLUSTER_SIZE", "invalid cluster size";
    InvalidResourceType = 914, c"CUDA_ERROR_INVALID_RESOURCE_TYPE", "invalid resource type";
    InvalidResourceConfiguration = 915, c"CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION",
        "invalid resource configuration";
    Unknown = 999, c"CUDA_ERROR_UNKNOWN", "unknown error";
}

impl Code {
    /// The code of that number, where it is one of these.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| *code as u32 == number)
    }

    /// What the hardware would report for a kernel that broke this rule.
    #[must_use]
    pub fn of_fault(kind: FaultKind) -> Self {
        match kind {
            FaultKind::OutOfBounds | FaultKind::Uninitialised | FaultKind::UnwaitedCopy => {
                Self::IllegalAddress
            }
            FaultKind::Misaligned => Self::MisalignedAddress,
            FaultKind::Deadlock => Self::LaunchTimeout,
            FaultKind::Unsupported => Self::IllegalInstruction,
            FaultKind::UnwaitedKernel
            | FaultKind::SharedRace
            | FaultKind::IllegalSync
            | FaultKind::Trap => Self::LaunchFailed,
        }
    }
}

/// A call that did not succeed: the code the caller gets, and the reason people read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What the call returns.
    pub code: Code,
    /// Why; empty where the code says it all.
    pub reason: String,
}

/// What every driver operation returns.
pub type Outcome<T = ()> = Result<T, Failure>;

impl From<Code> for Failure {
    fn from(code: Code) -> Self {
        Self { code, reason: String::new() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code.name().to_string_lossy())?;
        if self.reason.is_empty() { Ok(()) } else { write!(f, ": {}", self.reason) }
    }
}

impl std::error::Error for Failure {}

/// A failure with its reason.
pub(crate) fn failure(code: Code, reason: impl Into<String>) -> Failure {
    Failure { code, reason: reason.into() }
}

/// Fails with `code` and the formatted reason unless `condition` holds.
macro_rules! ensure {
    ($condition:expr, $code:ident, $($reason:tt)+) => {
        if !$condition {
            return Err($crate::driver::failure::failure(
                $crate::driver::failure::Code::$code,
                format!($($reason)+),
            ));
        }
    };
}
pub(crate) use ensure;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_names_and_texts_agree_with_cuda_h() {
        assert_eq!(Code::IllegalAddress as u32, 700);
        assert_eq!(Code::from_number(209), Some(Code::NoBinaryForGpu));
        assert_eq!(Code::from_number(12345), None);
        assert_eq!(Code::NoBinaryForGpu.name(), c"CUDA_ERROR_NO_BINARY_FOR_GPU");
        assert_eq!(Code::OutOfMemory.text(), c"out of memory");
    }
}
