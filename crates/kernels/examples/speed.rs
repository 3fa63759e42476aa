//! Speeds of the kernels beside the machine's ceilings: of many short runs.
//!
//! `cargo run --release -p mixse-kernels --example speed [filter [threads]]`
//!
//! On one thread the time that it ran is counted, where the system tells it, so that other work on the machine disturbs little.

use std::time::Instant;

use mixse_kernels::{ceilings, pool};

#[path = "../benches/work/mod.rs"]
mod work;

/// Seconds that this thread has run, where the system tells.
fn clock() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(text.split(' ').next()?.parse::<f64>().ok()? * 1e-9)
}

/// Seconds of a run: the first quartile of what passed, or on one thread the mean of what it ran.
fn seconds(mut run: impl FnMut()) -> f64 {
    run();
    let (begin, ran) = (Instant::now(), clock());
    let mut times = Vec::new();
    while times.len() < 5 || (begin.elapsed().as_millis() < 400 && times.len() < 10_000) {
        let start = Instant::now();
        run();
        times.push(start.elapsed().as_secs_f64());
    }
    if let (1, Some(ran), Some(now)) = (pool::threads(), ran, clock()) {
        return (now - ran) / times.len() as f64;
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 4]
}

fn main() {
    let filter = std::env::args().nth(1).unwrap_or_default();
    pool::set_threads(std::env::args().nth(2).and_then(|threads| threads.parse().ok()).unwrap_or(0));
    if "ceilings".contains(&filter) {
        println!("{:?}", ceilings::measure());
    }
    if "dispatch".contains(&filter) {
        let seconds = seconds(|| (0..1000).for_each(|_| pool::parallel_for(2, |_| {})));
        println!("dispatch {:.2} us", seconds * 1e3);
    }
    work::each(&filter, |name, flops, bytes, run| {
        let s = seconds(run);
        println!(
            "{name:40} {:9.1} us {:8.1} GFLOP/s {:7.1} GB/s",
            s * 1e6,
            flops / s * 1e-9,
            bytes / s * 1e-9
        );
    });
}
