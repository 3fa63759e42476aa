//! What a run consists of, as far as its configuration and its domains say; nothing here needs the model.

use std::path::Path;

use mixse_eval::checks::Row;
use mixse_selfmoe::{
    domain::{self, Domain},
    record::Example,
};

use super::{evaluate::Method, files, shards};
use crate::{config::Config, output::usage_error};

/// Finds the domains that a configuration names; all faults are said at once.
pub(crate) fn open_domains(config: &Config) -> anyhow::Result<Vec<Domain>> {
    let mut faults = Vec::new();
    let mut domains: Vec<Domain> = Vec::new();
    for name in &config.domains {
        match domain::find(name) {
            Ok(domain) if domains.iter().any(|other| other.name() == domain.name()) => {
                faults.push(format!("two domains are called {:?}", domain.name()));
            }
            Ok(domain) => domains.push(domain),
            Err(e) => faults.push(e.to_string()),
        }
    }
    if !faults.is_empty() {
        return Err(usage_error(format!("wrong domains:\n  {}", faults.join("\n  "))));
    }
    Ok(domains)
}

/// A run's configuration with its domains opened.
#[derive(Clone, Copy)]
pub(crate) struct Outline<'a> {
    pub(crate) config: &'a Config,
    pub(crate) domains: &'a [Domain],
}

impl<'a> Outline<'a> {
    /// The domains' names, which are the experts' names too, in the router's order.
    pub(super) fn names(self) -> Vec<String> {
        self.domains.iter().map(|domain| domain.name().to_owned()).collect()
    }

    /// What is evaluated, in the order of the table.
    pub(super) fn methods(self) -> Vec<Method> {
        let experts = self.names().into_iter().map(Method::Expert);
        [Method::Base].into_iter().chain(experts).chain([Method::Random, Method::Mixture]).collect()
    }

    pub(super) fn check_items(self, domain: &'a Domain) -> &'a [Example] {
        &domain.check[..domain.check.len().min(self.config.evaluation.items)]
    }

    /// All rows of a method on a domain, in the order of the items.
    pub(super) fn check_rows(self, run: &Path, method: &Method, domain: &Domain) -> anyhow::Result<Vec<Row>> {
        let mut rows = Vec::new();
        for shard in shards(self.config.evaluation.shards) {
            rows.extend(mixse_eval::rows::read::<Row>(&run.join(files::checks(
                &method.id(),
                domain.name(),
                shard.index,
            )))?);
        }
        Ok(rows)
    }

    /// Whether the method has been evaluated on all domains.
    pub(super) fn is_evaluated(self, run: &Path, method: &Method) -> bool {
        self.domains.iter().all(|domain| {
            shards(self.config.evaluation.shards)
                .all(|shard| run.join(files::checks(&method.id(), domain.name(), shard.index)).exists())
        })
    }
}
