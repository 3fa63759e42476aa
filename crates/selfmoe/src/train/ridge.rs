//! Routers in closed form: ridge regression from the hidden states of the frozen base to the domain.
//!
//! With h a hidden state and y = e_i − 1/n for a token of domain i, R minimises the mean of ‖R h − y‖² over the tokens plus
//! λ ‖R‖². Every domain counts the same, however many tokens it has. All that this needs of a domain are the mean and the
//! second moment of its hidden states ([`DomainMoments`]): they are kept, so that a domain can join or leave and the router be fitted
//! again without the rows of the others.
//!
//! The regression's outputs lie within about 0 and 1, where a softmax is nearly even. They are scaled so that a token whose margin is the
//! average one gives the expert of its domain the probability [`RidgeConfig::confidence`]. The margin is taken from the moments as well.

use std::{ops::ControlFlow, path::Path, sync::Arc};

use mixse_model::{
    config::ModelConfig,
    engine::{Engine, MomentSums},
    files::{self, NamedTensor},
    router::{Router, RouterConfig, RouterInput},
};
use serde::{Deserialize, Serialize};

use super::{Result, TrainError, TrainRow, batch};

/// Settings of the regression.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RidgeConfig {
    /// λ as a part of the mean square of a hidden state's numbers.
    pub penalty: f64,
    /// Probability of the right expert at the average margin.
    pub confidence: f64,
}

impl Default for RidgeConfig {
    fn default() -> Self {
        Self { penalty: 1e-3, confidence: 0.9 }
    }
}

impl RidgeConfig {
    /// Everything that is wrong with the settings for so many experts; empty when they are fine.
    pub fn faults(&self, experts: usize) -> Vec<String> {
        let mut faults = Vec::new();
        if !(self.penalty.is_finite() && self.penalty > 0.0) {
            faults.push(format!("ridge.penalty = {} must be above 0", self.penalty));
        }
        let even = 1.0 / experts.max(1) as f64;
        if self.confidence >= 1.0 || (experts > 1 && self.confidence <= even) || self.confidence.is_nan() {
            faults.push(format!(
                "ridge.confidence = {} must lie above {even:.3}, an even choice among {experts} experts, and below 1",
                self.confidence
            ));
        }
        faults
    }
}

/// What a linear map of the router reads in one domain.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    /// E[h], `[d]`.
    pub mean: Vec<f32>,
    /// E[h hᵀ]: the upper triangle, row after row, `[d (d + 1) / 2]`.
    pub second: Vec<f32>,
}

/// All that a ridge regression needs to know of a domain's rows.
#[derive(Debug, Clone, PartialEq)]
pub struct DomainMoments {
    /// Tokens that were seen.
    pub tokens: usize,
    /// One for each linear map of the router: one in all, or one a block.
    pub maps: Vec<Moments>,
}

impl DomainMoments {
    /// Runs the base without experts over a domain's rows and takes the moments of what a router of this kind reads: all
    /// tokens, the prompt's too, since all are routed. `progress` hears rows done and tokens of each pass; `Break` gives `None`.
    ///
    /// # Errors
    /// Rows without tokens; the model fails.
    pub fn of(
        engine: &Engine,
        rows: &[TrainRow],
        config: &RouterConfig,
        max_tokens: usize,
        pass_tokens: usize,
        progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Option<Self>> {
        batch::check_rows(rows, max_tokens)?;
        let mut sums = engine.moments(config)?;
        let (mut tokens, mut done) = (0, 0);
        for pass in batch::passes(&batch::placed(rows), max_tokens, pass_tokens) {
            let batch = batch::ragged(&pass, max_tokens);
            sums.add(&batch.ids, &batch.ragged)?;
            tokens += batch.ids.len();
            done += pass.len();
            if progress(done, batch.ids.len()).is_break() {
                return Ok(None);
            }
        }
        Ok(Some(Self { tokens, maps: sums.read()?.iter().map(Moments::from).collect() }))
    }

    /// Writes them as safetensors, atomically.
    pub fn write(&self, path: &Path) -> Result<()> {
        let tokens = [self.tokens as f32];
        let mut tensors = vec![NamedTensor { name: "tokens".into(), shape: vec![1], values: &tokens }];
        for (map, moments) in self.maps.iter().enumerate() {
            for (name, values) in [("mean", &moments.mean), ("second_moment", &moments.second)] {
                tensors.push(NamedTensor {
                    name: format!("{map}.{name}"),
                    shape: vec![values.len()],
                    values,
                });
            }
        }
        Ok(files::write_tensors(path, &tensors)?)
    }

    /// Reads what [`DomainMoments::write`] wrote, for a router of this kind over this base.
    ///
    /// # Errors
    /// Names the file and the tensor that is missing or of another size.
    pub fn read(path: &Path, config: &RouterConfig, model: &ModelConfig) -> Result<Self> {
        let mut tensors: std::collections::HashMap<String, Vec<f32>> =
            files::read_tensors(path)?.into_iter().map(|t| (t.name, t.values)).collect();
        let mut take = |name: String, len: usize| match tensors.remove(&name) {
            Some(values) if values.len() == len => Ok(values),
            found => Err(TrainError::Model(mixse_model::Error::invalid(
                path,
                match found {
                    Some(values) => format!("`{name}` has {} values instead of {len}", values.len()),
                    None => format!("has no tensor `{name}`"),
                },
            ))),
        };
        let d = model.hidden_size;
        let tokens = take("tokens".into(), 1)?[0] as usize;
        let maps = if config.shared { 1 } else { model.blocks.len() };
        let maps = (0..maps)
            .map(|map| {
                Ok(Moments {
                    mean: take(format!("{map}.mean"), d)?,
                    second: take(format!("{map}.second_moment"), d * (d + 1) / 2)?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self { tokens, maps })
    }
}

impl From<&MomentSums> for Moments {
    fn from(sums: &MomentSums) -> Self {
        let mean = |values: &[f64]| values.iter().map(|v| (v / sums.rows as f64) as f32).collect();
        Self { mean: mean(&sums.sum), second: mean(&sums.products) }
    }
}

/// The router that ridge regression gives for experts whose domains have these moments, in the same order. A null expert
/// has logits of zero, as an expert of average fit has.
///
/// # Errors
/// Settings with faults, or domains whose hidden states do not differ.
pub fn fit(
    config: &RouterConfig,
    ridge: &RidgeConfig,
    experts: &[String],
    domains: &[DomainMoments],
    model: &ModelConfig,
) -> Result<Router> {
    let faults = [config.faults(experts.len()), ridge.faults(experts.len())].concat();
    if !faults.is_empty() {
        return Err(TrainError::Config(faults.join("; ")));
    }
    let (n, d, choices) = (experts.len(), model.hidden_size, config.choices(experts.len()));
    let maps = domains.iter().map(|domain| domain.maps.len()).min().unwrap_or(0);
    let with_bias = config.input == RouterInput::BaseLast;
    let mut router = Router::zeros(config, experts, model)?;
    if n == 1 {
        return Ok(router);
    }
    for (map, weight) in router.weights.iter_mut().enumerate().take(maps) {
        let moments: Vec<&Moments> = domains.iter().map(|domain| &domain.maps[map]).collect();
        let Some(Map { rows, offsets }) = Map::fit(&moments, d, with_bias, ridge) else {
            return Err(TrainError::Config(format!(
                "the domains {} cannot be told apart by what the router reads: their hidden states have the same mean",
                experts.join(", ")
            )));
        };
        let scale = f64::from(config.gate.temperature);
        let mut values: Vec<f32> = rows.iter().flatten().map(|v| (v * scale) as f32).collect();
        values.resize(choices * d, 0.0);
        *weight = Arc::new(values);
        if let Some(bias) = &mut router.bias {
            let mut values: Vec<f32> = offsets.iter().map(|v| (v * scale) as f32).collect();
            values.resize(choices, 0.0);
            *bias = Arc::new(values);
        }
    }
    Ok(router)
}

/// A linear map as it is fitted: logits are `rows · h + offsets`.
struct Map {
    rows: Vec<Vec<f64>>,
    offsets: Vec<f64>,
}

impl Map {
    /// `None`: the domains have the same mean, or numbers are not finite.
    fn fit(domains: &[&Moments], d: usize, with_bias: bool, ridge: &RidgeConfig) -> Option<Self> {
        let n = domains.len() as f64;
        let mut mean = vec![0f64; d];
        for domain in domains {
            mean.iter_mut().zip(&domain.mean).for_each(|(sum, &v)| *sum += f64::from(v) / n);
        }
        // E[h hᵀ] + λ, of the centred h where a bias takes the mean.
        let mut matrix = vec![0f64; d * d];
        let mut at = 0;
        for i in 0..d {
            for j in i..d {
                let second: f64 = domains.iter().map(|domain| f64::from(domain.second[at])).sum::<f64>() / n;
                matrix[j * d + i] = if with_bias { second - mean[i] * mean[j] } else { second };
                at += 1;
            }
        }
        let trace: f64 = (0..d).map(|i| matrix[i * d + i]).sum();
        (0..d).for_each(|i| matrix[i * d + i] += ridge.penalty * trace / d as f64);
        // E[h yᵀ] = (E_i[h] − E[h]) / n
        let mut rows: Vec<Vec<f64>> = domains
            .iter()
            .map(|domain| {
                domain.mean.iter().zip(&mean).map(|(&own, all)| (f64::from(own) - all) / n).collect()
            })
            .collect();
        if !cholesky(&mut matrix, d) {
            return None;
        }
        rows.iter_mut().for_each(|row| solve(&matrix, d, row));
        let mut offsets: Vec<f64> =
            rows.iter().map(|row| if with_bias { -dot(row, &mean) } else { 0.0 }).collect();
        // The outputs of a token add up to zero, so the others' average is −1/(n − 1) of its own.
        let own = domains.iter().zip(&rows).zip(&offsets).map(|((domain, row), offset)| {
            row.iter().zip(&domain.mean).map(|(w, &h)| w * f64::from(h)).sum::<f64>() + offset
        });
        let margin = own.sum::<f64>() / n * n / (n - 1.0);
        if !(margin.is_finite() && margin > 0.0) {
            return None;
        }
        let scale = ((n - 1.0) * ridge.confidence / (1.0 - ridge.confidence)).ln() / margin;
        rows.iter_mut().flatten().chain(&mut offsets).for_each(|v| *v *= scale);
        Some(Self { rows, offsets })
    }
}

/// Replaces the lower triangle of a symmetric matrix `[d, d]` by L with `A = L Lᵀ`; false if it is not positive definite.
fn cholesky(a: &mut [f64], d: usize) -> bool {
    for i in 0..d {
        let (above, from_i) = a.split_at_mut(i * d);
        let row = &mut from_i[..d];
        for j in 0..i {
            let other = &above[j * d..j * d + j + 1];
            row[j] = (row[j] - dot(&row[..j], &other[..j])) / other[j];
        }
        let rest = row[i] - dot(&row[..i], &row[..i]);
        if !(rest.is_finite() && rest > 0.0) {
            return false;
        }
        row[i] = rest.sqrt();
    }
    true
}

/// Solves `L Lᵀ x = b` in place.
fn solve(l: &[f64], d: usize, b: &mut [f64]) {
    for i in 0..d {
        b[i] = (b[i] - dot(&l[i * d..i * d + i], &b[..i])) / l[i * d + i];
    }
    for i in (0..d).rev() {
        b[i] /= l[i * d + i];
        let (before, rest) = b.split_at_mut(i);
        before.iter_mut().zip(&l[i * d..i * d + i]).for_each(|(b, l)| *b -= l * rest[0]);
    }
}

/// Eight sums side by side, so that the processor need not wait for each addition.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0f64; 8];
    let (a_parts, b_parts) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f64 = a_parts.remainder().iter().zip(b_parts.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in a_parts.zip(b_parts) {
        sums.iter_mut().zip(x.iter().zip(y)).for_each(|(sum, (x, y))| *sum += x * y);
    }
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Moments of points in the plane.
    fn moments(points: &[[f32; 2]]) -> DomainMoments {
        let sum = |f: fn(&[f32; 2]) -> f32| points.iter().map(|p| f64::from(f(p))).sum::<f64>();
        let sums = MomentSums {
            rows: points.len(),
            sum: vec![sum(|p| p[0]), sum(|p| p[1])],
            products: vec![sum(|p| p[0] * p[0]), sum(|p| p[0] * p[1]), sum(|p| p[1] * p[1])],
        };
        DomainMoments { tokens: points.len(), maps: vec![Moments::from(&sums)] }
    }

    #[test]
    fn a_system_is_solved() {
        // A = M Mᵀ + 1 for a matrix M that is no special case.
        let d = 19;
        let m = |i: usize, j: usize| ((i * 7 + j * 13) % 11) as f64 / 5.0 - 1.0;
        let mut a = vec![0.0; d * d];
        for i in 0..d {
            for j in 0..d {
                a[i * d + j] = (0..d).map(|k| m(i, k) * m(j, k)).sum::<f64>() + f64::from(i == j);
            }
        }
        let x: Vec<f64> = (0..d).map(|i| (i as f64).sin()).collect();
        let mut b: Vec<f64> = (0..d).map(|i| dot(&a[i * d..(i + 1) * d], &x)).collect();
        assert!(cholesky(&mut a, d));
        solve(&a, d, &mut b);
        b.iter().zip(&x).for_each(|(got, want)| assert!((got - want).abs() < 1e-9, "{got} is not {want}"));
        assert!(!cholesky(&mut [1.0, 0.0, 0.0, -1.0], 2));
    }

    #[test]
    fn the_map_is_the_regression_at_the_wanted_margin() {
        let domains = [moments(&[[1.0, 0.1], [3.0, -0.1]]), moments(&[[0.2, 2.0], [-0.2, 2.0], [0.0, 2.0]])];
        let maps: Vec<&Moments> = domains.iter().map(|domain| &domain.maps[0]).collect();
        let ridge = RidgeConfig { penalty: 1e-6, confidence: 0.8 };
        let Map { rows, offsets } = Map::fit(&maps, 2, false, &ridge).unwrap();
        assert_eq!(offsets, [0.0, 0.0]);
        // By hand: E[hhᵀ] = diag(5.0133, 4.01)/2 nearly, E[h yᵀ] = ±(1, −1)/2; the ratio of the two weights follows.
        let ratio = -rows[0][0] / rows[0][1];
        let (xx, yy, xy) = ((5.0 + 0.08 / 3.0) / 2.0, (0.01 + 4.0) / 2.0, (-0.1) / 2.0);
        assert!((ratio - (yy + xy) / (xx + xy)).abs() < 1e-4, "{ratio}");
        let logit = |h: [f64; 2], i: usize| rows[i][0] * h[0] + rows[i][1] * h[1];
        let margins =
            [logit([2.0, 0.0], 0) - logit([2.0, 0.0], 1), logit([0.0, 2.0], 1) - logit([0.0, 2.0], 0)];
        let average = (margins[0] + margins[1]) / 2.0;
        assert!((average - (0.8f64 / 0.2).ln()).abs() < 1e-6, "{average}");
    }

    #[test]
    fn a_bias_takes_what_the_domains_share() {
        // Both domains lie far from zero: without a bias a line through zero hardly parts them.
        let domains = [moments(&[[100.0, 1.0], [101.0, 1.0]]), moments(&[[100.0, 0.0], [101.0, 0.0]])];
        let maps: Vec<&Moments> = domains.iter().map(|domain| &domain.maps[0]).collect();
        let Map { rows, offsets } = Map::fit(&maps, 2, true, &RidgeConfig::default()).unwrap();
        let logit = |h: [f64; 2], i: usize| dot(&rows[i], &h) + offsets[i];
        assert!(logit([100.0, 1.0], 0) > 0.5 && logit([100.0, 0.0], 0) < -0.5);
        assert!((logit([100.0, 1.0], 0) + logit([100.0, 1.0], 1)).abs() < 1e-9);
    }

    #[test]
    fn domains_that_are_alike_are_refused() {
        let same = moments(&[[1.0, 2.0], [2.0, 1.0]]);
        assert!(Map::fit(&[&same.maps[0], &same.maps[0]], 2, false, &RidgeConfig::default()).is_none());
    }

    #[test]
    fn moments_are_read_as_they_were_written() {
        let domain = moments(&[[1.0, 0.25], [3.0, -0.5], [0.0, 7.0]]);
        assert_eq!(domain.maps[0].mean, [4.0 / 3.0, 2.25]);
        assert_eq!(domain.maps[0].second, [10.0 / 3.0, -1.25 / 3.0, (0.0625 + 0.25 + 49.0) / 3.0]);
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("moments.safetensors");
        domain.write(&path).unwrap();
        let read = files::read_tensors(&path).unwrap();
        let values = |name: &str| read.iter().find(|t| t.name == name).unwrap().values.clone();
        assert_eq!(values("0.second_moment"), domain.maps[0].second);
        assert_eq!(values("tokens"), [3.0]);
    }

    #[test]
    fn faults_name_the_key() {
        let check = |ridge: RidgeConfig, part: &str| {
            let faults = ridge.faults(4).join("; ");
            assert!(faults.contains(part), "{faults:?} does not say {part:?}");
        };
        check(RidgeConfig { penalty: 0.0, ..RidgeConfig::default() }, "ridge.penalty");
        check(RidgeConfig { confidence: 0.25, ..RidgeConfig::default() }, "ridge.confidence");
        check(RidgeConfig { confidence: 1.0, ..RidgeConfig::default() }, "ridge.confidence");
        assert!(RidgeConfig::default().faults(4).is_empty());
    }
}
