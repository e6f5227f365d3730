//! Finding objects in pictures.

use retune_media::pictures::Picture;
use retune_tensor::Params;

use super::{Detection, Generation, Nms, objective};
use crate::error::Error;
use crate::models::ImageModel;
use crate::tasks::images::{Pictures, Seen};

/// The objects in pictures, batch by batch: those that score at least `confidence`, best first, as fractions of the picture. `each` is given a
/// picture's number, the picture, and its objects, and says whether to go on. `false` if it did not. Each generation is told as its own programs do:
/// of a YOLOv8's boxes the best class, of an anchor's every class that scores enough.
///
/// # Errors
/// If the model is no detector, or a picture cannot be read; what `each` says.
pub fn predict<E: From<Error>>(
    net: &ImageModel,
    params: &Params,
    pictures: &Pictures,
    (confidence, settings): (f32, &Nms),
    each: &mut dyn FnMut(usize, Picture, Vec<Detection>) -> std::result::Result<bool, E>,
) -> std::result::Result<bool, E> {
    let free = matches!(objective::detector(net)?.generation, Generation::Free { .. });
    let settings = &Nms { best_class: settings.best_class || free, ..*settings };
    let say = |seen: &Seen| {
        let outputs = net.detect(seen.tape, &seen.state, seen.pass);
        objective::found(net, &outputs, seen.placements, confidence, settings)
    };
    pictures.run(net, params, say, each)
}
