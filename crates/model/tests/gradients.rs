//! The two bodies of every operation against each other: losses and gradients of experts and routers, with activations
//! kept and recomputed, on every architecture and every kind of gate; and the gradients against finite differences.

#![allow(clippy::unwrap_used, reason = "a fault in a test's own support is a panic")]

mod tiny;

use std::sync::Arc;

use candle_core::{Device, Var};
use mixse_kernels::packed::Q4Group;
use mixse_model::{
    decoder::{
        Decoder, DomainTarget, Dropout, LoadOptions, Memory, Precision, Ragged, Target, TrainingPass, Wanted,
    },
    expert::{Expert, LoraConfig},
    expert_set::ExpertSet,
    mixture::{Mixture, Routing},
    router::{GateConfig, GateScale, Granularity, Router, RouterConfig, RouterInput, Score},
    weights::Checkpoint,
};
use mixse_testing::tiny as made;

/// Loss and gradients of all variables over sequences of these lengths, every second token of each a target.
fn packed_gradients(
    decoder: &Decoder,
    ids: &[u32],
    lengths: &[usize],
    mixture: &Mixture,
    vars: &[Var],
) -> (f64, Vec<Vec<f32>>) {
    let ragged = Arc::new(Ragged::whole(lengths.iter().copied()));
    let targets: Vec<Target> = ragged
        .segments
        .iter()
        .flat_map(|s| (s.start..s.start + s.len - 1).step_by(2))
        .map(|row| Target { row, token: ids[row + 1] })
        .collect();
    let hidden = decoder.hidden(ids, &ragged, Some(mixture), Memory::Keep, BOTH).unwrap();
    let loss = decoder.loss(&hidden, &targets, 0.1).unwrap();
    let grads = loss.backward().unwrap();
    let of = |var: &Var| grads.get(var).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    (f64::from(loss.to_scalar::<f32>().unwrap()), vars.iter().map(of).collect())
}

const BOTH: Wanted = Wanted { experts: true, gates: true };

/// Two sequences, each with a prompt and more.
fn two_sequences(ids: &[u32]) -> Arc<Ragged> {
    Arc::new(Ragged::with_prompts([(5, 13), (8, ids.len() - 13)]))
}

/// Loss and gradients of all variables over two sequences, every second token a target.
fn gradients(
    decoder: &Decoder,
    ids: &[u32],
    mixture: &Mixture,
    vars: &[Var],
    memory: Memory,
    dropout: Option<&Dropout>,
) -> (f32, Vec<Vec<f32>>) {
    let ragged = two_sequences(ids);
    let targets: Vec<Target> =
        (0..ids.len() - 1).step_by(2).map(|row| Target { row, token: ids[row + 1] }).collect();
    let pass = TrainingPass { dropout, ..TrainingPass::new(ids, &ragged, Some(mixture), memory, BOTH) };
    let hidden = decoder.training_pass(&pass).unwrap().0;
    let loss = decoder.loss(&hidden, &targets, 1.0 / targets.len() as f32).unwrap();
    let grads = loss.backward().unwrap();
    let of = |var: &Var| match grads.get(var) {
        Some(grad) => grad.flatten_all().unwrap().to_vec1().unwrap(),
        None => vec![0.0; var.elem_count()],
    };
    (loss.to_scalar().unwrap(), vars.iter().map(of).collect())
}

/// As [`gradients`], of the router's cross-entropy against domains alone.
fn domain_gradients(decoder: &Decoder, ids: &[u32], mixture: &Mixture, vars: &[Var]) -> (f32, Vec<Vec<f32>>) {
    let ragged = two_sequences(ids);
    let labels: Vec<u32> = (0..ids.len()).map(|row| if row < 13 { 2 } else { 0 }).collect();
    let domains = Some(DomainTarget { labels: &labels, scale: 1.0 / ids.len() as f32 });
    let (mixture, memory, wanted) = (Some(mixture), Memory::Keep, BOTH);
    let pass = TrainingPass { domains, ..TrainingPass::new(ids, &ragged, mixture, memory, wanted) };
    let loss = decoder.training_pass(&pass).unwrap().1.unwrap();
    let grads = loss.backward().unwrap();
    let of = |var: &Var| match grads.get(var) {
        Some(grad) => grad.flatten_all().unwrap().to_vec1().unwrap(),
        None => vec![0.0; var.elem_count()],
    };
    (loss.to_scalar().unwrap(), vars.iter().map(of).collect())
}

/// A mixture over the fixtures' experts in which everything is trainable.
fn trainable(
    decoder: &Decoder,
    model: &std::path::Path,
    config: Option<RouterConfig>,
) -> (Mixture, Vec<Var>) {
    let mut experts = tiny::experts(model, decoder);
    if config.is_none() {
        experts.truncate(1);
    }
    let (set, mut vars) =
        ExpertSet::new(&experts, &decoder.config, &Device::Cpu).unwrap().trainable().unwrap();
    let routing = match config {
        None => Routing::All,
        Some(config) => {
            let start = Router::init(&config, &set.names, &decoder.config, 3, &Device::Cpu).unwrap();
            let (router, router_vars) = start.trainable().unwrap();
            vars.extend(router_vars);
            Routing::Learned(router)
        }
    };
    (Mixture { experts: set, routing }, vars)
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

fn assert_same(what: &str, got: &(f32, Vec<Vec<f32>>), want: &(f32, Vec<Vec<f32>>)) {
    assert!((got.0 - want.0).abs() <= 1e-5 * want.0.abs(), "{what}: loss {} and {}", got.0, want.0);
    for (index, (got, want)) in got.1.iter().zip(&want.1).enumerate() {
        let norm = want.iter().map(|v| v * v).sum::<f32>().sqrt();
        let difference = got.iter().zip(want).map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt();
        assert!(norm > 0.0, "{what}: variable {index} got no gradient");
        assert!(
            difference <= 1e-4 * norm,
            "{what}: variable {index} differs by {difference}, its norm is {norm}"
        );
    }
}

#[test]
fn fused_and_portable_bodies_agree_on_losses_and_gradients() {
    tiny::each_case(|what, _, ids, model, portable| {
        if portable {
            return;
        }
        let (fused, reference) = (tiny::load(model, false), tiny::load(model, true));
        for (name, config) in router_configs() {
            let (mixture, vars) = trainable(&reference, model, config);
            let want = gradients(&reference, ids, &mixture, &vars, Memory::Keep, None);
            for memory in [Memory::Keep, Memory::Recompute] {
                let got = gradients(&fused, ids, &mixture, &vars, memory, None);
                assert_same(&format!("{what}, {name}, {memory:?}"), &got, &want);
            }
        }
    });
}

#[test]
fn both_bodies_drop_the_same_inputs_of_adapters() {
    tiny::each_case(|what, _, ids, model, portable| {
        if portable {
            return;
        }
        let (fused, reference) = (tiny::load(model, false), tiny::load(model, true));
        let (mixture, vars) = trainable(&reference, model, None);
        let of = |decoder, memory, dropout| gradients(decoder, ids, &mixture, &vars, memory, dropout);
        let dropout = Dropout::new(0.4, (0..ids.len() as u64).collect::<Vec<_>>());
        let want = of(&reference, Memory::Keep, Some(&dropout));
        for memory in [Memory::Keep, Memory::Recompute] {
            assert_same(&format!("{what}, {memory:?}"), &of(&fused, memory, Some(&dropout)), &want);
        }
        assert_ne!(want.0, of(&reference, Memory::Keep, None).0, "{what}: something is dropped");
        let nothing = Dropout::new(0.0, vec![0; ids.len()]);
        assert_same(what, &of(&fused, Memory::Keep, Some(&nothing)), &of(&fused, Memory::Keep, None));
    });
}

#[test]
fn gradients_are_the_slopes_of_the_loss() {
    tiny::each_case(|what, _, ids, model, portable| {
        let decoder = tiny::load(model, portable);
        // All experts kept: the loss is smooth. A straight-through gate has no slope to compare with.
        let gate = GateConfig { top_k: 3, ..GateConfig::default() };
        let (mixture, vars) =
            trainable(&decoder, model, Some(RouterConfig { gate, ..RouterConfig::default() }));
        let dropout = Dropout::new(0.3, (0..ids.len() as u64).collect::<Vec<_>>());
        let dropout = portable.then_some(&dropout);
        let (_, grads) = gradients(&decoder, ids, &mixture, &vars, Memory::Keep, dropout);
        for (index, (var, grad)) in vars.iter().zip(&grads).enumerate() {
            let start = var.as_detached_tensor().copy().unwrap();
            let norm = grad.iter().map(|g| g * g).sum::<f32>().sqrt();
            let direction: Vec<f32> = grad.iter().map(|g| g / norm).collect();
            let direction = candle_core::Tensor::from_vec(direction, var.shape(), &Device::Cpu).unwrap();
            let step = 1e-2;
            let loss_at = |t: f64| {
                var.set(&(&start + (&direction * t).unwrap()).unwrap()).unwrap();
                f64::from(gradients(&decoder, ids, &mixture, &[], Memory::Recompute, dropout).0)
            };
            let slope = (loss_at(step) - loss_at(-step)) / (2.0 * step);
            var.set(&start).unwrap();
            let wanted = f64::from(norm);
            assert!(
                (slope - wanted).abs() <= 0.02 * wanted + 1e-4,
                "{what}: variable {index}: slope {slope}, gradient {wanted}"
            );
        }
    });
}

#[test]
fn the_domain_loss_is_the_cross_entropy_of_the_routers_softmax() {
    tiny::each_case(|what, _, ids, model, portable| {
        if portable {
            return;
        }
        let (fused, reference) = (tiny::load(model, false), tiny::load(model, true));
        for (name, config) in router_configs() {
            let Some(config) = config else { continue };
            // Every choice is kept with its probability, so that the gates tell the softmax.
            let choices = config.choices(3);
            let gate = GateConfig { top_k: choices, scale: GateScale::Probability, ..config.gate };
            let (mixture, vars) = trainable(&reference, model, Some(RouterConfig { gate, ..config }));
            // The last block's experts cannot act on a decision.
            let of_router: Vec<Var> = vars[2..].to_vec();
            let want = domain_gradients(&reference, ids, &mixture, &of_router);
            assert_same(
                &format!("{what}, {name}"),
                &domain_gradients(&fused, ids, &mixture, &of_router),
                &want,
            );
            let ragged = two_sequences(ids);
            let gates = fused.route(ids, &ragged, &mixture).unwrap();
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
    tiny::each_case(|what, _, ids, model, portable| {
        let decoder = tiny::load(model, portable);
        let gate = GateConfig { top_k: 3, temperature: 0.5, ..GateConfig::default() };
        let (mixture, vars) =
            trainable(&decoder, model, Some(RouterConfig { gate, ..RouterConfig::default() }));
        let grad = domain_gradients(&decoder, ids, &mixture, &vars).1;
        // The first block's experts, through what the second block's router reads, and the router.
        for index in [0, 2] {
            let (var, grad) = (&vars[index], &grad[index]);
            let start = var.as_detached_tensor().copy().unwrap();
            let norm = grad.iter().map(|g| g * g).sum::<f32>().sqrt();
            let direction: Vec<f32> = grad.iter().map(|g| g / norm).collect();
            let direction = candle_core::Tensor::from_vec(direction, var.shape(), &Device::Cpu).unwrap();
            let loss_at = |t: f64| {
                var.set(&(&start + (&direction * t).unwrap()).unwrap()).unwrap();
                f64::from(domain_gradients(&decoder, ids, &mixture, &[]).0)
            };
            let slope = (loss_at(1e-2) - loss_at(-1e-2)) / 2e-2;
            var.set(&start).unwrap();
            let wanted = f64::from(norm);
            assert!(
                (slope - wanted).abs() <= 0.02 * wanted + 1e-4,
                "{what}: slope {slope}, gradient {wanted}"
            );
        }
    });
}

/// Rows that lie in one pass one after another have the loss and the gradients that they have alone.
#[test]
fn rows_packed_into_one_pass_are_rows_alone() {
    tiny::each_case(|what, _, ids, model, portable| {
        let decoder = tiny::load(model, portable);
        let gate = GateConfig { top_k: 2, ..GateConfig::default() };
        let (mixture, vars) =
            trainable(&decoder, model, Some(RouterConfig { gate, ..RouterConfig::default() }));
        let lengths = [2, 9, 5, ids.len() - 16];
        let packed = packed_gradients(&decoder, ids, &lengths, &mixture, &vars);
        let mut sums = (0.0, vec![Vec::new(); vars.len()]);
        let mut start = 0;
        for len in lengths {
            let (loss, grads) = packed_gradients(&decoder, &ids[start..start + len], &[len], &mixture, &vars);
            sums.0 += loss;
            for (sum, grad) in sums.1.iter_mut().zip(grads) {
                sum.resize(grad.len(), 0.0);
                sum.iter_mut().zip(grad).for_each(|(sum, grad)| *sum += grad);
            }
            start += len;
        }
        assert_same(what, &(packed.0 as f32, packed.1), &(sums.0 as f32, sums.1));
    });
}

/// The block of 32 weights as GGUF's Q4_1 (type 3).
fn q4_1(weights: &[f32]) -> Vec<u8> {
    let Q4Group { quants, scale, minimum } = Q4Group::quantize(weights);
    let halves = [scale.to_le_bytes(), minimum.to_le_bytes()].concat();
    halves.into_iter().chain((0..16).map(|i| quants[i] | quants[16 + i] << 4)).collect()
}

/// Training experts and a router on a base that is held in a file's own 4-bit blocks: the portable body computes with the
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
    let load = |precision, portable| {
        let options = LoadOptions { precision, portable, device: Device::Cpu };
        Decoder::load(&checkpoint, &options).unwrap()
    };
    let (held, reference) = (load(Precision::Int4, false), load(Precision::F32, true));
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
    let (set, mut vars) = ExpertSet::new(&experts, &held.config, &Device::Cpu).unwrap().trainable().unwrap();
    let start = Router::init(&RouterConfig::default(), &set.names, &held.config, 3, &Device::Cpu).unwrap();
    let (router, router_vars) = start.trainable().unwrap();
    vars.extend(router_vars);
    let mixture = Mixture { experts: set, routing: Routing::Learned(router) };
    let ids: Vec<u32> = (0..40).map(|i| i * 7 % made::VOCABULARY as u32).collect();
    let want = gradients(&reference, &ids, &mixture, &vars, Memory::Keep, None);
    for memory in [Memory::Keep, Memory::Recompute] {
        assert_same(&format!("{memory:?}"), &gradients(&held, &ids, &mixture, &vars, memory, None), &want);
    }
}
