//! P-tuning (Liu et al., 2021): a soft prompt that comes out of a small network while it is trained.
//!
//! `prompt = W3 relu(W2 relu(W1 e + b1) + b2) + b3` over a table `e` `[n, C]`: PEFT's `PromptEncoder`. Its other network, an
//! LSTM, is refused by name: the paper's later version and PEFT recommend the MLP.

use retune_formats::peft::PeftConfig;
use retune_formats::prompt_config::{PTuningConfig, Prompt, Reparameterization};
use retune_tensor::ops::Activation;

use super::prompt::encoder::{Adder, Encoder};
use crate::error::{Error, Result};
use crate::run_file::{self, PromptEncoder};

/// Adds the network and its table.
pub(super) fn encoder(add: &mut Adder, n: usize, dim: usize, hidden: usize) -> Result<Encoder> {
    let table = add.table("prompt_encoder.embedding.weight", n, dim)?;
    let mut dense = |index: usize, shape, activation| {
        add.dense(&format!("prompt_encoder.mlp_head.{index}"), shape, activation)
    };
    let layers = vec![
        dense(0, (hidden, dim), Activation::Relu)?,
        dense(2, (hidden, hidden), Activation::Relu)?,
        dense(4, (dim, hidden), Activation::Identity)?,
    ];
    Ok(Encoder { table, layers })
}

/// Width of the network's inner layers: PEFT takes that of the embeddings where none is given.
pub(super) fn hidden_size(settings: &run_file::Prompt, dim: usize) -> usize {
    settings.encoder_hidden_size.map_or(dim, |n| n as usize)
}

/// The configuration that is saved.
///
/// # Errors
/// If the network is an LSTM.
pub(super) fn config(settings: &run_file::Prompt, prompt: Prompt, dim: usize) -> Result<PeftConfig> {
    if settings.encoder == PromptEncoder::Lstm {
        let what = "prompt.encoder = \"lstm\" cannot be trained here: use \"mlp\", which PEFT recommends; prompts that \
                    were trained through an LSTM can be loaded";
        return Err(Error::Method(what.into()));
    }
    Ok(PeftConfig::PTuning(PTuningConfig {
        prompt,
        encoder_reparameterization_type: Reparameterization::Mlp,
        encoder_hidden_size: Some(hidden_size(settings, dim)),
        ..PTuningConfig::default()
    }))
}
