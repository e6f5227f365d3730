//! Sentence embeddings: the mean of a text's last rows, scaled to length 1 (Reimers and Gurevych, 2019).
//!
//! `e = m / |m|`, `m = mean_t x_t`; the dot product of two is the cosine of the angle between them.

use std::sync::Arc;

use retune_tensor::{Params, Tape, Tensor};

use super::classification::{Packed, Tokens, in_batch_order};
use crate::models::TextModel;
use crate::nn::{Active, Pass, Pooling};

/// Lengths below this are not divided by.
const SHORTEST: f32 = 1e-12;

/// The embeddings `[N, C]` of texts, each through the adapter in its slot (`None`: the base alone). `progress` as in
/// [`super::classification::predict`].
pub fn embed(
    net: &dyn TextModel,
    params: &Params,
    texts: &[Tokens],
    slots: &[Option<usize>],
    batch_size: usize,
    progress: &mut dyn FnMut(usize) -> bool,
) -> Option<Tensor> {
    let slot = |text: usize| slots.get(text).copied().flatten();
    let order = in_batch_order(texts, slots);
    let mut all = Tensor::zeros(texts.len(), net.hidden_size());
    let mut done = 0;
    for batch in order.chunks(batch_size.max(1)) {
        let packed = Packed::of(batch.iter().map(|&text| &texts[text]));
        let each: Arc<[Option<usize>]> = batch.iter().map(|&text| slot(text)).collect();
        let tape = Tape::inference(params);
        let pass = Pass { active: Active::PerExample(each), ..Pass::default() };
        let hidden = net.hidden(&tape, &packed.input(), &pass);
        let pooled = Pooling::Mean.apply(&tape, &hidden.x, &hidden.rows.segments);
        let cols = all.cols();
        for (place, &text) in batch.iter().enumerate() {
            let row = pooled.value().row(place);
            let length = row.iter().map(|x| x * x).sum::<f32>().sqrt().max(SHORTEST);
            let out = &mut all.data_mut()[text * cols..(text + 1) * cols];
            out.iter_mut().zip(row).for_each(|(out, x)| *out = x / length);
        }
        done += batch.len();
        if !progress(done) && done < texts.len() {
            return None;
        }
    }
    Some(all)
}
