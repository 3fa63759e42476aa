//! Checks of a response that need no other knowledge than responses: agreement between samples, and the arithmetic
//! that a response itself writes down.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::answer::{number, text};

/// A final answer in the form in which answers are counted: numbers by value, everything else as in [`crate::answer::text`].
pub fn normalise(answer: &str) -> String {
    let bare = answer.trim().trim_end_matches('.').trim_start_matches(['$', '€', '£']);
    number::plain(bare).unwrap_or_else(|| text::normalise(answer))
}

/// The answer that most samples agree on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vote {
    /// Normalised.
    pub answer: String,
    /// The first sample that gave it.
    pub sample: usize,
    /// Samples that gave it.
    pub votes: usize,
    /// All samples, those without an answer included.
    pub samples: usize,
}

impl Vote {
    /// The share of samples that agree, 0 to 1.
    pub fn agreement(&self) -> f64 {
        self.votes as f64 / self.samples as f64
    }
}

/// The majority among the samples' final answers, the one given first among equals; `None` if no sample has one.
pub fn majority<'a>(answers: impl IntoIterator<Item = Option<&'a str>>) -> Option<Vote> {
    let mut counts: HashMap<String, (usize, usize)> = HashMap::new();
    let mut samples = 0;
    for (sample, answer) in answers.into_iter().enumerate() {
        samples += 1;
        if let Some(answer) = answer.map(normalise).filter(|a| !a.is_empty()) {
            counts.entry(answer).or_insert((0, sample)).0 += 1;
        }
    }
    let (answer, (votes, sample)) =
        counts.into_iter().max_by_key(|(_, (votes, first))| (*votes, usize::MAX - first))?;
    Some(Vote { answer, sample, votes, samples })
}

/// The first equation between numbers in a text that is false, such as `3 * 4 = 13`. The right side may be rounded to
/// the digits that it shows.
pub fn false_equation(text: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let parts: Vec<&str> = line.split('=').collect();
        parts.windows(2).find_map(|pair| {
            let left = trailing_expression(pair[0]);
            let right = leading_number(pair[1])?;
            let (value, claimed) = (evaluate(left)?, number::value(&right)?);
            let decimals = right.split_once('.').map_or(0, |(_, digits)| digits.len() as i32);
            // Half a unit of the last digit shown, and rounding of the arithmetic itself.
            let allowed =
                0.5 * 10f64.powi(-decimals) * if decimals > 0 { 1.0 } else { 1e-6 } + 1e-9 * value.abs();
            ((value - claimed).abs() > allowed).then(|| format!("{} = {right}", left.trim()))
        })
    })
}

/// The longest end of `text` that consists of digits, operators, parentheses and blanks.
fn trailing_expression(text: &str) -> &str {
    let is_part = |c: char| {
        c.is_ascii_digit() || matches!(c, ' ' | '.' | ',' | '+' | '-' | '*' | '/' | '(' | ')' | '$')
    };
    let start =
        text.char_indices().rev().take_while(|(_, c)| is_part(*c)).last().map_or(text.len(), |(i, _)| i);
    // Punctuation of the sentence before is no part of the expression, nor is a number that ends it.
    let found = &text[start..];
    let start = [". ", ", "].iter().filter_map(|end| found.rfind(end).map(|at| at + end.len())).max();
    found[start.unwrap_or(0)..].trim_start_matches([' ', '.', ',', ')', '*', '/', '+'])
}

fn leading_number(text: &str) -> Option<String> {
    let text = text.trim_start().trim_start_matches('$');
    let end =
        text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | ',' | '-'))).unwrap_or(text.len());
    // A right side that goes on with an operator is itself an expression; the next `=` decides about it.
    let goes_on = text[end..].trim_start().starts_with(['+', '-', '*', '/', '%']);
    let number = text[..end].trim_end_matches(['.', ',', '-']).replace(',', "");
    (!goes_on && number.parse::<f64>().is_ok()).then_some(number)
}

/// The value of an expression of numbers, `+ - * /` and parentheses with at least one operator; `None` if it is
/// anything else.
pub fn evaluate(text: &str) -> Option<f64> {
    let cleaned: String = text.chars().filter(|c| !matches!(c, ' ' | ',' | '$')).collect();
    // A short text bounds the depth of the recursion below.
    if cleaned.len() > 200 || !cleaned.trim_start_matches('-').contains(['+', '-', '*', '/']) {
        return None;
    }
    let mut parser = Parser { rest: &cleaned };
    let value = parser.sum()?;
    (parser.rest.is_empty() && value.is_finite()).then_some(value)
}

struct Parser<'a> {
    rest: &'a str,
}

impl Parser<'_> {
    fn take(&mut self, symbol: char) -> bool {
        match self.rest.strip_prefix(symbol) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn sum(&mut self) -> Option<f64> {
        let mut value = self.product()?;
        loop {
            if self.take('+') {
                value += self.product()?;
            } else if self.take('-') {
                value -= self.product()?;
            } else {
                return Some(value);
            }
        }
    }

    fn product(&mut self) -> Option<f64> {
        let mut value = self.factor()?;
        loop {
            if self.take('*') {
                value *= self.factor()?;
            } else if self.take('/') {
                value /= self.factor()?;
            } else {
                return Some(value);
            }
        }
    }

    fn factor(&mut self) -> Option<f64> {
        if self.take('-') {
            return Some(-self.factor()?);
        }
        if self.take('(') {
            let value = self.sum()?;
            return self.take(')').then_some(value);
        }
        let end = self.rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(self.rest.len());
        let (number, rest) = self.rest.split_at(end);
        self.rest = rest;
        number.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn answers_are_counted_by_meaning() {
        let check = |a: &str, b: &str| assert_eq!(normalise(a), normalise(b));
        check("1,000", "1000.0");
        check("$12", "12");
        check("1/2", "0.5");
        check("The Moon.", "moon");
        check("B", "b.");
        assert_ne!(normalise("12"), normalise("13"));
    }

    #[test]
    fn majorities() {
        let check = |answers: &[Option<&str>], expected: Option<(&str, usize, usize)>| {
            let vote = majority(answers.iter().copied());
            assert_eq!(vote.as_ref().map(|v| (v.answer.as_str(), v.sample, v.votes)), expected);
        };
        check(&[Some("3"), Some("4"), Some("4.0"), None], Some(("4", 1, 2)));
        check(&[Some("x"), Some("y")], Some(("x", 0, 1)));
        check(&[None, Some(" ")], None);
        check(&[], None);
        assert_eq!(majority([Some("1"), None]).unwrap().agreement(), 0.5);
    }

    #[test]
    fn equations() {
        let check = |text: &str, expected: Option<&str>| {
            assert_eq!(false_equation(text).as_deref(), expected, "{text}")
        };
        check("3 + 4 = 7", None);
        check("So 3 * 4 = 13 apples.", Some("3 * 4 = 13"));
        check("The money would be 100 * 3 = 300 dollars.\n80 / 2 = 41.", Some("80 / 2 = 41"));
        check("(2 + 3) * 4 = 20 = 10 + 10 = 20", None);
        check("10 / 3 = 3.33", None);
        check("10 / 3 = 3", Some("10 / 3 = 3"));
        check("$1.50 + $2 = $3.50", None);
        check("x = 3, y = 4", None);
        check("1,000 - 1 = 999", None);
        check("5 apples - 2 apples = 4 apples", None);
        check("3 = 4", None);
        check("1 / 0 = 5", None);
        check("2 + 2 = 5 - 1 = 4", None);
        check("-3 + 5 = 2", None);
        check("3/8 + 2/8 = 5/8", None);
        check("The step is 8. 6 + 8 = 14", None);
        check("With 2, 3 + 4 = 8", Some("3 + 4 = 8"));
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "[-0-9+*/()., =$x\u{e9}]{0,60}") {
            let _ = (false_equation(&text), normalise(&text));
        }

        #[test]
        fn true_sums_pass_and_false_ones_do_not(a in 0i64..5000, b in 0i64..5000, off in 1i64..9) {
            let (sum, product) = (a + b, a * b);
            let good = format!("{a} + {b} = {sum}, then {a} * {b} = {product}.");
            prop_assert_eq!(false_equation(&good), None);
            let bad = format!("So {a} + {b} = {}.", sum + off);
            prop_assert!(false_equation(&bad).is_some());
        }
    }
}
