//! Answers, whole or as server-sent events.

use std::convert::Infallible;

use axum::{
    http::StatusCode,
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use mixse_model::language::Finish;
use serde_json::{Value, json};
use tokio::sync::mpsc::{Sender, UnboundedReceiver, channel};
use tokio_stream::wrappers::ReceiverStream;

use super::{Fault, request::StreamOptions};
use crate::engine::Piece;

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

/// An answer on its way.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) form: Form,
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: String,
    /// Names of the experts, if they are to be told.
    pub(super) experts: Vec<String>,
    pub(super) prompt_tokens: usize,
}

impl Answer {
    /// Waits for the end.
    pub(super) async fn whole(self, mut pieces: UnboundedReceiver<Piece>) -> Result<Value, Fault> {
        let mut text = String::new();
        let mut routed = Vec::new();
        while let Some(piece) = pieces.recv().await {
            match piece {
                Piece::Text { text: more, parts } => {
                    if !self.experts.is_empty() {
                        let mut entry = json!({ "text": more });
                        self.tell_expert(&mut entry, &parts);
                        routed.push(entry);
                    }
                    text += &more;
                }
                Piece::Done { finish, tokens } => {
                    let mut choice = match self.form {
                        Form::Completion => json!({ "index": 0, "text": text }),
                        Form::Chat => {
                            json!({ "index": 0, "message": { "role": "assistant", "content": text } })
                        }
                    };
                    choice["finish_reason"] = json!(reason(&finish));
                    choice["logprobs"] = Value::Null;
                    if !self.experts.is_empty() {
                        choice["pieces"] = json!(routed);
                    }
                    let mut body = self.envelope(self.object(), vec![choice]);
                    body["usage"] = self.usage(tokens);
                    return Ok(body);
                }
                Piece::Failed(what) => return Err(failed(what)),
            }
        }
        Err(failed("the engine has stopped".into()))
    }

    /// Sends chunks as they come. A reader that goes away ends the work.
    pub(super) fn stream(self, pieces: UnboundedReceiver<Piece>, options: StreamOptions) -> Response {
        let (events, receiver) = channel(BUFFER);
        tokio::spawn(self.forward(pieces, options, events));
        Sse::new(ReceiverStream::new(receiver)).keep_alive(KeepAlive::default()).into_response()
    }

    async fn forward(
        self,
        mut pieces: UnboundedReceiver<Piece>,
        options: StreamOptions,
        events: Sender<Result<Event, Infallible>>,
    ) {
        let send =
            async |value: &Value| events.send(Ok(Event::default().data(value.to_string()))).await.is_ok();
        if self.form == Form::Chat
            && !send(&self.chunk(json!({ "role": "assistant", "content": "" }), None)).await
        {
            return;
        }
        loop {
            let piece = tokio::select! {
                piece = pieces.recv() => piece,
                () = events.closed() => return,
            };
            let end = match piece {
                Some(Piece::Text { text, parts }) => {
                    let mut chunk = self.chunk(json!({ "content": text }), None);
                    self.tell_expert(&mut chunk["choices"][0], &parts);
                    if !send(&chunk).await {
                        return;
                    }
                    continue;
                }
                Some(Piece::Done { finish, tokens }) => {
                    let last = self.chunk(json!({}), Some(&finish));
                    let usage = options.include_usage.then(|| {
                        let mut chunk = self.envelope(self.chunk_object(), Vec::new());
                        chunk["usage"] = self.usage(tokens);
                        chunk
                    });
                    [Some(last), usage]
                }
                Some(Piece::Failed(what)) => [Some(failed(what).body()), None],
                None => [Some(failed("the engine has stopped".into()).body()), None],
            };
            for value in end.into_iter().flatten() {
                if !send(&value).await {
                    return;
                }
            }
            // The reader may be gone; there is nothing left to send.
            let _ = events.send(Ok(Event::default().data("[DONE]"))).await;
            return;
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
            "id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices,
        })
    }

    /// A chunk whose choice has this delta; in a completion the content is the choice's text.
    fn chunk(&self, delta: Value, finish: Option<&Finish>) -> Value {
        let mut choice = match self.form {
            Form::Completion => json!({ "index": 0, "text": delta["content"].as_str().unwrap_or_default() }),
            Form::Chat => json!({ "index": 0, "delta": delta }),
        };
        choice["finish_reason"] = json!(finish.map(reason));
        choice["logprobs"] = Value::Null;
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

fn reason(finish: &Finish) -> &'static str {
    match finish {
        Finish::Eos | Finish::Stop(_) => "stop",
        Finish::Length => "length",
    }
}

fn failed(what: String) -> Fault {
    Fault::new(StatusCode::INTERNAL_SERVER_ERROR, what)
}
