//! Agreement with transformers on the real base models, where they are in the cache: logits, probabilities, greedy text.
//!
//! `fixtures/real_*.json` (made by `bench/real_models.py`) holds what transformers computes in f32 with the same GGUF file.

use std::sync::{Arc, Mutex, PoisonError};

use mixse_model::{
    engine::{Ask, Choice, Draw, Engine, LoadOptions, Precision, Ragged},
    weights::Checkpoint,
};
use serde::Deserialize;

use crate::real_models::cached;

/// The design's bounds for the real models.
const LOGIT_BOUND: f32 = 2e-3;
const BF16_LOG_PROBABILITY_BOUND: f32 = 0.02;

/// The largest of the models takes 7 GB in f32: one is loaded at a time.
static LOADED: Mutex<()> = Mutex::new(());

#[derive(Deserialize)]
struct Fixture {
    ids: Vec<u32>,
    /// Every `step`-th logit of every `every`-th position of the prompt.
    logits: Vec<Vec<f32>>,
    step: usize,
    every: usize,
    /// Of each id after the first, given those before it.
    log_probabilities: Vec<f32>,
    /// Ids that the greedy continuation starts from.
    prompt: usize,
    greedy: Vec<u32>,
}

/// Logits `[ids, vocabulary]` of a text.
fn logits(engine: &Engine, ids: &[u32]) -> Vec<f32> {
    let ragged = Arc::new(Ragged::whole([ids.len()]));
    let rows: Vec<usize> = (0..ids.len()).collect();
    engine.whole(ids, &ragged, None, &Ask { logits: &rows, ..Ask::default() }).unwrap().logits
}

fn log_probability(logits: &[f32], id: u32) -> f32 {
    let largest = logits.iter().copied().fold(f32::MIN, f32::max);
    let sum: f64 = logits.iter().map(|&z| f64::from(z - largest).exp()).sum();
    logits[id as usize] - largest - sum.ln() as f32
}

/// Mean |Δ log p| of a text's tokens.
fn mean_difference(fixture: &Fixture, all: &[f32], vocabulary: usize) -> f32 {
    let ours = all.chunks(vocabulary).zip(&fixture.ids[1..]).map(|(row, &id)| log_probability(row, id));
    let differences = ours.zip(&fixture.log_probabilities).map(|(ours, theirs)| (ours - theirs).abs());
    differences.sum::<f32>() / fixture.log_probabilities.len() as f32
}

fn greedy(engine: &Engine, prompt: &[u32], count: usize) -> Vec<u32> {
    let mut session = engine.session(None).unwrap();
    let sequence = session.start();
    let mut pending = prompt.to_vec();
    let mut made = Vec::new();
    while made.len() < count {
        let choices = [Choice::new(pending.len() - 1, Draw::Greedy)];
        let found = session.step(&[(sequence, &pending)], &Ask { choices: &choices, ..Ask::default() });
        pending = found.unwrap().chosen.into_iter().map(|chosen| chosen.token).collect();
        made.extend(&pending);
    }
    made
}

fn check(name: &str, fixture: &str) {
    let Some(path) = cached(name) else { return };
    let _loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    let fixture: Fixture = serde_json::from_str(fixture).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let load =
        |precision| Engine::load(&checkpoint, &LoadOptions { precision, ..LoadOptions::default() }).unwrap();

    let engine = load(Precision::F32);
    let vocabulary = engine.config.vocab_size;
    let all = logits(&engine, &fixture.ids);
    for (row, theirs) in all.chunks(vocabulary).step_by(fixture.every).zip(&fixture.logits) {
        let ours = row.iter().step_by(fixture.step);
        let worst = ours.zip(theirs).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(worst <= LOGIT_BOUND, "{name}: logits differ by {worst}");
    }
    assert!(mean_difference(&fixture, &all, vocabulary) < LOGIT_BOUND, "{name}");
    let made = greedy(&engine, &fixture.ids[..fixture.prompt], fixture.greedy.len());
    assert_eq!(made, fixture.greedy, "{name}");
    drop((engine, all));

    let engine = load(Precision::Bf16);
    let difference = mean_difference(&fixture, &logits(&engine, &fixture.ids), vocabulary);
    assert!(difference < BF16_LOG_PROBABILITY_BOUND, "{name} in bf16: mean |Δ log p| is {difference}");
}

#[test]
fn smollm2_computes_as_transformers_does() {
    check("smollm2-135m-instruct", include_str!("../fixtures/real_smollm2.json"));
}

#[test]
fn gemma_3_computes_as_transformers_does() {
    check("gemma-3-270m", include_str!("../fixtures/real_gemma3.json"));
}

#[test]
fn qwen_2_5_coder_0_5b_computes_as_transformers_does() {
    check("qwen2.5-coder-0.5b-instruct", include_str!("../fixtures/real_qwen2.5_coder_0.5b.json"));
}

#[test]
fn qwen_2_5_coder_1_5b_computes_as_transformers_does() {
    check("qwen2.5-coder-1.5b-instruct", include_str!("../fixtures/real_qwen2.5_coder_1.5b.json"));
}
