//! One file a command.

mod doctor;
mod pull;
mod run;

use crate::args::{Cli, Command};

pub(crate) fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Pull(args) => pull::run(&args),
        Command::Doctor(args) => doctor::run(&args),
    }
}
