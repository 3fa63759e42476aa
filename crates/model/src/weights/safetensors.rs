//! Safetensors files of a Hugging Face directory, read a tensor at a time.

use std::{
    collections::{BTreeSet, HashMap},
    io::Read,
    path::{Path, PathBuf},
};

use candle_core::Tensor;
use safetensors::tensor::{Dtype, Metadata};

use super::{read_range, values};
use crate::{Error, Result, notices};

/// The cap that the format itself sets on a header.
const MAX_HEADER: u64 = 100_000_000;
/// The name of a model in one file.
const SINGLE: &str = "model.safetensors";
/// An index of the largest known models: a few megabytes.
const MAX_INDEX: u64 = 1 << 26;

/// Where a tensor lies and what it is.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    file: PathBuf,
    dtype: Dtype,
    pub(super) shape: Vec<usize>,
    start: u64,
    len: usize,
}

/// Where the text model's tensors are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// Under their own names: `model.layers.…`, `lm_head.weight`.
    Plain,
    /// All under `language_model.`, as transformers 4 writes models with a vision part.
    Nested,
    /// `model.language_model.layers.…` and `lm_head.weight`, as transformers 5 does.
    Inner,
}

impl Layout {
    const ALL: [Self; 3] = [Self::Plain, Self::Nested, Self::Inner];

    fn stored_name(self, name: &str) -> String {
        match (self, name.strip_prefix("model.")) {
            (Self::Plain, _) | (Self::Inner, None) => name.to_owned(),
            (Self::Nested, _) => format!("language_model.{name}"),
            (Self::Inner, Some(rest)) => format!("model.language_model.{rest}"),
        }
    }
}

/// The parts of a model that reads images too, which a text model has no use for.
pub(super) const OTHER_TOWERS: [&str; 4] =
    ["vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."];

/// The tensors of one or several files.
#[derive(Debug)]
pub(super) struct Shards {
    files: Vec<PathBuf>,
    layout: Layout,
    tensors: HashMap<String, Stored>,
}

impl Shards {
    /// Reads the headers of `model.safetensors`, or of the files that `model.safetensors.index.json` names.
    pub(super) fn open(directory: &Path) -> Result<Self> {
        let files = file_names(directory)?.into_iter().map(|name| directory.join(name)).collect();
        let mut shards = Self { files, layout: Layout::Plain, tensors: HashMap::new() };
        for file in shards.files.clone() {
            shards.add(&file)?;
        }
        // Every text model has this tensor.
        let there = |layout: &Layout| shards.tensors.contains_key(&layout.stored_name("model.norm.weight"));
        let mut layouts = Layout::ALL.into_iter().filter(there);
        shards.layout = layouts.next().unwrap_or(Layout::Plain);
        if let Some(second) = layouts.next() {
            let name = |layout: Layout| layout.stored_name("model.norm.weight");
            return Err(Error::invalid(
                directory,
                format!("holds two text models: {} and {} are both there", name(shards.layout), name(second)),
            ));
        }
        Ok(shards)
    }

    /// The files, in name order.
    pub(super) fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// A tensor by its name in Hugging Face's text models.
    pub(super) fn find(&self, name: &str) -> Option<&Stored> {
        self.tensors.get(&self.stored_name(name))
    }

    /// The name in the files.
    pub(super) fn stored_name(&self, name: &str) -> String {
        self.layout.stored_name(name)
    }

    /// The names of all tensors in the files.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether two tensors hold the same numbers, read a piece at a time.
    pub(super) fn equal(&self, a: &Stored, b: &Stored) -> Result<bool> {
        if a.shape != b.shape || a.dtype != b.dtype {
            // Of different number formats: compared as numbers.
            let (a, b) = (self.read("", a)?.flatten_all()?, self.read("", b)?.flatten_all()?);
            return Ok(a.dims() == b.dims() && a.to_vec1::<f32>()? == b.to_vec1::<f32>()?);
        }
        const PIECE: usize = 1 << 22;
        let mut at = 0;
        while at < a.len {
            let len = PIECE.min(a.len - at);
            let piece = |of: &Stored| read_range(&of.file, of.start + at as u64, len);
            if piece(a)? != piece(b)? {
                return Ok(false);
            }
            at += len;
        }
        Ok(true)
    }

    /// Why the stored type cannot be read, if it cannot.
    pub(super) fn refuse_type(&self, name: &str, stored: &Stored) -> Result<()> {
        match stored.dtype {
            Dtype::F32 | Dtype::F16 | Dtype::BF16 => Ok(()),
            other => Err(Error::invalid(
                &stored.file,
                format!("tensor {name} has type {other:?}, which is not supported (F32, F16 and BF16 are)"),
            )),
        }
    }

    /// The tensor's values in f32.
    pub(super) fn read(&self, name: &str, stored: &Stored) -> Result<Tensor> {
        self.refuse_type(name, stored)?;
        let bytes = read_range(&stored.file, stored.start, stored.len)?;
        match stored.dtype {
            Dtype::F16 => values::from_f16(&bytes, &stored.shape),
            Dtype::BF16 => values::from_bf16(&bytes, &stored.shape),
            _ => values::from_f32(&bytes, &stored.shape),
        }
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        let mut file = mixse_files::open(path).map_err(|e| Error::io(path, e))?;
        let file_len = file.metadata().map_err(|e| Error::io(path, e))?.len();
        let truncated = || {
            Error::invalid(
                path,
                "not a safetensors file, or truncated: the header is incomplete, fetch it again",
            )
        };
        let mut prefix = [0; 8];
        file.read_exact(&mut prefix).map_err(|_| truncated())?;
        let header_len = u64::from_le_bytes(prefix);
        if header_len > MAX_HEADER.min(file_len.saturating_sub(8)) {
            return Err(truncated());
        }
        let mut header = vec![0; header_len as usize];
        file.read_exact(&mut header).map_err(|_| truncated())?;
        let metadata: Metadata = serde_json::from_slice(&header)
            .map_err(|e| Error::invalid(path, format!("the safetensors header is damaged: {e}")))?;
        let data_start = 8 + header_len;
        let data_end = metadata.tensors().values().map(|info| info.data_offsets.1 as u64).max().unwrap_or(0);
        let file_end = data_start.saturating_add(data_end);
        if file_end < file_len {
            let rest = file_len - file_end;
            let what = format!("has {rest} bytes behind its last tensor: it is damaged, fetch it again");
            return Err(Error::invalid(path, what));
        }
        for (name, info) in metadata.tensors() {
            let (start, end) = info.data_offsets;
            let stored = Stored {
                file: path.to_owned(),
                dtype: info.dtype,
                shape: info.shape.clone(),
                start: data_start.saturating_add(start as u64),
                len: end.saturating_sub(start),
            };
            if data_start.saturating_add(end as u64) > file_len {
                return Err(Error::invalid(
                    path,
                    format!(
                        "tensor {name} lies outside the file: it is truncated or damaged, fetch it again"
                    ),
                ));
            }
            if self.tensors.insert(name.clone(), stored).is_some() {
                return Err(Error::invalid(path, format!("tensor {name} is in two files")));
            }
        }
        Ok(())
    }
}

/// The safetensors files of a directory, in name order.
fn file_names(directory: &Path) -> Result<BTreeSet<String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: HashMap<String, String>,
    }
    let index = directory.join("model.safetensors.index.json");
    // As in transformers, the single file comes first.
    if mixse_files::is_there(&directory.join(SINGLE)) {
        if mixse_files::is_there(&index) {
            notices::about(&index, format!("is not read: {SINGLE} beside it is the model"));
        }
        return Ok(BTreeSet::from([SINGLE.to_owned()]));
    }
    if !mixse_files::is_there(&index) {
        let hint = if directory.join("pytorch_model.bin").exists() {
            "; pytorch_model.bin is not read: convert it to safetensors"
        } else {
            ""
        };
        return Err(Error::invalid(
            directory,
            format!("has neither model.safetensors nor model.safetensors.index.json{hint}"),
        ));
    }
    let text = super::read_text(&index, MAX_INDEX)?;
    let parsed: Index = serde_json::from_str(&text).map_err(|e| Error::invalid(&index, e.to_string()))?;
    let names: BTreeSet<String> = parsed.weight_map.into_values().collect();
    match names.iter().find(|name| Path::new(name).file_name() != Some(name.as_ref())) {
        Some(name) => Err(Error::invalid(&index, format!("{name:?} is not the name of a file beside it"))),
        None => Ok(names),
    }
}
