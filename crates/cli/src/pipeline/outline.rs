//! What a run consists of, as far as its configuration and its domains say; nothing here needs the model.

use std::path::Path;

use mixse_eval::checks::Row;
use mixse_selfmoe::{
    domain::{self, Domain},
    record::Example,
};

use super::{evaluate::Evaluated, files, shards};
use crate::{
    config::{AdapterSource, Config, Method},
    output::usage_error,
};

/// Finds the domains that a configuration names: those of the experts, then those that are only evaluated.
///
/// # Errors
/// Everything that is wrong with them.
pub(crate) fn find_domains(config: &Config) -> Result<Vec<Domain>, Vec<String>> {
    let mut faults = Vec::new();
    let mut domains: Vec<Domain> = Vec::new();
    for name in config.domains.iter().chain(&config.evaluation.unseen_domains) {
        match domain::find(name) {
            Ok(domain) if domains.iter().any(|other| other.name() == domain.name()) => {
                faults.push(format!("two domains are called {:?}", domain.name()));
            }
            Ok(domain) => domains.push(domain),
            Err(e) => faults.push(e.to_string()),
        }
    }
    let skip = config.evaluation.skip;
    for domain in domains.iter().filter(|domain| !domain.check.is_empty() && domain.check.len() <= skip) {
        let (name, items) = (domain.name(), domain.check.len());
        faults.push(format!("{name} has {items} check items, and evaluation.skip = {skip} leaves none"));
    }
    let own = &domains[..domains.len().min(config.domains.len())];
    for AdapterSource { domain, path } in &config.adapters {
        if !own.iter().any(|other| other.name() == domain) {
            faults.push(format!("adapters: {domain:?} is none of the domains"));
        }
        if !path.is_dir() {
            faults.push(format!("adapters: {} is no directory", path.display()));
        }
    }
    if faults.is_empty() {
        let names: Vec<&str> = domains[..config.domains.len()].iter().map(Domain::name).collect();
        let unknown = config.expert.domains.keys().filter(|name| !names.contains(&name.as_str()));
        faults.extend(unknown.map(|name| {
            format!(
                "expert.domains.{name}: no expert is trained for this domain; there are: {}",
                names.join(", ")
            )
        }));
    }
    if faults.is_empty() { Ok(domains) } else { Err(faults) }
}

/// [`find_domains`]; all faults are said at once.
pub(crate) fn open_domains(config: &Config) -> anyhow::Result<Vec<Domain>> {
    find_domains(config).map_err(|faults| usage_error(format!("wrong domains:\n  {}", faults.join("\n  "))))
}

/// A run's configuration with its domains opened.
#[derive(Clone, Copy)]
pub(crate) struct Outline<'a> {
    pub(crate) config: &'a Config,
    /// As [`open_domains`] gives them.
    pub(crate) domains: &'a [Domain],
}

impl<'a> Outline<'a> {
    /// The domains that have an expert.
    pub(super) fn own_domains(self) -> &'a [Domain] {
        &self.domains[..self.config.domains.len().min(self.domains.len())]
    }

    /// Their names, which are the experts' names too, in the router's order.
    pub(super) fn names(self) -> Vec<String> {
        self.own_domains().iter().map(|domain| domain.name().to_owned()).collect()
    }

    /// What is evaluated, in the order of the table.
    pub(super) fn evaluated(self) -> Vec<Evaluated> {
        let mut rows = Vec::new();
        for method in &self.config.methods {
            match method {
                Method::Experts => rows.extend(self.names().into_iter().map(Evaluated::Expert)),
                other => rows.push(Evaluated::Method(other.clone())),
            }
        }
        rows
    }

    /// The run's own mixture is among them.
    pub(super) fn evaluates_mixture(self) -> bool {
        self.evaluated().iter().any(Evaluated::is_own_mixture)
    }

    /// Something that is compared is made from the rows that the base writes. A run that only compares experts of the seeds has no use for any.
    pub(super) fn uses_data(self) -> bool {
        let methods = &self.config.methods;
        !methods.contains(&Method::SeedOnly)
            || methods.iter().any(|method| !matches!(method, Method::Base | Method::SeedOnly))
    }

    pub(super) fn check_items(self, domain: &'a Domain) -> &'a [Example] {
        let rest = domain.check.get(self.config.evaluation.skip..).unwrap_or_default();
        &rest[..rest.len().min(self.config.evaluation.items)]
    }

    /// All answers of a row of the table on a domain, in the order of the items.
    pub(super) fn check_rows(self, run: &Path, row: &Evaluated, domain: &Domain) -> anyhow::Result<Vec<Row>> {
        let mut rows = Vec::new();
        for shard in shards(self.config.evaluation.shards) {
            rows.extend(mixse_eval::rows::read::<Row>(&run.join(files::checks(
                &row.id(),
                domain.name(),
                shard.index,
            )))?);
        }
        Ok(rows)
    }

    /// Whether the row has been evaluated on all domains.
    pub(super) fn is_evaluated(self, run: &Path, row: &Evaluated) -> bool {
        self.domains.iter().all(|domain| {
            shards(self.config.evaluation.shards)
                .all(|shard| run.join(files::checks(&row.id(), domain.name(), shard.index)).exists())
        })
    }
}
