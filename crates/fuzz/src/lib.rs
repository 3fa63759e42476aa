//! Everything that comes from outside, as functions of bytes.
//!
//! Each [`Input`] hands its bytes to the code that reads them in the program, through real files where that reads files, and goes
//! on to use what was read. Bytes may be refused; a panic, a hang or memory without bound is a fault. The fuzzers in `fuzz/` call
//! these functions, and `tests/corpus.rs` replays the inputs that are kept in `corpus/`.
#![allow(
    clippy::unwrap_used,
    reason = "what fails to unwrap here is a fault of the harness, and is to be seen"
)]

mod configurations;
mod files;
mod models;
mod server;
mod text;

/// A kind of input and what is done with its bytes.
#[derive(Debug, Clone, Copy)]
pub struct Input {
    /// The name of its fuzzer and of its folder in `corpus/`.
    pub name: &'static str,
    /// Reads and uses it; says whether it was accepted.
    pub run: fn(&[u8]) -> bool,
    /// Small inputs that are accepted, with names: where fuzzing begins.
    pub seeds: fn() -> Vec<(String, Vec<u8>)>,
}

/// All kinds.
pub const INPUTS: &[Input] = &[
    Input { name: "gguf", run: models::gguf, seeds: models::gguf_seeds },
    Input { name: "safetensors", run: models::safetensors, seeds: models::safetensors_seeds },
    Input { name: "config", run: models::config, seeds: models::config_seeds },
    Input { name: "tokenizer", run: models::tokenizer, seeds: models::tokenizer_seeds },
    Input { name: "chat_template", run: models::chat_template, seeds: models::chat_template_seeds },
    Input { name: "adapter", run: models::adapter, seeds: models::adapter_seeds },
    Input { name: "router", run: models::router, seeds: models::router_seeds },
    Input { name: "rows", run: text::rows, seeds: text::row_seeds },
    Input { name: "toml", run: configurations::toml, seeds: configurations::seeds },
    Input { name: "answers", run: text::answers, seeds: text::answer_seeds },
    Input { name: "requests", run: server::requests, seeds: server::seeds },
];

/// The kind of this name.
///
/// # Panics
/// There is none.
pub fn input(name: &str) -> &'static Input {
    INPUTS.iter().find(|input| input.name == name).unwrap()
}

/// Makes a fuzzer end at every panic but those of the tokenizers crate, which panics at some wrong files: the program catches these
/// and tells them as errors.
pub fn abort_on_panics() {
    std::panic::set_hook(Box::new(|panic| {
        if panic.location().is_some_and(|place| place.file().contains("/tokenizers-")) {
            return;
        }
        eprintln!("{panic}\n{}", std::backtrace::Backtrace::force_capture());
        std::process::abort();
    }));
}
