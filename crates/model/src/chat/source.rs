//! What of a template's source has to be known beside running it.

use std::ops::Range;

/// A tag of a template: `{% … %}` or `{{ … }}`, without its delimiters.
struct Tag {
    inner: Range<usize>,
    block: bool,
}

/// The source with `{% generation %}` and its end, which mark what an assistant wrote and nothing else, as a scope of its own.
pub(super) fn without_generation(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut done = 0;
    for tag in tags(source).into_iter().filter(|tag| tag.block) {
        let word = word(source, &tag.inner);
        let replacement = match &source[word.clone()] {
            "generation" => "with",
            "endgeneration" => "endwith",
            _ => continue,
        };
        out.push_str(&source[done..word.start]);
        out.push_str(replacement);
        done = word.end;
    }
    out + &source[done..]
}

/// The strings that the tags spell out, as they stand: what a template may compare with.
pub(super) fn literals(source: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for Tag { inner, .. } in tags(source) {
        let mut rest = &source[inner];
        while let Some(at) = rest.find(['\'', '"']) {
            let (string, after) = rest[at..].split_at(string_end(&rest[at..]));
            // A string that is not closed ends with its tag.
            let inside = &string[1..];
            found.push(inside.strip_suffix(&string[..1]).unwrap_or(inside));
            rest = after;
        }
    }
    found
}

fn tags(source: &str) -> Vec<Tag> {
    let mut tags = Vec::new();
    let mut at = 0;
    while let Some(next) = source[at..].find('{') {
        let start = at + next + 2;
        let (close, block) = match source.as_bytes().get(start - 1) {
            Some(b'#') => {
                at = source[start..].find("#}").map_or(source.len(), |end| start + end + 2);
                continue;
            }
            Some(b'%') => ("%}", true),
            Some(b'{') => ("}}", false),
            _ => {
                at = start - 1;
                continue;
            }
        };
        let end = tag_end(source, start, close);
        let tag = Tag { inner: start..end, block };
        let is_raw = block && &source[word(source, &tag.inner)] == "raw";
        tags.push(tag);
        at = (end + 2).min(source.len());
        if is_raw {
            at = source[at..].find("endraw").map_or(source.len(), |end| at + end);
        }
    }
    tags
}

/// The first word of a tag.
fn word(source: &str, inner: &Range<usize>) -> Range<usize> {
    let text = &source[inner.clone()];
    let start =
        inner.start + text.find(|c: char| !c.is_whitespace() && !"-+".contains(c)).unwrap_or(text.len());
    let text = &source[start..inner.end];
    start..start + text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len())
}

/// Where the tag that began before `start` is closed; strings and nested braces are stepped over.
fn tag_end(source: &str, start: usize, close: &str) -> usize {
    let (mut at, mut depth) = (start, 0_usize);
    while let Some(c) = source[at..].chars().next() {
        if depth == 0 && source[at..].starts_with(close) {
            return at;
        }
        match c {
            '\'' | '"' => at += string_end(&source[at..]),
            _ => {
                match c {
                    '{' => depth += 1,
                    '}' => depth = depth.saturating_sub(1),
                    _ => {}
                }
                at += c.len_utf8();
            }
        }
    }
    source.len()
}

/// Bytes of the string that `text` begins with, its quotes included.
fn string_end(text: &str) -> usize {
    let quote = text.chars().next();
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if Some(c) == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_tags_become_scopes() {
        let check = |source: &str, expected: &str| assert_eq!(without_generation(source), expected);
        check("a{% generation %}b{%- endgeneration -%}c", "a{% with %}b{%- endwith -%}c");
        check("{%generation%}{%endgeneration%}", "{%with%}{%endwith%}");
        check(
            "generation {{ 'x {% generation %}' }}{# {% generation %} #}",
            "generation {{ 'x {% generation %}' }}{# {% generation %} #}",
        );
        check(
            "{% raw %}{% generation %}{% endraw %}{% generation %}",
            "{% raw %}{% generation %}{% endraw %}{% with %}",
        );
        check("{{ {'a': {}} }}{% generation %}", "{{ {'a': {}} }}{% with %}");
        check("{% set generation = 1 %}{% if generation %}", "{% set generation = 1 %}{% if generation %}");
        for odd in ["{", "{%", "{{ '", "{#", "{% raw %}", "é{%é", "{%generation"] {
            let _ = without_generation(odd);
        }
    }

    #[test]
    fn literals_are_those_of_tags() {
        assert_eq!(
            literals("don't {{ a['b'] }}{% if '</think>' in x or \"it's\" %}{# 'no' #}"),
            ["b", "</think>", "it's"]
        );
        assert_eq!(literals(r"{{ 'a\'b' }}"), [r"a\'b"]);
        assert_eq!(literals("{{ 'é"), ["é"]);
        assert_eq!(literals("{{ '"), [""]);
        assert_eq!(literals("{% raw %} endraw {{ 'a {% endraw %}é"), ["a {% endraw %}é"]);
    }
}
