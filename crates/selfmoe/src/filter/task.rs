//! The filter of tasks: form, validators of the domain, and nothing that is there already.

use std::collections::HashMap;

use super::{Reason, Rejection, Rules, check_common, usable_options};
use crate::{
    domain::{Domain, Limits},
    rouge::{Index, Query},
};

/// ROUGE-L of an accepted task to what was there before.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Similarity {
    /// To the nearest seed.
    pub seed: f64,
    /// To the nearest task accepted before.
    pub row: f64,
}

/// Accepts tasks one after the other; what it accepts depends on the order.
#[derive(Debug)]
pub struct TaskFilter {
    rules: Rules,
    limits: Limits,
    seeds: Index,
    seed_ids: Vec<String>,
    seed_places: HashMap<String, usize>,
    accepted: Index,
    accepted_ids: Vec<String>,
}

/// The text by which tasks are compared.
fn compared(instruction: &str, input: &str) -> String {
    format!("{instruction}\n{input}")
}

impl TaskFilter {
    /// A filter that knows the domain's seeds.
    pub fn new(domain: &Domain) -> Self {
        let mut seeds = Index::default();
        for seed in &domain.seeds {
            let query = seeds.query(&compared(&seed.instruction, &seed.input));
            seeds.insert(query);
        }
        let seed_ids: Vec<String> = domain.seeds.iter().map(|s| s.id.clone()).collect();
        Self {
            rules: Rules::of(domain),
            limits: domain.manifest.limits,
            seeds,
            seed_places: seed_ids.iter().cloned().zip(0..).collect(),
            seed_ids,
            accepted: Index::default(),
            accepted_ids: Vec::new(),
        }
    }

    /// Judges the next task, of `tokens` tokens, written after the seeds with ids `shown`. An accepted one is
    /// remembered as `id`.
    ///
    /// # Errors
    /// Why it is rejected.
    pub fn accept(
        &mut self,
        id: &str,
        instruction: &str,
        input: &str,
        tokens: usize,
        shown: &[String],
    ) -> Result<Similarity, Rejection> {
        if instruction.is_empty() {
            return Err(Rejection::new(Reason::Empty, "no instruction"));
        }
        let text = compared(instruction, input);
        let words = self.limits.min_instruction_words..=self.limits.max_instruction_words;
        check_common(&text, words, self.limits.max_repetition)?;
        if tokens > self.limits.max_instruction_tokens {
            let what = format!("{tokens} tokens, at most {}", self.limits.max_instruction_tokens);
            return Err(Rejection::new(Reason::TooLong, what));
        }
        self.check_rules(&text, input)?;
        let seed = self.check_seeds(&text, shown)?;
        let query = self.accepted.query(&text);
        let row = self.check_rows(&query)?;
        self.accepted.insert(query);
        self.accepted_ids.push(id.to_owned());
        Ok(Similarity { seed, row })
    }

    fn check_rules(&self, text: &str, input: &str) -> Result<(), Rejection> {
        if self.rules.input_in_task && input.trim().is_empty() {
            return Err(Rejection::new(Reason::NoInput, ""));
        }
        if self.rules.number_in_task && !states_number(text) {
            return Err(Rejection::new(Reason::NoNumber, ""));
        }
        let options = usable_options(input)?;
        if self.rules.options_in_task && options.is_empty() {
            return Err(Rejection::new(Reason::NoOptions, ""));
        }
        Ok(())
    }

    fn check_seeds(&mut self, text: &str, shown: &[String]) -> Result<f64, Rejection> {
        let query = self.seeds.query(text);
        let Some(nearest) = self.seeds.nearest(&query, None) else { return Ok(0.0) };
        if nearest.similarity <= self.limits.max_similarity {
            return Ok(nearest.similarity);
        }
        let limit = self.limits.max_similarity;
        let copied = shown
            .iter()
            .filter_map(|id| self.seed_places.get(id))
            .find(|&&place| self.seeds.similarity(&query, place) > limit);
        let (reason, place) = match copied {
            Some(&place) => (Reason::CopiedDemonstration, place),
            None => (Reason::SimilarToSeed, nearest.row),
        };
        let similarity = self.seeds.similarity(&query, place);
        Err(Rejection::new(reason, format!("ROUGE-L {similarity:.3} to {}", self.seed_ids[place])))
    }

    fn check_rows(&self, query: &Query) -> Result<f64, Rejection> {
        let Some(nearest) = self.accepted.nearest(query, None) else { return Ok(0.0) };
        if nearest.similarity > self.limits.max_similarity {
            let what = format!("ROUGE-L {:.3} to {}", nearest.similarity, self.accepted_ids[nearest.row]);
            return Err(Rejection::new(Reason::SimilarToRow, what));
        }
        Ok(nearest.similarity)
    }
}

/// Digits, or a number written as a word.
fn states_number(text: &str) -> bool {
    const WORDS: [&str; 21] = [
        "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
        "twelve", "twenty", "thirty", "fifty", "hundred", "half", "twice", "double", "dozen",
    ];
    text.bytes().any(|b| b.is_ascii_digit()) || crate::rouge::words(text).any(|w| WORDS.contains(&w.as_str()))
}
