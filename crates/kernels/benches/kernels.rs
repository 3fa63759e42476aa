//! `cargo bench -p mixse-kernels [-- FILTER]`: every kernel on the shapes of SmolLM2-135M, on all threads.
//!
//! Throughput is in operations a second, or in bytes where a kernel does nothing but move memory.

use criterion::{Criterion, Throughput};

mod work;

fn main() {
    // The filter keeps what is not asked for from being set up at all.
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    let mut criterion = Criterion::default().sample_size(10).configure_from_args();
    work::each(&filter, |name, flops, bytes, run| {
        let mut group = criterion.benchmark_group("kernels");
        let amount = if flops > 0.0 { flops } else { bytes } as u64;
        group.throughput(if flops > 0.0 { Throughput::Elements(amount) } else { Throughput::Bytes(amount) });
        group.bench_function(name, |bencher| bencher.iter(&mut *run));
        group.finish();
    });
    criterion.final_summary();
}
