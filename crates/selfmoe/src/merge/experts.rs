//! Merging whole experts: every module of every block, and what was lost in all of them together.

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use mixse_model::{
    config::ModelConfig,
    expert::{self, Expert, LoraConfig, Module},
};
use serde::{Deserialize, Serialize};

use super::{Factors, Method, concatenate, merge_delta, merge_factors, truncate};
use crate::error::{Error, Result};

/// The smallest weight of an expert but 0; its inverse is the largest.
const MIN_WEIGHT: f64 = 1e-12;

/// What the merged adapter looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Form {
    /// Nothing is lost: the rank is whatever that needs. The sum of the ranks for [`Method::Linear`], the smaller side of
    /// the module for the others.
    Exact,
    /// The closest LoRA of this rank.
    Truncated {
        /// The rank, at least 1.
        rank: usize,
    },
    /// PEFT's: A and B are merged apart, at the experts' common rank.
    PerFactor,
}

/// The result of [`merge_experts`].
#[derive(Debug, Clone, PartialEq)]
pub struct MergedExpert {
    /// The adapter; its scaling is 1 everywhere.
    pub expert: Expert,
    /// `‖ΔW - B·A‖ / ‖ΔW‖` over all modules (Frobenius), with `ΔW` what the method gives on the products. `None` for
    /// [`Form::PerFactor`], which approximates nothing.
    pub relative_error: Option<f64>,
}

/// What is wrong with these weights and this method for a number of experts; empty if nothing is.
pub fn faults(experts: usize, weights: &[f64], method: Method, form: Form) -> Vec<String> {
    let mut faults = Vec::new();
    if experts < 2 {
        faults.push(format!("{experts} experts: merging takes at least two"));
    }
    if weights.len() != experts {
        faults.push(format!("{} weights for {experts} experts: give one an expert", weights.len()));
    }
    // Beyond these a factor would become infinite or lose its digits, and nobody means such a weight.
    let usable = |w: f64| w == 0.0 || (MIN_WEIGHT..=1.0 / MIN_WEIGHT).contains(&w.abs());
    if let Some(weight) = weights.iter().find(|w| !usable(**w)) {
        faults.push(format!(
            "the weight {weight} is not a number to multiply with (0, or of a size from 1e-12 to 1e12)"
        ));
    }
    if let Err(e) = method.validate() {
        faults.push(e.to_string());
    }
    if form == (Form::Truncated { rank: 0 }) {
        faults.push("rank: 0 is no rank; give at least 1".into());
    }
    faults
}

/// Merges experts of one base into an adapter called `name`. An expert without an adapter in some module changes nothing
/// there, as if its product were zero.
///
/// # Errors
/// [`faults`], experts of another base, and for [`Form::PerFactor`] experts of different ranks or modules.
pub fn merge_experts(
    name: &str,
    experts: &[Expert],
    model: &ModelConfig,
    weights: &[f64],
    method: Method,
    form: Form,
) -> Result<MergedExpert> {
    let faults = faults(experts.len(), weights, method, form);
    if !faults.is_empty() {
        return Err(Error::setting("merging", faults.join("; ")));
    }
    for expert in experts {
        expert.check_fits(model)?;
    }
    let mut lost = Lost::default();
    let mut blocks = Vec::with_capacity(model.blocks.len());
    for block in 0..model.blocks.len() {
        let mut modules = [const { None }; 7];
        for module in Module::ALL {
            let path = module_path(block, module);
            let present = present(experts, model, block, module)?;
            if form == Form::PerFactor && !present.is_empty() && present.len() < experts.len() {
                return Err(super::mismatch(
                    &path,
                    "not every expert adapts it; merge the products instead".into(),
                ));
            }
            let (factors, weights): (Vec<Factors>, Vec<f64>) =
                present.into_iter().map(|(i, factors)| (factors, weights[i])).unzip();
            if !factors.is_empty() {
                let merged = merge_module(&path, &factors, &weights, method, form, &mut lost)?;
                modules[module.index()] = Some(plain(&merged)?);
            }
        }
        blocks.push(modules);
    }
    let expert = assemble(name, blocks);
    let relative_error = (form != Form::PerFactor).then(|| lost.relative());
    if relative_error.is_some_and(|error| !error.is_finite()) {
        return Err(super::mismatch(
            "all modules",
            "what is lost cannot be computed: the weights are too large".into(),
        ));
    }
    Ok(MergedExpert { expert, relative_error })
}

/// What a merge adds to the base: `ΔW [out, in]` by the weight's Hugging Face name.
pub type Deltas = HashMap<String, Tensor>;

/// The merge of the products, exactly, as changes of the base's weights: what [`merge_experts`] with [`Form::Exact`] gives, at
/// the cost of a dense matrix a module.
///
/// # Errors
/// As [`merge_experts`].
pub fn merged_weights(
    experts: &[Expert],
    model: &ModelConfig,
    weights: &[f64],
    method: Method,
) -> Result<Deltas> {
    let faults = faults(experts.len(), weights, method, Form::Exact);
    if !faults.is_empty() {
        return Err(Error::setting("merging", faults.join("; ")));
    }
    for expert in experts {
        expert.check_fits(model)?;
    }
    let mut deltas = Deltas::new();
    for block in 0..model.blocks.len() {
        for module in Module::ALL {
            let path = module_path(block, module);
            let (factors, weights): (Vec<Factors>, Vec<f64>) = present(experts, model, block, module)?
                .into_iter()
                .map(|(i, factors)| (factors, weights[i]))
                .unzip();
            if !factors.is_empty() {
                let name = format!("model.layers.{block}.{}.weight", module.path());
                deltas.insert(name, merge_delta(&path, &factors, &weights, method)?);
            }
        }
    }
    Ok(deltas)
}

/// Names a module in messages, and DARE's random choice for it.
pub(crate) fn module_path(block: usize, module: Module) -> String {
    format!("block {block} {}", module.path())
}

/// The factors of a module with the index of the expert that has them.
fn present(
    experts: &[Expert],
    model: &ModelConfig,
    block: usize,
    module: Module,
) -> Result<Vec<(usize, Factors)>> {
    let mut found = Vec::new();
    for (index, expert) in experts.iter().enumerate() {
        found.extend(factors_of(expert, model, block, module)?.map(|factors| (index, factors)));
    }
    Ok(found)
}

/// The factors of an expert in a module, if it adapts it.
pub(crate) fn factors_of(
    expert: &Expert,
    model: &ModelConfig,
    block: usize,
    module: Module,
) -> Result<Option<Factors>> {
    let (k, n) = module.shape(model);
    let Some(f) = &expert.blocks[block][module.index()] else { return Ok(None) };
    let a = Tensor::from_slice(&f.a, (f.rank, k), &Device::Cpu)?;
    let b = Tensor::from_slice(&f.b, (n, f.rank), &Device::Cpu)?;
    Factors::new(&module_path(block, module), &a, &b, f64::from(f.scale)).map(Some)
}

/// Squared Frobenius norms, summed over the modules.
#[derive(Default)]
struct Lost {
    lost: f64,
    all: f64,
}

impl Lost {
    fn relative(&self) -> f64 {
        if self.all > 0.0 { (self.lost / self.all).sqrt() } else { 0.0 }
    }
}

fn merge_module(
    path: &str,
    factors: &[Factors],
    weights: &[f64],
    method: Method,
    form: Form,
    lost: &mut Lost,
) -> Result<Factors> {
    match form {
        Form::PerFactor => merge_factors(path, factors, weights, method),
        Form::Exact if method == Method::Linear => concatenate(path, factors, weights),
        Form::Exact => dense(path, &merge_delta(path, factors, weights, method)?),
        Form::Truncated { rank } => {
            let delta = merge_delta(path, factors, weights, method)?;
            let truncated = truncate(path, &delta, rank)?;
            let all: f64 = super::values(&delta)?.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
            lost.all += all;
            lost.lost += truncated.relative_error.powi(2) * all;
            Ok(truncated.factors)
        }
    }
}

/// A dense matrix `[out, in]` as a LoRA: itself times the identity on the smaller side.
fn dense(path: &str, delta: &Tensor) -> Result<Factors> {
    let (out, input) = delta.dims2()?;
    let identity = Tensor::eye(out.min(input), delta.dtype(), delta.device())?;
    if input <= out {
        Factors::new(path, &identity, delta, 1.0)
    } else {
        Factors::new(path, delta, &identity, 1.0)
    }
}

fn plain(factors: &Factors) -> Result<expert::Factors> {
    Ok(expert::Factors {
        rank: factors.rank(),
        scale: factors.scaling() as f32,
        a: factors.a().flatten_all()?.to_vec1()?,
        b: factors.b().flatten_all()?.to_vec1()?,
    })
}

/// The expert with the rank that most of its modules have; alpha equals it, so that the scaling is 1.
fn assemble(name: &str, blocks: Vec<[Option<expert::Factors>; 7]>) -> Expert {
    let ranks: Vec<usize> = blocks.iter().flatten().flatten().map(|f| f.rank).collect();
    let count = |rank: usize| ranks.iter().filter(|&&r| r == rank).count();
    let rank = ranks.iter().copied().max_by_key(|&rank| (count(rank), rank)).unwrap_or(1);
    let targets = Module::ALL.into_iter().filter(|m| blocks.iter().any(|b| b[m.index()].is_some())).collect();
    let config = LoraConfig { rank, alpha: rank as f64, targets, ..LoraConfig::default() };
    Expert { name: name.to_owned(), config, blocks }
}
