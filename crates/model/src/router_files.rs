//! Routers on disk: our own layout, and X-LoRA's.
//!
//! Ours is `router.json` (settings and the experts in order) and `router.safetensors` (`router.weight`, or
//! `router.BLOCK.weight` for a router a block, and `router.bias`). X-LoRA's is `xlora_config.json` and
//! `xlora_classifier.safetensors` (`last.weight`, `last.bias`); it knows nothing but [`RouterInput::BaseLast`].

use std::{path::Path, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    Error, Result,
    config::ModelConfig,
    files::{self, NamedTensor, StoredTensor},
    keys::{self, Key, ignored, only, used},
    peft,
    router::{GateConfig, GateScale, Granularity, Router, RouterConfig, RouterInput, Score},
};

const CONFIG: &str = "router.json";
const TENSORS: &str = "router.safetensors";
const XLORA_CONFIG: &str = "xlora_config.json";
const XLORA_TENSORS: &str = "xlora_classifier.safetensors";
/// How to load what [`write_peft_xlora`] writes; in the same directory.
pub const XLORA_README: &str = "README.md";

/// The keys of PEFT 0.21's `XLoraConfig`.
const XLORA_KEYS: &[Key] = &[
    used("peft_type"),
    used("hidden_size"),
    used("adapters"),
    used("softmax_temperature"),
    used("top_k_lora"),
    only("xlora_depth", &["1"], "the classifier is linear"),
    only("layerwise_scalings", &["false"], "one decision counts for all layers"),
    only("enable_softmax", &["true"], "scores become probabilities"),
    only("enable_softmax_topk", &["false"], "kept probabilities are not normalised again"),
    only("global_scaling_weight", &["1"], "experts count as their gates say"),
    only("scaling_pass_value", &["0"], "the first pass is the base's alone"),
    ignored("xlora_size"),
    ignored("xlora_dropout_p"),
    ignored("use_trainable_adapters"),
    ignored("task_type"),
    ignored("base_model_name_or_path"),
    ignored("revision"),
    ignored("inference_mode"),
    ignored("auto_mapping"),
    ignored("peft_version"),
];

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RouterFile {
    experts: Vec<String>,
    hidden_size: usize,
    base_hash: String,
    router: RouterConfig,
}

/// What X-LoRA's configuration says about the choice; its other keys concern training.
#[derive(Debug, Serialize, Deserialize)]
struct XloraFile {
    #[serde(default)]
    peft_type: String,
    #[serde(default)]
    task_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    base_model_name_or_path: Option<String>,
    #[serde(default)]
    hidden_size: usize,
    /// Expert names; X-LoRA maps each to its directory.
    #[serde(default)]
    adapters: serde_json::Map<String, serde_json::Value>,
    #[serde(default = "yes")]
    enable_softmax: bool,
    #[serde(default)]
    enable_softmax_topk: bool,
    #[serde(default)]
    layerwise_scalings: bool,
    #[serde(default = "one_layer")]
    xlora_depth: usize,
    #[serde(default = "one")]
    softmax_temperature: f32,
    #[serde(default)]
    top_k_lora: Option<usize>,
    #[serde(default = "one")]
    global_scaling_weight: f32,
}

impl XloraFile {
    fn new(
        router: &Router,
        hidden_size: usize,
        adapters: serde_json::Map<String, serde_json::Value>,
    ) -> Self {
        Self {
            peft_type: "XLORA".into(),
            task_type: "CAUSAL_LM".into(),
            base_model_name_or_path: None,
            hidden_size,
            adapters,
            enable_softmax: true,
            enable_softmax_topk: false,
            layerwise_scalings: false,
            xlora_depth: 1,
            softmax_temperature: router.config.gate.temperature,
            top_k_lora: Some(router.config.gate.top_k),
            global_scaling_weight: 1.0,
        }
    }
}

fn yes() -> bool {
    true
}

fn one() -> f32 {
    1.0
}

fn one_layer() -> usize {
    1
}

/// Writes a router to `dir`, which is created; in X-LoRA's layout as well where that can express it.
pub fn write(router: &Router, base_hash: &str, dir: &Path) -> Result<()> {
    let choices = router.choices();
    let hidden_size = router.weights.first().map_or(0, |weight| weight.len() / choices);
    let name = |map: usize| {
        if router.config.shared { "router.weight".to_owned() } else { format!("router.{map}.weight") }
    };
    let mut tensors: Vec<NamedTensor<'_>> = router
        .weights
        .iter()
        .enumerate()
        .map(|(map, values)| NamedTensor { name: name(map), shape: vec![choices, hidden_size], values })
        .collect();
    if let Some(bias) = &router.bias {
        tensors.push(NamedTensor { name: "router.bias".into(), shape: vec![bias.len()], values: bias });
    }
    files::check_tensors(&dir.join(TENSORS), &tensors)?;
    files::create_dir(dir)?;
    let file = RouterFile {
        experts: router.experts.clone(),
        hidden_size,
        base_hash: base_hash.to_owned(),
        router: router.config.clone(),
    };
    if xlora_obstacle(&router.config).is_none() {
        let classifier = Classifier::of(router)?;
        let adapters = router.experts.iter().map(|e| (e.clone(), format!("../experts/{e}").into())).collect();
        files::write_json(&dir.join(XLORA_CONFIG), &XloraFile::new(router, classifier.hidden, adapters))?;
        classifier.write(&dir.join(XLORA_TENSORS), "last")?;
    }
    files::write_json(&dir.join(CONFIG), &file)?;
    files::write_tensors(&dir.join(TENSORS), &tensors)
}

/// The experts that the router in `dir` (our layout) chooses among, in order.
pub fn experts(dir: &Path) -> Result<Vec<String>> {
    Ok(files::read_json::<RouterFile>(&dir.join(CONFIG))?.experts)
}

/// Writes a router to `dir`, which is created, as PEFT's `PeftModel.from_pretrained` reads an X-LoRA model. The experts are
/// expected beside it, numbered as the router counts them: PEFT takes no other names. PEFT itself saves the configuration
/// without the classifier's weights, but reads them under the names given here. `place`: the absolute path under which the directory will be
/// found, which PEFT takes as it is.
///
/// # Errors
/// The router is of a kind that X-LoRA does not have.
pub fn write_peft_xlora(router: &Router, base: &str, dir: &Path, place: &Path) -> Result<()> {
    if let Some(obstacle) = xlora_obstacle(&router.config) {
        return Err(Error::Unsupported(obstacle));
    }
    files::create_dir(dir)?;
    let classifier = Classifier::of(router)?;
    let number = |i: usize| (i.to_string(), place.join(i.to_string()).display().to_string().into());
    let mut config =
        XloraFile::new(router, classifier.hidden, (0..router.experts.len()).map(number).collect());
    config.base_model_name_or_path = Some(base.to_owned());
    files::write_json(&dir.join(peft::CONFIG), &config)?;
    classifier.write(&dir.join(peft::TENSORS), "base_model.internal_xlora_classifier.layers.0")?;
    let names: Vec<String> =
        router.experts.iter().enumerate().map(|(i, name)| format!("{i} is {name}")).collect();
    let text = include_str!("router_files/xlora_readme.md").replace("{experts}", &names.join(", "));
    files::write_atomically(&dir.join(XLORA_README), text.as_bytes())
}

/// What is done with the keys of `xlora_config.json`, for the documentation.
pub(crate) fn documentation() -> String {
    let mut out = String::new();
    keys::markdown(&[XLORA_KEYS], &mut out);
    out.push_str("A key that is in no list is refused unless its value is `null`, `false`, `0` or empty.\n");
    out
}

/// Why X-LoRA cannot express a router; `None` if it can.
fn xlora_obstacle(config: &RouterConfig) -> Option<String> {
    let obstacles = [
        (
            config.input != RouterInput::BaseLast,
            "router.input is not \"base_last\": X-LoRA reads the base's last hidden state",
        ),
        (
            config.granularity != Granularity::Token,
            "router.granularity is not \"token\": X-LoRA decides for each token",
        ),
        (
            config.gate.scale != GateScale::Probability,
            "router.scale is not \"probability\": X-LoRA scales by that",
        ),
        (config.gate.score != Score::Linear, "router.score is not \"linear\": X-LoRA's classifier is that"),
        (config.gate.null_expert, "router.null_expert is true: X-LoRA has no such choice"),
    ];
    let found: Vec<&str> = obstacles.into_iter().filter(|(is, _)| *is).map(|(_, what)| what).collect();
    (!found.is_empty()).then(|| found.join("; "))
}

/// A linear classifier with its bias: what X-LoRA's router is.
struct Classifier {
    weight: Arc<Vec<f32>>,
    bias: Arc<Vec<f32>>,
    hidden: usize,
}

impl Classifier {
    fn of(router: &Router) -> Result<Self> {
        let (Some(weight), Some(bias)) = (router.weights.first(), &router.bias) else {
            return Err(Error::Unsupported("the router has no linear map with a bias".into()));
        };
        Ok(Self { weight: weight.clone(), bias: bias.clone(), hidden: weight.len() / router.choices() })
    }

    fn write(&self, path: &Path, prefix: &str) -> Result<()> {
        let choices = self.bias.len();
        let tensors = [
            NamedTensor {
                name: format!("{prefix}.weight"),
                shape: vec![choices, self.hidden],
                values: &self.weight,
            },
            NamedTensor { name: format!("{prefix}.bias"), shape: vec![choices], values: &self.bias },
        ];
        files::write_tensors(path, &tensors)
    }
}

/// Reads a router of either layout for a base and the experts with the given names, in that order.
///
/// # Errors
/// A router for other experts or another base, missing tensors, wrong shapes.
pub fn read(dir: &Path, experts: &[String], model: &ModelConfig, base_hash: Option<&str>) -> Result<Router> {
    if mixse_files::is_there(&dir.join(CONFIG)) {
        read_own(dir, experts, model, base_hash)
    } else if mixse_files::is_there(&dir.join(XLORA_CONFIG)) {
        read_xlora(dir, experts, model)
    } else {
        Err(Error::invalid(dir, format!("holds no router: neither {CONFIG} nor {XLORA_CONFIG} is there")))
    }
}

fn read_own(dir: &Path, experts: &[String], model: &ModelConfig, base_hash: Option<&str>) -> Result<Router> {
    let path = dir.join(CONFIG);
    let file: RouterFile = files::read_json(&path)?;
    if file.experts != experts {
        return Err(Error::invalid(
            &path,
            format!(
                "the router chooses among [{}], but the experts given are [{}]: give the same ones in the same order",
                file.experts.join(", "),
                experts.join(", ")
            ),
        ));
    }
    if let Some(hash) = base_hash
        && hash != file.base_hash
    {
        return Err(Error::invalid(
            &path,
            format!("the router belongs to a base with hash {}, this base has {hash}", file.base_hash),
        ));
    }
    let faults = file.router.faults(experts.len());
    if !faults.is_empty() {
        return Err(Error::invalid(&path, faults.join("; ")));
    }
    let mut tensors =
        Tensors::read(&dir.join(TENSORS), file.router.choices(experts.len()), model.hidden_size)?;
    let weights = if file.router.shared {
        vec![tensors.matrix("router.weight")?]
    } else {
        (0..model.blocks.len())
            .map(|b| tensors.matrix(&format!("router.{b}.weight")))
            .collect::<Result<_>>()?
    };
    let bias = match file.router.input {
        RouterInput::BaseLast => Some(tensors.vector("router.bias")?),
        RouterInput::Block | RouterInput::Embedding => None,
    };
    tensors.finish()?;
    Ok(Router { config: file.router, experts: file.experts, weights, bias })
}

/// The adapters of an X-LoRA model are its experts in order. PEFT numbers them, others call them by name.
fn check_adapters(
    adapters: &serde_json::Map<String, serde_json::Value>,
    experts: &[String],
) -> Option<String> {
    let names: Vec<&str> = adapters.keys().map(String::as_str).collect();
    if names.is_empty() || names.iter().eq(experts) {
        return None;
    }
    let given = experts.join(", ");
    if names.len() != experts.len() {
        return Some(format!(
            "the router chooses among {} adapters ({}), but the experts given are {}: [{given}]",
            names.len(),
            names.join(", "),
            experts.len()
        ));
    }
    experts.iter().any(|expert| names.contains(&expert.as_str())).then(|| {
        format!(
            "the router chooses among [{}], but the experts given are [{given}]: give the same ones in the same order",
            names.join(", ")
        )
    })
}

fn read_xlora(dir: &Path, experts: &[String], model: &ModelConfig) -> Result<Router> {
    let path = dir.join(XLORA_CONFIG);
    let object: serde_json::Map<String, serde_json::Value> = files::read_json(&path)?;
    let checked = keys::check(&[XLORA_KEYS], &object, &path)?;
    let refuse = |what: &str| Err(Error::invalid(&path, what));
    if let Some((name, value)) = checked.unknown.iter().find(|(_, value)| !keys::is_off(value)) {
        return refuse(&format!(
            "{name} = {} is a key that is not known here (remove it if it has no effect)",
            keys::short(value)
        ));
    }
    // As for PEFT, a null is a value that is not there.
    let given = object.into_iter().filter(|(_, value)| !value.is_null()).collect();
    let file: XloraFile = serde_json::from_value(serde_json::Value::Object(given))
        .map_err(|e| Error::invalid(&path, e.to_string()))?;
    if !matches!(file.peft_type.as_str(), "" | "XLORA") {
        return refuse(&format!("peft_type is {:?}; only XLORA has a router", file.peft_type));
    }
    if file.hidden_size != 0 && file.hidden_size != model.hidden_size {
        return refuse(&format!(
            "hidden_size is {}, the model's is {}: the router belongs to another base",
            file.hidden_size, model.hidden_size
        ));
    }
    if let Some(what) = check_adapters(&file.adapters, experts) {
        return refuse(&what);
    }
    let gate = GateConfig {
        top_k: file.top_k_lora.unwrap_or(experts.len()),
        temperature: file.softmax_temperature,
        ..GateConfig::default()
    };
    let config = RouterConfig { input: RouterInput::BaseLast, gate, ..RouterConfig::default() };
    let faults = config.faults(experts.len());
    if !faults.is_empty() {
        return refuse(&faults.join("; "));
    }
    let mut tensors = Tensors::read(&dir.join(XLORA_TENSORS), experts.len(), model.hidden_size)?;
    let (weights, bias) = (vec![tensors.matrix("last.weight")?], Some(tensors.vector("last.bias")?));
    tensors.finish()?;
    Ok(Router { config, experts: experts.to_vec(), weights, bias })
}

/// The tensors of a router file, checked against the expected sizes as they are taken.
struct Tensors {
    path: std::path::PathBuf,
    choices: usize,
    hidden: usize,
    all: Vec<StoredTensor>,
}

impl Tensors {
    fn read(path: &Path, choices: usize, hidden: usize) -> Result<Self> {
        Ok(Self { path: path.to_owned(), choices, hidden, all: files::read_tensors(path)? })
    }

    fn take(&mut self, name: &str, shape: Vec<usize>) -> Result<Arc<Vec<f32>>> {
        let Some(at) = self.all.iter().position(|t| t.name == name) else {
            return Err(Error::invalid(&self.path, format!("has no tensor `{name}`")));
        };
        let StoredTensor { shape: found, values, .. } = self.all.swap_remove(at);
        if found != shape {
            return Err(Error::invalid(
                &self.path,
                format!("`{name}` has shape {found:?}, but these experts and this base need {shape:?}"),
            ));
        }
        Ok(Arc::new(values))
    }

    fn matrix(&mut self, name: &str) -> Result<Arc<Vec<f32>>> {
        self.take(name, vec![self.choices, self.hidden])
    }

    fn vector(&mut self, name: &str) -> Result<Arc<Vec<f32>>> {
        self.take(name, vec![self.choices])
    }

    /// Refuses what nothing has taken: the router may be another one than its configuration says.
    fn finish(self) -> Result<()> {
        match self.all.first() {
            None => Ok(()),
            Some(left) => {
                let what = format!("has a tensor `{}` that this kind of router does not read", left.name);
                Err(Error::invalid(&self.path, what))
            }
        }
    }
}
