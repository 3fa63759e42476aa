//! Python code in a response, in this order:
//!
//! 1. the first Markdown fence whose code defines the entry point;
//! 2. without fences, or before the first one, a plain completion: from the first line that starts code (`def`,
//!    `class`, `import`, `from`, `@`, an assignment) to the line before the first that is neither empty, indented, a
//!    comment nor such a start;
//! 3. an indented body alone, if the item's input ends in the entry point's `def` line and docstring: both together.
//!
//! The code must define the entry point (`def NAME(` or `NAME =`). An unclosed last fence ends with the response. Where
//! the response breaks off behind the first line of one more definition, that line is left out.

/// The code that defines `entry_point`. `input` is the task's input.
pub fn extract(response: &str, entry_point: &str, input: &str) -> Option<String> {
    let fenced = fences(response).into_iter().find(|code| defines(code, entry_point));
    if let Some(code) = fenced {
        return Some(without_open_end(&code, entry_point));
    }
    let bare = response.split("```").next().unwrap_or_default();
    if bare.starts_with([' ', '\t']) && defines(input, entry_point) {
        return Some(format!("{}\n{}", input.trim_end(), body(bare)));
    }
    let code = plain(bare);
    defines(&code, entry_point).then(|| without_open_end(&code, entry_point))
}

/// The code of a response to a task whose function is not known for sure: that of the function which the task asks for, else
/// of the first one that the response defines.
pub fn extract_any(response: &str, instruction: &str, input: &str) -> Option<String> {
    let defined = functions(response);
    let begun = functions(input).pop();
    let entry_point = begun
        .as_deref()
        .or_else(|| asked_for(instruction, input, &defined))
        .or(defined.first().map(String::as_str))?;
    extract(response, entry_point, input)
}

/// The function that a task asks for among those that are `defined`: the one of the input's last `def` line, or without such a
/// line the first one whose name stands in the instruction.
pub fn asked_for<'d>(instruction: &str, input: &str, defined: &'d [String]) -> Option<&'d str> {
    let begun = functions(input).pop();
    let asked = |name: &&String| match &begun {
        Some(begun) => begun == *name,
        None => instruction.split(|c: char| !is_part_of_name(c)).any(|word| word == **name),
    };
    defined.iter().find(asked).map(String::as_str)
}

/// Names of the functions that are defined at the start of a line, in order.
pub fn functions(code: &str) -> Vec<String> {
    code.lines().filter_map(function_name).map(str::to_owned).collect()
}

/// The name in a line `def NAME(` or `async def NAME(`.
pub(super) fn function_name(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("async ").unwrap_or(line).strip_prefix("def ")?.trim_start();
    let name = rest[..rest.find('(')?].trim_end();
    (!name.is_empty() && name.chars().all(is_part_of_name)).then_some(name)
}

fn is_part_of_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Leaves out a definition that has only its first line, if the entry point stands before it.
fn without_open_end(code: &str, entry_point: &str) -> String {
    let code = code.trim_end();
    match code.rsplit_once('\n') {
        Some((before, last))
            if ["def ", "async def ", "class ", "@"].iter().any(|w| last.starts_with(w))
                && (last.ends_with(':') || !last.contains(':'))
                && defines(before, entry_point) =>
        {
            before.trim_end().to_owned()
        }
        _ => code.to_owned(),
    }
}

/// By `def`, at any depth, or by an assignment.
fn defines(code: &str, name: &str) -> bool {
    code.lines().map(str::trim_start).any(|line| {
        let rest = || line.strip_prefix(name).map(str::trim_start);
        function_name(line) == Some(name)
            || rest().is_some_and(|rest| rest.starts_with('=') && !rest.starts_with("=="))
    })
}

/// The content of each Markdown fence, without the line of the opening one (` ```python `).
fn fences(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut open: Option<Vec<&str>> = None;
    for line in text.lines() {
        match (&mut open, line.trim_start().starts_with("```")) {
            (None, true) => open = Some(Vec::new()),
            (None, false) => {}
            (Some(lines), true) => {
                found.push(lines.join("\n"));
                open = None;
            }
            (Some(lines), false) => lines.push(line),
        }
    }
    found.extend(open.map(|lines| lines.join("\n")));
    found
}

fn plain(text: &str) -> String {
    let lines = text.lines().skip_while(|l| !starts_code(l));
    let code: Vec<&str> = lines
        .take_while(|l| {
            l.trim().is_empty() || l.starts_with([' ', '\t', '#', ')', ']', '}']) || starts_code(l)
        })
        .collect();
    code.join("\n").trim_end().to_string()
}

/// The indented lines at the start.
fn body(text: &str) -> String {
    let lines = text.lines().take_while(|l| l.trim().is_empty() || l.starts_with([' ', '\t']));
    lines.collect::<Vec<_>>().join("\n").trim_end().to_string()
}

fn starts_code(line: &str) -> bool {
    const STARTS: [&str; 9] =
        ["def ", "async def ", "class ", "import ", "from ", "@", "if ", "for ", "while "];
    let assigned = || {
        let name = line.split('=').next().unwrap_or_default().trim_end();
        let identifier = |n: &str| n.chars().all(is_part_of_name) && n.starts_with(|c: char| !c.is_numeric());
        line.contains(" = ") && identifier(name)
    };
    // A sentence may start with these words as well; code that does ends its line with a colon.
    let sentence =
        ["if ", "for ", "while "].iter().any(|w| line.starts_with(w)) && !line.trim_end().ends_with(':');
    let prose_import = line.starts_with("from ") && !line.contains(" import ");
    !sentence && !prose_import && (STARTS.iter().any(|s| line.starts_with(s)) || assigned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_found() {
        let check = |response: &str, input: &str, expected: Option<&str>| {
            assert_eq!(extract(response, "f", input).as_deref(), expected, "{response}");
        };
        let code = "def f(x):\n    return x";
        check(code, "", Some(code));
        check("```python\ndef f(x):\n    return x\n```", "", Some(code));
        check("Here:\n```\ndef f(x):\n    return x\n```\nIt works.", "", Some(code));
        check("```python\ndef f(x):\n    return x", "", Some(code));
        check("```\npip install x\n```\n```python\ndef f(x):\n    return x\n```", "", Some(code));
        check("```python\ndef g(x):\n    return x\n```", "", None);
        check("Sure, this is it:\ndef f(x):\n    return x\nThis returns x.", "", Some(code));
        check(
            "import math\n\ndef f(x):\n    return math.pi\n\nprint(f(1))",
            "",
            Some("import math\n\ndef f(x):\n    return math.pi"),
        );
        check("# doubles\ndef f(x):\n    return x", "", Some(code));
        check("N = 3\ndef f(x):\n    return N", "", Some("N = 3\ndef f(x):\n    return N"));
        check("f = lambda x: x", "", Some("f = lambda x: x"));
        check(
            "    return x",
            "def f(x):\n    \"\"\"Returns x.\"\"\"",
            Some("def f(x):\n    \"\"\"Returns x.\"\"\"\n    return x"),
        );
        check("    return x\nDone.", "def f(x):", Some("def f(x):\n    return x"));
        check("def ff(x):\n    return x", "", None);
        check("f == 3", "", None);
        check("from my point of view f is easy", "", None);
        check(
            "class A:\n    def f(self):\n        pass",
            "",
            Some("class A:\n    def f(self):\n        pass"),
        );
        check("def f(x):\n    return x\n```\nThis returns x.", "", Some(code));
        check("def f(x):\n    return x\n\ndef g(x):", "", Some(code));
        check("def f(x):\n    return x\n\ndef g(x", "", Some(code));
        check("```\ndef f(x):\n    return x\n\n@cache", "", Some(code));
        check("def f(x): return x", "", Some("def f(x): return x"));
        check("x = 1\ndef f(x):", "", Some("x = 1\ndef f(x):"));
        check("```\nf(1)\n```\ndef f(x):\n    return x", "", None);
        check("", "", None);
    }

    #[test]
    fn functions_are_listed() {
        let check = |code: &str, expected: &[&str]| assert_eq!(functions(code), expected, "{code}");
        check("import a\ndef f (x):\n  def inner(): 0\nasync def g(): 0", &["f", "g"]);
        check("Here:\n```python\ndef f(): 0\n```\nDone", &["f"]);
        check("def f", &[]);
        check("define f(x)", &[]);
        check("def two words(x):", &[]);
    }

    #[test]
    fn code_is_found_without_a_known_function() {
        let check = |instruction: &str, input: &str, response: &str, expected: Option<&str>| {
            assert_eq!(extract_any(response, instruction, input).as_deref(), expected, "{response}");
        };
        let code = "def f(x):\n    return x";
        check("Do it", "", code, Some(code));
        check("Do it", "", "Here:\n```python\ndef f(): 0\n```\nDone", Some("def f(): 0"));
        check("Do it", "", "Here it's:\ndef f(x):\n    return x\nDone.", Some(code));
        check("Do it", "", "```\npip install x\n```\n```\ndef f(x):\n    return x\n```", Some(code));
        check("Write f", "", "```\ndef g(): 0\n```\n```\ndef f(): 0\n```", Some("def f(): 0"));
        check("Do it", "def f(x):", "    return x", Some(code));
        check("Write g", "def f(x):", "def g(x): return x", None);
        check("Do it", "", "f = 3", None);
        check("", "", "", None);
    }

    #[test]
    fn the_input_tells_more_about_the_function_than_the_instruction() {
        let check = |instruction: &str, input: &str, expected: Option<&str>| {
            let defined = ["count".to_owned(), "total".to_owned()];
            assert_eq!(asked_for(instruction, input, &defined), expected, "{instruction} {input}");
        };
        check("Write total(x) to count", "", Some("count"));
        check("Write total(x) to count", "def total(x):", Some("total"));
        check("Write total(x)", "def other(x):", None);
        check("Write it", "", None);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "(\\PC|\n|```|def f|    ){0,30}") {
            let _ = (extract(&text, "f", &text), extract_any(&text, &text, &text));
        }
    }
}
