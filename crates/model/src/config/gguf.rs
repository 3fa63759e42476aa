//! The configuration from a GGUF file's metadata, as llama.cpp reads it.

use super::{
    Activation, Architecture, BlockConfig, ModelConfig, Rope, RopeScaling, checked_block_count,
    gguf_keys::{FILE, MODEL},
};
use crate::{
    Result, keys, notices,
    weights::{Gguf, Value},
};

/// Every `n`-th block of Gemma 2 sees everything, the others a window.
const GEMMA2_PATTERN: usize = 2;
/// As [`GEMMA2_PATTERN`], for Gemma 3.
const GEMMA3_PATTERN: usize = 6;
/// Gemma 2's window where the file does not say.
const GEMMA2_WINDOW: usize = 4096;
/// The rope base of Gemma 3's windowed blocks where the file does not say (older files do not).
const GEMMA3_LOCAL_BASE: f64 = 10_000.0;
/// The rope base where the file does not say.
const DEFAULT_BASE: f64 = 10_000.0;
/// Gemma 2 and 3 of 27 B scale their scores by the average width of a head, not by its own; the files do not say so.
const BLOCKS_OF_GEMMA2_27B: usize = 46;
/// See [`BLOCKS_OF_GEMMA2_27B`].
const BLOCKS_OF_GEMMA3_27B: usize = 62;

pub(super) fn read(file: &Gguf) -> Result<ModelConfig> {
    Metadata::new(file)?.config()
}

/// The metadata under one architecture's prefix.
struct Metadata<'a> {
    file: &'a Gguf,
    prefix: &'a str,
    architecture: Architecture,
}

impl<'a> Metadata<'a> {
    fn new(file: &'a Gguf) -> Result<Self> {
        let prefix = file
            .str("general.architecture")?
            .ok_or_else(|| file.invalid("has no metadata key general.architecture: not a model file"))?;
        let architecture = match prefix {
            // Mistral's files call themselves llama; the same code runs both, but for the window.
            "llama" if file.usize("llama.attention.sliding_window")?.is_some_and(|window| window > 0) => {
                Architecture::Mistral
            }
            "llama" => Architecture::Llama,
            "qwen2" => Architecture::Qwen2,
            "qwen3" => Architecture::Qwen3,
            "gemma" => Architecture::Gemma,
            "gemma2" => Architecture::Gemma2,
            "gemma3" => Architecture::Gemma3,
            other => {
                return Err(file.invalid(format!(
                    "architecture {other} is not supported ({})",
                    Architecture::SUPPORTED
                )));
            }
        };
        Ok(Self { file, prefix, architecture })
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }

    fn usize(&self, name: &str) -> Result<Option<usize>> {
        self.file.usize(&self.key(name))
    }

    fn f64(&self, name: &str) -> Result<Option<f64>> {
        self.file.f64(&self.key(name))
    }

    fn required<T>(&self, name: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.file.invalid(format!("has no metadata key {}", self.key(name))))
    }

    fn required_usize(&self, name: &str) -> Result<usize> {
        self.required(name, self.usize(name)?)
    }

    /// Every key under the prefix is known, and has a value that is implemented.
    fn check_keys(&self) -> Result<()> {
        let mut object = serde_json::Map::new();
        for (key, value) in self.file.metadata() {
            let name = key.strip_prefix(self.prefix).and_then(|rest| rest.strip_prefix('.'));
            if let Some(name) = name {
                object.insert(name.to_owned(), value.to_json());
            } else if keys::rule(&[FILE], key).is_some() {
                object.insert(key.clone(), value.to_json());
            }
        }
        let checked = keys::check(&[MODEL, FILE], &object, self.file.path())?;
        let unknown: Vec<&str> = checked
            .unknown
            .iter()
            .filter(|(_, value)| !keys::is_off(value))
            .map(|(name, _)| name.as_str())
            .collect();
        if !unknown.is_empty() {
            let what = format!(
                "metadata keys that this architecture does not have are ignored: {}",
                unknown.join(", ")
            );
            notices::about(self.file.path(), what);
        }
        Ok(())
    }

    fn config(&self) -> Result<ModelConfig> {
        let architecture = self.architecture;
        let gemma = architecture.is_gemma();
        self.check_keys()?;
        let hidden_size = self.required_usize("embedding_length")?;
        let num_heads = self.required_usize("attention.head_count")?;
        let head_dim = match self.usize("attention.key_length")? {
            Some(width) => width,
            None => hidden_size / num_heads.max(1),
        };
        for (name, what) in [
            ("rope.dimension_count", "a rotary embedding on part of"),
            ("attention.value_length", "values of another width than"),
        ] {
            if self.usize(name)?.is_some_and(|width| width != head_dim) {
                return Err(self.file.invalid(format!(
                    "has {what} the head ({} is not {head_dim}), which is not supported",
                    self.key(name)
                )));
            }
        }
        let has = |name: &str| self.file.tensor(name).is_some();
        let vocab_size = match self.file.tensor("token_embd.weight").map(|tensor| tensor.shape.as_slice()) {
            Some(&[rows, _]) => rows,
            _ => return Err(self.file.invalid("has no matrix token_embd.weight")),
        };
        let (blocks, rope_factors) = self.blocks(head_dim)?;
        let scale_width = match (architecture, blocks.len()) {
            (Architecture::Gemma2, BLOCKS_OF_GEMMA2_27B) | (Architecture::Gemma3, BLOCKS_OF_GEMMA3_27B) => {
                hidden_size / num_heads.max(1)
            }
            _ => head_dim,
        };
        let gemma2_cap = |cap: f64| (architecture == Architecture::Gemma2).then_some(cap);
        ModelConfig {
            architecture,
            vocab_size,
            hidden_size,
            intermediate_size: self.required_usize("feed_forward_length")?,
            num_heads,
            num_kv_heads: self.usize("attention.head_count_kv")?.unwrap_or(num_heads),
            head_dim,
            context_length: self.required_usize("context_length")?,
            norm_eps: self.required(
                "attention.layer_norm_rms_epsilon",
                self.f64("attention.layer_norm_rms_epsilon")?,
            )?,
            norm_plus_one: gemma,
            activation: if gemma { Activation::GeluTanh } else { Activation::Silu },
            attention_scale: (scale_width as f64).powf(-0.5),
            attention_softcap: gemma2_cap(self.f64("attn_logit_softcapping")?.unwrap_or(50.0)),
            // Other architectures have no cap, whatever a file says.
            logit_softcap: match architecture {
                Architecture::Gemma2 | Architecture::Gemma3 => {
                    self.f64("final_logit_softcapping")?.or(gemma2_cap(30.0))
                }
                _ => None,
            },
            embedding_scale: if gemma { (hidden_size as f64).sqrt() } else { 1.0 },
            qkv_bias: has("blk.0.attn_q.bias"),
            output_bias: has("blk.0.attn_output.bias"),
            qk_norm: matches!(architecture, Architecture::Qwen3 | Architecture::Gemma3),
            post_norms: matches!(architecture, Architecture::Gemma2 | Architecture::Gemma3),
            tied_embeddings: !has("output.weight"),
            rope_factors,
            blocks,
        }
        .validated(self.file.path())
    }

    /// The blocks' windows and rotary embeddings, and the divisors for [`RopeScaling::Factors`].
    fn blocks(&self, head_dim: usize) -> Result<(Vec<BlockConfig>, Vec<f32>)> {
        let count = checked_block_count(self.file.path(), self.required_usize("block_count")?)?;
        let factors = self.rope_factors(head_dim)?;
        let base = self.f64("rope.freq_base")?.unwrap_or(DEFAULT_BASE);
        let global = Rope { base, scaling: self.rope_scaling(factors.len())? };
        let local = match self.architecture {
            Architecture::Gemma3 => Rope {
                base: self.f64("rope.freq_base_swa")?.unwrap_or(GEMMA3_LOCAL_BASE),
                scaling: RopeScaling::None,
            },
            _ => global,
        };
        let window = match self.architecture {
            Architecture::Gemma2 => Some(self.usize("attention.sliding_window")?.unwrap_or(GEMMA2_WINDOW)),
            Architecture::Gemma3 => Some(self.required_usize("attention.sliding_window")?),
            Architecture::Mistral => self.usize("attention.sliding_window")?,
            _ => None,
        };
        let windowed = self.windowed_blocks(count)?;
        let blocks = windowed.into_iter().map(|windowed| match window {
            Some(_) if windowed => BlockConfig { window, rope: local },
            _ => BlockConfig { window: None, rope: global },
        });
        Ok((blocks.collect(), factors))
    }

    /// Which blocks have the window, where the architecture has one.
    fn windowed_blocks(&self, count: usize) -> Result<Vec<bool>> {
        let key = self.key("attention.sliding_window_pattern");
        let period = match (self.file.get(&key), self.architecture) {
            (Some(Value::Numbers(list)), _) if list.len() == count => {
                return Ok(list.iter().map(|&windowed| windowed != 0.0).collect());
            }
            (Some(Value::Numbers(list)), _) => {
                return Err(self
                    .file
                    .invalid(format!("{key} has {} entries for {count} blocks", list.len())));
            }
            (Some(_), _) => self.usize("attention.sliding_window_pattern")?.unwrap_or(0),
            (None, Architecture::Gemma2) => GEMMA2_PATTERN,
            (None, Architecture::Gemma3) => GEMMA3_PATTERN,
            (None, _) => 0,
        };
        Ok((1..=count).map(|block| period == 0 || block % period != 0).collect())
    }

    fn rope_scaling(&self, factor_count: usize) -> Result<RopeScaling> {
        if factor_count > 0 {
            return Ok(RopeScaling::Factors { len: factor_count });
        }
        let kind = self.file.str(&self.key("rope.scaling.type"))?;
        let factor = match self.f64("rope.scaling.factor")? {
            Some(factor) => Some(factor),
            None => self.f64("rope.scale_linear")?,
        };
        match (kind, factor) {
            (None | Some("linear"), Some(factor)) if factor != 1.0 && factor != 0.0 => {
                Ok(RopeScaling::Linear { factor })
            }
            (None | Some("linear" | "none"), _) => Ok(RopeScaling::None),
            (Some(other), _) => Err(self.file.invalid(format!(
                "rope scaling {other} is not supported (linear, and Llama 3's through rope_freqs.weight, are)"
            ))),
        }
    }

    /// Llama 3.1's scaling comes as a tensor of divisors.
    fn rope_factors(&self, head_dim: usize) -> Result<Vec<f32>> {
        // Files of other architectures have no such tensor: it is one that nothing reads there.
        let Some(tensor) = self
            .file
            .tensor("rope_freqs.weight")
            .filter(|_| matches!(self.architecture, Architecture::Llama | Architecture::Mistral))
        else {
            return Ok(Vec::new());
        };
        if tensor.shape != [head_dim / 2] || tensor.dtype != candle_core::quantized::GgmlDType::F32 {
            return Err(self.file.invalid(format!(
                "rope_freqs.weight is {:?} {:?}; it must be [{}] of F32",
                tensor.dtype,
                tensor.shape,
                head_dim / 2
            )));
        }
        let bytes = self.file.read(tensor)?;
        let factors: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
        match factors.iter().all(|factor| factor.is_finite() && *factor > 0.0) {
            true => Ok(factors),
            false => Err(self.file.invalid("rope_freqs.weight holds a divisor that is not positive")),
        }
    }
}
