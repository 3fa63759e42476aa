//! Experts as PEFT LoRA directories: `adapter_config.json` and `adapter_model.safetensors`, written and read.
//!
//! PEFT itself loads what is written here, and adapters trained elsewhere are read as long as they are plain LoRA on the
//! linear modules of the blocks. What PEFT has no field for (which base the adapter belongs to) stands in `mixse.json` beside.

mod config;
mod names;
mod patterns;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use config::AdapterConfig;
pub(crate) use config::documentation;
use names::{Named, parse_name};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    Error, Result,
    config::ModelConfig,
    expert::{Expert, Factors, LoraConfig, Module},
    files::{self, NamedTensor, StoredTensor},
    notices,
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

/// Writes an expert to `dir`, which is created. `base` is recorded as the base model's name.
pub fn write(expert: &Expert, model: &ModelConfig, base: &str, origin: &Origin, dir: &Path) -> Result<()> {
    expert.check_fits(model)?;
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
    files::check_tensors(&dir.join(TENSORS), &tensors)?;
    files::create_dir(dir)?;
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
    let mut ranks = BTreeMap::new();
    let mut alphas = BTreeMap::new();
    for (block, module, f) in present {
        if f.rank != config.rank {
            ranks.insert(module_path(*block, *module), f.rank);
        }
        if scale_of(f, config.alpha, config.rslora) != f.scale {
            alphas.insert(module_path(*block, *module), alpha_of(f, config.rslora));
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

/// The scale that an alpha gives to factors.
fn scale_of(f: &Factors, alpha: f64, rslora: bool) -> f32 {
    LoraConfig { rank: f.rank, alpha, rslora, ..LoraConfig::default() }.scale()
}

/// The alpha that gives the scale of factors: with few digits where that is the same, so that 16 is written as 16.
fn alpha_of(f: &Factors, rslora: bool) -> f64 {
    let rank = f.rank as f64;
    let alpha = f64::from(f.scale) * if rslora { rank.sqrt() } else { rank };
    let short = (alpha * 1e6).round() / 1e6;
    if scale_of(f, short, rslora) == f.scale { short } else { alpha }
}

/// An integer where the value is one, as PEFT writes alpha.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 { Value::from(value as i64) } else { Value::from(value) }
}

/// Reads the adapter in `dir` for `model`. Its name is the one it was written with, or the directory's.
///
/// # Errors
/// Anything but plain LoRA on the blocks' linear modules; a key of the configuration with a value that is not implemented;
/// tensors that PEFT would not load, or that are missing; shapes that do not fit the model; numbers that are not finite.
pub fn read(dir: &Path, model: &ModelConfig) -> Result<Expert> {
    let config = AdapterConfig::read(&dir.join(CONFIG))?;
    let tensors_path = tensors_path(dir)?;
    let fail = |what: String| Err(Error::invalid(&tensors_path, what));
    let mut pairs: BTreeMap<(usize, Module), Pair> = BTreeMap::new();
    let mut other_towers = Vec::new();
    for StoredTensor { name, shape, values } in files::read_tensors(&tensors_path)? {
        let found = match parse_name(&name) {
            Named::Factor(found) => found,
            Named::OtherTower => {
                other_towers.push(name);
                continue;
            }
            Named::Unknown => {
                return fail(format!(
                    "tensor `{name}` is not a LoRA factor of a linear module of a block; only those are supported"
                ));
            }
        };
        let (block, module) = (found.block, found.module);
        if block >= model.blocks.len() {
            return fail(format!(
                "tensor `{name}` belongs to block {block}, but the model has {}: it was made for another base",
                model.blocks.len()
            ));
        }
        let [rows, columns] = shape[..] else {
            return fail(format!("tensor `{name}` has shape {shape:?} instead of two sizes"));
        };
        let pair = pairs
            .entry((block, module))
            .or_insert_with(|| Pair { path: found.path.clone(), factors: [None, None] });
        if pair.path != found.path || pair.factors[found.factor].is_some() {
            return fail(format!(
                "block {block} {} has factors under two names, one is `{name}`",
                module.path()
            ));
        }
        pair.factors[found.factor] = Some(Matrix { rows, columns, values });
    }
    if pairs.is_empty() {
        return fail(match other_towers.first() {
            Some(name) => {
                format!("adapts no block of the text model, only other parts of a larger one (`{name}`)")
            }
            None => "holds no LoRA factors".to_owned(),
        });
    }
    if let Some(name) = other_towers.first() {
        let count = other_towers.len();
        notices::about(
            &tensors_path,
            format!("{count} tensors are left out that are not of the text model (`{name}`)"),
        );
    }
    check_targets(&config, &pairs, model, dir)?;
    if other_towers.is_empty()
        && let Some(name) = config.target_without_module(model, text_prefix(&pairs))
    {
        return Err(Error::invalid(
            dir.join(CONFIG),
            format!("target module `{name}` is not a linear module of a block; only those are supported"),
        ));
    }
    let mut blocks: Vec<[Option<Factors>; 7]> = vec![[const { None }; 7]; model.blocks.len()];
    for ((block, module), Pair { path, factors }) in pairs {
        let [Some(a), Some(b)] = factors else {
            return fail(format!("`{path}` has only one of lora_A and lora_B"));
        };
        let (k, n) = module.shape(model);
        if a.columns != k || b.rows != n || a.rows != b.columns || a.rows == 0 {
            return fail(format!(
                "`{path}`: lora_A is {}x{} and lora_B {}x{}, but the model's module has {k} inputs and {n} outputs: \
                 the adapter was made for another base",
                a.rows, a.columns, b.rows, b.columns
            ));
        }
        let rank = config.rank(&path)?;
        if rank != a.rows {
            return fail(format!(
                "`{path}` has rank {}, but {} says {rank}",
                a.rows,
                dir.join(CONFIG).display()
            ));
        }
        let scale =
            LoraConfig { rank, alpha: config.alpha(&path)?, rslora: config.rslora, ..LoraConfig::default() }
                .scale();
        blocks[block][module.index()] = Some(Factors { rank, scale, a: a.values, b: b.values });
    }
    let targets: Vec<Module> =
        Module::ALL.into_iter().filter(|m| blocks.iter().any(|b| b[m.index()].is_some())).collect();
    let expert = Expert {
        name: name_of(dir)?,
        config: LoraConfig {
            rank: config.rank,
            alpha: config.alpha,
            targets,
            rslora: config.rslora,
            dropout: config.dropout,
        },
        blocks,
    };
    expert.check_fits(model)?;
    Ok(expert)
}

fn tensors_path(dir: &Path) -> Result<std::path::PathBuf> {
    let path = dir.join(TENSORS);
    if !path.exists() && dir.join("adapter_model.bin").exists() {
        let what = format!("has no {TENSORS}; adapter_model.bin is not read: convert it to safetensors");
        return Err(Error::invalid(dir, what));
    }
    Ok(path)
}

/// PEFT makes a LoRA in the modules that the configuration names and in no others: a factor elsewhere is one that it would
/// drop, and a module without factors means that the file is not whole.
fn check_targets(
    config: &AdapterConfig,
    pairs: &BTreeMap<(usize, Module), Pair>,
    model: &ModelConfig,
    dir: &Path,
) -> Result<()> {
    for pair in pairs.values() {
        if !config.targets(&pair.path)? {
            return Err(Error::invalid(
                dir.join(TENSORS),
                format!(
                    "has factors of `{}`, which {} does not target: PEFT leaves them out",
                    pair.path,
                    dir.join(CONFIG).display()
                ),
            ));
        }
    }
    // Paths of the modules without factors, as they are called beside those that have some.
    let prefix = text_prefix(pairs);
    for block in 0..model.blocks.len() {
        for module in Module::ALL {
            let path = format!("{prefix}{block}.{}", module.path());
            if !pairs.contains_key(&(block, module)) && config.targets(&path)? {
                return Err(Error::invalid(
                    dir.join(CONFIG),
                    format!("targets `{path}`, which has no factors in {TENSORS}"),
                ));
            }
        }
    }
    Ok(())
}

/// What stands before a block's number in the modules' paths.
fn text_prefix(pairs: &BTreeMap<(usize, Module), Pair>) -> &str {
    pairs.values().next().map_or("", |pair| names::prefix(&pair.path))
}

/// Where the adapter in `dir` comes from, when it says so.
pub fn origin(dir: &Path) -> Result<Option<Origin>> {
    let path = dir.join(ORIGIN);
    if mixse_files::is_there(&path) { files::read_json(&path).map(Some) } else { Ok(None) }
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
    // What kind of adapter it is comes first: one of another kind fits no base.
    AdapterConfig::read(&dir.join(CONFIG))?;
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
        Some(Origin { name, .. }) if names_a_directory(&name) => name,
        Some(Origin { name, .. }) => {
            let what = format!("name is {name:?}; it should be one that a directory can have");
            return Err(Error::invalid(dir.join(ORIGIN), what));
        }
        None => dir.file_name().map_or_else(|| "expert".into(), |n| n.to_string_lossy().into_owned()),
    })
}

/// Whether a name leads to a place right below a directory, wherever that is: exports are written under it.
fn names_a_directory(name: &str) -> bool {
    let one_part = !name.is_empty() && name.len() <= 200 && !name.starts_with('.');
    one_part && !name.contains(|c: char| matches!(c, '/' | '\\') || c.is_control())
}

/// The two factors of a module, and the module's path as PEFT calls it.
struct Pair {
    path: String,
    /// A and B.
    factors: [Option<Matrix>; 2],
}

struct Matrix {
    rows: usize,
    columns: usize,
    values: Vec<f32>,
}
