//! Numbers: the first one behind the last announcement ("The answer is …", "Answer: …", "#### …"), or behind the last
//! `=` of the announcement's line ("The answer is 3 + 9 = 12"); without an announcement, or without a number behind
//! it, the last one of the response.
//!
//! A number is an optional sign, digits with optional commas between groups of three, an optional decimal part, or a
//! fraction `a/b`, and an optional percent sign. Currency signs before and units behind are ignored, and a hyphen
//! directly behind a word or digit (`A-3`, `5-3`) is not a sign. Numbers are compared exactly, as fractions, with
//! two allowances: a percentage `50%` equals both 50 and 0.5, and where the expected number has decimals, an
//! answer with more decimals is rounded to as many.

use std::fmt;

/// The final number of a response, as it is written there.
pub fn extract(response: &str) -> Option<&str> {
    announced(response).or_else(|| numbers(response).last())
}

/// The number that the response's last announcement announces, as it is written there.
pub fn announced(response: &str) -> Option<&str> {
    let rest = super::announced(response)?;
    let line = rest.lines().next().unwrap_or_default();
    let result = line.rsplit_once('=').and_then(|(_, result)| numbers(result).next());
    result.or_else(|| numbers(rest).next())
}

/// Whether `found` is the number `expected`. Never for text that is not a number.
pub fn equal(found: &str, expected: &str) -> bool {
    let (percent, found) = match found.strip_suffix('%') {
        Some(rest) => (true, rest.trim_end()),
        None => (false, found),
    };
    let Some(wanted) = Number::parse(expected.trim_end_matches('%')) else { return false };
    let Some(given) = Number::parse(found) else { return false };
    given.is(&wanted) || (percent && given.over_hundred().is_some_and(|g| g.is(&wanted)))
}

/// The value of a text that is a number and nothing else, without regard to a percent sign; `None` for a division by zero
/// or more than 18 digits.
pub fn value(text: &str) -> Option<f64> {
    Number::parse(text.trim().trim_end_matches('%')).map(|n| n.numerator as f64 / n.denominator as f64)
}

/// One way of writing each value, so that numbers can be counted: `1,000.0` is `1000`, `2/4` and `50/100` are `0.5`, `2/6` is
/// `1/3`. A percent sign is dropped. `None` as for [`value`].
pub fn plain(text: &str) -> Option<String> {
    Number::parse(text.trim().trim_end_matches('%')).map(|number| number.to_string())
}

/// A fraction with the number of decimals it was written with.
struct Number {
    numerator: i128,
    denominator: i128,
    decimals: u32,
}

/// More digits than any honest answer has; keeps the products below within 128 bits.
const MAX_DIGITS: usize = 18;

impl Number {
    fn parse(text: &str) -> Option<Self> {
        if let Some((above, below)) = text.split_once('/') {
            let (above, below) = (Self::parse(above.trim())?, Self::parse(below.trim())?);
            if below.numerator == 0 || above.decimals + below.decimals > 0 {
                return None;
            }
            let sign = below.numerator.signum();
            let (numerator, denominator) = (above.numerator * sign, below.numerator * sign);
            return Some(Self { numerator, denominator, decimals: 0 });
        }
        let plain: String = text.trim().chars().filter(|c| *c != ',').collect();
        let (sign, digits) = match plain.strip_prefix(['-', '−']) {
            Some(rest) => (-1, rest),
            None => (1, plain.strip_prefix('+').unwrap_or(&plain)),
        };
        let (whole, decimals) = digits.split_once('.').unwrap_or((digits, ""));
        let all = format!("{whole}{decimals}");
        let significant = all.trim_start_matches('0');
        if all.is_empty() || significant.len() > MAX_DIGITS || decimals.len() > MAX_DIGITS {
            return None;
        }
        if !all.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let numerator = sign * all.parse::<i128>().ok()?;
        let decimals = u32::try_from(decimals.len()).ok()?;
        Some(Self { numerator, denominator: 10_i128.pow(decimals), decimals })
    }

    fn over_hundred(&self) -> Option<Self> {
        let denominator = self.denominator.checked_mul(100)?;
        Some(Self { numerator: self.numerator, denominator, decimals: self.decimals + 2 })
    }

    fn is(&self, expected: &Self) -> bool {
        let product = |a: i128, b: i128| a.checked_mul(b);
        let exact = product(self.numerator, expected.denominator)
            .zip(product(expected.numerator, self.denominator))
            .is_some_and(|(a, b)| a == b);
        exact || (expected.decimals > 0 && self.decimals > expected.decimals && self.rounds_to(expected))
    }

    /// Half away from zero: |self − expected| ≤ half a unit of the expected number's last decimal, the lower half
    /// included only where it rounds up.
    fn rounds_to(&self, expected: &Self) -> bool {
        let scale = 10_i128.pow(expected.decimals);
        let Some(scaled) = self.numerator.abs().checked_mul(2 * scale) else { return false };
        let Some(twice) = self.denominator.checked_mul(2) else { return false };
        let rounded = (scaled + self.denominator) / twice;
        rounded * self.numerator.signum() == expected.numerator
    }
}

impl fmt::Display for Number {
    /// In lowest terms: as a decimal number where that is exact, else as a fraction.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let divisor = greatest_common_divisor(self.numerator.abs(), self.denominator);
        let (above, below) = (self.numerator / divisor, self.denominator / divisor);
        let exact = (0..=MAX_DIGITS as u32).find(|&decimals| 10_i128.pow(decimals) % below == 0);
        // At most 18 digits times 18 zeros; what is written can be read again.
        let digits = |decimals| above.abs() * (10_i128.pow(decimals) / below);
        let Some(decimals) = exact.filter(|&decimals| digits(decimals) < 10_i128.pow(MAX_DIGITS as u32))
        else {
            return write!(f, "{above}/{below}");
        };
        let (digits, scale) = (digits(decimals), 10_i128.pow(decimals));
        let sign = if above < 0 { "-" } else { "" };
        write!(f, "{sign}{}", digits / scale)?;
        if decimals > 0 {
            write!(f, ".{:0width$}", digits % scale, width = decimals as usize)?;
        }
        Ok(())
    }
}

fn greatest_common_divisor(mut a: i128, mut b: i128) -> i128 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// The numbers of a text, in order, as written.
fn numbers(text: &str) -> impl Iterator<Item = &str> {
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < text.len() {
            let start = at;
            if let Some(length) = number_at(text, start) {
                at = start + length;
                return Some(&text[start..at]);
            }
            at += text[start..].chars().next().map_or(1, char::len_utf8);
        }
        None
    })
}

/// The length of the number that starts at `start`, if one does.
fn number_at(text: &str, start: usize) -> Option<usize> {
    let before = text[..start].chars().next_back();
    let rest = &text[start..];
    let sign = match rest.chars().next()? {
        c @ ('-' | '−' | '+') if !before.is_some_and(|b| b.is_alphanumeric() || b == ')') => c.len_utf8(),
        c if c.is_ascii_digit() || c == '.' => 0,
        _ => return None,
    };
    let currency = rest[sign..].chars().next().filter(|c| sign > 0 && "$€£".contains(*c));
    // A sign before a currency sign would not be read back; the amount without it is not what is meant.
    if currency.is_some() {
        return None;
    }
    let digits = decimal_length(&rest[sign..])?;
    let mut length = sign + digits;
    if let Some(below) = rest[length..].strip_prefix('/').and_then(whole_length) {
        length += 1 + below;
    }
    let blanks = rest[length..].len() - rest[length..].trim_start_matches(' ').len();
    if rest[length + blanks..].starts_with('%') {
        length += blanks + 1;
    }
    Some(length)
}

fn whole_length(text: &str) -> Option<usize> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    (digits > 0).then_some(digits)
}

/// `12`, `1,234`, `1.5`, `.5`; a comma counts only before exactly three digits, a point only before a digit.
fn decimal_length(text: &str) -> Option<usize> {
    let mut length = whole_length(text).unwrap_or(0);
    while length > 0 && length <= text.len() {
        let Some(group) = text[length..].strip_prefix(',') else { break };
        if whole_length(group) != Some(3) {
            break;
        }
        length += 4;
    }
    let decimals = text[length..].strip_prefix('.').and_then(whole_length);
    match decimals {
        Some(n) => Some(length + 1 + n),
        None => (length > 0).then_some(length),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_final_number_is_found() {
        let check = |response: &str, expected: Option<&str>| {
            assert_eq!(extract(response), expected, "{response}");
        };
        check("The answer is 12.", Some("12"));
        check("the answer is: $1,234.50.", Some("1,234.50"));
        check("The answer is **7**.", Some("7"));
        check("The answer is 3/4 of a cake, so 6 remain", Some("3/4"));
        check("The answer is -5 degrees", Some("-5"));
        check("The answer is −5", Some("−5"));
        check("The answer is 50 % of 10", Some("50 %"));
        check("The answer is 25%.", Some("25%"));
        check("The answer is .5", Some(".5"));
        check("The answer is 1,2", Some("1"));
        check("The answer is 10,000,000", Some("10,000,000"));
        check("The answer is twelve. 3 + 9 = 12", Some("12"));
        check("The answer is 3 + 9 = 12 apples, not 4", Some("12"));
        check("The answer is 12 = a dozen", Some("12"));
        check("5-3", Some("3"));
        check("A-3", Some("3"));
        check("x = 4\ny = 5", Some("5"));
        check("It costs $5.", Some("5"));
        check("#### 42", Some("42"));
        check("1. 2. 3.", Some("3"));
        check("no number", None);
        check("", None);
        check("The answer is 12km", Some("12"));
        check("The answer is 3:45", Some("3"));
        check("3 + 4 = 7\nThe answer is 7.", Some("7"));
        check("5-3 = 2", Some("2"));
        check("It is -3.", Some("-3"));
        check("10 - 4", Some("4"));
        check("1,2,3", Some("3"));
        check("3/4 of it", Some("3/4"));
        check("the answer is unknown, but 5 fits", Some("5"));
    }

    #[test]
    fn an_announcement_may_have_no_number() {
        assert_eq!(announced("2 + 2 = 4\nThe answer is four."), None);
        assert_eq!(announced("2 + 2 = 4"), None);
        assert_eq!(announced("The answer is 4, not 5"), Some("4"));
    }

    #[test]
    fn values_have_one_form() {
        let check = |text: &str, expected: Option<(f64, &str)>| {
            assert_eq!(value(text).zip(plain(text)), expected.map(|(v, p)| (v, p.into())), "{text}");
        };
        check("3/4", Some((0.75, "0.75")));
        check("2/6", Some((1.0 / 3.0, "1/3")));
        check("-7/3", Some((-7.0 / 3.0, "-7/3")));
        check("1,000.0", Some((1000.0, "1000")));
        check("50%", Some((50.0, "50")));
        check("50 %", Some((50.0, "50")));
        check("-0.50", Some((-0.5, "-0.5")));
        check("-0", Some((0.0, "0")));
        check("1.05", Some((1.05, "1.05")));
        check("0.000000000000000001", Some((1e-18, "0.000000000000000001")));
        check("1/0", None);
        check("1e5", None);
        check("inf", None);
        check("x", None);
        check("", None);
    }

    #[test]
    fn numbers_compare_exactly() {
        let check = |found: &str, expected: &str, same: bool| {
            assert_eq!(equal(found, expected), same, "{found} {expected}");
        };
        check("12", "12", true);
        check("12.0", "12", true);
        check("012", "12", true);
        check("1,234", "1234", true);
        check("1/2", "0.5", true);
        check("2/4", "1/2", true);
        check("0.5", "1/2", true);
        check("1/3", "0.33", false);
        check("3.333", "3.33", true);
        check("3.335", "3.33", false);
        check("3.335", "3.34", true);
        check("-3.335", "-3.34", true);
        check("3.3", "3.33", false);
        check("12.4", "12", false);
        check("50%", "50", true);
        check("50%", "0.5", true);
        check("50 %", "50", true);
        check("-5", "5", false);
        check("−5", "-5", true);
        check("+5", "5", true);
        check("0", "-0", true);
        check("1/0", "0", false);
        check("five", "5", false);
        check("999999999999999999", "999999999999999999", true);
        check("99999999999999999999999999999999999999999", "1", false);
        check("1/3", "2/6", true);
        check("1.5/3", "0.5", false);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC{0,60}", numeric in "[-−+0-9.,/% $]{0,40}") {
            for t in [&text, &numeric] {
                let _ = (value(t), plain(t));
                if let Some(found) = extract(t) {
                    equal(found, t);
                    equal(t, found);
                }
            }
        }

        #[test]
        fn a_number_is_found_where_it_is_announced(n in -1_000_000_i64..1_000_000) {
            let response = format!("7 and 8. The answer is {n}.");
            let found = extract(&response);
            proptest::prop_assert!(equal(found.unwrap_or_default(), &n.to_string()));
        }

        #[test]
        fn the_plain_form_is_equal_and_its_own(above in -999_999_i64..999_999, below in 1_i64..9_999) {
            for text in [format!("{above}/{below}"), format!("{above}.{below}")] {
                let form = plain(&text).unwrap_or_default();
                proptest::prop_assert!(equal(&form, &text), "{} {}", form, text);
                proptest::prop_assert_eq!(plain(&form), Some(form));
            }
        }
    }
}
