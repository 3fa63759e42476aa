//! What a run's own mixture is compared with, made from the same data: `baselines/METHOD/`.

use std::path::Path;

use mixse_selfmoe::{
    domain::Domain,
    merge::{self, MergedExpert, merge_experts, merged_weights},
    plan::{Input, Task, Work},
};
use serde::Serialize;

use super::{
    Pipeline, TaskResult, files,
    router::RouterTraining,
    train::{Corpus, ExpertTraining},
    value_input, write_pretty,
};
use crate::config::{Fit, Form, Merging, Method, RouterSection};

/// `merge.json` beside a merged adapter.
#[derive(Serialize)]
struct MergeFile {
    method: String,
    experts: Vec<String>,
    weights: Vec<f64>,
    /// Of the adapter against the exact merge, over all modules; none where nothing is approximated.
    relative_error: Option<f64>,
    /// What was evaluated: the adapter, or the exact merge added to the base's weights.
    evaluated: &'static str,
}

impl Merging {
    /// The adapter holds the merge without loss.
    pub(super) fn is_exact_as_adapter(&self) -> bool {
        self.form == Form::Factors || self.method == merge::Method::Linear
    }
}

impl Pipeline {
    /// The tasks that make what a method needs, beside the run's own experts and router.
    pub(super) fn baseline_tasks<'a>(&'a self, method: &'a Method) -> anyhow::Result<Vec<Task<'a>>> {
        Ok(match method {
            Method::Base | Method::Experts | Method::Random | Method::Oracle => Vec::new(),
            Method::Mixture(values) if values.is_empty() => Vec::new(),
            Method::Mixture(_) | Method::Arrow(_) => match self.config.router_of(method) {
                Some(section) => {
                    let section = section.map_err(|e| anyhow::anyhow!(e.join("; ")))?;
                    vec![self.variant_task(method.id(), section)]
                }
                None => Vec::new(),
            },
            Method::InstanceMerging => vec![self.instance_merging_task(method.id())],
            Method::Merged(merging) => vec![self.merge_task(method.id(), merging)],
            Method::Joint => vec![self.joint_task(method.id())],
            Method::SeedOnly => self.seed_only_tasks(&method.id()),
        })
    }

    /// What an evaluation of the method reads.
    pub(super) fn evaluation_needs(&self, method: &Method) -> Vec<Input> {
        let task = |id: String| Input::Task(id);
        match method {
            Method::Base => Vec::new(),
            Method::Experts | Method::Oracle | Method::Random => self.all_experts(),
            Method::Mixture(values) if values.is_empty() => {
                [self.all_experts(), vec![task("router".into())]].concat()
            }
            Method::Mixture(_) | Method::Arrow(_) => {
                [self.all_experts(), vec![task(format!("baseline/{}", method.id()))]].concat()
            }
            Method::Merged(merging) if !merging.is_exact_as_adapter() => {
                [self.all_experts(), vec![value_input("merge", method)]].concat()
            }
            Method::InstanceMerging | Method::Merged(_) | Method::Joint => {
                vec![task(format!("baseline/{}", method.id()))]
            }
            Method::SeedOnly => {
                let mut needs: Vec<Input> = self
                    .names()
                    .iter()
                    .map(|name| task(format!("baseline/seed-only/expert/{name}")))
                    .collect();
                needs.push(task("baseline/seed-only/router".into()));
                needs
            }
        }
    }

    fn variant_task(&self, id: String, section: RouterSection) -> Task<'_> {
        let (router, losses) = (files::router(&files::baseline(&id)), files::losses(&id));
        Task::new(
            format!("baseline/{id}"),
            self.router_inputs(&section, Corpus::Synthetic, &files::main()),
            vec![router.clone(), losses.clone()],
            move |work| {
                let training = RouterTraining {
                    label: &id,
                    section: &section,
                    corpus: Corpus::Synthetic,
                    root: files::main(),
                    router: router.clone(),
                    losses: losses.clone(),
                };
                self.make_router(&training, work)
            },
        )
    }

    fn instance_merging_task(&self, id: String) -> Task<'_> {
        let domains: Vec<&Domain> = self.own_domains().iter().collect();
        let (adapter, losses) = (files::baseline(&id), files::losses(&id));
        Task::new(
            format!("baseline/{id}"),
            self.expert_inputs(&domains, Corpus::Synthetic),
            vec![adapter.clone(), losses.clone()],
            move |work| {
                let (adapter, losses) = (adapter.clone(), losses.clone());
                let corpus = Corpus::Synthetic;
                self.train_expert(
                    &ExpertTraining {
                        name: &id,
                        domains: &domains,
                        corpus,
                        data: files::main(),
                        adapter,
                        losses,
                    },
                    work,
                )
            },
        )
    }

    fn merge_task<'a>(&'a self, id: String, merging: &'a Merging) -> Task<'a> {
        let adapter = files::baseline(&id);
        let inputs =
            [self.all_experts(), vec![self.model_input(), value_input("merge", &Method::Merged(*merging))]];
        Task::new(format!("baseline/{id}"), inputs.concat(), vec![adapter.clone()], move |work| {
            self.merge_experts(&id, merging, &adapter, work)
        })
    }

    fn merge_experts(&self, id: &str, merging: &Merging, adapter: &Path, work: &Work<'_>) -> TaskResult {
        let experts = self.read_experts(work.run())?;
        let weights = merging.weights(experts.len());
        // As much as the experts have together: a linear merge needs it all.
        let form = match merging.form {
            Form::Factors => merge::Form::PerFactor,
            Form::Product if merging.is_exact_as_adapter() => merge::Form::Exact,
            Form::Product => merge::Form::Truncated { rank: experts.iter().map(|e| e.config.rank).sum() },
        };
        let model = &self.models.engine()?.config;
        let MergedExpert { expert: merged, relative_error } =
            merge_experts(id, &experts, model, &weights, merging.method, form)?;
        if let Some(error) = relative_error {
            work.record("relative_error", error);
        }
        let directory = work.output(adapter)?;
        self.write_expert(&merged, &directory)?;
        let file = MergeFile {
            method: Method::Merged(*merging).to_string(),
            experts: self.names(),
            weights,
            relative_error,
            evaluated: if merging.is_exact_as_adapter() { "adapter" } else { "exact merge" },
        };
        Ok(write_pretty(&directory.join("merge.json"), &file)?)
    }

    /// The exact merge of the run's experts as changes of the base's weights.
    pub(super) fn merged_weights(&self, merging: &Merging, run: &Path) -> anyhow::Result<merge::Deltas> {
        let experts = self.read_experts(run)?;
        let weights = merging.weights(experts.len());
        Ok(merged_weights(&experts, &self.models.engine()?.config, &weights, merging.method)?)
    }

    fn joint_task(&self, id: String) -> Task<'_> {
        let domains: Vec<&Domain> = self.own_domains().iter().collect();
        let (root, losses) = (files::baseline(&id), files::losses(&id));
        let mut inputs = self.expert_inputs(&domains, Corpus::Synthetic);
        inputs.push(value_input("router", &self.config.router));
        // Each expert starts as its own domain's section says.
        let starts = self.names().into_iter().map(|name| (self.config.expert.of(&name).lora, name));
        inputs.push(value_input("starts", &starts.collect::<Vec<_>>()));
        if self.config.router.fit == Fit::Arrow {
            inputs.extend(self.all_experts());
        }
        inputs.extend(self.ridge_inputs(&self.config.router, &files::main()));
        let outputs = vec![root.join("experts"), files::router(&root), losses.clone()];
        Task::new(format!("baseline/{id}"), inputs, outputs, move |work| {
            self.train_jointly(&root, &losses, work)
        })
    }

    fn seed_only_tasks<'a>(&'a self, id: &str) -> Vec<Task<'a>> {
        let root = files::baseline(id);
        let mut tasks = Vec::new();
        for domain in self.own_domains() {
            let name = domain.name();
            let task = format!("baseline/{id}/expert/{name}");
            let (adapter, losses) = (files::expert(&root, name), files::losses(&format!("{id}-{name}")));
            let outputs = vec![adapter.clone(), losses.clone()];
            tasks.push(Task::new(task, self.expert_inputs(&[domain], Corpus::Seeds), outputs, move |work| {
                let (adapter, losses) = (adapter.clone(), losses.clone());
                let domains = [domain];
                let corpus = Corpus::Seeds;
                self.train_expert(
                    &ExpertTraining { name, domains: &domains, corpus, data: files::main(), adapter, losses },
                    work,
                )
            }));
        }
        let section = &self.config.router;
        if section.fit.uses_ridge() {
            tasks.extend(self.statistics_tasks_of(section, Corpus::Seeds, &root));
        }
        let router_inputs = self.router_inputs(section, Corpus::Seeds, &root);
        let (router, losses) = (files::router(&root), files::losses(&format!("{id}-router")));
        let outputs = vec![router.clone(), losses.clone()];
        tasks.push(Task::new(format!("baseline/{id}/router"), router_inputs, outputs, move |work| {
            let training = RouterTraining {
                label: "router on seeds",
                section,
                corpus: Corpus::Seeds,
                root: root.clone(),
                router: router.clone(),
                losses: losses.clone(),
            };
            self.make_router(&training, work)
        }));
        tasks
    }
}
