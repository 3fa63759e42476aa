//! The tile registers: their configuration, and products of blocks held in them.

use std::arch::asm;
use std::marker::PhantomData;

use super::HasTiles;

/// Rows of a tile.
pub(crate) const TILE: usize = 16;

/// Rows of a block: two tiles.
pub(crate) const BLOCK: usize = 2 * TILE;

/// Values of k in one step: a tile row of 64 bytes.
pub(crate) const STEP: usize = 32;

/// The tile configuration of this thread, released at the end of its use.
///
/// Tiles 0 to 3 are the sums (upper left, upper right, lower left, lower right), 4 and 5 the upper and lower left matrix, 6
/// and 7 the right one.
pub(crate) struct Tiles {
    /// It belongs to the thread.
    _thread: PhantomData<*const ()>,
}

impl Tiles {
    /// Tiles of so many rows in the upper and the lower half of a block, 16 at most; the right matrix has 16 rows of pairs.
    pub(crate) fn rows(_proof: HasTiles, upper: usize, lower: usize) -> Self {
        #[repr(C, align(64))]
        struct Configuration {
            palette: u8,
            start_row: u8,
            reserved: [u8; 14],
            bytes_per_row: [u16; 16],
            rows: [u8; 16],
        }
        debug_assert!((1..=TILE).contains(&upper) && lower <= TILE);
        let mut configuration = Configuration {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            bytes_per_row: [0; 16],
            rows: [0; 16],
        };
        configuration.bytes_per_row[..8].fill(64);
        // A tile of no rows is never used, but its configuration would be an error.
        let (upper, lower) = (upper as u8, lower.max(1) as u8);
        configuration.rows[..8].copy_from_slice(&[upper, upper, lower, lower, upper, lower, 16, 16]);
        // SAFETY: there is a proof that tiles are usable; reads the 64 bytes of `configuration`.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const configuration, options(nostack, readonly)) };
        Self { _thread: PhantomData }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: only made where tiles are usable; nothing else uses tile registers.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// The operands of a block of sums: up to 32 rows of the left matrix and a panel of 32 columns of the right one.
#[derive(Clone, Copy)]
pub(crate) struct Block {
    /// `[steps][16][32]` bf16 of the upper rows, and directly behind them of the lower ones.
    pub(crate) left: *const u16,
    /// Steps of 32 values of k.
    pub(crate) steps: usize,
    /// `[steps][16]` rows of 32 pairs.
    pub(crate) right: *const u32,
    /// Distance of these rows; [`PANEL`] in a packed panel.
    pub(crate) right_row: usize,
    /// There are lower rows.
    pub(crate) both: bool,
    /// Ask for the right matrix's bytes ahead: it comes from memory and is used once.
    pub(crate) prefetch: bool,
}

/// The loop over k. `$ahead` asks for the right matrix's bytes, `$load` and `$product` are of the lower rows.
macro_rules! multiply {
    ($block:expr, [$($ahead:literal),*], [$($load:literal),*], [$($product:literal),*]) => {
        asm!(
            "2:",
            $($ahead,)*
            "tileloadd tmm4, [{top} + {left_row}]",
            "tileloadd tmm6, [{right} + {right_row}]",
            "tileloadd tmm7, [{right} + {right_row} + 64]",
            $($load,)*
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            $($product,)*
            "add {top}, 1024",
            "add {bottom}, 1024",
            "add {right}, {right_step}",
            "dec {steps}",
            "jnz 2b",
            top = inout(reg) $block.left => _,
            bottom = inout(reg) $block.left.wrapping_add($block.steps * TILE * STEP) => _,
            left_row = in(reg) 2 * STEP,
            right = inout(reg) $block.right => _,
            right_row = in(reg) 4 * $block.right_row,
            right_step = in(reg) 4 * TILE * $block.right_row,
            steps = inout(reg) $block.steps => _,
            options(nostack, readonly),
        )
    };
}

/// The same, asking for the right matrix 6 KB ahead: a step's 2 KB by cache lines.
macro_rules! multiply_ahead {
    ($block:expr, $load:tt, $product:tt) => {
        multiply!(
            $block,
            [
                ".irp line, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
                "prefetcht0 [{right} + 6144 + 128 * \\line]",
                "prefetcht0 [{right} + 6208 + 128 * \\line]",
                ".endr"
            ],
            $load,
            $product
        )
    };
}

impl Block {
    /// `sums (+)= left · right`; rows of `sums` are `row` apart.
    ///
    /// # Safety
    /// The tiles' rows and `steps` (at least 1) are those of the operands, which are whole; `sums` has the tiles' rows of 32
    /// columns and nobody else uses them.
    #[inline(always)]
    pub(crate) unsafe fn multiply(self, _tiles: &Tiles, sums: *mut f32, row: usize, add: bool) {
        let below = sums.wrapping_add(TILE * row);
        let stride = 4 * row;
        // SAFETY: the caller's promise. Compiled code never uses tile registers, so they keep their content from one block
        // of assembly to the next and none is declared as changed.
        unsafe {
            if add {
                asm!(
                    "tileloadd tmm0, [{sums} + {stride}]",
                    "tileloadd tmm1, [{sums} + {stride} + 64]",
                    sums = in(reg) sums, stride = in(reg) stride, options(nostack, readonly),
                );
                if self.both {
                    asm!(
                        "tileloadd tmm2, [{below} + {stride}]",
                        "tileloadd tmm3, [{below} + {stride} + 64]",
                        below = in(reg) below, stride = in(reg) stride, options(nostack, readonly),
                    );
                }
            } else {
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    options(nostack, nomem)
                );
            }
            match (self.both, self.prefetch) {
                (true, false) => multiply!(
                    self,
                    [],
                    ["tileloadd tmm5, [{bottom} + {left_row}]"],
                    ["tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7"]
                ),
                (true, true) => multiply_ahead!(
                    self,
                    ["tileloadd tmm5, [{bottom} + {left_row}]"],
                    ["tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7"]
                ),
                (false, false) => multiply!(self, [], [], []),
                (false, true) => multiply_ahead!(self, [], []),
            }
            asm!(
                "tilestored [{sums} + {stride}], tmm0",
                "tilestored [{sums} + {stride} + 64], tmm1",
                sums = in(reg) sums, stride = in(reg) stride, options(nostack),
            );
            if self.both {
                asm!(
                    "tilestored [{below} + {stride}], tmm2",
                    "tilestored [{below} + {stride} + 64], tmm3",
                    below = in(reg) below, stride = in(reg) stride, options(nostack),
                );
            }
        }
    }
}

/// `rounds` steps of a full block without loads or stores.
pub(crate) fn products_alone(_tiles: &Tiles, rounds: usize) {
    // SAFETY: tiles are configured, since there is a `Tiles`.
    unsafe {
        asm!(
            "tilezero tmm4", "tilezero tmm5", "tilezero tmm6", "tilezero tmm7",
            "2:",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "dec {rounds}",
            "jnz 2b",
            rounds = inout(reg) rounds.max(1) => _,
            options(nostack, nomem),
        );
    }
}
