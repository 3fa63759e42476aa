//! A small thread pool for very short parallel loops.
//!
//! Generating one token takes some 300 parallel loops, many of a few microseconds, so a loop must start within about a
//! microsecond: helpers spin for a while after each loop before they sleep, and a loop is published by one atomic
//! store. The caller works too, and waits only for the helpers that joined.
//!
//! Results never depend on the number of threads: a task writes its own part of the output, and which thread runs it
//! changes nothing.

use std::any::Any;
use std::cell::Cell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError, TryLockError};
use std::thread::{self, Thread};

/// How often a helper looks for a new loop before it sleeps: about 50 microseconds.
const SPINS: u32 = 1500;

/// How often the caller looks for the last helper before it gives its time slice away.
const PATIENCE: u32 = 5000;

/// The loop is open for helpers.
const OPEN: u64 = 1 << 31;
/// The lower bits count the helpers that joined and have not left.
const JOINED: u64 = OPEN - 1;
/// The upper bits count the loops.
const EPOCH: u64 = 1 << 32;

/// One running loop, on the caller's stack.
struct Job<'a> {
    body: &'a (dyn Fn(usize) + Sync),
    tasks: usize,
    next: AtomicUsize,
    /// Helpers that may still join.
    seats: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Job<'_> {
    fn work(&self) {
        let run = || {
            loop {
                let task = self.next.fetch_add(1, Ordering::Relaxed);
                if task >= self.tasks {
                    break;
                }
                (self.body)(task);
            }
        };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
            self.next.store(self.tasks, Ordering::Relaxed);
            self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
        }
    }
}

#[derive(Default)]
struct Shared {
    /// `epoch << 32 | open << 31 | joined`.
    state: AtomicU64,
    /// The open job; valid for those who joined while it was open.
    job: AtomicPtr<()>,
    sleepers: AtomicUsize,
}

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
        match thread::Builder::new().name(name).spawn(move || help(shared)) {
            Ok(handle) => helpers.push(handle.thread().clone()),
            // The loop is right with fewer threads too.
            Err(_) => break,
        }
    }
    let job = Job {
        body,
        tasks,
        next: AtomicUsize::new(0),
        seats: AtomicUsize::new(threads - 1),
        panic: Mutex::new(None),
    };
    shared.job.store((&raw const job).cast_mut().cast(), Ordering::Relaxed);
    let epoch = shared.state.load(Ordering::Relaxed) / EPOCH;
    shared.state.store(epoch.wrapping_add(1).wrapping_mul(EPOCH) | OPEN, Ordering::SeqCst);
    if shared.sleepers.load(Ordering::SeqCst) > 0 {
        helpers.iter().for_each(Thread::unpark);
    }
    INSIDE.set(true);
    job.work();
    INSIDE.set(false);
    // From here no helper can join; wait for those that did. `work` does not unwind, so this is always reached
    // before `job` leaves the stack.
    shared.state.fetch_and(!OPEN, Ordering::AcqRel);
    let mut spins = 0;
    while shared.state.load(Ordering::Acquire) & JOINED != 0 {
        spins += 1;
        if spins < PATIENCE { std::hint::spin_loop() } else { thread::yield_now() }
    }
    if let Some(panic) = job.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
        resume_unwind(panic);
    }
}

/// A helper thread's life.
fn help(shared: &'static Shared) {
    INSIDE.set(true);
    let mut seen = 0;
    let mut spins = 0;
    loop {
        let state = shared.state.load(Ordering::Acquire);
        if state & OPEN == 0 || state / EPOCH == seen {
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop();
                continue;
            }
            shared.sleepers.fetch_add(1, Ordering::SeqCst);
            // Look once more after announcing the sleep: whoever opened a loop before saw no sleeper.
            let state = shared.state.load(Ordering::SeqCst);
            if state & OPEN == 0 || state / EPOCH == seen {
                thread::park();
            }
            shared.sleepers.fetch_sub(1, Ordering::SeqCst);
            spins = 0;
            continue;
        }
        if shared.state.compare_exchange_weak(state, state + 1, Ordering::AcqRel, Ordering::Relaxed).is_err()
        {
            continue;
        }
        seen = state / EPOCH;
        spins = 0;
        // SAFETY: joining while the loop was open keeps its caller in `run` until this thread leaves, and the pointer
        // was stored before the loop was opened.
        let job = unsafe { &*shared.job.load(Ordering::Relaxed).cast::<Job<'_>>() };
        let seat = job.seats.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |seats| seats.checked_sub(1));
        if seat.is_ok() {
            job.work();
        }
        shared.state.fetch_sub(1, Ordering::AcqRel);
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
