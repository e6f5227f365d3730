//! The few vector operations that decoding takes, for each instruction set: 32 bytes, and 16 floats.
//!
//! A body generic over [`Isa`] is compiled for each by [`per_isa!`], and gets a value of it; everything here is inlined into such bodies.
//! Products and sums of weights are rounded one by one, so that every instruction set decodes to the same bits, ggml's.

/// Vector operations of one instruction set. The values that implement it prove that the machine has it.
pub(super) trait Isa: Copy {
    /// 32 small integers.
    type Bytes: Copy;
    /// 16 f32.
    type Floats: Copy;
    /// 16 f32 to be looked up.
    type Table: Copy;

    fn bytes(self, from: &[u8; 32]) -> Self::Bytes;
    /// Columns 0..16 from the lower halves, 16..32 from the upper.
    fn nibbles(self, from: &[u8; 16]) -> Self::Bytes;
    /// 255 where the bit is set, else 0.
    fn spread(self, bits: u32) -> Self::Bytes;
    /// v >> n & mask for each byte; mask must fit 8 - n bits.
    fn shift_and(self, v: Self::Bytes, n: usize, mask: u8) -> Self::Bytes;
    /// v << n for each byte, which must have room for it.
    fn shift_up(self, v: Self::Bytes, n: usize) -> Self::Bytes;
    fn and(self, v: Self::Bytes, mask: u8) -> Self::Bytes;
    fn or(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    fn minus(self, v: Self::Bytes, n: u8) -> Self::Bytes;
    /// As signed integers.
    fn floats(self, v: Self::Bytes) -> [Self::Floats; 2];

    fn load(self, from: &[f32; 16]) -> Self::Floats;
    fn store(self, v: Self::Floats, to: &mut [f32; 16]);
    fn splat(self, v: f32) -> Self::Floats;
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// a * b + c, fused where that is one instruction: for sums, not for weights.
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;

    /// Sixteen values times a scale.
    fn table(self, values: &[f32; 16], scale: f32) -> Self::Table;
    /// The values of sixteen nibbles, the high one of each byte first.
    fn look_up(self, table: Self::Table, from: &[u8; 8]) -> Self::Floats;

    /// The value of an IEEE half.
    fn half(self, bits: [u8; 2]) -> f32;
    /// The value of an IEEE half, sixteen times.
    fn splat_half(self, bits: [u8; 2]) -> Self::Floats;
    /// 16 IEEE halves.
    fn halves(self, bits: &[u16; 16]) -> Self::Floats;
    /// 16 bf16.
    fn brains(self, bits: &[u16; 16]) -> Self::Floats;

    /// Nibble * scale + offset, columns as in `nibbles`.
    #[inline(always)]
    fn affine_nibbles(self, from: &[u8; 16], scale: Self::Floats, offset: Self::Floats) -> [Self::Floats; 2] {
        self.floats(self.nibbles(from)).map(|q| self.add(self.mul(q, scale), offset))
    }

    /// (nibble - 8) * scale, columns as in `nibbles`.
    #[inline(always)]
    fn centred_nibbles(self, from: &[u8; 16], scale: Self::Floats) -> [Self::Floats; 2] {
        self.floats(self.minus(self.nibbles(from), 8)).map(|q| self.mul(q, scale))
    }

    /// q[i] * scale[i].
    #[inline(always)]
    fn times(self, q: Self::Bytes, scale: Self::Floats) -> [Self::Floats; 2] {
        self.floats(q).map(|q| self.mul(q, scale))
    }

    /// q[i] * scale[i / 16].
    #[inline(always)]
    fn scaled(self, q: Self::Bytes, scale: [f32; 2]) -> [Self::Floats; 2] {
        let [a, b] = self.floats(q);
        [self.mul(a, self.splat(scale[0])), self.mul(b, self.splat(scale[1]))]
    }

    /// q[i] * scale[i / 16] + offset[i / 16].
    #[inline(always)]
    fn affine(self, q: Self::Bytes, scale: [f32; 2], offset: [f32; 2]) -> [Self::Floats; 2] {
        let [a, b] = self.scaled(q, scale);
        [self.add(a, self.splat(offset[0])), self.add(b, self.splat(offset[1]))]
    }
}

/// Compiles a function for each instruction set, chosen at run time; the body gets the [`Isa`] as a value.
///
/// `fn name[generic parameters][the same as arguments](isa; arguments) { body }`
macro_rules! per_isa {
    ($(#[$meta:meta])* fn $name:ident[$($param:tt)*][$($generic:tt)*]($isa:ident; $($arg:ident: $ty:ty),*) $body:block) => {
        $(#[$meta])*
        fn $name<$($param)*>($($arg: $ty),*) {
            #[inline(always)]
            fn body<I: $crate::storage::isa::Isa, $($param)*>($isa: I, $($arg: $ty),*) $body

            #[cfg(target_arch = "x86_64")]
            {
                use $crate::{kernel::{Level, level}, storage::isa::{Avx2, Avx512}};
                #[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2")]
                fn avx2<$($param)*>(isa: Avx2, $($arg: $ty),*) {
                    body::<_, $($generic)*>(isa, $($arg),*)
                }
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi1,bmi2")]
                fn avx512<$($param)*>(isa: Avx512, $($arg: $ty),*) {
                    body::<_, $($generic)*>(isa, $($arg),*)
                }
                match level() {
                    // SAFETY: `level` names an instruction set only after finding each of its features on this machine.
                    Level::Avx512 => unsafe { avx512::<$($generic)*>(Avx512::found(), $($arg),*) },
                    // SAFETY: as above.
                    Level::Avx2 => unsafe { avx2::<$($generic)*>(Avx2::found(), $($arg),*) },
                    Level::Portable => body::<_, $($generic)*>($crate::storage::isa::Plain, $($arg),*),
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            body::<_, $($generic)*>($crate::storage::isa::Plain, $($arg),*)
        }
    };
}
pub(super) use per_isa;

/// Plain Rust: the reference for the others, and what NEON machines run.
#[derive(Clone, Copy)]
pub(super) struct Plain;

impl Isa for Plain {
    type Bytes = [u8; 32];
    type Floats = [f32; 16];
    type Table = [f32; 16];

    #[inline(always)]
    fn bytes(self, from: &[u8; 32]) -> [u8; 32] {
        *from
    }
    #[inline(always)]
    fn nibbles(self, from: &[u8; 16]) -> [u8; 32] {
        let mut q = [0; 32];
        for j in 0..16 {
            q[j] = from[j] & 15;
            q[j + 16] = from[j] >> 4;
        }
        q
    }
    #[inline(always)]
    fn spread(self, bits: u32) -> [u8; 32] {
        let mut q = [0; 32];
        for j in 0..32 {
            q[j] = if bits >> j & 1 == 1 { 255 } else { 0 };
        }
        q
    }
    #[inline(always)]
    fn shift_and(self, v: [u8; 32], n: usize, mask: u8) -> [u8; 32] {
        v.map(|v| v >> n & mask)
    }
    #[inline(always)]
    fn shift_up(self, v: [u8; 32], n: usize) -> [u8; 32] {
        v.map(|v| v << n)
    }
    #[inline(always)]
    fn and(self, v: [u8; 32], mask: u8) -> [u8; 32] {
        v.map(|v| v & mask)
    }
    #[inline(always)]
    fn or(self, mut a: [u8; 32], b: [u8; 32]) -> [u8; 32] {
        for j in 0..32 {
            a[j] |= b[j];
        }
        a
    }
    #[inline(always)]
    fn minus(self, v: [u8; 32], n: u8) -> [u8; 32] {
        v.map(|v| v.wrapping_sub(n))
    }
    #[inline(always)]
    fn floats(self, v: [u8; 32]) -> [[f32; 16]; 2] {
        let mut f = [[0.0; 16]; 2];
        for j in 0..16 {
            f[0][j] = f32::from(v[j] as i8);
            f[1][j] = f32::from(v[j + 16] as i8);
        }
        f
    }
    #[inline(always)]
    fn load(self, from: &[f32; 16]) -> [f32; 16] {
        *from
    }
    #[inline(always)]
    fn store(self, v: [f32; 16], to: &mut [f32; 16]) {
        *to = v;
    }
    #[inline(always)]
    fn splat(self, v: f32) -> [f32; 16] {
        [v; 16]
    }
    #[inline(always)]
    fn add(self, mut a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        for j in 0..16 {
            a[j] += b[j];
        }
        a
    }
    #[inline(always)]
    fn mul(self, mut a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        for j in 0..16 {
            a[j] *= b[j];
        }
        a
    }
    #[inline(always)]
    fn mul_add(self, a: [f32; 16], b: [f32; 16], mut c: [f32; 16]) -> [f32; 16] {
        for j in 0..16 {
            c[j] = if cfg!(target_arch = "aarch64") { a[j].mul_add(b[j], c[j]) } else { a[j] * b[j] + c[j] };
        }
        c
    }
    #[inline(always)]
    fn table(self, values: &[f32; 16], scale: f32) -> [f32; 16] {
        values.map(|v| v * scale)
    }
    #[inline(always)]
    fn look_up(self, table: [f32; 16], from: &[u8; 8]) -> [f32; 16] {
        let mut v = [0.0; 16];
        for j in 0..8 {
            v[2 * j] = table[usize::from(from[j] >> 4)];
            v[2 * j + 1] = table[usize::from(from[j] & 15)];
        }
        v
    }
    #[inline(always)]
    fn half(self, bits: [u8; 2]) -> f32 {
        from_f16(u16::from_le_bytes(bits))
    }
    #[inline(always)]
    fn splat_half(self, bits: [u8; 2]) -> [f32; 16] {
        [self.half(bits); 16]
    }
    #[inline(always)]
    fn halves(self, bits: &[u16; 16]) -> [f32; 16] {
        bits.map(from_f16)
    }
    #[inline(always)]
    fn brains(self, bits: &[u16; 16]) -> [f32; 16] {
        bits.map(from_bf16)
    }
}

#[inline(always)]
pub(super) fn from_bf16(w: u16) -> f32 {
    f32::from_bits(u32::from(w) << 16)
}

/// IEEE half to f32, without branches and without subnormal f32 on the way (slow on many machines).
#[inline(always)]
pub(super) fn from_f16(w: u16) -> f32 {
    const SMALLEST_NORMAL: f32 = 6.103_515_6e-5; // 2^-14
    let w = u32::from(w);
    let sign = (w & 0x8000) << 16;
    let magnitude = (w & 0x7fff) << 13; // exponent and mantissa in place, bias still 15
    let normal = magnitude + ((127 - 15) << 23);
    let special = magnitude + ((255 - 31) << 23); // inf and NaN
    // A subnormal is mantissa * 2^-24: put the mantissa behind the exponent of 2^-14, and take 2^-14 away.
    let subnormal = (f32::from_bits(normal + (1 << 23)) - SMALLEST_NORMAL).to_bits();
    let bits = if magnitude >= 31 << 23 { special } else { normal };
    let bits = if magnitude < 1 << 23 { subnormal } else { bits };
    f32::from_bits(bits | sign)
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Isa;
    use std::arch::x86_64::*;

    /// AVX2 with FMA and F16C. Only [`Avx2::found`] makes one.
    #[derive(Clone, Copy)]
    pub struct Avx2(());

    /// AVX-512 F, BW, DQ, VL, and what [`Avx2`] has. Only [`Avx512::found`] makes one.
    #[derive(Clone, Copy)]
    pub struct Avx512(Avx2);

    impl Avx2 {
        /// # Safety
        /// The machine has AVX2, FMA and F16C.
        #[inline(always)]
        pub unsafe fn found() -> Self {
            Avx2(())
        }
    }

    impl Avx512 {
        /// # Safety
        /// The machine has AVX-512 F, BW, DQ, VL, AVX2, FMA and F16C.
        #[inline(always)]
        pub unsafe fn found() -> Self {
            Avx512(Avx2(()))
        }
    }

    /// Sixteen bytes whose lower halves are the nibbles, the high one of each byte first; their upper halves are unspecified.
    #[inline(always)]
    fn nibbles_in_order(from: &[u8; 8]) -> __m128i {
        // SAFETY: eight bytes are read through a reference to as many; SSE2 is part of x86-64.
        unsafe {
            let v = _mm_loadl_epi64(from.as_ptr().cast());
            _mm_unpacklo_epi8(_mm_srli_epi16::<4>(v), v)
        }
    }

    // SAFETY of all blocks below: `self` proves that the machine has the instructions; loads and stores are of whole arrays by reference.
    impl Isa for Avx2 {
        type Bytes = __m256i;
        type Floats = [__m256; 2];
        type Table = [__m256; 2];

        #[inline(always)]
        fn bytes(self, from: &[u8; 32]) -> __m256i {
            // SAFETY: see above the impl.
            unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
        }
        #[inline(always)]
        fn nibbles(self, from: &[u8; 16]) -> __m256i {
            // SAFETY: see above the impl.
            unsafe {
                let v = _mm_loadu_si128(from.as_ptr().cast());
                let both = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(v), _mm_srli_epi16::<4>(v));
                _mm256_and_si256(both, _mm256_set1_epi8(15))
            }
        }
        #[inline(always)]
        fn spread(self, bits: u32) -> __m256i {
            // SAFETY: see above the impl.
            unsafe {
                // Byte j of the mask to columns 8j..8j + 8, then one bit of it each.
                let order =
                    _mm256_set_epi64x(0x0303_0303_0303_0303, 0x0202_0202_0202_0202, 0x0101_0101_0101_0101, 0);
                let v = _mm256_shuffle_epi8(_mm256_set1_epi32(bits as i32), order);
                let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
                _mm256_cmpeq_epi8(_mm256_and_si256(v, bit), bit)
            }
        }
        #[inline(always)]
        fn shift_and(self, v: __m256i, n: usize, mask: u8) -> __m256i {
            // SAFETY: see above the impl.
            unsafe {
                let shifted = _mm256_srl_epi16(v, _mm_cvtsi32_si128(n as i32));
                _mm256_and_si256(shifted, _mm256_set1_epi8(mask as i8))
            }
        }
        #[inline(always)]
        fn shift_up(self, v: __m256i, n: usize) -> __m256i {
            // SAFETY: see above the impl.
            unsafe { _mm256_sll_epi16(v, _mm_cvtsi32_si128(n as i32)) }
        }
        #[inline(always)]
        fn and(self, v: __m256i, mask: u8) -> __m256i {
            // SAFETY: see above the impl.
            unsafe { _mm256_and_si256(v, _mm256_set1_epi8(mask as i8)) }
        }
        #[inline(always)]
        fn or(self, a: __m256i, b: __m256i) -> __m256i {
            // SAFETY: see above the impl.
            unsafe { _mm256_or_si256(a, b) }
        }
        #[inline(always)]
        fn minus(self, v: __m256i, n: u8) -> __m256i {
            // SAFETY: see above the impl.
            unsafe { _mm256_sub_epi8(v, _mm256_set1_epi8(n as i8)) }
        }
        #[inline(always)]
        fn floats(self, v: __m256i) -> [[__m256; 2]; 2] {
            // SAFETY: see above the impl.
            let wide = |v: __m128i| unsafe {
                let low = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(v));
                [low, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(v, v)))]
            };
            // SAFETY: see above the impl.
            unsafe { [wide(_mm256_castsi256_si128(v)), wide(_mm256_extracti128_si256::<1>(v))] }
        }
        #[inline(always)]
        fn load(self, from: &[f32; 16]) -> [__m256; 2] {
            // SAFETY: see above the impl.
            unsafe { [_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8))] }
        }
        #[inline(always)]
        fn store(self, v: [__m256; 2], to: &mut [f32; 16]) {
            // SAFETY: see above the impl.
            unsafe {
                _mm256_storeu_ps(to.as_mut_ptr(), v[0]);
                _mm256_storeu_ps(to.as_mut_ptr().add(8), v[1]);
            }
        }
        #[inline(always)]
        fn splat(self, v: f32) -> [__m256; 2] {
            // SAFETY: see above the impl.
            unsafe { [_mm256_set1_ps(v); 2] }
        }
        #[inline(always)]
        fn add(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
            // SAFETY: see above the impl.
            unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
        }
        #[inline(always)]
        fn mul(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
            // SAFETY: see above the impl.
            unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
        }
        #[inline(always)]
        fn mul_add(self, a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
            // SAFETY: see above the impl.
            unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
        }
        #[inline(always)]
        fn table(self, values: &[f32; 16], scale: f32) -> [__m256; 2] {
            self.mul(self.load(values), self.splat(scale))
        }
        #[inline(always)]
        fn look_up(self, table: [__m256; 2], from: &[u8; 8]) -> [__m256; 2] {
            // SAFETY: see above the impl.
            unsafe {
                // A permutation reads the lowest three bits of each index; the fourth, moved to the sign, chooses between the halves.
                let index = nibbles_in_order(from);
                let choose = |index: __m256i| {
                    let low = _mm256_permutevar8x32_ps(table[0], index);
                    let high = _mm256_permutevar8x32_ps(table[1], index);
                    _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index)))
                };
                [
                    choose(_mm256_cvtepu8_epi32(index)),
                    choose(_mm256_cvtepu8_epi32(_mm_unpackhi_epi64(index, index))),
                ]
            }
        }
        #[inline(always)]
        fn half(self, bits: [u8; 2]) -> f32 {
            // SAFETY: see above the impl.
            unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(u16::from_le_bytes(bits))))) }
        }
        #[inline(always)]
        fn splat_half(self, bits: [u8; 2]) -> [__m256; 2] {
            // SAFETY: see above the impl.
            unsafe { [_mm256_cvtph_ps(_mm_set1_epi16(i16::from_le_bytes(bits))); 2] }
        }
        #[inline(always)]
        fn halves(self, bits: &[u16; 16]) -> [__m256; 2] {
            // SAFETY: see above the impl.
            unsafe {
                let at = bits.as_ptr().cast::<__m128i>();
                [_mm256_cvtph_ps(_mm_loadu_si128(at)), _mm256_cvtph_ps(_mm_loadu_si128(at.add(1)))]
            }
        }
        #[inline(always)]
        fn brains(self, bits: &[u16; 16]) -> [__m256; 2] {
            // SAFETY: see above the impl.
            let wide = |v: __m128i| unsafe {
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(v)))
            };
            // SAFETY: see above the impl.
            unsafe {
                let at = bits.as_ptr().cast::<__m128i>();
                [wide(_mm_loadu_si128(at)), wide(_mm_loadu_si128(at.add(1)))]
            }
        }
    }

    // SAFETY of all blocks below: as for Avx2.
    impl Isa for Avx512 {
        type Bytes = __m256i;
        type Floats = __m512;
        type Table = __m512;

        #[inline(always)]
        fn bytes(self, from: &[u8; 32]) -> __m256i {
            self.0.bytes(from)
        }
        #[inline(always)]
        fn nibbles(self, from: &[u8; 16]) -> __m256i {
            self.0.nibbles(from)
        }
        #[inline(always)]
        fn spread(self, bits: u32) -> __m256i {
            // SAFETY: see above the impl.
            unsafe { _mm256_movm_epi8(bits) }
        }
        #[inline(always)]
        fn shift_and(self, v: __m256i, n: usize, mask: u8) -> __m256i {
            self.0.shift_and(v, n, mask)
        }
        #[inline(always)]
        fn shift_up(self, v: __m256i, n: usize) -> __m256i {
            self.0.shift_up(v, n)
        }
        #[inline(always)]
        fn and(self, v: __m256i, mask: u8) -> __m256i {
            self.0.and(v, mask)
        }
        #[inline(always)]
        fn or(self, a: __m256i, b: __m256i) -> __m256i {
            self.0.or(a, b)
        }
        #[inline(always)]
        fn minus(self, v: __m256i, n: u8) -> __m256i {
            self.0.minus(v, n)
        }
        #[inline(always)]
        fn floats(self, v: __m256i) -> [__m512; 2] {
            // SAFETY: see above the impl.
            unsafe {
                let (low, high) = (_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
                [low, high].map(|v| _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(v)))
            }
        }
        #[inline(always)]
        fn load(self, from: &[f32; 16]) -> __m512 {
            // SAFETY: see above the impl.
            unsafe { _mm512_loadu_ps(from.as_ptr()) }
        }
        #[inline(always)]
        fn store(self, v: __m512, to: &mut [f32; 16]) {
            // SAFETY: see above the impl.
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) }
        }
        #[inline(always)]
        fn splat(self, v: f32) -> __m512 {
            // SAFETY: see above the impl.
            unsafe { _mm512_set1_ps(v) }
        }
        #[inline(always)]
        fn add(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: see above the impl.
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        fn mul(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: see above the impl.
            unsafe { _mm512_mul_ps(a, b) }
        }
        #[inline(always)]
        fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
            // SAFETY: see above the impl.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        fn table(self, values: &[f32; 16], scale: f32) -> __m512 {
            self.mul(self.load(values), self.splat(scale))
        }
        #[inline(always)]
        fn look_up(self, table: __m512, from: &[u8; 8]) -> __m512 {
            // SAFETY: see above the impl.
            unsafe { _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(nibbles_in_order(from)), table) }
        }
        #[inline(always)]
        fn half(self, bits: [u8; 2]) -> f32 {
            self.0.half(bits)
        }
        #[inline(always)]
        fn splat_half(self, bits: [u8; 2]) -> __m512 {
            // SAFETY: see above the impl.
            unsafe { _mm512_cvtph_ps(_mm256_set1_epi16(i16::from_le_bytes(bits))) }
        }
        #[inline(always)]
        fn halves(self, bits: &[u16; 16]) -> __m512 {
            // SAFETY: see above the impl.
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(bits.as_ptr().cast())) }
        }
        #[inline(always)]
        fn brains(self, bits: &[u16; 16]) -> __m512 {
            // SAFETY: see above the impl.
            unsafe {
                let v = _mm512_cvtepu16_epi32(_mm256_loadu_si256(bits.as_ptr().cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(v))
            }
        }

        /// By a table of the sixteen weights: a permutation reads the lowest four bits of each index.
        #[inline(always)]
        fn affine_nibbles(self, from: &[u8; 16], scale: __m512, offset: __m512) -> [__m512; 2] {
            // SAFETY: see above the impl.
            unsafe {
                let q = _mm512_set_ps(15., 14., 13., 12., 11., 10., 9., 8., 7., 6., 5., 4., 3., 2., 1., 0.);
                let table = self.add(self.mul(q, scale), offset);
                let index = _mm512_cvtepu8_epi32(_mm_loadu_si128(from.as_ptr().cast()));
                let upper = _mm512_srli_epi32::<4>(index);
                [_mm512_permutexvar_ps(index, table), _mm512_permutexvar_ps(upper, table)]
            }
        }

        /// By a table, as above.
        #[inline(always)]
        fn centred_nibbles(self, from: &[u8; 16], scale: __m512) -> [__m512; 2] {
            // SAFETY: see above the impl.
            unsafe {
                let q = _mm512_set_ps(7., 6., 5., 4., 3., 2., 1., 0., -1., -2., -3., -4., -5., -6., -7., -8.);
                let table = self.mul(q, scale);
                let index = _mm512_cvtepu8_epi32(_mm_loadu_si128(from.as_ptr().cast()));
                let upper = _mm512_srli_epi32::<4>(index);
                [_mm512_permutexvar_ps(index, table), _mm512_permutexvar_ps(upper, table)]
            }
        }
    }
}
