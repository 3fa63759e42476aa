//! Files for readers that take paths.

use std::{
    cell::RefCell,
    fs::{self, File},
    io::Write as _,
    path::Path,
};

use tempfile::TempDir;

thread_local! {
    /// One folder a thread, used again by every input: making one costs more than reading most inputs.
    static FOLDER: RefCell<Option<TempDir>> = const { RefCell::new(None) };
}

/// Calls `f` with an empty folder.
pub(crate) fn with_folder<T>(f: impl FnOnce(&Path) -> T) -> T {
    FOLDER.with_borrow_mut(|folder| {
        let folder = folder.get_or_insert_with(|| tempfile::tempdir().unwrap());
        for entry in fs::read_dir(folder.path()).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        f(folder.path())
    })
}

/// Writes a file and zeros behind it, which take no place on the disk.
pub(crate) fn write_padded(path: &Path, content: &[u8], zeros: usize) {
    let mut file = File::create(path).unwrap();
    file.write_all(content).unwrap();
    file.set_len((content.len() + zeros) as u64).unwrap();
}

/// The two parts of an input that has two: before and behind the first zero byte.
pub(crate) fn halves(data: &[u8]) -> (&[u8], &[u8]) {
    match data.iter().position(|&byte| byte == 0) {
        Some(at) => (&data[..at], &data[at + 1..]),
        None => (data, &[]),
    }
}
