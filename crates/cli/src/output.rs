//! What reaches the terminal: results on standard output, everything else on standard error, and the exit code.

use std::{
    collections::HashSet,
    fmt,
    io::{self, IsTerminal, Write},
    process::ExitCode,
    sync::{LazyLock, Mutex},
};

use serde::Serialize;

use crate::terminal::printable;

/// Marks an error as the caller's: bad arguments or a bad configuration (exit code 2).
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct UsageError(String);

/// An error of that kind.
pub(crate) fn usage_error(message: impl Into<String>) -> anyhow::Error {
    UsageError(message.into()).into()
}

/// 0 for success, 1 for a failure, 2 for wrong usage. A reader that went away (`mixse … | head`) is success.
pub(crate) fn exit_code(result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    if is_closed_pipe(&error) {
        return ExitCode::SUCCESS;
    }
    // Nothing is left to tell if standard error is closed too.
    let _ = writeln!(io::stderr().lock(), "mixse: {}", printable(&Chain(&error).to_string()));
    if error.chain().any(|cause| cause.is::<UsageError>()) { ExitCode::from(2) } else { ExitCode::FAILURE }
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<StdoutError>().is_some_and(|e| e.0.kind() == io::ErrorKind::BrokenPipe)
    })
}

/// An error and its causes on one line, a cause that the text before it already quotes left out.
struct Chain<'a>(&'a anyhow::Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = self.0.to_string();
        write!(f, "{said}")?;
        for cause in self.0.chain().skip(1) {
            let text = cause.to_string();
            if !said.contains(&text) {
                write!(f, ": {text}")?;
                said = text;
            }
        }
        Ok(())
    }
}

/// Standard output could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output: {0}")]
struct StdoutError(io::Error);

/// How a command's result is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// Lines for people.
    Text,
    /// One JSON value for programs.
    Json,
}

/// Prints a command's result in the wanted format.
pub(crate) fn print<T: Serialize + fmt::Display>(format: Format, result: &T) -> anyhow::Result<()> {
    match format {
        Format::Text => write_stdout(&result.to_string()),
        Format::Json => write_stdout(&serde_json::to_string(result)?),
    }
}

/// Prints a JSON value on one line.
pub(crate) fn print_json(value: &serde_json::Value) -> anyhow::Result<()> {
    write_stdout(&value.to_string())
}

fn write_stdout(text: &str) -> anyhow::Result<()> {
    let end = if text.ends_with('\n') { "" } else { "\n" };
    write_foreign(&format!("{text}{end}"))
}

/// Writes text that may come from a model or a file: as it is into a file or pipe, without commands to a terminal.
pub(crate) fn write_foreign(text: &str) -> anyhow::Result<()> {
    if io::stdout().is_terminal() { write_piece(&printable(text)) } else { write_piece(text) }
}

/// Writes a part of a result that comes in pieces, as it is.
pub(crate) fn write_piece(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    write!(out, "{text}").and_then(|()| out.flush()).map_err(|e| StdoutError(e).into())
}

/// Tells the user something that is not the command's result.
pub(crate) fn note(message: impl fmt::Display) {
    note_styled(printable(&message.to_string()));
}

/// As [`note`], for a message with commands to the terminal in it. What comes from elsewhere must be made
/// [`printable`] before.
pub(crate) fn note_styled(message: impl fmt::Display) {
    // A closed standard error must not stop the work.
    let _ = writeln!(io::stderr().lock(), "{message}");
}

/// Passes on what the library crates say about files, each thing once.
struct Notices(Mutex<HashSet<String>>);

static NOTICES: LazyLock<Notices> = LazyLock::new(|| Notices(Mutex::new(HashSet::new())));

impl log::Log for Notices {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        // What dependencies log is for their own developers.
        metadata.level() <= log::Level::Warn && metadata.target().starts_with("mixse")
    }

    fn log(&self, record: &log::Record<'_>) {
        let message = record.args().to_string();
        if self.enabled(record.metadata()) && self.0.lock().is_ok_and(|mut said| said.insert(message.clone()))
        {
            note(format_args!("mixse: note: {message}"));
        }
    }

    fn flush(&self) {}
}

/// From here on, notices of the library crates reach standard error.
pub(crate) fn show_notices() {
    // It fails only where a logger was set before, and nothing here sets one.
    if log::set_logger(&*NOTICES).is_ok() {
        log::set_max_level(log::LevelFilter::Warn);
    }
}

/// `1234567` as `1.2 MB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_rounded_to_a_unit() {
        let check = |count, expected: &str| assert_eq!(bytes(count), expected);
        check(0, "0 B");
        check(999, "999 B");
        check(1000, "1.0 kB");
        check(98_362_432, "98.4 MB");
        check(999_999_999, "1.0 GB");
    }

    #[test]
    fn a_cause_is_said_once() {
        let cause = io::Error::other("disk full");
        let error = anyhow::Error::new(cause).context("a.txt: disk full").context("saving");
        assert_eq!(Chain(&error).to_string(), "saving: a.txt: disk full");
    }
}
