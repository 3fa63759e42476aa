//! Tasks from the text that a brainstorming model wrote. The text is hostile: anything may stand in it.

use crate::{shard::End, template::BrainstormTemplate};

/// What one place of the list holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parsed {
    /// A task; its instruction may still be empty.
    Task {
        /// What is asked.
        instruction: String,
        /// What it is asked about; often empty.
        input: String,
    },
    /// A task that the limit of tokens cut off.
    Unfinished,
    /// Something that does not have the list's form.
    Unparsable,
}

/// Reads at most `limit` tasks from a continuation of [`BrainstormTemplate::cue`].
pub fn tasks(template: &BrainstormTemplate, text: &str, end: End, limit: usize) -> Vec<Parsed> {
    let mut blocks = blocks(template.heading_stem().trim(), text);
    // A heading at the very end promises a task that never came.
    if end != End::Length && blocks.len() > 1 && blocks.last().is_some_and(|b| b.trim().is_empty()) {
        blocks.pop();
    }
    let last = blocks.len() - 1;
    let mut parsed: Vec<Parsed> = blocks
        .iter()
        .enumerate()
        .map(|(i, block)| {
            // The cue already holds the first task's label.
            let body = if i == 0 {
                Some(block.as_str())
            } else {
                strip_label(block.trim_start(), &template.instruction_label)
            };
            match body {
                _ if i == last && end == End::Length => Parsed::Unfinished,
                Some(body) => task(body, &template.input_label),
                None => Parsed::Unparsable,
            }
        })
        .collect();
    parsed.truncate(limit);
    parsed
}

/// Cuts the text at its headings; the lines of other headings and what follows them up to the next task are dropped.
fn blocks(stem: &str, text: &str) -> Vec<String> {
    let mark = stem.split_whitespace().next().unwrap_or(stem);
    let mut blocks = vec![String::new()];
    let mut foreign = false;
    for line in text.lines() {
        if line.trim_start().starts_with(stem) {
            blocks.push(String::new());
            foreign = false;
        } else if mark.starts_with('#') && line.trim_start().starts_with(mark) {
            foreign = true;
        } else if let Some(block) = blocks.last_mut()
            && !foreign
        {
            block.push_str(line);
            block.push('\n');
        }
    }
    blocks
}

fn task(body: &str, input_label: &str) -> Parsed {
    let mut instruction = Vec::new();
    let mut input: Option<Vec<&str>> = None;
    for line in body.lines() {
        match (&mut input, strip_label(line.trim_start(), input_label)) {
            (None, Some(rest)) => input = Some(vec![rest.trim()]),
            (None, None) => instruction.push(line.trim()),
            (Some(input), _) => input.push(line.trim_end()),
        }
    }
    let input = input.unwrap_or_default().join("\n");
    // Leading blank lines go, the first line's indentation stays: it may be code.
    let input = input.trim_end().trim_start_matches('\n');
    Parsed::Task {
        instruction: unquote(instruction.join("\n").trim()).to_owned(),
        input: if means_nothing(input) { String::new() } else { input.to_owned() },
    }
}

/// What follows `label` at the start of `text`: whatever the case, with or without bold marks, and in the plural.
fn strip_label<'a>(text: &'a str, label: &str) -> Option<&'a str> {
    let text = text.trim_start_matches('*');
    let name = label.trim_end_matches(':');
    let head = text.get(..name.len())?;
    let rest = &text[name.len()..];
    let rest = rest.strip_prefix('s').unwrap_or(rest).strip_prefix(&label[name.len()..])?;
    head.eq_ignore_ascii_case(name).then(|| rest.trim_start_matches('*'))
}

fn unquote(text: &str) -> &str {
    text.strip_prefix('"').and_then(|t| t.strip_suffix('"')).filter(|t| !t.contains('"')).unwrap_or(text)
}

/// Ways in which models write that there is no input.
fn means_nothing(input: &str) -> bool {
    let plain = input.trim().trim_matches(['(', ')', '[', ']', '<', '>', '.', '*', '"']).to_lowercase();
    matches!(
        &*plain,
        "none" | "n/a" | "na" | "noinput" | "no input" | "empty" | "nil" | "null" | "no input needed"
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str, end: End) -> Vec<Parsed> {
        tasks(&BrainstormTemplate::built_in().unwrap(), text, end, 3)
    }

    fn show(parsed: &[Parsed]) -> Vec<String> {
        parsed
            .iter()
            .map(|p| match p {
                Parsed::Task { instruction, input } => format!("{instruction}|{input}"),
                other => format!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn continuations() {
        let check =
            |text: &str, expected: &[&str]| assert_eq!(show(&parse(text, End::Stop)), expected, "{text:?}");
        check(" Add.\nInput:\n1\n2\n", &["Add.|1\n2"]);
        check(" Why?\n\n### Task 5\nInstruction: How?\n", &["Why?|", "How?|"]);
        check(" Why?\n\n### Task 5\nInstruction: How?\nInput: None\n\n### Task 6", &["Why?|", "How?|"]);
        check(" Why?\n### Task 5\nWhat a day\n", &["Why?|", "Unparsable"]);
        check(" Why?\n### Response:\nBecause.\n### Task 9\n**Instruction:** How?", &["Why?|", "How?|"]);
        check(" \"Say it.\"\ninput: A. x\nB. y", &["Say it.|A. x\nB. y"]);
        check(" Why?\n### Task 5\nInstructions: How?\n", &["Why?|", "How?|"]);
        check("", &["|"]);
        check(
            " a\n### Task 5\nInstruction: b\n### Task 6\nInstruction: c\n### Task 7\nInstruction: d",
            &["a|", "b|", "c|"],
        );
        check(" Define f.\nInput:\n\n    x = [None]\n", &["Define f.|    x = [None]"]);
        check(" Brackets?\nInput: ( ( [", &["Brackets?|( ( ["]);
        check(" Two\nlines\nInput:\n<noinput>", &["Two\nlines|"]);
    }

    #[test]
    fn what_the_limit_cut_is_unfinished() {
        let check = |text: &str, expected: &[&str]| assert_eq!(show(&parse(text, End::Length)), expected);
        check(" Why", &["Unfinished"]);
        check(" Why?\n### Task 5\nInstruction: Ho", &["Why?|", "Unfinished"]);
        check(" Why?\n### Task 5\n", &["Why?|", "Unfinished"]);
    }

    proptest! {
        #[test]
        fn hostile_text_gives_clean_tasks(text in "([\\PC]{0,12}|\n|### Task |### |Instruction:|Input:|\u{0}|\u{fffd}){0,24}") {
            let parsed = parse(&text, End::Eos);
            prop_assert!((1..=3).contains(&parsed.len()));
            for parsed in parsed {
                if let Parsed::Task { instruction, input } = parsed {
                    prop_assert_eq!(instruction.trim(), instruction.as_str());
                    prop_assert!(!input.ends_with(char::is_whitespace));
                }
            }
        }
    }
}
