//! The pool's protocol under loom, which runs it in every order of memory accesses, up to a number of preemptions.
//!
//! The code is that of the pool, compiled once more with loom's atomics and threads. A lost wake-up is a deadlock there, and
//! a task whose work the caller may not see yet, or that runs twice, is a conflict on its cell.

use loom::cell::UnsafeCell;
use loom::sync::Arc;

use shared::Shared;

#[path = "shared.rs"]
#[expect(clippy::duplicate_mod, reason = "the same code over loom's atomics")]
mod shared;

/// No spinning: a helper that looks again changes nothing and makes the model large.
mod sync {
    pub(super) use loom::hint::spin_loop;
    pub(super) use loom::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize};
    pub(super) use loom::thread::{Thread, park, yield_now};

    pub(super) const SPINS: u32 = 1;
    pub(super) const PATIENCE: u32 = 1;
}

/// A loop's outputs, one cell a task.
struct Cells(Vec<UnsafeCell<usize>>);

// SAFETY: loom reports every access of two threads that are not ordered.
unsafe impl Sync for Cells {}

/// Some loops with so many tasks each, then the helpers' end.
fn check(helpers: usize, seats: usize, loops: &'static [usize], preemptions: usize) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.max_branches = 10_000;
    model.check(move || {
        let shared = Arc::new(Shared::default());
        let threads: Vec<_> = (0..helpers)
            .map(|_| {
                let shared = Arc::clone(&shared);
                loom::thread::spawn(move || shared.help())
            })
            .collect();
        let handles: Vec<_> = threads.iter().map(|thread| thread.thread().clone()).collect();
        for (round, &tasks) in loops.iter().enumerate() {
            let cells = Cells((0..tasks).map(|_| UnsafeCell::new(0)).collect());
            let cells = &cells;
            let body = move |task: usize| {
                cells.0[task].with_mut(|cell| {
                    // SAFETY: loom sees to it that nobody else is here.
                    unsafe { *cell += round + 1 }
                });
            };
            assert!(shared.run(&handles, seats, tasks, &body).is_ok());
            for cell in &cells.0 {
                // SAFETY: as above.
                assert_eq!(cell.with(|cell| unsafe { *cell }), round + 1, "each task runs once");
            }
        }
        shared.stop(&handles);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

#[test]
fn one_helper() {
    check(1, 1, &[2], 3);
    check(1, 1, &[2, 1], 3);
}

#[test]
fn two_helpers() {
    check(2, 2, &[2], 2);
}

#[test]
fn more_helpers_than_seats() {
    check(2, 1, &[2], 2);
}
