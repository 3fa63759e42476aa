//! Text to token ids and back.

mod bytelevel;
mod files;
mod gguf;
mod sentencepiece;
mod stream;
mod write;

use std::collections::HashMap;

use crate::{Error, Result, chat::ChatTemplate};

pub use stream::TextStream;

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

/// How the entries of a vocabulary spell the bytes that they stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spelling {
    /// Every byte is a printable character of GPT-2's table.
    ByteLevel,
    /// `▁` is a space, `<0x0A>` a byte.
    SentencePiece,
    /// As it stands.
    Plain,
}

/// A model's tokenizer with its special tokens and its chat template.
///
/// A model without one (a directory with no `tokenizer.json`) has a tokenizer that refuses text; its ids can still be
/// generated from.
#[derive(Debug)]
pub struct Tokenizer {
    vocabulary: Option<tokenizers::Tokenizer>,
    spelling: Spelling,
    /// Tokens beside the vocabulary proper, which are spelled as they stand: true for special ones.
    added: HashMap<u32, bool>,
    bos: Option<u32>,
    eos: Vec<u32>,
    template: Option<ChatTemplate>,
}

impl Tokenizer {
    /// Token ids of `text`. Special tokens written out in the text are recognised, as in Hugging Face's tokenizers.
    ///
    /// # Errors
    /// The model came without a tokenizer.
    pub fn encode(&self, text: &str, bos: Bos) -> Result<Vec<u32>> {
        let encoding = self
            .vocabulary()?
            .encode_fast(text, false)
            .map_err(|e| Error::Unsupported(format!("the tokenizer refuses the text: {e}")))?;
        let bos = self.bos.filter(|_| bos == Bos::Model);
        Ok(bos.into_iter().chain(encoding.get_ids().iter().copied()).collect())
    }

    /// The text of `ids`, special tokens left out. Bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// The model came without a tokenizer.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.vocabulary()?
            .decode(ids, true)
            .map_err(|e| Error::Unsupported(format!("the tokenizer cannot decode the tokens: {e}")))
    }

    /// The token that [`Bos::Model`] puts in front, if any.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Tokens that end a completion.
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }

    /// How many tokens there are, special ones included; the model's embedding may have more rows. 0 without a tokenizer.
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.as_ref().map_or(0, |vocabulary| vocabulary.get_vocab_size(true))
    }

    /// The id of a token by its spelling in the vocabulary (`<|im_end|>`, `Ġthe`, `▁the`).
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.vocabulary.as_ref()?.token_to_id(token)
    }

    /// Whether the token is one that [`Tokenizer::decode`] leaves out.
    pub fn is_special(&self, id: u32) -> bool {
        self.added.get(&id).copied().unwrap_or(false)
    }

    /// The bytes that a token stands for, which need not be whole characters; special tokens are spelled out. Empty for
    /// ids that are not in the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        let Some(token) = self.vocabulary.as_ref().and_then(|vocabulary| vocabulary.id_to_token(id)) else {
            return Vec::new();
        };
        match self.spelling {
            _ if self.added.contains_key(&id) => token.into_bytes(),
            Spelling::ByteLevel => bytelevel::bytes(&token),
            Spelling::SentencePiece => sentencepiece::bytes(&token),
            Spelling::Plain => token.into_bytes(),
        }
    }

    /// [`Tokenizer::token_bytes`] for showing: bytes that are not UTF-8 on their own become U+FFFD.
    pub fn token_text(&self, id: u32) -> String {
        String::from_utf8_lossy(&self.token_bytes(id)).into_owned()
    }

    /// Whether the model has a chat template.
    pub fn has_chat_template(&self) -> bool {
        self.template.is_some()
    }

    /// The conversation as the model's chat template writes it, ready to be encoded with [`Bos::Never`].
    ///
    /// # Errors
    /// The model has no chat template, or the template refuses the conversation.
    pub fn chat(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        match &self.template {
            Some(template) => template.render(messages, add_generation_prompt),
            None => Err(Error::Unsupported(
                "the model has no chat template: it is a base model, use completion prompts".to_owned(),
            )),
        }
    }

    fn vocabulary(&self) -> Result<&tokenizers::Tokenizer> {
        self.vocabulary.as_ref().ok_or_else(|| {
            Error::Unsupported(
                "the model came without a tokenizer.json: only token ids can be used with it".to_owned(),
            )
        })
    }

    /// A tokenizer around `vocabulary`, whose added tokens are noted.
    fn new(vocabulary: tokenizers::Tokenizer, spelling: Spelling) -> Self {
        let added = vocabulary.get_added_tokens_decoder();
        Self {
            spelling,
            added: added.into_iter().map(|(id, token)| (id, token.special)).collect(),
            vocabulary: Some(vocabulary),
            bos: None,
            eos: Vec::new(),
            template: None,
        }
    }
}
