//! Trainings: what goes in, where the result is kept, how progress is shown.

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use anyhow::bail;
use mixse_model::{
    engine::{Engine, Memory},
    expert::Expert,
    expert_set::ExpertSet,
    memory::kept_bytes,
    mixture::{Mixture, Routing},
    peft,
    random::Stream,
    router_files,
};
use mixse_selfmoe::{
    domain::Domain,
    jsonl,
    plan::{Input, Task, Work},
    record::SyntheticRow,
    template::InstructionTemplate,
    train::{
        Cut, History, Job, Outcome, StepReport, TrainConfig, TrainRow, Validated, check_expert,
        discard_damaged, train_expert, train_jointly,
    },
};

use serde::{Deserialize, Serialize};

use super::{Pipeline, TaskResult, Watch, files, value_input, write_json};
use crate::{
    config::{AdapterSource, ExpertSection, MemoryLimit},
    machine::{held_memory, unused_memory},
    output::{bytes, note},
};

/// What is trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Corpus {
    /// The accepted rows that the base has written, and the seeds where `generation.with_seeds` asks for them.
    Synthetic,
    /// The domains' seeds.
    Seeds,
}

/// One training of an adapter.
pub(super) struct ExpertTraining<'a> {
    /// Its name, in the adapter and in the progress; the start is drawn from it.
    pub(super) name: &'a str,
    /// The domains whose rows it sees.
    pub(super) domains: &'a [&'a Domain],
    pub(super) corpus: Corpus,
    /// What the rows lie below, in the run directory.
    pub(super) data: PathBuf,
    /// Where the adapter and the losses are written, below the run directory.
    pub(super) adapter: PathBuf,
    pub(super) losses: PathBuf,
}

impl Pipeline {
    pub(super) fn expert_task<'a>(&'a self, domain: &'a Domain) -> Task<'a> {
        let name = domain.name();
        let (adapter, losses) = (files::expert(&files::main(), name), files::losses(name));
        if let Some(source) = self.config.adapters.iter().find(|source| source.domain == name) {
            return self.adapter_task(source, adapter, losses);
        }
        Task::new(
            format!("expert/{name}"),
            self.expert_inputs(&[domain], Corpus::Synthetic),
            vec![adapter.clone(), losses.clone()],
            move |work| {
                let (adapter, losses) = (adapter.clone(), losses.clone());
                let domains = [domain];
                let corpus = Corpus::Synthetic;
                let data = files::main();
                let training = ExpertTraining { name, domains: &domains, corpus, data, adapter, losses };
                self.train_expert(&training, work)
            },
        )
    }

    /// An expert that was made elsewhere. It is copied, under the domain's name, and nothing is trained.
    fn adapter_task<'a>(&'a self, source: &'a AdapterSource, adapter: PathBuf, losses: PathBuf) -> Task<'a> {
        let inputs = vec![self.model_input(), Input::File(absolute(&source.path))];
        Task::new(
            format!("expert/{}", source.domain),
            inputs,
            vec![adapter.clone(), losses.clone()],
            move |work| {
                let directory = absolute(&source.path);
                let mut expert = self.read_expert(&directory)?;
                expert.name.clone_from(&source.domain);
                self.write_expert(&expert, &work.output(&adapter)?)?;
                Ok(LossFile::Steps(Vec::new()).write(&work.output(&losses)?)?)
            },
        )
    }

    /// An expert that only writes the next round's responses: task `id` on the rows of task `assemble` below `root`.
    pub(super) fn round_expert_task<'a>(
        &'a self,
        domain: &'a Domain,
        id: String,
        assemble: String,
        root: PathBuf,
    ) -> Task<'a> {
        let name = domain.name();
        let (adapter, losses) = (files::expert(&root, name), root.join(files::losses(name)));
        let mut inputs = self.training_settings();
        inputs.extend([
            value_input("rows", &self.config.generation.rows),
            value_input("expert", &self.config.expert.of(name)),
            Input::Task(assemble),
        ]);
        inputs.extend(self.own_seeds(&[domain]));
        Task::new(id, inputs, vec![adapter.clone(), losses.clone()], move |work| {
            let (adapter, losses, data) = (adapter.clone(), losses.clone(), root.clone());
            let domains = [domain];
            let corpus = Corpus::Synthetic;
            self.train_expert(
                &ExpertTraining { name, domains: &domains, corpus, data, adapter, losses },
                work,
            )
        })
    }

    /// The run's experts as inputs.
    pub(super) fn all_experts(&self) -> Vec<Input> {
        self.names().iter().map(|name| Input::Task(format!("expert/{name}"))).collect()
    }

    /// Everything that an adapter trained on these domains depends on.
    pub(super) fn expert_inputs(&self, domains: &[&Domain], corpus: Corpus) -> Vec<Input> {
        let settings = vec![value_input("expert", &self.expert_section(domains))];
        [self.training_inputs(domains, corpus), settings].concat()
    }

    /// How an adapter of these domains is made.
    fn expert_section(&self, domains: &[&Domain]) -> ExpertSection {
        match domains {
            [one] => self.config.expert.of(one.name()),
            _ => self.config.expert.common(),
        }
    }

    pub(super) fn training_inputs(&self, domains: &[&Domain], corpus: Corpus) -> Vec<Input> {
        let mut inputs = self.training_settings();
        match corpus {
            Corpus::Synthetic => {
                inputs.push(value_input("rows", &self.config.generation.rows));
                inputs.extend(domains.iter().map(|d| Input::Task(format!("assemble/{}", d.name()))));
                inputs.extend(self.own_seeds(domains));
            }
            Corpus::Seeds => inputs.push(seeds_input(domains)),
        }
        inputs
    }

    /// The seeds as an input where they are trained on beside the accepted rows.
    fn own_seeds(&self, domains: &[&Domain]) -> Option<Input> {
        self.config.generation.with_seeds.then(|| seeds_input(domains))
    }

    /// How a task becomes tokens.
    pub(super) fn template_input(&self) -> Input {
        let style = self.config.style;
        if self.config.parse_special {
            return value_input("template", &(style, &self.template, "special tokens of content are parsed"));
        }
        value_input("template", &(style, &self.template))
    }

    /// What every training depends on.
    fn training_settings(&self) -> Vec<Input> {
        vec![self.model_input(), self.template_input(), value_input("seed", &self.config.seed)]
    }

    pub(super) fn train_expert(&self, training: &ExpertTraining<'_>, work: &Work<'_>) -> TaskResult {
        let data = work.run().join(&training.data);
        let rows = self.training_rows(training.domains, training.corpus, &data)?;
        let engine = self.models.engine()?;
        let section = self.expert_section(training.domains);
        let seed = self.training_seed(&format!("expert/{}", training.name));
        let start = Expert::init(training.name, &section.lora, &engine.config, seed)?;
        let before = engine.weights_hash();
        let state = work.scratch().join("training");
        let job = self.job(&rows, &section.training, section.lora.rank, seed, &state, work)?;
        let mut watch = Training::new(work, &format!("expert {}", training.name));
        let outcome = train_expert(job, &start, &mut |report| watch.step(report))?;
        let (expert, history) = watch.finish(outcome)?;
        check_expert(engine, &expert, &before, &rows[0])?;
        self.write_expert(&expert, &work.output(&training.adapter)?)?;
        Ok(LossFile::from(history).write(&work.output(&training.losses)?)?)
    }

    /// Experts and router from their starts, together; they are written below `root`.
    pub(super) fn train_jointly(&self, root: &Path, losses_file: &Path, work: &Work<'_>) -> TaskResult {
        let domains: Vec<&Domain> = self.own_domains().iter().collect();
        let rows = self.training_rows(&domains, Corpus::Synthetic, work.run())?;
        let engine = self.models.engine()?;
        let section = self.config.expert.common();
        let start = self
            .names()
            .iter()
            .map(|name| {
                let seed = self.training_seed(&format!("expert/{name}"));
                Expert::init(name, &self.config.expert.of(name).lora, &engine.config, seed)
            })
            .collect::<mixse_model::Result<Vec<_>>>()?;
        let router = self.router_start(&self.config.router, &files::main(), work.run())?;
        let state = work.scratch().join("training");
        let job =
            self.job(&rows, &section.training, self.all_ranks(), self.training_seed("joint"), &state, work)?;
        let rate = self.config.router.training.learning_rate;
        let mut watch = Training::new(work, "experts and router together");
        let domain_loss = self.config.router.domain_loss;
        let outcome =
            train_jointly(job, &start, &router, rate, domain_loss, &mut |report| watch.step(report))?;
        let ((experts, router), history) = watch.finish(outcome)?;
        for expert in &experts {
            self.write_expert(expert, &work.output(files::expert(root, &expert.name))?)?;
        }
        router_files::write(&router, self.models.hash()?, &work.output(files::router(root))?)?;
        Ok(LossFile::from(history).write(&work.output(losses_file)?)?)
    }

    /// What a training needs; `ranks` is the sum of the ranks of all experts in its passes.
    pub(super) fn job<'j>(
        &'j self,
        rows: &'j [TrainRow],
        config: &'j TrainConfig,
        ranks: usize,
        seed: u64,
        state: &'j Path,
        work: &Work<'_>,
    ) -> anyhow::Result<Job<'j>> {
        let engine = self.models.engine()?;
        let cut = Cut::of(rows, config.max_tokens);
        if cut.rows > 0 {
            note(format_args!("{cut} (max_tokens = {})", config.max_tokens));
        }
        work.record("rows_cut", cut.rows as f64);
        work.record("targets_cut", cut.targets as f64);
        if let Some(damage) = discard_damaged(state)? {
            note(format_args!("the checkpoint is damaged, and this training starts again: {damage}"));
        }
        let memory = self.training_memory(engine, rows, config, ranks, work);
        let tokens: usize =
            rows.iter().map(|row| (row.prompt_ids.len() + row.target_ids.len()).min(config.max_tokens)).sum();
        let states = (tokens * engine.config.hidden_size * size_of::<f32>()) as u64;
        // The passes need the larger part.
        let keep_states = self.training_room().is_none_or(|room| states <= room / 4);
        Ok(Job { engine, rows, config, seed, memory, keep_states, state: Some(state) })
    }

    /// The ranks of all experts together.
    pub(super) fn all_ranks(&self) -> usize {
        self.names().iter().map(|name| self.config.expert.of(name).lora.rank).sum()
    }

    /// Whether a training may keep what lies between a block's input and output, for experts whose ranks are `ranks` in
    /// all. The choice changes time and memory, not results; it is recorded with the task.
    fn training_memory(
        &self,
        engine: &Engine,
        rows: &[TrainRow],
        config: &TrainConfig,
        ranks: usize,
        work: &Work<'_>,
    ) -> Memory {
        let longest = rows.iter().map(|row| row.prompt_ids.len() + row.target_ids.len()).max();
        let longest = longest.unwrap_or(0).min(config.max_tokens);
        let all: usize = rows.iter().map(|row| row.prompt_ids.len() + row.target_ids.len()).sum();
        // A pass holds rows up to `pass_tokens`, and one row in any case.
        let tokens = config.pass_tokens.max(longest).min(all);
        let needed = kept_bytes(&engine.config, tokens, ranks);
        let room = self.training_room();
        let recompute = room.is_some_and(|room| needed > room);
        work.record("kept_bytes", if recompute { 0.0 } else { needed as f64 });
        if recompute {
            note(format_args!(
                "blocks are run again in the backward: keeping all between would take {}, and {} may be used (memory_limit = \"{}\")",
                bytes(needed),
                bytes(room.unwrap_or(0)),
                self.config.memory_limit
            ));
        }
        if recompute { Memory::Recompute } else { Memory::Keep }
    }

    /// Bytes that a training may use; `None`: it is not known.
    fn training_room(&self) -> Option<u64> {
        match self.config.memory_limit {
            MemoryLimit::Auto => unused_memory().map(|unused| unused / 2),
            MemoryLimit::Bytes(limit) => Some(limit.saturating_sub(held_memory().unwrap_or(0))),
        }
    }

    pub(super) fn training_seed(&self, training: &str) -> u64 {
        Stream::new(self.config.seed, training, 0).next_u64()
    }

    pub(super) fn write_expert(&self, expert: &Expert, directory: &Path) -> anyhow::Result<()> {
        let origin = peft::Origin { name: expert.name.clone(), base_hash: self.models.hash()?.to_owned() };
        let engine = self.models.engine()?;
        Ok(peft::write(expert, &engine.config, self.models.name(), &origin, directory)?)
    }

    /// The rows of some domains as token ids, each with the place of its domain in the list.
    pub(super) fn training_rows(
        &self,
        domains: &[&Domain],
        corpus: Corpus,
        run: &Path,
    ) -> anyhow::Result<Vec<TrainRow>> {
        let mut rows = Vec::new();
        let config = &self.config.generation;
        for (index, domain) in (0..).zip(domains) {
            if corpus == Corpus::Synthetic {
                for row in self.accepted_rows(domain.name(), run)?.iter().take(config.rows) {
                    rows.push(self.training_row(index, &row.instruction, &row.input, &row.output)?);
                }
            }
            if corpus == Corpus::Seeds || config.with_seeds {
                for seed in &domain.seeds {
                    rows.push(self.training_row(index, &seed.instruction, &seed.input, &seed.output)?);
                }
            }
        }
        Ok(rows)
    }

    fn accepted_rows(&self, domain: &str, run: &Path) -> anyhow::Result<Vec<SyntheticRow>> {
        let rows: Vec<SyntheticRow> = jsonl::read(&run.join(files::rows(domain)))?;
        if rows.is_empty() {
            bail!(
                "no row was accepted for {domain}: {} says why; ask for more (generation.prompts) or ease the domain's filters",
                files::rejected(domain).display()
            );
        }
        Ok(rows)
    }

    fn training_row(
        &self,
        domain: u32,
        instruction: &str,
        input: &str,
        output: &str,
    ) -> anyhow::Result<TrainRow> {
        let tokenizer = self.models.tokenizer()?;
        Ok(TrainRow {
            prompt_ids: self.template.encode(self.config.style, tokenizer, instruction, input)?,
            target_ids: InstructionTemplate::encode_response(tokenizer, output)?,
            domain: Some(domain),
        })
    }

    pub(super) fn read_expert(&self, directory: &Path) -> anyhow::Result<Expert> {
        Ok(peft::read_for(directory, self.models.checkpoint()?)?)
    }

    /// The domains' experts below `root`.
    pub(super) fn read_experts(&self, root: &Path) -> anyhow::Result<Vec<Expert>> {
        self.names().iter().map(|name| self.read_expert(&files::expert(root, name))).collect()
    }

    pub(super) fn expert_set(&self, root: &Path) -> anyhow::Result<ExpertSet> {
        let engine = self.models.engine()?;
        Ok(ExpertSet::new(&self.read_experts(root)?, &engine.config)?)
    }

    /// One adapter alone.
    pub(super) fn one_adapter(&self, directory: &Path) -> anyhow::Result<Mixture> {
        let engine = self.models.engine()?;
        let expert = self.read_expert(directory)?;
        Ok(Mixture::all(ExpertSet::new(&[expert], &engine.config)?))
    }

    /// All experts below `root`, chosen at random.
    pub(super) fn random_mixture(&self, root: &Path) -> anyhow::Result<Mixture> {
        Ok(Mixture { experts: self.expert_set(root)?, routing: Routing::Random { seed: self.config.seed } })
    }

    /// All experts below `experts` with the router in `router`.
    pub(super) fn mixture(&self, experts: &Path, router: &Path) -> anyhow::Result<Mixture> {
        let engine = self.models.engine()?;
        let hash = Some(self.models.hash()?);
        let router = router_files::read(router, &self.names(), &engine.config, hash)?;
        Ok(Mixture { experts: self.expert_set(experts)?, routing: Routing::Learned(router) })
    }
}

fn seeds_input(domains: &[&Domain]) -> Input {
    let seeds: Vec<_> = domains.iter().map(|domain| &domain.seeds).collect();
    value_input("seeds", &seeds)
}

/// Paths in a configuration start where the program does, those of inputs at the run directory.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// What `losses/TRAINING.json` holds.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum LossFile {
    /// The loss of every step.
    Steps(Vec<f32>),
    /// The same where rows were held out, with their losses and the step whose parameters were kept.
    Validated { losses: Vec<f32>, validation: Vec<Validated>, kept_step: usize },
}

impl From<History> for LossFile {
    fn from(history: History) -> Self {
        let History { losses, validation, kept_step } = history;
        if validation.is_empty() {
            Self::Steps(losses)
        } else {
            Self::Validated { losses, validation, kept_step }
        }
    }
}

impl LossFile {
    pub(super) fn write(&self, path: &Path) -> anyhow::Result<()> {
        write_json(path, self)
    }
}

/// A training with its progress; how many steps there are is known after the first one.
pub(super) struct Training<'a> {
    work: &'a Work<'a>,
    label: String,
    watch: Option<Watch<'a>>,
}

impl<'a> Training<'a> {
    pub(super) fn new(work: &'a Work<'a>, label: &str) -> Self {
        Self { work, label: label.to_owned(), watch: None }
    }

    pub(super) fn step(&mut self, report: StepReport) -> ControlFlow<()> {
        let watch =
            self.watch.get_or_insert_with(|| Watch::new(self.work, &self.label, "steps", report.steps));
        watch.at(report.step, report.tokens as u64)
    }

    pub(super) fn finish<T>(self, outcome: Outcome<T>) -> anyhow::Result<(T, History)> {
        if let Some(watch) = self.watch {
            watch.finish()?;
        }
        match outcome {
            Outcome::Done(result, history) => {
                self.work.record("steps", history.losses.len() as f64);
                if !history.validation.is_empty() {
                    self.work.record("kept_step", history.kept_step as f64);
                }
                Ok((result, history))
            }
            Outcome::Stopped => bail!("the training was stopped"),
        }
    }
}
