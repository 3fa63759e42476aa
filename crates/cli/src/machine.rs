//! What this machine is: processor, memory, disk.

use std::{fs, path::Path};

use serde::{Deserialize, Serialize};

/// The machine as runs and reports record it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) host: String,
    /// Operating system and its release.
    pub(crate) system: String,
    pub(crate) architecture: String,
    pub(crate) processor: String,
    /// Instruction sets that matter here, the fastest first.
    pub(crate) features: Vec<String>,
    /// Threads that may run at once.
    pub(crate) cores: usize,
    /// Memory that this process may use, in bytes.
    pub(crate) memory: Option<u64>,
    /// Of it, now unused.
    pub(crate) memory_free: Option<u64>,
}

impl Machine {
    pub(crate) fn detect() -> Self {
        let names = rustix::system::uname();
        let text = |s: &std::ffi::CStr| s.to_string_lossy().into_owned();
        Self {
            host: text(names.nodename()),
            system: format!("{} {}", text(names.sysname()), text(names.release())),
            architecture: std::env::consts::ARCH.to_owned(),
            processor: processor().unwrap_or_else(|| "unknown".to_owned()),
            features: features(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory: memory("MemTotal")
                .map(|total| control_group_limit().map_or(total, |limit| limit.min(total))),
            memory_free: memory("MemAvailable"),
        }
    }
}

/// Field `name` of a file of `name: value` lines, as `/proc` has them.
fn field(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let value = text.lines().filter_map(|line| line.split_once(':')).find(|(key, _)| key.trim() == name)?.1;
    Some(value.trim().to_owned())
}

fn kilobytes(path: &str, name: &str) -> Option<u64> {
    field(path, name)?.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

fn processor() -> Option<String> {
    ["model name", "Model", "CPU part"].iter().find_map(|name| field("/proc/cpuinfo", name))
}

fn memory(name: &str) -> Option<u64> {
    kilobytes("/proc/meminfo", name)
}

fn control_group_limit() -> Option<u64> {
    fs::read_to_string("/sys/fs/cgroup/memory.max").ok()?.trim().parse().ok()
}

/// The memory that this process holds now, in bytes.
pub(crate) fn held_memory() -> Option<u64> {
    kilobytes("/proc/self/status", "VmRSS")
}

/// Memory of the machine that is unused now, or may be freed at once, in bytes.
pub(crate) fn unused_memory() -> Option<u64> {
    memory("MemAvailable")
}

/// The most memory that this process has held so far, in bytes.
pub(crate) fn peak_memory() -> Option<u64> {
    kilobytes("/proc/self/status", "VmHWM")
}

/// Makes [`peak_memory`] count from now on; false where the system does not offer it.
pub(crate) fn reset_peak_memory() -> bool {
    fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// Bytes that can still be written to the disk of `path`, which need not exist yet.
pub(crate) fn free_disk(path: &Path) -> Option<u64> {
    let existing = path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("."));
    let stat = rustix::fs::statvfs(existing).ok()?;
    stat.f_bavail.checked_mul(stat.f_frsize)
}

#[cfg(target_arch = "x86_64")]
fn features() -> Vec<String> {
    // The library's detection has no name for AMX on stable Rust; the kernel lists it.
    let flags = field("/proc/cpuinfo", "flags").unwrap_or_default();
    let listed = |name| flags.split_whitespace().any(|flag| flag == name);
    let found = [
        ("amx_bf16", listed("amx_bf16")),
        ("avx512_bf16", listed("avx512_bf16")),
        ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("fma", std::arch::is_x86_feature_detected!("fma")),
    ];
    found.into_iter().filter(|(_, there)| *there).map(|(name, _)| name.to_owned()).collect()
}

#[cfg(target_arch = "aarch64")]
fn features() -> Vec<String> {
    let found = [
        ("bf16", std::arch::is_aarch64_feature_detected!("bf16")),
        ("neon", std::arch::is_aarch64_feature_detected!("neon")),
    ];
    found.into_iter().filter(|(_, there)| *there).map(|(name, _)| name.to_owned()).collect()
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn features() -> Vec<String> {
    Vec::new()
}
