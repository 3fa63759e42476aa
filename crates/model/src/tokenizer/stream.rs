//! Text that grows by a token at a time.

use std::ops::Range;

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
    /// Special tokens are spelled out in the text, here; without it they are left out.
    special: Option<Vec<Range<usize>>>,
}

impl TextStream {
    /// A stream whose text spells special tokens out, so that they can be looked for; [`TextStream::visible`] leaves them
    /// out again.
    pub fn spelling_special() -> Self {
        Self { special: Some(Vec::new()), ..Self::default() }
    }

    /// Adds a token and returns what it made certain of the text, which may be nothing.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> &str {
        let before = self.text.len();
        if !tokenizer.is_special(id) {
            self.held_back.extend(tokenizer.token_bytes(id));
            self.release();
        } else if let Some(special) = &mut self.special {
            let cut_off = std::mem::take(&mut self.held_back);
            self.text.push_str(&String::from_utf8_lossy(&cut_off));
            let start = self.text.len();
            self.text.push_str(&tokenizer.token_text(id));
            special.push(start..self.text.len());
        }
        &self.text[before..]
    }

    /// A part of the text without special tokens.
    ///
    /// # Panics
    /// If the range does not lie between characters of the text.
    pub fn visible(&self, range: Range<usize>) -> String {
        let mut out = String::new();
        let mut at = range.start;
        for special in self.special.iter().flatten() {
            if special.end > at && special.start < range.end {
                out.push_str(&self.text[at..special.start.max(at)]);
                at = special.end.min(range.end);
            }
        }
        out + &self.text[at..range.end]
    }

    /// The text so far, without what is held back.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The whole text; what was held back becomes U+FFFD.
    pub fn finish(mut self) -> String {
        self.release_all();
        self.text
    }

    /// [`TextStream::visible`] from `start` to the end; what was held back becomes U+FFFD.
    pub fn finish_visible(mut self, start: usize) -> String {
        self.release_all();
        self.visible(start..self.text.len())
    }

    fn release_all(&mut self) {
        let rest = std::mem::take(&mut self.held_back);
        self.text.push_str(&String::from_utf8_lossy(&rest));
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
