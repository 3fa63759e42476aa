//! What else the base model is asked about tasks and responses: tests of a task's function, and the task that belongs to a
//! response. Both show seeds as examples and continue greedily.

use std::{ops::ControlFlow, path::Path};

use mixse_model::{
    language::{Completion, Controls, LanguageModel, Request, Sampling},
    random::Stream,
    tokenizer::MarkedText,
};
use serde::{Deserialize, Serialize};

use crate::{
    answer,
    domain::Domain,
    error::Result,
    prompt::PromptBuilder,
    recipe::Recipe,
    record::{Answer, Example},
    respond::Responded,
    select::Task,
    shard::{self, End, Progress, ShardRow, ShardState},
    template::FollowUpTemplate,
};

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FollowUp {
    /// Tests of the function that a task describes.
    Tests,
    /// The task that a response answers.
    RoundTrip,
}

/// What the model wrote about a task or its response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// The task's id.
    pub id: String,
    /// What the model wrote.
    pub text: String,
    /// Why it ended.
    pub end: End,
}

impl ShardRow for Written {
    fn key(&self) -> String {
        self.id.clone()
    }
}

/// Asks about `tasks` and writes what comes to `path`. `responses` holds the tasks' responses, in the same order; they are
/// looked at for [`FollowUp::RoundTrip`] alone.
///
/// # Errors
/// A prompt does not fit the model's context, the model fails, or the file cannot be written or is another shard's.
pub fn run_shard(
    model: &dyn LanguageModel,
    domain: &Domain,
    recipe: &Recipe,
    what: FollowUp,
    asked: (&[Task], &[Responded]),
    path: &Path,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<ShardState> {
    let prompter = Prompter::new(model, domain, recipe, what)?;
    let (tasks, responses) = asked;
    let subjects: Vec<(&str, String)> = match what {
        FollowUp::Tests => {
            tasks.iter().map(|t| (t.id.as_str(), task_text(&t.instruction, &t.input))).collect()
        }
        FollowUp::RoundTrip => responses.iter().map(|r| (r.id.as_str(), r.text.clone())).collect(),
    };
    let requests = subjects
        .into_iter()
        .map(|(id, subject)| {
            let begun = prompter.begun(&subject);
            let request = prompter.request(id, &subject, &begun)?;
            Ok((id.to_owned(), (id.to_owned(), begun), request))
        })
        .collect::<Result<Vec<_>>>()?;
    let row = |(id, begun): &(String, String), completion: &Completion| Written {
        id: id.clone(),
        text: format!("{begun}{}", completion.text),
        end: End::from(&completion.finish),
    };
    shard::run(model, path, requests, row, progress)
}

/// What is asked and, on the lines after it, what it is asked about.
pub(crate) fn task_text(instruction: &str, input: &str) -> String {
    let (instruction, input) = (instruction.trim(), input.trim_end());
    if input.is_empty() { instruction.to_owned() } else { format!("{instruction}\n{input}") }
}

/// The function that a task names: in its last `def` line, or as the first name directly before a parenthesis.
fn named_function(task: &str) -> Option<String> {
    if let Some(name) = answer::code::functions(task).pop() {
        return Some(name);
    }
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    task.match_indices('(').find_map(|(at, _)| {
        let before = &task[..at];
        let name = &before[before.trim_end_matches(is_name).len()..];
        name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_').then(|| name.to_owned())
    })
}

struct Prompter<'a> {
    domain: &'a Domain,
    recipe: &'a Recipe,
    what: FollowUp,
    template: &'a FollowUpTemplate,
    /// Seeds that can be shown.
    examples: Vec<&'a Example>,
    prompts: PromptBuilder<'a>,
}

impl<'a> Prompter<'a> {
    fn new(
        model: &'a dyn LanguageModel,
        domain: &'a Domain,
        recipe: &'a Recipe,
        what: FollowUp,
    ) -> Result<Self> {
        let template = match what {
            FollowUp::Tests => &recipe.tests,
            FollowUp::RoundTrip => &recipe.round_trip,
        };
        let shown =
            |seed: &&Example| what == FollowUp::RoundTrip || matches!(seed.answer, Some(Answer::Code { .. }));
        let examples = domain.seeds.iter().filter(shown).collect();
        Ok(Self {
            domain,
            recipe,
            what,
            template,
            examples,
            prompts: PromptBuilder::new(model, &template.front())?,
        })
    }

    /// What is written for the model: the beginning of the first test of the function that the task names.
    fn begun(&self, subject: &str) -> String {
        match self.what {
            FollowUp::Tests => {
                named_function(subject).map_or_else(|| "assert ".to_owned(), |name| format!("assert {name}("))
            }
            FollowUp::RoundTrip => String::new(),
        }
    }

    fn request(&self, id: &str, subject: &str, begun: &str) -> Result<Request> {
        let (settings, limits) = (&self.recipe.settings, &self.domain.manifest.limits);
        let max_new_tokens = match self.what {
            FollowUp::Tests => limits.max_response_tokens,
            FollowUp::RoundTrip => limits.max_instruction_tokens,
        };
        let name = match self.what {
            FollowUp::Tests => "tests",
            FollowUp::RoundTrip => "round trip",
        };
        let mut drawn = Stream::new(settings.seed, &format!("{name}/{id}"), 0);
        let shown = drawn.choose(self.examples.len(), settings.demonstrations);
        let fitted = self.prompts.fit(shown, 0, max_new_tokens, |shown| self.rest(shown, subject, begun))?;
        let Some((_, prompt)) = fitted else {
            let key = format!("domain {}: max_response_tokens", self.domain.name());
            return Err(self.prompts.too_long(key, &format!("task {id}"), max_new_tokens));
        };
        Ok(Request {
            prefix: self.prompts.prefix(),
            prompt,
            max_new_tokens,
            sampling: Sampling::Greedy,
            stop: self.template.stop.clone(),
            controls: Controls::default(),
        })
    }

    /// The prompt after the shared front: examples, the item asked about and how its answer begins.
    fn rest(&self, shown: &[usize], subject: &str, begun: &str) -> MarkedText {
        let mut text = MarkedText::default();
        for &example in shown {
            let seed = self.examples[example];
            let task = task_text(&seed.instruction, &seed.input);
            let (asked, written) = match (self.what, &seed.answer) {
                (FollowUp::Tests, Some(Answer::Code { tests, .. })) => (task, tests.join("\n")),
                _ => (seed.output.trim_end().to_owned(), task),
            };
            text.push(&self.template.item(&asked));
            text.push_content(&written);
            text.push_template("\n\n");
        }
        text.push(&self.template.item(subject));
        text.push_content(begun);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_name_their_function() {
        let check = |task: &str, expected: Option<&str>| {
            assert_eq!(named_function(task).as_deref(), expected, "{task}")
        };
        check("Write a Python function total(numbers) that adds (all of) them.", Some("total"));
        check("Count (all) letters with count_letters(text).", Some("count_letters"));
        check("Add two numbers.\ndef add(a, b):", Some("add"));
        check("Say (in words) what it does", None);
        check("Größe(n)", None);
    }
}
