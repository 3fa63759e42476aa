//! Brainstorming, selecting, responding, assembling.
//!
//! With `generation.iterations` above 1 the last three come in rounds: in the first the base responds; in each later one a domain's
//! expert of the round before responds to the same tasks (as in ReST-EM, Singh et al. 2024). The last round's rows are the run's.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use mixse_eval::{
    checks::Shard,
    sandbox::{Outcome, Program, Sandbox},
};
use mixse_model::{mixture::Mixture, tokenizer::Bos};
use mixse_selfmoe::{
    brainstorm::{self, Brainstormed},
    confirm,
    domain::{AnswerKind, Domain},
    execute,
    follow_up::{self, FollowUp, Written},
    jsonl,
    plan::{Input, Task, Work},
    respond::{self, Responded, Sampled},
    select::{self, Assembly, Funnel, RejectedRow, Selection},
    shard::{Progress, ShardState},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    Pipeline, TaskResult, Watch, evaluate::open_sandbox, files, read_json, shards, share, value_input,
    write_json, write_pretty,
};
use crate::config::Verify;

/// The tasks that were kept and what was not, between brainstorming and responding.
#[derive(Serialize, Deserialize)]
struct SelectionFile {
    tasks: Vec<select::Task>,
    rejected: Vec<RejectedRow>,
    funnel: Funnel,
}

/// One round of responses to a domain's tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Round {
    /// From 1.
    number: usize,
    /// Its rows are the run's.
    last: bool,
}

impl Round {
    /// What a task of the round is called.
    fn task(self, id: String) -> String {
        if self.last { id } else { format!("round{}/{id}", self.number) }
    }

    /// What the round's files lie below: the run directory itself for the last one.
    pub(super) fn root(self) -> PathBuf {
        if self.last { files::main() } else { files::round(self.number) }
    }

    /// The round whose experts write this one.
    fn before(self) -> Option<Self> {
        (self.number > 1).then(|| Self { number: self.number - 1, last: false })
    }

    fn assemble(self, domain: &str) -> String {
        self.task(format!("assemble/{domain}"))
    }

    fn expert(self, domain: &str) -> String {
        self.task(format!("expert/{domain}"))
    }
}

impl Pipeline {
    pub(super) fn data_tasks<'a>(&'a self, domain: &'a Domain) -> anyhow::Result<Vec<Task<'a>>> {
        let mut tasks = self.selection_tasks(domain)?;
        let count = self.config.generation.iterations;
        for number in 1..=count {
            let round = Round { number, last: number == count };
            tasks.extend(self.round_tasks(domain, round)?);
            if !round.last {
                tasks.push(self.round_expert_task(
                    domain,
                    round.expert(domain.name()),
                    round.assemble(domain.name()),
                    round.root(),
                ));
            }
        }
        Ok(tasks)
    }

    /// From nothing to the tasks that are answered, and their tests.
    fn selection_tasks<'a>(&'a self, domain: &'a Domain) -> anyhow::Result<Vec<Task<'a>>> {
        let name = domain.name();
        let generation = &self.config.generation;
        let count = generation.shards;
        let prompts = Input::value("prompts", self.recipe.brainstorm_inputs(domain));
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
            brainstormed
                .chain([
                    self.model_input(),
                    Input::value("filters", self.recipe.filter_inputs(domain)),
                    value_input("tasks", &generation.tasks),
                ])
                .collect(),
            vec![files::selection(name)],
            move |work| self.select(domain, work),
        ));
        if self.tests(domain) {
            for shard in shards(count) {
                let inputs =
                    self.shard_inputs(domain, shard, self.recipe.follow_up_inputs(domain, FollowUp::Tests));
                tasks.push(Task::new(
                    format!("tests/{name}/{}", shard.index),
                    inputs,
                    vec![files::tests(name, shard.index)],
                    move |work| self.write_tests(domain, shard, work),
                ));
            }
        }
        Ok(tasks)
    }

    /// What every task over a shard of the selected tasks depends on.
    fn shard_inputs(&self, domain: &Domain, shard: Shard, prompts: serde_json::Value) -> Vec<Input> {
        vec![
            self.model_input(),
            Input::value("prompts", prompts),
            Input::Task(format!("select/{}", domain.name())),
            value_input("shard", &[shard.index, shard.count]),
        ]
    }

    /// Responses to the tasks, and the rows that are kept.
    fn round_tasks<'a>(&'a self, domain: &'a Domain, round: Round) -> anyhow::Result<Vec<Task<'a>>> {
        let name = domain.name();
        let generation = &self.config.generation;
        let root = round.root();
        let mut tasks = Vec::new();
        let mut needed = Vec::new();
        for shard in shards(generation.shards) {
            let k = shard.index;
            let mut inputs = self.shard_inputs(domain, shard, self.recipe.respond_inputs(domain));
            inputs.extend(round.before().map(|before| Input::Task(before.expert(name))));
            let id = round.task(format!("respond/{name}/{k}"));
            needed.push(Input::Task(id.clone()));
            tasks.push(Task::new(
                id.clone(),
                inputs.clone(),
                vec![root.join(files::responded(name, k))],
                move |work| self.respond(domain, round, shard, work),
            ));
            if generation.round_trip {
                let prompts = self.recipe.follow_up_inputs(domain, FollowUp::RoundTrip);
                let mut inputs = self.shard_inputs(domain, shard, prompts);
                inputs.push(Input::Task(id));
                let id = round.task(format!("round_trip/{name}/{k}"));
                needed.push(Input::Task(id.clone()));
                tasks.push(Task::new(id, inputs, vec![root.join(files::round_trip(name, k))], move |work| {
                    self.round_trip(domain, round, shard, work)
                }));
            }
            if self.samples(domain) {
                inputs.push(value_input("sampled", &self.sampled()));
                let id = round.task(format!("sample/{name}/{k}"));
                needed.push(Input::Task(id.clone()));
                tasks.push(Task::new(id, inputs, vec![root.join(files::sampled(name, k))], move |work| {
                    self.sample(domain, round, shard, work)
                }));
            }
            if self.tests(domain) {
                needed.push(Input::Task(format!("tests/{name}/{k}")));
            }
        }
        needed.extend(self.confirmation_inputs(domain));
        needed.push(Input::Task(format!("select/{name}")));
        // Rows name the model and the prompts that they come from.
        needed.extend([
            self.model_input(),
            value_input("prompts", &self.recipe.prompt_hash(domain)),
            Input::value("filters", self.recipe.filter_inputs(domain)),
        ]);
        needed.extend(round.before().map(|before| Input::Task(before.expert(name))));
        let outputs = [files::rows(name), files::rejected(name), files::funnel(name)];
        tasks.push(Task::new(
            round.assemble(name),
            needed,
            outputs.into_iter().map(|file| root.join(file)).collect(),
            move |work| self.assemble(domain, round, work),
        ));
        Ok(tasks)
    }

    /// The settings of what is kept; what is as in the paper is left out.
    fn confirmation_inputs(&self, domain: &Domain) -> Vec<Input> {
        let generation = &self.config.generation;
        let mut inputs = Vec::new();
        if self.samples(domain) {
            inputs.push(value_input("min_agreement", &generation.min_agreement));
        }
        if self.executes(domain) {
            inputs.push(value_input("execute", &self.tests(domain)));
            inputs.push(self.python_input());
        }
        if generation.round_trip {
            inputs.push(value_input("min_round_trip", &generation.min_round_trip));
        }
        if generation.balance {
            inputs.push(value_input("balance", &true));
        }
        if !generation.answer_format {
            inputs.push(value_input("answer_format", &false));
        }
        inputs
    }

    fn brainstorm(&self, domain: &Domain, shard: Shard, work: &Work<'_>) -> TaskResult {
        let name = domain.name();
        let records = share(self.config.generation.prompts, shard);
        let total = (records.end - records.start) as usize;
        let label = format!("brainstorm {name} {}", shard.index);
        let runner = self.models.runner(None)?;
        make_shard(work, &label, ("prompts", total), &files::brainstormed(name, shard.index), |made, tell| {
            brainstorm::run_shard(&runner, domain, &self.recipe, records, made, tell)
        })
    }

    fn select(&self, domain: &Domain, work: &Work<'_>) -> TaskResult {
        let name = domain.name();
        let records: Vec<Brainstormed> =
            self.read_shards(work, &files::main(), |k| files::brainstormed(name, k))?;
        let tokenizer = self.models.tokenizer()?;
        let tokens = |text: &str| Ok(tokenizer.encode(text, Bos::Never)?.len());
        let selection =
            select::select(domain, &self.recipe, &records, self.config.generation.tasks, &tokens)?;
        work.record("tasks", selection.tasks.len() as f64);
        let Selection { tasks, rejected, funnel } = selection;
        Ok(write_json(&work.output(files::selection(name))?, &SelectionFile { tasks, rejected, funnel })?)
    }

    fn write_tests(&self, domain: &Domain, shard: Shard, work: &Work<'_>) -> TaskResult {
        let name = domain.name();
        let tasks = read_selection(domain, work)?.tasks;
        let tasks = shard.of(&tasks);
        let label = format!("tests {name} {}", shard.index);
        let runner = self.models.runner(None)?;
        make_shard(work, &label, ("tasks", tasks.len()), &files::tests(name, shard.index), |made, tell| {
            let asked = (tasks, [].as_slice());
            follow_up::run_shard(&runner, domain, &self.recipe, FollowUp::Tests, asked, made, tell)
        })
    }

    /// Who responds in a round: the base, or the domain's expert of the round before.
    fn writer(&self, domain: &Domain, round: Round, run: &Path) -> anyhow::Result<Option<Mixture>> {
        let adapter =
            |before: Round| self.one_adapter(&run.join(files::expert(&before.root(), domain.name())));
        round.before().map(adapter).transpose()
    }

    fn respond(&self, domain: &Domain, round: Round, shard: Shard, work: &Work<'_>) -> TaskResult {
        let name = domain.name();
        let tasks = read_selection(domain, work)?.tasks;
        let tasks = shard.of(&tasks);
        let label = format!("{} {}", round.task(format!("respond {name}")), shard.index);
        let writer = self.writer(domain, round, work.run())?;
        let runner = self.models.runner(writer.as_ref())?;
        let output = round.root().join(files::responded(name, shard.index));
        make_shard(work, &label, ("tasks", tasks.len()), &output, |made, tell| {
            respond::run_shard(&runner, domain, &self.recipe, tasks, made, tell)
        })
    }

    fn round_trip(&self, domain: &Domain, round: Round, shard: Shard, work: &Work<'_>) -> TaskResult {
        let name = domain.name();
        let responses: Vec<Responded> =
            jsonl::read(&work.run().join(round.root()).join(files::responded(name, shard.index)))?;
        let label = format!("{} {}", round.task(format!("round trip {name}")), shard.index);
        let runner = self.models.runner(None)?;
        let output = round.root().join(files::round_trip(name, shard.index));
        make_shard(work, &label, ("responses", responses.len()), &output, |made, tell| {
            let asked = ([].as_slice(), responses.as_slice());
            follow_up::run_shard(&runner, domain, &self.recipe, FollowUp::RoundTrip, asked, made, tell)
        })
    }

    /// A vote is taken on this domain's answers.
    fn votes(&self, domain: &Domain) -> bool {
        self.config.generation.verify.votes() && domain.manifest.answer != AnswerKind::Code
    }

    /// This domain's responses are run.
    fn executes(&self, domain: &Domain) -> bool {
        self.config.generation.verify.executes() && domain.manifest.answer == AnswerKind::Code
    }

    /// They are also tested.
    fn tests(&self, domain: &Domain) -> bool {
        self.executes(domain) && self.config.generation.verify != Verify::Runs
    }

    /// Further responses are needed.
    fn samples(&self, domain: &Domain) -> bool {
        self.votes(domain) || self.tests(domain)
    }

    fn sampled(&self) -> Sampled {
        let generation = &self.config.generation;
        Sampled {
            samples: generation.samples,
            temperature: generation.sample_temperature as f32,
            top_p: generation.top_p as f32,
        }
    }

    fn sample(&self, domain: &Domain, round: Round, shard: Shard, work: &Work<'_>) -> TaskResult {
        let name = domain.name();
        let tasks = read_selection(domain, work)?.tasks;
        let tasks = shard.of(&tasks);
        let sampled = self.sampled();
        let label = format!("{} {}", round.task(format!("sample {name}")), shard.index);
        let writer = self.writer(domain, round, work.run())?;
        let runner = self.models.runner(writer.as_ref())?;
        let output = round.root().join(files::sampled(name, shard.index));
        make_shard(work, &label, ("responses", tasks.len() * sampled.samples), &output, |made, tell| {
            respond::sample_shard(&runner, domain, &self.recipe, tasks, sampled, made, tell)
        })
    }

    /// All rows of a kind of shard below `root`.
    fn read_shards<T: DeserializeOwned>(
        &self,
        work: &Work<'_>,
        root: &Path,
        file: impl Fn(usize) -> PathBuf,
    ) -> anyhow::Result<Vec<T>> {
        let mut rows = Vec::new();
        for shard in 0..self.config.generation.shards {
            rows.extend(jsonl::read(&work.run().join(root).join(file(shard)))?);
        }
        Ok(rows)
    }

    /// Keeps what the configuration's checks confirm.
    fn confirm(
        &self,
        domain: &Domain,
        round: Round,
        mut assembly: Assembly,
        work: &Work<'_>,
    ) -> anyhow::Result<Assembly> {
        let (name, root) = (domain.name(), round.root());
        let generation = &self.config.generation;
        if generation.round_trip {
            let written: Vec<Written> = self.read_shards(work, &root, |k| files::round_trip(name, k))?;
            assembly = confirm::by_round_trip(assembly, &written, generation.min_round_trip)?;
        }
        let sampled: Vec<Responded> = match self.samples(domain) {
            true => self.read_shards(work, &root, |k| files::sampled(name, k))?,
            false => Vec::new(),
        };
        let (samples, min_agreement) = (generation.samples, generation.min_agreement);
        if self.votes(domain) {
            assembly = confirm::by_majority(domain, assembly, &sampled, samples, min_agreement)?;
        }
        if self.executes(domain) {
            let sandbox = open_sandbox().context("generation.verify asks to run code")?;
            let run = |programs: &[Program]| run_programs(&sandbox, programs);
            assembly = if self.tests(domain) {
                let tests: Vec<Written> =
                    self.read_shards(work, &files::main(), |k| files::tests(name, k))?;
                let evidence = execute::Evidence { tests: &tests, sampled: &sampled, samples, min_agreement };
                execute::by_tests(domain, assembly, evidence, run)?
            } else {
                confirm::by_execution(assembly, run)?
            };
        }
        if generation.balance {
            assembly.rows = confirm::balanced(assembly.rows);
        }
        Ok(assembly)
    }

    fn assemble(&self, domain: &Domain, round: Round, work: &Work<'_>) -> TaskResult {
        let (name, root) = (domain.name(), round.root());
        let SelectionFile { tasks, rejected, funnel } = read_selection(domain, work)?;
        let responses: Vec<Responded> = self.read_shards(work, &root, |k| files::responded(name, k))?;
        let selection = Selection { tasks, rejected, funnel };
        let model = match self.writer(domain, round, work.run())? {
            None => self.models.hash()?.to_owned(),
            Some(expert) => format!("{}+{}", self.models.hash()?, expert.fingerprint()?),
        };
        let judged = match self.config.generation.answer_format {
            true => domain.clone(),
            false => domain.clone().with_any_answer(),
        };
        let assembly = select::assemble(&judged, &self.recipe, &model, selection, &responses)?;
        let assembly = self.confirm(&judged, round, assembly, work)?;
        work.record("rows", assembly.rows.len() as f64);
        jsonl::write_atomic(&work.output(root.join(files::rows(name)))?, &assembly.rows)?;
        jsonl::write_atomic(&work.output(root.join(files::rejected(name)))?, &assembly.rejected)?;
        Ok(write_pretty(&work.output(root.join(files::funnel(name)))?, &assembly.funnel)?)
    }
}

/// Says of each program why it did not run to its end.
fn run_programs(sandbox: &Sandbox, programs: &[Program]) -> anyhow::Result<Vec<Option<String>>> {
    let mut failures = vec![None; programs.len()];
    sandbox.run_all(programs, |index, outcome| {
        failures[index] = (outcome != Outcome::Passed).then(|| outcome.describe());
    })?;
    Ok(failures)
}

fn read_selection(domain: &Domain, work: &Work<'_>) -> anyhow::Result<SelectionFile> {
    read_json(&work.run().join(files::selection(domain.name())))
}

/// Makes a shard with its progress, in the task's scratch directory, and puts it where it belongs. `total`: the unit and how
/// many there are.
fn make_shard(
    work: &Work<'_>,
    label: &str,
    total: (&str, usize),
    output: &Path,
    make: impl FnOnce(
        &Path,
        &mut dyn FnMut(Progress) -> std::ops::ControlFlow<()>,
    ) -> mixse_selfmoe::Result<ShardState>,
) -> TaskResult {
    let made = work.scratch().join("rows.jsonl");
    let mut watch = Watch::new(work, label, total.0, total.1);
    let mut before = 0;
    // The shard tells its tokens since the start of this attempt.
    let state = make(&made, &mut |progress| {
        let tokens = (progress.tokens - before) as u64;
        before = progress.tokens;
        watch.at(progress.done, tokens)
    })?;
    watch.finish()?;
    complete(state)?;
    Ok(fs::rename(made, work.output(output)?)?)
}

fn complete(state: ShardState) -> anyhow::Result<()> {
    match state {
        ShardState::Complete => Ok(()),
        ShardState::Stopped => bail!("the shard was stopped"),
    }
}
