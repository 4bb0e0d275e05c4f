//! How fast this machine multiplies out of registers: the floor of everything that is bound by
//! arithmetic.

use std::time::Instant;

use crate::isa::Isa;

/// Steps of a loop between looks at the clock; each makes [`CHAINS`] products of vectors.
const STEPS: usize = 1 << 17;

/// Sums that do not wait for each other: more than latency times units.
const CHAINS: usize = 16;

/// Multiply-adds a second of all threads together, operands and sums in registers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MultiplyRates {
    /// Fused, in float32.
    pub f32: f64,
    /// Bytes into 32-bit sums, by the instructions that the integer kernels use.
    pub int8: f64,
    /// The same of words of two bytes.
    pub int16: f64,
}

/// What runs in the loop.
#[derive(Clone, Copy)]
enum Kind {
    F32,
    Int8,
    Int16,
}

/// The best of `reps` times on all threads of the current pool; `None` for a tier without vectors
/// of this architecture. Takes some ten milliseconds a repetition.
pub fn multiply_rates(isa: Isa, reps: usize) -> Option<MultiplyRates> {
    let best = |kind| {
        let rates = (0..reps.max(1)).map(|_| {
            let started = Instant::now();
            let counts = rayon::broadcast(|_| run(isa, kind));
            let products: Option<usize> = counts.into_iter().sum();
            Some(products? as f64 / started.elapsed().as_secs_f64().max(1e-9))
        });
        rates.fold(None, |best: Option<f64>, rate| match (best, rate) {
            (Some(best), Some(rate)) => Some(best.max(rate)),
            (best, rate) => best.or(rate),
        })
    };
    Some(MultiplyRates {
        f32: best(Kind::F32)?,
        int8: best(Kind::Int8)?,
        int16: best(Kind::Int16)?,
    })
}

/// Runs the loop; multiply-adds done, `None` where there is no such instruction.
#[cfg(target_arch = "x86_64")]
fn run(isa: Isa, kind: Kind) -> Option<usize> {
    use crate::isa::Tier;
    let extras = isa.extras();
    // SAFETY: the token proves the features of its tier and of each extra.
    let lanes = unsafe {
        match (isa.tier(), kind) {
            (Tier::Scalar, _) => return None,
            (Tier::Avx2, Kind::F32) => x86::f32_avx2(),
            (Tier::Avx2, Kind::Int8) if extras.vnni => x86::int8_avx_vnni(),
            (Tier::Avx2, Kind::Int8) => x86::int8_avx2(),
            (Tier::Avx512, Kind::F32) => x86::f32_avx512(),
            (Tier::Avx512, Kind::Int8) if extras.vnni => x86::int8_avx512_vnni(),
            (Tier::Avx512, Kind::Int8) => x86::int8_avx512(),
            (Tier::Avx2, Kind::Int16) if extras.vnni => x86::int16_avx_vnni(),
            (Tier::Avx512, Kind::Int16) if extras.vnni => x86::int16_avx512_vnni(),
            (_, Kind::Int16) => x86::int16_avx2(),
        }
    };
    Some(lanes * CHAINS * STEPS)
}

#[cfg(not(target_arch = "x86_64"))]
fn run(_isa: Isa, _kind: Kind) -> Option<usize> {
    None
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use super::{CHAINS, STEPS};

    /// Defines a loop of [`CHAINS`] sums with operands that the compiler cannot know; it returns
    /// the multiply-adds of a vector.
    macro_rules! rate_loop {
        ($name:ident, $features:literal, $per_vector:expr, $zero:expr, $operand:expr, $step:expr) => {
            #[target_feature(enable = $features)]
            pub(super) fn $name() -> usize {
                let (a, b) = (black_box($operand), black_box($operand));
                let mut sums = black_box([$zero; CHAINS]);
                let step = $step;
                for _ in 0..STEPS {
                    for sum in &mut sums {
                        *sum = step(*sum, a, b);
                    }
                }
                black_box(sums);
                $per_vector
            }
        };
    }

    rate_loop!(
        f32_avx2,
        "avx2,fma",
        8,
        _mm256_setzero_ps(),
        _mm256_set1_ps(0.5),
        |sum, a, b| _mm256_fmadd_ps(a, b, sum)
    );
    rate_loop!(
        f32_avx512,
        "avx512f",
        16,
        _mm512_setzero_ps(),
        _mm512_set1_ps(0.5),
        |sum, a, b| _mm512_fmadd_ps(a, b, sum)
    );
    // Without the dot-product instructions an operand changes with the sum, or the compiler would
    // take the product out of the loop.
    rate_loop!(
        int8_avx2,
        "avx2",
        32,
        _mm256_setzero_si256(),
        _mm256_set1_epi8(1),
        |sum, a, b| {
            let pairs = _mm256_maddubs_epi16(_mm256_xor_si256(a, sum), b);
            _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, b))
        }
    );
    rate_loop!(
        int8_avx_vnni,
        "avx2,avxvnni",
        32,
        _mm256_setzero_si256(),
        _mm256_set1_epi8(1),
        |sum, a, b| _mm256_dpbusd_avx_epi32(sum, a, b)
    );
    rate_loop!(
        int8_avx512,
        "avx512f,avx512bw",
        64,
        _mm512_setzero_si512(),
        _mm512_set1_epi8(1),
        |sum, a, b| {
            let pairs = _mm512_maddubs_epi16(_mm512_xor_si512(a, sum), b);
            _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, b))
        }
    );
    rate_loop!(
        int8_avx512_vnni,
        "avx512f,avx512vnni",
        64,
        _mm512_setzero_si512(),
        _mm512_set1_epi8(1),
        |sum, a, b| _mm512_dpbusd_epi32(sum, a, b)
    );

    rate_loop!(
        int16_avx2,
        "avx2",
        16,
        _mm256_setzero_si256(),
        _mm256_set1_epi16(1),
        |sum, a, b| _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_xor_si256(a, sum), b))
    );
    rate_loop!(
        int16_avx_vnni,
        "avx2,avxvnni",
        16,
        _mm256_setzero_si256(),
        _mm256_set1_epi16(1),
        |sum, a, b| _mm256_dpwssd_avx_epi32(sum, a, b)
    );
    rate_loop!(
        int16_avx512_vnni,
        "avx512f,avx512vnni",
        32,
        _mm512_setzero_si512(),
        _mm512_set1_epi16(1),
        |sum, a, b| _mm512_dpwssd_epi32(sum, a, b)
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tier_with_vectors_says_how_fast() {
        for isa in Isa::variants() {
            let Some(rates) = multiply_rates(isa, 1) else {
                assert_eq!(isa.name(), "scalar");
                continue;
            };
            assert!(rates.f32 > 0.0 && rates.int8 > 0.0 && rates.int16 > 0.0);
        }
    }
}
