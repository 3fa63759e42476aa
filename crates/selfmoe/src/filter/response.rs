//! The filter of responses: finished, in the domain's form, and the model's own.

use std::collections::HashMap;

use super::{Reason, Rejection, Rules, check_common};
use crate::{
    answer::{
        choice::{self, Choice},
        code, number, python,
        text::{normalise, stated},
    },
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
        let wants_code = self.rules.function_in_response;
        let code = if wants_code { code::extract_any(text, instruction, input) } else { None };
        let output = code.as_deref().unwrap_or(text).trim_matches('\n').trim_end();
        let words = self.limits.min_response_words..=self.limits.max_response_words;
        check_common(output, words, self.limits.max_repetition)?;
        self.check_copied(output, demonstrations)?;
        if self.rules.true_equations
            && let Some(equation) = verify::false_equation(output)
        {
            return Err(Rejection::new(Reason::FalseEquation, equation));
        }
        if wants_code {
            check_function(instruction, input, output, code.is_some())?;
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
        let stated = stated(output);
        if self.rules.stated_answer && stated.is_none() {
            return Err(Rejection::new(Reason::NoAnswer, "nothing like \"The answer is …\""));
        }
        let options = choice::options(input);
        if self.rules.option_in_response && options.len() > 1 {
            return check_option(&options, output).map(Some);
        }
        if self.rules.number_in_response {
            // Where an answer is stated, no other number is taken for it.
            let found = if stated.is_some() { number::announced(output) } else { number::extract(output) };
            let found = found.ok_or_else(|| Rejection::new(Reason::NoNumber, ""))?;
            return Ok(Some(number::plain(found).unwrap_or_else(|| found.to_owned())));
        }
        Ok(stated.map(str::to_owned))
    }
}

fn check_option(options: &[Choice<'_>], output: &str) -> Result<String, Rejection> {
    let wrong = |what: String| Rejection::new(Reason::WrongOption, what);
    let letter = choice::letter(output, options).ok_or_else(|| wrong("no letter of an option".into()))?;
    let option = options.iter().find(|(option, _)| *option == letter).map_or("", |(_, text)| text);
    match choice::quoted(output) {
        Some(text) if normalise(text) != normalise(option) => {
            Err(wrong(format!("option {letter} is \"{option}\", not \"{text}\"")))
        }
        _ => Ok(letter.to_string()),
    }
}

/// `output` is the code that was found in the response or, if none was `found`, the response.
fn check_function(instruction: &str, input: &str, output: &str, found: bool) -> Result<(), Rejection> {
    let defined = code::functions(output);
    if defined.is_empty() {
        return Err(Rejection::new(Reason::NoFunction, ""));
    }
    let asked = code::asked_for(instruction, input, &defined).is_some();
    // A task names its function by a first line in the input, or somewhere in its words; a word with an underscore may be
    // a name.
    let free = code::functions(input).is_empty() && !instruction.contains('_');
    if !found || !(asked || free) {
        return Err(Rejection::new(Reason::WrongFunction, format!("defines {}", defined.join(", "))));
    }
    match python::fault(output) {
        Some(fault) => Err(Rejection::new(Reason::InvalidCode, fault)),
        None => Ok(()),
    }
}
