//! Damaged and malicious files lead to errors: no panic, no huge allocation.

use std::{path::Path, sync::LazyLock};

use mixse_model::{tokenizer::Bos, weights::Checkpoint};
use proptest::prelude::*;

use super::gguf::open_bytes;
use mixse_testing::{
    tiny::{self, Number},
    vocabulary,
};

/// Opens and uses whatever can be used; the point is that this returns.
fn exercise(bytes: &[u8]) {
    if let Ok(checkpoint) = open_bytes(bytes) {
        let _ = checkpoint.tokenizer.encode("the <|end|> 12 é", Bos::Model);
        let _ = checkpoint.tokenizer.decode(&[0, 200, 256, 9999]);
    }
}

/// A good file and where its header ends, of each kind of vocabulary.
static GGUF: LazyLock<[(Vec<u8>, usize); 2]> = LazyLock::new(|| {
    let byte_level = tiny::gguf("qwen2");
    let mut sentencepiece = tiny::gguf("gemma3");
    vocabulary::sentencepiece(&mut sentencepiece);
    [byte_level, sentencepiece].map(|file| (file.bytes(), file.header().len()))
});

/// A Hugging Face directory with one file changed.
fn exercise_directory(name: &str, change: impl FnOnce(&mut Vec<u8>)) {
    let directory = tempfile::tempdir().unwrap();
    let path: &Path = directory.path();
    tiny::write_directory(path, "llama", Number::Bf16);
    std::fs::write(path.join("tokenizer.json"), tiny::tokenizer_json()).unwrap();
    let mut bytes = std::fs::read(path.join(name)).unwrap();
    change(&mut bytes);
    std::fs::write(path.join(name), bytes).unwrap();
    if let Ok(checkpoint) = Checkpoint::open(path) {
        for (name, _) in checkpoint.config.tensors() {
            let _ = checkpoint.tensor(&name);
        }
        let _ = checkpoint.tokenizer.encode("he <s> 12 é", Bos::Model);
        let _ = checkpoint.tokenizer.decode(&[0, 200, 256, 9999]);
    }
}

#[test]
fn a_gguf_file_cut_anywhere_is_refused() {
    for (bytes, header) in GGUF.iter() {
        for len in
            (0..*header).step_by(11).chain((*header..bytes.len()).step_by(997)).chain([bytes.len() - 1])
        {
            assert!(open_bytes(&bytes[..len]).is_err(), "cut to {len} of {}", bytes.len());
        }
    }
}

#[test]
fn a_safetensors_file_cut_anywhere_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    tiny::write_directory(directory.path(), "llama", Number::Bf16);
    let path = directory.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    for len in (0..4096).step_by(31).chain((4096..bytes.len()).step_by(997)).chain([bytes.len() - 1]) {
        std::fs::write(&path, &bytes[..len]).unwrap();
        assert!(Checkpoint::open(directory.path()).is_err(), "cut to {len} of {}", bytes.len());
    }
}

/// Counts that ask for more than the file holds are refused before anything is allocated for them.
#[test]
fn absurd_counts_are_refused() {
    let (bytes, _) = &GGUF[0];
    for at in [8, 16, 24] {
        for count in [u64::MAX, 1 << 40, bytes.len() as u64 + 1] {
            let mut bytes = bytes.clone();
            bytes[at..at + 8].copy_from_slice(&count.to_le_bytes());
            let message = open_bytes(&bytes).unwrap_err().to_string();
            assert!(message.contains("cannot be right"), "{message}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_after_the_magic_number(tail in proptest::collection::vec(any::<u8>(), 0..300)) {
        exercise(&[b"GGUF\x03\0\0\0", &tail[..]].concat());
    }

    #[test]
    fn a_gguf_header_with_flipped_bits(which in 0..2usize, flips in proptest::collection::vec((any::<prop::sample::Index>(), 0..8), 1..4)) {
        let (bytes, header) = &GGUF[which];
        let mut bytes = bytes.clone();
        for (at, bit) in flips {
            bytes[at.index(*header)] ^= 1u8 << bit;
        }
        exercise(&bytes);
    }

    #[test]
    fn a_directory_with_flipped_bits(
        name in prop::sample::select(vec!["config.json", "model.safetensors", "tokenizer.json"]),
        at in any::<prop::sample::Index>(),
        bit in 0..8,
    ) {
        exercise_directory(name, |bytes| {
            let len = bytes.len().min(4096);
            bytes[at.index(len)] ^= 1u8 << bit;
        });
    }

    #[test]
    fn a_directory_with_a_cut_or_random_file(
        name in prop::sample::select(vec!["config.json", "model.safetensors", "tokenizer.json"]),
        len in any::<prop::sample::Index>(),
        tail in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        exercise_directory(name, |bytes| {
            bytes.truncate(len.index(bytes.len()));
            bytes.extend(tail);
        });
    }
}
