//! `POST /v1/embeddings`: texts as vectors.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{App, Fault, request::Written};

/// OpenAI's fields.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EmbeddingRequest {
    model: Option<String>,
    input: Written,
    #[serde(default)]
    encoding_format: Encoding,
    dimensions: Option<usize>,
    #[serde(rename = "user")]
    _user: Option<Value>,
}

/// How a vector is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Encoding {
    /// Numbers.
    #[default]
    Float,
    /// 32-bit floats, little-endian, in base64.
    Base64,
}

impl EmbeddingRequest {
    /// The mean of the base's final hidden states over each input's tokens, of length 1.
    pub(super) fn answer(&self, app: &App) -> Result<Value, Fault> {
        let variants = &app.model.variants;
        let name = match &self.model {
            None => "base",
            Some(name) => match variants.iter().find(|variant| variant.name == *name) {
                Some(variant) if variant.mixture.is_none() => name,
                Some(_) => {
                    return Err(Fault::key("model", "embeddings are the base's alone: ask for \"base\""));
                }
                None => {
                    return Err(
                        Fault::not_found(format!("there is no model {name:?}")).code("model_not_found")
                    );
                }
            },
        };
        let config = &app.model.base.config;
        if self.dimensions.is_some_and(|wanted| wanted != config.hidden_size) {
            let message = format!("this model's embeddings have {} dimensions", config.hidden_size);
            return Err(Fault::key("dimensions", message));
        }
        let inputs = self.input.prompts(app, "input")?;
        for (index, input) in inputs.iter().enumerate() {
            if input.ids.is_empty() || input.ids.len() > config.context_length {
                let (tokens, most) = (input.ids.len(), config.context_length);
                return Err(Fault::key(
                    "input",
                    format!("{index} has {tokens} tokens, and 1 to {most} can be read"),
                ));
            }
            if let Some(id) = input.ids.iter().find(|&&id| id as usize >= config.vocab_size) {
                return Err(Fault::key("input", format!("there is no token {id}")));
            }
        }
        let mut data = Vec::with_capacity(inputs.len());
        for (index, input) in inputs.iter().enumerate() {
            let mean = app.model.base.mean_hidden(&input.ids).map_err(crate::Error::from)?;
            let length = mean.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
            let vector: Vec<f32> = mean.iter().map(|v| (f64::from(*v) / length) as f32).collect();
            if vector.iter().any(|v| !v.is_finite()) {
                return Err(Fault::key(
                    "input",
                    format!("{index} has no embedding: its hidden states are not finite"),
                ));
            }
            let embedding = match self.encoding_format {
                Encoding::Float => json!(vector),
                Encoding::Base64 => {
                    let bytes: Vec<u8> = vector.iter().flat_map(|v| v.to_le_bytes()).collect();
                    json!(STANDARD.encode(bytes))
                }
            };
            data.push(json!({ "object": "embedding", "index": index, "embedding": embedding }));
        }
        let tokens: usize = inputs.iter().map(|input| input.ids.len()).sum();
        Ok(json!({
            "object": "list", "data": data, "model": name,
            "usage": { "prompt_tokens": tokens, "total_tokens": tokens },
        }))
    }
}
