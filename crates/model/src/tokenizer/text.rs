//! Text of two kinds: what a template wrote, and what came from outside.

use std::ops::Range;

/// A text of which some parts may spell special tokens, because a template wrote them, and others may not, because they are
/// content: a user's words, a row of a data set, the answer of a model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MarkedText {
    text: String,
    /// Bytes of `text` that are content, ascending and apart.
    content: Vec<Range<usize>>,
}

impl MarkedText {
    /// A text that a template wrote.
    pub fn template(text: impl Into<String>) -> Self {
        Self { text: text.into(), content: Vec::new() }
    }

    /// A text from outside.
    pub fn content(text: impl Into<String>) -> Self {
        let mut marked = Self::template(text);
        marked.content.extend((!marked.text.is_empty()).then_some(0..marked.text.len()));
        marked
    }

    /// Adds what a template wrote.
    pub fn push_template(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// Adds what came from outside.
    pub fn push_content(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        let start = self.text.len();
        self.text.push_str(text);
        match self.content.last_mut() {
            Some(last) if last.end == start => last.end = self.text.len(),
            _ => self.content.push(start..self.text.len()),
        }
    }

    /// Adds another text as it is marked.
    pub fn push(&mut self, other: &Self) {
        let start = self.text.len();
        self.text.push_str(&other.text);
        self.content.extend(other.content.iter().map(|range| range.start + start..range.end + start));
    }

    /// Cuts the text after `len` bytes; nothing happens if it is shorter.
    ///
    /// # Panics
    /// If a character does not end there.
    pub fn truncate(&mut self, len: usize) {
        self.text.truncate(len);
        self.content.retain_mut(|range| {
            range.end = range.end.min(len);
            range.start < range.end
        });
    }

    /// The text without its marks.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The bytes that are content, ascending and apart.
    pub(super) fn outside(&self) -> &[Range<usize>] {
        &self.content
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_move_with_the_text() {
        let mut text = MarkedText::template("a");
        text.push_content("bc");
        text.push_content("");
        text.push_content("d");
        text.push_template("e");
        text.push(&MarkedText::content("fg"));
        text.push(&MarkedText::template("h"));
        assert_eq!((text.as_str(), text.outside()), ("abcdefgh", &[1..4, 5..7][..]));
        text.truncate(6);
        assert_eq!((text.as_str(), text.outside()), ("abcdef", &[1..4, 5..6][..]));
        text.truncate(2);
        assert_eq!((text.as_str(), text.outside()), ("ab", std::slice::from_ref(&(1..2))));
        text.truncate(9);
        assert_eq!(MarkedText::content(""), MarkedText::default());
    }
}
