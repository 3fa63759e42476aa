//! A tiny random model of each architecture, as Hugging Face and as llama.cpp store it.

use std::{collections::BTreeMap, path::Path};

use serde_json::{Value, json};

use crate::{
    gguf::{GgufFile, Meta, Stored},
    vocabulary,
};

/// Rows of the embedding.
pub const VOCABULARY: usize = 320;
/// Width of the residual stream.
pub const HIDDEN: usize = 32;
/// Width of the feed-forward part.
pub const WIDTH: usize = 256;
/// Heads of queries.
pub const HEADS: usize = 4;
/// Heads of keys and values.
pub const KV_HEADS: usize = 2;
/// Width of a head.
pub const HEAD: usize = 8;
/// Decoder blocks.
pub const BLOCKS: usize = 2;

/// The names of the architectures in GGUF files. `mistral` writes `llama` and a window.
pub const ARCHITECTURES: [&str; 7] = ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3"];

/// A tensor's GGUF name, shape and values in Hugging Face's convention.
pub type Tensors = BTreeMap<String, (String, Vec<usize>, Vec<f32>)>;

/// Every tensor under its Hugging Face name.
pub fn tensors(architecture: &str) -> Tensors {
    let gemma = architecture.starts_with("gemma");
    let two_norms_more = matches!(architecture, "gemma2" | "gemma3");
    let mut rows = vec![
        ("model.embed_tokens.weight".to_owned(), "token_embd.weight".to_owned(), vec![VOCABULARY, HIDDEN]),
        ("model.norm.weight".to_owned(), "output_norm.weight".to_owned(), vec![HIDDEN]),
    ];
    if !gemma {
        rows.push(("lm_head.weight".to_owned(), "output.weight".to_owned(), vec![VOCABULARY, HIDDEN]));
    }
    for block in 0..BLOCKS {
        let mut add = |name: &str, gguf: &str, shape: &[usize]| {
            rows.push((
                format!("model.layers.{block}.{name}"),
                format!("blk.{block}.{gguf}"),
                shape.to_vec(),
            ));
        };
        add("input_layernorm.weight", "attn_norm.weight", &[HIDDEN]);
        add("self_attn.q_proj.weight", "attn_q.weight", &[HEADS * HEAD, HIDDEN]);
        add("self_attn.k_proj.weight", "attn_k.weight", &[KV_HEADS * HEAD, HIDDEN]);
        add("self_attn.v_proj.weight", "attn_v.weight", &[KV_HEADS * HEAD, HIDDEN]);
        add("self_attn.o_proj.weight", "attn_output.weight", &[HIDDEN, HEADS * HEAD]);
        if architecture == "qwen2" {
            add("self_attn.q_proj.bias", "attn_q.bias", &[HEADS * HEAD]);
            add("self_attn.k_proj.bias", "attn_k.bias", &[KV_HEADS * HEAD]);
            add("self_attn.v_proj.bias", "attn_v.bias", &[KV_HEADS * HEAD]);
        }
        if matches!(architecture, "qwen3" | "gemma3") {
            add("self_attn.q_norm.weight", "attn_q_norm.weight", &[HEAD]);
            add("self_attn.k_norm.weight", "attn_k_norm.weight", &[HEAD]);
        }
        if two_norms_more {
            add("post_attention_layernorm.weight", "post_attention_norm.weight", &[HIDDEN]);
            add("pre_feedforward_layernorm.weight", "ffn_norm.weight", &[HIDDEN]);
            add("post_feedforward_layernorm.weight", "post_ffw_norm.weight", &[HIDDEN]);
        } else {
            add("post_attention_layernorm.weight", "ffn_norm.weight", &[HIDDEN]);
        }
        add("mlp.gate_proj.weight", "ffn_gate.weight", &[WIDTH, HIDDEN]);
        add("mlp.up_proj.weight", "ffn_up.weight", &[WIDTH, HIDDEN]);
        add("mlp.down_proj.weight", "ffn_down.weight", &[HIDDEN, WIDTH]);
    }
    let mut seed = 1u32;
    let mut value = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // Multiples of 1/64 below 2: exact in f16 and bf16, and with 1 added and subtracted.
        ((seed >> 24) as f32 - 128.0) / 64.0
    };
    let filled = rows.into_iter().map(|(name, gguf, shape)| {
        let count = shape.iter().product();
        let values = (0..count).map(|_| value()).collect();
        (name, (gguf, shape, values))
    });
    filled.collect()
}

/// The model as a GGUF file, with a byte-level vocabulary.
pub fn gguf(architecture: &str) -> GgufFile {
    let prefix = if architecture == "mistral" { "llama" } else { architecture };
    let mut file = GgufFile::default();
    file.set("general.architecture", Meta::Str(prefix.into()));
    let mut set = |key: &str, value: Meta| file.set(&format!("{prefix}.{key}"), value);
    set("block_count", Meta::U32(BLOCKS as u32));
    set("context_length", Meta::U32(64));
    set("embedding_length", Meta::U32(HIDDEN as u32));
    set("feed_forward_length", Meta::U32(WIDTH as u32));
    set("attention.head_count", Meta::U32(HEADS as u32));
    set("attention.head_count_kv", Meta::U32(KV_HEADS as u32));
    set("attention.key_length", Meta::U32(HEAD as u32));
    set("attention.layer_norm_rms_epsilon", Meta::F32(1e-6));
    set("rope.freq_base", Meta::F32(10_000.0));
    if matches!(architecture, "mistral" | "gemma2" | "gemma3") {
        set("attention.sliding_window", Meta::U32(16));
    }
    vocabulary::byte_level(&mut file, "gpt-2");
    for (name, (gguf, shape, values)) in tensors(architecture) {
        let values = convert(prefix, &name, &shape, values);
        file.tensors.push(Stored::f32(&gguf, &shape, &values));
    }
    file
}

/// What llama.cpp's converter does to a tensor.
fn convert(architecture: &str, name: &str, shape: &[usize], values: Vec<f32>) -> Vec<f32> {
    if architecture.starts_with("gemma") && name.ends_with("norm.weight") {
        return values.into_iter().map(|value| value + 1.0).collect();
    }
    if architecture == "llama" && (name.contains("q_proj") || name.contains("k_proj")) {
        // reshape(heads, 2, HEAD / 2, columns).swapaxes(1, 2)
        let columns = values.len() / shape[0];
        let source = |row: usize| {
            let (head, pair, which) = (row / HEAD, row % HEAD / 2, row % 2);
            (head * HEAD + which * HEAD / 2 + pair) * columns
        };
        return (0..shape[0]).flat_map(|row| values[source(row)..source(row) + columns].to_vec()).collect();
    }
    values
}

/// The model's `config.json` as transformers 5 writes it.
pub fn config(architecture: &str) -> Value {
    let mut config = json!({
        "model_type": if architecture == "gemma3" { "gemma3_text" } else { architecture },
        "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": WIDTH, "num_hidden_layers": BLOCKS,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    });
    let extra = match architecture {
        "mistral" => json!({"sliding_window": 16}),
        "gemma2" => json!({"sliding_window": 16, "query_pre_attn_scalar": HEAD}),
        "gemma3" => json!({
            "sliding_window": 16, "query_pre_attn_scalar": HEAD,
            "layer_types": ["sliding_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_theta": 10000.0, "rope_type": "default"},
                "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
            },
        }),
        _ => json!({}),
    };
    merge(&mut config, extra);
    config
}

/// Puts the keys of `extra` into `config`; `null` removes one.
pub fn merge(config: &mut Value, extra: Value) {
    let (Value::Object(config), Value::Object(extra)) = (config, extra) else { panic!("two objects") };
    for (key, value) in extra {
        if value.is_null() {
            config.remove(&key);
        } else {
            config.insert(key, value);
        }
    }
}

/// A `tokenizer.json` of the byte-level kind that puts `<s>` in front.
pub fn tokenizer_json() -> String {
    let mut vocabulary = serde_json::Map::new();
    for (id, character) in vocabulary::byte_characters().into_iter().enumerate() {
        vocabulary.insert(character, json!(id));
    }
    vocabulary.insert("he".into(), json!(256));
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0", "truncation": {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": null, "added_tokens": [special(257, "<s>"), special(258, "</s>")], "normalizer": null,
        "pre_tokenizer": byte_level.clone(), "decoder": byte_level,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [257], "tokens": ["<s>"]}},
        },
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                  "vocab": vocabulary, "merges": [["h", "e"]]},
    })
    .to_string()
}

/// How a safetensors file stores its numbers.
#[derive(Debug, Clone, Copy)]
pub enum Number {
    /// 4 bytes.
    F32,
    /// 2 bytes, 5 bits of exponent.
    F16,
    /// 2 bytes, 8 bits of exponent.
    Bf16,
}

/// The bytes of a safetensors file.
pub fn safetensors<'a>(
    tensors: impl Iterator<Item = (&'a String, &'a (String, Vec<usize>, Vec<f32>))>,
    number: Number,
) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, (_, shape, values)) in tensors {
        let start = data.len();
        for &value in values {
            match number {
                Number::F32 => data.extend(value.to_le_bytes()),
                Number::F16 => data.extend(half::f16::from_f32(value).to_le_bytes()),
                Number::Bf16 => data.extend(half::bf16::from_f32(value).to_le_bytes()),
            }
        }
        let kind = format!("{number:?}").to_uppercase();
        header.insert(
            name.clone(),
            json!({"dtype": kind, "shape": shape, "data_offsets": [start, data.len()]}),
        );
    }
    let header = Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
}

/// The model as a Hugging Face directory without a tokenizer.
pub fn write_directory(directory: &Path, architecture: &str, number: Number) {
    std::fs::write(directory.join("config.json"), config(architecture).to_string()).unwrap();
    std::fs::write(directory.join("model.safetensors"), safetensors(tensors(architecture).iter(), number))
        .unwrap();
}
