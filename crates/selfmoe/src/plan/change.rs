//! What is different from when a task was done.

use std::fmt;

use serde_json::Value;

/// The most letters of a value that are shown.
const MAX_SHOWN: usize = 40;
/// The most differences that are shown of one value.
const MAX_DIFFERENCES: usize = 3;

/// An input that is not what it was when the task was done. Shown, it says what changed, where that was kept:
/// `precision: "bf16" → "int8"`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// `value NAME`, `file PATH` or `task ID`.
    pub input: String,
    /// Its content then, where it is a small value that was kept.
    pub then: Option<Value>,
    /// Its content now, likewise.
    pub now: Option<Value>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.input.strip_prefix("value ").unwrap_or(&self.input);
        let (then, now) = match (&self.then, &self.now) {
            (Some(then), Some(now)) => (then, now),
            (None, Some(_)) => return write!(f, "{name} (new, or other than before)"),
            (Some(_), None) => return write!(f, "{name} (before, it was another one or there was none)"),
            (None, None) if name.starts_with("task ") => {
                return write!(f, "what {} made", name.trim_start_matches("task "));
            }
            (None, None) => return f.write_str(name),
        };
        let mut found = Vec::new();
        differences(name, then, now, &mut found);
        let more = found.len().saturating_sub(MAX_DIFFERENCES);
        found.truncate(MAX_DIFFERENCES);
        f.write_str(&found.join(", "))?;
        if more > 0 { write!(f, " and {more} more") } else { Ok(()) }
    }
}

/// The leaves in which two values differ.
fn differences(path: &str, then: &Value, now: &Value, found: &mut Vec<String>) {
    match (then, now) {
        (Value::Object(old), Value::Object(new)) => {
            for key in old.keys().chain(new.keys().filter(|key| !old.contains_key(*key))) {
                let (then, now) =
                    (old.get(key).unwrap_or(&Value::Null), new.get(key).unwrap_or(&Value::Null));
                differences(&format!("{path}.{key}"), then, now, found);
            }
        }
        (then, now) if then == now => {}
        (then, now) => found.push(format!("{path}: {} → {}", short(then), short(now))),
    }
}

fn short(value: &Value) -> String {
    let text = match value {
        Value::Null => return "none".to_owned(),
        other => other.to_string(),
    };
    if text.chars().count() <= MAX_SHOWN {
        return text;
    }
    text.chars().take(MAX_SHOWN - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_change_says_what_changed() {
        let check = |input: &str, then: Option<Value>, now: Option<Value>, expected: &str| {
            assert_eq!(Change { input: input.into(), then, now }.to_string(), expected);
        };
        check("value v", Some(json!(1)), Some(json!(2)), "v: 1 → 2");
        check(
            "value model",
            Some(json!({ "hash": "ab", "precision": "bf16", "old": 1 })),
            Some(json!({ "hash": "ab", "precision": "int8", "new": { "x": true } })),
            "model.precision: \"bf16\" → \"int8\", model.old: 1 → none, model.new: none → {\"x\":true}",
        );
        check(
            "value v",
            Some(json!("x".repeat(50))),
            Some(json!(1)),
            &format!("v: \"{}… → 1", "x".repeat(38)),
        );
        let numbers = |by: i32| json!({ "a": by, "b": by, "c": by, "d": by, "e": 0 });
        check("value v", Some(numbers(1)), Some(numbers(2)), "v.a: 1 → 2, v.b: 1 → 2, v.c: 1 → 2 and 1 more");
        check("value v", None, Some(json!(2)), "v (new, or other than before)");
        check("file a/b", None, None, "file a/b");
        check("task select/math", None, None, "what select/math made");
    }
}
