//! One thread: `y = x Wᵀ` with W packed beforehand and x as it comes, laid out by whoever needs it laid out. Of tract the
//! better of both orientations counts (weights as its left or as its right matrix). A number as argument: only so many rows.

use std::time::Instant;

use mixse_kernels::{Accumulate, Packed, Storage, isa, matmul, pool};
use tract_data::internal::*;
use tract_linalg::{
    MmmDispatch,
    mmm::{AsInputValue, FusedSpec},
};

fn values(len: usize) -> Vec<f32> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}

/// The second percentile of many runs, in seconds: what the kernel takes where the machine is not shared at that moment.
fn seconds(mut run: impl FnMut()) -> f64 {
    run();
    let begin = Instant::now();
    let mut times = Vec::new();
    while times.len() < 7 || begin.elapsed().as_millis() < 500 {
        let start = Instant::now();
        run();
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 50]
}

/// Seconds of tract's product, its kernel, and y. `weights_left`: yᵀ = W xᵀ, else y = x Wᵀ.
fn tract(
    x: &[f32],
    w: &[f32],
    (m, k, n): (usize, usize, usize),
    weights_left: bool,
) -> (f64, String, Vec<f32>) {
    let (rows, cols) = if weights_left { (n, m) } else { (m, n) };
    let kernel =
        MmmDispatch::native().preferred_kernel(DatumType::F32, Some(rows), Some(k), Some(cols)).unwrap();
    let packing = &kernel.packings()[0];
    let (x, w) = (Tensor::from_shape(&[m, k], x).unwrap(), Tensor::from_shape(&[n, k], w).unwrap());
    // Weights are laid out once; k is axis 1 of either.
    let packed =
        if weights_left { packing.0.prepare_one(&w, 1, 0) } else { packing.1.prepare_one(&w, 1, 0) }.unwrap();
    let mut y = Tensor::zero::<f32>(&[m, n]).unwrap();
    let mut scratch = unsafe { kernel.allocate_scratch_space() };
    let time = seconds(|| {
        let input =
            if weights_left { packing.1.prepare_one(&x, 1, 0) } else { packing.0.prepare_one(&x, 1, 0) }
                .unwrap();
        let (a, b) = if weights_left { (&packed, &input) } else { (&input, &packed) };
        let (row_axis, col_axis) = if weights_left { (1, 0) } else { (0, 1) };
        unsafe {
            let store = kernel.c_view(Some(row_axis), Some(col_axis)).wrap(&y.view_mut());
            let product = FusedSpec::AddMatMul {
                a: AsInputValue::Borrowed(&**a),
                b: AsInputValue::Borrowed(&**b),
                packing: 0,
            };
            kernel
                .run_with_scratch_space(rows, cols, scratch.as_mut(), &[product, FusedSpec::Store(store)])
                .unwrap();
        }
    });
    let y = unsafe { y.as_slice_unchecked::<f32>() }.to_vec();
    (time, kernel.name().to_owned(), y)
}

fn main() {
    pool::set_threads(1);
    println!(
        "GFLOP/s on one thread, {}; ceiling {:.0}",
        isa::active(),
        mixse_kernels::ceilings::measure().fma_gflops
    );
    println!(
        "| rows x k x n | mixse bf16 | mixse f32 | tract f32 | its kernel | mixse bf16 / tract |\n|---|---|---|---|---|---|"
    );
    for (k, n) in [(576, 576), (576, 1536), (1536, 576)] {
        for m in std::env::args().nth(1).map_or(vec![1, 4, 16, 64, 256, 2048], |m| vec![m.parse().unwrap()]) {
            let (x, w) = (values(m * k), values(n * k));
            let mut y = vec![0.0; m * n];
            let mut ours = |storage| {
                let packed = Packed::pack(&w, n, k, storage);
                seconds(|| matmul(&x, m, &packed, &mut y, Accumulate::Overwrite))
            };
            let (bf16, f32) = (ours(Storage::Bf16), ours(Storage::F32));
            let (left, right) = (tract(&x, &w, (m, k, n), true), tract(&x, &w, (m, k, n), false));
            for (_, name, theirs) in [&left, &right] {
                let off = theirs.iter().zip(&y).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(off < 1e-2, "{name} computes something else: {off}");
            }
            let best = if left.0 < right.0 { left } else { right };
            let rate = |seconds: f64| 2e-9 * (m * k * n) as f64 / seconds;
            println!(
                "| {m} x {k} x {n} | {:.1} | {:.1} | {:.1} | {} | {:.2} |",
                rate(bf16),
                rate(f32),
                rate(best.0),
                best.1,
                best.0 / bf16
            );
        }
    }
}
