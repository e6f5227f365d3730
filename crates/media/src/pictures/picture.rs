//! A decoded picture: RGB bytes in rows, and the ways to cut, flip and put it down.

/// A picture in memory. `data` holds red, green and blue of each pixel, row by row: `3 * width * height` bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    pub width: usize,
    pub height: usize,
    pub data: Vec<u8>,
}

/// A part of a picture in whole pixels; it lies inside the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    pub x: usize,
    pub y: usize,
    pub width: usize,
    pub height: usize,
}

impl Picture {
    /// A picture of one colour.
    pub fn filled(width: usize, height: usize, colour: [u8; 3]) -> Picture {
        Picture { width, height, data: colour.repeat(width * height) }
    }

    /// A picture of grey bytes, row by row. `grey` has `width * height` of them.
    pub fn from_grey(width: usize, height: usize, grey: &[u8]) -> Picture {
        assert_eq!(grey.len(), width * height, "grey bytes of a {width} x {height} picture");
        Picture { width, height, data: grey.iter().flat_map(|&g| [g; 3]).collect() }
    }

    /// All of it.
    pub fn whole(&self) -> Region {
        Region { x: 0, y: 0, width: self.width, height: self.height }
    }

    /// Bytes of row `y`.
    pub fn row(&self, y: usize) -> &[u8] {
        &self.data[3 * self.width * y..][..3 * self.width]
    }

    pub fn row_mut(&mut self, y: usize) -> &mut [u8] {
        &mut self.data[3 * self.width * y..][..3 * self.width]
    }

    pub fn pixel(&self, x: usize, y: usize) -> [u8; 3] {
        let p = 3 * (y * self.width + x);
        [self.data[p], self.data[p + 1], self.data[p + 2]]
    }

    /// Sets a pixel; outside the picture nothing happens.
    pub fn set(&mut self, x: usize, y: usize, colour: [u8; 3]) {
        if x < self.width && y < self.height {
            let p = 3 * (y * self.width + x);
            self.data[p..p + 3].copy_from_slice(&colour);
        }
    }

    /// A copy of a part.
    pub fn crop(&self, region: Region) -> Picture {
        let Region { x, y, width, height } = region;
        let mut data = Vec::with_capacity(3 * width * height);
        for row in y..y + height {
            data.extend_from_slice(&self.row(row)[3 * x..3 * (x + width)]);
        }
        Picture { width, height, data }
    }

    /// Left and right change places.
    pub fn flip_horizontal(&mut self) {
        for y in 0..self.height {
            let row = self.row_mut(y);
            let n = row.len() / 3;
            for x in 0..n / 2 {
                for c in 0..3 {
                    row.swap(3 * x + c, 3 * (n - 1 - x) + c);
                }
            }
        }
    }

    /// Top and bottom change places.
    pub fn flip_vertical(&mut self) {
        let bytes = 3 * self.width;
        for y in 0..self.height / 2 {
            let (top, bottom) = self.data.split_at_mut((self.height - 1 - y) * bytes);
            top[y * bytes..(y + 1) * bytes].swap_with_slice(&mut bottom[..bytes]);
        }
    }

    /// Copies `other` with its left upper corner at (x, y), which may lie outside; only what falls into `clip` is drawn.
    pub fn put(&mut self, other: &Picture, x: i64, y: i64, clip: Region) {
        let x0 = x.max(clip.x as i64);
        let y0 = y.max(clip.y as i64);
        let x1 = (x + other.width as i64).min((clip.x + clip.width).min(self.width) as i64);
        let y1 = (y + other.height as i64).min((clip.y + clip.height).min(self.height) as i64);
        if x0 >= x1 {
            return;
        }
        for row in y0..y1 {
            let from = &other.row((row - y) as usize)[3 * (x0 - x) as usize..3 * (x1 - x) as usize];
            self.row_mut(row as usize)[3 * x0 as usize..3 * x1 as usize].copy_from_slice(from);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(width: usize, height: usize) -> Picture {
        Picture { width, height, data: (0..3 * width * height).map(|i| i as u8).collect() }
    }

    #[test]
    fn flips_are_their_own_inverse_and_move_the_corners() {
        let p = numbered(5, 3);
        let mut q = p.clone();
        q.flip_horizontal();
        assert_eq!(q.pixel(0, 1), p.pixel(4, 1));
        q.flip_horizontal();
        assert_eq!(q, p);
        q.flip_vertical();
        assert_eq!(q.pixel(2, 0), p.pixel(2, 2));
        q.flip_vertical();
        assert_eq!(q, p);
    }

    #[test]
    fn put_draws_only_inside_picture_and_clip() {
        let mut canvas = Picture::filled(4, 4, [9; 3]);
        let stamp = Picture::filled(3, 3, [1; 3]);
        let whole = canvas.whole();
        canvas.put(&stamp, -2, 3, whole);
        canvas.put(&stamp, 3, 0, Region { x: 0, y: 0, width: 3, height: 4 });
        canvas.put(&stamp, 100, -100, whole);
        let ones = canvas.data.iter().filter(|&&b| b == 1).count();
        assert_eq!((canvas.pixel(0, 3), ones), ([1; 3], 3));
        assert_eq!(
            numbered(4, 4).crop(Region { x: 1, y: 2, width: 2, height: 1 }).data,
            [27, 28, 29, 30, 31, 32]
        );
    }
}
