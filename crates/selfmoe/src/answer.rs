//! What a response answers: options, final numbers, letters, functions. Read leniently, since models write freely.

/// A lettered option of a multiple-choice task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// `A` to `Z`.
    pub letter: char,
    /// What follows it.
    pub text: String,
}

/// The options of a task: lines `A. …`, `A) …` or `(A) …` in alphabetical order from A. Lines that break the order are
/// not options.
pub fn options(input: &str) -> Vec<Choice> {
    let mut found = Vec::new();
    for line in input.lines() {
        if let Some((letter, text)) = lettered(line)
            && usize::from(letter as u8 - b'A') == found.len()
        {
            found.push(Choice { letter, text: text.trim().to_owned() });
        }
    }
    found
}

/// Splits `B. text`, `B) text`, `(B) text` or `B: text` into letter and text.
fn lettered(line: &str) -> Option<(char, &str)> {
    let line = line.trim_start();
    let line = line.strip_prefix('(').unwrap_or(line);
    let mut chars = line.chars();
    let letter = chars.next().filter(char::is_ascii_uppercase)?;
    let rest = chars.as_str().strip_prefix(['.', ')', ':'])?;
    (rest.is_empty() || rest.starts_with(char::is_whitespace)).then_some((letter, rest))
}

/// The letter that a response picks: `B. text` at its start, a lone `B`, or the last `answer is (B)`.
pub fn letter(response: &str) -> Option<char> {
    let response = response.trim();
    if let Some((letter, _)) = lettered(response) {
        return Some(letter);
    }
    let after = match response.to_ascii_lowercase().rfind("answer is") {
        Some(at) => response.get(at + "answer is".len()..)?,
        None => response,
    };
    let after = after.trim_start_matches([' ', ':', '(', '*', '"', '\'']);
    let mut chars = after.chars();
    let letter = chars.next().filter(char::is_ascii_uppercase)?;
    let ends = chars.next().is_none_or(|c| !c.is_alphanumeric() && c != '\'' && !c.is_whitespace());
    // A lone capital followed by a blank is more often the article "A" or the pronoun "I" than a choice.
    ends.then_some(letter)
}

/// The text that a response gives beside its letter (`B. text`), if it gives one.
pub fn letter_text(response: &str) -> Option<&str> {
    let line = response.trim().lines().next()?;
    lettered(line).map(|(_, text)| text.trim()).filter(|t| !t.is_empty())
}

/// The final number of a response, without thousands separators: after the last `answer is` or `####` if there is a
/// number, else the last one of the text.
pub fn number(response: &str) -> Option<String> {
    let lower = response.to_ascii_lowercase();
    let mark =
        ["answer is", "answer:", "####"].iter().filter_map(|m| lower.rfind(m).map(|at| at + m.len())).max();
    if let Some(number) = mark.and_then(|at| numbers(response.get(at..)?).into_iter().next()) {
        return Some(number);
    }
    numbers(response).pop()
}

/// All numbers of a text in order: digits with thousands separators, a decimal part, a sign that is no operator, or a
/// fraction `a/b`.
pub fn numbers(text: &str) -> Vec<String> {
    let bytes = text.as_bytes();
    let digit = |i: usize| bytes.get(i).is_some_and(u8::is_ascii_digit);
    let mut found = Vec::new();
    let mut i = 0;
    while i < bytes.len() {
        if !digit(i) {
            i += 1;
            continue;
        }
        // "x-3" and "5-3" subtract; "is -3" and "(-3" are negative.
        let negative = i > 0
            && bytes[i - 1] == b'-'
            && (i == 1 || !(bytes[i - 2].is_ascii_alphanumeric() || matches!(bytes[i - 2], b')' | b'-')))
            && !(i > 2 && bytes[i - 2] == b' ' && bytes[i - 3].is_ascii_digit());
        let mut number = String::from(if negative { "-" } else { "" });
        let mut point = false;
        let mut slash = false;
        while i < bytes.len() {
            match bytes[i] {
                d if d.is_ascii_digit() => number.push(char::from(d)),
                b',' if !point && (1..4).all(|k| digit(i + k)) && !digit(i + 4) => {}
                b'.' if !point && !slash && digit(i + 1) => {
                    point = true;
                    number.push('.');
                }
                b'/' if !slash && !point && digit(i + 1) => {
                    slash = true;
                    number.push('/');
                }
                _ => break,
            }
            i += 1;
        }
        found.push(number);
    }
    found
}

/// A number's value; fractions are divided. `None` for a division by zero or no number.
pub fn value(number: &str) -> Option<f64> {
    let number = number.trim().trim_end_matches('%');
    let value = match number.split_once('/') {
        Some((a, b)) => a.trim().parse::<f64>().ok()? / b.trim().parse::<f64>().ok()?,
        None => number.parse().ok()?,
    };
    value.is_finite().then_some(value)
}

/// The code of a response: the content of its first fenced block that has any, else the whole text.
pub fn code(response: &str) -> &str {
    let Some((_, after)) = response.split_once("```") else { return response };
    let body = after.split_once('\n').map_or("", |(_, body)| body);
    let body = body.split_once("```").map_or(body, |(body, _)| body);
    if body.trim().is_empty() { response } else { body }
}

/// Names of the functions that are defined at the start of a line, in order.
pub fn functions(code: &str) -> Vec<String> {
    code.lines().filter_map(function_name).map(str::to_owned).collect()
}

fn function_name(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("async ").unwrap_or(line).strip_prefix("def ")?.trim_start();
    let end = rest.find('(')?;
    let name = rest[..end].trim_end();
    let good = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_');
    good.then_some(name)
}

/// Why a text is not plausible Python, found without running it: brackets or quotes that do not close, a function
/// without a body. It errs on the side of accepting.
pub fn python_fault(code: &str) -> Option<&'static str> {
    let mut open = Vec::new();
    let mut rest = code;
    while let Some(c) = rest.chars().next() {
        let mut next = &rest[c.len_utf8()..];
        match c {
            '#' => next = rest.find('\n').map_or("", |end| &rest[end..]),
            '"' | '\'' => match skip_string(rest) {
                Some(after) => next = after,
                None => return Some("a string does not end"),
            },
            '(' | '[' | '{' => open.push(c),
            ')' | ']' | '}' => {
                let opener = open.pop();
                if !matches!((opener, c), (Some('('), ')') | (Some('['), ']') | (Some('{'), '}')) {
                    return Some("brackets do not match");
                }
            }
            _ => {}
        }
        rest = next;
    }
    if !open.is_empty() {
        return Some("a bracket does not close");
    }
    functions_have_bodies(code)
}

/// What follows the string literal at the start of `text`; `None` if it does not end.
fn skip_string(text: &str) -> Option<&str> {
    let quote = text.chars().next()?;
    let triple: String = std::iter::repeat_n(quote, 3).collect();
    let long = text.starts_with(&triple);
    let body = &text[if long { 3 } else { 1 }..];
    let mut escaped = false;
    for (i, c) in body.char_indices() {
        if escaped {
            escaped = false;
        } else if c == '\\' {
            escaped = true;
        } else if long && body[i..].starts_with(&triple) {
            return Some(&body[i + 3..]);
        } else if !long && c == quote {
            return Some(&body[i + 1..]);
        } else if !long && c == '\n' {
            return None;
        }
    }
    None
}

fn functions_have_bodies(code: &str) -> Option<&'static str> {
    let lines: Vec<&str> = code.lines().filter(|l| !l.trim().is_empty()).collect();
    for (i, line) in lines.iter().enumerate() {
        let on_one_line = !line.trim_end().ends_with(':');
        if function_name(line).is_none() || on_one_line {
            continue;
        }
        if !lines.get(i + 1).is_some_and(|next| next.starts_with([' ', '\t'])) {
            return Some("a function has no body");
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn options_are_lettered_lines_in_order() {
        let check = |input: &str, expected: &[&str]| {
            let found: Vec<String> =
                options(input).iter().map(|o| format!("{}={}", o.letter, o.text)).collect();
            assert_eq!(found, expected, "{input}");
        };
        check("Q?\nA. one\nB. two", &["A=one", "B=two"]);
        check("Q?\n(A) one\n(B) two\n(C) three", &["A=one", "B=two", "C=three"]);
        check("A) one\nC) three\nB) two", &["A=one", "B=two"]);
        check("No options. A.M. is morning", &[]);
        check("A. \nB. x", &["A=", "B=x"]);
        check("", &[]);
    }

    #[test]
    fn letters() {
        let check = |text: &str, expected: Option<char>| assert_eq!(letter(text), expected, "{text}");
        check("B. Paris", Some('B'));
        check("(C) because", Some('C'));
        check("D", Some('D'));
        check("So the answer is (A).", Some('A'));
        check("The answer is B. And the answer is C.", Some('C'));
        check("A dog is an animal", None);
        check("I think so", None);
        check("the answer is", None);
        check("", None);
    }

    #[test]
    fn final_numbers() {
        let check =
            |text: &str, expected: Option<&str>| assert_eq!(number(text).as_deref(), expected, "{text}");
        check("3 + 4 = 7\nThe answer is 7.", Some("7"));
        check("The answer is $1,234.50 for 3 days", Some("1234.50"));
        check("#### 12", Some("12"));
        check("5-3 = 2", Some("2"));
        check("It is -3.", Some("-3"));
        check("10 - 4", Some("4"));
        check("1,2,3", Some("3"));
        check("3/4 of it", Some("3/4"));
        check("none", None);
        check("the answer is unknown, but 5 fits", Some("5"));
    }

    #[test]
    fn values() {
        assert_eq!(value("3/4"), Some(0.75));
        assert_eq!(value("50%"), Some(50.0));
        assert_eq!(value("1/0"), None);
        assert_eq!(value("x"), None);
    }

    #[test]
    fn python_is_judged_without_running_it() {
        let check = |code: &str, good: bool| assert_eq!(python_fault(code).is_none(), good, "{code}");
        check("def f(x):\n    return [x, {'a': \"(\"}]  # :)", true);
        check("def f(x): return x", true);
        check("def f(x):\n    \"\"\"It's\n    fine\"\"\"\n    return 'a\\'b'", true);
        check("def f(x):\n    return (x", false);
        check("def f(x):\n    return x]", false);
        check("def f(x):\n    return 'x", false);
        check("def f(x):\n    \"\"\"open", false);
        check("def f(x):\n\ndef g():\n    pass", false);
        assert_eq!(functions("import a\ndef f (x):\n  def inner(): 0\nasync def g(): 0"), ["f", "g"]);
        assert_eq!(code("Here:\n```python\ndef f(): 0\n```\nDone"), "def f(): 0\n");
        assert_eq!(code("def f(): 0"), "def f(): 0");
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "[\\PC\n]{0,60}|[-0-9,./ #(A-C.)\n'\"\\\\`\u{e9}]{0,40}") {
            let _ = (options(&text), letter(&text), letter_text(&text), number(&text), code(&text).len());
            let _ = (functions(&text), python_fault(&text));
        }
    }
}
