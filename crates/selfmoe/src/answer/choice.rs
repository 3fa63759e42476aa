//! Multiple choice. The letter of the response's own part ([`super::own`]) is, in this order:
//!
//! 1. the one behind the last announcement: "The answer is B", "Answer: (B)", `\boxed{B}`, "the correct option is **B.** blue";
//! 2. the one that the response starts with: "B", "B. blue", "(B) blue", "B: …", "Option B";
//! 3. the one that is a line by itself, the last of the response;
//! 4. the option whose text stands behind the announcement, or is the whole response, or else the only option whose
//!    text occurs in the response; compared as in [`super::text`]. Where one option's text is part of another's, the longer
//!    one occurs, as in the harness's `multi_choice_regex`.
//!
//! A letter counts only if an option has it and no letter or digit follows, "A" only if no word follows ("A dog" is not
//! option A), and a small letter only if it stands alone. "B or C", "B, C" and "both B and C" choose nothing, nor does
//! "not B" or "B is wrong", and an announced letter that no option has is not replaced by another one.

use super::{own, text::normalise};

/// An option's letter and text.
pub type Choice<'a> = (char, &'a str);

/// The options that stand in a task's input, one a line: `A. …` (or `A) …`, `(A) …`, `A: …`). They are in alphabetical
/// order from A: a line of the question that looks like an option is none.
pub fn options(input: &str) -> Vec<Choice<'_>> {
    let mut found: Vec<Choice<'_>> = Vec::new();
    for (letter, text) in input.lines().filter_map(lettered) {
        if usize::from(letter as u8 - b'A') == found.len() {
            found.push((letter, text));
        }
    }
    found
}

/// Splits `B. text`, `B) text`, `(B) text` or `B: text` into letter and text. A blank must follow: "A.M. is morning" is no
/// option.
fn lettered(line: &str) -> Option<Choice<'_>> {
    let mut chars = line.trim_start().trim_start_matches('(').chars();
    let letter = chars.next().filter(char::is_ascii_uppercase)?;
    let text = chars.as_str().strip_prefix(['.', ')', ':'])?.trim_start_matches(')');
    (text.is_empty() || text.starts_with(char::is_whitespace)).then_some((letter, text.trim()))
}

/// The letter that a response chooses, by name or by the option's text.
pub fn extract(response: &str, options: &[Choice<'_>]) -> Option<char> {
    let response = own(response);
    match named(response, options) {
        Named::Letter(letter) => return Some(letter),
        Named::Unclear => return None,
        Named::Nothing => {}
    }
    announced(response)
        .and_then(|rest| whole_text(first_line(rest), options))
        .or_else(|| whole_text(response, options))
        .or_else(|| only_mentioned(response, options))
}

/// The letter that a response names: the first three of the ways above, without a look at the options' texts.
pub fn letter(response: &str, options: &[Choice<'_>]) -> Option<char> {
    match named(own(response), options) {
        Named::Letter(letter) => Some(letter),
        Named::Unclear | Named::Nothing => None,
    }
}

/// The text that a response gives beside the letter that it starts with (`B. text`), if it gives one.
pub fn quoted(response: &str) -> Option<&str> {
    lettered(first_line(response.trim())).map(|(_, text)| text).filter(|text| !text.is_empty())
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// What a text says in letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named {
    /// No letter.
    Nothing,
    /// This one.
    Letter(char),
    /// More than one, one that is ruled out, or one that no option has.
    Unclear,
}

fn named(response: &str, options: &[Choice<'_>]) -> Named {
    let announced = announced(response).map_or(Named::Nothing, |rest| leading(rest, options));
    let start = || leading(response, options);
    let last_line = || {
        let line = response.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
        let alone = line.chars().filter(|c| c.is_alphanumeric()).count() == 1;
        if alone { leading(line, options) } else { Named::Nothing }
    };
    [announced]
        .into_iter()
        .chain(std::iter::once_with(start))
        .chain(std::iter::once_with(last_line))
        .find(|found| *found != Named::Nothing)
        .unwrap_or(Named::Nothing)
}

/// What stands behind the last announcement; beside those of every answer "the correct option is", "I choose" and the like.
fn announced(response: &str) -> Option<&str> {
    const MARKS: [&str; 12] = [
        "option is",
        "choice is",
        "option:",
        "choice:",
        "i choose",
        "i would choose",
        "i'd choose",
        "i pick",
        "i select",
        "i'll go with",
        "option would be",
        "choice would be",
    ];
    let lower = response.to_ascii_lowercase();
    let own = super::announced(response);
    let own_start = own.map_or(0, |rest| rest.as_ptr() as usize - response.as_ptr() as usize);
    let other = MARKS.iter().filter_map(|mark| {
        let at = lower.rfind(mark)?;
        let negated = lower[at + mark.len()..].trim_start().starts_with("not ");
        let inside = lower[..at].ends_with(|c: char| c.is_alphanumeric());
        (!negated && !inside).then_some(at + mark.len())
    });
    match other.max() {
        Some(end) if end > own_start => Some(response[end..].trim_start_matches([':', ' ', '*', '_', '\n'])),
        _ => own,
    }
}

/// The letter that a text starts with.
fn leading(text: &str, options: &[Choice<'_>]) -> Named {
    let text = unwrapped(text);
    let mut chars = text.chars();
    let Some(first) = chars.next() else { return Named::Nothing };
    let rest = chars.as_str();
    // Wide letters are letters.
    let letter = match u32::from(first) {
        code @ 0xff21..=0xff5a => char::from_u32(code - 0xfee0).unwrap_or(first),
        _ => first,
    };
    let small = letter.is_ascii_lowercase();
    let letter = letter.to_ascii_uppercase();
    if !letter.is_ascii_uppercase()
        || rest.starts_with(|c: char| c.is_alphanumeric() || matches!(c, '\'' | '’' | '-' | '_'))
    {
        return Named::Nothing;
    }
    let bare = rest.trim_start_matches(CLOSING);
    let word_follows = rest.strip_prefix(' ').is_some_and(|r| r.starts_with(char::is_alphabetic));
    let alone = bare.is_empty() || bare.starts_with('\n');
    let option = options.iter().find(|(o, _)| *o == letter);
    if (small && !alone) || (letter == 'A' && word_follows && !told(rest) && !listed(rest, letter, options)) {
        return Named::Nothing;
    }
    // "I think so" names no option, and "E" no option that there is.
    let Some((_, text)) = option else {
        let marked = rest.starts_with([')', '.', ']', '}', ':', '*']) || alone;
        return if marked { Named::Unclear } else { Named::Nothing };
    };
    // Behind the option's own text the next letter stands.
    let behind_text = behind(bare.trim_start_matches([':', ' ']), text);
    let several = [Some(rest), behind_text].into_iter().flatten().any(|rest| listed(rest, letter, options));
    if several || ruled_out(rest) || behind_text.is_some_and(ruled_out) {
        return Named::Unclear;
    }
    Named::Letter(letter)
}

const CLOSING: &[char] = &[')', ']', '}', '.', '*', '_', '"', '\'', '`', '$', ' ', ':', ',', ';', '!', '\\'];

/// Without what may stand before a letter: brackets, type, LaTeX, "option", "both", "either".
fn unwrapped(text: &str) -> &str {
    const OPENING: &[char] = &['(', '[', '{', '*', '_', '"', '\'', '`', ' ', '\n', '$', '<', '\u{201c}'];
    const WORDS: [&str; 15] = [
        "option ",
        "choice ",
        "letter ",
        "answer ",
        "clearly ",
        "definitely ",
        "either ",
        "both ",
        "\\boxed{",
        "\\text{",
        "\\textbf{",
        "\\mathrm{",
        "\\mathbf{",
        "\\(",
        "\\[",
    ];
    let mut text = text.trim_start_matches(OPENING);
    while let Some(word) =
        WORDS.iter().find(|word| text.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word)))
    {
        text = text[word.len()..].trim_start_matches(OPENING);
    }
    text
}

/// What follows `option` at the start of `text`.
fn behind<'t>(text: &'t str, option: &str) -> Option<&'t str> {
    let found = text.get(..option.len())?;
    (!option.is_empty() && found.eq_ignore_ascii_case(option)).then(|| &text[option.len()..])
}

/// "or C", ", C", "/C", "and (C)": another option's letter belongs to the one before.
fn listed(rest: &str, letter: char, options: &[Choice<'_>]) -> bool {
    let bare = rest.trim_start_matches([')', ']', '}', '.', '*', '_', '"', '`', '$', ' ']);
    let lower = bare.get(..8.min(bare.len())).unwrap_or(bare).to_ascii_lowercase();
    let conjunctions = ["and/or ", "or ", "and ", ", or ", ", and ", ",", "/", "&", "|", "+", "; "];
    conjunctions.iter().filter(|word| lower.starts_with(**word)).any(|word| {
        let mut next = unwrapped(&bare[word.len()..]).chars();
        let other = next.next().filter(|other| *other != letter && options.iter().any(|(o, _)| o == other));
        // "B and A dog …"
        let rest = next.as_str();
        let word_goes_on = rest.starts_with(|c: char| c.is_alphanumeric() || matches!(c, '\'' | '-'));
        let article = other == Some('A')
            && rest.strip_prefix(' ').is_some_and(|r| r.starts_with(char::is_alphabetic))
            && !told(rest);
        other.is_some() && !word_goes_on && !article
    })
}

/// Whether a verb follows a letter, which makes it a name: "A is correct".
fn told(rest: &str) -> bool {
    ["is ", "because", "since ", "isn't", "would ", "seems "]
        .iter()
        .any(|verb| rest.trim_start().starts_with(verb))
}

/// "B is wrong", "B is not correct".
fn ruled_out(rest: &str) -> bool {
    let bare = rest.trim_start_matches(CLOSING);
    let lower = bare
        .get(..24.min(bare.len()))
        .or_else(|| bare.get(..21.min(bare.len())))
        .unwrap_or_default()
        .to_ascii_lowercase();
    [
        "is not",
        "isn't",
        "is wrong",
        "is incorrect",
        "is false",
        "cannot be",
        "can't be",
        "is ruled out",
        "is eliminated",
    ]
    .iter()
    .any(|verb| lower.starts_with(verb))
}

fn whole_text(text: &str, options: &[Choice<'_>]) -> Option<char> {
    let text = normalise(text);
    let mut same = options.iter().filter(|(_, option)| !text.is_empty() && normalise(option) == text);
    let first = same.next()?.0;
    same.next().is_none().then_some(first)
}

/// The only option whose text occurs, and is not denied ("not the lobster").
fn only_mentioned(response: &str, options: &[Choice<'_>]) -> Option<char> {
    let mut rest = format!(" {} ", normalise(response));
    let mut longest_first: Vec<(String, char)> =
        options.iter().map(|(letter, text)| (normalise(text), *letter)).collect();
    longest_first.retain(|(text, _)| !text.is_empty());
    longest_first.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
    let mut found = Vec::new();
    for (text, letter) in &longest_first {
        let word = format!(" {text} ");
        if let Some(at) = rest.find(&word) {
            let denied =
                [" not", " isn't", " isnt", " never", " no"].iter().any(|no| rest[..at].ends_with(no));
            if denied {
                return None;
            }
            // A shorter option within this one is not mentioned by it, and one of the same text is.
            if !longest_first.iter().any(|(other, l)| l != letter && other == text) {
                rest = rest.replace(&word, " | ");
            }
            found.push(*letter);
        }
    }
    match found[..] {
        [only] => Some(only),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_in_order() {
        let check = |input, expected: &[(char, &str)]| assert_eq!(options(input), expected, "{input}");
        check("A. red\nB. blue", &[('A', "red"), ('B', "blue")]);
        check("Which?\n(A) red\n(B) blue", &[('A', "red"), ('B', "blue")]);
        check("A) 1\nB) 2\nD) 4", &[('A', "1"), ('B', "2")]);
        check("B. Franklin was here.\nA. yes\nB. no", &[('A', "yes"), ('B', "no")]);
        check("A) one\nC) three\nB) two", &[('A', "one"), ('B', "two")]);
        check("A.M. or P.M.?\nA. morning\nB. evening", &[('A', "morning"), ('B', "evening")]);
        check("A. \nB: x", &[('A', ""), ('B', "x")]);
        check("a. red\nb. blue", &[]);
        check("", &[]);
    }

    #[test]
    fn the_letter_is_found() {
        let options = [('A', "The starfish"), ('B', "Lobster"), ('C', "Jelly fish"), ('D', "12")];
        let check = |response: &str, expected: Option<char>| {
            assert_eq!(extract(response, &options), expected, "{response}");
        };
        check("B", Some('B'));
        check("B.", Some('B'));
        check("(B)", Some('B'));
        check("**B**", Some('B'));
        check("B. Lobster", Some('B'));
        check("B) Lobster", Some('B'));
        check("Option C", Some('C'));
        check("The answer is B.", Some('B'));
        check("The answer is (C) Jelly fish", Some('C'));
        check("Answer: D", Some('D'));
        check("**Answer:** D", Some('D'));
        check("The correct answer is: B", Some('B'));
        check("A lobster has claws. The answer is B.", Some('B'));
        check("The answer is A.\nThe answer is C.", Some('C'));
        check("The answer is lobster.", Some('B'));
        check("A lobster is it.", Some('B'));
        check("A", Some('A'));
        check("A.", Some('A'));
        check("Lobster", Some('B'));
        check("jelly fish!", Some('C'));
        check("Starfish", Some('A'));
        check("It is the lobster because of its claws", Some('B'));
        check("Either a lobster or a starfish", None);
        check("Because", None);
        check("E", None);
        check("Dogs", None);
        check("The answer is 12.", Some('D'));
        check("(C) because", Some('C'));
        check("D because it is a dozen", Some('D'));
        check("The answer is B. And the answer is C.", Some('C'));
        check("A dog is an animal", None);
        check("I think so", None);
        check("the answer is", None);
        check("", None);
    }

    #[test]
    fn a_named_letter_is_told_from_a_text() {
        let options = [('A', "red"), ('B', "blue")];
        let check = |response: &str, named: Option<char>, text: Option<&str>| {
            assert_eq!((letter(response, &options), quoted(response)), (named, text), "{response}");
        };
        check("B. blue\nBecause.", Some('B'), Some("blue"));
        check("(B)", Some('B'), None);
        check("The answer is B.", Some('B'), None);
        check("blue", None, None);
        check("The answer is blue.", None, None);
        check("C. green", None, Some("green"));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "[\\PC\n]{0,60}|[-0-9,./ #(A-C.)\n'\"\\\\`\u{e9}]{0,40}") {
            let options = options(&text);
            let _ = (extract(&text, &options), letter(&text, &options), quoted(&text));
        }
    }
}
