//! From what `cuModuleLoadData` is given to PTX text for this device.
//!
//! An image is PTX text ending in NUL, a cubin, or a fat binary that holds several of either. Only
//! PTX can run here: machine code answers "no binary for this GPU", which is what makes a runtime
//! try its PTX next. The invariant: PTX is chosen as the real driver does, the newest target the
//! device is not too old for.

use super::failure::{Code, Outcome, ensure, failure};
use super::settings::Capability;

/// First word of a fat binary.
pub const FAT_BINARY_MAGIC: u32 = 0xBA55_ED50;
/// First word of the descriptor that points to a fat binary.
pub const FAT_BINARY_WRAPPER_MAGIC: u32 = 0x4662_43B1;
/// First four bytes of a cubin.
pub const ELF_MAGIC: [u8; 4] = *b"\x7fELF";
/// Bytes of a fat binary's header.
pub const FAT_BINARY_HEADER_BYTES: usize = 16;
/// Images larger than this are refused: a missing NUL must not read all of memory.
pub const IMAGE_BYTES_MAX: usize = 1 << 30;

const KIND_PTX: u16 = 1;
const ENTRY_FLAGS_COMPRESSED: u64 = 0x2000 | 0x8000;

/// The target a PTX text names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// 80 for `sm_80`.
    pub number: u32,
    /// The letter after the number: `a` runs on exactly that capability, `f` on its family.
    pub suffix: Option<char>,
}

impl Target {
    /// Reads the `.target` directive of a PTX text.
    ///
    /// # Errors
    /// `InvalidPtx` when there is none or it is not understood.
    pub fn of(ptx: &str) -> Outcome<Self> {
        let missing = || failure(Code::InvalidPtx, "the PTX has no .target sm_NN directive");
        let line = ptx
            .lines()
            .map(str::trim_start)
            .find(|line| line.starts_with(".target"))
            .ok_or_else(missing)?;
        let name = line[".target".len()..]
            .split(|c: char| c == ',' || c == '/' || c.is_whitespace())
            .find(|word| !word.is_empty())
            .and_then(|word| word.strip_prefix("sm_"))
            .ok_or_else(missing)?;
        let digits = name.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let number = digits.parse().map_err(|_| missing())?;
        Ok(Self { number, suffix: name[digits.len()..].chars().next() })
    }

    /// Whether PTX for this target may run on the device.
    #[must_use]
    pub fn runs_on(self, device: Capability) -> bool {
        match self.suffix {
            None => self.number <= device.number(),
            Some('f') => self.number <= device.number() && self.number / 10 == device.number() / 10,
            Some(_) => self.number == device.number(),
        }
    }
}

/// Accepts PTX for this device and refuses PTX for a newer one.
///
/// # Errors
/// `NoBinaryForGpu` when its target is beyond the device, `InvalidPtx` when it has none.
pub fn accept_ptx(text: &str, device: Capability) -> Outcome<()> {
    let target = Target::of(text)?;
    ensure!(
        target.runs_on(device),
        NoBinaryForGpu,
        "PTX for sm_{}{} does not run on the emulated sm_{}",
        target.number,
        target.suffix.map(String::from).unwrap_or_default(),
        device.number()
    );
    Ok(())
}

/// Bytes of a whole fat binary, from its header.
///
/// # Errors
/// `InvalidImage` when the header is not one.
pub fn fat_binary_bytes(header: &[u8]) -> Outcome<usize> {
    ensure!(
        header.len() >= FAT_BINARY_HEADER_BYTES && u32_at(header, 0) == FAT_BINARY_MAGIC,
        InvalidImage,
        "not the header of a fat binary"
    );
    let bytes = usize::from(u16_at(header, 6)) as u64 + u64_at(header, 8);
    ensure!(bytes <= IMAGE_BYTES_MAX as u64, InvalidImage, "a fat binary of {bytes} bytes");
    Ok(bytes as usize)
}

/// Picks the PTX of a fat binary for this device.
///
/// # Errors
/// `NoBinaryForGpu` when it holds none that runs here, `InvalidImage` when it is cut or malformed.
pub fn ptx_of_fat_binary(image: &[u8], device: Capability) -> Outcome<String> {
    ensure!(image.len() >= FAT_BINARY_HEADER_BYTES, InvalidImage, "a fat binary of few bytes");
    let mut offset = usize::from(u16_at(image, 6));
    let mut best: Option<(Target, String)> = None;
    let mut seen = Vec::new();
    while offset < image.len() {
        let entry = Entry::read(image, offset)?;
        offset = entry.end;
        if entry.kind != KIND_PTX {
            seen.push(format!("machine code for sm_{}", entry.target_number));
            continue;
        }
        if entry.compressed {
            seen.push(format!("compressed PTX for sm_{} (--no-compress)", entry.target_number));
            continue;
        }
        let text = text_of(entry.payload)?;
        let target = Target::of(&text)?;
        seen.push(format!("PTX for sm_{}", target.number));
        if target.runs_on(device) && best.as_ref().is_none_or(|(chosen, _)| *chosen < target) {
            best = Some((target, text));
        }
    }
    best.map(|(_, text)| text).ok_or_else(|| {
        let reason = format!(
            "nothing in the fat binary runs on the emulated sm_{}: it holds {}",
            device.number(),
            if seen.is_empty() { "nothing".to_owned() } else { seen.join(", ") }
        );
        failure(Code::NoBinaryForGpu, reason)
    })
}

/// The refusal of a cubin.
#[must_use]
pub fn cubin_refusal() -> super::failure::Failure {
    failure(Code::NoBinaryForGpu, "a cubin holds machine code; the software GPU runs PTX only")
}

/// PTX bytes up to their NUL (or their end) as text.
///
/// # Errors
/// `InvalidPtx` when they are not UTF-8.
pub fn text_of(bytes: &[u8]) -> Outcome<String> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    std::str::from_utf8(&bytes[..end])
        .map(str::to_owned)
        .map_err(|error| failure(Code::InvalidPtx, format!("the PTX is not text: {error}")))
}

struct Entry<'a> {
    kind: u16,
    target_number: u32,
    compressed: bool,
    payload: &'a [u8],
    end: usize,
}

impl<'a> Entry<'a> {
    const HEADER_BYTES_MIN: usize = 64;

    fn read(image: &'a [u8], offset: usize) -> Outcome<Self> {
        let cut =
            || failure(Code::InvalidImage, format!("fat binary entry at byte {offset} is cut"));
        let rest = image.get(offset..).ok_or_else(cut)?;
        if rest.len() < Self::HEADER_BYTES_MIN {
            return Err(cut());
        }
        let header_bytes = u32_at(rest, 4) as usize;
        let payload_bytes = usize::try_from(u64_at(rest, 8)).map_err(|_| cut())?;
        let entry_bytes = header_bytes.checked_add(payload_bytes).ok_or_else(cut)?;
        if header_bytes < Self::HEADER_BYTES_MIN || entry_bytes > rest.len() {
            return Err(cut());
        }
        let flags = u64_at(rest, 40);
        Ok(Self {
            kind: u16_at(rest, 0),
            target_number: u32_at(rest, 28),
            compressed: u32_at(rest, 16) != 0 || flags & ENTRY_FLAGS_COMPRESSED != 0,
            payload: &rest[header_bytes..entry_bytes],
            end: offset + entry_bytes,
        })
    }
}

fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes([bytes[offset], bytes[offset + 1]])
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from(u16_at(bytes, offset)) | u32::from(u16_at(bytes, offset + 2)) << 16
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from(u32_at(bytes, offset)) | u64::from(u32_at(bytes, offset + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fat binary with the layout `fatbinary` writes: kind, target, compressed size, payload.
    fn fat_binary(entries: &[(u16, u32, u32, &[u8])]) -> Vec<u8> {
        let mut body = Vec::new();
        for (kind, target, compressed, payload) in entries {
            let mut header = [0_u8; 80];
            header[0..2].copy_from_slice(&kind.to_le_bytes());
            header[4..8].copy_from_slice(&80_u32.to_le_bytes());
            header[8..16].copy_from_slice(&(payload.len() as u64).to_le_bytes());
            header[16..20].copy_from_slice(&compressed.to_le_bytes());
            header[28..32].copy_from_slice(&target.to_le_bytes());
            body.extend_from_slice(&header);
            body.extend_from_slice(payload);
        }
        let mut image = FAT_BINARY_MAGIC.to_le_bytes().to_vec();
        image.extend_from_slice(&[1, 0, 16, 0]);
        image.extend_from_slice(&(body.len() as u64).to_le_bytes());
        image.extend_from_slice(&body);
        image
    }

    fn ptx(target: &str) -> Vec<u8> {
        format!("// text\n.version 8.0\n.target {target}, debug\n.address_size 64\n\0\0")
            .into_bytes()
    }

    #[test]
    fn the_newest_ptx_the_device_is_not_too_old_for_is_chosen() {
        let (old, mid, new) = (ptx("sm_70"), ptx("sm_80"), ptx("sm_90"));
        let image = fat_binary(&[
            (2, 80, 0, b"\x7fELF"),
            (1, 80, 0, &mid),
            (1, 90, 0, &new),
            (1, 70, 0, &old),
        ]);
        assert_eq!(fat_binary_bytes(&image).unwrap(), image.len());
        let chosen = ptx_of_fat_binary(&image, Capability::Sm80).unwrap();
        assert!(chosen.contains("sm_80") && chosen.ends_with('\n'));
        assert!(ptx_of_fat_binary(&image, Capability::Sm90).unwrap().contains("sm_90"));
    }

    #[test]
    fn only_machine_code_or_compressed_ptx_is_no_binary_and_says_what_is_there() {
        let text = ptx("sm_80");
        let image = fat_binary(&[(2, 86, 0, b"\x7fELF"), (1, 80, 700, &text)]);
        let refused = ptx_of_fat_binary(&image, Capability::Sm90).unwrap_err();
        assert_eq!(refused.code, Code::NoBinaryForGpu);
        assert!(refused.reason.contains("sm_86") && refused.reason.contains("--no-compress"));
    }

    #[test]
    fn a_cut_fat_binary_is_an_error_at_every_length() {
        let text = ptx("sm_80");
        let image = fat_binary(&[(1, 80, 0, &text)]);
        for length in FAT_BINARY_HEADER_BYTES + 1..image.len() {
            assert!(ptx_of_fat_binary(&image[..length], Capability::Sm80).is_err(), "{length}");
        }
    }

    #[test]
    fn a_target_runs_on_its_capability_and_on_newer_ones_unless_it_is_specific() {
        let target = |name: &str| Target::of(&format!(".target {name}\n")).unwrap();
        assert!(target("sm_80").runs_on(Capability::Sm90));
        assert!(!target("sm_90").runs_on(Capability::Sm80));
        assert!(target("sm_90a").runs_on(Capability::Sm90));
        assert!(!target("sm_80a").runs_on(Capability::Sm90));
        assert_eq!(
            accept_ptx(".target sm_100\n", Capability::Sm90).unwrap_err().code,
            Code::NoBinaryForGpu
        );
        assert_eq!(
            accept_ptx(".version 8.0\n", Capability::Sm90).unwrap_err().code,
            Code::InvalidPtx
        );
    }
}
