//! What a study takes out of a finished run.

use std::path::Path;

use mixse_eval::{
    report::RoutingRow,
    study::{Answers, DomainAnswers},
};
use mixse_selfmoe::{domain::Domain, jsonl, record::SyntheticRow};

use super::{Pipeline, files, routing::read_routing, shards};

/// Where a run belongs in its study.
pub(crate) struct RunPlace<'a> {
    /// The group of its rows.
    pub(crate) group: &'a str,
    /// The run directory, relative to the study's.
    pub(crate) path: &'a Path,
}

impl Pipeline {
    /// Every row of the table with its answers. `run` is the run directory.
    pub(crate) fn answers(&self, run: &Path, place: &RunPlace<'_>) -> anyhow::Result<Vec<Answers>> {
        let mut all = Vec::new();
        for row in self.outline().evaluated() {
            let mut domains = Vec::new();
            for domain in &self.domains {
                let found = self.outline().check_rows(run, &row, domain)?;
                if found.is_empty() {
                    continue;
                }
                let files = shards(self.config.evaluation.shards).map(|shard| {
                    let file = files::checks(&row.id(), domain.name(), shard.index);
                    place.path.join(file).display().to_string()
                });
                domains.push(DomainAnswers {
                    domain: domain.name().to_owned(),
                    files: files.collect(),
                    items: found.into_iter().map(|answer| (answer.id, answer.correct)).collect(),
                });
            }
            let (group, method) = (place.group.to_owned(), row.name());
            all.push(Answers { group, method, kind: row.kind(), seed: self.config.seed, domains });
        }
        Ok(all)
    }

    /// Where the mixture's tokens went, by domain; `None` if the run has no mixture.
    pub(crate) fn routing_rows(&self, run: &Path) -> anyhow::Result<Option<Vec<RoutingRow>>> {
        self.outline().evaluates_mixture().then(|| Ok(read_routing(run)?.routing.rows)).transpose()
    }

    /// Rows that each domain's expert was trained on.
    pub(crate) fn trained_rows(&self, run: &Path) -> anyhow::Result<Vec<(String, usize)>> {
        let config = &self.config.generation;
        let count = |domain: &Domain| {
            let name = domain.name().to_owned();
            if !self.outline().uses_data() {
                return Ok((name, domain.seeds.len()));
            }
            let rows: Vec<SyntheticRow> = jsonl::read(&run.join(files::rows(&name)))?;
            let seeds = if config.with_seeds { domain.seeds.len() } else { 0 };
            Ok((name, rows.len().min(config.rows) + seeds))
        };
        self.own_domains().iter().map(count).collect()
    }

    /// The domains that are evaluated, in the order of the columns.
    pub(crate) fn checked_names(&self) -> Vec<String> {
        self.domains.iter().map(|domain| domain.name().to_owned()).collect()
    }

    /// The experts in the router's order.
    pub(crate) fn expert_names(&self) -> Vec<String> {
        self.names()
    }
}
