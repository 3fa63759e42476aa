//! Values that cannot work, found before anything starts.

use mixse_model::expert::LoraConfig;
use mixse_selfmoe::template::Style;

use super::{Config, Form, Method, Verify, load::Fault};

/// More would fill the context of small models.
const MAX_SHOTS: usize = 16;

/// All faults of a configuration that can be seen without looking at files.
pub(super) fn faults(config: &Config) -> Vec<Fault> {
    let mut check = Check::default();
    check.that(!config.base.is_empty(), "base", "names no model");
    domains(config, &mut check);
    generation(config, &mut check);
    check.faults.extend(config.expert.faults().into_iter().map(|(key, what)| Fault::new(key, what)));
    check.all("router", config.router.faults(config.domains.len()));
    check.positive("evaluation.items", config.evaluation.items);
    check.positive("evaluation.shards", config.evaluation.shards);
    check.that(
        config.evaluation.shots <= MAX_SHOTS,
        "evaluation.shots",
        format!("{} is more than {MAX_SHOTS}", config.evaluation.shots),
    );
    check.that(
        config.evaluation.shots == 0 || config.style == Style::Completion,
        "evaluation.shots",
        "needs style = \"completion\"",
    );
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
        let loras = config.expert.loras(config.domains.len());
        let alike =
            |same: &dyn Fn(&LoraConfig, &LoraConfig) -> bool| loras.windows(2).all(|p| same(&p[0], &p[1]));
        match method {
            Method::Joint => check.that(
                alike(&|a, b| a.dropout == b.dropout),
                "methods",
                "joint: experts that are trained together have one dropout, expert.domains gives several",
            ),
            Method::Merged(merging) if merging.form == Form::Factors => check.that(
                alike(&|a, b| a.rank == b.rank && a.targets == b.targets),
                "methods",
                format!(
                    "{method}: factors of different ranks or modules cannot be added; leave form=factors out"
                ),
            ),
            _ => {}
        }
        if let Some(Err(faults)) = config.router_of(method) {
            faults.into_iter().for_each(|what| check.that(false, "methods", format!("{method}: {what}")));
        }
    }
}

/// More rounds only repeat what the experts already write.
const MAX_ITERATIONS: usize = 9;

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
    check.that(
        (0.0..=1.0).contains(&generation.min_round_trip),
        "generation.min_round_trip",
        format!("{} is not within 0 to 1", generation.min_round_trip),
    );
    check.that(
        generation.round_trip || generation.min_round_trip == 0.0,
        "generation.min_round_trip",
        "needs generation.round_trip = true",
    );
    check.that(
        !generation.balance || generation.verify != Verify::None,
        "generation.balance",
        "needs rows with an agreement: set generation.verify",
    );
    check.that(
        (1..=MAX_ITERATIONS).contains(&generation.iterations),
        "generation.iterations",
        format!("{} is not within 1 to {MAX_ITERATIONS}", generation.iterations),
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
