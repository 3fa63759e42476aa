//! The names of an adapter's tensors.

use crate::expert::Module;

/// What PEFT puts before a base model's own names.
const WRAPPER: &str = "base_model.model.";
/// Where the blocks are: in a text model, and in models with a vision part as transformers 5 and 4 call them.
const TEXT: [&str; 3] = ["model.layers.", "model.language_model.layers.", "language_model.model.layers."];

/// What a tensor of an adapter is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Named {
    /// A LoRA factor of a linear module of a block of the text model.
    Factor(FactorName),
    /// A LoRA factor of another part of a model, such as one that reads images.
    OtherTower,
    /// Anything else.
    Unknown,
}

/// A factor's place.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FactorName {
    pub(super) block: usize,
    pub(super) module: Module,
    /// 0: A, 1: B.
    pub(super) factor: usize,
    /// The module in the base model, as PEFT's patterns see it: `model.layers.0.self_attn.q_proj`.
    pub(super) path: String,
}

/// Names with an adapter's name inside (`lora_A.default.weight`) are read as well.
pub(super) fn parse_name(name: &str) -> Named {
    let Some((path, factor)) = split_factor(name) else { return Named::Unknown };
    let path = path.strip_prefix(WRAPPER).unwrap_or(path);
    let Some(rest) = TEXT.iter().find_map(|prefix| path.strip_prefix(prefix)) else {
        // The text model's parts outside the blocks, whatever stands before them.
        let of_text = path.rsplit('.').next().is_some_and(|last| ["lm_head", "embed_tokens"].contains(&last));
        return if of_text { Named::Unknown } else { Named::OtherTower };
    };
    let parsed = rest.split_once('.').and_then(|(block, module)| {
        // `07` and `+7` would be second names of block 7.
        let number: usize = block.parse().ok().filter(|number: &usize| number.to_string() == block)?;
        Some((number, Module::ALL.into_iter().find(|m| m.path() == module)?))
    });
    match parsed {
        Some((block, module)) => Named::Factor(FactorName { block, module, factor, path: path.to_owned() }),
        None => Named::Unknown,
    }
}

/// A module's path and which factor it is.
fn split_factor(name: &str) -> Option<(&str, usize)> {
    let (path, rest) = name.split_once(".lora_")?;
    let (factor, rest) = match (rest.strip_prefix("A."), rest.strip_prefix("B.")) {
        (Some(rest), _) => (0, rest),
        (_, Some(rest)) => (1, rest),
        _ => return None,
    };
    let plain =
        rest == "weight" || rest.strip_suffix(".weight").is_some_and(|adapter| !adapter.contains('.'));
    plain.then_some((path, factor))
}

/// The part of a module's path before the block's number.
pub(super) fn prefix(path: &str) -> &str {
    TEXT.iter().find(|prefix| path.starts_with(**prefix)).map_or("", |prefix| prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_text_blocks_have_factors() {
        let check = |name: &str, expected: Named| assert_eq!(parse_name(name), expected, "{name}");
        let factor = |block, module, factor, path: &str| {
            Named::Factor(FactorName { block, module, factor, path: path.into() })
        };
        let q = "model.layers.0.self_attn.q_proj";
        check(&format!("base_model.model.{q}.lora_A.weight"), factor(0, Module::Q, 0, q));
        check(&format!("base_model.model.{q}.lora_B.default.weight"), factor(0, Module::Q, 1, q));
        check(&format!("{q}.lora_B.weight"), factor(0, Module::Q, 1, q));
        let inner = "model.language_model.layers.12.mlp.down_proj";
        check(&format!("base_model.model.{inner}.lora_A.weight"), factor(12, Module::Down, 0, inner));
        let nested = "language_model.model.layers.3.mlp.up_proj";
        check(&format!("base_model.model.{nested}.lora_A.weight"), factor(3, Module::Up, 0, nested));
        for name in [
            "base_model.model.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.lora_A.weight",
            "base_model.model.model.vision_tower.encoder.layers.0.self_attn.q_proj.lora_B.weight",
            "base_model.model.audio_tower.layers.0.self_attn.v_proj.lora_A.weight",
            "base_model.model.model.encoder.layers.0.self_attn.q_proj.lora_A.weight",
            "base_model.model.xmodel.layers.0.self_attn.q_proj.lora_A.weight",
            "base_model.model.multi_modal_projector.linear_1.lora_A.weight",
        ] {
            check(name, Named::OtherTower);
        }
        for name in [
            "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector",
            "base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias",
            "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight",
            "base_model.model.model.layers.0.self_attn.q_proj.lora_embedding_A",
            "base_model.model.model.layers.0.self_attn.q_proj.lora_C.weight",
            "base_model.model.model.layers.0.self_attn.rotary.lora_A.weight",
            "base_model.model.model.layers.0.extra.self_attn.q_proj.lora_A.weight",
            "base_model.model.model.layers.00.self_attn.q_proj.lora_A.weight",
            "base_model.model.model.layers.0.mlp.experts.1.up_proj.lora_A.weight",
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.a.b.weight",
            "base_model.model.model.embed_tokens.lora_A.weight",
            "base_model.model.lm_head.lora_A.weight",
            "base_model.model.language_model.lm_head.lora_A.weight",
            "base_model.model.model.language_model.embed_tokens.lora_A.weight",
            "base_model.model.lm_head.weight",
            "x",
        ] {
            check(name, Named::Unknown);
        }
    }
}
