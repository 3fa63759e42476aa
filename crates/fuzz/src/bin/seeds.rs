//! Writes the seeds of every kind of input into folders below the one given: where fuzzing begins.

use std::{fs, path::Path, process::ExitCode};

fn write(to: &Path) -> std::io::Result<()> {
    for input in mixse_fuzz::INPUTS {
        let folder = to.join(input.name);
        fs::create_dir_all(&folder)?;
        for (name, bytes) in (input.seeds)() {
            fs::write(folder.join(name), bytes)?;
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    let Some(to) = std::env::args_os().nth(1) else {
        eprintln!("usage: seeds FOLDER");
        return ExitCode::FAILURE;
    };
    match write(Path::new(&to)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{}: {e}", Path::new(&to).display());
            ExitCode::FAILURE
        }
    }
}
