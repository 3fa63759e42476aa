//! Packed weights as pairs of 16 bits.

use super::PAIRS;
use super::lanes::Integers;
use crate::gemm::source::{INT8_GROUP, Q4_GROUP};
use crate::gemm::tile::PANEL;
use crate::gemm::vector::Vector;

/// A sub-panel of packed weights: two registers of columns.
///
/// # Safety
/// As for [`Integers`]; groups must be inside of the matrix.
pub(super) unsafe trait Weights<V: Integers>: Copy {
    /// Pairs that a packed word comes apart into.
    const PAIRS_OF_A_WORD: usize;
    /// Whether a group's sum starts from what the activations give for it.
    const STARTS: bool;
    /// Whether weights have a minimum, which counts as often as the activations' sum.
    const MINIMA: bool;

    /// From the beginning of a panel and a column in it; with each word, what is `ahead` bytes behind it is asked for.
    fn new(panel: *const u8, col: usize, ahead: usize) -> Self;
    /// Word `index` of each column in a group.
    unsafe fn words(self, group: usize, index: usize) -> [V; 2];
    /// A word's pairs, each two times 16 bits.
    unsafe fn pairs(words: [V; 2], index: usize) -> [V; 2];
    unsafe fn scales(self, group: usize) -> [V::Floats; 2];
    /// Where there are [`Weights::MINIMA`].
    unsafe fn minima(self, group: usize) -> [V::Floats; 2];
}

/// Bytes ahead of the word in use that are asked for, where each word is read once.
pub(super) const AHEAD: usize = 2048;

/// # Safety
/// V is available and there are two registers of words.
#[inline(always)]
unsafe fn two<V: Integers>(from: *const u32, ahead: usize) -> [V; 2] {
    // SAFETY: the caller's promise; any address may be asked for.
    unsafe {
        V::Floats::prefetch(from.cast::<u8>().wrapping_add(ahead));
        V::Floats::prefetch(from.cast::<u8>().wrapping_add(ahead + 64));
        [V::load(from), V::load(from.add(V::LANES))]
    }
}

/// # Safety
/// V is available and there are two registers of f16.
#[inline(always)]
unsafe fn two_halves<V: Integers>(from: *const u16) -> [V::Floats; 2] {
    // SAFETY: the caller's promise.
    unsafe { [V::Floats::load_f16(from), V::Floats::load_f16(from.add(V::LANES))] }
}

/// 8 bits: bytes with 128 added.
#[derive(Clone, Copy)]
pub(super) struct Int8 {
    panel: *const u8,
    col: usize,
    ahead: usize,
}

// SAFETY: a panel has 32 columns for every group.
unsafe impl<V: Integers> Weights<V> for Int8 {
    const PAIRS_OF_A_WORD: usize = 2;
    const STARTS: bool = true;
    const MINIMA: bool = false;

    fn new(panel: *const u8, col: usize, ahead: usize) -> Self {
        Self { panel, col, ahead }
    }
    #[inline(always)]
    unsafe fn words(self, group: usize, index: usize) -> [V; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            two(
                self.panel.add(group * INT8_GROUP + 2 * PANEL).cast::<u32>().add(index * PANEL + self.col),
                self.ahead,
            )
        }
    }
    #[inline(always)]
    unsafe fn pairs([left, right]: [V; 2], index: usize) -> [V; 2] {
        let bits = 8 * index as u32;
        // SAFETY: the caller's promise.
        unsafe { [left.part(bits, 0x00ff_00ff), right.part(bits, 0x00ff_00ff)] }
    }
    #[inline(always)]
    unsafe fn scales(self, group: usize) -> [V::Floats; 2] {
        // SAFETY: the caller's promise.
        unsafe { two_halves::<V>(self.panel.add(group * INT8_GROUP).cast::<u16>().add(self.col)) }
    }
    #[inline(always)]
    unsafe fn minima(self, _group: usize) -> [V::Floats; 2] {
        unreachable!("8 bits have no minima")
    }
}

/// 4 bits.
#[derive(Clone, Copy)]
pub(super) struct Q4 {
    panel: *const u8,
    col: usize,
    ahead: usize,
}

// SAFETY: a panel has 32 columns for every group.
unsafe impl<V: Integers> Weights<V> for Q4 {
    const PAIRS_OF_A_WORD: usize = 4;
    const STARTS: bool = false;
    const MINIMA: bool = true;

    fn new(panel: *const u8, col: usize, ahead: usize) -> Self {
        Self { panel, col, ahead }
    }
    #[inline(always)]
    unsafe fn words(self, group: usize, index: usize) -> [V; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            two(
                self.panel.add(group * Q4_GROUP + 4 * PANEL).cast::<u32>().add(index * PANEL + self.col),
                self.ahead,
            )
        }
    }
    #[inline(always)]
    unsafe fn pairs([left, right]: [V; 2], index: usize) -> [V; 2] {
        let bits = 4 * index as u32;
        // SAFETY: the caller's promise.
        unsafe { [left.part(bits, 0x000f_000f), right.part(bits, 0x000f_000f)] }
    }
    #[inline(always)]
    unsafe fn scales(self, group: usize) -> [V::Floats; 2] {
        // SAFETY: the caller's promise.
        unsafe { two_halves::<V>(self.panel.add(group * Q4_GROUP).cast::<u16>().add(self.col)) }
    }
    #[inline(always)]
    unsafe fn minima(self, group: usize) -> [V::Floats; 2] {
        // SAFETY: the caller's promise.
        unsafe { two_halves::<V>(self.panel.add(group * Q4_GROUP).cast::<u16>().add(PANEL + self.col)) }
    }
}

/// Weights whose pairs were written before.
#[derive(Clone, Copy)]
pub(super) struct Unpacked<W> {
    pub(super) weights: W,
    /// `[groups][16]` times two registers.
    pub(super) pairs: *const u32,
}

// SAFETY: reads the pairs that were written.
unsafe impl<V: Integers, W: Weights<V>> Weights<V> for Unpacked<W> {
    const PAIRS_OF_A_WORD: usize = 1;
    const STARTS: bool = W::STARTS;
    const MINIMA: bool = W::MINIMA;

    fn new(panel: *const u8, col: usize, ahead: usize) -> Self {
        Self { weights: W::new(panel, col, ahead), pairs: std::ptr::null() }
    }
    #[inline(always)]
    unsafe fn words(self, group: usize, index: usize) -> [V; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let from = self.pairs.add((group * PAIRS + index) * 2 * V::LANES);
            [V::load(from), V::load(from.add(V::LANES))]
        }
    }
    #[inline(always)]
    unsafe fn pairs(words: [V; 2], _index: usize) -> [V; 2] {
        words
    }
    #[inline(always)]
    unsafe fn scales(self, group: usize) -> [V::Floats; 2] {
        // SAFETY: the caller's promise.
        unsafe { self.weights.scales(group) }
    }
    #[inline(always)]
    unsafe fn minima(self, group: usize) -> [V::Floats; 2] {
        // SAFETY: the caller's promise.
        unsafe { self.weights.minima(group) }
    }
}
