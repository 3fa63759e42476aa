//! The kernels' sources.

/// Threads of every block: the sources count on it.
pub const THREADS: u32 = 128;

/// One file of CUDA C, without headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernel {
    /// Its file name.
    pub file: &'static str,
    source: &'static str,
}

const COMMON: &str = include_str!("../kernels/common.cuh");

macro_rules! kernels {
    ($($file:literal),* $(,)?) => {
        /// All of them.
        pub const KERNELS: &[Kernel] = &[
            $(Kernel { file: $file, source: include_str!(concat!("../kernels/", $file)) }),*
        ];
    };
}

kernels![
    "adamw.cu",
    "attention.cu",
    "dropout.cu",
    "embedding.cu",
    "gated.cu",
    "gates.cu",
    "lora.cu",
    "loss.cu",
    "matmul.cu",
    "norm.cu",
    "rope.cu",
];

impl Kernel {
    /// What is compiled.
    pub fn source(&self) -> String {
        format!("{COMMON}\n{}", self.source)
    }

    /// The functions in it that can be launched.
    pub fn functions(&self) -> impl Iterator<Item = &'static str> {
        self.source
            .split("__global__ void ")
            .skip(1)
            .filter_map(|rest| rest.split_once('(').map(|(name, _)| name))
    }
}
