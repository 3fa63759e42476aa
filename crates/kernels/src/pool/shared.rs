//! How a loop is published, joined, finished, and waited for: everything about the pool that depends on the order of memory
//! accesses. It is compiled twice, the second time for the model in `model.rs`, which tries the orders out.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

use super::sync::{AtomicPtr, AtomicU64, AtomicUsize, PATIENCE, SPINS, Thread, park, spin_loop, yield_now};

/// The loop is open for helpers.
const OPEN: u64 = 1 << 31;
/// Helpers shall end.
const STOP: u64 = 1 << 30;
/// The lower bits count the helpers that joined and have not left.
const JOINED: u64 = STOP - 1;
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
    /// Takes tasks until there are none.
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

/// What the caller of a loop and its helpers share.
#[derive(Default)]
pub(super) struct Shared {
    /// `epoch << 32 | open << 31 | stop << 30 | joined`.
    state: AtomicU64,
    /// The open job; valid for those who joined while it was open.
    job: AtomicPtr<()>,
    sleepers: AtomicUsize,
}

impl Shared {
    /// Runs all tasks of a loop with up to `seats` of the helpers; the first panic of a task is the error. One caller at a time.
    pub(super) fn run(
        &self,
        helpers: &[Thread],
        seats: usize,
        tasks: usize,
        body: &(dyn Fn(usize) + Sync),
    ) -> Result<(), Box<dyn Any + Send>> {
        let job = Job {
            body,
            tasks,
            next: AtomicUsize::new(0),
            seats: AtomicUsize::new(seats),
            panic: Mutex::new(None),
        };
        self.job.store((&raw const job).cast_mut().cast(), Ordering::Relaxed);
        let epoch = self.state.load(Ordering::Relaxed) / EPOCH;
        self.publish(epoch.wrapping_add(1).wrapping_mul(EPOCH) | OPEN, helpers);
        job.work();
        // From here no helper can join; wait for those that did. `work` does not unwind, so this is always reached
        // before `job` leaves the stack.
        self.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0;
        while self.state.load(Ordering::Acquire) & JOINED != 0 {
            spins += 1;
            if spins < PATIENCE { spin_loop() } else { yield_now() }
        }
        job.panic.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    /// Sets the state while no helper has joined, and wakes those that sleep.
    ///
    /// A helper counts itself as a sleeper before it looks at the state for the last time, by an exchange as this is one. Of
    /// the two exchanges one is first: either the helper sees the new state, or this sees the sleeper.
    fn publish(&self, state: u64, helpers: &[Thread]) {
        self.state.swap(state, Ordering::AcqRel);
        if self.sleepers.load(Ordering::Relaxed) > 0 {
            helpers.iter().for_each(Thread::unpark);
        }
    }

    /// Ends all helpers; no loop may run.
    #[cfg(test)]
    pub(super) fn stop(&self, helpers: &[Thread]) {
        let state = self.state.load(Ordering::Relaxed);
        self.publish(state | STOP, helpers);
    }

    /// A helper's life.
    pub(super) fn help(&self) {
        let mut seen = 0;
        let mut spins = 0;
        let idle = |state: u64, seen: u64| state & STOP == 0 && (state & OPEN == 0 || state / EPOCH == seen);
        loop {
            let state = self.state.load(Ordering::Acquire);
            if idle(state, seen) {
                spins += 1;
                if spins < SPINS {
                    spin_loop();
                    continue;
                }
                self.sleepers.fetch_add(1, Ordering::Relaxed);
                // Look once more after announcing the sleep, as `publish` explains.
                if idle(self.state.fetch_or(0, Ordering::AcqRel), seen) {
                    park();
                }
                self.sleepers.fetch_sub(1, Ordering::Relaxed);
                spins = 0;
                continue;
            }
            if state & STOP != 0 {
                return;
            }
            let joined =
                self.state.compare_exchange_weak(state, state + 1, Ordering::AcqRel, Ordering::Relaxed);
            if joined.is_err() {
                continue;
            }
            seen = state / EPOCH;
            spins = 0;
            // SAFETY: joining while the loop was open keeps its caller in `run` until this thread leaves, and the
            // pointer was stored before the loop was opened.
            let job = unsafe { &*self.job.load(Ordering::Relaxed).cast::<Job<'_>>() };
            let seat =
                job.seats.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |seats| seats.checked_sub(1));
            if seat.is_ok() {
                job.work();
            }
            self.state.fetch_sub(1, Ordering::AcqRel);
        }
    }
}
