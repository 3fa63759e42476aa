//! The arithmetic of merging, on plain lists of numbers: it does not matter what they are entries of.

use super::Method;
use mixse_model::random::Stream;

/// What the numbers belong to; names DARE's random choice.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) module: &'a str,
    pub(super) part: &'a str,
}

/// Merges lists of equal length, one an expert.
pub(super) fn combine(
    method: Method,
    mut experts: Vec<Vec<f32>>,
    weights: &[f64],
    source: Source<'_>,
) -> Vec<f32> {
    match method {
        Method::Linear => weighted_sum(&experts, weights),
        Method::Ties { density } => {
            experts.iter_mut().for_each(|e| trim(e, density));
            disjoint_mean(&experts, weights)
        }
        Method::DareLinear { density, seed } => {
            drop_and_rescale(&mut experts, density, seed, source);
            weighted_sum(&experts, weights)
        }
        Method::DareTies { density, seed } => {
            drop_and_rescale(&mut experts, density, seed, source);
            disjoint_mean(&experts, weights)
        }
    }
}

fn weighted_sum(experts: &[Vec<f32>], weights: &[f64]) -> Vec<f32> {
    let mut sum = vec![0.0; experts.first().map_or(0, Vec::len)];
    for (expert, &weight) in experts.iter().zip(weights) {
        for (sum, &value) in sum.iter_mut().zip(expert) {
            *sum += weight as f32 * value;
        }
    }
    sum
}

/// Keeps the `floor(density · n)` entries of largest magnitude, the earlier ones among equals; the others become 0.
fn trim(values: &mut [f32], density: f64) {
    if density >= 1.0 {
        return;
    }
    let keep = (density * values.len() as f64) as usize;
    let mut order: Vec<usize> = (0..values.len()).collect();
    if keep > 0 {
        order.select_nth_unstable_by(keep - 1, |&i, &j| {
            values[j].abs().total_cmp(&values[i].abs()).then(i.cmp(&j))
        });
    }
    for &dropped in &order[keep..] {
        values[dropped] = 0.0;
    }
}

/// Keeps each entry with probability `density` and divides it by that, so that the expectation stays.
fn drop_and_rescale(experts: &mut [Vec<f32>], density: f64, seed: u64, source: Source<'_>) {
    if density >= 1.0 {
        return;
    }
    for (index, expert) in (0..).zip(experts) {
        let mut random = Stream::new(seed, &format!("dare/{}/{}", source.module, source.part), index);
        for value in expert {
            *value = if random.unit() < density { *value / density as f32 } else { 0.0 };
        }
    }
}

/// At each place, the sign of the unweighted sum is elected (plus on a tie) and the weighted entries of that sign are
/// averaged over their number.
fn disjoint_mean(experts: &[Vec<f32>], weights: &[f64]) -> Vec<f32> {
    let places = experts.first().map_or(0, Vec::len);
    (0..places)
        .map(|place| {
            let positive = experts.iter().map(|e| e[place]).sum::<f32>() >= 0.0;
            let agrees = |value: f32| value != 0.0 && (value > 0.0) == positive;
            let mut sum = 0.0;
            let mut count = 0u16;
            for (expert, &weight) in experts.iter().zip(weights).filter(|(e, _)| agrees(e[place])) {
                sum += weight as f32 * expert[place];
                count += 1;
            }
            sum / f32::from(count.max(1))
        })
        .collect()
}
