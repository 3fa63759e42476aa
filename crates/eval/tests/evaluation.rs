//! Check sets and benchmarks with a scripted model: what is asked, judged, kept and written.
#![allow(clippy::unwrap_used, reason = "clippy does not take the helpers of a test file for tests")]

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fs,
    ops::ControlFlow,
    path::Path,
    sync::Arc,
};

use mixse_eval::{
    checks::{CheckSet, Ending, Row, Shard, run_shard, summarise},
    stats::Test,
    tasks::{
        compare::compare,
        output::{RunInfo, write},
        run::{Contender, Limit, Progress, Settings, evaluate},
        summary,
    },
};
use mixse_model::{
    language::{Completion, Controls, Finish, LanguageModel, Request, Sampling, Score, ScoreRequest},
    tokenizer::{Bos, Tokenizer},
};
use mixse_selfmoe::record::{Answer, Example};
use serde_json::Value;

/// A tokenizer whose tokens are bytes.
fn byte_tokenizer() -> Tokenizer {
    let printable = |b: u32| matches!(b, 33..=126 | 161..=172 | 174..=255);
    let mut spare = 256u32..;
    let vocabulary: BTreeMap<String, u32> = (0..256u32)
        .map(|byte| {
            let code = if printable(byte) { byte } else { spare.next().unwrap() };
            (char::from_u32(code).unwrap().to_string(), byte)
        })
        .collect();
    let byte_level = serde_json::json!(
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    let tokenizer = serde_json::json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "post_processor": null, "truncation": null,
        "padding": null, "decoder": byte_level, "pre_tokenizer": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    });
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    Tokenizer::from_directory(directory.path()).unwrap()
}

/// Answers what a prompt asks last from a list, and finds long continuations unlikely.
struct Scripted {
    tokenizer: Tokenizer,
    replies: Vec<(&'static str, &'static str)>,
    context: usize,
    asked: Cell<usize>,
    dies_after: usize,
    /// Tokens of the prefix that the last request shared.
    shared: Cell<usize>,
    /// Stop strings of the last request.
    stop: RefCell<Vec<String>>,
}

impl Scripted {
    fn new(replies: &[(&'static str, &'static str)]) -> Self {
        Self {
            tokenizer: byte_tokenizer(),
            replies: replies.to_vec(),
            context: 1 << 16,
            asked: Cell::new(0),
            dies_after: usize::MAX,
            shared: Cell::new(0),
            stop: RefCell::default(),
        }
    }

    fn count(&self, prefix: &Arc<[u32]>) -> mixse_model::Result<()> {
        if self.asked.get() >= self.dies_after {
            return Err(mixse_model::Error::Unsupported("killed".into()));
        }
        self.asked.set(self.asked.get() + 1);
        self.shared.set(prefix.len());
        Ok(())
    }
}

impl LanguageModel for Scripted {
    fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    fn context_length(&self) -> usize {
        self.context
    }

    fn generate(
        &self,
        requests: &[Request],
        done: &mut dyn FnMut(usize, Completion) -> ControlFlow<()>,
    ) -> mixse_model::Result<()> {
        // Backwards: nothing may depend on the order.
        for (i, request) in requests.iter().enumerate().rev() {
            self.count(&request.prefix)?;
            self.stop.borrow_mut().clone_from(&request.stop);
            let prompt = self.tokenizer.decode(&[&request.prefix, &*request.prompt].concat())?;
            let last = |(asked, _): &&(&str, &str)| prompt.rfind(asked);
            let reply = self.replies.iter().max_by_key(last).filter(|r| last(r).is_some());
            let text = reply.map_or("", |(_, reply)| reply).to_string();
            let ids = text.bytes().map(u32::from).collect();
            if done(i, Completion { ids, text, finish: Finish::Eos }).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn score(
        &self,
        requests: &[ScoreRequest],
        done: &mut dyn FnMut(usize, Score) -> ControlFlow<()>,
    ) -> mixse_model::Result<()> {
        for (i, request) in requests.iter().enumerate() {
            self.count(&request.prefix)?;
            let token_log_probs = vec![-1.0; request.continuation.len()];
            if done(i, Score { token_log_probs, greedy: false }).is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// Sees every row and goes on.
fn go_on(_: &mixse_eval::checks::Row) -> std::ops::ControlFlow<()> {
    std::ops::ControlFlow::Continue(())
}

fn item(id: &str, instruction: &str, answer: Answer) -> Example {
    let (id, instruction) = (id.into(), instruction.into());
    Example { id, instruction, input: "A. red\nB. blue".into(), output: String::new(), answer: Some(answer) }
}

fn items() -> Vec<Example> {
    vec![
        item("n", "one plus one", Answer::Number { value: "2".into(), expression: None }),
        item("c", "the colour", Answer::Choice { letter: 'B' }),
        item("t", "the river", Answer::Text { accept: vec!["Nile".into()] }),
        item("x", "the code", Answer::Code { entry_point: "f".into(), tests: vec!["assert f()".into()] }),
        item("w", "the wrong", Answer::Text { accept: vec!["right".into()] }),
    ]
}

const REPLIES: [(&str, &str); 5] = [
    ("one plus one", "The answer is 2."),
    ("the colour", "B. blue"),
    ("the river", "The answer is the Nile."),
    ("the code", "def f(): return True"),
    ("the wrong", "no idea"),
];

fn style(tokenizer: Tokenizer) -> impl Fn(&Example) -> mixse_eval::Result<Request> {
    move |item| {
        Ok(Request {
            prefix: Arc::from([]),
            prompt: tokenizer.encode(&item.instruction, Bos::Never)?,
            max_new_tokens: 50,
            sampling: Sampling::Greedy,
            stop: Vec::new(),
            controls: Controls::default(),
        })
    }
}

#[test]
fn a_check_set_is_scored_and_continued() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("rows.jsonl");
    let (items, style) = (items(), style(byte_tokenizer()));
    let set = CheckSet { items: &items, style: &style, settings: "base", sandbox: None };
    let mut model = Scripted::new(&REPLIES);
    model.dies_after = 2;
    assert!(
        run_shard(&model, &set, Shard::ALL, &file, &mut go_on).unwrap_err().to_string().contains("killed")
    );
    model.dies_after = usize::MAX;
    let rows = run_shard(&model, &set, Shard::ALL, &file, &mut go_on).unwrap();
    // Two before the failure, two after it; code is skipped without a sandbox.
    assert_eq!(model.asked.get(), 4);
    let found: Vec<(&str, bool)> = rows.iter().map(|r| (r.id.as_str(), r.correct)).collect();
    assert_eq!(found, [("n", true), ("c", true), ("t", true), ("w", false)]);
    let summary = summarise(&rows, items.len());
    assert_eq!((summary.total, summary.correct, summary.skipped), (4, 3, 1));
    let written = fs::read(&file).unwrap();
    run_shard(&model, &set, Shard::ALL, &file, &mut go_on).unwrap();
    assert_eq!((model.asked.get(), fs::read(&file).unwrap()), (4, written));
    let other = CheckSet { settings: "expert", ..set };
    run_shard(&model, &other, Shard::ALL, &file, &mut go_on).unwrap();
    assert_eq!(model.asked.get(), 8);
}

#[test]
fn shards_make_the_whole() {
    let directory = tempfile::tempdir().unwrap();
    let (items, style) = (items(), style(byte_tokenizer()));
    let set = CheckSet { items: &items, style: &style, settings: "base", sandbox: None };
    let model = Scripted::new(&REPLIES);
    let run = |shard: Shard, name: &str| {
        run_shard(&model, &set, shard, &directory.path().join(name), &mut go_on).unwrap()
    };
    let whole = run(Shard::ALL, "whole");
    for count in [2, 3, 7] {
        let parts: Vec<Row> =
            (0..count).flat_map(|index| run(Shard { index, count }, &format!("{index}-{count}"))).collect();
        assert_eq!(parts, whole);
    }
}

#[test]
fn too_long_a_prompt_is_a_wrong_answer() {
    let directory = tempfile::tempdir().unwrap();
    let (items, style) = (items(), style(byte_tokenizer()));
    let set = CheckSet { items: &items[..1], style: &style, settings: "base", sandbox: None };
    let mut model = Scripted::new(&REPLIES);
    model.context = 5;
    let rows = run_shard(&model, &set, Shard::ALL, &directory.path().join("rows.jsonl"), &mut go_on).unwrap();
    assert_eq!((rows[0].finish, rows[0].correct, model.asked.get()), (Ending::PromptTooLong, false, 0));
}

/// Two tasks of our own: choices and text, with worked examples.
fn tasks(directory: &Path) -> Vec<String> {
    let rows = "{\"q\":\"first\",\"a\":\"no\"}\n{\"q\":\"second\",\"a\":\"maybe\"}\n{\"q\":\"third\",\"a\":\"no\"}\n";
    fs::write(directory.join("rows.jsonl"), rows).unwrap();
    let head = "data = \"rows.jsonl\"\nfewshot = \"rows.jsonl\"\nnum_fewshot = 2\nprompt = \"Q: {{ q }}\\nA:\"\nanswer = \"{{ a }}\"\n";
    let choice = format!("name = \"choice\"\n{head}choices = [\"maybe\", \"no\"]\n");
    let text = format!(
        "name = \"text\"\n{head}[generate]\nuntil = [\"\\n\"]\nmax_tokens = 8\nmetric = \"exact_match\"\n"
    );
    fs::write(directory.join("choice.toml"), choice).unwrap();
    fs::write(directory.join("text.toml"), text).unwrap();
    ["choice.toml", "text.toml"].map(|f| directory.join(f).display().to_string()).to_vec()
}

fn contender<'a>(name: &str, model: &'a Scripted) -> Contender<'a> {
    Contender { name: name.into(), identity: name.into(), model }
}

#[test]
fn benchmarks_are_run_kept_and_written() {
    let directory = tempfile::tempdir().unwrap();
    let settings = Settings {
        tasks: tasks(directory.path()),
        cache: Some(directory.path().join("cache.jsonl")),
        ..Settings::default()
    };
    let good =
        Scripted::new(&[("Q: first\nA:", " no"), ("Q: second\nA:", " maybe\n"), ("Q: third\nA:", "no")]);
    let bad = Scripted::new(&[("Q:", "maybe")]);
    let contenders = [contender("good", &good), contender("bad", &bad)];
    let mut steps = 0;
    let mut told = Vec::new();
    let mut tell = |p: Progress<'_>| {
        steps += 1;
        told.push((p.contender.to_owned(), p.done, p.total));
    };
    let found = evaluate(&settings, &contenders, None, &mut tell).unwrap();
    // Each model's progress goes from nothing to all, one by one.
    let expected = ["good", "bad"].map(|name| (0..=9).map(move |done| (name.to_owned(), done, 9)));
    assert_eq!(told, expected.into_iter().flatten().collect::<Vec<_>>());
    // Three rows with two choices each, three texts.
    assert_eq!((good.asked.get(), bad.asked.get()), (9, 9));
    assert_eq!((good.shared.get(), steps), ("Q: first\nA: no\n\nQ: second\nA: maybe\n\nQ: ".len(), 20));
    let score = |model: usize, task: usize| summary::task(&found[model].tasks[task]).measures[0].value.mean;
    // The shorter choice is the likelier one for this model.
    assert!((score(0, 0) - 2.0 / 3.0).abs() < 1e-9);
    assert_eq!(score(0, 1), 1.0);
    assert!((score(1, 1) - 1.0 / 3.0).abs() < 1e-9);
    let mut last = None;
    let again = evaluate(&settings, &contenders, None, &mut |p| last = Some((p.done, p.total))).unwrap();
    assert_eq!((good.asked.get(), bad.asked.get(), last), (9, 9, Some((9, 9))));
    assert_eq!(summary::task(&again[0].tasks[1]), summary::task(&found[0].tasks[1]));

    let comparisons = compare(&found);
    assert_eq!(comparisons.len(), 3);
    assert_eq!((comparisons[2].task.as_str(), comparisons[2].difference.p), ("text", 0.5));
    assert!(comparisons.iter().all(|c| c.difference.test == Test::McNemar && c.adjusted >= c.difference.p));

    let info = RunInfo { date_id: "2026-01-01T00-00-00".into(), ..RunInfo::default() };
    let out = directory.path().join("out");
    write(&out, &found[0], &info, true).unwrap();
    let line = fs::read_to_string(out.join("samples_choice_2026-01-01T00-00-00.jsonl")).unwrap();
    let sample: Value = serde_json::from_str(line.lines().next().unwrap()).unwrap();
    assert_eq!(sample["arguments"]["gen_args_1"]["arg_1"], " no");
    assert_eq!(sample["resps"], serde_json::json!([[["-6", "False"]], [["-3", "False"]]]));
    assert_eq!(sample["filtered_resps"], serde_json::json!([["-6", "False"], ["-3", "False"]]));
    assert_eq!((&sample["target"], &sample["acc"]), (&"1".into(), &1.0.into()));
    let results: Value =
        serde_json::from_slice(&fs::read(out.join("results_2026-01-01T00-00-00.json")).unwrap()).unwrap();
    assert_eq!(results["results"]["text"]["exact_match,none"], 1.0);
    assert_eq!(results["n-samples"]["text"]["effective"], 3);
    assert_eq!(results["n-shot"]["choice"], 2);
    let measures = results["configs"]["choice"]["metric_list"].as_array().unwrap().iter();
    assert_eq!(measures.map(|m| m["metric"].as_str().unwrap()).collect::<Vec<_>>(), ["acc", "acc_norm"]);
}

/// A special token's spelling is handed on like any other text: where answers are written it is looked for among the tokens.
#[test]
fn until_may_name_a_special_token() {
    let directory = tempfile::tempdir().unwrap();
    let tasks = tasks(directory.path());
    let file = directory.path().join("text.toml");
    let until = fs::read_to_string(&file).unwrap().replace("[\"\\n\"]", "[\"<|im_end|>\", \"\\n\"]");
    fs::write(&file, until).unwrap();
    let settings = Settings { tasks: tasks[1..].to_vec(), ..Settings::default() };
    let model = Scripted::new(&[("Q:", "no")]);
    evaluate(&settings, &[contender("m", &model)], None, &mut |_| ()).unwrap();
    assert_eq!(*model.stop.borrow(), ["<|im_end|>", "\n"]);
}

#[test]
fn cut_prompts_are_counted_once_and_also_when_continued() {
    let directory = tempfile::tempdir().unwrap();
    let settings = Settings {
        tasks: tasks(directory.path()),
        cache: Some(directory.path().join("cache.jsonl")),
        ..Settings::default()
    };
    let mut model = Scripted::new(&[("Q:", "no")]);
    model.context = 40;
    model.dies_after = 4;
    assert!(evaluate(&settings, &[contender("m", &model)], None, &mut |_| ()).is_err());
    model.dies_after = usize::MAX;
    for _ in 0..2 {
        let found = evaluate(&settings, &[contender("m", &model)], None, &mut |_| ()).unwrap();
        // Three rows of each task, however many choices they have.
        assert_eq!((found[0].truncated, model.asked.get()), (6, 9));
    }
}

#[test]
fn rows_are_taken_once_and_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let samples = BTreeMap::from([("text".into(), vec![2, 0, 2])]);
    let settings = Settings { tasks: tasks(directory.path()), samples: Some(samples), ..Settings::default() };
    let planned = mixse_eval::tasks::run::load(&settings).unwrap();
    assert_eq!(planned.iter().map(|p| p.rows.as_slice()).collect::<Vec<_>>(), [[0, 2]]);
}

#[test]
fn settings_are_checked() {
    let directory = tempfile::tempdir().unwrap();
    let tasks = tasks(directory.path());
    let check = |change: &dyn Fn(&mut Settings), expected: &str| {
        let mut settings = Settings { tasks: tasks.clone(), ..Settings::default() };
        change(&mut settings);
        let model = Scripted::new(&[]);
        let error =
            evaluate(&settings, &[contender("m", &model)], None, &mut |_| ()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!(model.asked.get(), 0);
    };
    check(&|s| s.tasks = vec!["mmlu".into()], "--bench-data must name");
    check(&|s| s.tasks = vec!["none.toml".into()], "none.toml: ");
    check(&|s| s.num_fewshot = Some(4), "choice: 4 worked examples are asked for, 3 are there");
    check(&|s| s.samples = Some(BTreeMap::from([("text".into(), vec![3])])), "text: row 3 is asked for");
    check(&|s| s.samples = Some(BTreeMap::new()), "no tasks are left");
    check(&|s| s.samples = Some(BTreeMap::from([("text".into(), vec![])])), "no tasks are left");
    check(
        &|s| s.samples = Some(BTreeMap::from([("texts".into(), vec![0])])),
        "rows of \"texts\" are asked for",
    );
    check(&|s| s.attempts.pass_at = vec![2], "pass@2 needs at least 2 attempts");
    let chat = mixse_eval::tasks::task::Chat { fewshot_as_turns: true, system: None };
    check(&|s| s.chat = Some(chat.clone()), "no chat template");
    let both = |s: &mut Settings| (s.samples, s.limit) = (Some(BTreeMap::new()), Limit::Rows(1));
    check(&both, "exclude each other");
}
