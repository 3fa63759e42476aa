//! A small thread pool for very short parallel loops.
//!
//! Generating one token takes some 300 parallel loops, many of a few microseconds, so a loop must start within about a
//! microsecond: helpers spin for a while after each loop before they sleep, and a loop is published by one atomic
//! store. The caller works too, and waits only for the helpers that joined.
//!
//! Results never depend on the number of threads: a task writes its own part of the output, and which thread runs it
//! changes nothing.

use std::cell::Cell;
use std::ops::Range;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, TryLockError};
use std::thread;

use shared::Shared;
use sync::Thread;

mod shared;

/// What [`shared`] is made of; its model puts other things here.
mod sync {
    pub(super) use std::hint::spin_loop;
    pub(super) use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize};
    pub(super) use std::thread::{Thread, park, yield_now};

    /// How often a helper looks for a new loop before it sleeps: about 50 microseconds.
    pub(super) const SPINS: u32 = 1500;

    /// How often the caller looks for the last helper before it gives its time slice away.
    pub(super) const PATIENCE: u32 = 5000;
}

#[cfg(test)]
mod model;

#[derive(Default)]
struct Pool {
    shared: &'static Shared,
    helpers: Mutex<Vec<Thread>>,
}

impl Default for &'static Shared {
    fn default() -> Self {
        static SHARED: OnceLock<Shared> = OnceLock::new();
        SHARED.get_or_init(Shared::default)
    }
}

fn pool() -> &'static Pool {
    static POOL: OnceLock<Pool> = OnceLock::new();
    POOL.get_or_init(Pool::default)
}

/// 0: not set, as many as there are cores.
static THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Set in a helper, and in a caller while its loop runs: a loop inside a loop runs on its own thread.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Sets the number of threads that work on one loop, the caller included; 0: one for each core.
pub fn set_threads(threads: usize) {
    THREADS.store(threads, Ordering::Relaxed);
}

/// The number of threads that work on one loop, the caller included.
pub fn threads() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    match THREADS.load(Ordering::Relaxed) {
        0 => *CORES.get_or_init(|| thread::available_parallelism().map_or(1, usize::from)),
        set => set,
    }
}

/// Runs `body(0)` to `body(tasks - 1)`, each once, in any order and on any thread; returns when all are done.
///
/// A loop inside a loop, and a loop started while another thread's runs, stay on the calling thread.
///
/// # Panics
/// If a task panics, with its payload, after the other threads left the loop.
pub fn parallel_for(tasks: usize, body: impl Fn(usize) + Sync) {
    let threads = threads().min(tasks);
    if threads <= 1 || INSIDE.get() {
        return (0..tasks).for_each(body);
    }
    match pool().helpers.try_lock() {
        Ok(mut helpers) => run(pool().shared, &mut helpers, threads, tasks, &body),
        Err(TryLockError::Poisoned(error)) => {
            run(pool().shared, &mut error.into_inner(), threads, tasks, &body)
        }
        Err(TryLockError::WouldBlock) => (0..tasks).for_each(body),
    }
}

fn run(
    shared: &'static Shared,
    helpers: &mut Vec<Thread>,
    threads: usize,
    tasks: usize,
    body: &(dyn Fn(usize) + Sync),
) {
    while helpers.len() + 1 < threads {
        let name = format!("mixse-{}", helpers.len() + 1);
        let life = move || {
            INSIDE.set(true);
            shared.help();
        };
        match thread::Builder::new().name(name).spawn(life) {
            Ok(handle) => helpers.push(handle.thread().clone()),
            // The loop is right with fewer threads too.
            Err(_) => break,
        }
    }
    INSIDE.set(true);
    let result = shared.run(helpers, threads - 1, tasks, body);
    INSIDE.set(false);
    if let Err(panic) = result {
        resume_unwind(panic);
    }
}

/// Cuts `data` into chunks of `size` (the last may be shorter) and runs `body(index, chunk)` for each in parallel.
///
/// # Panics
/// If `size` is 0.
pub fn for_each_chunk<T: Send>(data: &mut [T], size: usize, body: impl Fn(usize, &mut [T]) + Sync) {
    assert!(size > 0, "chunks of no elements");
    let parts = Parts::new(data);
    parallel_for(parts.len.div_ceil(size), |i| {
        let range = i * size..((i + 1) * size).min(parts.len);
        // SAFETY: the ranges of different tasks do not overlap.
        body(i, unsafe { parts.get(range) });
    });
}

/// Cuts `rows` rows of several buffers into blocks of `each` and runs `body(range, parts)` for each block in parallel; part i has
/// the block's rows of buffer i, which is given with the values that it has in a row.
///
/// # Panics
/// If `each` is 0 or a buffer has not so many rows.
pub fn for_row_blocks<const N: usize>(
    rows: usize,
    each: usize,
    buffers: [(&mut [f32], usize); N],
    body: impl Fn(Range<usize>, [&mut [f32]; N]) + Sync,
) {
    assert!(each > 0, "blocks of no rows");
    let buffers = buffers.map(|(buffer, width)| {
        assert_eq!(buffer.len(), rows * width, "a buffer of {rows} rows of {width}");
        (Parts::new(buffer), width)
    });
    parallel_for(rows.div_ceil(each), |block| {
        let range = block * each..((block + 1) * each).min(rows);
        let parts = std::array::from_fn(|i| {
            let (buffer, width) = &buffers[i];
            // SAFETY: the blocks' rows do not overlap, and every buffer is given once.
            unsafe { buffer.get(range.start * width..range.end * width) }
        });
        body(range, parts);
    });
}

/// Cuts `total` things into at most `4 * threads` ranges of at least `grain`; the range of task `i` of [`tasks`].
pub(crate) fn split(total: usize, grain: usize) -> (usize, impl Fn(usize) -> Range<usize> + Sync) {
    let size = total.div_ceil(4 * threads()).max(grain).max(1);
    (total.div_ceil(size), move |i| i * size..((i + 1) * size).min(total))
}

/// A slice of which tasks take disjoint parts.
pub(crate) struct Parts<'a, T> {
    start: *mut T,
    len: usize,
    _slice: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: it is a `&mut [T]`, handed out in disjoint parts.
unsafe impl<T: Send> Sync for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), _slice: std::marker::PhantomData }
    }

    /// The elements of `range`.
    ///
    /// # Safety
    /// No two parts that live at the same time may overlap.
    #[allow(clippy::mut_from_ref, reason = "the caller promises disjoint parts")]
    pub(crate) unsafe fn get(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "part outside of the slice");
        // SAFETY: inside the slice by the assertion; disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    /// The first element, for kernels that write a strided part.
    pub(crate) fn as_ptr(&self) -> *mut T {
        self.start
    }
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::*;

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 3, 8] {
            set_threads(threads);
            for tasks in [0, 1, 2, 7, 100] {
                let counts: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                parallel_for(tasks, |i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
        set_threads(0);
    }

    #[test]
    fn nested_and_concurrent_loops_finish() {
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let sum = AtomicUsize::new(0);
                        parallel_for(5, |i| {
                            parallel_for(3, |j| {
                                sum.fetch_add(i * j, Ordering::Relaxed);
                            });
                        });
                        assert_eq!(sum.load(Ordering::Relaxed), 30);
                    }
                });
            }
        });
    }

    #[test]
    fn helpers_stop() {
        let shared = Shared::default();
        thread::scope(|scope| {
            let helpers: Vec<_> = (0..3).map(|_| scope.spawn(|| shared.help()).thread().clone()).collect();
            for tasks in 1..50 {
                let sum = AtomicUsize::new(0);
                let body = |i| {
                    sum.fetch_add(i + 1, Ordering::Relaxed);
                };
                assert!(shared.run(&helpers, 3, tasks, &body).is_ok());
                assert_eq!(sum.into_inner(), tasks * (tasks + 1) / 2);
            }
            shared.stop(&helpers);
        });
    }

    #[test]
    fn a_panic_reaches_the_caller() {
        let result = catch_unwind(|| parallel_for(8, |i| assert!(i != 5, "task five")));
        assert!(result.is_err());
        parallel_for(8, |_| {});
    }

    #[test]
    fn row_blocks_are_the_rows_of_each_buffer() {
        let (mut a, mut none, mut b) = (vec![0.0; 14], [], vec![0.0; 21]);
        for_row_blocks(7, 3, [(&mut a, 2), (&mut none, 0), (&mut b, 3)], |range, [a, none, b]| {
            assert!(none.is_empty());
            a.fill(range.start as f32);
            b.fill(range.end as f32);
        });
        assert_eq!(a, [vec![0.0; 6], vec![3.0; 6], vec![6.0; 2]].concat());
        assert_eq!(b, [vec![3.0; 9], vec![6.0; 9], vec![7.0; 3]].concat());
    }

    #[test]
    fn chunks_cover_the_slice() {
        let mut data = vec![0; 23];
        for_each_chunk(&mut data, 5, |i, chunk| chunk.fill(i + 1));
        assert_eq!(data, (0..23).map(|i| i / 5 + 1).collect::<Vec<_>>());
    }
}
