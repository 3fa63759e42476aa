//! What is done with each key of a configuration that other programs write.
//!
//! One list a kind of file, next to the code that reads the file ([`crate::peft`], [`crate::config`],
//! [`crate::router_files`]). The check and the tables of `docs/compatibility.md` come from the same lists.

use std::{fmt::Write as _, path::Path};

use serde_json::{Map, Value};

use crate::{Error, Result, compatibility::list};

/// A key of a configuration and what is done with it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Key {
    pub(crate) name: &'static str,
    pub(crate) rule: Rule,
    /// Why, for the documentation and for messages; may be empty.
    pub(crate) why: &'static str,
}

/// What is done with a key.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Rule {
    /// It decides the result, and is implemented.
    Used,
    /// No value of it changes the result.
    Ignored,
    /// It changes the result unless it has one of these values (as JSON); any other is refused.
    Only(&'static [&'static str]),
    /// As `Only`, but where another value changes training alone: that is said, and the file is read.
    Noted(&'static [&'static str]),
}

/// A key that is read.
pub(crate) const fn used(name: &'static str) -> Key {
    Key { name, rule: Rule::Used, why: "" }
}

/// A key without an effect.
pub(crate) const fn ignored(name: &'static str) -> Key {
    Key { name, rule: Rule::Ignored, why: "" }
}

/// A key that may only be absent or have one of some values.
pub(crate) const fn only(name: &'static str, values: &'static [&'static str], why: &'static str) -> Key {
    Key { name, rule: Rule::Only(values), why }
}

/// A key whose effect on training is not implemented.
pub(crate) const fn noted(name: &'static str, values: &'static [&'static str], why: &'static str) -> Key {
    Key { name, rule: Rule::Noted(values), why }
}

/// What a file's keys came to.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Checked {
    /// What a user should know although the file is read.
    pub(crate) notes: Vec<String>,
    /// Keys that are in no list and have a value, with it.
    pub(crate) unknown: Vec<(String, Value)>,
}

/// The lists in which a key is looked for, the first that has it counts.
pub(crate) type Lists<'a> = &'a [&'a [Key]];

/// The rule of a key.
pub(crate) fn rule(lists: Lists<'_>, name: &str) -> Option<Key> {
    lists.iter().find_map(|list| list.iter().find(|key| key.name == name)).copied()
}

/// Checks every key of an object. A key that is `null` is one that is not there.
///
/// # Errors
/// All keys whose value is refused, in one message.
pub(crate) fn check(lists: Lists<'_>, object: &Map<String, Value>, path: &Path) -> Result<Checked> {
    let mut checked = Checked::default();
    let mut refused = Vec::new();
    for (name, value) in object.iter().filter(|(_, value)| !value.is_null()) {
        let Some(key) = rule(lists, name) else {
            checked.unknown.push((name.clone(), value.clone()));
            continue;
        };
        match key.rule {
            Rule::Used | Rule::Ignored => {}
            Rule::Only(values) if is_one_of(value, values) => {}
            Rule::Noted(values) if is_one_of(value, values) => {}
            Rule::Only(_) => refused.push(format!(
                "{} is {}, which is not supported{}",
                name,
                short(value),
                because(key.why)
            )),
            Rule::Noted(_) => checked.notes.push(format!("{} is {}{}", name, short(value), because(key.why))),
        }
    }
    if refused.is_empty() { Ok(checked) } else { Err(Error::invalid(path, refused.join("; "))) }
}

fn because(why: &str) -> String {
    if why.is_empty() { String::new() } else { format!(" ({why})") }
}

/// A value as a message shows it: a long one is cut.
pub(crate) fn short(value: &Value) -> String {
    const MOST: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

/// Numbers are equal by value (`0` and `0.0`).
fn is_one_of(value: &Value, texts: &[&str]) -> bool {
    texts.iter().any(|text| match serde_json::from_str::<Value>(text) {
        Ok(expected) => {
            expected == *value || expected.as_f64().zip(value.as_f64()).is_some_and(|(a, b)| a == b)
        }
        Err(_) => false,
    })
}

/// `false`, `0`, `{}`, `[]` and `""`: what a feature that is off looks like.
pub(crate) fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
        Value::Bool(true) => false,
    }
}

/// The lists as Markdown: a table of what is refused, and the names of the rest.
pub(crate) fn markdown(lists: Lists<'_>, out: &mut String) {
    let keys: Vec<&Key> = lists.iter().flat_map(|list| list.iter()).collect();
    let names = |wanted: fn(&Rule) -> bool| -> Vec<String> {
        keys.iter().filter(|key| wanted(&key.rule)).map(|key| format!("`{}`", key.name)).collect()
    };
    *out += &list("Implemented", &names(|rule| matches!(rule, Rule::Used)));
    *out +=
        &list("Ignored, because no value changes the result", &names(|rule| matches!(rule, Rule::Ignored)));
    let bounded: Vec<(&Key, &[&str], &str)> = keys
        .iter()
        .filter_map(|key| match key.rule {
            Rule::Only(values) => Some((*key, values, "refused")),
            Rule::Noted(values) => Some((*key, values, "said")),
            Rule::Used | Rule::Ignored => None,
        })
        .collect();
    if bounded.is_empty() {
        return;
    }
    out.push_str("| key | harmless as | otherwise | why |\n|---|---|---|---|\n");
    for (key, values, otherwise) in bounded {
        let values: Vec<String> =
            std::iter::once("left out".to_owned()).chain(values.iter().map(|v| format!("`{v}`"))).collect();
        let _ = writeln!(out, "| `{}` | {} | {otherwise} | {} |", key.name, values.join(", "), key.why);
    }
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const LIST: &[Key] = &[
        used("size"),
        ignored("seed"),
        only("bias", &["\"none\"", "0"], "no biases"),
        noted("dropout", &["0"], "not applied"),
    ];

    fn check_text(value: Value) -> std::result::Result<Checked, String> {
        let Value::Object(object) = value else { panic!("an object") };
        check(&[LIST], &object, Path::new("x.json")).map_err(|e| e.to_string())
    }

    #[test]
    fn each_rule_does_what_it_says() {
        let fine = |value: Value| assert_eq!(check_text(value.clone()), Ok(Checked::default()), "{value}");
        fine(json!({"size": 3, "seed": [1, 2], "bias": "none", "dropout": 0.0}));
        fine(json!({"bias": null, "other": null}));
        fine(json!({"bias": 0.0}));
        let message = check_text(json!({"bias": "all", "other": 1})).unwrap_err();
        assert_eq!(message, "x.json: bias is \"all\", which is not supported (no biases)");
        let checked = check_text(json!({"dropout": 0.1, "other": {"a": 1}})).unwrap();
        assert_eq!(checked.notes, ["dropout is 0.1 (not applied)"]);
        assert_eq!(checked.unknown, [("other".to_owned(), json!({"a": 1}))]);
    }

    #[test]
    fn a_long_value_is_cut() {
        assert_eq!(short(&json!("é".repeat(100))).chars().count(), 61);
        assert_eq!(short(&json!([1])), "[1]");
    }
}
