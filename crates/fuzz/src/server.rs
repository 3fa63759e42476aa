//! Requests to the server.

use std::{
    path::Path,
    sync::{Arc, OnceLock},
};

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{Request, header},
};
use mixse_model::{
    engine::{Engine as Computing, LoadOptions},
    weights::Checkpoint,
};
use mixse_selfmoe::template::{InstructionTemplate, Style};
use mixse_serve::{
    api::{self, Access, App},
    engine::{Engine, Limits, Model, Variant},
    prompt::Prompter,
};
use mixse_testing::{gguf::Meta, tiny};
use tokio::runtime::Runtime;
use tower_service::Service as _;

/// Short, so that what is answered does not take long.
const CONTEXT: u32 = 48;
const TEMPLATE: &str = "{% for m in messages %}<|begin|>{{ m.role }}: {{ m.content }}<|end|>{% endfor %}\
                        {% if add_generation_prompt %}<|begin|>{% endif %}";
const PATHS: [&str; 4] = ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"];

struct Server {
    runtime: Runtime,
    router: Router,
}

fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        mixse_kernels::pool::set_threads(1);
        let mut file = tiny::gguf("llama");
        file.set("llama.context_length", Meta::U32(CONTEXT));
        file.set("tokenizer.chat_template", Meta::Str(TEMPLATE.into()));
        let stored = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
        std::fs::write(stored.path(), file.bytes()).unwrap();
        let model = Arc::new(model(stored.path()));
        let (engine, _) = Engine::start(model.clone(), Limits::default()).unwrap();
        let prompter = Prompter { style: Style::Chat, template: InstructionTemplate::built_in().unwrap() };
        let router = api::router(App::new(model, engine, prompter), Access::default());
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        Server { runtime, router }
    })
}

fn model(path: &Path) -> Model {
    let checkpoint = Checkpoint::open(path).unwrap();
    let base = Computing::load(&checkpoint, &LoadOptions::default()).unwrap();
    Model { checkpoint, base, variants: vec![Variant { name: "base".into(), mixture: None }] }
}

/// A body, behind a byte that chooses the path. The answer is received whole, and is never the server's own fault.
pub(crate) fn requests(data: &[u8]) -> bool {
    let Some((first, body)) = data.split_first() else { return false };
    let server = server();
    let request = Request::post(PATHS[usize::from(*first) % PATHS.len()])
        .header(header::HOST, "localhost")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(body.to_vec()))
        .unwrap();
    server.runtime.block_on(async {
        let mut router = server.router.clone();
        // It is ready at all times.
        let response = router.call(request).await.unwrap();
        let status = response.status();
        let answer = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        // 503 is said where more answers are asked for at once than may wait.
        let fine = !status.is_server_error() || status.as_u16() == 503;
        assert!(fine, "{status}: {}", String::from_utf8_lossy(&answer));
        status.is_success()
    })
}

pub(crate) fn seeds() -> Vec<(String, Vec<u8>)> {
    [
        ("completion", r#"0{"prompt": "hello", "max_tokens": 2, "temperature": 0, "logprobs": 1, "echo": true, "stop": ["x"]}"#),
        ("ids", r#"0{"prompt": [[1, 2], [3]], "max_tokens": 1, "n": 2, "seed": 1, "top_k": 3, "min_p": 0.1, "logit_bias": {"5": -1}}"#),
        ("stream", r#"0{"prompt": "a", "max_tokens": 3, "stream": true, "stream_options": {"include_usage": true}, "top_p": 0.9}"#),
        (
            "chat",
            r#"1{"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": [{"type": "text", "text": "hi"}]}], "max_tokens": 2, "logprobs": true, "top_logprobs": 2, "presence_penalty": 1}"#,
        ),
        ("tokenize", r#"2{"prompt": "hello <|end|>", "add_special_tokens": false, "return_token_strs": true}"#),
        ("detokenize", r#"3{"tokens": [1, 2, 263]}"#),
    ]
    .map(|(name, text)| (name.to_owned(), text.as_bytes().to_vec()))
    .into()
}
