//! The fused operations, one file each: formula, forward, backward, test.

pub mod activation;
pub mod adamw;
pub mod adamw_8bit;
pub mod add;
pub mod add_bias;
pub mod add_scaled;
pub mod attention;
pub mod batch_norm;
pub mod bce_with_logits;
pub mod concat_columns;
pub mod concat_segments;
pub mod conv2d;
pub mod cross_entropy;
pub mod depthwise_conv2d;
pub mod dora;
pub mod dropout;
pub mod elementwise;
pub mod embedding;
pub mod embedding_lora;
pub mod given_loss;
pub mod layer_norm;
pub mod linear;
pub mod linear_cross_entropy;
pub mod max_pool2d;
pub mod mse;
pub mod mul;
pub mod reshape;
pub mod rms_norm;
pub mod rope;
pub mod scale_columns;
pub mod segment_mean;
pub mod select_rows;
pub mod slice_columns;
pub mod sparse_delta;
pub mod swiglu;
pub mod upsample2d;

#[cfg(test)]
pub(crate) mod gradcheck;
mod parallel;

pub use activation::{Activation, activation};
pub use adamw::{AdamW, adamw_step, adamw_step_bytes};
pub use adamw_8bit::{Moment8, adamw_8bit_step, decode_8bit};
pub use add::add;
pub use add_bias::add_bias;
pub use add_scaled::{add_scaled, scale};
pub use attention::{AttentionShape, attention, attention_values};
pub use batch_norm::{Statistics, batch_norm, batch_norm_frozen};
pub use bce_with_logits::{BceWeights, bce_with_logits};
pub use concat_columns::concat_columns;
pub use concat_segments::{concat_segments, concat_segments_each};
pub use conv2d::conv2d;
pub use cross_entropy::cross_entropy;
pub use depthwise_conv2d::depthwise_conv2d;
pub use dora::{
    DoraBranch, column_norms_squared, dora_embedding, dora_embedding_norms, dora_factors, dora_linear,
    dora_norms, row_norms_squared,
};
pub use dropout::{DropoutRows, dropout};
pub use embedding::embedding;
pub use embedding_lora::embedding_lora;
pub use given_loss::given_loss;
pub use layer_norm::layer_norm;
pub use linear::{LoraBranch, linear, mat};
pub use linear_cross_entropy::{LossRows, linear_cross_entropy};
pub use max_pool2d::max_pool2d;
pub use mse::mse;
pub use mul::mul;
pub use reshape::reshape;
pub use rms_norm::rms_norm;
pub use rope::{RopeTable, rope};
pub use scale_columns::scale_columns;
pub use segment_mean::segment_mean;
pub use select_rows::select_rows;
pub use slice_columns::slice_columns;
pub use sparse_delta::{PatternError, SparsePattern, sparse_linear_delta, weight_with_entries};
pub use swiglu::swiglu;
pub use upsample2d::upsample2d;
