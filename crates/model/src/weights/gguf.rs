//! The GGUF container: header, metadata and tensor directory, read with every count checked against the file.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. The header is untrusted: a length never leads to an
//! allocation larger than what the file still holds, and every tensor is known to lie inside the file before it is read.

use std::{
    collections::HashMap,
    fs::File,
    io::{BufReader, Read},
    path::{Path, PathBuf},
};

use candle_core::quantized::GgmlDType;

use super::read_range;
use crate::{Error, Result};

/// Metadata entries in the largest known files: about 60.
const MAX_METADATA: u64 = 1 << 16;
/// Tensors in the largest known files: a few thousand.
const MAX_TENSORS: u64 = 1 << 20;
/// As `GGML_MAX_DIMS`.
const MAX_DIMS: u32 = 4;
/// Longer keys and tensor names are refused by llama.cpp as well.
const MAX_NAME: u64 = 1 << 16;
/// The longest known string is a chat template of some tens of kilobytes.
const MAX_STRING: u64 = 1 << 26;
/// The longest known list is the merges of a vocabulary of 262 144 tokens: about half a million.
const MAX_LIST: u64 = 1 << 24;
/// Where the tensor data starts is rounded up to this, unless `general.alignment` says otherwise.
const DEFAULT_ALIGNMENT: u64 = 32;

/// A metadata value. Integers are widened; nested arrays do not occur in model files and are refused.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    /// Any unsigned or signed integer.
    Int(i128),
    /// `f32` or `f64`.
    Float(f64),
    /// A boolean.
    Bool(bool),
    /// A string; bytes that are not UTF-8 become U+FFFD.
    Str(String),
    /// An array of strings.
    Strings(Vec<String>),
    /// An array of numbers or booleans (as 0 and 1).
    Numbers(Vec<f64>),
}

impl Value {
    /// As JSON; a number that JSON does not have becomes its name.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        let number =
            |x: f64| serde_json::Number::from_f64(x).map_or_else(|| x.to_string().into(), Into::into);
        match self {
            Self::Int(n) => i64::try_from(*n).map_or_else(|_| number(*n as f64), Into::into),
            Self::Float(x) => number(*x),
            Self::Bool(b) => (*b).into(),
            Self::Str(text) => text.as_str().into(),
            Self::Strings(list) => list.iter().map(String::as_str).collect(),
            Self::Numbers(list) => list.iter().map(|&x| number(x)).collect(),
        }
    }
}

/// Where a tensor lies and what it is.
#[derive(Debug, Clone)]
pub(crate) struct GgufTensor {
    /// Which of the model's files, from 0.
    part: usize,
    /// Block type.
    pub(crate) dtype: GgmlDType,
    /// Outermost dimension first, as in Hugging Face's files.
    pub(crate) shape: Vec<usize>,
    /// First byte in the file.
    start: u64,
    /// Bytes in the file.
    len: usize,
}

/// An opened GGUF model: a file, or the parts of one that was split.
#[derive(Debug)]
pub(crate) struct Gguf {
    /// The parts in order, at least one. The first has the metadata.
    files: Vec<PathBuf>,
    metadata: HashMap<String, Value>,
    tensors: HashMap<String, GgufTensor>,
}

impl Gguf {
    /// Reads and checks the header of `path`, and those of the other parts where it is the first part of several.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let mut model = Self::open_one(path)?;
        let count = model.usize("split.count")?.unwrap_or(1);
        if count <= 1 {
            return Ok(model);
        }
        let number = model.usize("split.no")?.unwrap_or(0);
        let Some(name) = PartName::of(path, number, count) else {
            return Err(model.invalid(format!(
                "is part {} of a model in {count} files, which must keep their names (NAME-00001-of-{count:05}.gguf and so on)",
                number + 1
            )));
        };
        if number != 0 {
            return Err(model.invalid(format!(
                "is part {} of {count}: give the first part, {}",
                number + 1,
                name.part(0).display()
            )));
        }
        for number in 1..count {
            let path = name.part(number);
            if !path.is_file() {
                return Err(
                    model.invalid(format!("is part 1 of {count}, and {} is not beside it", path.display()))
                );
            }
            model.join(Self::open_one(&path)?, number, count)?;
        }
        match model.usize("split.tensors.count")? {
            Some(expected) if expected != model.tensors.len() => Err(model.invalid(format!(
                "says that its {count} parts have {expected} tensors together, but they have {}",
                model.tensors.len()
            ))),
            _ => Ok(model),
        }
    }

    /// Adds the tensors of a further part.
    fn join(&mut self, part: Self, number: usize, count: usize) -> Result<()> {
        let says = (part.usize("split.no")?, part.usize("split.count")?);
        if says != (Some(number), Some(count)) {
            let what = format!("should be part {} of {count}, but its metadata say otherwise", number + 1);
            return Err(part.invalid(what));
        }
        for (name, tensor) in &part.tensors {
            if self.tensors.insert(name.clone(), GgufTensor { part: number, ..tensor.clone() }).is_some() {
                return Err(part.invalid(format!("tensor {name} is in another part as well")));
            }
        }
        self.files.extend(part.files);
        Ok(())
    }

    fn open_one(path: &Path) -> Result<Self> {
        let file = mixse_files::open(path).map_err(|e| Error::io(path, e))?;
        let file_len = file.metadata().map_err(|e| Error::io(path, e))?.len();
        let mut header = Header { path, input: BufReader::with_capacity(1 << 20, file), at: 0, file_len };
        if header.bytes::<4>("the magic number")? != *b"GGUF" {
            return Err(Error::invalid(path, "not a GGUF file: it does not begin with GGUF"));
        }
        let version = header.u32("the version")?;
        if !(2..=3).contains(&version) {
            return Err(Error::invalid(
                path,
                format!("GGUF version {version} is not supported (2 and 3 in little-endian order are)"),
            ));
        }
        let tensor_count = header.count("the number of tensors", MAX_TENSORS)?;
        let metadata_count = header.count("the number of metadata entries", MAX_METADATA)?;
        let mut metadata = HashMap::new();
        for _ in 0..metadata_count {
            let key = header.string("a metadata key", MAX_NAME)?;
            let kind = header.u32(&key)?;
            let value = header.value(&key, kind)?;
            if metadata.contains_key(&key) {
                return Err(header.invalid(format!("metadata key {key} appears twice: the file is damaged")));
            }
            metadata.insert(key, value);
        }
        let mut directory = Vec::new();
        for _ in 0..tensor_count {
            directory.push(header.tensor()?);
        }
        let alignment = match metadata.get("general.alignment") {
            None => DEFAULT_ALIGNMENT,
            Some(&Value::Int(n @ 1..=65536)) if (n as u64).is_power_of_two() => n as u64,
            Some(other) => {
                return Err(Error::invalid(
                    path,
                    format!("general.alignment is {other:?}; it must be a power of two"),
                ));
            }
        };
        let data_start = header.at.next_multiple_of(alignment);
        let mut tensors = HashMap::new();
        for (name, mut tensor) in directory {
            if !tensor.start.is_multiple_of(alignment) {
                let start = tensor.start;
                let what = format!(
                    "tensor {name} begins at byte {start} of the data, not at a multiple of {alignment}"
                );
                return Err(Error::invalid(path, what));
            }
            tensor.start = tensor.start.saturating_add(data_start);
            if tensor.start.saturating_add(tensor.len as u64) > file_len {
                return Err(Error::invalid(
                    path,
                    format!(
                        "tensor {name} lies outside the file (bytes {} to {} of {file_len}): the file is truncated or damaged, fetch it again",
                        tensor.start,
                        tensor.start.saturating_add(tensor.len as u64),
                    ),
                ));
            }
            if tensors.insert(name.clone(), tensor).is_some() {
                return Err(Error::invalid(path, format!("tensor {name} appears twice")));
            }
        }
        refuse_overlap(&tensors).map_err(|what| Error::invalid(path, what))?;
        Ok(Self { files: vec![path.to_owned()], metadata, tensors })
    }

    /// The file, or the first of several.
    pub(crate) fn path(&self) -> &Path {
        &self.files[0]
    }

    /// All files, in order.
    pub(crate) fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Every metadata key with its value.
    pub(crate) fn metadata(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.metadata.iter()
    }

    /// The names of all tensors.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The tensor's place and type.
    pub(crate) fn tensor(&self, name: &str) -> Option<&GgufTensor> {
        self.tensors.get(name)
    }

    /// The tensor's bytes as they stand in the file.
    pub(crate) fn read(&self, tensor: &GgufTensor) -> Result<Vec<u8>> {
        read_range(&self.files[tensor.part], tensor.start, tensor.len)
    }

    /// An [`Error::Invalid`] about this file.
    pub(crate) fn invalid(&self, what: impl Into<String>) -> Error {
        Error::invalid(self.path(), what)
    }

    /// A metadata value.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// An unsigned integer that fits in memory sizes, if the key is there.
    pub(crate) fn usize(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a whole number", |value| match value {
            Value::Int(n) => usize::try_from(*n).ok(),
            _ => None,
        })
    }

    /// A token id, if the key is there.
    pub(crate) fn token_id(&self, key: &str) -> Result<Option<u32>> {
        self.typed(key, "a token id", |value| match value {
            Value::Int(n) => u32::try_from(*n).ok(),
            _ => None,
        })
    }

    /// A finite number, if the key is there.
    pub(crate) fn f64(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", |value| match value {
            Value::Int(n) => Some(*n as f64),
            Value::Float(x) if x.is_finite() => Some(*x),
            _ => None,
        })
    }

    /// A boolean, if the key is there.
    pub(crate) fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", |value| match value {
            Value::Bool(b) => Some(*b),
            _ => None,
        })
    }

    /// A string, if the key is there.
    pub(crate) fn str(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string", |value| match value {
            Value::Str(s) => Some(s.as_str()),
            _ => None,
        })
    }

    /// A list of strings, if the key is there.
    pub(crate) fn strings(&self, key: &str) -> Result<Option<&[String]>> {
        self.typed(key, "a list of strings", |value| match value {
            Value::Strings(list) => Some(list.as_slice()),
            _ => None,
        })
    }

    /// A list of numbers, if the key is there.
    pub(crate) fn numbers(&self, key: &str) -> Result<Option<&[f64]>> {
        self.typed(key, "a list of numbers", |value| match value {
            Value::Numbers(list) => Some(list.as_slice()),
            _ => None,
        })
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(value) => convert(value)
                .map(Some)
                .ok_or_else(|| self.invalid(format!("metadata key {key} should be {expected}"))),
        }
    }
}

/// Two tensors in the same bytes: one of them is not what its name says.
fn refuse_overlap(tensors: &HashMap<String, GgufTensor>) -> std::result::Result<(), String> {
    let mut places: Vec<(u64, usize, &str)> =
        tensors.iter().filter(|(_, t)| t.len > 0).map(|(name, t)| (t.start, t.len, name.as_str())).collect();
    places.sort_unstable();
    match places.windows(2).find(|pair| pair[0].0 + pair[0].1 as u64 > pair[1].0) {
        Some(pair) => Err(format!("tensors {} and {} lie in the same bytes", pair[0].2, pair[1].2)),
        None => Ok(()),
    }
}

/// The names of a model's parts, `NAME-00001-of-00003.gguf` and so on, as llama.cpp's `gguf-split` gives them.
struct PartName {
    directory: PathBuf,
    prefix: String,
    count: usize,
}

impl PartName {
    /// From the name of one part; `number` counts from 0.
    fn of(path: &Path, number: usize, count: usize) -> Option<Self> {
        let suffix = format!("-{:05}-of-{count:05}.gguf", number + 1);
        let prefix = path.file_name()?.to_str()?.strip_suffix(&suffix)?.to_owned();
        Some(Self { directory: path.parent()?.to_owned(), prefix, count })
    }

    fn part(&self, number: usize) -> PathBuf {
        self.directory.join(format!("{}-{:05}-of-{:05}.gguf", self.prefix, number + 1, self.count))
    }
}

/// The unread part of a header.
struct Header<'a> {
    path: &'a Path,
    input: BufReader<File>,
    at: u64,
    file_len: u64,
}

impl Header<'_> {
    fn invalid(&self, what: impl Into<String>) -> Error {
        Error::invalid(self.path, what)
    }

    fn read(&mut self, buffer: &mut [u8], what: &str) -> Result<()> {
        self.input.read_exact(buffer).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => self.invalid(format!(
                "ends inside {what} (byte {} of {}): the file is truncated, fetch it again",
                self.at, self.file_len
            )),
            _ => Error::io(self.path, e),
        })?;
        self.at += buffer.len() as u64;
        Ok(())
    }

    fn bytes<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut buffer = [0; N];
        self.read(&mut buffer, what)?;
        Ok(buffer)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.bytes(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.bytes(what)?))
    }

    /// A count that is neither above `cap` nor above the number of bytes left (each item takes at least one).
    fn count(&mut self, what: &str, cap: u64) -> Result<u64> {
        let count = self.u64(what)?;
        let left = self.file_len.saturating_sub(self.at);
        if count > cap.min(left) {
            return Err(self.invalid(format!(
                "{what} is {count}, which cannot be right (at most {cap}, {left} bytes left): the file is damaged"
            )));
        }
        Ok(count)
    }

    fn string(&mut self, what: &str, cap: u64) -> Result<String> {
        let len = self.count(&format!("the length of {what}"), cap)?;
        let mut buffer = vec![0; len as usize];
        self.read(&mut buffer, what)?;
        Ok(String::from_utf8(buffer).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
    }

    fn value(&mut self, key: &str, kind: u32) -> Result<Value> {
        const STRING: u32 = 8;
        const ARRAY: u32 = 9;
        match kind {
            STRING => Ok(Value::Str(self.string(key, MAX_STRING)?)),
            ARRAY => {
                let item = self.u32(key)?;
                let len = self.count(&format!("the length of {key}"), MAX_LIST)?;
                if item == STRING {
                    let items = (0..len).map(|_| self.string(key, MAX_STRING));
                    return Ok(Value::Strings(items.collect::<Result<_>>()?));
                }
                let items = (0..len).map(|_| match self.scalar(key, item)? {
                    Value::Int(n) => Ok(n as f64),
                    Value::Bool(b) => Ok(f64::from(u8::from(b))),
                    Value::Float(x) => Ok(x),
                    other => Err(self.invalid(format!("{key} holds {other:?} in a list of numbers"))),
                });
                Ok(Value::Numbers(items.collect::<Result<_>>()?))
            }
            _ => self.scalar(key, kind),
        }
    }

    fn scalar(&mut self, key: &str, kind: u32) -> Result<Value> {
        Ok(match kind {
            0 => Value::Int(u8::from_le_bytes(self.bytes(key)?).into()),
            1 => Value::Int(i8::from_le_bytes(self.bytes(key)?).into()),
            2 => Value::Int(u16::from_le_bytes(self.bytes(key)?).into()),
            3 => Value::Int(i16::from_le_bytes(self.bytes(key)?).into()),
            4 => Value::Int(self.u32(key)?.into()),
            5 => Value::Int(i32::from_le_bytes(self.bytes(key)?).into()),
            6 => Value::Float(f32::from_le_bytes(self.bytes(key)?).into()),
            7 => Value::Bool(self.bytes::<1>(key)? != [0]),
            10 => Value::Int(self.u64(key)?.into()),
            11 => Value::Int(i64::from_le_bytes(self.bytes(key)?).into()),
            12 => Value::Float(f64::from_le_bytes(self.bytes(key)?)),
            _ => return Err(self.invalid(format!("metadata key {key} has the unknown type {kind}"))),
        })
    }

    /// One entry of the tensor directory; `start` is still relative to the data.
    fn tensor(&mut self) -> Result<(String, GgufTensor)> {
        let name = self.string("a tensor name", MAX_NAME)?;
        let rank = self.u32(&name)?;
        if rank > MAX_DIMS {
            return Err(self.invalid(format!("tensor {name} has {rank} dimensions (at most {MAX_DIMS})")));
        }
        let mut shape = Vec::new();
        for _ in 0..rank {
            let size = self.u64(&name)?;
            shape.push(
                usize::try_from(size).map_err(|_| self.invalid(format!("tensor {name} is too large")))?,
            );
        }
        let type_id = self.u32(&name)?;
        let Some(dtype) = tensor_type(type_id) else {
            return Err(self.invalid(format!(
                "tensor {name} has type {} ({type_id}), which is not supported (F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K are)",
                type_name(type_id)
            )));
        };
        let start = self.u64(&name)?;
        let row = shape.first().copied().unwrap_or(1);
        if row % dtype.block_size() != 0 {
            return Err(self.invalid(format!(
                "tensor {name} has rows of {row} values, not a multiple of {} as {dtype:?} needs",
                dtype.block_size()
            )));
        }
        let len = shape
            .iter()
            .try_fold(1usize, |count, &size| count.checked_mul(size))
            .and_then(|count| (count / dtype.block_size()).checked_mul(dtype.type_size()))
            .ok_or_else(|| self.invalid(format!("tensor {name} is too large: {shape:?}")))?;
        shape.reverse();
        Ok((name, GgufTensor { part: 0, dtype, shape, start, len }))
    }
}

/// The block types that can be read, by their numbers in `ggml.h`.
fn tensor_type(id: u32) -> Option<GgmlDType> {
    Some(match id {
        0 => GgmlDType::F32,
        1 => GgmlDType::F16,
        2 => GgmlDType::Q4_0,
        3 => GgmlDType::Q4_1,
        6 => GgmlDType::Q5_0,
        7 => GgmlDType::Q5_1,
        8 => GgmlDType::Q8_0,
        10 => GgmlDType::Q2K,
        11 => GgmlDType::Q3K,
        12 => GgmlDType::Q4K,
        13 => GgmlDType::Q5K,
        14 => GgmlDType::Q6K,
        30 => GgmlDType::BF16,
        _ => return None,
    })
}

/// Names of the other types, for the message that refuses them.
fn type_name(id: u32) -> &'static str {
    match id {
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24..=27 => "an integer type",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => "unknown",
    }
}
