//! Finding NVIDIA's libraries: where the system looks, in toolkits, and in Python packages that carry them.

use std::{
    env,
    path::{Path, PathBuf},
};

use crate::{Error, Result};

/// One of the libraries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Library {
    /// Its file name.
    pub name: &'static str,
    /// The Python package that carries it.
    pub package: &'static str,
}

/// The compiler of kernels.
pub const NVRTC: Library = Library { name: "libnvrtc.so.13", package: "nvidia-cuda-nvrtc" };

impl Library {
    /// Places to look in, the likeliest first. The system's own search comes before all of them.
    fn places(&self) -> Vec<PathBuf> {
        let mut folders: Vec<PathBuf> = ["CUDA_HOME", "CUDA_PATH"]
            .into_iter()
            .filter_map(env::var_os)
            .map(|home| Path::new(&home).join("lib64"))
            .collect();
        folders.extend(
            ["/usr/local/cuda/lib64", "/usr/local/cuda-13/lib64", "/opt/cuda/lib64"].map(PathBuf::from),
        );
        let environments =
            ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(env::var_os).map(PathBuf::from);
        let home = env::var_os("HOME").map(|home| Path::new(&home).join(".local"));
        for prefix in environments.chain(home).chain(["/usr/local", "/usr"].map(PathBuf::from)) {
            folders.extend(in_python(&prefix.join("lib")));
        }
        folders.into_iter().map(|folder| folder.join(self.name)).filter(|path| path.is_file()).collect()
    }

    /// Loads it for the rest of the process, so that whoever asks the system for its name gets it.
    ///
    /// # Errors
    /// It is nowhere, or what is there cannot be loaded.
    pub fn load(&self) -> Result<()> {
        if open(Path::new(self.name)).is_ok() {
            return Ok(());
        }
        let mut broken = None;
        for path in self.places() {
            match open(&path) {
                Ok(()) => return Ok(()),
                Err(reason) => broken = broken.or(Some(Error::Broken { path, reason })),
            }
        }
        Err(broken.unwrap_or(Error::Missing { name: self.name, package: self.package }))
    }
}

fn open(path: &Path) -> std::result::Result<(), String> {
    // SAFETY: NVIDIA's libraries may be loaded at any time; their initialisers ask for nothing of this process.
    let library = unsafe { libloading::Library::new(path) }.map_err(|e| e.to_string())?;
    std::mem::forget(library); // It stays: functions of it will be called until the end.
    Ok(())
}

/// Folders with libraries of the `nvidia` packages below `lib/python*/site-packages` (Debian: `dist-packages`).
fn in_python(lib: &Path) -> Vec<PathBuf> {
    let below = |folder: &Path| -> Vec<PathBuf> {
        let mut paths: Vec<PathBuf> =
            folder.read_dir().into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        paths.sort();
        paths
    };
    let pythons = below(lib)
        .into_iter()
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python")));
    pythons
        .flat_map(|python| {
            ["site-packages", "dist-packages"].map(|packages| python.join(packages).join("nvidia"))
        })
        .flat_map(|nvidia| below(&nvidia))
        .map(|package| package.join("lib"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_of_python_packages_are_seen() {
        let prefix = tempfile::tempdir().unwrap();
        let lib = prefix.path().join("python3.12/site-packages/nvidia/cu13/lib");
        std::fs::create_dir_all(&lib).unwrap();
        std::fs::create_dir_all(prefix.path().join("perl5/site-packages/nvidia/cu13/lib")).unwrap();
        assert_eq!(in_python(prefix.path()), [lib]);
        assert!(in_python(&prefix.path().join("nowhere")).is_empty());
    }

    #[test]
    fn a_missing_library_names_what_to_install() {
        let library = Library { name: "libmixse-has-no-such.so.13", package: "nvidia-such" };
        let message = library.load().unwrap_err().to_string();
        assert!(
            message.contains("libmixse-has-no-such.so.13") && message.contains("nvidia-such"),
            "{message}"
        );
    }
}
