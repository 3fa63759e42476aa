//! A base with an expert added into its weights, as a Hugging Face model directory.

use std::path::Path;

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{
    Error, Result,
    expert::{Expert, Module},
    files::{self, Number},
    weights::Checkpoint,
};

/// The files of a Hugging Face directory that belong to the tokenizer or to generation; copied as they are.
const COMPANIONS: [&str; 10] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "LICENSE",
];

/// Far above the size of any of them.
const MAX_COMPANION: u64 = 1 << 28;

/// How far [`write_merged`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Tensors written.
    pub done: usize,
    /// All tensors.
    pub total: usize,
}

/// Writes `base` with `expert` added into its weights, `W + s · B A`, to `directory`, which is created: `config.json`,
/// `model.safetensors` and the tokenizer's files. Quantised weights are written as the numbers that they stand for. One
/// tensor is in memory at a time.
///
/// # Errors
/// The expert was made for another base, Hugging Face's class cannot express the base's configuration, or a file cannot be
/// read or written.
pub fn write_merged(
    base: &Checkpoint,
    expert: Option<&Expert>,
    number: Number,
    directory: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<()> {
    if let Some(expert) = expert {
        expert.check_fits(&base.config)?;
    }
    let config = config_json(base, number)?;
    files::create_dir(directory)?;
    match base.directory() {
        Some(source) => copy_companions(source, directory)?,
        None => write_companions(base, directory)?,
    }
    files::write_json(&directory.join("config.json"), &config)?;
    let shapes = base.config.tensors();
    let total = shapes.len();
    let mut done = 0;
    // The weights come last: a directory without them is visibly unfinished.
    files::write_model(&directory.join("model.safetensors"), &shapes, number, &mut |name| {
        let tensor = merged_tensor(base, expert, name)?;
        done += 1;
        progress(Progress { done, total });
        Ok(tensor.flatten_all()?.to_vec1()?)
    })
}

/// One of the base's tensors, with the expert's part added where it adapts it.
fn merged_tensor(base: &Checkpoint, expert: Option<&Expert>, name: &str) -> Result<Tensor> {
    let weight = base.tensor(name)?;
    let factors = expert
        .zip(adapted(name))
        .and_then(|(expert, (block, module))| expert.blocks.get(block)?[module.index()].as_ref());
    let Some(f) = factors else { return Ok(weight) };
    let (n, k) = weight.dims2()?;
    let a = Tensor::from_slice(&f.a, (f.rank, k), &Device::Cpu)?;
    let b = Tensor::from_slice(&f.b, (n, f.rank), &Device::Cpu)?;
    Ok((weight + (b.matmul(&a)? * f64::from(f.scale))?)?)
}

/// The block and the module whose weight has this name.
fn adapted(name: &str) -> Option<(usize, Module)> {
    let (block, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let path = rest.strip_suffix(".weight")?;
    Some((block.parse().ok()?, Module::ALL.into_iter().find(|module| module.path() == path)?))
}

/// The base's own `config.json` where it has one for exactly these tensors, else one made from what is known.
fn config_json(base: &Checkpoint, number: Number) -> Result<Map<String, Value>> {
    let own = match base.directory() {
        Some(directory) => Some(files::read_json::<Map<String, Value>>(&directory.join("config.json"))?),
        None => None,
    };
    let mut config = match own {
        // A model with a vision part keeps what concerns the text inside; only the text is written.
        Some(own) if !own.contains_key("text_config") => own,
        _ => {
            let mut config = base.config.to_hugging_face()?;
            config.extend(token_ids(base));
            config
        }
    };
    let dtype = match number {
        Number::F32 => "float32",
        Number::Bf16 => "bfloat16",
    };
    // What is written has the head that was read, whatever the base's own file said of it.
    config.insert("tie_word_embeddings".into(), json!(base.config.tied_embeddings));
    config.remove("dtype");
    config.insert("torch_dtype".into(), json!(dtype));
    Ok(config)
}

/// `bos_token_id` and `eos_token_id`, as far as there are such tokens.
fn token_ids(base: &Checkpoint) -> Map<String, Value> {
    let tokenizer = &base.tokenizer;
    let mut ids = Map::new();
    if let Some(bos) = tokenizer.start_token() {
        ids.insert("bos_token_id".into(), json!(bos));
    }
    match tokenizer.eos() {
        [] => {}
        [eos] => drop(ids.insert("eos_token_id".into(), json!(eos))),
        several => drop(ids.insert("eos_token_id".into(), json!(several))),
    }
    ids
}

fn copy_companions(source: &Path, directory: &Path) -> Result<()> {
    for name in COMPANIONS {
        let path = source.join(name);
        if mixse_files::is_there(&path) {
            let bytes = mixse_files::read(&path, MAX_COMPANION).map_err(|e| Error::io(&path, e))?;
            files::write_atomically(&directory.join(name), &bytes)?;
        }
    }
    Ok(())
}

fn write_companions(base: &Checkpoint, directory: &Path) -> Result<()> {
    base.tokenizer.write(directory, base.config.context_length)?;
    files::write_json(&directory.join("generation_config.json"), &token_ids(base))
}
