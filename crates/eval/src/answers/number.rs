//! Numbers: the first one behind the last announcement ("The answer is …", "Answer: …", "#### …"), or behind the last
//! `=` of the announcement's line ("The answer is 3 + 9 = 12"); without an announcement, or without a number behind
//! it, the last one of the response.
//!
//! A number is an optional sign, digits with optional commas between groups of three, an optional decimal part, or a
//! fraction `a/b`, and an optional percent sign. Currency signs before and units behind are ignored, and a hyphen
//! directly behind a word or digit (`A-3`, `5-3`) is not a sign. Numbers are compared exactly, as fractions, with
//! two allowances: a percentage `50%` equals both 50 and 0.5, and where the expected number has decimals, an
//! answer with more decimals is rounded to as many.

/// The final number of a response, as it is written there.
pub fn extract(response: &str) -> Option<String> {
    let announced = super::after_marker(response).and_then(|rest| {
        let line = rest.lines().next().unwrap_or_default();
        let result = line.rsplit_once('=').and_then(|(_, result)| numbers(result).next());
        result.or_else(|| numbers(rest).next())
    });
    announced.or_else(|| numbers(response).last()).map(Into::into)
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
            assert_eq!(extract(response).as_deref(), expected, "{response}");
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
                if let Some(found) = extract(t) {
                    equal(&found, t);
                    equal(t, &found);
                }
            }
        }

        #[test]
        fn a_number_is_found_where_it_is_announced(n in -1_000_000_i64..1_000_000) {
            let found = extract(&format!("7 and 8. The answer is {n}."));
            proptest::prop_assert!(equal(&found.unwrap_or_default(), &n.to_string()));
        }
    }
}
