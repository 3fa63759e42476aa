//! Rows that something besides the response itself confirms: other samples' answers, or the code's own run.
//!
//! The paper keeps every row that has the right form; these are our additions, off by default.

use std::collections::HashMap;

use crate::{
    domain::Domain,
    error::{Error, Result},
    filter::{Reason, ResponseFilter},
    record::SyntheticRow,
    respond::{Responded, sample_id},
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
            let id = sample_id(&row.id, sample);
            let found = responses.get(id.as_str()).ok_or_else(|| {
                Error::setting("samples", format!("{id} is missing; generate its shard first"))
            })?;
            let accepted =
                filter.accept(&row.instruction, &row.input, &found.demonstrations, &found.text, found.end);
            candidates.push(accepted.ok().and_then(|a| Some((a.answer?, a.output))));
        }
        let answers = candidates.iter().map(|c| c.as_ref().map(|(answer, _)| answer.as_str()));
        let vote = verify::majority(answers);
        match vote.as_ref().filter(|vote| vote.agreement() >= min_agreement) {
            Some(vote) => {
                if let Some((answer, output)) = candidates.swap_remove(vote.sample) {
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

/// Keeps rows whose output, as a program, runs to its end. `run` says of each program why it did not, or `None`.
///
/// # Errors
/// Those of `run`.
pub fn by_execution<E>(
    assembly: Assembly,
    run: impl Fn(&[String]) -> std::result::Result<Vec<Option<String>>, E>,
) -> std::result::Result<Assembly, E> {
    let Assembly { rows, rejected, funnel } = assembly;
    let programs: Vec<String> = rows.iter().map(|row| row.output.clone()).collect();
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
    fn reject_row(&mut self, row: SyntheticRow, reason: Reason, detail: String) {
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
mod tests {
    use super::*;
    use crate::{
        domain::built_in,
        record::{Checks, Origin, SamplingRecord},
        shard::End,
    };

    fn row(id: &str, output: &str, answer: Option<&str>) -> SyntheticRow {
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
            },
            checks: Checks {
                seed_similarity: 0.0,
                row_similarity: 0.0,
                answer: answer.map(str::to_owned),
                agreement: None,
                executed: None,
            },
        }
    }

    fn sum(value: &str) -> String {
        format!("We add the two numbers to get it.\nThe answer is {value}.")
    }

    fn vote(rows: Vec<SyntheticRow>, samples: &[&str], min_agreement: f64) -> Assembly {
        let domain = built_in("math").unwrap().unwrap();
        let responses: Vec<Responded> = rows
            .iter()
            .flat_map(|row| {
                samples.iter().enumerate().map(|(i, text)| Responded {
                    id: sample_id(&row.id, i),
                    demonstrations: vec![],
                    text: (*text).to_owned(),
                    end: End::Eos,
                })
            })
            .collect();
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
    fn code_that_fails_goes() {
        let rows = vec![row("good", "x = 1", None), row("bad", "x = y", None)];
        let assembly = Assembly { rows, ..Assembly::default() };
        let run = |programs: &[String]| -> std::result::Result<_, ()> {
            Ok(programs.iter().map(|p| p.contains('y').then(|| "NameError".to_owned())).collect())
        };
        let found = by_execution(assembly, run).unwrap();
        assert_eq!((found.rows[0].id.as_str(), found.rows[0].checks.executed), ("good", Some(true)));
        assert_eq!(
            (found.rejected[0].reason, found.rejected[0].detail.as_str()),
            (Reason::FailedExecution, "NameError")
        );
    }
}
