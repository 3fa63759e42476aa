//! What can be asked, checked.

use std::sync::Arc;

use axum::http::StatusCode;
use mixse_model::{
    language::{Request, Sampling},
    tokenizer::{Bos, Message},
};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{App, Fault};
use crate::prompt::Prompt;

/// Most stop strings of a request.
const MAX_STOPS: usize = 16;
/// Tokens of a completion that says nothing about its length, as with OpenAI.
const DEFAULT_COMPLETION: usize = 16;

/// A request that can be handed to the engine.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Question {
    pub(super) variant: usize,
    pub(super) request: Request,
    /// How it is streamed; `None`: it is sent whole.
    pub(super) stream: Option<StreamOptions>,
    /// The expert of every piece is wanted.
    pub(super) experts: bool,
}

/// How an answer is streamed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub(super) struct StreamOptions {
    /// The last chunk tells the tokens used.
    #[serde(default)]
    pub(super) include_usage: bool,
}

/// `POST /v1/completions`.
#[derive(Debug, Deserialize)]
pub(super) struct CompletionRequest {
    prompt: Option<Written>,
    #[serde(flatten)]
    common: Common,
}

/// `POST /v1/chat/completions`.
#[derive(Debug, Deserialize)]
pub(super) struct ChatRequest {
    #[serde(default)]
    messages: Vec<ChatMessage>,
    max_completion_tokens: Option<usize>,
    #[serde(flatten)]
    common: Common,
}

/// A prompt as text or token ids; OpenAI also takes lists of them.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Written {
    Text(String),
    Ids(Vec<u32>),
    Texts(Vec<String>),
}

#[derive(Debug, Deserialize)]
struct ChatMessage {
    role: String,
    content: Option<Content>,
}

/// A message's text, whole or in parts.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Debug, Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
}

/// One string or several.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Stops {
    One(String),
    Several(Vec<String>),
}

/// What both kinds of request have.
#[derive(Debug, Deserialize)]
struct Common {
    model: Option<String>,
    max_tokens: Option<usize>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    stop: Option<Stops>,
    seed: Option<i64>,
    n: Option<u64>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    experts: Option<bool>,
    /// Everything else: some of it is refused, the rest changes nothing in the answer.
    #[serde(flatten)]
    rest: Map<String, Value>,
}

impl CompletionRequest {
    /// `seed` is taken where the request has none.
    pub(super) fn question(self, app: &App, seed: u64) -> Result<Question, Fault> {
        let tokenizer = &app.model.checkpoint.tokenizer;
        let text = match self.prompt {
            None => return Err(Fault::key("prompt", "is missing")),
            Some(Written::Ids(ids)) => {
                let prompt = Prompt { ids, stop: Vec::new() };
                return self.common.question(app, prompt, DEFAULT_COMPLETION, seed);
            }
            Some(Written::Text(text)) => text,
            Some(Written::Texts(mut texts)) if texts.len() == 1 => texts.remove(0),
            Some(Written::Texts(_)) => {
                return Err(Fault::key(
                    "prompt",
                    "give one prompt in a request; several requests run side by side",
                ));
            }
        };
        let ids = tokenizer.encode(&text, Bos::Model).map_err(crate::Error::from)?;
        self.common.question(app, Prompt { ids, stop: Vec::new() }, DEFAULT_COMPLETION, seed)
    }
}

impl ChatRequest {
    /// `seed` is taken where the request has none.
    pub(super) fn question(self, app: &App, seed: u64) -> Result<Question, Fault> {
        let messages =
            self.messages.into_iter().map(ChatMessage::message).collect::<Result<Vec<_>, Fault>>()?;
        let prompt = app
            .prompter
            .prompt(&app.model.checkpoint.tokenizer, &messages)
            .map_err(|e| Fault { param: Some("messages"), ..Fault::from(e) })?;
        let common =
            Common { max_tokens: self.max_completion_tokens.or(self.common.max_tokens), ..self.common };
        common.question(app, prompt, usize::MAX, seed)
    }
}

impl ChatMessage {
    fn message(self) -> Result<Message, Fault> {
        // Newer clients call the system the developer.
        let role = if self.role == "developer" { "system".into() } else { self.role };
        let content = match self.content {
            None => String::new(),
            Some(Content::Text(text)) => text,
            Some(Content::Parts(parts)) => {
                if let Some(part) = parts.iter().find(|part| part.kind != "text") {
                    return Err(Fault::key(
                        "messages",
                        format!("a part of type {:?}; only text is read", part.kind),
                    ));
                }
                parts.into_iter().filter_map(|part| part.text).collect()
            }
        };
        Ok(Message { role, content })
    }
}

impl Common {
    fn question(
        self,
        app: &App,
        prompt: Prompt,
        default_tokens: usize,
        seed: u64,
    ) -> Result<Question, Fault> {
        self.refuse_unsupported()?;
        let variant = self.variant(app)?;
        let context = app.model.base.config.context_length;
        if prompt.ids.is_empty() {
            return Err(Fault::bad("the prompt has no tokens"));
        }
        if prompt.ids.len() >= context {
            let message = format!(
                "the prompt has {} tokens, and the model's context is {context}: shorten it",
                prompt.ids.len()
            );
            return Err(Fault::bad(message).code("context_length_exceeded"));
        }
        if let Some(id) = prompt.ids.iter().find(|&&id| id as usize >= app.model.base.config.vocab_size) {
            return Err(Fault::key("prompt", format!("there is no token {id}")));
        }
        let max_new_tokens = match self.max_tokens {
            Some(0) => return Err(Fault::key("max_tokens", "must be at least 1")),
            given => given.unwrap_or(default_tokens).min(context - prompt.ids.len()),
        };
        let stop = prompt.stop.into_iter().chain(self.stops()?).collect();
        Ok(Question {
            variant,
            request: Request {
                prefix: Arc::from([]),
                prompt: prompt.ids,
                max_new_tokens,
                sampling: self.sampling(seed)?,
                stop,
            },
            stream: self.stream.unwrap_or(false).then(|| self.stream_options.unwrap_or_default()),
            experts: self.experts.unwrap_or(false),
        })
    }

    /// The model asked for; the first one where the request names none.
    fn variant(&self, app: &App) -> Result<usize, Fault> {
        let Some(name) = &self.model else { return Ok(0) };
        let variants = &app.model.variants;
        variants.iter().position(|variant| variant.name == *name).ok_or_else(|| {
            let known: Vec<&str> = variants.iter().map(|variant| variant.name.as_str()).collect();
            let message = format!("there is no model {name:?}; there are: {}", known.join(", "));
            Fault { status: StatusCode::NOT_FOUND, param: Some("model"), ..Fault::bad(message) }
                .code("model_not_found")
        })
    }

    fn sampling(&self, seed: u64) -> Result<Sampling, Fault> {
        let (temperature, top_p) = (self.temperature.unwrap_or(1.0), self.top_p.unwrap_or(1.0));
        if !(0.0..=2.0).contains(&temperature) {
            return Err(Fault::key("temperature", format!("{temperature} is not 0 to 2")));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(Fault::key("top_p", format!("{top_p} is not above 0 and at most 1")));
        }
        // Below this the division would only lose digits.
        if temperature < 1e-4 {
            return Ok(Sampling::Greedy);
        }
        Ok(Sampling::TopP { temperature, top_p, stream: self.seed.map_or(seed, i64::cast_unsigned) })
    }

    fn stops(&self) -> Result<Vec<String>, Fault> {
        let stops = match &self.stop {
            None => Vec::new(),
            Some(Stops::One(stop)) => vec![stop.clone()],
            Some(Stops::Several(stops)) => stops.clone(),
        };
        if stops.len() > MAX_STOPS || stops.iter().any(String::is_empty) {
            return Err(Fault::key("stop", format!("give at most {MAX_STOPS} strings, none of them empty")));
        }
        Ok(stops)
    }

    /// What would change the answer and is not there is refused rather than passed over.
    fn refuse_unsupported(&self) -> Result<(), Fault> {
        if self.n.is_some_and(|n| n != 1) {
            return Err(Fault::key(
                "n",
                "only one answer is given; send the request again with another seed",
            ));
        }
        let asks = |key: &str| match self.rest.get(key) {
            None | Some(Value::Null | Value::Bool(false)) => false,
            Some(Value::Number(number)) => number.as_f64() != Some(0.0),
            Some(Value::Array(list)) => !list.is_empty(),
            Some(Value::Object(object)) => {
                !object.is_empty() && object.get("type").is_none_or(|kind| kind != "text")
            }
            Some(Value::Bool(true) | Value::String(_)) => true,
        };
        for key in [
            "logprobs",
            "top_logprobs",
            "echo",
            "suffix",
            "logit_bias",
            "presence_penalty",
            "frequency_penalty",
            "response_format",
            "tools",
            "functions",
        ] {
            if asks(key) {
                return Err(Fault::key(key, "is not supported; leave it out"));
            }
        }
        if self.rest.get("best_of").and_then(Value::as_u64).is_some_and(|n| n > 1) {
            return Err(Fault::key("best_of", "is not supported; leave it out"));
        }
        Ok(())
    }
}
