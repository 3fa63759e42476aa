//! Short texts. The final answer is what stands behind the last announcement ("The answer is …") up to the end of the
//! line; without one, the last line that is not empty, both within the response's own part ([`super::own`]). It is compared in lower
//! case, without punctuation, without the articles a, an and the, and with single blanks; a first sentence that is followed by
//! others counts alone as well ("Paris. It lies on the Seine.").
//!
//! As in SQuAD's and TriviaQA's reading, but signs that change what is said stay: a number's own (`-5`, `3.5`, `1/2`, `50%`),
//! operators between words (`x > 5`, `2^3`), and `C#` and `C++`. An article that is the answer, or its last word, is a letter
//! ("A", "vitamin A").

use unicode_normalization_alignments::UnicodeNormalization;

use super::{number::digit, own};

/// Lower case, letters and digits, no articles, single blanks. Hyphens separate words; apostrophes and points within a word
/// vanish ("U.S." is "us"). Composed and decomposed accents, wide letters and digits of any script are the same.
pub fn normalise(text: &str) -> String {
    let mut text = composed(text);
    for name in ["text", "textbf", "textit", "mathrm", "mathbf", "mbox", "boxed", "left", "right"] {
        for (from, to) in [(format!("\\{name}{{"), "{"), (format!("\\{name}("), "(")] {
            text = text.replace(&from, to);
        }
    }
    let chars: Vec<char> = text.chars().filter_map(plain).flat_map(char::to_lowercase).collect();
    let mut kept = String::new();
    for (at, &c) in chars.iter().enumerate() {
        let near = |by: isize| at.checked_add_signed(by).and_then(|at| chars.get(at)).copied().unwrap_or(' ');
        let (before, next) = (near(-1), near(1));
        let between = |is: fn(char) -> bool| is(before) && is(next);
        match c {
            c if c.is_alphanumeric() => match superscript(c) {
                Some(digit) if superscript(before).is_some() => kept.push(digit),
                Some(digit) => kept.extend(['^', digit]),
                None => kept.push(c),
            },
            '\'' | '’' => {}
            // A decimal point, but not one that ends a sentence or an abbreviation.
            '.' if next.is_ascii_digit() && (before.is_ascii_digit() || !before.is_alphanumeric()) => {
                kept.push(c)
            }
            '.' => {}
            // Between digits it parts groups of three, or items.
            ',' if between(|c| c.is_ascii_digit()) && three_digits(&chars[at + 1..]) => {}
            '-' if !before.is_alphanumeric()
                && !matches!(before, ')' | ']' | '-')
                && signs(&chars[at + 1..]) =>
            {
                kept.push(c);
            }
            '+' if !before.is_alphanumeric() && before != '+' && next.is_ascii_digit() => {}
            '%' | '+' => kept.push(c),
            '#' if before.is_alphanumeric() => kept.push(c),
            '/' | ':' if between(|c| c.is_ascii_digit()) => kept.push(c),
            '^' if before.is_alphanumeric() || before == ')' => kept.push(c),
            '*' if between(char::is_alphanumeric) => kept.push(c),
            '$' | '€' | '£' | '{' | '\\' if next.is_ascii_digit() || matches!(next, '-' | '.' | '$') => {}
            '<' | '>' | '≤' | '≥' | '≠' => kept.extend([' ', c, ' ']),
            '=' if !kept.trim().is_empty() => kept.extend([' ', c, ' ']),
            _ => kept.push(' '),
        }
    }
    let words: Vec<&str> = kept.split_whitespace().collect();
    let article = |at: usize| {
        let follows = words
            .get(at + 1)
            .is_some_and(|next| next.chars().count() > 1 && next.starts_with(char::is_alphanumeric));
        follows && matches!(words[at], "a" | "an" | "the")
    };
    (0..words.len()).filter(|&at| !article(at)).map(|at| words[at]).collect::<Vec<_>>().join(" ")
}

/// Canonical composition.
fn composed(text: &str) -> String {
    text.nfc().map(|(c, _)| c).collect()
}

/// One character for those that are written in several ways; nothing for those that are not seen.
fn plain(c: char) -> Option<char> {
    if let Some(digit) = digit(c) {
        return Some(char::from(b'0' + digit));
    }
    let code = u32::from(c);
    match c {
        '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}' => None,
        '−' | '–' | '‐' | '‑' | '‒' => Some('-'),
        '×' | '⋅' | '∗' => Some('*'),
        '⁄' | '∕' => Some('/'),
        // The wide forms of ASCII.
        '\u{ff01}'..='\u{ff5e}' => char::from_u32(code - 0xfee0),
        // H₂O
        '₀'..='₉' => char::from_u32(code - 0x2080 + 0x30),
        c => Some(c),
    }
}

fn superscript(c: char) -> Option<char> {
    "⁰¹²³⁴⁵⁶⁷⁸⁹".chars().zip('0'..='9').find(|(s, _)| *s == c).map(|(_, digit)| digit)
}

fn three_digits(chars: &[char]) -> bool {
    chars.iter().take_while(|c| c.is_ascii_digit()).count() == 3
}

/// Whether a hyphen before this is a sign: of an amount, or of a variable.
fn signs(chars: &[char]) -> bool {
    let at = |at: usize| chars.get(at).copied().unwrap_or(' ');
    let amount = |at_first: usize| {
        at(at_first).is_ascii_digit() || (at(at_first) == '.' && at(at_first + 1).is_ascii_digit())
    };
    amount(0)
        || (matches!(at(0), '$' | '€' | '£' | '{' | '(') && amount(1))
        || (at(0).is_alphabetic() && !at(1).is_alphanumeric() && at(1) != '\'')
}

/// The final text of a response, as it is written there.
pub fn extract(response: &str) -> Option<&str> {
    let line = match super::announced(response) {
        Some(rest) => rest.lines().next().unwrap_or_default(),
        None => own(response).lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default(),
    };
    Some(line.trim()).filter(|line| !line.is_empty())
}

/// What a response states after its last announcement, up to the end of the line and without the full stop.
pub fn stated(response: &str) -> Option<&str> {
    let line = super::announced(response)?.lines().next()?.trim();
    Some(line.trim_end_matches('.').trim_end()).filter(|line| !line.is_empty())
}

/// Whether `found` is the text `expected`. Never for a text without letters, digits and operators.
pub fn equal(found: &str, expected: &str) -> bool {
    let expected = normalise(expected);
    let same = |text: &str| !expected.is_empty() && normalise(text) == expected;
    same(found) || found.split_once(". ").is_some_and(|(first, _)| same(first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_normalised() {
        let check = |text, expected| assert_eq!(normalise(text), expected, "{text}");
        check("The  Nile!", "nile");
        check("U.S.A.", "usa");
        check("Jack-o'-lantern", "jack o lantern");
        check("a an the", "the");
        check("A", "a");
        check("Vitamin A", "vitamin a");
        check("a dog", "dog");
        check("x² > 5", "x^2 > 5");
        check("ÉCOLE", "école");
        check("50%", "50%");
        check("1,000", "1000");
    }

    #[test]
    fn the_final_text_is_found() {
        let check = |response: &str, expected: Option<&str>, expected_stated: Option<&str>| {
            assert_eq!((extract(response), stated(response)), (expected, expected_stated), "{response}");
        };
        check("The answer is Greta.", Some("Greta."), Some("Greta"));
        check("The answer is the Nile", Some("the Nile"), Some("the Nile"));
        check("Greta", Some("Greta"), None);
        check("It flows north.\nNile\n\n", Some("Nile"), None);
        check("The answer is:\nParis\nmore", Some("Paris"), Some("Paris"));
        check("The answer is **Paris**\nmore", Some("Paris**"), Some("Paris**"));
        check("The answer is .", Some("."), None);
        check("The answer is", None, None);
        check("The answer is that the answer: is 4", Some("is 4"), Some("is 4"));
        check("", None, None);
    }

    #[test]
    fn texts_are_compared() {
        let check = |found: &str, expected: &str, same: bool| {
            assert_eq!(equal(found, expected), same, "{found} {expected}");
        };
        check("Greta.", "Greta", true);
        check("the Nile", "Nile", true);
        check("Nile", "The Nile", true);
        check("Paris. It lies on the Seine.", "Paris", true);
        check("Paris**", "Paris", true);
        check("Greta or Finn", "Greta", false);
        check("no", "yes", false);
        check(".", ".", false);
        check("", "", false);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "(\\PC|\n|answer is|[.:*]){0,30}") {
            let _ = (extract(&text), stated(&text), equal(&text, &text));
        }
    }
}
