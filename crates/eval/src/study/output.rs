//! The tables as a page, as LaTeX and as CSV.

use std::fmt::Write as _;

use minijinja::{AutoEscape, Environment};
use serde::Serialize;

use super::{
    Figure, Findings,
    paper::paper_row,
    summary::{Cell, Contrast, Row, Summary},
};
use crate::{Error, Result, report::MethodKind, stats::LEVEL};

/// The page, self-contained.
///
/// # Errors
/// The template engine refuses, which is a fault in the template.
pub fn page(
    findings: &Findings,
    summary: &Summary,
    figures: &[Figure],
    configuration: &str,
) -> Result<String> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    let failed = |e: minijinja::Error| Error::Invalid(format!("the study's page cannot be written: {e:#}"));
    environment.add_template("study.html", include_str!("study.html")).map_err(failed)?;
    let template = environment.get_template("study.html").map_err(failed)?;
    let safe = |text: &str| minijinja::Value::from_safe_string(text.to_owned());
    let drawn: Vec<_> = figures
        .iter()
        .map(|f| minijinja::context! { name => &f.name, caption => &f.caption, svg => safe(&f.svg) })
        .collect();
    template
        .render(minijinja::context! {
            style => safe(include_str!("../report/page/style.css")),
            figures => drawn,
            page => minijinja::value::Serde(Page::new(findings, summary)),
            configuration,
        })
        .map_err(failed)
}

#[derive(Serialize)]
struct Page<'a> {
    title: &'a str,
    about: &'a str,
    domains: &'a [String],
    notes: &'a [String],
    finished: usize,
    all: usize,
    groups: Vec<GroupView<'a>>,
    data: Vec<DataView<'a>>,
    data_domains: Vec<&'a str>,
}

#[derive(Serialize)]
struct GroupView<'a> {
    name: &'a str,
    rows: Vec<RowView<'a>>,
}

#[derive(Serialize)]
struct RowView<'a> {
    method: &'a str,
    kind: MethodKind,
    seeds: usize,
    overall: CellView,
    cells: Vec<Option<CellView>>,
    to_base: Option<ContrastView>,
    mixture_to_this: Option<ContrastView>,
}

#[derive(Serialize)]
struct CellView {
    percent: String,
    interval: String,
    deviation: Option<String>,
    paper: Option<String>,
    best: bool,
}

#[derive(Serialize)]
struct ContrastView {
    points: String,
    interval: String,
    p: String,
    p_holm: String,
    significant: bool,
}

#[derive(Serialize)]
struct DataView<'a> {
    group: &'a str,
    seed: u64,
    rows: Vec<Option<usize>>,
}

impl<'a> Page<'a> {
    fn new(findings: &'a Findings, summary: &'a Summary) -> Self {
        let mut groups: Vec<GroupView<'a>> = Vec::new();
        for row in &summary.rows {
            let view = RowView::new(row, &findings.domains);
            match groups.iter_mut().find(|group| group.name == row.group) {
                Some(group) => group.rows.push(view),
                None => groups.push(GroupView { name: &row.group, rows: vec![view] }),
            }
        }
        let mut data_domains: Vec<&str> = Vec::new();
        for (domain, _) in findings.data.iter().flat_map(|run| &run.rows) {
            if !data_domains.contains(&domain.as_str()) {
                data_domains.push(domain);
            }
        }
        let count = |run: &super::RunData, domain: &str| {
            run.rows.iter().find(|(name, _)| name == domain).map(|(_, count)| *count)
        };
        let data = findings.data.iter().map(|run| DataView {
            group: &run.group,
            seed: run.seed,
            rows: data_domains.iter().map(|domain| count(run, domain)).collect(),
        });
        Self {
            title: &findings.title,
            about: &findings.about,
            domains: &findings.domains,
            notes: &findings.notes,
            finished: findings.runs.0,
            all: findings.runs.1,
            groups,
            data: data.collect(),
            data_domains,
        }
    }
}

impl<'a> RowView<'a> {
    fn new(row: &'a Row, domains: &[String]) -> Self {
        let paper = paper_row(&row.method);
        let cells = row.domains.iter().zip(domains).map(|(cell, domain)| {
            cell.as_ref().map(|cell| CellView::new(cell, paper.and_then(|paper| paper.domain(domain))))
        });
        Self {
            method: &row.method,
            kind: row.kind,
            seeds: row.seeds.len(),
            overall: CellView::new(&row.overall, paper.and_then(|paper| paper.average)),
            cells: cells.collect(),
            to_base: row.to_base.as_ref().map(ContrastView::new),
            mixture_to_this: row.mixture_to_this.as_ref().map(ContrastView::new),
        }
    }
}

impl CellView {
    fn new(cell: &Cell, paper: Option<f64>) -> Self {
        Self {
            percent: percent(cell.share),
            interval: format!("{:.0} to {:.0}", 100.0 * cell.interval.low, 100.0 * cell.interval.high),
            deviation: cell.seed_deviation.map(percent),
            paper: paper.map(|value| format!("{value:.1}")),
            best: cell.best,
        }
    }
}

impl ContrastView {
    fn new(contrast: &Contrast) -> Self {
        let found = contrast.difference;
        let (low, high) = (found.interval.low, found.interval.high);
        Self {
            points: points(found.difference),
            interval: format!("{} to {}", points(low), points(high)),
            p: match found.mid_p {
                Some(mid) => format!("{} (mid-p {})", p_value(found.p), p_value(mid)),
                None => p_value(found.p),
            },
            p_holm: p_value(contrast.p_holm),
            significant: contrast.p_holm < LEVEL,
        }
    }
}

fn percent(share: f64) -> String {
    format!("{:.1}", 100.0 * share)
}

/// A difference of shares in points, with a real minus sign.
fn points(difference: f64) -> String {
    format!("{:+.1}", 100.0 * difference).replace('-', "\u{2212}")
}

fn p_value(p: f64) -> String {
    if p < 0.001 { "< 0.001".to_owned() } else { format!("{p:.3}") }
}

/// A `tabular` (package booktabs) for each group: percent, the best of each column bold, intervals below.
pub fn latex(findings: &Findings, summary: &Summary) -> String {
    let mut text = format!(
        "% {}\n% Right answers in percent with 95 % intervals; p: against the base, paired by item (exact McNemar test with one seed, permutation test with several), with Holm's correction.\n",
        findings.title
    );
    let mut group = None;
    let columns = findings.domains.len() + 2;
    for row in &summary.rows {
        if group != Some(&row.group) {
            if group.is_some() {
                text.push_str("\\bottomrule\n\\end{tabular}\n\n");
            }
            if !row.group.is_empty() {
                let _ = writeln!(text, "% {}", row.group);
            }
            let names: Vec<String> = findings.domains.iter().map(|domain| tex_escape(domain)).collect();
            let _ = writeln!(
                text,
                "\\begin{{tabular}}{{l{}}}\n\\toprule\nMethod & {} & All & $p$ \\\\\n\\midrule",
                "r".repeat(columns),
                names.join(" & ")
            );
            group = Some(&row.group);
        }
        let cell = |cell: Option<&Cell>| match cell {
            None => "--".to_owned(),
            Some(cell) => {
                let number = percent(cell.share);
                let number = if cell.best { format!("\\textbf{{{number}}}") } else { number };
                let interval = cell.interval;
                format!(
                    "{number} {{\\scriptsize [{:.0}, {:.0}]}}",
                    100.0 * interval.low,
                    100.0 * interval.high
                )
            }
        };
        let mut cells: Vec<String> = row.domains.iter().map(|c| cell(c.as_ref())).collect();
        cells.push(cell(Some(&row.overall)));
        cells.push(row.to_base.as_ref().map_or_else(
            || "--".to_owned(),
            |c| match c.p_holm {
                p if p < 0.001 => "$<$0.001".to_owned(),
                p => format!("{p:.3}"),
            },
        ));
        let _ = writeln!(text, "{} & {} \\\\", tex_escape(&row.method), cells.join(" & "));
    }
    if group.is_some() {
        text.push_str("\\bottomrule\n\\end{tabular}\n");
    }
    text
}

fn tex_escape(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '\\' => escaped.push_str("\\textbackslash{}"),
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => escaped.extend(['\\', c]),
            '~' => escaped.push_str("\\textasciitilde{}"),
            '^' => escaped.push_str("\\textasciicircum{}"),
            _ => escaped.push(c),
        }
    }
    escaped
}

/// The tables' numbers: a line for every group, method and domain (`all`: all items).
pub fn csv(findings: &Findings, summary: &Summary) -> String {
    let mut text = String::from(
        "group,method,domain,seeds,items,share,low,high,seed_deviation,to_base,to_base_low,to_base_high,p,p_holm,mid_p,test\n",
    );
    let number = |value: Option<f64>| value.map(|v| format!("{v:.6}")).unwrap_or_default();
    for row in &summary.rows {
        let cells = std::iter::once(("all", Some(&row.overall)))
            .chain(findings.domains.iter().map(String::as_str).zip(row.domains.iter().map(Option::as_ref)));
        for (domain, cell) in cells {
            let Some(cell) = cell else { continue };
            let contrast = row.to_base.as_ref().filter(|_| domain == "all");
            let of = |pick: fn(&Contrast) -> f64| number(contrast.map(pick));
            let fields = [
                quoted(&row.group),
                quoted(&row.method),
                quoted(domain),
                row.seeds.len().to_string(),
                cell.items.to_string(),
                number(Some(cell.share)),
                number(Some(cell.interval.low)),
                number(Some(cell.interval.high)),
                number(cell.seed_deviation),
                of(|c| c.difference.difference),
                of(|c| c.difference.interval.low),
                of(|c| c.difference.interval.high),
                of(|c| c.difference.p),
                of(|c| c.p_holm),
                number(contrast.and_then(|c| c.difference.mid_p)),
                contrast.map(|c| quoted(c.difference.test.name())).unwrap_or_default(),
            ];
            text.push_str(&fields.join(","));
            text.push('\n');
        }
    }
    text
}

/// A line for every answer: what the tables are counted from, with the file that holds the full row under that id.
pub fn items_csv(findings: &Findings) -> String {
    let mut text = String::from("group,method,seed,domain,item,correct,files\n");
    for answers in &findings.answers {
        for domain in &answers.domains {
            for (id, right) in &domain.items {
                let fields = [
                    quoted(&answers.group),
                    quoted(&answers.method),
                    answers.seed.to_string(),
                    quoted(&domain.domain),
                    quoted(id),
                    u8::from(*right).to_string(),
                    quoted(&domain.files.join(" ")),
                ];
                text.push_str(&fields.join(","));
                text.push('\n');
            }
        }
    }
    text
}

/// A CSV field (RFC 4180).
fn quoted(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_owned()
    }
}
