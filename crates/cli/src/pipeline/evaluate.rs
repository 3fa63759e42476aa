//! The check sets, answered by everything that is compared.

use std::{path::Path, process::ExitCode, sync::Arc};

use anyhow::{Context, bail};
use mixse_eval::{
    checks::{self, CheckSet, Row, Shard},
    report::MethodKind,
    sandbox::{self, Launcher, Limits, Policy, Sandbox},
};
use mixse_model::{
    engine::Engine,
    generate::Runner,
    language::{Controls, Request, Sampling},
    mixture::Mixture,
    random::Stream,
};
use mixse_selfmoe::{
    domain::Domain,
    plan::{Input, Task, Work},
    record::{Answer, Example},
    template::Style,
};

use super::{Pipeline, TaskResult, Watch, files, shards, value_input, write};
use crate::{config::Method, output::note};

/// The hidden argument that makes this program the launcher of its own sandbox.
const LAUNCHER_ARGUMENT: &str = "__sandbox-launcher";

/// The other half of [`LAUNCHER_ARGUMENT`].
pub(crate) fn launcher_main() -> Option<ExitCode> {
    (std::env::args_os().nth(1)? == LAUNCHER_ARGUMENT).then(sandbox::child_main)
}

/// A row of the results table.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Evaluated {
    /// One expert alone.
    Expert(String),
    /// Anything else; never [`Method::Experts`], which stands for several rows.
    Method(Method),
}

impl Evaluated {
    /// As task ids and paths have it.
    pub(super) fn id(&self) -> String {
        match self {
            Self::Expert(name) => format!("expert-{name}"),
            Self::Method(method) => method.id(),
        }
    }

    /// As configurations and studies name it.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Expert(name) => format!("expert {name}"),
            Self::Method(method) => method.to_string(),
        }
    }

    /// As a run's own table has it.
    pub(super) fn title(&self) -> String {
        match self {
            Self::Method(Method::Random) => "random routing".into(),
            Self::Method(Method::Oracle) => "oracle domain".into(),
            other => other.name(),
        }
    }

    pub(super) fn kind(&self) -> MethodKind {
        match self {
            Self::Expert(_) => MethodKind::Expert,
            Self::Method(method) => method.kind(),
        }
    }

    pub(super) fn is_own_mixture(&self) -> bool {
        self.kind() == MethodKind::Mixture
    }
}

/// Right answers and items of a task.
#[derive(Default)]
struct Tally {
    correct: usize,
    items: usize,
}

impl Tally {
    fn add(&mut self, rows: &[Row]) {
        self.correct += rows.iter().filter(|row| row.correct).count();
        self.items += rows.len();
    }

    fn record(&self, work: &Work<'_>) {
        work.record("correct", self.correct as f64);
        work.record("items", self.items as f64);
    }
}

/// A model that is ready to answer.
enum Prepared {
    Base,
    Mixture(Mixture),
    /// A base with changed weights.
    Merged(Engine),
}

impl Pipeline {
    pub(super) fn evaluation_tasks(&self) -> Vec<Task<'_>> {
        let mut rows = self.outline().evaluated();
        // The oracle's row is put together from the experts' answers, which stand before it.
        if self.config.methods.contains(&Method::Oracle) {
            let missing: Vec<Evaluated> =
                self.names().into_iter().map(Evaluated::Expert).filter(|row| !rows.contains(row)).collect();
            rows.extend(missing);
            rows.sort_by_key(|row| *row == Evaluated::Method(Method::Oracle));
        }
        let tasks = rows.into_iter().flat_map(|row| {
            shards(self.config.evaluation.shards).map(move |shard| self.evaluation_task(row.clone(), shard))
        });
        tasks.collect()
    }

    fn evaluation_task(&self, row: Evaluated, shard: Shard) -> Task<'_> {
        let items: Vec<&[Example]> =
            self.domains.iter().map(|d| shard.of(self.outline().check_items(d))).collect();
        let limits: Vec<usize> = self.domains.iter().map(|d| d.manifest.limits.max_response_tokens).collect();
        let mut inputs = vec![
            self.model_input(),
            value_input("items", &items),
            value_input("limits", &limits),
            self.template_input(),
        ];
        if self.config.evaluation.shots > 0 {
            let shown: Vec<Vec<&Example>> = self.domains.iter().map(|domain| self.shots(domain)).collect();
            inputs.push(value_input("shots", &shown));
        }
        inputs.extend(match &row {
            Evaluated::Expert(name) => vec![Input::Task(format!("expert/{name}"))],
            Evaluated::Method(Method::Oracle) => {
                let answers = self.names().into_iter().map(Evaluated::Expert);
                answers.map(|row| Input::Task(format!("eval/{}/{}", row.id(), shard.index))).collect()
            }
            Evaluated::Method(method) => self.evaluation_needs(method),
        });
        if items.iter().any(|items| items.iter().any(runs_code)) && row != Evaluated::Method(Method::Oracle) {
            inputs.push(self.python_input());
        }
        if row == Evaluated::Method(Method::Random) {
            inputs.push(value_input("seed", &self.config.seed));
        }
        let outputs = self.domains.iter().map(|d| files::checks(&row.id(), d.name(), shard.index)).collect();
        let id = format!("eval/{}/{}", row.id(), shard.index);
        Task::new(id, inputs, outputs, move |work| match &row {
            Evaluated::Method(Method::Oracle) => self.evaluate_oracle(&row, shard, work),
            _ => self.evaluate(&row, shard, work),
        })
    }

    fn evaluate(&self, row: &Evaluated, shard: Shard, work: &Work<'_>) -> TaskResult {
        let prepared = self.prepare(row, work.run())?;
        let runner = match &prepared {
            Prepared::Base => self.models.runner(None)?,
            Prepared::Mixture(mixture) => self.models.runner(Some(mixture))?,
            Prepared::Merged(engine) => Runner::new(engine, self.models.tokenizer()?, None),
        };
        let sandbox = if self.domains.iter().any(|d| self.outline().check_items(d).iter().any(runs_code)) {
            open_sandbox().map_err(|e| note(format_args!("coding answers are not tested: {e:#}"))).ok()
        } else {
            None
        };
        let asked: usize = self.domains.iter().map(|d| shard.of(self.outline().check_items(d)).len()).sum();
        let label = format!("eval {} {}", row.title(), shard.index);
        let mut watch = Watch::new(work, &label, "items", asked);
        let mut tally = Tally::default();
        for domain in self.domains.iter() {
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
                watch.at(tally.items + fresh, row.tokens as u64)
            })?;
            tally.add(&rows);
            mixse_eval::rows::write(
                &work.output(files::checks(&row.id(), domain.name(), shard.index))?,
                &rows,
            )?;
        }
        tally.record(work);
        Ok(watch.finish()?)
    }

    /// Each domain's rows from its own expert; a domain without expert has none.
    fn evaluate_oracle(&self, row: &Evaluated, shard: Shard, work: &Work<'_>) -> TaskResult {
        let mut tally = Tally::default();
        for domain in self.domains.iter() {
            let name = domain.name();
            let made = work.output(files::checks(&row.id(), name, shard.index))?;
            if self.outline().own_domains().iter().any(|own| own.name() == name) {
                let expert = Evaluated::Expert(name.to_owned());
                let rows = work.run().join(files::checks(&expert.id(), name, shard.index));
                let rows = mixse_eval::rows::read::<Row>(&rows)?;
                tally.add(&rows);
                mixse_eval::rows::write(&made, &rows)?;
            } else {
                write(&made, b"")?;
            }
        }
        tally.record(work);
        Ok(())
    }

    fn prepare(&self, row: &Evaluated, run: &Path) -> anyhow::Result<Prepared> {
        let method = match row {
            Evaluated::Expert(name) => {
                return Ok(Prepared::Mixture(
                    self.one_adapter(&run.join(files::expert(&files::main(), name)))?,
                ));
            }
            Evaluated::Method(method) => method,
        };
        let own = run.join(files::baseline(&method.id()));
        Ok(Prepared::Mixture(match method {
            Method::Base => return Ok(Prepared::Base),
            Method::Merged(merging) if !merging.is_exact_as_adapter() => {
                let deltas = self.merged_weights(merging, run)?;
                return Ok(Prepared::Merged(self.models.merged(deltas)?));
            }
            Method::InstanceMerging | Method::Merged(_) => self.one_adapter(&own)?,
            Method::Random => self.random_mixture(run)?,
            Method::Mixture(values) if values.is_empty() => self.mixture(run, &files::router(run))?,
            Method::Mixture(_) | Method::Arrow(_) => self.mixture(run, &files::router(&own))?,
            Method::Joint | Method::SeedOnly => self.mixture(&own, &files::router(&own))?,
            Method::Experts | Method::Oracle => bail!("{method} is no single model"),
        }))
    }

    /// How a check item is asked.
    /// The seeds that stand in front of a domain's check items, the same ones for every run with this list.
    fn shots<'d>(&self, domain: &'d Domain) -> Vec<&'d Example> {
        let evaluation = &self.config.evaluation;
        let mut drawn = Stream::new(evaluation.shot_list, &format!("shots/{}", domain.name()), 0);
        let chosen = drawn.choose(domain.seeds.len(), evaluation.shots);
        chosen.into_iter().map(|seed| &domain.seeds[seed]).collect()
    }

    fn check_request(&self, domain: &Domain, item: &Example) -> mixse_eval::Result<Request> {
        let invalid = |e: &dyn std::fmt::Display| mixse_eval::Error::Invalid(format!("{}: {e}", item.id));
        let tokenizer = self.models.tokenizer().map_err(|e| invalid(&e))?;
        let (instruction, input) = (&item.instruction, &item.input);
        let prompt = match self.config.evaluation.shots {
            0 => self.template.encode(self.config.style, tokenizer, instruction, input),
            _ => self.template.encode_after(&self.shots(domain), tokenizer, instruction, input),
        };
        let prompt = prompt.map_err(|e| invalid(&e))?;
        Ok(Request {
            prefix: Arc::from([]),
            prompt,
            max_new_tokens: domain.manifest.limits.max_response_tokens,
            sampling: Sampling::Greedy,
            stop: match self.config.style {
                Style::Completion => self.template.stop.clone(),
                Style::Chat => Vec::new(),
            },
            controls: Controls::default(),
        })
    }
}

fn runs_code(item: &Example) -> bool {
    matches!(item.answer, Some(Answer::Code { .. }))
}

/// This program as the launcher of its own sandbox.
pub(crate) fn sandbox_launcher() -> mixse_eval::Result<Launcher> {
    Launcher::current_exe(LAUNCHER_ARGUMENT)
}

/// The sandbox for generated code, with the reason if there is none.
pub(super) fn open_sandbox() -> anyhow::Result<Sandbox> {
    Sandbox::open(sandbox_launcher()?, Limits::default(), Policy::RequireMinimum)
        .context("code cannot be run")
}
