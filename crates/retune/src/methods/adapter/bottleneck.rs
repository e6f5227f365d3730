//! One bottleneck at the end of a sub-layer, with the order of norms and residuals of AdapterHub's `adapters` 1.3.
//!
//! `h`: the sub-layer's output, `r`: the model's residual, `LN`: the model's norm behind their sum, where it has one.
//!
//! | | sequential | parallel |
//! |---|---|---|
//! | reads | `h`; with `original_ln_before` `LN(h + r)` | `r` |
//! | its own residual `s` | `h`; `h + r` ("post_add"); or what it reads (`residual_before_ln` false) | none |
//! | gives `y` | `s + norm_after(u)`, or `norm_after(s + u)` (`adapter_residual_before_ln`) | `h + norm_after(u)` |
//! | then | with `original_ln_after` `LN(y + r)` | the same |
//!
//! `u = scaling * up(f(down(norm_before(x))))`. A parallel adapter reads the residual stream as it is: in a model with
//! its norms in front (GPT-2, Llama) that is what stands before the norm, as in AdapterHub.

use retune_formats::adapter_hub::{BnConfig, HubParam, Residual, Scaling};
use retune_tensor::ops::{self, Activation};
use retune_tensor::{ParamId, Tape, Tensor, Var};

use super::{Place, Values, activation, matrix};
use crate::error::{Error, Result};
use crate::nn::{LayerNorm, Meeting, Rows, SubLayer, SubLayerDelta};

/// `torch.nn.LayerNorm`'s.
const EPS: f32 = 1e-5;

/// Refuses what a configuration may ask for and cannot be done here.
///
/// # Errors
/// With the setting's name and why.
pub(super) fn check(bn: &BnConfig) -> Result<()> {
    activation(&bn.non_linearity)?;
    let refused = |what: &str| Err(Error::Method(what.into()));
    if bn.use_gating {
        return refused(
            "use_gating is not supported: its gate is a mean over a padded batch, so that it depends on the \
             other texts in it",
        );
    }
    if bn.stochastic_depth > 0.0 {
        return refused("stochastic_depth above 0 is not supported; set it to 0, or use dropout");
    }
    if bn.residual_before_ln == Residual::PostAdd && (!bn.original_ln_before || bn.is_parallel) {
        return refused("residual_before_ln \"post_add\" needs original_ln_before, and no parallel adapter");
    }
    if !bn.original_ln_after && (!bn.original_ln_before || bn.is_parallel) {
        return refused(
            "original_ln_after is off without original_ln_before in its place: the model's own residual connection \
             would be lost",
        );
    }
    Ok(())
}

/// A parameter that is yet to be added.
pub(super) struct NewTensor {
    pub param: HubParam,
    pub sizes: Vec<usize>,
    pub values: Tensor,
}

/// The parameters of one bottleneck of so many channels inside.
pub(super) fn tensors(
    bn: &BnConfig,
    place: &Place,
    width: usize,
    values: &mut dyn Values,
) -> Result<Vec<NewTensor>> {
    use HubParam::{
        DownBias, DownWeight, NormAfterBias, NormAfterWeight, NormBeforeBias, NormBeforeWeight, UpBias,
        UpWeight,
    };
    let h = place.hidden;
    let mut wanted = vec![
        (DownWeight, vec![width, h]),
        (DownBias, vec![width]),
        (UpWeight, vec![h, width]),
        (UpBias, vec![h]),
    ];
    if bn.ln_before {
        wanted.extend([(NormBeforeWeight, vec![h]), (NormBeforeBias, vec![h])]);
    }
    if bn.ln_after {
        wanted.extend([(NormAfterWeight, vec![h]), (NormAfterBias, vec![h])]);
    }
    match bn.scaling {
        Scaling::Fixed(_) => {}
        Scaling::Learned => wanted.push((HubParam::Scaling, vec![1])),
        Scaling::Channel => wanted.push((HubParam::Scaling, vec![h])),
    }
    let make = |(param, sizes): (HubParam, Vec<usize>)| {
        let values = values.of(&place.hub_site, param, &sizes)?;
        assert_eq!((values.rows(), values.cols()), matrix(&sizes), "values of {param:?}");
        Ok(NewTensor { param, sizes, values })
    };
    wanted.into_iter().map(make).collect()
}

/// What the bottleneck's output is multiplied with.
enum Scale {
    Fixed(f32),
    /// `[1]`
    Learned(ParamId),
    /// `[h]`
    Channel(ParamId),
}

/// A bottleneck at its place.
pub(super) struct Bottleneck {
    /// Its name in dropout masks.
    site: String,
    down: (ParamId, ParamId),
    up: (ParamId, ParamId),
    activation: Activation,
    norm_before: Option<LayerNorm>,
    norm_after: Option<LayerNorm>,
    scale: Scale,
    dropout: f32,
    parallel: bool,
    original_ln_before: bool,
    original_ln_after: bool,
    residual: Residual,
    residual_inside: bool,
}

impl Bottleneck {
    /// Of parameters that were made by [`tensors`].
    pub fn new(bn: &BnConfig, site: &str, ids: Vec<(HubParam, ParamId)>) -> Bottleneck {
        let id = |param| ids.iter().find(|(p, _)| *p == param).map(|(_, id)| *id).expect("made by tensors");
        let norm = |on: bool, weight, bias| {
            let path = String::new();
            on.then(|| LayerNorm { path, weight: id(weight), bias: id(bias), eps: EPS })
        };
        Bottleneck {
            site: site.to_string(),
            down: (id(HubParam::DownWeight), id(HubParam::DownBias)),
            up: (id(HubParam::UpWeight), id(HubParam::UpBias)),
            activation: activation(&bn.non_linearity).unwrap_or(Activation::Relu),
            norm_before: norm(bn.ln_before, HubParam::NormBeforeWeight, HubParam::NormBeforeBias),
            norm_after: norm(bn.ln_after, HubParam::NormAfterWeight, HubParam::NormAfterBias),
            scale: match bn.scaling {
                Scaling::Fixed(factor) => Scale::Fixed(factor as f32),
                Scaling::Learned => Scale::Learned(id(HubParam::Scaling)),
                Scaling::Channel => Scale::Channel(id(HubParam::Scaling)),
            },
            dropout: bn.dropout as f32,
            parallel: bn.is_parallel,
            original_ln_before: bn.original_ln_before,
            original_ln_after: bn.original_ln_after,
            residual: bn.residual_before_ln,
            residual_inside: bn.adapter_residual_before_ln,
        }
    }

    /// `scaling * up(f(down(norm_before(x))))`, with dropout.
    fn up(&self, tape: &Tape, rows: &Rows, x: &Var) -> Var {
        let linear = |x: &Var, (weight, bias): (ParamId, ParamId)| {
            ops::linear(tape, x, &tape.weight(weight), Some(&tape.param(bias)), &[])
        };
        let normed = self.norm_before.as_ref().map(|norm| norm.forward(tape, x));
        let inner = ops::activation(tape, &linear(normed.as_ref().unwrap_or(x), self.down), self.activation);
        let up = self.scaled(tape, linear(&inner, self.up));
        match rows.dropout() {
            Some(keys) if self.dropout > 0.0 => ops::dropout(tape, &up, keys, &self.site, self.dropout),
            _ => up,
        }
    }

    fn scaled(&self, tape: &Tape, up: Var) -> Var {
        match self.scale {
            Scale::Fixed(1.0) => up,
            Scale::Fixed(factor) => ops::scale(tape, &up, factor),
            Scale::Channel(id) => ops::scale_columns(tape, &up, &tape.param(id)),
            Scale::Learned(id) => {
                // The one number, once for each channel.
                let ones = Var::constant(Tensor::from_fn(up.cols(), 1, |_, _| 1.0));
                let each = ops::linear(tape, &ones, &tape.weight(id), None, &[]);
                ops::scale_columns(tape, &up, &ops::reshape(tape, &each, 1, up.cols()))
            }
        }
    }

    /// What a sequential adapter reads, and its own residual.
    fn before(&self, tape: &Tape, meeting: &Meeting) -> (Var, Var) {
        let output = meeting.output;
        if !self.original_ln_before {
            return (output.clone(), output.clone());
        }
        let sum =
            meeting.residual.map_or_else(|| output.clone(), |residual| ops::add(tape, output, residual));
        let x = meeting.norm.map_or_else(|| sum.clone(), |norm| norm.forward(tape, &sum));
        let around = match self.residual {
            Residual::BeforeNorm => output.clone(),
            Residual::PostAdd => sum,
            Residual::AfterNorm => x.clone(),
        };
        (x, around)
    }

    fn sequential(&self, tape: &Tape, rows: &Rows, meeting: &Meeting) -> Var {
        let (x, around) = self.before(tape, meeting);
        let up = self.up(tape, rows, &x);
        match &self.norm_after {
            Some(norm) if self.residual_inside => norm.forward(tape, &ops::add(tape, &up, &around)),
            Some(norm) => ops::add(tape, &norm.forward(tape, &up), &around),
            None => ops::add(tape, &up, &around),
        }
    }

    fn parallel(&self, tape: &Tape, rows: &Rows, meeting: &Meeting) -> Var {
        let up = self.up(tape, rows, meeting.residual.unwrap_or(meeting.input));
        let up = self.norm_after.as_ref().map_or(up.clone(), |norm| norm.forward(tape, &up));
        ops::add(tape, &up, meeting.output)
    }
}

impl SubLayerDelta for Bottleneck {
    fn forward(&self, tape: &Tape, rows: &Rows, _at: &SubLayer, meeting: &Meeting) -> Var {
        let y = match self.parallel {
            true => self.parallel(tape, rows, meeting),
            false => self.sequential(tape, rows, meeting),
        };
        if self.original_ln_after { meeting.finish(tape, &y) } else { y }
    }
}
