//! The router: which experts a token goes to, and how much they count.
//!
//! `p = softmax((R h + b) / T)`; the `top_k` largest probabilities are kept, the others are zero (Self-MoE, section 2.3).
//! What `h` is, and how the kept probabilities become gates, is configured by [`RouterConfig`].

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Error, Result, config::ModelConfig};

/// What the router reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouterInput {
    /// The normalised input of each block: a decision per token and block, in one pass.
    #[default]
    Block,
    /// The final hidden state of the base without experts: one decision per token for all blocks, in two passes (X-LoRA,
    /// Buehler and Buehler 2024). The linear map has a bias.
    BaseLast,
    /// The token's input embedding: one decision per token for all blocks.
    Embedding,
}

/// How kept probabilities become gates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GateScale {
    /// The probability itself (the paper).
    #[default]
    Probability,
    /// Kept probabilities divided by their sum.
    Renormalized,
    /// Kept experts count fully; the gradient is that of `Probability` (straight-through).
    Unit,
}

/// What a logit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Score {
    /// `R h + b`.
    #[default]
    Linear,
    /// `|R h|`: rows of R are directions whose sign means nothing (Arrow, Ostapenko et al. 2024).
    Absolute,
}

/// How many tokens share a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Granularity {
    /// Every token decides for itself.
    #[default]
    Token,
    /// One decision a sequence, and a block where the router reads blocks: from the mean of the router's input over the
    /// prompt, and kept for the whole answer. The prompt's own tokens follow it too.
    Sequence,
}

/// How probabilities turn into gates: everything about the choice that does not depend on what the router reads.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GateConfig {
    /// Experts kept for each token, 1 to n.
    pub top_k: usize,
    /// How kept probabilities count.
    pub scale: GateScale,
    /// T: divides the logits before the softmax.
    pub temperature: f32,
    /// What a logit is.
    pub score: Score,
    /// An (n+1)-th choice that adds nothing.
    pub null_expert: bool,
}

impl Default for GateConfig {
    fn default() -> Self {
        Self {
            top_k: 1,
            scale: GateScale::Probability,
            temperature: 1.0,
            score: Score::Linear,
            null_expert: false,
        }
    }
}

/// The router's settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RouterConfig {
    /// What it reads.
    pub input: RouterInput,
    /// One linear map for all blocks; false (with `input = "block"` only): one a block.
    pub shared: bool,
    /// Tokens that share a decision.
    pub granularity: Granularity,
    /// How probabilities turn into gates.
    #[serde(flatten)]
    pub gate: GateConfig,
}

impl Default for RouterConfig {
    fn default() -> Self {
        Self {
            input: RouterInput::Block,
            shared: true,
            granularity: Granularity::Token,
            gate: GateConfig::default(),
        }
    }
}

impl RouterConfig {
    /// Everything that is wrong with the settings for a mixture of `experts` experts; empty when they are fine.
    pub fn faults(&self, experts: usize) -> Vec<String> {
        let mut faults = Vec::new();
        let choices = experts + usize::from(self.gate.null_expert);
        if !(1..=choices).contains(&self.gate.top_k) {
            faults.push(format!("router.top_k = {} must lie between 1 and {choices}", self.gate.top_k));
        }
        if !(self.gate.temperature.is_finite() && self.gate.temperature > 0.0) {
            faults.push(format!("router.temperature = {} must be above 0", self.gate.temperature));
        }
        if !self.shared && self.input != RouterInput::Block {
            faults.push("router.shared = false needs router.input = \"block\": other inputs decide once for all blocks".into());
        }
        faults
    }

    /// Rows of R: the experts and the null expert.
    pub fn choices(&self, experts: usize) -> usize {
        experts + usize::from(self.gate.null_expert)
    }
}

/// A router for given experts of a given base.
#[derive(Debug, Clone)]
pub struct Router {
    /// Its settings.
    pub config: RouterConfig,
    /// The experts that its rows stand for, in order.
    pub experts: Vec<String>,
    /// R `[choices, hidden_size]`: one for all blocks, or one a block.
    pub weights: Vec<Arc<Vec<f32>>>,
    /// b `[choices]`, for [`RouterInput::BaseLast`] only.
    pub bias: Option<Arc<Vec<f32>>>,
}

impl Router {
    /// A router that starts close to undecided: R uniform in ±1/√d as PyTorch starts a linear layer, b = 0.
    ///
    /// # Errors
    /// Settings with faults (see [`RouterConfig::faults`]).
    pub fn init(config: &RouterConfig, experts: &[String], model: &ModelConfig, seed: u64) -> Result<Self> {
        let mut router = Self::zeros(config, experts, model)?;
        let bound = 1.0 / (model.hidden_size as f32).sqrt();
        for (map, weight) in router.weights.iter_mut().enumerate() {
            let values = (0..weight.len())
                .map(|i| (crate::random::uniform(seed, map as u64, i as u64) * 2.0 - 1.0) * bound)
                .collect();
            *weight = Arc::new(values);
        }
        Ok(router)
    }

    /// A router whose logits are all zero.
    ///
    /// # Errors
    /// Settings with faults (see [`RouterConfig::faults`]).
    pub fn zeros(config: &RouterConfig, experts: &[String], model: &ModelConfig) -> Result<Self> {
        let faults = config.faults(experts.len());
        if !faults.is_empty() {
            return Err(Error::Unsupported(faults.join("; ")));
        }
        let choices = config.choices(experts.len());
        let maps = if config.shared { 1 } else { model.blocks.len() };
        let zeros = Arc::new(vec![0.0; choices * model.hidden_size]);
        let weights = vec![zeros; maps];
        let bias = match config.input {
            RouterInput::BaseLast => Some(Arc::new(vec![0.0; choices])),
            RouterInput::Block | RouterInput::Embedding => None,
        };
        Ok(Self { config: config.clone(), experts: experts.to_vec(), weights, bias })
    }

    /// Rows of R: the experts and the null expert.
    pub fn choices(&self) -> usize {
        self.config.choices(self.experts.len())
    }
}
