//! Rows of files, and what a model writes.

use std::path::Path;

use mixse_selfmoe::{
    answer::{announced, choice, code, number, own, python, text},
    domain::RowFormat,
    jsonl,
    record::SyntheticRow,
};

/// A file of rows, in every format.
pub(crate) fn rows(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let mut accepted = false;
    let path = Path::new("rows.jsonl");
    let formats = [
        RowFormat::Mixse,
        RowFormat::Mmlu,
        RowFormat::Bbh,
        RowFormat::Gsm8k,
        RowFormat::Mbpp,
        RowFormat::Humaneval,
    ];
    for format in formats {
        if let Ok(rows) = format.rows(path, text) {
            accepted = true;
            for row in rows {
                let _ = mixse_eval::answers::judge(&row.value, &row.value.output);
            }
        }
    }
    accepted | jsonl::parse::<SyntheticRow>(path, text).is_ok()
}

pub(crate) fn row_seeds() -> Vec<(String, Vec<u8>)> {
    [
        (
            "mixse",
            r#"{"id": "a", "instruction": "Add.", "input": "2 and 3", "output": "The answer is 5.", "answer": {"kind": "number", "value": "5"}}
{"id": "b", "instruction": "Which?", "input": "A. red\nB. blue", "output": "B", "answer": {"kind": "choice", "letter": "B"}}
{"id": "c", "instruction": "Name.", "output": "The answer is Rome.", "answer": {"kind": "text", "accept": ["Rome"]}}"#,
        ),
        ("mmlu", r#"{"question": "Which?", "choices": ["a", "b", "c", "d"], "answer": 2, "subject": "law"}"#),
        ("bbh", r#"{"input": "Is it?\nOptions:\n(A) yes\n(B) no", "target": "(B)", "task": "t"}"#),
        ("gsm8k", r##"{"question": "How many?", "answer": "2 + 3 = <<2+3=5>>5\n#### 5"}"##),
        ("mbpp", r#"{"text": "Write f.", "code": "def f(x):\n    return x", "test_list": ["assert f(1) == 1"], "task_id": 3}"#),
        (
            "humaneval",
            r#"{"prompt": "def f(x):\n    \"\"\"Same.\"\"\"\n", "canonical_solution": "    return x\n", "test": "def check(candidate):\n    assert candidate(1) == 1\n", "entry_point": "f", "task_id": "H/1"}"#,
        ),
    ]
    .map(|(name, text)| (name.to_owned(), text.as_bytes().to_vec()))
    .into()
}

/// A response, and behind a zero byte the options or the right answer.
pub(crate) fn answers(data: &[u8]) -> bool {
    let (response, other) = crate::files::halves(data);
    let (response, other) = (String::from_utf8_lossy(response), String::from_utf8_lossy(other));
    let own = own(&response);
    for found in [number::extract(own), number::announced(own)].into_iter().flatten() {
        assert!(response.contains(found), "{found:?} is not in the response");
        let _ = (number::equal(found, &other), number::value(found), number::plain(found));
        if number::value(found).is_some_and(f64::is_finite) {
            assert!(number::equal(found, found), "{found:?} is not equal to itself");
        }
    }
    let options = choice::options(&other);
    if let Some(letter) = choice::extract(&response, &options) {
        assert!(
            options.is_empty() || options.iter().any(|(known, _)| *known == letter),
            "{letter} is no option"
        );
    }
    let _ = (choice::letter(&response, &options), choice::quoted(&response), announced(&response));
    for found in [text::extract(&response), text::stated(&response)].into_iter().flatten() {
        // A text of which nothing is left equals none.
        let empty = text::normalise(found).is_empty();
        assert!(empty || text::equal(found, found), "{found:?} is not equal to itself");
        let _ = text::equal(found, &other);
    }
    let _ = (code::extract(&response, "f", &other), code::extract_any(&response, &other, ""));
    let _ = (code::functions(&response), python::fault(&response));
    use mixse_eval::tasks::math;
    if let Some(found) = math::last_boxed(&response).or_else(|| math::final_answer(&response)) {
        let _ = (math::equal(&found, &other), math::normalise(&found));
    }
    true
}

pub(crate) fn answer_seeds() -> Vec<(String, Vec<u8>)> {
    [
        ("number", "First 2 + 3 = 5, so $5 each.\nThe answer is -$1,234.50.\n\nQuestion: next?\0-1234.5"),
        ("boxed", "Hence \\boxed{\\frac{9{,}500}{2}} and $x^{2} = 10^{-3}\\%$.\0\\dfrac{9500}{2}"),
        ("choice", "The correct answer is (B) blue, not A.\0A. red\nB. blue\nC. green"),
        ("text", "**Answer:** \u{201c}The Eiffel Tower\u{201d}.\0eiffel tower"),
        ("code", "```python\ndef f(x: int) -> int:\n    '''Doc'''\n    return x * (2 + [1][0])\n```\nDone.\0f(2)"),
        ("words", "twenty-three thousand and four point five; \u{2212}3\u{bd}; \u{0664}\u{0662}; 1/3; 5 km/h\x0023004.5"),
    ]
    .map(|(name, text)| (name.to_owned(), text.as_bytes().to_vec()))
    .into()
}
