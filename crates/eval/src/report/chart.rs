//! Geometry of the charts: numbers in, coordinates out. The template draws them.

use serde::Serialize;

use super::data::Curve;

/// Size and margins of a chart in its own units.
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 44.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 34.0;

/// More points than this are averaged: a screen shows no more.
const MAX_POINTS: usize = 200;

/// A tick of an axis.
#[derive(Debug, Serialize, PartialEq)]
pub(super) struct Tick {
    pub(super) at: f64,
    pub(super) label: String,
}

/// A line of a chart.
#[derive(Debug, Serialize)]
pub(super) struct Line {
    pub(super) name: String,
    /// Index of its colour.
    pub(super) colour: usize,
    /// `x,y x,y …`
    pub(super) points: String,
    pub(super) first: String,
    pub(super) last: String,
    /// Losses of held-out rows.
    pub(super) looks: Vec<Look>,
}

/// A point of a chart: the loss of held-out rows at some step.
#[derive(Debug, Serialize)]
pub(super) struct Look {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) step: usize,
    pub(super) loss: String,
    /// The parameters of this step were kept.
    pub(super) kept: bool,
}

/// A line chart.
#[derive(Debug, Serialize)]
pub(super) struct LineChart {
    pub(super) width: f64,
    pub(super) height: f64,
    pub(super) left: f64,
    pub(super) right: f64,
    pub(super) top: f64,
    pub(super) bottom: f64,
    pub(super) x_ticks: Vec<Tick>,
    pub(super) y_ticks: Vec<Tick>,
    pub(super) lines: Vec<Line>,
    /// Some training held rows out.
    pub(super) held_out: bool,
}

/// Loss over steps, smoothed where there are many; `None` without any point.
pub(super) fn losses(curves: &[Curve]) -> Option<LineChart> {
    let finite = |curve: &Curve| -> Vec<(f64, f64)> {
        (1..)
            .zip(&curve.losses)
            .filter(|(_, loss)| loss.is_finite())
            .map(|(step, &loss)| (f64::from(step), loss))
            .collect()
    };
    let all: Vec<Vec<(f64, f64)>> = curves.iter().map(finite).collect();
    let looks = |curve: &Curve| -> Vec<(usize, f64)> {
        curve.validation.iter().copied().filter(|(_, loss)| loss.is_finite()).collect()
    };
    let held_out: Vec<Vec<(usize, f64)>> = curves.iter().map(looks).collect();
    let values = || all.iter().flatten().map(|p| p.1).chain(held_out.iter().flatten().map(|p| p.1));
    let steps = all.iter().flatten().map(|point| point.0).fold(1.0, f64::max);
    let low = values().fold(f64::INFINITY, f64::min);
    let high = values().fold(f64::NEG_INFINITY, f64::max);
    if low > high {
        return None;
    }
    let y_values = nice_ticks(low, high, 5);
    let (low, high) = (low.min(y_values[0]), high.max(y_values[y_values.len() - 1]));
    let x = |step: f64| round(LEFT + (step - 1.0) / (steps - 1.0).max(1.0) * (WIDTH - LEFT - RIGHT));
    let y =
        |loss: f64| round(HEIGHT - BOTTOM - (loss - low) / (high - low).max(1e-9) * (HEIGHT - TOP - BOTTOM));
    let lines = curves.iter().zip(&all).enumerate().filter(|(_, (_, points))| !points.is_empty());
    let lines = lines.map(|(colour, (curve, points))| {
        let shown = thin(points);
        Line {
            name: curve.name.clone(),
            colour,
            points: shown
                .iter()
                .map(|&(step, loss)| format!("{},{}", x(step), y(loss)))
                .collect::<Vec<_>>()
                .join(" "),
            first: format!("{:.3}", points[0].1),
            last: format!("{:.3}", points[points.len() - 1].1),
            looks: held_out[colour]
                .iter()
                .map(|&(step, loss)| Look {
                    // Training losses are those before a step, so that the look before the first stands at its place.
                    x: x(step as f64 + 1.0).min(WIDTH - RIGHT),
                    y: y(loss),
                    step,
                    loss: format!("{loss:.3}"),
                    kept: curve.kept_step == Some(step),
                })
                .collect(),
        }
    });
    Some(LineChart {
        width: WIDTH,
        height: HEIGHT,
        left: LEFT,
        right: WIDTH - RIGHT,
        top: TOP,
        bottom: HEIGHT - BOTTOM,
        x_ticks: nice_ticks(1.0, steps, 6)
            .into_iter()
            .map(|v| v.max(1.0))
            .filter(|&v| v <= steps)
            .map(|v| Tick { at: x(v), label: format!("{v:.0}") })
            .collect(),
        y_ticks: y_values.into_iter().map(|v| Tick { at: y(v), label: label(v) }).collect(),
        lines: lines.collect(),
        held_out: held_out.iter().any(|looks| !looks.is_empty()),
    })
}

/// At most [`MAX_POINTS`] points, each the mean of its neighbours.
fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let group = points.len().div_ceil(MAX_POINTS).max(1);
    let mean = |chunk: &[(f64, f64)]| {
        let sum = chunk.iter().fold((0.0, 0.0), |sum, p| (sum.0 + p.0, sum.1 + p.1));
        (sum.0 / chunk.len() as f64, sum.1 / chunk.len() as f64)
    };
    points.chunks(group).map(mean).collect()
}

/// About `count` round values from just below `low` to just above `high`, at least one.
fn nice_ticks(low: f64, high: f64, count: u32) -> Vec<f64> {
    let span = (high - low).max(1e-6);
    let rough = span / f64::from(count);
    let power = 10f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|&s| s >= rough).unwrap_or(power * 10.0);
    let first = (low / step).floor();
    let last = (high / step).ceil();
    // The step is at least a fifth of the span, so that there are few.
    (0..=(last - first).min(20.0) as u32).map(|i| (first + f64::from(i)) * step).collect()
}

fn label(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_enclose_the_values() {
        let check = |low, high, expected: &[f64]| {
            let ticks = nice_ticks(low, high, 5);
            assert_eq!(ticks.len(), expected.len(), "{ticks:?}");
            assert!(ticks.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-9), "{ticks:?}");
        };
        check(0.0, 1.0, &[0.0, 0.2, 0.4, 0.6, 0.8, 1.0]);
        check(1.3, 2.9, &[1.0, 1.5, 2.0, 2.5, 3.0]);
        check(1.0, 60.0, &[0.0, 20.0, 40.0, 60.0]);
        check(2.0, 2.0, &[2.0]);
    }

    #[test]
    fn a_chart_skips_what_is_no_number() {
        let curve = |losses: &[f64]| Curve { name: "a".into(), losses: losses.to_vec(), ..Curve::default() };
        assert!(losses(&[]).is_none());
        assert!(losses(&[curve(&[f64::NAN])]).is_none());
        let chart = losses(&[curve(&[3.0, f64::NAN, 1.0]), curve(&[])]).unwrap();
        assert_eq!(chart.lines.len(), 1);
        assert_eq!(chart.lines[0].points.split(' ').count(), 2);
        assert_eq!((chart.lines[0].first.as_str(), chart.lines[0].last.as_str()), ("3.000", "1.000"));
        let validated =
            Curve { validation: vec![(0, 2.5), (2, 1.5)], kept_step: Some(2), ..curve(&[3.0, 2.0]) };
        let chart = losses(&[validated]).unwrap();
        let looks: Vec<_> = chart.lines[0].looks.iter().map(|l| (l.step, l.kept, l.loss.as_str())).collect();
        assert_eq!(looks, [(0, false, "2.500"), (2, true, "1.500")]);
        let long: Vec<f64> = (0..5000).map(f64::from).collect();
        assert!(losses(&[curve(&long)]).unwrap().lines[0].points.split(' ').count() <= MAX_POINTS);
    }
}
