//! What is taken out of a response before it is compared.

use fancy_regex::Regex;

use super::text::strip;
use crate::{Error, Result};

/// A named way from response to answer, in the harness's words.
#[derive(Debug, Clone)]
pub struct Filter {
    /// Part of the result's key: `exact_match,strict-match`.
    pub name: String,
    pub(super) step: Step,
}

#[derive(Debug, Clone)]
pub(super) enum Step {
    /// The response as it is.
    None,
    /// Without white space at both ends.
    Strip,
    /// A match of a pattern: its first group that is not empty, or the whole match if there are no groups.
    Regex { pattern: Regex, which: Which, fallback: String },
    /// The prompt in front of it (for code that continues the prompt).
    PrependPrompt,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    First,
    Last,
}

/// What the harness answers where nothing matches.
pub(super) const INVALID: &str = "[invalid]";

impl Filter {
    pub(super) fn plain(name: &str, step: Step) -> Self {
        Self { name: name.into(), step }
    }

    pub(super) fn regex(name: &str, pattern: &str, which: Which) -> Result<Self> {
        let step = Step::Regex { pattern: compile(pattern)?, which, fallback: INVALID.into() };
        Ok(Self { name: name.into(), step })
    }

    pub(super) fn apply(&self, response: &str, prompt: &str) -> String {
        match &self.step {
            Step::None => response.into(),
            Step::Strip => strip(response).into(),
            Step::PrependPrompt => format!("{prompt}{response}"),
            Step::Regex { pattern, which, fallback } => {
                find(pattern, *which, response).unwrap_or_else(|| fallback.clone())
            }
        }
    }
}

pub(super) fn compile(pattern: &str) -> Result<Regex> {
    Regex::new(pattern).map_err(|e| Error::Invalid(format!("regular expression {pattern:?}: {e}")))
}

/// A pattern that gives up (too much backtracking) matches nothing.
fn find(pattern: &Regex, which: Which, text: &str) -> Option<String> {
    let mut matches = pattern.captures_iter(text).filter_map(std::result::Result::ok);
    let found = match which {
        Which::First => matches.next(),
        Which::Last => matches.last(),
    }?;
    let groups = found.len() - 1;
    let text = match groups {
        0 => found.get(0),
        1 => found.get(1),
        _ => (1..=groups).filter_map(|i| found.get(i)).find(|m| !m.as_str().is_empty()),
    };
    match (text, groups) {
        (Some(m), _) => Some(strip(m.as_str()).into()),
        // One group that took no part in the match is an empty text; several are no answer.
        (None, 1) => Some(String::new()),
        (None, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_found() {
        let check = |pattern, which, text: &str, expected: &str| {
            assert_eq!(Filter::regex("x", pattern, which).unwrap().apply(text, ""), expected, "{text}");
        };
        let strict = r"The answer is (\-?[0-9\.\,]+).";
        check(strict, Which::First, "The answer is 12. The answer is 13.", "12.");
        check(strict, Which::First, "The answer is 12", "1");
        check(strict, Which::First, "The answer is twelve", INVALID);
        let flexible = r"(-?[$0-9.,]{2,})|(-?[0-9]+)";
        check(flexible, Which::Last, "1 and 22 and 3", "3");
        check(flexible, Which::Last, "costs $1,000.", "$1,000.");
        check(flexible, Which::Last, "none", INVALID);
        let cot = "(?<=the answer is )(.*)(?=.)";
        check(cot, Which::First, "So the answer is (B).", "(B)");
        check(cot, Which::First, "So the answer is (B).\nMore.", "(B)");
        check(cot, Which::First, "so the answer is B", "");
        check("(x)|(y*)", Which::First, "", INVALID);
        assert_eq!(Filter::plain("x", Step::Strip).apply(" a\n", ""), "a");
        assert_eq!(Filter::plain("x", Step::PrependPrompt).apply("b", "a"), "ab");
        assert!(Filter::regex("x", "(", Which::First).is_err());
    }
}
