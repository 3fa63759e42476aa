//! How PEFT finds the modules that a name, a pattern or a list means: with Python's regular expressions, over the modules'
//! paths in the base model (`model.layers.0.self_attn.q_proj`).

use std::path::Path;

use fancy_regex::Regex;
use serde_json::Value;

use crate::{Error, Result};

/// A regular expression of a configuration, with the key it stands under for messages.
#[derive(Debug)]
pub(super) struct Pattern {
    regex: Regex,
    source: String,
}

impl Pattern {
    /// `template` with `text` in the place of `{}`, matched from the beginning.
    fn new(template: &str, text: &str, key: &str, path: &Path) -> Result<Self> {
        let source = template.replacen("{}", text, 1);
        let regex = Regex::new(&format!(r"\A(?:{source})")).map_err(|e| {
            Error::invalid(path, format!("{key} holds {text:?}, which is not a regular expression: {e}"))
        })?;
        Ok(Self { regex, source })
    }

    /// Whether `module` matches.
    fn matches(&self, module: &str) -> Result<bool> {
        self.regex.is_match(module).map_err(|e| {
            Error::Unsupported(format!("the pattern {:?} cannot be tried on `{module}`: {e}", self.source))
        })
    }

    /// The named group `idx` as a number; `None` without a match.
    fn index(&self, module: &str) -> Result<Option<usize>> {
        let captures = self.regex.captures(module).map_err(|e| {
            Error::Unsupported(format!("the pattern {:?} cannot be tried on `{module}`: {e}", self.source))
        })?;
        Ok(captures.and_then(|found| found.name("idx")?.as_str().parse().ok()))
    }
}

/// Modules by name or by pattern, as `target_modules` and `exclude_modules` have them.
#[derive(Debug)]
pub(super) enum Modules {
    /// Whole paths or their last parts.
    Names(Vec<String>),
    /// A regular expression that matches the whole path.
    Pattern(Pattern),
    /// Every linear module but the output head.
    AllLinear,
}

impl Modules {
    /// From a string or a list of strings.
    pub(super) fn parse(value: &Value, key: &str, path: &Path) -> Result<Self> {
        match value {
            Value::String(text) if key == "target_modules" && text.eq_ignore_ascii_case("all-linear") => {
                Ok(Self::AllLinear)
            }
            Value::String(text) => Ok(Self::Pattern(Pattern::new(r"(?:{})\z", text, key, path)?)),
            Value::Array(list) => {
                let names =
                    list.iter().map(|name| name.as_str().map(str::to_owned)).collect::<Option<Vec<String>>>();
                names
                    .map(Self::Names)
                    .ok_or_else(|| Error::invalid(path, format!("{key} is not a list of names")))
            }
            other => Err(Error::invalid(
                path,
                format!("{key} is {other}; it should be a name, a pattern or a list"),
            )),
        }
    }

    /// Whether they hold `module`.
    pub(super) fn contain(&self, module: &str) -> Result<bool> {
        match self {
            Self::Names(names) => Ok(names.iter().any(|name| ends_with_name(module, name))),
            Self::Pattern(pattern) => pattern.matches(module),
            Self::AllLinear => Ok(true),
        }
    }
}

/// `path` is `name` or ends with `.name`.
pub(super) fn ends_with_name(path: &str, name: &str) -> bool {
    path == name || path.strip_suffix(name).is_some_and(|rest| rest.ends_with('.'))
}

/// The blocks that `layers_to_transform` leaves an adapter in.
#[derive(Debug)]
pub(super) struct Layers {
    indices: Vec<usize>,
    patterns: Vec<Pattern>,
}

impl Layers {
    /// `None`: all.
    pub(super) fn parse(layers: Option<&Value>, names: Option<&Value>, path: &Path) -> Result<Option<Self>> {
        let wrong = || Error::invalid(path, "layers_to_transform should be a number or a list of numbers");
        let number = |value: &Value| value.as_u64().and_then(|n| usize::try_from(n).ok()).ok_or_else(wrong);
        let indices = match layers {
            None => Vec::new(),
            Some(Value::Array(list)) => list.iter().map(number).collect::<Result<_>>()?,
            Some(one) => vec![number(one)?],
        };
        let names = match names {
            None => Vec::new(),
            Some(Value::String(name)) if name.is_empty() => Vec::new(),
            Some(Value::String(name)) => vec![name.clone()],
            Some(Value::Array(list)) => list
                .iter()
                .map(|name| name.as_str().map(str::to_owned))
                .collect::<Option<_>>()
                .ok_or_else(|| Error::invalid(path, "layers_pattern is not a list of names"))?,
            Some(other) => {
                return Err(Error::invalid(
                    path,
                    format!("layers_pattern is {other}; it should be a name or a list"),
                ));
            }
        };
        if indices.is_empty() {
            return Ok(None);
        }
        let patterns = if names.is_empty() {
            vec![Pattern::new(r".*?\.[^.]*\.(?P<idx>\d+)\.", "", "layers_pattern", path)?]
        } else {
            let pattern =
                |name: &String| Pattern::new(r"(?:^|.*?\.){}\.(?P<idx>\d+)\.", name, "layers_pattern", path);
            names.iter().map(pattern).collect::<Result<_>>()?
        };
        Ok(Some(Self { indices, patterns }))
    }

    /// Whether `module` lies in one of them: the first pattern that matches says which block it is.
    pub(super) fn contain(&self, module: &str) -> Result<bool> {
        for pattern in &self.patterns {
            if let Some(index) = pattern.index(module)? {
                return Ok(self.indices.contains(&index));
            }
        }
        Ok(false)
    }
}

/// `rank_pattern` or `alpha_pattern`: the first pattern in the order of the file that matches the end of a path counts.
#[derive(Debug)]
pub(super) struct Overrides<T>(Vec<(Pattern, T)>);

impl<T: Copy> Overrides<T> {
    pub(super) fn parse(
        value: Option<&Value>,
        key: &str,
        path: &Path,
        convert: impl Fn(&Value) -> Option<T>,
    ) -> Result<Self> {
        let object = match value {
            None => return Ok(Self(Vec::new())),
            Some(Value::Object(object)) => object,
            Some(other) => {
                return Err(Error::invalid(path, format!("{key} is {other}; it should be an object")));
            }
        };
        let entry = |(text, value): (&String, &Value)| {
            let number = convert(value).ok_or_else(|| {
                Error::invalid(path, format!("{key}: {text:?} is {value}, which is no value for it"))
            })?;
            Ok((Pattern::new(r"(.*\.)?({})\z", text, key, path)?, number))
        };
        object.iter().map(entry).collect::<Result<_>>().map(Self)
    }

    /// The value for `module`, if a pattern matches.
    pub(super) fn get(&self, module: &str) -> Result<Option<T>> {
        for (pattern, value) in &self.0 {
            if pattern.matches(module)? {
                return Ok(Some(*value));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const Q0: &str = "model.layers.0.self_attn.q_proj";
    const V1: &str = "model.layers.1.self_attn.v_proj";
    const UP10: &str = "model.layers.10.mlp.up_proj";

    /// What PEFT 0.21's `get_pattern_key` gives for the three modules.
    #[test]
    fn overrides_are_regular_expressions_in_the_order_of_the_file() {
        let check = |patterns: Value, expected: [Option<u64>; 3]| {
            let overrides =
                Overrides::parse(Some(&patterns), "rank_pattern", Path::new("x"), Value::as_u64).unwrap();
            assert_eq!([Q0, V1, UP10].map(|module| overrides.get(module).unwrap()), expected, "{patterns}");
        };
        check(json!({"(q|v)_proj": 64}), [Some(64), Some(64), None]);
        check(json!({"v_proj": 8, "model.layers.1.self_attn.v_proj": 32}), [None, Some(8), None]);
        check(json!({"model.layers.1.self_attn.v_proj": 32, "v_proj": 8}), [None, Some(32), None]);
        check(json!({"^model.layers.0.self_attn.q_proj": 4}), [Some(4), None, None]);
        check(json!({"layers.1.*": 5}), [None, Some(5), Some(5)]);
        check(json!({r"layers\.1\..*": 5}), [None, Some(5), None]);
        check(json!({"proj": 3}), [None, None, None]);
        check(json!({".*proj": 3}), [Some(3), Some(3), Some(3)]);
        check(json!({"q_pro": 1, "self_attn": 2, "": 3}), [None, None, None]);
        // The optional prefix may be empty or not, whichever lets the rest match.
        check(json!({r"(?!.*self_attn).*_proj": 9}), [Some(9), Some(9), Some(9)]);
        check(json!({"base_model.model.model.layers.0.self_attn.q_proj": 9}), [None, None, None]);
        check(json!({"q_proj$": 6, "up_proj|v_proj": 7}), [Some(6), Some(7), Some(7)]);
        for wrong in [json!({"(q": 1}), json!({"q": -1}), json!({"q": null}), json!([1]), json!("q")] {
            assert!(
                Overrides::parse(Some(&wrong), "rank_pattern", Path::new("x"), Value::as_u64).is_err(),
                "{wrong}"
            );
        }
    }

    /// What PEFT 0.21's `check_target_module_exists` gives.
    #[test]
    fn modules_are_names_or_a_pattern_for_the_whole_path() {
        let check = |modules: Value, expected: [bool; 3]| {
            let parsed = Modules::parse(&modules, "target_modules", Path::new("x")).unwrap();
            assert_eq!([Q0, V1, UP10].map(|module| parsed.contain(module).unwrap()), expected, "{modules}");
        };
        check(json!(["q_proj", "up_proj"]), [true, false, true]);
        check(json!(["self_attn.v_proj"]), [false, true, false]);
        check(json!(["proj", "attn.q_proj", "(q|v)_proj"]), [false, false, false]);
        check(json!([V1]), [false, true, false]);
        check(json!("all-linear"), [true, true, true]);
        check(json!("ALL-Linear"), [true, true, true]);
        check(json!("q_proj"), [false, false, false]);
        check(json!(".*q_proj"), [true, false, false]);
        check(json!(".*(q|v)_proj|x"), [true, true, false]);
        check(json!(r"model\.layers\.[0-9]\..*"), [true, true, false]);
        check(json!("model.layers"), [false, false, false]);
        for wrong in [json!("(q"), json!([1]), json!(7)] {
            assert!(Modules::parse(&wrong, "target_modules", Path::new("x")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn layers_are_those_that_the_first_matching_pattern_names() {
        let check = |layers: Value, names: Option<Value>, expected: [bool; 3]| {
            let parsed = Layers::parse(Some(&layers), names.as_ref(), Path::new("x")).unwrap();
            let all = |module: &str| parsed.as_ref().is_none_or(|layers| layers.contain(module).unwrap());
            assert_eq!([Q0, V1, UP10].map(all), expected, "{layers} {names:?}");
        };
        check(json!([0, 10]), None, [true, false, true]);
        check(json!(1), None, [false, true, false]);
        check(json!([]), None, [true, true, true]);
        check(json!([1]), Some(json!("layers")), [false, true, false]);
        check(json!([1]), Some(json!(["h", "layers"])), [false, true, false]);
        check(json!([1]), Some(json!("h")), [false, false, false]);
        check(json!([1]), Some(json!("")), [false, true, false]);
        for wrong in [json!("1"), json!([-1]), json!([0.5]), json!({})] {
            assert!(Layers::parse(Some(&wrong), None, Path::new("x")).is_err(), "{wrong}");
        }
    }

    /// A pattern that takes exponential time is an error, not a program that hangs.
    #[test]
    fn a_pattern_without_end_is_refused() {
        let value = json!(r"(m|o|d|e|l|\.|a|[a-z0-9_.])*(?=x)!((.*)*)*!\1");
        let modules = Modules::parse(&value, "target_modules", Path::new("x")).unwrap();
        // Either it is decided quickly or it is an error.
        let _ = modules.contain(&"model.layers.0.".repeat(20));
    }
}
