//! The beginning of a model's file, `FILE.partial`, as long as the parts that have arrived: an interrupted pull continues
//! after the last whole part.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use mixse_files::{hash_path, hash_reader, sync_directory};
use sha2::{Digest, Sha256};

use super::catalog::{KnownModel, Part};

/// Joins parts; see the module.
#[derive(Debug)]
pub(super) struct Partial {
    path: PathBuf,
    file: File,
    /// Length of the parts that are there.
    bytes: u64,
    /// How many parts are there.
    parts: usize,
}

impl Partial {
    /// Opens or makes the partial file of `target` and keeps of it what are whole parts with the right checksums.
    ///
    /// # Errors
    /// The file cannot be made, read or shortened.
    pub(super) fn open(target: &Path, parts: &[Part]) -> anyhow::Result<Self> {
        let path = path_of(target);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        let mut partial = Self { path, file, bytes: 0, parts: 0 };
        let length = partial.file.metadata()?.len();
        for part in parts {
            if partial.bytes + part.bytes > length {
                break;
            }
            // Each read starts where the one before it ended.
            if hash_reader((&partial.file).take(part.bytes))? != part.sha256 {
                break;
            }
            partial.bytes += part.bytes;
            partial.parts += 1;
        }
        partial.cut()?;
        Ok(partial)
    }

    /// Length of the parts that are there.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many parts are there.
    pub(super) fn parts(&self) -> usize {
        self.parts
    }

    /// Adds the next part, which `write` writes. A part that is not the expected one is taken away again.
    ///
    /// # Errors
    /// `write` fails, or what it wrote has another length or checksum.
    pub(super) fn append(
        &mut self,
        part: &Part,
        write: impl FnOnce(&mut dyn Write) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let result = self.write_part(part, write);
        if result.is_err() {
            self.cut()?;
            return result;
        }
        self.bytes += part.bytes;
        self.parts += 1;
        Ok(())
    }

    fn write_part(
        &self,
        part: &Part,
        write: impl FnOnce(&mut dyn Write) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut out = Checked {
            out: BufWriter::new(&self.file),
            hash: Sha256::new(),
            written: 0,
            expected: part.bytes,
        };
        write(&mut out)?;
        out.out.flush()?;
        let found: String = out.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        if found != part.sha256 {
            bail!(
                "{} is not the expected file: SHA-256 {found} ({} bytes) instead of {} ({} bytes)",
                part.member,
                out.written,
                part.sha256,
                part.bytes
            );
        }
        Ok(())
    }

    /// Gives the file its name if it is the model's: it is read once more for that.
    ///
    /// # Errors
    /// The file cannot be read or renamed, or has another checksum; the partial file is then removed.
    pub(super) fn finish(self, model: &KnownModel, target: &Path) -> anyhow::Result<()> {
        self.file.sync_all()?;
        let found = hash_path(&self.path)?;
        if found != model.sha256 {
            fs::remove_file(&self.path)?;
            bail!(
                "the joined {} is not the expected file: SHA-256 {found} ({} bytes) instead of {} ({} bytes); nothing was kept",
                model.file,
                self.bytes,
                model.sha256,
                model.bytes
            );
        }
        fs::rename(&self.path, target)?;
        sync_directory(target.parent().context("the cache path has no directory")?)?;
        Ok(())
    }

    /// Ends the file after its last whole part.
    fn cut(&mut self) -> io::Result<()> {
        self.file.set_len(self.bytes)?;
        self.file.seek(SeekFrom::Start(self.bytes))?;
        Ok(())
    }
}

/// Removes what an earlier pull of `target` left.
pub(super) fn discard(target: &Path) -> io::Result<()> {
    match fs::remove_file(path_of(target)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn path_of(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

/// Counts and hashes what is written, and refuses more than expected: an archive can unpack to any length.
struct Checked<W> {
    out: W,
    hash: Sha256,
    written: u64,
    expected: u64,
}

impl<W: Write> Write for Checked<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.written + bytes.len() as u64 > self.expected {
            return Err(io::Error::other(format!("it is longer than the {} bytes expected", self.expected)));
        }
        let count = self.out.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
