use mixse_model::{
    config::ModelConfig,
    expert::{Expert, LoraConfig, Module},
};
use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
struct Fixture {
    weights: Vec<f64>,
    experts: Vec<Adapter>,
    merged: Vec<Expected>,
}

#[derive(Deserialize)]
struct Adapter {
    a: Vec<Vec<f32>>,
    b: Vec<Vec<f32>>,
    scaling: f64,
}

#[derive(Deserialize)]
struct Expected {
    method: String,
    density: f64,
    #[serde(flatten)]
    adapter: Adapter,
}

impl Adapter {
    fn factors(&self) -> Factors {
        let matrix = |rows: &[Vec<f32>]| Tensor::new(rows.to_vec(), &Device::Cpu).unwrap();
        Factors::new("m", &matrix(&self.a), &matrix(&self.b), self.scaling).unwrap()
    }
}

fn fixture() -> (Fixture, Vec<Factors>) {
    let fixture: Fixture = serde_json::from_str(include_str!("../../tests/fixtures/merge.json")).unwrap();
    let experts = fixture.experts.iter().map(Adapter::factors).collect();
    (fixture, experts)
}

fn distance(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let (a, b) = (values(a).unwrap(), values(b).unwrap());
    a.iter().zip(&b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
}

fn random(seed: u64, rows: usize, cols: usize) -> Tensor {
    let mut random = mixse_model::random::Stream::new(seed, "test matrix", 0);
    let values: Vec<f32> = (0..rows * cols).map(|_| random.unit() as f32 - 0.5).collect();
    Tensor::from_vec(values, (rows, cols), &Device::Cpu).unwrap()
}

/// Two experts of a 24 x 40 module.
fn pair() -> Vec<Factors> {
    (0..2).map(|i| Factors::new("m", &random(i, 3, 40), &random(i + 9, 24, 3), 2.0).unwrap()).collect()
}

#[test]
fn agrees_with_peft() {
    let (fixture, experts) = fixture();
    let w = &fixture.weights;
    for expected in &fixture.merged {
        let theirs = expected.adapter.factors();
        let density = expected.density;
        let by_factor = |method| {
            let ours = merge_factors("m", &experts, w, method).unwrap();
            distance(ours.a(), theirs.a()).max(distance(ours.b(), theirs.b()))
        };
        let by_delta = |ours: Factors| distance(&ours.delta().unwrap(), &theirs.delta().unwrap());
        let truncated =
            |method| truncate("m", &merge_delta("m", &experts, w, method).unwrap(), 2).unwrap().factors;
        let error = match expected.method.as_str() {
            "linear" => by_factor(Method::Linear),
            "ties" => by_factor(Method::Ties { density }),
            "dare_linear" => by_factor(Method::DareLinear { density, seed: 1 }),
            "dare_ties" => by_factor(Method::DareTies { density, seed: 1 }),
            "cat" => by_delta(concatenate("m", &experts, w).unwrap()),
            "svd" => by_delta(truncated(Method::Linear)),
            "ties_svd" => by_delta(truncated(Method::Ties { density })),
            other => panic!("{other}"),
        };
        assert!(error < 2e-5, "{} {density}: {error}", expected.method);
    }
}

#[test]
fn linear_merging_is_exact_on_the_products() {
    let (fixture, experts) = fixture();
    let merged = concatenate("m", &experts, &fixture.weights).unwrap();
    assert_eq!(merged.rank(), 6);
    let sum = merge_delta("m", &experts, &fixture.weights, Method::Linear).unwrap();
    assert!(distance(&merged.delta().unwrap(), &sum) < 1e-5);
    // The per-factor variant is another matrix: its cross terms are what exact merging avoids.
    let crossed = merge_factors("m", &experts, &fixture.weights, Method::Linear).unwrap();
    assert!(distance(&crossed.delta().unwrap(), &sum) > 0.1);
}

#[test]
fn ties_by_hand() {
    let source = Source { module: "m", part: "x" };
    let check = |density: f64, weights: &[f64], expected: &[f32]| {
        let experts = vec![vec![4.0, -3.0, 1.0, 2.0], vec![-1.0, -5.0, 3.0, -2.0]];
        assert_eq!(combine(Method::Ties { density }, experts, weights, source), expected);
    };
    // Sums 3, -8, 4, 0: plus wins the tie.
    check(1.0, &[1.0, 1.0], &[4.0, -4.0, 2.0, 2.0]);
    check(1.0, &[2.0, 1.0], &[8.0, -5.5, 2.5, 4.0]);
    // Kept: 4, -3 and -5, 3.
    check(0.5, &[1.0, 1.0], &[4.0, -4.0, 3.0, 0.0]);
    check(0.1, &[1.0, 1.0], &[0.0, 0.0, 0.0, 0.0]);
}

#[test]
fn dare_keeps_the_expectation_and_depends_on_its_seed() {
    let source = Source { module: "m", part: "x" };
    let run = |seed| {
        let method = Method::DareLinear { density: 0.25, seed };
        combine(method, vec![vec![1.0; 20_000], vec![2.0; 20_000]], &[1.0, 1.0], source)
    };
    let merged = run(1);
    let mean = merged.iter().sum::<f32>() / merged.len() as f32;
    // Variance of an entry is (1 + 4) · 3, so the mean's standard deviation is 0.027.
    assert!((mean - 3.0).abs() < 0.11, "{mean}");
    let share = |value: f32| merged.iter().filter(|&&v| v == value).count() as f32 / merged.len() as f32;
    for (value, expected) in [(0.0, 0.5625), (4.0, 0.1875), (8.0, 0.1875), (12.0, 0.0625)] {
        assert!((share(value) - expected).abs() < 0.02, "{value}: {}", share(value));
    }
    assert_eq!(merged, run(1));
    assert_ne!(merged, run(2));
}

#[test]
fn methods_differ() {
    let experts = pair();
    let delta = |method| merge_delta("m", &experts, &[1.0, 1.0], method).unwrap();
    let all = [
        delta(Method::Linear),
        delta(Method::Ties { density: 0.5 }),
        delta(Method::DareLinear { density: 0.5, seed: 0 }),
        delta(Method::DareTies { density: 0.5, seed: 0 }),
    ];
    for (i, a) in all.iter().enumerate() {
        assert!(all[..i].iter().all(|b| distance(a, b) > 1e-3));
    }
}

#[test]
fn truncation_is_the_best_approximation() {
    let exact = pair()[0].delta().unwrap();
    for rank in [3, 40] {
        let t = truncate("m", &exact, rank).unwrap();
        assert!(t.relative_error < 1e-6, "{rank}: {}", t.relative_error);
        assert!(distance(&t.factors.delta().unwrap(), &exact) < 1e-5);
    }
    // Singular values 20, 19, …, 1: by Eckart and Young the error is the norm of those left out.
    let diagonal: Vec<f32> =
        (0..30 * 20).map(|i| if i % 21 == 0 && i < 400 { 20.0 - (i / 21) as f32 } else { 0.0 }).collect();
    let matrix = Tensor::from_vec(diagonal, (30, 20), &Device::Cpu).unwrap();
    let squares = |up_to: u32| (1..=up_to).map(|v| f64::from(v * v)).sum::<f64>();
    for rank in [1, 4, 19] {
        let expected = (squares(20 - rank) / squares(20)).sqrt();
        let got = truncate("m", &matrix, rank as usize).unwrap().relative_error;
        assert!((got - expected).abs() < 1e-3 * expected, "{rank}: {got} instead of {expected}");
    }
    let zero = truncate("m", &matrix.zeros_like().unwrap(), 4).unwrap();
    assert_eq!(zero.relative_error, 0.0);
}

#[test]
fn bad_input_is_refused() {
    let experts = pair();
    let check = |result: Result<Tensor>, expected: &str| {
        let message = result.unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    };
    let delta = |experts: &[Factors], weights: &[f64], method| merge_delta("m", experts, weights, method);
    check(delta(&experts, &[1.0], Method::Linear), "for 2 experts");
    check(delta(&experts, &[1.0, f64::NAN], Method::Linear), "for 2 experts");
    check(delta(&[], &[], Method::Linear), "no expert");
    for density in [0.0, -1.0, 1.5, f64::NAN] {
        check(delta(&experts, &[1.0, 1.0], Method::Ties { density }), "density");
    }
    let other = Factors::new("m", &random(1, 2, 40), &random(2, 25, 2), 1.0).unwrap();
    check(delta(&[experts[0].clone(), other], &[1.0, 1.0], Method::Linear), "shapes");
    let thin = Factors::new("m", &random(1, 2, 40), &random(2, 24, 2), 1.0).unwrap();
    assert!(merge_factors("m", &[experts[0].clone(), thin], &[1.0, 1.0], Method::Linear).is_err());
    assert!(Factors::new("m", &random(1, 2, 40), &random(2, 24, 3), 1.0).is_err());
    assert!(truncate("m", &random(1, 2, 4), 0).is_err());
    let broken = random(1, 2, 4).affine(f64::INFINITY, 0.0).unwrap();
    assert!(truncate("m", &broken, 1).unwrap_err().to_string().contains("not finite"));
}

/// A model of one block and two experts of it; the second one has another rank and no adapter on v.
pub(crate) fn model_and_experts() -> (ModelConfig, Vec<Expert>) {
    let directory = tempfile::tempdir().unwrap();
    let config = serde_json::json!({
        "model_type": "llama", "vocab_size": 8, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 16, "rms_norm_eps": 1e-6,
    });
    std::fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
    let model = ModelConfig::from_directory(directory.path()).unwrap();
    let expert = |name: &str, rank: usize, targets: &[Module]| {
        let lora = LoraConfig { rank, alpha: 4.0, targets: targets.to_vec(), ..LoraConfig::default() };
        let mut expert = Expert::init(name, &lora, &model, rank as u64).unwrap();
        for f in expert.blocks.iter_mut().flatten().flatten() {
            f.b.iter_mut().enumerate().for_each(|(i, b)| *b = ((i * 7 + rank) % 5) as f32 / 5.0 - 0.4);
        }
        expert
    };
    let without_v: Vec<Module> = Module::ALL.into_iter().filter(|&m| m != Module::V).collect();
    let experts = vec![expert("a", 2, &Module::ALL), expert("b", 3, &without_v)];
    (model, experts)
}

/// `ΔW` of one module of an expert, row-major.
fn delta_of(expert: &Expert, module: Module, model: &ModelConfig) -> Vec<f32> {
    let (k, n) = module.shape(model);
    let Some(f) = &expert.blocks[0][module.index()] else { return vec![0.0; n * k] };
    let a = Tensor::from_slice(&f.a, (f.rank, k), &Device::Cpu).unwrap();
    let b = Tensor::from_slice(&f.b, (n, f.rank), &Device::Cpu).unwrap();
    values(&Factors::new("m", &a, &b, f64::from(f.scale)).unwrap().delta().unwrap()).unwrap()
}

#[test]
fn whole_experts_are_merged_module_by_module() {
    let (model, experts) = model_and_experts();
    let weights = [0.5, -2.0];
    let ties = Method::Ties { density: 0.5 };
    let check = |method, form, ranks: [usize; 3], exact: bool| {
        let merged = merge_experts("m", &experts, &model, &weights, method, form).unwrap();
        let expert = &merged.expert;
        for (module, rank) in [Module::Q, Module::V, Module::Down].into_iter().zip(ranks) {
            assert_eq!(
                expert.blocks[0][module.index()].as_ref().unwrap().rank,
                rank,
                "{method:?} {form:?} {module:?}"
            );
        }
        assert_eq!(merged.relative_error == Some(0.0), exact);
        expert.check_fits(&model).unwrap();
        merged
    };
    check(Method::Linear, Form::Exact, [5, 2, 5], true);
    check(ties, Form::Exact, [8, 4, 8], true);
    let lossy = check(ties, Form::Truncated { rank: 2 }, [2, 2, 2], false).relative_error.unwrap();
    let better = check(ties, Form::Truncated { rank: 4 }, [4, 4, 4], false).relative_error.unwrap();
    assert!(0.0 < better && better < lossy && lossy < 1.0, "{better} {lossy}");
    // What the exact forms stand for, entry by entry.
    let merged = check(Method::Linear, Form::Exact, [5, 2, 5], true).expert;
    for module in Module::ALL {
        let parts: Vec<Vec<f32>> = experts.iter().map(|e| delta_of(e, module, &model)).collect();
        for (i, value) in delta_of(&merged, module, &model).into_iter().enumerate() {
            assert!((value - (0.5 * parts[0][i] - 2.0 * parts[1][i])).abs() < 1e-5);
        }
    }
    let merged = check(ties, Form::Exact, [8, 4, 8], true).expert;
    let parts = [0, 1].map(|i| {
        let f = experts[i].blocks[0][Module::Up.index()].as_ref().unwrap();
        let (k, n) = Module::Up.shape(&model);
        let a = Tensor::from_slice(&f.a, (f.rank, k), &Device::Cpu).unwrap();
        Factors::new(
            "m",
            &a,
            &Tensor::from_slice(&f.b, (n, f.rank), &Device::Cpu).unwrap(),
            f64::from(f.scale),
        )
        .unwrap()
    });
    let expected = values(&merge_delta("m", &parts, &weights, ties).unwrap()).unwrap();
    assert_eq!(delta_of(&merged, Module::Up, &model), expected);
}

#[test]
fn experts_that_cannot_be_merged_are_refused_with_every_reason() {
    let (model, experts) = model_and_experts();
    let check = |experts: &[Expert], weights: &[f64], method, form, expected: &[&str]| {
        let message = merge_experts("m", experts, &model, weights, method, form).unwrap_err().to_string();
        for part in expected {
            assert!(message.contains(part), "{part:?} is not in: {message}");
        }
    };
    let ties = Method::Ties { density: 1.5 };
    let nothing = Form::Truncated { rank: 0 };
    check(&experts, &[1.0], ties, nothing, &["1 weights for 2 experts", "density: 1.5", "rank: 0"]);
    check(&experts[..1], &[f64::NAN], Method::Linear, Form::Exact, &["at least two", "NaN"]);
    check(&experts, &[1.0, 1.0], Method::Linear, Form::PerFactor, &["ranks 2 and 3"]);
    let mut other = experts.clone();
    other[1].blocks.push([const { None }; 7]);
    check(&other, &[1.0, 1.0], Method::Linear, Form::Exact, &["another base"]);
}

#[test]
fn merged_weights_are_the_changes_that_the_exact_adapter_stands_for() {
    let (model, experts) = model_and_experts();
    let weights = [0.5, -2.0];
    for method in [
        Method::Linear,
        Method::Ties { density: 0.5 },
        Method::DareLinear { density: 0.5, seed: 3 },
        Method::DareTies { density: 0.5, seed: 3 },
    ] {
        let deltas = merged_weights(&experts, &model, &weights, method).unwrap();
        let adapter = merge_experts("m", &experts, &model, &weights, method, Form::Exact).unwrap().expert;
        assert_eq!(deltas.len(), 7, "one for each module of the block");
        for module in Module::ALL {
            let (k, n) = module.shape(&model);
            let delta = &deltas[&format!("model.layers.0.{}.weight", module.path())];
            assert_eq!(delta.dims2().unwrap(), (n, k), "{method:?} {module:?}");
            let expected = delta_of(&adapter, module, &model);
            for (got, want) in values(delta).unwrap().iter().zip(&expected) {
                assert!((got - want).abs() < 1e-5, "{method:?} {module:?}: {got} is not {want}");
            }
        }
    }
    // Only the first expert adapts v: half of what it does is left.
    let linear = merged_weights(&experts, &model, &weights, Method::Linear).unwrap();
    let v = values(&linear["model.layers.0.self_attn.v_proj.weight"]).unwrap();
    for (got, alone) in v.iter().zip(delta_of(&experts[0], Module::V, &model)) {
        assert!((got - 0.5 * alone).abs() < 1e-6);
    }
    let message = merged_weights(&experts[..1], &model, &[1.0, 1.0], Method::Linear).unwrap_err().to_string();
    assert!(message.contains("at least two") && message.contains("2 weights"), "{message}");
}

/// Weights that no 32-bit number can carry, and results that overflow all the same.
#[test]
fn a_merge_that_is_not_finite_is_refused() {
    let (model, experts) = model_and_experts();
    // Of one rank, which merging factor by factor needs.
    let experts = [experts[0].clone(), experts[0].clone()];
    for form in [Form::Exact, Form::PerFactor, Form::Truncated { rank: 2 }] {
        let merge = |experts: &[Expert], weight: f64| {
            merge_experts("m", experts, &model, &[1.0, weight], Method::Linear, form)
                .map_err(|e| e.to_string())
        };
        for weight in [1e40, -1e40, 1e13, 1e-13, 1e-40, f64::MAX, f64::MIN_POSITIVE] {
            let message = merge(&experts, weight).unwrap_err();
            assert!(message.contains("is not a number to multiply with"), "{form:?} {weight}: {message}");
        }
        assert!(merge(&experts, 0.0).is_ok() && merge(&experts, -1e12).is_ok(), "{form:?}");
        let with = |a: f32, b: f32| {
            let mut experts = experts.clone();
            let f = experts[1].blocks[0].iter_mut().flatten().next().unwrap();
            f.a.iter_mut().for_each(|v| *v = a);
            f.b.iter_mut().for_each(|v| *v = b);
            merge(&experts, 1e12)
        };
        let message = with(1e30, 1e30).unwrap_err();
        assert!(message.contains("the product of A and B leaves the range"), "{form:?}: {message}");
        let message = with(f32::NAN, 1.0).unwrap_err();
        assert!(message.contains("A holds NaN at [0, 0]"), "{form:?}: {message}");
        // The product is fine, but the weight goes into A here.
        assert_eq!(with(1e30, 1e-30).is_err(), form == Form::Exact, "{form:?}");
    }
    assert!(merged_weights(&experts, &model, &[1.0, 1e40], Method::Linear).is_err());
}
