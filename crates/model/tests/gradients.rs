//! Every backend against the reference: losses and gradients of experts and routers, with activations kept and recomputed,
//! on every architecture and every kind of gate; and the gradients of both against finite differences.

#![allow(clippy::unwrap_used, reason = "a fault in a test's own support is a panic")]

mod tiny;

use std::{path::Path, sync::Arc};

use mixse_kernels::packed::Q4Group;
use mixse_model::{
    engine::{
        DomainTarget, Dropout, Engine, LoadOptions, Memory, Parameters, Precision, Processor, Ragged, Target,
        Trained, Trainer, TrainingPass,
    },
    expert::{Expert, LoraConfig},
    expert_set::ExpertSet,
    mixture::{Mixture, Routing},
    router::{GateConfig, GateScale, Granularity, Router, RouterConfig, RouterInput, Score},
    weights::Checkpoint,
};
use mixse_testing::tiny as made;

/// A loss and the gradients of everything that is trained.
type Gradients = (f32, Vec<Vec<f32>>);

/// A training of all that there is in a mixture.
fn trainer<'e>(engine: &'e Engine, mixture: &Mixture, memory: Memory) -> Box<dyn Trainer + 'e> {
    let router = matches!(mixture.routing, Routing::Learned(_));
    engine.trainer(mixture, Trained { experts: true, router }, memory, false).unwrap()
}

/// Loss and gradients of a pass alone.
fn differentiate(trainer: &mut dyn Trainer, pass: &TrainingPass<'_>) -> Gradients {
    let none: Vec<Vec<f32>> =
        trainer.read(Parameters::Values).unwrap().iter().map(|values| vec![0.0; values.len()]).collect();
    trainer.write(Parameters::Gradients, none).unwrap();
    (trainer.pass(pass).unwrap(), trainer.read(Parameters::Gradients).unwrap())
}

/// Every second token of each sequence predicts the next.
fn every_second(ids: &[u32], ragged: &Ragged) -> Vec<Target> {
    let rows = ragged.segments.iter().flat_map(|s| (s.start..s.start + s.len - 1).step_by(2));
    rows.map(|row| Target { row, token: ids[row + 1] }).collect()
}

/// Two sequences, each with a prompt and more.
fn two_sequences(ids: &[u32]) -> Arc<Ragged> {
    Arc::new(Ragged::with_prompts([(5, 13), (8, ids.len() - 13)]))
}

/// Loss and gradients over two sequences, every second token a target.
fn gradients(trainer: &mut dyn Trainer, ids: &[u32], dropout: Option<&Dropout>) -> Gradients {
    let ragged = two_sequences(ids);
    let targets = every_second(ids, &ragged);
    let pass = TrainingPass::new(ids, &ragged, &targets, 1.0 / targets.len() as f32);
    differentiate(trainer, &TrainingPass { dropout, ..pass })
}

/// As [`gradients`], of the router's cross-entropy against domains alone.
fn domain_gradients(trainer: &mut dyn Trainer, ids: &[u32]) -> Gradients {
    let ragged = two_sequences(ids);
    let labels: Vec<u32> = (0..ids.len()).map(|row| if row < 13 { 2 } else { 0 }).collect();
    let domains = Some(DomainTarget { labels: &labels, scale: 1.0 / ids.len() as f32 });
    differentiate(trainer, &TrainingPass { domains, ..TrainingPass::new(ids, &ragged, &[], 1.0) })
}

/// The fixtures' experts with a router of this kind; without one, the first expert alone.
fn mixture(engine: &Engine, model: &Path, config: Option<RouterConfig>) -> Mixture {
    let mut experts = tiny::experts(model, engine);
    if config.is_none() {
        experts.truncate(1);
    }
    let experts = ExpertSet::new(&experts, &engine.config).unwrap();
    let routing = match config {
        None => Routing::All,
        Some(config) => Routing::Learned(Router::init(&config, &experts.names, &engine.config, 3).unwrap()),
    };
    Mixture { experts, routing }
}

/// Fails where a gradient is not the slope of the loss along itself.
fn assert_slopes(
    what: &str,
    trainer: &mut dyn Trainer,
    which: impl Fn(usize) -> bool,
    of: &mut dyn FnMut(&mut dyn Trainer) -> Gradients,
) {
    let start = trainer.read(Parameters::Values).unwrap();
    let (_, gradients) = of(trainer);
    for (index, gradient) in gradients.iter().enumerate().filter(|(index, _)| which(*index)) {
        let norm = gradient.iter().map(|g| g * g).sum::<f32>().sqrt();
        let step = 1e-2f32;
        let mut loss_at = |t: f32| {
            let mut values = start.clone();
            values[index].iter_mut().zip(gradient).for_each(|(v, g)| *v += t * g / norm);
            trainer.write(Parameters::Values, values).unwrap();
            f64::from(of(trainer).0)
        };
        let slope = (loss_at(step) - loss_at(-step)) / (2.0 * f64::from(step));
        let wanted = f64::from(norm);
        assert!(
            (slope - wanted).abs() <= 0.02 * wanted + 1e-4,
            "{what}: array {index}: slope {slope}, gradient {wanted}"
        );
    }
    trainer.write(Parameters::Values, start).unwrap();
}

fn router_configs() -> Vec<(&'static str, Option<RouterConfig>)> {
    let gate = |top_k, scale| GateConfig { top_k, scale, ..GateConfig::default() };
    let block = |gate| Some(RouterConfig { gate, ..RouterConfig::default() });
    let probability = gate(1, GateScale::Probability);
    let sequence = |input, shared| {
        let gate = gate(2, GateScale::Renormalized);
        Some(RouterConfig { input, shared, granularity: Granularity::Sequence, gate })
    };
    vec![
        ("one expert", None),
        ("top 1", block(probability)),
        ("top 2 renormalized", block(gate(2, GateScale::Renormalized))),
        ("top 2 unit", block(gate(2, GateScale::Unit))),
        ("all, T = 0.5", block(GateConfig { temperature: 0.5, ..gate(3, GateScale::Probability) })),
        ("null expert", block(GateConfig { null_expert: true, ..gate(2, GateScale::Probability) })),
        (
            "a router a block",
            Some(RouterConfig { shared: false, gate: probability, ..RouterConfig::default() }),
        ),
        (
            "base_last",
            Some(RouterConfig { input: RouterInput::BaseLast, gate: probability, ..RouterConfig::default() }),
        ),
        (
            "embedding",
            Some(RouterConfig {
                input: RouterInput::Embedding,
                gate: probability,
                ..RouterConfig::default()
            }),
        ),
        ("sizes of logits", block(GateConfig { score: Score::Absolute, ..gate(2, GateScale::Probability) })),
        ("a sequence", sequence(RouterInput::Block, true)),
        ("a sequence and a block", sequence(RouterInput::Block, false)),
        ("a sequence, base_last", sequence(RouterInput::BaseLast, true)),
        ("a sequence, embedding", sequence(RouterInput::Embedding, true)),
    ]
}

fn assert_same(what: &str, got: &Gradients, want: &Gradients) {
    assert!((got.0 - want.0).abs() <= 1e-5 * want.0.abs(), "{what}: loss {} and {}", got.0, want.0);
    assert_eq!(got.1.len(), want.1.len(), "{what}");
    for (index, (got, want)) in got.1.iter().zip(&want.1).enumerate() {
        let norm = want.iter().map(|v| v * v).sum::<f32>().sqrt();
        let difference = got.iter().zip(want).map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt();
        assert!(norm > 0.0, "{what}: array {index} got no gradient");
        assert!(
            difference <= 1e-4 * norm,
            "{what}: array {index} differs by {difference}, its norm is {norm}"
        );
    }
}

const MEMORIES: [Memory; 2] = [Memory::Keep, Memory::Recompute];

#[test]
fn backends_agree_with_the_reference_on_losses_and_gradients() {
    tiny::each_backend(|what, ids, model, engine, reference| {
        for (name, config) in router_configs() {
            let mixture = mixture(reference, model, config);
            let want = gradients(&mut *trainer(reference, &mixture, Memory::Keep), ids, None);
            for memory in MEMORIES {
                let got = gradients(&mut *trainer(engine, &mixture, memory), ids, None);
                assert_same(&format!("{what}, {name}, {memory:?}"), &got, &want);
            }
        }
    });
}

#[test]
fn backends_drop_the_same_inputs_of_adapters() {
    tiny::each_backend(|what, ids, model, engine, reference| {
        let mixture = mixture(reference, model, None);
        let of = |engine, memory, dropout| gradients(&mut *trainer(engine, &mixture, memory), ids, dropout);
        let dropout = Dropout::new(0.4, (0..ids.len() as u64).collect::<Vec<_>>());
        let want = of(reference, Memory::Keep, Some(&dropout));
        for memory in MEMORIES {
            assert_same(&format!("{what}, {memory:?}"), &of(engine, memory, Some(&dropout)), &want);
        }
        assert_ne!(want.0, of(reference, Memory::Keep, None).0, "{what}: something is dropped");
        let nothing = Dropout::new(0.0, vec![0; ids.len()]);
        assert_same(what, &of(engine, Memory::Keep, Some(&nothing)), &of(engine, Memory::Keep, None));
    });
}

#[test]
fn gradients_are_the_slopes_of_the_loss() {
    tiny::each_case(|what, _, ids, model, processor| {
        let engine = tiny::load(model, processor);
        // All experts kept: the loss is smooth. A straight-through gate has no slope to compare with.
        let gate = GateConfig { top_k: 3, ..GateConfig::default() };
        for input in [RouterInput::Block, RouterInput::BaseLast] {
            let mixture =
                mixture(&engine, model, Some(RouterConfig { input, gate, ..RouterConfig::default() }));
            let dropout = Dropout::new(0.3, (0..ids.len() as u64).collect::<Vec<_>>());
            let dropout = (processor == Processor::Reference).then_some(&dropout);
            let mut trainer = trainer(&engine, &mixture, Memory::Keep);
            let of = &mut |trainer: &mut dyn Trainer| gradients(trainer, ids, dropout);
            assert_slopes(&format!("{what}, {input:?}"), &mut *trainer, |_| true, of);
        }
    });
}

/// The gradients of a router alone, where it is after those of the experts' two blocks.
fn of_router(gradients: Gradients) -> Gradients {
    (gradients.0, gradients.1[2..].to_vec())
}

#[test]
fn the_domain_loss_is_the_cross_entropy_of_the_routers_softmax() {
    tiny::each_backend(|what, ids, model, engine, reference| {
        for (name, config) in router_configs() {
            let Some(config) = config else { continue };
            // Every choice is kept with its probability, so that the gates tell the softmax.
            let choices = config.choices(3);
            let gate = GateConfig { top_k: choices, scale: GateScale::Probability, ..config.gate };
            let mixture = mixture(reference, model, Some(RouterConfig { gate, ..config }));
            // The last block's experts cannot act on a decision.
            let of = |engine| of_router(domain_gradients(&mut *trainer(engine, &mixture, Memory::Keep), ids));
            let want = of(reference);
            assert_same(&format!("{what}, {name}"), &of(engine), &want);
            let ragged = two_sequences(ids);
            let gates = engine.route(ids, &ragged, &mixture).unwrap();
            let mean: f32 = gates
                .iter()
                .flat_map(|block| block.chunks_exact(3).enumerate())
                .map(|(row, gates)| -gates[if row < 13 { 2 } else { 0 }].ln())
                .sum::<f32>()
                / (gates.len() * ids.len()) as f32;
            assert!((mean - want.0).abs() < 1e-4 * mean, "{what}, {name}: {mean} and {}", want.0);
        }
    });
}

#[test]
fn gradients_of_the_domain_loss_are_its_slopes() {
    tiny::each_case(|what, _, ids, model, processor| {
        let engine = tiny::load(model, processor);
        let gate = GateConfig { top_k: 3, temperature: 0.5, ..GateConfig::default() };
        let mixture = mixture(&engine, model, Some(RouterConfig { gate, ..RouterConfig::default() }));
        let mut trainer = trainer(&engine, &mixture, Memory::Keep);
        // The first block's experts, through what the second block's router reads, and the router.
        let which = |index| index == 0 || index == 2;
        assert_slopes(what, &mut *trainer, which, &mut |trainer| domain_gradients(trainer, ids));
    });
}

/// Rows that lie in one pass one after another have the loss and the gradients that they have alone.
#[test]
fn rows_packed_into_one_pass_are_rows_alone() {
    tiny::each_case(|what, _, ids, model, processor| {
        let engine = tiny::load(model, processor);
        let gate = GateConfig { top_k: 2, ..GateConfig::default() };
        let mixture = mixture(&engine, model, Some(RouterConfig { gate, ..RouterConfig::default() }));
        let mut trainer = trainer(&engine, &mixture, Memory::Keep);
        let mut of = |ids: &[u32], lengths: &[usize]| {
            let ragged = Arc::new(Ragged::whole(lengths.iter().copied()));
            let targets = every_second(ids, &ragged);
            differentiate(&mut *trainer, &TrainingPass::new(ids, &ragged, &targets, 0.1))
        };
        let lengths = [2, 9, 5, ids.len() - 16];
        let packed = of(ids, &lengths);
        let mut sums = (0.0, packed.1.iter().map(|gradient| vec![0.0; gradient.len()]).collect::<Vec<_>>());
        let mut start = 0;
        for len in lengths {
            let (loss, gradients) = of(&ids[start..start + len], &[len]);
            sums.0 += loss;
            for (sum, gradient) in sums.1.iter_mut().zip(gradients) {
                sum.iter_mut().zip(gradient).for_each(|(sum, gradient)| *sum += gradient);
            }
            start += len;
        }
        assert_same(what, &packed, &sums);
    });
}

/// The block of 32 weights as GGUF's Q4_1 (type 3).
fn q4_1(weights: &[f32]) -> Vec<u8> {
    let Q4Group { quants, scale, minimum } = Q4Group::quantize(weights);
    let halves = [scale.to_le_bytes(), minimum.to_le_bytes()].concat();
    halves.into_iter().chain((0..16).map(|i| quants[i] | quants[16 + i] << 4)).collect()
}

/// Training experts and a router on a base that is held in a file's own 4-bit blocks: the reference computes with the
/// blocks' values as 32-bit floats, and loss and gradients are the same.
#[test]
fn training_and_routing_on_a_base_of_four_bits() {
    let mut file = made::gguf("llama");
    for tensor in file.tensors.iter_mut().filter(|tensor| tensor.shape.len() == 2) {
        let weights: Vec<f32> =
            tensor.bytes.as_chunks::<4>().0.iter().map(|&b| 0.2 * f32::from_le_bytes(b)).collect();
        (tensor.kind, tensor.bytes) = (3, weights.chunks(32).flat_map(q4_1).collect());
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    std::fs::write(&path, file.bytes()).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let load =
        |precision, processor| Engine::load(&checkpoint, &LoadOptions { precision, processor }).unwrap();
    let (held, reference) =
        (load(Precision::Int4, Processor::Cpu), load(Precision::F32, Processor::Reference));
    assert!(held.weight_bytes() * 6 < reference.weight_bytes(), "the base is held in 4 bits");
    let experts: Vec<Expert> = (0..3)
        .map(|seed| {
            let mut expert =
                Expert::init(&format!("e{seed}"), &LoraConfig::default(), &held.config, seed).unwrap();
            for factors in expert.blocks.iter_mut().flatten().flatten() {
                factors.b = tiny::formula(&format!("{seed}"), factors.b.len(), 0.05);
            }
            expert
        })
        .collect();
    let experts = ExpertSet::new(&experts, &held.config).unwrap();
    let router = Router::init(&RouterConfig::default(), &experts.names, &held.config, 3).unwrap();
    let mixture = Mixture { experts, routing: Routing::Learned(router) };
    let ids: Vec<u32> = (0..40).map(|i| i * 7 % made::VOCABULARY as u32).collect();
    let want = gradients(&mut *trainer(&reference, &mixture, Memory::Keep), &ids, None);
    for memory in MEMORIES {
        let got = gradients(&mut *trainer(&held, &mixture, memory), &ids, None);
        assert_same(&format!("{memory:?}"), &got, &want);
    }
}
