//! The mixse command line.
fn main() {}
