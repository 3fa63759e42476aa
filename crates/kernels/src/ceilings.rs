//! What this machine can do at most: the figures that speeds are compared with.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::gemm;
use crate::isa::{self, Isa, multiversion};
use crate::pool;

/// Measured ceilings of the threads in use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ceilings {
    /// The instruction set that was measured.
    pub isa: Isa,
    /// Threads.
    pub threads: usize,
    /// Billions of f32 additions and multiplications a second, operands in registers.
    pub fma_gflops: f64,
    /// The same for bf16 products in AMX tiles, if there are any.
    pub amx_gflops: Option<f64>,
    /// Billions of bytes read a second from a buffer that no cache holds.
    pub read_gbytes: f64,
}

/// Measures for about half a second and touches 512 MB of memory.
pub fn measure() -> Ceilings {
    Ceilings {
        isa: isa::active().isa(),
        threads: pool::threads(),
        fma_gflops: fma_gflops(),
        amx_gflops: gemm::amx_gflops(),
        read_gbytes: read_gbytes(),
    }
}

const LANES: usize = 16;

/// Rounds of multiply-adds in one measurement.
const ROUNDS: usize = 50_000;

multiversion! {
    fn sum(values: &[f32]) -> f32 = sum_body;
}

#[inline(always)]
fn sum_body<const FMA: bool>(values: &[f32]) -> f32 {
    let mut sums = [[0.0; LANES]; 4];
    for values in values.chunks_exact(4 * LANES) {
        for (sum, value) in sums.as_flattened_mut().iter_mut().zip(values) {
            *sum += value;
        }
    }
    sums.as_flattened().iter().sum()
}

/// The shortest of repeated runs of `body` on every thread at once, for about `total`.
pub(crate) fn shortest(total: Duration, body: impl Fn(usize) + Sync) -> f64 {
    let begin = Instant::now();
    let mut best = f64::INFINITY;
    while begin.elapsed() < total {
        let start = Instant::now();
        pool::parallel_for(pool::threads(), &body);
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

fn fma_gflops() -> f64 {
    let isa = isa::active();
    let seconds = shortest(Duration::from_millis(150), |_| {
        black_box(gemm::chains(isa, black_box(ROUNDS)));
    });
    let each = gemm::chains(isa, ROUNDS).flops;
    each as f64 * pool::threads() as f64 / seconds * 1e-9
}

fn read_gbytes() -> f64 {
    const FLOATS: usize = 128 << 20;
    let isa = isa::active();
    // Written once, so that it is real memory.
    let buffer = vec![1.0_f32; FLOATS];
    let share = FLOATS / pool::threads();
    let seconds = shortest(Duration::from_millis(200), |thread| {
        black_box(sum(isa, &buffer[thread * share..(thread + 1) * share]));
    });
    (4 * share * pool::threads()) as f64 / seconds * 1e-9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ceilings_are_positive() {
        let isa = isa::active();
        assert_eq!(sum(isa, &[1.0; 256]), 256.0);
        assert!(fma_gflops() > 0.0);
    }
}
