//! Reading and writing small files so that nobody ever sees half of one.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor};
use mixse_files::AtomicFile;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::json;

use crate::{Error, Result, finite};

/// The largest tensor file that is read whole: adapters of very large bases stay below it.
const MAX_TENSORS: u64 = 16 << 30;
/// The largest JSON file: the index of the shards of a very large model has a few megabytes.
const MAX_JSON: u64 = 64 << 20;

/// Writes `bytes` under a temporary name in the same directory, syncs and renames.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    mixse_files::write_atomic(path, bytes).map_err(|e| Error::io(path, e))
}

/// As [`write_atomically`], with a body that writes piece by piece.
fn write_parts(path: &Path, body: impl FnOnce(&mut AtomicFile) -> Result<()>) -> Result<()> {
    let fail = |e| Error::io(path, e);
    let mut file = AtomicFile::create(path).map_err(fail)?;
    body(&mut file)?;
    file.commit().map_err(fail)
}

/// Writes a value as indented JSON with a final newline, atomically.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).map_err(|e| Error::invalid(path, e.to_string()))?;
    text.push('\n');
    write_atomically(path, text.as_bytes())
}

/// Reads a JSON file; a fault names line and column.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = mixse_files::read_text(path, MAX_JSON).map_err(|e| Error::io(path, e))?;
    serde_json::from_str(&text).map_err(|e| Error::invalid(path, e.to_string()))
}

/// Creates a directory and its parents.
pub fn create_dir(path: &Path) -> Result<PathBuf> {
    mixse_files::create_directory(path).map_err(|e| Error::io(path, e))?;
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
///
/// # Errors
/// A value that is not finite: nothing is written then.
pub fn write_tensors(path: &Path, tensors: &[NamedTensor<'_>]) -> Result<()> {
    check_tensors(path, tensors)?;
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

/// Refuses tensors that must not be written to `path`: a value is not finite.
pub(crate) fn check_tensors(path: &Path, tensors: &[NamedTensor<'_>]) -> Result<()> {
    tensors.iter().try_for_each(|tensor| check_finite(path, &tensor.name, &tensor.shape, tensor.values))
}

/// Refuses a tensor that holds something else than numbers.
fn check_finite(path: &Path, name: &str, shape: &[usize], values: &[f32]) -> Result<()> {
    match finite::first_fault(values) {
        None => Ok(()),
        Some((at, value)) => Err(Error::invalid(
            path,
            format!("tensor `{name}` holds {value} at {}", finite::place(at, shape)),
        )),
    }
}

/// How numbers are stored in a model file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Number {
    /// 32 bits.
    F32,
    /// The upper 16 bits of them, rounded.
    Bf16,
}

/// Writes a model's tensors (name and shape) as a safetensors file, atomically. `read` gives the values of each, row-major,
/// in the order of the list, so that only one has to be in memory.
///
/// # Errors
/// What `read` says; a tensor with another number of values than its shape has, or with a value that is not finite as it
/// would be stored: nothing is written then.
pub fn write_model(
    path: &Path,
    tensors: &[(String, Vec<usize>)],
    number: Number,
    read: &mut dyn FnMut(&str) -> Result<Vec<f32>>,
) -> Result<()> {
    let (kind, width) = match number {
        Number::F32 => ("F32", 4),
        Number::Bf16 => ("BF16", 2),
    };
    let mut header = serde_json::Map::new();
    // Hugging Face's readers ask for it.
    header.insert("__metadata__".into(), json!({ "format": "pt" }));
    let mut start = 0;
    for (name, shape) in tensors {
        let end = start + shape.iter().product::<usize>() * width;
        header.insert(name.clone(), json!({ "dtype": kind, "shape": shape, "data_offsets": [start, end] }));
        start = end;
    }
    // The data begin at a multiple of eight bytes.
    let mut header = serde_json::Value::Object(header).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let fail = |e| Error::io(path, e);
    write_parts(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes()).map_err(fail)?;
        file.write_all(header.as_bytes()).map_err(fail)?;
        for (name, shape) in tensors {
            let values = read(name)?;
            if values.len() != shape.iter().product::<usize>() {
                return Err(Error::invalid(
                    path,
                    format!("{name} has {} values for {shape:?}", values.len()),
                ));
            }
            check_finite(path, name, shape, &values)?;
            for (at, value) in values.into_iter().enumerate() {
                match number {
                    Number::F32 => file.write_all(&value.to_le_bytes()),
                    Number::Bf16 => {
                        let rounded = half::bf16::from_f32(value);
                        if !rounded.is_finite() {
                            let place = finite::place(at, shape);
                            let what = format!(
                                "tensor `{name}` holds {value} at {place}, too large for bf16: write f32"
                            );
                            return Err(Error::invalid(path, what));
                        }
                        file.write_all(&rounded.to_le_bytes())
                    }
                }
                .map_err(fail)?;
            }
        }
        Ok(())
    })
}

/// Reads every tensor of a safetensors file as f32 (from f32, f16 or bf16), with its shape.
///
/// # Errors
/// A malformed file, another number format, or a value that is not finite.
pub fn read_tensors(path: &Path) -> Result<Vec<StoredTensor>> {
    let bytes = mixse_files::read(path, MAX_TENSORS).map_err(|e| Error::io(path, e))?;
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
            check_finite(path, name, view.shape(), &values)?;
            Ok(StoredTensor { name: name.to_owned(), shape: view.shape().to_vec(), values })
        })
        .collect()
}
