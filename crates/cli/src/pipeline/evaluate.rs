//! The check sets: base, each expert, random routing, mixture.

use std::{fs, path::Path, process::ExitCode, sync::Arc};

use anyhow::Context;
use mixse_eval::{
    checks::{self, CheckSet, Shard},
    report::MethodKind,
    sandbox::{self, Launcher, Limits, Policy, Sandbox},
};
use mixse_model::{
    language::{Request, Sampling},
    mixture::Mixture,
};
use mixse_selfmoe::{
    domain::Domain,
    plan::{Input, Task, Work},
    record::{Answer, Example},
    template::Style,
};

use super::{Pipeline, TaskResult, Watch, files, shards, value_input};
use crate::output::note;

/// The hidden argument that makes this program the launcher of its own sandbox.
const LAUNCHER_ARGUMENT: &str = "__sandbox-launcher";

/// The other half of [`LAUNCHER_ARGUMENT`].
pub(crate) fn launcher_main() -> Option<ExitCode> {
    (std::env::args_os().nth(1)? == LAUNCHER_ARGUMENT).then(sandbox::child_main)
}

/// Something that is evaluated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Method {
    Base,
    Expert(String),
    Random,
    Mixture,
}

impl Method {
    /// As ids and paths have it.
    pub(super) fn id(&self) -> String {
        match self {
            Self::Base => "base".into(),
            Self::Expert(name) => format!("expert-{name}"),
            Self::Random => "random".into(),
            Self::Mixture => "mixture".into(),
        }
    }

    /// As tables have it.
    pub(super) fn title(&self) -> String {
        match self {
            Self::Base => "base".into(),
            Self::Expert(name) => format!("expert {name}"),
            Self::Random => "random routing".into(),
            Self::Mixture => "mixture".into(),
        }
    }

    pub(super) fn kind(&self) -> MethodKind {
        match self {
            Self::Base => MethodKind::Base,
            Self::Expert(_) => MethodKind::Expert,
            Self::Random => MethodKind::Random,
            Self::Mixture => MethodKind::Mixture,
        }
    }
}

impl Pipeline {
    pub(super) fn evaluation_tasks(&self) -> Vec<Task<'_>> {
        let mut tasks = Vec::new();
        let all_experts: Vec<Input> =
            self.names().iter().map(|name| Input::Task(format!("expert/{name}"))).collect();
        for method in self.outline().methods() {
            let needed = match &method {
                Method::Base => vec![],
                Method::Expert(name) => vec![Input::Task(format!("expert/{name}"))],
                Method::Random => all_experts.clone(),
                Method::Mixture => [all_experts.clone(), vec![Input::Task("router".into())]].concat(),
            };
            for shard in shards(self.config.evaluation.shards) {
                let items: Vec<&[Example]> =
                    self.domains.iter().map(|d| shard.of(self.outline().check_items(d))).collect();
                let mut inputs = vec![
                    self.model_input(),
                    value_input("items", &items),
                    value_input("template", &(self.config.style, &self.template)),
                    value_input("seed", &self.config.seed),
                ];
                inputs.extend(needed.clone());
                let method = method.clone();
                tasks.push(Task::new(
                    format!("eval/{}/{}", method.id(), shard.index),
                    inputs,
                    self.domains.iter().map(|d| files::checks(&method.id(), d.name(), shard.index)).collect(),
                    move |work| self.evaluate(&method, shard, work),
                ));
            }
        }
        tasks
    }

    fn evaluate(&self, method: &Method, shard: Shard, work: &Work<'_>) -> TaskResult {
        let mixture = self.method_mixture(method, work.run())?;
        let runner = self.models.runner(mixture.as_ref())?;
        let runs_code = |item: &Example| matches!(item.answer, Some(Answer::Code { .. }));
        let sandbox = if self.domains.iter().any(|d| self.outline().check_items(d).iter().any(runs_code)) {
            open_sandbox().map_err(|e| note(format_args!("coding answers are not tested: {e:#}"))).ok()
        } else {
            None
        };
        let asked: usize = self.domains.iter().map(|d| shard.of(self.outline().check_items(d)).len()).sum();
        let label = format!("eval {} {}", method.title(), shard.index);
        let mut watch = Watch::new(work, &label, "items", asked);
        let (mut correct, mut total) = (0, 0);
        for domain in &self.domains {
            let style = |item: &Example| self.check_request(domain, item);
            let set = CheckSet {
                items: self.outline().check_items(domain),
                style: &style,
                // The plan drops rows that other inputs have made.
                settings: "",
                sandbox: sandbox.as_ref(),
            };
            let scratch = work.scratch().join(format!("{}.jsonl", domain.name()));
            let mut fresh = 0;
            let rows = checks::run_shard(&runner, &set, shard, &scratch, &mut |row| {
                fresh += 1;
                watch.at(total + fresh, row.tokens as u64)
            })?;
            correct += rows.iter().filter(|row| row.correct).count();
            total += rows.len();
            fs::copy(&scratch, work.output(files::checks(&method.id(), domain.name(), shard.index))?)?;
        }
        work.record("correct", correct as f64);
        work.record("items", total as f64);
        Ok(watch.finish()?)
    }

    fn method_mixture(&self, method: &Method, run: &Path) -> anyhow::Result<Option<Mixture>> {
        Ok(match method {
            Method::Base => None,
            Method::Expert(name) => Some(self.one_expert(run, name)?),
            Method::Random => Some(self.random_mixture(run)?),
            Method::Mixture => Some(self.mixture(run)?),
        })
    }

    /// How a check item is asked.
    fn check_request(&self, domain: &Domain, item: &Example) -> mixse_eval::Result<Request> {
        let invalid = |e: &dyn std::fmt::Display| mixse_eval::Error::Invalid(format!("{}: {e}", item.id));
        let tokenizer = self.models.tokenizer().map_err(|e| invalid(&e))?;
        let prompt = self
            .template
            .encode(self.config.style, tokenizer, &item.instruction, &item.input)
            .map_err(|e| invalid(&e))?;
        Ok(Request {
            prefix: Arc::from([]),
            prompt,
            max_new_tokens: domain.manifest.limits.max_response_tokens,
            sampling: Sampling::Greedy,
            stop: match self.config.style {
                Style::Completion => self.template.stop.clone(),
                Style::Chat => Vec::new(),
            },
        })
    }
}

/// This program as the launcher of its own sandbox.
pub(crate) fn sandbox_launcher() -> mixse_eval::Result<Launcher> {
    Launcher::current_exe(LAUNCHER_ARGUMENT)
}

/// The sandbox for generated code, with the reason if there is none.
fn open_sandbox() -> anyhow::Result<Sandbox> {
    Sandbox::open(sandbox_launcher()?, Limits::default(), Policy::RequireMinimum)
        .context("code cannot be run")
}
