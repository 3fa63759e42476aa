//! Drawing a token from logits, without sorting the vocabulary.

use crate::isa::{self, multiversion};
use crate::lanes::{LANES, map_sum};
use crate::loss::maximum;
use crate::scratch;
use crate::vexp::exp;

/// How a token is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by this; 0 is greedy.
    pub temperature: f32,
    /// The smallest set of most probable tokens whose probabilities reach this sum is kept; 1 keeps all.
    pub top_p: f32,
    /// So many most probable tokens are kept, before `top_p` looks at their probabilities anew; 0 keeps all.
    pub top_k: usize,
    /// Tokens with less than this share of the greatest probability are left out first; 0 keeps all.
    pub min_p: f32,
}

impl Default for Sampling {
    /// From all tokens, as probable as they are.
    fn default() -> Self {
        Self { temperature: 1.0, top_p: 1.0, top_k: 0, min_p: 0.0 }
    }
}

/// What is taken off the logits of tokens that have been there before.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Penalties {
    /// Divides positive logits and multiplies negative ones, of tokens of the prompt and the answer; 1 changes nothing.
    pub repetition: f32,
    /// Taken off the logits of the answer's tokens.
    pub presence: f32,
    /// Taken off them once more for every time that they occur.
    pub frequency: f32,
}

impl Default for Penalties {
    /// Nothing is changed.
    fn default() -> Self {
        Self { repetition: 1.0, presence: 0.0, frequency: 0.0 }
    }
}

impl Penalties {
    /// Changes the logits of one row, given the prompt's and the answer's tokens (CTRL's repetition penalty as in transformers,
    /// presence and frequency as in OpenAI's documentation). Ids that have no logit are passed over.
    pub fn apply(&self, logits: &mut [f32], prompt: impl Iterator<Item = u32>, answer: &[u32]) {
        if self.repetition != 1.0 {
            let mut seen: Vec<u32> = prompt.chain(answer.iter().copied()).collect();
            seen.sort_unstable();
            seen.dedup();
            for id in seen {
                if let Some(logit) = logits.get_mut(id as usize) {
                    *logit = if *logit > 0.0 { *logit / self.repetition } else { *logit * self.repetition };
                }
            }
        }
        if self.presence != 0.0 || self.frequency != 0.0 {
            let mut sorted = answer.to_vec();
            sorted.sort_unstable();
            for same in sorted.chunk_by(|a, b| a == b) {
                if let Some(logit) = logits.get_mut(same[0] as usize) {
                    *logit -= self.presence + self.frequency * same.len() as f32;
                }
            }
        }
    }
}

/// Buckets of the first search, by e^(x - greatest) halving every other bucket.
const BUCKETS: usize = 256;

/// Draws a token from one row of logits with `uniform` in 0 .. 1.
///
/// As in transformers: the tokens are kept, most probable first (of equals the lowest id first), until their
/// probabilities reach `top_p`; the one that reaches it is kept too. The kept tokens are laid side by side in order of
/// id, and `uniform` points at one. The same logits and number always give the same token.
///
/// # Panics
/// If there are no logits.
pub fn sample(logits: &[f32], sampling: Sampling, uniform: f32) -> u32 {
    assert!(!logits.is_empty(), "no logits to draw from");
    let inverse = 1.0 / sampling.temperature;
    // So small a temperature has no inverse: what would be left of the others is nothing anyway.
    if sampling.temperature <= 0.0 || inverse.is_infinite() {
        return crate::loss::argmax(logits);
    }
    let isa = isa::active();
    scratch::with(logits.len(), |weights| {
        weights.copy_from_slice(logits);
        let greatest = maximum(isa, weights);
        if !greatest.is_finite() {
            return crate::loss::argmax(logits);
        }
        let mut total = f64::from(weigh(isa, weights, greatest, inverse));
        let top_p = f64::from(sampling.top_p.clamp(0.0, 1.0));
        let restricted = sampling.top_k > 0 || sampling.min_p > 0.0;
        let least = if restricted {
            // The greatest weight is 1.
            sampling.min_p.clamp(0.0, 1.0)
        } else {
            // All tokens below this weight together weigh less than what may be left out, so none of them is kept. (Half of
            // that, since sums are rounded.)
            (0.5 * (1.0 - top_p) * total / weights.len() as f64) as f32
        };
        let mut candidates = Vec::new();
        collect(isa, weights, least, &mut candidates);
        if sampling.top_k > 0 {
            keep_most_probable(&mut candidates, sampling.top_k);
        }
        if restricted {
            total = candidates.iter().map(|candidate| f64::from(candidate.weight)).sum();
        }
        if top_p < 1.0 {
            keep(&mut candidates, top_p * total);
        }
        draw(&candidates, f64::from(uniform))
    })
}

/// A token that may be drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Candidate {
    id: u32,
    /// Its probability, but for a common factor; 0 is never drawn.
    weight: f32,
}

multiversion! {
    fn weigh(values: &mut [f32], greatest: f32, inverse: f32) -> f32 = weigh_body;
    fn collect(weights: &[f32], least: f32, candidates: &mut Vec<Candidate>) = collect_body;
}

/// The tokens of at least this weight, in order of id.
#[inline(always)]
fn collect_body<const FMA: bool>(weights: &[f32], least: f32, candidates: &mut Vec<Candidate>) {
    for (i, chunk) in weights.chunks(LANES).enumerate() {
        // Nearly all chunks have none, and this loop becomes one comparison of a register.
        if chunk.iter().fold(false, |any, &weight| any | (weight >= least)) {
            for (j, &weight) in chunk.iter().enumerate() {
                if weight >= least {
                    candidates.push(Candidate { id: (i * LANES + j) as u32, weight });
                }
            }
        }
    }
}

/// `x = exp((x - greatest) / T)`; returns the sum.
#[inline(always)]
fn weigh_body<const FMA: bool>(values: &mut [f32], greatest: f32, inverse: f32) -> f32 {
    map_sum(values, |x| exp::<FMA>((x - greatest) * inverse))
}

/// The bucket of a weight in 0 ..= 1, greatest first: by exponent and the highest bit of the mantissa.
fn bucket(weight: f32) -> usize {
    let steps = (1.0_f32.to_bits() >> 22).saturating_sub(weight.to_bits() >> 22) as usize;
    steps.min(BUCKETS - 1)
}

/// Leaves the `count` candidates with the greatest weights, in order of id; of equals the lowest ids.
fn keep_most_probable(candidates: &mut Vec<Candidate>, count: usize) {
    if candidates.len() <= count {
        return;
    }
    let mut weights: Vec<f32> = candidates.iter().map(|candidate| candidate.weight).collect();
    let (above, &mut least, _) = weights.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a));
    let mut equals = count - above.iter().filter(|&&weight| weight > least).count();
    candidates.retain(|candidate| {
        let is_equal = candidate.weight == least && equals > 0;
        equals -= usize::from(is_equal);
        candidate.weight > least || is_equal
    });
}

/// Sets the weights to 0 that are not among the greatest which reach `mass` together.
///
/// The sums of buckets of similar weights say in which bucket `mass` is reached; only that bucket is sorted.
fn keep(candidates: &mut [Candidate], mass: f64) {
    let mut sums = [0.0_f64; BUCKETS];
    for candidate in candidates.iter() {
        sums[bucket(candidate.weight)] += f64::from(candidate.weight);
    }
    let mut before = 0.0;
    let mut last = BUCKETS - 1;
    for (i, sum) in sums.into_iter().enumerate() {
        if before + sum >= mass {
            last = i;
            break;
        }
        before += sum;
    }
    let mut border: Vec<(f32, usize)> = Vec::new();
    for (at, candidate) in candidates.iter_mut().enumerate() {
        let bucket = bucket(candidate.weight);
        if bucket == last {
            border.push((candidate.weight, at));
        }
        if bucket >= last {
            candidate.weight = 0.0;
        }
    }
    // Greatest first; of equals the lowest id, because the sort is stable.
    border.sort_by(|a, b| b.0.total_cmp(&a.0));
    for (weight, at) in border {
        candidates[at].weight = weight;
        before += f64::from(weight);
        if before >= mass {
            break;
        }
    }
}

/// The candidate at share `uniform` of the total weight; weights of 0 are never drawn.
fn draw(candidates: &[Candidate], uniform: f64) -> u32 {
    let total: f64 = candidates.iter().map(|candidate| f64::from(candidate.weight)).sum();
    let mut rest = uniform.clamp(0.0, 1.0) * total;
    let mut last = 0;
    for candidate in candidates {
        if candidate.weight > 0.0 {
            last = candidate.id;
            rest -= f64::from(candidate.weight);
            if rest < 0.0 {
                break;
            }
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{each_isa, values};

    /// The kept ids by sorting.
    fn reference(logits: &[f32], temperature: f32, top_p: f32) -> Vec<bool> {
        let weights: Vec<f64> =
            logits.iter().map(|&x| (f64::from(x) / f64::from(temperature)).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]));
        let mut kept = vec![false; logits.len()];
        let mut sum = 0.0;
        for id in order {
            kept[id] = true;
            sum += weights[id] / total;
            if sum >= f64::from(top_p) {
                break;
            }
        }
        kept
    }

    #[test]
    fn keeps_what_sorting_keeps() {
        for len in [1, 2, 17, 1000] {
            for (temperature, top_p) in [(1.0, 0.98), (0.7, 0.5), (2.0, 0.9), (1.0, 0.0), (0.1, 0.999)] {
                let logits: Vec<f32> = values(len, 3).iter().map(|x| 10.0 * x).collect();
                let kept = reference(&logits, temperature, top_p);
                each_isa(|isa| {
                    let mut drawn = vec![false; len];
                    for i in 0..4000 {
                        let sampling = Sampling { temperature, top_p, ..Sampling::default() };
                        let id = sample(&logits, sampling, i as f32 / 4000.0);
                        assert!(kept[id as usize], "{isa}: {id} of {len} is not in the top {top_p}");
                        drawn[id as usize] = true;
                    }
                    if len < 20 && temperature >= 0.7 && top_p < 0.95 {
                        assert_eq!(drawn, kept, "{isa}: all that are kept are drawn");
                    }
                });
            }
        }
    }

    #[test]
    fn temperatures_without_an_inverse_are_greedy() {
        for temperature in [0.0, f32::from_bits(1), 1e-40, 1e-38, f32::MIN_POSITIVE] {
            let sampling = Sampling { temperature, ..Sampling::default() };
            for uniform in [0.0, 0.5, 0.999] {
                assert_eq!(sample(&[0.5, 3.0, 1.0], sampling, uniform), 1, "temperature {temperature}");
            }
        }
    }

    #[test]
    fn frequencies_follow_probabilities() {
        let logits = [1.0_f32.ln(), 2.0_f32.ln(), f32::NEG_INFINITY, 7.0_f32.ln()];
        let mut counts = [0; 4];
        for i in 0..1000 {
            counts[sample(&logits, Sampling::default(), (i as f32 + 0.5) / 1000.0) as usize] += 1;
        }
        assert_eq!(counts, [100, 200, 0, 700]);
    }

    /// Which tokens are ever drawn; probabilities are 0.1, 0.2, 0.3, 0.4, 0.
    #[test]
    fn tokens_are_kept_by_number_and_by_share() {
        let logits = [0.1_f32.ln(), 0.2_f32.ln(), 0.3_f32.ln(), 0.4_f32.ln(), f32::NEG_INFINITY];
        let check = |top_k: usize, min_p: f32, top_p: f32, expected: &[u32]| {
            let sampling = Sampling { top_k, min_p, top_p, ..Sampling::default() };
            let mut drawn: Vec<u32> =
                (0..1000).map(|i| sample(&logits, sampling, (i as f32 + 0.5) / 1000.0)).collect();
            drawn.dedup();
            assert_eq!(drawn, expected, "{sampling:?}");
        };
        check(0, 0.0, 1.0, &[0, 1, 2, 3]);
        check(1, 0.0, 1.0, &[3]);
        check(3, 0.0, 1.0, &[1, 2, 3]);
        check(9, 0.0, 1.0, &[0, 1, 2, 3]);
        check(0, 0.45, 1.0, &[1, 2, 3]);
        check(0, 1.0, 1.0, &[3]);
        // Of the best three, 0.3 and 0.4 are seven ninths; of all, they are seven tenths.
        check(3, 0.0, 0.75, &[2, 3]);
        check(0, 0.0, 0.75, &[1, 2, 3]);
        check(0, 0.7, 0.5, &[3]);
        let equal = [1.0; 4];
        let sampling = Sampling { top_k: 2, ..Sampling::default() };
        assert_eq!((sample(&equal, sampling, 0.0), sample(&equal, sampling, 0.99)), (0, 1));
    }

    /// The right sides are vLLM's and transformers' formulas, worked out by hand.
    #[test]
    fn penalties_follow_what_has_been_there() {
        let check = |penalties: Penalties, expected: [f32; 4]| {
            let mut logits = [2.0, -2.0, 1.0, 0.5];
            penalties.apply(&mut logits, [0, 7].into_iter(), &[1, 2, 2, 9]);
            assert_eq!(logits, expected, "{penalties:?}");
        };
        let none = Penalties::default();
        check(none, [2.0, -2.0, 1.0, 0.5]);
        check(Penalties { repetition: 2.0, ..none }, [1.0, -4.0, 0.5, 0.5]);
        check(Penalties { presence: 0.5, ..none }, [2.0, -2.5, 0.5, 0.5]);
        check(Penalties { frequency: 0.25, ..none }, [2.0, -2.25, 0.5, 0.5]);
        check(Penalties { repetition: 2.0, presence: 1.0, frequency: 1.0 }, [1.0, -6.0, -2.5, 0.5]);
    }

    #[test]
    fn ties_and_extremes() {
        let check = |logits: &[f32], temperature: f32, top_p: f32, uniform: f32, expected: u32| {
            let sampling = Sampling { temperature, top_p, ..Sampling::default() };
            assert_eq!(sample(logits, sampling, uniform), expected);
        };
        check(&[3.0, 3.0, 3.0], 0.0, 1.0, 0.9, 0);
        check(&[3.0, 3.0, 3.0], 1.0, 0.5, 0.99, 1);
        check(&[3.0, 3.0, 3.0], 1.0, 0.1, 0.99, 0);
        check(&[0.0, 1.0], 1.0, 1.0, 1.0, 1);
        check(&[f32::NEG_INFINITY, 0.0], 1.0, 1.0, 0.0, 1);
    }
}
