//! The first call of a kernel in a process, from many threads at once: instruction set, pool and scratch memory are set up
//! then. Each runs in a process of its own, which has a limit: detection that waits for itself is a failure, not a wait.

use std::process::Command;
use std::sync::Barrier;
use std::time::Duration;

use mixse_kernels::{Accumulate, Isa, Packed, Storage, isa, matmul};
use mixse_testing::process::finish_within;

/// Set in the process whose first calls are tested.
const FIRST: &str = "MIXSE_TEST_FIRST_CALL";

/// Small whole numbers, whose products are exact in every instruction set.
fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 37 + i / 7) % 17) as f32 - 8.0).collect()
}

/// A product in each of eight threads that begin together; packing a weight is itself a loop of the pool.
fn first_calls() {
    let barrier = Barrier::new(8);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let barrier = &barrier;
            scope.spawn(move || {
                let (m, n, k) = (33 + thread, 40, 700);
                let (x, w) = (values(m * k), values(n * k));
                barrier.wait();
                let packed = Packed::pack(&w, n, k, Storage::Bf16);
                let mut y = vec![0.0; m * n];
                matmul(&x, m, &packed, &mut y, Accumulate::Overwrite);
                for (at, y) in y.into_iter().enumerate() {
                    let pairs = x[at / n * k..][..k].iter().zip(&w[at % n * k..][..k]);
                    assert_eq!(y, pairs.map(|(x, w)| x * w).sum::<f32>(), "thread {thread}, element {at}");
                }
            });
        }
    });
    println!("instruction set: {}", isa::active());
}

#[test]
fn from_many_threads_with_each_instruction_set() {
    if std::env::var_os(FIRST).is_some() {
        return first_calls();
    }
    let check = |forced: Option<Isa>, expected: fn() -> Isa| {
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(["from_many_threads_with_each_instruction_set", "--exact", "--nocapture"]);
        again.env(FIRST, "1").env_remove(isa::VARIABLE);
        if let Some(isa) = forced {
            again.env(isa::VARIABLE, isa.name());
        }
        let found = finish_within(Duration::from_secs(60), again);
        assert!(found.code == Some(0) && found.stdout.contains("1 passed"), "{forced:?}: {found:?}");
        let expected = forced.unwrap_or_else(expected);
        assert!(found.stdout.contains(&format!("instruction set: {expected}\n")), "{forced:?}: {found:?}");
    };
    // First with nothing forced: this process asks for its own instruction sets only when that one has ended in time.
    check(None, || isa::best().isa());
    for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
        check(Some(isa), || unreachable!("the instruction set is forced"));
    }
}
