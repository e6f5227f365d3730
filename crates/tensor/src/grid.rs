//! Pixels as rows: image after image, line after line, a matrix row for each pixel (NHWC); and how a window goes over them.
//!
//! Output size (each way): `(size + pad_before + pad_after - dilation (kernel - 1) - 1) / stride + 1`.

use std::ops::Range;

/// The images of a batch, all of one size. Pixel (y, x) of image i is row `(i height + y) width + x`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Grid {
    pub images: usize,
    pub height: usize,
    pub width: usize,
}

impl Grid {
    /// Matrix rows: pixels of all images.
    pub fn rows(&self) -> usize {
        self.images * self.height * self.width
    }

    /// Pixels of one image.
    pub fn pixels(&self) -> usize {
        self.height * self.width
    }

    /// Image, line and column of a matrix row.
    pub fn place(&self, row: usize) -> (usize, usize, usize) {
        let (image, pixel) = (row / self.pixels(), row % self.pixels());
        (image, pixel / self.width, pixel % self.width)
    }
}

/// How a convolution or a pooling goes over an image. Pairs are (vertical, horizontal).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Window {
    pub kernel: (usize, usize),
    pub stride: (usize, usize),
    pub dilation: (usize, usize),
    /// Above and to the left.
    pub pad_before: (usize, usize),
    /// Below and to the right.
    pub pad_after: (usize, usize),
}

impl Window {
    /// The same each way, padded alike on all sides, without dilation.
    pub fn square(kernel: usize, stride: usize, padding: usize) -> Window {
        let (padding, one) = ((padding, padding), (1, 1));
        Window {
            kernel: (kernel, kernel),
            stride: (stride, stride),
            dilation: one,
            pad_before: padding,
            pad_after: padding,
        }
    }

    /// TensorFlow's "same" for images of a size: the output has `size / stride` lines and columns, rounded up; where the padding is odd, one
    /// more below and to the right.
    pub fn same(kernel: usize, stride: usize, height: usize, width: usize) -> Window {
        let pad = |size: usize| {
            let all = ((size.div_ceil(stride).max(1) - 1) * stride + kernel).saturating_sub(size);
            (all / 2, all - all / 2)
        };
        let ((top, bottom), (left, right)) = (pad(height), pad(width));
        Window { pad_before: (top, left), pad_after: (bottom, right), ..Window::square(kernel, stride, 0) }
    }

    /// The output of images of a size; `None` if the window does not fit into them.
    pub fn output(&self, grid: Grid) -> Option<Grid> {
        let size =
            |size: usize, kernel: usize, dilation: usize, before: usize, after: usize, stride: usize| {
                let span = kernel.checked_sub(1)?.checked_mul(dilation)?.checked_add(1)?;
                Some(size.checked_add(before)?.checked_add(after)?.checked_sub(span)? / stride.max(1) + 1)
            };
        let (before, after) = (self.pad_before, self.pad_after);
        let height = size(grid.height, self.kernel.0, self.dilation.0, before.0, after.0, self.stride.0)?;
        let width = size(grid.width, self.kernel.1, self.dilation.1, before.1, after.1, self.stride.1)?;
        Some(Grid { images: grid.images, height, width })
    }

    /// Places of the kernel.
    pub fn taps(&self) -> usize {
        self.kernel.0 * self.kernel.1
    }

    /// Places of the kernel as (line, column), in the order of a weight's columns.
    pub fn places(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (height, width) = self.kernel;
        (0..height).flat_map(move |a| (0..width).map(move |b| (a, b)))
    }

    /// The input line that a place of the kernel reads for an output line, and likewise the column; `None` in the padding.
    pub fn source(
        &self,
        grid: Grid,
        (y, x): (usize, usize),
        (a, b): (usize, usize),
    ) -> Option<(usize, usize)> {
        let y = (y * self.stride.0 + a * self.dilation.0).checked_sub(self.pad_before.0)?;
        let x = (x * self.stride.1 + b * self.dilation.1).checked_sub(self.pad_before.1)?;
        (y < grid.height && x < grid.width).then_some((y, x))
    }

    /// The output lines whose kernels may read an input line.
    pub(crate) fn readers(&self, y: usize, height: usize) -> Range<usize> {
        let reach = (self.kernel.0 - 1) * self.dilation.0;
        let last = (y + self.pad_before.0) / self.stride.0 + 1;
        (y + self.pad_before.0).saturating_sub(reach).div_ceil(self.stride.0)..last.min(height)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_sizes() {
        let grid = Grid { images: 2, height: 7, width: 10 };
        let size = |w: Window| w.output(grid).map(|g| (g.height, g.width));
        assert_eq!(size(Window::square(3, 1, 1)), Some((7, 10)));
        assert_eq!(size(Window::square(3, 2, 1)), Some((4, 5)));
        assert_eq!(size(Window::square(3, 2, 0)), Some((3, 4)));
        assert_eq!(size(Window { dilation: (2, 3), ..Window::square(3, 1, 0) }), Some((3, 4)));
        assert_eq!(size(Window::square(8, 1, 0)), None);
        for (kernel, stride) in [(3, 1), (3, 2), (5, 2), (2, 2), (1, 2), (4, 3)] {
            let same = Window::same(kernel, stride, 7, 10);
            assert_eq!(
                size(same),
                Some((7usize.div_ceil(stride), 10usize.div_ceil(stride))),
                "{kernel} {stride}"
            );
        }
        // TensorFlow: 224, kernel 3, stride 2: nothing above and to the left, one below and to the right.
        let odd = Window::same(3, 2, 224, 224);
        assert_eq!((odd.pad_before, odd.pad_after), ((0, 0), (1, 1)));
    }

    #[test]
    fn readers_are_the_lines_that_read() {
        let grid = Grid { images: 1, height: 9, width: 1 };
        for window in [
            Window::square(3, 1, 1),
            Window::square(3, 2, 1),
            Window::square(2, 3, 0),
            Window::square(5, 2, 2),
        ] {
            let window = Window {
                kernel: (window.kernel.0, 1),
                pad_before: (window.pad_before.0, 0),
                pad_after: (window.pad_after.0, 0),
                ..window
            };
            let height = window.output(grid).unwrap().height;
            for y in 0..9 {
                let reads = |o: usize| {
                    window.places().any(|place| window.source(grid, (o, 0), place) == Some((y, 0)))
                };
                let readers = window.readers(y, height);
                for o in (0..height).filter(|&o| reads(o)) {
                    assert!(readers.contains(&o), "{window:?} {y} {o} {readers:?}");
                }
            }
        }
    }
}
