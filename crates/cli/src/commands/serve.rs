//! `mixse serve`: a model behind an HTTP API.

use std::{
    future::Future,
    net::{IpAddr, SocketAddr},
};

use anyhow::Context;
use clap::Args;
use mixse_serve::{
    api::{self, App},
    engine::{Engine, Limits},
};
use serde_json::json;
use tokio::{
    runtime::Runtime,
    signal::unix::{Signal, SignalKind, signal},
};

use super::served::{Served, ServedFlags};
use crate::{
    args::JsonFlag,
    output::{Format, note, print_json},
};

/// Serve a run or a model behind an HTTP API like OpenAI's, with a page to try it.
///
/// A run is served as several models over the same weights: mixture, base, and expert-NAME for each expert. Requests are
/// continued side by side. There is no authentication: whoever reaches the address can use the model.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mixse serve --model runs/quick                 then open http://127.0.0.1:8080
  mixse serve --model gemma-3-270m --port 9000
  curl localhost:8080/v1/chat/completions -H 'Content-Type: application/json' \\
      -d '{\"model\": \"mixture\", \"messages\": [{\"role\": \"user\", \"content\": \"What is 3 + 4?\"}]}'")]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    served: ServedFlags,
    /// The address to listen on; 0.0.0.0 opens it to the network.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: IpAddr,
    /// The port to listen on; 0 takes any that is free.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Requests that are continued side by side.
    #[arg(long, value_name = "N", default_value_t = Limits::default().running)]
    running: usize,
    /// Requests that may wait beside them; more are refused.
    #[arg(long, value_name = "N", default_value_t = Limits::default().waiting)]
    waiting: usize,
    /// Tokens that running requests may come to in full length; it bounds memory, and requests beyond it wait.
    #[arg(long, value_name = "N", default_value_t = Limits::default().tokens)]
    tokens: usize,
    #[command(flatten)]
    json: JsonFlag,
}

pub(super) fn run(args: &ServeArgs) -> anyhow::Result<()> {
    let runtime = Runtime::new().context("cannot start the server's threads")?;
    let Served { model, prompter } = args.served.open()?;
    let names: Vec<String> = model.variants.iter().map(|variant| variant.name.clone()).collect();
    let limits = Limits { running: args.running, waiting: args.waiting, tokens: args.tokens };
    let (engine, thread) = Engine::start(model.clone(), limits)?;
    let app = App { model, engine, prompter };
    let ready = |address: SocketAddr| {
        let url = format!("http://{address}");
        match args.json.format() {
            Format::Json => print_json(&json!({ "url": url, "models": names })),
            Format::Text => {
                note(format_args!("serving {} on {url} (Ctrl-C stops)", names.join(", ")));
                Ok(())
            }
        }
    };
    let mut told = Ok(());
    let address = SocketAddr::new(args.host, args.port);
    let served = runtime.block_on(async {
        let stop = asked_to_stop().context("cannot watch for signals")?;
        Ok::<_, anyhow::Error>(api::serve(address, app, |address| told = ready(address), stop).await?)
    });
    served.and(told)?;
    // All connections are closed, so the engine has nobody left to answer.
    thread.join().map_err(|_| anyhow::anyhow!("the engine failed"))
}

/// Ready at the first SIGINT or SIGTERM; a second one ends the process at once.
fn asked_to_stop() -> std::io::Result<impl Future<Output = ()> + Send + 'static> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        asked(&mut interrupt, &mut terminate).await;
        note("finishing the running answers; the same signal again stops at once");
        tokio::spawn(async move {
            asked(&mut interrupt, &mut terminate).await;
            std::process::exit(1);
        });
    })
}

async fn asked(interrupt: &mut Signal, terminate: &mut Signal) {
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
