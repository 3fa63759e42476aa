//! Figures as PNG, for where SVG cannot go.

use std::sync::Arc;

use resvg::{
    tiny_skia::{Color, Pixmap, Transform},
    usvg::{Options, Tree, fontdb},
};

use super::Figure;
use crate::{Error, Result};

/// Pixels for each unit of the drawing: sharp on paper.
const SCALE: f32 = 2.0;

/// The letters of figures; those of the machine would make a figure depend on where it is drawn.
const FONT: &[u8] = include_bytes!("font/DejaVuSans-subset.ttf");
const FAMILY: &str = "DejaVu Sans";

impl Figure {
    /// The figure as a PNG file on white.
    ///
    /// # Errors
    /// The drawing is not SVG, or the image is too large for memory.
    pub fn png(&self) -> Result<Vec<u8>> {
        let failed = |what: &dyn std::fmt::Display| {
            Error::Invalid(format!("figure {} cannot be drawn as PNG: {what}", self.name))
        };
        let mut fonts = fontdb::Database::new();
        fonts.load_font_data(FONT.to_vec());
        fonts.set_sans_serif_family(FAMILY);
        let options =
            Options { fontdb: Arc::new(fonts), font_family: FAMILY.to_owned(), ..Options::default() };
        let tree = Tree::from_str(&self.svg, &options).map_err(|e| failed(&e))?;
        let size = tree.size().to_int_size().scale_by(SCALE).ok_or_else(|| failed(&"it has no size"))?;
        let mut image = Pixmap::new(size.width(), size.height()).ok_or_else(|| failed(&"it is too large"))?;
        image.fill(Color::WHITE);
        resvg::render(&tree, Transform::from_scale(SCALE, SCALE), &mut image.as_mut());
        image.encode_png().map_err(|e| failed(&e))
    }
}
