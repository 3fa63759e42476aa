//! Writes GGUF files.

/// A metadata value.
#[derive(Debug, Clone)]
pub enum Meta {
    /// Type 4.
    U32(u32),
    /// Type 6.
    F32(f32),
    /// Type 7.
    Bool(bool),
    /// Type 8.
    Str(String),
    /// Type 9 of type 8.
    Strings(Vec<String>),
    /// Type 9 of type 5.
    I32s(Vec<i32>),
    /// Type 9 of type 6.
    F32s(Vec<f32>),
}

/// A tensor: its name, its shape with the outermost dimension first, its type's number in `ggml.h` and its bytes.
#[derive(Debug, Clone)]
pub struct Stored {
    /// As in the file.
    pub name: String,
    /// The outermost dimension first.
    pub shape: Vec<u64>,
    /// The type's number.
    pub kind: u32,
    /// Its blocks.
    pub bytes: Vec<u8>,
}

impl Stored {
    /// An F32 tensor.
    pub fn f32(name: &str, shape: &[usize], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let shape = shape.iter().map(|&size| size as u64).collect();
        Self { name: name.to_owned(), shape, kind: 0, bytes }
    }
}

/// A file to write.
#[derive(Debug, Clone, Default)]
pub struct GgufFile {
    /// Keys and values in the order of the file.
    pub metadata: Vec<(String, Meta)>,
    /// Likewise.
    pub tensors: Vec<Stored>,
}

impl GgufFile {
    /// Sets a metadata value, in the place of an older one under the key.
    pub fn set(&mut self, key: &str, value: Meta) {
        self.metadata.retain(|(old, _)| old != key);
        self.metadata.push((key.to_owned(), value));
    }

    /// Removes a metadata value.
    pub fn unset(&mut self, key: &str) {
        self.metadata.retain(|(old, _)| old != key);
    }

    /// The tensor called `name` in the file.
    pub fn tensor(&mut self, name: &str) -> &mut Stored {
        self.tensors.iter_mut().find(|tensor| tensor.name == name).unwrap()
    }

    /// The bytes before the tensor data.
    pub fn header(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            string(&mut out, key);
            meta(&mut out, value);
        }
        let mut offset = 0u64;
        for tensor in &self.tensors {
            string(&mut out, &tensor.name);
            out.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().rev().for_each(|size| out.extend(size.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend(offset.to_le_bytes());
            offset += (tensor.bytes.len() as u64).next_multiple_of(32);
        }
        out
    }

    /// The whole file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.header();
        for tensor in &self.tensors {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(&tensor.bytes);
        }
        out
    }
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn meta(out: &mut Vec<u8>, value: &Meta) {
    let list = |out: &mut Vec<u8>, kind: u32, len: usize| {
        out.extend(9u32.to_le_bytes());
        out.extend(kind.to_le_bytes());
        out.extend((len as u64).to_le_bytes());
    };
    match value {
        Meta::U32(n) => {
            out.extend(4u32.to_le_bytes());
            out.extend(n.to_le_bytes());
        }
        Meta::F32(x) => {
            out.extend(6u32.to_le_bytes());
            out.extend(x.to_le_bytes());
        }
        Meta::Bool(b) => {
            out.extend(7u32.to_le_bytes());
            out.push(u8::from(*b));
        }
        Meta::Str(text) => {
            out.extend(8u32.to_le_bytes());
            string(out, text);
        }
        Meta::Strings(texts) => {
            list(out, 8, texts.len());
            texts.iter().for_each(|text| string(out, text));
        }
        Meta::I32s(numbers) => {
            list(out, 5, numbers.len());
            numbers.iter().for_each(|n| out.extend(n.to_le_bytes()));
        }
        Meta::F32s(numbers) => {
            list(out, 6, numbers.len());
            numbers.iter().for_each(|x| out.extend(x.to_le_bytes()));
        }
    }
}
