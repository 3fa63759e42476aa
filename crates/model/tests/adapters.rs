//! PEFT adapters: what PEFT 0.21 makes of their configurations, and what is refused.
#![allow(clippy::unwrap_used, reason = "a fault in a test's own support is a panic")]

use std::path::Path;

use mixse_model::{
    config::ModelConfig,
    expert::{Expert, Module},
    files::{self, NamedTensor},
    peft, router_files,
};
use mixse_testing::tiny;
use serde_json::{Value, json};

const RANK: usize = 4;

fn model(architecture: &str) -> ModelConfig {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("config.json"), tiny::config(architecture).to_string()).unwrap();
    ModelConfig::from_directory(directory.path()).unwrap()
}

/// A factor of a module: its name in the file and its shape.
fn factors(prefix: &str, block: usize, module: Module, rank: usize) -> [(String, Vec<usize>); 2] {
    let (k, n) = module.shape(&model("llama"));
    let name = |factor: &str| format!("{prefix}{block}.{}.lora_{factor}.weight", module.path());
    [(name("A"), vec![rank, k]), (name("B"), vec![n, rank])]
}

const PREFIX: &str = "base_model.model.model.layers.";

/// q and v of both blocks.
fn usual() -> Vec<(String, Vec<usize>)> {
    let modules = [(0, Module::Q), (0, Module::V), (1, Module::Q), (1, Module::V)];
    modules.into_iter().flat_map(|(block, module)| factors(PREFIX, block, module, RANK)).collect()
}

fn write(directory: &Path, changes: Value, tensors: &[(String, Vec<usize>)]) {
    let mut config =
        json!({"peft_type": "LORA", "r": RANK, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]});
    let (Value::Object(config), Value::Object(changes)) = (&mut config, changes) else {
        panic!("two objects")
    };
    config.extend(changes);
    files::write_json(&directory.join(peft::CONFIG), config).unwrap();
    let values: Vec<Vec<f32>> = tensors.iter().map(|(_, shape)| vec![0.5; shape.iter().product()]).collect();
    let tensors: Vec<NamedTensor<'_>> = tensors
        .iter()
        .zip(&values)
        .map(|((name, shape), values)| NamedTensor { name: name.clone(), shape: shape.clone(), values })
        .collect();
    files::write_tensors(&directory.join(peft::TENSORS), &tensors).unwrap();
}

fn read(changes: Value, tensors: &[(String, Vec<usize>)]) -> std::result::Result<Expert, String> {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), changes, tensors);
    peft::read(directory.path(), &model("llama")).map_err(|e| e.to_string())
}

/// The scales of q and v in both blocks; `None` where there is no LoRA.
fn scales(expert: &Expert) -> [Option<f32>; 4] {
    [(0, Module::Q), (0, Module::V), (1, Module::Q), (1, Module::V)]
        .map(|(block, module)| expert.blocks[block][module.index()].as_ref().map(|f| f.scale))
}

/// Scales as PEFT 0.21.2 computes them (`LoraLayer.scaling`) for rank 4 and alpha 16.
#[test]
fn patterns_give_the_scales_of_peft() {
    let check = |changes: Value, expected: [f32; 4]| {
        assert_eq!(scales(&read(changes.clone(), &usual()).unwrap()), expected.map(Some), "{changes}");
    };
    check(json!({}), [4.0; 4]);
    check(json!({"use_rslora": true}), [8.0; 4]);
    check(json!({"alpha_pattern": {"(q|v)_proj": 64}}), [16.0; 4]);
    check(
        json!({"alpha_pattern": {"v_proj": 8, "model.layers.0.self_attn.v_proj": 32}}),
        [4.0, 2.0, 4.0, 2.0],
    );
    check(
        json!({"alpha_pattern": {"model.layers.0.self_attn.v_proj": 32, "v_proj": 8}}),
        [4.0, 8.0, 4.0, 2.0],
    );
    check(
        json!({"alpha_pattern": {"^model.layers.0.self_attn.q_proj": 4}, "use_rslora": true}),
        [2.0, 8.0, 8.0, 8.0],
    );
    let nothing = json!({"proj": 2, "q_pro": 2, "base_model.model.model.layers.0.self_attn.q_proj": 2});
    check(json!({"rank_pattern": nothing.clone(), "alpha_pattern": nothing}), [4.0; 4]);
    check(json!({"target_modules": null}), [4.0; 4]);
    check(json!({"target_modules": r".*\.(q|v)_proj"}), [4.0; 4]);

    let mut other_rank = usual();
    for (name, shape) in &mut other_rank {
        if name.contains("layers.1.") {
            let at = usize::from(name.contains("lora_B"));
            shape[at] = 2;
        }
    }
    let changes = json!({"rank_pattern": {"layers.1.*": 2}, "use_rslora": true});
    let read = read(changes, &other_rank).unwrap();
    let root = 16.0 / 2f32.sqrt();
    assert_eq!(scales(&read), [Some(8.0), Some(8.0), Some(root), Some(root)]);
}

#[test]
fn an_adapter_covers_exactly_what_its_configuration_targets() {
    let block = |block| {
        [Module::Q, Module::V]
            .into_iter()
            .flat_map(move |m| factors(PREFIX, block, m, RANK))
            .collect::<Vec<_>>()
    };
    let fine = |changes: Value, tensors: &[(String, Vec<usize>)], expected: [Option<f32>; 4]| {
        assert_eq!(scales(&read(changes.clone(), tensors).unwrap()), expected, "{changes}");
    };
    let second = [None, None, Some(4.0), Some(4.0)];
    fine(json!({"layers_to_transform": [1]}), &block(1), second);
    fine(json!({"layers_to_transform": 1, "layers_pattern": "layers"}), &block(1), second);
    fine(json!({"exclude_modules": r".*\.0\..*"}), &block(1), second);
    fine(json!({"target_modules": r"model\.layers\.1\..*(q|v)_proj"}), &block(1), second);

    let refused = |changes: Value, tensors: &[(String, Vec<usize>)], expected: &str| {
        let message = read(changes.clone(), tensors).map(|_| String::new()).unwrap_or_else(|message| message);
        assert!(message.contains(expected), "{changes}: {message:?} does not say {expected:?}");
    };
    refused(json!({"target_modules": ["q_proj"]}), &usual(), "v_proj`, which");
    refused(json!({"target_modules": "q_proj"}), &usual(), "does not target: PEFT leaves them out");
    refused(json!({"layers_to_transform": [1]}), &usual(), "layers.0.self_attn.q_proj`, which");
    refused(json!({"exclude_modules": ["v_proj"]}), &usual(), "does not target");
    refused(json!({}), &block(1), "targets `model.layers.0.self_attn.q_proj`, which has no factors");
    refused(json!({"target_modules": "all-linear"}), &usual(), "which has no factors");
    refused(json!({"target_modules": ["q_proj", "v_proj", "lm_head"]}), &usual(), "target module `lm_head`");
    refused(json!({"rank_pattern": {"q_proj": 8}}), &usual(), "has rank 4, but");
    refused(json!({"lora_alpha": 1e300}), &usual(), "out of the range of 32-bit numbers");
    // An adapter of another kind is that, and not one for another base.
    refused(
        json!({"layer_replication": [[0, 2], [0, 2]]}),
        &factors(PREFIX, 3, Module::Q, RANK),
        "layer_replication",
    );
    refused(json!({"peft_type": "IA3"}), &[("x".into(), vec![1])], "peft_type is \"IA3\"");
}

#[test]
fn tensors_of_other_towers_are_no_text() {
    let tower = |prefix: &str| factors(prefix, 0, Module::Q, RANK).to_vec();
    let vision = tower("base_model.model.vision_tower.vision_model.encoder.layers.");
    let inner = tower("base_model.model.model.vision_tower.encoder.layers.");
    for other in [&vision, &inner] {
        let message = read(json!({"target_modules": ["q_proj"]}), other).unwrap_err();
        assert!(message.contains("adapts no block of the text model"), "{message}");
        // Beside the text model's own, whichever comes first in the file.
        let both = [other.clone(), usual()].concat();
        let expert = read(json!({}), &both).unwrap();
        assert_eq!(expert.blocks, read(json!({}), &usual()).unwrap().blocks);
    }
    // The text model of a larger one has other names for the same modules.
    for prefix in
        ["base_model.model.model.language_model.layers.", "base_model.model.language_model.model.layers."]
    {
        let modules = [(0, Module::Q), (1, Module::Q)];
        let text: Vec<_> =
            modules.iter().flat_map(|&(block, module)| factors(prefix, block, module, RANK)).collect();
        let expert = read(json!({"target_modules": ["q_proj"]}), &text).unwrap();
        assert_eq!(scales(&expert), [Some(4.0), None, Some(4.0), None]);
        let twice = [text, usual()].concat();
        assert!(read(json!({}), &twice).unwrap_err().contains("under two names"));
    }
}

#[test]
fn numbers_must_be_finite() {
    for (value, shown) in [(f32::NAN, "NaN"), (f32::NEG_INFINITY, "-inf")] {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), json!({}), &usual());
        let path = directory.path().join(peft::TENSORS);
        let mut bytes = std::fs::read(&path).unwrap();
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&value.to_le_bytes());
        std::fs::write(&path, bytes).unwrap();
        let message = peft::read(directory.path(), &model("llama")).unwrap_err().to_string();
        assert!(message.contains(&format!("holds {shown} at [")), "{message}");
    }
    // Nor is one written.
    let mut expert = read(json!({}), &usual()).unwrap();
    expert.blocks[1][Module::V.index()].as_mut().unwrap().b[3] = f32::INFINITY;
    let directory = tempfile::tempdir().unwrap();
    let origin = peft::Origin { name: "x".into(), base_hash: "x".into() };
    let out = directory.path().join("out");
    let message = peft::write(&expert, &model("llama"), "x", &origin, &out).unwrap_err().to_string();
    assert!(message.contains("layers.1.self_attn.v_proj.lora_B.weight` holds inf at [0, 3]"), "{message}");
    assert!(!out.join(peft::TENSORS).exists());
}

/// Keys of PEFT 0.21's `XLoraConfig`.
#[test]
fn x_lora_configurations_are_read_or_refused() {
    let model = model("llama");
    let names = ["a".to_owned(), "b".to_owned()];
    let read = |changes: Value| {
        let directory = tempfile::tempdir().unwrap();
        let mut config = json!({
            "peft_type": "XLORA", "task_type": "CAUSAL_LM", "hidden_size": tiny::HIDDEN, "adapters": {"0": "a", "1": "b"},
            "enable_softmax": true, "enable_softmax_topk": false, "layerwise_scalings": false, "xlora_depth": 1,
            "xlora_size": 2048, "xlora_dropout_p": 0.2, "use_trainable_adapters": false, "softmax_temperature": 1.0,
            "top_k_lora": null, "scaling_pass_value": 0.0, "global_scaling_weight": 1.0,
        });
        let (Value::Object(object), Value::Object(changes)) = (&mut config, changes) else {
            panic!("two objects")
        };
        object.extend(changes);
        files::write_json(&directory.path().join("xlora_config.json"), &config).unwrap();
        let (weight, bias) = (vec![0.5; 2 * tiny::HIDDEN], [0.5; 2]);
        let tensors = [
            NamedTensor { name: "last.weight".into(), shape: vec![2, tiny::HIDDEN], values: &weight },
            NamedTensor { name: "last.bias".into(), shape: vec![2], values: &bias },
        ];
        files::write_tensors(&directory.path().join("xlora_classifier.safetensors"), &tensors).unwrap();
        router_files::read(directory.path(), &names, &model, None).map_err(|e| e.to_string())
    };
    assert_eq!(read(json!({})).unwrap().config.gate.top_k, 2);
    for adapters in [json!({"a": "x", "b": "y"}), json!({"x": "x", "y": "y"}), json!({})] {
        assert!(read(json!({"adapters": adapters})).is_ok(), "{adapters}");
    }
    assert_eq!(read(json!({"top_k_lora": 1, "global_scaling_weight": null})).unwrap().config.gate.top_k, 1);
    for (changes, expected) in [
        (json!({"scaling_pass_value": 0.5}), "scaling_pass_value is 0.5"),
        (json!({"layerwise_scalings": true}), "layerwise_scalings is true"),
        (json!({"xlora_depth": 2}), "xlora_depth is 2"),
        (json!({"enable_softmax": false}), "enable_softmax is false"),
        (json!({"enable_softmax_topk": true}), "enable_softmax_topk"),
        (json!({"global_scaling_weight": 2.0}), "global_scaling_weight is 2.0"),
        (json!({"softmax_temperature": 1e40}), "temperature"),
        (json!({"top_k_lora": 3}), "top_k"),
        (json!({"hidden_size": 7}), "belongs to another base"),
        (json!({"peft_type": "LORA"}), "only XLORA"),
        (json!({"adapters": {"b": "x", "a": "y"}}), "[b, a], but the experts given are [a, b]"),
        (json!({"adapters": {"0": "x", "1": "y", "2": "z"}}), "among 3 adapters (0, 1, 2)"),
        (json!({"some_future_key": 3}), "some_future_key = 3"),
    ] {
        let message = read(changes.clone()).map(|_| String::new()).unwrap_or_else(|message| message);
        assert!(message.contains(expected), "{changes}: {message:?}");
    }
}

/// The scales of written adapters are those that are read, also where alpha has more digits than anybody would write.
#[test]
fn scales_survive_writing_and_reading() {
    let directory = tempfile::tempdir().unwrap();
    for rslora in [false, true] {
        for scale in [4.0, 0.1, 1e-9, 3.3e-7, 1.234_567_8, 1e30, f32::MIN_POSITIVE, -2.5] {
            let mut expert = read(json!({"use_rslora": rslora}), &usual()).unwrap();
            for factors in expert.blocks.iter_mut().flatten().flatten() {
                factors.scale = scale;
            }
            let origin = peft::Origin { name: "e".into(), base_hash: "0".into() };
            peft::write(&expert, &model("llama"), "base", &origin, directory.path()).unwrap();
            let again = peft::read(directory.path(), &model("llama")).unwrap();
            assert_eq!(scales(&again), [Some(scale); 4], "{scale} {rslora}");
        }
    }
}

/// Exports are written to a directory of the expert's name.
#[test]
fn a_name_that_leads_elsewhere_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), json!({}), &usual());
    for (name, fine) in [
        ("math", true),
        ("Mathe 2 (ä)", true),
        ("", false),
        ("..", false),
        ("../evil", false),
        ("/tmp/evil", false),
        ("a/b", false),
        ("a\nb", false),
        (".mixse-tmp-x", false),
    ] {
        let origin = peft::Origin { name: name.into(), base_hash: "0".into() };
        files::write_json(&directory.path().join(peft::ORIGIN), &origin).unwrap();
        let read = peft::read(directory.path(), &model("llama")).map_err(|e| e.to_string());
        match read {
            Ok(expert) => assert!(fine && expert.name == name, "{name:?}"),
            Err(what) => assert!(!fine && what.contains("mixse.json") && what.contains("name is"), "{what}"),
        }
    }
}
