//! Brainstorming, selecting, responding, assembling.

use std::fs;

use anyhow::{Context, bail};
use mixse_eval::{checks::Shard, sandbox::Outcome};
use mixse_model::tokenizer::Bos;
use mixse_selfmoe::{
    brainstorm::{self, Brainstormed},
    confirm,
    domain::{AnswerKind, Domain},
    jsonl,
    plan::{Input, Task, Work},
    respond::{self, Responded, Sampled},
    select::{self, Assembly, Funnel, RejectedRow, Selection},
    shard::{Progress, ShardState},
};
use serde::{Deserialize, Serialize};

use super::{Pipeline, TaskResult, Watch, evaluate::open_sandbox, files, shards, share, value_input};

/// The tasks that were kept and what was not, between brainstorming and responding.
#[derive(Serialize, Deserialize)]
struct SelectionFile {
    tasks: Vec<select::Task>,
    rejected: Vec<RejectedRow>,
    funnel: Funnel,
}

impl Pipeline {
    pub(super) fn data_tasks<'a>(&'a self, domain: &'a Domain) -> anyhow::Result<Vec<Task<'a>>> {
        let name = domain.name();
        let generation = &self.config.generation;
        // The domain's texts, the templates and the sampling settings.
        let prompts = value_input("prompts", &self.recipe.prompt_hash(domain)?);
        let count = generation.shards;
        let mut tasks = Vec::new();
        for shard in shards(count) {
            tasks.push(Task::new(
                format!("brainstorm/{name}/{}", shard.index),
                vec![
                    self.model_input(),
                    prompts.clone(),
                    value_input("records", &share(generation.prompts, shard)),
                ],
                vec![files::brainstormed(name, shard.index)],
                move |work| self.brainstorm(domain, shard, work),
            ));
        }
        let brainstormed = (0..count).map(|k| Input::Task(format!("brainstorm/{name}/{k}")));
        tasks.push(Task::new(
            format!("select/{name}"),
            brainstormed.chain([value_input("tasks", &generation.tasks)]).collect(),
            vec![files::selection(name)],
            move |work| self.select(domain, work),
        ));
        let selected = Input::Task(format!("select/{name}"));
        for shard in shards(count) {
            tasks.push(Task::new(
                format!("respond/{name}/{}", shard.index),
                vec![
                    self.model_input(),
                    prompts.clone(),
                    selected.clone(),
                    value_input("shard", &[shard.index, count]),
                ],
                vec![files::responded(name, shard.index)],
                move |work| self.respond(domain, shard, work),
            ));
        }
        let mut needed: Vec<Input> = (0..count).map(|k| Input::Task(format!("respond/{name}/{k}"))).collect();
        if self.votes(domain) {
            for shard in shards(count) {
                tasks.push(Task::new(
                    format!("sample/{name}/{}", shard.index),
                    vec![
                        self.model_input(),
                        prompts.clone(),
                        selected.clone(),
                        value_input("shard", &[shard.index, count]),
                        value_input("sampled", &self.sampled()),
                    ],
                    vec![files::sampled(name, shard.index)],
                    move |work| self.sample(domain, shard, work),
                ));
                needed.push(Input::Task(format!("sample/{name}/{}", shard.index)));
            }
            needed.push(value_input("min_agreement", &generation.min_agreement));
        }
        if self.executes(domain) {
            needed.push(value_input("execute", &true));
        }
        needed.push(selected);
        tasks.push(Task::new(
            format!("assemble/{name}"),
            needed,
            vec![files::rows(name), files::rejected(name), files::funnel(name)],
            move |work| self.assemble(domain, work),
        ));
        Ok(tasks)
    }

    fn brainstorm(&self, domain: &Domain, shard: Shard, work: &Work<'_>) -> TaskResult {
        let name = domain.name();
        let records = share(self.config.generation.prompts, shard);
        let made = work.scratch().join("records.jsonl");
        let total = (records.end - records.start) as usize;
        let mut watch = Watch::new(work, &format!("brainstorm {name} {}", shard.index), "prompts", total);
        let mut tell = shard_progress(&mut watch);
        let runner = self.models.runner(None)?;
        let state = brainstorm::run_shard(&runner, domain, &self.recipe, records, &made, &mut tell)?;
        drop(tell);
        watch.finish()?;
        complete(state)?;
        Ok(fs::rename(made, work.output(files::brainstormed(name, shard.index))?)?)
    }

    fn select(&self, domain: &Domain, work: &Work<'_>) -> TaskResult {
        let name = domain.name();
        let mut records: Vec<Brainstormed> = Vec::new();
        for shard in 0..self.config.generation.shards {
            records.extend(jsonl::read(&work.run().join(files::brainstormed(name, shard)))?);
        }
        let tokenizer = self.models.tokenizer()?;
        let tokens = |text: &str| Ok(tokenizer.encode(text, Bos::Never)?.len());
        let selection =
            select::select(domain, &self.recipe, &records, self.config.generation.tasks, &tokens)?;
        work.record("tasks", selection.tasks.len() as f64);
        let Selection { tasks, rejected, funnel } = selection;
        let text = serde_json::to_vec(&SelectionFile { tasks, rejected, funnel })?;
        Ok(fs::write(work.output(files::selection(name))?, text)?)
    }

    fn respond(&self, domain: &Domain, shard: Shard, work: &Work<'_>) -> TaskResult {
        let name = domain.name();
        let tasks = read_selection(domain, work)?.tasks;
        let tasks = shard.of(&tasks);
        let made = work.scratch().join("responses.jsonl");
        let mut watch = Watch::new(work, &format!("respond {name} {}", shard.index), "tasks", tasks.len());
        let mut tell = shard_progress(&mut watch);
        let runner = self.models.runner(None)?;
        let state = respond::run_shard(&runner, domain, &self.recipe, tasks, &made, &mut tell)?;
        drop(tell);
        watch.finish()?;
        complete(state)?;
        Ok(fs::rename(made, work.output(files::responded(name, shard.index))?)?)
    }

    /// A vote is taken on this domain's answers.
    fn votes(&self, domain: &Domain) -> bool {
        self.config.generation.verify.votes() && domain.manifest.answer != AnswerKind::Code
    }

    /// This domain's responses are run.
    fn executes(&self, domain: &Domain) -> bool {
        self.config.generation.verify.executes() && domain.manifest.answer == AnswerKind::Code
    }

    fn sampled(&self) -> Sampled {
        let generation = &self.config.generation;
        Sampled {
            samples: generation.samples,
            temperature: generation.sample_temperature as f32,
            top_p: generation.top_p as f32,
        }
    }

    fn sample(&self, domain: &Domain, shard: Shard, work: &Work<'_>) -> TaskResult {
        let name = domain.name();
        let tasks = read_selection(domain, work)?.tasks;
        let tasks = shard.of(&tasks);
        let made = work.scratch().join("samples.jsonl");
        let sampled = self.sampled();
        let label = format!("sample {name} {}", shard.index);
        let mut watch = Watch::new(work, &label, "responses", tasks.len() * sampled.samples);
        let mut tell = shard_progress(&mut watch);
        let runner = self.models.runner(None)?;
        let state = respond::sample_shard(&runner, domain, &self.recipe, tasks, sampled, &made, &mut tell)?;
        drop(tell);
        watch.finish()?;
        complete(state)?;
        Ok(fs::rename(made, work.output(files::sampled(name, shard.index))?)?)
    }

    /// Keeps what the configuration's checks confirm.
    fn confirm(&self, domain: &Domain, assembly: Assembly, work: &Work<'_>) -> anyhow::Result<Assembly> {
        let name = domain.name();
        if self.votes(domain) {
            let mut samples: Vec<Responded> = Vec::new();
            for shard in 0..self.config.generation.shards {
                samples.extend(jsonl::read(&work.run().join(files::sampled(name, shard)))?);
            }
            let generation = &self.config.generation;
            let agreement = generation.min_agreement;
            return Ok(confirm::by_majority(domain, assembly, &samples, generation.samples, agreement)?);
        }
        if self.executes(domain) {
            let sandbox = open_sandbox().context("generation.verify asks to run code")?;
            return confirm::by_execution(assembly, |programs| {
                let mut failures = vec![None; programs.len()];
                sandbox.run_all(programs, |index, outcome| {
                    failures[index] = (outcome != Outcome::Passed).then(|| outcome.describe());
                })?;
                Ok(failures)
            });
        }
        Ok(assembly)
    }

    fn assemble(&self, domain: &Domain, work: &Work<'_>) -> TaskResult {
        let name = domain.name();
        let SelectionFile { tasks, rejected, funnel } = read_selection(domain, work)?;
        let mut responses: Vec<Responded> = Vec::new();
        for shard in 0..self.config.generation.shards {
            responses.extend(jsonl::read(&work.run().join(files::responded(name, shard)))?);
        }
        let selection = Selection { tasks, rejected, funnel };
        let assembly = select::assemble(domain, &self.recipe, self.models.hash()?, selection, &responses)?;
        let assembly = self.confirm(domain, assembly, work)?;
        work.record("rows", assembly.rows.len() as f64);
        jsonl::write_atomic(&work.output(files::rows(name))?, &assembly.rows)?;
        jsonl::write_atomic(&work.output(files::rejected(name))?, &assembly.rejected)?;
        Ok(fs::write(work.output(files::funnel(name))?, serde_json::to_vec_pretty(&assembly.funnel)?)?)
    }
}

fn read_selection(domain: &Domain, work: &Work<'_>) -> anyhow::Result<SelectionFile> {
    let path = work.run().join(files::selection(domain.name()));
    let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))
}

/// A shard's progress for a watch; the shard tells its tokens since the start of this attempt.
fn shard_progress<'w, 'a>(
    watch: &'w mut Watch<'a>,
) -> impl FnMut(Progress) -> std::ops::ControlFlow<()> + use<'w, 'a> {
    let mut before = 0;
    move |progress| {
        let tokens = (progress.tokens - before) as u64;
        before = progress.tokens;
        watch.at(progress.done, tokens)
    }
}

fn complete(state: ShardState) -> anyhow::Result<()> {
    match state {
        ShardState::Complete => Ok(()),
        ShardState::Stopped => bail!("the shard was stopped"),
    }
}
