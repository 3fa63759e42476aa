//! The sandbox's launcher alone, for this crate's own tests; the `mixse` command is its own launcher.

fn main() -> std::process::ExitCode {
    mixse_eval::sandbox::child_main()
}
