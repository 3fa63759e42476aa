//! What can be done with a finished run: report, merge, export, generate, chat, serve.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    common::{Output, Sandbox},
    tiny,
};

fn done(sandbox: &Sandbox, arguments: &[&str]) -> Output {
    let output = sandbox.mixse(arguments);
    assert_eq!(output.code, 0, "{arguments:?}: {}", output.stderr);
    output
}

fn json(sandbox: &Sandbox, arguments: &[&str]) -> Value {
    serde_json::from_str(&done(sandbox, arguments).stdout).unwrap()
}

#[test]
fn a_finished_run_is_reported_merged_exported_and_served() {
    let sandbox = tiny::sandbox();
    tiny::complete(&sandbox, "run");
    report(&sandbox);
    merge(&sandbox);
    export(&sandbox);
    overwriting(&sandbox);
    generate(&sandbox);
    chat(&sandbox);
    serve(&sandbox);
}

fn report(sandbox: &Sandbox) {
    let all = json(sandbox, &["report", "run", "--out", "whole.html", "--json"]);
    assert_eq!((&all["finished"], &all["missing"]), (&json!(true), &json!([])));
    // A copy that has lost its end is a run that has not come so far.
    let copy = sandbox.path("part");
    copy_directory(&sandbox.path("run"), &copy);
    fs::remove_dir_all(copy.join("router")).unwrap();
    fs::remove_dir_all(copy.join("eval/mixture")).unwrap();
    fs::remove_file(copy.join("eval/routing.json")).unwrap();
    fs::remove_file(copy.join("losses/router.json")).unwrap();
    let part = json(sandbox, &["report", "part", "--out", "part.html", "--json"]);
    assert_eq!(part["missing"], json!(["training of router", "evaluation of mixture", "the routing"]));
    let page = |name: &str| fs::read_to_string(sandbox.path(name)).unwrap();
    assert!(page("part.html").contains("This run is not finished"));
    assert!(!page("whole.html").contains("This run is not finished"));
    assert!(!copy.join("report.html").exists() || page("part/report.html") == page("run/report.html"));
}

fn copy_directory(from: &std::path::Path, to: &std::path::Path) {
    for (name, bytes) in tiny::files(from) {
        let path = to.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

/// Logits of the last of some tokens.
fn logits(sandbox: &Sandbox, model: &[&str]) -> Vec<f64> {
    let arguments = [&["inspect", "logits", "--ids", "5,6,7,8", "--precision", "f32"], model].concat();
    let all = json(sandbox, &arguments);
    all["logits"][3].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

#[track_caller]
fn assert_close(ours: &[f64], theirs: &[f64], what: &str) {
    let most = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(ours.len() == theirs.len() && most < 1e-3, "{what}: {most}");
}

const BOTH: [&str; 4] = ["--expert", "run/experts/words", "--expert", "run/experts/sums"];

fn merge(sandbox: &Sandbox) {
    let arguments =
        [&["merge", "--method", "linear", "--weights", "1,1", "--out", "linear", "--json"], &BOTH[..]]
            .concat();
    let linear = json(sandbox, &arguments);
    assert_eq!((&linear["rank"], &linear["relative_error"]), (&json!(16), &json!(0.0)));
    // Experts without a router are added up: that is what a linear merge with weights of 1 is.
    let sum = logits(sandbox, &[&["--model", "model"], &BOTH[..]].concat());
    assert_close(&logits(sandbox, &["--model", "model", "--expert", "linear"]), &sum, "merged against added");
    let rest = ["--density", "0.5", "--rank", "2", "--out", "ties", "--json"];
    let ties = json(sandbox, &[&["merge", "--method", "ties"], &rest[..], &BOTH[..]].concat());
    let lost = ties["relative_error"].as_f64().unwrap();
    assert!(ties["rank"] == 2 && lost > 0.0 && lost < 1.0, "{ties}");
}

fn export(sandbox: &Sandbox) {
    done(sandbox, &["export", "run", "--format", "peft", "--base-name", "some/base", "--out", "peft"]);
    let config: Value =
        serde_json::from_slice(&fs::read(sandbox.path("peft/sums/adapter_config.json")).unwrap()).unwrap();
    assert_eq!(config["base_model_name_or_path"], "some/base");
    done(
        sandbox,
        &["export", "run", "--only", "words", "--format", "merged", "--number", "f32", "--out", "merged"],
    );
    let expert = logits(sandbox, &["--model", "model", "--expert", "run/experts/words"]);
    assert_close(&logits(sandbox, &["--model", "merged"]), &expert, "a merged model against its adapter");
    let base = logits(sandbox, &["--model", "model"]);
    assert!(base.iter().zip(&expert).any(|(a, b)| (a - b).abs() > 1e-3), "the expert does nothing");
    let refused = |arguments: &[&str], expected: &str| {
        let output = sandbox.mixse(arguments);
        assert_eq!(output.code, 2, "{}", output.stderr);
        assert!(output.stderr.contains(expected), "{expected:?} is not in: {}", output.stderr);
    };
    refused(&["export", "run", "--format", "xlora", "--out", "x"], "router.input is not \"base_last\"");
    refused(&["export", "run", "--format", "merged", "--out", "x"], "--only");
    refused(&["export", "run", "--only", "nobody", "--format", "peft", "--out", "x"], "it has words, sums");
    refused(&["export", "run", "--format", "peft", "--out", "peft"], "is not empty");
}

/// Nothing is replaced by a call that was not told to, and no input by its own result.
fn overwriting(sandbox: &Sandbox) {
    let refused = |arguments: &[&str], expected: &str| {
        let before = tiny::files(&sandbox.path(""));
        let output = sandbox.mixse(arguments);
        assert_eq!(output.code, 2, "{arguments:?}: {}", output.stderr);
        assert!(output.stderr.contains(expected), "{arguments:?}: {expected:?} is not in: {}", output.stderr);
        assert!(tiny::files(&sandbox.path("")) == before, "{arguments:?} changed something");
    };
    let merge = |out: &'static str, rest: &[&'static str]| {
        [&["merge", "--method", "linear", "--out", out], &BOTH[..], rest].concat()
    };
    refused(&merge("linear", &[]), "--force");
    refused(&merge("run/experts/words", &[]), "is what this command reads");
    refused(&merge("run/experts/words/", &["--force"]), "is what this command reads");
    refused(&merge("run/experts", &["--force"]), "contains");
    refused(&merge("run", &["--force"]), "contains");
    refused(&merge("model", &["--force", "--base", "model"]), "is what this command reads");
    refused(&merge("domains", &["--force"]), "would not have written");
    refused(&merge("mixse.toml", &["--force"]), "is a file");
    done(sandbox, &merge("linear", &["--force"]));
    let weights: Value =
        serde_json::from_slice(&fs::read(sandbox.path("linear/adapter_config.json")).unwrap()).unwrap();
    assert_eq!(weights["r"], 16);
    fs::write(sandbox.path("ids.jsonl"), "{\"prompt_ids\": [5, 6], \"target_ids\": [7, 8, 9]}\n".repeat(4))
        .unwrap();
    let train = |out: &'static str, rest: &[&'static str]| {
        let words =
            ["train", "expert", "--model", "model", "--ids-data", "ids.jsonl", "--steps", "1", "--out", out];
        [&words[..], rest].concat()
    };
    done(sandbox, &train("trained", &[]));
    refused(&train("trained", &[]), "--force");
    refused(&train("trained", &["--force", "--init", "trained"]), "is what this command reads");
    refused(&train(".", &["--force"]), "contains");
    refused(&train("model", &["--force"]), "is what this command reads");
    let router = ["train", "router", "--model", "model", "--ids-data", "ids.jsonl", "--steps", "1", "--out"];
    refused(&[&router[..], &["trained"], &BOTH[..]].concat(), "--force");
    refused(
        &[&router[..], &["run/experts/sums", "--force"], &BOTH[..]].concat(),
        "is what this command reads",
    );
    let cut = json(sandbox, &train("trained", &["--force", "--max-tokens", "4", "--json"]));
    assert_eq!(cut["cut"], json!({ "rows": 4, "of": 4, "targets": 4, "longest": 5 }));
    let told = done(sandbox, &train("trained", &["--force", "--max-tokens", "4"])).stderr;
    assert!(told.contains("4 of 4 rows are longer"), "{told}");
    refused(&["export", "run", "--format", "peft", "--out", "run/experts", "--force"], "contains");
    refused(
        &["export", "--base", "model", "--format", "merged", "--out", "model", "--force"],
        "is what this command reads",
    );
    done(sandbox, &["export", "run", "--format", "peft", "--out", "peft", "--force"]);
    refused(&["report", "run", "--out", "mixse.toml"], "no report page");
    refused(&["report", "run", "--out", "run/mixse.toml"], "no report page");
    fs::create_dir(sandbox.path("mine")).unwrap();
    fs::write(sandbox.path("mine/words.jsonl"), "mine\n").unwrap();
    refused(&["generate", "-c", "mixse.toml", "--out", "mine"], "not empty");
    fs::write(
        sandbox.path("study.toml"),
        "title = 'x'\nabout = 'x'\nbases = ['model']\nseeds = [0]\nmethods = ['base']\n",
    )
    .unwrap();
    let foreign = sandbox.mixse(["study", "study.toml", "--out", "mine"]);
    assert_eq!(foreign.code, 2, "{}", foreign.stderr);
}

fn generate(sandbox: &Sandbox) {
    done(sandbox, &["generate", "-c", "mixse.toml", "--domain", "domains/words", "--out", "rows"]);
    for name in ["words.jsonl", "words.rejected.jsonl"] {
        let read = |path: String| fs::read_to_string(sandbox.path(path)).unwrap();
        assert_eq!(read(format!("rows/{name}")), read(format!("run/data/{name}")), "{name}");
    }
    let other = sandbox.mixse(["generate", "-c", "mixse.toml", "--seed", "7", "--out", "rows"]);
    assert_eq!(other.code, 2, "{}", other.stderr);
    assert!(other.stderr.contains("seed"), "{}", other.stderr);
}

fn chat(sandbox: &Sandbox) {
    let mut command = sandbox.command(["chat", "--model", "run", "--max-tokens", "8", "--show-experts"]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"red apple\n/model base\n/nonsense\nblue sky\n/quit\nnever\n")
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{err}");
    // The mixture tells its experts' shares, the base has none; nothing but answers is on standard output.
    assert_eq!(err.matches("words").count(), 1, "{err}");
    assert!(err.contains("there is no command /nonsense"), "{err}");
    assert!(!out.contains('\x1b') && !out.contains("> "), "{out:?}");
}

/// A server that is ended with the test.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let told: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(told["models"], json!(["mixture", "base", "expert-words", "expert-sums"]));
        let address = told["url"].as_str().unwrap().trim_start_matches("http://").to_owned();
        Self { child, address }
    }

    /// Status and body of a request.
    fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let (status, body) = self.ask("POST", path, &body.to_string());
        (status, serde_json::from_str(&body).unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn serve(sandbox: &Sandbox) {
    // So few tokens that some of the requests below wait for others.
    let arguments = ["serve", "--model", "run", "--port", "0", "--json", "--tokens", "40"];
    let mut server = Server::start(sandbox.command(arguments));
    assert_eq!(server.ask("GET", "/health", ""), (200, r#"{"status":"ok"}"#.into()));
    assert!(server.ask("GET", "/", "").1.contains("<title>mixse</title>"));
    let question = json!([{ "role": "user", "content": "red apple" }]);
    let chat = json!({ "model": "mixture", "messages": question, "max_tokens": 6, "temperature": 0, "experts": true });
    let (status, whole) = server.post("/v1/chat/completions", &chat);
    let text = whole["choices"][0]["message"]["content"].as_str().unwrap();
    let pieces = whole["choices"][0]["pieces"].as_array().unwrap();
    assert_eq!(status, 200);
    assert_eq!(pieces.iter().map(|p| p["text"].as_str().unwrap()).collect::<String>(), text);
    // Streamed, the same text comes in pieces.
    let mut streamed = chat.clone();
    streamed["stream"] = json!(true);
    let (_, events) = server.ask("POST", "/v1/chat/completions", &streamed.to_string());
    let data: Vec<&str> = events.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(data.last(), Some(&"[DONE]"));
    let content = |data: &&str| {
        let chunk: Value = serde_json::from_str(data).ok()?;
        Some(chunk["choices"][0]["delta"]["content"].as_str()?.to_owned())
    };
    assert_eq!(data.iter().filter_map(content).collect::<String>(), text);
    // The same seed gives the same text, whatever runs beside it.
    let sampled = json!({ "model": "base", "prompt": "red", "max_tokens": 12, "seed": 3 });
    let alone = server.post("/v1/completions", &sampled).1["choices"][0]["text"].clone();
    std::thread::scope(|scope| {
        let ask = || server.post("/v1/completions", &sampled).1["choices"][0]["text"].clone();
        let others: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
        others.into_iter().for_each(|other| assert_eq!(other.join().unwrap(), alone));
    });
    refusals(&server);
    assert!(server.ask("GET", "/metrics", "").1.contains("mixse_requests_total 7\n"));
    // SIGTERM ends it in order.
    let pid = server.child.id().to_string();
    assert!(Command::new("/bin/kill").args(["-TERM", &pid]).status().unwrap().success());
    assert!(server.child.wait().unwrap().success());
}

fn refusals(server: &Server) {
    let check = |path: &str, body: Value, status: u16, param: Option<&str>, expected: &str| {
        let (found, answer) = server.post(path, &body);
        assert_eq!((found, answer["error"]["param"].as_str()), (status, param), "{answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains(expected), "{expected:?} is not in: {message}");
    };
    let completion = |more: Value| {
        let mut body = json!({ "model": "base", "prompt": "red" });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let completions = "/v1/completions";
    check(completions, json!({ "model": "base" }), 400, Some("prompt"), "missing");
    check(completions, completion(json!({ "model": "gpt" })), 404, Some("model"), "mixture, base");
    check(completions, completion(json!({ "n": 0 })), 400, Some("n"), "is not 1 to");
    check(completions, completion(json!({ "temperature": -1 })), 400, Some("temperature"), "0 to 2");
    check(completions, completion(json!({ "top_p": 0 })), 400, Some("top_p"), "above 0");
    check(completions, completion(json!({ "max_tokens": 0 })), 400, Some("max_tokens"), "at least 1");
    check(completions, completion(json!({ "stop": [""] })), 400, Some("stop"), "empty");
    check(completions, completion(json!({ "suffix": "x" })), 400, Some("suffix"), "not supported");
    check(completions, completion(json!({ "prompt": [99_999_999] })), 400, Some("prompt"), "no token");
    check(completions, completion(json!({ "prompt": "red ".repeat(20_000) })), 400, None, "context");
    check(completions, completion(json!({ "temperature": "hot" })), 400, Some("temperature"), "hot");
    check("/v1/chat/completions", json!({ "messages": [] }), 400, Some("messages"), "no message");
    check("/v1/nothing", json!({}), 404, None, "no such path");
    let (status, _) = server.ask("POST", completions, &"x".repeat(5 << 20));
    assert_eq!(status, 413);
    assert_eq!(server.ask("GET", completions, "").0, 405);
}

#[test]
fn wrong_calls_are_refused_before_a_model_is_read() {
    let sandbox = Sandbox::new();
    let check = |arguments: &[&str], expected: &[&str]| {
        let output = sandbox.mixse(arguments);
        assert_eq!(output.code, 2, "{arguments:?}: {}", output.stderr);
        for part in expected {
            assert!(output.stderr.contains(part), "{part:?} is not in: {}", output.stderr);
        }
    };
    check(&["report", "."], &["is no run"]);
    check(
        &["merge", "--method", "linear", "--density", "2", "--weights", "1,1", "--expert", "a", "--out", "m"],
        &["at least two", "2 weights for 1", "linear merging keeps all", "a/adapter_config.json"],
    );
    check(
        &["generate", "--tasks", "0", "--temperature", "0", "--out", "d"],
        &["generation.tasks", "temperature"],
    );
    check(&["generate", "--domain", "nowhere", "--out", "d"], &["nowhere"]);
    check(&["chat", "--temperature", "-1", "--top-p", "3"], &["--temperature", "--top-p"]);
    check(&["export", "--format", "merged", "--out", "m"], &["RUN"]);
}
