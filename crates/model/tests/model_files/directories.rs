//! Hugging Face directories: tensors, both spellings of the configuration, and what is refused.

use std::{collections::HashMap, path::Path, sync::Arc};

use mixse_model::{
    config::{ModelConfig, Rope, RopeScaling},
    engine::{Engine, LoadOptions, Precision},
    generate::Runner,
    language::{Controls, LanguageModel, Request, Sampling, ScoreRequest},
    tokenizer::{Bos, MarkedText, Message},
    weights::{Checkpoint, Unused},
};
use serde_json::{Value, json};

use super::gguf::values;
use mixse_testing::tiny::{self, Number};

fn write(directory: &Path, name: &str, content: impl AsRef<[u8]>) {
    std::fs::write(directory.join(name), content).unwrap();
}

/// The configuration read from a tiny model's `config.json` with these changes (`null` removes a key).
fn config(architecture: &str, changes: Value) -> mixse_model::Result<ModelConfig> {
    let directory = tempfile::tempdir().unwrap();
    let mut config = tiny::config(architecture);
    tiny::merge(&mut config, changes);
    write(directory.path(), "config.json", config.to_string());
    ModelConfig::from_directory(directory.path())
}

#[test]
fn every_number_type_gives_the_same_tensors() {
    for number in [Number::F32, Number::F16, Number::Bf16] {
        let directory = tempfile::tempdir().unwrap();
        tiny::write_directory(directory.path(), "gemma3", number);
        let checkpoint = Checkpoint::open(directory.path()).unwrap();
        for (name, (_, shape, expected)) in tiny::tensors("gemma3") {
            assert_eq!(values(&checkpoint, &name), (shape, expected), "{number:?} {name}");
        }
    }
}

#[test]
fn shards_are_read_through_their_index() {
    let directory = tempfile::tempdir().unwrap();
    let (path, tensors) = (directory.path(), tiny::tensors("qwen2"));
    let in_first = |name: &str| name.contains("layers.0");
    let shard =
        |first: bool| tiny::safetensors(tensors.iter().filter(|row| in_first(row.0) == first), Number::F32);
    let file =
        |name: &str| if in_first(name) { "model-1-of-2.safetensors" } else { "model-2-of-2.safetensors" };
    let map: serde_json::Map<_, _> = tensors.keys().map(|name| (name.clone(), json!(file(name)))).collect();
    write(path, "config.json", tiny::config("qwen2").to_string());
    write(path, "model-1-of-2.safetensors", shard(true));
    write(path, "model-2-of-2.safetensors", shard(false));
    write(path, "model.safetensors.index.json", json!({"metadata": {}, "weight_map": map}).to_string());
    let checkpoint = Checkpoint::open(path).unwrap();
    for (name, (_, shape, expected)) in &tensors {
        assert_eq!(values(&checkpoint, name), (shape.clone(), expected.clone()), "{name}");
    }
    let hash = checkpoint.hash().unwrap();
    write(
        path,
        "model.safetensors.index.json",
        json!({"weight_map": {"x": "../elsewhere.safetensors"}}).to_string(),
    );
    assert!(Checkpoint::open(path).unwrap_err().to_string().contains("not the name of a file beside it"));
    assert_eq!(hash.len(), 64);
}

#[test]
fn both_spellings_of_the_rotary_embedding_are_read() {
    let llama3 = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    });
    let mut new = llama3.clone();
    tiny::merge(&mut new, json!({"rope_theta": 5e5}));
    let expected = Rope {
        base: 5e5,
        scaling: RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192,
        },
    };
    for changes in [
        json!({"rope_parameters": new}),
        json!({"rope_parameters": null, "rope_theta": 5e5, "rope_scaling": llama3}),
    ] {
        assert_eq!(config("llama", changes).unwrap().blocks[0].rope, expected);
    }
    let linear = json!({"rope_parameters": null, "rope_scaling": {"type": "linear", "factor": 2}});
    let expected = Rope { base: 1e4, scaling: RopeScaling::Linear { factor: 2.0 } };
    assert_eq!(config("qwen2", linear).unwrap().blocks[1].rope, expected);
}

#[test]
fn gemma_3_has_two_rotary_embeddings() {
    let old = json!({
        "rope_parameters": null, "layer_types": null, "sliding_window_pattern": 2,
        "rope_theta": 1e6, "rope_local_base_freq": 2e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    });
    let new = json!({
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            "full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0},
            "sliding_attention": {"rope_theta": 2e4, "rope_type": "default"},
        },
    });
    for changes in [old, new] {
        let blocks = config("gemma3", changes).unwrap().blocks;
        assert_eq!((blocks[0].window, blocks[1].window), (Some(16), None));
        assert_eq!(blocks[0].rope, Rope { base: 2e4, scaling: RopeScaling::None });
        assert_eq!(blocks[1].rope, Rope { base: 1e6, scaling: RopeScaling::Linear { factor: 8.0 } });
    }
    // Published files of the models with a vision part say little and put it inside.
    let sparse = json!({"model_type": "gemma3", "text_config": {
        "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
    }});
    let read = config("gemma3", sparse).unwrap();
    assert_eq!((read.vocab_size, read.num_heads, read.num_kv_heads, read.head_dim), (262_208, 8, 4, 256));
    assert_eq!((read.blocks[0].window, read.blocks[5].window), (Some(1024), None));
    assert_eq!((read.blocks[0].rope.base, read.blocks[5].rope.base), (1e4, 1e6));
    assert_eq!(read.attention_scale, 1.0 / 16.0);
    assert!(read.tied_embeddings && read.qk_norm && read.post_norms && read.norm_plus_one);
}

#[test]
fn windows_follow_each_architectures_rules() {
    let check = |architecture: &str, changes: Value, expected: [Option<usize>; 2]| {
        let blocks = config(architecture, changes.clone()).unwrap().blocks;
        assert_eq!([blocks[0].window, blocks[1].window], expected, "{architecture} {changes}");
    };
    let qwen = |changes: Value| {
        let mut config = json!({"sliding_window": 8, "use_sliding_window": true});
        tiny::merge(&mut config, changes);
        config
    };
    check("llama", json!({"sliding_window": 8}), [None, None]);
    check("mistral", json!({"sliding_window": null}), [Some(4096); 2]); // left out: the class's default
    check("mistral", json!({"sliding_window": 8}), [Some(8); 2]);
    check("qwen2", qwen(json!({"max_window_layers": 1})), [None, Some(8)]);
    check("qwen3", qwen(json!({"max_window_layers": 1})), [None, Some(8)]);
    check("qwen2", qwen(json!({"layer_types": ["sliding_attention", "full_attention"]})), [Some(8), None]);
    check("qwen2", json!({"sliding_window": 8, "max_window_layers": 0}), [None, None]);
    check("gemma2", json!({}), [Some(16), None]);
    check("gemma2", json!({"layer_types": ["full_attention", "sliding_attention"]}), [None, Some(16)]);
}

#[test]
fn scales_caps_and_biases_are_read() {
    let gemma2 = config("gemma2", json!({"query_pre_attn_scalar": 144})).unwrap();
    assert_eq!((gemma2.attention_softcap, gemma2.logit_softcap), (Some(50.0), Some(30.0)));
    assert_eq!(gemma2.attention_scale, 1.0 / 12.0);
    assert_eq!(gemma2.embedding_scale, (tiny::HIDDEN as f64).sqrt());
    let qwen2 = config("qwen2", json!({"head_dim": null})).unwrap();
    assert!(qwen2.qkv_bias && !qwen2.output_bias && qwen2.head_dim == tiny::HIDDEN / tiny::HEADS);
    let llama = config("llama", json!({"attention_bias": true, "num_key_value_heads": null})).unwrap();
    assert!(
        llama.qkv_bias && llama.output_bias && llama.num_kv_heads == tiny::HEADS && !llama.tied_embeddings
    );
}

#[test]
fn wrong_configurations_are_refused_with_the_key() {
    for (changes, expected) in [
        (json!({"model_type": "mixtral"}), "model_type mixtral is not supported"),
        (json!({"model_type": null}), "has no model_type"),
        (json!({"hidden_size": null}), "has no key hidden_size"),
        (json!({"hidden_size": -4}), "hidden_size is -4"),
        (json!({"hidden_size": 1e300}), "hidden_size is"),
        (json!({"num_hidden_layers": 1_000_000_000_000_u64}), "blocks; at most"),
        (json!({"num_attention_heads": 0}), "number of heads is 0"),
        (json!({"head_dim": 7}), "head width is 7"),
        (json!({"hidden_act": "relu"}), "hidden_act relu"),
        (json!({"hidden_act": "gelu_pytorch_tanh"}), "hidden_act gelu_pytorch_tanh"),
        (json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor is 0.5"),
        (json!({"per_layer_config": {"0": {"head_dim": 4}}}), "per_layer_config"),
        (json!({"transformers_weights": "other.safetensors"}), "transformers_weights"),
        (json!({"is_encoder_decoder": true}), "is_encoder_decoder"),
        (json!({"compression_config": {"format": "x"}}), "compression_config"),
        (json!({"quantization": {"bits": 4}}), "quantization"),
        (json!({"rope_parameters": {"full_attention": {"rope_theta": 5e5}}}), "differ by layer type"),
        (json!({"mlp_bias": true}), "mlp_bias"),
        (json!({"quantization_config": {}}), "quantization_config"),
        (json!({"rope_parameters": {"rope_type": "yarn"}}), "rope type yarn"),
        (json!({"rope_parameters": {"rope_type": "linear"}}), "no factor"),
        (json!({"rope_parameters": {"rope_theta": -1.0}}), "rope base is -1"),
        (json!({"rope_parameters": {"partial_rotary_factor": 0.5}}), "partial_rotary_factor"),
        (json!({"rms_norm_eps": "x"}), "rms_norm_eps is"),
    ] {
        let message = config("llama", changes.clone()).unwrap_err().to_string();
        assert!(message.contains("config.json") && message.contains(expected), "{changes}: {message}");
    }
}

/// Where transformers counts with it, `None` is an error there too.
#[test]
fn a_null_is_no_number() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = tiny::config("qwen2");
    let windows = json!({"use_sliding_window": true, "sliding_window": 8, "layer_types": null});
    tiny::merge(&mut config, windows);
    config["max_window_layers"] = Value::Null;
    write(directory.path(), "config.json", config.to_string());
    let message = ModelConfig::from_directory(directory.path()).unwrap_err().to_string();
    assert!(message.contains("has no key max_window_layers"), "{message}");
}

/// A key that the architecture's class in transformers 5.23 does not read changes nothing there, and nothing here; what
/// another architecture's class makes of it does not matter. Logits of transformers were compared for each.
#[test]
fn keys_of_other_architectures_change_nothing() {
    for (architecture, changes) in [
        (
            "llama",
            json!({"final_logit_softcapping": 5.0, "attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 4}),
        ),
        (
            "llama",
            json!({"sliding_window": 4, "use_sliding_window": true, "layer_types": ["x"], "rope_interleaved": true}),
        ),
        (
            "llama",
            json!({"pretraining_tp": 2, "attention_dropout": 0.5, "chunk_size_feed_forward": 2, "num_experts": 4}),
        ),
        ("llama", json!({"rope_scaling": {}, "hidden_act": "swish", "mlp_bias": false, "is_decoder": true})),
        (
            "llama",
            json!({"rope_local_base_freq": 3.0, "sliding_window_pattern": 2, "embedding_multiplier": 3.0}),
        ),
        ("mistral", json!({"attention_bias": true, "use_sliding_window": false})),
        ("qwen2", json!({"attention_bias": true, "mlp_bias": true})),
        ("qwen3", json!({"final_logit_softcapping": 5.0})),
        (
            "gemma",
            json!({"hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh", "sliding_window": 4}),
        ),
        ("gemma2", json!({"hidden_act": "relu", "sliding_window_pattern": 1, "sliding_window_size": 3})),
        (
            "gemma3",
            json!({"attn_logit_softcapping": 2.0, "_sliding_window_pattern": 1, "hidden_act": "relu"}),
        ),
    ] {
        assert_eq!(
            config(architecture, changes.clone()).unwrap(),
            config(architecture, json!({})).unwrap(),
            "{changes}"
        );
    }
}

#[test]
fn keys_that_an_architecture_reads_differently_are_refused() {
    for (architecture, changes, expected) in [
        ("mistral", json!({"layer_types": ["sliding_attention", "full_attention"]}), "layer_types"),
        ("gemma", json!({"use_bidirectional_attention": true}), "use_bidirectional_attention"),
        ("gemma", json!({"hidden_activation": "gelu"}), "hidden_activation is \"gelu\""),
        ("gemma2", json!({"hidden_activation": "gelu"}), "hidden_activation gelu is not supported"),
        ("gemma3", json!({"hidden_activation": "gelu"}), "hidden_activation gelu is not supported"),
        ("gemma3", json!({"use_bidirectional_attention": true}), "use_bidirectional_attention"),
        (
            "gemma3",
            json!({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}),
            "must have an entry",
        ),
        ("gemma3", json!({"rope_scaling": {"type": "linear", "factor": 8.0}}), "called rope_type"),
        (
            "qwen2",
            json!({"layer_types": ["sliding_attention", "full_attention"]}),
            "no sliding_window is in use",
        ),
        (
            "qwen3",
            json!({"use_sliding_window": true, "layer_types": ["full_attention"]}),
            "1 entries for 2 layers",
        ),
    ] {
        let message = config(architecture, changes.clone()).unwrap_err().to_string();
        assert!(message.contains("config.json") && message.contains(expected), "{changes}: {message}");
    }
}

/// Like transformers 5: the key outside the parameters wins, the old spelling wins over the new one.
#[test]
fn the_old_and_the_new_spelling_of_rope_are_joined() {
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                        "original_max_position_embeddings": 64});
    let read =
        config("llama", json!({"rope_scaling": llama3, "original_max_position_embeddings": 128})).unwrap();
    assert!(matches!(read.blocks[0].rope.scaling, RopeScaling::Llama3 { original_context: 128, .. }));
    let both = json!({
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5},
        "rope_scaling": {"type": "linear", "factor": 2.0},
    });
    let expected = Rope { base: 1e4, scaling: RopeScaling::Linear { factor: 2.0 } };
    assert_eq!(config("llama", both).unwrap().blocks[0].rope, expected);
    let gemma3 = config(
        "gemma3",
        json!({"rope_scaling": {"rope_type": "linear", "factor": 8.0},
                                         "layer_types": ["sliding_attention", "full_attention"]}),
    );
    let blocks = gemma3.unwrap().blocks;
    assert_eq!(blocks[0].rope, Rope { base: 1e4, scaling: RopeScaling::None });
    assert_eq!(blocks[1].rope, Rope { base: 1e4, scaling: RopeScaling::Linear { factor: 8.0 } });
}

/// Writes a model with these changes of its configuration and its tensors, and opens it.
fn opened(
    architecture: &str,
    changes: Value,
    change: impl FnOnce(&mut tiny::Tensors),
    unused: Unused,
) -> mixse_model::Result<(tempfile::TempDir, Checkpoint)> {
    let directory = tempfile::tempdir().unwrap();
    let mut config = tiny::config(architecture);
    tiny::merge(&mut config, changes);
    let mut tensors = tiny::tensors(architecture);
    change(&mut tensors);
    write(directory.path(), "config.json", config.to_string());
    write(directory.path(), "model.safetensors", tiny::safetensors(tensors.iter(), Number::F32));
    Checkpoint::open_with(directory.path(), unused).map(|checkpoint| (directory, checkpoint))
}

/// transformers 5 unties a head that is there and differs.
#[test]
fn a_head_of_its_own_counts_where_it_differs() {
    let tied = json!({"tie_word_embeddings": true});
    let (_directory, own) = opened("llama", tied.clone(), |_| (), Unused::Refuse).unwrap();
    assert!(!own.config.tied_embeddings);
    assert_eq!(values(&own, "lm_head.weight").1, tiny::tensors("llama")["lm_head.weight"].2);
    let same = |tensors: &mut tiny::Tensors| {
        let embedding = tensors["model.embed_tokens.weight"].clone();
        tensors.insert("lm_head.weight".into(), embedding);
    };
    let (_directory, equal) = opened("llama", tied.clone(), same, Unused::Refuse).unwrap();
    assert!(equal.config.tied_embeddings);
    let without = |tensors: &mut tiny::Tensors| drop(tensors.remove("lm_head.weight"));
    assert!(opened("llama", tied, without, Unused::Refuse).unwrap().1.config.tied_embeddings);
    // transformers would start a head at random.
    let message = opened("llama", json!({}), without, Unused::Refuse).unwrap_err().to_string();
    assert!(message.contains("has no tensor lm_head.weight"), "{message}");
}

/// As in transformers.
#[test]
fn a_single_file_comes_before_an_index() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    tiny::write_directory(path, "llama", Number::F32);
    let mut other = tiny::tensors("llama");
    other.values_mut().for_each(|(_, _, values)| values.iter_mut().for_each(|v| *v = 0.0));
    write(path, "other.safetensors", tiny::safetensors(other.iter(), Number::F32));
    let map: serde_json::Map<_, _> =
        other.keys().map(|name| (name.clone(), json!("other.safetensors"))).collect();
    write(path, "model.safetensors.index.json", json!({"weight_map": map}).to_string());
    let (_, _, expected) = &tiny::tensors("llama")["model.norm.weight"];
    assert_eq!(&values(&Checkpoint::open(path).unwrap(), "model.norm.weight").1, expected);
    std::fs::remove_file(path.join("model.safetensors")).unwrap();
    assert_eq!(values(&Checkpoint::open(path).unwrap(), "model.norm.weight").1, vec![0.0; tiny::HIDDEN]);
    write(path, "adapter_config.json", "{}");
    assert!(Checkpoint::open(path).unwrap_err().to_string().contains("holds an adapter"));
}

#[test]
fn tensors_that_nothing_reads_are_refused() {
    let row = || (String::new(), vec![2], vec![1.0, 2.0]);
    for name in [
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.0.self_attn.q_proj.weight_scale",
        "model.layers.2.input_layernorm.weight",
        "model.layers.0.mlp.experts.0.up_proj.weight",
        "model.embed_positions.weight",
        "lm_head.bias",
        "score.weight",
        "vision_tower.x.weight",
        "language_model.x.weight",
    ] {
        let add = |tensors: &mut tiny::Tensors| drop(tensors.insert(name.into(), row()));
        let message = opened("llama", json!({}), add, Unused::Refuse).unwrap_err().to_string();
        assert!(message.contains(name) && message.contains("--ignore-unused"), "{message}");
        let (_directory, checkpoint) = opened("llama", json!({}), add, Unused::Ignore).unwrap();
        assert_eq!(values(&checkpoint, "model.norm.weight").1, tiny::tensors("llama")["model.norm.weight"].2);
    }
    let harmless = |tensors: &mut tiny::Tensors| {
        tensors.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), row());
        tensors.insert("model.rotary_emb.inv_freq".into(), row());
    };
    assert!(opened("llama", json!({}), harmless, Unused::Refuse).is_ok());
    let many = |tensors: &mut tiny::Tensors| {
        (0..9).for_each(|i| drop(tensors.insert(format!("x{i}"), row())));
    };
    let message = opened("llama", json!({}), many, Unused::Refuse).unwrap_err().to_string();
    assert!(message.contains("9 tensors") && message.contains("x0, x1, x2, x3 and 5 more"), "{message}");
}

/// Both spellings of a model with a vision part give the text model.
#[test]
fn the_text_model_of_a_larger_one_is_read() {
    let outer = |tied: bool| json!({"model_type": "gemma3", "text_config": tiny::config("gemma3"), "vision_config": {}, "tie_word_embeddings": tied});
    let renamed = |prefix: &'static str, tower: &'static str| {
        move |tensors: &mut tiny::Tensors| {
            *tensors = std::mem::take(tensors)
                .into_iter()
                .map(|(name, row)| (name.replacen("model.", prefix, 1), row))
                .collect();
            tensors.insert(
                format!("{tower}encoder.layers.0.self_attn.q_proj.weight"),
                (String::new(), vec![1], vec![1.0]),
            );
        }
    };
    for (prefix, tower) in
        [("language_model.model.", "vision_tower."), ("model.language_model.", "model.vision_tower.")]
    {
        let (_directory, checkpoint) =
            opened("gemma3", outer(true), renamed(prefix, tower), Unused::Refuse).unwrap();
        for (name, (_, _, expected)) in tiny::tensors("gemma3") {
            assert_eq!(values(&checkpoint, &name).1, expected, "{prefix} {name}");
        }
        assert!(checkpoint.config.tied_embeddings);
    }
    // Tied or not is said of the whole model.
    let message = opened(
        "gemma3",
        outer(false),
        renamed("model.language_model.", "model.vision_tower."),
        Unused::Refuse,
    )
    .unwrap_err()
    .to_string();
    assert!(message.contains("has no tensor lm_head.weight"), "{message}");
    // Two text models in one file.
    let twice = |tensors: &mut tiny::Tensors| {
        let norm = tensors["model.norm.weight"].clone();
        tensors.insert("language_model.model.norm.weight".into(), norm);
    };
    assert!(
        opened("gemma3", json!({}), twice, Unused::Refuse)
            .unwrap_err()
            .to_string()
            .contains("two text models")
    );
    let quantised = json!({"model_type": "gemma3", "text_config": tiny::config("gemma3"), "quantization_config": {"bits": 4}});
    assert!(
        opened("gemma3", quantised, |_| (), Unused::Refuse)
            .unwrap_err()
            .to_string()
            .contains("quantization_config")
    );
}

#[test]
fn weights_that_are_no_numbers_are_refused_with_their_place() {
    for (value, shown) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        for number in [Number::F32, Number::F16, Number::Bf16] {
            let directory = tempfile::tempdir().unwrap();
            tiny::write_directory(directory.path(), "llama", number);
            let mut tensors = tiny::tensors("llama");
            let name = "model.layers.1.mlp.up_proj.weight";
            tensors.get_mut(name).unwrap().2[3 * tiny::HIDDEN + 5] = value;
            write(directory.path(), "model.safetensors", tiny::safetensors(tensors.iter(), number));
            let checkpoint = Checkpoint::open(directory.path()).unwrap();
            let message = checkpoint.tensor(name).unwrap_err().to_string();
            assert!(message.contains(&format!("tensor {name} holds {shown} at [3, 5]")), "{message}");
            assert!(checkpoint.tensor("model.norm.weight").is_ok());
            let loaded = Engine::load(&checkpoint, &LoadOptions::default()).err().map(|e| e.to_string());
            assert!(loaded.is_some_and(|message| message.contains("at [3, 5]")));
        }
    }
}

#[test]
fn what_is_merged_into_weights_must_stay_finite() {
    let (_directory, checkpoint) = opened("llama", json!({}), |_| (), Unused::Refuse).unwrap();
    let name = "model.layers.0.mlp.up_proj.weight".to_owned();
    let huge =
        candle_core::Tensor::full(f32::INFINITY, (tiny::WIDTH, tiny::HIDDEN), &candle_core::Device::Cpu)
            .unwrap();
    let merged = checkpoint.with_deltas(HashMap::from([(name.clone(), huge)])).unwrap();
    let message = merged.tensor(&name).unwrap_err().to_string();
    assert!(message.contains("with what is merged into it holds inf at [0, 0]"), "{message}");
}

/// Numbers that are finite in the file may grow out of the format's range on the way to the logits: no answer comes of them.
#[test]
fn logits_that_are_no_numbers_are_no_answer() {
    let huge = |tensors: &mut tiny::Tensors| {
        let norm = &mut tensors.get_mut("model.norm.weight").unwrap().2;
        norm.iter_mut().for_each(|v| *v = 3e38);
    };
    let (_directory, checkpoint) = opened("llama", json!({}), huge, Unused::Refuse).unwrap();
    let options = LoadOptions { precision: Precision::F32, ..LoadOptions::default() };
    let engine = Engine::load(&checkpoint, &options).unwrap();
    let tokens: Arc<[u32]> = Arc::from([]);
    let request = |sampling| Request {
        prefix: tokens.clone(),
        prompt: vec![1, 2, 3],
        max_new_tokens: 4,
        sampling,
        stop: Vec::new(),
        controls: Controls::default(),
    };
    let runner = Runner::new(&engine, &checkpoint.tokenizer, None);
    for sampling in [Sampling::Greedy, Sampling::TopP { temperature: 1.0, top_p: 0.9, stream: 1 }] {
        let done = &mut |_, _| panic!("an answer was given");
        let message = runner.generate(&[request(sampling)], done).unwrap_err().to_string();
        assert!(message.contains("the logit of token") && message.contains("row 2"), "{message}");
    }
    let score = ScoreRequest { prefix: tokens.clone(), context: vec![1], continuation: vec![2] };
    let done = &mut |_, _| panic!("a score was given");
    assert!(runner.score(&[score], done).unwrap_err().to_string().contains("the logit of token"));
}

#[test]
fn wrong_directories_are_refused() {
    let message = |change: &dyn Fn(&Path)| {
        let directory = tempfile::tempdir().unwrap();
        tiny::write_directory(directory.path(), "llama", Number::F32);
        change(directory.path());
        Checkpoint::open(directory.path()).unwrap_err().to_string()
    };
    let remove = |path: &Path, name: &str| std::fs::remove_file(path.join(name)).unwrap();
    assert!(message(&|path| remove(path, "config.json")).contains("config.json"));
    assert!(message(&|path| remove(path, "model.safetensors")).contains("has neither model.safetensors"));
    assert!(message(&|path| write(path, "config.json", "{")).contains("config.json: EOF"));
    assert!(message(&|path| write(path, "tokenizer.json", "{}")).contains("tokenizer.json"));
    let map = r#""normalizer":{"type":"Precompiled","precompiled_charsmap":"AAAA"}"#;
    let damaged = tiny::tokenizer_json().replace(r#""normalizer":null"#, map);
    assert!(message(&|path| write(path, "tokenizer.json", &damaged)).contains("tokenizer.json"));
    let other = |path: &Path| write(path, "config.json", tiny::config("qwen2").to_string());
    assert!(message(&other).contains("has no tensor model.layers.0.self_attn.q_proj.bias"));
    let cut = |path: &Path| {
        let bytes = std::fs::read(path.join("model.safetensors")).unwrap();
        write(path, "model.safetensors", &bytes[..bytes.len() - 1]);
    };
    assert!(message(&cut).contains("lies outside the file"));
    let longer = |path: &Path| {
        let bytes = std::fs::read(path.join("model.safetensors")).unwrap();
        write(path, "model.safetensors", [&bytes[..], b"12345"].concat());
    };
    assert!(message(&longer).contains("has 5 bytes behind its last tensor"));
    // A file that is there in name only is not one that was left out.
    #[cfg(unix)]
    for name in ["tokenizer.json", "generation_config.json", "tokenizer_config.json", "chat_template.jinja"] {
        let broken = |path: &Path| std::os::unix::fs::symlink("gone", path.join(name)).unwrap();
        let found = message(&broken);
        assert!(found.contains(name) && found.contains("No such file"), "{found}");
    }
    let integers = |path: &Path| {
        let bytes = std::fs::read(path.join("model.safetensors")).unwrap();
        let at = bytes.windows(5).position(|window| window == b"\"F32\"").unwrap();
        write(path, "model.safetensors", [&bytes[..at], b"\"I32\"", &bytes[at + 5..]].concat());
    };
    assert!(message(&integers).contains("has type I32, which is not supported"));
}

/// A directory without a tokenizer can be used with token ids.
#[test]
fn a_directory_without_a_tokenizer_opens() {
    let directory = tempfile::tempdir().unwrap();
    tiny::write_directory(directory.path(), "llama", Number::F32);
    let tokenizer = Checkpoint::open(directory.path()).unwrap().tokenizer;
    assert!(tokenizer.encode("x", Bos::Model).unwrap_err().to_string().contains("tokenizer.json"));
    assert!(tokenizer.decode(&[1]).is_err());
    assert_eq!((tokenizer.bos(), tokenizer.vocab_size(), tokenizer.token_text(3)), (None, 0, String::new()));
}

#[test]
fn the_files_beside_the_tokenizer_count() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    tiny::write_directory(path, "llama", Number::F32);
    write(path, "tokenizer.json", tiny::tokenizer_json());
    let opened = || Checkpoint::open(path).unwrap().tokenizer;
    // The post-processor's <s>, and no trace of the truncation that the file asks for.
    let plain = opened();
    assert_eq!(plain.bos(), Some(257));
    assert_eq!(plain.encode("he said", Bos::Model).unwrap().len(), 7);
    let written = MarkedText::template("he</s>");
    assert_eq!(plain.encode_marked(&written, Bos::Never).unwrap(), [256, 258]);
    assert!(plain.eos().is_empty() && !plain.has_chat_template());
    assert!(plain.chat(&[], true).is_err());

    write(path, "generation_config.json", json!({"eos_token_id": [258, 7]}).to_string());
    write(
        path,
        "tokenizer_config.json",
        json!({"add_bos_token": false, "bos_token": {"content": "<s>"}, "eos_token": "</s>",
               "chat_template": "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"})
        .to_string(),
    );
    let configured = opened();
    assert_eq!((configured.bos(), configured.eos()), (None, &[258, 7][..]));
    let messages = [Message { role: "user".into(), content: "Hi".into() }];
    assert_eq!(configured.chat(&messages, true).unwrap().as_str(), "<s>Hi</s>");

    write(path, "chat_template.jinja", "{{ messages[0].role }}");
    assert_eq!(opened().chat(&messages, true).unwrap().as_str(), "user");
}
