//! Memory for activations, used again from block to block and from step to step.
//!
//! A training step holds and frees gigabytes. Memory fresh from the system has to be cleared and mapped page by page, by one
//! thread, which costs a tenth of the step; here it goes back to a list instead. The list never makes more memory live than
//! a quarter above what was in use at one time, and whoever ends a task empties it ([`release`]).

use std::{
    ops::{Deref, DerefMut},
    sync::Mutex,
};

static FREE: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());

/// Values that may be wasted without a thought.
const SMALL: usize = 16 * 1024;

/// Some f32 values. What they are at first is not defined; they belong to whoever was here before.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    memory: Vec<f32>,
    len: usize,
}

impl Buffer {
    /// `len` values of arbitrary content.
    pub(crate) fn new(len: usize) -> Self {
        Self { memory: take(len), len }
    }

    /// `given`, or where that is empty `len` values of its own.
    pub(crate) fn or<'a>(&'a mut self, given: &'a mut [f32], len: usize) -> &'a mut [f32] {
        if given.is_empty() { self.sized(len) } else { given }
    }

    /// Makes it `len` long; its content is lost.
    pub(crate) fn sized(&mut self, len: usize) -> &mut [f32] {
        if self.memory.len() < len {
            *self = Self::default();
            self.memory = take(len);
        }
        self.len = len;
        self
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.memory[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.memory[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let memory = std::mem::take(&mut self.memory);
        if !memory.is_empty()
            && let Ok(mut free) = FREE.lock()
        {
            free.push(memory);
        }
    }
}

/// Empties the list.
pub(crate) fn release() {
    if let Ok(mut free) = FREE.lock() {
        *free = Vec::new();
    }
}

/// The smallest free memory that is large enough, and not much too large. When there is none, the largest free memory is
/// given up for new, so that never much more is held than was in use at one time.
fn take(len: usize) -> Vec<f32> {
    if len == 0 {
        return Vec::new();
    }
    if let Ok(mut free) = FREE.lock() {
        let fits = (0..free.len())
            .filter(|&i| (len..=len + len / 4 + SMALL).contains(&free[i].len()))
            .min_by_key(|&i| free[i].len());
        match fits {
            Some(i) => return free.swap_remove(i),
            None => {
                if let Some(i) = (0..free.len()).max_by_key(|&i| free[i].len()) {
                    free.swap_remove(i);
                }
            }
        }
    }
    vec![0.0; len]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_those_asked_for() {
        let mut buffer = Buffer::new(5);
        assert_eq!(buffer.len(), 5);
        assert_eq!(buffer.sized(3).len(), 3);
        buffer.sized(1000).fill(1.0);
        assert_eq!(buffer.iter().sum::<f32>(), 1000.0);
        assert_eq!(Buffer::default().len(), 0);
        let other = Buffer::new(1000);
        assert_ne!(other.as_ptr(), buffer.as_ptr(), "buffers in use are distinct");
    }
}
