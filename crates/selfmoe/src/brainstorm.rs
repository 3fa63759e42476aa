//! The base model writes new tasks: it sees the domain's requirements and a few random seeds and continues the list.

use std::{
    ops::{ControlFlow, Range},
    path::Path,
};

use mixse_model::{
    language::{Completion, Controls, LanguageModel, Request, Sampling},
    random::Stream,
    tokenizer::MarkedText,
};
use serde::{Deserialize, Serialize};

use crate::{
    domain::Domain,
    error::Result,
    prompt::PromptBuilder,
    recipe::Recipe,
    shard::{self, End, Progress, ShardRow, ShardState},
};

/// Tokens that a task takes beside its text: heading, labels, line breaks.
const TASK_OVERHEAD: usize = 16;

/// One brainstorm record as the model wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Brainstormed {
    /// The record's number within the domain.
    pub record: u64,
    /// The ids of the seeds that were shown, in order.
    pub seeds: Vec<String>,
    /// What the model wrote.
    pub text: String,
    /// Why it ended.
    pub end: End,
}

impl ShardRow for Brainstormed {
    fn key(&self) -> String {
        self.record.to_string()
    }
}

/// Makes the records `records` of a domain and writes them to `path`.
///
/// # Errors
/// The prompt does not fit the model's context, the model fails, or the file cannot be written or is another shard's.
pub fn run_shard(
    model: &dyn LanguageModel,
    domain: &Domain,
    recipe: &Recipe,
    records: Range<u64>,
    path: &Path,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<ShardState> {
    let prompter = Prompter::new(model, domain, recipe)?;
    let asked = records
        .map(|record| {
            let (seeds, request) = prompter.request(record)?;
            Ok((record.to_string(), (record, seeds), request))
        })
        .collect::<Result<Vec<_>>>()?;
    let row = |(record, seeds): &(u64, Vec<String>), completion: &Completion| Brainstormed {
        record: *record,
        seeds: seeds.clone(),
        text: completion.text.clone(),
        end: End::from(&completion.finish),
    };
    shard::run(model, path, asked, row, progress)
}

struct Prompter<'a> {
    domain: &'a Domain,
    recipe: &'a Recipe,
    prompts: PromptBuilder<'a>,
}

impl<'a> Prompter<'a> {
    fn new(model: &'a dyn LanguageModel, domain: &'a Domain, recipe: &'a Recipe) -> Result<Self> {
        let front = recipe.brainstorm.front(&domain.manifest.requirements);
        Ok(Self { domain, recipe, prompts: PromptBuilder::new(model, &front)? })
    }

    /// The request of a record and the ids of the seeds it shows.
    fn request(&self, record: u64) -> Result<(Vec<String>, Request)> {
        let limits = &self.domain.manifest.limits;
        let settings = &self.recipe.settings;
        let max_new_tokens = limits.instructions_per_record * (limits.max_instruction_tokens + TASK_OVERHEAD);
        let mut drawn = Stream::new(settings.seed, &format!("brainstorm/{}", self.domain.name()), record);
        let shown = drawn.choose(self.domain.seeds.len(), settings.shown_seeds);
        let sampling = Sampling::TopP {
            temperature: settings.temperature,
            top_p: settings.top_p,
            stream: drawn.next_u64(),
        };
        let fitted = self.prompts.fit(shown, 1, max_new_tokens, |shown| self.rest(shown))?;
        let Some((shown, prompt)) = fitted else {
            let key = format!("domain {}: max_instruction_tokens", self.domain.name());
            return Err(self.prompts.too_long(key, "the requirements, one seed", max_new_tokens));
        };
        let seeds = shown.iter().map(|&i| self.domain.seeds[i].id.clone()).collect();
        let stop = self.stop(shown.len() + limits.instructions_per_record + 1);
        let (prefix, controls) = (self.prompts.prefix(), Controls::default());
        Ok((seeds, Request { prefix, prompt, max_new_tokens, sampling, stop, controls }))
    }

    /// The prompt after the shared front: the shown seeds and the cue for the next task.
    fn rest(&self, shown: &[usize]) -> MarkedText {
        let template = &self.recipe.brainstorm;
        let mut text = MarkedText::default();
        for (number, &seed) in (1..).zip(shown) {
            let seed = &self.domain.seeds[seed];
            text.push(&template.task(number, &seed.instruction, &seed.input));
        }
        text.push_template(&template.cue(shown.len() + 1));
        text
    }

    /// Where a record ends: at the heading of the first task too many, or where the model starts to answer.
    fn stop(&self, beyond: usize) -> Vec<String> {
        let template = &self.recipe.brainstorm;
        let mut stop = vec![format!("\n{}", template.heading(beyond))];
        stop.extend(template.stop.iter().cloned());
        stop
    }
}
