//! Values that cannot work, found before anything starts.

use super::{Config, load::Fault};

/// All faults of a configuration that can be seen without looking at files.
pub(super) fn faults(config: &Config) -> Vec<Fault> {
    let mut check = Check::default();
    check.that(!config.base.is_empty(), "base", "names no model");
    domains(config, &mut check);
    generation(config, &mut check);
    check.positive("expert.rank", config.expert.lora.rank);
    let alpha = config.expert.lora.alpha;
    check.that(alpha.is_finite() && alpha > 0.0, "expert.alpha", format!("{alpha} is not a number above 0"));
    check.that(!config.expert.lora.targets.is_empty(), "expert.targets", "names no module");
    check.all("expert.training", config.expert.training.faults());
    check.all("router", config.router.faults(config.domains.len()));
    check.positive("evaluation.items", config.evaluation.items);
    check.positive("evaluation.shards", config.evaluation.shards);
    evaluation_domains(config, &mut check);
    methods(config, &mut check);
    check.faults
}

fn domains(config: &Config, check: &mut Check) {
    check.that(!config.domains.is_empty(), "domains", "names no domain");
    for (i, domain) in config.domains.iter().enumerate() {
        check.that(!domain.is_empty(), "domains", "has an empty name");
        check.that(!config.domains[..i].contains(domain), "domains", format!("{domain:?} is there twice"));
    }
    for (i, adapter) in config.adapters.iter().enumerate() {
        let twice = config.adapters[..i].iter().any(|other| other.domain == adapter.domain);
        check.that(!twice, "adapters", format!("{:?} has two", adapter.domain));
    }
}

fn evaluation_domains(config: &Config, check: &mut Check) {
    let unseen = &config.evaluation.unseen_domains;
    for (i, domain) in unseen.iter().enumerate() {
        let twice = unseen[..i].contains(domain) || config.domains.contains(domain);
        check.that(
            !twice,
            "evaluation.unseen_domains",
            format!("{domain:?} is there twice or has an expert"),
        );
    }
}

fn methods(config: &Config, check: &mut Check) {
    check.that(!config.methods.is_empty(), "methods", "names nothing to evaluate");
    for (i, method) in config.methods.iter().enumerate() {
        let twice = config.methods[..i].iter().any(|other| other.id() == method.id());
        check.that(!twice, "methods", format!("{method} is there twice"));
        if let Some(Err(faults)) = config.router_of(method) {
            faults.into_iter().for_each(|what| check.that(false, "methods", format!("{method}: {what}")));
        }
    }
}

fn generation(config: &Config, check: &mut Check) {
    let generation = &config.generation;
    check.positive("generation.prompts", generation.prompts);
    check.positive("generation.tasks", generation.tasks);
    check.positive("generation.rows", generation.rows);
    check.positive("generation.samples", generation.samples);
    let temperature = generation.sample_temperature;
    check.that(
        temperature > 0.0 && temperature <= 10.0,
        "generation.sample_temperature",
        format!("{temperature} is not above 0 and at most 10"),
    );
    let agreement = generation.min_agreement;
    check.that(
        agreement > 0.0 && agreement <= 1.0,
        "generation.min_agreement",
        format!("{agreement} is not above 0 and at most 1"),
    );
    let most = generation.prompts.min(generation.tasks).max(1);
    check.that(
        (1..=most).contains(&generation.shards),
        "generation.shards",
        format!("{} is not within 1 to {most}", generation.shards),
    );
    if let Err(e) = config.recipe_settings().validate() {
        check.that(false, "generation", e.to_string());
    }
}

#[derive(Default)]
struct Check {
    faults: Vec<Fault>,
}

impl Check {
    fn that(&mut self, holds: bool, key: &str, otherwise: impl Into<String>) {
        if !holds {
            self.faults.push(Fault::new(key, otherwise));
        }
    }

    fn positive(&mut self, key: &str, value: usize) {
        self.that(value > 0, key, "must be at least 1");
    }

    /// What a part of the configuration says about itself.
    fn all(&mut self, section: &str, faults: Vec<String>) {
        self.faults.extend(faults.into_iter().map(|what| Fault::new(section, what)));
    }
}
