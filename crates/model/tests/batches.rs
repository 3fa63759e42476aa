//! Requests beside each other in one batch.
#![allow(clippy::unwrap_used, reason = "clippy does not take the helpers of a test file for tests")]

use std::sync::Arc;

use mixse_model::{
    engine::{Engine, LoadOptions},
    generate::{Batch, BatchLimits, Event, Runner},
    language::{Controls, Request, Sampling},
    weights::Checkpoint,
};
use mixse_testing::{gguf::Meta, tiny};

fn request(prompt: usize, max_new_tokens: usize) -> Request {
    Request {
        prefix: Arc::from([]),
        prompt: (0..prompt as u32).map(|i| 97 + i % 26).collect(),
        max_new_tokens,
        sampling: Sampling::Greedy,
        stop: Vec::new(),
        controls: Controls { ignore_eos: true, ..Controls::default() },
    }
}

/// A long prompt holds up neither those that are being continued nor a short one, and gets through itself; what is written is
/// what is written alone.
#[test]
fn long_prompts_and_short_ones_do_not_wait_for_each_other() {
    let mut file = tiny::gguf("llama");
    file.set("llama.context_length", Meta::U32(1024));
    let stored = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
    std::fs::write(stored.path(), file.bytes()).unwrap();
    let checkpoint = Checkpoint::open(stored.path()).unwrap();
    let engine = Engine::load(&checkpoint, &LoadOptions::default()).unwrap();
    let mut runner = Runner::new(&engine, &checkpoint.tokenizer, None);
    runner.limits = BatchLimits { tokens: 16, ..runner.limits };
    let alone = |request: Request| {
        let mut batch = Batch::new(runner).unwrap();
        batch.add(0, request).unwrap();
        loop {
            for event in batch.step().unwrap() {
                if let Event::Done { completion, .. } = event {
                    return completion.ids;
                }
            }
        }
    };
    let (running, long, short) = (request(5, 60), request(320, 2), request(3, 1));
    let expected = [alone(running.clone()), alone(long.clone()), alone(short.clone())];
    let mut batch = Batch::new(runner).unwrap();
    batch.add(0, running).unwrap();
    batch.step().unwrap();
    batch.add(1, long).unwrap();
    batch.step().unwrap();
    batch.add(2, short).unwrap();
    let mut ended = [None; 3];
    let mut tokens_of_running = 0;
    for step in 0..100 {
        for event in batch.step().unwrap() {
            match event {
                Event::Token { row: 0, .. } => tokens_of_running += 1,
                Event::Done { row, completion, .. } => {
                    assert_eq!(completion.ids, expected[row], "row {row}");
                    ended[row] = Some(step);
                }
                _ => {}
            }
        }
        assert!(ended[0].is_some() || tokens_of_running == step + 1, "the running row waits in step {step}");
    }
    assert_eq!(ended[2], Some(0), "the short prompt waits");
    assert!(ended[1].is_some_and(|step| step <= 45), "the long prompt waits: {ended:?}");
}
