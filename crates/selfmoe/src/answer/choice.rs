//! Multiple choice. The letter of the response is, in this order:
//!
//! 1. the one behind the last announcement: "The answer is B", "Answer: (B)", "the answer is **B.** blue";
//! 2. the one that the response starts with: "B", "B. blue", "(B) blue", "B: …", "Option B";
//! 3. the option whose text stands behind the announcement, or is the whole response, or else the only option whose
//!    text occurs in the response; compared as in [`super::text`].
//!
//! A letter counts only if an option has it and no letter or digit follows, and "A" only if no word follows
//! ("A dog" is not option A).

use super::text::normalise;

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
    let announced = super::announced(response);
    letter(response, options)
        .or_else(|| announced.and_then(|rest| whole_text(first_line(rest), options)))
        .or_else(|| whole_text(response, options))
        .or_else(|| only_mentioned(response, options))
}

/// The letter that a response names: the first two of the ways above, without a look at the options' texts.
pub fn letter(response: &str, options: &[Choice<'_>]) -> Option<char> {
    super::announced(response)
        .and_then(|rest| leading_letter(rest, options))
        .or_else(|| leading_letter(response, options))
}

/// The text that a response gives beside the letter that it starts with (`B. text`), if it gives one.
pub fn quoted(response: &str) -> Option<&str> {
    lettered(first_line(response.trim())).map(|(_, text)| text).filter(|text| !text.is_empty())
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

fn leading_letter(text: &str, options: &[Choice<'_>]) -> Option<char> {
    let opening: &[char] = &['(', '[', '*', '_', '"', '\'', '`', ' ', '\n'];
    let mut text = text.trim_start_matches(opening);
    for word in ["option ", "Option ", "choice ", "Choice ", "letter "] {
        text = text.strip_prefix(word).unwrap_or(text).trim_start_matches(opening);
    }
    let mut chars = text.chars();
    let letter = chars.next().filter(|l| options.iter().any(|(o, _)| o == l))?;
    let rest = chars.as_str();
    let article = letter == 'A' && rest.strip_prefix(' ').is_some_and(|r| r.starts_with(char::is_alphabetic));
    let inside_a_word = rest.starts_with(|c: char| c.is_alphanumeric() || c == '\'' || c == '-');
    (!inside_a_word && !article).then_some(letter)
}

fn whole_text(text: &str, options: &[Choice<'_>]) -> Option<char> {
    let text = normalise(text);
    let mut same = options.iter().filter(|(_, option)| !text.is_empty() && normalise(option) == text);
    let first = same.next()?.0;
    same.next().is_none().then_some(first)
}

fn only_mentioned(response: &str, options: &[Choice<'_>]) -> Option<char> {
    let response = format!(" {} ", normalise(response));
    let mut found = options.iter().filter(|(_, option)| {
        let option = normalise(option);
        !option.is_empty() && response.contains(&format!(" {option} "))
    });
    let first = found.next()?.0;
    found.next().is_none().then_some(first)
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
