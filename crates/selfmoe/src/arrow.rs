//! Arrow: a router that needs no data and no training (Ostapenko et al. 2024, "Towards modular LLMs by building and reusing a
//! library of LoRAs").
//!
//! An expert's prototype is the direction of its input that it changes most: the first right singular vector v of its
//! `ΔW = s B A`. An input's logit for the expert is `|v · x|`, its size because the sign of a singular vector means nothing.
//!
//! The paper decides in every linear module, from that module's input. Here a token is given to experts once a block, from the
//! block's normalised input, so an expert's prototype in a block is that of the modules which read this input together: q, k and v, one
//! above the other. What o and the MLP change does not count.

use std::sync::Arc;

use candle_core::Tensor;
use mixse_model::{
    config::ModelConfig,
    expert::{Expert, Module},
    router::{Granularity, Router, RouterConfig, RouterInput, Score},
};

use crate::{
    error::{Error, Result},
    merge::{factors_of, module_path, truncate},
};

/// The modules that read a block's normalised input.
const READERS: [Module; 3] = [Module::Q, Module::K, Module::V];

/// What a configuration must say for such a router; empty if it does.
pub fn faults(config: &RouterConfig) -> Vec<String> {
    let mut faults = Vec::new();
    if config.input != RouterInput::Block || config.shared {
        faults.push(
            "prototypes are a block's own: router.input must be \"block\" and router.shared false".into(),
        );
    }
    if config.granularity != Granularity::Token {
        faults.push("prototypes are compared with tokens: router.granularity must be \"token\"".into());
    }
    if config.gate.score != Score::Absolute {
        faults.push("the sign of a prototype means nothing: router.score must be \"absolute\"".into());
    }
    if config.gate.null_expert {
        faults.push("a null expert has no prototype: router.null_expert must be false".into());
    }
    faults
}

/// The router whose rows are the prototypes of some experts.
///
/// # Errors
/// [`faults`], experts of another base, and an expert that changes none of q, k and v in a block.
pub fn router(config: &RouterConfig, experts: &[Expert], model: &ModelConfig) -> Result<Router> {
    let faults = faults(config);
    if !faults.is_empty() {
        return Err(Error::setting("router.fit", faults.join("; ")));
    }
    let names: Vec<String> = experts.iter().map(|expert| expert.name.clone()).collect();
    let mut router = Router::zeros(config, &names, model)?;
    for (block, weight) in router.weights.iter_mut().enumerate() {
        let mut rows = Vec::with_capacity(experts.len() * model.hidden_size);
        for expert in experts {
            expert.check_fits(model)?;
            rows.extend(prototype(expert, model, block)?);
        }
        *weight = Arc::new(rows);
    }
    Ok(router)
}

/// The first right singular vector of an expert's changes of q, k and v, one above the other: `[d]`, of length 1.
fn prototype(expert: &Expert, model: &ModelConfig, block: usize) -> Result<Vec<f32>> {
    let mut changes = Vec::new();
    for module in READERS {
        if let Some(factors) = factors_of(expert, model, block, module)? {
            changes.push(factors.delta()?);
        }
    }
    let none = || {
        let what = "no prototype: the expert changes none of q_proj, k_proj and v_proj here";
        Error::Merge {
            module: format!("{} {}", expert.name, module_path(block, Module::Q)),
            what: what.into(),
        }
    };
    if changes.is_empty() {
        return Err(none());
    }
    let stacked = Tensor::cat(&changes, 0)?;
    let vector: Vec<f32> =
        truncate(&module_path(block, Module::Q), &stacked, 1)?.factors.a().flatten_all()?.to_vec1()?;
    if vector.iter().all(|&v| v == 0.0) { Err(none()) } else { Ok(vector) }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::merge::tests::model_and_experts;

    fn settings() -> RouterConfig {
        let mut config = RouterConfig { shared: false, ..RouterConfig::default() };
        config.gate.score = Score::Absolute;
        config
    }

    #[test]
    fn a_prototype_is_the_direction_that_is_changed_most() {
        let (model, experts) = model_and_experts();
        let router = router(&settings(), &experts, &model).unwrap();
        let rows: Vec<&[f32]> = router.weights[0].chunks(model.hidden_size).collect();
        for (expert, &row) in experts.iter().zip(&rows) {
            let length = row.iter().map(|v| v * v).sum::<f32>();
            assert!((length - 1.0).abs() < 1e-4, "{length}");
            // ‖ΔW x‖² over q, k and v, for unit vectors x.
            let effect = |x: &[f32]| -> f32 {
                let x = Tensor::new(x, &Device::Cpu).unwrap().unsqueeze(1).unwrap();
                let of = |module| match factors_of(expert, &model, 0, module).unwrap() {
                    Some(f) => f.delta().unwrap().matmul(&x).unwrap().sqr().unwrap().sum_all().unwrap(),
                    None => Tensor::new(0f32, &Device::Cpu).unwrap(),
                };
                READERS.into_iter().map(|module| of(module).to_scalar::<f32>().unwrap()).sum()
            };
            let most = effect(row);
            for angle in [0.1f32, 0.5] {
                for axis in 0..model.hidden_size {
                    let mut other: Vec<f32> = row.iter().map(|v| v * angle.cos()).collect();
                    other[axis] += angle.sin();
                    let norm = other.iter().map(|v| v * v).sum::<f32>().sqrt();
                    other.iter_mut().for_each(|v| *v /= norm);
                    assert!(effect(&other) <= most * 1.0001, "{} axis {axis}", expert.name);
                }
            }
        }
        assert_ne!(rows[0], rows[1]);
    }

    #[test]
    fn what_has_no_prototype_is_refused() {
        let (model, mut experts) = model_and_experts();
        let message = |config: &RouterConfig, experts: &[Expert]| {
            router(config, experts, &model).unwrap_err().to_string()
        };
        for part in ["router.shared", "router.score"] {
            assert!(message(&RouterConfig::default(), &experts).contains(part));
        }
        for module in READERS {
            experts[1].blocks[0][module.index()] = None;
        }
        assert!(message(&settings(), &experts).contains("b block 0"), "{}", message(&settings(), &experts));
    }
}
