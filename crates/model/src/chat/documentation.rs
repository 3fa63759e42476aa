//! What of Jinja2, Python and transformers chat templates can use, found by asking the environment that renders them.

use minijinja::{Environment, ErrorKind};

use super::python::DIRECTIVES;
use crate::compatibility::list;

/// Jinja2's filters, with transformers' `tojson`.
const FILTERS: &[&str] = &[
    "abs",
    "attr",
    "batch",
    "capitalize",
    "center",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "filesizeformat",
    "first",
    "float",
    "forceescape",
    "format",
    "groupby",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "pprint",
    "random",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "string",
    "striptags",
    "sum",
    "title",
    "tojson",
    "trim",
    "truncate",
    "unique",
    "upper",
    "urlencode",
    "urlize",
    "wordcount",
    "wordwrap",
    "xmlattr",
];

/// Jinja2's tests.
const TESTS: &[&str] = &[
    "boolean",
    "callable",
    "defined",
    "divisibleby",
    "eq",
    "equalto",
    "escaped",
    "even",
    "false",
    "filter",
    "float",
    "ge",
    "greaterthan",
    "gt",
    "in",
    "integer",
    "iterable",
    "le",
    "lessthan",
    "lower",
    "lt",
    "mapping",
    "ne",
    "none",
    "number",
    "odd",
    "sameas",
    "sequence",
    "string",
    "test",
    "true",
    "undefined",
    "upper",
];

/// Jinja2's global functions, with those of transformers.
const FUNCTIONS: &[&str] =
    &["cycler", "dict", "joiner", "lipsum", "namespace", "raise_exception", "range", "strftime_now"];

/// Python's methods of strings, lists and dictionaries that change nothing.
const METHODS: &[(&str, &str, &[&str])] = &[
    (
        "strings",
        "''",
        &[
            "capitalize",
            "casefold",
            "center",
            "count",
            "encode",
            "endswith",
            "expandtabs",
            "find",
            "format",
            "index",
            "isalnum",
            "isalpha",
            "isascii",
            "isdecimal",
            "isdigit",
            "islower",
            "isnumeric",
            "isspace",
            "istitle",
            "isupper",
            "join",
            "ljust",
            "lower",
            "lstrip",
            "partition",
            "removeprefix",
            "removesuffix",
            "replace",
            "rfind",
            "rindex",
            "rjust",
            "rpartition",
            "rsplit",
            "rstrip",
            "split",
            "splitlines",
            "startswith",
            "strip",
            "swapcase",
            "title",
            "translate",
            "upper",
            "zfill",
        ],
    ),
    ("lists", "[]", &["copy", "count", "index"]),
    ("dictionaries", "{}", &["copy", "get", "items", "keys", "values"]),
];

/// Markdown for `docs/compatibility.md`.
pub(crate) fn documentation(environment: &Environment<'_>) -> String {
    let knows = |source: String, unknown: ErrorKind| {
        let rendered = environment.render_str(&source, ());
        rendered.err().is_none_or(|e| e.kind() != unknown)
    };
    let filter = |name: &str| knows(format!("{{{{ ''|{name} }}}}"), ErrorKind::UnknownFilter);
    let test = |name: &str| knows(format!("{{{{ '' is {name} }}}}"), ErrorKind::UnknownTest);
    let function = |name: &str| knows(format!("{{{{ {name}() }}}}"), ErrorKind::UnknownFunction);
    let mut text = section("Filters", FILTERS, &filter) + &section("Tests", TESTS, &test);
    text += &section("Functions", FUNCTIONS, &function);
    for (of, value, names) in METHODS {
        let method = |name: &str| knows(format!("{{{{ {value}.{name}() }}}}"), ErrorKind::UnknownMethod);
        text += &section(&format!("Methods of {of}"), names, &method);
    }
    let directives: Vec<String> = DIRECTIVES.chars().map(|name| format!("`%{name}`")).collect();
    text + &list("Directives of `strftime_now`, each with the flags `-`, `_`, `0`, `^` and `#`", &directives)
}

/// What is there, and what is refused when a template comes to it.
fn section(what: &str, names: &[&str], knows: &dyn Fn(&str) -> bool) -> String {
    let quoted = |known: bool| -> Vec<String> {
        names.iter().filter(|name| knows(name) == known).map(|name| format!("`{name}`")).collect()
    };
    list(what, &quoted(true)) + &list(&format!("{what} that are refused"), &quoted(false))
}
