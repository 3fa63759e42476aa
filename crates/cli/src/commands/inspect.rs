//! `mixse inspect`: what the model computes, as JSON for checking against other implementations.

use std::sync::Arc;

use clap::{Args, Subcommand};
use mixse_model::{
    engine::{Ask, Ragged},
    language::{LanguageModel, ScoreRequest},
    tokenizer::{Bos, MarkedText, Message},
};
use serde_json::{Value, json};

use super::opened::{ExpertFlags, ModelFlags, Opened};
use crate::output::{print_json, usage_error};

/// Show what a model computes, as JSON for checking against other implementations.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mixse inspect tokens --text 'Hello, world'
  mixse inspect logits --model model.gguf --ids 1,2,3 --precision f32
  mixse inspect logits --model DIR --ids 1,2,3 --expert a --expert b --router xlora
  mixse inspect loss --text 'The capital of France is Paris.'
  mixse inspect routing --model runs/quick --text 'What is 3 + 4?'")]
pub(crate) struct InspectArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Token ids of a text: with and without the beginning-of-sequence token, with the special tokens that it spells
    /// (`parsed`), and as a user's message in the model's chat template.
    Tokens {
        #[command(flatten)]
        model: ModelFlags,
        /// The text.
        #[arg(long)]
        text: String,
        #[command(flatten)]
        json: AlwaysJson,
    },
    /// Logits of every position.
    Logits(Pass),
    /// −log p of every token after the first, given what stands before it.
    Loss(Pass),
    /// Gates of every block and token.
    Routing(Pass),
}

/// A forward pass over one sequence.
#[derive(Debug, Args)]
struct Pass {
    #[command(flatten)]
    model: ModelFlags,
    #[command(flatten)]
    experts: ExpertFlags,
    /// Token ids, separated by commas.
    #[arg(long, value_delimiter = ',', required_unless_present = "text")]
    ids: Vec<u32>,
    /// A text instead of ids.
    #[arg(long, conflicts_with = "ids")]
    text: Option<String>,
    #[command(flatten)]
    json: AlwaysJson,
}

/// The result is JSON in any case; the flag is there because every command that reports has it.
#[derive(Debug, Args)]
struct AlwaysJson {
    /// Print the result as JSON (always the case).
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &InspectArgs) -> anyhow::Result<()> {
    let result = match &args.what {
        What::Tokens { model, text, .. } => tokens(model, text)?,
        What::Logits(pass) => logits(pass)?,
        What::Loss(pass) => loss(pass)?,
        What::Routing(pass) => routing(pass)?,
    };
    print_json(&result)
}

fn tokens(model: &ModelFlags, text: &str) -> anyhow::Result<Value> {
    let checkpoint = model.open_files()?;
    let tokenizer = &checkpoint.tokenizer;
    let message = Message { role: "user".into(), content: text.to_owned() };
    // A template that cannot be used, or refuses a message alone, is told beside the rest.
    let chat = tokenizer.has_chat_template().then(|| tokenizer.chat(&[message], true));
    let chat_error = chat.as_ref().and_then(|chat| chat.as_ref().err()).map(ToString::to_string);
    let chat = chat.and_then(Result::ok);
    let chat_ids = chat.as_ref().map(|text| tokenizer.encode_marked(text, Bos::Never)).transpose()?;
    let ids = tokenizer.encode(text, Bos::Model)?;
    Ok(json!({
        "texts": ids.iter().map(|&id| tokenizer.token_text(id)).collect::<Vec<_>>(),
        "with_special": ids,
        "without_special": tokenizer.encode(text, Bos::Never)?,
        "parsed": tokenizer.encode_marked(&MarkedText::template(text), Bos::Never)?,
        "chat": chat.as_ref().map(MarkedText::as_str),
        "chat_ids": chat_ids,
        "chat_error": chat_error,
        "bos": tokenizer.bos(),
        "eos": tokenizer.eos(),
    }))
}

impl Pass {
    fn open(&self) -> anyhow::Result<(Opened, Vec<u32>)> {
        let opened = self.model.open(&self.experts)?;
        let ids = match &self.text {
            Some(text) => opened.checkpoint.tokenizer.encode(text, Bos::Model)?,
            None => self.ids.clone(),
        };
        if ids.is_empty() {
            return Err(usage_error("the text has no tokens"));
        }
        Ok((opened, ids))
    }
}

fn logits(pass: &Pass) -> anyhow::Result<Value> {
    let (opened, ids) = pass.open()?;
    let engine = &opened.engine;
    let ragged = Arc::new(Ragged::whole([ids.len()]));
    let rows: Vec<usize> = (0..ids.len()).collect();
    let ask = Ask { logits: &rows, ..Ask::default() };
    let logits = engine.whole(&ids, &ragged, opened.mixture.as_ref(), &ask)?.logits;
    Ok(json!({ "logits": logits.chunks(engine.config.vocab_size).collect::<Vec<_>>() }))
}

fn loss(pass: &Pass) -> anyhow::Result<Value> {
    let (opened, ids) = pass.open()?;
    let [first, rest @ ..] = &ids[..] else { return Err(usage_error("a loss needs at least two tokens")) };
    if rest.is_empty() {
        return Err(usage_error("a loss needs at least two tokens"));
    }
    let request = ScoreRequest { prefix: Arc::from([]), context: vec![*first], continuation: rest.to_vec() };
    let mut losses = Vec::new();
    opened.runner().score(&[request], &mut |_, score| {
        losses = score.token_log_probs.iter().map(|p| -p).collect();
        std::ops::ControlFlow::Continue(())
    })?;
    let mean = losses.iter().map(|&l| f64::from(l)).sum::<f64>() / losses.len() as f64;
    Ok(json!({ "ids": ids, "losses": losses, "mean": mean, "perplexity": mean.exp() }))
}

fn routing(pass: &Pass) -> anyhow::Result<Value> {
    let (opened, ids) = pass.open()?;
    let Some(mixture) = &opened.mixture else {
        return Err(usage_error(
            "there is nothing to route: give --expert and --router, or a run directory as --model",
        ));
    };
    let ragged = Arc::new(Ragged::whole([ids.len()]));
    let gates = opened.engine.route(&ids, &ragged, mixture)?;
    let experts = mixture.experts.len();
    let blocks: Vec<Vec<&[f32]>> = gates.iter().map(|block| block.chunks(experts).collect()).collect();
    let tokenizer = &opened.checkpoint.tokenizer;
    Ok(json!({
        "experts": mixture.experts.names,
        "ids": ids,
        "texts": ids.iter().map(|&id| tokenizer.token_text(id)).collect::<Vec<_>>(),
        "gates": blocks,
    }))
}
