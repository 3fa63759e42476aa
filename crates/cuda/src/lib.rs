//! CUDA kernels of mixse and the libraries that they need.
//!
//! Nothing of CUDA is linked: the libraries are looked for when they are first needed ([`library`]), and the kernels
//! ([`kernels`], CUDA C) are compiled for the card at hand by NVRTC ([`compile`]). So far no card has run them: they are
//! compiled for several, and the tests run them on the processor in an emulation.

pub mod compile;
mod error;
pub mod kernels;
pub mod library;

pub use error::{Error, Result};
