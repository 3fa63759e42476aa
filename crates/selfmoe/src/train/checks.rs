//! What must hold after a training.

use mixse_model::{
    decoder::{Decoder, Memory, Ragged, Wanted},
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
/// [`Decoder::weights_hash`] from before the training), and the logits differ from the base's.
pub fn check_expert(decoder: &Decoder, expert: &Expert, base_before: &str, row: &TrainRow) -> Result<()> {
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
    let after = decoder.weights_hash()?;
    if after != base_before {
        return Err(CheckFailure::BaseChanged { before: base_before.to_owned(), after }.into());
    }
    let ids: Vec<u32> = row.prompt_ids.iter().chain(&row.target_ids).copied().take(64).collect();
    let ragged = std::sync::Arc::new(Ragged::whole([ids.len()]));
    let wanted = Wanted { experts: false, gates: false };
    let set = ExpertSet::new(std::slice::from_ref(expert), &decoder.config, decoder.device())?;
    let mixture = Mixture::all(set);
    let last = [ids.len() - 1];
    let logits = |mixture: Option<&Mixture>| -> Result<Vec<f32>> {
        let hidden = decoder.hidden(&ids, &ragged, mixture, Memory::Recompute, wanted)?;
        Ok(decoder.logits(&hidden, &last)?)
    };
    if logits(None)? == logits(Some(&mixture))? {
        return Err(CheckFailure::NoEffect.into());
    }
    Ok(())
}
