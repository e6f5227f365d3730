//! The dynamic 8-bit map of bitsandbytes (Dettmers, "8-Bit Approximations for Parallelism in Deep Learning", 2015).
//!
//! Seven decades below 1: the lowest is one number, each next one has twice as many, the middles of equal parts of
//! `[0.1, 1]` times the decade. With their negatives (signed) or twice as many each (unsigned), 0 and 1: 256 values.

/// The map in rising order, bit for bit `create_dynamic_map(signed)`.
pub fn dynamic_map(signed: bool) -> [f32; 256] {
    let mut map = [0.0; 256];
    let mut filled = 0;
    let mut push = |value: f32| {
        map[filled] = value;
        filled += 1;
    };
    for decade in 0..7 {
        let parts = if signed { 1 << decade } else { 2 << decade };
        // 10 to a negative power is not exact: this is how it is rounded there.
        let scale = 10f64.powi(decade - 6) as f32;
        for part in 0..parts {
            let middle = scale * ((boundary(part, parts) + boundary(part + 1, parts)) / 2.0);
            push(middle);
            if signed {
                push(-middle);
            }
        }
    }
    push(0.0);
    push(1.0);
    map.sort_unstable_by(f32::total_cmp);
    map
}

/// `torch.linspace(0.1, 1, parts + 1)[index]`: from the nearer end, with one rounding.
fn boundary(index: usize, parts: usize) -> f32 {
    let step = (1.0 - 0.1f32) / parts as f32;
    if index < parts.div_ceil(2) {
        step.mul_add(index as f32, 0.1)
    } else {
        (-step).mul_add((parts - index) as f32, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_maps_are_those_of_bitsandbytes() {
        for (signed, first, zero, sum) in [(true, -0.992_968_74, 127, 1.0), (false, 0.0, 0, 75.105_263)] {
            let map = dynamic_map(signed);
            assert!(map.windows(2).all(|pair| pair[0] < pair[1]));
            assert_eq!((map[0], map[zero], map[255]), (first, 0.0, 1.0));
            let total: f64 = map.iter().map(|&x| f64::from(x)).sum();
            assert!((total - sum).abs() < 1e-3, "{total}");
        }
    }
}
