//! Sums over a slice that the compiler can vectorise: sixteen running sums, added up in a fixed tree at the end.

use crate::isa::fma;

pub(crate) const LANES: usize = 16;

/// `((0+8)+(4+12)) + …`: halves added until one value is left.
#[inline(always)]
pub(crate) fn tree<const N: usize>(mut lanes: [f32; N], combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = N / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = combine(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// Σ aᵢ bᵢ
#[inline(always)]
pub(crate) fn dot<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0; LANES];
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let tail = a.remainder().iter().zip(b.remainder());
    for (a, b) in a.zip(b) {
        for i in 0..LANES {
            sums[i] = fma::<FMA>(a[i], b[i], sums[i]);
        }
    }
    for (sum, (a, b)) in sums.iter_mut().zip(tail) {
        *sum = fma::<FMA>(*a, *b, *sum);
    }
    tree(sums, |a, b| a + b)
}

/// max aᵢ, or -∞ for an empty slice.
#[inline(always)]
pub(crate) fn max(a: &[f32]) -> f32 {
    let greater = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = a.chunks_exact(LANES);
    for (lane, &a) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane = a;
    }
    for a in chunks {
        for i in 0..LANES {
            lanes[i] = greater(lanes[i], a[i]);
        }
    }
    tree(lanes, greater)
}

/// Replaces aᵢ by f(aᵢ) and returns Σ f(aᵢ).
#[inline(always)]
pub(crate) fn map_sum(a: &mut [f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0.0; LANES];
    let mut chunks = a.chunks_exact_mut(LANES);
    for a in &mut chunks {
        for i in 0..LANES {
            a[i] = f(a[i]);
            sums[i] += a[i];
        }
    }
    for (sum, a) in sums.iter_mut().zip(chunks.into_remainder()) {
        *a = f(*a);
        *sum += *a;
    }
    tree(sums, |a, b| a + b)
}
