//! Faults of Python code that show without running it.

use super::code::function_name;

/// Why a text is not plausible Python, found without running it: brackets or quotes that do not close, a function
/// without a body. It errs on the side of accepting.
pub fn fault(code: &str) -> Option<&'static str> {
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
    use super::*;

    #[test]
    fn python_is_judged_without_running_it() {
        let check = |code: &str, good: bool| assert_eq!(fault(code).is_none(), good, "{code}");
        check("def f(x):\n    return [x, {'a': \"(\"}]  # :)", true);
        check("def f(x): return x", true);
        check("def f(x):\n    \"\"\"It's\n    fine\"\"\"\n    return 'a\\'b'", true);
        check("def f(x):\n    return (x", false);
        check("def f(x):\n    return x]", false);
        check("def f(x):\n    return 'x", false);
        check("def f(x):\n    \"\"\"open", false);
        check("def f(x):\n\ndef g():\n    pass", false);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "(\\PC|\n|def f\\(|\"\"\"|[\\\\'#:)]|    ){0,40}") {
            let _ = fault(&text);
        }
    }
}
