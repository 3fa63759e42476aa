//! The table of the rows' figures: a line a figure, a column a domain.

use mixse_selfmoe::quality::{Distribution, DomainQuality};
use serde::Serialize;

/// The table; empty without any domain.
#[derive(Debug, Serialize)]
pub(super) struct Table {
    pub(super) domains: Vec<String>,
    pub(super) figures: Vec<Figure>,
    pub(super) lengths: Vec<Lengths>,
    pub(super) answers: Vec<Answers>,
    pub(super) overlaps: Vec<Overlaps>,
}

/// A figure of every domain.
#[derive(Debug, Serialize)]
pub(super) struct Figure {
    pub(super) name: &'static str,
    pub(super) values: Vec<String>,
}

/// Lengths of a kind of text, as boxes on one scale.
#[derive(Debug, Serialize)]
pub(super) struct Lengths {
    pub(super) name: &'static str,
    pub(super) boxes: Vec<Box>,
}

/// Five numbers of a distribution, and their places on a scale of 0 to 100.
#[derive(Debug, Serialize)]
pub(super) struct Box {
    pub(super) text: String,
    pub(super) min: f64,
    pub(super) lower: f64,
    pub(super) median: f64,
    pub(super) upper: f64,
    pub(super) max: f64,
}

/// The commonest answers of a domain.
#[derive(Debug, Serialize)]
pub(super) struct Answers {
    pub(super) domain: String,
    pub(super) different: usize,
    pub(super) bars: Vec<Bar>,
}

#[derive(Debug, Serialize)]
pub(super) struct Bar {
    pub(super) answer: String,
    pub(super) count: usize,
    pub(super) share: String,
}

/// Rows that share text with an evaluation file, by domain.
#[derive(Debug, Serialize)]
pub(super) struct Overlaps {
    pub(super) file: String,
    pub(super) items: usize,
    /// Rows of each domain, or a dash where the file was not looked at.
    pub(super) counts: Vec<String>,
    /// The first of them, in words.
    pub(super) examples: Vec<String>,
}

/// Answers shown of a domain.
const SHOWN_ANSWERS: usize = 8;
/// Overlaps shown of a file.
const SHOWN_OVERLAPS: usize = 5;

pub(super) fn table(all: &[DomainQuality]) -> Option<Table> {
    if all.is_empty() {
        return None;
    }
    Some(Table {
        domains: all.iter().map(|found| found.domain.clone()).collect(),
        figures: figures(all),
        lengths: vec![
            lengths("words of a task", all, |found| found.quality.task_words),
            lengths("words of a response", all, |found| found.quality.response_words),
        ],
        answers: all.iter().filter(|found| !found.quality.answers.is_empty()).map(answers).collect(),
        overlaps: overlaps(all),
    })
}

fn figures(all: &[DomainQuality]) -> Vec<Figure> {
    let figure = |name, value: &dyn Fn(&DomainQuality) -> String| Figure {
        name,
        values: all.iter().map(value).collect(),
    };
    let two = |value: f64| format!("{value:.2}");
    let spread = |d: &Distribution| format!("{:.2} ({:.2} to {:.2})", d.median, d.min, d.max);
    let optional = |d: &Option<Distribution>| d.as_ref().map_or_else(|| "–".to_owned(), spread);
    let mut figures = vec![
        figure("rows", &|f| f.quality.rows.to_string()),
        figure("distinct-1 of the tasks", &|f| two(f.quality.distinct[0])),
        figure("distinct-2", &|f| two(f.quality.distinct[1])),
        figure("distinct-3", &|f| two(f.quality.distinct[2])),
        figure("distinct-4", &|f| two(f.quality.distinct[3])),
        figure("ROUGE-L to the nearest task, median (least to most)", &|f| spread(&f.quality.nearest)),
        figure("distance in the base, rows", &|f| format!("{:.3}", f.spread.mean_distance)),
        figure("distance in the base, seeds", &|f| format!("{:.3}", f.seed_spread.mean_distance)),
        figure("directions in the base, rows", &|f| {
            format!("{:.1} of {}", f.spread.directions, f.spread.texts.saturating_sub(1))
        }),
        figure("directions in the base, seeds", &|f| {
            format!("{:.1} of {}", f.seed_spread.directions, f.seed_spread.texts.saturating_sub(1))
        }),
        figure("different answers", &|f| f.quality.different_answers.to_string()),
    ];
    if all.iter().any(|found| found.quality.agreement.is_some()) {
        figures.push(figure("agreement, median (least to most)", &|f| optional(&f.quality.agreement)));
    }
    if all.iter().any(|found| found.quality.round_trip.is_some()) {
        figures.push(figure("round trip, median (least to most)", &|f| optional(&f.quality.round_trip)));
    }
    figures
}

fn lengths(
    name: &'static str,
    all: &[DomainQuality],
    of: impl Fn(&DomainQuality) -> Distribution,
) -> Lengths {
    let most = all.iter().map(|found| of(found).max).fold(1.0, f64::max);
    let at = |value: f64| (1000.0 * value / most).round() / 10.0;
    let boxes = all.iter().map(of).map(|d| Box {
        text: format!("{:.0} ({:.0} to {:.0})", d.median, d.min, d.max),
        min: at(d.min),
        lower: at(d.lower_quartile),
        median: at(d.median),
        upper: at(d.upper_quartile),
        max: at(d.max),
    });
    Lengths { name, boxes: boxes.collect() }
}

fn answers(found: &DomainQuality) -> Answers {
    let most = found.quality.answers.first().map_or(1, |(_, count)| *count).max(1);
    let bar = |(answer, count): &(String, usize)| Bar {
        answer: answer.clone(),
        count: *count,
        share: format!("{:.1}", 100.0 * *count as f64 / most as f64),
    };
    Answers {
        domain: found.domain.clone(),
        different: found.quality.different_answers,
        bars: found.quality.answers.iter().take(SHOWN_ANSWERS).map(bar).collect(),
    }
}

fn overlaps(all: &[DomainQuality]) -> Vec<Overlaps> {
    let mut files: Vec<(&str, usize)> = Vec::new();
    for file in all.iter().flat_map(|found| &found.overlaps) {
        if !files.iter().any(|(name, _)| *name == file.file) {
            files.push((&file.file, file.items));
        }
    }
    let row = |(name, items): (&str, usize)| {
        let found: Vec<_> =
            all.iter().map(|domain| domain.overlaps.iter().find(|file| file.file == name)).collect();
        let count = |file: &Option<&mixse_selfmoe::quality::FileOverlap>| {
            file.map_or_else(|| "–".to_owned(), |file| file.overlaps.len().to_string())
        };
        let examples = found.iter().flatten().flat_map(|file| &file.overlaps);
        Overlaps {
            file: name.to_owned(),
            items,
            counts: found.iter().map(count).collect(),
            examples: examples
                .take(SHOWN_OVERLAPS)
                .map(|overlap| format!("{} and {}: “{}”", overlap.row, overlap.item, overlap.words))
                .collect(),
        }
    };
    files.into_iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use mixse_selfmoe::quality::{FileOverlap, Overlap, Quality, Spread};

    use super::*;

    #[test]
    fn columns_are_domains_and_files_that_were_not_looked_at_have_a_dash() {
        let domain = |name: &str, max: f64, files: &[&str]| DomainQuality {
            domain: name.into(),
            quality: Quality {
                rows: 3,
                task_words: Distribution { min: 1.0, median: 2.0, max, ..Distribution::default() },
                answers: vec![("B".into(), 4), ("A".into(), 1)],
                ..Quality::default()
            },
            spread: Spread { texts: 3, mean_distance: 0.25, directions: 1.5 },
            seed_spread: Spread::default(),
            overlaps: files
                .iter()
                .map(|file| FileOverlap {
                    file: (*file).into(),
                    items: 9,
                    overlaps: vec![Overlap { row: "r".into(), item: "i".into(), words: "a b".into() }],
                })
                .collect(),
        };
        let table = table(&[domain("a", 4.0, &["x", "y"]), domain("b", 8.0, &["x"])]).unwrap();
        assert_eq!(table.figures[0].values, ["3", "3"]);
        assert!(table.figures.iter().any(|f| f.values == ["1.5 of 2", "1.5 of 2"]));
        assert_eq!((table.lengths[0].boxes[0].max, table.lengths[0].boxes[1].max), (50.0, 100.0));
        assert_eq!(table.answers[0].bars[1].share, "25.0");
        assert_eq!(
            (table.overlaps[0].counts.concat(), table.overlaps[1].counts.concat()),
            ("11".into(), "1–".into())
        );
        assert_eq!(table.overlaps[1].examples, ["r and i: “a b”"]);
        assert!(super::table(&[]).is_none());
    }
}
