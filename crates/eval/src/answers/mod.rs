//! What counts as the right answer to a check item.
//!
//! First the *final answer* is cut out of the response, then it is compared; both depend on the kind of
//! [`Answer`] and are described in [`number`], [`choice`], [`text`] and [`code`].

pub mod choice;
pub mod code;
pub mod number;
pub mod text;

use mixse_selfmoe::record::{Answer, Example};

/// A response, judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The final answer, if there is one, and whether it is right.
    Decided {
        /// The final answer as it stands in the response.
        extracted: Option<String>,
        /// It is the right one.
        correct: bool,
    },
    /// Right if this program runs to its end.
    Run {
        /// The code that was found in the response.
        extracted: String,
        /// That code and the item's tests.
        program: String,
    },
}

impl Verdict {
    fn decided(extracted: Option<String>, correct: impl FnOnce(&str) -> bool) -> Self {
        let correct = extracted.as_deref().is_some_and(correct);
        Self::Decided { extracted, correct }
    }
}

/// Judges a response to an item; an item without an answer has no right response.
pub fn judge(item: &Example, response: &str) -> Verdict {
    match &item.answer {
        Some(Answer::Number { value, .. }) => {
            Verdict::decided(number::extract(response), |found| number::equal(found, value))
        }
        Some(Answer::Choice { letter }) => {
            let options = choice::options(&item.input);
            let found = choice::extract(response, &options);
            Verdict::decided(found.map(String::from), |found| found.starts_with(*letter))
        }
        Some(Answer::Text { accept }) => text::judge(response, accept),
        Some(Answer::Code { entry_point, tests }) => {
            match code::extract(response, entry_point, &item.input) {
                Some(extracted) => {
                    let program = format!("{extracted}\n\n{}\n", tests.join("\n"));
                    Verdict::Run { extracted, program }
                }
                None => Verdict::Decided { extracted: None, correct: false },
            }
        }
        None => Verdict::Decided { extracted: None, correct: false },
    }
}

/// Phrases that announce the final answer, in lower case; the longest that fits counts.
const MARKERS: [&str; 6] = ["the answer is", "answer is", "answer:", "answer =", "the answer:", "####"];

/// What stands behind the last announcement of a final answer.
fn after_marker(response: &str) -> Option<&str> {
    // ASCII only, so that positions stay those of the response.
    let lower = response.to_ascii_lowercase();
    let end = MARKERS.iter().filter_map(|m| lower.rfind(m).map(|at| at + m.len())).max()?;
    Some(response[end..].trim_start_matches([':', ' ', '*', '_', '\n']))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(input: &str, answer: Answer) -> Example {
        Example {
            id: "x".into(),
            instruction: "?".into(),
            input: input.into(),
            output: String::new(),
            answer: Some(answer),
        }
    }

    #[test]
    fn each_kind_is_judged() {
        let number = item("", Answer::Number { value: "4.5".into(), expression: None });
        let check = |item: &Example, response: &str, expected: bool| match judge(item, response) {
            Verdict::Decided { correct, .. } => assert_eq!(correct, expected, "{response}"),
            Verdict::Run { .. } => panic!("{response}"),
        };
        check(&number, "1 + 2 = 3\nThe answer is 4.5.", true);
        check(&number, "The answer is 45.", false);
        check(&number, "", false);
        let choice = item("A. red\nB. blue", Answer::Choice { letter: 'B' });
        check(&choice, "The answer is B.", true);
        check(&choice, "blue", true);
        check(&choice, "A", false);
        let text = item("", Answer::Text { accept: vec!["The Nile".into(), "Nile River".into()] });
        check(&text, "It is long. The answer is Nile.", true);
        let code = item("", Answer::Code { entry_point: "f".into(), tests: vec!["assert f() == 1".into()] });
        check(&code, "I do not know.", false);
        let program = "def f():\n    return 1\n\nassert f() == 1\n".to_string();
        assert_eq!(
            judge(&code, "```python\ndef f():\n    return 1\n```"),
            Verdict::Run { extracted: "def f():\n    return 1".into(), program }
        );
    }

    #[test]
    fn the_last_announcement_counts() {
        let check = |response, expected| assert_eq!(after_marker(response), expected, "{response}");
        check("The answer is 3. No, the answer is 4.", Some("4."));
        check("Answer: 4", Some("4"));
        check("**Answer:** 4", Some("4"));
        check("#### 12", Some("12"));
        check("THE ANSWER IS: x", Some("x"));
        check("four", None);
        check("Die Größe İ: the answer is ß", Some("ß"));
    }
}
