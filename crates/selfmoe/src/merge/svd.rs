//! The best approximation of a matrix by a LoRA of a given rank: a truncated singular value decomposition.
//!
//! Only a few of some hundreds to thousands of singular triples are wanted, so a full decomposition, as general
//! linear-algebra crates offer it, would be mostly wasted work. Subspace iteration (Halko, Martinsson and Tropp 2011,
//! algorithm 4.4) needs a few products with the matrix and a small decomposition, done by one-sided Jacobi.

use candle_core::{Device, Tensor};

use super::{Factors, mismatch};
use mixse_model::random::Stream;

use crate::error::Result;

/// More directions than wanted: they make the wanted ones converge faster.
const OVERSAMPLING: usize = 8;
/// Each multiplies a direction's error by the squared ratio of the first dropped singular value to its own.
const ITERATIONS: usize = 8;
/// Jacobi converges quadratically; a matrix that needs more sweeps has numbers at the edge of the format.
const MAX_SWEEPS: usize = 40;

/// A LoRA that stands for a dense matrix.
#[derive(Debug, Clone)]
pub struct Truncated {
    /// `B = U · S`, `A = Vᵀ`, scaling 1.
    pub factors: Factors,
    /// `‖ΔW - B·A‖ / ‖ΔW‖` (Frobenius): 0 if nothing was lost, 1 if everything.
    pub relative_error: f64,
}

/// The LoRA of rank `rank` (at most the matrix's smaller side) that is closest to `delta`, `[out, in]`.
///
/// # Errors
/// The rank is 0 or the matrix holds numbers that are not finite.
pub fn truncate(module: &str, delta: &Tensor, rank: usize) -> Result<Truncated> {
    let (out, input) = delta.dims2()?;
    if rank == 0 {
        return Err(mismatch(module, "the rank is 0".into()));
    }
    let norm = frobenius(delta)?;
    if !norm.is_finite() {
        return Err(mismatch(module, "the weights hold numbers that are not finite".into()));
    }
    let rank = rank.min(out).min(input);
    let width = (rank + OVERSAMPLING).min(out).min(input);
    let transposed = delta.t()?.contiguous()?;
    let mut random = Stream::new(0, "subspace", 0);
    let start: Columns = (0..width).map(|_| (0..input).map(|_| random.unit() - 0.5).collect()).collect();
    let mut basis = orthonormal(times(delta, &start)?);
    for _ in 0..ITERATIONS {
        let other = orthonormal(times(&transposed, &basis)?);
        basis = orthonormal(times(delta, &other)?);
    }
    // delta ≈ Q · C with C = Qᵀ · delta. The rows of C, rotated until they are orthogonal, are the right singular
    // vectors times the singular values; Q times the rotation are the left ones.
    let mut rows = times(&transposed, &basis)?;
    let rotation = jacobi(&mut rows);
    let singular: Vec<f64> = rows.iter().map(|row| dot(row, row).sqrt()).collect();
    let mut order: Vec<usize> = (0..width).collect();
    order.sort_by(|&i, &j| singular[j].total_cmp(&singular[i]));
    let mut a = Vec::with_capacity(rank * input);
    let mut b = vec![0.0; out * rank];
    for (k, &i) in order[..rank].iter().enumerate() {
        let scale = if singular[i] > 0.0 { 1.0 / singular[i] } else { 0.0 };
        a.extend(rows[i].iter().map(|v| (v * scale) as f32));
        for (row, value) in combination(&basis, &rotation[i]).into_iter().enumerate() {
            b[row * rank + k] = (value * singular[i]) as f32;
        }
    }
    let a = Tensor::from_vec(a, (rank, input), &Device::Cpu)?;
    let b = Tensor::from_vec(b, (out, rank), &Device::Cpu)?;
    let lost = frobenius(&(delta - b.matmul(&a)?)?)?;
    let relative_error = if norm > 0.0 { lost / norm } else { 0.0 };
    Ok(Truncated { factors: Factors::new(module, &a, &b, 1.0)?, relative_error })
}

/// The columns of a matrix.
type Columns = Vec<Vec<f64>>;

/// `matrix · columns`, in single precision.
fn times(matrix: &Tensor, columns: &Columns) -> Result<Columns> {
    let flat: Vec<f32> = columns.iter().flatten().map(|&v| v as f32).collect();
    let length = columns.first().map_or(0, Vec::len);
    let columns = Tensor::from_vec(flat, (columns.len(), length), &Device::Cpu)?;
    let product: Vec<Vec<f32>> = matrix.matmul(&columns.t()?)?.t()?.to_vec2()?;
    Ok(product.into_iter().map(|column| column.into_iter().map(f64::from).collect()).collect())
}

/// The sum of the columns, each times its weight.
fn combination(columns: &Columns, weights: &[f64]) -> Vec<f64> {
    let mut sum = vec![0.0; columns.first().map_or(0, Vec::len)];
    for (column, weight) in columns.iter().zip(weights) {
        sum.iter_mut().zip(column).for_each(|(s, c)| *s += weight * c);
    }
    sum
}

/// Gram-Schmidt, twice, which is enough for orthogonality to rounding. A column that depends on those before it
/// becomes 0.
fn orthonormal(mut columns: Columns) -> Columns {
    for i in 0..columns.len() {
        let (done, rest) = columns.split_at_mut(i);
        let Some(column) = rest.first_mut() else { break };
        let before = dot(column, column).sqrt();
        for _ in 0..2 {
            for other in done.iter() {
                let overlap = dot(other, column);
                column.iter_mut().zip(other).for_each(|(c, o)| *c -= overlap * o);
            }
        }
        let norm = dot(column, column).sqrt();
        // The columns come from single-precision products: what is smaller than this is rounding.
        let scale = if norm > 1e-6 * before { 1.0 / norm } else { 0.0 };
        column.iter_mut().for_each(|c| *c *= scale);
    }
    columns
}

/// One-sided Jacobi: rotates pairs of columns until all are orthogonal, and returns the rotation's columns.
fn jacobi(columns: &mut Columns) -> Columns {
    let n = columns.len();
    let mut rotation: Columns =
        (0..n).map(|i| (0..n).map(|j| f64::from(u8::from(i == j))).collect()).collect();
    for _ in 0..MAX_SWEEPS {
        let mut turned = false;
        for i in 0..n {
            for j in i + 1..n {
                let (x, y) = (dot(&columns[i], &columns[i]), dot(&columns[j], &columns[j]));
                let overlap = dot(&columns[i], &columns[j]);
                if overlap.abs() <= 1e-12 * (x * y).sqrt() {
                    continue;
                }
                turned = true;
                let zeta = (y - x) / (2.0 * overlap);
                let tangent = 1f64.copysign(zeta) / (zeta.abs() + (1.0 + zeta * zeta).sqrt());
                let cosine = 1.0 / (1.0 + tangent * tangent).sqrt();
                rotate(columns, i, j, cosine, cosine * tangent);
                rotate(&mut rotation, i, j, cosine, cosine * tangent);
            }
        }
        if !turned {
            break;
        }
    }
    rotation
}

fn rotate(columns: &mut Columns, i: usize, j: usize, cosine: f64, sine: f64) {
    let (left, right) = columns.split_at_mut(j);
    for (x, y) in left[i].iter_mut().zip(&mut right[0]) {
        (*x, *y) = (cosine * *x - sine * *y, sine * *x + cosine * *y);
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

fn frobenius(matrix: &Tensor) -> Result<f64> {
    let values: Vec<f32> = matrix.flatten_all()?.to_vec1()?;
    Ok(values.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt())
}
