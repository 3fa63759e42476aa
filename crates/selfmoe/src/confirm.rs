//! Rows that something besides the response itself confirms: other samples' answers, or the code's own run.
//!
//! The paper keeps every row that has the right form; these are our additions, off by default.

use std::collections::HashMap;

use crate::{
    domain::Domain,
    error::{Error, Result},
    execute::Program,
    filter::{Reason, ResponseFilter},
    follow_up::{Written, task_text},
    record::SyntheticRow,
    respond::{Responded, sample_id},
    rouge::rouge_l,
    select::{Assembly, RejectedRow, Stage},
    verify,
};

/// Takes a vote among each row's answer and the answers of its `samples` samples ([`crate::respond::sample_shard`]). A row whose winning
/// answer has less than `min_agreement` of all votes is rejected; else it gets the first response with that answer, and the
/// agreement is recorded. Samples count only if the filters accept them. Rows without an answer that can be compared stay.
///
/// # Errors
/// A sample is missing: its shard was not made.
pub fn by_majority(
    domain: &Domain,
    assembly: Assembly,
    responses: &[Responded],
    samples: usize,
    min_agreement: f64,
) -> Result<Assembly> {
    let responses: HashMap<&str, &Responded> = responses.iter().map(|r| (r.id.as_str(), r)).collect();
    let filter = ResponseFilter::new(domain);
    let Assembly { rows, rejected, funnel } = assembly;
    let mut kept = Assembly { rows: Vec::with_capacity(rows.len()), rejected, funnel };
    for mut row in rows {
        let Some(answer) = row.checks.answer.clone() else {
            kept.rows.push(row);
            continue;
        };
        let mut candidates = vec![Some((answer, row.output.clone()))];
        for sample in 0..samples {
            let found = sampled(&responses, &row.id, sample)?;
            let accepted =
                filter.accept(&row.instruction, &row.input, &found.demonstrations, &found.text, found.end);
            candidates.push(accepted.ok().and_then(|a| Some((a.answer?, a.output))));
        }
        let answers = candidates.iter().map(|c| c.as_ref().map(|(answer, _)| answer.as_str()));
        let vote = verify::majority(answers);
        match vote.as_ref().filter(|vote| vote.agreement() >= min_agreement) {
            Some(vote) => {
                if let Some((answer, output)) = candidates.swap_remove(vote.sample) {
                    if output != row.output {
                        row.checks.round_trip = None;
                    }
                    row.checks.answer = Some(answer);
                    row.output = output;
                }
                row.checks.agreement = Some(vote.agreement());
                kept.rows.push(row);
            }
            None => {
                let detail = vote
                    .map_or_else(String::new, |v| format!("{} of {} say {}", v.votes, v.samples, v.answer));
                kept.reject_row(row, Reason::NoMajority, detail);
            }
        }
    }
    kept.funnel.accepted = kept.rows.len() as u64;
    Ok(kept)
}

/// Sample `sample` of a task.
pub(crate) fn sampled<'r>(
    responses: &HashMap<&str, &'r Responded>,
    task: &str,
    sample: usize,
) -> Result<&'r Responded> {
    let id = sample_id(task, sample);
    let missing = || Error::setting("samples", format!("{id} is missing; generate its shard first"));
    responses.get(id.as_str()).copied().ok_or_else(missing)
}

/// Records how much of each row's task the model made again from the response (`written`, by task), as ROUGE-L. Rows below
/// `min` are rejected; 0 keeps them all.
///
/// # Errors
/// A row's task was not asked for: its shard is missing.
pub fn by_round_trip(assembly: Assembly, written: &[Written], min: f64) -> Result<Assembly> {
    let written: HashMap<&str, &Written> = written.iter().map(|w| (w.id.as_str(), w)).collect();
    let Assembly { rows, rejected, funnel } = assembly;
    let mut kept = Assembly { rows: Vec::with_capacity(rows.len()), rejected, funnel };
    for mut row in rows {
        let missing =
            || Error::setting("round trip", format!("{} is missing; generate its shard first", row.id));
        let found = written.get(row.id.as_str()).ok_or_else(missing)?;
        let score = rouge_l(&task_text(&row.instruction, &row.input), &found.text);
        if score < min {
            let detail = format!("{score:.2} is below {min}: {}", found.text.trim());
            kept.reject_row(row, Reason::FailedRoundTrip, detail);
        } else {
            row.checks.round_trip = Some(score);
            kept.rows.push(row);
        }
    }
    kept.funnel.accepted = kept.rows.len() as u64;
    Ok(kept)
}

/// Bins of agreement for [`balanced`].
const BINS: usize = 4;

/// The rows in an order that goes round the quarters of agreement, from the lowest to the highest, rows without a figure
/// last: the first rows, however many, are spread over easy and hard ones as evenly as the rows allow.
pub fn balanced(rows: Vec<SyntheticRow>) -> Vec<SyntheticRow> {
    let bin = |row: &SyntheticRow| match row.checks.agreement {
        Some(agreement) => ((agreement * BINS as f64).ceil() as usize).clamp(1, BINS) - 1,
        None => BINS,
    };
    let mut seen = [0usize; BINS + 1];
    let mut placed: Vec<((usize, usize), SyntheticRow)> = rows
        .into_iter()
        .map(|row| {
            let bin = bin(&row);
            seen[bin] += 1;
            ((seen[bin], bin), row)
        })
        .collect();
    placed.sort_by_key(|(place, _)| *place);
    placed.into_iter().map(|(_, row)| row).collect()
}

/// Keeps rows whose output, as a program, runs to its end. `run` says of each program why it did not, or `None`.
///
/// # Errors
/// Those of `run`.
pub fn by_execution<E>(
    assembly: Assembly,
    run: impl Fn(&[Program]) -> std::result::Result<Vec<Option<String>>, E>,
) -> std::result::Result<Assembly, E> {
    let Assembly { rows, rejected, funnel } = assembly;
    let programs: Vec<Program> = rows.iter().map(|row| Program::without_tests(&row.output)).collect();
    let failures = run(&programs)?;
    let mut kept = Assembly { rows: Vec::with_capacity(rows.len()), rejected, funnel };
    for (mut row, failure) in rows.into_iter().zip(failures) {
        match failure {
            None => {
                row.checks.executed = Some(true);
                kept.rows.push(row);
            }
            Some(why) => kept.reject_row(row, Reason::FailedExecution, why),
        }
    }
    kept.funnel.accepted = kept.rows.len() as u64;
    Ok(kept)
}

impl Assembly {
    pub(crate) fn reject_row(&mut self, row: SyntheticRow, reason: Reason, detail: String) {
        self.funnel.reject(reason);
        self.rejected.push(RejectedRow {
            id: row.id,
            domain: row.domain,
            stage: Stage::Respond,
            reason,
            detail,
            instruction: row.instruction,
            input: row.input,
            text: row.output,
        });
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{
        domain::built_in,
        record::{Checks, Origin, SamplingRecord},
        shard::End,
    };

    /// A row with nothing but what is given.
    pub(crate) fn row(id: &str, output: &str, answer: Option<&str>) -> SyntheticRow {
        SyntheticRow {
            id: id.into(),
            domain: "math".into(),
            instruction: "What is 3 plus 4?".into(),
            input: String::new(),
            output: output.into(),
            origin: Origin {
                seeds: vec![],
                demonstrations: vec![],
                sampling: SamplingRecord { seed: 0, record: 0, temperature: 1.0, top_p: 1.0 },
                prompt: String::new(),
                model: String::new(),
                special_tokens: None,
            },
            checks: Checks::new(0.0, 0.0, answer.map(str::to_owned)),
        }
    }

    /// The same samples for every row.
    pub(crate) fn sample_rows(rows: &[SyntheticRow], samples: &[&str]) -> Vec<Responded> {
        let of = |row: &SyntheticRow, (i, text): (usize, &&str)| Responded {
            id: sample_id(&row.id, i),
            demonstrations: vec![],
            text: (*text).to_owned(),
            end: End::Eos,
        };
        rows.iter().flat_map(|row| samples.iter().enumerate().map(move |sample| of(row, sample))).collect()
    }

    fn sum(value: &str) -> String {
        format!("We add the two numbers to get it.\nThe answer is {value}.")
    }

    fn vote(rows: Vec<SyntheticRow>, samples: &[&str], min_agreement: f64) -> Assembly {
        let domain = built_in("math").unwrap().unwrap();
        let responses = sample_rows(&rows, samples);
        let assembly = Assembly { rows, ..Assembly::default() };
        by_majority(&domain, assembly, &responses, samples.len(), min_agreement).unwrap()
    }

    #[test]
    fn the_majority_decides_and_is_recorded() {
        let samples = [sum("7"), sum("7.0"), "nonsense".to_owned()];
        let samples: Vec<&str> = samples.iter().map(String::as_str).collect();
        let found = vote(vec![row("a", &sum("8"), Some("8"))], &samples, 0.5);
        let kept = &found.rows[0];
        assert_eq!((kept.output.as_str(), kept.checks.answer.as_deref()), (sum("7").as_str(), Some("7")));
        assert_eq!(kept.checks.agreement, Some(0.5));
        let found = vote(vec![row("a", &sum("8"), Some("8"))], &samples, 0.6);
        assert!(found.rows.is_empty());
        assert_eq!(
            (found.rejected[0].reason, found.rejected[0].detail.as_str()),
            (Reason::NoMajority, "2 of 4 say 7")
        );
        assert_eq!((found.funnel.accepted, found.funnel.rejected[&Reason::NoMajority]), (0, 1));
    }

    #[test]
    fn rows_without_answers_stay_and_missing_samples_are_refused() {
        let found = vote(vec![row("a", "text", None)], &["x"], 1.0);
        assert_eq!((found.rows.len(), found.rows[0].checks.agreement), (1, None));
        let domain = built_in("math").unwrap().unwrap();
        let assembly = Assembly { rows: vec![row("a", &sum("7"), Some("7"))], ..Assembly::default() };
        let message = by_majority(&domain, assembly, &[], 2, 0.5).unwrap_err().to_string();
        assert!(message.contains("a#0"), "{message}");
    }

    #[test]
    fn the_task_made_again_is_compared_with_the_task() {
        let assembly =
            Assembly { rows: vec![row("near", "7", None), row("far", "7", None)], ..Assembly::default() };
        let written = |id: &str, text: &str| Written { id: id.into(), text: text.into(), end: End::Stop };
        let both = [written("near", "What is 3 plus 5?"), written("far", "Name a colour.")];
        let found = by_round_trip(assembly.clone(), &both, 0.0).unwrap();
        let scores: Vec<_> = found.rows.iter().map(|row| row.checks.round_trip.unwrap()).collect();
        assert!((scores[0] - 0.8).abs() < 1e-9 && scores[1] == 0.0, "{scores:?}");
        let found = by_round_trip(assembly.clone(), &both, 0.5).unwrap();
        assert_eq!((found.rows.len(), found.rejected[0].reason), (1, Reason::FailedRoundTrip));
        assert!(by_round_trip(assembly, &both[..1], 0.5).is_err());
    }

    #[test]
    fn balanced_rows_go_round_the_quarters_of_agreement() {
        let with = |id: &str, agreement: Option<f64>| {
            let mut row = row(id, "", None);
            row.checks.agreement = agreement;
            row
        };
        let rows = [
            ("a", Some(1.0)),
            ("b", Some(1.0)),
            ("c", Some(0.9)),
            ("d", Some(0.6)),
            ("e", Some(0.25)),
            ("f", None),
            ("g", Some(0.5)),
            ("h", Some(0.7)),
        ];
        let order: Vec<String> = balanced(rows.map(|(id, agreement)| with(id, agreement)).into())
            .into_iter()
            .map(|row| row.id)
            .collect();
        assert_eq!(order.concat(), "egdafhbc");
    }

    #[test]
    fn code_that_fails_goes() {
        let rows = vec![row("good", "x = 1", None), row("bad", "x = y", None)];
        let assembly = Assembly { rows, ..Assembly::default() };
        let run = |programs: &[Program]| -> std::result::Result<_, ()> {
            Ok(programs.iter().map(|p| p.code.contains('y').then(|| "NameError".to_owned())).collect())
        };
        let found = by_execution(assembly, run).unwrap();
        assert_eq!((found.rows[0].id.as_str(), found.rows[0].checks.executed), ("good", Some(true)));
        assert_eq!(
            (found.rejected[0].reason, found.rejected[0].detail.as_str()),
            (Reason::FailedExecution, "NameError")
        );
    }
}
