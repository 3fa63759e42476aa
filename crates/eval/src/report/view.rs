//! What the template prints: the data with its numbers written out.

use serde::Serialize;

use super::{
    chart::{self, LineChart},
    data::{Comparison, Count, Fact, FileLink, MethodKind, ReportData},
    quality,
};
use crate::stats::LEVEL;

/// Colours for experts that the style sheet has; more experts share them.
const COLOURS: usize = 8;

#[derive(Debug, Serialize)]
pub(super) struct Page<'a> {
    run: &'a str,
    base: &'a str,
    made: &'a str,
    domains: &'a [String],
    headline: Option<Headline>,
    legend: Vec<Legend<'a>>,
    methods: Vec<MethodRow<'a>>,
    routing: Vec<HeatRow<'a>>,
    chart: Option<LineChart>,
    funnels: Vec<FunnelRow<'a>>,
    reasons: Vec<ReasonRow<'a>>,
    quality: Option<quality::Table>,
    samples: Vec<SampleView<'a>>,
    tasks: Vec<TaskRow<'a>>,
    totals: &'a [Fact],
    machine: &'a [Fact],
    configuration: &'a str,
    files: Vec<FileRow<'a>>,
    notes: &'a [String],
}

impl<'a> Page<'a> {
    pub(super) fn new(data: &'a ReportData) -> Self {
        let colour = |index| index % COLOURS;
        Self {
            run: &data.run,
            base: &data.base,
            made: &data.made,
            domains: &data.domains,
            headline: Headline::new(data),
            legend: data
                .experts
                .iter()
                .enumerate()
                .map(|(i, name)| Legend { name, colour: colour(i) })
                .collect(),
            methods: methods(data),
            routing: routing(data),
            chart: chart::losses(&data.curves).map(|mut chart| {
                chart.lines.iter_mut().for_each(|line| line.colour = colour(line.colour));
                chart
            }),
            funnels: funnels(data),
            reasons: reasons(data),
            quality: quality::table(&data.quality),
            samples: samples(data),
            tasks: tasks(data),
            totals: &data.totals,
            machine: &data.machine,
            configuration: &data.configuration,
            files: data.files.iter().map(FileRow::new).collect(),
            notes: &data.notes,
        }
    }
}

#[derive(Debug, Serialize)]
struct Legend<'a> {
    name: &'a str,
    colour: usize,
}

/// The sentence at the top.
#[derive(Debug, Serialize)]
struct Headline {
    mixture: String,
    base: String,
    /// `+4.2`
    points: String,
    /// `−1.0 to +9.4`
    interval: Option<String>,
    p: Option<String>,
    items: usize,
    verdict: &'static str,
}

impl Headline {
    fn new(data: &ReportData) -> Option<Self> {
        let overall = |kind| data.methods.iter().find(|m| m.kind == kind).map(super::data::Method::overall);
        let (base, mixture) = (overall(MethodKind::Base)?, overall(MethodKind::Mixture)?);
        let comparison = data.comparison.as_ref();
        let difference = comparison.map_or(mixture.share() - base.share(), |c| c.difference);
        Some(Self {
            mixture: percent(mixture.share()),
            base: percent(base.share()),
            points: signed_points(difference),
            interval: comparison.map(|c| format!("{} to {}", signed_points(c.low), signed_points(c.high))),
            p: comparison.map(|c| {
                let mid = c.mid_p.map(|mid| format!(", mid-p {mid:.3}")).unwrap_or_default();
                if c.p < 0.001 { "p < 0.001".to_owned() } else { format!("p = {:.3}{mid}", c.p) }
            }),
            items: mixture.total,
            verdict: verdict(comparison),
        })
    }
}

fn verdict(comparison: Option<&Comparison>) -> &'static str {
    match comparison {
        Some(c) if c.p < LEVEL && c.difference > 0.0 => "The mixture is better than its base on these items.",
        Some(c) if c.p < LEVEL && c.difference < 0.0 => "The mixture is worse than its base on these items.",
        Some(_) => "The difference is within what chance gives with so few items.",
        None => "",
    }
}

#[derive(Debug, Serialize)]
struct MethodRow<'a> {
    name: &'a str,
    kind: MethodKind,
    overall: Cell,
    cells: Vec<Option<Cell>>,
}

/// A share with its interval, as text and as positions between 0 and 100.
#[derive(Debug, Serialize)]
struct Cell {
    percent: String,
    counts: String,
    interval: String,
    at: f64,
    low: f64,
    high: f64,
    best: bool,
}

impl Cell {
    fn new(count: Count, best: bool) -> Self {
        let interval = count.interval();
        Self {
            percent: percent(count.share()),
            counts: format!("{} / {}", count.correct, count.total),
            interval: format!("{:.0} to {:.0}", 100.0 * interval.low, 100.0 * interval.high),
            at: one_decimal(100.0 * count.share()),
            low: one_decimal(100.0 * interval.low),
            high: one_decimal(100.0 * interval.high),
            best,
        }
    }
}

fn methods(data: &ReportData) -> Vec<MethodRow<'_>> {
    let best = |column: &dyn Fn(&super::data::Method) -> Option<Count>| {
        data.methods.iter().filter_map(column).map(Count::share).fold(0.0, f64::max)
    };
    let best_overall = best(&|m| Some(m.overall()));
    let best_of: Vec<f64> = data.domains.iter().map(|d| best(&|m| m.counts.get(d).copied())).collect();
    let is_best = |count: Count, best: f64| count.correct > 0 && count.share() >= best;
    data.methods
        .iter()
        .map(|method| MethodRow {
            name: &method.name,
            kind: method.kind,
            overall: Cell::new(method.overall(), is_best(method.overall(), best_overall)),
            cells: data
                .domains
                .iter()
                .zip(&best_of)
                .map(|(domain, &best)| {
                    method.counts.get(domain).map(|&count| Cell::new(count, is_best(count, best)))
                })
                .collect(),
        })
        .collect()
}

#[derive(Debug, Serialize)]
struct HeatRow<'a> {
    domain: &'a str,
    tokens: String,
    cells: Vec<HeatCell>,
}

#[derive(Debug, Serialize)]
struct HeatCell {
    percent: String,
    /// 0 to 100.
    share: f64,
    /// The background is so strong that the text must be light.
    strong: bool,
}

fn routing(data: &ReportData) -> Vec<HeatRow<'_>> {
    let rows = data.routing.iter().flat_map(|routing| &routing.rows);
    rows.map(|row| HeatRow {
        domain: &row.domain,
        tokens: thousands(row.tokens),
        cells: row
            .shares
            .iter()
            .map(|&share| HeatCell {
                percent: percent(share),
                share: one_decimal(100.0 * share),
                strong: share > 0.55,
            })
            .collect(),
    })
    .collect()
}

#[derive(Debug, Serialize)]
struct FunnelRow<'a> {
    domain: &'a str,
    stages: Vec<Stage>,
    yield_percent: String,
}

#[derive(Debug, Serialize)]
struct Stage {
    name: &'static str,
    count: String,
    /// Length of its bar, 0 to 100.
    share: f64,
}

fn funnels(data: &ReportData) -> Vec<FunnelRow<'_>> {
    let most = data
        .funnels
        .iter()
        .flat_map(|f| [f.prompts, f.parsed, f.answered, f.accepted])
        .max()
        .unwrap_or(0)
        .max(1);
    let stage = |name, count: usize| Stage {
        name,
        count: thousands(count as u64),
        share: one_decimal(100.0 * count as f64 / most as f64),
    };
    data.funnels
        .iter()
        .map(|funnel| FunnelRow {
            domain: &funnel.domain,
            stages: vec![
                stage("prompts", funnel.prompts),
                stage("tasks parsed", funnel.parsed),
                stage("answered", funnel.answered),
                stage("accepted", funnel.accepted),
            ],
            yield_percent: percent(funnel.accepted as f64 / funnel.parsed.max(1) as f64),
        })
        .collect()
}

#[derive(Debug, Serialize)]
struct ReasonRow<'a> {
    reason: String,
    counts: Vec<usize>,
    total: usize,
    #[serde(skip)]
    key: &'a str,
}

/// Reasons of rejection by domain, the most frequent first.
fn reasons(data: &ReportData) -> Vec<ReasonRow<'_>> {
    let mut rows: Vec<ReasonRow<'_>> = Vec::new();
    for key in data.funnels.iter().flat_map(|funnel| funnel.rejected.keys()) {
        if rows.iter().any(|row| row.key == key) {
            continue;
        }
        let counts: Vec<usize> =
            data.funnels.iter().map(|f| f.rejected.get(key).copied().unwrap_or(0)).collect();
        rows.push(ReasonRow { reason: key.replace('_', " "), total: counts.iter().sum(), counts, key });
    }
    rows.sort_by(|a, b| b.total.cmp(&a.total).then(a.key.cmp(b.key)));
    rows
}

#[derive(Debug, Serialize)]
struct SampleView<'a> {
    id: &'a str,
    domain: &'a str,
    prompt: &'a str,
    correct: Option<bool>,
    tokens: Vec<TokenView<'a>>,
}

#[derive(Debug, Serialize)]
struct TokenView<'a> {
    text: &'a str,
    /// Colour of its expert; `None` if it was not routed.
    colour: Option<usize>,
    title: String,
}

fn samples(data: &ReportData) -> Vec<SampleView<'_>> {
    data.samples
        .iter()
        .map(|sample| SampleView {
            id: &sample.id,
            domain: &sample.domain,
            prompt: &sample.prompt,
            correct: sample.correct,
            tokens: sample
                .tokens
                .iter()
                .map(|token| TokenView {
                    text: &token.text,
                    colour: most_likely(&token.probabilities).map(|expert| expert % COLOURS),
                    title: title(&data.experts, &token.probabilities),
                })
                .collect(),
        })
        .collect()
}

fn most_likely(probabilities: &[f32]) -> Option<usize> {
    (0..probabilities.len()).max_by(|&a, &b| probabilities[a].total_cmp(&probabilities[b]).then(b.cmp(&a)))
}

/// `math 91 %, coding 6 %, …`, the most likely first.
fn title(experts: &[String], probabilities: &[f32]) -> String {
    let mut parts: Vec<(&String, f32)> = experts.iter().zip(probabilities.iter().copied()).collect();
    parts.sort_by(|a, b| b.1.total_cmp(&a.1));
    parts.iter().map(|(name, p)| format!("{name} {:.0} %", 100.0 * p)).collect::<Vec<_>>().join(", ")
}

#[derive(Debug, Serialize)]
struct TaskRow<'a> {
    id: &'a str,
    host: &'a str,
    time: String,
    /// Length of its bar, 0 to 100.
    share: f64,
    figures: String,
}

fn tasks(data: &ReportData) -> Vec<TaskRow<'_>> {
    let longest = data.tasks.iter().map(|task| task.seconds).fold(1e-9, f64::max);
    data.tasks
        .iter()
        .map(|task| TaskRow {
            id: &task.id,
            host: &task.host,
            time: duration(task.seconds),
            share: one_decimal(100.0 * task.seconds / longest),
            figures: task
                .figures
                .iter()
                .map(|(name, &value)| {
                    format!("{} {}", thousands(value.max(0.0).round() as u64), name.replace('_', " "))
                })
                .collect::<Vec<_>>()
                .join(", "),
        })
        .collect()
}

#[derive(Debug, Serialize)]
struct FileRow<'a> {
    path: &'a str,
    /// The path as a relative address.
    address: String,
    what: &'a str,
    size: String,
}

impl<'a> FileRow<'a> {
    fn new(file: &'a FileLink) -> Self {
        Self { path: &file.path, address: address(&file.path), what: &file.what, size: size(file.bytes) }
    }
}

/// A relative address that cannot be taken for one with a scheme or a host.
fn address(path: &str) -> String {
    let mut address = String::from("./");
    for byte in path.trim_start_matches('/').bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'/' | b'~' => {
                address.push(char::from(byte))
            }
            other => address.push_str(&format!("%{other:02X}")),
        }
    }
    address
}

fn percent(share: f64) -> String {
    format!("{:.1}", 100.0 * share)
}

/// `+4.2` or `−1.0` (with a minus sign, not a hyphen).
fn signed_points(share: f64) -> String {
    let sign = if share < 0.0 { '−' } else { '+' };
    format!("{sign}{:.1}", 100.0 * share.abs())
}

fn one_decimal(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// `1234567` as `1,234,567`.
fn thousands(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn duration(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    match (whole / 3600, whole / 60 % 60, whole % 60) {
        (0, 0, _) => format!("{seconds:.1} s"),
        (0, minutes, s) => format!("{minutes} min {s} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1000 => format!("{bytes} B"),
        1000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_need_more_than_chance() {
        let check = |difference, p, expected: &str| {
            // The interval decides nothing.
            let comparison = Comparison { difference, low: difference, high: difference, p, mid_p: None };
            assert!(verdict(Some(&comparison)).contains(expected), "{difference} {p}");
        };
        check(4.0 / 12.0, 0.125, "within what chance gives");
        check(0.3, 0.01, "better");
        check(-0.3, 0.01, "worse");
        check(0.0, 1.0, "within what chance gives");
        assert_eq!(verdict(None), "");
    }

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(1_234_567), "1,234,567");
        assert_eq!(thousands(123_456), "123,456");
        assert_eq!(duration(2.06), "2.1 s");
        assert_eq!(duration(75.0), "1 min 15 s");
        assert_eq!(duration(7260.0), "2 h 1 min");
        assert_eq!(signed_points(-0.012), "−1.2");
        assert_eq!(size(98_362_432), "98.4 MB");
    }

    #[test]
    fn addresses_stay_inside() {
        assert_eq!(address("data/math.jsonl"), "./data/math.jsonl");
        assert_eq!(address("javascript:alert(1)"), "./javascript%3Aalert%281%29");
        assert_eq!(address("//host/x?y#z"), "./host/x%3Fy%23z");
    }
}
