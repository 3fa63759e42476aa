//! What can be asked, checked.
//!
//! A request may hold OpenAI's fields, and vLLM's beside them: those of [`Fields`] are honoured, those of [`fields`] ignored or
//! refused unless their value asks for nothing; a field that is in no list is refused.

use std::{collections::BTreeMap, sync::Arc};

use axum::http::StatusCode;
use mixse_model::{
    language::{Controls, Penalties, Request, Sampling},
    tokenizer::{Bos, MarkedText, Message, Tokenizer},
};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{App, Fault, Form, fields};
use crate::prompt::{Ending, Prompt};

/// Most stop strings of a request.
const MAX_STOPS: usize = 16;
/// Most answers to a prompt.
const MAX_ANSWERS: usize = 64;
/// Most prompts of a request, and most answers to all of them.
const MAX_PROMPTS: usize = 512;
/// Most likely tokens that are told beside each token.
const MAX_TOP: usize = 20;
/// Most entries of `logit_bias` and `stop_token_ids`.
const MAX_IDS: usize = 1024;
/// Tokens of a completion that says nothing about its length, as with OpenAI.
const DEFAULT_COMPLETION: usize = 16;

/// A request that can be handed to the engine.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Question {
    pub(super) variant: usize,
    /// Each prompt with its answers.
    pub(super) asked: Vec<Asked>,
    /// Answers to each prompt.
    pub(super) n: usize,
    /// How it is streamed; `None`: it is sent whole.
    pub(super) stream: Option<StreamOptions>,
    /// The expert of every piece is wanted.
    pub(super) experts: bool,
    /// The log-probability of every token is wanted, beside those of so many most likely ones.
    pub(super) log_probs: Option<usize>,
    /// The answers begin with their prompts.
    pub(super) echo: bool,
}

/// One prompt.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Asked {
    /// What an echo begins with; empty where there is none.
    pub(super) text: String,
    /// One request an answer, alike but for their random numbers.
    pub(super) requests: Vec<Request>,
}

/// How an answer is streamed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StreamOptions {
    /// The last chunk tells the tokens used.
    #[serde(default)]
    pub(super) include_usage: bool,
    /// Padding against listeners who count bytes; none is added.
    #[serde(default, rename = "include_obfuscation")]
    _padding: bool,
    /// Every chunk tells the tokens used; only `false` is taken.
    #[serde(default)]
    continuous_usage_stats: bool,
}

/// A prompt as text or token ids, or several.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum Written {
    Text(String),
    Ids(Vec<u32>),
    Texts(Vec<String>),
    Lists(Vec<Vec<u32>>),
}

impl Written {
    /// Each as tokens; `key` is where they stand in the request.
    pub(super) fn prompts(&self, app: &App, key: &'static str) -> Result<Vec<Prompt>, Fault> {
        let tokenizer = &app.model.checkpoint.tokenizer;
        let of_ids = |ids: &Vec<u32>| Ok(Prompt { ids: ids.clone(), stop: Vec::new(), text: None });
        let of_text = |text: &String| {
            check_length_in_bytes(app, text.len())?;
            let ids = tokenizer.encode(text, Bos::Model).map_err(crate::Error::from)?;
            Ok(Prompt { ids, stop: Vec::new(), text: Some(text.clone()) })
        };
        let prompts = match self {
            Self::Ids(ids) => vec![of_ids(ids)?],
            Self::Text(text) => vec![of_text(text)?],
            Self::Texts(texts) if texts.len() <= MAX_PROMPTS => {
                texts.iter().map(of_text).collect::<Result<_, Fault>>()?
            }
            Self::Lists(lists) if lists.len() <= MAX_PROMPTS => {
                lists.iter().map(of_ids).collect::<Result<_, Fault>>()?
            }
            Self::Texts(_) | Self::Lists(_) => {
                return Err(Fault::key(key, format!("more than {MAX_PROMPTS} in one request")));
            }
        };
        if prompts.is_empty() {
            return Err(Fault::key(key, "is empty"));
        }
        Ok(prompts)
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChatMessage {
    role: String,
    content: Option<Content>,
    name: Option<Value>,
    refusal: Option<Value>,
    tool_calls: Option<Value>,
    tool_call_id: Option<Value>,
    function_call: Option<Value>,
    audio: Option<Value>,
    annotations: Option<Value>,
}

/// A message's text, whole or in parts.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Debug, Clone, Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
}

/// One string or several.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Stops {
    One(String),
    Several(Vec<String>),
}

/// `logprobs`: a number in completions, yes or no in a chat.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged)]
enum LogProbsField {
    Wanted(bool),
    Top(i64),
}

/// Everything that a request may hold and that is honoured.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Fields {
    model: Option<String>,
    // What is continued.
    prompt: Option<Written>,
    messages: Option<Vec<ChatMessage>>,
    add_generation_prompt: Option<bool>,
    continue_final_message: Option<bool>,
    // How long.
    max_tokens: Option<i64>,
    max_completion_tokens: Option<i64>,
    min_tokens: Option<i64>,
    stop: Option<Stops>,
    stop_token_ids: Option<Vec<u32>>,
    ignore_eos: Option<bool>,
    // How tokens are chosen.
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<i64>,
    min_p: Option<f64>,
    presence_penalty: Option<f64>,
    frequency_penalty: Option<f64>,
    repetition_penalty: Option<f64>,
    logit_bias: Option<BTreeMap<String, f64>>,
    seed: Option<i64>,
    n: Option<i64>,
    best_of: Option<i64>,
    // What is told.
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    logprobs: Option<LogProbsField>,
    top_logprobs: Option<i64>,
    echo: Option<bool>,
    experts: Option<bool>,
}

impl Fields {
    /// The fields of a body. A field that is null is as good as left out, whatever it is called.
    pub(super) fn read(body: Map<String, Value>) -> Result<Self, Fault> {
        read(fields::settle(body)?)
    }

    /// `seed` is taken where the request has none.
    pub(super) fn question(self, app: &App, form: Form, seed: u64) -> Result<Question, Fault> {
        if self.stream_options.is_some_and(|options| options.continuous_usage_stats) {
            let message = "continuous_usage_stats is not supported; leave it out";
            return Err(Fault::key("stream_options", message));
        }
        self.refuse_foreign(form)?;
        let variant = variant(app, self.model.as_deref())?;
        let tokenizer = &app.model.checkpoint.tokenizer;
        let echo = self.echo.unwrap_or(false);
        let log_probs = self.log_probs(form)?;
        let (prompts, default_tokens) = match form {
            Form::Completion => (self.completion_prompts(app)?, DEFAULT_COMPLETION),
            Form::Chat => (vec![self.chat_prompt(app)?], usize::MAX),
        };
        let n = self.answers()?;
        if prompts.len().saturating_mul(n) > MAX_PROMPTS {
            return Err(Fault::key("n", format!("more than {MAX_PROMPTS} answers in one request")));
        }
        let controls = self.controls(tokenizer, app, log_probs, echo)?;
        let mut stop = self.stops()?;
        if let Some(first) = prompts.first() {
            stop.splice(0..0, first.stop.iter().cloned());
        }
        let seed = self.seed.map_or(seed, i64::cast_unsigned);
        let mut asked = Vec::with_capacity(prompts.len());
        for prompt in prompts {
            let text = match (echo, &prompt.text) {
                (false, _) => String::new(),
                (true, Some(text)) => text.clone(),
                (true, None) => tokenizer.decode_spelled(&prompt.ids).map_err(crate::Error::from)?,
            };
            let max_new_tokens = self.max_new_tokens(app, &prompt, default_tokens)?;
            let request = |answer: u64| {
                Ok::<_, Fault>(Request {
                    prefix: Arc::from([]),
                    prompt: prompt.ids.clone(),
                    max_new_tokens,
                    // Every answer draws from a stream of its own; the first one's is the seed.
                    sampling: self.sampling(seed.wrapping_add(answer.wrapping_mul(0x9e37_79b9_7f4a_7c15)))?,
                    stop: stop.clone(),
                    controls: controls.clone(),
                })
            };
            asked.push(Asked { text, requests: (0..n as u64).map(request).collect::<Result<_, _>>()? });
        }
        Ok(Question {
            variant,
            asked,
            n,
            stream: self.stream.unwrap_or(false).then(|| self.stream_options.unwrap_or_default()),
            experts: self.experts.unwrap_or(false),
            log_probs,
            echo,
        })
    }

    fn completion_prompts(&self, app: &App) -> Result<Vec<Prompt>, Fault> {
        self.prompt.as_ref().ok_or_else(|| Fault::key("prompt", "is missing"))?.prompts(app, "prompt")
    }

    fn chat_prompt(&self, app: &App) -> Result<Prompt, Fault> {
        let messages = self.messages.clone().unwrap_or_default();
        let length = messages.iter().map(ChatMessage::bytes).sum();
        check_length_in_bytes(app, length)?;
        let messages = messages.into_iter().map(ChatMessage::message).collect::<Result<Vec<_>, Fault>>()?;
        let ending = match (self.continue_final_message, self.add_generation_prompt) {
            (Some(true), Some(true)) => {
                return Err(Fault::key(
                    "continue_final_message",
                    "and add_generation_prompt: give one of them",
                ));
            }
            (Some(true), _) => Ending::Continue,
            (_, Some(false)) => Ending::Nothing,
            (_, None | Some(true)) => Ending::Answer,
        };
        app.prompter
            .prompt(&app.model.checkpoint.tokenizer, &messages, ending)
            .map_err(|e| Fault { param: Some("messages".into()), ..Fault::from(e) })
    }

    fn max_new_tokens(&self, app: &App, prompt: &Prompt, default: usize) -> Result<usize, Fault> {
        let config = &app.model.base.config;
        let context = config.context_length;
        if prompt.ids.is_empty() {
            return Err(Fault::key("prompt", "has no tokens"));
        }
        if let Some(id) = prompt.ids.iter().find(|&&id| id as usize >= config.vocab_size) {
            return Err(Fault::key("prompt", format!("there is no token {id}")));
        }
        let (key, given) = match (self.max_completion_tokens, self.max_tokens) {
            (Some(given), _) => ("max_completion_tokens", Some(given)),
            (None, given) => ("max_tokens", given),
        };
        let given = match given {
            None => None,
            Some(given) => match usize::try_from(given) {
                // Without a new token there must be something else to tell.
                Ok(0) if !self.echo.unwrap_or(false) => {
                    return Err(Fault::key(key, "must be at least 1 where there is no echo"));
                }
                Ok(given) => Some(given),
                Err(_) => return Err(Fault::key(key, format!("{given} is below 0"))),
            },
        };
        let room = context.saturating_sub(prompt.ids.len());
        if prompt.ids.len() > context || (room == 0 && given != Some(0)) {
            return Err(too_long(&format!("{} tokens", prompt.ids.len()), context));
        }
        Ok(given.unwrap_or(default).min(room))
    }

    fn sampling(&self, stream: u64) -> Result<Sampling, Fault> {
        let temperature = in_range("temperature", self.temperature, 1.0, 0.0, 2.0)?;
        let top_p = in_range("top_p", self.top_p, 1.0, 0.0, 1.0)?;
        if top_p <= 0.0 {
            return Err(Fault::key("top_p", format!("{top_p} is not above 0 and at most 1")));
        }
        // Below this the division would only lose digits.
        if temperature < 1e-4 {
            return Ok(Sampling::Greedy);
        }
        Ok(Sampling::TopP { temperature, top_p, stream })
    }

    fn controls(
        &self,
        tokenizer: &Tokenizer,
        app: &App,
        log_probs: Option<usize>,
        echo: bool,
    ) -> Result<Controls, Fault> {
        let vocabulary = app.model.base.config.vocab_size;
        let known = |key: &'static str, id: u32| match (id as usize) < vocabulary {
            true => Ok(id),
            false => Err(Fault::key(key, format!("there is no token {id}"))),
        };
        let top_k = match self.top_k.unwrap_or(0) {
            -1 => 0,
            k => usize::try_from(k).map_err(|_| Fault::key("top_k", format!("{k} is below -1")))?,
        };
        let repetition = in_range("repetition_penalty", self.repetition_penalty, 1.0, 0.0, 100.0)?;
        if repetition <= 0.0 {
            return Err(Fault::key("repetition_penalty", "must be above 0"));
        }
        let bias = self.logit_bias.iter().flatten();
        let bias = bias.map(|(id, bias)| {
            let fault = || Fault::key("logit_bias", format!("{id:?} is no token id"));
            let bias = in_range("logit_bias", Some(*bias), 0.0, -100.0, 100.0)?;
            Ok((known("logit_bias", id.parse().map_err(|_| fault())?)?, bias))
        });
        let stop_ids = self.stop_token_ids.iter().flatten();
        let stop_ids: Vec<u32> = stop_ids.map(|&id| known("stop_token_ids", id)).collect::<Result<_, _>>()?;
        if stop_ids.len() > MAX_IDS || self.logit_bias.as_ref().is_some_and(|bias| bias.len() > MAX_IDS) {
            return Err(Fault::bad(format!("more than {MAX_IDS} entries of logit_bias or stop_token_ids")));
        }
        let min_new_tokens = self.min_tokens.unwrap_or(0);
        let min_new_tokens = usize::try_from(min_new_tokens)
            .map_err(|_| Fault::key("min_tokens", format!("{min_new_tokens} is below 0")))?;
        if tokenizer.eos().is_empty() && min_new_tokens > 0 && stop_ids.is_empty() {
            return Err(Fault::key(
                "min_tokens",
                "has no effect: this model has no token that ends an answer",
            ));
        }
        Ok(Controls {
            top_k,
            min_p: in_range("min_p", self.min_p, 0.0, 0.0, 1.0)?,
            penalties: Penalties {
                repetition,
                presence: in_range("presence_penalty", self.presence_penalty, 0.0, -2.0, 2.0)?,
                frequency: in_range("frequency_penalty", self.frequency_penalty, 0.0, -2.0, 2.0)?,
            },
            bias: bias.collect::<Result<_, Fault>>()?,
            stop_ids,
            min_new_tokens,
            ignore_eos: self.ignore_eos.unwrap_or(false),
            log_probs,
            prompt_log_probs: echo && log_probs.is_some(),
        })
    }

    fn log_probs(&self, form: Form) -> Result<Option<usize>, Fault> {
        let top = |key: &'static str, count: i64| match usize::try_from(count) {
            Ok(count) if count <= MAX_TOP => Ok(count),
            _ => Err(Fault::key(key, format!("{count} is not 0 to {MAX_TOP}"))),
        };
        match (form, self.logprobs, self.top_logprobs) {
            (Form::Completion, None | Some(LogProbsField::Wanted(false)), _) => Ok(None),
            (Form::Completion, Some(LogProbsField::Top(count)), _) => top("logprobs", count).map(Some),
            (Form::Completion, Some(LogProbsField::Wanted(true)), _) => {
                Err(Fault::key("logprobs", format!("is a number in completions, 0 to {MAX_TOP}")))
            }
            (Form::Chat, Some(LogProbsField::Top(_)), _) => {
                Err(Fault::key("logprobs", "is true or false in a chat; top_logprobs is the number"))
            }
            (Form::Chat, Some(LogProbsField::Wanted(true)), count) => {
                top("top_logprobs", count.unwrap_or(0)).map(Some)
            }
            (Form::Chat, _, None | Some(0)) => Ok(None),
            (Form::Chat, _, Some(_)) => Err(Fault::key("top_logprobs", "needs logprobs: true")),
        }
    }

    /// Answers to each prompt.
    fn answers(&self) -> Result<usize, Fault> {
        let n = self.n.unwrap_or(1);
        let count = usize::try_from(n).ok().filter(|n| (1..=MAX_ANSWERS).contains(n));
        let count = count.ok_or_else(|| Fault::key("n", format!("{n} is not 1 to {MAX_ANSWERS}")))?;
        match self.best_of {
            Some(best) if best != n => {
                Err(Fault::key("best_of", "is supported only where it is as many as n; leave it out"))
            }
            _ => Ok(count),
        }
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

    /// Fields of the other kind of request.
    fn refuse_foreign(&self, form: Form) -> Result<(), Fault> {
        let foreign: &[(&'static str, bool)] = match form {
            Form::Completion => &[
                ("messages", self.messages.is_some()),
                ("max_completion_tokens", self.max_completion_tokens.is_some()),
                ("top_logprobs", self.top_logprobs.is_some_and(|count| count != 0)),
                ("add_generation_prompt", self.add_generation_prompt.is_some()),
                ("continue_final_message", self.continue_final_message.unwrap_or(false)),
            ],
            Form::Chat => &[
                ("prompt", self.prompt.is_some()),
                ("echo", self.echo.unwrap_or(false)),
                ("best_of", self.best_of.is_some_and(|best| best != 1)),
            ],
        };
        let (other, place) = match form {
            Form::Completion => ("chats", "/v1/chat/completions"),
            Form::Chat => ("completions", "/v1/completions"),
        };
        match foreign.iter().find(|(_, given)| *given) {
            Some((key, _)) => Err(Fault::key(*key, format!("is for {other} ({place})"))),
            None => Ok(()),
        }
    }
}

/// An object as a typed one; faults name the field.
pub(super) fn read<T: serde::de::DeserializeOwned>(body: Map<String, Value>) -> Result<T, Fault> {
    serde_path_to_error::deserialize(Value::Object(body)).map_err(|e| {
        let path = e.path().to_string();
        let what = e.inner().to_string();
        if what.starts_with("unknown field") {
            return Fault {
                param: Some(path.clone()),
                ..Fault::bad(format!("{path}: there is no such field"))
            };
        }
        // Of several forms that a field may have, none fits; their names are ours.
        let what = match what.strip_prefix("data did not match any variant") {
            Some(_) => "has not the right type".to_owned(),
            None => what,
        };
        if path == "." { Fault::bad(what) } else { Fault::key(path, what) }
    })
}

/// The model asked for; the first one where the request names none.
pub(super) fn variant(app: &App, name: Option<&str>) -> Result<usize, Fault> {
    let Some(name) = name else { return Ok(0) };
    let variants = &app.model.variants;
    variants.iter().position(|variant| variant.name == *name).ok_or_else(|| {
        let known: Vec<&str> = variants.iter().map(|variant| variant.name.as_str()).collect();
        let message = format!("there is no model {name:?}; there are: {}", known.join(", "));
        Fault { status: StatusCode::NOT_FOUND, param: Some("model".into()), ..Fault::bad(message) }
            .code("model_not_found")
    })
}

/// A text that cannot fit, told before it is tokenised: every token stands for at most so many bytes.
pub(super) fn check_length_in_bytes(app: &App, bytes: usize) -> Result<(), Fault> {
    let context = app.model.base.config.context_length;
    let least = bytes / app.longest_token.max(1);
    if least > context { Err(too_long(&format!("at least {least} tokens"), context)) } else { Ok(()) }
}

fn too_long(tokens: &str, context: usize) -> Fault {
    Fault::bad(format!("the prompt has {tokens}, and the model's context is {context}: shorten it"))
        .code("context_length_exceeded")
}

fn in_range(
    key: &'static str,
    value: Option<f64>,
    default: f64,
    least: f64,
    most: f64,
) -> Result<f32, Fault> {
    let value = value.unwrap_or(default);
    if (least..=most).contains(&value) {
        Ok(value as f32)
    } else {
        Err(Fault::key(key, format!("{value} is not {least} to {most}")))
    }
}

impl ChatMessage {
    fn bytes(&self) -> usize {
        match &self.content {
            None => 0,
            Some(Content::Text(text)) => text.len(),
            Some(Content::Parts(parts)) => {
                parts.iter().map(|part| part.text.as_ref().map_or(0, String::len)).sum()
            }
        }
    }

    fn message(self) -> Result<Message, Fault> {
        let empty = |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
        for (key, value) in [
            ("name", &self.name),
            ("refusal", &self.refusal),
            ("tool_calls", &self.tool_calls),
            ("tool_call_id", &self.tool_call_id),
            ("function_call", &self.function_call),
            ("audio", &self.audio),
            ("annotations", &self.annotations),
        ] {
            if value.as_ref().is_some_and(|value| !empty(value)) {
                return Err(Fault::key("messages", format!("{key} is not supported; leave it out")));
            }
        }
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

/// `POST /tokenize` and its answer's ids: a text as a completion's prompt, or a conversation as a chat's.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TokenizeRequest {
    model: Option<String>,
    prompt: Option<String>,
    messages: Option<Vec<ChatMessage>>,
    /// The beginning-of-sequence token counts.
    add_special_tokens: Option<bool>,
    add_generation_prompt: Option<bool>,
    continue_final_message: Option<bool>,
    #[serde(default)]
    pub(super) return_token_strs: bool,
}

impl TokenizeRequest {
    pub(super) fn ids(self, app: &App) -> Result<Vec<u32>, Fault> {
        variant(app, self.model.as_deref())?;
        match (self.prompt, self.messages) {
            (Some(text), None) => {
                check_length_in_bytes(app, text.len())?;
                let bos = if self.add_special_tokens.unwrap_or(true) { Bos::Model } else { Bos::Never };
                let tokenizer = &app.model.checkpoint.tokenizer;
                // A special token's name and nothing else asks for that token; there is no content for it to hide in.
                if let Some(id) = tokenizer.token_id(&text).filter(|&id| tokenizer.is_special(id)) {
                    return Ok(vec![id]);
                }
                let text = MarkedText::content(text);
                Ok(app.model.checkpoint.tokenizer.encode_marked(&text, bos).map_err(crate::Error::from)?)
            }
            (None, Some(messages)) => {
                if self.add_special_tokens == Some(true) {
                    return Err(Fault::key("add_special_tokens", "a chat template writes its own"));
                }
                let fields = Fields {
                    messages: Some(messages),
                    add_generation_prompt: self.add_generation_prompt,
                    continue_final_message: self.continue_final_message,
                    ..Fields::default()
                };
                Ok(fields.chat_prompt(app)?.ids)
            }
            _ => Err(Fault::bad("give prompt or messages")),
        }
    }
}

/// `POST /detokenize`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DetokenizeRequest {
    model: Option<String>,
    tokens: Vec<u32>,
}

impl DetokenizeRequest {
    pub(super) fn text(&self, app: &App) -> Result<String, Fault> {
        variant(app, self.model.as_deref())?;
        let tokenizer = &app.model.checkpoint.tokenizer;
        if let Some(id) = self.tokens.iter().find(|&&id| id as usize >= tokenizer.vocab_size()) {
            return Err(Fault::key("tokens", format!("there is no token {id}")));
        }
        Ok(tokenizer.decode_spelled(&self.tokens).map_err(crate::Error::from)?)
    }
}

/// What of a request is implemented, ignored or refused, as Markdown for `docs/compatibility.md`.
pub(super) fn documentation() -> String {
    // The list of [`Fields`] is what serde says was expected in place of a field that is not there.
    let unknown = Map::from_iter([(String::new(), Value::Null)]);
    let expected = serde_json::from_value::<Fields>(Value::Object(unknown)).err().map(|e| e.to_string());
    let names = expected.iter().flat_map(|message| message.split('`').skip(1).step_by(2));
    fields::documentation(&names.filter(|name| !name.is_empty()).map(str::to_owned).collect::<Vec<_>>())
}
