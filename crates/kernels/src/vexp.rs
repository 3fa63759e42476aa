//! Exponential functions that the compiler can vectorise: no calls, no branches, no tables.

use crate::isa::fma;

/// Above this `exp` is infinite in f32.
const HIGH: f32 = 88.722_83;
/// Below this the result is 0; it would be denormal.
const LOW: f32 = -87.3;

/// eˣ, within 2 units in the last place; 0 below -87.3 (no denormal results), exactly 1 at 0.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2; eʳ by a polynomial of degree 6 (coefficients of Cephes' `expf`); 2ⁿ by adding
/// n to the exponent.
#[inline(always)]
pub(crate) fn exp<const FMA: bool>(x: f32) -> f32 {
    // 1.5 · 2²³: adding it rounds to an integer, which then stands in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let shifted = fma::<FMA>(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = fma::<FMA>(n, -LN2_LOW, fma::<FMA>(n, -LN2_HIGH, x));
    let mut p = 1.987_569_1e-4;
    for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = fma::<FMA>(p, r, coefficient);
    }
    let power = fma::<FMA>(p, r * r, r) + 1.0;
    let result = f32::from_bits(power.to_bits().wrapping_add(shifted.to_bits() << 23));
    let result = if x > HIGH { f32::INFINITY } else { result };
    if x < LOW { 0.0 } else { result }
}

/// tanh x, within 2 units in the last place: a polynomial near 0 (Cephes' `tanhf`), 1 - 2 / (e²ˣ + 1) elsewhere.
#[inline(always)]
pub(crate) fn tanh<const FMA: bool>(x: f32) -> f32 {
    let size = x.abs();
    let z = x * x;
    let mut p = -5.704_988_7e-3;
    for coefficient in [2.063_909e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1] {
        p = fma::<FMA>(p, z, coefficient);
    }
    let near = fma::<FMA>(p * z, x, x);
    let far = (1.0 - 2.0 / (exp::<FMA>(2.0 * size) + 1.0)).copysign(x);
    if size < 0.625 { near } else { far }
}

/// 1 / (1 + e⁻ˣ)
#[inline(always)]
pub(crate) fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FMA>(-x))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The distance to the exact value in units of the last place of f32.
    fn ulps(value: f32, exact: f64) -> f64 {
        let unit = f64::from(f32::EPSILON) * 2.0_f64.powi((exact.abs().log2().floor() as i32).max(-126));
        (f64::from(value) - exact).abs() / unit
    }

    #[test]
    fn errors_are_small() {
        let mut worst = [0.0_f64; 4];
        for i in -8_700_000..8_870_000 {
            if i % 37 != 0 {
                continue;
            }
            let x = i as f32 * 1e-5;
            let exact = f64::from(x).exp();
            worst[0] = worst[0].max(ulps(exp::<false>(x), exact));
            worst[1] = worst[1].max(ulps(exp::<true>(x), exact));
            if x.abs() < 12.0 && x != 0.0 {
                let exact = f64::from(x).tanh();
                worst[2] = worst[2].max(ulps(tanh::<false>(x), exact));
                worst[3] = worst[3].max(ulps(tanh::<true>(x), exact));
            }
        }
        assert!(worst.iter().all(|&worst| worst <= 2.0), "{worst:?}");
    }

    #[test]
    fn special_values() {
        let check = |x: f32, expected: f32| assert_eq!(exp::<true>(x).to_bits(), expected.to_bits(), "{x}");
        check(0.0, 1.0);
        check(f32::NEG_INFINITY, 0.0);
        check(f32::INFINITY, f32::INFINITY);
        check(89.0, f32::INFINITY);
        check(-88.0, 0.0);
        assert!(exp::<true>(f32::NAN).is_nan());
        assert!(exp::<true>(88.72).is_finite());
        assert_eq!(tanh::<true>(0.0), 0.0);
        assert_eq!(tanh::<true>(-30.0), -1.0);
        assert_eq!(sigmoid::<true>(0.0), 0.5);
    }
}
