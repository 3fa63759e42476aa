//! What the tests of several kernels share.

pub(crate) use crate::check::values;

use crate::Isa;
use crate::isa;

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
