//! Small model files: a GGUF writer, a tiny random model of every architecture and tiny vocabularies.

pub(crate) mod gguf;
pub(crate) mod tiny;
pub(crate) mod vocabulary;
