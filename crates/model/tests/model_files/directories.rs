//! Hugging Face directories: tensors, both spellings of the configuration, and what is refused.

use std::path::Path;

use mixse_model::{
    config::{ModelConfig, Rope, RopeScaling},
    tokenizer::{Bos, MarkedText, Message},
    weights::Checkpoint,
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
