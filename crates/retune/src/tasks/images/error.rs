//! What can go wrong while pictures are learned from, beside what is wrong with a picture itself.

use crate::error::Error;
use crate::models::{ImageModel, Network};
use crate::nn::{Classifier, Head};

/// The classifier of an image network.
///
/// # Errors
/// If it has another head, or none.
pub fn classifier(net: &ImageModel) -> Result<&Classifier, Error> {
    match net.head() {
        Head::Classifier(head) => Ok(head),
        _ => Err(Error::Input(format!(
            "the model has no classifier (model type {}); give it labels to make one, or use --task object-detection",
            net.model_type()
        ))),
    }
}

/// The network ends without anything that a classifier could read.
pub fn no_output() -> Error {
    Error::Input("the network has no output that a classifier reads".into())
}
