//! The values that hold where a configuration says nothing.

use std::collections::BTreeMap;

use mixse_model::{
    engine::Precision,
    expert::LoraConfig,
    router::{GateScale, RouterConfig},
};
use mixse_selfmoe::{
    template::Style,
    train::{RidgeConfig, TrainConfig},
};

use super::{
    Config, Device, Evaluation, ExpertSection, Fit, Generation, MemoryLimit, Method, Preset, RouterSection,
    Threads, Verify,
};
use crate::pull::catalog::DEFAULT_MODEL;

impl Config {
    pub(crate) fn preset(preset: Preset) -> Self {
        match preset {
            Preset::Quick => quick(),
            Preset::Tuned => tuned(),
            Preset::Paper => paper(),
        }
    }
}

/// Sizes that two cores finish in minutes; smaller batches, so that there are enough steps. The paper samples tasks at
/// temperature 1.0; a base of 0.1 B parameters then writes mostly nonsense, and coherent tasks at 0.7.
fn quick() -> Config {
    let paper = paper();
    Config {
        generation: Generation {
            prompts: 80,
            tasks: 64,
            temperature: 0.7,
            top_p: 0.95,
            shards: 2,
            ..paper.generation
        },
        expert: ExpertSection {
            training: TrainConfig { batch_size: 8, ..paper.expert.training },
            ..paper.expert
        },
        router: RouterSection {
            training: TrainConfig { batch_size: 8, epochs: 3, ..paper.router.training },
            ..paper.router
        },
        evaluation: Evaluation { items: 40, shards: 1, ..paper.evaluation },
        ..paper
    }
}

/// What has measured best at the sizes of `quick` (docs/results.md): experts learn from the seeds too, and a router in closed form
/// shares each token out between two experts.
fn tuned() -> Config {
    let quick = quick();
    let mut router = RouterSection { fit: Fit::Ridge, ..quick.router };
    router.router.gate.top_k = 2;
    router.router.gate.scale = GateScale::Renormalized;
    Config { generation: Generation { with_seeds: true, ..quick.generation }, router, ..quick }
}

/// The values of the Self-MoE paper.
fn paper() -> Config {
    Config {
        base: DEFAULT_MODEL.to_owned(),
        domains: ["knowledge", "reasoning", "math", "coding"].map(str::to_owned).to_vec(),
        adapters: Vec::new(),
        seed: 0,
        device: Device::Cpu,
        portable: false,
        ignore_unused: false,
        precision: Precision::default(),
        threads: Threads::All,
        memory_limit: MemoryLimit::Auto,
        style: Style::Completion,
        parse_special: false,
        methods: Method::usual(),
        generation: Generation {
            prompts: 20_000,
            tasks: 5000,
            temperature: 1.0,
            top_p: 0.98,
            shown_seeds: 3,
            demonstrations: 5,
            verify: Verify::None,
            samples: 4,
            sample_temperature: 0.7,
            min_agreement: 0.5,
            answer_format: true,
            round_trip: false,
            min_round_trip: 0.0,
            balance: false,
            iterations: 1,
            rows: 5000,
            with_seeds: false,
            shards: 50,
        },
        expert: ExpertSection {
            lora: LoraConfig::default(),
            training: TrainConfig::default(),
            domains: BTreeMap::new(),
        },
        router: RouterSection {
            router: RouterConfig::default(),
            fit: Fit::LmLoss,
            domain_loss: 0.0,
            ridge: RidgeConfig::default(),
            // The paper does not say; at the experts' rate the router hardly moves from where it starts.
            training: TrainConfig { learning_rate: 1e-2, epochs: 1, ..TrainConfig::default() },
        },
        evaluation: Evaluation {
            items: 1_000_000,
            skip: 0,
            shots: 0,
            shot_list: 0,
            unseen_domains: Vec::new(),
            shards: 4,
            samples: 2,
        },
    }
}
