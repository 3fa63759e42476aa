//! How much a score, or a difference of two, means.

use serde::Serialize;

/// Two-sided 95 % quantile of the standard normal distribution.
const Z95: f64 = 1.959_963_984_540_054;

/// Bounds of a 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    /// Lower bound.
    pub low: f64,
    /// Upper bound.
    pub high: f64,
}

/// Wilson's score interval for a proportion (Wilson 1927): well-behaved for small counts and at 0 and 1.
/// Nothing is known (0 to 1) where `total` is 0.
pub fn wilson(correct: usize, total: usize) -> Interval {
    wilson_of_share(correct as f64 / total.max(1) as f64, total)
}

/// [`wilson`] for a share that is itself a mean, such as one over several seeds on the same `total` items.
pub fn wilson_of_share(p: f64, total: usize) -> Interval {
    if total == 0 {
        return Interval { low: 0.0, high: 1.0 };
    }
    let n = total as f64;
    let z2 = Z95 * Z95;
    let centre = (p + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = Z95 / (1.0 + z2 / n) * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
    // At the ends the bound is exact; rounding must not push it past.
    let low = if p <= 0.0 { 0.0 } else { (centre - half).max(0.0) };
    let high = if p >= 1.0 { 1.0 } else { (centre + half).min(1.0) };
    Interval { low, high }
}

/// A mean with its standard error (sample standard deviation over √n); the error is `None` below two values.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Mean {
    /// The mean.
    pub mean: f64,
    /// Its standard error.
    pub stderr: Option<f64>,
}

/// The mean of `values`; `None` of nothing.
pub fn mean(values: &[f64]) -> Option<Mean> {
    let n = values.len() as f64;
    if values.is_empty() {
        return None;
    }
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    let stderr = (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt() / n.sqrt());
    Some(Mean { mean, stderr })
}

/// A paired comparison of two systems on the same items.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Difference {
    /// Mean of first minus second.
    pub difference: f64,
    /// 95 % percentile interval of the difference.
    pub interval: Interval,
    /// Two-sided p-value: how often a resampled difference lies on the other side of zero, doubled.
    pub p: f64,
}

/// Paired bootstrap: items are drawn with replacement, both systems' scores together.
/// The random numbers depend on `seed` alone. `None` if the lists are empty or of different lengths, or without resamples.
pub fn paired_bootstrap(first: &[f64], second: &[f64], resamples: usize, seed: u64) -> Option<Difference> {
    if first.is_empty() || first.len() != second.len() || resamples == 0 {
        return None;
    }
    let deltas: Vec<f64> = first.iter().zip(second).map(|(a, b)| a - b).collect();
    let n = deltas.len();
    let mut random = SplitMix(seed);
    let mut means: Vec<f64> =
        (0..resamples).map(|_| (0..n).map(|_| deltas[random.below(n)]).sum::<f64>() / n as f64).collect();
    means.sort_by(f64::total_cmp);
    let at = |q: f64| means[((resamples - 1) as f64 * q).round() as usize];
    let share = |side: fn(&f64) -> bool| means.iter().filter(|m| side(m)).count() as f64 + 1.0;
    let tail = share(|m| *m <= 0.0).min(share(|m| *m >= 0.0)) / (resamples as f64 + 1.0);
    Some(Difference {
        difference: deltas.iter().sum::<f64>() / n as f64,
        interval: Interval { low: at(0.025), high: at(0.975) },
        p: (2.0 * tail).min(1.0),
    })
}

/// Steele, Lea and Flood 2014: a counter through a mixing function, enough to draw indices.
struct SplitMix(u64);

impl SplitMix {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        // The high half of the product maps 64 bits to 0..n; the bias is n / 2^64.
        ((u128::from(z ^ (z >> 31)) * n as u128) >> 64) as usize
    }
}

/// McNemar's exact test: the two-sided p-value for "both systems are equally often right", from the items that only
/// one of them gets right. Under that hypothesis the counts are binomial with p = 1/2.
pub fn mcnemar(only_first: usize, only_second: usize) -> f64 {
    let (n, k) = (only_first + only_second, only_first.min(only_second));
    // ln C(n, i) − n ln 2, summed from the small end.
    let mut term = -(n as f64) * std::f64::consts::LN_2;
    let mut tail = 0.0;
    for i in 0..=k {
        tail += term.exp();
        term += ((n - i) as f64).ln() - ((i + 1) as f64).ln();
    }
    (2.0 * tail).min(1.0)
}

/// Holm's correction for many comparisons (Holm 1979): adjusted p-values in the order given.
pub fn holm(p_values: &[f64]) -> Vec<f64> {
    let m = p_values.len();
    let mut order: Vec<usize> = (0..m).collect();
    order.sort_by(|&a, &b| p_values[a].total_cmp(&p_values[b]));
    let mut adjusted = vec![0.0; m];
    let mut largest: f64 = 0.0;
    for (rank, &i) in order.iter().enumerate() {
        largest = largest.max((p_values[i] * (m - rank) as f64).min(1.0));
        adjusted[i] = largest;
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-6, "{a} {b}");
    }

    #[test]
    fn wilson_agrees_with_published_values() {
        // statsmodels.stats.proportion.proportion_confint(method="wilson")
        let check = |correct, total, low, high| {
            let found = wilson(correct, total);
            near(found.low, low);
            near(found.high, high);
        };
        check(0, 0, 0.0, 1.0);
        check(0, 10, 0.0, 0.277_532_8);
        check(10, 10, 0.722_467_2, 1.0);
        check(5, 10, 0.236_593_1, 0.763_406_9);
        check(50, 100, 0.403_831_5, 0.596_168_5);
    }

    #[test]
    fn means_have_errors() {
        assert_eq!(mean(&[]), None);
        assert_eq!(mean(&[2.0]), Some(Mean { mean: 2.0, stderr: None }));
        let found = mean(&[0.0, 1.0, 1.0, 0.0]).unwrap();
        near(found.mean, 0.5);
        near(found.stderr.unwrap(), 0.288_675_1);
    }

    #[test]
    fn mcnemar_is_the_binomial_test() {
        // scipy.stats.binomtest(k, n).pvalue
        for (a, b, p) in
            [(0, 0, 1.0), (5, 5, 1.0), (0, 5, 0.0625), (1, 9, 0.021_484_375), (10, 25, 0.016_674_4)]
        {
            near(mcnemar(a, b), p);
            near(mcnemar(b, a), p);
        }
        assert!(mcnemar(0, 5000) >= 0.0 && mcnemar(2400, 2600) > 0.004);
    }

    #[test]
    fn holm_steps_down() {
        let check = |given: &[f64], expected: &[f64]| {
            for (a, b) in holm(given).iter().zip(expected) {
                near(*a, *b);
            }
        };
        check(&[], &[]);
        check(&[0.01, 0.04, 0.03, 0.005], &[0.03, 0.06, 0.06, 0.02]);
        check(&[0.9, 0.8], &[1.0, 1.0]);
    }

    #[test]
    fn the_bootstrap_sees_a_difference() {
        let better: Vec<f64> = (0..100).map(|i| f64::from(u8::from(i % 10 < 8))).collect();
        let worse: Vec<f64> = (0..100).map(|i| f64::from(u8::from(i % 10 < 4))).collect();
        let found = paired_bootstrap(&better, &worse, 2000, 1).unwrap();
        near(found.difference, 0.4);
        assert!(found.p < 0.01 && found.interval.low > 0.25 && found.interval.high < 0.55, "{found:?}");
        assert_eq!(paired_bootstrap(&better, &worse, 2000, 1), Some(found));
        assert_eq!(paired_bootstrap(&better, &better, 100, 1).unwrap().p, 1.0);
        assert_eq!(paired_bootstrap(&better, &worse[1..], 100, 1), None);
    }
}
