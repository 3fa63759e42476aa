//! `mixse chat`: a conversation in the terminal.

use std::{
    io::{self, IsTerminal},
    sync::Arc,
};

use anyhow::{Context, bail};
use clap::Args;
use mixse_model::{
    language::{Controls, Request, Sampling},
    tokenizer::Message,
};
use mixse_serve::{
    engine::{Engine, Limits, Piece},
    prompt::{Ending, Prompt},
};
use tokio::{
    runtime::Builder,
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc::{Receiver, channel},
};

use super::served::{Served, ServedFlags};
use crate::output::{note, note_styled, usage_error, write_foreign, write_piece};
use crate::terminal::printable;

const HELP: &str = "\
/help          this list
/reset         forget the conversation
/model [NAME]  list the models, or go on with another one
/quit          leave (so does Ctrl-D)
Ctrl-C         stop an answer";

/// Foreground colours of the experts, by number of the terminal's palette; more experts share them.
const COLOURS: [u8; 8] = [36, 33, 32, 35, 34, 31, 96, 93];

/// Talk to a run's mixture or to a model.
///
/// Where standard input is no terminal, every line of it is a message and only the answers are written.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mixse chat --model runs/quick --show-experts
  mixse chat --model gemma-3-270m --expert adapter --temperature 0
  echo 'What is 3 + 4?' | mixse chat --model runs/quick")]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    served: ServedFlags,
    /// What the model is told before the conversation.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Divisor of the logits; 0 takes the most likely token.
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    temperature: f32,
    /// Nucleus probability.
    #[arg(long, value_name = "P", default_value_t = 0.95, allow_negative_numbers = true)]
    top_p: f32,
    /// Of the random choices.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Most tokens of an answer.
    #[arg(long, value_name = "N", default_value_t = 512)]
    max_tokens: usize,
    /// Write each token in its expert's colour.
    #[arg(long)]
    show_experts: bool,
}

pub(super) fn run(args: &ChatArgs) -> anyhow::Result<()> {
    args.check()?;
    let served = args.served.open()?;
    // An answer that was stopped is still in flight until the engine's next step.
    let limits = Limits { running: 1, waiting: 1, ..Limits::default() };
    let (engine, thread) = Engine::start(served.model.clone(), limits)?;
    let runtime = Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let result = runtime.block_on(async {
        let interrupts = signal(SignalKind::interrupt()).context("cannot watch for Ctrl-C")?;
        let conversation = Conversation {
            args,
            engine,
            served: &served,
            messages: Vec::new(),
            variant: 0,
            turns: 0,
            interrupts,
            person: io::stdin().is_terminal(),
        };
        conversation.run().await
    });
    // The thread that waits for input is left behind; it ends with the process.
    thread.join().map_err(|_| anyhow::anyhow!("the engine failed"))?;
    result
}

impl ChatArgs {
    /// Refuses what cannot work, before the model is loaded.
    fn check(&self) -> anyhow::Result<()> {
        let mut faults = Vec::new();
        if !(0.0..=10.0).contains(&self.temperature) {
            faults.push(format!("--temperature: {} is not 0 to 10", self.temperature));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            faults.push(format!("--top-p: {} is not above 0 and at most 1", self.top_p));
        }
        if self.max_tokens == 0 {
            faults.push("--max-tokens: must be at least 1".to_owned());
        }
        if faults.is_empty() { Ok(()) } else { Err(usage_error(faults.join("\n"))) }
    }
}

/// Lines of standard input, read by a thread of their own; the channel closes at the end.
fn lines() -> Receiver<io::Result<String>> {
    let (sender, receiver) = channel(1);
    std::thread::spawn(move || {
        for line in io::stdin().lines() {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

struct Conversation<'a> {
    args: &'a ChatArgs,
    engine: Engine,
    served: &'a Served,
    /// User and assistant in turn.
    messages: Vec<Message>,
    variant: usize,
    /// Answers so far; each draws from a stream of its own.
    turns: u64,
    interrupts: Signal,
    /// A person types, so prompts and hints are of use.
    person: bool,
}

impl Conversation<'_> {
    async fn run(mut self) -> anyhow::Result<()> {
        let mut lines = lines();
        self.hint(format_args!("talking to {} (/help lists commands)", self.variant_name()));
        loop {
            if self.person {
                write_piece("> ")?;
            }
            let line = tokio::select! {
                line = lines.recv() => line,
                _ = self.interrupts.recv() => {
                    write_piece("\n")?;
                    self.hint("to leave, type /quit or press Ctrl-D");
                    continue;
                }
            };
            let Some(line) = line else { return Ok(()) };
            let line = line.context("cannot read standard input")?;
            match line.trim() {
                "" => {}
                "/quit" | "/exit" => return Ok(()),
                "/help" => note(HELP),
                "/reset" => {
                    self.messages.clear();
                    self.hint("the conversation is forgotten");
                }
                command if command == "/model" || command.starts_with("/model ") => {
                    self.choose(command["/model".len()..].trim());
                }
                command if command.starts_with('/') => {
                    note(format_args!("there is no command {command}; /help lists them"));
                }
                text => {
                    if let Err(e) = self.turn(text.to_owned()).await {
                        if !self.person {
                            return Err(e);
                        }
                        note(format_args!("{e:#}"));
                    }
                }
            }
        }
    }

    fn hint(&self, text: impl std::fmt::Display) {
        if self.person {
            note(text);
        }
    }

    fn variant_name(&self) -> &str {
        &self.served.model.variants[self.variant].name
    }

    fn choose(&mut self, name: &str) {
        let variants = &self.served.model.variants;
        match variants.iter().position(|variant| variant.name == name) {
            Some(variant) => {
                self.variant = variant;
                self.hint(format_args!("talking to {name}"));
            }
            None => {
                let names: Vec<&str> = variants.iter().map(|variant| variant.name.as_str()).collect();
                note(format_args!("models: {} (now {})", names.join(", "), self.variant_name()));
            }
        }
    }

    /// A message and its answer. An answer that was stopped counts as far as it came; a failed turn is forgotten.
    async fn turn(&mut self, text: String) -> anyhow::Result<()> {
        self.messages.push(Message { role: "user".into(), content: text });
        match self.answer().await {
            Ok(answer) => {
                self.messages.push(Message { role: "assistant".into(), content: answer });
                self.turns += 1;
                Ok(())
            }
            Err(e) => {
                self.messages.pop();
                Err(e)
            }
        }
    }

    async fn answer(&mut self) -> anyhow::Result<String> {
        let Prompt { ids, stop, .. } = self.prompt()?;
        let sampling = match self.args.temperature {
            temperature if temperature < 1e-4 => Sampling::Greedy,
            temperature => Sampling::TopP {
                temperature,
                top_p: self.args.top_p,
                stream: mixse_model::random::stream(&[
                    "chat",
                    &self.args.seed.to_string(),
                    &self.turns.to_string(),
                ]),
            },
        };
        let max_new_tokens = self.args.max_tokens;
        let (prefix, controls) = (Arc::from([]), Controls::default());
        let request = Request { prefix, prompt: ids, max_new_tokens, sampling, stop, controls };
        let mut pieces = self.engine.submit(self.variant, request)?;
        let served = self.served;
        let mut shown = Shown::new(served.model.variants[self.variant].experts(), self.args.show_experts);
        let mut answer = String::new();
        loop {
            let piece = tokio::select! {
                piece = pieces.recv() => piece,
                // Dropping the receiver takes the request out of the batch.
                _ = self.interrupts.recv() => break,
            };
            match piece {
                Some(Piece::Prompt(_)) => {}
                Some(Piece::Text { text, parts, .. }) => {
                    shown.write(&text, &parts)?;
                    answer += &text;
                }
                Some(Piece::Done { .. }) => break,
                Some(Piece::Failed(what)) => bail!("{what}"),
                None => bail!("the engine has stopped"),
            }
        }
        write_piece("\n")?;
        shown.summary();
        Ok(answer)
    }

    /// The prompt for the next answer; a conversation that has grown too long loses its oldest turns.
    fn prompt(&mut self) -> anyhow::Result<Prompt> {
        let context = self.served.model.base.config.context_length;
        // A long answer may be cut by the context's end, but not below a quarter of it.
        let room = self.args.max_tokens.min(context / 4).max(1);
        loop {
            let system =
                self.args.system.iter().map(|text| Message { role: "system".into(), content: text.clone() });
            let messages: Vec<Message> = system.chain(self.messages.iter().cloned()).collect();
            let prompt = self.served.prompter.prompt(
                &self.served.model.checkpoint.tokenizer,
                &messages,
                Ending::Answer,
            )?;
            if prompt.ids.len() + room <= context {
                return Ok(prompt);
            }
            if self.messages.len() < 3 {
                bail!("the message has {} tokens, too many for a context of {context}", prompt.ids.len());
            }
            self.messages.drain(..2);
            self.hint("(the oldest turn no longer fits the context and is forgotten)");
        }
    }
}

/// An answer on the screen, and how it was shared among the experts.
struct Shown<'a> {
    experts: &'a [String],
    coloured: bool,
    sums: Vec<f32>,
}

impl<'a> Shown<'a> {
    fn new(experts: &'a [String], wanted: bool) -> Self {
        let experts = if wanted { experts } else { &[] };
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let coloured = !experts.is_empty() && !plain && io::stdout().is_terminal();
        Self { experts, coloured, sums: vec![0.0; experts.len()] }
    }

    fn write(&mut self, text: &str, parts: &[f32]) -> anyhow::Result<()> {
        self.sums.iter_mut().zip(parts).for_each(|(sum, part)| *sum += part);
        let largest =
            parts.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).filter(|(_, part)| **part > 0.0);
        match largest {
            Some((expert, _)) if self.coloured => {
                write_piece(&format!("\x1b[{}m{}\x1b[0m", COLOURS[expert % COLOURS.len()], printable(text)))
            }
            _ => write_foreign(text),
        }
    }

    /// The experts' shares of the answer, each name in its colour.
    fn summary(&self) {
        let all: f32 = self.sums.iter().sum();
        if all <= 0.0 {
            return;
        }
        let shares = self.experts.iter().zip(&self.sums).enumerate().map(|(i, (name, sum))| {
            let share = format!("{} {:.0} %", printable(name), 100.0 * sum / all);
            if self.coloured { format!("\x1b[{}m{share}\x1b[0m", COLOURS[i % COLOURS.len()]) } else { share }
        });
        note_styled(format_args!("({})", shares.collect::<Vec<_>>().join(", ")));
    }
}
