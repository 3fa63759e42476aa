//! One file a command.

mod bench;
mod chat;
mod doctor;
mod eval;
mod expert;
mod export;
mod generate;
mod inspect;
mod merge;
mod opened;
mod pull;
mod report;
mod run;
mod serve;
mod served;
mod study;
mod train;

pub(crate) use bench::BenchArgs;
pub(crate) use chat::ChatArgs;
pub(crate) use eval::EvalArgs;
pub(crate) use expert::ExpertArgs;
pub(crate) use export::ExportArgs;
pub(crate) use generate::GenerateArgs;
pub(crate) use inspect::InspectArgs;
pub(crate) use merge::MergeArgs;
pub(crate) use report::ReportArgs;
pub(crate) use serve::ServeArgs;
pub(crate) use study::StudyArgs;
pub(crate) use train::TrainArgs;

use crate::{
    args::{Cli, Command},
    output::usage_error,
};

pub(crate) fn run(cli: Cli) -> anyhow::Result<()> {
    // The kernels themselves ignore a request that cannot be met.
    mixse_kernels::isa::forced().map_err(|e| usage_error(e.to_string()))?;
    match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Pull(args) => pull::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Chat(args) => chat::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Expert(args) => expert::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Merge(args) => merge::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Study(args) => study::run(&args),
        Command::Train(args) => train::run(&args),
    }
}
