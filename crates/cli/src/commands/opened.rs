//! `--model`, `--expert`, `--router`: a base model, alone or with experts, as several commands take it.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use mixse_model::{
    engine::{Engine, LoadOptions, Precision},
    expert_set::ExpertSet,
    generate::Runner,
    mixture::{Mixture, Routing},
    peft, router_files,
    tokenizer::ContentTokens,
    weights::Checkpoint,
};

use crate::{
    args::{CacheFlag, UnusedFlag},
    config::{Device, Threads, parse_name},
    device::load_options,
    identity::Arithmetic,
    output::usage_error,
    pipeline::RunDirectory,
    pull::{Cache, ModelSource, resolve_base, resolve_model},
};

/// Which model, and how it is held.
#[derive(Debug, Clone, Args)]
pub(crate) struct ModelFlags {
    /// A model: a name that `mixse pull` knows, a .gguf file, a Hugging Face directory, or a run directory (its mixture).
    #[arg(
        short,
        long,
        visible_alias = "base",
        value_name = "MODEL",
        default_value = "smollm2-135m-instruct"
    )]
    pub(crate) model: String,
    /// Where the model is held and computes; so far cpu alone.
    #[arg(long, value_enum, default_value_t = Device::Cpu)]
    pub(crate) device: Device,
    /// How frozen weights are kept: f32, bf16, int8 (for generation: products of integers, with activations rounded to 16 bits)
    /// or int4.
    #[arg(long, value_name = "KIND", default_value = "bf16", value_parser = parse_name::<Precision>)]
    pub(crate) precision: Precision,
    /// Number of threads, or `all`; results do not depend on it.
    #[arg(long, value_name = "N", default_value = "all")]
    pub(crate) threads: Threads,
    /// Run the portable operations, the slow reference of the tests; needs a build with the feature `reference`.
    #[arg(long)]
    pub(crate) portable: bool,
    /// Special tokens that texts, messages and rows spell (`<|im_end|>`) count as such. Without it they are text, and only a
    /// template writes special tokens.
    #[arg(long)]
    pub(crate) parse_special: bool,
    #[command(flatten)]
    pub(crate) unused: UnusedFlag,
    #[command(flatten)]
    pub(crate) cache: CacheFlag,
}

/// Experts on top of the model.
#[derive(Debug, Default, Args)]
pub(crate) struct ExpertFlags {
    /// A LoRA expert: a PEFT directory. Repeat it for several; without a router they are added up.
    #[arg(long = "expert", value_name = "DIR")]
    pub(crate) experts: Vec<PathBuf>,
    /// A router over the experts, in the order given: our layout or X-LoRA's.
    #[arg(long, value_name = "DIR", requires = "experts")]
    pub(crate) router: Option<PathBuf>,
}

/// A loaded model.
pub(crate) struct Opened {
    pub(crate) checkpoint: Checkpoint,
    pub(crate) engine: Engine,
    pub(crate) mixture: Option<Mixture>,
}

impl ModelFlags {
    /// Opens the base model's files without loading its weights.
    pub(crate) fn open_files(&self) -> anyhow::Result<Checkpoint> {
        let mut checkpoint = open_base_files(&self.model, self.unused, &self.cache)?;
        checkpoint.tokenizer.parse_content(ContentTokens::parsed_if(self.parse_special));
        Ok(checkpoint)
    }

    /// Opens and loads the base without experts; a run directory is refused.
    pub(crate) fn open_base(&self) -> anyhow::Result<Opened> {
        let options = self.options()?;
        self.load(&base_path(&self.model, &self.cache)?, &options)
    }

    /// Opens and loads the model with the experts asked for, or with a run's own.
    pub(crate) fn open(&self, flags: &ExpertFlags) -> anyhow::Result<Opened> {
        let options = self.options()?;
        let load = |path: &Path| self.load(path, &options);
        let cache = Cache::locate(self.cache.cache.as_deref())?;
        let (mut opened, experts, router) = match resolve_model(&self.model, &cache)? {
            ModelSource::Base(path) => (load(&path)?, flags.experts.clone(), flags.router.clone()),
            ModelSource::Run(run) => {
                if !flags.experts.is_empty() {
                    return Err(usage_error(format!("{} is a run with experts of its own", run.display())));
                }
                let RunParts { base, experts, router, parse_special } = run_parts(&run)?;
                let experts = experts.into_iter().map(|(_, directory)| directory).collect();
                let mut opened = load(&resolve_base(&base, &cache)?)?;
                // What the run was trained with holds for it here too.
                if parse_special {
                    opened.checkpoint.tokenizer.parse_content(ContentTokens::Parsed);
                }
                (opened, experts, Some(router))
            }
        };
        if !experts.is_empty() {
            opened.mixture = Some(opened.assemble(&experts, router.as_deref())?);
        }
        Ok(opened)
    }

    /// What decides how the model computes, in a few words: results may differ in their last digits between two of these.
    pub(crate) fn arithmetic(&self) -> String {
        let mut words = format!("{:?}", self.precision);
        if self.device != Device::Cpu {
            words += &format!(", {}", self.device.name());
        } else if self.portable {
            words += ", portable";
        }
        if self.parse_special {
            words += ", special tokens of content parsed";
        }
        words
    }

    /// Everything that decides the numbers that the model gives, besides its files, its experts and their router.
    pub(crate) fn arithmetic_key(&self) -> String {
        let of = Arithmetic { device: self.device, portable: self.portable };
        format!("{:?} {}", self.precision, of.value())
    }

    fn options(&self) -> anyhow::Result<LoadOptions> {
        load_options(self.device, self.precision, self.portable)
    }

    fn load(&self, path: &Path, options: &LoadOptions) -> anyhow::Result<Opened> {
        mixse_kernels::pool::set_threads(self.threads.count());
        let mut checkpoint = Checkpoint::open_with(path, self.unused.rule())?;
        checkpoint.tokenizer.parse_content(ContentTokens::parsed_if(self.parse_special));
        let engine = Engine::load(&checkpoint, options)?;
        Ok(Opened { checkpoint, engine, mixture: None })
    }
}

/// The files of the base model with this name; a run is refused.
fn base_path(model: &str, cache: &CacheFlag) -> anyhow::Result<PathBuf> {
    resolve_base(model, &Cache::locate(cache.cache.as_deref())?)
}

/// Opens the files of the base model with this name without loading its weights; a run is refused.
pub(crate) fn open_base_files(
    model: &str,
    unused: UnusedFlag,
    cache: &CacheFlag,
) -> anyhow::Result<Checkpoint> {
    Ok(Checkpoint::open_with(&base_path(model, cache)?, unused.rule())?)
}

/// The base model of some adapters: the one given, else the one that the first adapter names.
pub(crate) fn adapter_base(given: Option<&str>, experts: &[PathBuf]) -> anyhow::Result<String> {
    let recorded = match (given, experts.first()) {
        (Some(base), _) => return Ok(base.to_owned()),
        (None, Some(dir)) => peft::base_name(dir)?,
        (None, None) => None,
    };
    recorded.ok_or_else(|| usage_error("the adapter does not say which base it belongs to: give --base"))
}

/// What a run's mixture is made of.
pub(crate) struct RunParts {
    /// The base's name or path.
    pub(crate) base: String,
    /// The experts' names and directories, in the router's order.
    pub(crate) experts: Vec<(String, PathBuf)>,
    pub(crate) router: PathBuf,
    /// Special tokens of content are recognised.
    pub(crate) parse_special: bool,
}

/// The parts of a run that has got as far as its router.
pub(crate) fn run_parts(run: &Path) -> anyhow::Result<RunParts> {
    let (_, config) = RunDirectory::existing(run)?;
    let router = run.join("router");
    let names =
        router_files::experts(&router).context("the run has no router yet: `mixse run` it to the end")?;
    let directory = |name: String| {
        let directory = run.join("experts").join(&name);
        (name, directory)
    };
    let experts = names.into_iter().map(directory).collect();
    Ok(RunParts { base: config.base, experts, router, parse_special: config.parse_special })
}

impl Opened {
    /// The mixture of the adapters in `experts` with the router in `router`.
    fn assemble(&self, experts: &[PathBuf], router: Option<&Path>) -> anyhow::Result<Mixture> {
        let config = &self.engine.config;
        let read = experts
            .iter()
            .map(|dir| peft::read_for(dir, &self.checkpoint))
            .collect::<mixse_model::Result<Vec<_>>>()?;
        let set = ExpertSet::new(&read, config)?;
        let routing = match router {
            None => Routing::All,
            Some(dir) => {
                let hash = self.checkpoint.hash()?;
                Routing::Learned(router_files::read(dir, &set.names, config, Some(&hash))?)
            }
        };
        Ok(Mixture { experts: set, routing })
    }

    /// The model as something that generates and scores.
    pub(crate) fn runner(&self) -> Runner<'_> {
        Runner::new(&self.engine, &self.checkpoint.tokenizer, self.mixture.as_ref())
    }
}

/// Every expert of a set alone, counting fully.
pub(crate) fn single_experts(set: &ExpertSet) -> Vec<(String, Mixture)> {
    let gates = |index: usize| (0..set.len()).map(|i| if i == index { 1.0 } else { 0.0 }).collect();
    let single = |(index, name): (usize, &String)| {
        (name.clone(), Mixture { experts: set.clone(), routing: Routing::Fixed(gates(index)) })
    };
    set.names.iter().enumerate().map(single).collect()
}
