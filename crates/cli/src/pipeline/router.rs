//! Routers: trained by gradients, or fitted in closed form from statistics of each domain that outlive its rows.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::bail;
use mixse_model::{
    expert_set::ModuleLayout,
    router::{Granularity, Router, RouterConfig, RouterInput},
    router_files,
};
use mixse_selfmoe::{
    arrow,
    domain::Domain,
    plan::{Input, Task, Work},
    train::{DomainMoments, History, fit_ridge, train_router},
};

use super::{
    Pipeline, TaskResult, Watch, files,
    train::{Corpus, LossFile, Training},
    value_input,
};
use crate::config::{Fit, Method, RouterSection};

/// One training of a router over all experts of `root`.
pub(super) struct RouterTraining<'a> {
    pub(super) label: &'a str,
    pub(super) section: &'a RouterSection,
    pub(super) corpus: Corpus,
    /// Where the experts and the domains' statistics are.
    pub(super) root: PathBuf,
    /// Where the router and the losses are written.
    pub(super) router: PathBuf,
    pub(super) losses: PathBuf,
}

/// What statistics are about: as paths and task ids have it.
fn kind(section: &RouterSection) -> String {
    let RouterConfig { input, shared, granularity, .. } = &section.router;
    let input = match (input, shared) {
        (RouterInput::Block, true) => "block",
        (RouterInput::Block, false) => "each_block",
        (RouterInput::BaseLast, _) => "base_last",
        (RouterInput::Embedding, _) => "embedding",
    };
    let sequence = match granularity {
        Granularity::Token => "",
        Granularity::Sequence => "-sequence",
    };
    format!("{input}{sequence}-{}", section.training.max_tokens)
}

/// Task ids of what is made below `root`, the run itself or a baseline.
fn task_id(root: &Path, name: &str) -> String {
    root.join(name).display().to_string().replacen("baselines/", "baseline/", 1)
}

impl Pipeline {
    pub(super) fn router_task(&self) -> Task<'_> {
        let (router, losses) = (files::router(&files::main()), files::losses("router"));
        Task::new(
            "router",
            self.router_inputs(&self.config.router, Corpus::Synthetic, &files::main()),
            vec![router.clone(), losses.clone()],
            move |work| {
                let training = RouterTraining {
                    label: "router",
                    section: &self.config.router,
                    corpus: Corpus::Synthetic,
                    root: files::main(),
                    router: router.clone(),
                    losses: losses.clone(),
                };
                self.make_router(&training, work)
            },
        )
    }

    /// Everything that a router over the experts of `root` depends on: one in closed form on statistics alone, one without training
    /// on the experts.
    pub(super) fn router_inputs(&self, section: &RouterSection, corpus: Corpus, root: &Path) -> Vec<Input> {
        let domains: Vec<&Domain> = self.own_domains().iter().collect();
        let mut inputs = vec![value_input("router", section)];
        if section.fit.trains() {
            inputs.extend(self.training_inputs(&domains, corpus));
        }
        if section.fit.trains() || section.fit == Fit::Arrow {
            inputs.extend(
                self.names().iter().map(|name| Input::Task(task_id(root, &format!("expert/{name}")))),
            );
        }
        inputs.extend(self.ridge_inputs(section, root));
        inputs
    }

    /// What a fit in closed form depends on, if there is one.
    pub(super) fn ridge_inputs(&self, section: &RouterSection, root: &Path) -> Vec<Input> {
        if !section.fit.uses_ridge() {
            return Vec::new();
        }
        let statistics =
            |name: &String| Input::Task(task_id(root, &format!("statistics/{}/{name}", kind(section))));
        self.names().iter().map(statistics).chain([value_input("experts", &self.names())]).collect()
    }

    /// The tasks that take the statistics which the run's own router and its variants need.
    pub(super) fn statistics_tasks(&self) -> anyhow::Result<Vec<Task<'_>>> {
        let mut sections: BTreeMap<String, RouterSection> = BTreeMap::new();
        for method in &self.config.methods {
            let section = match (self.config.router_of(method), method) {
                (Some(section), _) => section.map_err(|e| anyhow::anyhow!(e.join("; ")))?,
                (None, Method::Mixture(_) | Method::Joint) => self.config.router.clone(),
                _ => continue,
            };
            if section.fit.uses_ridge() {
                sections.insert(kind(&section), section);
            }
        }
        let tasks = sections
            .into_values()
            .flat_map(|section| self.statistics_tasks_of(&section, Corpus::Synthetic, &files::main()));
        Ok(tasks.collect())
    }

    /// A task a domain, for routers over the experts of `root` that read what the section says.
    pub(super) fn statistics_tasks_of<'a>(
        &'a self,
        section: &RouterSection,
        corpus: Corpus,
        root: &Path,
    ) -> Vec<Task<'a>> {
        let task = |domain: &'a Domain| {
            let (name, kind) = (domain.name(), kind(section));
            let output = files::statistics(root, &kind, name);
            let section = section.clone();
            let mut inputs = self.training_inputs(&[domain], corpus);
            inputs.push(value_input("reads", &(&kind, section.training.pass_tokens)));
            let id = task_id(root, &format!("statistics/{kind}/{name}"));
            Task::new(id, inputs, vec![output.clone()], move |work| {
                self.take_statistics(domain, &section, corpus, &output, work)
            })
        };
        self.own_domains().iter().map(task).collect()
    }

    fn take_statistics(
        &self,
        domain: &Domain,
        section: &RouterSection,
        corpus: Corpus,
        output: &Path,
        work: &Work<'_>,
    ) -> TaskResult {
        let rows = self.training_rows(&[domain], corpus, work.run())?;
        let label = format!("statistics of {}", domain.name());
        let mut watch = Watch::new(work, &label, "rows", rows.len());
        let (router, training) = (&section.router, &section.training);
        let found = DomainMoments::of(
            self.models.engine()?,
            &rows,
            router,
            training.max_tokens,
            training.pass_tokens,
            &mut |done, tokens| watch.at(done, tokens as u64),
        )?;
        watch.finish()?;
        match found {
            Some(moments) => Ok(moments.write(&work.output(output)?)?),
            None => Err("it was stopped".into()),
        }
    }

    /// Trains or fits a router and writes it.
    pub(super) fn make_router(&self, training: &RouterTraining<'_>, work: &Work<'_>) -> TaskResult {
        let section = training.section;
        let start = self.router_start(section, &training.root, work.run())?;
        let (router, losses) = if section.fit.trains() {
            let (router, history) = self.train_router(training, &start, work)?;
            (router, LossFile::from(history))
        } else {
            (start, LossFile::Steps(Vec::new()))
        };
        router_files::write(&router, self.models.hash()?, &work.output(&training.router)?)?;
        Ok(losses.write(&work.output(&training.losses)?)?)
    }

    fn train_router(
        &self,
        training: &RouterTraining<'_>,
        start: &Router,
        work: &Work<'_>,
    ) -> anyhow::Result<(Router, History)> {
        let domains: Vec<&Domain> = self.own_domains().iter().collect();
        let rows = self.training_rows(&domains, training.corpus, work.run())?;
        let section = training.section;
        let experts = self.expert_set(&work.run().join(&training.root))?;
        let state = work.scratch().join("training");
        let modules = experts.layouts.iter().flat_map(|layout| layout.modules.iter().flatten());
        let ranks = modules.map(ModuleLayout::total_rank).max().unwrap_or(0);
        let job = self.job(&rows, &section.training, ranks, self.training_seed("router"), &state, work)?;
        let mut watch = Training::new(work, training.label);
        let outcome =
            train_router(job, &experts, start, section.domain_loss, &mut |report| watch.step(report))?;
        watch.finish(outcome)
    }

    /// The router that a training starts from, or the result where nothing is trained.
    pub(super) fn router_start(
        &self,
        section: &RouterSection,
        root: &Path,
        run: &Path,
    ) -> anyhow::Result<Router> {
        let engine = self.models.engine()?;
        let (names, model) = (self.names(), &engine.config);
        match section.fit {
            Fit::LmLoss => {
                return Ok(Router::init(&section.router, &names, model, self.training_seed("router"))?);
            }
            Fit::Arrow => {
                let experts = self.read_experts(&run.join(root))?;
                return Ok(arrow::router(&section.router, &experts, model)?);
            }
            Fit::Ridge | Fit::RidgeThenLmLoss => {}
        }
        let read = |name: &String| {
            let path = run.join(files::statistics(root, &kind(section), name));
            DomainMoments::read(&path, &section.router, model)
        };
        let moments = names.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        if moments.is_empty() {
            bail!("there are no domains to fit a router to");
        }
        Ok(fit_ridge(&section.router, &section.ridge, &names, &moments, model)?)
    }
}
