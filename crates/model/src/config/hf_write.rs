//! The configuration as a Hugging Face `config.json`: the inverse of [`super::hf`].
//!
//! The rotary embedding is written in both spellings, so that transformers 4 and 5 read the same.

use serde_json::{Map, Value, json};

use super::{Architecture, ModelConfig, Rope, RopeScaling};

/// The scalings of Llama 3's releases (factor, low, high, original context). GGUF files keep the divisors that follow from
/// them, one a frequency, and not the settings that `config.json` has.
const LLAMA3_SCALINGS: [(f64, f64, f64, usize); 2] = [(8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192)];

/// A `config.json` without the keys that say where a model came from; `Err` says what it has no key for.
pub(super) fn write(config: &ModelConfig) -> Result<Map<String, Value>, String> {
    use Architecture::{Gemma, Gemma2, Gemma3, Llama, Mistral, Qwen2, Qwen3};
    let (model_type, class) = match config.architecture {
        Llama => ("llama", "LlamaForCausalLM"),
        Mistral => ("mistral", "MistralForCausalLM"),
        Qwen2 => ("qwen2", "Qwen2ForCausalLM"),
        Qwen3 => ("qwen3", "Qwen3ForCausalLM"),
        Gemma => ("gemma", "GemmaForCausalLM"),
        Gemma2 => ("gemma2", "Gemma2ForCausalLM"),
        Gemma3 => ("gemma3_text", "Gemma3ForCausalLM"),
    };
    let mut object = object(json!({
        "architectures": [class],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.blocks.len(),
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": decimal(config.norm_eps),
        "tie_word_embeddings": config.tied_embeddings,
    }));
    let mut add = |more: Value| object.extend(self::object(more));
    match config.architecture {
        Llama | Mistral | Qwen2 | Qwen3 => add(json!({ "hidden_act": "silu" })),
        Gemma => add(json!({ "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh" })),
        Gemma2 | Gemma3 => add(json!({
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": whole(config.attention_scale.powi(-2)),
            "attn_logit_softcapping": config.attention_softcap.map(decimal),
            "final_logit_softcapping": config.logit_softcap.map(decimal),
        })),
    }
    add(biases(config)?);
    add(windows(config)?);
    add(rope(config)?);
    Ok(object)
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        _ => Map::new(),
    }
}

/// A number that was kept in 32 bits, by the decimals that its author wrote.
fn decimal(value: f64) -> Value {
    let short = (value as f32).to_string().parse().unwrap_or(value);
    whole(if f64::from(value as f32) == value { short } else { value })
}

/// An integer where the value is one, but for the last bits of a computation.
fn whole(value: f64) -> Value {
    let rounded = value.round();
    let is_whole = rounded != 0.0 && ((value - rounded) / rounded).abs() < 1e-9 && rounded.abs() < 1e15;
    if is_whole { json!(rounded as i64) } else { json!(value) }
}

fn biases(config: &ModelConfig) -> Result<Value, String> {
    let given = (config.qkv_bias, config.output_bias);
    let fixed = match config.architecture {
        Architecture::Qwen2 => Some((true, false)),
        Architecture::Mistral => Some((false, false)),
        _ => None,
    };
    match fixed {
        Some(fixed) if fixed == given => Ok(json!({})),
        None if given.0 == given.1 => Ok(json!({ "attention_bias": given.0 })),
        _ => Err(format!(
            "biases on q, k, v: {}, on the output projection: {}; {:?} has no such configuration",
            given.0, given.1, config.architecture
        )),
    }
}

fn windows(config: &ModelConfig) -> Result<Value, String> {
    use Architecture::{Gemma, Gemma2, Gemma3, Llama, Mistral, Qwen2, Qwen3};
    let mut sizes: Vec<usize> = config.blocks.iter().filter_map(|block| block.window).collect();
    sizes.dedup();
    if sizes.len() > 1 {
        return Err(format!("windows of different sizes: {sizes:?}"));
    }
    let window = sizes.first().copied();
    let types: Vec<&str> = config
        .blocks
        .iter()
        .map(|block| if block.window.is_some() { "sliding_attention" } else { "full_attention" })
        .collect();
    let everywhere = config.blocks.iter().all(|block| block.window == window);
    match config.architecture {
        Llama | Gemma if window.is_none() => Ok(json!({})),
        Mistral if everywhere => Ok(json!({ "sliding_window": window })),
        Qwen2 | Qwen3 if window.is_none() => {
            Ok(json!({ "use_sliding_window": false, "sliding_window": null }))
        }
        Qwen2 | Qwen3 => {
            // The oldest readers know no list, only where the windows begin.
            let first = types.iter().position(|&kind| kind == "sliding_attention").unwrap_or(0);
            Ok(json!({
                "use_sliding_window": true, "sliding_window": window, "layer_types": types, "max_window_layers": first,
            }))
        }
        // Without any window the size does not matter, but the classes want one.
        Gemma2 | Gemma3 => {
            Ok(json!({ "sliding_window": window.unwrap_or(config.context_length), "layer_types": types }))
        }
        Llama | Mistral | Gemma => Err(format!(
            "a sliding window in some blocks; {:?} has no such configuration",
            config.architecture
        )),
    }
}

/// Rotary embeddings: one for all blocks, and Gemma 3's second one for its blocks with a window.
fn rope(config: &ModelConfig) -> Result<Value, String> {
    let of = |windowed: bool| {
        config.blocks.iter().find(|block| block.window.is_some() == windowed).map(|block| block.rope)
    };
    if config.architecture == Architecture::Gemma3 {
        // A model with one kind of block says nothing about the other; it is not used then.
        let global = of(false).or(of(true)).ok_or("no blocks")?;
        let local = of(true).unwrap_or(global);
        if local.scaling != RopeScaling::None && of(true).is_some() && of(false).is_some() {
            return Err("a stretched rotary embedding in blocks with a window".into());
        }
        return Ok(json!({
            "rope_theta": whole(global.base),
            "rope_local_base_freq": whole(local.base),
            "rope_scaling": scaling(config, &global)?,
            "rope_parameters": {
                "full_attention": parameters(config, &global)?,
                "sliding_attention": parameters(config, &local)?,
            },
        }));
    }
    let first = config.blocks.first().ok_or("no blocks")?.rope;
    if config.blocks.iter().any(|block| block.rope != first) {
        return Err("rotary embeddings that differ from block to block".into());
    }
    Ok(json!({
        "rope_theta": whole(first.base),
        "rope_scaling": scaling(config, &first)?,
        "rope_parameters": parameters(config, &first)?,
    }))
}

/// As transformers 5 has it.
fn parameters(config: &ModelConfig, rope: &Rope) -> Result<Value, String> {
    let mut parameters = object(scaling(config, rope)?);
    parameters.entry("rope_type").or_insert_with(|| json!("default"));
    parameters.insert("rope_theta".into(), whole(rope.base));
    Ok(Value::Object(parameters))
}

/// As transformers 4 has it: `null` where nothing is stretched.
fn scaling(config: &ModelConfig, rope: &Rope) -> Result<Value, String> {
    let llama3 = |factor: f64, low: f64, high: f64, context: usize| {
        json!({
            "rope_type": "llama3", "factor": whole(factor), "low_freq_factor": whole(low),
            "high_freq_factor": whole(high), "original_max_position_embeddings": context,
        })
    };
    match rope.scaling {
        RopeScaling::None => Ok(Value::Null),
        RopeScaling::Linear { factor } => Ok(json!({ "rope_type": "linear", "factor": whole(factor) })),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
            Ok(llama3(factor, low_freq_factor, high_freq_factor, original_context))
        }
        RopeScaling::Factors { .. } => LLAMA3_SCALINGS
            .into_iter()
            .find(|&(factor, low, high, context)| {
                let scaling = RopeScaling::Llama3 {
                    factor,
                    low_freq_factor: low,
                    high_freq_factor: high,
                    original_context: context,
                };
                same_divisors(&config.rope_factors, &Rope { scaling, ..*rope }, config.head_dim)
            })
            .map(|(factor, low, high, context)| llama3(factor, low, high, context))
            .ok_or_else(|| "rope_freqs.weight holds divisors that are not those of a Llama 3 release".into()),
    }
}

/// Whether a scaling divides the frequencies by these numbers.
fn same_divisors(divisors: &[f32], rope: &Rope, head_dim: usize) -> bool {
    let plain = Rope { scaling: RopeScaling::None, ..*rope };
    let (plain, scaled) = (plain.inverse_frequencies(head_dim, &[]), rope.inverse_frequencies(head_dim, &[]));
    divisors.len() == plain.len()
        && divisors.iter().zip(plain.iter().zip(&scaled)).all(|(d, (p, s))| (d - p / s).abs() <= 1e-3 * d)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{BlockConfig, hf};

    /// A configuration as read from `config.json` with these keys.
    fn read(keys: Value) -> ModelConfig {
        let mut all = object(json!({
            "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256,
        }));
        all.extend(object(keys));
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        std::fs::write(&path, Value::Object(all).to_string()).unwrap();
        hf::read(&path).unwrap().config
    }

    #[test]
    fn what_is_written_is_read_as_the_same() {
        let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                            "original_max_position_embeddings": 64});
        for keys in [
            json!({"model_type": "llama", "rms_norm_eps": 1e-5}),
            json!({"model_type": "llama", "rope_theta": 5e5, "rope_scaling": llama3, "tie_word_embeddings": true}),
            json!({"model_type": "llama", "attention_bias": true, "rope_scaling": {"type": "linear", "factor": 2.5}}),
            json!({"model_type": "mistral", "sliding_window": 32}),
            json!({"model_type": "mistral", "sliding_window": null}),
            json!({"model_type": "qwen2"}),
            json!({"model_type": "qwen2", "use_sliding_window": true, "sliding_window": 8, "max_window_layers": 1}),
            json!({"model_type": "qwen3", "rope_theta": 1e6}),
            json!({"model_type": "gemma"}),
            json!({"model_type": "gemma2", "query_pre_attn_scalar": 144, "sliding_window": 16}),
            json!({"model_type": "gemma3_text", "query_pre_attn_scalar": 16, "sliding_window": 16, "sliding_window_pattern": 2,
                   "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "final_logit_softcapping": null}),
        ] {
            let config = read(keys.clone());
            let again = read(Value::Object(write(&config).unwrap()));
            assert!((config.attention_scale - again.attention_scale).abs() < 1e-12, "{keys}");
            assert_eq!(ModelConfig { attention_scale: config.attention_scale, ..again }, config, "{keys}");
        }
    }

    #[test]
    fn what_a_gguf_file_keeps_becomes_settings_again() {
        let llama = read(json!({"model_type": "llama", "rope_theta": 5e5, "head_dim": 64}));
        let scaling = RopeScaling::Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192,
        };
        let rope = llama.blocks[0].rope;
        let plain = rope.inverse_frequencies(64, &[]);
        let stretched = Rope { scaling, ..rope }.inverse_frequencies(64, &[]);
        let factors: Vec<f32> = plain.iter().zip(stretched).map(|(p, s)| p / s).collect();
        let with = |rope_factors: Vec<f32>| {
            let scaling = RopeScaling::Factors { len: rope_factors.len() };
            let block = BlockConfig { rope: Rope { scaling, ..rope }, ..llama.blocks[0] };
            ModelConfig {
                rope_factors,
                blocks: vec![block; 3],
                norm_eps: f64::from(1e-5f32),
                ..llama.clone()
            }
        };
        let written = write(&with(factors.clone())).unwrap();
        assert_eq!(written["rope_scaling"]["factor"], 32);
        assert_eq!(written["rms_norm_eps"], json!(1e-5));
        let other = factors.iter().map(|f| f * 1.1).collect();
        assert!(write(&with(other)).unwrap_err().contains("rope_freqs.weight"));
    }
}
