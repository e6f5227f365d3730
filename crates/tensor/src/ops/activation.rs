//! The activation functions of models and adapters: `y = f(x)`, element by element; backward `dx = g f'(x)`.
//!
//! GELU (Hendrycks and Gimpel, 2016) exactly, `x Phi(x)`; by tanh, `x / 2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`;
//! and as `x sigmoid(1.702 x)`. SiLU is `x sigmoid(x)`. Mish (arXiv:1908.08681) is `x tanh(ln(1 + e^x))`.

use super::parallel::for_rows;
use crate::kernel::simd;
use crate::tape::{Saved, Tape, Var};
use crate::tensor::Tensor;

/// Which function.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    Relu,
    /// Relu that ends at six.
    Relu6,
    /// With the exact error function.
    Gelu,
    /// By tanh.
    GeluNew,
    /// By a sigmoid.
    QuickGelu,
    Silu,
    Tanh,
    Sigmoid,
    Mish,
    /// With the slope below zero.
    LeakyRelu(f32),
    Identity,
}

impl Activation {
    /// The names that [`Activation::parse`] knows.
    pub const NAMES: &'static [&'static str] = &[
        "relu",
        "relu6",
        "gelu",
        "gelu_orig",
        "gelu_python",
        "gelu_new",
        "gelu_pytorch_tanh",
        "gelu_python_tanh",
        "gelu_accurate",
        "gelu_fast",
        "quick_gelu",
        "silu",
        "swish",
        "tanh",
        "sigmoid",
        "mish",
        "leakyrelu",
        "leaky_relu",
        "linear",
        "identity",
    ];

    /// By the name in a configuration: those of transformers and of AdapterHub, in any case; `None` if it is none of [`Activation::NAMES`].
    pub fn parse(name: &str) -> Option<Activation> {
        Some(match name.to_ascii_lowercase().as_str() {
            "relu" => Activation::Relu,
            "relu6" => Activation::Relu6,
            "gelu" | "gelu_orig" | "gelu_python" => Activation::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_python_tanh" | "gelu_accurate" | "gelu_fast" => {
                Activation::GeluNew
            }
            "quick_gelu" => Activation::QuickGelu,
            "silu" | "swish" => Activation::Silu,
            "tanh" => Activation::Tanh,
            "sigmoid" => Activation::Sigmoid,
            "mish" => Activation::Mish,
            "leakyrelu" | "leaky_relu" => Activation::LeakyRelu(0.01),
            "linear" | "identity" => Activation::Identity,
            _ => return None,
        })
    }
}

/// sqrt(2 / pi)
const TANH_SCALE: f32 = 0.797_884_6;
const TANH_CUBE: f32 = 0.044_715;
const QUICK: f32 = 1.702;
/// 1 / sqrt(2 pi)
const DENSITY: f32 = 0.398_942_3;

/// The standard normal distribution function.
#[inline(always)]
fn phi(x: f32) -> f32 {
    0.5 * (1.0 + simd::erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

#[inline(always)]
fn gelu(x: f32) -> f32 {
    x * phi(x)
}

#[inline(always)]
fn gelu_slope(x: f32) -> f32 {
    phi(x) + x * DENSITY * simd::exp(-0.5 * x * x)
}

#[inline(always)]
fn gelu_new(x: f32) -> f32 {
    0.5 * x * (1.0 + simd::tanh(TANH_SCALE * (x + TANH_CUBE * x * x * x)))
}

#[inline(always)]
fn gelu_new_slope(x: f32) -> f32 {
    let t = simd::tanh(TANH_SCALE * (x + TANH_CUBE * x * x * x));
    0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * TANH_SCALE * (1.0 + 3.0 * TANH_CUBE * x * x)
}

/// `x sigmoid(a x)`
#[inline(always)]
fn swish(a: f32, x: f32) -> f32 {
    x * simd::sigmoid(a * x)
}

#[inline(always)]
fn swish_slope(a: f32, x: f32) -> f32 {
    let s = simd::sigmoid(a * x);
    s * (1.0 + a * x * (1.0 - s))
}

#[inline(always)]
fn leaky(slope: f32, x: f32) -> f32 {
    if x > 0.0 { x } else { slope * x }
}

#[inline(always)]
fn leaky_slope(slope: f32, x: f32) -> f32 {
    if x > 0.0 { 1.0 } else { slope }
}

#[inline(always)]
fn tanh_slope(x: f32) -> f32 {
    let t = simd::tanh(x);
    1.0 - t * t
}

#[inline(always)]
fn sigmoid_slope(x: f32) -> f32 {
    let s = simd::sigmoid(x);
    s * (1.0 - s)
}

/// From here on mish is `x` in single precision, and the squares of `e^x` still are numbers.
const MISH_MAX: f32 = 20.0;

/// `tanh(ln(1 + e))` is `n / (n + 2)` with `n = e (e + 2)`: `e`, and `n + 2`.
#[inline(always)]
fn mish_parts(x: f32) -> (f32, f32) {
    let e = simd::exp(if x > MISH_MAX { MISH_MAX } else { x });
    (e, e * (e + 2.0) + 2.0)
}

#[inline(always)]
fn mish(x: f32) -> f32 {
    let (e, m) = mish_parts(x);
    x * (e * (e + 2.0) / m)
}

#[inline(always)]
fn mish_slope(x: f32) -> f32 {
    let (e, m) = mish_parts(x);
    let bent = 4.0 * e * (e + 1.0) / (m * m);
    e * (e + 2.0) / m + if x > MISH_MAX { 0.0 } else { x * bent }
}

/// `y = f(x)`
#[inline(always)]
fn map(x: &[f32], y: &mut [f32], f: impl Fn(f32) -> f32) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = f(*x);
    }
}

/// `g *= f(x)`
#[inline(always)]
fn multiply(x: &[f32], g: &mut [f32], f: impl Fn(f32) -> f32) {
    for (g, x) in g.iter_mut().zip(x) {
        *g *= f(*x);
    }
}

crate::multiversion! {
    fn forward_chunk(kind: Activation, x: &[f32], y: &mut [f32]) {
        match kind {
            Activation::Relu => map(x, y, |x| leaky(0.0, x)),
            Activation::Relu6 => map(x, y, |x| x.clamp(0.0, 6.0)),
            Activation::Gelu => map(x, y, gelu),
            Activation::GeluNew => map(x, y, gelu_new),
            Activation::QuickGelu => map(x, y, |x| swish(QUICK, x)),
            Activation::Silu => map(x, y, |x| swish(1.0, x)),
            Activation::Tanh => map(x, y, simd::tanh),
            Activation::Sigmoid => map(x, y, simd::sigmoid),
            Activation::Mish => map(x, y, mish),
            Activation::LeakyRelu(slope) => map(x, y, |x| leaky(slope, x)),
            Activation::Identity => map(x, y, |x| x),
        }
    }

    /// Turns the gradient of the output into that of the input.
    fn backward_chunk(kind: Activation, x: &[f32], g: &mut [f32]) {
        match kind {
            Activation::Relu => multiply(x, g, |x| leaky_slope(0.0, x)),
            Activation::Relu6 => multiply(x, g, |x| if x > 0.0 && x < 6.0 { 1.0 } else { 0.0 }),
            Activation::Gelu => multiply(x, g, gelu_slope),
            Activation::GeluNew => multiply(x, g, gelu_new_slope),
            Activation::QuickGelu => multiply(x, g, |x| swish_slope(QUICK, x)),
            Activation::Silu => multiply(x, g, |x| swish_slope(1.0, x)),
            Activation::Tanh => multiply(x, g, tanh_slope),
            Activation::Sigmoid => multiply(x, g, sigmoid_slope),
            Activation::Mish => multiply(x, g, mish_slope),
            Activation::LeakyRelu(slope) => multiply(x, g, |x| leaky_slope(slope, x)),
            Activation::Identity => {}
        }
    }
}

fn forward(kind: Activation, x: &Tensor) -> Tensor {
    let mut y = Tensor::scratch(x.rows(), x.cols());
    for_rows(y.data_mut(), 1, |first, chunk| forward_chunk(kind, &x.data()[first..], chunk));
    y
}

/// Whether the output tells where the input was on each of the straight pieces.
fn is_told_by_output(kind: Activation) -> bool {
    match kind {
        Activation::Relu | Activation::Relu6 => true,
        Activation::LeakyRelu(slope) => slope > 0.0,
        _ => false,
    }
}

/// `f(x)` of every element of `x` `[T, C]`.
///
/// The backward pass keeps the input, and makes the output again when it is needed; of a function of straight pieces it keeps the output alone,
/// unless the input can be made again.
pub fn activation(tape: &Tape, x: &Var, kind: Activation) -> Var {
    if kind == Activation::Identity {
        return x.clone();
    }
    let (node, saved, y) = (x.node(), x.saved(), forward(kind, x.value()));
    let by_output = is_told_by_output(kind) && matches!(saved, Saved::Kept(_));
    let kept = if by_output { Saved::Kept(y.clone()) } else { saved.clone() };
    let out = tape.record(y, node.is_some(), move |mut g, sink| {
        let kept = kept.get();
        for_rows(g.data_mut(), 1, |first, chunk| backward_chunk(kind, &kept.data()[first..], chunk));
        sink.add(node, g);
    });
    if by_output { out } else { out.with_recipe(move || forward(kind, &saved.get())) }
}

#[cfg(test)]
mod tests {
    use super::super::gradcheck::{assert_same_on_any_threads, check, random};
    use super::*;

    const ALL: [Activation; 11] = [
        Activation::Relu,
        Activation::Relu6,
        Activation::Gelu,
        Activation::GeluNew,
        Activation::QuickGelu,
        Activation::Silu,
        Activation::Tanh,
        Activation::Sigmoid,
        Activation::Mish,
        Activation::LeakyRelu(0.01),
        Activation::Identity,
    ];

    #[test]
    fn gradients() {
        // No value near the kink of relu, which finite differences would straddle.
        let x = Tensor::from_fn(5, 7, |r, c| (r as f32 - 2.0) * 0.9 + (c as f32 - 3.1) * 0.31 + 0.11);
        assert!(x.data().iter().all(|v| v.abs() > 0.015));
        for kind in ALL {
            check(std::slice::from_ref(&x), |tape, x| activation(tape, &x[0], kind));
        }
    }

    #[test]
    fn equal_those_of_transformers() {
        let x = Tensor::from_vec(1, 7, vec![-3.0, -1.0, -0.25, 0.0, 0.5, 2.0, 4.0]);
        let want = [
            (
                "gelu",
                [-0.004_050_225, -0.158_655_26, -0.100_323_42, 0.0, 0.345_731_23, 1.954_499_7, 3.999_873_6],
            ),
            ("gelu_new", [-0.003_637_433, -0.158_808, -0.100_324_646, 0.0, 0.345_714, 1.954_597_7, 3.999_93]),
            (
                "quick_gelu",
                [-0.018_071_31, -0.154_204_23, -0.098_800_346, 0.0, 0.350_388_44, 1.935_658_6, 3.995_585],
            ),
            ("silu", [-0.142_277_61, -0.268_941_43, -0.109_455_876, 0.0, 0.311_229_68, 1.761_594, 3.928_055]),
            ("mish", [-0.145_647_5, -0.303_401_5, -0.129_927, 0.0, 0.375_245_2, 1.943_959, 3.997_413]),
        ];
        for (name, want) in want {
            let y = forward(Activation::parse(name).expect(name), &x);
            for (got, want) in y.data().iter().zip(want) {
                assert!((got - want).abs() < 2e-6, "{name}: {got} {want}");
            }
        }
    }

    #[test]
    fn every_name_is_known_and_no_other() {
        assert!(Activation::NAMES.iter().all(|name| Activation::parse(name).is_some()));
        assert_eq!(Activation::parse("Swish"), Some(Activation::Silu));
        assert_eq!(Activation::parse("gelu_old"), None);
    }

    #[test]
    fn far_values_stay_finite() {
        let x = Tensor::from_vec(1, 4, vec![-1e4, 1e4, -90.0, 90.0]);
        for kind in ALL {
            let mut g = vec![1.0; 4];
            backward_chunk(kind, x.data(), &mut g);
            assert!(forward(kind, &x).all_finite() && g.iter().all(|g| g.is_finite()), "{kind:?} {g:?}");
        }
    }

    #[test]
    fn threads_change_nothing() {
        assert_same_on_any_threads(&[random(300, 131, 1)], |tape, x| {
            activation(tape, &x[0], Activation::Gelu)
        });
    }
}
