//! What must hold after a training.

use std::sync::Arc;

use mixse_model::{
    engine::{Ask, Engine, Ragged},
    expert::{Expert, Module},
    expert_set::ExpertSet,
    mixture::Mixture,
};

use super::{Result, TrainRow};

/// What a trained expert fails to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckFailure {
    /// A module that was to be trained did not move.
    #[error("lora_B of block {block} {module} is still zero: the module got no gradient")]
    ZeroFactor {
        /// The block.
        block: usize,
        /// The module.
        module: &'static str,
    },
    /// A value is not a number.
    #[error("block {block} {module} holds a value that is not finite")]
    NotFinite {
        /// The block.
        block: usize,
        /// The module.
        module: &'static str,
    },
    /// The base was changed.
    #[error("the frozen weights' hash changed from {before} to {after}")]
    BaseChanged {
        /// Before the training.
        before: String,
        /// After it.
        after: String,
    },
    /// The expert predicts what the base predicts.
    #[error("the expert's logits do not differ from the base's on a training row")]
    NoEffect,
}

/// Checks a trained expert: every B moved, every value is finite, the base is what it was (`base_before` is
/// [`Engine::weights_hash`] from before the training), and the logits differ from the base's.
pub fn check_expert(engine: &Engine, expert: &Expert, base_before: &str, row: &TrainRow) -> Result<()> {
    for (block, modules) in expert.blocks.iter().enumerate() {
        for module in Module::ALL {
            let Some(f) = &modules[module.index()] else { continue };
            if !f.a.iter().chain(&f.b).all(|v| v.is_finite()) {
                return Err(CheckFailure::NotFinite { block, module: module.name() }.into());
            }
            if f.b.iter().all(|&v| v == 0.0) {
                return Err(CheckFailure::ZeroFactor { block, module: module.name() }.into());
            }
        }
    }
    let after = engine.weights_hash();
    if after != base_before {
        return Err(CheckFailure::BaseChanged { before: base_before.to_owned(), after }.into());
    }
    let ids: Vec<u32> = row.prompt_ids.iter().chain(&row.target_ids).copied().take(64).collect();
    let ragged = Arc::new(Ragged::whole([ids.len()]));
    let mixture = Mixture::all(ExpertSet::new(std::slice::from_ref(expert), &engine.config)?);
    let ask = Ask { logits: &[ids.len() - 1], ..Ask::default() };
    let logits = |mixture: Option<&Mixture>| -> Result<Vec<f32>> {
        Ok(engine.whole(&ids, &ragged, mixture, &ask)?.logits)
    };
    if logits(None)? == logits(Some(&mixture))? {
        return Err(CheckFailure::NoEffect.into());
    }
    Ok(())
}
