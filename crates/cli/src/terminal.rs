//! Text that this program did not write itself (of models, templates, files and their names), on its way to a terminal.

use std::borrow::Cow;

/// The text with everything that a terminal takes as a command written out (`\u{1b}[2J`): control characters other than line breaks and
/// tabulators, and the marks that turn the direction of writing, with which a line can be shown as another one.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_command) {
        return text.into();
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for letter in text.chars() {
        if is_command(letter) { shown.extend(letter.escape_unicode()) } else { shown.push(letter) }
    }
    shown.into()
}

fn is_command(letter: char) -> bool {
    match letter {
        '\n' | '\t' => false,
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' | '\u{61c}' => true,
        other => other.is_control(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_written_out() {
        let check = |text: &str, expected: &str| assert_eq!(printable(text), expected);
        check("plain ä 漢 🙂\tx\n", "plain ä 漢 🙂\tx\n");
        check("\x1b[31mred\x1b[0m", "\\u{1b}[31mred\\u{1b}[0m");
        check("\x1b]0;title\x07", "\\u{1b}]0;title\\u{7}");
        check("a\rb\x08\0\x7f", "a\\u{d}b\\u{8}\\u{0}\\u{7f}");
        // The commands of one byte above ASCII, which some terminals obey as well.
        check("\u{9b}2J", "\\u{9b}2J");
        check("abc\u{202e}fed", "abc\\u{202e}fed");
        check("\u{2066}x\u{2069}", "\\u{2066}x\\u{2069}");
    }
}
