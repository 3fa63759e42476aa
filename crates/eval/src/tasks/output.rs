//! Files that viewers of the harness's results read: `results_*.json` and `samples_*.jsonl`.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value, json};

use super::{
    cache::Answer,
    run::{Argument, Evaluated, Sample, TaskResult},
    summary::{self, Summary},
    task::{Gold, Judge, Kind, Task},
    text::repr_list,
};
use crate::{Error, Result, rows, rows::sha256};

/// What is known about a run beside its results.
#[derive(Debug, Clone, Default)]
pub struct RunInfo {
    /// Part of the file names, such as `2026-11-22T19-00-00`.
    pub date_id: String,
    /// Seconds since 1970.
    pub date: f64,
    /// What decides about the model's answers, for `config.model_args`.
    pub model_args: String,
    /// Version of the interpreter that ran generated code.
    pub python: Option<String>,
    /// The chat template was used.
    pub chat: bool,
    /// Further entries for `config`.
    pub config: Map<String, Value>,
}

/// Writes the results, and the samples if wanted, into `directory`. Returns the paths.
///
/// # Errors
/// The directory cannot be written.
pub fn write(
    directory: &Path,
    evaluated: &Evaluated,
    info: &RunInfo,
    log_samples: bool,
) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    let mut hashes = Map::new();
    for result in &evaluated.tasks {
        let lines: Vec<Value> =
            result.samples.iter().map(|s| sample(&result.task, s)).collect::<Result<_>>()?;
        let hash: String = lines
            .iter()
            .flat_map(|l| {
                ["doc_hash", "prompt_hash", "target_hash"].map(|k| l[k].as_str().unwrap_or_default())
            })
            .collect();
        hashes.insert(result.task.name.clone(), sha256(&hash).into());
        if log_samples {
            let path = directory.join(format!("samples_{}_{}.jsonl", result.task.name, info.date_id));
            rows::write(&path, &lines)?;
            paths.push(path);
        }
    }
    let path = directory.join(format!("results_{}.json", info.date_id));
    let value = results(evaluated, info, hashes);
    rows::write_bytes(&path, pretty(&value)?.as_bytes())?;
    paths.push(path);
    Ok(paths)
}

/// The content of a results file.
pub fn results(evaluated: &Evaluated, info: &RunInfo, task_hashes: Map<String, Value>) -> Value {
    let groups = summary::groups(&evaluated.tasks);
    let tasks: Vec<Summary> = evaluated.tasks.iter().map(summary::task).collect();
    let by_name = |of: &dyn Fn(&TaskResult) -> Value| -> Value {
        evaluated.tasks.iter().map(|r| (r.task.name.clone(), of(r))).collect::<Map<_, _>>().into()
    };
    let mut config = json!({
        "model": "mixse",
        "model_args": info.model_args,
        "bootstrap_iters": null,
        "truncated_prompts": evaluated.truncated,
        "skipped": evaluated.skipped.iter().map(|(t, why)| json!({"task": t, "reason": why})).collect::<Vec<_>>(),
        "python_version": info.python,
        "apply_chat_template": info.chat,
    });
    if let Some(config) = config.as_object_mut() {
        config.extend(info.config.clone());
    }
    let measures = |list: &[Summary]| -> Map<String, Value> {
        list.iter().map(|s| (s.name.clone(), measures(s))).collect()
    };
    let mut all = measures(&groups);
    all.extend(measures(&tasks));
    json!({
        "results": all,
        "groups": measures(&groups),
        "group_subtasks": groups.iter().map(|g| (g.name.clone(), json!(g.tasks))).collect::<Map<_, _>>(),
        "configs": by_name(&task_config),
        "versions": by_name(&|r| json!(r.task.version)),
        "n-shot": by_name(&|r| json!(r.num_fewshot)),
        "higher_is_better": by_name(&|r| {
            summary::metric_names(&r.task).into_iter().map(|m| (m.to_string(), json!(true))).collect::<Map<_, _>>().into()
        }),
        "n-samples": by_name(&|r| json!({"original": r.task.items.len(), "effective": summary::task(r).rows})),
        "config": config,
        "git_hash": null,
        "date": info.date,
        "task_hashes": task_hashes,
        "model_source": "mixse",
        "model_name": evaluated.contender,
        "model_name_sanitized": sanitise(&evaluated.contender),
        "total_evaluation_time_seconds": evaluated.seconds.to_string(),
        "mixse_version": env!("CARGO_PKG_VERSION"),
    })
}

/// A model's name as part of a path.
pub fn sanitise(name: &str) -> String {
    name.chars().map(|c| if "\"<>:/|\\?*[]".contains(c) { '_' } else { c }).collect()
}

fn measures(summary: &Summary) -> Value {
    let mut map = Map::new();
    map.insert("name".into(), summary.name.clone().into());
    map.insert("alias".into(), summary.alias.clone().into());
    map.insert("sample_len".into(), summary.rows.into());
    for m in &summary.measures {
        map.insert(format!("{},{}", m.metric, m.filter), m.value.mean.into());
        let error = m.value.stderr.map_or_else(|| json!("N/A"), Value::from);
        map.insert(format!("{}_stderr,{}", m.metric, m.filter), error);
    }
    map.into()
}

/// The settings of a task, in the harness's keys; viewers look for `output_type` and for the measures in `metric_list`.
fn task_config(result: &TaskResult) -> Value {
    let task = &result.task;
    let metrics: BTreeSet<&String> =
        result.samples.iter().flat_map(|s| s.metrics.iter().map(|(name, _)| name)).collect();
    let metric = |name: &&String| json!({"metric": name, "aggregation": "mean", "higher_is_better": true});
    let (output_type, generation) = match &task.kind {
        Kind::Choice(_) => ("multiple_choice", Value::Null),
        Kind::Generate(g) => ("generate_until", generation(&g.until, g.max_tokens)),
    };
    let mut config = json!({
        "task": task.name,
        "task_alias": task.alias,
        "description": task.description,
        "target_delimiter": task.target_delimiter,
        "fewshot_delimiter": task.fewshot_delimiter,
        "num_fewshot": result.num_fewshot,
        "metric_list": metrics.iter().map(metric).collect::<Vec<_>>(),
        "output_type": output_type,
        "generation_kwargs": generation,
        "metadata": {"version": task.version},
    });
    if let (Kind::Generate(g), Some(config)) = (&task.kind, config.as_object_mut()) {
        let filters: Vec<&str> = g.filters.iter().map(|f| f.name.as_str()).collect();
        config.insert("filter_list".into(), json!(filters));
        if matches!(g.judge, Judge::Code(_)) {
            config.insert("unsafe_code".into(), true.into());
        }
    }
    config
}

fn generation(until: &[String], max_tokens: usize) -> Value {
    json!({"until": until, "max_gen_toks": max_tokens, "do_sample": false})
}

/// A line of a samples file.
fn sample(task: &Task, sample: &Sample) -> Result<Value> {
    let item = &task.items[sample.doc_id];
    let target = match &item.gold {
        Gold::Index(i) => i.to_string(),
        Gold::Labels(_) => "0".into(),
        Gold::Text(text) | Gold::Tests(text) => text.clone(),
        Gold::AnyOf(accepted) => repr_list(accepted),
    };
    let argument = |(i, (prompt, second)): (usize, &(String, Argument))| {
        let second = match second {
            Argument::Continuation(text) => json!(text),
            Argument::Generation { until, max_tokens } => generation(until, *max_tokens),
        };
        (format!("gen_args_{i}"), json!({"arg_0": prompt, "arg_1": second}))
    };
    let scores = matches!(task.kind, Kind::Choice(_));
    let responses: Vec<Value> = sample.responses.iter().map(response).collect();
    let (resps, filtered) = match &task.kind {
        // One list per choice; per generation, one list of attempts.
        _ if scores => (responses.iter().map(|r| json!([r])).collect(), responses),
        Kind::Generate(g) if matches!(g.judge, Judge::Code(_)) && sample.filter != "none" => {
            (vec![json!(responses)], vec![json!(sample.answers)])
        }
        _ => (vec![json!(responses)], sample.answers.iter().map(|a| json!(a)).collect()),
    };
    let prompt = sample.arguments.first().map(|(p, _)| p.as_str()).unwrap_or_default();
    let mut line = json!({
        "doc_id": sample.doc_id,
        "doc": item.row,
        "target": target,
        "arguments": sample.arguments.iter().enumerate().map(argument).collect::<Map<_, _>>(),
        "resps": Value::Array(resps),
        "filtered_resps": filtered,
        "filter": sample.filter,
        "metrics": sample.metrics.iter().map(|(name, _)| name).collect::<Vec<_>>(),
        "doc_hash": sha256(&pretty(&item.row)?),
        "prompt_hash": sha256(prompt),
        "target_hash": sha256(&target),
    });
    if let Some(line) = line.as_object_mut() {
        line.extend(sample.metrics.iter().map(|(name, value)| (name.clone(), json!(value))));
    }
    Ok(line)
}

fn response(answer: &Answer) -> Value {
    match answer {
        Answer::Score { log_likelihood, greedy } => {
            let greedy = if *greedy { "True" } else { "False" };
            json!([log_likelihood.to_string(), greedy])
        }
        Answer::Text { text } => json!(text),
    }
}

/// JSON with two blanks of indentation, as Python writes it.
fn pretty(value: &Value) -> Result<String> {
    serde_json::to_string_pretty(value).map_err(|e| Error::Invalid(e.to_string()))
}
