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
    check.all("router", config.router.router.faults(config.domains.len()));
    check.all("router.training", config.router.training.faults());
    check.positive("evaluation.items", config.evaluation.items);
    check.positive("evaluation.shards", config.evaluation.shards);
    check.faults
}

fn domains(config: &Config, check: &mut Check) {
    check.that(!config.domains.is_empty(), "domains", "names no domain");
    for (i, domain) in config.domains.iter().enumerate() {
        check.that(!domain.is_empty(), "domains", "has an empty name");
        check.that(!config.domains[..i].contains(domain), "domains", format!("{domain:?} is there twice"));
    }
}

fn generation(config: &Config, check: &mut Check) {
    let generation = &config.generation;
    check.positive("generation.prompts", generation.prompts);
    check.positive("generation.tasks", generation.tasks);
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
