//! A model's activation profile (elements) as the memory plan wants it (bytes).

use retune::models::Model;
use retune::train::ActivationProfile;

const F32: u64 = 4;
/// The logits of one chunk of the head's loss.
const HEAD_CHUNK_BYTES: u64 = 64 << 20;

/// What a row costs in memory, by the model's own count.
pub fn plan_profile(model: &Model) -> ActivationProfile {
    let profile = model.net.activation_profile(false);
    let hidden = model.net.info().hidden_size as u64;
    let vocab = profile.logits as u64;
    ActivationProfile {
        blocks: profile.blocks as u64,
        block_input: F32 * profile.input_per_row as u64,
        block_kept: F32 * profile.kept_per_row as u64,
        block_transient: F32 * profile.transient_per_row as u64,
        outside_kept: F32 * 2 * hidden,
        inference: F32 * (profile.input_per_row + profile.transient_per_row) as u64,
        head_per_target: F32 * 2 * hidden,
        head_fixed: HEAD_CHUNK_BYTES.max(F32 * vocab),
        fixed: 0,
    }
}
