//! A few counters in Prometheus's text format.

use std::{
    fmt::Write,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
};

/// What the server has done since it started.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    /// Requests that were taken.
    pub(crate) requests: AtomicU64,
    /// Requests that were refused, because there were too many.
    pub(crate) refused: AtomicU64,
    /// Requests whose client went away before the end.
    pub(crate) abandoned: AtomicU64,
    /// Tokens of prompts.
    pub(crate) prompt_tokens: AtomicU64,
    /// Tokens written.
    pub(crate) generated_tokens: AtomicU64,
    /// Requests that run or wait now.
    pub(crate) in_flight: AtomicUsize,
}

impl Metrics {
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        let mut line = |name: &str, kind: &str, help: &str, value: u64| {
            // Writing to a string cannot fail.
            let _ =
                write!(out, "# HELP mixse_{name} {help}\n# TYPE mixse_{name} {kind}\nmixse_{name} {value}\n");
        };
        line("requests_total", "counter", "Requests taken.", self.requests.load(Relaxed));
        line(
            "requests_refused_total",
            "counter",
            "Requests refused for too many.",
            self.refused.load(Relaxed),
        );
        line(
            "requests_abandoned_total",
            "counter",
            "Requests whose client left.",
            self.abandoned.load(Relaxed),
        );
        line("prompt_tokens_total", "counter", "Tokens of prompts.", self.prompt_tokens.load(Relaxed));
        line("generated_tokens_total", "counter", "Tokens written.", self.generated_tokens.load(Relaxed));
        line(
            "requests_in_flight",
            "gauge",
            "Requests that run or wait.",
            self.in_flight.load(Relaxed) as u64,
        );
        out
    }
}
