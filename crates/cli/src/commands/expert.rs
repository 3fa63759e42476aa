//! `mixse expert`: experts join or leave a run; the others stay as they are.

use std::{fmt, path::PathBuf};

use clap::{Args, Subcommand};
use mixse_selfmoe::{domain, plan::Event};
use serde::Serialize;

use crate::{
    args::{CacheFlag, JsonFlag},
    commands::run::tell,
    config::{AdapterSource, Config, Fit, Threads, check, parse_name},
    output::{note, print, usage_error},
    pipeline::{Pipeline, RunDirectory},
    pull::Cache,
};

/// Add an expert to a run, or remove one; the other experts are not trained again.
///
/// Only what the mixture needs is computed: a new domain's data and expert, and the router. With `router.fit = "ridge"` the
/// router is solved from stored statistics of each domain (statistics/ in the run), so the rows of the other domains are not needed, and
/// need not be there any more. Other routers are trained again on the rows of all domains. `mixse run --out RUN` evaluates
/// the new mixture afterwards.
#[derive(Debug, Args)]
pub(crate) struct ExpertArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// A further domain joins.
    #[command(after_help = "\
Examples:
  mixse expert add runs/quick domains/chemistry             its data and expert are made
  mixse expert add runs/quick domains/sql --adapter lora    an adapter made elsewhere, of any rank
  mixse expert add runs/quick domains/sql --fit ridge       from now on with a router in closed form")]
    Add {
        #[command(flatten)]
        run: RunFlags,
        /// A built-in domain's name, or the folder of an own one.
        domain: String,
        /// Take the expert from this PEFT directory of the same base instead of training it.
        #[arg(long, value_name = "DIR")]
        adapter: Option<PathBuf>,
    },
    /// A domain leaves. Its data and expert stay on disk: if it is added again, nothing is made again.
    #[command(after_help = "\
Example:
  mixse expert remove runs/quick chemistry")]
    Remove {
        #[command(flatten)]
        run: RunFlags,
        /// The domain's name.
        domain: String,
    },
}

#[derive(Debug, Args)]
struct RunFlags {
    /// The run directory.
    #[arg(value_name = "RUN")]
    directory: PathBuf,
    /// How the router comes about from now on: lm_loss, ridge or ridge_then_lm_loss.
    #[arg(long, value_name = "HOW", value_parser = parse_name::<Fit>)]
    fit: Option<Fit>,
    /// Number of threads, or `all`; results do not depend on it.
    #[arg(long, value_name = "N")]
    threads: Option<Threads>,
    #[command(flatten)]
    cache: CacheFlag,
    #[command(flatten)]
    json: JsonFlag,
}

pub(super) fn run(args: &ExpertArgs) -> anyhow::Result<()> {
    match &args.what {
        What::Add { run, domain, adapter } => run.change(|config| add(config, domain, adapter.clone())),
        What::Remove { run, domain } => run.change(|config| remove(config, domain)),
    }
}

impl RunFlags {
    /// Gives the run another configuration and makes its mixture anew. Nothing is written before everything has been checked.
    fn change(&self, change: impl FnOnce(&mut Config) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let (run, mut config) = RunDirectory::existing(&self.directory)?;
        change(&mut config)?;
        config.router.fit = self.fit.unwrap_or(config.router.fit);
        check(&config)?;
        let threads = self.threads.unwrap_or(config.threads);
        let mut pipeline = Pipeline::new(Config { threads, ..config.clone() })?;
        if !pipeline.has_own_experts() {
            return Err(usage_error(format!(
                "{} only compares experts of the seeds and has no experts of its own; add another method first: mixse run --out {} --method mixture",
                self.directory.display(),
                self.directory.display()
            )));
        }
        pipeline.open_base(&Cache::locate(self.cache.cache.as_deref())?)?;
        let plan = pipeline.plan(&run)?;
        run.reconfigure(&config)?;
        let mut ran = Vec::new();
        let experts = pipeline.expert_names();
        let mut goals: Vec<String> = experts.iter().map(|name| format!("expert/{name}")).collect();
        goals.push("router".into());
        plan.run_up_to(&goals, &mut |event| {
            tell(&event);
            if let Event::Finished(id, _) = event {
                ran.push(id.to_owned());
                if let Err(e) = run.summarise(&plan) {
                    note(format_args!("{e:#}"));
                }
            }
        })?;
        run.summarise(&plan)?;
        let done = Done { run: self.directory.clone(), experts, ran };
        print(self.json.format(), &done)
    }
}

fn add(config: &mut Config, name: &str, adapter: Option<PathBuf>) -> anyhow::Result<()> {
    let domain = domain::find(name)?;
    let is_this = |other: &String| domain::find(other).is_ok_and(|other| other.name() == domain.name());
    if config.domains.iter().any(is_this) {
        return Err(usage_error(format!("the run has an expert for {} already", domain.name())));
    }
    config.evaluation.unseen_domains.retain(|other| !is_this(other));
    config.domains.push(name.to_owned());
    if let Some(path) = adapter {
        config
            .adapters
            .push(AdapterSource { domain: domain.name().to_owned(), path: std::path::absolute(path)? });
    }
    Ok(())
}

fn remove(config: &mut Config, name: &str) -> anyhow::Result<()> {
    let is_this =
        |written: &String| written == name || domain::find(written).is_ok_and(|found| found.name() == name);
    let Some(at) = config.domains.iter().position(is_this) else {
        return Err(usage_error(format!(
            "the run has no expert for {name:?}; its domains are: {}",
            config.domains.join(", ")
        )));
    };
    config.domains.remove(at);
    config.adapters.retain(|adapter| adapter.domain != name);
    Ok(())
}

/// What a call did.
#[derive(Serialize)]
struct Done {
    run: PathBuf,
    /// The mixture's experts now.
    experts: Vec<String>,
    /// Tasks that ran.
    ran: Vec<String>,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: a mixture of {}", self.run.display(), self.experts.join(", "))?;
        writeln!(f, "evaluate it with: mixse run --out {}", self.run.display())
    }
}
