//! Text to token ids and back.

use crate::Result;

/// A turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
}

/// Whether the text gets the model's beginning-of-sequence token in front.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bos {
    /// As the model's own tokenizer does by default.
    Model,
    /// Never: the text continues something.
    Never,
}

/// A model's tokenizer with its special tokens and its chat template.
#[derive(Debug)]
pub struct Tokenizer {}

impl Tokenizer {
    /// Token ids of `text`. Special tokens written out in the text are recognised, as in Hugging Face's tokenizers.
    pub fn encode(&self, _text: &str, _bos: Bos) -> Result<Vec<u32>> {
        Err(crate::Error::Unsupported("not built yet".into()))
    }

    /// The text of `ids`, special tokens left out. Bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, _ids: &[u32]) -> Result<String> {
        Err(crate::Error::Unsupported("not built yet".into()))
    }

    /// The token that [`Bos::Model`] puts in front, if any.
    pub fn bos(&self) -> Option<u32> {
        None
    }

    /// Tokens that end a completion.
    pub fn eos(&self) -> &[u32] {
        &[]
    }

    /// The conversation as the model's chat template writes it, ready to be encoded with [`Bos::Never`].
    ///
    /// # Errors
    /// The model has no chat template, or the template refuses the conversation.
    pub fn chat(&self, _messages: &[Message], _add_generation_prompt: bool) -> Result<String> {
        Err(crate::Error::Unsupported("not built yet".into()))
    }
}
