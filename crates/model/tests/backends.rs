//! Every backend against the reference: what routers in closed form read, what is chosen and scored, the optimiser.

#![allow(clippy::unwrap_used, reason = "a fault in a test's own support is a panic")]

mod tiny;

use std::sync::Arc;

use mixse_kernels::sample::Sampling;
use mixse_model::{
    engine::{
        Ask, Choice, Draw, Engine, LoadOptions, Memory, Parameters, Precision, Processor, Ragged, Step,
        Target, TokenScore, Trained, TrainingPass,
    },
    expert_set::ExpertSet,
    mixture::Mixture,
    router::{Granularity, RouterConfig, RouterInput},
    weights::Checkpoint,
};

fn singles(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&v| v as f32).collect()
}

#[test]
fn moments_of_what_routers_read() {
    tiny::each_backend(|what, ids, _, engine, reference| {
        let ragged = Arc::new(Ragged::whole([5, ids.len() - 5]));
        for granularity in [Granularity::Token, Granularity::Sequence] {
            for (input, shared) in [
                (RouterInput::Block, true),
                (RouterInput::Block, false),
                (RouterInput::BaseLast, true),
                (RouterInput::Embedding, true),
            ] {
                let config = RouterConfig { input, shared, granularity, ..RouterConfig::default() };
                let read = |engine: &Engine| {
                    let mut moments = engine.moments(&config).unwrap();
                    moments.add(&ids[..5], &Arc::new(Ragged::whole([5]))).unwrap();
                    moments.add(ids, &ragged).unwrap();
                    moments.read().unwrap()
                };
                let (got, want) = (read(engine), read(reference));
                assert_eq!(got.len(), if shared { 1 } else { engine.config.blocks.len() });
                for (got, want) in got.iter().zip(&want) {
                    let what = format!("{what}, {input:?}, {granularity:?}");
                    assert_eq!(got.rows, want.rows, "{what}");
                    tiny::assert_close(&what, &singles(&got.sum), &singles(&want.sum));
                    // Sums of squares are some hundreds.
                    let part = |v: &[f64]| singles(&v.iter().map(|v| v / 100.0).collect::<Vec<_>>());
                    tiny::assert_close(&what, &part(&got.products), &part(&want.products));
                }
            }
        }
    });
}

fn sampled(sampling: Sampling, uniform: f32) -> Draw {
    Draw::Sample { sampling, uniform }
}

#[test]
fn tokens_are_chosen_and_scored_alike() {
    tiny::each_backend(|what, ids, _, engine, reference| {
        let ragged = Arc::new(Ragged::whole([ids.len()]));
        let draws = [
            Draw::Greedy,
            sampled(Sampling { temperature: 0.7, top_p: 0.9, ..Sampling::default() }, 0.31),
            sampled(Sampling { temperature: 1.3, top_k: 5, min_p: 0.01, ..Sampling::default() }, 0.87),
        ];
        let choices: Vec<Choice> =
            (0..ids.len()).flat_map(|row| draws.map(|draw| Choice::new(row, draw))).collect();
        let targets: Vec<Target> =
            ids.iter().enumerate().map(|(row, &token)| Target { row, token }).collect();
        let ask = Ask { choices: &choices, targets: &targets, top: 3, ..Ask::default() };
        let of = |engine: &Engine| engine.whole(ids, &ragged, None, &ask).unwrap();
        let (got, want) = (of(engine), of(reference));
        assert_eq!(got.chosen, want.chosen, "{what}");
        assert_eq!((got.chosen.len(), got.scores.len()), (choices.len(), ids.len()), "{what}");
        for (got, want) in got.scores.iter().zip(&want.scores) {
            assert!((got.log_prob - want.log_prob).abs() < 1e-4, "{what}: {got:?} and {want:?}");
            assert_eq!(got.greedy, want.greedy, "{what}");
            let ids = |score: &TokenScore| score.top.iter().map(|(id, _)| *id).collect::<Vec<_>>();
            assert_eq!((got.top.len(), ids(got)), (3, ids(want)), "{what}");
        }
        tiny::assert_close(what, &engine.mean_hidden(ids).unwrap(), &reference.mean_hidden(ids).unwrap());
    });
}

#[test]
fn what_lies_outside_is_refused() {
    tiny::each_case(|what, _, ids, model, processor| {
        let engine = tiny::load(model, processor);
        let ragged = Arc::new(Ragged::whole([ids.len()]));
        let vocabulary = engine.config.vocab_size as u32;
        let whole =
            |ids: &[u32], ask: &Ask<'_>| engine.whole(ids, &ragged, None, ask).unwrap_err().to_string();
        let outside = [vec![vocabulary], ids[1..].to_vec()].concat();
        assert!(whole(&outside, &Ask::default()).contains("vocabulary"), "{what}");
        let row = Ask { logits: &[ids.len()], ..Ask::default() };
        assert!(whole(ids, &row).contains("lies outside"), "{what}");
        let token = Ask { targets: &[Target { row: 0, token: vocabulary }], ..Ask::default() };
        assert!(whole(ids, &token).contains("lies outside"), "{what}");
    });
}

/// Steps of the optimiser, with clipping and decay.
#[test]
fn steps_of_the_optimiser_agree() {
    tiny::each_backend(|what, ids, model, engine, reference| {
        let experts = tiny::experts(model, engine);
        let mixture = Mixture::all(ExpertSet::new(&experts[..1], &engine.config).unwrap());
        let ragged = Arc::new(Ragged::whole([ids.len()]));
        let targets: Vec<Target> =
            (0..ids.len() - 1).map(|row| Target { row, token: ids[row + 1] }).collect();
        let pass = TrainingPass::new(ids, &ragged, &targets, 0.1);
        let train = |engine: &Engine| {
            let trained = Trained { experts: true, router: false };
            let mut trainer = engine.trainer(&mixture, trained, Memory::Keep, false).unwrap();
            let before = trainer.loss(&pass).unwrap();
            for number in 1..=3 {
                // Two passes a step: their gradients are added up.
                trainer.pass(&pass).unwrap();
                trainer.pass(&pass).unwrap();
                let step = Step {
                    number,
                    expert_rate: 1e-2,
                    router_rate: 0.0,
                    factor: 0.5,
                    clip_norm: 0.2,
                    weight_decay: 0.1,
                };
                trainer.step(&step).unwrap();
            }
            let gradients = trainer.read(Parameters::Gradients).unwrap();
            assert!(gradients.iter().flatten().all(|&g| g == 0.0), "a step forgets the gradients");
            assert!(trainer.loss(&pass).unwrap() < before, "{what}: something is learned");
            let short = vec![vec![0.0]; gradients.len()];
            assert!(trainer.write(Parameters::Values, short).is_err(), "other lengths are refused");
            let all = [Parameters::Values, Parameters::FirstMoments, Parameters::SecondMoments];
            all.map(|which| trainer.read(which).unwrap().concat())
        };
        for (got, want) in train(engine).iter().zip(&train(reference)) {
            tiny::assert_close(what, got, want);
        }
    });
}

#[test]
fn the_reference_has_bf16_as_rounded_f32_and_no_integers() {
    tiny::each_case(|what, _, ids, model, processor| {
        if processor != Processor::Reference {
            return;
        }
        let checkpoint = Checkpoint::open(model).unwrap();
        let load = |precision| Engine::load(&checkpoint, &LoadOptions { precision, processor });
        let logits = |precision| {
            let ragged = Arc::new(Ragged::whole([ids.len()]));
            let ask = Ask { logits: &[ids.len() - 1], ..Ask::default() };
            load(precision).unwrap().whole(ids, &ragged, None, &ask).unwrap().logits
        };
        let (exact, rounded) = (logits(Precision::F32), logits(Precision::Bf16));
        let size = exact.iter().fold(0f32, |most, v| most.max(v.abs()));
        let most = exact.iter().zip(&rounded).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(most > 0.0 && most < 0.1 * size, "{what}: logits of {size} differ by {most}");
        for precision in [Precision::Int8, Precision::Int4] {
            assert!(!processor.has(precision));
            let error = load(precision).unwrap_err().to_string();
            assert!(error.contains(precision.name()), "{what}: {error}");
        }
    });
}
