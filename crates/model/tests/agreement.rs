//! Agreement with Hugging Face transformers and PEFT on tiny models of every architecture.
//!
//! `fixtures/agreement.json` (made by `bench/fixtures.py`) holds what they compute; the models themselves are rebuilt here
//! from a formula. The bounds are the design's: logits within 1e-4, losses within 1e-4 relative over 20 steps, trained
//! tensors within 1e-4, greedy continuations identical.

#![allow(clippy::unwrap_used, reason = "a fault in a test's own support is a panic")]

mod tiny;

use std::sync::Arc;

use mixse_model::{
    engine::{Ask, Choice, Draw, Engine, Ragged},
    expert_set::ExpertSet,
    mixture::{Mixture, Routing},
    router::{GateConfig, Router, RouterConfig, RouterInput},
};
use tiny::{each_case, formula, load};

const LOGIT_BOUND: f32 = 1e-4;

/// Every 5th logit of every position.
fn logits(engine: &Engine, ids: &[u32], mixture: Option<&Mixture>) -> Vec<Vec<f32>> {
    let ragged = Arc::new(Ragged::whole([ids.len()]));
    let rows: Vec<usize> = (0..ids.len()).collect();
    let all = engine.whole(ids, &ragged, mixture, &Ask { logits: &rows, ..Ask::default() }).unwrap().logits;
    all.chunks(engine.config.vocab_size).map(|row| row.iter().copied().step_by(5).collect()).collect()
}

fn assert_close(what: &str, got: &[Vec<f32>], want: &[Vec<f32>], bound: f32) {
    assert_eq!(got.len(), want.len(), "{what}");
    let worst =
        got.iter().flatten().zip(want.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    let largest = want.iter().flatten().fold(0f32, |a, b| a.max(b.abs()));
    assert!(largest > 0.1, "{what}: the reference's values are too small to tell anything");
    assert!(worst <= bound, "{what}: largest difference {worst}, allowed {bound} (values up to {largest})");
}

#[test]
fn logits_agree_on_every_architecture() {
    each_case(|what, case, ids, model, processor| {
        assert_close(what, &logits(&load(model, processor), ids, None), &case.logits, LOGIT_BOUND);
    });
}

#[test]
fn greedy_continuations_agree_with_a_cache_and_in_uneven_steps() {
    each_case(|what, case, ids, model, processor| {
        let engine = load(model, processor);
        let mut session = engine.session(None).unwrap();
        let sequence = session.start();
        session.step(&[(sequence, &ids[..7])], &Ask::default()).unwrap();
        // A fork that goes another way must not disturb the sequence.
        let other = session.fork(sequence).unwrap();
        session.step(&[(other, &[1, 2, 3])], &Ask::default()).unwrap();
        let mut pending = ids[7..].to_vec();
        let mut all = ids.to_vec();
        while all.len() < case.greedy.len() {
            let choices = [Choice::new(pending.len() - 1, Draw::Greedy)];
            let ask = Ask { choices: &choices, ..Ask::default() };
            let chosen = session.step(&[(sequence, &pending)], &ask).unwrap().chosen;
            let chosen: Vec<u32> = chosen.into_iter().map(|chosen| chosen.token).collect();
            all.extend(&chosen);
            pending = chosen;
        }
        assert_eq!(all, case.greedy, "{what}");
    });
}

#[test]
fn x_lora_mixtures_agree() {
    each_case(|what, case, ids, model, processor| {
        let engine = load(model, processor);
        let experts = tiny::experts(model, &engine);
        let set = ExpertSet::new(&experts, &engine.config).unwrap();
        let gate = GateConfig { top_k: 2, ..GateConfig::default() };
        let router = Router {
            config: RouterConfig { input: RouterInput::BaseLast, gate, ..RouterConfig::default() },
            experts: set.names.clone(),
            weights: vec![Arc::new(formula("router", 3 * 64, 0.5))],
            bias: Some(Arc::new(formula("bias", 3, 0.5))),
        };
        let mixture = Mixture { experts: set, routing: Routing::Learned(router) };
        let ragged = Arc::new(Ragged::whole([ids.len()]));
        let gates = engine.route(ids, &ragged, &mixture).unwrap();
        let gates: Vec<Vec<f32>> = gates[0].chunks(3).map(<[f32]>::to_vec).collect();
        assert_close(&format!("{what}: gates"), &gates, &case.xlora_alpha, 1e-5);
        assert_close(what, &logits(&engine, ids, Some(&mixture)), &case.xlora_logits, LOGIT_BOUND);
    });
}
