//! The mixse command line: arguments and files are checked here, then drive the library crates.
//!
//! Start reading at [`args`] (what can be typed), then [`commands`] (what each command does).

mod args;
mod commands;
mod machine;
mod output;
mod progress;
mod pull;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    output::exit_code(commands::run(args::Cli::parse()))
}
