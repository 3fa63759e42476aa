//! Numbers that are none: NaN and infinity in files, in results of a merge, in logits.
//!
//! One such number makes every later one meaningless, so each place that takes numbers in or gives answers out looks for
//! them. A scan is one pass over bits that are in the cache anyway.

use mixse_kernels::loss::all_finite;

/// Values looked at before the scan may stop.
const PIECE: usize = 4096;

/// The first value that is not finite, with its index.
pub fn first_fault(values: &[f32]) -> Option<(usize, f32)> {
    let (index, piece) = values.chunks(PIECE).enumerate().find(|(_, piece)| !all_finite(piece))?;
    let at = piece.iter().position(|value| !value.is_finite())?;
    Some((index * PIECE + at, piece[at]))
}

/// The place of the value `index` in a tensor of this shape, as `[row, column]`.
pub(crate) fn place(mut index: usize, shape: &[usize]) -> String {
    let mut place = vec![0; shape.len()];
    for (at, &size) in place.iter_mut().zip(shape).rev() {
        *at = index % size.max(1);
        index /= size.max(1);
    }
    format!("{place:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_fault_is_found_wherever_it_is() {
        assert_eq!(first_fault(&[]), None);
        assert_eq!(first_fault(&[f32::MAX, f32::MIN, -0.0, f32::MIN_POSITIVE / 2.0]), None);
        for at in [0, 1, 4095, 4096, 9999] {
            for bad in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
                let mut values = vec![1.0; 10_000];
                values[at] = bad;
                values[9999] = bad;
                let (found, value) = first_fault(&values).unwrap();
                assert_eq!((found, value.to_bits()), (at, bad.to_bits()));
            }
        }
    }

    #[test]
    fn a_place_names_row_and_column() {
        assert_eq!(place(7, &[2, 5]), "[1, 2]");
        assert_eq!(place(3, &[4]), "[3]");
    }
}
