//! Text to token ids and back.

mod bytelevel;
mod encode;
mod files;
mod gguf;
mod sentencepiece;
mod stream;
mod text;
mod write;

use std::collections::HashMap;

use crate::{Error, Result, chat::ChatTemplate};
use encode::AddedTokens;

pub use {stream::TextStream, text::MarkedText};

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
    /// As the model's own tokenizer does by default, but never a second one.
    Model,
    /// Never: the text continues something.
    Never,
}

/// What becomes of special tokens that content spells ([`MarkedText`]).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContentTokens {
    /// Nothing: the spelling is text like any other, and nobody can end a turn or begin another one by writing it.
    #[default]
    Plain,
    /// They are special tokens, as where a template writes them.
    Parsed,
}

impl ContentTokens {
    /// [`ContentTokens::Parsed`] if `parse`.
    pub fn parsed_if(parse: bool) -> Self {
        if parse { Self::Parsed } else { Self::Plain }
    }
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
    matcher: AddedTokens,
    content: ContentTokens,
    bos: Option<u32>,
    eos: Vec<u32>,
    /// The chat template, or why the one that the model has cannot be used.
    template: Option<std::result::Result<ChatTemplate, UnusableTemplate>>,
}

/// A chat template that cannot be rendered.
#[derive(Debug)]
struct UnusableTemplate {
    source: String,
    /// Where it stands and what is wrong with it.
    why: String,
}

impl Tokenizer {
    /// Token ids of content: special tokens that it spells are text, unless [`Tokenizer::parse_content`] says otherwise.
    ///
    /// # Errors
    /// The model came without a tokenizer.
    pub fn encode(&self, text: &str, bos: Bos) -> Result<Vec<u32>> {
        self.encode_marked(&MarkedText::content(text), bos)
    }

    /// Token ids of a text in which special tokens are recognised where a template wrote them.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_marked(&self, text: &MarkedText, bos: Bos) -> Result<Vec<u32>> {
        let outside = match self.content {
            ContentTokens::Plain => text.outside(),
            ContentTokens::Parsed => &[],
        };
        let ids = self
            .matcher
            .encode(self.vocabulary()?, text.as_str(), outside)
            .map_err(|e| Error::Unsupported(format!("the tokenizer refuses the text: {e}")))?;
        let bos = self.bos.filter(|_| bos == Bos::Model).filter(|bos| ids.first() != Some(bos));
        Ok(bos.into_iter().chain(ids).collect())
    }

    /// Says what becomes of special tokens in content from now on.
    pub fn parse_content(&mut self, content: ContentTokens) {
        self.content = content;
    }

    /// What becomes of special tokens in content.
    pub fn content_tokens(&self) -> ContentTokens {
        self.content
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

    /// [`Tokenizer::decode`] with special tokens spelled out.
    ///
    /// # Errors
    /// The model came without a tokenizer.
    pub fn decode_spelled(&self, ids: &[u32]) -> Result<String> {
        self.vocabulary()?
            .decode(ids, false)
            .map_err(|e| Error::Unsupported(format!("the tokenizer cannot decode the tokens: {e}")))
    }

    /// Whether a special token is spelled in `text`.
    pub fn spells_special(&self, text: &str) -> bool {
        self.matcher.special().any(|token| text.contains(token))
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
            // (with a normaliser, `id_to_token` has the normalised spelling of these)
            _ if self.added.contains_key(&id) => {
                self.matcher.spelling(id).map_or(token, str::to_owned).into_bytes()
            }
            Spelling::ByteLevel => bytelevel::bytes(&token),
            Spelling::SentencePiece => sentencepiece::bytes(&token),
            Spelling::Plain => token.into_bytes(),
        }
    }

    /// [`Tokenizer::token_bytes`] for showing: bytes that are not UTF-8 on their own become U+FFFD.
    pub fn token_text(&self, id: u32) -> String {
        String::from_utf8_lossy(&self.token_bytes(id)).into_owned()
    }

    /// Whether the model has a chat template; it may be one that cannot be used ([`Tokenizer::check_chat_template`]).
    pub fn has_chat_template(&self) -> bool {
        self.template.is_some()
    }

    /// The chat template as the model has it, whether it can be used or not.
    pub fn chat_template(&self) -> Option<&str> {
        self.template.as_ref().map(|template| match template {
            Ok(template) => template.source(),
            Err(unusable) => unusable.source.as_str(),
        })
    }

    /// Refuses a model whose chat template is missing or cannot be used.
    ///
    /// # Errors
    /// Why.
    pub fn check_chat_template(&self) -> Result<()> {
        self.usable_template().map(|_| ())
    }

    /// The conversation as the model's chat template writes it, to be encoded with [`Bos::Never`]. Roles and contents cannot
    /// spell special tokens in it.
    ///
    /// # Errors
    /// The model has no chat template, the template cannot be used or refuses the conversation, or a message spells a special
    /// token in a place where the template looks at it.
    pub fn chat(&self, messages: &[Message], add_generation_prompt: bool) -> Result<MarkedText> {
        let special: Vec<&str> = match self.content {
            ContentTokens::Plain => self.matcher.special().collect(),
            ContentTokens::Parsed => Vec::new(),
        };
        self.usable_template()?.render(messages, add_generation_prompt, &special)
    }

    fn usable_template(&self) -> Result<&ChatTemplate> {
        match &self.template {
            Some(Ok(template)) => Ok(template),
            Some(Err(UnusableTemplate { why, .. })) => Err(Error::Unsupported(format!(
                "the model's chat template cannot be used: {why}; completion prompts can"
            ))),
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
    fn new(vocabulary: tokenizers::Tokenizer, spelling: Spelling) -> tokenizers::Result<Self> {
        let added = vocabulary.get_added_tokens_decoder();
        Ok(Self {
            spelling,
            added: added.into_iter().map(|(id, token)| (id, token.special)).collect(),
            matcher: AddedTokens::of(&vocabulary)?,
            vocabulary: Some(vocabulary),
            ..Self::none()
        })
    }

    /// The tokenizer of a model that came without one.
    fn none() -> Self {
        Self {
            vocabulary: None,
            spelling: Spelling::Plain,
            added: HashMap::new(),
            matcher: AddedTokens::default(),
            content: ContentTokens::Plain,
            bos: None,
            eos: Vec::new(),
            template: None,
        }
    }

    /// Takes a chat template. One that is not valid is kept with the reason: it keeps nobody from using token ids.
    fn set_template(&mut self, source: &str, place: &str, tokens: Vec<(String, String)>) {
        self.template =
            Some(ChatTemplate::new(source, tokens).map_err(|what| UnusableTemplate {
                source: source.to_owned(),
                why: format!("{place}: {what}"),
            }));
    }
}
