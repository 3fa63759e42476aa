//! Log-probabilities as OpenAI writes them.

use mixse_model::{language::LogProbs, tokenizer::Tokenizer};
use serde_json::{Map, Value, json};

/// Of a completion: four lists of equal length.
#[derive(Debug, Default)]
pub(super) struct CompletionLogProbs {
    tokens: Vec<String>,
    token_log_probs: Vec<Value>,
    top: Vec<Value>,
    text_offset: Vec<usize>,
    /// Characters of all tokens so far.
    offset: usize,
}

impl CompletionLogProbs {
    /// A token; `None`: nothing can be said of it.
    pub(super) fn push(&mut self, tokenizer: &Tokenizer, id: u32, told: Option<&LogProbs>) {
        let token = spelled(tokenizer, id);
        self.text_offset.push(self.offset);
        self.offset += tokenizer.token_text(id).chars().count();
        self.token_log_probs.push(told.map_or(Value::Null, |told| number(told.log_prob)));
        self.top.push(match told {
            Some(told) => {
                let mut top = Map::new();
                // The token itself is told too where it is not among the most likely ones.
                let others = told.top.iter().copied().chain([(id, told.log_prob)]);
                for (other, log_prob) in others {
                    top.entry(spelled(tokenizer, other)).or_insert_with(|| number(log_prob));
                }
                Value::Object(top)
            }
            None => Value::Null,
        });
        self.tokens.push(token);
    }

    /// What was pushed since the last time.
    pub(super) fn take(&mut self) -> Value {
        let told = json!({
            "tokens": self.tokens, "token_logprobs": self.token_log_probs, "top_logprobs": self.top,
            "text_offset": self.text_offset,
        });
        *self = Self { offset: self.offset, ..Self::default() };
        told
    }
}

/// Of a chat's answer: an entry a token.
#[derive(Debug, Default)]
pub(super) struct ChatLogProbs {
    content: Vec<Value>,
}

impl ChatLogProbs {
    pub(super) fn push(&mut self, tokenizer: &Tokenizer, told: &LogProbs) {
        let entry = |id: u32, log_prob: f32| {
            json!({
                "token": tokenizer.token_text(id), "logprob": number(log_prob), "bytes": tokenizer.token_bytes(id),
            })
        };
        let mut own = entry(told.id, told.log_prob);
        own["top_logprobs"] = told.top.iter().map(|&(id, log_prob)| entry(id, log_prob)).collect();
        self.content.push(own);
    }

    /// What was pushed since the last time.
    pub(super) fn take(&mut self) -> Value {
        json!({ "content": std::mem::take(&mut self.content) })
    }
}

/// JSON has no infinities: what cannot be is as unlikely as a number can say.
fn number(log_prob: f32) -> Value {
    json!(log_prob.max(-9999.0))
}

/// A token's text; bytes that are no text of their own are spelled out, so that no two tokens look alike.
fn spelled(tokenizer: &Tokenizer, id: u32) -> String {
    match String::from_utf8(tokenizer.token_bytes(id)) {
        Ok(text) => text,
        Err(e) => {
            e.as_bytes().iter().fold("bytes:".to_owned(), |text, byte| text + &format!("\\x{byte:02x}"))
        }
    }
}
