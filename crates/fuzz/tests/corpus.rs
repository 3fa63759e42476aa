//! Every input that is kept, and every seed, goes through what the fuzzers call.
#![allow(clippy::unwrap_used, reason = "clippy does not take the helpers of a test file for tests")]

use std::{fs, path::Path, time::Instant};

use mixse_fuzz::{INPUTS, Input};

/// No input is so large or so slow to read that this would be close, also on a busy machine.
const SECONDS: u64 = 20;

fn replay(input: &Input) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(input.name);
    let mut kept = (input.seeds)();
    for (name, bytes) in &kept {
        assert!((input.run)(bytes), "{}: the seed {name} is refused", input.name);
    }
    if folder.is_dir() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            kept.push((path.display().to_string(), fs::read(&path).unwrap()));
        }
    }
    for (name, bytes) in kept {
        let begin = Instant::now();
        (input.run)(&bytes);
        // Cut short, as a file that is still being copied is.
        (input.run)(&bytes[..bytes.len() / 2]);
        assert!(begin.elapsed().as_secs() < SECONDS, "{}: {name} takes {:?}", input.name, begin.elapsed());
    }
}

macro_rules! replayed {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            replay(mixse_fuzz::input(stringify!($name)));
        })*

        #[test]
        fn every_kind_is_replayed() {
            let names: Vec<&str> = INPUTS.iter().map(|input| input.name).collect();
            assert_eq!(names, [$(stringify!($name)),*]);
        }
    };
}

replayed! { gguf safetensors config tokenizer chat_template adapter router rows toml answers requests }
