//! Numbers. The final number of a response is the one that its last announcement gives ("The answer is …", `\boxed{…}`,
//! "#### …"): the first number behind it, or behind the last `=` of its clause ("The answer is 3 + 9 = 12"), or the value of
//! the sum that stands there. Without an announcement, or without a number behind it, it is the last one of the response, as in
//! the harness's `flexible-extract` of GSM8K.
//!
//! | part | forms |
//! |---|---|
//! | sign | `-`, `−`, `–`, `+` and their wide forms, "minus", "negative"; before or behind a currency sign (`-$5`, `$-5`) |
//! | digits | ASCII or any other decimal digits of Unicode; groups of three by `,` `{,}` `\,` `,\!` `'` or a blank, Indian groups, points where there are two groups or a decimal comma behind them |
//! | value | decimals, `1e5`, `2^{10}`, `2³`, `1.5 × 10^{3}`, `a/b`, `\frac{a}{b}`, `½`, `3 1/2`, `3\frac{1}{2}`, `\sqrt{a}`, `2\pi` |
//! | words | "twelve", "one hundred and five", "two thirds", "three and a half", "5 million", "2 dozen" |
//! | percent | `%`, `\%`, "percent" |
//!
//! Currency signs before and units behind are ignored, and a hyphen directly behind a word or digit (`A-3`, `5-3`) is not a sign.
//! An announcement that gives several numbers, a range, a ratio, a bound, a product with a variable or a date ("4 or 5",
//! "5-10", "3:4", "x > 5", "2x", "5 ± 1") gives none: it is never read as the first of them. Two forms of one value ("1/2 or
//! 0.5") are one number.
//!
//! Numbers are compared exactly, as fractions, with two allowances: a percentage `50%` equals both 50 and 0.5, and where the
//! expected number has decimals, an answer with more decimals is rounded to as many.

use std::fmt;

use super::own;

/// The final number of a response, as it is written there.
pub fn extract(response: &str) -> Option<&str> {
    match Reading::of(response) {
        Reading::Number(found) => Some(found),
        Reading::Unclear => None,
        Reading::Nothing => last(own(response)),
    }
}

/// The number that the response's last announcement announces, as it is written there.
pub fn announced(response: &str) -> Option<&str> {
    match Reading::of(response) {
        Reading::Number(found) => Some(found),
        Reading::Unclear | Reading::Nothing => None,
    }
}

/// Whether `found` is the number `expected`. Never for text that is not a number.
pub fn equal(found: &str, expected: &str) -> bool {
    match (parse(found), parse(expected)) {
        (Some(given), Some(wanted)) => {
            given.is(&wanted)
                || (given.percent && given.over_hundred().is_some_and(|g| g.is(&wanted)))
                || (wanted.percent && !given.percent && wanted.over_hundred().is_some_and(|w| given.is(&w)))
        }
        _ => long_digits(found).zip(long_digits(expected)).is_some_and(|(a, b)| a == b),
    }
}

/// The value of a text that is a number and nothing else, without regard to a percent sign; `None` for a division by zero
/// or more than 18 digits.
pub fn value(text: &str) -> Option<f64> {
    parse(text).map(|n| n.numerator as f64 / n.denominator as f64)
}

/// One way of writing each value, so that numbers can be counted: `1,000.0` is `1000`, `2/4` and `50/100` are `0.5`, `2/6` is
/// `1/3`. A percent sign is dropped. `None` as for [`value`].
pub fn plain(text: &str) -> Option<String> {
    parse(text).map(|number| number.to_string())
}

/// What an announcement says.
enum Reading<'a> {
    /// There is no announcement, or no number behind it.
    Nothing,
    /// This number.
    Number(&'a str),
    /// More than one number, or none of the numbers that stand there.
    Unclear,
}

impl<'a> Reading<'a> {
    fn of(response: &'a str) -> Self {
        let Some(rest) = super::announced(response) else { return Self::Nothing };
        let line_end = rest.find('\n').unwrap_or(rest.len());
        let line = &rest[..line_end];
        let first = worded_start(line)
            .or_else(|| numbers(line, true).next())
            .or_else(|| worded(line))
            .map(|found| (line, found))
            .or_else(|| numbers(rest, true).next().map(|found| (rest, found)));
        let Some((text, first)) = first else { return Self::Nothing };
        let first = first.with_operators(text);
        if !first.alone(text) {
            return Self::Unclear;
        }
        // The last side of an equation counts, as in Minerva's reading; the reason for an answer is not its value.
        let clause = &text[..first.end + clause_length(&text[first.end..])];
        let result = clause.rfind('=').filter(|at| *at >= first.end).and_then(|at| {
            let side = at + 1;
            let found = numbers(&clause[side..], true).next()?.moved(side);
            clause[side..found.start].trim_matches(WRAPPERS).is_empty().then(|| found.with_operators(text))
        });
        let found = result.unwrap_or(first);
        if found.alone(text) { Self::Number(&text[found.start..found.end]) } else { Self::Unclear }
    }
}

/// The last number of a text without an announcement. Where the text offers it as one of two, there is none.
fn last(text: &str) -> Option<&str> {
    let mut two: [Option<Found>; 2] = [None, None];
    for found in numbers(text, false) {
        two = [two[1].take(), Some(found)];
    }
    let [before, Some(found)] = two else {
        // A few words, all of which are the number.
        let line = text.lines().rfind(|line| !line.trim().is_empty())?;
        let found = worded_start(line)?;
        return found.alone(line).then_some(&line[found.start..found.end]);
    };
    let offered = before.is_some_and(|before| {
        let between = text[before.end..found.start].trim_matches(WRAPPERS);
        between.eq_ignore_ascii_case("or") && !found.same_value(&before)
    });
    (!offered).then_some(&text[found.start..found.end])
}

/// Signs that may stand between an announcement, an operator or a conjunction and the number.
const WRAPPERS: &[char] = &[' ', '*', '_', '$', '(', ')', '{', '}', '[', ']', '`', '"', '\\', '~', '≈', '\t'];

/// The bytes of a clause that goes on at `text`: up to the end of the sentence, a reason or an aside.
fn clause_length(text: &str) -> usize {
    const ENDS: [&str; 10] =
        [". ", "; ", ", ", " (", " because", " since", " as ", " where ", " but ", " which "];
    ENDS.iter().filter_map(|end| text.find(end)).chain(text.find('\n')).min().unwrap_or(text.len())
}

/// A number in a text.
#[derive(Debug, Clone)]
struct Found {
    start: usize,
    end: usize,
    /// `None` where it is too large, divides by zero, or is a date, a ratio or the like.
    value: Option<Number>,
}

impl Found {
    fn moved(self, by: usize) -> Self {
        Self { start: self.start + by, end: self.end + by, ..self }
    }

    fn same_value(&self, other: &Self) -> bool {
        match (&self.value, &other.value) {
            (Some(a), Some(b)) => {
                a.is(b)
                    || (a.percent && a.over_hundred().is_some_and(|a| a.is(b)))
                    || (b.percent && b.over_hundred().is_some_and(|b| a.is(&b)))
            }
            _ => false,
        }
    }

    /// The value of the arithmetic that the number begins: `3 + 9`, `2 × 3`.
    fn with_operators(self, text: &str) -> Self {
        let mut value = self.value.clone();
        // Sum of the finished terms, and the term that is being multiplied.
        let (mut sum, mut end) = (Some(Number::WHOLE_ZERO), self.end);
        while let Some((operator, at)) = operator(&text[end..]) {
            let Some(next) = number_at(text, end + at, false) else { break };
            if matches!(operator, '+' | '-') {
                sum = sum.zip(value).and_then(|(sum, term)| sum.plus(&term));
                let sign = if operator == '-' { -1 } else { 1 };
                value = next.value.and_then(|n| n.times(&Number::whole(sign)));
            } else {
                let factor = next.value.and_then(|n| if operator == '*' { Some(n) } else { n.inverse() });
                value = value.zip(factor).and_then(|(term, factor)| term.times(&factor));
            }
            end = next.end;
        }
        if end == self.end {
            return self;
        }
        Self { start: self.start, end, value: sum.zip(value).and_then(|(sum, term)| sum.plus(&term)) }
    }

    /// Whether the text gives this number and not several, a bound, or a part of something else.
    fn alone(&self, text: &str) -> bool {
        let (before, after) = (&text[..self.start], &text[self.end..]);
        !bounded(before) && !continued(after) && !self.has_rival(after)
    }

    /// "4 or 5", "4 apples and 5 pears", "4 to 5", "x = 4 or x = 5": another number of another value belongs to it.
    fn has_rival(&self, after: &str) -> bool {
        let mut rest = after;
        for words in 0..3 {
            let bare = rest.trim_start_matches(WRAPPERS);
            let lower = bare.get(..8.min(bare.len())).unwrap_or(bare).to_ascii_lowercase();
            let conjunctions: &[&str] = match words {
                0 => &["or ", "and ", "to ", "through ", "vs ", "vs. ", "versus ", "& ", ", ", ",", "; "],
                _ => &["or ", "and ", ", or ", ", and "],
            };
            // No longer one stands behind a shorter one of the same beginning.
            if let Some(conjunction) = conjunctions.iter().find(|c| lower.starts_with(**c)) {
                let other = bare[conjunction.len()..].trim_start_matches(WRAPPERS);
                let other =
                    ["or ", "and ", "either "].iter().fold(other, |o, w| o.strip_prefix(w).unwrap_or(o));
                return rival(other).is_some_and(|other| !self.same_value(&other));
            }
            // One word of a unit.
            let word = bare.find(|c: char| !c.is_alphabetic()).unwrap_or(bare.len());
            if word == 0 {
                return false;
            }
            rest = &bare[word..];
        }
        false
    }
}

/// The number at the start of a text, perhaps behind `x =`.
fn rival(text: &str) -> Option<Found> {
    let bare = match text.split_once('=') {
        Some((name, rest)) if name.trim().chars().count() <= 2 => rest.trim_start_matches(WRAPPERS),
        _ => text,
    };
    number_at(bare, 0, false).or_else(|| words_at(bare, 0))
}

/// An operator between two numbers, as one of `+ - * /`, and where what follows it begins. A hyphen counts only between blanks:
/// `5-3` may be a range.
fn operator(text: &str) -> Option<(char, usize)> {
    let bare = text.trim_start_matches(' ');
    let blanks = text.len() - bare.len();
    const OPERATORS: [(&str, char); 12] = [
        ("+", '+'),
        ("-", '-'),
        ("−", '-'),
        ("*", '*'),
        ("×", '*'),
        ("·", '*'),
        ("⋅", '*'),
        ("x ", '*'),
        ("\\times", '*'),
        ("\\cdot", '*'),
        ("÷", '/'),
        ("/", '/'),
    ];
    let (written, operator) = OPERATORS
        .iter()
        .find(|(written, _)| bare.starts_with(written))
        .or_else(|| bare.starts_with("\\div").then_some(&("\\div", '/')))?;
    let rest = &bare[written.len()..];
    let follows = rest.trim_start_matches(' ');
    let spaced = blanks > 0 && (rest.len() > follows.len() || written.ends_with(' '));
    // `**` is a power or bold type.
    if (*written == "*" && rest.starts_with('*')) || (matches!(operator, '-' | '/') && !spaced) {
        return None;
    }
    follows
        .starts_with(|c: char| {
            digit(c).is_some() || matches!(c, '.' | '\\' | '√' | 'π') || vulgar(c).is_some()
        })
        .then_some((*operator, text.len() - follows.len()))
}

/// Whether what stands before a number makes it a bound or one of two.
fn bounded(before: &str) -> bool {
    const WORDS: [&str; 12] = [
        "more than",
        "less than",
        "greater than",
        "fewer than",
        "larger than",
        "smaller than",
        "at least",
        "at most",
        "not",
        "between",
        "from",
        "up to",
    ];
    let bare = before.trim_end_matches(WRAPPERS);
    let lower = bare.to_ascii_lowercase();
    let word = WORDS
        .iter()
        .any(|word| lower.strip_suffix(word).is_some_and(|b| !b.ends_with(|c: char| c.is_alphanumeric())));
    let command =
        ["\\le", "\\leq", "\\ge", "\\geq", "\\lt", "\\gt", "\\pm", "\\mp", "\\ne", "\\neq", "\\ln", "\\log"];
    let function = before.trim_end_matches(['{', '(', ' ', '$']);
    word || command.iter().any(|c| function.ends_with(c))
        || bare.ends_with(['<', '≤', '≥', '≠', '±', '∓'])
        || (bare.ends_with('>') && !ends_with_tag(bare))
        // A result of an operation that is not read: (3 + 4) * 2.
        || bare.ends_with(['×', '÷', '·', '^'])
}

/// `<b>` or `</b>`.
fn ends_with_tag(text: &str) -> bool {
    text.rfind('<')
        .is_some_and(|at| text[at + 1..].starts_with(|c: char| c == '/' || c.is_ascii_alphabetic()))
}

/// Whether what follows a number makes it a part of something else: a range, a ratio, a product, an inequality.
fn continued(after: &str) -> bool {
    let first = after.chars().next();
    let second = after.chars().nth(1);
    let numeric = |c: Option<char>| c.is_some_and(|c| digit(c).is_some());
    let glued = match first {
        Some('.' | ':' | '/' | ',' | '(' | '^') if numeric(second) => true,
        Some('^') => {
            !after.starts_with("^\\circ") && !after.starts_with("^{\\circ}") && !after.starts_with("^∘")
        }
        Some('i' | 'x' | 'y' | 'z' | 'n') => !second.is_some_and(char::is_alphanumeric),
        Some('\\') => {
            let name: String = after[1..].chars().take_while(char::is_ascii_alphabetic).collect();
            // Units, blanks and ends of formulas may follow; anything else may be a factor.
            !name.is_empty()
                && !matches!(
                    name.as_str(),
                    "text"
                        | "textbf"
                        | "mathrm"
                        | "mbox"
                        | "circ"
                        | "degree"
                        | "quad"
                        | "qquad"
                        | "approx"
                        | "right"
                        | "end"
                        | "dots"
                        | "ldots"
                        | "textdollar"
                        | "mathbf"
                        | "operatorname"
                        | "rm"
                )
        }
        _ => false,
    };
    let bare = after.trim_start_matches(WRAPPERS);
    let range = bare.strip_prefix(['-', '–', '—', '‒', '−', '~']).is_some_and(|rest| {
        let number = rest.trim_start_matches(WRAPPERS);
        numeric(number.chars().next())
    });
    let comparison = bare.starts_with(['±', '∓', '≤', '≥', '<', '>', '≠', '^'])
        && !bare.starts_with("</")
        && !bare
            .get(1..2)
            .is_some_and(|c| c.starts_with(|c: char| c.is_ascii_alphabetic()) && bare.starts_with('<'))
        && !after.starts_with("^\\circ")
        && !after.starts_with("^{\\circ}")
        && !after.starts_with("^∘");
    let product = bare.starts_with(['×', '÷', '·'])
        || after.starts_with("\\pm")
        || bare.starts_with("\\pm")
        || ["pm", "times", "cdot", "le", "leq", "ge", "geq", "lt", "gt"].iter().any(|name| {
            let command =
                after.trim_start_matches(' ').strip_prefix('\\').and_then(|rest| rest.strip_prefix(name));
            command.is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_alphabetic()))
        });
    glued || range || comparison || product
}

/// The value of a text that is a number, or arithmetic of numbers, and nothing else.
fn parse(text: &str) -> Option<Number> {
    let text = text.trim().trim_start_matches(|c: char| CURRENCIES.contains(&c));
    let found = number_at(text, 0, true).or_else(|| words_at(text, 0))?.with_operators(text);
    (found.end == text.len()).then_some(found.value).flatten()
}

/// The digits of a whole number that is too long to compute with, and its sign.
fn long_digits(text: &str) -> Option<String> {
    let text = text.trim();
    let mut digits = String::new();
    for c in text.chars() {
        match (digit(c), c) {
            (Some(digit), _) => digits.push(char::from(b'0' + digit)),
            (None, ',' | '{' | '}' | ' ' | '+') => {}
            (None, '-' | '−') if digits.is_empty() => digits.push('-'),
            _ => return None,
        }
    }
    let (sign, digits) = match digits.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", digits.as_str()),
    };
    let digits = digits.trim_start_matches('0');
    (digits.len() > MAX_DIGITS).then(|| format!("{sign}{digits}"))
}

/// A fraction with the number of decimals it was written with.
#[derive(Debug, Clone)]
struct Number {
    numerator: i128,
    /// Above 0.
    denominator: i128,
    decimals: u32,
    percent: bool,
}

/// More digits than any honest answer has; keeps the products below within 128 bits.
const MAX_DIGITS: usize = 18;
const LIMIT: i128 = 10_i128.pow(MAX_DIGITS as u32);

impl Number {
    const WHOLE_ZERO: Self = Self { numerator: 0, denominator: 1, decimals: 0, percent: false };

    fn whole(value: i128) -> Self {
        Self { numerator: value, ..Self::WHOLE_ZERO }
    }

    /// `None` for a denominator of 0, or where it cannot be written with few enough digits.
    fn new(numerator: i128, denominator: i128, decimals: u32) -> Option<Self> {
        let sign = denominator.signum();
        let (mut above, mut below) = (numerator.checked_mul(sign)?, denominator.checked_mul(sign)?);
        if below == 0 {
            return None;
        }
        if above.abs() >= LIMIT || below > LIMIT {
            let divisor = greatest_common_divisor(above.abs(), below);
            (above, below) = (above / divisor, below / divisor);
        }
        let fits = above.abs() < LIMIT && below <= LIMIT && decimals as usize <= MAX_DIGITS;
        fits.then_some(Self { numerator: above, denominator: below, decimals, percent: false })
    }

    /// Of ASCII digits, the last `decimals` of which stand behind the point.
    fn of_digits(digits: &str, decimals: usize) -> Option<Self> {
        let significant = digits.trim_start_matches('0');
        if significant.len() > MAX_DIGITS || decimals > MAX_DIGITS {
            return None;
        }
        let numerator = if significant.is_empty() { 0 } else { significant.parse().ok()? };
        let decimals = u32::try_from(decimals).ok()?;
        Self::new(numerator, 10_i128.pow(decimals), decimals)
    }

    fn reduced(&self) -> (i128, i128) {
        let divisor = greatest_common_divisor(self.numerator.abs(), self.denominator);
        (self.numerator / divisor, self.denominator / divisor)
    }

    fn plus(&self, other: &Self) -> Option<Self> {
        let ((a, b), (c, d)) = (self.reduced(), other.reduced());
        let above = a.checked_mul(d)?.checked_add(c.checked_mul(b)?)?;
        Self::new(above, b.checked_mul(d)?, self.decimals.max(other.decimals))
    }

    fn times(&self, other: &Self) -> Option<Self> {
        let ((a, b), (c, d)) = (self.reduced(), other.reduced());
        let decimals = (self.decimals + other.decimals).min(MAX_DIGITS as u32);
        Self::new(a.checked_mul(c)?, b.checked_mul(d)?, decimals)
    }

    fn inverse(&self) -> Option<Self> {
        Self::new(self.denominator, self.numerator, 0)
    }

    fn power(&self, exponent: i32) -> Option<Self> {
        let base = if exponent < 0 { self.inverse()? } else { self.clone() };
        // Larger ones fit for 0 and 1 only.
        let times = exponent.unsigned_abs();
        if times > 64 {
            return None;
        }
        (0..times).try_fold(Self::whole(1), |power, _| power.times(&base))
    }

    /// By a power of ten; `1.5e-3` has four decimals.
    fn shifted(&self, exponent: i32) -> Option<Self> {
        let mut shifted = self.times(&Self::whole(10).power(exponent)?)?;
        let decimals = i64::from(self.decimals) - i64::from(exponent);
        shifted.decimals = u32::try_from(decimals.max(0)).ok().filter(|d| *d <= MAX_DIGITS as u32)?;
        Some(shifted)
    }

    /// Exact where the root is a fraction; else with as many decimals as 15 digits leave.
    fn root(&self, degree: i32) -> Option<Self> {
        if degree < 2 || (self.numerator < 0 && degree % 2 == 0) {
            return None;
        }
        let (above, below) = self.reduced();
        let near = |n: i128| (n.abs() as f64).powf(1.0 / f64::from(degree)).round() as i128;
        let exact = Self::new(near(above) * above.signum(), near(below), 0)?;
        if exact.power(degree).is_some_and(|power| power.reduced() == (above, below)) {
            return Some(exact);
        }
        let value = (above.abs() as f64 / below as f64).powf(1.0 / f64::from(degree));
        Self::approximate(value * above.signum() as f64)
    }

    fn approximate(value: f64) -> Option<Self> {
        let written = format!("{:.12}", value.abs());
        let number = Self::of_digits(&written.replace('.', ""), 12)?;
        if value < 0.0 {
            number.times(&Self::whole(-1)).map(|n| Self { decimals: 12, ..n })
        } else {
            Some(number)
        }
    }

    fn negative(self, negative: bool) -> Self {
        Self { numerator: if negative { -self.numerator } else { self.numerator }, ..self }
    }

    fn over_hundred(&self) -> Option<Self> {
        let denominator = self.denominator.checked_mul(100)?;
        Some(Self { numerator: self.numerator, denominator, decimals: self.decimals + 2, percent: false })
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
        let Some(scale) = 10_i128.checked_pow(expected.decimals) else { return false };
        let Some(scaled) = self.numerator.abs().checked_mul(2).and_then(|n| n.checked_mul(scale)) else {
            return false;
        };
        let Some(twice) = self.denominator.checked_mul(2) else { return false };
        let rounded = (scaled + self.denominator) / twice * self.numerator.signum();
        rounded.checked_mul(expected.denominator) == expected.numerator.checked_mul(scale)
    }
}

impl fmt::Display for Number {
    /// In lowest terms: as a decimal number where that is exact, else as a fraction.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (above, below) = self.reduced();
        let exact = (0..=MAX_DIGITS as u32).find(|&decimals| 10_i128.pow(decimals) % below == 0);
        // At most 18 digits times 18 zeros; what is written can be read again.
        let digits = |decimals| above.abs() * (10_i128.pow(decimals) / below);
        let Some(decimals) = exact.filter(|&decimals| digits(decimals) < LIMIT) else {
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
    a.max(1)
}

/// The numbers in digits of a text, in order. `announced`: also digits grouped by blanks, and a sign with a blank behind it at
/// the start.
fn numbers(text: &str, announced: bool) -> impl Iterator<Item = Found> {
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < text.len() {
            if let Some(found) = number_at(text, at, announced) {
                at = found.end;
                return Some(found);
            }
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
        None
    })
}

const CURRENCIES: [char; 9] = ['$', '€', '£', '¥', '₹', '₩', '₽', '₺', '¢'];

/// A decimal digit of any script. The blocks of ten of Unicode 16's category Nd that writing systems in use have.
pub(super) fn digit(c: char) -> Option<u8> {
    const ZEROS: [u32; 38] = [
        0x30, 0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66, 0xde6,
        0xe50, 0xed0, 0xf20, 0x1040, 0x1090, 0x17e0, 0x1810, 0x1946, 0x19d0, 0x1a80, 0x1a90, 0x1b50, 0x1bb0,
        0x1c40, 0x1c50, 0xa620, 0xa8d0, 0xa900, 0xa9d0, 0xa9f0, 0xaa50, 0xabf0, 0xff10, 0x104a0,
    ];
    let code = u32::from(c);
    let small = |n: u32| u8::try_from(n).ok();
    if (0x1d7ce..=0x1d7ff).contains(&code) {
        // Five styles of mathematical digits.
        return small((code - 0x1d7ce) % 10);
    }
    ZEROS.iter().find(|zero| (**zero..**zero + 10).contains(&code)).and_then(|zero| small(code - zero))
}

/// `½` and its like.
fn vulgar(c: char) -> Option<(i128, i128)> {
    const ALL: [(char, i128, i128); 18] = [
        ('½', 1, 2),
        ('⅓', 1, 3),
        ('⅔', 2, 3),
        ('¼', 1, 4),
        ('¾', 3, 4),
        ('⅕', 1, 5),
        ('⅖', 2, 5),
        ('⅗', 3, 5),
        ('⅘', 4, 5),
        ('⅙', 1, 6),
        ('⅚', 5, 6),
        ('⅐', 1, 7),
        ('⅛', 1, 8),
        ('⅜', 3, 8),
        ('⅝', 5, 8),
        ('⅞', 7, 8),
        ('⅑', 1, 9),
        ('⅒', 1, 10),
    ];
    ALL.iter().find(|(v, _, _)| *v == c).map(|(_, above, below)| (*above, *below))
}

fn superscript(c: char) -> Option<u8> {
    "⁰¹²³⁴⁵⁶⁷⁸⁹".chars().position(|s| s == c).and_then(|at| u8::try_from(at).ok())
}

/// The number that starts at `start`, if one does.
fn number_at(text: &str, start: usize, announced: bool) -> Option<Found> {
    let before = text[..start].chars().next_back();
    let mut at = start;
    let mut negative = false;
    let rest = &text[start..];
    let first = rest.chars().next()?;
    let glued = before.is_some_and(|b| b.is_alphanumeric() || matches!(b, ')' | '}' | '%'));
    let sign_word = ["minus ", "negative "]
        .iter()
        .find(|word| !glued && rest.get(..word.len()).is_some_and(|found| found.eq_ignore_ascii_case(word)));
    if let Some(word) = sign_word {
        (at, negative) = (start + word.len(), true);
    } else if matches!(first, '-' | '−' | '–' | '‒' | '﹣' | '－' | '+' | '＋') {
        if glued {
            return None;
        }
        negative = !matches!(first, '+' | '＋');
        at += first.len_utf8();
        // Minerva's reading drops blanks. A hyphen that begins a line is a list's.
        let blanks = text[at..].len() - text[at..].trim_start_matches(' ').len();
        let alone =
            text[..start].trim_matches(WRAPPERS).is_empty() || text[..start].trim_end().ends_with('=');
        if blanks > 0 && !(announced && alone) {
            return None;
        }
        at += blanks;
    }
    let signed = at > start;
    if signed {
        // A currency, a brace or a blank of LaTeX between sign and digits.
        let inner = text[at..].trim_start_matches(|c: char| CURRENCIES.contains(&c) || c == ' ');
        let inner = ["\\$", "US$", "USD "]
            .iter()
            .fold(inner, |inner, prefix| inner.strip_prefix(prefix).unwrap_or(inner));
        at = text.len() - inner.len();
    } else if !(digit(first).is_some() || vulgar(first).is_some() || matches!(first, '.' | '\\' | '√' | 'π'))
    {
        return None;
    }
    let (value, length) = magnitude(&text[at..], announced).or_else(|| {
        // "minus five"
        let words = sign_word.and_then(|_| words_at(text, at))?;
        Some((words.value, words.end - at))
    })?;
    let mut end = at + length;
    let mut value = value.map(|value| value.negative(negative));
    // Dates, ratios, times and versions are read whole, and have no value.
    let run = |end: usize| {
        let rest = &text[end..];
        let mut chars = rest.chars();
        let separator = chars.next().is_some_and(|c| matches!(c, '.' | '/' | ':'));
        (separator && chars.next().is_some_and(|c| digit(c).is_some()))
            .then(|| 1 + rest[1..].find(|c: char| digit(c).is_none()).unwrap_or(rest.len() - 1))
    };
    while let Some(more) = run(end) {
        (end, value) = (end + more, None);
    }
    Some(Found { start, end, value })
}

/// An unsigned value at the start of a text, and its length in bytes.
fn magnitude(text: &str, announced: bool) -> Option<(Option<Number>, usize)> {
    let (mut value, mut length, plain) = atom(text, announced)?;
    if plain {
        if let Some((exponent, more)) = exponent_sign(&text[length..]) {
            (value, length) = (value.and_then(|v| v.shifted(exponent)), length + more);
        } else if let Some((exponent, more)) = power(&text[length..]) {
            (value, length) = (value.and_then(|v| v.power(exponent)), length + more);
        } else if let Some((below, more)) = over(&text[length..]) {
            (value, length) = (value.zip(below).and_then(|(v, b)| quotient(&v, &b)), length + more);
        } else if let Some((part, more)) =
            mixed(&text[length..]).filter(|_| value.as_ref().is_some_and(|v| v.decimals == 0))
        {
            (value, length) = (value.and_then(|v| v.plus(&part)), length + more);
        }
        if let Some((exponent, more)) = times_ten(&text[length..]) {
            (value, length) = (value.and_then(|v| v.shifted(exponent)), length + more);
        }
    }
    // Factors that are written behind a number without a sign: 2√3, 2\pi.
    while let Some((factor, more, false)) = atom(&text[length..], false).filter(|_| {
        text[length..].starts_with(['√', 'π'])
            || text[length..].starts_with("\\sqrt")
            || text[length..].starts_with("\\pi")
    }) {
        let decimals = factor.as_ref().map_or(0, |f| f.decimals);
        value = value
            .zip(factor)
            .and_then(|(v, f)| v.times(&f))
            .map(|v| Number { decimals: decimals.max(v.decimals.min(12)), ..v });
        length += more;
    }
    if let Some((factor, more)) = scale(&text[length..]) {
        (value, length) = (
            value.and_then(|v| {
                let decimals = v.decimals;
                let scaled = v.times(&Number::whole(factor))?;
                Some(Number { decimals: if scaled.reduced().1 == 1 { 0 } else { decimals }, ..scaled })
            }),
            length + more,
        );
    }
    let rest = &text[length..];
    let bare = rest.trim_start_matches(' ');
    let percent = ["%", "\\%", "％", "percent", "per cent"].iter().find(|sign| {
        bare.get(..sign.len()).is_some_and(|b| b.eq_ignore_ascii_case(sign))
            && (!sign.starts_with('p') || !bare[sign.len()..].starts_with(|c: char| c.is_alphanumeric()))
    });
    if let Some(sign) = percent {
        length += rest.len() - bare.len() + sign.len();
        value = value.map(|v| Number { percent: true, ..v });
    }
    Some((value, length))
}

fn quotient(above: &Number, below: &Number) -> Option<Number> {
    let quotient = above.times(&below.inverse()?)?;
    // A fraction is exact, and is not rounded to an expected number's decimals.
    Some(Number { decimals: 0, ..quotient })
}

/// A value without operators, its length, and whether it is written in digits alone.
fn atom(text: &str, announced: bool) -> Option<(Option<Number>, usize, bool)> {
    let first = text.chars().next()?;
    if let Some((above, below)) = vulgar(first) {
        return Some((Number::new(above, below, 0), first.len_utf8(), false));
    }
    let pi = || Number::approximate(std::f64::consts::PI);
    if first == 'π' {
        return Some((pi(), first.len_utf8(), false));
    }
    if let Some(rest) = text.strip_prefix('√') {
        let inner = rest.strip_prefix('(').unwrap_or(rest);
        // Roots of roots would be an unbounded recursion.
        if !inner.starts_with(|c: char| digit(c).is_some() || c == '.') {
            return None;
        }
        let (value, length, _) = atom(inner, false)?;
        let close = usize::from(inner.len() < rest.len());
        if close > 0 && !inner[length..].starts_with(')') {
            return None;
        }
        return Some((value.and_then(|v| v.root(2)), first.len_utf8() + length + 2 * close, false));
    }
    if first == '\\' {
        let name: &str =
            &text[1..1 + text[1..].find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(text.len() - 1)];
        let behind = 1 + name.len();
        return match name {
            "frac" | "dfrac" | "tfrac" | "cfrac" | "nicefrac" => {
                let (above, first) = argument(&text[behind..])?;
                let (below, second) = argument(&text[behind + first..])?;
                let value = above.zip(below).and_then(|(a, b)| quotient(&a, &b));
                Some((value, behind + first + second, false))
            }
            "sqrt" => {
                let (degree, skipped) = match text[behind..].strip_prefix('[').and_then(|r| r.split_once(']'))
                {
                    Some((degree, _)) => (degree.trim().parse().ok()?, degree.len() + 2),
                    None => (2, 0),
                };
                let (inner, length) = argument(&text[behind + skipped..])?;
                Some((inner.and_then(|v| v.root(degree)), behind + skipped + length, false))
            }
            "pi" => Some((pi(), behind, false)),
            _ => None,
        };
    }
    let (digits, decimals, length) = decimal(text, announced)?;
    Some((Number::of_digits(&digits, decimals), length, true))
}

/// An argument of a LaTeX command: `{…}` with a number and nothing else, or one digit. Depth is bounded by its length.
fn argument(text: &str) -> Option<(Option<Number>, usize)> {
    let bare = text.trim_start_matches(' ');
    let blanks = text.len() - bare.len();
    // What is longer or nests deeper than this is no number.
    let near = bare.char_indices().nth(120).map_or(bare, |(end, _)| &bare[..end]);
    if let Some(inside) = super::braced(near) {
        let inner = inside.trim();
        if inner.matches('{').count() > 4 {
            return None;
        }
        let found = number_at(inner, 0, true).filter(|found| found.end == inner.len())?;
        return Some((found.value, blanks + inside.len() + 2));
    }
    let c = bare.chars().next()?;
    let value = digit(c)?;
    Some((Some(Number::whole(value.into())), blanks + c.len_utf8()))
}

/// Digits, grouped or not, with decimals: the ASCII digits, how many of them are decimals, and the length.
fn decimal(text: &str, announced: bool) -> Option<(String, usize, usize)> {
    let (mut digits, mut length) = run_of_digits(text);
    if !digits.is_empty() {
        let separators: &[&str] =
            &["{,}", ",\\!", "\\,", ",", "'", "’", "\u{a0}", "\u{2009}", "\u{202f}", "٬", "，", " "];
        let grouped = separators
            .iter()
            .filter(|s| announced || **s != " ")
            .find_map(|separator| groups(text, &digits, length, separator));
        if let Some((all, end)) = grouped {
            (digits, length) = (all, end);
        } else if let Some((all, end)) = groups(text, &digits, length, ".") {
            // 1.234.567 or 1.234,50; with one point and nothing behind it, it is a decimal number.
            let (decimals, more) = text[end..].strip_prefix(',').map(run_of_digits).unwrap_or_default();
            let several = all.len() > digits.len() + 3;
            if !decimals.is_empty() && decimals.len() != 3 {
                let count = decimals.len();
                return Some((all + &decimals, count, end + 1 + more));
            }
            if several {
                return Some((all, 0, end));
            }
        }
    }
    let point =
        ['.', '٫'].iter().find_map(|point| Some((text[length..].strip_prefix(*point)?, point.len_utf8())));
    if let Some((rest, width)) = point {
        let (decimals, more) = run_of_digits(rest);
        if !decimals.is_empty() {
            let count = decimals.len();
            return Some((digits + &decimals, count, length + width + more));
        }
    }
    (length > 0).then_some((digits, 0, length))
}

fn run_of_digits(text: &str) -> (String, usize) {
    let mut digits = String::new();
    let mut length = 0;
    for c in text.chars() {
        let Some(value) = digit(c) else { break };
        digits.push(char::from(b'0' + value));
        length += c.len_utf8();
    }
    (digits, length)
}

/// Groups of three digits behind one to three, all parted by the same sign; with commas also India's, where only the last group
/// has three.
fn groups(text: &str, first: &str, length: usize, separator: &str) -> Option<(String, usize)> {
    if first.len() > 3 || (first.starts_with('0') && first.len() > 1) {
        return None;
    }
    let (mut all, mut end, mut count) = (first.to_owned(), length, 0);
    let mut sizes = Vec::new();
    while let Some(rest) = text[end..].strip_prefix(separator) {
        let (group, more) = run_of_digits(rest);
        let fraction = separator == " " && rest[more..].starts_with(['/', '.', ':']);
        if !(group.len() == 3 || (separator == "," && group.len() == 2)) || fraction {
            // A longer or shorter group is no group: the sign parts items of a list.
            if group.is_empty() || fraction {
                break;
            }
            return None;
        }
        all.push_str(&group);
        sizes.push(group.len());
        (end, count) = (end + separator.len() + more, count + 1);
    }
    let western = sizes.iter().all(|size| *size == 3);
    let indian = first.len() <= 2
        && sizes
            .split_last()
            .is_some_and(|(last, before)| *last == 3 && before.iter().all(|size| *size == 2));
    (count > 0 && (western || indian)).then_some((all, end))
}

/// `e5`, `E-3`.
fn exponent_sign(text: &str) -> Option<(i32, usize)> {
    let rest = text.strip_prefix(['e', 'E'])?;
    let bare = rest.strip_prefix(['+', '-']).unwrap_or(rest);
    let digits = bare.bytes().take_while(u8::is_ascii_digit).count();
    if digits == 0 || digits > 3 || bare[digits..].starts_with(|c: char| c.is_alphanumeric()) {
        return None;
    }
    let length = rest.len() - bare.len() + digits;
    Some((rest[..length].trim_start_matches('+').parse().ok()?, 1 + length))
}

/// `^3`, `^{-3}`, `**3`, `³`.
fn power(text: &str) -> Option<(i32, usize)> {
    let mut value = 0_i32;
    let mut length = 0;
    let mut sign = 1;
    for (i, c) in text.chars().enumerate() {
        if i == 0 && c == '⁻' {
            (sign, length) = (-1, c.len_utf8());
            continue;
        }
        let Some(digit) = superscript(c) else { break };
        value = value.checked_mul(10)?.checked_add(digit.into())?;
        length += c.len_utf8();
    }
    if length > '⁻'.len_utf8() || (length > 0 && sign == 1) {
        return Some((sign * value, length));
    }
    let rest = text
        .strip_prefix('^')
        .or_else(|| text.strip_prefix("**").filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit())))?;
    let inner = rest.strip_prefix(['{', '(']).unwrap_or(rest);
    let opened = rest.len() - inner.len();
    let signed = inner.strip_prefix(['-', '−']).unwrap_or(inner);
    let digits = signed.bytes().take_while(u8::is_ascii_digit).count();
    if digits == 0 || (opened > 0 && !signed[digits..].starts_with(['}', ')'])) {
        return None;
    }
    let value: i32 = signed[..digits].parse().ok()?;
    let value = if signed.len() < inner.len() { -value } else { value };
    Some((value, text.len() - signed.len() + digits + opened))
}

/// `× 10^5`, `\times 10^{5}`, `x 10⁵`.
fn times_ten(text: &str) -> Option<(i32, usize)> {
    let bare = text.trim_start_matches(' ');
    let rest =
        ["×", "\\times", "\\cdot", "·", "⋅", "x", "*"].iter().find_map(|sign| bare.strip_prefix(sign))?;
    let ten = rest.trim_start_matches(' ').strip_prefix("10")?;
    let (exponent, length) = power(ten)?;
    Some((exponent, text.len() - ten.len() + length))
}

/// `/4` behind a number.
fn over(text: &str) -> Option<(Option<Number>, usize)> {
    let sign = ['/', '⁄', '∕'].iter().find(|sign| text.starts_with(**sign))?;
    let (digits, decimals, length) = decimal(&text[sign.len_utf8()..], false)?;
    Some((Number::of_digits(&digits, decimals), sign.len_utf8() + length))
}

/// The fraction of a mixed number: ` 1/2`, `½`, `\frac{1}{2}`, ` and a half`.
fn mixed(text: &str) -> Option<(Number, usize)> {
    let bare = text.trim_start_matches("\\ ").trim_start_matches(' ');
    let bare = bare.strip_prefix("and ").unwrap_or(bare);
    let skipped = text.len() - bare.len();
    let joined = bare.len() < text.len() && !text.starts_with("and ");
    let first = bare.chars().next()?;
    let proper = |n: Number| (n.numerator >= 0 && n.numerator < n.denominator).then_some(n);
    if vulgar(first).is_some() || (first == '\\' && bare[1..].contains("frac") && !bare.starts_with("\\sqrt"))
    {
        let (value, length, _) = atom(bare, false)?;
        return Some((proper(value?)?, skipped + length));
    }
    if !joined {
        return None;
    }
    if digit(first).is_some() {
        let (above, length) = run_of_digits(bare);
        let (below, more) = over(&bare[length..])?;
        let end = length + more;
        // `1 1/2/2020` is none.
        if bare[end..].starts_with('/') {
            return None;
        }
        let value = quotient(&Number::of_digits(&above, 0)?, &below?)?;
        return Some((proper(value)?, skipped + end));
    }
    let words = words_at(bare, 0).filter(|_| bare.len() < text.len() && text[..skipped].contains("and"))?;
    Some((words.value.filter(|v| v.reduced().1 > 1).and_then(proper)?, skipped + words.end))
}

/// ` million`, ` dozen`, `k` behind a number.
fn scale(text: &str) -> Option<(i128, usize)> {
    const WORDS: [(&str, i128); 7] = [
        ("hundred", 100),
        ("thousand", 1_000),
        ("million", 1_000_000),
        ("billion", 1_000_000_000),
        ("trillion", 1_000_000_000_000),
        ("dozen", 12),
        ("k", 1_000),
    ];
    let bare = text.trim_start_matches(' ');
    let word = bare.find(|c: char| !c.is_alphanumeric()).unwrap_or(bare.len());
    let found = WORDS.iter().find(|(name, _)| {
        bare[..word].eq_ignore_ascii_case(name)
            && (*name != "k" || (bare.len() == text.len() && bare.starts_with('k')))
    })?;
    Some((found.1, text.len() - bare.len() + word))
}

/// Number words directly at the start, behind words such as "about".
fn worded_start(line: &str) -> Option<Found> {
    const FILLERS: [&str; 7] =
        ["about ", "approximately ", "exactly ", "around ", "roughly ", "simply ", "a total of "];
    let mut at = line.len() - line.trim_start_matches(WRAPPERS).len();
    while let Some(filler) =
        FILLERS.iter().find(|f| line[at..].get(..f.len()).is_some_and(|b| b.eq_ignore_ascii_case(f)))
    {
        at += filler.len();
    }
    if line[at..].starts_with("one of ") || line[at..].starts_with("One of ") {
        return None;
    }
    words_at(line, at)
}

/// The first number words of a line. "One" alone is too often something else.
fn worded(line: &str) -> Option<Found> {
    let starts = line.char_indices().filter(|(at, c)| {
        c.is_alphabetic() && !line[..*at].ends_with(|b: char| b.is_alphanumeric() || b == '-')
    });
    let mut found = starts.filter_map(|(at, _)| words_at(line, at));
    found.find(|found| !line[found.start..found.end].eq_ignore_ascii_case("one"))
}

/// The number in words that starts at `start`.
fn words_at(text: &str, start: usize) -> Option<Found> {
    words_from(text, start, true)
}

/// `with_and`: an "and" may join a fraction ("three and a half").
fn words_from(text: &str, start: usize, with_and: bool) -> Option<Found> {
    const SMALL: [&str; 20] = [
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
        "thirteen",
        "fourteen",
        "fifteen",
        "sixteen",
        "seventeen",
        "eighteen",
        "nineteen",
    ];
    const TENS: [&str; 8] = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"];
    const SCALES: [(&str, i128); 4] = [
        ("thousand", 1_000),
        ("million", 1_000_000),
        ("billion", 1_000_000_000),
        ("trillion", 1_000_000_000_000),
    ];
    const PARTS: [(&str, i128); 11] = [
        ("half", 2),
        ("halve", 2),
        ("third", 3),
        ("quarter", 4),
        ("fourth", 4),
        ("fifth", 5),
        ("sixth", 6),
        ("seventh", 7),
        ("eighth", 8),
        ("ninth", 9),
        ("tenth", 10),
    ];
    let word_at = |at: usize| -> Option<(String, usize)> {
        let rest = text.get(at..)?;
        let length = rest.find(|c: char| !c.is_alphabetic()).unwrap_or(rest.len());
        (length > 0).then(|| (rest[..length].to_lowercase(), at + length))
    };
    // Where the next word begins behind `at`, over a blank or a hyphen.
    let next_at = |at: usize| text[at..].starts_with([' ', '-']).then_some(at + 1);
    let part = |word: &str| {
        PARTS.iter().find(|(p, _)| word == *p || word.strip_suffix('s') == Some(*p)).map(|(_, n)| *n)
    };
    let mut negative = false;
    let mut at = start;
    let (mut word, mut word_end) = word_at(at)?;
    if matches!(word.as_str(), "minus" | "negative") {
        negative = true;
        at = next_at(word_end)?;
        (word, word_end) = word_at(at)?;
    }
    let (mut total, mut current, mut end, mut open) = (0_i128, 0_i128, None, true);
    // "a hundred", "a dozen", "a half"
    if matches!(word.as_str(), "a" | "an") {
        let (next, _) = word_at(next_at(word_end)?)?;
        let counted = part(&next).is_some()
            || matches!(next.as_str(), "hundred" | "dozen")
            || SCALES.iter().any(|(s, _)| *s == next);
        if !counted || next.ends_with('s') {
            return None;
        }
        current = 1;
        at = next_at(word_end)?;
        (word, word_end) = word_at(at)?;
    }
    let found = |value: Option<Number>, end: usize| {
        Some(Found { start, end, value: value.map(|v| v.negative(negative)) })
    };
    loop {
        let small = SMALL.iter().position(|s| *s == word).map(|n| n as i128);
        let tens = TENS.iter().position(|s| *s == word).map(|n| 20 + 10 * n as i128);
        if let Some(n) = small.filter(|n| {
            open && (current % 100 == 0 || (current % 10 == 0 && current % 100 >= 20 && (1..10).contains(n)))
        }) {
            current += n;
            open = false;
        } else if let Some(n) = tens.filter(|_| open && current % 100 == 0) {
            current += n;
        } else if word == "hundred" && (1..100).contains(&current.max(1)) {
            (current, open) = (current.max(1) * 100, true);
        } else if word == "dozen" {
            return found(Number::new(current.max(1).checked_mul(12)?, 1, 0), word_end);
        } else if let Some((_, scale)) = SCALES.iter().find(|(s, _)| *s == word) {
            total = total.checked_add(current.max(1).checked_mul(*scale)?)?;
            (current, open) = (0, true);
        } else if let Some(below) = part(&word).filter(|below| {
            // "a half", "one third", "two thirds"; "twenty third" is an ordinal.
            total == 0
                && current < 20
                && (current == 1
                    || (current == 0 && *below == 2 && end.is_none())
                    || (current > 1 && word.ends_with('s')))
        }) {
            return found(Number::new(current.max(1), below, 0), word_end);
        } else {
            break;
        }
        end = Some(word_end);
        let Some(next) = next_at(word_end) else { break };
        let Some((mut following, mut following_end)) = word_at(next) else { break };
        if following == "point" {
            return found_with_decimals(text, start, negative, total + current, following_end);
        }
        if following == "and" {
            let Some((after, after_end)) = next_at(following_end).and_then(|at| Some((at, word_at(at)?.1)))
            else {
                break;
            };
            // "three and a half"
            let fraction = with_and.then(|| words_from(text, after, false)).flatten();
            if let Some(rest) = fraction.filter(|rest| rest.value.as_ref().is_some_and(|v| v.reduced().1 > 1))
            {
                let value = rest.value.and_then(|v| Number::whole(total + current).plus(&v));
                return found(value, rest.end);
            }
            let (after_word, _) = word_at(after)?;
            let counts = SMALL.contains(&after_word.as_str()) || TENS.contains(&after_word.as_str());
            // "one hundred and five", but not "four and five".
            if !open || !counts {
                break;
            }
            (following, following_end) = (after_word, after_end);
        }
        (word, word_end) = (following, following_end);
    }
    let end = end?;
    found(Number::new(total.checked_add(current)?, 1, 0), end)
}

/// "three point one four": the digits behind "point", which ends at `at`.
fn found_with_decimals(text: &str, start: usize, negative: bool, whole: i128, at: usize) -> Option<Found> {
    const DIGITS: [&str; 10] =
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"];
    let (mut digits, mut end, mut decimals) = (whole.to_string(), at, 0);
    while let Some(rest) = text[end..].strip_prefix([' ', '-']) {
        let length = rest.find(|c: char| !c.is_alphabetic()).unwrap_or(rest.len());
        let Some(value) = DIGITS.iter().position(|d| rest[..length].eq_ignore_ascii_case(d)) else { break };
        digits.push_str(&value.to_string());
        (end, decimals) = (end + 1 + length, decimals + 1);
    }
    let value = Number::of_digits(&digits, decimals).filter(|_| decimals > 0);
    Some(Found { start, end, value: value.map(|v| v.negative(negative)) })
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
        check("The answer is 1,2", None);
        check("The answer is 10,000,000", Some("10,000,000"));
        check("The answer is twelve. 3 + 9 = 12", Some("twelve"));
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
        check("The answer is 3:45", Some("3:45"));
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
        assert_eq!(announced("2 + 2 = 4\nThe answer is four."), Some("four"));
        assert_eq!(announced("2 + 2 = 4\nThe answer is unknown."), None);
        assert_eq!(announced("The answer is 4 or 5."), None);
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
        check("1e5", Some((1e5, "100000")));
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
        check("five", "5", true);
        check("999999999999999999", "999999999999999999", true);
        check("99999999999999999999999999999999999999999", "1", false);
        check("1/3", "2/6", true);
        check("1.5/3", "0.5", true);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_without_panic(
            text in "\\PC{0,60}",
            numeric in "[-−+0-9.,/% $]{0,40}",
            latex in "(answer is |[0-9]{1,4}|[-−+*/^=(){}√π½²,.:% ]|\\\\[dt]?frac|\\\\sqrt|\\\\pi|\\\\boxed|one|hundred|and|half|point|minus |x |10|or |\n){0,20}",
        ) {
            for t in [&text, &numeric, &latex] {
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
