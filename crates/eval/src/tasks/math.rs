//! Final answers of mathematics in LaTeX: where they stand, and when two are the same.
//!
//! After Lewkowycz et al. 2022 (appendix D): an answer is brought to a plain form (last side of an equation, no units, no
//! `\text`, `\left`-free fractions and roots), and two answers are equal if the forms are. Where the harness goes on
//! and asks a computer algebra system, this compares the values of plain numbers and fractions only, so it can
//! call an answer wrong that the harness calls right (an expanded polynomial, say), never the other way round.

use std::sync::LazyLock;

use fancy_regex::Regex;

/// The content of the last `\boxed{…}`, `\boxed …` or `\fbox{…}`.
pub fn last_boxed(text: &str) -> Option<String> {
    if let Some((_, rest)) = text.rsplit_once("\\boxed ") {
        return Some(rest.split('$').next().unwrap_or_default().to_string());
    }
    let start = text.rfind("\\boxed").or_else(|| text.rfind("\\fbox"))?;
    let rest = &text[start..];
    let open = rest.find('{')?;
    let mut depth = 0_usize;
    for (i, c) in rest.char_indices().skip_while(|(i, _)| *i < open) {
        match c {
            '{' => depth += 1,
            '}' if depth == 1 => return Some(rest[open + 1..i].to_string()),
            '}' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// What stands between "Final Answer: The final answer is" and "I hope it is correct", if anything; the end of the
/// response counts as the latter, as in the harness.
pub fn final_answer(response: &str) -> Option<String> {
    static PATTERN: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new("Final Answer: The final answer is(.*?). I hope it is correct.").ok());
    let text = format!("{response}I hope it is correct.");
    let found = PATTERN.as_ref()?.captures(&text).ok()??;
    Some(found.get(1)?.as_str().trim().to_string())
}

/// Whether a normalised answer is the normalised right one.
pub fn equal(answer: &str, gold: &str) -> bool {
    if answer.is_empty() {
        return false;
    }
    answer == gold
        || value(answer).zip(value(gold)).is_some_and(|(a, b)| (a - b).abs() < 1e-9 * b.abs().max(1.0))
}

/// The value of a plain number, `\frac{a}{b}` or `a/b`.
fn value(text: &str) -> Option<f64> {
    let (sign, text) = text.strip_prefix('-').map_or((1.0, text), |t| (-1.0, t));
    let number = |t: &str| {
        let plain = t.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        plain.then(|| t.parse::<f64>().ok()).flatten()
    };
    let fraction = text
        .strip_prefix("\\frac{")
        .or_else(|| text.strip_prefix("\\dfrac{"))
        .and_then(|t| t.strip_suffix('}'))
        .and_then(|t| t.split_once("}{"))
        .or_else(|| text.split_once('/'));
    let value = match fraction {
        Some((above, below)) => number(above)? / number(below).filter(|b| *b != 0.0)?,
        None => number(text)?,
    };
    Some(sign * value)
}

/// Units and fillers that are words, removed wherever they stand outside a LaTeX command.
const WORDS: &str = "square|ways|integers|dollars|mph|inches|ft|hours|km|units|sue|points|feet|minutes|digits|cents\
     |degrees|cm|gm|pounds|meters|meals|edges|students|childrentickets|multiples";
/// Fillers that are signs or commands.
const SIGNS: [&str; 16] = [
    "\\ldots",
    "\\text{s}",
    "\\text{.}",
    "\\text{\ns}",
    "\\text{}^2",
    "\\text{}^3",
    "\\text{\n}",
    "\\text{}",
    "\\mathrm{th}",
    "^\\circ",
    "^{\\circ}",
    "\\;",
    ",\\!",
    "{,}",
    "\"",
    "\\dots",
];
/// Articles, money, blanks and spellings, in this order.
const REPLACED: [(&str, &str); 10] = [
    ("an ", ""),
    ("a ", ""),
    (".$", "$"),
    ("\\$", ""),
    ("\\ ", ""),
    (" ", ""),
    ("mbox", "text"),
    (",\\text{and}", ","),
    ("\\text{and}", ","),
    ("\\text{m}", "\\text{}"),
];

/// Patterns that are compiled once: what is found and what stands in its place.
static WORD_UNITS: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(&format!(r"(?<!\\)\b(?:{WORDS})\b")).ok());
static COMMAND: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"\\[a-zA-Z]+").ok());
static GLUED_UNITS: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(WORDS).ok());
static FORMS: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    let forms = [
        // The formula of a text, or the content of a command.
        (r"(.*?)\$(.*?)\$(.*)", "$$${2}$$"),
        (r"\\text\{(.*?)\}", "${1}"),
        (r"\\textbf\{(.*?)\}", "${1}"),
        (r"\\overline\{(.*?)\}", "${1}"),
        (r"\\boxed\{(.*)\}", "${1}"),
        // Arguments without braces: \frac12, \sqrt[3]8, \sqrt2.
        (r"frac([^{])(.)", "frac{${1}}{${2}}"),
        (r"sqrt(\[[^\]]*\])(\w)", "sqrt${1}{${2}}"),
        (r"sqrt(?!\[)([^{])", "sqrt{${1}}"),
    ];
    forms.into_iter().filter_map(|(pattern, with)| Some((Regex::new(pattern).ok()?, with))).collect()
});
static THOUSANDS: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"^-?\d{1,3}(,\d{3})+$").ok());

fn remove(pattern: &LazyLock<Option<Regex>>, text: &str) -> String {
    pattern.as_ref().map_or_else(|| text.into(), |p| p.replace_all(text, "").into_owned())
}

/// The plain form of a final answer.
pub fn normalise(answer: &str) -> String {
    let mut text = remove(&WORD_UNITS, answer.rsplit('=').next().unwrap_or_default());
    for (from, to) in REPLACED {
        text = text.replace(from, to);
    }
    text = outside_commands(&text);
    for sign in SIGNS {
        text = text.replace(sign, "");
    }
    for (pattern, with) in FORMS.iter() {
        text = pattern.replace_all(&text, *with).into_owned();
    }
    text = text.replace('$', "");
    let grouped = THOUSANDS.as_ref().is_some_and(|p| p.is_match(&text).unwrap_or(false));
    if grouped { text.replace(',', "") } else { text }
}

/// Removes units that are glued to their numbers, but never a part of a command's name.
fn outside_commands(text: &str) -> String {
    let Some(command) = COMMAND.as_ref() else { return text.into() };
    let (mut out, mut end) = (String::new(), 0);
    for found in command.find_iter(text).filter_map(Result::ok) {
        out += &remove(&GLUED_UNITS, &text[end..found.start()]);
        out += found.as_str();
        end = found.end();
    }
    out + &remove(&GLUED_UNITS, &text[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn final_answers_are_found() {
        let check = |text: &str, expected: Option<&str>| assert_eq!(last_boxed(text).as_deref(), expected);
        check(r"so \boxed{\frac{1}{2}}.", Some(r"\frac{1}{2}"));
        check(r"\boxed{1} and \boxed{2}", Some("2"));
        check(r"\fbox{3}", Some("3"));
        check(r"$\boxed 5$", Some("5"));
        check(r"\boxed{1", None);
        check("none", None);
        let found = final_answer("Final Answer: The final answer is $5$. I hope it is correct.");
        assert_eq!(found.as_deref(), Some("$5$"));
        assert_eq!(final_answer("The answer is 5"), None);
    }

    #[test]
    fn answers_are_brought_to_one_form() {
        let check = |answer: &str, expected: &str| assert_eq!(normalise(answer), expected, "{answer}");
        check("x = 5", "5");
        check("$\\frac12$", "\\frac{1}{2}");
        check("1,000", "1000");
        check("(0,1)", "(0,1)");
        check("5 \\text{ cm}", "5");
        check("2\\pi cm", "2\\pi");
        check("\\left(1, 2\\right)", "\\left(1,2\\right)");
        check("\\sqrt2", "\\sqrt{2}");
        check("\\sqrt[3]8", "\\sqrt[3]{8}");
        check("90^\\circ", "90");
        check("\\$5 dollars", "5");
    }

    #[test]
    fn values_are_compared() {
        let check = |a: &str, b: &str, same: bool| assert_eq!(equal(a, b), same, "{a} {b}");
        check("\\frac{1}{2}", "0.5", true);
        check("-1/2", "-0.5", true);
        check("[2,5)", "[2,5)", true);
        check("x+1", "1+x", false);
        check("", "", false);
        check("1/0", "1", false);
    }
}
