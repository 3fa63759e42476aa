//! Where a decoder's arithmetic runs.

pub(crate) mod cpu;
