//! Prints the requests that tasks make, without a model: one JSON line per row with `task`, `doc_id` and `arguments`.
//! `bench/harness.py prompts` holds them against the harness's.
//!
//! ```text
//! cargo run -p mixse-eval --example requests -- BENCH_DATA TASK[=SHOTS]…
//! ```

use std::{error::Error, io::Write, path::PathBuf};

use mixse_eval::tasks::run::{Argument, Settings, load};
use serde_json::{Value, json};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let bench_data = PathBuf::from(arguments.next().ok_or("usage: requests BENCH_DATA TASK[=SHOTS]…")?);
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for argument in arguments {
        let (task, shots) = match argument.split_once('=') {
            Some((task, shots)) => (task.to_string(), Some(shots.parse()?)),
            None => (argument, None),
        };
        let settings = Settings {
            tasks: vec![task],
            bench_data: Some(bench_data.clone()),
            num_fewshot: shots,
            ..Settings::default()
        };
        for planned in load(&settings)? {
            for (row, requests) in planned.rows.iter().zip(planned.arguments(None)?) {
                let requests: Vec<Value> = requests.iter().map(request).collect();
                let line = json!({
                    "task": planned.task.name,
                    "num_fewshot": planned.fewshot.count,
                    "doc_id": row,
                    "arguments": requests,
                });
                writeln!(out, "{line}")?;
            }
        }
    }
    Ok(())
}

fn request((prompt, second): &(String, Argument)) -> Value {
    match second {
        Argument::Continuation(text) => json!([prompt, text]),
        Argument::Generation { until, max_tokens } => {
            json!([prompt, {"until": until, "max_gen_toks": max_tokens}])
        }
    }
}
