//! The tokenizer as Hugging Face's files.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::Tokenizer;
use crate::{Error, Result, files};

impl Tokenizer {
    /// The token that begins a text or that the chat template calls so.
    pub(crate) fn start_token(&self) -> Option<u32> {
        let named = || self.token_id(self.template.as_ref()?.as_ref().ok()?.token("bos_token")?);
        self.bos.or_else(named)
    }

    /// Writes `tokenizer.json` and `tokenizer_config.json`, which [`Tokenizer::from_directory`] and Hugging Face's
    /// `AutoTokenizer` read.
    pub(crate) fn write(&self, directory: &Path, context_length: usize) -> Result<()> {
        let path = directory.join("tokenizer.json");
        let fault = |e: String| Error::invalid(&path, format!("the tokenizer cannot be written: {e}"));
        let text = self.vocabulary()?.to_string(false).map_err(|e| fault(e.to_string()))?;
        let mut json: Value = serde_json::from_str(&text).map_err(|e| fault(e.to_string()))?;
        json["post_processor"] = self.post_processor();
        files::write_json(&path, &json)?;
        files::write_json(&directory.join("tokenizer_config.json"), &self.settings(context_length))
    }

    /// What puts the beginning-of-sequence token in front; `null` where nothing does.
    fn post_processor(&self) -> Value {
        let Some(bos) = self.bos else { return Value::Null };
        let token = self.token_text(bos);
        let special = json!({ "SpecialToken": { "id": token, "type_id": 0 } });
        let text = |id: &str, type_id: u32| json!({ "Sequence": { "id": id, "type_id": type_id } });
        json!({
            "type": "TemplateProcessing",
            "single": [special, text("A", 0)],
            "pair": [special, text("A", 0), text("B", 1)],
            "special_tokens": { token.as_str(): { "id": token, "ids": [bos], "tokens": [token] } },
        })
    }

    fn settings(&self, context_length: usize) -> Map<String, Value> {
        let mut settings = Map::new();
        settings.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
        settings.insert("model_max_length".into(), json!(context_length));
        settings.insert("clean_up_tokenization_spaces".into(), json!(false));
        settings.insert("add_bos_token".into(), json!(self.bos.is_some()));
        let template = self.template.as_ref();
        let usable = template.and_then(|template| template.as_ref().ok());
        let eos = self.eos.first().map(|&id| self.token_text(id));
        for (key, token) in [
            ("bos_token", self.start_token().map(|id| self.token_text(id))),
            ("eos_token", usable.and_then(|t| t.token("eos_token").map(str::to_owned)).or(eos)),
        ] {
            settings.extend(token.map(|token| (key.to_owned(), json!(token))));
        }
        let source =
            template.map(|t| t.as_ref().map_or_else(|unusable| &unusable.source[..], |t| t.source()));
        settings.extend(source.map(|source| ("chat_template".to_owned(), json!(source))));
        settings
    }
}
