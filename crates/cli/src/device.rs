//! Where a base model is held and computes: the only place that knows which devices there are.

use mixse_model::engine::{LoadOptions, Precision, Processor};

use crate::{config::Device, output::usage_error};

impl Device {
    pub(crate) const ALL: [Self; 3] = [Self::Cpu, Self::Cuda, Self::Metal];

    /// Its name on the command line and in files.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Metal => "metal",
        }
    }

    /// This binary can compute there.
    pub(crate) fn is_built(self) -> bool {
        self == Self::Cpu
    }
}

/// How a base model is held. Refused before any work starts: a device that there is no backend for, and portable operations that the
/// binary was built without or at a precision that they do not have.
pub(crate) fn load_options(
    device: Device,
    precision: Precision,
    portable: bool,
) -> anyhow::Result<LoadOptions> {
    if !device.is_built() {
        return Err(usage_error(format!(
            "this mixse has no backend for the device {}: use --device cpu",
            device.name()
        )));
    }
    let processor = if portable { Processor::Reference } else { Processor::Cpu };
    if !processor.has(precision) {
        return Err(usage_error(format!(
            "the precision {} is for the processor's own operations; the portable operations have bf16 and f32",
            precision.name()
        )));
    }
    if !processor.is_built() {
        return Err(usage_error(
            "this mixse was built without the portable operations, the reference of its tests: build it with `cargo build --release --features reference`",
        ));
    }
    Ok(LoadOptions { precision, processor })
}
