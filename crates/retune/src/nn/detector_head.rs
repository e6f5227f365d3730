//! What stands on a detector's trunk: for each of its scales the last convolutions of single pixels, their columns side by side.

use retune_tensor::ops;
use retune_tensor::{Grid, Tape, Var};

use crate::nn::detector::Detector;
use crate::nn::{Linear, Rows};

/// One grid of cells.
pub struct Scale {
    /// The convolutions, each with the number of the trunk's output that it reads.
    pub parts: Vec<(usize, Linear)>,
    /// Pixels of the input that a cell is wide and high.
    pub stride: usize,
}

/// A detector's head: it can be rebuilt for other classes while the trunk is kept.
pub struct DetectorHead {
    /// What the columns mean.
    pub detector: Detector,
    pub scales: Vec<Scale>,
}

impl DetectorHead {
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.scales.iter().flat_map(|scale| scale.parts.iter().map(|(_, linear)| linear))
    }

    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.scales.iter_mut().flat_map(|scale| scale.parts.iter_mut().map(|(_, linear)| linear))
    }

    /// Of each scale `[images * h * w, columns]`, its grid and its stride; `outputs` are the trunk's, with their rows.
    pub fn forward(&self, tape: &Tape, outputs: &[(&Var, Rows)]) -> Vec<(Var, Grid, usize)> {
        self.scales.iter().filter_map(|scale| scale.forward(tape, outputs)).collect()
    }
}

impl DetectorHead {
    /// Works out the strides from the trunk's grids for pictures of a height and width.
    ///
    /// # Errors
    /// If cells are no whole pixels, or not square.
    pub fn set_strides(&mut self, grids: &[Grid], (height, width): (usize, usize)) -> Result<(), String> {
        self.detector.input = (height, width);
        for scale in &mut self.scales {
            let Some(grid) = scale.parts.first().and_then(|(from, _)| grids.get(*from)) else {
                return Err("a scale of the detector reads nothing".into());
            };
            scale.stride = height / grid.height.max(1);
            if (scale.stride * grid.height, scale.stride * grid.width) != (height, width) {
                return Err(format!(
                    "pictures of {width} x {height} do not divide into {} x {} square cells; choose an image_size whose sides are \
                     multiples of 32",
                    grid.width, grid.height
                ));
            }
        }
        Ok(())
    }
}

impl Scale {
    fn forward(&self, tape: &Tape, outputs: &[(&Var, Rows)]) -> Option<(Var, Grid, usize)> {
        let read = |(from, linear): &(usize, Linear)| {
            let (x, rows) = outputs.get(*from)?;
            Some(linear.forward(tape, rows, x))
        };
        let columns = self.parts.iter().map(read).collect::<Option<Vec<Var>>>()?;
        let grid = outputs.get(self.parts.first()?.0)?.1.grid?;
        let x = match columns.as_slice() {
            [one] => one.clone(),
            many => ops::concat_columns(tape, &many.iter().collect::<Vec<_>>()),
        };
        Some((x, grid, self.stride))
    }
}
