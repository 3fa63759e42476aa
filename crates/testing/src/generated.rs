//! Parts of documents that are made from lists in the code.

use std::path::Path;

/// Set to write the parts anew instead of comparing them.
pub const BLESS: &str = "MIXSE_BLESS";

/// Checks that the part of `document` between `<!-- begin NAME -->` and `<!-- end NAME -->` is `text`. With
/// `MIXSE_BLESS=1` in the environment the part is written instead.
pub fn check_section(document: &Path, name: &str, text: &str) {
    let whole = std::fs::read_to_string(document).unwrap();
    let (begin, end) = (format!("<!-- begin {name} -->\n"), format!("<!-- end {name} -->"));
    let from = whole.find(&begin).map(|at| at + begin.len());
    let Some((from, to)) = from.and_then(|from| Some((from, from + whole[from..].find(&end)?))) else {
        panic!("{} has no part {name:?}", document.display());
    };
    let wanted = format!("\n{}\n\n", text.trim());
    if whole[from..to] == wanted {
        return;
    }
    if std::env::var_os(BLESS).is_some() {
        std::fs::write(document, format!("{}{wanted}{}", &whole[..from], &whole[to..])).unwrap();
        return;
    }
    panic!(
        "{}: the part {name:?} is not what the code says; run this test with {BLESS}=1 to write it",
        document.display()
    );
}
