//! Merging experts into one adapter: the static alternatives to a router.
//!
//! An expert changes a module's weight by `ΔW = s · B · A`. Merging is exact on these products: a linear merge is
//! the concatenation of the factors, the others give a dense matrix that [`truncate`] brings back to a LoRA of a
//! given rank, telling what was lost. [`merge_experts`] does that for all modules of an adapter. [`merge_factors`] is the variant that works on A and B apart, as PEFT's
//! `add_weighted_adapter` does for `linear`, `ties`, `dare_linear` and `dare_ties`; it is there for comparison, since
//! `(Σ B_i)(Σ A_i)` has cross terms that no expert was trained for.

mod combine;
mod experts;
mod svd;

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

pub use experts::{Deltas, Form, MergedExpert, faults, merge_experts, merged_weights};
pub(crate) use experts::{factors_of, module_path};
pub use svd::{Truncated, truncate};

use crate::error::{Error, Result};
use combine::{Source, combine};

/// One module's LoRA factors, f32 on the CPU.
#[derive(Debug, Clone)]
pub struct Factors {
    a: Tensor,
    b: Tensor,
    scaling: f64,
}

impl Factors {
    /// Factors of `module` (named in errors only): `a` is `[rank, in]`, `b` is `[out, rank]`, and the product is
    /// multiplied by `scaling`.
    ///
    /// # Errors
    /// The shapes do not fit together; the scaling or a value is not finite.
    pub fn new(module: &str, a: &Tensor, b: &Tensor, scaling: f64) -> Result<Self> {
        let fits = a.rank() == 2 && b.rank() == 2 && a.dims()[0] == b.dims()[1] && a.dims()[0] > 0;
        if !fits {
            return Err(mismatch(module, format!("A is {:?} and B is {:?}", a.dims(), b.dims())));
        }
        if !scaling.is_finite() {
            return Err(mismatch(module, format!("the scaling is {scaling}")));
        }
        let plain = |t: &Tensor| t.detach().to_device(&Device::Cpu)?.to_dtype(DType::F32)?.contiguous();
        let (a, b) = (plain(a)?, plain(b)?);
        check_finite(module, "A", &a)?;
        check_finite(module, "B", &b)?;
        let largest = largest(&a)? * largest(&b)? * a.dims()[0] as f64 * scaling.abs();
        if largest > f64::from(f32::MAX) {
            let what = "the product of A and B leaves the range of 32-bit numbers: the experts or their weights are too large";
            return Err(mismatch(module, what.into()));
        }
        Ok(Self { a, b, scaling })
    }

    /// `[rank, in]`.
    pub fn a(&self) -> &Tensor {
        &self.a
    }

    /// `[out, rank]`.
    pub fn b(&self) -> &Tensor {
        &self.b
    }

    /// What the product is multiplied by.
    pub fn scaling(&self) -> f64 {
        self.scaling
    }

    /// The rank.
    pub fn rank(&self) -> usize {
        self.a.dims()[0]
    }

    /// `s · B · A`, `[out, in]`.
    ///
    /// # Errors
    /// The product does not fit the memory.
    pub fn delta(&self) -> Result<Tensor> {
        Ok((self.b.matmul(&self.a)? * self.scaling)?)
    }

    /// `[out, in]`.
    fn shape(&self) -> (usize, usize) {
        (self.b.dims()[0], self.a.dims()[1])
    }
}

/// How experts are merged.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Method {
    /// The weighted sum (task arithmetic, Ilharco et al. 2023).
    Linear,
    /// Yadav et al. 2023: each expert keeps its largest entries, the sign with the larger sum wins, and the entries
    /// that agree with it are averaged.
    Ties {
        /// The share of entries kept, above 0 and at most 1.
        density: f64,
    },
    /// Yu et al. 2024: entries are dropped at random, the rest is divided by the density; then the weighted sum.
    DareLinear {
        /// The share of entries kept, above 0 and at most 1.
        density: f64,
        /// Names the random choice.
        seed: u64,
    },
    /// As `DareLinear`, but merged with the sign election of TIES.
    DareTies {
        /// The share of entries kept, above 0 and at most 1.
        density: f64,
        /// Names the random choice.
        seed: u64,
    },
}

impl Method {
    /// Refuses a density out of range.
    ///
    /// # Errors
    /// As stated.
    pub fn validate(&self) -> Result<()> {
        match *self {
            Self::Linear => Ok(()),
            Self::Ties { density } | Self::DareLinear { density, .. } | Self::DareTies { density, .. } => {
                if density > 0.0 && density <= 1.0 {
                    return Ok(());
                }
                Err(Error::setting("density", format!("{density} is not above 0 and at most 1")))
            }
        }
    }
}

/// Checks that a module's experts, weights and method fit together and returns the first expert.
fn checked<'a>(module: &str, experts: &'a [Factors], weights: &[f64], method: Method) -> Result<&'a Factors> {
    method.validate()?;
    let Some(first) = experts.first() else {
        return Err(mismatch(module, "there is no expert to merge".into()));
    };
    if weights.len() != experts.len() || !weights.iter().all(|w| w.is_finite()) {
        return Err(mismatch(module, format!("weights {weights:?} for {} experts", experts.len())));
    }
    if let Some(other) = experts.iter().find(|e| e.shape() != first.shape()) {
        return Err(mismatch(module, format!("shapes {:?} and {:?}", first.shape(), other.shape())));
    }
    Ok(first)
}

fn mismatch(module: &str, what: String) -> Error {
    Error::Merge { module: module.to_owned(), what }
}

/// The weighted sum of the products as one LoRA, without any loss: `A = [w_1 s_1 A_1; …]`, `B = [B_1 …]`, scaling 1.
/// Its rank is the sum of the ranks, which may differ. PEFT calls this `cat`.
///
/// # Errors
/// The experts do not fit together.
pub fn concatenate(module: &str, experts: &[Factors], weights: &[f64]) -> Result<Factors> {
    checked(module, experts, weights, Method::Linear)?;
    let scaled = experts.iter().zip(weights).map(|(e, w)| e.a.affine(w * e.scaling, 0.0));
    let a = Tensor::cat(&scaled.collect::<candle_core::Result<Vec<_>>>()?, 0)?;
    let b = Tensor::cat(&experts.iter().map(|e| &e.b).collect::<Vec<_>>(), 1)?;
    Factors::new(module, &a, &b, 1.0)
}

/// The merged `ΔW`, `[out, in]`: the method applied to the products themselves.
///
/// # Errors
/// The experts do not fit together.
pub fn merge_delta(module: &str, experts: &[Factors], weights: &[f64], method: Method) -> Result<Tensor> {
    let (out, input) = checked(module, experts, weights, method)?.shape();
    let deltas = experts.iter().map(|e| values(&e.delta()?)).collect::<Result<Vec<_>>>()?;
    let merged = combine(method, deltas, weights, Source { module, part: "delta" });
    let merged = Tensor::from_vec(merged, (out, input), &Device::Cpu)?;
    check_finite(module, "the merged matrix", &merged)?;
    Ok(merged)
}

/// PEFT's variant: the method applied to the A and to the B apart, each weighted by `sqrt(|w · s|)`, the sign on A.
///
/// # Errors
/// The experts do not fit together or have different ranks.
pub fn merge_factors(module: &str, experts: &[Factors], weights: &[f64], method: Method) -> Result<Factors> {
    let first = checked(module, experts, weights, method)?;
    if let Some(other) = experts.iter().find(|e| e.rank() != first.rank()) {
        let what = format!("ranks {} and {}; merge the products instead", first.rank(), other.rank());
        return Err(mismatch(module, what));
    }
    let scaled: Vec<f64> = experts.iter().zip(weights).map(|(e, w)| w * e.scaling).collect();
    let for_b: Vec<f64> = scaled.iter().map(|w| w.abs().sqrt()).collect();
    let for_a: Vec<f64> = scaled.iter().zip(&for_b).map(|(w, root)| root.copysign(*w)).collect();
    let part = |pick: fn(&Factors) -> &Tensor, weights: &[f64], part| -> Result<Tensor> {
        let tensors = experts.iter().map(|e| values(pick(e))).collect::<Result<Vec<_>>>()?;
        let merged = combine(method, tensors, weights, Source { module, part });
        Ok(Tensor::from_vec(merged, pick(first).dims(), &Device::Cpu)?)
    };
    Factors::new(module, &part(Factors::a, &for_a, "a")?, &part(Factors::b, &for_b, "b")?, 1.0)
}

/// Refuses a matrix that holds something else than numbers; `what` names it.
fn check_finite(module: &str, what: &str, matrix: &Tensor) -> Result<()> {
    let columns = matrix.dims().last().copied().unwrap_or(1).max(1);
    match mixse_model::finite::first_fault(&values(matrix)?) {
        None => Ok(()),
        Some((at, value)) => {
            let place = [at / columns, at % columns];
            let what =
                format!("{what} holds {value} at {place:?}: the experts or their weights are too large");
            Err(mismatch(module, what))
        }
    }
}

/// The largest magnitude in a matrix.
fn largest(matrix: &Tensor) -> Result<f64> {
    Ok(values(matrix)?.iter().fold(0f64, |most, &v| most.max(f64::from(v).abs())))
}

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.flatten_all()?.to_vec1()?)
}

#[cfg(test)]
pub(crate) mod tests;
