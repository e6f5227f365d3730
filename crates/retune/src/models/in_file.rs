//! A matrix that stays in its file and is read whole each time that it is asked for: to go through a model once, one tensor
//! after the other.

use std::sync::{Arc, Mutex, PoisonError};

use retune_tensor::Weight;
use retune_tensor::storage::{Storage, pin};

use crate::error::Result;
use crate::models::ModelFiles;
use crate::models::lost::Lost;
use crate::models::matrix::{Hold, Lies, Matrix};

/// The matrix. Nothing of it is in memory; [`Storage::pinned`] reads it.
struct InFile {
    matrix: Matrix,
    files: ModelFiles,
    format: &'static str,
    block: usize,
    fault: Mutex<Option<String>>,
}

/// Leaves a matrix in its file.
pub fn weight(mut matrix: Matrix, files: ModelFiles) -> Weight {
    let (format, block) = matrix.format();
    // Read by strips straight into f32; codes of bitsandbytes stay what they are.
    if let Lies::Tensor { .. } = matrix.source {
        matrix.hold = Hold::F32;
    }
    Weight::Stored(Arc::new(InFile { matrix, files, format, block, fault: Mutex::default() }))
}

impl InFile {
    fn read(&self) -> Result<Arc<dyn Storage>> {
        let read = self.matrix.read(self.files.source());
        // Damage that comes from a change is told as one.
        self.matrix.check_unchanged(self.files.source())?;
        Ok(match read? {
            Weight::F32(tensor) => Arc::new(tensor),
            Weight::Stored(storage) => storage,
        })
    }
}

impl Storage for InFile {
    fn format(&self) -> &'static str {
        self.format
    }
    fn rows(&self) -> usize {
        self.matrix.shape.0
    }
    fn cols(&self) -> usize {
        self.matrix.shape.1
    }
    fn bytes(&self) -> usize {
        0
    }
    fn block(&self) -> usize {
        self.block
    }
    fn decode(&self, row: usize, col0: usize, out: &mut [f32]) {
        pin(self).decode(row, col0, out)
    }
    fn dot_rows(&self, row0: usize, x: &[f32], y: &mut [f32]) {
        pin(self).dot_rows(row0, x, y)
    }
    fn pinned(&self) -> Option<Arc<dyn Storage>> {
        let fault = |e: crate::Error| -> Arc<dyn Storage> {
            *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(e.to_string());
            Arc::new(Lost { format: "lost", shape: self.matrix.shape, block: 1 })
        };
        Some(self.read().unwrap_or_else(fault))
    }
    fn fault(&self) -> Option<String> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
