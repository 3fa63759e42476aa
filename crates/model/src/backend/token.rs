//! The next token: how it is chosen from logits, and how likely tokens are. Pure functions of one row of logits, so that every
//! backend that has these on the host chooses alike.

use mixse_kernels::{
    loss::{argmax, log_softmax_at},
    sample::{self, Penalties},
};

/// One token to predict: the row that predicts it and its id.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Target {
    /// Row of the batch.
    pub row: usize,
    /// The next token.
    pub token: u32,
}

/// A row whose next token is to be chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// Row of the batch.
    pub row: usize,
    /// How.
    pub draw: Draw,
    /// What is done to its logits before; `None`: nothing.
    pub changes: Option<Box<LogitChanges>>,
    /// How likely the chosen token is by the unchanged logits is wanted, beside so many of the likeliest.
    pub top: Option<usize>,
}

impl Choice {
    /// The choice by `draw` from the logits as they are, and nothing else.
    pub fn new(row: usize, draw: Draw) -> Self {
        Self { row, draw, changes: None, top: None }
    }

    /// Chooses from the logits of its row `[vocabulary]`.
    pub(crate) fn choose(&self, logits: &[f32]) -> Chosen {
        let changed = self.changes.as_ref().map(|changes| changes.apply(logits));
        let drawn_from = changed.as_deref().unwrap_or(logits);
        let token = match self.draw {
            Draw::Greedy => argmax(drawn_from),
            Draw::Sample { sampling, uniform } => sample::sample(drawn_from, sampling, uniform),
        };
        Chosen { token, score: self.top.map(|top| TokenScore::new(logits, token, top)) }
    }
}

/// How a token is chosen from its probabilities.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Draw {
    /// The most likely token; the lowest id among equals.
    Greedy,
    /// Drawn from the tokens that `sampling` keeps.
    Sample {
        /// What is kept.
        sampling: sample::Sampling,
        /// The random number, in 0..1.
        uniform: f32,
    },
}

/// What is done to a row's logits before a token is chosen from them, in this order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LogitChanges {
    /// What tokens lose that have been there before.
    pub penalties: Penalties,
    /// The prompt, for a repetition penalty; without one it may be left empty.
    pub prompt: Vec<u32>,
    /// What was generated so far.
    pub answer: Vec<u32>,
    /// Added to the logits of these tokens.
    pub bias: Vec<(u32, f32)>,
    /// Tokens that may not be chosen.
    pub barred: Vec<u32>,
}

impl LogitChanges {
    fn apply(&self, logits: &[f32]) -> Vec<f32> {
        let mut logits = logits.to_vec();
        self.penalties.apply(&mut logits, self.prompt.iter().copied(), &self.answer);
        for &(id, bias) in &self.bias {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit += bias;
            }
        }
        for &id in &self.barred {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        logits
    }
}

/// A next token.
#[derive(Debug, Clone, PartialEq)]
pub struct Chosen {
    /// Its id.
    pub token: u32,
    /// How likely it is, where the choice asks for it.
    pub score: Option<TokenScore>,
}

/// What a model says of a token.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenScore {
    /// Natural-log probability of the token.
    pub log_prob: f32,
    /// It is the most likely token.
    pub greedy: bool,
    /// As many of the likeliest tokens as were asked for with their log-probabilities, the likeliest first, the lower id first
    /// among equals.
    pub top: Vec<(u32, f32)>,
}

impl TokenScore {
    /// How likely `token` is by the logits of one row, and the `count` likeliest.
    pub(crate) fn new(logits: &[f32], token: u32, count: usize) -> Self {
        let log_prob = log_softmax_at(logits, token, None);
        Self { log_prob, greedy: argmax(logits) == token, top: likeliest(logits, token, log_prob, count) }
    }
}

/// The `count` likeliest tokens. That of `token` is given as it was computed, so that one token has one log-probability.
fn likeliest(logits: &[f32], token: u32, log_prob: f32, count: usize) -> Vec<(u32, f32)> {
    if count == 0 {
        return Vec::new();
    }
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let by_logit =
        |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then_with(|| a.cmp(b));
    if count < order.len() {
        order.select_nth_unstable_by(count - 1, by_logit);
        order.truncate(count);
    }
    order.sort_unstable_by(by_logit);
    let log_sum = logits[token as usize] - log_prob;
    let of = |other: u32| if other == token { log_prob } else { logits[other as usize] - log_sum };
    order.into_iter().map(|other| (other, of(other))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_come_first_and_of_equals_the_lower_id() {
        let logits = [0.1_f32.ln(), 0.4_f32.ln(), 0.1_f32.ln(), 0.4_f32.ln()];
        let check = |token: u32, count: usize, expected: &[(u32, f32)], greedy: bool| {
            let score = TokenScore::new(&logits, token, count);
            assert!((score.log_prob - logits[token as usize]).abs() < 1e-6, "{score:?}");
            assert_eq!(score.greedy, greedy);
            assert_eq!(score.top.len(), expected.len(), "{score:?}");
            for ((id, log_prob), (want, p)) in score.top.iter().zip(expected) {
                assert!(id == want && (log_prob - p.ln()).abs() < 1e-6, "{score:?}");
            }
        };
        check(1, 0, &[], true);
        check(3, 1, &[(1, 0.4)], false);
        check(0, 3, &[(1, 0.4), (3, 0.4), (0, 0.1)], false);
        check(2, 9, &[(1, 0.4), (3, 0.4), (0, 0.1), (2, 0.1)], false);
    }

    #[test]
    fn what_is_done_to_logits_decides_the_choice_but_not_how_likely_it_is() {
        let logits = [0.5_f32.ln(), 0.3_f32.ln(), 0.2_f32.ln()];
        let check = |changes: LogitChanges, expected: u32| {
            let choice =
                Choice { changes: Some(Box::new(changes)), top: Some(0), ..Choice::new(0, Draw::Greedy) };
            let chosen = choice.choose(&logits);
            let score = chosen.score.unwrap();
            assert_eq!(chosen.token, expected);
            assert!((score.log_prob - logits[expected as usize]).abs() < 1e-6, "{score:?}");
        };
        let none = LogitChanges::default();
        check(none.clone(), 0);
        check(LogitChanges { barred: vec![0, 9], ..none.clone() }, 1);
        check(LogitChanges { bias: vec![(2, 3.0), (9, 1.0)], ..none.clone() }, 2);
        check(LogitChanges { bias: vec![(2, 3.0)], barred: vec![2], ..none.clone() }, 0);
        let penalties = Penalties { presence: 1.0, ..Penalties::default() };
        check(LogitChanges { penalties, answer: vec![0], ..none.clone() }, 1);
        let penalties = Penalties { repetition: 3.0, ..Penalties::default() };
        check(LogitChanges { penalties, prompt: vec![0, 1], ..none }, 2);
    }
}
