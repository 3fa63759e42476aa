//! Figures as standalone SVG: readable without a style sheet, on paper and on a screen.

use std::fmt::Write as _;

use super::{
    Findings,
    summary::{Cell, Row, Summary},
};

/// A figure of a study.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figure {
    /// Its file name without the ending.
    pub name: String,
    /// What it shows.
    pub caption: String,
    /// The drawing.
    pub svg: String,
}

/// Distinguishable in print and for the colour-blind (Okabe and Ito 2008).
const COLOURS: [&str; 8] =
    ["#0072b2", "#d55e00", "#00855f", "#b0417f", "#8a6d00", "#3b3f98", "#5a5a5a", "#7a4a21"];

const FONT: &str = "font-family=\"system-ui, Helvetica, Arial, sans-serif\" font-size=\"12\"";
const PLOT: f64 = 400.0;
const LINE: f64 = 22.0;
const TOP: f64 = 14.0;

/// The study's figures: shares over all items, for each domain, and over the settings where there are several.
pub fn figures(findings: &Findings, summary: &Summary) -> Vec<Figure> {
    let mut figures = Vec::new();
    if summary.rows.is_empty() {
        return figures;
    }
    figures.push(Figure {
        name: "overall".into(),
        caption: "Right answers on all items, with 95 % intervals.".into(),
        svg: dots(&summary.rows, |row| Some(&row.overall)),
    });
    for (index, domain) in findings.domains.iter().enumerate() {
        if summary.rows.iter().any(|row| row.domains[index].is_some()) {
            figures.push(Figure {
                name: format!("domain-{domain}"),
                caption: format!("Right answers on the items of {domain}, with 95 % intervals."),
                svg: dots(&summary.rows, |row| row.domains[index].as_ref()),
            });
        }
    }
    if groups(summary).len() > 1 {
        figures.push(Figure {
            name: "settings".into(),
            caption: "Right answers on all items by setting, with 95 % intervals.".into(),
            svg: lines(summary),
        });
    }
    for (group, experts, rows) in mean_routing(findings) {
        let suffix = if group.is_empty() { String::new() } else { format!("-{}", file_word(&group)) };
        let of = if group.is_empty() { String::new() } else { format!(" ({group})") };
        figures.push(Figure {
            name: format!("routing{suffix}"),
            caption: format!(
                "Share of the decisions about each domain's tokens that went to each expert, mean over the seeds{of}."
            ),
            svg: heatmap(&experts, &rows),
        });
    }
    figures
}

/// The groups in the order of the table.
fn groups(summary: &Summary) -> Vec<&str> {
    let mut groups: Vec<&str> = Vec::new();
    for row in &summary.rows {
        if !groups.contains(&row.group.as_str()) {
            groups.push(&row.group);
        }
    }
    groups
}

/// A name that is safe in a path.
fn file_word(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect()
}

/// One line a row: a dot at the share, a whisker over the interval.
fn dots(rows: &[Row], cell: impl Fn(&Row) -> Option<&Cell>) -> String {
    let shown: Vec<(&Row, &Cell)> = rows.iter().filter_map(|row| Some((row, cell(row)?))).collect();
    let high = shown.iter().map(|(_, c)| c.interval.high).fold(0.05, f64::max);
    let name = |row: &Row| {
        if row.group.is_empty() { row.method.clone() } else { format!("{}: {}", row.group, row.method) }
    };
    let names: Vec<String> = shown.iter().map(|(row, _)| name(row)).collect();
    let left = labels(names.iter().map(String::as_str));
    let axis = Axis::new(left, high);
    let height = TOP + LINE * shown.len() as f64 + 34.0;
    let mut svg = open(left + PLOT + 60.0, height);
    axis.vertical_lines(&mut svg, TOP + LINE * shown.len() as f64);
    for (i, ((row, cell), name)) in shown.iter().zip(&names).enumerate() {
        let y = TOP + LINE * (i as f64 + 0.5);
        let (x, low, high) = (axis.x(cell.share), axis.x(cell.interval.low), axis.x(cell.interval.high));
        let colour = COLOURS[if row.method == "mixture" { 1 } else { 0 }];
        text(&mut svg, left - 8.0, y + 4.0, "end", name);
        let _ = write!(
            svg,
            "<line x1=\"{low:.1}\" x2=\"{high:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"{colour}\" stroke-width=\"2\" opacity=\"0.55\"/>\
             <circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{colour}\"/>"
        );
        text(&mut svg, high + 6.0, y + 4.0, "start", &format!("{:.1}", 100.0 * cell.share));
    }
    svg + "</svg>\n"
}

/// Room for the longest of some labels, by its letters: nothing here knows the reader's font, so there is some to spare.
fn labels<'a>(names: impl Iterator<Item = &'a str>) -> f64 {
    let longest = names.map(|name| name.chars().count()).max().unwrap_or(0);
    (7.0 * longest as f64 + 16.0).max(100.0)
}

/// The horizontal axis from 0, at `left`, to a round number of percent.
struct Axis {
    left: f64,
    end: f64,
    step: f64,
}

impl Axis {
    fn new(left: f64, high: f64) -> Self {
        let step = [0.01, 0.02, 0.05, 0.1, 0.2].into_iter().find(|s| high / s <= 6.0).unwrap_or(0.2);
        Self { left, end: (high / step).ceil() * step, step }
    }

    fn x(&self, share: f64) -> f64 {
        self.left + share / self.end * PLOT
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        let step = self.step;
        (0..=(self.end / step).round() as u32).map(move |i| f64::from(i) * step)
    }

    fn vertical_lines(&self, svg: &mut String, bottom: f64) {
        for tick in self.ticks() {
            let x = self.x(tick);
            let _ = write!(
                svg,
                "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{bottom:.1}\" stroke=\"#d9dee4\"/>"
            );
            text(svg, x, bottom + 16.0, "middle", &format!("{:.0} %", 100.0 * tick));
        }
    }
}

/// One line a method over the groups, in their order.
fn lines(summary: &Summary) -> String {
    const HEIGHT: f64 = 260.0;
    const LEFT: f64 = 60.0;
    let groups = groups(summary);
    let mut methods: Vec<&str> = Vec::new();
    for row in &summary.rows {
        if !methods.contains(&row.method.as_str()) {
            methods.push(&row.method);
        }
    }
    let high = summary.rows.iter().map(|row| row.overall.interval.high).fold(0.05, f64::max);
    let axis = Axis::new(LEFT, high);
    let bottom = TOP + HEIGHT;
    let x = |group: usize| LEFT + (group as f64 + 0.5) / groups.len() as f64 * PLOT;
    let y = |share: f64| bottom - share / axis.end * HEIGHT;
    let mut svg = open(
        LEFT + PLOT + 26.0 + labels(methods.iter().copied()),
        (bottom + 40.0).max(TOP + 18.0 * methods.len() as f64 + 20.0),
    );
    for tick in axis.ticks() {
        let y = y(tick);
        let _ = write!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#d9dee4\"/>",
            LEFT + PLOT
        );
        text(&mut svg, LEFT - 6.0, y + 4.0, "end", &format!("{:.0} %", 100.0 * tick));
    }
    for (i, group) in groups.iter().enumerate() {
        text(&mut svg, x(i), bottom + 18.0, "middle", group);
    }
    for (m, method) in methods.iter().enumerate() {
        let colour = COLOURS[m % COLOURS.len()];
        // Whiskers of different methods stand side by side.
        let shift = (m as f64 - (methods.len() as f64 - 1.0) / 2.0) * 4.0;
        let mut points = String::new();
        for (g, group) in groups.iter().enumerate() {
            let Some(row) = summary.rows.iter().find(|r| r.group == *group && r.method == *method) else {
                continue;
            };
            let (x, cell) = (x(g) + shift, &row.overall);
            let _ = write!(points, "{x:.1},{:.1} ", y(cell.share));
            let _ = write!(
                svg,
                "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\" opacity=\"0.4\"/>\
                 <circle cx=\"{x:.1}\" cy=\"{:.1}\" r=\"3.5\" fill=\"{colour}\"/>",
                y(cell.interval.low),
                y(cell.interval.high),
                y(cell.share)
            );
        }
        let _ = write!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>",
            points.trim_end()
        );
        let at = TOP + 18.0 * (m as f64 + 0.7);
        let _ = write!(
            svg,
            "<circle cx=\"{:.1}\" cy=\"{at:.1}\" r=\"4\" fill=\"{colour}\"/>",
            LEFT + PLOT + 16.0
        );
        text(&mut svg, LEFT + PLOT + 26.0, at + 4.0, "start", method);
    }
    svg + "</svg>\n"
}

type RoutingTable = Vec<(String, Vec<f64>)>;

/// Of each group: the experts and, by domain, the shares averaged over the seeds.
fn mean_routing(findings: &Findings) -> Vec<(String, Vec<String>, RoutingTable)> {
    let mut means: Vec<(String, Vec<String>, RoutingTable)> = Vec::new();
    for run in &findings.routing {
        if means.iter().any(|(group, ..)| *group == run.group) {
            continue;
        }
        let same: Vec<_> = findings
            .routing
            .iter()
            .filter(|other| other.group == run.group && other.experts == run.experts)
            .collect();
        let rows = run.rows.iter().map(|row| {
            let mut shares = vec![0.0; run.experts.len()];
            for found in same.iter().flat_map(|r| r.rows.iter().filter(|r| r.domain == row.domain)) {
                shares.iter_mut().zip(&found.shares).for_each(|(sum, s)| *sum += s / same.len() as f64);
            }
            (row.domain.clone(), shares)
        });
        means.push((run.group.clone(), run.experts.clone(), rows.collect()));
    }
    means
}

fn heatmap(experts: &[String], rows: &[(String, Vec<f64>)]) -> String {
    const CELL: f64 = 92.0;
    let left = labels(rows.iter().map(|(domain, _)| domain.as_str()));
    let mut svg =
        open(left + 10.0 + CELL * experts.len() as f64, TOP + 24.0 + 40.0 * rows.len() as f64 + 10.0);
    for (e, expert) in experts.iter().enumerate() {
        text(&mut svg, left + CELL * (e as f64 + 0.5), TOP + 8.0, "middle", expert);
    }
    for (r, (domain, shares)) in rows.iter().enumerate() {
        let y = TOP + 20.0 + 40.0 * r as f64;
        text(&mut svg, left - 8.0, y + 22.0, "end", domain);
        for (e, &share) in shares.iter().enumerate() {
            let x = left + CELL * e as f64;
            let _ = write!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"36\" rx=\"4\" fill=\"#0072b2\" fill-opacity=\"{:.3}\"/>",
                CELL - 4.0,
                0.06 + 0.94 * share.clamp(0.0, 1.0)
            );
            let colour = if share > 0.55 { "#ffffff" } else { "#1b1f24" };
            let _ = write!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"{colour}\">{:.0} %</text>",
                x + CELL / 2.0 - 2.0,
                y + 22.0,
                100.0 * share
            );
        }
    }
    svg + "</svg>\n"
}

fn open(width: f64, height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" height=\"{height:.0}\" {FONT}>\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>"
    )
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, words: &str) {
    let _ = write!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"#1b1f24\">{}</text>",
        escape(words)
    );
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
