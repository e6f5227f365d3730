//! A data set's parts: what is trained on, what is looked at during training, and what is kept for the end.

/// Names of folders and keys of the training part ...
pub const TRAIN: &[&str] = &["train", "training"];
/// ... of the part that is evaluated on during training ...
pub const VAL: &[&str] = &["val", "valid", "validation"];
/// ... and of the part that is evaluated on at the end.
pub const TEST: &[&str] = &["test", "testing"];

/// The parts of a data set. Without a part of its own for evaluation, `val` is nothing.
#[derive(Clone, Debug)]
pub struct Splits<T> {
    pub train: T,
    pub val: Option<T>,
    pub test: Option<T>,
}

impl<T> Splits<T> {
    /// A data set in one piece.
    pub fn one(train: T) -> Splits<T> {
        Splits { train, val: None, test: None }
    }

    /// Every part put through `f`.
    pub fn map<U, E>(self, mut f: impl FnMut(T) -> Result<U, E>) -> Result<Splits<U>, E> {
        Ok(Splits {
            train: f(self.train)?,
            val: self.val.map(&mut f).transpose()?,
            test: self.test.map(f).transpose()?,
        })
    }
}
