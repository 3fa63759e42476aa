//! One self-contained HTML page about a run.
//!
//! [`ReportData`] holds what the page shows; [`render`] turns it into HTML. The page needs no network; texts in it come from
//! models and users and are escaped by the template engine, whatever they hold.

mod chart;
mod data;
mod quality;
mod view;

pub use data::{
    Comparison, Count, Curve, Fact, FileLink, Funnel, Method, MethodKind, ReportData, Routing, RoutingRow,
    Sample, TaskTime, Token,
};

use minijinja::{AutoEscape, Environment};

use crate::{Error, Result};

/// The page.
///
/// # Errors
/// The data does not fit together: a routing row with another number of experts, an interval that is not a number.
pub fn render(data: &ReportData) -> Result<String> {
    data.validate()?;
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    let failed = |e: minijinja::Error| Error::Invalid(format!("the report cannot be written: {e:#}"));
    environment.add_template("report.html", include_str!("page/report.html")).map_err(failed)?;
    let template = environment.get_template("report.html").map_err(failed)?;
    template
        .render(minijinja::context! {
            style => minijinja::Value::from_safe_string(include_str!("page/style.css").to_owned()),
            script => minijinja::Value::from_safe_string(include_str!("page/script.js").to_owned()),
            page => minijinja::value::Serde(view::Page::new(data)),
        })
        .map_err(failed)
}

#[cfg(test)]
mod tests;
