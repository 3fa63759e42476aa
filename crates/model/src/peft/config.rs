//! `adapter_config.json`: every key of PEFT 0.21's `LoraConfig`, and what is done with it.

use std::path::Path;

use serde_json::{Map, Value};

use super::patterns::{Layers, Modules, Overrides, ends_with_name};
use crate::{
    Error, Result,
    config::ModelConfig,
    expert::Module,
    files,
    keys::{self, Key, ignored, only, used},
};

/// The keys of `LoraConfig`, and of older versions of it.
const KEYS: &[Key] = &[
    used("peft_type"),
    only("task_type", &["\"CAUSAL_LM\""], "experts are adapters of language models"),
    used("r"),
    used("lora_alpha"),
    used("lora_dropout"),
    used("target_modules"),
    used("exclude_modules"),
    used("layers_to_transform"),
    used("layers_pattern"),
    used("rank_pattern"),
    used("alpha_pattern"),
    used("use_rslora"),
    only(
        "init_lora_weights",
        &["true", "false", "\"gaussian\"", "\"orthogonal\"", "\"eva\"", "\"lora_ga\"", "\"mica\""],
        "the base's weights change too",
    ),
    only("bias", &["\"none\""], "trained biases are not supported"),
    only("lora_bias", &["false"], "trained biases are not supported"),
    only("fan_in_fan_out", &["false"], "weights are not transposed"),
    only("modules_to_save", &["[]"], "fully trained modules are not supported"),
    only("trainable_token_indices", &[], "trained tokens are not supported"),
    only("target_parameters", &["[]"], "LoRA is on linear modules"),
    only("layer_replication", &["[]"], "blocks are not repeated"),
    only("use_dora", &["false"], "DoRA is not supported"),
    only("use_qalora", &["false"], "QALoRA is not supported"),
    only("use_bdlora", &["false"], "BD-LoRA is not supported"),
    only("alora_invocation_tokens", &[], "aLoRA works on some tokens only"),
    only("arrow_config", &[], "Arrow's routing of PEFT is not read"),
    only("kasa_config", &[], "KaSA is not supported"),
    only("monteclora_config", &[], "MonteCLoRA is not supported"),
    only("velora_config", &[], "VeLoRA is not supported"),
    only("megatron_config", &["{}"], "Megatron's layers are not supported"),
    only("enable_lora", &[], "merged projections are not supported"),
    ignored("megatron_core"),
    // Without the initialisation that they belong to they have no effect.
    ignored("loftq_config"),
    ignored("eva_config"),
    ignored("corda_config"),
    ignored("lora_ga_config"),
    ignored("qalora_group_size"),
    // It ties adapters of the embedding and the head, which are refused by their tensors.
    ignored("ensure_weight_tying"),
    ignored("merge_weights"),
    ignored("auto_mapping"),
    ignored("base_model_name_or_path"),
    ignored("revision"),
    ignored("peft_version"),
    ignored("inference_mode"),
    ignored("runtime_config"),
];

/// PEFT's targets where the file has none, the same for all seven architectures.
const DEFAULT_TARGETS: [&str; 2] = ["q_proj", "v_proj"];
/// `LoraConfig`'s rank and alpha where the file has none.
const DEFAULT: (usize, f64) = (8, 8.0);

/// What decides what an adapter does.
#[derive(Debug)]
pub(super) struct AdapterConfig {
    pub(super) rank: usize,
    pub(super) alpha: f64,
    pub(super) rslora: bool,
    pub(super) dropout: f64,
    targets: Modules,
    excluded: Option<Modules>,
    layers: Option<Layers>,
    ranks: Overrides<usize>,
    alphas: Overrides<f64>,
}

impl AdapterConfig {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// Another kind of adapter; a key with a value that is not implemented, or that no known version of PEFT has; a value
    /// of the wrong type.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let object: Map<String, Value> = files::read_json(path)?;
        Self::new(&object, path)
    }

    fn new(object: &Map<String, Value>, path: &Path) -> Result<Self> {
        let fail = |what: String| Err(Error::invalid(path, what));
        // A null is a value that is not there, for PEFT too.
        let get = |key: &str| object.get(key).filter(|value| !value.is_null());
        match get("peft_type") {
            Some(Value::String(kind)) if kind == "LORA" => {}
            Some(other) => {
                return fail(format!(
                    "peft_type is {}; only LORA adapters can be experts",
                    keys::short(other)
                ));
            }
            None => return fail("has no peft_type: not an adapter's configuration".to_owned()),
        }
        let checked = keys::check(&[KEYS], object, path)?;
        let unknown: Vec<String> = checked
            .unknown
            .iter()
            .filter(|(_, value)| !keys::is_off(value))
            .map(|(name, value)| format!("{name} = {}", keys::short(value)))
            .collect();
        if !unknown.is_empty() {
            return fail(format!(
                "has keys that are not known here, so that it may be another kind of adapter: {} (remove what has no effect)",
                unknown.join(", ")
            ));
        }
        for key in ["r", "lora_alpha"] {
            if object.get(key).is_some_and(Value::is_null) {
                return fail(format!("{key} is null; it should be a number"));
            }
        }
        let number = |key: &str, default: f64| match get(key) {
            None => Ok(default),
            Some(value) => value
                .as_f64()
                .filter(|number| number.is_finite())
                .ok_or_else(|| Error::invalid(path, format!("{key} is {value}; it should be a number"))),
        };
        let rank = match get("r") {
            None => DEFAULT.0,
            Some(value) => as_rank(value).ok_or_else(|| {
                Error::invalid(path, format!("r is {value}; it should be a whole number above 0"))
            })?,
        };
        let dropout = number("lora_dropout", 0.0)?;
        if !(0.0..1.0).contains(&dropout) {
            return fail(format!("lora_dropout is {dropout}; it must lie in 0..1"));
        }
        let rslora = match get("use_rslora") {
            None => false,
            Some(Value::Bool(rslora)) => *rslora,
            Some(other) => return fail(format!("use_rslora is {other}; it should be true or false")),
        };
        let targets = match get("target_modules") {
            None => Modules::Names(DEFAULT_TARGETS.map(str::to_owned).to_vec()),
            Some(value) => Modules::parse(value, "target_modules", path)?,
        };
        let excluded = get("exclude_modules")
            .filter(|value| !keys::is_off(value))
            .map(|value| Modules::parse(value, "exclude_modules", path))
            .transpose()?;
        let (layers, layer_names) = (get("layers_to_transform"), get("layers_pattern"));
        // PEFT refuses the same.
        if matches!(get("target_modules"), Some(Value::String(_)))
            && (layers.is_some() || layer_names.is_some())
        {
            return fail(
                "layers_to_transform and layers_pattern have no meaning where target_modules is a pattern"
                    .into(),
            );
        }
        if layer_names.is_some_and(|names| !keys::is_off(names)) && layers.is_none() {
            return fail("layers_pattern has no meaning without layers_to_transform".into());
        }
        Ok(Self {
            rank,
            alpha: number("lora_alpha", DEFAULT.1)?,
            rslora,
            dropout,
            targets,
            excluded,
            layers: Layers::parse(layers, layer_names, path)?,
            ranks: Overrides::parse(get("rank_pattern"), "rank_pattern", path, as_rank)?,
            alphas: Overrides::parse(get("alpha_pattern"), "alpha_pattern", path, Value::as_f64)?,
        })
    }

    /// Whether PEFT puts a LoRA into a module.
    pub(super) fn targets(&self, module: &str) -> Result<bool> {
        if let Some(excluded) = &self.excluded
            && excluded.contain(module)?
        {
            return Ok(false);
        }
        let inside = match &self.layers {
            Some(layers) => layers.contain(module)?,
            None => true,
        };
        Ok(inside && self.targets.contain(module)?)
    }

    /// The rank of the LoRA in a module.
    pub(super) fn rank(&self, module: &str) -> Result<usize> {
        Ok(self.ranks.get(module)?.unwrap_or(self.rank))
    }

    /// The alpha of the LoRA in a module.
    pub(super) fn alpha(&self, module: &str) -> Result<f64> {
        Ok(self.alphas.get(module)?.unwrap_or(self.alpha))
    }

    /// A named target that means no linear module of a block, such as the output head. `prefix` is what stands before a
    /// block's number.
    pub(super) fn target_without_module(&self, model: &ModelConfig, prefix: &str) -> Option<&str> {
        let Modules::Names(wanted) = &self.targets else { return None };
        let found = |name: &String| {
            (0..model.blocks.len()).any(|block| {
                Module::ALL
                    .iter()
                    .any(|module| ends_with_name(&format!("{prefix}{block}.{}", module.path()), name))
            })
        };
        wanted.iter().find(|name| !found(name)).map(String::as_str)
    }
}

fn as_rank(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|rank| usize::try_from(rank).ok()).filter(|&rank| rank > 0)
}

/// What is done with the keys, for the documentation.
pub(crate) fn documentation() -> String {
    let mut out = String::new();
    keys::markdown(&[KEYS], &mut out);
    out.push_str(
        "`peft_type` must be `LORA`. Of the initialisations, PiSSA, OLoRA, CorDA and LoftQ change the base's own weights when the\n\
         adapter is loaded; PEFT converts such an adapter to a plain one (`path_initial_model_for_weight_conversion`).\n\n\
         A key that is in no list is refused unless its value is `null`, `false`, `0` or empty. Tensors must be the LoRA\n\
         factors of exactly the modules that the configuration targets; those of other parts of a model (such as one that\n\
         reads images) are left out, which is said, and refused where there are no others. Patterns are matched as PEFT\n\
         does it, in the order of the file.\n",
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(changes: Value) -> std::result::Result<AdapterConfig, String> {
        let mut object = json!({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]});
        let (Value::Object(object), Value::Object(changes)) = (&mut object, changes) else {
            panic!("objects")
        };
        object.extend(changes);
        AdapterConfig::new(object, Path::new("adapter_config.json")).map_err(|e| e.to_string())
    }

    /// All keys that PEFT 0.21.2 writes, with its defaults.
    #[test]
    fn the_defaults_of_peft_are_read() {
        let defaults = json!({
            "alora_invocation_tokens": null, "alpha_pattern": {}, "arrow_config": null, "auto_mapping": null,
            "base_model_name_or_path": "x", "bias": "none", "corda_config": null, "ensure_weight_tying": false,
            "eva_config": null, "exclude_modules": null, "fan_in_fan_out": false, "inference_mode": true,
            "init_lora_weights": true, "kasa_config": null, "layer_replication": null, "layers_pattern": null,
            "layers_to_transform": null, "loftq_config": {}, "lora_alpha": 16, "lora_bias": false, "lora_dropout": 0.0,
            "lora_ga_config": null, "megatron_config": null, "megatron_core": "megatron.core", "modules_to_save": null,
            "monteclora_config": null, "peft_type": "LORA", "peft_version": "0.21.2", "qalora_group_size": 16, "r": 8,
            "rank_pattern": {}, "revision": null, "target_modules": ["q_proj"], "target_parameters": null,
            "task_type": "CAUSAL_LM", "trainable_token_indices": null, "use_bdlora": null, "use_dora": false,
            "use_qalora": false, "use_rslora": false, "velora_config": null,
        });
        let Value::Object(object) = &defaults else { panic!("an object") };
        for key in object.keys().map(String::as_str).chain(["runtime_config"]) {
            assert!(keys::rule(&[KEYS], key).is_some(), "{key} is in no list");
        }
        let config = AdapterConfig::new(object, Path::new("x")).unwrap();
        assert_eq!((config.rank, config.alpha, config.rslora, config.dropout), (8, 16.0, false, 0.0));
    }

    #[test]
    fn what_changes_the_result_is_refused_by_name() {
        for (changes, expected) in [
            (json!({"peft_type": "IA3"}), "peft_type is \"IA3\""),
            (json!({"peft_type": null}), "has no peft_type"),
            (json!({"task_type": "SEQ_CLS"}), "task_type"),
            (json!({"init_lora_weights": "pissa"}), "init_lora_weights is \"pissa\""),
            (json!({"init_lora_weights": "pissa_niter_16"}), "init_lora_weights"),
            (json!({"init_lora_weights": "olora"}), "init_lora_weights"),
            (json!({"init_lora_weights": "corda"}), "init_lora_weights"),
            (json!({"init_lora_weights": "loftq"}), "init_lora_weights"),
            (json!({"alora_invocation_tokens": [1, 2]}), "alora_invocation_tokens is [1,2]"),
            (json!({"alora_invocation_tokens": []}), "alora_invocation_tokens"),
            (json!({"use_dora": true}), "use_dora"),
            (json!({"use_qalora": true}), "use_qalora"),
            (json!({"use_bdlora": {"nblocks": 2}}), "use_bdlora"),
            (json!({"lora_bias": true}), "lora_bias"),
            (json!({"bias": "lora_only"}), "bias"),
            (json!({"fan_in_fan_out": true}), "fan_in_fan_out"),
            (json!({"modules_to_save": ["lm_head"]}), "modules_to_save"),
            (json!({"trainable_token_indices": [1]}), "trainable_token_indices"),
            (json!({"target_parameters": ["w"]}), "target_parameters"),
            (json!({"layer_replication": [[0, 2]]}), "layer_replication"),
            (json!({"arrow_config": {}}), "arrow_config"),
            (json!({"kasa_config": {"beta": 1e-4}}), "kasa_config"),
            (json!({"monteclora_config": {}}), "monteclora_config"),
            (json!({"velora_config": {"scale": 1}}), "velora_config"),
            (json!({"megatron_config": {"a": 1}}), "megatron_config"),
            (json!({"some_future_key": 3}), "some_future_key = 3"),
            (json!({"r": null}), "r is null"),
            (json!({"lora_alpha": null}), "lora_alpha is null"),
            (json!({"r": 0}), "r is 0"),
            (json!({"r": 4.5}), "r is 4.5"),
            (json!({"lora_alpha": "x"}), "lora_alpha"),
            (json!({"lora_dropout": 1.0}), "lora_dropout"),
            (json!({"use_rslora": 1}), "use_rslora"),
            (json!({"target_modules": 3}), "target_modules"),
            (json!({"target_modules": ".*q_proj", "layers_to_transform": [0]}), "have no meaning"),
            (json!({"target_modules": ".*q_proj", "layers_pattern": "layers"}), "have no meaning"),
            (json!({"layers_pattern": "layers"}), "without layers_to_transform"),
            (json!({"rank_pattern": {"(": 1}}), "not a regular expression"),
        ] {
            let message = read(changes.clone()).map(|_| String::new()).unwrap_or_else(|message| message);
            assert!(
                message.starts_with("adapter_config.json: ") && message.contains(expected),
                "{changes}: {message}"
            );
        }
    }

    #[test]
    fn what_does_not_is_read() {
        for changes in [
            json!({"init_lora_weights": false}),
            json!({"init_lora_weights": "gaussian"}),
            json!({"init_lora_weights": "eva", "eva_config": {"rho": 2.0}}),
            json!({"loftq_config": {"loftq_bits": 4}}),
            json!({"task_type": null}),
            json!({"modules_to_save": [], "trainable_token_indices": null}),
            json!({"some_future_key": null, "another": false, "third": [], "fourth": {}}),
            json!({"target_modules": "all-linear"}),
            json!({"target_modules": null}),
            json!({"exclude_modules": [], "layers_to_transform": [0], "layers_pattern": []}),
            json!({"runtime_config": {"ephemeral_gpu_offload": true}}),
        ] {
            assert!(read(changes.clone()).is_ok(), "{changes}: {:?}", read(changes.clone()));
        }
    }

    #[test]
    fn targets_leave_out_what_is_excluded_and_other_layers() {
        let check = |changes: Value, module: &str, expected: bool| {
            assert_eq!(
                read(changes.clone()).unwrap().targets(module).unwrap(),
                expected,
                "{changes} {module}"
            );
        };
        let (q0, q1) = ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj");
        check(json!({}), q0, true);
        check(json!({"exclude_modules": ["layers.0.self_attn.q_proj"]}), q0, false);
        check(json!({"exclude_modules": ["layers.0.self_attn.q_proj"]}), q1, true);
        check(json!({"exclude_modules": r".*\.0\..*"}), q0, false);
        check(json!({"exclude_modules": "q_proj"}), q0, true);
        check(json!({"layers_to_transform": 1}), q0, false);
        check(json!({"layers_to_transform": [1], "layers_pattern": "layers"}), q1, true);
        check(json!({"target_modules": null}), "model.layers.0.self_attn.v_proj", true);
        check(json!({"target_modules": null}), "model.layers.0.self_attn.k_proj", false);
    }
}
