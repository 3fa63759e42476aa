use super::*;
use crate::{
    domain::{Limits, Manifest},
    record::Example,
    shard::End,
};

/// A domain with these seeds: `instruction | input | output`.
fn domain(answer: &str, seeds: &[&str]) -> Domain {
    let text = format!(
        "name = 'd'\ntitle = 'D'\ndescription = 'd'\nanswer = '{answer}'\nrequirements = 'r'\nrole = 'r'\n"
    );
    let manifest = Manifest::parse(std::path::Path::new("domain.toml"), &text).unwrap();
    let seeds = seeds
        .iter()
        .enumerate()
        .map(|(i, seed)| {
            let mut parts = seed.split('|').map(|part| part.trim().replace("\\n", "\n"));
            let mut part = || parts.next().unwrap_or_default();
            Example { id: format!("s{i}"), instruction: part(), input: part(), output: part(), answer: None }
        })
        .collect();
    Domain { manifest, seeds, check: Vec::new() }
}

#[test]
fn reasons_have_stable_names() {
    for (reason, name) in [
        (Reason::Unparsable, "unparsable"),
        (Reason::Empty, "empty"),
        (Reason::Unfinished, "unfinished"),
        (Reason::TooShort, "too_short"),
        (Reason::TooLong, "too_long"),
        (Reason::PromptLeak, "prompt_leak"),
        (Reason::RepeatedNgrams, "repeated_ngrams"),
        (Reason::CopiedDemonstration, "copied_demonstration"),
        (Reason::SimilarToSeed, "similar_to_seed"),
        (Reason::SimilarToRow, "similar_to_row"),
        (Reason::NoInput, "no_input"),
        (Reason::NoNumber, "no_number"),
        (Reason::NoOptions, "no_options"),
        (Reason::RepeatedOptions, "repeated_options"),
        (Reason::NoAnswer, "no_answer"),
        (Reason::WrongOption, "wrong_option"),
        (Reason::NoFunction, "no_function"),
        (Reason::WrongFunction, "wrong_function"),
        (Reason::InvalidCode, "invalid_code"),
        (Reason::FalseEquation, "false_equation"),
    ] {
        assert_eq!(reason.to_string(), name);
        assert_eq!(serde_json::to_string(&reason).unwrap(), format!("\"{name}\""));
    }
}

#[test]
fn tasks() {
    let math =
        domain("number", &["Add the two numbers 3 and 8 together. | | 11", "Name a prime above 20. | | 23"]);
    let choice = domain("choice", &["Which animal barks at night? | A. cat\\nB. dog | B. dog"]);
    let check = |domain: &Domain, instruction: &str, input: &str, expected: Option<Reason>| {
        let shown = ["s1".to_owned()];
        let got = TaskFilter::new(domain).accept("t", instruction, input, 20, &shown).err().map(|r| r.reason);
        assert_eq!(got, expected, "{instruction}");
    };
    check(&math, "How many legs do 3 dogs have?", "", None);
    check(&math, "How many legs do three dogs have?", "", None);
    check(&math, "How many legs do dogs have?", "", Some(Reason::NoNumber));
    check(&math, "Add 3", "", Some(Reason::TooShort));
    check(&math, "", "3", Some(Reason::Empty));
    check(&math, "Add the two numbers 5 and 8 together.", "", Some(Reason::SimilarToSeed));
    check(&math, "Name a prime above 200.", "", Some(Reason::CopiedDemonstration));
    check(&math, "### Task 9 was 1 to forget", "", Some(Reason::PromptLeak));
    check(&math, &"one two three four ".repeat(9), "", Some(Reason::RepeatedNgrams));
    check(&choice, "What do fish breathe with?", "A. gills\nB. lungs", None);
    check(&choice, "What do fish breathe with?", "", Some(Reason::NoInput));
    check(&choice, "What do fish breathe with?", "gills, lungs", Some(Reason::NoOptions));
    check(&choice, "What do fish breathe with?", "A. gills", Some(Reason::NoOptions));
    check(&choice, "What do fish breathe with?", "A. gills\nB. Gills", Some(Reason::RepeatedOptions));
    let long = TaskFilter::new(&math).accept("t", "How many legs do 3 dogs have?", "", 9999, &[]);
    assert_eq!(long.unwrap_err().reason, Reason::TooLong);
}

#[test]
fn accepted_tasks_are_remembered() {
    let mut filter = TaskFilter::new(&domain("text", &["Seed one | | x"]));
    filter.accept("a", "Name the largest planet of the sun", "", 9, &[]).unwrap();
    let again = filter.accept("b", "Name the largest moon of the sun", "", 9, &[]).unwrap_err();
    assert_eq!(again, Rejection::new(Reason::SimilarToRow, "ROUGE-L 0.857 to a"));
    // What was rejected is not remembered.
    let other = filter.accept("c", "Name one large moon of that earth", "", 9, &[]).unwrap();
    assert!((other.row - 2.0 * 2.0 / 14.0).abs() < 1e-12, "{other:?}");
}

#[test]
fn responses() {
    let stated = domain("number", &["a | | It is 3.\\nThe answer is 3.", "b | | The answer is 4."]);
    let free = domain("number", &["a | | 3", "b | | 4"]);
    let mixed = domain("mixed", &["a | | One long way to say something about it. The answer is x."]);
    let text = domain("text", &["a | | x"]);
    let check =
        |domain: &Domain, input: &str, text: &str, expected: std::result::Result<Option<&str>, Reason>| {
            let got = ResponseFilter::new(domain).accept("Do it", input, &["s0".to_owned()], text, End::Eos);
            let got = got.map(|a| a.answer).map_err(|r| r.reason);
            assert_eq!(got, expected.map(|a| a.map(str::to_owned)), "{text}");
        };
    check(&stated, "", "2 + 2 = 4\nThe answer is 4.", Ok(Some("4")));
    check(&stated, "", "2 + 2 = 4", Err(Reason::NoAnswer));
    check(&stated, "", "The answer is four.", Ok(Some("4")));
    check(&stated, "", "The answer is unknown.", Err(Reason::NoNumber));
    check(&stated, "", "2 + 2 = 4\nThe answer is unknown.", Err(Reason::NoNumber));
    check(&stated, "", "The answer is 600 + 400 = 1,000.0 of 2,000.", Ok(Some("1000")));
    check(&stated, "", "Answer: $4.50", Ok(Some("4.5")));
    check(&free, "", "2 + 2 = 4", Ok(Some("4")));
    check(&mixed, "", "It sleeps. The answer is bed.", Ok(Some("bed")));
    check(&mixed, "A. x\nB. y", "The answer is B.", Ok(Some("B")));
    check(&mixed, "A. x\nB. y", "The answer is C.", Err(Reason::WrongOption));
    check(&mixed, "A. x\nB. y", "The answer is yes.", Err(Reason::WrongOption));
    check(
        &mixed,
        "",
        "One long way to say something about it. The answer is X.",
        Err(Reason::CopiedDemonstration),
    );
    check(&text, "", "  \n", Err(Reason::Empty));
    check(&text, "", "### Instruction:\nMore", Err(Reason::PromptLeak));
    check(&text, "", &"so it goes on and ".repeat(8), Err(Reason::RepeatedNgrams));
    let cut = ResponseFilter::new(&text).accept("Do it", "", &[], "so it", End::Length);
    assert_eq!(cut.unwrap_err().reason, Reason::Unfinished);
}

#[test]
fn picked_options_must_be_quoted_right() {
    let choice = domain("choice", &["a | A. x\\nB. y | B. y"]);
    let check = |text: &str, expected: Option<Reason>| {
        let got = ResponseFilter::new(&choice).accept("Pick", "A. the cat\nB. a dog", &[], text, End::Eos);
        assert_eq!(got.err().map(|r| r.reason), expected, "{text}");
    };
    check("B. a dog", None);
    check("B. A dog!", None);
    check("(B)", None);
    check("**B**, because it barks", None);
    check("a dog", Some(Reason::WrongOption));
    check("C. a dog", Some(Reason::WrongOption));
    check("B. the cat", Some(Reason::WrongOption));
}

#[test]
fn code_responses() {
    let coding = domain("code", &["a | | def f(): 0"]);
    let check = |instruction: &str, input: &str, text: &str, expected: std::result::Result<&str, Reason>| {
        let got = ResponseFilter::new(&coding).accept(instruction, input, &[], text, End::Eos);
        assert_eq!(got.map(|a| a.output).map_err(|r| r.reason), expected.map(str::to_owned), "{text}");
    };
    check("Write total.", "", "def total(x):\n    return x\n", Ok("def total(x):\n    return x"));
    check(
        "Write total.",
        "",
        "```python\ndef total(x):\n    return x\n```\nDone.",
        Ok("def total(x):\n    return x"),
    );
    check(
        "Write total.",
        "",
        "Here it's:\ndef total(x):\n    return x\nIt returns x.",
        Ok("def total(x):\n    return x"),
    );
    check("Write it", "def total(x):", "    return x", Ok("def total(x):\n    return x"));
    check("Write total.", "", "```\ntotal(1)\n```\ndef total(x): 0", Err(Reason::WrongFunction));
    check("Write it", "def total(x):", "def sum(x):\n    return x", Err(Reason::WrongFunction));
    check("Write add_up(x)", "", "def total(x):\n    return x", Err(Reason::WrongFunction));
    check("Write add_up(x)", "", "def add_up(x):\n    return x", Ok("def add_up(x):\n    return x"));
    check("Write total.", "", "return x", Err(Reason::NoFunction));
    check("Write total.", "", "def total(x):\n    return (x", Err(Reason::InvalidCode));
}

#[test]
fn switches_override_the_kind() {
    let mut math = domain("number", &["a b c d 1 | | 3"]);
    math.manifest.filters.number_in_task = Some(false);
    math.manifest.filters.options_in_task = Some(true);
    let got = TaskFilter::new(&math).accept("t", "How do dogs bark", "", 9, &[]);
    assert_eq!(got.unwrap_err().reason, Reason::NoOptions);
    let mut strict = domain("number", &["a | | 3"]);
    let wrong =
        |domain: &Domain| ResponseFilter::new(domain).accept("Do it", "", &[], "2 + 2 = 5", End::Eos).err();
    assert_eq!(wrong(&strict), None);
    strict.manifest.filters.true_equations = Some(true);
    assert_eq!(wrong(&strict), Some(Rejection::new(Reason::FalseEquation, "2 + 2 = 5")));
    assert_eq!(Limits::default().max_similarity, 0.7);
}
