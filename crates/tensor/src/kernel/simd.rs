//! Elementwise loops compiled once per instruction set, and the functions that such loops need.
//!
//! Write the loop as plain Rust inside [`multiversion!`](crate::multiversion); the compiler vectorises each copy and the best is chosen at run time:
//! ```
//! retune_tensor::multiversion! {
//!     /// y = silu(x)
//!     pub fn silu(x: &[f32], y: &mut [f32]) {
//!         for (y, &x) in y.iter_mut().zip(x) {
//!             *y = x * retune_tensor::kernel::simd::sigmoid(x);
//!         }
//!     }
//! }
//! ```
//! **The same bytes on every machine**: nothing here uses a fused multiply-add (Rust never fuses `a * b + c` by itself, and
//! [`f32::mul_add`] must not be used: without FMA hardware it is a slow library call), and reductions use [`LANES`] partial sums whatever the
//! register width. Only the matrix kernels differ between instruction sets, in rounding.
//!
//! What vectorises: loops over zipped slices of one length, selects (`if c { a } else { b }` on values already computed), the functions below.
//! What does not: early exits, indexing that needs a bounds check, calls of library functions (`f32::exp`, `powf`), sums into one variable (use
//! [`sum`], [`dot`], or an array of lanes). Integer casts of floats (`as i32`) saturate and are slow; [`exp`] shows the way around.

/// Compiles a function for each instruction set and chooses at run time; see [`simd`](crate::kernel::simd).
///
/// Takes `fn name(arg: Type, ...) -> Ret { body }`, any number of them, with visibility, documentation and attributes, without generics
/// (`impl Fn(f32) -> f32` arguments work). The body is inlined into each copy: what it calls must be `#[inline(always)]` to be
/// compiled for that instruction set as well. The dispatch costs about a nanosecond: call it per row or chunk, not per element.
#[macro_export]
macro_rules! multiversion {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block)+) => {$(
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi1,bmi2")]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                match $crate::kernel::level() {
                    // SAFETY: `level` names an instruction set only after finding each of its features on this machine.
                    $crate::kernel::Level::Avx512 => unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::kernel::Level::Avx2 => unsafe { avx2($($arg),*) },
                    $crate::kernel::Level::Portable => body($($arg),*),
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            body($($arg),*)
        }
    )+};
}

/// Number of partial results in every reduction: element i goes to lane i mod 32, lanes are combined by halving.
pub const LANES: usize = 32;

/// e^x, at most 2 ulp off while the result is a normal number; right at ±inf, NaN, and where it over- or underflows.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const HI: f32 = 88.8; // e^HI overflows, e^LO rounds to zero
    const LO: f32 = -104.0;
    const MAGIC: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves round(x) in the low mantissa bits
    // Selects, not min/max: a NaN must stay a NaN.
    let x = if x > HI { HI } else { x };
    let x = if x < LO { LO } else { x };
    let t = x * std::f32::consts::LOG2_E + MAGIC;
    let n = t - MAGIC;
    // ln 2 in two parts; the first has so few bits that n times it is exact.
    let r = (x - n * 0.693_359_4) - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let p = p * (r * r) + r + 1.0;
    // Two steps of 2^(n/2), so that neither factor leaves the normal range.
    let n = (t.to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32);
    let half = n >> 1;
    let scale = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
    p * scale(half) * scale(n.wrapping_sub(half))
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Hyperbolic tangent: a polynomial near zero, 1 - 2 / (e^2x + 1) elsewhere.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let z = x * x;
    let mut p = -5.704_988_8e-3;
    p = p * z + 2.063_909e-2;
    p = p * z - 5.373_971_6e-2;
    p = p * z + 1.333_144_2e-1;
    p = p * z - 3.333_328e-1;
    let near = x + x * (z * p);
    let a = x.abs();
    let far = 1.0 - 2.0 / (exp(2.0 * a) + 1.0);
    (if a < 0.625 { near } else { far }).copysign(x)
}

/// The error function, x P(x²) / Q(x²): absolute error below 4e-7, relative below 1e-6 near zero.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let one = 1.0f32.copysign(x);
    let z = x * x;
    let mut p = -2.726_142_4e-10;
    p = p * z + 2.770_681_4e-8;
    p = p * z - 2.101_024e-6;
    p = p * z - 5.692_506_5e-5;
    p = p * z - 7.349_906_3e-4;
    p = p * z - 2.954_6e-3;
    p = p * z - 1.609_603_3e-2;
    let mut q = -1.456_607_2e-5;
    q = q * z - 2.133_740_5e-4;
    q = q * z - 1.682_827e-3;
    q = q * z - 7.373_329e-3;
    q = q * z - 1.426_473_9e-2;
    // From 3.92 on, erf rounds to one.
    if x.abs() >= 3.92 { one } else { x * p / q }
}

/// Combines the lanes of a reduction by halving: (0,16) (1,17) ..., then (0,8) ..., down to one.
#[inline(always)]
pub fn fold(mut lanes: [f32; LANES], combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = combine(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// Sum of x, inlined into a `multiversion!` body (elsewhere use [`sum`]).
#[inline(always)]
pub fn sum_inline(x: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (chunks, tail) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] += chunk[i];
        }
    }
    for (lane, v) in lanes.iter_mut().zip(tail) {
        *lane += v;
    }
    fold(lanes, |a, b| a + b)
}

/// Sum of x[i] * y[i] over the shorter length, inlined into a `multiversion!` body (elsewhere use [`dot`]).
#[inline(always)]
pub fn dot_inline(x: &[f32], y: &[f32]) -> f32 {
    let n = x.len().min(y.len());
    let mut lanes = [0.0f32; LANES];
    let (xs, x_tail) = x[..n].as_chunks::<LANES>();
    let (ys, y_tail) = y[..n].as_chunks::<LANES>();
    for (x, y) in xs.iter().zip(ys) {
        for i in 0..LANES {
            lanes[i] += x[i] * y[i];
        }
    }
    for ((lane, x), y) in lanes.iter_mut().zip(x_tail).zip(y_tail) {
        *lane += x * y;
    }
    fold(lanes, |a, b| a + b)
}

/// Largest element, -inf of none; NaN are passed over. Inlined into a `multiversion!` body (elsewhere use [`max`]).
#[inline(always)]
pub fn max_inline(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, tail) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = larger(lanes[i], chunk[i]);
        }
    }
    for (lane, v) in lanes.iter_mut().zip(tail) {
        *lane = larger(*lane, *v);
    }
    fold(lanes, larger)
}

multiversion! {
    /// Sum of all elements, in a fixed order.
    pub fn sum(x: &[f32]) -> f32 {
        sum_inline(x)
    }

    /// Sum of x[i] * y[i] over the shorter length, in a fixed order.
    pub fn dot(x: &[f32], y: &[f32]) -> f32 {
        dot_inline(x, y)
    }

    /// Sum of squares, in a fixed order.
    pub fn sum_sq(x: &[f32]) -> f32 {
        dot_inline(x, x)
    }

    /// Largest element, -inf of none; NaN are passed over.
    pub fn max(x: &[f32]) -> f32 {
        max_inline(x)
    }

    /// Replaces x by e^(x - shift) and returns the sum: the inner step of a softmax.
    pub fn exp_sum(x: &mut [f32], shift: f32) -> f32 {
        for v in x.iter_mut() {
            *v = exp(*v - shift);
        }
        sum_inline(x)
    }

    /// y += a * x over the shorter length.
    pub fn axpy(a: f32, x: &[f32], y: &mut [f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y += a * x;
        }
    }

    /// y += x over the shorter length.
    pub fn add(x: &[f32], y: &mut [f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y += x;
        }
    }

    /// x *= a.
    pub fn scale(a: f32, x: &mut [f32]) {
        for x in x.iter_mut() {
            *x *= a;
        }
    }

    /// True if no element is NaN or infinite.
    pub fn all_finite(x: &[f32]) -> bool {
        // x - x is 0 for a finite x, NaN otherwise; the exponent test as integers vectorises better.
        let mut bad = 0u32;
        for v in x {
            bad |= u32::from(v.to_bits() & 0x7f80_0000 == 0x7f80_0000);
        }
        bad == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ulps(got: f32, want: f64) -> f64 {
        let near = want as f32;
        let ulp = f64::from(f32::from_bits(near.abs().to_bits() + 1)) - f64::from(near.abs());
        (f64::from(got) - want).abs() / ulp
    }

    #[test]
    fn exp_is_within_two_ulp_where_its_result_is_normal() {
        let (mut worst, mut at) = (0.0, 0.0);
        let mut x = -87.33f32;
        while x < 88.72 {
            let e = ulps(exp(x), f64::from(x).exp());
            if e > worst {
                (worst, at) = (e, x);
            }
            // Every few thousandth float, denser near zero.
            x += x.abs().max(1e-6) * 1.7e-6;
        }
        assert!(worst <= 2.0, "{worst} ulp at {at}");
    }

    #[test]
    fn exp_at_the_edges() {
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::MAX), f32::INFINITY);
        assert_eq!(exp(f32::MIN), 0.0);
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(89.0), f32::INFINITY);
        assert!(exp(88.72).is_finite());
        // Below the normal range the result is a rounded subnormal.
        assert!((f64::from(exp(-95.0)) - (-95.0f64).exp()).abs() < 2e-45);
    }

    #[test]
    fn sigmoid_and_tanh_follow_the_double_precision_ones() {
        for i in -40_000..=40_000 {
            let x = i as f32 * 5e-4;
            let d = f64::from(x);
            assert!(ulps(tanh(x), d.tanh()) < 4.0 || x == 0.0, "tanh {x}: {} {}", tanh(x), d.tanh());
            let s = 1.0 / (1.0 + (-d).exp());
            assert!(ulps(sigmoid(x), s) < 4.0, "sigmoid {x}: {} {s}", sigmoid(x));
        }
        assert_eq!((tanh(f32::INFINITY), tanh(f32::NEG_INFINITY)), (1.0, -1.0));
        assert_eq!((sigmoid(f32::INFINITY), sigmoid(f32::NEG_INFINITY)), (1.0, 0.0));
        assert!(tanh(f32::NAN).is_nan() && sigmoid(f32::NAN).is_nan());
        assert_eq!(tanh(-0.0).to_bits(), (-0.0f32).to_bits());
    }

    /// erf by its series, in double precision: 2/sqrt(pi) sum (-1)^n x^(2n+1) / (n! (2n+1)).
    fn erf_series(x: f64) -> f64 {
        let (mut term, mut total, mut n) = (x, x, 0.0);
        while term.abs() > 1e-20 {
            n += 1.0;
            term *= -x * x / n;
            total += term / (2.0 * n + 1.0);
        }
        total * std::f64::consts::FRAC_2_SQRT_PI
    }

    #[test]
    fn erf_follows_its_series() {
        for i in -6_000..=6_000 {
            let x = i as f32 * 7e-4;
            let want = erf_series(f64::from(x));
            let got = f64::from(erf(x));
            assert!((got - want).abs() <= 4e-7, "{x}: {got} {want}");
            assert!((got - want).abs() <= 1e-6 * want.abs(), "{x}: {got} {want}");
        }
        assert_eq!((erf(9.0), erf(-9.0), erf(f32::INFINITY)), (1.0, -1.0, 1.0));
        assert!(erf(f32::NAN).is_nan());
    }

    #[test]
    fn reductions_are_right_at_every_length() {
        for n in [0, 1, 2, 31, 32, 33, 63, 64, 65, 100, 576] {
            let x: Vec<f32> = (0..n).map(|i| (i as f32 * 0.37).sin()).collect();
            let y: Vec<f32> = (0..n).map(|i| (i as f32 * 0.21).cos()).collect();
            let wide = |f: &dyn Fn(usize) -> f64| (0..n).map(f).sum::<f64>();
            assert!((f64::from(sum(&x)) - wide(&|i| f64::from(x[i]))).abs() < 1e-4);
            assert!((f64::from(dot(&x, &y)) - wide(&|i| f64::from(x[i]) * f64::from(y[i]))).abs() < 1e-4);
            assert_eq!(max(&x), x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            // The chosen instruction set gives the bytes of the plain one.
            assert_eq!(sum(&x).to_bits(), sum_inline(&x).to_bits());
            assert_eq!(dot(&x, &y).to_bits(), dot_inline(&x, &y).to_bits());
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_elementwise_bytes() {
        let x: Vec<f32> = (0..1000).map(|i| (i as f32 - 500.0) * 0.113).collect();
        let mut y = x.clone();
        let total = exp_sum(&mut y, 1.5);
        let plain: Vec<f32> = x.iter().map(|v| exp(v - 1.5)).collect();
        assert_eq!(
            y.iter().map(|v| v.to_bits()).collect::<Vec<_>>(),
            plain.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
        );
        assert_eq!(total.to_bits(), sum_inline(&plain).to_bits());
    }

    #[test]
    fn non_finite_values_are_found() {
        let mut x = vec![1.0f32; 77];
        assert!(all_finite(&x) && all_finite(&[]));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            x[76] = bad;
            assert!(!all_finite(&x));
        }
        x[76] = f32::MAX;
        assert!(all_finite(&x));
    }
}
