//! The router: which experts a token goes to, and how much they count.
//!
//! `p = softmax((R h + b) / T)`; the `top_k` largest probabilities are kept, the others are zero (Self-MoE, section 2.3).
//! What `h` is, and how the kept probabilities become gates, is configured by [`RouterConfig`].

use candle_core::{DType, Device, Tensor, Var};
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
    pub weights: Vec<Tensor>,
    /// b `[choices]`, for [`RouterInput::BaseLast`] only.
    pub bias: Option<Tensor>,
}

impl Router {
    /// A router that starts close to undecided: R uniform in ±1/√d as PyTorch starts a linear layer, b = 0.
    ///
    /// # Errors
    /// Settings with faults (see [`RouterConfig::faults`]).
    pub fn init(
        config: &RouterConfig,
        experts: &[String],
        model: &ModelConfig,
        seed: u64,
        device: &Device,
    ) -> Result<Self> {
        let mut router = Self::zeros(config, experts, model, device)?;
        let bound = 1.0 / (model.hidden_size as f32).sqrt();
        for (map, weight) in router.weights.iter_mut().enumerate() {
            let values: Vec<f32> = (0..weight.elem_count())
                .map(|i| (crate::random::uniform(seed, map as u64, i as u64) * 2.0 - 1.0) * bound)
                .collect();
            *weight = Tensor::from_vec(values, weight.shape(), device)?;
        }
        Ok(router)
    }

    /// A router whose logits are all zero.
    ///
    /// # Errors
    /// Settings with faults (see [`RouterConfig::faults`]).
    pub fn zeros(
        config: &RouterConfig,
        experts: &[String],
        model: &ModelConfig,
        device: &Device,
    ) -> Result<Self> {
        let faults = config.faults(experts.len());
        if !faults.is_empty() {
            return Err(Error::Unsupported(faults.join("; ")));
        }
        let choices = config.choices(experts.len());
        let maps = if config.shared { 1 } else { model.blocks.len() };
        let weights = (0..maps)
            .map(|_| Tensor::zeros((choices, model.hidden_size), DType::F32, device))
            .collect::<candle_core::Result<_>>()?;
        let bias = match config.input {
            RouterInput::BaseLast => Some(Tensor::zeros(choices, DType::F32, device)?),
            RouterInput::Block | RouterInput::Embedding => None,
        };
        Ok(Self { config: config.clone(), experts: experts.to_vec(), weights, bias })
    }

    /// R of one block.
    pub fn weight(&self, block: usize) -> &Tensor {
        &self.weights[if self.config.shared { 0 } else { block }]
    }

    /// The same router with trainable parameters, and the variables behind them (weights, then the bias).
    pub fn trainable(&self) -> Result<(Self, Vec<Var>)> {
        let mut vars = self.weights.iter().map(Var::from_tensor).collect::<candle_core::Result<Vec<_>>>()?;
        let weights = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let mut bias = None;
        if let Some(b) = &self.bias {
            let var = Var::from_tensor(b)?;
            bias = Some(var.as_tensor().clone());
            vars.push(var);
        }
        Ok((Self { weights, bias, config: self.config.clone(), experts: self.experts.clone() }, vars))
    }
}
