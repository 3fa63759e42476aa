//! LoRA training against PEFT and PyTorch's AdamW, and what a training must keep to whatever happens to it.

#![allow(clippy::unwrap_used, reason = "a fault in a test's own support is a panic")]

#[path = "../../model/tests/tiny/mod.rs"]
mod tiny;

use std::{ops::ControlFlow, path::Path, sync::Arc};

use mixse_model::{
    engine::{Engine, Memory, Processor, Ragged},
    expert::{Expert, LoraConfig},
    expert_set::ExpertSet,
    files,
    mixture::{Mixture, Routing},
    peft,
    router::{GateConfig, Router, RouterConfig, RouterInput},
};
use mixse_selfmoe::train::{
    DomainMoments, HeldOut, Job, Outcome, RidgeConfig, Schedule, StepReport, TrainConfig, TrainRow,
    check_expert, discard_damaged, fit_ridge, train_expert, train_jointly, train_router,
};

/// The reference's settings: 20 steps of 4 rows in file order at 1e-2.
fn reference_config() -> TrainConfig {
    TrainConfig {
        learning_rate: 1e-2,
        epochs: 0,
        max_steps: 20,
        batch_size: 4,
        shuffle: false,
        ..TrainConfig::default()
    }
}

fn rows(case: &tiny::Case) -> Vec<TrainRow> {
    serde_json::from_value(case.rows.clone()).unwrap()
}

fn job<'a>(engine: &'a Engine, rows: &'a [TrainRow], config: &'a TrainConfig) -> Job<'a> {
    Job { engine, rows, config, seed: 5, memory: Memory::Keep, keep_states: false, state: None }
}

fn done<T>(outcome: Outcome<T>) -> (T, Vec<f32>) {
    match outcome {
        Outcome::Done(result, history) => (result, history.losses),
        Outcome::Stopped => panic!("stopped"),
    }
}

#[test]
fn losses_and_trained_tensors_agree_with_peft() {
    tiny::each_case(|what, case, _, model, processor| {
        let engine = tiny::load(model, processor);
        let start = tiny::experts(model, &engine).swap_remove(0);
        let (rows, config) = (rows(case), reference_config());
        let (trained, losses) = done(
            train_expert(job(&engine, &rows, &config), &start, &mut |_| ControlFlow::Continue(())).unwrap(),
        );
        assert_eq!(losses.len(), case.losses.len());
        for (step, (got, want)) in losses.iter().zip(&case.losses).enumerate() {
            assert!(
                (got - want).abs() <= 1e-4 * want.abs(),
                "{what}: step {step}: loss {got}, reference {want}"
            );
        }
        assert!(losses[18] < losses[0], "{what}: the reference learns something: {losses:?}");

        let dir = model.with_file_name("trained");
        let origin = peft::Origin { name: "trained".into(), base_hash: "0".into() };
        peft::write(&trained, &engine.config, "tiny", &origin, &dir).unwrap();
        let written = files::read_tensors(&dir.join(peft::TENSORS)).unwrap();
        assert_eq!(written.len(), case.trained.len());
        for tensor in written {
            let want = &case.trained[&tensor.name];
            for (got, want) in tensor.values.iter().step_by(97).zip(want) {
                assert!((got - want).abs() <= 1e-4, "{what}: {}: {got}, reference {want}", tensor.name);
            }
        }
        assert_eq!(
            peft::read(&dir, &engine.config).unwrap().blocks,
            trained.blocks,
            "{what}: what is written is read back"
        );
    });
}

/// Runs `test` on the first architecture only, on the processor.
fn on_one_model(test: impl Fn(&tiny::Case, &Path, &Engine)) {
    tiny::each_case(|what, case, _, model, processor| {
        if what.starts_with("qwen3") && processor == Processor::Cpu {
            test(case, model, &tiny::load(model, processor));
        }
    });
}

/// Settings that touch everything that a state holds.
fn resumable() -> Vec<(&'static str, TrainConfig, LoraConfig)> {
    let config = TrainConfig {
        epochs: 4,
        batch_size: 5,
        learning_rate: 1e-2,
        schedule: Schedule::Cosine,
        warmup_steps: 3,
        clip_norm: 0.5,
        weight_decay: 0.1,
        pass_tokens: 16,
        save_every: 2,
        ..TrainConfig::default()
    };
    let lora = LoraConfig { rank: 4, ..LoraConfig::default() };
    vec![
        ("cosine, warm-up, clipping, decay", config.clone(), lora.clone()),
        (
            "linear, rsLoRA, dropout",
            TrainConfig { schedule: Schedule::Linear, clip_norm: 0.0, ..config.clone() },
            LoraConfig { rslora: true, dropout: 0.3, ..lora.clone() },
        ),
        (
            "validation and dropout",
            TrainConfig { validation: HeldOut::Rows(3), validate_every: 1, ..config.clone() },
            LoraConfig { dropout: 0.5, ..lora.clone() },
        ),
        (
            "early stopping",
            TrainConfig {
                learning_rate: 0.2,
                schedule: Schedule::Constant,
                clip_norm: 0.0,
                validation: HeldOut::Share(0.3),
                validate_every: 2,
                patience: 1,
                ..config
            },
            lora,
        ),
    ]
}

#[test]
fn a_training_that_was_stopped_continues_bit_for_bit() {
    on_one_model(|case, model, engine| {
        let rows = rows(case);
        for (what, config, lora) in resumable() {
            let start = Expert::init("e", &lora, &engine.config, 1).unwrap();
            let mut go_on = |_| ControlFlow::Continue(());
            let Outcome::Done(whole, history) =
                train_expert(job(engine, &rows, &config), &start, &mut go_on).unwrap()
            else {
                panic!("{what}: stopped")
            };
            let state = model.with_file_name("state");
            let job = Job { state: Some(&state), ..job(engine, &rows, &config) };
            // Stopped after every step: each time the state on disk is all that is left.
            let mut attempts = 0;
            let resumed = loop {
                attempts += 1;
                match train_expert(job, &start, &mut |_| ControlFlow::Break(())).unwrap() {
                    Outcome::Done(expert, history) => break (expert, history),
                    Outcome::Stopped => {}
                }
            };
            assert_eq!(attempts, history.losses.len() + 1, "{what}");
            assert!(resumed == (whole, history), "{what}");
            std::fs::remove_dir_all(&state).unwrap();
        }
    });
}

#[test]
fn a_damaged_checkpoint_starts_the_training_again() {
    on_one_model(|case, model, decoder| {
        let rows = rows(case);
        let (_, config, lora) = resumable().swap_remove(0);
        let start = Expert::init("e", &lora, &decoder.config, 1).unwrap();
        let directory = model.with_file_name("damaged");
        let file = directory.join("state.safetensors");
        let job = Job { state: Some(&directory), ..job(decoder, &rows, &config) };
        let train = |stop_after: usize| {
            let mut seen = Vec::new();
            let outcome = train_expert(job, &start, &mut |report| {
                seen.push(report.step);
                if report.step == stop_after { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            (outcome.unwrap(), seen)
        };
        let (whole, steps) = train(0);
        let _ = std::fs::remove_dir_all(&directory);
        train(2);
        let good = std::fs::read(&file).unwrap();
        assert_eq!(discard_damaged(&directory).unwrap(), None);
        assert_eq!(train(0).1, steps[2..], "a good one is continued");
        let flipped = |at: usize| {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            bytes
        };
        let damaged = [
            ("empty", Vec::new()),
            ("cut in the header", good[..40].to_vec()),
            ("cut in the values", good[..good.len() - 1].to_vec()),
            ("half", good[..good.len() / 2].to_vec()),
            ("a value changed", flipped(good.len() - 300)),
            ("the last byte changed", flipped(good.len() - 4)),
            ("nonsense", vec![0; good.len()]),
        ];
        for (what, bytes) in damaged {
            std::fs::write(&file, &bytes).unwrap();
            let (outcome, seen) = train(0);
            assert_eq!(seen, steps, "{what}");
            let (Outcome::Done(again, _), Outcome::Done(whole, _)) = (&outcome, &whole) else {
                panic!("{what}")
            };
            assert!(again == whole, "{what}");
            std::fs::write(&file, &bytes).unwrap();
            let told = discard_damaged(&directory).unwrap().unwrap();
            assert!(told.contains("state.safetensors: "), "{what}: {told}");
            assert!(!file.exists(), "{what}");
        }
        std::fs::remove_dir_all(&directory).unwrap();
    });
}

#[test]
fn the_parameters_with_the_best_validation_loss_are_kept() {
    on_one_model(|case, _, engine| {
        let rows = rows(case);
        // A rate at which the held-out loss soon rises.
        let config = TrainConfig {
            epochs: 10,
            batch_size: 4,
            learning_rate: 0.1,
            validation: HeldOut::Share(0.3),
            validate_every: 1,
            ..TrainConfig::default()
        };
        let lora = LoraConfig { rank: 4, ..LoraConfig::default() };
        let start = Expert::init("e", &lora, &engine.config, 1).unwrap();
        let train = |config: &TrainConfig| match train_expert(job(engine, &rows, config), &start, &mut |_| {
            ControlFlow::Continue(())
        })
        .unwrap()
        {
            Outcome::Done(expert, history) => (expert, history),
            Outcome::Stopped => panic!("stopped"),
        };
        let (expert, history) = train(&config);
        assert_eq!(history.validation.len(), history.losses.len() + 1);
        let best = history.validation[1..].iter().min_by(|a, b| a.loss.total_cmp(&b.loss)).unwrap();
        assert_eq!(history.kept_step, best.step);
        assert!(best.step < history.losses.len(), "the last step is not the best: {:?}", history.validation);
        let (until_best, _) = train(&TrainConfig { max_steps: best.step, ..config.clone() });
        assert!(expert.blocks == until_best.blocks, "the kept parameters are those of the best step");

        let (patient, short) = train(&TrainConfig { patience: 2, ..config.clone() });
        assert!(short.losses.len() < history.losses.len(), "it stops early");
        assert_eq!(short.validation, history.validation[..short.validation.len()]);
        assert!(short.kept_step + 2 == short.losses.len() && patient.config == expert.config);
    });
}

#[test]
fn dropout_changes_the_training_and_not_the_use() {
    on_one_model(|case, _, engine| {
        let rows = rows(case);
        let config = TrainConfig { epochs: 2, batch_size: 4, ..reference_config() };
        let train = |dropout: f64, pass_tokens: usize| {
            let lora = LoraConfig { rank: 4, dropout, ..LoraConfig::default() };
            let start = Expert::init("e", &lora, &engine.config, 1).unwrap();
            let config = TrainConfig { pass_tokens, ..config.clone() };
            done(
                train_expert(job(engine, &rows, &config), &start, &mut |_| ControlFlow::Continue(()))
                    .unwrap(),
            )
        };
        let (plain, thinned) = (train(0.0, 2048), train(0.5, 2048));
        assert_eq!(plain.1[0], thinned.1[0], "an expert that adds nothing loses nothing");
        assert_ne!(plain.1[1..], thinned.1[1..]);
        assert_ne!(plain.0.blocks, thinned.0.blocks);
        // The masks belong to the rows, so that cutting a batch changes sums by rounding only.
        let cut = train(0.5, 16);
        for (a, b) in cut.1.iter().zip(&thinned.1) {
            assert!((a - b).abs() < 1e-4, "{:?} {:?}", cut.1, thinned.1);
        }
    });
}

/// Rows of a batch are sorted by length and packed into passes; the loss and what is learnt are those of rows alone.
#[test]
fn packed_rows_train_as_rows_alone() {
    on_one_model(|case, _, engine| {
        let rows = rows(case);
        let start =
            Expert::init("e", &LoraConfig { rank: 4, ..LoraConfig::default() }, &engine.config, 1).unwrap();
        let train = |pass_tokens| {
            let config = TrainConfig { pass_tokens, ..reference_config() };
            done(
                train_expert(job(engine, &rows, &config), &start, &mut |_| ControlFlow::Continue(()))
                    .unwrap(),
            )
        };
        let ((alone, losses), (packed, packed_losses)) = (train(1), train(4096));
        for (loss, packed) in losses.iter().zip(&packed_losses) {
            assert!((loss - packed).abs() <= 1e-4 * loss.abs(), "{losses:?} and {packed_losses:?}");
        }
        let factors = |expert: &Expert| -> Vec<f32> {
            let all = expert.blocks.iter().flatten().flatten();
            all.flat_map(|f| f.a.iter().chain(&f.b).copied()).collect()
        };
        for (alone, packed) in factors(&alone).into_iter().zip(factors(&packed)) {
            assert!((alone - packed).abs() <= 1e-4, "{alone} and {packed}");
        }
    });
}

#[test]
fn recomputing_activations_changes_nothing() {
    on_one_model(|case, _, engine| {
        let (rows, config) = (rows(case), reference_config());
        let start =
            Expert::init("e", &LoraConfig { rank: 4, ..LoraConfig::default() }, &engine.config, 1).unwrap();
        let train = |memory| {
            let job = Job { memory, ..job(engine, &rows, &config) };
            done(train_expert(job, &start, &mut |_| ControlFlow::Continue(())).unwrap())
        };
        assert_eq!(train(Memory::Keep), train(Memory::Recompute));
    });
}

#[test]
fn hidden_states_of_an_earlier_epoch_change_nothing() {
    on_one_model(|case, model, engine| {
        let rows = rows(case);
        let config = TrainConfig { epochs: 4, batch_size: 3, pass_tokens: 24, ..reference_config() };
        let experts = tiny::experts(model, engine);
        let set = ExpertSet::new(&experts, &engine.config).unwrap();
        let settings = RouterConfig { input: RouterInput::BaseLast, ..RouterConfig::default() };
        let start = Router::init(&settings, &set.names, &engine.config, 2).unwrap();
        let train = |keep_states| {
            let job = Job { keep_states, ..job(engine, &rows, &config) };
            let go_on = &mut |_: StepReport| ControlFlow::Continue(());
            let (router, losses) = done(train_router(job, &set, &start, 0.0, go_on).unwrap());
            (router.weights[0].clone(), losses)
        };
        assert_eq!(train(true), train(false));
    });
}

#[test]
fn a_router_learns_for_every_input_and_leaves_the_experts_alone() {
    on_one_model(|case, model, engine| {
        let (rows, config) = (rows(case), reference_config());
        let experts = tiny::experts(model, engine);
        let set = ExpertSet::new(&experts, &engine.config).unwrap();
        for input in [RouterInput::Block, RouterInput::BaseLast, RouterInput::Embedding] {
            let settings = RouterConfig {
                input,
                gate: GateConfig { top_k: 2, ..GateConfig::default() },
                ..RouterConfig::default()
            };
            let start = Router::init(&settings, &set.names, &engine.config, 2).unwrap();
            let job = job(engine, &rows, &config);
            let (router, losses) =
                done(train_router(job, &set, &start, 0.0, &mut |_| ControlFlow::Continue(())).unwrap());
            assert!(losses[18] < losses[0], "{input:?}: {losses:?}");
            let values = |r: &Router| r.weights[0].clone();
            assert_ne!(values(&router), values(&start));
            let (together, joint) = done(
                train_jointly(job, &experts, &start, 3e-3, 0.0, &mut |_| ControlFlow::Continue(())).unwrap(),
            );
            assert!(joint[18] < losses[18], "{input:?}: training everything fits the rows better");
            assert!(together.0.iter().zip(&experts).all(|(a, b)| a.blocks != b.blocks));
        }
    });
}

/// Rows of two domains that use different tokens.
fn rows_of_two_domains() -> Vec<TrainRow> {
    let row = |i: u32| {
        let domain = i % 2;
        let token = |k: u32| 2 + domain * 20 + (i * 7 + k * 5) % 18;
        TrainRow {
            prompt_ids: (0..6).map(token).collect(),
            target_ids: (6..12).map(token).collect(),
            domain: Some(domain),
        }
    };
    (0..24).map(row).collect()
}

/// The share of tokens and blocks in which the largest gate is that of the row's domain.
fn share_routed_right(engine: &Engine, mixture: &Mixture, rows: &[TrainRow]) -> f64 {
    let (mut right, mut all) = (0, 0);
    for row in rows {
        let ids: Vec<u32> = row.prompt_ids.iter().chain(&row.target_ids).copied().collect();
        let gates = engine.route(&ids, &Arc::new(Ragged::whole([ids.len()])), mixture).unwrap();
        for token in gates.iter().flat_map(|block| block.chunks_exact(2)) {
            right += usize::from((token[1] > token[0]) == (row.domain == Some(1)));
            all += 1;
        }
    }
    right as f64 / all as f64
}

#[test]
fn ridge_and_domain_loss_teach_the_router_the_domains() {
    on_one_model(|_, model, engine| {
        let rows = rows_of_two_domains();
        let (own, other): (Vec<TrainRow>, Vec<TrainRow>) =
            rows.iter().cloned().partition(|r| r.domain == Some(0));
        let experts = tiny::experts(model, engine);
        let set = ExpertSet::new(&experts[..2], &engine.config).unwrap();
        for (input, shared) in [
            (RouterInput::Block, true),
            (RouterInput::Block, false),
            (RouterInput::BaseLast, true),
            (RouterInput::Embedding, true),
        ] {
            let settings = RouterConfig { input, shared, ..RouterConfig::default() };
            let mixture = |router| Mixture { experts: set.clone(), routing: Routing::Learned(router) };
            let start = Router::init(&settings, &set.names, &engine.config, 2).unwrap();
            let untrained = share_routed_right(engine, &mixture(start.clone()), &rows);
            assert!(untrained < 0.8, "{input:?}: {untrained} by chance");

            let moments: Vec<DomainMoments> = [&own, &other]
                .map(|rows| {
                    let go_on = &mut |_, _| ControlFlow::Continue(());
                    DomainMoments::of(engine, rows, &settings, 512, 32, go_on).unwrap().unwrap()
                })
                .into();
            assert_eq!(moments[0].tokens, 12 * 11);
            let fit = |moments: &[DomainMoments]| {
                let ridge = RidgeConfig::default();
                let router = fit_ridge(&settings, &ridge, &set.names, moments, &engine.config).unwrap();
                let values = router.weights[0].clone();
                (share_routed_right(engine, &mixture(router), &rows), values)
            };
            let (share, values) = fit(&moments);
            assert!(share > 0.95, "{input:?}, shared {shared}: ridge routes {share} right");
            let path = model.with_file_name("moments.safetensors");
            moments[1].write(&path).unwrap();
            let read = DomainMoments::read(&path, &settings, &engine.config).unwrap();
            assert_eq!(fit(&[moments[0].clone(), read]).1, values, "{input:?}: fitted from the file");

            let config = TrainConfig { max_steps: 60, ..reference_config() };
            let go_on = &mut |_: StepReport| ControlFlow::Continue(());
            let (router, losses) =
                done(train_router(job(engine, &rows, &config), &set, &start, 2.0, go_on).unwrap());
            let share = share_routed_right(engine, &mixture(router), &rows);
            assert!(
                share > untrained + 0.05,
                "{input:?}: the domain loss routes {share} right, chance {untrained}"
            );
            let without =
                done(train_router(job(engine, &rows, &config), &set, &start, 0.0, go_on).unwrap()).1;
            assert!(losses[0] > without[0] + 1.0, "{input:?}: the domain loss is added: {losses:?}");
        }
        let mut unknown = rows.clone();
        unknown[3].domain = None;
        let start = Router::init(&RouterConfig::default(), &set.names, &engine.config, 2).unwrap();
        let config = reference_config();
        let message = train_router(job(engine, &unknown, &config), &set, &start, 1.0, &mut |_| {
            ControlFlow::Continue(())
        })
        .unwrap_err()
        .to_string();
        assert!(message.contains("row 4 has no domain"), "{message}");
    });
}

#[test]
fn an_expert_that_does_nothing_is_refused() {
    on_one_model(|case, model, engine| {
        let rows = rows(case);
        let hash = engine.weights_hash();
        let check = |expert: &Expert, hash: &str| {
            check_expert(engine, expert, hash, &rows[0]).map_err(|e| e.to_string())
        };
        let good = tiny::experts(model, engine).swap_remove(0);
        assert_eq!(check(&good, &hash), Ok(()));
        let untrained =
            Expert::init("e", &LoraConfig { rank: 4, ..LoraConfig::default() }, &engine.config, 1).unwrap();
        assert!(check(&untrained, &hash).unwrap_err().contains("lora_B of block 0 q_proj is still zero"));
        let mut broken = good.clone();
        broken.blocks[1][6].as_mut().unwrap().a[3] = f32::NAN;
        assert!(check(&broken, &hash).unwrap_err().contains("block 1 down_proj"));
        assert!(check(&good, "other").unwrap_err().contains("hash changed"));
    });
}
