//! Byte-level BPE vocabularies (GPT-2's kind) and the ways in which they cut text before merging.

use tokenizers::{
    AddedToken, SplitDelimiterBehavior,
    decoders::byte_level::ByteLevel,
    models::bpe::{BPE, Merges, Vocab},
    normalizers::unicode::NFC,
    pre_tokenizers::{
        PreTokenizerWrapper,
        digits::Digits,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
};

use super::gguf::{Entry, Kind};

/// What `tokenizer.ggml.pre` stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PreTokenizer {
    split: Splitter,
    /// Whole words that are in the vocabulary are taken as they are, whatever the merges say.
    ignore_merges: bool,
    /// Canonical composition first.
    nfc: bool,
    /// The beginning-of-sequence token is added where the file does not say.
    pub(super) adds_bos: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Splitter {
    /// GPT-2's own expression.
    Gpt2,
    /// Every digit alone, then GPT-2's.
    DigitsThenGpt2,
    /// Another expression.
    Regex(&'static str),
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl PreTokenizer {
    /// The names that can be read, for error messages.
    pub(super) const SUPPORTED: &str =
        "gpt-2, smollm, starcoder, llama-bpe, qwen2, tekken, gpt-4o and their relatives are";

    /// By its name in GGUF files (`llama-vocab.cpp` of llama.cpp).
    pub(super) fn by_name(name: &str) -> Option<Self> {
        let plain = |split| Self { split, ignore_merges: false, nfc: false, adds_bos: false };
        Some(match name {
            "gpt-2" | "phi-2" | "olmo" | "mpt" | "roberta-bpe" | "gigachat" => plain(Splitter::Gpt2),
            "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" => {
                plain(Splitter::DigitsThenGpt2)
            }
            "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "pixtral" | "midm-2.0" => {
                Self { ignore_merges: true, adds_bos: true, ..plain(Splitter::Regex(LLAMA3)) }
            }
            "dbrx" | "smaug-bpe" => plain(Splitter::Regex(LLAMA3)),
            "qwen2" | "deepseek-r1-qwen" | "megrez" => Self { nfc: true, ..plain(Splitter::Regex(QWEN2)) },
            "tekken" => Self { ignore_merges: true, adds_bos: true, ..plain(Splitter::Regex(TEKKEN)) },
            "gpt-4o" | "llama4" => plain(Splitter::Regex(GPT4O)),
            _ => return None,
        })
    }

    fn pipeline(self) -> tokenizers::Result<PreTokenizerWrapper> {
        // (add a space in front, trim offsets, cut by GPT-2's expression)
        let bytes = |cut| ByteLevel::new(false, true, cut);
        let regex = |expression: &str| {
            let pattern = SplitPattern::Regex(expression.to_owned());
            Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
        };
        Ok(match self.split {
            Splitter::Gpt2 => bytes(true).into(),
            Splitter::DigitsThenGpt2 => {
                Sequence::new(vec![Digits::new(true).into(), bytes(true).into()]).into()
            }
            Splitter::Regex(expression) => {
                Sequence::new(vec![regex(expression)?.into(), bytes(false).into()]).into()
            }
        })
    }
}

/// The tokenizer of a byte-level vocabulary.
pub(super) fn build(
    entries: &[Entry<'_>],
    merges: &[String],
    pre: PreTokenizer,
) -> tokenizers::Result<tokenizers::Tokenizer> {
    let vocabulary: Vocab = entries.iter().map(|entry| (entry.text.to_string(), entry.id)).collect();
    let merges: Merges = merges
        .iter()
        .filter_map(|merge| merge.split_once(' '))
        .map(|(left, right)| (left.to_owned(), right.to_owned()))
        .collect();
    let model =
        BPE::builder().vocab_and_merges(vocabulary, merges).ignore_merges(pre.ignore_merges).build()?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    if pre.nfc {
        tokenizer.with_normalizer(Some(NFC))?;
    }
    tokenizer.with_pre_tokenizer(Some(pre.pipeline()?));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    let added = entries.iter().filter(|entry| matches!(entry.kind, Kind::Control | Kind::UserDefined));
    tokenizer.add_tokens(added.map(|entry| {
        AddedToken::from(entry.text.to_string(), entry.kind == Kind::Control).normalized(false)
    }))?;
    Ok(tokenizer)
}

/// The bytes that a token of such a vocabulary stands for. Characters outside of GPT-2's table stand for themselves.
pub(super) fn bytes(token: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(token.len());
    for c in token.chars() {
        match byte_of(c) {
            Some(byte) => bytes.push(byte),
            None => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}

/// GPT-2's table: printable Latin-1 characters stand for themselves, the other 68 bytes follow from U+0100 on in order.
fn byte_of(c: char) -> Option<u8> {
    match u32::from(c) {
        code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => u8::try_from(code).ok(),
        code @ 0x100..=0x120 => u8::try_from(code - 0x100).ok(), // 0x00 to 0x20
        code @ 0x121..=0x142 => u8::try_from(code - 0x121 + 0x7F).ok(), // 0x7F to 0xA0
        0x143 => Some(0xAD),
        _ => None,
    }
}
