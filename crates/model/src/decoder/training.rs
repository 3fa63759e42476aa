//! Passes over whole sequences that training differentiates, and what a router reads in them.

use std::sync::Arc;

use candle_core::Tensor;

use super::{Body, Decoder, Dropout, Memory, PassGates, Ragged, Wanted};
use crate::{
    Error, Result,
    mixture::{Mixture, Routing},
    ops::{block_op, domain_loss, gates, portable, values},
    router::{Router, RouterConfig, RouterInput},
};

/// A pass over whole sequences that lie one after another.
#[derive(Debug, Clone, Copy)]
pub struct TrainingPass<'a> {
    /// The tokens of all sequences.
    pub ids: &'a [u32],
    /// Where each sequence lies.
    pub ragged: &'a Arc<Ragged>,
    /// Experts and their routing; `None`: the base alone.
    pub mixture: Option<&'a Mixture>,
    /// What is kept for the backward.
    pub memory: Memory,
    /// Which gradients are wanted.
    pub wanted: Wanted,
    /// The base's final hidden states of these tokens, where an earlier pass has given them ([`Decoder::base_last`]) and the router
    /// reads them; `None`: they are computed.
    pub base_last: Option<&'a Tensor>,
    /// Asks for the router's cross-entropy against known domains.
    pub domains: Option<DomainTarget<'a>>,
    /// Thins out what the adapters read; it has a key for every row.
    pub dropout: Option<&'a Dropout>,
}

impl<'a> TrainingPass<'a> {
    /// A pass without anything that only a training asks for.
    pub fn new(
        ids: &'a [u32],
        ragged: &'a Arc<Ragged>,
        mixture: Option<&'a Mixture>,
        memory: Memory,
        wanted: Wanted,
    ) -> Self {
        Self { ids, ragged, mixture, memory, wanted, base_last: None, domains: None, dropout: None }
    }
}

/// The choices that a router should make.
#[derive(Debug, Clone, Copy)]
pub struct DomainTarget<'a> {
    /// Index of the right expert of each row of the pass.
    pub labels: &'a [u32],
    /// Factor of the sum over the rows.
    pub scale: f32,
}

impl Decoder {
    /// Output of the last block `[rows, d]`, before the final norm, for whole sequences `ids`. Differentiable in the
    /// mixture's parameters where they are variables.
    pub fn hidden(
        &self,
        ids: &[u32],
        ragged: &Arc<Ragged>,
        mixture: Option<&Mixture>,
        memory: Memory,
        wanted: Wanted,
    ) -> Result<Tensor> {
        let pass = TrainingPass::new(ids, ragged, mixture, memory, wanted);
        Ok(self.training_pass(&pass)?.0)
    }

    /// [`Decoder::hidden`], with `scale · Σ −log p(label)` of the router's softmax (all choices, before any is dropped) over
    /// the rows and averaged over the blocks, where [`TrainingPass::domains`] asks for it.
    ///
    /// # Errors
    /// Domains are given for a mixture without a trained router, or labels that are not those of its experts.
    pub fn training_pass(&self, pass: &TrainingPass<'_>) -> Result<(Tensor, Option<Tensor>)> {
        let _guard = self.body_guard();
        let TrainingPass { ids, ragged, mixture, .. } = *pass;
        let embedded = self.embed(ids)?;
        let base_last = match pass.base_last {
            Some(known) => Some(known.clone()),
            None => self.base_last_whole(ids, ragged, mixture)?,
        };
        let gates = match mixture {
            Some(m) => self.pass_gates(m, ids, ragged, &embedded, base_last.as_ref(), &[])?,
            None => PassGates::Full,
        };
        let Some(target) = pass.domains else {
            return Ok((self.blocks(pass, embedded, &gates, &mut |_, _| Ok(()))?, None));
        };
        let router = check_target(&target, ids.len(), mixture)?;
        if let Some(h) = Self::pass_input(router, &embedded, base_last.as_ref())? {
            let (r, bias, RouterConfig { gate, granularity, .. }) =
                (router.weight(0), router.bias.as_ref(), &router.config);
            let sequences = ragged.sequences(*granularity, &[]);
            let loss = gates::portable_label_loss(h, r, bias, gate, sequences, target.labels, target.scale)?;
            return Ok((self.blocks(pass, embedded, &gates, &mut |_, _| Ok(()))?, Some(loss)));
        }
        let scale = target.scale / self.config.blocks.len() as f32;
        let mut losses = Vec::with_capacity(self.config.blocks.len());
        let hidden = self.blocks(pass, embedded, &gates, &mut |block, x| {
            losses.push(match &self.body {
                Body::Fused(blocks) => {
                    let block = (block, &blocks[block]);
                    domain_loss::fused(block, x, ragged, router, target.labels, scale)?
                }
                Body::Portable(blocks) => {
                    let h = portable::attention_norm(&blocks[block].0, &blocks[block].1, x)?;
                    let sequences = ragged.sequences(router.config.granularity, &[]);
                    let (r, gate) = (router.weight(block), &router.config.gate);
                    gates::portable_label_loss(&h, r, None, gate, sequences, target.labels, scale)?
                }
            });
            Ok(())
        })?;
        Ok((hidden, Some(Tensor::stack(&losses, 0)?.sum_all()?)))
    }

    /// What such a router reads in the base without experts: calls `visit` with the block's index (0 where there is one
    /// decision for all blocks) and the values, `[rows, d]` or, where it decides for sequences, `[sequences, d]`.
    pub fn router_inputs(
        &self,
        ids: &[u32],
        ragged: &Arc<Ragged>,
        router: &RouterConfig,
        visit: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<()> {
        let _guard = self.body_guard();
        let d = self.config.hidden_size;
        let mut visit = |block: usize, h: &[f32]| match ragged.sequences(router.granularity, &[]) {
            None => visit(block, h),
            Some(sequences) => visit(block, &sequences.mean(h, d)),
        };
        let embedded = self.embed(ids)?;
        match router.input {
            RouterInput::Embedding => visit(0, &embedded.flatten_all()?.to_vec1()?),
            RouterInput::BaseLast => visit(0, &self.base_last(ids, ragged)?.flatten_all()?.to_vec1()?),
            RouterInput::Block => {
                let wanted = Wanted { experts: false, gates: false };
                let memory = Memory::Recompute;
                let pass = TrainingPass::new(ids, ragged, None, memory, wanted);
                self.blocks(&pass, embedded, &PassGates::Full, &mut |block, x| {
                    match &self.body {
                        Body::Fused(blocks) => {
                            let x = values(x)?;
                            let mut h = vec![0f32; x.len()];
                            blocks[block].attention_norm(&x, &mut h);
                            visit(block, &h);
                        }
                        Body::Portable(blocks) => {
                            let h = portable::attention_norm(&blocks[block].0, &blocks[block].1, x)?;
                            visit(block, &h.flatten_all()?.to_vec1()?);
                        }
                    }
                    Ok(())
                })?;
            }
        }
        Ok(())
    }

    /// All blocks over `x [rows, d]`; `each` is shown the input of every block before it runs.
    fn blocks(
        &self,
        pass: &TrainingPass<'_>,
        x: Tensor,
        gates: &PassGates,
        each: &mut dyn FnMut(usize, &Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        let TrainingPass { ragged, mixture, memory, wanted, dropout, .. } = *pass;
        let angles = self.angles(&ragged.positions);
        let mut x = x;
        for block in 0..self.config.blocks.len() {
            each(block, &x)?;
            let experts = Self::block_experts(mixture, gates, block, ragged, &[], dropout);
            x = match &self.body {
                Body::Fused(blocks) => {
                    block_op::apply(&blocks[block], &x, ragged, &angles[block], experts, memory, wanted)?
                }
                Body::Portable(blocks) => {
                    let (spec, weights) = &blocks[block];
                    portable::block(spec, weights, &x, ragged, experts, &mut [])?.0
                }
            };
        }
        Ok(x)
    }
}

/// The router that a target is for.
fn check_target<'m>(
    target: &DomainTarget<'_>,
    rows: usize,
    mixture: Option<&'m Mixture>,
) -> Result<&'m Router> {
    let Some(Mixture { experts, routing: Routing::Learned(router) }) = mixture else {
        return Err(Error::Unsupported("a domain loss needs a mixture with a router".into()));
    };
    if target.labels.len() != rows {
        let labels = target.labels.len();
        return Err(Error::Unsupported(format!("{labels} domain labels were given for {rows} rows")));
    }
    match target.labels.iter().find(|&&label| label as usize >= experts.len()) {
        None => Ok(router),
        Some(label) => Err(Error::Unsupported(format!(
            "domain label {label} lies outside the {} experts of the mixture",
            experts.len()
        ))),
    }
}
