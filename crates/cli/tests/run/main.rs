//! `mixse run` from nothing to the report, on a tiny model: the real binary in temporary directories, without network and
//! Python.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "helpers of tests may stop at a surprise as tests do")]

#[path = "../common/mod.rs"]
mod common;

mod commands;
mod experts;
mod methods;
mod refuse;
mod same;
mod tiny;
mod versions;
mod whole;
