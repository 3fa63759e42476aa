//! `mixse serve`: a model behind an HTTP API.

use std::{
    future::Future,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use anyhow::Context;
use clap::Args;
use mixse_serve::{
    api::{self, Access, App, Connections},
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
    output::{Format, note, print_json, usage_error},
};

/// Serve a run or a model behind an HTTP API like OpenAI's, with a page to try it.
///
/// A run is served as several models over the same weights: mixture, base, and expert-NAME for each expert. Requests are
/// continued side by side. Without an API key only this machine is listened to, and only requests that name it as their host
/// are answered.
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
    /// The address to listen on. One that others reach (0.0.0.0) needs an API key.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: IpAddr,
    /// The port to listen on; 0 takes any that is free.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// A file of API keys, one a line, as they are sent or as `sha256:` and 64 hexadecimal digits. One more may stand in the
    /// environment as MIXSE_API_KEY.
    #[arg(long, value_name = "FILE")]
    api_keys: Option<PathBuf>,
    /// A further name by which this server may be addressed; repeat it for several.
    #[arg(long = "allow-host", value_name = "NAME")]
    hosts: Vec<String>,
    /// Connections that may be open at a time.
    #[arg(long, value_name = "N", default_value_t = Connections::default().most)]
    connections: usize,
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
    let access = args.access()?;
    let connections = Connections { most: args.connections, ..Connections::default() };
    let runtime = Runtime::new().context("cannot start the server's threads")?;
    let Served { model, prompter } = args.served.open()?;
    let names: Vec<String> = model.variants.iter().map(|variant| variant.name.clone()).collect();
    let limits = Limits { running: args.running, waiting: args.waiting, tokens: args.tokens };
    let (engine, thread) = Engine::start(model.clone(), limits)?;
    let app = App::new(model, engine, prompter);
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
        let ready = |address| told = ready(address);
        Ok::<_, anyhow::Error>(api::serve(address, app, access, connections, ready, stop).await?)
    });
    served.and(told)?;
    // All connections are closed, so the engine has nobody left to answer.
    thread.join().map_err(|_| anyhow::anyhow!("the engine failed"))
}

impl ServeArgs {
    /// Who may ask; refused where others reach the address and nobody is asked for a key.
    fn access(&self) -> anyhow::Result<Access> {
        const MAX_BYTES: u64 = 1 << 20;
        let mut keys: Vec<String> = std::env::var("MIXSE_API_KEY").ok().into_iter().collect();
        if let Some(path) = &self.api_keys {
            let text = mixse_selfmoe::jsonl::read_text(path, MAX_BYTES)?;
            keys.extend(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned));
            if keys.is_empty() {
                return Err(usage_error(format!("{} holds no key", path.display())));
            }
        }
        let access = Access::new(&keys, &self.hosts).map_err(|e| usage_error(e.to_string()))?;
        if !self.host.is_loopback() && !access.has_keys() {
            return Err(usage_error(format!(
                "--host {} lets others reach the model: give --api-keys FILE, or a key of at least 16 characters in MIXSE_API_KEY",
                self.host
            )));
        }
        Ok(access)
    }
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
