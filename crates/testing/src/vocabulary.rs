//! Tiny vocabularies.

use crate::gguf::{GgufFile, Meta};

/// The 256 characters that spell bytes in a byte-level vocabulary, in byte order (GPT-2's `bytes_to_unicode`).
pub fn byte_characters() -> Vec<String> {
    let mut next = 0x100;
    let character = |byte: u8| match byte {
        b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte),
        _ => {
            next += 1;
            char::from_u32(next - 1).unwrap()
        }
    };
    (0..=u8::MAX).map(character).map(String::from).collect()
}

/// The merges of the byte-level vocabulary, best first.
pub const MERGES: [&str; 6] = ["h e", "Ġ t", "Ġt he", "Ġ 1", "1 2", "l l"];

/// A byte-level vocabulary: ids 0 to 255 are the bytes, then what [`MERGES`] make, then `<|begin|>` and `<|end|>`.
pub fn byte_level(file: &mut GgufFile, pre: &str) {
    let mut tokens = byte_characters();
    tokens.extend(MERGES.iter().map(|merge| merge.replace(' ', "")));
    tokens.extend(["<|begin|>".to_owned(), "<|end|>".to_owned()]);
    let types = (0..tokens.len()).map(|id| if id + 2 >= tokens.len() { 3 } else { 1 }).collect();
    file.set("tokenizer.ggml.model", Meta::Str("gpt2".into()));
    file.set("tokenizer.ggml.pre", Meta::Str(pre.into()));
    file.set("tokenizer.ggml.merges", Meta::Strings(MERGES.map(String::from).to_vec()));
    file.set("tokenizer.ggml.bos_token_id", Meta::U32(tokens.len() as u32 - 2));
    file.set("tokenizer.ggml.eos_token_id", Meta::U32(tokens.len() as u32 - 1));
    file.set("tokenizer.ggml.token_type", Meta::I32s(types));
    file.set("tokenizer.ggml.tokens", Meta::Strings(tokens));
}

/// A SentencePiece vocabulary: `<unk> <s> </s>`, the bytes from id 3, then these pieces from id 259.
pub const PIECES: [&str; 10] = ["▁", "h", "e", "l", "o", "ll", "he", "▁he", "llo", "▁hello"];

/// Writes it; the better pieces have the higher scores, except for Gemma, whose scores say nothing.
pub fn sentencepiece(file: &mut GgufFile) {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    tokens.extend((0..=u8::MAX).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend(PIECES.map(String::from));
    let types = (0..tokens.len() as i32).map(|id| match id {
        0 => 2,
        1 | 2 => 3,
        3..=258 => 6,
        _ => 1,
    });
    let scores = (0..tokens.len()).map(|id| if id < 259 { 0.0 } else { 259.0 - id as f32 });
    file.set("tokenizer.ggml.model", Meta::Str("llama".into()));
    file.set("tokenizer.ggml.scores", Meta::F32s(scores.collect()));
    file.set("tokenizer.ggml.token_type", Meta::I32s(types.collect()));
    file.set("tokenizer.ggml.bos_token_id", Meta::U32(1));
    file.set("tokenizer.ggml.eos_token_id", Meta::U32(2));
    file.set("tokenizer.ggml.unknown_token_id", Meta::U32(0));
    file.set("tokenizer.ggml.tokens", Meta::Strings(tokens));
}
