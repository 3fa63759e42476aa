//! Where things are in a run directory.

use std::path::{Path, PathBuf};

pub(super) fn brainstormed(domain: &str, shard: usize) -> PathBuf {
    format!("data/shards/{domain}.brainstorm.{shard}.jsonl").into()
}

pub(super) fn selection(domain: &str) -> PathBuf {
    format!("data/shards/{domain}.selection.json").into()
}

pub(super) fn responded(domain: &str, shard: usize) -> PathBuf {
    format!("data/shards/{domain}.respond.{shard}.jsonl").into()
}

pub(super) fn sampled(domain: &str, shard: usize) -> PathBuf {
    format!("data/shards/{domain}.sample.{shard}.jsonl").into()
}

pub(super) fn tests(domain: &str, shard: usize) -> PathBuf {
    format!("data/shards/{domain}.tests.{shard}.jsonl").into()
}

pub(super) fn round_trip(domain: &str, shard: usize) -> PathBuf {
    format!("data/shards/{domain}.round_trip.{shard}.jsonl").into()
}

pub(super) fn rows(domain: &str) -> PathBuf {
    format!("data/{domain}.jsonl").into()
}

pub(super) fn rejected(domain: &str) -> PathBuf {
    format!("data/{domain}.rejected.jsonl").into()
}

pub(super) fn funnel(domain: &str) -> PathBuf {
    format!("data/{domain}.funnel.json").into()
}

pub(super) fn quality(domain: &str) -> PathBuf {
    format!("data/{domain}.quality.json").into()
}

/// Data and experts of a round that is not the last.
pub(super) fn round(number: usize) -> PathBuf {
    format!("rounds/{number}").into()
}

/// What a method other than the run's own mixture has made.
pub(super) fn baseline(id: &str) -> PathBuf {
    Path::new("baselines").join(id)
}

/// One expert a domain, below `root`: the run directory itself or a baseline's.
pub(super) fn expert(root: &Path, domain: &str) -> PathBuf {
    root.join("experts").join(domain)
}

/// The run's own experts and router.
pub(super) fn main() -> PathBuf {
    PathBuf::new()
}

pub(super) fn router(root: &Path) -> PathBuf {
    root.join("router")
}

/// What a router fitted in closed form needs to know of a domain; `kind` says what the router reads.
pub(super) fn statistics(root: &Path, kind: &str, domain: &str) -> PathBuf {
    root.join("statistics").join(kind).join(format!("{domain}.safetensors"))
}

/// Losses of a training, by its task's name.
pub(super) fn losses(training: &str) -> PathBuf {
    format!("losses/{training}.json").into()
}

pub(super) fn checks(method: &str, domain: &str, shard: usize) -> PathBuf {
    format!("eval/{method}/{domain}.{shard}.jsonl").into()
}

pub(super) fn routing() -> PathBuf {
    "eval/routing.json".into()
}
