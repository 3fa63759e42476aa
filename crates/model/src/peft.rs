//! Experts as PEFT LoRA directories: `adapter_config.json` and `adapter_model.safetensors`, written and read.
//!
//! PEFT itself loads what is written here, and adapters trained elsewhere are read as long as they are plain LoRA on the
//! linear modules of the blocks. What PEFT has no field for (which base the adapter belongs to) stands in `mixse.json` beside.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    Error, Result,
    config::ModelConfig,
    expert::{Expert, Factors, LoraConfig, Module},
    files::{self, NamedTensor, StoredTensor},
    weights::Checkpoint,
};

/// PEFT's name of the configuration file.
pub const CONFIG: &str = "adapter_config.json";
/// PEFT's name of the tensor file.
pub const TENSORS: &str = "adapter_model.safetensors";
/// Our own file beside them.
pub const ORIGIN: &str = "mixse.json";

/// Where an adapter comes from; PEFT ignores the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The expert's name, usually its domain.
    pub name: String,
    /// SHA-256 of the base model's files.
    pub base_hash: String,
}

/// The part of `adapter_config.json` that decides what an adapter does.
#[derive(Debug, Deserialize)]
struct AdapterConfig {
    peft_type: String,
    r: usize,
    lora_alpha: f64,
    target_modules: Option<Targets>,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    lora_dropout: f64,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    fan_in_fan_out: bool,
    #[serde(default)]
    bias: Option<String>,
    #[serde(default)]
    modules_to_save: Option<Value>,
    #[serde(default)]
    rank_pattern: BTreeMap<String, usize>,
    #[serde(default)]
    alpha_pattern: BTreeMap<String, f64>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Targets {
    /// Suffixes or full paths of modules.
    Names(Vec<String>),
    /// `all-linear`, one name, or a regular expression.
    Text(String),
}

/// Writes an expert to `dir`, which is created. `base` is recorded as the base model's name.
pub fn write(expert: &Expert, model: &ModelConfig, base: &str, origin: &Origin, dir: &Path) -> Result<()> {
    expert.check_fits(model)?;
    files::create_dir(dir)?;
    let mut tensors = Vec::new();
    let mut present: Vec<(usize, Module, &Factors)> = Vec::new();
    for (block, modules) in expert.blocks.iter().enumerate() {
        for module in Module::ALL {
            let Some(f) = &modules[module.index()] else { continue };
            let (k, n) = module.shape(model);
            let name = |factor: &str| {
                format!("base_model.model.{}.lora_{factor}.weight", module_path(block, module))
            };
            tensors.push(NamedTensor { name: name("A"), shape: vec![f.rank, k], values: &f.a });
            tensors.push(NamedTensor { name: name("B"), shape: vec![n, f.rank], values: &f.b });
            present.push((block, module, f));
        }
    }
    files::write_json(&dir.join(ORIGIN), origin)?;
    files::write_json(&dir.join(CONFIG), &config_json(expert, base, &present))?;
    // The tensors come last: a directory without them is visibly unfinished.
    files::write_tensors(&dir.join(TENSORS), &tensors)
}

fn module_path(block: usize, module: Module) -> String {
    format!("model.layers.{block}.{}", module.path())
}

fn config_json(expert: &Expert, base: &str, present: &[(usize, Module, &Factors)]) -> Value {
    let blocks = expert.blocks.len();
    let blocks_with = |module: Module| present.iter().filter(|p| p.1 == module).count();
    let everywhere = Module::ALL.iter().all(|&m| [0, blocks].contains(&blocks_with(m)));
    let targets: BTreeSet<String> = if everywhere {
        present.iter().map(|p| p.1.name().to_owned()).collect()
    } else {
        present.iter().map(|p| module_path(p.0, p.1)).collect()
    };
    let config = &expert.config;
    let alpha_of = |f: &Factors| {
        let rank = f.rank as f64;
        // Rounded to the six digits that an f32 scale carries, so that 16 is written as 16.
        let alpha = f64::from(f.scale) * if config.rslora { rank.sqrt() } else { rank };
        (alpha * 1e6).round() / 1e6
    };
    let mut ranks = BTreeMap::new();
    let mut alphas = BTreeMap::new();
    for (block, module, f) in present {
        if f.rank != config.rank {
            ranks.insert(module_path(*block, *module), f.rank);
        }
        if (alpha_of(f) - config.alpha).abs() > 1e-5 {
            alphas.insert(module_path(*block, *module), alpha_of(f));
        }
    }
    serde_json::json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": number(config.alpha),
        "lora_dropout": config.dropout,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "modules_to_save": null,
        "target_modules": targets,
        "use_rslora": config.rslora,
        "use_dora": false,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
    })
}

/// An integer where the value is one, as PEFT writes alpha.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 { Value::from(value as i64) } else { Value::from(value) }
}

/// Reads the adapter in `dir` for `model`. Its name is the one it was written with, or the directory's.
///
/// # Errors
/// Anything but plain LoRA on the blocks' linear modules; shapes that do not fit the model.
pub fn read(dir: &Path, model: &ModelConfig) -> Result<Expert> {
    let config_path = dir.join(CONFIG);
    let config: AdapterConfig = files::read_json(&config_path)?;
    refuse_what_is_not_lora(&config, &config_path)?;
    let tensors_path = dir.join(TENSORS);
    let mut blocks: Vec<[Option<Factors>; 7]> = vec![[const { None }; 7]; model.blocks.len()];
    let mut pairs: BTreeMap<(usize, Module), [Option<Matrix>; 2]> = BTreeMap::new();
    for StoredTensor { name, shape, values } in files::read_tensors(&tensors_path)? {
        let Some((block, module, factor)) = parse_name(&name) else {
            return Err(Error::invalid(
                &tensors_path,
                format!(
                    "tensor `{name}` is not a LoRA factor of a linear module of a block; only those are supported"
                ),
            ));
        };
        if block >= blocks.len() {
            return Err(Error::invalid(
                &tensors_path,
                format!(
                    "tensor `{name}` belongs to block {block}, but the model has {}: it was made for another base",
                    blocks.len()
                ),
            ));
        }
        let [rows, columns] = shape[..] else {
            return Err(Error::invalid(
                &tensors_path,
                format!("tensor `{name}` has shape {shape:?} instead of two sizes"),
            ));
        };
        pairs.entry((block, module)).or_default()[factor] = Some(Matrix { rows, columns, values });
    }
    if pairs.is_empty() {
        return Err(Error::invalid(&tensors_path, "holds no LoRA factors"));
    }
    for ((block, module), pair) in pairs {
        let path = module_path(block, module);
        let [Some(a), Some(b)] = pair else {
            return Err(Error::invalid(&tensors_path, format!("`{path}` has only one of lora_A and lora_B")));
        };
        let (k, n) = module.shape(model);
        if a.columns != k || b.rows != n || a.rows != b.columns || a.rows == 0 {
            return Err(Error::invalid(
                &tensors_path,
                format!(
                    "`{path}`: lora_A is {}x{} and lora_B {}x{}, but the model's module has {k} inputs and {n} outputs: \
                     the adapter was made for another base",
                    a.rows, a.columns, b.rows, b.columns
                ),
            ));
        }
        let rank = pattern(&config.rank_pattern, &path).unwrap_or(config.r);
        if rank != a.rows {
            return Err(Error::invalid(
                &tensors_path,
                format!("`{path}` has rank {}, but {} says {rank}", a.rows, config_path.display()),
            ));
        }
        let alpha = pattern(&config.alpha_pattern, &path).unwrap_or(config.lora_alpha);
        let scale = LoraConfig { rank, alpha, rslora: config.use_rslora, ..LoraConfig::default() }.scale();
        blocks[block][module.index()] = Some(Factors { rank, scale, a: a.values, b: b.values });
    }
    let targets: Vec<Module> =
        Module::ALL.into_iter().filter(|m| blocks.iter().any(|b| b[m.index()].is_some())).collect();
    check_targets(&config, &blocks, &config_path)?;
    let expert = Expert {
        name: name_of(dir)?,
        config: LoraConfig {
            rank: config.r,
            alpha: config.lora_alpha,
            targets,
            rslora: config.use_rslora,
            dropout: config.lora_dropout,
        },
        blocks,
    };
    expert.check_fits(model)?;
    Ok(expert)
}

/// Where the adapter in `dir` comes from, when it says so.
pub fn origin(dir: &Path) -> Result<Option<Origin>> {
    let path = dir.join(ORIGIN);
    if path.exists() { files::read_json(&path).map(Some) } else { Ok(None) }
}

/// The name or path of the base model that the adapter in `dir` records, if it does.
pub fn base_name(dir: &Path) -> Result<Option<String>> {
    #[derive(Deserialize)]
    struct Base {
        base_model_name_or_path: Option<String>,
    }
    Ok(files::read_json::<Base>(&dir.join(CONFIG))?.base_model_name_or_path.filter(|name| !name.is_empty()))
}

/// [`read`] for a base whose files are at hand.
///
/// # Errors
/// As [`read`], and when the adapter says that it was trained on another base.
pub fn read_for(dir: &Path, base: &Checkpoint) -> Result<Expert> {
    // The base's files are only read through where there is something to compare with.
    if let Some(Origin { base_hash, .. }) = origin(dir)? {
        let this = base.hash()?;
        if base_hash != this {
            return Err(Error::invalid(
                dir.join(ORIGIN),
                format!(
                    "the adapter belongs to a base with hash {base_hash}, this base has {this}: use the base it was trained on"
                ),
            ));
        }
    }
    read(dir, &base.config)
}

fn name_of(dir: &Path) -> Result<String> {
    Ok(match origin(dir)? {
        Some(origin) => origin.name,
        None => dir.file_name().map_or_else(|| "expert".into(), |n| n.to_string_lossy().into_owned()),
    })
}

struct Matrix {
    rows: usize,
    columns: usize,
    values: Vec<f32>,
}

fn refuse_what_is_not_lora(config: &AdapterConfig, path: &Path) -> Result<()> {
    let refuse = |what: String| Err(Error::invalid(path, what));
    if config.peft_type != "LORA" {
        return refuse(format!("peft_type is `{}`; only LORA adapters can be experts", config.peft_type));
    }
    if config.use_dora {
        return refuse("use_dora is true; DoRA adapters are not supported".into());
    }
    if config.fan_in_fan_out {
        return refuse("fan_in_fan_out is true; transposed weights are not supported".into());
    }
    if config.r == 0 || !config.lora_alpha.is_finite() {
        return refuse(format!("r = {} and lora_alpha = {} make no adapter", config.r, config.lora_alpha));
    }
    match config.bias.as_deref() {
        None | Some("none") => {}
        Some(other) => {
            return refuse(format!("bias is `{other}`; only adapters without trained biases are supported"));
        }
    }
    match &config.modules_to_save {
        None | Some(Value::Null) => Ok(()),
        Some(Value::Array(list)) if list.is_empty() => Ok(()),
        Some(other) => refuse(format!("modules_to_save is {other}; fully trained modules are not supported")),
    }
}

/// A named target of the configuration for which the file has no factors means that the file is not whole.
fn check_targets(config: &AdapterConfig, blocks: &[[Option<Factors>; 7]], path: &Path) -> Result<()> {
    let names = match &config.target_modules {
        Some(Targets::Names(names)) => names.clone(),
        Some(Targets::Text(text)) if Module::ALL.iter().any(|m| m.name() == text) => vec![text.clone()],
        // `all-linear`, a regular expression or nothing: the tensors alone decide.
        Some(Targets::Text(_)) | None => return Ok(()),
    };
    for name in names {
        let found = Module::ALL.iter().any(|&module| {
            blocks.iter().enumerate().any(|(block, modules)| {
                modules[module.index()].is_some() && ends_with_name(&module_path(block, module), &name)
            })
        });
        if !found {
            return Err(Error::invalid(
                path,
                format!(
                    "target module `{name}` has no factors in {TENSORS} (or is not a linear module of a block)"
                ),
            ));
        }
    }
    Ok(())
}

/// `path` is `name` or ends with `.name`; PEFT's rule for target modules and for the keys of patterns.
fn ends_with_name(path: &str, name: &str) -> bool {
    let name = name.strip_prefix("base_model.model.").unwrap_or(name);
    path == name || path.strip_suffix(name).is_some_and(|rest| rest.ends_with('.'))
}

fn pattern<T: Copy>(patterns: &BTreeMap<String, T>, path: &str) -> Option<T> {
    patterns.iter().find(|(key, _)| ends_with_name(path, key)).map(|(_, value)| *value)
}

/// Block, module and factor (0: A, 1: B) of a tensor's name. Names with an adapter's name inside
/// (`lora_A.default.weight`) are read as well.
fn parse_name(name: &str) -> Option<(usize, Module, usize)> {
    let (_, rest) = name.split_once("layers.")?;
    let (block, rest) = rest.split_once('.')?;
    let block = block.parse().ok()?;
    Module::ALL.into_iter().find_map(|module| {
        let tail = rest.strip_prefix(module.path())?;
        let factor = match tail {
            _ if tail.starts_with(".lora_A.") => 0,
            _ if tail.starts_with(".lora_B.") => 1,
            _ => return None,
        };
        tail.ends_with(".weight").then_some((block, module, factor))
    })
}
