//! Prompts of two parts: a front that all records of a domain share, tokenised and computed once, and the rest.

use std::sync::Arc;

use mixse_model::{
    language::LanguageModel,
    tokenizer::{Bos, MarkedText, Tokenizer},
};

use crate::error::{Error, Result};

/// Builds prompts behind one front.
pub(crate) struct PromptBuilder<'a> {
    tokenizer: &'a Tokenizer,
    context: usize,
    prefix: Arc<[u32]>,
}

impl<'a> PromptBuilder<'a> {
    pub(crate) fn new(model: &'a dyn LanguageModel, front: &MarkedText) -> Result<Self> {
        let prefix = model.tokenizer().encode_marked(front, Bos::Model)?.into();
        Ok(Self { tokenizer: model.tokenizer(), context: model.context_length(), prefix })
    }

    /// The front's tokens, shared.
    pub(crate) fn prefix(&self) -> Arc<[u32]> {
        Arc::clone(&self.prefix)
    }

    /// Drops seeds from the end of `shown`, down to `least`, until the prompt with `max_new_tokens` fits the model's
    /// context; `None` if it never does. Returns the seeds that remain and the tokens behind the front.
    pub(crate) fn fit(
        &self,
        mut shown: Vec<usize>,
        least: usize,
        max_new_tokens: usize,
        rest: impl Fn(&[usize]) -> MarkedText,
    ) -> Result<Option<(Vec<usize>, Vec<u32>)>> {
        loop {
            let prompt = self.tokenizer.encode_marked(&rest(&shown), Bos::Never)?;
            if self.prefix.len() + prompt.len() + max_new_tokens <= self.context {
                return Ok(Some((shown, prompt)));
            }
            if shown.len() <= least {
                return Ok(None);
            }
            shown.pop();
        }
    }

    /// The error for a prompt that does not fit: `key` is the setting to lower, `what` the prompt's parts.
    pub(crate) fn too_long(&self, key: String, what: &str, max_new_tokens: usize) -> Error {
        let context = self.context;
        let what = format!(
            "{what} and {max_new_tokens} new tokens do not fit the model's context of {context} tokens"
        );
        Error::setting(key, what)
    }
}
