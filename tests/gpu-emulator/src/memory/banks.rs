//! Bank conflicts: how many passes over the 32 four-byte banks a shared-memory access takes.
//!
//! Hardware serves an access in phases of 128 bytes: the whole warp for words up to 4 bytes, halves
//! for 8, quarters for 16, and one matrix of eight 16-byte rows for `ldmatrix`. Inside a phase,
//! lanes that want the same word share it; distinct words of one bank take turns.

/// Passes one access took, and what it would take with no two words in one bank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wavefronts {
    /// Passes taken.
    pub taken: u32,
    /// Phases with a lane in them.
    pub ideal: u32,
}

/// Wavefronts of one warp access: every lane of `mask` touches `size` bytes at its address.
#[must_use]
pub fn wavefronts(mask: u32, addresses: &[u32; 32], size: u32) -> Wavefronts {
    let phase_lanes = if size <= 4 { 32 } else { 128 / size as usize };
    if mask == u32::MAX && is_dense(addresses, size) {
        let phases = 32 / phase_lanes as u32;
        return Wavefronts { taken: phases, ideal: phases };
    }
    let mut sum = Wavefronts { taken: 0, ideal: 0 };
    for (phase, addresses) in addresses.chunks_exact(phase_lanes).enumerate() {
        let active = mask >> (phase * phase_lanes) & (u32::MAX >> (32 - phase_lanes));
        if active != 0 {
            sum.taken += depth(active, addresses, size.max(4));
            sum.ideal += 1;
        }
    }
    sum
}

/// Wavefronts of one 8x8 matrix of `ldmatrix` or `stmatrix`: eight rows of 16 bytes.
#[must_use]
pub fn matrix_wavefronts(rows: &[u32]) -> Wavefronts {
    Wavefronts { taken: depth(0xff, rows, 16), ideal: 1 }
}

/// Consecutive lanes touch consecutive, aligned elements of at least a word.
fn is_dense(addresses: &[u32; 32], size: u32) -> bool {
    let first = addresses[0];
    let mut off = first & (size - 1);
    for (lane, address) in addresses.iter().enumerate() {
        off |= address ^ first.wrapping_add(lane as u32 * size);
    }
    size >= 4 && off == 0
}

/// The most distinct pieces of `size` bytes that fall on the same banks. Pieces are aligned, so two
/// of them share all their banks or none.
fn depth(active: u32, addresses: &[u32], size: u32) -> u32 {
    let groups = 128 / size;
    let mut first = [0u32; 32];
    let (mut seen, mut again) = (0u32, 0u32);
    let piece = |lane: usize| addresses[lane] / size;
    for lane in (0..addresses.len()).filter(|lane| active >> lane & 1 == 1) {
        let group = (piece(lane) % groups) as usize;
        if seen >> group & 1 == 0 {
            seen |= 1 << group;
            first[group] = piece(lane);
        } else {
            again |= u32::from(first[group] != piece(lane)) << group;
        }
    }
    let mut most = u32::from(seen != 0);
    for group in (0..32).filter(|group| again >> group & 1 == 1) {
        let mut distinct: Vec<u32> = (0..addresses.len())
            .filter(|lane| active >> lane & 1 == 1 && piece(*lane) % groups == group)
            .map(piece)
            .collect();
        distinct.sort_unstable();
        distinct.dedup();
        most = most.max(distinct.len() as u32);
    }
    most
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(mask: u32, size: u32, address: impl Fn(u32) -> u32) -> (u32, u32) {
        let addresses = std::array::from_fn(|lane| address(lane as u32));
        let w = wavefronts(mask, &addresses, size);
        (w.taken, w.ideal)
    }

    #[test]
    fn known_patterns_take_their_known_passes() {
        assert_eq!(taken(u32::MAX, 4, |l| l * 4), (1, 1));
        assert_eq!(taken(u32::MAX, 4, |_| 64), (1, 1), "a broadcast");
        assert_eq!(taken(u32::MAX, 4, |l| l * 8), (2, 1), "stride two");
        assert_eq!(taken(u32::MAX, 4, |l| l * 128), (32, 1), "a column");
        assert_eq!(taken(u32::MAX, 4, |l| l * 132), (1, 1), "a padded column");
        assert_eq!(taken(u32::MAX, 2, |l| l * 2), (1, 1), "halves share words");
        assert_eq!(taken(u32::MAX, 8, |l| l * 8), (2, 2));
        assert_eq!(taken(u32::MAX, 16, |l| l * 16), (4, 4));
        assert_eq!(taken(u32::MAX, 16, |l| l * 128), (32, 4), "rows of 128 bytes, unswizzled");
        assert_eq!(taken(u32::MAX, 16, |l| l * 128 + (l % 8) * 16), (4, 4), "and swizzled");
        assert_eq!(taken(1, 4, |l| l * 4), (1, 1));
        assert_eq!(taken(0, 4, |l| l * 4), (0, 0));
        assert_eq!(taken(0xff, 16, |l| l * 16), (1, 1), "one quarter of the warp");
    }

    #[test]
    fn a_matrix_of_unswizzled_rows_conflicts_and_a_swizzled_one_does_not() {
        let rows = |f: fn(u32) -> u32| (0..8).map(f).collect::<Vec<_>>();
        assert_eq!(matrix_wavefronts(&rows(|r| r * 16)).taken, 1);
        assert_eq!(matrix_wavefronts(&rows(|r| r * 128)).taken, 8);
        assert_eq!(matrix_wavefronts(&rows(|r| r * 128 + r * 16)).taken, 1);
        assert_eq!(matrix_wavefronts(&rows(|r| r * 64)).taken, 4);
        assert_eq!(matrix_wavefronts(&rows(|r| r * 144)).taken, 1);
    }
}
