//! Experts and the router.

use std::{fs, ops::ControlFlow, path::Path};

use anyhow::{Context, bail};
use mixse_model::{
    decoder::{Decoder, Memory},
    expert::Expert,
    expert_set::ExpertSet,
    memory::kept_bytes,
    mixture::{Mixture, Routing},
    peft,
    random::Stream,
    router::Router,
    router_files,
};
use mixse_selfmoe::{
    domain::Domain,
    jsonl,
    plan::{Input, Task, Work},
    record::SyntheticRow,
    template::InstructionTemplate,
    train::{Job, Outcome, StepReport, TrainConfig, TrainRow, check_expert, train_expert, train_router},
};

use super::{Pipeline, TaskResult, Watch, files, value_input};
use crate::{
    config::MemoryLimit,
    machine::{held_memory, unused_memory},
    output::{bytes, note},
};

impl Pipeline {
    pub(super) fn expert_task<'a>(&'a self, domain: &'a Domain) -> Task<'a> {
        let name = domain.name();
        Task::new(
            format!("expert/{name}"),
            vec![
                self.model_input(),
                Input::Task(format!("assemble/{name}")),
                value_input("expert", &self.config.expert),
                value_input("template", &(self.config.style, &self.template)),
                value_input("seed", &self.config.seed),
            ],
            vec![files::expert(name), files::expert_losses(name)],
            move |work| self.train_expert(name, work),
        )
    }

    pub(super) fn router_task(&self) -> Task<'_> {
        let needed = |kind: &'static str| {
            self.domains.iter().map(move |d| Input::Task(format!("{kind}/{}", d.name())))
        };
        let settings = [
            self.model_input(),
            value_input("router", &self.config.router),
            value_input("template", &(self.config.style, &self.template)),
            value_input("seed", &self.config.seed),
        ];
        Task::new(
            "router",
            needed("assemble").chain(needed("expert")).chain(settings).collect(),
            vec![files::router(), files::router_losses()],
            |work| self.train_router(work),
        )
    }

    fn train_expert(&self, domain: &str, work: &Work<'_>) -> TaskResult {
        let rows = self.training_rows(domain, work)?;
        let decoder = self.models.decoder()?;
        let section = &self.config.expert;
        let seed = Stream::new(self.config.seed, &format!("expert/{domain}"), 0).next_u64();
        let start = Expert::init(domain, &section.lora, &decoder.config, seed)?;
        let before = decoder.weights_hash()?;
        let state = work.scratch().join("training");
        let job = Job {
            decoder,
            rows: &rows,
            config: &section.training,
            seed,
            memory: self.training_memory(decoder, &rows, &section.training, section.lora.rank, work),
            state: Some(&state),
        };
        let mut training = Training::new(work, &format!("expert {domain}"));
        let outcome = train_expert(job, &start, &mut |report| training.step(report))?;
        let (expert, losses) = training.finish(outcome)?;
        check_expert(decoder, &expert, &before, &rows[0])?;
        let origin = peft::Origin { name: domain.to_owned(), base_hash: self.models.hash()?.to_owned() };
        peft::write(
            &expert,
            &decoder.config,
            self.models.name(),
            &origin,
            &work.output(files::expert(domain))?,
        )?;
        write_losses(&work.output(files::expert_losses(domain))?, &losses)?;
        Ok(())
    }

    fn train_router(&self, work: &Work<'_>) -> TaskResult {
        let mut rows = Vec::new();
        for domain in self.names() {
            rows.extend(self.training_rows(&domain, work)?);
        }
        let decoder = self.models.decoder()?;
        let section = &self.config.router;
        let experts = self.expert_set(work.run())?;
        let ranks = self.domains.len() * self.config.expert.lora.rank;
        let seed = Stream::new(self.config.seed, "router", 0).next_u64();
        let start = Router::init(&section.router, &self.names(), &decoder.config, seed, decoder.device())?;
        let state = work.scratch().join("training");
        let job = Job {
            decoder,
            rows: &rows,
            config: &section.training,
            seed,
            memory: self.training_memory(decoder, &rows, &section.training, ranks, work),
            state: Some(&state),
        };
        let mut training = Training::new(work, "router");
        let outcome = train_router(job, &experts, &start, &mut |report| training.step(report))?;
        let (router, losses) = training.finish(outcome)?;
        router_files::write(&router, self.models.hash()?, &work.output(files::router())?)?;
        write_losses(&work.output(files::router_losses())?, &losses)?;
        Ok(())
    }

    /// Whether a training may keep what lies between a block's input and output, for experts whose ranks are `ranks` in
    /// all. The choice changes time and memory, not results; it is recorded with the task.
    fn training_memory(
        &self,
        decoder: &Decoder,
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
        let needed = kept_bytes(&decoder.config, tokens, ranks);
        let room = match self.config.memory_limit {
            MemoryLimit::Auto => unused_memory().map(|unused| unused / 2),
            MemoryLimit::Bytes(limit) => Some(limit.saturating_sub(held_memory().unwrap_or(0))),
        };
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

    /// The accepted rows of a domain as token ids.
    fn training_rows(&self, domain: &str, work: &Work<'_>) -> anyhow::Result<Vec<TrainRow>> {
        let rows: Vec<SyntheticRow> = jsonl::read(&work.run().join(files::rows(domain)))?;
        if rows.is_empty() {
            bail!(
                "no row was accepted for {domain}: {} says why; ask for more (generation.prompts) or ease the domain's filters",
                files::rejected(domain).display()
            );
        }
        let tokenizer = self.models.tokenizer()?;
        let tokenized = rows.iter().map(|row| {
            Ok(TrainRow {
                prompt_ids: self.template.encode(
                    self.config.style,
                    tokenizer,
                    &row.instruction,
                    &row.input,
                )?,
                target_ids: InstructionTemplate::encode_response(tokenizer, &row.output)?,
            })
        });
        tokenized.collect()
    }

    fn read_expert(&self, run: &Path, domain: &str) -> anyhow::Result<Expert> {
        let directory = run.join(files::expert(domain));
        peft::check_base(&directory, self.models.hash()?)?;
        Ok(peft::read(&directory, &self.models.decoder()?.config)?)
    }

    fn expert_set(&self, run: &Path) -> anyhow::Result<ExpertSet> {
        let experts = self
            .names()
            .iter()
            .map(|name| self.read_expert(run, name))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let decoder = self.models.decoder()?;
        Ok(ExpertSet::new(&experts, &decoder.config, decoder.device())?)
    }

    /// One expert alone.
    pub(super) fn one_expert(&self, run: &Path, domain: &str) -> anyhow::Result<Mixture> {
        let decoder = self.models.decoder()?;
        let expert = self.read_expert(run, domain)?;
        Ok(Mixture::all(ExpertSet::new(&[expert], &decoder.config, decoder.device())?))
    }

    /// All experts, chosen at random.
    pub(super) fn random_mixture(&self, run: &Path) -> anyhow::Result<Mixture> {
        Ok(Mixture { experts: self.expert_set(run)?, routing: Routing::Random { seed: self.config.seed } })
    }

    /// All experts with the trained router.
    pub(super) fn mixture(&self, run: &Path) -> anyhow::Result<Mixture> {
        let decoder = self.models.decoder()?;
        let router = router_files::read(
            &run.join(files::router()),
            &self.names(),
            &decoder.config,
            Some(self.models.hash()?),
            decoder.device(),
        )?;
        Ok(Mixture { experts: self.expert_set(run)?, routing: Routing::Learned(router) })
    }
}

fn write_losses(path: &Path, losses: &[f32]) -> anyhow::Result<()> {
    fs::write(path, serde_json::to_vec(losses)?).with_context(|| format!("cannot write {}", path.display()))
}

/// A training with its progress; how many steps there are is known after the first one.
struct Training<'a> {
    work: &'a Work<'a>,
    label: String,
    watch: Option<Watch<'a>>,
}

impl<'a> Training<'a> {
    fn new(work: &'a Work<'a>, label: &str) -> Self {
        Self { work, label: label.to_owned(), watch: None }
    }

    fn step(&mut self, report: StepReport) -> ControlFlow<()> {
        let watch =
            self.watch.get_or_insert_with(|| Watch::new(self.work, &self.label, "steps", report.steps));
        watch.at(report.step, report.tokens as u64)
    }

    fn finish<T>(self, outcome: Outcome<T>) -> anyhow::Result<(T, Vec<f32>)> {
        if let Some(watch) = self.watch {
            watch.finish()?;
        }
        match outcome {
            Outcome::Done(result, losses) => {
                self.work.record("steps", losses.len() as f64);
                Ok((result, losses))
            }
            Outcome::Stopped => bail!("the training was stopped"),
        }
    }
}
