//! The tokenizer of a Hugging Face directory: `tokenizer.json` and the files beside it.

use std::path::Path;

use serde_json::Value;
use tokenizers::{DecoderWrapper, PostProcessorWrapper};

use super::{Spelling, Tokenizer};
use crate::{Error, Result, chat::ChatTemplate, weights::read_text};

/// The largest known `tokenizer.json` has 35 MB.
const MAX_TOKENIZER: u64 = 1 << 28;
/// Far above the other files' sizes.
const MAX_CONFIG: u64 = 1 << 26;

impl Tokenizer {
    /// Reads the tokenizer of a Hugging Face directory.
    ///
    /// # Errors
    /// One of its files cannot be read or is malformed.
    pub fn from_directory(directory: &Path) -> Result<Self> {
        let settings = Settings::read(directory)?;
        let path = directory.join("tokenizer.json");
        let mut tokenizer = if path.exists() {
            let (vocabulary, start) =
                parse(&read_text(&path, MAX_TOKENIZER)?).map_err(|what| Error::invalid(&path, what))?;
            let spelling = vocabulary.get_decoder().map_or(Spelling::Plain, spelling);
            let mut tokenizer = Self::new(vocabulary, spelling);
            tokenizer.bos = match settings.add_bos {
                Some(true) => settings.bos_token.as_deref().and_then(|token| tokenizer.token_id(token)),
                Some(false) => None,
                None => start,
            };
            tokenizer
        } else {
            Self {
                vocabulary: None,
                spelling: Spelling::Plain,
                added: std::collections::HashMap::new(),
                bos: None,
                eos: Vec::new(),
                template: None,
            }
        };
        tokenizer.eos = settings.eos_ids.clone();
        let eos = settings.eos_token.as_deref().and_then(|token| tokenizer.token_id(token));
        tokenizer.eos.extend(eos.filter(|id| !settings.eos_ids.contains(id)));
        tokenizer.template = settings.template(directory)?;
        Ok(tokenizer)
    }
}

/// A `tokenizer.json` and the token that it puts in front of a text. The tokenizers crate panics at some wrong content
/// (text that is not JSON inside a decoder, a damaged character map, a template of unknown tokens), so the syntax is
/// looked at first and the rest is caught.
fn parse(text: &str) -> std::result::Result<(tokenizers::Tokenizer, Option<u32>), String> {
    serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(|e| e.to_string())?;
    match std::panic::catch_unwind(|| prepare(text.parse()?)) {
        Ok(parsed) => parsed.map_err(|e| e.to_string()),
        Err(_) => Err("is not a tokenizer that can be read: a part of it is damaged".to_owned()),
    }
}

/// Takes off what does not belong to the vocabulary: the cutting and padding of a training run, with which some files
/// were saved, and the post-processor once it has shown what it puts in front.
fn prepare(
    mut vocabulary: tokenizers::Tokenizer,
) -> tokenizers::Result<(tokenizers::Tokenizer, Option<u32>)> {
    vocabulary.with_padding(None);
    vocabulary.with_truncation(None)?;
    let with = vocabulary.encode_fast("a", true)?;
    let without = vocabulary.encode_fast("a", false)?;
    let start = match with.get_ids() {
        [first, rest @ ..] if rest.starts_with(without.get_ids()) && with.len() > without.len() => {
            Some(*first)
        }
        _ => None,
    };
    vocabulary.with_post_processor(None::<PostProcessorWrapper>);
    Ok((vocabulary, start))
}

/// How the tokens are spelled, seen from how they are decoded.
fn spelling(decoder: &DecoderWrapper) -> Spelling {
    match decoder {
        DecoderWrapper::ByteLevel(_) => Spelling::ByteLevel,
        DecoderWrapper::Metaspace(_) | DecoderWrapper::ByteFallback(_) => Spelling::SentencePiece,
        DecoderWrapper::Sequence(sequence) => {
            let parts = sequence.get_decoders().iter().map(spelling);
            parts.into_iter().find(|&part| part != Spelling::Plain).unwrap_or(Spelling::Plain)
        }
        _ => Spelling::Plain,
    }
}

/// What `tokenizer_config.json`, `generation_config.json` and `config.json` say.
struct Settings {
    bos_token: Option<String>,
    eos_token: Option<String>,
    add_bos: Option<bool>,
    eos_ids: Vec<u32>,
    template: Option<String>,
}

impl Settings {
    fn read(directory: &Path) -> Result<Self> {
        let config = json(&directory.join("config.json"))?;
        let generation = json(&directory.join("generation_config.json"))?;
        let tokenizer = json(&directory.join("tokenizer_config.json"))?;
        let eos_ids = match ids(&generation["eos_token_id"]) {
            none if none.is_empty() => ids(&config["eos_token_id"]),
            ids => ids,
        };
        Ok(Self {
            bos_token: token(&tokenizer["bos_token"]),
            eos_token: token(&tokenizer["eos_token"]),
            add_bos: tokenizer["add_bos_token"].as_bool(),
            eos_ids,
            template: default_template(&tokenizer["chat_template"]),
        })
    }

    /// The chat template: a file of its own in newer models, else inside `tokenizer_config.json`.
    fn template(&self, directory: &Path) -> Result<Option<ChatTemplate>> {
        let path = directory.join("chat_template.jinja");
        let own = if path.exists() { Some(read_text(&path, MAX_CONFIG)?) } else { None };
        let place = if own.is_some() { path } else { directory.join("tokenizer_config.json") };
        let Some(source) = own.as_ref().or(self.template.as_ref()) else { return Ok(None) };
        ChatTemplate::new(source, self.bos_token.clone(), self.eos_token.clone())
            .map(Some)
            .map_err(|what| Error::invalid(place, what))
    }
}

/// A JSON file; `null` if there is none.
fn json(path: &Path) -> Result<Value> {
    if !path.exists() {
        return Ok(Value::Null);
    }
    serde_json::from_str(&read_text(path, MAX_CONFIG)?).map_err(|e| Error::invalid(path, e.to_string()))
}

/// A token is written as a string or as an object with its text in it.
fn token(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
}

/// One id or a list of them.
fn ids(value: &Value) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Array(list) => list.iter().filter_map(id).collect(),
        one => id(one).into_iter().collect(),
    }
}

/// A template, or the one called `default` of several.
fn default_template(value: &Value) -> Option<String> {
    match value {
        Value::Array(list) => list.iter().find(|entry| entry["name"] == "default")?["template"].as_str(),
        one => one.as_str(),
    }
    .map(str::to_owned)
}
