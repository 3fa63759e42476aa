//! `mixse doctor`

mod check;

use std::{
    fmt,
    path::{Path, PathBuf},
    process::Command,
};

use mixse_eval::sandbox::{Capabilities, Python, Sandbox, Support};
use mixse_kernels::{Isa, isa};
use serde::Serialize;

use crate::{
    args::DoctorArgs,
    config::Device,
    machine::{Machine, free_disk},
    output::{bytes, print},
    pipeline::sandbox_launcher,
    pull::{Cache, catalog},
};

/// What the quick preset needs, in bytes.
const QUICK_MEMORY: u64 = 4_000_000_000;
const QUICK_DISK: u64 = 1_000_000_000;

pub(super) fn run(args: &DoctorArgs) -> anyhow::Result<()> {
    if args.check {
        return check::run(args.device.unwrap_or(Device::Cpu), args.json.format());
    }
    let cache = Cache::locate(args.cache.cache.as_deref())?;
    print(args.json.format(), &Diagnosis::new(&cache))
}

#[derive(Serialize)]
struct Diagnosis {
    version: &'static str,
    machine: Machine,
    instruction_sets: InstructionSets,
    /// Devices that this binary computes on.
    devices: Vec<&'static str>,
    /// First line of `python3 --version`.
    python: Option<String>,
    /// First line of `python3 -m pip --version`.
    pip: Option<String>,
    /// Which defences generated code can be run behind; absent without Python.
    sandbox: Option<Capabilities>,
    cache: Place,
    /// Names of the models that have been pulled.
    models: Vec<&'static str>,
    /// Where runs go by default.
    runs: Place,
    /// What will be slow or will not work, and why.
    warnings: Vec<String>,
}

/// What the kernels found.
#[derive(Serialize)]
struct InstructionSets {
    /// The one in use.
    active: &'static str,
    /// All that this machine has, slowest first.
    available: Vec<&'static str>,
}

impl InstructionSets {
    fn detect() -> Self {
        let available = Isa::ALL.into_iter().filter(|isa| isa.available()).map(Isa::name).collect();
        Self { active: isa::active().isa().name(), available }
    }
}

#[derive(Serialize)]
struct Place {
    path: PathBuf,
    free: Option<u64>,
}

impl Place {
    fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), free: free_disk(path) }
    }
}

impl Diagnosis {
    fn new(cache: &Cache) -> Self {
        let mut diagnosis = Self {
            version: env!("CARGO_PKG_VERSION"),
            machine: Machine::detect(),
            instruction_sets: InstructionSets::detect(),
            devices: Device::ALL.into_iter().filter(|d| d.is_built()).map(Device::name).collect(),
            python: first_line("python3", &["--version"]),
            pip: first_line("python3", &["-m", "pip", "--version"]),
            sandbox: sandbox_capabilities(),
            cache: Place::new(cache.directory()),
            models: catalog::MODELS.iter().filter(|m| cache.find(m).is_some()).map(|m| m.name).collect(),
            runs: Place::new(Path::new("runs")),
            warnings: Vec::new(),
        };
        diagnosis.warnings = diagnosis.find_warnings();
        diagnosis
    }

    fn find_warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let has = |name: &str| self.machine.features.iter().any(|feature| feature == name);
        match self.machine.architecture.as_str() {
            "x86_64" if !has("avx2") || !has("fma") => {
                warnings.push(
                    "the processor has no AVX2 with FMA: everything runs on portable code, many times slower"
                        .into(),
                );
            }
            "x86_64" if !has("amx_bf16") && !has("avx512_bf16") => {
                warnings.push("the processor has no bf16 instructions (AMX or AVX-512): products run in f32, several times slower".into());
            }
            "x86_64" if !has("amx_bf16") => {
                warnings.push(
                    "the processor has no AMX: training and large batches are slower than on one that has"
                        .into(),
                );
            }
            "x86_64" | "aarch64" => {}
            other => warnings.push(format!(
                "there are no kernels for {other}: everything runs on portable code, many times slower"
            )),
        }
        if self.machine.cores == 1 {
            warnings.push("there is one core only: the quick preset takes about twice its usual time".into());
        }
        if let Some(memory) = self.machine.memory_free.or(self.machine.memory)
            && memory < QUICK_MEMORY
        {
            warnings.push(format!(
                "{} of memory are free; the quick preset may need {}",
                bytes(memory),
                bytes(QUICK_MEMORY)
            ));
        }
        for place in [&self.cache, &self.runs] {
            if let Some(free) = place.free
                && free < QUICK_DISK
            {
                let path = place.path.display();
                warnings.push(format!(
                    "{} are free for {path}; a run and its model need {}",
                    bytes(free),
                    bytes(QUICK_DISK)
                ));
            }
        }
        if self.sandbox.as_ref().is_some_and(|sandbox| !sandbox.minimum()) {
            warnings.push("generated code cannot be run safely here (it needs seccomp, and namespaces or Landlock): coding answers are skipped".into());
        }
        match (&self.python, &self.pip) {
            (None, _) => warnings.push(
                "python3 was not found: coding answers cannot be tested, and models cannot be pulled out of Python packages".into(),
            ),
            (Some(_), None) => warnings.push("this Python has no pip: models cannot be pulled out of Python packages".into()),
            _ => {}
        }
        warnings
    }
}

fn first_line(program: &str, arguments: &[&str]) -> Option<String> {
    let output =
        Command::new(program).args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).lines().next()?.trim().to_owned())
}

/// Tries the defences out.
fn sandbox_capabilities() -> Option<Capabilities> {
    let python = Python::find().ok()?;
    Some(Sandbox::probe(&sandbox_launcher().ok()?, &python))
}

fn defences(found: &Capabilities) -> String {
    let all = [
        ("namespaces", &found.namespaces),
        ("other user", &found.other_user),
        ("landlock", &found.landlock),
        ("seccomp", &found.seccomp),
    ];
    let state = |support: &Support| match support {
        Support::Available => "yes",
        Support::NotNeeded => "not needed",
        Support::Missing(_) => "no",
    };
    all.map(|(name, support)| format!("{name} {}", state(support))).join(", ")
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let machine = &self.machine;
        let size = |count: Option<u64>| count.map_or("unknown".to_owned(), bytes);
        let list = |words: &[String]| if words.is_empty() { "none".to_owned() } else { words.join(" ") };
        let words = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let missing = || "not found".to_owned();
        let place = |p: &Place| format!("{} ({} free)", p.path.display(), size(p.free));
        let rows = [
            ("mixse", self.version.to_owned()),
            ("system", format!("{}, {}", machine.system, machine.architecture)),
            ("processor", format!("{}, {} threads", machine.processor, machine.cores)),
            ("features", list(&machine.features)),
            (
                "kernels",
                format!(
                    "{}, of {}",
                    self.instruction_sets.active,
                    self.instruction_sets.available.join(", ")
                ),
            ),
            ("memory", format!("{}, {} free", size(machine.memory), size(machine.memory_free))),
            ("devices", list(&words(&self.devices))),
            ("python", self.python.clone().unwrap_or_else(missing)),
            ("pip", self.pip.clone().unwrap_or_else(missing)),
            ("sandbox", self.sandbox.as_ref().map_or_else(missing, defences)),
            ("cache", place(&self.cache)),
            ("models", list(&words(&self.models))),
            ("runs", place(&self.runs)),
        ];
        for (name, value) in rows {
            writeln!(f, "{name:10} {value}")?;
        }
        if self.warnings.is_empty() {
            return writeln!(f, "\nNothing stands in the way.");
        }
        writeln!(f)?;
        self.warnings.iter().try_for_each(|warning| writeln!(f, "warning: {warning}"))
    }
}
