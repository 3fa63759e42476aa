//! What the tests hold every backend against: plain candle operations in f32, each with candle's own gradients.
//!
//! A block's backward runs the block again on candle's tape. Nothing here is made for speed.

mod block;
mod frozen;
mod gates;
mod pages;

use std::sync::Arc;

use crate::{
    Error, Result,
    backend::{
        AdamW, Backend, Batch, BlockExperts, BlockGradients, Choice, Chosen, Decided, Gate, MomentSums,
        Ragged, RouterGradients, Routing, Sequences, Target, TokenScore,
        spec::{BlockSpec, BlockWeights, Ends},
    },
    decoder::Precision,
    weights::Checkpoint,
};
use block::Cached;
use candle_core::{D, DType, Device, Tensor, Var};
use frozen::FrozenMatmul;
use pages::Pages;

/// The reference.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reference;

/// A block with its place among the others.
#[derive(Debug)]
pub(crate) struct Block {
    index: usize,
    spec: BlockSpec,
    weights: BlockWeights<Tensor>,
}

/// The gates of a forward.
#[derive(Debug, Default)]
pub(crate) struct Saved {
    gates: Option<Tensor>,
}

/// A block's routing or gates as variables of a tape.
fn on_tape<'v>(
    experts: BlockExperts<'v, Reference>,
    params: &'v Tensor,
    third: Option<&'v Tensor>,
) -> BlockExperts<'v, Reference> {
    let gate = match (experts.gate, third) {
        (Gate::Given(_), Some(gates)) => Gate::Given(gates),
        (Gate::Routed(routing), Some(weight)) => Gate::Routed(Routing { weight, ..routing }),
        (gate, _) => gate,
    };
    BlockExperts { params, gate, ..experts }
}

/// `into += values`, whatever the shape in which they are held.
fn add_to(values: Option<&Tensor>, into: Option<&mut Tensor>) -> Result<()> {
    if let (Some(values), Some(into)) = (values, into) {
        *into = (&*into + values.reshape(into.shape())?)?;
    }
    Ok(())
}

fn variable(tensor: &Tensor) -> Result<Var> {
    Ok(Var::from_tensor(&tensor.contiguous()?)?)
}

/// Logits `[rows, vocabulary]` of some rows of the last block's output.
fn logits(ends: &Ends<Tensor>, x: &Tensor, rows: impl Iterator<Item = usize>) -> Result<Tensor> {
    let rows = Tensor::from_iter(rows.map(|row| row as u32), &Device::Cpu)?;
    let normed = block::rms_norm(&x.index_select(&rows, 0)?, &ends.norm, ends.eps, ends.plus_one)?;
    let logits = FrozenMatmul::apply(&normed, &ends.head)?;
    Ok(match ends.softcap {
        Some(cap) => ((logits / f64::from(cap))?.tanh()? * f64::from(cap))?,
        None => logits,
    })
}

/// `scale · Σ −log softmax(logits)[token]`, a scalar.
fn cross_entropy(ends: &Ends<Tensor>, x: &Tensor, targets: &[Target], scale: f32) -> Result<Tensor> {
    let tokens = Tensor::from_iter(targets.iter().map(|t| t.token), &Device::Cpu)?;
    let logits = logits(ends, x, targets.iter().map(|target| target.row))?;
    let top = logits.detach().max_keepdim(D::Minus1)?;
    let log_sum = (logits.broadcast_sub(&top)?.exp()?.sum_keepdim(D::Minus1)?.log()? + top)?;
    let nll = (log_sum - logits.gather(&tokens.reshape((targets.len(), 1))?, 1)?)?;
    Ok((nll.sum_all()? * f64::from(scale))?)
}

impl Backend for Reference {
    type Array = Tensor;
    type Block = Block;
    type Ends = Ends<Tensor>;
    type Pages = Pages;
    type Pass = Batch;
    type Saved = Saved;
    type Moments = MomentSums;

    fn name(&self) -> &'static str {
        "reference"
    }

    /// In f32; `Bf16` rounds first.
    fn load(&self, checkpoint: &Checkpoint, precision: Precision) -> Result<(Vec<Block>, Ends<Tensor>)> {
        let rounded = match precision {
            Precision::F32 => false,
            Precision::Bf16 => true,
            Precision::Int8 | Precision::Int4 => {
                let name = precision.name();
                return Err(Error::Unsupported(format!("the reference operations have no precision {name}")));
            }
        };
        let hold = &mut |name: &str| -> Result<Tensor> {
            let weight = checkpoint.tensor(name)?;
            Ok(if rounded { weight.to_dtype(DType::BF16)?.to_dtype(DType::F32)? } else { weight })
        };
        let ends = Ends::load(checkpoint, hold)?;
        let blocks = (0..checkpoint.config.blocks.len())
            .map(|index| {
                let spec = BlockSpec::new(&checkpoint.config, index);
                Ok(Block { index, spec, weights: BlockWeights::load(checkpoint, index, hold)? })
            })
            .collect::<Result<_>>()?;
        Ok((blocks, ends))
    }

    fn hash_weights(&self, blocks: &[Block], ends: &Ends<Tensor>, feed: &mut dyn FnMut(&[u8])) {
        let projections = blocks.iter().flat_map(|block| &block.weights.projections).map(|p| &p.weight);
        for weight in [&*ends.embedding, &*ends.head].into_iter().chain(projections) {
            let values = weight.flatten_all().and_then(|values| values.to_vec1::<f32>());
            values.into_iter().flatten().for_each(|value| feed(&value.to_le_bytes()));
        }
    }

    fn weight_bytes(&self, blocks: &[Block], ends: &Ends<Tensor>) -> usize {
        let projections = blocks.iter().flat_map(|block| &block.weights.projections);
        let values = projections.map(|p| p.weight.elem_count()).sum::<usize>() + ends.head.elem_count();
        values * size_of::<f32>()
    }

    fn upload(&self, values: &Arc<Vec<f32>>) -> Result<Tensor> {
        Ok(Tensor::from_slice(values, values.len(), &Device::Cpu)?)
    }

    fn read(&self, array: &Tensor) -> Result<Vec<f32>> {
        Ok(array.flatten_all()?.to_vec1()?)
    }

    fn zeros(&self, len: usize) -> Result<Tensor> {
        Ok(Tensor::zeros(len, DType::F32, &Device::Cpu)?)
    }

    fn copy(&self, array: &Tensor) -> Result<Tensor> {
        Ok(array.copy()?)
    }

    fn concat(&self, parts: &[&Tensor]) -> Result<Tensor> {
        Ok(Tensor::cat(parts, 0)?)
    }

    fn slice(&self, array: &Tensor, start: usize, len: usize) -> Result<Tensor> {
        let (_, d) = array.dims2()?;
        Ok(array.narrow(0, start / d, len / d)?.copy()?)
    }

    fn new_pages(&self, blocks: &[Block]) -> Result<Pages> {
        Ok(Pages::new(blocks.len()))
    }

    fn grow_pages(&self, pages: &mut Pages, count: usize) -> Result<()> {
        pages.grow(count);
        Ok(())
    }

    fn copy_page(&self, pages: &mut Pages, from: u32, to: u32) -> Result<()> {
        pages.copy(from, to);
        Ok(())
    }

    fn page_bytes(&self, pages: &Pages) -> usize {
        pages.bytes()
    }

    fn pass(&self, _blocks: &[Block], batch: &Batch) -> Result<Batch> {
        Ok(batch.clone())
    }

    fn embed(&self, ends: &Ends<Tensor>, ids: &[u32]) -> Result<Tensor> {
        let ids = Tensor::from_slice(ids, ids.len(), &Device::Cpu)?;
        Ok((ends.embedding.index_select(&ids, 0)? * f64::from(ends.embedding_scale))?)
    }

    fn forward(
        &self,
        block: &Block,
        x: &Tensor,
        pass: &Batch,
        experts: Option<BlockExperts<'_, Self>>,
        pages: Option<&mut Pages>,
        saved: &mut Saved,
    ) -> Result<Tensor> {
        let cached = pages.zip(pass.tables.as_deref()).map(|(pages, tables)| Cached {
            pages,
            block: block.index,
            tables,
        });
        let (y, gates) = block::block(&block.spec, &block.weights, x, pass, experts, cached)?;
        saved.gates = gates;
        Ok(y)
    }

    fn trim(&self, _saved: &mut Saved) {}

    fn routed_gates(&self, saved: &Saved) -> Result<Tensor> {
        let gates = saved.gates.clone();
        gates.ok_or_else(|| Error::Unsupported("gates were asked of a block that has none".into()))
    }

    fn backward(
        &self,
        block: &Block,
        x: &Tensor,
        pass: &Batch,
        experts: Option<BlockExperts<'_, Self>>,
        _saved: &mut Saved,
        dy: &Tensor,
        gradients: BlockGradients<'_, Self>,
    ) -> Result<Tensor> {
        let input = variable(x)?;
        let params = experts.map(|experts| variable(experts.params)).transpose()?;
        let third = match experts.map(|experts| experts.gate) {
            Some(Gate::Given(gates)) => Some(variable(gates)?),
            Some(Gate::Routed(routing)) => Some(variable(routing.weight)?),
            _ => None,
        };
        let on_tape = experts.zip(params.as_ref()).map(|(experts, params)| {
            on_tape(experts, params.as_tensor(), third.as_ref().map(|third| third.as_tensor()))
        });
        let (y, _) = block::block(&block.spec, &block.weights, input.as_tensor(), pass, on_tape, None)?;
        let tape = (y * dy.reshape(x.shape())?)?.sum_all()?.backward()?;
        add_to(params.as_ref().and_then(|params| tape.get(params)), gradients.params)?;
        let d_third = third.as_ref().and_then(|third| tape.get(third));
        match experts.map(|experts| experts.gate) {
            Some(Gate::Given(_)) => add_to(d_third, gradients.gates)?,
            Some(Gate::Routed(_)) => add_to(d_third, gradients.router)?,
            _ => {}
        }
        match tape.get(&input) {
            Some(dx) => Ok(dx.clone()),
            None => Ok(x.zeros_like()?),
        }
    }

    fn router_input(&self, block: &Block, x: &Tensor) -> Result<Tensor> {
        Ok(block::attention_norm(&block.spec, &block.weights, x)?)
    }

    fn router_input_backward(&self, block: &Block, x: &Tensor, dh: &Tensor, dx: &mut Tensor) -> Result<()> {
        let input = variable(x)?;
        let h = block::attention_norm(&block.spec, &block.weights, input.as_tensor())?;
        let tape = (h * dh.reshape(x.shape())?)?.sum_all()?.backward()?;
        add_to(tape.get(&input), Some(dx))
    }

    fn decide(&self, h: &Tensor, routing: Routing<'_, Self>) -> Result<Decided<Self>> {
        let gates = gates::gates(h, routing)?;
        // The backward decides again.
        Ok(Decided { probabilities: gates.clone(), gates })
    }

    fn decide_backward(
        &self,
        h: &Tensor,
        routing: Routing<'_, Self>,
        _decided: &Decided<Self>,
        dgates: &Tensor,
        gradients: RouterGradients<'_, Self>,
    ) -> Result<()> {
        let (weight, bias) = (variable(routing.weight)?, routing.bias.map(variable).transpose()?);
        let on_tape = Routing {
            weight: weight.as_tensor(),
            bias: bias.as_ref().map(|bias| bias.as_tensor()),
            ..routing
        };
        let gates = gates::gates(h, on_tape)?;
        let tape = (&gates * dgates.reshape(gates.shape())?)?.sum_all()?.backward()?;
        add_to(tape.get(&weight), gradients.weight)?;
        add_to(bias.as_ref().and_then(|bias| tape.get(bias)), gradients.bias)
    }

    fn domain_loss(
        &self,
        h: &Tensor,
        routing: Routing<'_, Self>,
        labels: &[u32],
        scale: f32,
        dh: Option<&mut Tensor>,
        gradients: RouterGradients<'_, Self>,
    ) -> Result<f32> {
        let input = variable(h)?;
        let (weight, bias) = (variable(routing.weight)?, routing.bias.map(variable).transpose()?);
        let on_tape = Routing {
            weight: weight.as_tensor(),
            bias: bias.as_ref().map(|bias| bias.as_tensor()),
            ..routing
        };
        let loss = gates::label_loss(input.as_tensor(), on_tape, labels, scale)?;
        let tape = loss.backward()?;
        add_to(tape.get(&input), dh)?;
        add_to(tape.get(&weight), gradients.weight)?;
        add_to(bias.as_ref().and_then(|bias| tape.get(bias)), gradients.bias)?;
        Ok(loss.to_scalar()?)
    }

    fn prompt_means(&self, h: &Tensor, ragged: &Ragged) -> Result<Tensor> {
        Ok(Sequences { ragged, earlier: &[] }.averaging(h)?.matmul(h)?)
    }

    fn final_norm(&self, ends: &Ends<Tensor>, x: &Tensor) -> Result<Tensor> {
        Ok(block::rms_norm(x, &ends.norm, ends.eps, ends.plus_one)?)
    }

    fn loss(
        &self,
        ends: &Ends<Tensor>,
        x: &Tensor,
        targets: &[Target],
        scale: f32,
        gradient: bool,
    ) -> Result<(f32, Option<Tensor>)> {
        if targets.is_empty() {
            return Ok((0.0, gradient.then(|| x.zeros_like()).transpose()?));
        }
        let input = variable(x)?;
        let loss = cross_entropy(ends, input.as_tensor(), targets, scale)?;
        let dx = if gradient { loss.backward()?.get(&input).cloned() } else { None };
        Ok((loss.to_scalar()?, dx))
    }

    fn choose(&self, ends: &Ends<Tensor>, x: &Tensor, choices: &[Choice]) -> Result<Vec<Chosen>> {
        let rows: Vec<Vec<f32>> = logits(ends, x, choices.iter().map(|choice| choice.row))?.to_vec2()?;
        Ok(choices.iter().zip(&rows).map(|(choice, logits)| choice.choose(logits)).collect())
    }

    fn score(
        &self,
        ends: &Ends<Tensor>,
        x: &Tensor,
        targets: &[Target],
        top: usize,
    ) -> Result<Vec<TokenScore>> {
        let rows: Vec<Vec<f32>> = logits(ends, x, targets.iter().map(|target| target.row))?.to_vec2()?;
        let score = |(target, logits): (&Target, &Vec<f32>)| TokenScore::new(logits, target.token, top);
        Ok(targets.iter().zip(&rows).map(score).collect())
    }

    fn logits(&self, ends: &Ends<Tensor>, x: &Tensor, rows: &[usize]) -> Result<Vec<f32>> {
        Ok(logits(ends, x, rows.iter().copied())?.flatten_all()?.to_vec1()?)
    }

    fn new_moments(&self, d: usize) -> Result<MomentSums> {
        Ok(MomentSums { rows: 0, sum: vec![0.0; d], products: vec![0.0; d * (d + 1) / 2] })
    }

    fn add_moments(&self, moments: &mut MomentSums, h: &Tensor) -> Result<()> {
        for row in h.to_vec2::<f32>()? {
            moments.rows += 1;
            moments.sum.iter_mut().zip(&row).for_each(|(sum, &v)| *sum += f64::from(v));
            let products = row
                .iter()
                .enumerate()
                .flat_map(|(i, &a)| row[i..].iter().map(move |&b| f64::from(a) * f64::from(b)));
            moments.products.iter_mut().zip(products).for_each(|(sum, v)| *sum += v);
        }
        Ok(())
    }

    fn read_moments(&self, moments: &MomentSums) -> Result<MomentSums> {
        Ok(moments.clone())
    }

    fn add(&self, values: &Tensor, into: &mut Tensor) -> Result<()> {
        add_to(Some(values), Some(into))
    }

    fn scale(&self, array: &mut Tensor, factor: f32) -> Result<()> {
        *array = (&*array * f64::from(factor))?;
        Ok(())
    }

    fn squared_norm(&self, arrays: &[Tensor]) -> Result<f64> {
        let mut sum = 0.0;
        for array in arrays {
            sum += array.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()?;
        }
        Ok(sum)
    }

    /// In the order of PyTorch's AdamW.
    fn adamw(
        &self,
        values: &mut Tensor,
        gradient: &Tensor,
        (first, second): (&mut Tensor, &mut Tensor),
        settings: AdamW,
    ) -> Result<()> {
        let AdamW { lr, beta1, beta2, eps, weight_decay, step } = settings;
        let [lr, beta1, beta2, eps, decay] = [lr, beta1, beta2, eps, weight_decay].map(f64::from);
        let gradient = gradient.reshape(values.shape())?;
        *first = ((&*first * beta1)? + (&gradient * (1.0 - beta1))?)?;
        *second = ((&*second * beta2)? + (gradient.sqr()? * (1.0 - beta2))?)?;
        let correction = |beta: f64| 1.0 - beta.powi(step as i32);
        let root = ((second.sqrt()? / correction(beta2).sqrt())? + eps)?;
        let change = ((&*first / root)? * (lr / correction(beta1)))?;
        *values = ((&*values * (1.0 - lr * decay))? - change)?;
        Ok(())
    }
}
