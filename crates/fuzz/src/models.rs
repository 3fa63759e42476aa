//! Base models, tokenizers, adapters and routers.

use std::{fs, path::Path, sync::Arc, sync::OnceLock};

use mixse_model::{
    config::ModelConfig,
    engine::{Ask, Engine, LoadOptions, Precision, Ragged},
    peft, router_files,
    tokenizer::{Bos, Message, Tokenizer},
    weights::{Checkpoint, Unused},
};
use mixse_testing::{
    gguf::Meta,
    tiny::{self, Number},
};
use serde_json::{Value, json};

use crate::files::{halves, with_folder, write_padded};

/// The tensor data behind a fuzzed header: as much as a tiny model has.
const DATA: usize = 1 << 20;

/// Opens a model, reads its weights and computes with them.
fn use_model(path: &Path) -> bool {
    let Ok(checkpoint) = Checkpoint::open_with(path, Unused::Ignore) else { return false };
    use_tokenizer(&checkpoint.tokenizer);
    mixse_kernels::pool::set_threads(1);
    let options = LoadOptions { precision: Precision::F32, ..LoadOptions::default() };
    let Ok(engine) = Engine::load(&checkpoint, &options) else { return false };
    let ids: Vec<u32> = (0..3).map(|id| id % engine.config.vocab_size.max(1) as u32).collect();
    let ask = Ask { logits: &[2], ..Ask::default() };
    engine.whole(&ids, &Arc::new(Ragged::whole([ids.len()])), None, &ask).is_ok()
}

/// Encodes, decodes and asks for a conversation.
fn use_tokenizer(tokenizer: &Tokenizer) {
    if let Ok(ids) = tokenizer.encode("hello <|end|> the 12\u{e9}\n", Bos::Model) {
        for &id in &ids {
            let _ = (tokenizer.token_bytes(id), tokenizer.token_text(id), tokenizer.is_special(id));
        }
        let _ = (tokenizer.decode(&ids), tokenizer.decode_spelled(&ids));
    }
    let _ = tokenizer.decode(&[0, 1, u32::MAX]);
    let message = Message { role: "user".into(), content: "hi <|end|>".into() };
    if let Ok(text) = tokenizer.chat(&[message], true) {
        let _ = tokenizer.encode_marked(&text, Bos::Model);
    }
}

/// The header of a GGUF file, with zeros for tensors.
pub(crate) fn gguf(data: &[u8]) -> bool {
    with_folder(|folder| {
        let path = folder.join("model.gguf");
        write_padded(&path, data, DATA);
        use_model(&path)
    })
}

pub(crate) fn gguf_seeds() -> Vec<(String, Vec<u8>)> {
    let of = |name: &str| {
        let mut file = tiny::gguf(name);
        file.set("tokenizer.chat_template", Meta::Str("{{ messages[0].content }}".into()));
        (name.to_owned(), file.header())
    };
    ["llama", "qwen2", "gemma3"].into_iter().map(of).collect()
}

/// The header of a safetensors file (its JSON text), with zeros for tensors, beside the configuration of a tiny model.
pub(crate) fn safetensors(data: &[u8]) -> bool {
    with_folder(|folder| {
        fs::write(folder.join("config.json"), tiny::config("llama").to_string()).unwrap();
        let mut file = (data.len() as u64).to_le_bytes().to_vec();
        file.extend(data);
        write_padded(&folder.join("model.safetensors"), &file, data_length(data).unwrap_or(8));
        use_model(folder)
    })
}

/// Where the last tensor ends, if the header says it and it is not too much to write.
fn data_length(header: &[u8]) -> Option<usize> {
    let header: serde_json::Map<String, Value> = serde_json::from_slice(header).ok()?;
    let ends = header.values().filter_map(|tensor| tensor["data_offsets"][1].as_u64());
    ends.max().filter(|&end| end <= 4 << 20)?.try_into().ok()
}

pub(crate) fn safetensors_seeds() -> Vec<(String, Vec<u8>)> {
    let of = |(name, number)| {
        let bytes = tiny::safetensors(tiny::tensors("llama").iter(), number);
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        (String::from(name), bytes[8..8 + length].to_vec())
    };
    [("f32", Number::F32), ("bf16", Number::Bf16)].into_iter().map(of).collect()
}

/// A `config.json` beside the weights of a tiny model of that kind.
pub(crate) fn config(data: &[u8]) -> bool {
    static WEIGHTS: OnceLock<Vec<(&str, Vec<u8>)>> = OnceLock::new();
    let weights = WEIGHTS.get_or_init(|| {
        let of = |name| (name, tiny::safetensors(tiny::tensors(name).iter(), Number::F32));
        tiny::ARCHITECTURES.into_iter().map(of).collect()
    });
    let kind = serde_json::from_slice::<Value>(data).ok();
    let kind = kind.as_ref().and_then(|config| config["model_type"].as_str()).unwrap_or_default();
    let kind = kind.strip_suffix("_text").unwrap_or(kind);
    let (_, weights) = weights.iter().find(|(name, _)| *name == kind).unwrap_or(&weights[0]);
    with_folder(|folder| {
        fs::write(folder.join("config.json"), data).unwrap();
        fs::write(folder.join("model.safetensors"), weights).unwrap();
        use_model(folder)
    })
}

pub(crate) fn config_seeds() -> Vec<(String, Vec<u8>)> {
    let of = |name: &str| (name.to_owned(), tiny::config(name).to_string().into_bytes());
    tiny::ARCHITECTURES.into_iter().map(of).collect()
}

/// A `tokenizer.json`, and behind a zero byte a `tokenizer_config.json`.
pub(crate) fn tokenizer(data: &[u8]) -> bool {
    let (tokenizer, config) = halves(data);
    with_folder(|folder| {
        fs::write(folder.join("tokenizer.json"), tokenizer).unwrap();
        if !config.is_empty() {
            fs::write(folder.join("tokenizer_config.json"), config).unwrap();
        }
        let read = Tokenizer::from_directory(folder);
        if let Ok(tokenizer) = &read {
            use_tokenizer(tokenizer);
        }
        read.is_ok()
    })
}

fn tokenizer_with(config: &Value) -> Vec<u8> {
    [tiny::tokenizer_json().as_bytes(), &[0], config.to_string().as_bytes()].concat()
}

pub(crate) fn tokenizer_seeds() -> Vec<(String, Vec<u8>)> {
    vec![
        ("byte_level".into(), tiny::tokenizer_json().into_bytes()),
        (
            "configured".into(),
            tokenizer_with(&json!({
                "bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_bos_token": true,
                "added_tokens_decoder": {"1": {"content": "x", "special": true}},
                "chat_template": "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}",
            })),
        ),
    ]
}

/// A chat template, and behind a zero byte what a user says.
pub(crate) fn chat_template(data: &[u8]) -> bool {
    let (template, content) = halves(data);
    let content = String::from_utf8_lossy(content);
    let Ok(template) = std::str::from_utf8(template) else { return false };
    with_folder(|folder| {
        fs::write(folder.join("tokenizer.json"), tiny::tokenizer_json()).unwrap();
        let config = json!({ "chat_template": template, "bos_token": "<s>" });
        fs::write(folder.join("tokenizer_config.json"), config.to_string()).unwrap();
        let Ok(tokenizer) = Tokenizer::from_directory(folder) else { return false };
        let message = |role: &str, content: &str| Message { role: role.into(), content: content.into() };
        let messages = [message("system", "be kind"), message("user", &content), message("assistant", "yes")];
        let rendered = [&messages[..2], &messages[..]].map(|messages| {
            let text = tokenizer.chat(messages, true);
            text.is_ok_and(|text| tokenizer.encode_marked(&text, Bos::Model).is_ok())
        });
        rendered.contains(&true)
    })
}

pub(crate) fn chat_template_seeds() -> Vec<(String, Vec<u8>)> {
    let templates = [
        (
            "chatml",
            "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + \
             '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        ),
        (
            "turns",
            "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] | trim %}{% else %}\
             {{ raise_exception('no system') }}{% endif %}{% for m in messages[1:] %}{% if loop.index0 % 2 == 0 %}[I] {{ \
             m.content.strip().split('x')[-1] }} [/I]{% generation %}{{ m.content|tojson(indent=2) }}{% endgeneration %}{% endif \
             %}{% endfor %}{{ strftime_now('%d %b %Y') }}",
        ),
        (
            "macros",
            "{%- macro show(x, n=2) -%}{{ x|upper|replace('A', 'b')|default('none', true) }}{%- endmacro -%}{%- set ns = \
             namespace(n=0) -%}{%- for m in messages if m.content -%}{%- set ns.n = ns.n + 1 -%}{{ show(m.content) ~ ns.n }}{%- \
             if ns.n > 3 -%}{%- break -%}{%- endif -%}{%- endfor -%}{{ range(3)|list|join(',') }}",
        ),
    ];
    templates
        .iter()
        .map(|(name, text)| ((*name).to_owned(), [text.as_bytes(), b"\0hi <|im_end|> you"].concat()))
        .collect()
}

fn model() -> &'static ModelConfig {
    static MODEL: OnceLock<ModelConfig> = OnceLock::new();
    MODEL.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        tiny::write_directory(directory.path(), "llama", Number::F32);
        Checkpoint::open(directory.path()).unwrap().config
    })
}

/// An `adapter_config.json`, and behind a zero byte the header of its weights (zeros).
pub(crate) fn adapter(data: &[u8]) -> bool {
    let (config, header) = halves(data);
    with_folder(|folder| {
        fs::write(folder.join("adapter_config.json"), config).unwrap();
        let file = [&(header.len() as u64).to_le_bytes()[..], header].concat();
        write_padded(&folder.join("adapter_model.safetensors"), &file, data_length(header).unwrap_or(8));
        let _ = (peft::base_name(folder), peft::origin(folder));
        peft::read(folder, model()).is_ok()
    })
}

pub(crate) fn adapter_seeds() -> Vec<(String, Vec<u8>)> {
    let place = "base_model.model.model.layers.1.self_attn.q_proj";
    let header = json!({
        format!("{place}.lora_A.weight"): {"dtype": "F32", "shape": [2, tiny::HIDDEN], "data_offsets": [0, 8 * tiny::HIDDEN]},
        format!("{place}.lora_B.weight"):
            {"dtype": "F32", "shape": [tiny::HEADS * tiny::HEAD, 2], "data_offsets": [8 * tiny::HIDDEN, 16 * tiny::HIDDEN]},
    });
    let config = |targets: Value, patterns: Value, blocks: Value| {
        json!({
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "target_modules": targets,
            "rank_pattern": patterns, "layers_to_transform": blocks, "bias": "none", "lora_dropout": 0.05,
        })
    };
    let of = |(name, config): (&str, Value)| {
        (name.to_owned(), [config.to_string().as_bytes(), &[0], header.to_string().as_bytes()].concat())
    };
    [
        ("names", config(json!(["q_proj"]), json!({}), json!([1]))),
        (
            "patterns",
            config(
                json!(".*layers\\.1\\..*\\.(q|z)_proj"),
                json!({ "(q|v)_proj": 2, "^model\\.layers\\.1": 2 }),
                json!(null),
            ),
        ),
    ]
    .map(of)
    .into()
}

/// A router's configuration in either layout, and behind a zero byte the header of its weights (zeros).
pub(crate) fn router(data: &[u8]) -> bool {
    let (config, header) = halves(data);
    let names = ["a".to_owned(), "b".to_owned()];
    let layouts =
        [("router.json", "router.safetensors"), ("xlora_config.json", "xlora_classifier.safetensors")];
    let read = layouts.map(|(config_name, tensors)| {
        with_folder(|folder| {
            fs::write(folder.join(config_name), config).unwrap();
            let file = [&(header.len() as u64).to_le_bytes()[..], header].concat();
            write_padded(&folder.join(tensors), &file, data_length(header).unwrap_or(8));
            let _ = router_files::experts(folder);
            router_files::read(folder, &names, model(), None).is_ok()
        })
    });
    read.contains(&true)
}

pub(crate) fn router_seeds() -> Vec<(String, Vec<u8>)> {
    let own = json!({
        "experts": ["a", "b"], "hidden_size": tiny::HIDDEN, "base_hash": "", "router": {
            "input": "block", "shared": true, "granularity": "token", "top_k": 1, "temperature": 1.0,
        },
    });
    let bytes = 8 * tiny::HIDDEN;
    let weight =
        json!({"router.weight": {"dtype": "F32", "shape": [2, tiny::HIDDEN], "data_offsets": [0, bytes]}});
    let xlora = json!({
        "peft_type": "XLORA", "hidden_size": tiny::HIDDEN, "adapters": {"a": "x", "b": "y"}, "xlora_depth": 1,
        "softmax_temperature": 1.0, "top_k_lora": 1, "enable_softmax": true, "layerwise_scalings": false,
    });
    let inner = json!({
        "last.weight": {"dtype": "F32", "shape": [2, tiny::HIDDEN], "data_offsets": [0, bytes]},
        "last.bias": {"dtype": "F32", "shape": [2], "data_offsets": [bytes, bytes + 8]},
    });
    let of = |config: Value, header: Value| {
        [config.to_string().as_bytes(), &[0], header.to_string().as_bytes()].concat()
    };
    vec![("own".into(), of(own, weight)), ("xlora".into(), of(xlora, inner))]
}
