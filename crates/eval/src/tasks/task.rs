//! What a task is, and the prompts it makes.

use mixse_model::tokenizer::{MarkedText, Message, Tokenizer};
use serde_json::Value;

use super::{
    filter::Filter,
    metric::{ChoiceMetrics, ExactMatch},
    python_random::PythonRandom,
};
use crate::{Error, Result};

/// A benchmark, or one subject of a benchmark, with its rows.
#[derive(Debug, Clone)]
pub struct Task {
    /// The harness's name, such as `mmlu_anatomy`.
    pub name: String,
    /// Name shown inside a group, such as `anatomy`.
    pub alias: String,
    /// Version of the harness's definition that it agrees with.
    pub version: f64,
    /// Groups it belongs to, the outermost first.
    pub groups: Vec<&'static str>,
    /// Stands before everything.
    pub description: String,
    /// Between question and answer of a worked example, and before a choice.
    pub target_delimiter: String,
    /// Behind each worked example.
    pub fewshot_delimiter: String,
    /// Worked examples to choose from.
    pub shots: Vec<Shot>,
    /// How they are chosen.
    pub sampler: Sampler,
    /// How many, unless the user says otherwise.
    pub default_shots: usize,
    /// The rows.
    pub items: Vec<Item>,
    /// What is asked of the model.
    pub kind: Kind,
}

/// A worked example.
#[derive(Debug, Clone, PartialEq)]
pub struct Shot {
    /// What is asked.
    pub question: String,
    /// The answer.
    pub answer: String,
}

/// How worked examples are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sampler {
    /// The first ones, in order.
    First,
    /// Drawn anew for every row, by Python's generator from the seed. One more is drawn and the row itself dropped, as the harness does
    /// for tasks without a test split, if there are enough.
    Random,
}

/// A row.
#[derive(Debug, Clone)]
pub struct Item {
    /// The row as it stands in the file.
    pub row: Value,
    /// What is asked.
    pub question: String,
    /// The choices; empty where text is generated.
    pub choices: Vec<String>,
    /// The right answer.
    pub gold: Gold,
}

/// The right answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Gold {
    /// The index of the right choice.
    Index(usize),
    /// For each choice, whether it is true.
    Labels(Vec<bool>),
    /// The right text.
    Text(String),
    /// Any of these.
    AnyOf(Vec<String>),
    /// Python code that fails if the answer is wrong.
    Tests(String),
}

/// What is asked of the model.
#[derive(Debug, Clone)]
pub enum Kind {
    /// The probabilities of the choices.
    Choice(ChoiceMetrics),
    /// Text.
    Generate(Generate),
}

/// How text is generated and judged.
#[derive(Debug, Clone)]
pub struct Generate {
    /// Generation ends at these.
    pub until: Vec<String>,
    /// At most so many tokens.
    pub max_tokens: usize,
    /// Ways from the response to the answer; each gives a result of its own.
    pub filters: Vec<Filter>,
    /// How the answer is judged.
    pub judge: Judge,
}

/// How an answer is judged.
#[derive(Debug, Clone)]
pub enum Judge {
    /// Comparison of texts.
    ExactMatch(ExactMatch),
    /// Final answers of mathematics in LaTeX; see [`super::math`].
    Math,
    /// Code that is run with its tests; the measure's name.
    Code(CodeMetric),
}

/// The harness's names for the same measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodeMetric {
    /// `pass@1` (and `pass@k`).
    PassAtK,
    /// `pass_at_1`.
    PassAt1,
}

/// How a conversation is made of a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chat {
    /// Worked examples are turns of the conversation; otherwise they are part of one message.
    pub fewshot_as_turns: bool,
    /// Stands before the task's description.
    pub system: Option<String>,
}

/// The number of worked examples and their draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fewshot {
    /// How many.
    pub count: usize,
    /// Seed of the draw (the harness's default is 1234).
    pub seed: u64,
}

impl Task {
    /// The prompts of the items with these indices, in this order, which matters for drawn examples.
    ///
    /// # Errors
    /// There are not enough worked examples, or the chat template refuses the conversation.
    pub fn prompts(
        &self,
        indices: &[usize],
        fewshot: Fewshot,
        chat: Option<(&Chat, &Tokenizer)>,
    ) -> Result<Vec<MarkedText>> {
        if fewshot.count > self.shots.len() {
            return Err(Error::Invalid(format!(
                "{}: {} worked examples are asked for, {} are there",
                self.name,
                fewshot.count,
                self.shots.len()
            )));
        }
        let mut random = PythonRandom::new(fewshot.seed);
        let prompt = |&i: &usize| {
            let item = &self.items[i];
            let shots = self.draw(item, fewshot.count, &mut random);
            match chat {
                None => Ok(MarkedText::content(self.plain(item, &shots))),
                Some((chat, tokenizer)) => self.conversation(item, &shots, chat, tokenizer),
            }
        };
        indices.iter().map(prompt).collect()
    }

    fn draw(&self, item: &Item, count: usize, random: &mut PythonRandom) -> Vec<&Shot> {
        match self.sampler {
            _ if count == 0 => Vec::new(),
            Sampler::First => self.shots.iter().take(count).collect(),
            Sampler::Random if self.shots.len() > count => {
                let drawn = random.sample(self.shots.len(), count + 1);
                let shots = drawn.into_iter().map(|i| &self.shots[i]);
                shots.filter(|s| s.question != item.question).take(count).collect()
            }
            Sampler::Random => {
                random.sample(self.shots.len(), count).into_iter().map(|i| &self.shots[i]).collect()
            }
        }
    }

    fn plain(&self, item: &Item, shots: &[&Shot]) -> String {
        format!("{}{}{}", self.description, self.examples(shots), item.question)
    }

    fn examples(&self, shots: &[&Shot]) -> String {
        let example = |s: &&Shot| {
            format!("{}{}{}{}", s.question, self.target_delimiter, s.answer, self.fewshot_delimiter)
        };
        shots.iter().map(example).collect()
    }

    fn conversation(
        &self,
        item: &Item,
        shots: &[&Shot],
        chat: &Chat,
        tokenizer: &Tokenizer,
    ) -> Result<MarkedText> {
        let message = |role: &str, content: &str| Message { role: role.into(), content: content.into() };
        let mut messages = Vec::new();
        if chat.fewshot_as_turns {
            for shot in shots {
                messages.push(message("user", &shot.question));
                messages.push(message("assistant", &shot.answer));
            }
            messages.push(message("user", &item.question));
        } else {
            messages.push(message("user", &(self.examples(shots) + &item.question)));
        }
        let system = self.system(chat.system.as_deref().unwrap_or_default());
        if system.is_empty() {
            return Ok(tokenizer.chat(&messages, true)?);
        }
        let with_system: Vec<Message> =
            std::iter::once(message("system", &system)).chain(messages.iter().cloned()).collect();
        // A template that knows no system role gets the rest without it.
        tokenizer.chat(&with_system, true).or_else(|_| Ok(tokenizer.chat(&messages, true)?))
    }

    /// The user's instruction and the description, kept apart.
    fn system(&self, instruction: &str) -> String {
        let apart = !instruction.is_empty()
            && !self.description.is_empty()
            && !instruction.ends_with(super::text::is_space)
            && !self.description.starts_with(super::text::is_space);
        let between = if apart { &self.fewshot_delimiter } else { "" };
        format!("{instruction}{between}{}", self.description)
    }

    /// What stands before a choice: nothing in a conversation, where the answer starts a turn.
    pub(super) fn choice_delimiter(&self, chat: bool) -> &str {
        if chat { "" } else { &self.target_delimiter }
    }
}
