//! The HTTP API: OpenAI's `/v1/models`, `/v1/completions` and `/v1/chat/completions`, vLLM's `/tokenize` and `/detokenize`,
//! `/health`, `/ready`, `/metrics`, and a page at `/`.
//!
//! Errors have OpenAI's shape. Beyond OpenAI's fields, `"experts": true` in a request asks for the expert of every piece of
//! the answer.

mod answer;
mod body;
mod embeddings;
mod fault;
mod fields;
mod guard;
mod listen;
mod log_probs;
mod request;
mod stalled;

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
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    middleware,
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Map, Value, json};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
};

use crate::{
    engine::{Engine, Model, Variant},
    error::{Error, Result},
    prompt::Prompter,
};
use answer::{Answer, Choice, Form};
use embeddings::EmbeddingRequest;
use fault::Fault;
use request::{Asked, DetokenizeRequest, Fields, Question, TokenizeRequest};

pub use {guard::Access, listen::Connections};

/// What of a request is implemented, ignored or refused, as Markdown for `docs/compatibility.md`.
pub fn request_documentation() -> String {
    request::documentation()
}

/// Requests that are made into tokens at a time: the work is the processor's and takes much memory for its text.
const TOKENISING: usize = 2;

/// What the API answers from.
#[derive(Debug)]
pub struct App {
    /// The model; its tokenizer writes prompts.
    pub model: Arc<Model>,
    /// Where requests go.
    pub engine: Engine,
    /// How conversations become prompts.
    pub prompter: Prompter,
    /// Bytes of the longest token: a text of so many times the context's length cannot fit.
    longest_token: usize,
}

impl App {
    /// An API over a model and its engine.
    pub fn new(model: Arc<Model>, engine: Engine, prompter: Prompter) -> Self {
        // Characters that a vocabulary does not have may share a token with others; few do.
        const LEAST: usize = 64;
        let tokenizer = &model.checkpoint.tokenizer;
        let tokens = 0..u32::try_from(tokenizer.vocab_size()).unwrap_or(u32::MAX);
        let longest = tokens.map(|id| tokenizer.token_bytes(id).len()).max().unwrap_or(0);
        Self { model, engine, prompter, longest_token: longest.max(LEAST) }
    }
}

/// [`App`] with what the server adds.
struct Server {
    app: App,
    /// Seconds since 1970.
    started: u64,
    random: RandomState,
    requests: AtomicU64,
    tokenising: Semaphore,
    embedding: Semaphore,
    /// True when the server is asked to stop.
    stopped: watch::Receiver<bool>,
}

type Shared = State<Arc<Server>>;

/// All routes, for those who have [`Access`], to be answered without a listener.
pub fn router(app: App, access: Access) -> Router {
    // Nobody asks it to stop.
    stoppable_router(app, access, watch::channel(false).1)
}

fn stoppable_router(app: App, access: Access, stopped: watch::Receiver<bool>) -> Router {
    let server = Server {
        app,
        started: seconds_now(),
        random: RandomState::new(),
        requests: AtomicU64::new(0),
        tokenising: Semaphore::new(TOKENISING),
        embedding: Semaphore::new(1),
        stopped,
    };
    Router::new()
        .route("/", get(|| async { Html(include_str!("page.html")) }))
        .route("/health", get(|| async { Json(json!({ "status": "ok" })) }))
        .route("/ready", get(|| async { Json(json!({ "status": "ready" })) }))
        .route("/metrics", get(metrics))
        .route("/v1/models", get(models))
        .route("/v1/models/{name}", get(model))
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat_completions))
        .route("/v1/embeddings", post(embeddings))
        .route("/tokenizer_info", get(tokenizer_info))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .fallback(|| async { Fault::not_found("there is no such path").into_response() })
        .method_not_allowed_fallback(|| async {
            Fault::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not take that method").into_response()
        })
        .with_state(Arc::new(server))
        .layer(middleware::from_fn_with_state(Arc::new(access), guard::guard))
}

/// Serves until `stop` is ready, then finishes the answers that are running, within a bound. `ready` is called with the address
/// once requests are taken.
///
/// # Errors
/// The address cannot be listened on.
pub async fn serve(
    address: SocketAddr,
    app: App,
    access: Access,
    connections: Connections,
    ready: impl FnOnce(SocketAddr),
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    let fault = |source| Error::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(fault)?;
    ready(listener.local_addr().map_err(fault)?);
    let (stopping, stopped) = watch::channel(false);
    listen::listen(listener, stoppable_router(app, access, stopped), connections, stopping, stop).await;
    Ok(())
}

fn seconds_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

async fn metrics(State(server): Shared) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], server.app.engine.metrics().text())
}

impl Server {
    fn entry(&self, variant: &Variant) -> Value {
        json!({
            "id": variant.name, "object": "model", "created": self.started, "owned_by": "mixse",
            "experts": variant.experts(), "max_model_len": self.app.model.base.config.context_length,
        })
    }
}

async fn models(State(server): Shared) -> Json<Value> {
    let data: Vec<Value> = server.app.model.variants.iter().map(|variant| server.entry(variant)).collect();
    Json(json!({ "object": "list", "data": data }))
}

async fn model(State(server): Shared, Path(name): Path<String>) -> Response {
    match request::variant(&server.app, Some(&name)) {
        Ok(variant) => Json(server.entry(&server.app.model.variants[variant])).into_response(),
        Err(fault) => fault.into_response(),
    }
}

async fn completions(State(server): Shared, headers: HeaderMap, body: Body) -> Response {
    server.ask(Form::Completion, headers, body).await.unwrap_or_else(Fault::into_response)
}

async fn chat_completions(State(server): Shared, headers: HeaderMap, body: Body) -> Response {
    server.ask(Form::Chat, headers, body).await.unwrap_or_else(Fault::into_response)
}

async fn embeddings(State(server): Shared, headers: HeaderMap, body: Body) -> Response {
    // One at a time, so that those who wait for tokens share the processor with no more than that.
    let Ok(_permit) = server.embedding.acquire().await else {
        return Fault::new(StatusCode::SERVICE_UNAVAILABLE, "the server is stopping").into_response();
    };
    let work = |server: &Server, body| request::read::<EmbeddingRequest>(body)?.answer(&server.app);
    let answer = server.on_body(headers, body, work).await;
    answer.map_or_else(Fault::into_response, |value| Json(value).into_response())
}

/// What clients want to know who make prompts of their own, in transformers' words.
async fn tokenizer_info(State(server): Shared) -> Json<Value> {
    let tokenizer = &server.app.model.checkpoint.tokenizer;
    let text = |id: Option<u32>| id.map(|id| tokenizer.token_text(id));
    Json(json!({
        "bos_token": text(tokenizer.bos()), "eos_token": text(tokenizer.eos().first().copied()),
        "chat_template": tokenizer.chat_template(), "vocab_size": tokenizer.vocab_size(),
        "model_max_length": server.app.model.base.config.context_length,
    }))
}

async fn tokenize(State(server): Shared, headers: HeaderMap, body: Body) -> Response {
    let work = |server: &Server, body| {
        let request: TokenizeRequest = request::read(body)?;
        let spelled = request.return_token_strs;
        let ids = request.ids(&server.app)?;
        let tokenizer = &server.app.model.checkpoint.tokenizer;
        let texts = spelled.then(|| ids.iter().map(|&id| tokenizer.token_text(id)).collect::<Vec<_>>());
        Ok(json!({
            "tokens": ids, "count": ids.len(), "token_strs": texts,
            "max_model_len": server.app.model.base.config.context_length,
        }))
    };
    let answer = server.on_body(headers, body, work).await;
    answer.map_or_else(Fault::into_response, |value| Json(value).into_response())
}

async fn detokenize(State(server): Shared, headers: HeaderMap, body: Body) -> Response {
    let work = |server: &Server, body| {
        let request: DetokenizeRequest = request::read(body)?;
        Ok(json!({ "prompt": request.text(&server.app)? }))
    };
    let answer = server.on_body(headers, body, work).await;
    answer.map_or_else(Fault::into_response, |value| Json(value).into_response())
}

impl Server {
    /// A number that no other request has.
    fn seed(&self) -> u64 {
        self.random.hash_one(self.requests.fetch_add(1, Ordering::Relaxed))
    }

    /// What `work` makes of a body, on a thread where it keeps nobody else waiting, few at a time.
    async fn on_body<T: Send + 'static>(
        self: &Arc<Self>,
        headers: HeaderMap,
        body: Body,
        work: impl FnOnce(&Self, Map<String, Value>) -> std::result::Result<T, Fault> + Send + 'static,
    ) -> std::result::Result<T, Fault> {
        let failed = || Fault::new(StatusCode::INTERNAL_SERVER_ERROR, "the request could not be read");
        let body = body::object(&headers, body, self.stopped.clone()).await?;
        let _permit = self.tokenising.acquire().await.map_err(|_| failed())?;
        let server = self.clone();
        tokio::task::spawn_blocking(move || work(&server, body)).await.map_err(|_| failed())?
    }

    async fn ask(
        self: Arc<Self>,
        form: Form,
        headers: HeaderMap,
        body: Body,
    ) -> std::result::Result<Response, Fault> {
        let question = self
            .on_body(headers, body, move |server, body| {
                Fields::read(body)?.question(&server.app, form, server.seed())
            })
            .await?;
        let Question { variant, asked, n, stream, experts, log_probs, echo } = question;
        let variant_entry = &self.app.model.variants[variant];
        let answer = Answer {
            form,
            id: format!("{}-{:016x}", form.prefix(), self.seed()),
            created: seconds_now(),
            name: variant_entry.name.clone(),
            model: self.app.model.clone(),
            experts: if experts { variant_entry.experts().to_vec() } else { Vec::new() },
            log_probs: log_probs.is_some(),
            prompt_tokens: asked
                .iter()
                .filter_map(|asked| asked.requests.first())
                .map(|r| r.prompt.len())
                .sum(),
        };
        let mut choices = Vec::with_capacity(asked.len() * n);
        for Asked { text, requests } in asked {
            for request in requests {
                let prompt = if echo && log_probs.is_some() { request.prompt.clone() } else { Vec::new() };
                let pieces = self.app.engine.submit(variant, request)?;
                choices.push(Choice { index: choices.len(), echo: text.clone(), prompt, pieces });
            }
        }
        match stream {
            Some(stream) => Ok(answer.stream(choices, stream)),
            None => Ok(Json(answer.whole(choices).await?).into_response()),
        }
    }
}
