//! Small pieces of Python's behaviour that prompts, targets and filters depend on.

/// `str.strip()`.
pub(super) fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// `str.isspace()` of one character: Unicode white space and the four information separators.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// `str.capitalize()`.
pub(super) fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    let first: String = chars.next().into_iter().flat_map(char::to_uppercase).collect();
    first + &chars.as_str().to_lowercase()
}

/// `repr` of a list of strings, which the harness writes into its samples files.
pub(super) fn repr_list(texts: &[String]) -> String {
    format!("[{}]", texts.iter().map(|t| repr(t)).collect::<Vec<_>>().join(", "))
}

fn repr(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if c.is_ascii_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_writes_as_python_does() {
        assert_eq!(strip(" \u{1c}a b\n"), "a b");
        assert_eq!(capitalize("hELLO World"), "Hello world");
        assert_eq!(capitalize(""), "");
        let texts = ["a".to_string(), "it's".into(), "\"it's\"".into(), "é\n\\".into()];
        assert_eq!(repr_list(&texts), r#"['a', "it's", '"it\'s"', 'é\n\\']"#);
    }
}
