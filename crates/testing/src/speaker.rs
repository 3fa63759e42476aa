//! A tiny random Llama that writes words.
//!
//! All weights are random. Only the vocabulary is chosen: a few words are tokens of their own, and the rows of the head make these
//! likely, the end of the text a little more likely, and bare bytes unlikely. So what the model writes is nonsense
//! made of words that ends at some point, as filters and parsers expect of text.

use std::path::Path;

use serde_json::{Value, json};

use crate::{
    tiny::{self, Number},
    vocabulary,
};

/// The words, each with the blank in front of it.
pub const WORDS: [&str; 48] = [
    " apple", " bread", " cloud", " dance", " eagle", " flame", " grape", " house", " ink", " jar", " kite",
    " lamp", " moon", " nest", " ocean", " pearl", " queen", " river", " stone", " tiger", " uncle",
    " valley", " wagon", " yarn", " zebra", " three", " seven", " twelve", " red", " green", " small",
    " old", " why", " name", " count", " sort", " add", " finds", " gives", " holds", " under", " over",
    " and", " or", " with", " of", " 4", " 25",
];

/// The id of the token that ends a text.
pub const END: usize = 256 + WORDS.len();

const HIDDEN: usize = 32;
const WIDTH: usize = 64;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD: usize = 8;
const BLOCKS: usize = 2;

/// Numbers of a linear congruential generator, uniform within -1 to 1.
struct Uniform(u64);

impl Uniform {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// Writes the model and its tokenizer as a Hugging Face directory. Another `seed` is another model.
///
/// # Panics
/// A file cannot be written.
pub fn write(directory: &Path, seed: u64) {
    std::fs::create_dir_all(directory).unwrap();
    let put = |name: &str, text: String| std::fs::write(directory.join(name), text).unwrap();
    put("config.json", config().to_string());
    put("tokenizer.json", tokenizer().to_string());
    put("tokenizer_config.json", json!({"eos_token": "</s>", "add_bos_token": false}).to_string());
    let weights = tiny::safetensors(tensors(seed).iter(), Number::F32);
    std::fs::write(directory.join("model.safetensors"), weights).unwrap();
}

/// Its `config.json`.
pub fn config() -> Value {
    json!({
        "model_type": "llama", "vocab_size": END + 1, "hidden_size": HIDDEN, "intermediate_size": WIDTH,
        "num_hidden_layers": BLOCKS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "eos_token_id": END,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    })
}

fn tensors(seed: u64) -> tiny::Tensors {
    let mut uniform = Uniform(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let mut tensors = tiny::Tensors::new();
    let mut add = |name: String, shape: &[usize], scale: &dyn Fn(usize) -> f32| {
        let columns = *shape.last().unwrap();
        let values = (0..shape.iter().product()).map(|i| uniform.next() * scale(i / columns)).collect();
        tensors.insert(name, (String::new(), shape.to_vec(), values));
    };
    add("model.embed_tokens.weight".into(), &[END + 1, HIDDEN], &|_| 1.0);
    add("lm_head.weight".into(), &[END + 1, HIDDEN], &|row| match row {
        END => 2.4,
        256.. => 1.0,
        _ => 0.05,
    });
    for block in 0..BLOCKS {
        let mut matrix = |name: &str, rows: usize, columns: usize| {
            add(format!("model.layers.{block}.{name}.weight"), &[rows, columns], &|_| 0.3);
        };
        matrix("self_attn.q_proj", HEADS * HEAD, HIDDEN);
        matrix("self_attn.k_proj", KV_HEADS * HEAD, HIDDEN);
        matrix("self_attn.v_proj", KV_HEADS * HEAD, HIDDEN);
        matrix("self_attn.o_proj", HIDDEN, HEADS * HEAD);
        matrix("mlp.gate_proj", WIDTH, HIDDEN);
        matrix("mlp.up_proj", WIDTH, HIDDEN);
        matrix("mlp.down_proj", HIDDEN, WIDTH);
    }
    let norms = (0..BLOCKS)
        .flat_map(|block| {
            ["input_layernorm", "post_attention_layernorm"]
                .map(|norm| format!("model.layers.{block}.{norm}.weight"))
        })
        .chain(["model.norm.weight".to_owned()]);
    tensors.extend(norms.map(|name| (name, (String::new(), vec![HIDDEN], vec![1.0; HIDDEN]))));
    tensors
}

fn tokenizer() -> Value {
    let mut vocabulary = serde_json::Map::new();
    for (id, character) in vocabulary::byte_characters().into_iter().enumerate() {
        vocabulary.insert(character, json!(id));
    }
    let added = |id: usize, content: &str, special: bool| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": special})
    };
    let mut tokens: Vec<Value> =
        WORDS.iter().enumerate().map(|(i, word)| added(256 + i, word, false)).collect();
    tokens.push(added(END, "</s>", true));
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": tokens, "normalizer": null,
        "pre_tokenizer": byte_level.clone(), "decoder": byte_level, "post_processor": null,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                  "vocab": vocabulary, "merges": []},
    })
}
