//! `mixse doctor --check`: every kernel against its formula.

use std::fmt;

use anyhow::bail;
use mixse_kernels::{
    Isa,
    check::{Amount, CHECKS, Check, Outcome},
    isa, pool,
};
use serde::Serialize;

use crate::{
    config::Device,
    output::{Format, print, usage_error},
};

/// Runs the checks and prints the table; an error if a kernel disagrees.
pub(super) fn run(device: Device, format: Format) -> anyhow::Result<()> {
    if device != Device::Cpu {
        return Err(usage_error(format!(
            "mixse has no kernels of its own for the device {}: only --device cpu can be checked",
            device.name()
        )));
    }
    let report = Report::new(device);
    print(format, &report)?;
    let wrong = report.kernels.iter().filter(|row| !row.agrees).count();
    if wrong > 0 {
        bail!(
            "{wrong} of {} checks disagree: results on this machine cannot be trusted; {} forces another instruction set",
            report.kernels.len(),
            isa::VARIABLE
        );
    }
    Ok(())
}

#[derive(Serialize)]
struct Report {
    device: &'static str,
    threads: usize,
    /// The instruction set that mixse uses here.
    instruction_set: &'static str,
    agrees: bool,
    kernels: Vec<Row>,
}

/// A kernel with an instruction set.
#[derive(Serialize)]
struct Row {
    kernel: &'static str,
    instruction_set: &'static str,
    /// The largest error, as the kernel's tolerance is meant; none where a value is not a finite number.
    error: Option<f64>,
    tolerance: f64,
    /// Where the tolerance comes from.
    reason: &'static str,
    agrees: bool,
    /// The shape and element with the largest error.
    at: String,
    /// Billions of additions and multiplications a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    gflops: Option<f64>,
    /// Billions of bytes a second, of kernels that do little but move them.
    #[serde(skip_serializing_if = "Option::is_none")]
    gbytes: Option<f64>,
}

impl Report {
    /// With every instruction set of this machine, or with the one that is forced.
    fn new(device: Device) -> Self {
        let active = isa::active().isa();
        let forced = isa::forced().ok().flatten().is_some();
        let sets = Isa::ALL.into_iter().filter(|isa| if forced { *isa == active } else { isa.available() });
        let sets: Vec<Isa> = sets.collect();
        let kernels: Vec<Row> =
            CHECKS.iter().flat_map(|check| sets.iter().map(|&isa| Row::new(check, check.run(isa)))).collect();
        Self {
            device: device.name(),
            threads: pool::threads(),
            instruction_set: active.name(),
            agrees: kernels.iter().all(|row| row.agrees),
            kernels,
        }
    }
}

impl Row {
    fn new(check: &Check, outcome: Outcome) -> Self {
        let agrees = outcome.agrees();
        let Outcome { kernel, isa, error, at, tolerance, speed } = outcome;
        let billions = |speed: f64| Some((speed * 1e-8).round() / 10.0);
        let (gflops, gbytes) = match speed {
            Amount::Operations(speed) => (billions(speed), None),
            Amount::Bytes(speed) => (None, billions(speed)),
        };
        let error = error.is_finite().then_some(error);
        let (instruction_set, reason) = (isa.name(), check.reason);
        Self { kernel, instruction_set, error, tolerance, reason, agrees, at, gflops, gbytes }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, {} threads, in use: {}\n", self.device, self.threads, self.instruction_set)?;
        writeln!(f, "{:26} {:9} {:>9} {:>9}  {:>14}", "kernel", "with", "error", "allowed", "speed")?;
        for row in &self.kernels {
            let error = row.error.map_or("none".to_owned(), |error| format!("{error:.1e}"));
            let speed = match (row.gflops, row.gbytes) {
                (Some(speed), _) => format!("{speed:.1} GFLOP/s"),
                (_, Some(speed)) => format!("{speed:.1} GB/s   "),
                _ => String::new(),
            };
            write!(
                f,
                "{:26} {:9} {error:>9} {:>9}  {speed:>14}",
                row.kernel,
                row.instruction_set,
                format!("{:.0e}", row.tolerance)
            )?;
            writeln!(f, "{}", if row.agrees { "" } else { "  WRONG" })?;
        }
        for row in self.kernels.iter().filter(|row| !row.agrees) {
            writeln!(f, "\n{} with {}: {}", row.kernel, row.instruction_set, row.at)?;
        }
        if self.agrees { writeln!(f, "\nEvery kernel agrees with its formula.") } else { Ok(()) }
    }
}
