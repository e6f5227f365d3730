//! The sixteen values that a 4-bit element can have, times its block's largest magnitude, and how the nearest of them is found.
//!
//! `nf4` (QLoRA, arXiv 2305.14314): quantiles of the normal distribution. `fp4`: a sign, two bits of exponent, one of mantissa. Both are
//! bitsandbytes' tables. `int4`: sixteen levels at even distances, one of them unused: entry q is (q - 7) / 7 for q = 0..=14; entry 15,
//! which is never written, is read as 1.

/// A table of sixteen values in [-1, 1].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code4 {
    Nf4,
    Fp4,
    Int4,
}

const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Twelfths, by bit pattern: sign, exponent, mantissa.
const FP4: [f32; 16] = {
    let twelfths = [0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0];
    let mut table = [0.0; 16];
    let mut q = 0;
    while q < 8 {
        table[q] = twelfths[q] / 12.0;
        table[q + 8] = 0.0 - table[q];
        q += 1;
    }
    table
};

const INT4: [f32; 16] = {
    let mut table = [1.0; 16];
    let mut q = 0;
    while q < 15 {
        table[q] = (q as f32 - 7.0) / 7.0;
        q += 1;
    }
    table
};

impl Code4 {
    /// All of them.
    pub const ALL: [Code4; 3] = [Code4::Nf4, Code4::Fp4, Code4::Int4];

    /// "nf4", "fp4" or "int4".
    pub fn name(self) -> &'static str {
        match self {
            Code4::Nf4 => "nf4",
            Code4::Fp4 => "fp4",
            Code4::Int4 => "int4",
        }
    }

    /// The name of the storage, which says whether the constants are quantised too.
    pub fn storage_name(self, double: bool) -> &'static str {
        match (self, double) {
            (_, false) => self.name(),
            (Code4::Nf4, true) => "nf4+dq",
            (Code4::Fp4, true) => "fp4+dq",
            (Code4::Int4, true) => "int4+dq",
        }
    }

    pub fn from_name(name: &str) -> Option<Code4> {
        Code4::ALL.into_iter().find(|code| code.name() == name)
    }

    /// The value of each of the sixteen codes.
    pub fn table(self) -> &'static [f32; 16] {
        match self {
            Code4::Nf4 => &NF4,
            Code4::Fp4 => &FP4,
            Code4::Int4 => &INT4,
        }
    }

    pub(super) fn nearest(self) -> Nearest {
        Nearest::of(self.table())
    }
}

/// Finds the code nearest to a value: a value that lies midway between two belongs to the lower one, as bitsandbytes has it.
pub(super) struct Nearest {
    /// Midpoints between neighbours, rising.
    bounds: [f32; 15],
    /// Codes by rising value.
    order: [u8; 16],
}

impl Nearest {
    fn of(table: &[f32; 16]) -> Nearest {
        let mut order: [u8; 16] = std::array::from_fn(|q| q as u8);
        // Stable: of FP4's two zeros the positive one, code 0, is the lower.
        order.sort_by(|a, b| table[usize::from(*a)].total_cmp(&table[usize::from(*b)]));
        let value = |i: usize| table[usize::from(order[i])];
        Nearest { bounds: std::array::from_fn(|i| (value(i) + value(i + 1)) / 2.0), order }
    }

    /// The codes of `scaled`; to be inlined into a `multiversion!` body.
    #[inline(always)]
    pub fn codes<const N: usize>(&self, scaled: &[f32; N]) -> [u8; N] {
        // The number of midpoints below a value is its place among the sorted codes.
        let mut places = [0u32; N];
        for bound in self.bounds {
            for (place, v) in places.iter_mut().zip(scaled) {
                *place += u32::from(*v > bound);
            }
        }
        places.map(|place| self.order[place as usize & 15])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_codes() {
        for code in Code4::ALL {
            assert_eq!(Code4::from_name(code.name()), Some(code));
            assert!(code.storage_name(true).starts_with(code.storage_name(false)));
        }
        assert_eq!(Code4::from_name("nf5"), None);
    }

    #[test]
    fn every_value_of_a_table_is_its_own_nearest() {
        for code in Code4::ALL {
            let got = code.nearest().codes(code.table());
            for (q, got) in got.into_iter().enumerate() {
                assert_eq!(code.table()[q], code.table()[usize::from(got)], "{code:?} {q}");
            }
            assert!(!got.contains(&15) || code != Code4::Int4, "entry 15 of int4 is never written");
        }
    }

    #[test]
    fn ties_belong_to_the_lower_neighbour_and_zero_to_the_positive_one() {
        let int4 = Code4::Int4.nearest();
        assert_eq!(int4.codes(&[-1.0, 1.0, 0.0, int4.bounds[7], -int4.bounds[7]]), [0, 14, 7, 7, 6]);
        assert_eq!(Code4::Fp4.nearest().codes(&[0.0, -0.0, 0.002, -0.002, 1.0, -1.0]), [0, 0, 8, 0, 3, 11]);
    }
}
