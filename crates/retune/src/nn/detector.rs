//! What the columns of a detector's outputs are, and on which grids they lie.
//!
//! Anchors (YOLOv3, v4): for each anchor `tx, ty, tw, th, objectness, classes...`, all before the sigmoid.
//! Free of anchors (YOLOv8): `4 reg_max` logits of the distances left, top, right, bottom in cells, then the classes' logits.

use retune_tensor::{Grid, Tensor};

use crate::error::{Error, Result};

/// One of a detector's outputs: a row of columns for each cell of a grid over the network's input.
#[derive(Clone, Copy, Debug)]
pub struct Output<'a> {
    /// `[images * height * width, columns]`.
    pub values: &'a Tensor,
    pub grid: Grid,
    /// Pixels of the input that a cell is wide and high.
    pub stride: usize,
}

/// How a box's distance to the truth is measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BoxLoss {
    /// Cross-entropy of x and y within the cell, squares of log width and log height (YOLOv3).
    #[default]
    Mse,
    /// 1 - intersection over union, and its three refinements (arXiv:1902.09630, arXiv:1911.08287).
    Iou,
    Giou,
    Diou,
    Ciou,
}

/// One `[yolo]` section of a darknet cfg, under its names; the defaults are YOLOv3's.
#[derive(Clone, Debug, PartialEq)]
pub struct AnchorScale {
    /// Width and height in pixels of the network's input; those that the section's `mask` names.
    pub anchors: Vec<(f32, f32)>,
    /// How far a centre may lie beyond its cell: 1 not at all, v4-tiny 1.05.
    pub scale_x_y: f32,
    /// A box that overlaps any truth by more is not taught that there is nothing.
    pub ignore_thresh: f32,
    /// A box that overlaps a truth by more is taught that truth, whichever anchor it has; 1: none.
    pub truth_thresh: f32,
    /// Beside the best anchor, those whose shape overlaps the truth's by more learn it too; 1: none.
    pub iou_thresh: f32,
    pub box_loss: BoxLoss,
    pub iou_normalizer: f32,
    pub cls_normalizer: f32,
    pub obj_normalizer: f32,
    /// `label_smooth_eps`.
    pub label_smoothing: f32,
}

impl Default for AnchorScale {
    fn default() -> AnchorScale {
        AnchorScale {
            anchors: Vec::new(),
            scale_x_y: 1.0,
            ignore_thresh: 0.5,
            truth_thresh: 1.0,
            iou_thresh: 1.0,
            box_loss: BoxLoss::Mse,
            iou_normalizer: 1.0,
            cls_normalizer: 1.0,
            obj_normalizer: 1.0,
            label_smoothing: 0.0,
        }
    }
}

/// The two kinds of YOLO heads.
#[derive(Clone, Debug, PartialEq)]
pub enum Generation {
    /// YOLOv3 and v4: one scale for each output.
    Anchors { scales: Vec<AnchorScale> },
    /// YOLOv8: distances as distributions over `reg_max` cells.
    Free { reg_max: usize },
}

/// What a detector's outputs mean.
#[derive(Clone, Debug, PartialEq)]
pub struct Detector {
    pub labels: Vec<String>,
    pub generation: Generation,
    /// Height and width in pixels that the network was made for; its outputs' grids say what it was run on.
    pub input: (usize, usize),
}

impl Detector {
    /// Columns that output number `scale` has.
    pub fn columns(&self, scale: usize) -> usize {
        match &self.generation {
            Generation::Anchors { scales } => {
                scales.get(scale).map_or(0, |scale| scale.anchors.len() * (5 + self.labels.len()))
            }
            Generation::Free { reg_max } => 4 * reg_max + self.labels.len(),
        }
    }

    /// Checks the settings that would make every box nonsense.
    ///
    /// # Errors
    /// Names the anchor, or says that there are no distances.
    pub fn check_settings(&self) -> Result<()> {
        let scales = match &self.generation {
            Generation::Free { reg_max: 0 } => {
                return Err(Error::Input(
                    "the detector's reg_max is 0: a box needs distances, usually 16".into(),
                ));
            }
            Generation::Free { .. } => return Ok(()),
            Generation::Anchors { scales } => scales,
        };
        for (i, scale) in scales.iter().enumerate() {
            let size = |v: f32| v.is_finite() && v > 0.0;
            if let Some((w, h)) = scale.anchors.iter().find(|(w, h)| !size(*w) || !size(*h)) {
                return Err(Error::Input(format!(
                    "an anchor of scale {i} is {w} x {h}: both sides must be more than 0 pixels"
                )));
            }
            if scale.anchors.is_empty() || !size(scale.scale_x_y) {
                let (anchors, s) = (scale.anchors.len(), scale.scale_x_y);
                return Err(Error::Input(format!(
                    "scale {i} has {anchors} anchors and scale_x_y = {s}: both must be more than 0"
                )));
            }
        }
        Ok(())
    }

    /// Checks the settings and the outputs' shapes; the number of pictures.
    ///
    /// # Errors
    /// Says which output does not fit, and what it should be.
    pub fn check(&self, outputs: &[Output]) -> Result<usize> {
        self.check_settings()?;
        if let Generation::Anchors { scales } = &self.generation
            && scales.len() != outputs.len()
        {
            let (scales, outputs) = (scales.len(), outputs.len());
            return Err(Error::Input(format!(
                "the network has {outputs} outputs, its anchors are for {scales}: one [yolo] section for each output is needed"
            )));
        }
        let images = outputs.first().map_or(0, |output| output.grid.images);
        for (i, output) in outputs.iter().enumerate() {
            let (Output { values, grid, .. }, columns) = (output, self.columns(i));
            if (values.rows(), values.cols()) != (grid.rows(), columns) || grid.images != images {
                return Err(Error::Input(format!(
                    "output {i} of the network is [{}, {}]; {} classes on {} x {} cells of {images} pictures need [{}, {columns}]",
                    values.rows(),
                    values.cols(),
                    self.labels.len(),
                    grid.height,
                    grid.width,
                    images * grid.pixels(),
                )));
            }
        }
        Ok(images)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_checked() {
        let anchors = |n| AnchorScale { anchors: vec![(10.0, 10.0); n], ..AnchorScale::default() };
        let detector = Detector {
            labels: vec!["a".into(), "b".into()],
            generation: Generation::Anchors { scales: vec![anchors(3)] },
            input: (64, 64),
        };
        let grid = Grid { images: 2, height: 2, width: 3 };
        let (right, wrong) = (Tensor::zeros(12, 21), Tensor::zeros(12, 20));
        let output = |values| Output { values, grid, stride: 32 };
        assert_eq!(detector.check(&[output(&right)]).unwrap(), 2);
        let text = detector.check(&[output(&wrong)]).unwrap_err().to_string();
        assert!(
            text.contains("output 0") && text.contains("[12, 20]") && text.contains("[12, 21]"),
            "{text}"
        );
        let text = detector.check(&[output(&right), output(&right)]).unwrap_err().to_string();
        assert!(text.contains("2 outputs"), "{text}");
        let free = |reg_max| Detector { generation: Generation::Free { reg_max }, ..detector.clone() };
        assert_eq!(free(16).columns(7), 66);
        assert!(free(0).check(&[]).unwrap_err().to_string().contains("reg_max is 0"));
        let with =
            |scale| Detector { generation: Generation::Anchors { scales: vec![scale] }, ..detector.clone() };
        let flat = AnchorScale { anchors: vec![(10.0, 10.0), (10.0, 0.0)], ..AnchorScale::default() };
        let text = with(flat).check_settings().unwrap_err().to_string();
        assert!(text.contains("scale 0 is 10 x 0"), "{text}");
        assert!(with(anchors(0)).check_settings().is_err());
        assert!(with(AnchorScale { scale_x_y: 0.0, ..anchors(1) }).check_settings().is_err());
    }
}
