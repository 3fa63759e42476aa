//! Tiny models and adapters whose weights are a formula, and what transformers and PEFT compute with them.
#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "test support: each test file uses its own part, and a fault is a panic"
)]

use std::{collections::BTreeMap, path::Path};

use mixse_model::{
    engine::{Engine, LoadOptions, Precision, Processor},
    expert::Expert,
    files::{self, NamedTensor},
    peft, random,
    weights::Checkpoint,
};
use serde::Deserialize;

#[derive(Deserialize)]
pub(crate) struct Fixtures {
    pub(crate) ids: Vec<u32>,
    pub(crate) cases: BTreeMap<String, Case>,
}

#[derive(Deserialize)]
pub(crate) struct Case {
    pub(crate) config: serde_json::Value,
    pub(crate) shapes: BTreeMap<String, Vec<usize>>,
    pub(crate) rows: serde_json::Value,
    pub(crate) losses: Vec<f32>,
    pub(crate) trained: BTreeMap<String, Vec<f32>>,
    pub(crate) logits: Vec<Vec<f32>>,
    pub(crate) greedy: Vec<u32>,
    pub(crate) xlora_alpha: Vec<Vec<f32>>,
    pub(crate) xlora_logits: Vec<Vec<f32>>,
}

pub(crate) fn fixtures() -> Fixtures {
    serde_json::from_str(include_str!("../fixtures/agreement.json")).unwrap()
}

/// `values(name, shape, scale)` of `bench/fixtures.py`.
pub(crate) fn formula(name: &str, len: usize, scale: f32) -> Vec<f32> {
    let stream = random::stream(&[name]);
    (0..len).map(|i| (random::uniform(7, stream, i as u64) * 2.0 - 1.0) * scale).collect()
}

pub(crate) fn write_model(case: &Case, dir: &Path) {
    files::write_json(&dir.join("config.json"), &case.config).unwrap();
    let data: Vec<(&String, &Vec<usize>, Vec<f32>)> = case
        .shapes
        .iter()
        .map(|(name, shape)| {
            let scale = if shape.len() > 1 { 0.1 } else { 0.5 };
            (name, shape, formula(name, shape.iter().product(), scale))
        })
        .collect();
    let tensors: Vec<NamedTensor<'_>> = data
        .iter()
        .map(|(name, shape, values)| NamedTensor { name: (*name).clone(), shape: (*shape).clone(), values })
        .collect();
    files::write_tensors(&dir.join("model.safetensors"), &tensors).unwrap();
}

/// `adapter(out, tag, rank, alpha)` of `bench/fixtures.py`.
pub(crate) fn write_adapter(dir: &Path, tag: &str, rank: usize, alpha: usize) {
    let (d, m, kv) = (64, 160, 32);
    let mut data = Vec::new();
    for layer in 0..2 {
        for (path, k, n) in [
            ("self_attn.q_proj", d, d),
            ("self_attn.k_proj", d, kv),
            ("self_attn.v_proj", d, kv),
            ("self_attn.o_proj", d, d),
            ("mlp.gate_proj", d, m),
            ("mlp.up_proj", d, m),
            ("mlp.down_proj", m, d),
        ] {
            let path = format!("base_model.model.model.layers.{layer}.{path}");
            data.push((
                format!("{path}.lora_A.weight"),
                vec![rank, k],
                formula(&format!("{tag}:{path}.A"), rank * k, 0.2),
            ));
            data.push((
                format!("{path}.lora_B.weight"),
                vec![n, rank],
                formula(&format!("{tag}:{path}.B"), n * rank, 0.05),
            ));
        }
    }
    files::create_dir(dir).unwrap();
    let tensors: Vec<NamedTensor<'_>> = data
        .iter()
        .map(|(name, shape, values)| NamedTensor { name: name.clone(), shape: shape.clone(), values })
        .collect();
    files::write_tensors(&dir.join("adapter_model.safetensors"), &tensors).unwrap();
    let config = serde_json::json!({
        "peft_type": "LORA", "r": rank, "lora_alpha": alpha,
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    });
    files::write_json(&dir.join("adapter_config.json"), &config).unwrap();
}

pub(crate) fn load(dir: &Path, processor: Processor) -> Engine {
    let options = LoadOptions { precision: Precision::F32, processor };
    Engine::load(&Checkpoint::open(dir).unwrap(), &options).unwrap()
}

/// The three adapters of the fixtures, written beside `model` and read back.
pub(crate) fn experts(model: &Path, engine: &Engine) -> Vec<Expert> {
    [(4, 8), (4, 8), (3, 5)]
        .into_iter()
        .enumerate()
        .map(|(i, (rank, alpha))| {
            let dir = model.with_file_name(format!("e{i}"));
            write_adapter(&dir, &format!("e{i}"), rank, alpha);
            peft::read(&dir, &engine.config).unwrap()
        })
        .collect()
}

/// Runs `test(what, case, ids, model directory, processor)` for every case, on every backend and on the reference.
pub(crate) fn each_case(test: impl Fn(&str, &Case, &[u32], &Path, Processor)) {
    let fixtures = fixtures();
    for (name, case) in &fixtures.cases {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("model");
        files::create_dir(&model).unwrap();
        write_model(case, &model);
        for processor in [Processor::Reference, Processor::Cpu] {
            test(&format!("{name} ({processor:?})"), case, &fixtures.ids, &model, processor);
        }
    }
}

/// As [`each_case`], on every backend but the reference, which is given beside it.
pub(crate) fn each_backend(test: impl Fn(&str, &[u32], &Path, &Engine, &Engine)) {
    each_case(|what, _, ids, model, processor| {
        if processor != Processor::Reference {
            test(what, ids, model, &load(model, processor), &load(model, Processor::Reference));
        }
    });
}

/// Fails where two rows of values differ by 1e-4.
#[track_caller]
pub(crate) fn assert_close(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}");
    let most = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(most < 1e-4, "{what}: differs by {most}");
}
