//! Runs the assembly on processors without tiles: a handler for illegal instructions decodes the AMX instruction that
//! raised the signal, does its work on tiles in memory and continues behind it.
//!
//! Where there are tiles, a process that never asks its kernel for their data gets the same signal for all but their
//! configuration; so detection, which asks, can be tested with the emulation on both kinds of machines.

use std::arch::x86_64::__cpuid_count;
use std::cell::RefCell;
use std::process::Command;
use std::sync::Barrier;
use std::time::Duration;

use half::bf16;

use super::*;
use crate::isa::{self, Isa};
use crate::testing::{assert_near, values};
use mixse_testing::process::finish_within;

/// Set in the environment of a process whose detection finds the emulation instead of tiles.
const INSTEAD: &str = "MIXSE_TEST_EMULATE_TILES";

type Tile = [[u8; 64]; 16];

struct State {
    configured: bool,
    /// Rows of each tile.
    rows: [u8; 8],
    tiles: [Tile; 8],
    executed: usize,
}

thread_local! {
    static STATE: RefCell<State> =
        const { RefCell::new(State { configured: false, rows: [0; 8], tiles: [[[0; 64]; 16]; 8], executed: 0 }) };
}

/// The general registers in the order of their numbers in instructions.
const REGISTERS: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

extern "C" fn on_illegal_instruction(_signal: i32, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes the interrupted thread's context, whose instruction pointer can be read.
    unsafe {
        let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let code = std::slice::from_raw_parts(registers[libc::REG_RIP as usize] as *const u8, 12);
        let configuration = configured_by_processor(&*context.cast::<libc::ucontext_t>());
        let execute = |state: &mut State| {
            if let Some(configuration) = configuration {
                state.configure(configuration);
            }
            execute(state, code, registers)
        };
        match STATE.with_borrow_mut(execute) {
            Some(length) => registers[libc::REG_RIP as usize] += length,
            None => libc::abort(),
        }
    }
}

/// The configuration of the interrupted thread's tiles, where the processor has some and keeps it.
///
/// # Safety
/// The kernel made the context.
unsafe fn configured_by_processor(context: &libc::ucontext_t) -> Option<&[u8; 64]> {
    /// The state component of the configuration, in the bits behind the legacy area and by its leaf of CPUID.
    const COMPONENT: u32 = 17;
    if !processor_has_tiles() {
        return None;
    }
    let area = context.uc_mcontext.fpregs.cast::<u8>();
    // SAFETY: the kernel saves the registers in the standard format of XSAVE, of which the bits say what it holds.
    unsafe {
        let saved = area.add(512).cast::<u64>().read_unaligned() & 1 << COMPONENT != 0;
        let offset = __cpuid_count(0xd, COMPONENT).ebx as usize;
        saved.then(|| &*area.add(offset).cast::<[u8; 64]>())
    }
}

impl State {
    /// `LDTILECFG`, but for the tiles, which it clears.
    fn configure(&mut self, configuration: &[u8; 64]) {
        let full = configuration[0] == 1
            && configuration[16..32].chunks(2).all(|bytes| bytes == [64, 0])
            && configuration[48..56].iter().all(|rows| (1..=16).contains(rows));
        assert!(full && configuration[32..48] == [0; 16], "only tiles of 64 bytes a row are emulated");
        self.configured = true;
        self.rows.copy_from_slice(&configuration[48..56]);
    }
}

/// Does one instruction and returns its length; `None` if it is none of ours.
///
/// # Safety
/// The instruction's memory operand is valid.
unsafe fn execute(state: &mut State, code: &[u8], registers: &[i64; 23]) -> Option<i64> {
    // A three-byte VEX prefix of map 0F 38, W0, 128 bits.
    if code[0] != 0xc4 || code[1] & 0x1f != 2 || code[2] & 0x84 != 0 {
        return None;
    }
    let prefix = code[2] & 3;
    let (opcode, modrm) = (code[3], code[4]);
    let (mode, reg, rm) = (modrm >> 6, usize::from(modrm >> 3 & 7), usize::from(modrm & 7));
    let register = |number: usize| registers[REGISTERS[number] as usize];
    let high = |bit: u8| if code[1] & bit == 0 { 8 } else { 0 };
    state.executed += 1;
    if mode == 3 {
        match (opcode, prefix) {
            (0x49, 0) => state.configured = false,
            (0x49, 3) => state.tiles[reg] = [[0; 64]; 16],
            (0x5c, 2) => {
                let right = usize::from(!code[2] >> 3 & 7);
                assert!(
                    state.rows[reg] == state.rows[rm] && state.rows[right] == 16,
                    "sums have as many rows as the left tile, and k has whole steps"
                );
                let product = dot_products(&state.tiles[reg], &state.tiles[rm], &state.tiles[right]);
                state.tiles[reg] = product;
            }
            _ => return None,
        }
        return Some(5);
    }
    // Base and index, then a displacement of 0, 1 or 4 bytes.
    let mut length = 5;
    let (mut base, mut stride) = (rm | high(0x20), 0);
    let mut absolute_base = false;
    if rm == 4 {
        let sib = code[5];
        length += 1;
        base = usize::from(sib & 7) | high(0x20);
        absolute_base = sib & 7 == 5 && mode == 0;
        let index = usize::from(sib >> 3 & 7) | high(0x40);
        if index != 4 {
            stride = register(index) << (sib >> 6);
        }
    }
    if absolute_base || (rm == 5 && mode == 0) {
        return None;
    }
    let displacement = match mode {
        0 => 0,
        1 => i64::from(code[length] as i8),
        _ => i64::from(i32::from_le_bytes([
            code[length],
            code[length + 1],
            code[length + 2],
            code[length + 3],
        ])),
    };
    length += [0, 1, 4][usize::from(mode)];
    let address = register(base) + displacement;
    match (opcode, prefix) {
        (0x49, 0) => {
            // SAFETY: the caller's promise.
            state.configure(unsafe { &*((address + stride) as *const [u8; 64]) });
            state.tiles = [[[0; 64]; 16]; 8];
        }
        (0x4b, 3) if state.configured => {
            let rows = usize::from(state.rows[reg]);
            for (row, tile) in state.tiles[reg].iter_mut().enumerate().take(rows) {
                // SAFETY: the caller's promise.
                *tile = unsafe { *((address + stride * row as i64) as *const [u8; 64]) };
            }
        }
        (0x4b, 2) if state.configured => {
            for (row, tile) in state.tiles[reg].iter().enumerate().take(usize::from(state.rows[reg])) {
                // SAFETY: the caller's promise.
                unsafe { *((address + stride * row as i64) as *mut [u8; 64]) = *tile };
            }
        }
        _ => return None,
    }
    Some(length as i64)
}

/// TDPBF16PS: even and odd values of k are summed apart in order, then added to the sums.
fn dot_products(sums: &Tile, left: &Tile, right: &Tile) -> Tile {
    let half = |row: &[u8; 64], at: usize| bf16::from_le_bytes([row[2 * at], row[2 * at + 1]]).to_f32();
    let mut result = *sums;
    for (m, result) in result.iter_mut().enumerate() {
        for n in 0..16 {
            let (mut even, mut odd) = (0.0_f32, 0.0_f32);
            for (k, right) in right.iter().enumerate() {
                even = half(&left[m], 2 * k).mul_add(half(right, 2 * n), even);
                odd = half(&left[m], 2 * k + 1).mul_add(half(right, 2 * n + 1), odd);
            }
            let at = 4 * n..4 * n + 4;
            let old =
                f32::from_le_bytes([result[4 * n], result[4 * n + 1], result[4 * n + 2], result[4 * n + 3]]);
            result[at].copy_from_slice(&(old + (even + odd)).to_le_bytes());
        }
    }
    result
}

/// Installs the handler.
fn install() {
    // SAFETY: the handler only touches thread-local memory and the context it is given.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_illegal_instruction as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(libc::sigaction(libc::SIGILL, &action, std::ptr::null_mut()), 0);
    }
}

/// The emulation as an answer for detection, where the environment wants it.
pub(super) fn instead_of_tiles() -> Option<HasTiles> {
    std::env::var_os(INSTEAD)?;
    install();
    Some(HasTiles(()))
}

/// Runs `test` with the handler where there are no tiles.
fn with_tiles(test: impl FnOnce(HasTiles)) {
    if let Some(tiles) = usable() {
        return test(tiles);
    }
    install();
    let before = STATE.with_borrow(|state| state.executed);
    test(HasTiles(()));
    assert!(STATE.with_borrow(|state| state.executed > before), "no tile instruction was executed");
}

fn check(tiles: HasTiles, m: usize, n: usize, k: usize) {
    let x: Vec<f32> = values(m * k, 1).iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
    let dy: Vec<f32> = values(m * n, 2).iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
    let w = Packed::pack(&values(n * k, 3), n, k, Storage::Bf16);
    for accumulate in [Accumulate::Overwrite, Accumulate::Add] {
        let start = values(m * n.max(k), 4);
        let what = format!("{m} x {n} x {k}, {accumulate:?}");
        let (mut y, mut expected) = (start[..m * n].to_vec(), start[..m * n].to_vec());
        matmul(tiles, &x, m, &w, &mut y, accumulate);
        isa::with(Isa::Portable, || super::super::matmul(&x, m, &w, &mut expected, accumulate));
        assert_near(&y, &expected, 1e-5 * (k as f32).sqrt(), &what);
        let (mut dx, mut expected) = (start[..m * k].to_vec(), start[..m * k].to_vec());
        matmul_transposed(tiles, &dy, m, &w, &mut dx, accumulate);
        isa::with(Isa::Portable, || super::super::matmul_transposed(&dy, m, &w, &mut expected, accumulate));
        assert_near(&dx, &expected, 1e-5 * (n as f32).sqrt(), &what);
    }
}

/// Tiles are counted on the test's own thread.
fn on_one_thread(test: impl FnOnce(HasTiles)) {
    pool::set_threads(1);
    with_tiles(test);
    pool::set_threads(0);
}

#[test]
fn products_agree_with_the_portable_ones() {
    on_one_thread(|tiles| {
        for (m, n, k) in [
            (1, 1, 1),
            (1, 33, 31),
            (2, 64, 32),
            (15, 31, 33),
            (16, 48, 64),
            (17, 32, 15),
            (33, 40, 70),
            (70, 65, 97),
        ] {
            check(tiles, m, n, k);
        }
        check(tiles, 3, 5, 2100);
        check(tiles, 3, 2100, 5);
        assert!(agrees_with_portable(tiles));
    });
}

#[test]
fn rows_do_not_depend_on_their_neighbours() {
    on_one_thread(|tiles| {
        let (m, n, k) = (40, 37, 65);
        let (x, w) = (values(m * k, 1), Packed::pack(&values(n * k, 2), n, k, Storage::Bf16));
        let mut all = vec![0.0; m * n];
        matmul(tiles, &x, m, &w, &mut all, Accumulate::Overwrite);
        for rows in [1, 15, 16, 17, 32, 33] {
            let mut y = vec![0.0; rows * n];
            matmul(tiles, &x[..rows * k], rows, &w, &mut y, Accumulate::Overwrite);
            assert_eq!(y, all[..rows * n], "{rows} rows");
        }
        assert!(tile_flops(tiles, 2) > 0);
    });
}

/// The whole detection with emulated tiles, asked for the first time by many threads at once, in a process of its own: a trial
/// product that asks for the instruction set, which waits for the trial product, never ends.
#[test]
fn detection_under_emulation() {
    if std::env::var_os(INSTEAD).is_some() {
        let barrier = Barrier::new(8);
        let found: Vec<Isa> = std::thread::scope(|scope| {
            let ask = || {
                barrier.wait();
                isa::active().isa()
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let expected = if Isa::Avx512.available() { Isa::Amx } else { isa::best().isa() };
        assert_eq!(found, [expected; 8]);
        // Here the handler must have run: the trial's thread is another one.
        assert!(agrees_with_portable(usable().unwrap()), "a product of whole numbers");
        assert!(STATE.with_borrow(|state| state.executed > 0), "no tile instruction was emulated");
        return;
    }
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["gemm::amx::emulation::detection_under_emulation", "--exact", "--nocapture"]);
    again.env(INSTEAD, "1").env_remove(isa::VARIABLE);
    let found = finish_within(Duration::from_secs(60), again);
    assert!(
        found.code == Some(0) && found.stdout.contains("1 passed"),
        "detection with emulated tiles: {found:?}"
    );
}
