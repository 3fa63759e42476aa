//! The lists in `docs/compatibility.md` are those that the readers check against.

use std::path::Path;

use mixse_model::compatibility;
use mixse_testing::generated::check_section;

#[test]
fn the_documentation_has_the_lists_of_the_code() {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/compatibility.md");
    for (name, text) in compatibility::sections() {
        check_section(&document, name, &text);
    }
}
