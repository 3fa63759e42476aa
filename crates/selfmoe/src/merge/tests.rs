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
    let merged = merge("m", &experts, &fixture.weights, Method::Linear, 1).unwrap();
    assert_eq!((merged.factors.rank(), merged.relative_error), (6, 0.0));
    let sum = merge_delta("m", &experts, &fixture.weights, Method::Linear).unwrap();
    assert!(distance(&merged.factors.delta().unwrap(), &sum) < 1e-5);
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
