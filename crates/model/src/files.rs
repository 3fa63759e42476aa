//! Reading and writing small files so that nobody ever sees half of one.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Serialize, de::DeserializeOwned};

use crate::{Error, Result};

/// The largest JSON or tensor file that is read whole: adapters of very large bases stay below it.
const MAX_BYTES: u64 = 16 << 30;

/// Writes `bytes` under a temporary name in the same directory, syncs and renames.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let write = || -> std::io::Result<()> {
        let mut file = fs::File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|e| {
        // The temporary file is of no use to anybody; failing to remove it changes nothing.
        let _ = fs::remove_file(&temporary);
        Error::io(path, e)
    })
}

/// Writes a value as indented JSON with a final newline, atomically.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).map_err(|e| Error::invalid(path, e.to_string()))?;
    text.push('\n');
    write_atomically(path, text.as_bytes())
}

/// Reads a JSON file; a fault names line and column.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    serde_json::from_slice(&read(path)?).map_err(|e| Error::invalid(path, e.to_string()))
}

/// Reads a whole file of reasonable size.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let size = fs::metadata(path).map_err(|e| Error::io(path, e))?.len();
    if size > MAX_BYTES {
        return Err(Error::invalid(path, format!("{size} bytes is more than this kind of file can have")));
    }
    fs::read(path).map_err(|e| Error::io(path, e))
}

/// Creates a directory and its parents.
pub fn create_dir(path: &Path) -> Result<PathBuf> {
    fs::create_dir_all(path).map_err(|e| Error::io(path, e))?;
    Ok(path.to_owned())
}

/// A named f32 matrix or vector for [`write_tensors`].
#[derive(Debug)]
pub struct NamedTensor<'a> {
    /// Its name in the file.
    pub name: String,
    /// Its sizes.
    pub shape: Vec<usize>,
    /// Its values, row-major.
    pub values: &'a [f32],
}

/// A tensor read by [`read_tensors`].
#[derive(Debug, Clone, PartialEq)]
pub struct StoredTensor {
    /// Its name in the file.
    pub name: String,
    /// Its sizes.
    pub shape: Vec<usize>,
    /// Its values, row-major.
    pub values: Vec<f32>,
}

/// Writes f32 tensors as a safetensors file, atomically. The same tensors give the same bytes.
pub fn write_tensors(path: &Path, tensors: &[NamedTensor<'_>]) -> Result<()> {
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|t| t.values.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
    let fault = |e: safetensors::SafeTensorError| Error::invalid(path, e.to_string());
    let views = tensors
        .iter()
        .zip(&bytes)
        .map(|(t, b)| Ok((t.name.as_str(), TensorView::new(Dtype::F32, t.shape.clone(), b).map_err(fault)?)))
        .collect::<Result<Vec<_>>>()?;
    write_atomically(path, &safetensors::serialize(views, None).map_err(fault)?)
}

/// Reads every tensor of a safetensors file as f32 (from f32, f16 or bf16), with its shape.
///
/// # Errors
/// A malformed file, another number format, or a value that is not finite.
pub fn read_tensors(path: &Path) -> Result<Vec<StoredTensor>> {
    let bytes = read(path)?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|e| Error::invalid(path, format!("not a whole safetensors file: {e}")))?;
    file.iter()
        .map(|(name, view)| {
            let dtype = match view.dtype() {
                Dtype::F32 => DType::F32,
                Dtype::F16 => DType::F16,
                Dtype::BF16 => DType::BF16,
                other => {
                    return Err(Error::invalid(
                        path,
                        format!("tensor `{name}` has the unsupported type {other:?}"),
                    ));
                }
            };
            let values = Tensor::from_raw_buffer(view.data(), dtype, view.shape(), &Device::Cpu)?
                .to_dtype(DType::F32)?
                .flatten_all()?
                .to_vec1::<f32>()?;
            if let Some(at) = values.iter().position(|v| !v.is_finite()) {
                return Err(Error::invalid(
                    path,
                    format!("tensor `{name}` holds {} at position {at}", values[at]),
                ));
            }
            Ok(StoredTensor { name: name.to_owned(), shape: view.shape().to_vec(), values })
        })
        .collect()
}
