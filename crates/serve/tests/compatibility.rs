//! The lists of request fields in `docs/compatibility.md` are those that the server checks against.

use std::path::Path;

use mixse_testing::generated::check_section;

#[test]
fn the_documentation_has_the_lists_of_the_code() {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/compatibility.md");
    check_section(&document, "requests", &mixse_serve::api::request_documentation());
}
