//! How experts are made: for all domains, and what differs for single ones.

use std::collections::BTreeMap;

use mixse_model::{
    config::ModelConfig,
    expert::{LoraConfig, Module},
};
use mixse_selfmoe::train::TrainConfig;
use serde::{Deserialize, Serialize};

/// LoRA experts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ExpertSection {
    #[serde(flatten)]
    pub(crate) lora: LoraConfig,
    pub(crate) training: TrainConfig,
    /// What differs for single domains, by their names.
    pub(crate) domains: BTreeMap<String, DomainExpert>,
}

/// What differs for the expert of one domain; what is not named is as for the others.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct DomainExpert {
    #[serde(skip_serializing_if = "Option::is_none")]
    rank: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    alpha: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    targets: Option<Vec<Module>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rslora: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dropout: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    learning_rate: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    epochs: Option<usize>,
}

impl ExpertSection {
    /// What holds for every domain that nothing else is said about, and for adapters of several domains.
    pub(crate) fn common(&self) -> Self {
        Self { domains: BTreeMap::new(), ..self.clone() }
    }

    /// What holds for the expert of a domain.
    pub(crate) fn of(&self, domain: &str) -> Self {
        let mut section = self.common();
        let Some(own) = self.domains.get(domain) else { return section };
        let (lora, training) = (&mut section.lora, &mut section.training);
        replace(&mut lora.rank, own.rank);
        replace(&mut lora.alpha, own.alpha);
        replace(&mut lora.targets, own.targets.clone());
        replace(&mut lora.rslora, own.rslora);
        replace(&mut lora.dropout, own.dropout);
        replace(&mut training.learning_rate, own.learning_rate);
        replace(&mut training.epochs, own.epochs);
        section
    }

    /// The different settings of `domains` experts.
    pub(crate) fn loras(&self, domains: usize) -> Vec<LoraConfig> {
        let common = (self.domains.len() < domains).then(|| self.lora.clone());
        common.into_iter().chain(self.domains.keys().map(|name| self.of(name).lora)).collect()
    }

    /// Everything that is wrong with it, each with the section that it stands in.
    pub(crate) fn faults(&self) -> Vec<(String, String)> {
        let mut faults = Vec::new();
        let mut add = |section: &Self, key: &str| {
            faults.extend(section.lora.faults().into_iter().map(|what| (key.to_owned(), what)));
            let training = if key == "expert" { "expert.training" } else { key };
            faults.extend(section.training.faults().into_iter().map(|what| (training.to_owned(), what)));
        };
        add(&self.common(), "expert");
        for name in self.domains.keys() {
            add(&self.of(name), &format!("expert.domains.{name}"));
        }
        faults
    }

    /// Every rank that is too large for a module of `model`, each with the section that it stands in.
    pub(crate) fn misfits(&self, model: &ModelConfig) -> Vec<(String, String)> {
        let named = self.domains.keys().map(|name| (format!("expert.domains.{name}"), self.of(name)));
        std::iter::once(("expert".to_owned(), self.common()))
            .chain(named)
            .filter_map(|(key, section)| Some((key, section.lora.misfit(model)?)))
            .collect()
    }
}

fn replace<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}
