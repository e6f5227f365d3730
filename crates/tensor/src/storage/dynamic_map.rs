//! The dynamic 8-bit data type (arXiv 1511.04561): 256 values in [-1, 1] whose relative distance grows towards zero, as bitsandbytes computes them.
//!
//! Seven decades; in decade i, 2^i values (twice as many without a sign) lie midway between evenly spaced boundaries of 0.1 .. 1 times 10^(i - 6).

use std::sync::OnceLock;

/// The 256 values, rising: of both signs for constants and first moments, of one sign for second moments. Zero and one are among them.
pub fn dynamic_map(signed: bool) -> &'static [f32; 256] {
    static MAPS: [OnceLock<[f32; 256]>; 2] = [const { OnceLock::new() }; 2];
    MAPS[usize::from(signed)].get_or_init(|| create(signed))
}

fn create(signed: bool) -> [f32; 256] {
    let mut map = [0.0; 256];
    map[1] = 1.0;
    let mut next = 2;
    for decade in 0..7 {
        let pieces = 1 << if signed { decade } else { decade + 1 };
        let power = 10f64.powi(decade - 6) as f32;
        for k in 0..pieces {
            let mean = (boundary(k, pieces) + boundary(k + 1, pieces)) / 2.0;
            map[next] = power * mean;
            next += 1;
            if signed {
                map[next] = -(power * mean);
                next += 1;
            }
        }
    }
    map.sort_by(f32::total_cmp);
    map
}

/// torch.linspace(0.1, 1, pieces + 1)[k]: from the nearer end, rounded once (a double holds the sum exactly enough).
fn boundary(k: i32, pieces: i32) -> f32 {
    let step = f64::from((1.0 - 0.1f32) / pieces as f32);
    if k < (pieces + 1) / 2 {
        (f64::from(0.1f32) + step * f64::from(k)) as f32
    } else {
        (1.0 - step * f64::from(pieces - k)) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUMS: [(bool, u64, [f32; 5]); 2] = [
        (true, 535_306_620_548, [-0.992_968_74, -0.007_468_75, 0.000_007_75, 0.233_593_75, 0.992_968_74]),
        (false, 262_570_225_560, [0.0, 0.062_734_38, 0.124_609_37, 0.616_796_85, 0.996_484_4]),
    ];

    #[test]
    fn the_maps_are_those_of_the_reference() {
        // Sums of the bits of all values, and a few of them, from bitsandbytes' `create_dynamic_map`.
        for (signed, checksum, some) in SUMS {
            let map = dynamic_map(signed);
            assert!(map.is_sorted_by(|a, b| a < b));
            assert_eq!(map.iter().map(|v| u64::from(v.to_bits())).sum::<u64>(), checksum, "{signed}");
            assert_eq!([map[0], map[100], map[130], map[200], map[254]], some);
        }
    }
}
