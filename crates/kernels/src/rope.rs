//! Rotary position embedding, in Hugging Face's convention: the first half of a head is paired with the second.

use std::ops::Range;

use crate::isa::{self, multiversion};
use crate::pool::{self, Parts};

/// The cosines and sines of some tokens' positions, `[tokens, head_dim / 2]` each; the same for all blocks that share
/// the frequencies.
#[derive(Clone, Debug, Default)]
pub struct Angles {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Angles {
    /// For `positions` and the head_dim / 2 inverse frequencies.
    ///
    /// As in transformers, the angle is the f32 product of position and frequency; its cosine and sine are correctly
    /// rounded, so that long positions agree too.
    pub fn new(positions: &[u32], inv_freq: &[f32]) -> Self {
        let mut angles = Self::default();
        angles.set(positions, inv_freq);
        angles
    }

    /// The same as [`Angles::new`] in the memory of this one.
    pub fn set(&mut self, positions: &[u32], inv_freq: &[f32]) {
        self.half = inv_freq.len();
        self.cos.clear();
        self.sin.clear();
        for &position in positions {
            for &frequency in inv_freq {
                let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
                self.cos.push(cos as f32);
                self.sin.push(sin as f32);
            }
        }
    }

    /// Tokens covered.
    pub fn tokens(&self) -> usize {
        self.cos.len().checked_div(self.half).unwrap_or(0)
    }
}

/// Which way to turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// By the positions' angles.
    Forward,
    /// Back: the gradient of the input from the gradient of the output.
    Backward,
}

/// Turns each pair (a, b) = (x\[i\], x\[i + head_dim / 2\]) of every head, in place:
/// `(a cos - b sin, b cos + a sin)`, or by the opposite angle for [`Direction::Backward`]. `x` is
/// `[tokens, heads, head_dim]`, with the tokens of `angles`.
///
/// # Panics
/// If `x` has another size.
pub fn rope(x: &mut [f32], heads: usize, angles: &Angles, direction: Direction) {
    rope_rows(x, heads, angles, 0..angles.tokens(), direction);
}

/// [`rope`] for some of the tokens of `angles`, which are the rows of `x`.
///
/// # Panics
/// If `x` has another size or `angles` has not these tokens.
pub fn rope_rows(x: &mut [f32], heads: usize, angles: &Angles, tokens: Range<usize>, direction: Direction) {
    let half = angles.half;
    let row = heads * 2 * half;
    assert!(tokens.end <= angles.tokens(), "angles of {} tokens", angles.tokens());
    assert_eq!(x.len(), tokens.len() * row, "x is [{}, {heads}, {}]", tokens.len(), 2 * half);
    let isa = isa::active();
    let sign = if direction == Direction::Forward { 1.0 } else { -1.0 };
    let (tasks, range) = pool::split(tokens.len(), 16);
    let x = Parts::new(x);
    pool::parallel_for(tasks, |task| {
        for token in range(task) {
            // SAFETY: tokens are disjoint.
            let x = unsafe { x.get(token * row..(token + 1) * row) };
            let at = (tokens.start + token) * half..(tokens.start + token + 1) * half;
            turn(isa, x, &angles.cos[at.clone()], &angles.sin[at], sign);
        }
    });
}

multiversion! {
    fn turn(x: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) = turn_body;
}

#[inline(always)]
fn turn_body<const FMA: bool>(x: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
    for head in x.chunks_exact_mut(2 * cos.len()) {
        let (left, right) = head.split_at_mut(cos.len());
        for (((a, b), cos), sin) in left.iter_mut().zip(right).zip(cos).zip(sin) {
            let (old_a, old_b, sin) = (*a, *b, sign * sin);
            *a = old_a * cos - old_b * sin;
            *b = old_b * cos + old_a * sin;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_near, each_isa, values};

    #[test]
    fn turns_and_turns_back() {
        for (tokens, heads, half) in [(1, 1, 1), (3, 2, 4), (20, 3, 16), (33, 1, 5)] {
            let inv_freq: Vec<f32> = (0..half).map(|i| 10_000_f32.powf(-(i as f32) / half as f32)).collect();
            let positions: Vec<u32> = (0..tokens as u32).map(|i| i * 1000 + 7).collect();
            let x = values(tokens * heads * half * 2, 1);
            each_isa(|isa| {
                let angles = Angles::new(&positions, &inv_freq);
                let mut y = x.clone();
                rope(&mut y, heads, &angles, Direction::Forward);
                for (head, (x, y)) in x.chunks(2 * half).zip(y.chunks(2 * half)).enumerate() {
                    for i in 0..half {
                        let angle = f64::from(positions[head / heads] as f32 * inv_freq[i]);
                        let (a, b) = (f64::from(x[i]), f64::from(x[i + half]));
                        let expected = [a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()];
                        assert_near(&[y[i], y[i + half]], &expected.map(|e| e as f32), 1e-6, isa.name());
                    }
                }
                rope(&mut y, heads, &angles, Direction::Backward);
                assert_near(&y, &x, 1e-6, "back again");
            });
        }
    }
}
