//! What the tests of several kernels share.

use std::io::{Read, Seek};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::Isa;
use crate::isa;

/// Deterministic values in -1 .. 1.
pub(crate) fn values(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// The instruction sets of this machine.
pub(crate) fn isas() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.available())
}

/// Runs `test` once with each instruction set of this machine.
pub(crate) fn each_isa(test: impl Fn(Isa)) {
    for isa in isas() {
        isa::with(isa, || test(isa));
    }
}

/// Element by element within `tolerance`, absolutely for small values and relatively for large ones.
pub(crate) fn assert_near(values: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(values.len(), expected.len(), "{what}");
    for (i, (value, expected)) in values.iter().zip(expected).enumerate() {
        let error = (value - expected).abs();
        assert!(
            error <= tolerance * expected.abs().max(1.0),
            "{what}: [{i}] is {value} instead of {expected}"
        );
    }
}

/// Holds `gradient` against `(f(x + h) - f(x - h)) / 2h` for some elements of `x`.
pub(crate) fn finite_difference(x: &[f32], gradient: &[f32], tolerance: f64, f: impl Fn(&[f32]) -> f64) {
    const H: f32 = 1.0 / 256.0;
    let mut x = x.to_vec();
    for i in (0..x.len()).step_by(x.len().div_ceil(29)) {
        let old = x[i];
        x[i] = old + H;
        let above = f(&x);
        x[i] = old - H;
        let below = f(&x);
        x[i] = old;
        let expected = (above - below) / f64::from(2.0 * H);
        let error = (f64::from(gradient[i]) - expected).abs();
        assert!(
            error <= tolerance * expected.abs().max(0.1),
            "gradient [{i}] is {} instead of {expected}",
            gradient[i]
        );
    }
}

/// Runs a process that may hang, which ends it: whether it succeeded in time, and what it wrote.
pub(crate) fn finish_within(limit: Duration, mut command: Command) -> (bool, String) {
    let mut output = tempfile::tempfile().unwrap();
    command.stdout(output.try_clone().unwrap()).stderr(output.try_clone().unwrap());
    let mut child = command.spawn().unwrap();
    let begin = Instant::now();
    let status = loop {
        match child.try_wait().unwrap() {
            None if begin.elapsed() < limit => std::thread::sleep(Duration::from_millis(10)),
            None => {
                child.kill().unwrap();
                child.wait().unwrap();
                break None;
            }
            status => break status,
        }
    };
    let mut text = String::new();
    output.rewind().unwrap();
    output.read_to_string(&mut text).unwrap();
    match status {
        Some(status) => (status.success(), format!("{text}{status}")),
        None => (false, format!("{text}nothing more within {limit:?}")),
    }
}
