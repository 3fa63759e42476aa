//! The base model answers its own tasks: it sees random seeds with their outputs as demonstrations and continues
//! greedily.

use std::{ops::ControlFlow, path::Path};

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
    select::Task,
    shard::{self, End, Progress, ShardRow, ShardState},
};

/// A task's response as the model wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Responded {
    /// The task's id.
    pub id: String,
    /// The ids of the demonstrations, in order.
    pub demonstrations: Vec<String>,
    /// What the model wrote.
    pub text: String,
    /// Why it ended.
    pub end: End,
}

impl ShardRow for Responded {
    fn key(&self) -> String {
        self.id.clone()
    }
}

/// Answers `tasks` and writes the responses to `path`.
///
/// # Errors
/// A prompt does not fit the model's context, the model fails, or the file cannot be written or is another shard's.
pub fn run_shard(
    model: &dyn LanguageModel,
    domain: &Domain,
    recipe: &Recipe,
    tasks: &[Task],
    path: &Path,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<ShardState> {
    let prompter = Prompter::new(model, domain, recipe)?;
    let asked = tasks
        .iter()
        .map(|task| {
            let (demonstrations, request) = prompter.request(task)?;
            Ok((task.id.clone(), (task.id.clone(), demonstrations), request))
        })
        .collect::<Result<Vec<_>>>()?;
    shard::run(model, path, asked, responded, progress)
}

/// More responses to the same prompt, for votes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sampled {
    /// Responses a task.
    pub samples: usize,
    /// Divisor of the logits.
    pub temperature: f32,
    /// Nucleus probability.
    pub top_p: f32,
}

/// Answers each of `tasks` several times at random and writes the responses to `path`; sample K of a task is called `ID#K`.
///
/// # Errors
/// As [`run_shard`].
pub fn sample_shard(
    model: &dyn LanguageModel,
    domain: &Domain,
    recipe: &Recipe,
    tasks: &[Task],
    sampled: Sampled,
    path: &Path,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<ShardState> {
    let prompter = Prompter::new(model, domain, recipe)?;
    let mut asked = Vec::with_capacity(tasks.len() * sampled.samples);
    for task in tasks {
        let (demonstrations, request) = prompter.request(task)?;
        for sample in 0..sampled.samples {
            let stream =
                Stream::new(recipe.settings.seed, &format!("sample/{}", task.id), sample as u64).next_u64();
            let Sampled { temperature, top_p, .. } = sampled;
            let sampling = Sampling::TopP { temperature, top_p, stream };
            let id = sample_id(&task.id, sample);
            asked.push((id.clone(), (id, demonstrations.clone()), Request { sampling, ..request.clone() }));
        }
    }
    shard::run(model, path, asked, responded, progress)
}

/// What sample `sample` of a task is called.
pub fn sample_id(task: &str, sample: usize) -> String {
    format!("{task}#{sample}")
}

fn responded((id, demonstrations): &(String, Vec<String>), completion: &Completion) -> Responded {
    Responded {
        id: id.clone(),
        demonstrations: demonstrations.clone(),
        text: completion.text.clone(),
        end: End::from(&completion.finish),
    }
}

struct Prompter<'a> {
    domain: &'a Domain,
    recipe: &'a Recipe,
    prompts: PromptBuilder<'a>,
}

impl<'a> Prompter<'a> {
    fn new(model: &'a dyn LanguageModel, domain: &'a Domain, recipe: &'a Recipe) -> Result<Self> {
        let front = recipe.respond.front(&domain.manifest.role);
        Ok(Self { domain, recipe, prompts: PromptBuilder::new(model, &front)? })
    }

    /// The request of a task and the ids of its demonstrations.
    fn request(&self, task: &Task) -> Result<(Vec<String>, Request)> {
        let settings = &self.recipe.settings;
        let max_new_tokens = self.domain.manifest.limits.max_response_tokens;
        let mut drawn = Stream::new(settings.seed, &format!("respond/{}", task.id), 0);
        let shown = drawn.choose(self.domain.seeds.len(), settings.demonstrations);
        let fitted = self.prompts.fit(shown, 0, max_new_tokens, |shown| self.rest(shown, task))?;
        let Some((shown, prompt)) = fitted else {
            let key = format!("domain {}: max_response_tokens", self.domain.name());
            return Err(self.prompts.too_long(key, &format!("the role, task {}", task.id), max_new_tokens));
        };
        let demonstrations = shown.iter().map(|&i| self.domain.seeds[i].id.clone()).collect();
        let request = Request {
            prefix: self.prompts.prefix(),
            prompt,
            max_new_tokens,
            sampling: Sampling::Greedy,
            stop: self.recipe.respond.stop.clone(),
            controls: Controls::default(),
        };
        Ok((demonstrations, request))
    }

    /// The prompt after the shared front: demonstrations and the task.
    fn rest(&self, shown: &[usize], task: &Task) -> MarkedText {
        let template = &self.recipe.respond;
        let mut text = MarkedText::default();
        for &seed in shown {
            let seed = &self.domain.seeds[seed];
            text.push(&template.demonstration(&seed.instruction, &seed.input, &seed.output));
        }
        text.push(&template.task(&task.instruction, &task.input));
        text
    }
}
