//! Sums over hidden states, in f64.

use mixse_kernels::{Accumulate, View, gemm};

use super::buffer::Buffer;
use crate::backend::MomentSums;

/// As [`MomentSums`], while they are taken.
#[derive(Debug)]
pub(crate) struct Sums(MomentSums);

impl Sums {
    pub(super) fn new(d: usize) -> Self {
        Self(MomentSums { rows: 0, sum: vec![0.0; d], products: vec![0.0; d * (d + 1) / 2] })
    }

    pub(super) fn add(&mut self, h: &[f32]) {
        let MomentSums { rows: all, sum, products } = &mut self.0;
        let d = sum.len();
        let rows = h.len() / d;
        *all += rows;
        for row in h.chunks_exact(d) {
            sum.iter_mut().zip(row).for_each(|(sum, &v)| *sum += f64::from(v));
        }
        let mut product = Buffer::new(d * d);
        gemm((d, d, rows), View::transposed(h, d), h, d, &mut product, d, Accumulate::Overwrite);
        let mut place = products.iter_mut();
        for (i, row) in product.chunks_exact(d).enumerate() {
            place.by_ref().zip(&row[i..]).for_each(|(sum, &v)| *sum += f64::from(v));
        }
    }

    pub(super) fn read(&self) -> MomentSums {
        self.0.clone()
    }
}
