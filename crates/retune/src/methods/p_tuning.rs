//! P-tuning (Liu et al., 2021): a soft prompt that comes out of a small network while it is trained.
//!
//! Over a table `e` `[n, C]`: `W3 relu(W2 relu(W1 e + b1) + b2) + b3`, or `W2 relu(W1 lstm(e) + b1) + b2` with two layers of an LSTM
//! in both directions. Both are PEFT's `PromptEncoder`.

use retune_formats::peft::PeftConfig;
use retune_formats::prompt_config::{PTuningConfig, Prompt, Reparameterization};
use retune_tensor::ops::Activation;

use super::prompt::encoder::{Adder, Encoder};
use super::prompt::lstm::Lstm;
use crate::error::Result;
use crate::run_file::{self, PromptEncoder};

/// Layers of the LSTM: PEFT's default.
const LSTM_LAYERS: usize = 2;

/// Adds the network and its table.
pub(super) fn encoder(add: &mut Adder, settings: &run_file::Prompt, n: usize, dim: usize) -> Result<Encoder> {
    let hidden = hidden_size(settings, dim);
    let table = add.table("prompt_encoder.embedding.weight", n, dim)?;
    let lstm = match settings.encoder {
        PromptEncoder::Lstm => Some(Lstm::new(add, "prompt_encoder.lstm_head", (dim, hidden), LSTM_LAYERS)?),
        _ => None,
    };
    let mut dense = |index: usize, shape, activation| {
        add.dense(&format!("prompt_encoder.mlp_head.{index}"), shape, activation)
    };
    let layers = match lstm {
        None => vec![
            dense(0, (hidden, dim), Activation::Relu)?,
            dense(2, (hidden, hidden), Activation::Relu)?,
            dense(4, (dim, hidden), Activation::Identity)?,
        ],
        Some(_) => vec![
            dense(0, (2 * hidden, 2 * hidden), Activation::Relu)?,
            dense(2, (dim, 2 * hidden), Activation::Identity)?,
        ],
    };
    Ok(Encoder { table, lstm, layers })
}

/// Width of the network's inner layers: PEFT takes that of the embeddings where none is given.
fn hidden_size(settings: &run_file::Prompt, dim: usize) -> usize {
    settings.encoder_hidden_size.map_or(dim, |n| n as usize)
}

/// The configuration that is saved.
pub(super) fn config(settings: &run_file::Prompt, prompt: Prompt, dim: usize) -> PeftConfig {
    let kind = match settings.encoder {
        PromptEncoder::Lstm => Reparameterization::Lstm,
        _ => Reparameterization::Mlp,
    };
    PeftConfig::PTuning(PTuningConfig {
        prompt,
        encoder_reparameterization_type: kind,
        encoder_hidden_size: Some(hidden_size(settings, dim)),
        encoder_num_layers: LSTM_LAYERS,
        ..PTuningConfig::default()
    })
}
