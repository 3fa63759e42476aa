//! Where things are in a run directory.

use std::path::PathBuf;

pub(super) fn brainstormed(domain: &str, shard: usize) -> PathBuf {
    format!("data/shards/{domain}.brainstorm.{shard}.jsonl").into()
}

pub(super) fn selection(domain: &str) -> PathBuf {
    format!("data/shards/{domain}.selection.json").into()
}

pub(super) fn responded(domain: &str, shard: usize) -> PathBuf {
    format!("data/shards/{domain}.respond.{shard}.jsonl").into()
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

pub(super) fn expert(domain: &str) -> PathBuf {
    format!("experts/{domain}").into()
}

pub(super) fn expert_losses(domain: &str) -> PathBuf {
    format!("losses/{domain}.json").into()
}

pub(super) fn router() -> PathBuf {
    "router".into()
}

pub(super) fn router_losses() -> PathBuf {
    "losses/router.json".into()
}

pub(super) fn checks(method: &str, domain: &str, shard: usize) -> PathBuf {
    format!("eval/{method}/{domain}.{shard}.jsonl").into()
}

pub(super) fn routing() -> PathBuf {
    "eval/routing.json".into()
}
