//! Model files: GGUF and Hugging Face directories behind one view.

mod gguf;
mod gguf_layout;
mod hash;
mod safetensors;
mod values;

use std::{
    collections::{HashMap, HashSet},
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::OnceLock,
};

use candle_core::{Storage, Tensor, quantized::QTensor};

use crate::{Error, Result, config::ModelConfig, finite, notices, tokenizer::Tokenizer};

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

/// What becomes of tensors in a file that nothing reads: the model may be another one than it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unused {
    /// They are an error, unless they are known to be harmless.
    #[default]
    Refuse,
    /// They are left out, and that is said.
    Ignore,
}

/// The output head.
const HEAD: &str = "lm_head.weight";
/// The input embedding, which may be the head as well.
const EMBEDDING: &str = "model.embed_tokens.weight";
/// A model directory with one of these is an adapter's, whose base transformers looks for elsewhere.
const ADAPTER_CONFIG: &str = crate::peft::CONFIG;

impl Checkpoint {
    /// [`Checkpoint::open_with`] that refuses tensors which nothing reads.
    ///
    /// # Errors
    /// As there.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_with(path, Unused::Refuse)
    }

    /// Opens a `.gguf` file (the first, of several) or a Hugging Face directory and checks that every tensor the
    /// configuration needs is there with the right shape and inside the file. Reads no tensor data, but for an output head
    /// that is said to be the embedding and has numbers of its own: if they differ, it counts, as in transformers 5.
    ///
    /// # Errors
    /// The path does not exist or cannot be read; the file is truncated, damaged or of an architecture, tensor type or
    /// tokenizer that is not supported; a key of the configuration has a value that is not implemented; a tensor is missing,
    /// has another shape than the configuration says, or is one that nothing reads.
    pub fn open_with(path: &Path, unused: Unused) -> Result<Self> {
        let about = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
        let mut has_vision = false;
        let (mut config, tokenizer, source) = if about.is_dir() {
            if path.join(ADAPTER_CONFIG).exists() {
                return Err(Error::invalid(
                    path,
                    format!(
                        "holds an adapter ({ADAPTER_CONFIG}): give it as an expert, and its base as the model; if a model is \
                         there as well, move one of the two elsewhere"
                    ),
                ));
            }
            let config;
            (config, has_vision) = ModelConfig::with_vision_part(path)?;
            let shards = safetensors::Shards::open(path)?;
            (config, Tokenizer::from_directory(path)?, Source::Directory { path: path.to_owned(), shards })
        } else {
            let gguf = Gguf::open(path)?;
            let config = ModelConfig::from_gguf(&gguf)?;
            (config, Tokenizer::from_gguf(&gguf)?, Source::Gguf(gguf))
        };
        if let Source::Directory { shards, .. } = &source {
            settle_head(&mut config, shards, path)?;
        }
        let checkpoint = Self { config, tokenizer, source, deltas: HashMap::new(), hash: OnceLock::new() };
        checkpoint.check_tensors(path)?;
        checkpoint.check_unused(path, has_vision, unused)?;
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
        let tensor = match self.deltas.get(name) {
            Some(delta) => (tensor + delta)?,
            None => tensor,
        };
        self.check_finite(name, &tensor)?;
        Ok(tensor)
    }

    /// Refuses a tensor that holds something else than numbers.
    fn check_finite(&self, name: &str, tensor: &Tensor) -> Result<()> {
        let (storage, layout) = tensor.storage_and_layout();
        let (Storage::Cpu(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
            return Err(Error::invalid(self.path(), format!("tensor {name} was not read in one piece")));
        };
        match finite::first_fault(&storage.as_slice::<f32>()?[start..end]) {
            None => Ok(()),
            Some((at, value)) => {
                let merged = if self.deltas.contains_key(name) { " with what is merged into it" } else { "" };
                let place = finite::place(at, tensor.dims());
                Err(Error::invalid(self.path(), format!("tensor {name}{merged} holds {value} at {place}")))
            }
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
    /// The file cannot be read; a block's numbers are not finite.
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
    /// the file's own (of several, that of all in order); of a directory it covers `config.json` and the safetensors files in name order. Computed at the
    /// first call.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn hash(&self) -> Result<String> {
        if let Some(hash) = self.hash.get() {
            return Ok(hash.clone());
        }
        let files = match &self.source {
            Source::Gguf(gguf) => gguf.files().to_vec(),
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

    /// Every tensor in the files is one that is read, or known to change nothing.
    fn check_unused(&self, path: &Path, has_vision: bool, unused: Unused) -> Result<()> {
        let mut read: HashSet<String> = self
            .config
            .tensors()
            .into_iter()
            .filter_map(|(name, _)| match &self.source {
                Source::Gguf(_) => gguf_layout::gguf_name(&self.config, &name),
                Source::Directory { shards, .. } => Some(shards.stored_name(&name)),
            })
            .collect();
        let names: Vec<&str> = match &self.source {
            Source::Gguf(gguf) => {
                if !self.config.rope_factors.is_empty() {
                    read.insert(gguf_layout::ROPE_FACTORS.to_owned());
                }
                gguf.names().collect()
            }
            Source::Directory { shards, .. } => {
                if self.config.tied_embeddings {
                    // Equal to the embedding, or it would not be tied.
                    read.insert(shards.stored_name(HEAD));
                }
                shards.names().collect()
            }
        };
        let mut left: Vec<&str> =
            names.into_iter().filter(|name| !read.contains(*name) && !is_harmless(name)).collect();
        left.sort_unstable();
        if has_vision {
            let of_vision =
                |name: &&str| safetensors::OTHER_TOWERS.iter().any(|tower| name.starts_with(tower));
            let (towers, rest): (Vec<&str>, Vec<&str>) = left.into_iter().partition(of_vision);
            if !towers.is_empty() {
                let count = towers.len();
                notices::about(
                    path,
                    format!("only the text model is read: {count} tensors of the vision part are left out"),
                );
            }
            left = rest;
        }
        match (left.len(), unused) {
            (0, _) => Ok(()),
            (count, Unused::Ignore) => {
                notices::about(
                    path,
                    format!("{count} tensors that nothing reads are left out: {}", listed(&left)),
                );
                Ok(())
            }
            (count, Unused::Refuse) => Err(Error::invalid(
                path,
                format!(
                    "has {count} tensors that nothing reads, so that the model may be another one than its configuration \
                     says: {} (--ignore-unused leaves them out)",
                    listed(&left)
                ),
            )),
        }
    }
}

/// Tensors that some programs store beside the weights although they follow from the configuration.
fn is_harmless(name: &str) -> bool {
    name.ends_with(".rotary_emb.inv_freq")
        || name.ends_with(".rotary_emb.original_inv_freq")
        || name.ends_with(".attn_rot_embd.weight")
}

/// Decides what the output head of a model with tied embeddings is, as transformers 5 does: numbers of its own count if they
/// differ from the embedding's.
fn settle_head(config: &mut ModelConfig, shards: &safetensors::Shards, path: &Path) -> Result<()> {
    let (Some(head), Some(embedding)) = (shards.find(HEAD), shards.find(EMBEDDING)) else { return Ok(()) };
    if config.tied_embeddings && !shards.equal(head, embedding)? {
        config.tied_embeddings = false;
        notices::about(
            path,
            format!("tie_word_embeddings is true, but {HEAD} differs from {EMBEDDING}: it is used"),
        );
    }
    Ok(())
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

/// At most so many names are listed in a message.
const LISTED: usize = 4;

/// The first of some names, and how many more there are.
fn listed(names: &[&str]) -> String {
    let more = names.len().saturating_sub(LISTED);
    let first = names[..names.len() - more].join(", ");
    if more == 0 { first } else { format!("{first} and {more} more") }
}

/// A text file of at most `cap` bytes.
pub(crate) fn read_text(path: &Path, cap: u64) -> Result<String> {
    mixse_files::read_text(path, cap).map_err(|e| Error::io(path, e))
}
