//! The mixse command line: arguments and files become one checked [`config::Config`], which drives the library crates.
//!
//! Start reading at [`args`] (what can be typed), then [`commands`] (what each command does).

mod args;
mod commands;
mod config;
mod device;
mod identity;
mod machine;
mod output;
mod output_directory;
mod pipeline;
mod progress;
mod pull;
mod terminal;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // Generated code is run by this program started again.
    if let Some(code) = pipeline::launcher_main() {
        return code;
    }
    output::show_notices();
    output::exit_code(commands::run(args::Cli::parse()))
}
