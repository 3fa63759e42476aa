//! `mixse merge`: several experts become one adapter.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};
use mixse_model::{
    expert::Expert,
    peft::{self, Origin},
    weights::Checkpoint,
};
use mixse_selfmoe::merge::{self, Form, MergedExpert, Method};
use serde::Serialize;

use super::opened::{adapter_base, open_base_files};
use crate::{
    args::{CacheFlag, ForceFlag, JsonFlag, UnusedFlag},
    output::{print, usage_error},
    output_directory::{self, NO_DIRECTORIES},
};

/// Merge experts of one base into a single adapter, without any training.
///
/// Merging is done on the products B·A, whose sum is what experts add to a weight. The result is a PEFT directory like any
/// other expert. Without --rank nothing is lost and the rank is whatever that takes: the sum of the ranks for `linear`, a
/// full matrix for the others. --per-factor merges A and B apart, as PEFT's add_weighted_adapter does.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mixse merge --method linear --expert runs/quick/experts/math --expert runs/quick/experts/coding --out merged
  mixse merge --method ties --density 0.2 --rank 16 --expert a --expert b --expert c --out merged
  mixse merge --method dare-ties --density 0.5 --seed 1 --weights 1,0.5 --expert a --expert b --out merged --json
  mixse eval --expert merged --bench-data DIR --tasks gsm8k_cot")]
pub(crate) struct MergeArgs {
    /// How the experts' weights become one.
    #[arg(long, value_enum)]
    method: Kind,
    /// An expert: a PEFT directory. Repeat it.
    #[arg(long = "expert", value_name = "DIR", required = true)]
    experts: Vec<PathBuf>,
    /// One factor an expert, separated by commas [default: 1/n each; with ties and dare-ties, which average what agrees, 1].
    #[arg(long, value_name = "W", value_delimiter = ',', allow_negative_numbers = true)]
    weights: Vec<f64>,
    /// Share of each expert's entries that is kept, above 0 and at most 1 [default: 0.5; linear keeps all].
    #[arg(long, value_name = "SHARE")]
    density: Option<f64>,
    /// Of the random choice of dare [default: 0].
    #[arg(long)]
    seed: Option<u64>,
    /// Rank of the result: the closest such adapter, with what is lost reported.
    #[arg(long, value_name = "N", conflicts_with = "per_factor")]
    rank: Option<usize>,
    /// Merge A and B apart, as PEFT does; for comparison.
    #[arg(long)]
    per_factor: bool,
    /// The base model of the experts [default: the one that the first expert names].
    #[arg(long, value_name = "MODEL")]
    base: Option<String>,
    /// Where the merged adapter goes: a new or empty directory.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    unused: UnusedFlag,
    #[command(flatten)]
    force: ForceFlag,
    #[command(flatten)]
    cache: CacheFlag,
    #[command(flatten)]
    json: JsonFlag,
}

/// Methods of merging, as they are typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// The weighted sum.
    Linear,
    /// Keep the largest entries, elect a sign for each place, average what agrees with it.
    Ties,
    /// Drop entries at random, scale up the rest, add.
    #[value(alias = "dare")]
    DareLinear,
    /// Drop entries at random, then merge as ties does.
    DareTies,
}

#[derive(Serialize)]
struct Report {
    out: PathBuf,
    base: String,
    experts: Vec<String>,
    weights: Vec<f64>,
    method: Method,
    form: Form,
    /// The rank of most modules.
    rank: usize,
    parameters: usize,
    relative_error: Option<f64>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> =
            self.experts.iter().zip(&self.weights).map(|(e, w)| format!("{w:.4} · {e}")).collect();
        writeln!(f, "merged {} (base {})", parts.join(" + "), self.base)?;
        writeln!(f, "rank {}, {} parameters: {}", self.rank, self.parameters, self.out.display())?;
        match self.relative_error {
            Some(0.0) => writeln!(f, "nothing was lost"),
            Some(error) => writeln!(f, "the truncation lost {:.2} % of the norm", error * 100.0),
            None => writeln!(f, "A and B were merged apart: this is not the sum of the experts"),
        }
    }
}

pub(super) fn run(args: &MergeArgs) -> anyhow::Result<()> {
    let inputs = args.inputs();
    output_directory::check(&args.out, &inputs, args.force, NO_DIRECTORIES)?;
    let (method, form, weights) = (args.method(), args.form(), args.weights());
    let mut faults = merge::faults(args.experts.len(), &weights, method, form);
    faults.extend(args.contradictions());
    let opened = read_experts(args, &mut faults);
    let (checkpoint, base, experts) = match opened {
        Some(opened) if faults.is_empty() => opened,
        _ => return Err(usage_error(format!("these cannot be merged:\n  {}", faults.join("\n  ")))),
    };
    let model = &checkpoint.config;
    let name = args.out.file_name().map_or_else(|| "merged".into(), |name| name.to_string_lossy());
    let MergedExpert { expert, relative_error } =
        merge::merge_experts(&name, &experts, model, &weights, method, form)?;
    let origin = Origin { name: expert.name.clone(), base_hash: checkpoint.hash()? };
    let output = output_directory::create(&args.out, &inputs, args.force, NO_DIRECTORIES)?;
    peft::write(&expert, model, &base, &origin, output.path())?;
    output.commit()?;
    let report = Report {
        out: args.out.clone(),
        base,
        experts: experts.into_iter().map(|expert| expert.name).collect(),
        weights,
        method,
        form,
        rank: expert.config.rank,
        parameters: expert.parameters(),
        relative_error,
    };
    print(args.json.format(), &report)
}

impl MergeArgs {
    /// The paths that are read.
    fn inputs(&self) -> Vec<&Path> {
        self.experts.iter().map(PathBuf::as_path).chain(self.base.as_deref().map(Path::new)).collect()
    }

    fn method(&self) -> Method {
        let density = self.density.unwrap_or(0.5);
        let seed = self.seed.unwrap_or(0);
        match self.method {
            Kind::Linear => Method::Linear,
            Kind::Ties => Method::Ties { density },
            Kind::DareLinear => Method::DareLinear { density, seed },
            Kind::DareTies => Method::DareTies { density, seed },
        }
    }

    fn form(&self) -> Form {
        match (self.per_factor, self.rank) {
            (true, _) => Form::PerFactor,
            (false, Some(rank)) => Form::Truncated { rank },
            (false, None) => Form::Exact,
        }
    }

    fn weights(&self) -> Vec<f64> {
        if !self.weights.is_empty() {
            return self.weights.clone();
        }
        let each = match self.method {
            Kind::Linear | Kind::DareLinear => 1.0 / self.experts.len() as f64,
            Kind::Ties | Kind::DareTies => 1.0,
        };
        vec![each; self.experts.len()]
    }

    /// Settings that the chosen method does not have.
    fn contradictions(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.method == Kind::Linear && self.density.is_some() {
            faults.push(
                "density: linear merging keeps all entries; leave it out, or choose ties or dare".into(),
            );
        }
        if matches!(self.method, Kind::Linear | Kind::Ties) && self.seed.is_some() {
            faults.push("seed: only dare draws at random; leave it out".into());
        }
        faults
    }
}

/// Whether two paths name one directory.
fn is_same(one: &Path, other: &Path) -> bool {
    let place = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    place(one) == place(other)
}

/// The base's files, its name, and the experts. What is wrong with them is added to `faults`.
fn read_experts(args: &MergeArgs, faults: &mut Vec<String>) -> Option<(Checkpoint, String, Vec<Expert>)> {
    for (i, dir) in args.experts.iter().enumerate() {
        if args.experts[..i].iter().any(|other| is_same(other, dir)) {
            faults.push(format!("{} is there twice", dir.display()));
        }
    }
    let opened = adapter_base(args.base.as_deref(), &args.experts)
        .and_then(|base| Ok((open_base_files(&base, args.unused, &args.cache)?, base)));
    let (checkpoint, base) = match opened {
        Ok(opened) => opened,
        Err(e) => {
            faults.push(format!("{e:#}"));
            return None;
        }
    };
    let mut experts = Vec::new();
    for dir in &args.experts {
        match peft::read_for(dir, &checkpoint) {
            Ok(expert) => experts.push(expert),
            Err(e) => faults.push(e.to_string()),
        }
    }
    Some((checkpoint, base, experts))
}
