//! Builds a Whisper from a Hugging Face folder or a CTranslate2 file, or a fresh one from its configuration.

use retune_tensor::ops::AttentionShape;
use retune_tensor::{Layout, Params, Tensor, Weight, Window};

use super::{
    CrossAttention, Decoder, DecoderBlock, Encoder, EncoderBlock, Mlp, SelfAttention, Whisper, WhisperConfig,
};
use crate::error::{Error, Result};
use crate::models::config::Config;
use crate::models::fresh::Draw;
use crate::models::loader::Loader;
use crate::models::{HeadRequest, LoadOptions, Model, ModelFiles, Net};
use crate::nn::{Attention, Embedding, Head, LanguageModelHead, Linear, Sliding, SubLayer, SubLayerKind};

/// transformers' `base_model_prefix`: files of the trunk alone leave it out.
const PREFIX: &str = "model.";
/// `torch.nn.LayerNorm`'s, which Whisper's configuration does not name.
const EPS: f32 = 1e-5;
/// The projections whose outputs are added to the residual stream.
const RESIDUAL: &[&str] = &["out_proj.weight", "fc2.weight"];

/// Loads the model; every tensor of the files must have a place, and every place its tensor.
pub fn load(files: &ModelFiles, options: &LoadOptions, head: &HeadRequest) -> Result<Model> {
    if let HeadRequest::Classifier { .. } = head {
        let what = "a Whisper model writes what is said in sounds; it does not tell labels".to_string();
        return Err(Error::Model { path: files.path().to_path_buf(), what });
    }
    let config = WhisperConfig::from_json(&files.config()?)?;
    let bare = !files.source().tensors().iter().any(|info| info.name.starts_with(PREFIX));
    let rename = move |name: &str| match bare {
        true => name.strip_prefix(PREFIX).unwrap_or(name).to_string(),
        false => name.to_string(),
    };
    let mut builder = Builder { loader: Loader::new(files, options, rename)?, config: &config };
    let net = builder.network()?;
    let pager = builder.loader.pager();
    let params = builder.loader.finish()?;
    Ok(Model { params, net: Net::Speech(Box::new(net)), files: files.clone(), adapters: Vec::new(), pager })
}

/// The parameters of a new Whisper of this configuration.
pub fn fresh(config: &Config, draw: Draw) -> Result<Params> {
    let config = WhisperConfig::from_json(config)?;
    let draw = draw.with_residual(RESIDUAL, 2 * config.encoder_layers.max(config.decoder_layers));
    let mut builder = Builder { loader: Loader::fresh(draw), config: &config };
    builder.network()?;
    builder.loader.finish()
}

struct Builder<'a> {
    loader: Loader<'a>,
    config: &'a WhisperConfig,
}

impl Builder<'_> {
    fn network(&mut self) -> Result<Whisper> {
        let encoder = self.encoder()?;
        let (decoder, head) = self.decoder()?;
        Ok(Whisper { config: self.config.clone(), encoder, decoder, head })
    }

    fn encoder(&mut self) -> Result<Encoder> {
        let c = self.config;
        let conv1 = self.convolution("model.encoder.conv1", c.num_mel_bins, 1)?;
        let conv2 = self.convolution("model.encoder.conv2", c.d_model, 2)?;
        let name = "model.encoder.embed_positions.weight";
        let positions = self.loader.matrix_f32(name, c.max_source_positions, c.d_model)?;
        let param = self.loader.params.get_mut(positions);
        param.buffer = true;
        if self.loader.is_fresh() {
            self.loader.params.get_mut(positions).weight =
                Weight::F32(sinusoids(c.max_source_positions, c.d_model));
        }
        let blocks = (0..c.encoder_layers).map(|i| self.encoder_block(i)).collect::<Result<_>>()?;
        let norm = self.loader.layer_norm("model.encoder.layer_norm", c.d_model, EPS)?;
        Ok(Encoder { conv1, conv2, activation: c.activation, positions, blocks, norm })
    }

    /// A convolution over frames: kernel 3, one frame of padding on both sides.
    fn convolution(&mut self, path: &str, channels: usize, stride: usize) -> Result<Linear> {
        let out = self.config.d_model;
        let weight = self.loader.kernel(&format!("{path}.weight"), &[out, channels, 3], (1, 3))?;
        let bias = self.loader.vector(&format!("{path}.bias"), out, None)?;
        let window = Window {
            kernel: (1, 3),
            stride: (1, stride),
            dilation: (1, 1),
            pad_before: (0, 1),
            pad_after: (0, 1),
        };
        let mut linear = Linear::new(path, weight, Some(bias), (out, 3 * channels));
        linear.sliding = Some(Sliding::Fixed(window));
        linear.layout = Layout::Kernel(1, 3);
        Ok(linear)
    }

    fn encoder_block(&mut self, index: usize) -> Result<EncoderBlock> {
        let c = self.config;
        let at = |name: &str| format!("model.encoder.layers.{index}.{name}");
        let attention =
            self.self_attention(&at("self_attn"), index, index, c.encoder_attention_heads, false)?;
        Ok(EncoderBlock {
            norm_1: self.loader.layer_norm(&at("self_attn_layer_norm"), c.d_model, EPS)?,
            attention,
            norm_2: self.loader.layer_norm(&at("final_layer_norm"), c.d_model, EPS)?,
            mlp: self.mlp(&at(""), index, c.encoder_ffn_dim)?,
        })
    }

    fn decoder(&mut self) -> Result<(Decoder, Head)> {
        let c = self.config;
        let table = self.loader.matrix("model.decoder.embed_tokens.weight", c.vocab_size, c.d_model)?;
        let positions =
            self.loader.matrix("model.decoder.embed_positions.weight", c.max_target_positions, c.d_model)?;
        let blocks = (0..c.decoder_layers).map(|i| self.decoder_block(i)).collect::<Result<_>>()?;
        let norm = self.loader.layer_norm("model.decoder.layer_norm", c.d_model, EPS)?;
        // Some writers save the tied head too; transformers ignores it, and so do we.
        let weight = match c.tie_word_embeddings {
            true => {
                self.loader.ignore("proj_out.weight");
                table
            }
            false => self.loader.matrix("proj_out.weight", c.vocab_size, c.d_model)?,
        };
        let linear = Linear::new("proj_out", weight, None, (c.vocab_size, c.d_model));
        let tokens = Embedding::new("model.decoder.embed_tokens", table, c.vocab_size, c.d_model);
        let head = Head::LanguageModel(LanguageModelHead { transform: None, linear });
        Ok((Decoder { tokens, positions, blocks, norm }, head))
    }

    fn decoder_block(&mut self, index: usize) -> Result<DecoderBlock> {
        let c = self.config;
        let at = |name: &str| format!("model.decoder.layers.{index}.{name}");
        let number = c.encoder_layers + index;
        Ok(DecoderBlock {
            attention: self.self_attention(
                &at("self_attn"),
                index,
                number,
                c.decoder_attention_heads,
                true,
            )?,
            norm_1: self.loader.layer_norm(&at("self_attn_layer_norm"), c.d_model, EPS)?,
            cross: self.cross_attention(&at("encoder_attn"))?,
            norm_cross: self.loader.layer_norm(&at("encoder_attn_layer_norm"), c.d_model, EPS)?,
            norm_2: self.loader.layer_norm(&at("final_layer_norm"), c.d_model, EPS)?,
            mlp: self.mlp(&at(""), number, c.decoder_ffn_dim)?,
        })
    }

    /// `layer` is its number among those of its side, `number` that among all blocks.
    fn self_attention(
        &mut self,
        path: &str,
        layer: usize,
        number: usize,
        heads: usize,
        causal: bool,
    ) -> Result<SelfAttention> {
        let width = self.config.d_model;
        let [q, k, v, out] = self.projections(path)?;
        let shape = attention_shape(width, heads, causal);
        Ok(SelfAttention {
            q,
            k,
            v,
            out,
            heads: Attention::new(path, layer, shape),
            end: SubLayer::new(path, SubLayerKind::Attention, number, width),
        })
    }

    fn cross_attention(&mut self, path: &str) -> Result<CrossAttention> {
        let [q, k, v, out] = self.projections(path)?;
        let shape = attention_shape(self.config.d_model, self.config.decoder_attention_heads, false);
        Ok(CrossAttention { q, k, v, out, shape })
    }

    /// Queries, keys (without a bias), values, and what they become.
    fn projections(&mut self, path: &str) -> Result<[Linear; 4]> {
        let width = self.config.d_model;
        let mut linear =
            |name: &str| self.loader.linear(&format!("{path}.{name}"), (width, width), name != "k_proj");
        Ok([linear("q_proj")?, linear("k_proj")?, linear("v_proj")?, linear("out_proj")?])
    }

    fn mlp(&mut self, layer: &str, number: usize, inner: usize) -> Result<Mlp> {
        let width = self.config.d_model;
        Ok(Mlp {
            fc1: self.loader.linear(&format!("{layer}fc1"), (inner, width), true)?,
            activation: self.config.activation,
            fc2: self.loader.linear(&format!("{layer}fc2"), (width, inner), true)?,
            end: SubLayer::new(format!("{layer}fc2"), SubLayerKind::FeedForward, number, width),
        })
    }
}

fn attention_shape(width: usize, heads: usize, causal: bool) -> AttentionShape {
    let head_dim = width / heads;
    AttentionShape {
        heads,
        kv_heads: heads,
        head_dim,
        scale: 1.0 / (head_dim as f32).sqrt(),
        causal,
        window: None,
    }
}

/// Positions as Whisper has them: `sin(t / 10000^(i / (C/2 - 1)))` in the first half of the channels, `cos` in the second.
fn sinusoids(rows: usize, channels: usize) -> Tensor {
    let half = channels / 2;
    let step = 10_000f64.ln() / half.saturating_sub(1).max(1) as f64;
    let angle = |t: usize, i: usize| t as f64 * (-step * i as f64).exp();
    Tensor::from_fn(rows, channels, |t, c| {
        if c < half { angle(t, c).sin() as f32 } else { angle(t, c - half).cos() as f32 }
    })
}
