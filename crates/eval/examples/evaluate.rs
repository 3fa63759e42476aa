//! Evaluates a model in f32 on benchmarks and writes the harness's files, for `bench/harness.py compare`.
//!
//! ```text
//! cargo run --release -p mixse-eval --example evaluate -- MODEL BENCH_DATA OUT ROWS TASK…
//! ```
//!
//! Code of generated programs is run by the launcher beside it (`mixse-sandbox-child`), if that has been built.

use std::{error::Error, path::PathBuf, time::Instant};

use mixse_eval::{
    sandbox::{Launcher, Limits, Policy, Sandbox},
    tasks::{
        output::{RunInfo, write},
        run::{Contender, Limit, Settings, evaluate},
        summary,
    },
};
use mixse_model::{
    decoder::{Decoder, LoadOptions, Precision},
    generate::Runner,
    weights::Checkpoint,
};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().ok_or("usage: evaluate MODEL BENCH_DATA OUT ROWS TASK…");
    let (model, data, out, rows) = (next()?, next()?, PathBuf::from(next()?), next()?.parse()?);
    let settings = Settings {
        tasks: arguments.collect(),
        bench_data: Some(data.into()),
        limit: Limit::Rows(rows),
        cache: Some(out.join("cache.jsonl")),
        ..Settings::default()
    };
    let checkpoint = Checkpoint::open(model.as_ref())?;
    let options = LoadOptions { precision: Precision::F32, ..LoadOptions::default() };
    let decoder = Decoder::load(&checkpoint, &options)?;
    let runner = Runner::new(&decoder, &checkpoint.tokenizer, None);
    let contender = Contender { name: model.clone(), identity: format!("{model} f32"), model: &runner };
    let sandbox = sandbox();
    let started = Instant::now();
    let mut shown = 0;
    let evaluated = evaluate(&settings, &[contender], sandbox.as_ref(), &mut |p| {
        if p.done == p.total || p.done >= shown + 50 {
            shown = p.done;
            eprintln!("{} of {} requests, {:.0} s", p.done, p.total, started.elapsed().as_secs_f64());
        }
    })?;
    for model in &evaluated {
        for result in &model.tasks {
            let summary = summary::task(result);
            for m in summary.measures {
                println!("{} {},{}: {:.4}", summary.name, m.metric, m.filter, m.value.mean);
            }
        }
        let info = RunInfo { date_id: "0000-00-00T00-00-00".into(), ..RunInfo::default() };
        write(&out, model, &info, true)?;
    }
    Ok(())
}

fn sandbox() -> Option<Sandbox> {
    let program = std::env::current_exe().ok()?.parent()?.parent()?.join("mixse-sandbox-child");
    let launcher = Launcher { program, args: Vec::new() };
    Sandbox::open(launcher, Limits::default(), Policy::RequireMinimum)
        .map_err(|e| eprintln!("{e}; tasks with code are left out"))
        .ok()
}
