//! The configuration from a Hugging Face `config.json`.
//!
//! Keys that are left out take the defaults of the configuration classes of transformers 5.23 (`configuration_*.py`),
//! because published files leave them out. Both the old spelling of the rotary embedding (`rope_theta`, `rope_scaling`,
//! `rope_local_base_freq`) and that of transformers 5 (`rope_parameters`, one entry a layer type where they differ)
//! are read.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{
    Activation, Architecture, BlockConfig, ModelConfig, Rope, RopeScaling, checked_block_count,
    hf_keys::{self, ROPE},
};
use crate::{
    Error, Result,
    keys::{self, Rule},
    notices,
};

/// Far above any real `config.json`.
const MAX_LEN: u64 = 1 << 24;
const WINDOWED: &str = "sliding_attention";
const FULL: &str = "full_attention";

/// What a `config.json` says.
pub(super) struct Read {
    pub(super) config: ModelConfig,
    /// The file describes a model with a vision part, of which the text model is read.
    pub(super) has_vision: bool,
}

pub(super) fn read(path: &Path) -> Result<Read> {
    let text = crate::weights::read_text(path, MAX_LEN)?;
    let parsed: Value = serde_json::from_str(&text).map_err(|e| Error::invalid(path, e.to_string()))?;
    let Value::Object(mut object) = parsed else {
        return Err(Error::invalid(path, "is not a JSON object"));
    };
    // Gemma 3 with a vision part keeps the language model's configuration inside.
    let mut has_vision = false;
    if let (Some("gemma3"), Some(Value::Object(text))) =
        (object.get("model_type").and_then(Value::as_str), object.get("text_config"))
    {
        let mut text = text.clone();
        let outer = keys::check(&[hf_keys::VISION, hf_keys::COMMON], &object, path)?;
        say(path, outer);
        text.insert("model_type".to_owned(), json!("gemma3_text"));
        // The whole model's head is what is tied or not.
        text.insert(
            "tie_word_embeddings".to_owned(),
            object.get("tie_word_embeddings").cloned().unwrap_or(json!(true)),
        );
        object = text;
        has_vision = true;
    }
    Ok(Read { config: Config::new(path, object)?.model_config()?, has_vision })
}

/// Keys that transformers' classes do not read are not read here either, but somebody put them there.
fn say(path: &Path, checked: keys::Checked) {
    for note in checked.notes {
        notices::about(path, note);
    }
    let unknown: Vec<String> = checked
        .unknown
        .iter()
        .filter(|(_, value)| !keys::is_off(value))
        .map(|(name, value)| format!("{name} = {}", keys::short(value)))
        .collect();
    if !unknown.is_empty() {
        notices::about(
            path,
            format!("keys that this architecture does not have are ignored: {}", unknown.join(", ")),
        );
    }
}

/// `config.json` with the defaults of its class.
struct Config<'a> {
    path: &'a Path,
    architecture: Architecture,
    object: Map<String, Value>,
    defaults: Value,
}

impl<'a> Config<'a> {
    fn new(path: &'a Path, object: Map<String, Value>) -> Result<Self> {
        let name = object
            .get("model_type")
            .and_then(Value::as_str)
            .ok_or_else(|| Error::invalid(path, "has no model_type: not a model's configuration"))?;
        let architecture = match name {
            "llama" => Architecture::Llama,
            "mistral" => Architecture::Mistral,
            "qwen2" => Architecture::Qwen2,
            "qwen3" => Architecture::Qwen3,
            "gemma" => Architecture::Gemma,
            "gemma2" => Architecture::Gemma2,
            "gemma3_text" => Architecture::Gemma3,
            other => {
                return Err(Error::invalid(
                    path,
                    format!("model_type {other} is not supported ({})", Architecture::SUPPORTED),
                ));
            }
        };
        let lists: keys::Lists<'_> = &[hf_keys::of(architecture), hf_keys::COMMON];
        say(path, keys::check(lists, &object, path)?);
        // A key of another architecture must not be read by accident.
        let is_used =
            |name: &str| matches!(keys::rule(lists, name), Some(key) if matches!(key.rule, Rule::Used));
        let object = object.into_iter().filter(|(name, _)| is_used(name)).collect();
        Ok(Self { path, architecture, object, defaults: class_defaults(architecture) })
    }

    /// The value of a key or its class default. A written `null` is no value, whatever the default.
    fn get(&self, key: &str) -> Option<&Value> {
        self.object.get(key).or_else(|| self.defaults.get(key)).filter(|value| !value.is_null())
    }

    fn typed<'b, T>(
        &'b self,
        key: &str,
        expected: &str,
        convert: impl FnOnce(&'b Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        convert(value)
            .map(Some)
            .ok_or_else(|| Error::invalid(self.path, format!("{key} is {value}; it should be {expected}")))
    }

    fn usize(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a whole number", |value| value.as_u64().and_then(|n| usize::try_from(n).ok()))
    }

    fn f64(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", Value::as_f64)
    }

    fn bool(&self, key: &str) -> Result<bool> {
        Ok(self.typed(key, "true or false", Value::as_bool)?.unwrap_or(false))
    }

    fn required<T>(&self, key: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| Error::invalid(self.path, format!("has no key {key}")))
    }

    fn required_usize(&self, key: &str) -> Result<usize> {
        self.required(key, self.usize(key)?)
    }

    fn model_config(&self) -> Result<ModelConfig> {
        use Architecture::{Gemma2, Gemma3, Qwen2, Qwen3};
        let architecture = self.architecture;
        let gemma = architecture.is_gemma();
        let hidden_size = self.required_usize("hidden_size")?;
        let num_heads = self.required_usize("num_attention_heads")?;
        let head_dim = self.usize("head_dim")?.unwrap_or(hidden_size / num_heads.max(1));
        let attention_bias = self.bool("attention_bias")?;
        let scale_width = match architecture {
            Gemma2 | Gemma3 => self.required("query_pre_attn_scalar", self.f64("query_pre_attn_scalar")?)?,
            _ => head_dim as f64,
        };
        ModelConfig {
            architecture,
            vocab_size: self.required_usize("vocab_size")?,
            hidden_size,
            intermediate_size: self.required_usize("intermediate_size")?,
            num_heads,
            num_kv_heads: self.usize("num_key_value_heads")?.unwrap_or(num_heads),
            head_dim,
            context_length: self.required_usize("max_position_embeddings")?,
            norm_eps: self.required("rms_norm_eps", self.f64("rms_norm_eps")?)?,
            norm_plus_one: gemma,
            activation: self.activation()?,
            attention_scale: scale_width.powf(-0.5),
            attention_softcap: self.f64("attn_logit_softcapping")?,
            logit_softcap: self.f64("final_logit_softcapping")?,
            embedding_scale: if gemma { (hidden_size as f64).sqrt() } else { 1.0 },
            qkv_bias: architecture == Qwen2 || attention_bias,
            output_bias: attention_bias,
            qk_norm: matches!(architecture, Qwen3 | Gemma3),
            post_norms: matches!(architecture, Gemma2 | Gemma3),
            tied_embeddings: self.bool("tie_word_embeddings")?,
            rope_factors: Vec::new(),
            blocks: self.blocks()?,
        }
        .validated(self.path)
    }

    fn activation(&self) -> Result<Activation> {
        let key = match self.architecture {
            Architecture::Gemma2 | Architecture::Gemma3 => "hidden_activation",
            _ => "hidden_act",
        };
        let name = self.typed(key, "a name", Value::as_str)?;
        match (self.architecture.is_gemma(), self.required(key, name)?) {
            (false, "silu" | "swish") => Ok(Activation::Silu),
            (true, "gelu_pytorch_tanh") => Ok(Activation::GeluTanh),
            // Gemma 1 was published with the wrong name of what it computes.
            (true, "gelu") if self.architecture == Architecture::Gemma => Ok(Activation::GeluTanh),
            (_, other) => Err(Error::invalid(self.path, format!("{key} {other} is not supported"))),
        }
    }

    fn blocks(&self) -> Result<Vec<BlockConfig>> {
        let count = checked_block_count(self.path, self.required_usize("num_hidden_layers")?)?;
        let windowed = self.windowed_blocks(count)?;
        let window = self.usize("sliding_window")?;
        let full = BlockConfig { window: None, rope: self.rope(FULL)? };
        let local = BlockConfig { window, rope: self.rope(WINDOWED)? };
        Ok(windowed.into_iter().map(|windowed| if windowed { local } else { full }).collect())
    }

    /// Which blocks see a window only.
    fn windowed_blocks(&self, count: usize) -> Result<Vec<bool>> {
        use Architecture::{Gemma, Gemma2, Gemma3, Llama, Mistral, Qwen2, Qwen3};
        let qwen = matches!(self.architecture, Qwen2 | Qwen3);
        let has_window =
            self.usize("sliding_window")?.is_some() && (!qwen || self.bool("use_sliding_window")?);
        match self.architecture {
            Llama | Gemma => return Ok(vec![false; count]),
            Mistral => return Ok(vec![has_window; count]),
            Qwen2 | Qwen3 | Gemma2 | Gemma3 => {}
        }
        if let Some(list) = self.typed("layer_types", "a list", Value::as_array)? {
            let windowed = self.layer_types(list, count)?;
            if !has_window && windowed.contains(&true) {
                return Err(Error::invalid(
                    self.path,
                    "layer_types asks for sliding_attention, but no sliding_window is in use",
                ));
            }
            return Ok(windowed);
        }
        if !has_window && !qwen {
            return Err(Error::invalid(self.path, "sliding_window is null, but some blocks have one"));
        }
        if !has_window {
            return Ok(vec![false; count]);
        }
        if qwen {
            let first = self.required_usize("max_window_layers")?;
            return Ok((0..count).map(|block| block >= first).collect());
        }
        match self.required_usize("sliding_window_pattern")? {
            0 => Err(Error::invalid(self.path, "sliding_window_pattern is 0")),
            period => Ok((1..=count).map(|block| block % period != 0).collect()),
        }
    }

    fn layer_types(&self, list: &[Value], count: usize) -> Result<Vec<bool>> {
        if list.len() != count {
            let what = format!("layer_types has {} entries for {count} layers", list.len());
            return Err(Error::invalid(self.path, what));
        }
        let kind = |value: &Value| match value.as_str() {
            Some(WINDOWED) => Ok(true),
            Some(FULL) => Ok(false),
            _ => Err(Error::invalid(self.path, format!("layer type {value} is not supported"))),
        };
        list.iter().map(kind).collect()
    }

    /// The rotary embedding of the blocks of one layer type.
    fn rope(&self, layer_type: &str) -> Result<Rope> {
        let gemma3 = self.architecture == Architecture::Gemma3;
        let parameters = self.rope_parameters(layer_type)?;
        let base_key = if gemma3 && layer_type == WINDOWED { "rope_local_base_freq" } else { "rope_theta" };
        let base = match parameters.get("rope_theta").filter(|value| !value.is_null()) {
            Some(value) => self.number("rope_theta", value)?,
            None => self.required(base_key, self.f64(base_key)?)?,
        };
        Ok(Rope { base, scaling: self.rope_scaling(&parameters)? })
    }

    /// The parameters of one layer type, as transformers joins the old and the new spelling.
    fn rope_parameters(&self, layer_type: &str) -> Result<Map<String, Value>> {
        let object = |key: &str| -> Result<Option<&Map<String, Value>>> {
            Ok(self.typed(key, "an object", Value::as_object)?.filter(|object| !object.is_empty()))
        };
        let (given, old) = (object("rope_parameters")?, object("rope_scaling")?);
        let by_layer_type =
            given.is_some_and(|given| given.contains_key(FULL) || given.contains_key(WINDOWED));
        let parameters = if self.architecture == Architecture::Gemma3 {
            if given.is_some() && !by_layer_type {
                return Err(Error::invalid(
                    self.path,
                    format!(
                        "rope_parameters must have an entry {FULL} and one {WINDOWED} for this architecture"
                    ),
                ));
            }
            let mut parameters = match given.and_then(|given| given.get(layer_type)) {
                None | Some(Value::Null) => Map::new(),
                Some(Value::Object(parameters)) => parameters.clone(),
                Some(other) => {
                    let what = format!(
                        "rope_parameters: {layer_type} is {}; it should be an object",
                        keys::short(other)
                    );
                    return Err(Error::invalid(self.path, what));
                }
            };
            // The old form is about the blocks without a window: the others are never stretched by it.
            if let (true, Some(old)) = (layer_type == FULL, old) {
                // transformers would take no notice of the kind then.
                if old.contains_key("type") && !old.contains_key("rope_type") {
                    return Err(Error::invalid(
                        self.path,
                        "rope_scaling has a type, which should be called rope_type",
                    ));
                }
                parameters.extend(old.clone());
            }
            parameters
        } else {
            if by_layer_type {
                let what = "rope_parameters differ by layer type, which this architecture does not have";
                return Err(Error::invalid(self.path, what));
            }
            old.or(given).cloned().unwrap_or_default()
        };
        say(self.path, keys::check(&[ROPE], &parameters, self.path)?);
        Ok(parameters)
    }

    fn rope_scaling(&self, parameters: &Map<String, Value>) -> Result<RopeScaling> {
        let get = |key: &str| parameters.get(key).filter(|value| !value.is_null());
        let number = |key: &str| match get(key) {
            Some(value) => self.number(key, value),
            None => Err(Error::invalid(self.path, format!("the rope parameters have no {key}"))),
        };
        let kind = get("rope_type").or(get("type")).map_or(Some("default"), Value::as_str);
        match kind {
            Some("default") => Ok(RopeScaling::None),
            Some("linear") => Ok(RopeScaling::Linear { factor: number("factor")? }),
            Some("llama3") => Ok(RopeScaling::Llama3 {
                factor: number("factor")?,
                low_freq_factor: number("low_freq_factor")?,
                high_freq_factor: number("high_freq_factor")?,
                // transformers gives the key outside the parameters precedence.
                original_context: match (
                    self.usize("original_max_position_embeddings")?,
                    get("original_max_position_embeddings"),
                ) {
                    (Some(outside), _) => outside,
                    (None, Some(value)) => self.number("original_max_position_embeddings", value)? as usize,
                    (None, None) => self.required_usize("max_position_embeddings")?,
                },
            }),
            other => Err(Error::invalid(
                self.path,
                format!(
                    "rope type {} is not supported (default, linear and llama3 are)",
                    other.unwrap_or("?")
                ),
            )),
        }
    }

    fn number(&self, key: &str, value: &Value) -> Result<f64> {
        value
            .as_f64()
            .ok_or_else(|| Error::invalid(self.path, format!("{key} is {value}; it should be a number")))
    }
}

/// What transformers' configuration class fills in for a key that is not there.
fn class_defaults(architecture: Architecture) -> Value {
    match architecture {
        Architecture::Llama => json!({
            "vocab_size": 32000, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "hidden_act": "silu",
            "num_attention_heads": 32, "rope_theta": 1e4, "tie_word_embeddings": false,
        }),
        Architecture::Mistral => json!({
            "vocab_size": 32000, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-6, "hidden_act": "silu",
            "num_attention_heads": 32, "num_key_value_heads": 8, "rope_theta": 1e4, "sliding_window": 4096,
            "tie_word_embeddings": false,
        }),
        Architecture::Qwen2 => json!({
            "vocab_size": 151_936, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "hidden_act": "silu",
            "num_attention_heads": 32, "num_key_value_heads": 32, "rope_theta": 1e4, "sliding_window": 4096,
            "max_window_layers": 28, "tie_word_embeddings": false,
        }),
        Architecture::Qwen3 => json!({
            "vocab_size": 151_936, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "hidden_act": "silu",
            "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128, "rope_theta": 1e4,
            "sliding_window": 4096, "max_window_layers": 28, "tie_word_embeddings": false,
        }),
        Architecture::Gemma => json!({
            "vocab_size": 256_000, "max_position_embeddings": 8192, "rms_norm_eps": 1e-6,
            "hidden_act": "gelu_pytorch_tanh", "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256,
            "rope_theta": 1e4, "tie_word_embeddings": true,
        }),
        Architecture::Gemma2 => json!({
            "vocab_size": 256_000, "max_position_embeddings": 8192, "rms_norm_eps": 1e-6,
            "hidden_activation": "gelu_pytorch_tanh", "num_attention_heads": 8, "num_key_value_heads": 4,
            "head_dim": 256, "rope_theta": 1e4, "query_pre_attn_scalar": 256, "sliding_window": 4096,
            "sliding_window_pattern": 2, "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0, "tie_word_embeddings": true,
        }),
        Architecture::Gemma3 => json!({
            "vocab_size": 262_208, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-6,
            "hidden_activation": "gelu_pytorch_tanh", "num_attention_heads": 8, "num_key_value_heads": 4,
            "head_dim": 256, "rope_theta": 1e6, "rope_local_base_freq": 1e4, "query_pre_attn_scalar": 256,
            "sliding_window": 4096, "sliding_window_pattern": 6, "tie_word_embeddings": true,
        }),
    }
}
