//! The tokenizer of a Hugging Face directory: `tokenizer.json` and the files beside it.

use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::{AddedToken, DecoderWrapper, PostProcessorWrapper};

use super::{Spelling, Tokenizer};
use crate::{Error, Result, weights::read_text};

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
        let mut tokenizer = Self::none();
        if mixse_files::is_there(&path) {
            let fault = |what: String| Error::invalid(&path, what);
            let (mut vocabulary, start) = parse(&read_text(&path, MAX_TOKENIZER)?).map_err(fault)?;
            settings.complete(&mut vocabulary).map_err(|e| fault(e.to_string()))?;
            let spelling = vocabulary.get_decoder().map_or(Spelling::Plain, spelling);
            tokenizer = Self::new(vocabulary, spelling).map_err(|e| fault(e.to_string()))?;
            tokenizer.bos = match settings.add_bos {
                Some(true) => settings.named("bos_token").and_then(|token| tokenizer.token_id(token)),
                Some(false) => None,
                None => start,
            };
        }
        tokenizer.eos = settings.eos_ids.clone();
        let eos = settings.named("eos_token").and_then(|token| tokenizer.token_id(token));
        tokenizer.eos.extend(eos.filter(|id| !settings.eos_ids.contains(id)));
        if let Some((source, place)) = settings.template(directory)? {
            tokenizer.set_template(&source, place, settings.tokens);
        }
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

/// What `tokenizer_config.json`, `special_tokens_map.json`, `generation_config.json` and `config.json` say.
struct Settings {
    /// Special tokens with the names that a chat template knows them by (`bos_token`, `eos_token`, `image_token` …).
    tokens: Vec<(String, String)>,
    /// Special tokens without a name.
    extra: Vec<String>,
    /// Tokens beside the vocabulary as `tokenizer_config.json` describes them.
    added: Vec<AddedToken>,
    add_bos: Option<bool>,
    eos_ids: Vec<u32>,
    template: Option<String>,
}

impl Settings {
    fn read(directory: &Path) -> Result<Self> {
        let config = json(&directory.join("config.json"))?;
        let generation = json(&directory.join("generation_config.json"))?;
        let tokenizer = json(&directory.join("tokenizer_config.json"))?;
        let map = json(&directory.join("special_tokens_map.json"))?;
        let eos_ids = match ids(&generation["eos_token_id"]) {
            none if none.is_empty() => ids(&config["eos_token_id"]),
            ids => ids,
        };
        // As in transformers, the map is older and stands above a configuration that does not describe its tokens. A token that
        // only the map names counts in any case.
        let described = tokenizer["added_tokens_decoder"].is_object();
        let (first, second) = if described { (&tokenizer, &map) } else { (&map, &tokenizer) };
        let mut tokens: Vec<(String, String)> = Vec::new();
        for (name, value) in entries(first).chain(entries(second)) {
            if name.ends_with("_token") && !tokens.iter().any(|(known, _)| known == name) {
                tokens.extend(token(value).map(|token| (name.clone(), token)));
            }
        }
        let mut extra = Vec::new();
        for key in ["additional_special_tokens", "extra_special_tokens"] {
            for value in [&tokenizer[key], &map[key]] {
                match value {
                    Value::Array(list) => extra.extend(list.iter().filter_map(token)),
                    named => tokens.extend(
                        entries(named).filter_map(|(name, value)| Some((name.clone(), token(value)?))),
                    ),
                }
            }
        }
        let added = entries(&tokenizer["added_tokens_decoder"])
            .filter_map(|(_, value)| {
                let flag = |key: &str| value[key].as_bool();
                let special = flag("special").unwrap_or(false);
                Some(
                    AddedToken::from(value["content"].as_str()?, special)
                        .lstrip(flag("lstrip").unwrap_or(false))
                        .rstrip(flag("rstrip").unwrap_or(false))
                        .single_word(flag("single_word").unwrap_or(false))
                        .normalized(flag("normalized").unwrap_or(!special)),
                )
            })
            .collect();
        Ok(Self {
            tokens,
            extra,
            added,
            add_bos: tokenizer["add_bos_token"].as_bool(),
            eos_ids,
            template: default_template(&tokenizer["chat_template"]),
        })
    }

    /// The special token of this name.
    fn named(&self, name: &str) -> Option<&str> {
        self.tokens.iter().find(|(known, _)| known == name).map(|(_, token)| token.as_str())
    }

    /// Adds to a vocabulary's special tokens those that only the other files call so. Tokens that the vocabulary does not have
    /// are left out: the model has no rows for them.
    fn complete(&self, vocabulary: &mut tokenizers::Tokenizer) -> tokenizers::Result<()> {
        let known = vocabulary.get_added_tokens_decoder();
        let mut tokens: Vec<AddedToken> = self.added.clone();
        tokens.retain(|token| {
            let id = vocabulary.token_to_id(&token.content);
            id.is_some_and(|id| known.get(&id) != Some(token))
        });
        let is_added =
            |content: &str| known.values().chain(&self.added).any(|token| token.content == content);
        let named = self.tokens.iter().map(|(_, token)| token).chain(&self.extra);
        for token in named.filter(|token| !is_added(token)) {
            tokens.extend(vocabulary.token_to_id(token).map(|_| AddedToken::from(token.as_str(), true)));
        }
        vocabulary.add_tokens(tokens)?;
        // What ends a turn is a special token, whatever the files call it: no content may spell it.
        let ends = self.eos_ids.iter().copied();
        let ends = ends.chain(self.named("eos_token").and_then(|token| vocabulary.token_to_id(token)));
        let known = vocabulary.get_added_tokens_decoder();
        let ends: Vec<AddedToken> = ends
            .filter_map(|id| known.get(&id))
            .filter(|token| !token.special)
            .map(|token| AddedToken { special: true, ..token.clone() })
            .collect();
        vocabulary.add_tokens(ends)?;
        Ok(())
    }

    /// The chat template, a file of its own in newer models, else inside `tokenizer_config.json`, and where it stands.
    fn template(&self, directory: &Path) -> Result<Option<(String, &'static str)>> {
        let path = directory.join("chat_template.jinja");
        if mixse_files::is_there(&path) {
            return Ok(Some((read_text(&path, MAX_CONFIG)?, "chat_template.jinja")));
        }
        Ok(self.template.clone().map(|source| (source, "tokenizer_config.json")))
    }
}

/// The entries of an object; nothing of another value.
fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter)
}

/// A JSON file; `null` if there is none.
fn json(path: &Path) -> Result<Value> {
    if !mixse_files::is_there(path) {
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
