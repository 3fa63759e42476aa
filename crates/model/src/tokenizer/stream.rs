//! Text that grows by a token at a time.

use super::Tokenizer;

/// The text of a completion while it is generated. A token may end inside a character: such bytes are held back until
/// the character is whole. Special tokens are left out, as in [`Tokenizer::decode`].
///
/// Unlike [`Tokenizer::decode`], which reads its ids as a text of their own and with some tokenizers drops the space that
/// the first token begins with, this is the text as it continues what stands before.
#[derive(Debug, Clone, Default)]
pub struct TextStream {
    text: String,
    held_back: Vec<u8>,
}

impl TextStream {
    /// Adds a token and returns what it made certain of the text, which may be nothing.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> &str {
        let before = self.text.len();
        if !tokenizer.is_special(id) {
            self.held_back.extend(tokenizer.token_bytes(id));
            self.release();
        }
        &self.text[before..]
    }

    /// The text so far, without what is held back.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The whole text; what was held back becomes U+FFFD.
    pub fn finish(mut self) -> String {
        self.text.push_str(&String::from_utf8_lossy(&self.held_back));
        self.text
    }

    /// Moves whole characters from the bytes to the text, and replaces bytes that can no longer become one.
    fn release(&mut self) {
        let bytes = std::mem::take(&mut self.held_back);
        let mut rest = bytes.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(text) => return self.text.push_str(text),
                Err(error) => {
                    let (valid, bad) = rest.split_at(error.valid_up_to());
                    self.text.push_str(&String::from_utf8_lossy(valid));
                    let Some(len) = error.error_len() else {
                        self.held_back = bad.to_vec();
                        return;
                    };
                    self.text.push(char::REPLACEMENT_CHARACTER);
                    rest = &bad[len..];
                }
            }
        }
    }
}
