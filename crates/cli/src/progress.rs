//! Progress: bars on a terminal, a plain line now and then elsewhere.

use std::{
    io::{self, IsTerminal},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

use crate::{output::note, terminal::printable};

/// Between two plain lines of one piece of work.
const LINE_EVERY: Duration = Duration::from_secs(10);

fn on_terminal() -> bool {
    io::stderr().is_terminal()
}

/// Work of unknown length.
#[derive(Debug)]
pub(crate) struct Spinner(Option<ProgressBar>);

impl Spinner {
    pub(crate) fn new(message: String) -> Self {
        if !on_terminal() {
            note(format_args!("{message} …"));
            return Self(None);
        }
        let bar = ProgressBar::new_spinner().with_message(printable(&message).into_owned());
        bar.enable_steady_tick(Duration::from_millis(120));
        Self(Some(bar))
    }

    pub(crate) fn finish(self) {
        if let Some(bar) = self.0 {
            bar.finish_and_clear();
        }
    }
}

/// Work that is counted in items, and in tokens where it makes or reads some.
#[derive(Debug)]
pub(crate) struct Progress {
    label: String,
    total: u64,
    tokens: u64,
    started: Instant,
    last_line: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// `unit` names the items in the plural: rows, steps, items.
    pub(crate) fn new(label: &str, unit: &str, total: u64) -> Self {
        let bar = on_terminal().then(|| {
            let template =
                format!("{{prefix:28}} {{bar:30}} {{pos}}/{{len}} {unit} {{msg}} {{elapsed}} < {{eta}}");
            let style =
                ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::new(total).with_style(style).with_prefix(printable(label).into_owned());
            bar.enable_steady_tick(Duration::from_millis(500));
            bar
        });
        let now = Instant::now();
        Self { label: format!("{label} ({unit})"), total, tokens: 0, started: now, last_line: now, bar }
    }

    /// `done` items in all, those of earlier attempts included; `tokens` more tokens.
    pub(crate) fn set(&mut self, done: u64, tokens: u64) {
        self.tokens += tokens;
        match &self.bar {
            Some(bar) => {
                bar.set_message(self.speed());
                bar.set_position(done);
            }
            None if self.last_line.elapsed() >= LINE_EVERY => {
                self.last_line = Instant::now();
                note(format_args!("{} {done}/{} {}", self.label, self.total, self.speed()));
            }
            None => {}
        }
    }

    /// Since the start.
    pub(crate) fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.started.elapsed().as_secs_f64().max(1e-3)
    }

    fn speed(&self) -> String {
        if self.tokens == 0 { String::new() } else { format!("{:.0} tokens/s", self.tokens_per_second()) }
    }

    pub(crate) fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}
