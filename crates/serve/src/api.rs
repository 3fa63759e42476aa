//! The HTTP API: OpenAI's `/v1/models`, `/v1/completions` and `/v1/chat/completions`, `/health`, `/metrics`, and a page at `/`.
//!
//! Errors have OpenAI's shape. Beyond OpenAI's fields, `"experts": true` in a request asks for the expert of every piece of
//! the answer.

mod answer;
mod fault;
mod request;

use std::{
    future::Future,
    hash::{BuildHasher, RandomState},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use axum::{
    Json, Router,
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_stream::StreamExt;

use crate::{
    engine::{Engine, Model},
    error::{Error, Result},
    prompt::Prompter,
};
use answer::{Answer, Form};
use fault::Fault;
use request::{ChatRequest, CompletionRequest, Question};

/// The largest request body: a prompt that fills any model's context stays far below it.
const MAX_BODY: usize = 4 << 20;

/// As much of a body that is too large is read before it is refused.
const MAX_DISCARDED: usize = 64 << 20;

/// What the API answers from.
#[derive(Debug)]
pub struct App {
    /// The model; its tokenizer writes prompts.
    pub model: Arc<Model>,
    /// Where requests go.
    pub engine: Engine,
    /// How conversations become prompts.
    pub prompter: Prompter,
}

/// [`App`] with what the server adds.
struct Server {
    app: App,
    /// Seconds since 1970.
    started: u64,
    random: RandomState,
    requests: AtomicU64,
}

type Shared = State<Arc<Server>>;

/// All routes.
pub fn router(app: App) -> Router {
    let server =
        Server { app, started: seconds_now(), random: RandomState::new(), requests: AtomicU64::new(0) };
    Router::new()
        .route("/", get(|| async { Html(include_str!("page.html")) }))
        .route("/health", get(|| async { Json(json!({ "status": "ok" })) }))
        .route("/metrics", get(metrics))
        .route("/v1/models", get(models))
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat_completions))
        .fallback(|| async { Fault::not_found("there is no such path").into_response() })
        .method_not_allowed_fallback(|| async {
            Fault::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not take that method").into_response()
        })
        .with_state(Arc::new(server))
}

/// Serves until `stop` is ready, then finishes the answers that are running. `ready` is called with the address once
/// requests are taken.
///
/// # Errors
/// The address cannot be listened on, or the server fails.
pub async fn serve(
    address: SocketAddr,
    app: App,
    ready: impl FnOnce(SocketAddr),
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    let listen = |source| Error::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(listen)?;
    ready(listener.local_addr().map_err(listen)?);
    axum::serve(listener, router(app)).with_graceful_shutdown(stop).await.map_err(Error::Serve)
}

fn seconds_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

async fn metrics(State(server): Shared) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], server.app.engine.metrics().text())
}

async fn models(State(server): Shared) -> Json<Value> {
    let entry = |variant: &crate::engine::Variant| {
        json!({
            "id": variant.name, "object": "model", "created": server.started, "owned_by": "mixse",
            "experts": variant.experts(),
        })
    };
    Json(json!({ "object": "list", "data": server.app.model.variants.iter().map(entry).collect::<Vec<_>>() }))
}

async fn completions(State(server): Shared, headers: HeaderMap, body: Body) -> Response {
    let question =
        read::<CompletionRequest>(&headers, body).await.and_then(|r| r.question(&server.app, server.seed()));
    server.respond(Form::Completion, question).await
}

async fn chat_completions(State(server): Shared, headers: HeaderMap, body: Body) -> Response {
    let question =
        read::<ChatRequest>(&headers, body).await.and_then(|r| r.question(&server.app, server.seed()));
    server.respond(Form::Chat, question).await
}

/// The request in a body.
async fn read<T: DeserializeOwned>(headers: &HeaderMap, body: Body) -> std::result::Result<T, Fault> {
    let body = whole(body).await?;
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    // A page of another site cannot send this type without being asked first.
    if !kind.trim_start().starts_with("application/json") {
        return Err(Fault::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "send JSON, with the header `Content-Type: application/json`",
        ));
    }
    serde_json::from_slice(&body).map_err(|e| Fault::bad(format!("the body is not a request: {e}")))
}

/// A body to its end. One that is too large is received and thrown away: a server that answers and closes while its client still
/// sends makes the client's system drop the answer.
async fn whole(body: Body) -> std::result::Result<Vec<u8>, Fault> {
    let mut parts = body.into_data_stream();
    let (mut bytes, mut length) = (Vec::new(), 0);
    while length <= MAX_DISCARDED
        && let Some(part) = parts.next().await
    {
        let part = part.map_err(|e| Fault::bad(format!("the body does not arrive: {e}")))?;
        length += part.len();
        if length <= MAX_BODY {
            bytes.extend_from_slice(&part);
        }
    }
    if length > MAX_BODY {
        let message = format!("the body is larger than {MAX_BODY} bytes");
        return Err(Fault::new(StatusCode::PAYLOAD_TOO_LARGE, message));
    }
    Ok(bytes)
}

impl Server {
    /// A number that no other request has.
    fn seed(&self) -> u64 {
        self.random.hash_one(self.requests.fetch_add(1, Ordering::Relaxed))
    }

    async fn respond(&self, form: Form, question: std::result::Result<Question, Fault>) -> Response {
        let Question { variant, request, stream, experts } = match question {
            Ok(question) => question,
            Err(fault) => return fault.into_response(),
        };
        let variant_entry = &self.app.model.variants[variant];
        let answer = Answer {
            form,
            id: format!("{}-{:016x}", form.prefix(), self.seed()),
            created: seconds_now(),
            model: variant_entry.name.clone(),
            experts: if experts { variant_entry.experts().to_vec() } else { Vec::new() },
            prompt_tokens: request.prompt.len(),
        };
        let pieces = match self.app.engine.submit(variant, request) {
            Ok(pieces) => pieces,
            Err(e) => return Fault::from(e).into_response(),
        };
        match stream {
            Some(stream) => answer.stream(pieces, stream),
            None => answer
                .whole(pieces)
                .await
                .map_or_else(Fault::into_response, |value| Json(value).into_response()),
        }
    }
}
