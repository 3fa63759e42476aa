//! Where tensors live: the only place that opens a device or decides how a base model is held on it.

use std::sync::OnceLock;

use anyhow::Context;
use mixse_model::decoder::{LoadOptions, Precision};

use crate::{config::Device, output::usage_error};

impl Device {
    pub(crate) const ALL: [Self; 3] = [Self::Cpu, Self::Cuda, Self::Metal];

    /// Its name on the command line and in files, which is also that of its cargo feature.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Metal => "metal",
        }
    }

    /// This binary was compiled for it.
    pub(crate) fn is_built(self) -> bool {
        match self {
            Self::Cpu => true,
            Self::Cuda => cfg!(feature = "cuda"),
            Self::Metal => cfg!(feature = "metal"),
        }
    }

    /// What compiles a binary for it.
    pub(crate) fn build_command(self) -> String {
        match self {
            Self::Cpu => "cargo build --release".into(),
            Self::Cuda | Self::Metal => format!("cargo build --release --features {}", self.name()),
        }
    }

    /// Opens it, once in a process: tensors of a device that was opened twice do not go together.
    pub(crate) fn open(self) -> anyhow::Result<candle_core::Device> {
        static CUDA: OnceLock<candle_core::Device> = OnceLock::new();
        static METAL: OnceLock<candle_core::Device> = OnceLock::new();
        let (place, open): (_, fn(usize) -> candle_core::Result<candle_core::Device>) = match self {
            Self::Cpu => return Ok(candle_core::Device::Cpu),
            Self::Cuda => (&CUDA, candle_core::Device::new_cuda),
            Self::Metal => (&METAL, candle_core::Device::new_metal),
        };
        if let Some(opened) = place.get() {
            return Ok(opened.clone());
        }
        let opened = open(0).with_context(|| {
            format!(
                "the device {} cannot be used on this machine; --device cpu works everywhere",
                self.name()
            )
        })?;
        Ok(place.get_or_init(|| opened).clone())
    }
}

/// How a base model is held. Refused before any work starts: a device that the binary was not compiled for, and a precision
/// that the portable operations, the only ones of other devices, do not have.
pub(crate) fn load_options(
    device: Device,
    precision: Precision,
    portable: bool,
) -> anyhow::Result<LoadOptions> {
    if !device.is_built() {
        return Err(usage_error(format!(
            "this mixse was built without the device {0}: build it with `{1}`, or use --device cpu",
            device.name(),
            device.build_command()
        )));
    }
    let portable = portable || device != Device::Cpu;
    if portable && !precision.is_portable() {
        let who = if device == Device::Cpu { "the portable operations have" } else { "other devices have" };
        return Err(usage_error(format!(
            "the precision {} is for the processor's own operations; {who} bf16 and f32",
            precision.name()
        )));
    }
    Ok(LoadOptions { precision, device: device.open()?, portable })
}
