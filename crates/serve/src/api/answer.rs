//! Answers, whole or as server-sent events.

use std::{convert::Infallible, sync::Arc};

use axum::{
    http::StatusCode,
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use mixse_model::language::{Finish, LogProbs};
use serde_json::{Value, json};
use tokio::{
    sync::mpsc::{Sender, UnboundedReceiver, channel},
    task::JoinSet,
};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    Fault,
    log_probs::{ChatLogProbs, CompletionLogProbs},
    request::StreamOptions,
};
use crate::engine::{Model, Piece};

/// Events that may wait for a slow reader.
const BUFFER: usize = 64;

/// The two kinds of answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Completion,
    Chat,
}

impl Form {
    /// Of an answer's id.
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Self::Completion => "cmpl",
            Self::Chat => "chatcmpl",
        }
    }
}

/// What all answers to a request have.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) form: Form,
    pub(super) id: String,
    pub(super) created: u64,
    /// The model's name.
    pub(super) name: String,
    pub(super) model: Arc<Model>,
    /// Names of the experts, if they are to be told.
    pub(super) experts: Vec<String>,
    /// Log-probabilities are told.
    pub(super) log_probs: bool,
    /// Of all prompts.
    pub(super) prompt_tokens: usize,
}

/// One answer on its way.
#[derive(Debug)]
pub(super) struct Choice {
    pub(super) index: usize,
    /// What it begins with: the echoed prompt.
    pub(super) echo: String,
    /// The prompt's tokens, where they are told.
    pub(super) prompt: Vec<u32>,
    pub(super) pieces: UnboundedReceiver<Piece>,
}

/// The log-probabilities of an answer so far, in the form of its kind.
enum Told {
    Nothing,
    Completion(CompletionLogProbs),
    Chat(ChatLogProbs),
}

impl Told {
    fn push(&mut self, model: &Model, tokens: &[LogProbs]) {
        let tokenizer = &model.checkpoint.tokenizer;
        for token in tokens {
            match self {
                Self::Nothing => {}
                Self::Completion(told) => told.push(tokenizer, token.id, Some(token)),
                Self::Chat(told) => told.push(tokenizer, token),
            }
        }
    }

    /// The token that ended the answer. Completions tell it, as they tell the tokens of an echoed prompt: clients that score texts
    /// ask for one token more than they want and leave out the last. Chats tell what is in the message.
    fn push_end(&mut self, model: &Model, end: Option<&LogProbs>) {
        if let (Self::Completion(told), Some(end)) = (self, end) {
            told.push(&model.checkpoint.tokenizer, end.id, Some(end));
        }
    }

    /// What was pushed since the last time; `null` where nothing is told.
    fn take(&mut self) -> Value {
        match self {
            Self::Nothing => Value::Null,
            Self::Completion(told) => told.take(),
            Self::Chat(told) => told.take(),
        }
    }
}

impl Answer {
    fn told(&self, choice: &Choice) -> Told {
        match self.form {
            _ if !self.log_probs => Told::Nothing,
            Form::Chat => Told::Chat(ChatLogProbs::default()),
            Form::Completion => {
                let mut told = CompletionLogProbs::default();
                // Nothing stands before the first token, so nothing can be said of it.
                if let Some(&first) = choice.prompt.first() {
                    told.push(&self.model.checkpoint.tokenizer, first, None);
                }
                Told::Completion(told)
            }
        }
    }

    /// Waits for the end of all choices.
    pub(super) async fn whole(self, choices: Vec<Choice>) -> Result<Value, Fault> {
        let mut values = Vec::with_capacity(choices.len());
        let mut written = 0;
        for choice in choices {
            let (value, tokens) = self.whole_choice(choice).await?;
            values.push(value);
            written += tokens;
        }
        let mut body = self.envelope(self.object(), values);
        body["usage"] = self.usage(written);
        Ok(body)
    }

    async fn whole_choice(&self, mut choice: Choice) -> Result<(Value, usize), Fault> {
        let mut told = self.told(&choice);
        let mut text = std::mem::take(&mut choice.echo);
        let mut routed = Vec::new();
        while let Some(piece) = choice.pieces.recv().await {
            match piece {
                Piece::Prompt(tokens) => told.push(&self.model, &tokens),
                Piece::Text { text: more, parts, log_probs } => {
                    told.push(&self.model, &log_probs);
                    if !self.experts.is_empty() && !more.is_empty() {
                        let mut entry = json!({ "text": more });
                        self.tell_expert(&mut entry, &parts);
                        routed.push(entry);
                    }
                    text += &more;
                }
                Piece::Done { finish, tokens, end } => {
                    told.push_end(&self.model, end.as_ref());
                    let mut value = match self.form {
                        Form::Completion => json!({ "index": choice.index, "text": text }),
                        Form::Chat => json!({
                            "index": choice.index, "message": { "role": "assistant", "content": text },
                        }),
                    };
                    value["finish_reason"] = json!(reason(&finish));
                    value["logprobs"] = told.take();
                    if !self.experts.is_empty() {
                        value["pieces"] = json!(routed);
                    }
                    return Ok((value, tokens));
                }
                Piece::Failed(what) => return Err(failed(what)),
            }
        }
        Err(failed("the engine has stopped".into()))
    }

    /// Sends chunks as they come. A reader that goes away ends the work.
    pub(super) fn stream(self, choices: Vec<Choice>, options: StreamOptions) -> Response {
        let (events, receiver) = channel(BUFFER);
        tokio::spawn(Arc::new(self).forward(choices, options, events));
        Sse::new(ReceiverStream::new(receiver)).keep_alive(KeepAlive::default()).into_response()
    }

    async fn forward(self: Arc<Self>, choices: Vec<Choice>, options: StreamOptions, events: Events) {
        let mut running = JoinSet::new();
        for choice in choices {
            running.spawn(self.clone().forward_choice(choice, events.clone()));
        }
        let mut written = 0;
        while let Some(tokens) = running.join_next().await {
            match tokens {
                Ok(Some(tokens)) => written += tokens,
                // The reader is gone, or an error was sent.
                Ok(None) | Err(_) => return,
            }
        }
        if options.include_usage {
            let mut chunk = self.envelope(self.chunk_object(), Vec::new());
            chunk["usage"] = self.usage(written);
            send(&events, &chunk).await;
        }
        // The reader may be gone; there is nothing left to send.
        let _ = events.send(Ok(Event::default().data("[DONE]"))).await;
    }

    /// Sends one choice to its end; returns its tokens, nothing if there is no use in going on.
    async fn forward_choice(self: Arc<Self>, mut choice: Choice, events: Events) -> Option<usize> {
        let index = choice.index;
        let mut told = self.told(&choice);
        let mut begun = match self.form {
            Form::Chat => Some(json!({ "role": "assistant", "content": "" })),
            Form::Completion => (!choice.echo.is_empty()).then(|| json!({ "content": choice.echo })),
        };
        // An echo goes out with the prompt's log-probabilities, which are there when the prompt is read.
        let held_back = self.form == Form::Completion && self.log_probs;
        if !held_back
            && let Some(delta) = begun.take()
            && !send(&events, &self.chunk(index, &delta, None, Value::Null)).await
        {
            return None;
        }
        loop {
            let piece = tokio::select! {
                piece = choice.pieces.recv() => piece,
                () = events.closed() => return None,
            };
            match piece {
                Some(Piece::Prompt(tokens)) => told.push(&self.model, &tokens),
                Some(Piece::Text { text, parts, log_probs }) => {
                    if let Some(delta) = begun.take()
                        && !send(&events, &self.chunk(index, &delta, None, told.take())).await
                    {
                        return None;
                    }
                    told.push(&self.model, &log_probs);
                    let mut chunk = self.chunk(index, &json!({ "content": text }), None, told.take());
                    self.tell_expert(&mut chunk["choices"][0], &parts);
                    if !send(&events, &chunk).await {
                        return None;
                    }
                }
                Some(Piece::Done { finish, tokens, end }) => {
                    if let Some(delta) = begun.take()
                        && !send(&events, &self.chunk(index, &delta, None, told.take())).await
                    {
                        return None;
                    }
                    let mut of_end = Value::Null;
                    if end.is_some() && self.form == Form::Completion {
                        told.push_end(&self.model, end.as_ref());
                        of_end = told.take();
                    }
                    let last = self.chunk(index, &json!({}), Some(&finish), of_end);
                    return send(&events, &last).await.then_some(tokens);
                }
                end => {
                    let what = match end {
                        Some(Piece::Failed(what)) => what,
                        _ => "the engine has stopped".to_owned(),
                    };
                    send(&events, &failed(what).body()).await;
                    let _ = events.send(Ok(Event::default().data("[DONE]"))).await;
                    return None;
                }
            }
        }
    }

    fn object(&self) -> &'static str {
        match self.form {
            Form::Completion => "text_completion",
            Form::Chat => "chat.completion",
        }
    }

    fn chunk_object(&self) -> &'static str {
        match self.form {
            Form::Completion => "text_completion",
            Form::Chat => "chat.completion.chunk",
        }
    }

    fn envelope(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id, "object": object, "created": self.created, "model": self.name, "choices": choices,
        })
    }

    /// A chunk whose choice has this delta; in a completion the content is the choice's text.
    fn chunk(&self, index: usize, delta: &Value, finish: Option<&Finish>, log_probs: Value) -> Value {
        let mut choice = match self.form {
            Form::Completion => {
                json!({ "index": index, "text": delta["content"].as_str().unwrap_or_default() })
            }
            Form::Chat => json!({ "index": index, "delta": delta }),
        };
        choice["finish_reason"] = json!(finish.map(reason));
        choice["logprobs"] = log_probs;
        self.envelope(self.chunk_object(), vec![choice])
    }

    /// The expert with the largest part, and all parts.
    fn tell_expert(&self, entry: &mut Value, parts: &[f32]) {
        if self.experts.is_empty() {
            return;
        }
        let largest = parts.iter().zip(&self.experts).max_by(|a, b| a.0.total_cmp(b.0));
        entry["expert"] = json!(largest.filter(|(part, _)| **part > 0.0).map(|(_, name)| name));
        entry["parts"] = json!(parts);
    }

    fn usage(&self, tokens: usize) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens, "completion_tokens": tokens,
            "total_tokens": self.prompt_tokens + tokens,
        })
    }
}

type Events = Sender<Result<Event, Infallible>>;

/// Whether the reader is still there.
async fn send(events: &Events, value: &Value) -> bool {
    events.send(Ok(Event::default().data(value.to_string()))).await.is_ok()
}

fn reason(finish: &Finish) -> &'static str {
    match finish {
        Finish::Eos | Finish::Stop(_) => "stop",
        Finish::Length => "length",
    }
}

fn failed(what: String) -> Fault {
    Fault::new(StatusCode::INTERNAL_SERVER_ERROR, what)
}
