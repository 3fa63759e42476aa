//! What counts as the right answer to a check item. How the final answer is found in a response and when two answers are the
//! same is said in [`mixse_selfmoe::answer`].

use mixse_selfmoe::{
    answer::{choice, code, number, text},
    execute::Program,
    record::{Answer, Example},
};

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
    /// Right if this program passes its tests.
    Run {
        /// The code that was found in the response.
        extracted: String,
        /// That code and the item's tests.
        program: Program,
    },
}

impl Verdict {
    fn decided(extracted: Option<&str>, correct: impl FnOnce(&str) -> bool) -> Self {
        Self::Decided { extracted: extracted.map(str::to_owned), correct: extracted.is_some_and(correct) }
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
            Verdict::Decided { extracted: found.map(String::from), correct: found == Some(*letter) }
        }
        Some(Answer::Text { accept }) => Verdict::decided(text::extract(response), |found| {
            accept.iter().any(|expected| text::equal(found, expected))
        }),
        Some(Answer::Code { entry_point, tests }) => {
            match code::extract(response, entry_point, &item.input) {
                Some(extracted) => {
                    let program = Program { code: extracted.clone(), tests: tests.join("\n") + "\n" };
                    Verdict::Run { extracted, program }
                }
                None => Verdict::Decided { extracted: None, correct: false },
            }
        }
        None => Verdict::Decided { extracted: None, correct: false },
    }
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
        let program = Program { code: "def f():\n    return 1".into(), tests: "assert f() == 1\n".into() };
        assert_eq!(
            judge(&code, "```python\ndef f():\n    return 1\n```"),
            Verdict::Run { extracted: "def f():\n    return 1".into(), program }
        );
    }

    #[test]
    fn the_final_text_is_compared() {
        let check = |response: &str, accept: &[&str], extracted: Option<&str>, correct: bool| {
            let accept = accept.iter().map(ToString::to_string).collect();
            let expected = Verdict::Decided { extracted: extracted.map(Into::into), correct };
            assert_eq!(judge(&item("", Answer::Text { accept }), response), expected, "{response}");
        };
        check("The answer is Greta.", &["Greta"], Some("Greta."), true);
        check("The answer is the Nile", &["Nile"], Some("the Nile"), true);
        check("Greta", &["Greta"], Some("Greta"), true);
        check("It flows north.\nNile\n\n", &["The Nile"], Some("Nile"), true);
        check(
            "The answer is Paris. It lies on the Seine.",
            &["Paris"],
            Some("Paris. It lies on the Seine."),
            true,
        );
        check("The answer is **Paris**\nmore", &["Paris"], Some("Paris**"), true);
        check("Greta or Finn", &["Greta"], Some("Greta or Finn"), false);
        check("The answer is no", &["yes", "true"], Some("no"), false);
        check("", &["Greta"], None, false);
        check("The answer is .", &["."], Some("."), false);
    }

    proptest::proptest! {
        #[test]
        fn any_response_is_judged_without_panic(
            response in "(\\PC|\n|answer is|```|def f\\(|[-0-9.,/%=A-C]){0,30}",
        ) {
            let accept = vec![response.clone()];
            for answer in [
                Answer::Number { value: response.clone(), expression: None },
                Answer::Choice { letter: 'B' },
                Answer::Text { accept: accept.clone() },
                Answer::Code { entry_point: "f".into(), tests: accept },
            ] {
                let _ = judge(&item(&response, answer), &response);
            }
        }
    }
}
