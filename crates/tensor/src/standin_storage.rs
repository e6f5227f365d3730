//! Stand-in until the storage module lands.
pub trait Storage: Send + Sync {
    fn format(&self) -> &'static str;
    fn rows(&self) -> usize;
    fn cols(&self) -> usize;
    fn bytes(&self) -> usize;
    fn decode(&self, row: usize, col0: usize, out: &mut [f32]);
    fn block(&self) -> usize;
    fn as_f32(&self) -> Option<&[f32]> {
        None
    }
    fn dot_rows(&self, row0: usize, x: &[f32], y: &mut [f32]);
}
impl Storage for crate::Tensor {
    fn format(&self) -> &'static str {
        "f32"
    }
    fn rows(&self) -> usize {
        crate::Tensor::rows(self)
    }
    fn cols(&self) -> usize {
        crate::Tensor::cols(self)
    }
    fn bytes(&self) -> usize {
        self.len() * 4
    }
    fn decode(&self, row: usize, col0: usize, out: &mut [f32]) {
        out.copy_from_slice(&self.row(row)[col0..col0 + out.len()]);
    }
    fn block(&self) -> usize {
        1
    }
    fn as_f32(&self) -> Option<&[f32]> {
        Some(self.data())
    }
    fn dot_rows(&self, row0: usize, x: &[f32], y: &mut [f32]) {
        for (i, y) in y.iter_mut().enumerate() {
            *y = self.row(row0 + i).iter().zip(x).map(|(a, b)| a * b).sum();
        }
    }
}
