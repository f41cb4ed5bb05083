//! `ldmatrix`, `stmatrix`, `movmatrix`: 8x8 matrices of 16-bit elements between shared memory and
//! registers.
//!
//! In registers lane `l` holds elements `2 (l % 4)` and the next of row `l / 4`. The address of row
//! `r` of matrix `i` comes from lane `8 i + r`. A row is read by the warp as a whole.

use super::fault::{Outcome, Wrong};
use super::registers::Plane;
use super::step::Step;
use crate::memory::banks::matrix_wavefronts;
use crate::ptx::ir::{Address, Operand};

/// Rows of 16-bit elements.
type Matrix = [[u16; 8]; 8];

fn to_lanes(matrix: &Matrix) -> Plane {
    std::array::from_fn(|lane| {
        let (row, column) = (lane / 4, lane % 4 * 2);
        u32::from(matrix[row][column]) | u32::from(matrix[row][column + 1]) << 16
    })
}

fn from_lanes(plane: &Plane) -> Matrix {
    std::array::from_fn(|row| {
        std::array::from_fn(|column| (plane[row * 4 + column / 2] >> (column % 2 * 16)) as u16)
    })
}

fn transposed(matrix: &Matrix) -> Matrix {
    std::array::from_fn(|row| std::array::from_fn(|column| matrix[column][row]))
}

impl Step<'_, '_> {
    /// `ldmatrix`: one, two or four matrices.
    pub(super) fn load_matrix(
        &mut self,
        transpose: bool,
        dsts: &[u32],
        address: Address,
    ) -> Outcome {
        let rows = self.rows(dsts.len(), address)?;
        let view = self.cta.shared.view(self.access(false));
        for (i, dst) in dsts.iter().enumerate() {
            let addresses = &rows[i * 8..i * 8 + 8];
            let mut plane: Plane = [0; 32];
            for (row, address) in addresses.iter().enumerate() {
                let bytes = self
                    .cta
                    .shared
                    .load_row(&view, *address)
                    .map_err(|violation| Wrong::access(i * 8 + row, violation))?;
                for (word, chunk) in bytes.chunks_exact(4).enumerate() {
                    let chunk = chunk.try_into().expect("chunks of four");
                    plane[row * 4 + word] = u32::from_ne_bytes(chunk);
                }
            }
            self.shared_traffic(matrix_wavefronts(addresses));
            if transpose {
                plane = to_lanes(&transposed(&from_lanes(&plane)));
            }
            self.registers().planes[*dst as usize] = plane;
        }
        Ok(())
    }

    /// `stmatrix`: one, two or four matrices.
    pub(super) fn store_matrix(
        &mut self,
        transpose: bool,
        srcs: &[Operand],
        address: Address,
    ) -> Outcome {
        let rows = self.rows(srcs.len(), address)?;
        let by = self.access(false);
        for (i, src) in srcs.iter().enumerate() {
            let mut plane = self.registers().words(*src);
            if transpose {
                plane = to_lanes(&transposed(&from_lanes(&plane)));
            }
            let mask = 0xff << (i * 8);
            let values = std::array::from_fn(|lane| {
                let row = lane % 8 * 4;
                [plane[row], plane[row + 1], plane[row + 2], plane[row + 3]]
            });
            self.cta.shared.store(by, mask, &rows, 16, &values)?;
            self.shared_traffic(matrix_wavefronts(&rows[i * 8..i * 8 + 8]));
        }
        self.cta.progress = self.cta.clock;
        Ok(())
    }

    fn rows(&mut self, matrices: usize, address: Address) -> Outcome<[u32; 32]> {
        let addresses = self.addresses(address)?.map(|a| super::special::from_generic(a).1);
        let naming = u32::MAX >> (32 - 8 * matrices as u32);
        self.shared_places(naming, &addresses, 16)
    }

    /// `movmatrix`: the transpose.
    pub(super) fn transpose(&mut self, dst: u32, a: Operand) {
        let plane = self.registers().words(a);
        self.registers().planes[dst as usize] = to_lanes(&transposed(&from_lanes(&plane)));
    }
}
