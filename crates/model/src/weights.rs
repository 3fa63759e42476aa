//! Model files: GGUF and Hugging Face directories behind one view.

mod gguf;
mod gguf_layout;
mod hash;
mod safetensors;
mod values;

use std::{
    collections::HashMap,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::OnceLock,
};

use candle_core::{Tensor, quantized::QTensor};

use crate::{Error, Result, config::ModelConfig, tokenizer::Tokenizer};

pub(crate) use gguf::{Gguf, Value};

/// An opened base model: its configuration, its tokenizer and its tensors by their Hugging Face names
/// (`model.embed_tokens.weight`, `model.layers.0.self_attn.q_proj.weight`, …, `model.norm.weight`, `lm_head.weight`).
#[derive(Debug)]
pub struct Checkpoint {
    /// Sizes and switches.
    pub config: ModelConfig,
    /// The model's tokenizer.
    pub tokenizer: Tokenizer,
    source: Source,
    /// Added to tensors of these names when they are read.
    deltas: HashMap<String, Tensor>,
    hash: OnceLock<String>,
}

/// The file formats.
#[derive(Debug)]
enum Source {
    Gguf(Gguf),
    Directory { path: PathBuf, shards: safetensors::Shards },
}

impl Checkpoint {
    /// Opens a `.gguf` file or a Hugging Face directory and checks that every tensor the configuration needs is
    /// there with the right shape and inside the file; reads no tensor data.
    ///
    /// # Errors
    /// The path does not exist or cannot be read; the file is truncated, damaged or of an architecture, tensor type or
    /// tokenizer that is not supported; a tensor is missing or has another shape than the configuration says.
    pub fn open(path: &Path) -> Result<Self> {
        let about = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
        let (config, tokenizer, source) = if about.is_dir() {
            let config = ModelConfig::from_directory(path)?;
            let shards = safetensors::Shards::open(path)?;
            (config, Tokenizer::from_directory(path)?, Source::Directory { path: path.to_owned(), shards })
        } else {
            let gguf = Gguf::open(path)?;
            let config = ModelConfig::from_gguf(&gguf)?;
            (config, Tokenizer::from_gguf(&gguf)?, Source::Gguf(gguf))
        };
        let checkpoint = Self { config, tokenizer, source, deltas: HashMap::new(), hash: OnceLock::new() };
        checkpoint.check_tensors(path)?;
        Ok(checkpoint)
    }

    /// One tensor, f32 on the CPU, `[out, in]` for a projection, in Hugging Face's conventions (q and k rows not
    /// permuted, Gemma norms without the added one).
    ///
    /// # Errors
    /// The model has no such tensor (a model with tied embeddings has no `lm_head.weight`), or the file cannot be read.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let found = match &self.source {
            Source::Gguf(gguf) => gguf_layout::tensor(gguf, &self.config, name)?,
            Source::Directory { shards, .. } => {
                shards.find(name).map(|stored| shards.read(name, stored)).transpose()?
            }
        };
        let tensor = found.ok_or_else(|| Error::invalid(self.path(), format!("has no tensor {name}")))?;
        match self.deltas.get(name) {
            Some(delta) => Ok((tensor + delta)?),
            None => Ok(tensor),
        }
    }

    /// The same model with matrices (f32 on the CPU, of the tensors' shapes) added to tensors of these names: experts merged
    /// into the weights. [`Checkpoint::hash`] stays that of the files.
    ///
    /// # Errors
    /// A name or a shape that the model does not have.
    pub fn with_deltas(mut self, deltas: HashMap<String, Tensor>) -> Result<Self> {
        let shapes: HashMap<String, Vec<usize>> = self.config.tensors().into_iter().collect();
        for (name, delta) in &deltas {
            if shapes.get(name).map(Vec::as_slice) != Some(delta.dims()) {
                let what = format!("has no tensor {name} of shape {:?} to merge into", delta.dims());
                return Err(Error::invalid(self.path(), what));
            }
        }
        self.deltas = deltas;
        Ok(self)
    }

    /// The tensor's own 4- to 8-bit blocks, `[out, in]`, with rows in the same order as [`Checkpoint::tensor`] gives them;
    /// `None` where the file stores plain numbers.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn quantized(&self, name: &str) -> Result<Option<QTensor>> {
        if self.deltas.contains_key(name) {
            return Ok(None);
        }
        match &self.source {
            Source::Gguf(gguf) => gguf_layout::quantized(gguf, &self.config, name),
            Source::Directory { .. } => Ok(None),
        }
    }

    /// SHA-256 (lower-case hex) over the model's files: the identity that adapters and runs record. Of a GGUF file it is
    /// the file's own; of a directory it covers `config.json` and the safetensors files in name order. Computed at the
    /// first call.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn hash(&self) -> Result<String> {
        if let Some(hash) = self.hash.get() {
            return Ok(hash.clone());
        }
        let files = match &self.source {
            Source::Gguf(gguf) => vec![gguf.path().to_owned()],
            Source::Directory { path, shards } => {
                let mut files = vec![path.join("config.json")];
                files.extend_from_slice(shards.files());
                files
            }
        };
        let hash = hash::sha256(&files)?;
        Ok(self.hash.get_or_init(|| hash).clone())
    }

    /// The Hugging Face directory that this is; `None` for a GGUF file.
    pub fn directory(&self) -> Option<&Path> {
        match &self.source {
            Source::Gguf(_) => None,
            Source::Directory { path, .. } => Some(path),
        }
    }

    fn path(&self) -> &Path {
        match &self.source {
            Source::Gguf(gguf) => gguf.path(),
            Source::Directory { path, .. } => path,
        }
    }

    fn check_tensors(&self, path: &Path) -> Result<()> {
        for (name, expected) in self.config.tensors() {
            let shape = match &self.source {
                Source::Gguf(gguf) => gguf_layout::gguf_name(&self.config, &name)
                    .and_then(|name| gguf.tensor(&name))
                    .map(|tensor| tensor.shape.as_slice()),
                Source::Directory { shards, .. } => match shards.find(&name) {
                    Some(stored) => {
                        shards.refuse_type(&name, stored)?;
                        Some(stored.shape.as_slice())
                    }
                    None => None,
                },
            };
            match shape {
                Some(shape) if shape == expected => {}
                Some(shape) => {
                    return Err(Error::invalid(
                        path,
                        format!("tensor {name} has shape {shape:?}, the configuration asks for {expected:?}"),
                    ));
                }
                None => return Err(Error::invalid(path, format!("has no tensor {name}"))),
            }
        }
        Ok(())
    }
}

/// `len` bytes of a file. The caller has checked that they lie inside it, so that a damaged header cannot ask for more
/// memory than the file takes on disk.
fn read_range(path: &Path, start: u64, len: usize) -> Result<Vec<u8>> {
    let read = || {
        let mut file = mixse_files::open(path)?;
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = vec![0; len];
        file.read_exact(&mut bytes)?;
        Ok(bytes)
    };
    read().map_err(|e| Error::io(path, e))
}

/// A text file of at most `cap` bytes.
pub(crate) fn read_text(path: &Path, cap: u64) -> Result<String> {
    mixse_files::read_text(path, cap).map_err(|e| Error::io(path, e))
}
