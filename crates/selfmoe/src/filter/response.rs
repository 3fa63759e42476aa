//! The filter of responses: finished, in the domain's form, and the model's own.

use std::collections::HashMap;

use super::{Reason, Rejection, Rules, check_common, stated_answer};
use crate::{
    answer,
    domain::{Domain, Limits},
    rouge,
    shard::End,
    verify,
};

/// A response that was kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcceptedResponse {
    /// The text as it goes into the row.
    pub output: String,
    /// The final answer, where the domain has such answers.
    pub answer: Option<String>,
}

/// Judges responses, each by itself.
#[derive(Debug)]
pub struct ResponseFilter {
    rules: Rules,
    limits: Limits,
    /// The words of each seed's output, by the seed's id.
    outputs: HashMap<String, Vec<String>>,
}

/// Copying fewer words of a demonstration's output proves nothing: "The answer is B." is common.
const MIN_COPIED_WORDS: usize = 8;

impl ResponseFilter {
    /// A filter for the domain.
    pub fn new(domain: &Domain) -> Self {
        let outputs =
            domain.seeds.iter().map(|s| (s.id.clone(), rouge::words(&s.output).collect())).collect();
        Self { rules: Rules::of(domain), limits: domain.manifest.limits, outputs }
    }

    /// Judges the response `text` to a task.
    ///
    /// # Errors
    /// Why it is rejected.
    pub fn accept(
        &self,
        instruction: &str,
        input: &str,
        demonstrations: &[String],
        text: &str,
        end: End,
    ) -> Result<AcceptedResponse, Rejection> {
        if end == End::Length {
            return Err(Rejection::new(
                Reason::Unfinished,
                format!("{} tokens", self.limits.max_response_tokens),
            ));
        }
        let output = if self.rules.function_in_response { answer::code(text) } else { text };
        let output = output.trim_matches('\n').trim_end();
        let words = self.limits.min_response_words..=self.limits.max_response_words;
        check_common(output, words, self.limits.max_repetition)?;
        self.check_copied(output, demonstrations)?;
        if self.rules.true_equations
            && let Some(equation) = verify::false_equation(output)
        {
            return Err(Rejection::new(Reason::FalseEquation, equation));
        }
        if self.rules.function_in_response {
            check_function(instruction, input, output)?;
            return Ok(AcceptedResponse { output: output.to_owned(), answer: None });
        }
        let output = output.trim_start();
        let answer = self.check_answer(input, output)?;
        Ok(AcceptedResponse { output: output.to_owned(), answer })
    }

    fn check_copied(&self, output: &str, demonstrations: &[String]) -> Result<(), Rejection> {
        let words: Vec<String> = rouge::words(output).collect();
        if words.len() < MIN_COPIED_WORDS {
            return Ok(());
        }
        match demonstrations.iter().find(|id| self.outputs.get(*id) == Some(&words)) {
            Some(id) => Err(Rejection::new(Reason::CopiedDemonstration, format!("the output of {id}"))),
            None => Ok(()),
        }
    }

    fn check_answer(&self, input: &str, output: &str) -> Result<Option<String>, Rejection> {
        let stated = stated_answer(output);
        if self.rules.stated_answer && stated.is_none() {
            return Err(Rejection::new(Reason::NoAnswer, format!("no \"{}\"", super::ANSWER_MARK)));
        }
        let options = answer::options(input);
        if self.rules.option_in_response && options.len() > 1 {
            return check_option(&options, output).map(Some);
        }
        if self.rules.number_in_response {
            let number = answer::number(stated.unwrap_or(output));
            return number.map(Some).ok_or_else(|| Rejection::new(Reason::NoNumber, ""));
        }
        Ok(stated.map(str::to_owned))
    }
}

fn check_option(options: &[answer::Choice], output: &str) -> Result<String, Rejection> {
    let wrong = |what: String| Rejection::new(Reason::WrongOption, what);
    let letter = answer::letter(output).ok_or_else(|| wrong("no letter".into()))?;
    let option =
        options.iter().find(|o| o.letter == letter).ok_or_else(|| wrong(format!("no option {letter}")))?;
    let words = |text: &str| rouge::words(text).collect::<Vec<_>>();
    match answer::letter_text(output) {
        Some(text) if words(text) != words(&option.text) => {
            Err(wrong(format!("option {letter} is \"{}\", not \"{text}\"", option.text)))
        }
        _ => Ok(letter.to_string()),
    }
}

fn check_function(instruction: &str, input: &str, output: &str) -> Result<(), Rejection> {
    let defined = answer::functions(output);
    if defined.is_empty() {
        return Err(Rejection::new(Reason::NoFunction, ""));
    }
    if let Some(fault) = answer::python_fault(output) {
        return Err(Rejection::new(Reason::InvalidCode, fault));
    }
    let asked = answer::functions(input);
    let in_text = |name: &String| {
        instruction.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|word| word == name)
    };
    // A task names its function by a first line in the input, or somewhere in its words.
    let right = match asked.last() {
        Some(name) => defined.contains(name),
        None => defined.iter().any(in_text) || !instruction.contains('_'),
    };
    if right {
        Ok(())
    } else {
        Err(Rejection::new(Reason::WrongFunction, format!("defines {}", defined.join(", "))))
    }
}
