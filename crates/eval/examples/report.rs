//! Writes a report page from report data, to look at in a browser:
//! `cargo run -p mixse-eval --example report -- DATA.json PAGE.html`

use std::{error::Error, fs};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(data), Some(page)) = (arguments.next(), arguments.next()) else {
        return Err("usage: report DATA.json PAGE.html".into());
    };
    let data = serde_json::from_str(&fs::read_to_string(data)?)?;
    Ok(fs::write(page, mixse_eval::report::render(&data)?)?)
}
