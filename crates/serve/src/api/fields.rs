//! The fields that a request may hold beside those that are honoured: what changes no answer, and what is not there. The check and
//! the table of `docs/compatibility.md` come from the same lists.

use mixse_model::compatibility::list;
use serde_json::{Map, Value};

use super::Fault;

/// Fields that change nothing in the answer, whatever they hold.
pub(super) const IGNORED: &[&str] = &[
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_retention",
    "request_id",
    "safety_identifier",
    "spaces_between_special_tokens",
    "user",
];

/// A field that would change the answer and is not there.
pub(super) struct Unsupported {
    pub(super) name: &'static str,
    /// What it may hold all the same.
    neutral: Neutral,
}

/// Values that ask for nothing. Null is one of them everywhere.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Neutral {
    None,
    /// An empty list, object or text, or false.
    Empty,
    /// One of these texts.
    Text(&'static [&'static str]),
    Number(f64),
    True,
    /// `{"type": "text"}`.
    PlainFormat,
    /// `["text"]`.
    OnlyText,
    /// As it is anyway: true in completions, false in chats.
    ByForm,
}

impl Neutral {
    fn allows(self, value: &Value, body: &Map<String, Value>) -> bool {
        match self {
            Self::None => false,
            Self::Empty => match value {
                Value::Array(list) => list.is_empty(),
                Value::Object(object) => object.is_empty(),
                Value::String(text) => text.is_empty(),
                other => *other == Value::Bool(false),
            },
            Self::Text(texts) => value.as_str().is_some_and(|text| texts.contains(&text)),
            Self::Number(number) => value.as_f64() == Some(number),
            Self::True => *value == Value::Bool(true),
            Self::PlainFormat => *value == serde_json::json!({ "type": "text" }),
            Self::OnlyText => *value == serde_json::json!(["text"]),
            Self::ByForm => *value == Value::Bool(!body.contains_key("messages")),
        }
    }

    /// In the documentation.
    fn words(self) -> String {
        match self {
            Self::None => "never".into(),
            Self::Empty => "empty, `false`".into(),
            Self::Text(texts) => {
                texts.iter().map(|text| format!("`{text:?}`")).collect::<Vec<_>>().join(", ")
            }
            Self::Number(number) => format!("`{number}`"),
            Self::True => "`true`".into(),
            Self::PlainFormat => "`{\"type\": \"text\"}`".into(),
            Self::OnlyText => "`[\"text\"]`".into(),
            Self::ByForm => "`true` in completions, `false` in chats".into(),
        }
    }
}

const fn unless(name: &'static str, neutral: Neutral) -> Unsupported {
    Unsupported { name, neutral }
}

pub(super) const UNSUPPORTED: &[Unsupported] = &[
    unless("add_special_tokens", Neutral::ByForm),
    unless("allowed_token_ids", Neutral::None),
    unless("audio", Neutral::Empty),
    unless("bad_words", Neutral::Empty),
    unless("chat_template", Neutral::None),
    unless("chat_template_kwargs", Neutral::Empty),
    unless("documents", Neutral::Empty),
    unless("function_call", Neutral::Text(&["none", "auto"])),
    unless("functions", Neutral::Empty),
    unless("guided_choice", Neutral::None),
    unless("guided_grammar", Neutral::None),
    unless("guided_json", Neutral::None),
    unless("guided_regex", Neutral::None),
    unless("include_stop_str_in_output", Neutral::Empty),
    unless("length_penalty", Neutral::Number(1.0)),
    unless("logits_processors", Neutral::Empty),
    unless("mm_processor_kwargs", Neutral::Empty),
    unless("modalities", Neutral::OnlyText),
    unless("prediction", Neutral::Empty),
    unless("priority", Neutral::Number(0.0)),
    unless("prompt_logprobs", Neutral::Empty),
    unless("reasoning_effort", Neutral::Text(&["none"])),
    unless("response_format", Neutral::PlainFormat),
    unless("return_token_ids", Neutral::Empty),
    unless("service_tier", Neutral::Text(&["auto", "default"])),
    unless("skip_special_tokens", Neutral::True),
    unless("store", Neutral::Empty),
    unless("structured_outputs", Neutral::None),
    unless("suffix", Neutral::Empty),
    unless("tool_choice", Neutral::Text(&["none", "auto"])),
    unless("tools", Neutral::Empty),
    unless("truncate_prompt_tokens", Neutral::Empty),
    unless("use_beam_search", Neutral::Empty),
    unless("verbosity", Neutral::Text(&["medium"])),
    unless("web_search_options", Neutral::None),
];

/// Takes out of a body what is null, what changes nothing, and what is not there and asks for nothing.
///
/// # Errors
/// A field that is not there and asks for something.
pub(super) fn settle(mut body: Map<String, Value>) -> Result<Map<String, Value>, Fault> {
    body.retain(|name, value| !value.is_null() && !IGNORED.contains(&name.as_str()));
    for Unsupported { name, neutral } in UNSUPPORTED {
        if body.get(*name).is_some_and(|value| !neutral.allows(value, &body)) {
            return Err(Fault::key(*name, "is not supported; leave it out"));
        }
        body.remove(*name);
    }
    Ok(body)
}

/// Markdown for `docs/compatibility.md`; `honoured` are the names of the other fields.
pub(super) fn documentation(honoured: &[String]) -> String {
    let quoted = |name: &str| format!("`{name}`");
    let honoured: Vec<String> = honoured.iter().map(|name| quoted(name)).collect();
    let ignored: Vec<String> = IGNORED.iter().map(|name| quoted(name)).collect();
    let mut text = list("Implemented", &honoured);
    text += &list("Ignored, because no value changes the answer", &ignored);
    text += "| field | passes as | otherwise |\n|---|---|---|\n";
    for Unsupported { name, neutral } in UNSUPPORTED {
        text += &format!("| `{name}` | {} | refused |\n", neutral.words());
    }
    text
}
