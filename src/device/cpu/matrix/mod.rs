//! Matrix products on the blocks of the file: decode, scoring and prefill through one kernel body.
//!
//! Weights stay in their GGUF block type, sixteen rows interleaved (`layout`). Activations are
//! prepared once for all matrices that read them ([`Activations`]): as f32 for plain weights, as
//! int8 blocks of 32 or 256 for quantised ones, by the rules of ggml's formats (`quantise`). A
//! kernel unpacks a weight block once and applies it to all rows of a tile (`integer` for blocks
//! of 32, `super_blocks` for the K-quants, `float`).
//!
//! Invariant (row invariance): every lane of a panel is one output feature, and its sum over the
//! blocks is one chain in column order. Nothing else enters, so a result does not depend on the
//! other rows, the tiles or the threads. Read next: `layout`, then `integer`.

mod activations;
mod float;
mod formats;
mod head;
mod integer;
mod layout;
mod multiply;
mod plain;
mod quantise;
mod storage;
mod super_blocks;
mod super_formats;
#[cfg(test)]
mod tests;

pub use activations::{Activations, Need};
pub use head::{HeadScan, RowSummary, ScanRow};
pub use multiply::{
    Product, multiply, multiply_add, multiply_each, multiply_gate_up, multiply_rows_subset,
};

use crate::device::blocks::dequantize_row;
use crate::device::{BlockType, MatrixView};
use crate::error::DeviceError;
use layout::{BLOCK, Layout, PANEL};
use storage::Storage;

/// A weight matrix `[rows, cols]` in panels of sixteen interleaved rows.
#[derive(Debug)]
pub struct Matrix {
    rows: usize,
    cols: usize,
    layout: Layout,
    storage: Storage,
}

impl Matrix {
    /// Interleaves the rows of `view`. The last panel is filled up with rows of zeros, and rows of
    /// plain types with zeros to a multiple of 32; otherwise the bytes are the file's.
    ///
    /// # Errors
    /// If the matrix is empty, its rows are not whole blocks, `bytes` has another size than the
    /// shape demands, or there is not enough memory.
    pub fn pack(view: MatrixView<'_>) -> Result<Self, DeviceError> {
        let row_bytes = row_bytes(&view)?;
        let MatrixView { name, rows, cols, kind, bytes } = view;
        let layout = Layout::new(kind, cols);
        let size = layout.panel_bytes().checked_mul(rows.div_ceil(PANEL));
        let size = size.ok_or_else(|| failed(name, "larger than the address space"))?;
        let mut storage = Storage::zeroed(size, name)?;
        layout.interleave(bytes, row_bytes, storage.as_mut_slice());
        Ok(Self { rows, cols, layout, storage })
    }

    /// As [`Matrix::pack`], with every weight widened to f32: products then round no activation.
    ///
    /// # Errors
    /// As [`Matrix::pack`].
    pub fn pack_widened(view: MatrixView<'_>) -> Result<Self, DeviceError> {
        let row_bytes = row_bytes(&view)?;
        let mut row = vec![0.0; view.cols];
        let mut wide = Vec::with_capacity(view.rows.saturating_mul(view.cols).saturating_mul(4));
        for bytes in view.bytes.chunks_exact(row_bytes) {
            dequantize_row(view.kind, bytes, &mut row);
            wide.extend(row.iter().flat_map(|w| w.to_le_bytes()));
        }
        Self::pack(MatrixView { kind: BlockType::F32, bytes: &wide, ..view })
    }

    /// Out features, `N`.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// In features, `K`.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The block type, that of the file.
    #[must_use]
    pub fn kind(&self) -> BlockType {
        self.layout.kind()
    }

    /// Bytes of memory; a product reads each once.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.storage.as_slice().len()
    }

    /// The form of activations a product with this matrix reads.
    #[must_use]
    pub fn need(&self) -> Need {
        match self.kind() {
            kind if kind.is_plain() => Need::FLOAT,
            kind if kind.block_elements() == BLOCK => Need::INT8_32,
            _ => Need::INT8_256,
        }
    }

    /// Decodes row `row` into `out: [cols]`, exactly as [`dequantize_row`] decodes it in the file.
    ///
    /// # Panics
    /// If `row` or the length of `out` is not one of this matrix.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        assert_eq!(out.len(), self.cols, "columns of the row");
        let kind = self.kind();
        self.layout.each_block(self.panel(row / PANEL), row % PANEL, |at, block| {
            // Plain types come in runs of 32, of which the last may be padding.
            let values = &mut out[at..self.cols.min(at + self.layout.cell_cols())];
            let bytes = kind.row_bytes(values.len()).expect("whole blocks");
            dequantize_row(kind, &block[..bytes], values);
        });
    }

    fn panels(&self) -> usize {
        self.rows.div_ceil(PANEL)
    }

    fn panel(&self, panel: usize) -> &[u8] {
        let bytes = self.layout.panel_bytes();
        &self.storage.as_slice()[panel * bytes..][..bytes]
    }
}

fn failed(name: &str, what: &str) -> DeviceError {
    DeviceError::Failed(format!("matrix {name}: {what}"))
}

/// Bytes of a row of `view`, whose sizes agree.
fn row_bytes(view: &MatrixView<'_>) -> Result<usize, DeviceError> {
    let MatrixView { name, rows, cols, kind, bytes } = *view;
    let row_bytes = match kind.row_bytes(cols) {
        Some(row_bytes) if rows > 0 && cols > 0 => row_bytes,
        _ => {
            return Err(failed(name, &format!("{rows} rows of {cols} columns do not fit {kind}")));
        }
    };
    if row_bytes.checked_mul(rows) != Some(bytes.len()) {
        let (expected, got) = (format!("{rows} rows of {row_bytes} bytes for {kind}"), bytes.len());
        return Err(failed(name, &format!("expected {expected}, got {got} bytes")));
    }
    Ok(row_bytes)
}
