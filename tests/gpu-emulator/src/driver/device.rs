//! The device's name and its attributes: those of an A100 or an H100, with fewer SMs.
//!
//! An attribute is answered when something true can be said: limits, features that are emulated,
//! sizes. Features that are not emulated answer 0. Clocks and bus widths are nominal, as a runtime
//! may print them; nothing here runs at them.

use super::settings::{
    BLOCKS_PER_SM, Capability, RESERVED_SHARED_BYTES, SHARED_BYTES_PER_BLOCK, Settings,
    THREADS_PER_BLOCK, THREADS_PER_SM,
};

/// How the device is told from hardware.
pub const NAME: &str = "forerun emulated GPU (no hardware)";
/// Its universal identifier.
pub const UUID: [u8; 16] = *b"forerun-emulated";
/// CUDA 12.8, what `cuDriverGetVersion` answers.
pub const DRIVER_VERSION: i32 = 12_080;
/// Attributes are numbered below this.
pub const ATTRIBUTES_END: u32 = 145;

/// An attribute by its number in `CUdevice_attribute`; `None` for a number CUDA 12.8 does not have.
#[must_use]
pub fn attribute(settings: &Settings, number: u32) -> Option<i32> {
    if number == 0 || number >= ATTRIBUTES_END {
        return None;
    }
    let capability = settings.capability;
    let hopper = capability == Capability::Sm90;
    let value = match number {
        1..=3 => THREADS_PER_BLOCK,  // threads a block, block x and y
        4 => 64,                     // block z
        5 => 0x7FFF_FFFF,            // grid x
        6 | 7 => 65_535,             // grid y and z
        8 => SHARED_BYTES_PER_BLOCK, // shared memory a block
        9 => 64 << 10,               // constant memory
        10 => 32,                    // warp size
        11 => 0x7FFF_FFFF,           // pitch
        12 | 82 => 64 << 10,         // registers a block, an SM
        13 => {
            if hopper {
                1_980_000
            } else {
                1_410_000
            }
        } // clock, kHz
        14 => 512,                   // texture alignment
        15 | 31 => 1,                // copies and kernels overlap
        16 => settings.sm_count,     // SMs
        19 | 41 => 1,                // mapped host memory, unified addressing
        36 => {
            if hopper {
                2_619_000
            } else {
                1_593_000
            }
        } // memory clock, kHz
        37 => 5120,                  // bus width, bits
        38 => {
            if hopper {
                50 << 20
            } else {
                40 << 20
            }
        } // L2, bytes
        39 => THREADS_PER_SM,        // threads an SM
        40 => 3,                     // copy engines
        75 => capability.number() / 10, // capability
        76 => capability.number() % 10,
        78..=80 => 1,                           // priorities, L1 for globals and locals
        81 => capability.shared_bytes_per_sm(), // shared memory an SM
        87 => 2,                                // single to double precision
        95 => 1,                                // cooperative launch
        97 => capability.shared_bytes_per_block_optin(),
        99 => 1, // host registration
        106 => BLOCKS_PER_SM,
        111 => RESERVED_SHARED_BYTES,
        92..=94 | 122 | 123 => 1, // words as signals of streams
        115 => 1,                 // memory pools: asynchronous allocation
        _ => 0,
    };
    Some(value as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_are_those_of_the_capability() {
        let of = |capability, number| {
            attribute(&Settings { capability, ..Settings::default() }, number).unwrap()
        };
        assert_eq!(of(Capability::Sm80, 97), 163 << 10);
        assert_eq!(of(Capability::Sm90, 97), 227 << 10);
        assert_eq!((of(Capability::Sm80, 75), of(Capability::Sm80, 76)), (8, 0));
        assert_eq!((of(Capability::Sm90, 75), of(Capability::Sm90, 76)), (9, 0));
        assert_eq!(of(Capability::Sm90, 1), 1024);
        assert_eq!(of(Capability::Sm90, 39) / of(Capability::Sm90, 10), 64);
    }

    #[test]
    fn a_number_beyond_the_enumeration_is_unknown() {
        assert_eq!(attribute(&Settings::default(), 0), None);
        assert_eq!(attribute(&Settings::default(), 145), None);
    }
}
