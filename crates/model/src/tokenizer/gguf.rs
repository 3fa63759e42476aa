//! A tokenizer rebuilt from the vocabulary in a GGUF file's metadata.

use std::borrow::Cow;

use super::{
    Spelling, Tokenizer,
    bytelevel::{self, PreTokenizer},
    sentencepiece::{self, MergeOrder},
};
use crate::{Result, weights::Gguf};

/// What `tokenizer.ggml.token_type` says of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

/// A line of the vocabulary.
#[derive(Debug, Clone)]
pub(super) struct Entry<'a> {
    pub(super) id: u32,
    pub(super) text: Cow<'a, str>,
    pub(super) kind: Kind,
}

/// Names by which control tokens that end a turn or a document are known; a GGUF file names one of them only.
const ENDS: [&str; 8] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eom_id|>",
    "<EOT>",
];

impl Tokenizer {
    pub(crate) fn from_gguf(file: &Gguf) -> Result<Self> {
        let Some(model) = file.str("tokenizer.ggml.model")? else {
            return Err(file.invalid("has no metadata key tokenizer.ggml.model, so no tokenizer"));
        };
        let entries = entries(file)?;
        let bos = known_token(file, "tokenizer.ggml.bos_token_id", entries.len())?;
        let built = |result: tokenizers::Result<Self>| {
            result.map_err(|e| file.invalid(format!("its tokenizer cannot be built: {e}")))
        };
        let (mut tokenizer, adds_bos) = match model {
            "gpt2" => {
                let pre = pre_tokenizer(file)?;
                let merges = file
                    .strings("tokenizer.ggml.merges")?
                    .ok_or_else(|| file.invalid("has no metadata key tokenizer.ggml.merges"))?;
                let vocabulary = bytelevel::build(&entries, merges, pre);
                let new = vocabulary.and_then(|vocabulary| Self::new(vocabulary, Spelling::ByteLevel));
                (built(new)?, pre.adds_bos)
            }
            "llama" => {
                let gemma = file.str("general.architecture")?.is_some_and(|name| name.starts_with("gemma"));
                let order = match file.numbers("tokenizer.ggml.scores")? {
                    _ if gemma => MergeOrder::Ids,
                    Some(scores) if scores.len() == entries.len() => MergeOrder::Scores(scores),
                    _ => return Err(file.invalid("tokenizer.ggml.scores has not one entry a token")),
                };
                let unknown = known_token(file, "tokenizer.ggml.unknown_token_id", entries.len())?;
                // llama.cpp adds the space where the file does not say; Gemma's own tokenizer never does.
                let prefix = file.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(!gemma);
                let vocabulary = sentencepiece::build(&entries, order, unknown, prefix);
                let new = vocabulary.and_then(|vocabulary| Self::new(vocabulary, Spelling::SentencePiece));
                (built(new)?, true)
            }
            other => {
                return Err(file.invalid(format!(
                    "tokenizer model {other} is not supported (gpt2, byte-level BPE, and llama, SentencePiece, are)"
                )));
            }
        };
        if file.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(adds_bos) {
            tokenizer.bos = bos;
        }
        tokenizer.eos = ends(file, &entries)?;
        if let Some(source) = file.str("tokenizer.chat_template")? {
            let tokens = template_tokens(file, &entries)?;
            tokenizer.set_template(source, "tokenizer.chat_template", tokens);
        }
        Ok(tokenizer)
    }
}

fn entries<'a>(file: &'a Gguf) -> Result<Vec<Entry<'a>>> {
    let tokens = file
        .strings("tokenizer.ggml.tokens")?
        .filter(|tokens| !tokens.is_empty())
        .ok_or_else(|| file.invalid("has no vocabulary (metadata key tokenizer.ggml.tokens)"))?;
    let types = file.numbers("tokenizer.ggml.token_type")?.unwrap_or_default();
    if !types.is_empty() && types.len() != tokens.len() {
        let what =
            format!("tokenizer.ggml.token_type has {} entries for {} tokens", types.len(), tokens.len());
        return Err(file.invalid(what));
    }
    let kind = |index: usize| match types.get(index).map(|&kind| kind as i64) {
        None | Some(1) => Kind::Normal,
        Some(2) => Kind::Unknown,
        Some(3) => Kind::Control,
        Some(4) => Kind::UserDefined,
        Some(6) => Kind::Byte,
        Some(_) => Kind::Unused,
    };
    let entry = |(index, text): (usize, &'a String)| {
        let id = u32::try_from(index).map_err(|_| file.invalid("has more tokens than ids"))?;
        Ok(Entry { id, text: Cow::Borrowed(text.as_str()), kind: kind(index) })
    };
    tokens.iter().enumerate().map(entry).collect()
}

fn pre_tokenizer(file: &Gguf) -> Result<PreTokenizer> {
    let Some(name) = file.str("tokenizer.ggml.pre")? else {
        return Err(file.invalid(
            "has no metadata key tokenizer.ggml.pre, so how it cuts words is unknown: use a newer conversion of the model",
        ));
    };
    PreTokenizer::by_name(name).ok_or_else(|| {
        file.invalid(format!(
            "pre-tokenizer {name} (tokenizer.ggml.pre) is not supported ({})",
            PreTokenizer::SUPPORTED
        ))
    })
}

/// A token id of the metadata, refused if the vocabulary does not have it.
fn known_token(file: &Gguf, key: &str, vocabulary: usize) -> Result<Option<u32>> {
    match file.token_id(key)? {
        Some(id) if id as usize >= vocabulary => {
            Err(file.invalid(format!("{key} is {id}, but there are {vocabulary} tokens")))
        }
        id => Ok(id),
    }
}

/// The tokens that end a completion: those the metadata names, then those known by name.
fn ends(file: &Gguf, entries: &[Entry<'_>]) -> Result<Vec<u32>> {
    let mut ends = Vec::new();
    for key in ["eos_token_id", "eot_token_id", "eom_token_id"] {
        ends.extend(known_token(file, &format!("tokenizer.ggml.{key}"), entries.len())?);
    }
    let named = entries.iter().filter(|e| e.kind == Kind::Control && ENDS.contains(&e.text.as_ref()));
    ends.extend(named.map(|entry| entry.id));
    let mut seen = std::collections::HashSet::new();
    ends.retain(|&id| seen.insert(id));
    Ok(ends)
}

/// The special tokens that a chat template may write by name.
fn template_tokens(file: &Gguf, entries: &[Entry<'_>]) -> Result<Vec<(String, String)>> {
    let mut tokens = Vec::new();
    for (name, key) in [
        ("bos_token", "bos_token_id"),
        ("eos_token", "eos_token_id"),
        ("unk_token", "unknown_token_id"),
        ("sep_token", "seperator_token_id"),
        ("pad_token", "padding_token_id"),
        ("cls_token", "cls_token_id"),
        ("mask_token", "mask_token_id"),
    ] {
        let id = file.token_id(&format!("tokenizer.ggml.{key}"))?;
        let entry = id.and_then(|id| entries.get(id as usize));
        tokens.extend(entry.map(|entry| (name.to_owned(), entry.text.to_string())));
    }
    Ok(tokens)
}
