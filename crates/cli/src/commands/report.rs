//! `mixse report`: a run's page, made again from its files.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::Args;
use mixse_files::write_atomic;
use serde::Serialize;

use crate::{
    args::JsonFlag,
    output::{print, usage_error},
    pipeline::{Outline, RunDirectory, open_domains},
};

/// Make a run's report page again from its files, also of a run that is not finished.
///
/// The base model is not needed. What an unfinished run does not have yet is named on the page and in the output.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mixse report runs/quick                      write runs/quick/report.html again
  mixse report runs/mine --out now.html        how far is it? the run itself is not touched
  mixse report runs/mine --out now.html --json
  mixse report runs/mine --bench-data DIR      with the overlap with benchmark files")]
pub(crate) struct ReportArgs {
    /// Run directory.
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Where the page goes [default: RUN/report.html].
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Also look for text that the rows share with the benchmark files (`*.jsonl`) of this directory.
    #[arg(long, value_name = "DIR")]
    bench_data: Option<PathBuf>,
    #[command(flatten)]
    json: JsonFlag,
}

/// How a page begins.
const PAGE: &str = "<!doctype html>";

#[derive(Serialize)]
struct Done {
    report: PathBuf,
    finished: bool,
    /// What the run does not have yet.
    missing: Vec<String>,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "report: {}", self.report.display())?;
        if !self.finished {
            writeln!(f, "the run is not finished; not there yet:")?;
        }
        self.missing.iter().try_for_each(|part| writeln!(f, "  {part}"))
    }
}

/// Refuses to replace a file that is no page: a configuration, rows, weights.
fn refuse_other_file(path: &Path) -> anyhow::Result<()> {
    let is_page = |start: &[u8]| String::from_utf8_lossy(start).trim_start().starts_with(PAGE);
    match mixse_files::read_prefix(path, 64) {
        Ok(start) if is_page(&start) || start.is_empty() => Ok(()),
        Ok(_) => Err(usage_error(format!(
            "{} is a file and no report page: it is not replaced; choose another --out",
            path.display()
        ))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(usage_error(format!("{}: {e}; choose another --out", path.display()))),
    }
}

pub(super) fn run(args: &ReportArgs) -> anyhow::Result<()> {
    let (run, config) = RunDirectory::existing(&args.run)?;
    let domains = open_domains(&config)?;
    let remade =
        Outline { config: &config, domains: &domains }.remake_report(&run, args.bench_data.as_deref())?;
    let report = args.out.clone().unwrap_or_else(|| args.run.join("report.html"));
    refuse_other_file(&report)?;
    write_atomic(&report, remade.html.as_bytes())
        .with_context(|| format!("cannot write {}", report.display()))?;
    print(args.json.format(), &Done { report, finished: remade.missing.is_empty(), missing: remade.missing })
}
