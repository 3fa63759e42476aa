//! The processor: `mixse-kernels` over slices. A block and its backward stand in [`block`].
//!
//! A row's result depends on the row alone: every kernel reduces in one fixed order, whatever the batch, the pages and the
//! threads.

pub(crate) mod block;
pub(crate) mod buffer;
pub(crate) mod gates;
pub(crate) mod head;
mod moments;
mod own_blocks;
mod pages;

use std::{ops::Deref, sync::Arc};

use mixse_kernels::{Angles, KvStorage, Packed, PagedSegment, Storage, adamw, add_into};

use super::{
    AdamW, Backend, Batch, BlockExperts, BlockGradients, Choice, Chosen, Decided, Gate, MomentSums,
    PageTable, Ragged, RouterGradients, Routing, Target, TokenScore,
    rows::PAGE_TOKENS,
    spec::{BlockSpec, BlockWeights, Ends},
};
use crate::{Error, Result, decoder::Precision, weights::Checkpoint};
use block::{Activations, Attend, ExpertGrads, ExpertValues, FusedBlock, GateValues};
use buffer::Buffer;
use moments::Sums;
use pages::Pages;

/// The processor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cpu;

/// Values in memory of their own or, for parameters that nobody writes to, in the host's.
#[derive(Debug)]
pub(crate) enum Array {
    Own(Buffer),
    Shared(Arc<Vec<f32>>),
}

impl Array {
    fn zeros(len: usize) -> Self {
        let mut buffer = Buffer::new(len);
        buffer.fill(0.0);
        Self::Own(buffer)
    }

    fn copied(values: &[f32]) -> Self {
        let mut buffer = Buffer::new(values.len());
        buffer.copy_from_slice(values);
        Self::Own(buffer)
    }

    /// The values, writable; copied first where they are shared.
    fn values_mut(&mut self) -> &mut [f32] {
        if let Self::Shared(values) = self {
            *self = Self::copied(values);
        }
        match self {
            Self::Own(buffer) => buffer,
            Self::Shared(_) => &mut [],
        }
    }
}

impl Deref for Array {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Self::Own(buffer) => buffer,
            Self::Shared(values) => values,
        }
    }
}

/// A block with its place among the others.
#[derive(Debug)]
pub(crate) struct Block {
    index: usize,
    fused: FusedBlock,
}

/// A batch as the blocks read it.
#[derive(Debug)]
pub(crate) struct Pass {
    ragged: Arc<Ragged>,
    tables: Option<Vec<PageTable>>,
    /// Rotary angles, by block; blocks with the same frequencies share them.
    angles: Vec<Arc<Angles>>,
}

impl Pass {
    fn paged_segments(&self) -> Option<Vec<PagedSegment<'_>>> {
        let tables = self.tables.as_ref()?;
        let segments = tables.iter().zip(&self.ragged.segments).map(|(table, rows)| PagedSegment {
            q_start: rows.start,
            q_len: rows.len,
            kv_len: table.len,
            pages: &table.pages,
        });
        Some(segments.collect())
    }
}

fn expert_values<'a>(experts: Option<BlockExperts<'a, Cpu>>) -> Option<ExpertValues<'a>> {
    experts.map(|experts| ExpertValues {
        params: experts.params,
        layout: experts.layout,
        dropout: experts.dropout,
        gate: match experts.gate {
            Gate::Full => GateValues::Full,
            Gate::Given(gates) => GateValues::Given(gates),
            Gate::Routed(Routing { weight, config, sequences, .. }) => {
                GateValues::Routed(weight, config, sequences)
            }
        },
    })
}

/// How the kernels hold frozen weights at a precision.
fn storage(precision: Precision) -> Storage {
    match precision {
        Precision::F32 => Storage::F32,
        Precision::Bf16 => Storage::Bf16,
        Precision::Int8 => Storage::Int8,
        Precision::Int4 => Storage::Q4,
    }
}

/// Reads one frozen matrix and packs it; products with it round activations where the precision says so.
fn hold(checkpoint: &Checkpoint, name: &str, precision: Precision) -> Result<Packed> {
    let packed = pack(checkpoint, name, storage(precision))?;
    Ok(if precision == Precision::Int8 { packed.rounding_activations() } else { packed })
}

/// Reads one frozen matrix and packs it. For 8 and for 4 bits the file's own blocks are kept as they are where there are
/// kernels for them; other blocks of a file are held in 8 bits, so that nothing is cut twice.
fn pack(checkpoint: &Checkpoint, name: &str, mut storage: Storage) -> Result<Packed> {
    if matches!(storage, Storage::Int8 | Storage::Q4)
        && let Some(blocks) = checkpoint.quantized(name)?
    {
        if let Some(packed) = own_blocks::pack(&blocks)? {
            return Ok(packed);
        }
        storage = Storage::Int8;
    }
    let weight = checkpoint.tensor(name)?.contiguous()?;
    let (n, k) = weight.dims2()?;
    // Borrowed: an embedding is hundreds of megabytes.
    let (values, layout) = weight.storage_and_layout();
    let candle_core::Storage::Cpu(values) = &*values else {
        return Err(Error::Unsupported(format!("{name} was not read onto the processor")));
    };
    let start = layout.start_offset();
    Ok(Packed::pack(&values.as_slice::<f32>()?[start..start + n * k], n, k, storage))
}

impl Backend for Cpu {
    type Array = Array;
    type Block = Block;
    type Ends = Ends<Packed>;
    type Pages = Pages;
    type Pass = Pass;
    type Saved = Activations;
    type Moments = Sums;

    fn name(&self) -> &'static str {
        "cpu"
    }

    fn load(&self, checkpoint: &Checkpoint, precision: Precision) -> Result<(Vec<Block>, Ends<Packed>)> {
        let hold = &mut |name: &str| hold(checkpoint, name, precision);
        let ends = Ends::load(checkpoint, hold)?;
        let blocks = (0..checkpoint.config.blocks.len())
            .map(|index| {
                let mut spec = BlockSpec::new(&checkpoint.config, index);
                spec.attention.bf16 = matches!(precision, Precision::Bf16 | Precision::Int8);
                let weights = BlockWeights::load(checkpoint, index, hold)?;
                Ok(Block { index, fused: FusedBlock { spec, weights } })
            })
            .collect::<Result<_>>()?;
        // What tensors looked like before they were packed is no longer needed.
        crate::memory::release();
        Ok((blocks, ends))
    }

    fn hash_weights(&self, blocks: &[Block], ends: &Ends<Packed>, feed: &mut dyn FnMut(&[u8])) {
        let feed = &mut |bytes: &[u8]| feed(bytes);
        ends.embedding.fold_hash(feed);
        ends.head.fold_hash(feed);
        let projections = blocks.iter().flat_map(|block| &block.fused.weights.projections);
        projections.for_each(|projection| projection.weight.fold_hash(feed));
    }

    fn weight_bytes(&self, blocks: &[Block], ends: &Ends<Packed>) -> usize {
        let projections = blocks.iter().flat_map(|block| &block.fused.weights.projections);
        projections.map(|projection| projection.weight.bytes()).sum::<usize>() + ends.head.bytes()
    }

    fn upload(&self, values: &Arc<Vec<f32>>) -> Result<Array> {
        Ok(Array::Shared(values.clone()))
    }

    fn read(&self, array: &Array) -> Result<Vec<f32>> {
        Ok(array.to_vec())
    }

    fn zeros(&self, len: usize) -> Result<Array> {
        Ok(Array::zeros(len))
    }

    fn copy(&self, array: &Array) -> Result<Array> {
        Ok(Array::copied(array))
    }

    fn concat(&self, parts: &[&Array]) -> Result<Array> {
        let mut all = Buffer::new(parts.iter().map(|part| part.len()).sum());
        let mut rest = &mut all[..];
        for part in parts {
            let (own, after) = rest.split_at_mut(part.len());
            own.copy_from_slice(part);
            rest = after;
        }
        Ok(Array::Own(all))
    }

    fn slice(&self, array: &Array, start: usize, len: usize) -> Result<Array> {
        Ok(Array::copied(&array[start..start + len]))
    }

    fn new_pages(&self, blocks: &[Block]) -> Result<Pages> {
        // All blocks have heads of one size.
        let shape = blocks.first().map(|block| block.fused.spec.attention);
        let storage = shape.map_or(KvStorage::F32, |shape| shape.kv_storage());
        let page = shape.map_or(0, |shape| shape.page_len(PAGE_TOKENS, storage));
        Ok(Pages::new(blocks.len(), page, storage))
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

    fn pass(&self, blocks: &[Block], batch: &Batch) -> Result<Pass> {
        let mut known: Vec<(&[f32], Arc<Angles>)> = Vec::new();
        let angles = blocks
            .iter()
            .map(|block| {
                let frequencies = &*block.fused.spec.inv_freq;
                if let Some((_, angles)) = known.iter().find(|(f, _)| *f == frequencies) {
                    return angles.clone();
                }
                let angles = Arc::new(Angles::new(&batch.ragged.positions, frequencies));
                known.push((frequencies, angles.clone()));
                angles
            })
            .collect();
        Ok(Pass { ragged: batch.ragged.clone(), tables: batch.tables.clone(), angles })
    }

    fn embed(&self, ends: &Ends<Packed>, ids: &[u32]) -> Result<Array> {
        let mut rows = Buffer::new(ids.len() * ends.d());
        for (&id, row) in ids.iter().zip(rows.chunks_exact_mut(ends.d())) {
            ends.embedding.row(id as usize, row);
            row.iter_mut().for_each(|v| *v *= ends.embedding_scale);
        }
        Ok(Array::Own(rows))
    }

    fn forward(
        &self,
        block: &Block,
        x: &Array,
        pass: &Pass,
        experts: Option<BlockExperts<'_, Self>>,
        pages: Option<&mut Pages>,
        saved: &mut Activations,
    ) -> Result<Array> {
        let mut y = Buffer::new(x.len());
        let segments = pass.paged_segments();
        let attend = match (pages, &segments) {
            (Some(pages), Some(segments)) => {
                let storage = pages.storage();
                let (keys, values) = pages.of_block(block.index);
                Attend::Paged { segments, page_tokens: PAGE_TOKENS, storage, keys, values }
            }
            _ => Attend::Whole(&pass.ragged.segments),
        };
        block.fused.forward(x, &pass.angles[block.index], attend, expert_values(experts), saved, &mut y);
        Ok(Array::Own(y))
    }

    fn trim(&self, saved: &mut Activations) {
        saved.drop_scratch();
    }

    fn routed_gates(&self, saved: &Activations) -> Result<Array> {
        Ok(Array::copied(&saved.gates))
    }

    fn backward(
        &self,
        block: &Block,
        x: &Array,
        pass: &Pass,
        experts: Option<BlockExperts<'_, Self>>,
        saved: &mut Activations,
        dy: &Array,
        gradients: BlockGradients<'_, Self>,
    ) -> Result<Array> {
        let mut dx = Buffer::new(x.len());
        let routed = matches!(experts, Some(BlockExperts { gate: Gate::Routed(_), .. }));
        // The router's choice also depends on the block's input, so its gradient is needed whenever there is a router. What is
        // shared by all blocks is summed for this one first, so that sums have one order.
        let mut d_gates = (routed || gradients.gates.is_some()).then(|| match &gradients.gates {
            Some(given) => Array::zeros(given.len()),
            None => Array::zeros(saved.gates.len()),
        });
        let mut d_router = gradients.router.as_ref().map(|router| Array::zeros(router.len()));
        let mut grads = ExpertGrads {
            params: gradients.params.map(Array::values_mut),
            gates: d_gates.as_mut().map(Array::values_mut),
            router: d_router.as_mut().map(Array::values_mut),
        };
        let (angles, segments) = (&pass.angles[block.index], &pass.ragged.segments);
        block.fused.backward(x, angles, segments, expert_values(experts), saved, dy, &mut dx, &mut grads);
        for (sum, own) in [(gradients.gates, d_gates), (gradients.router, d_router)] {
            if let (Some(sum), Some(own)) = (sum, own) {
                add_into(&own, sum.values_mut());
            }
        }
        Ok(Array::Own(dx))
    }

    fn router_input(&self, block: &Block, x: &Array) -> Result<Array> {
        let mut h = Buffer::new(x.len());
        block.fused.attention_norm(x, &mut h);
        Ok(Array::Own(h))
    }

    fn router_input_backward(&self, block: &Block, x: &Array, dh: &Array, dx: &mut Array) -> Result<()> {
        let mut own = Buffer::new(x.len());
        block.fused.attention_norm_backward(x, dh, &mut own);
        add_into(&own, dx.values_mut());
        Ok(())
    }

    fn decide(&self, h: &Array, routing: Routing<'_, Self>) -> Result<Decided<Self>> {
        let map = map(routing);
        let decisions = routing.sequences.map_or(map.rows(h), |s| s.len());
        let mut probabilities = Buffer::new(decisions * map.choices());
        let mut gates = Buffer::new(map.rows(h) * map.experts());
        gates::forward(h, map, routing.sequences, &mut probabilities, &mut gates);
        Ok(Decided { gates: Array::Own(gates), probabilities: Array::Own(probabilities) })
    }

    fn decide_backward(
        &self,
        h: &Array,
        routing: Routing<'_, Self>,
        decided: &Decided<Self>,
        dgates: &Array,
        gradients: RouterGradients<'_, Self>,
    ) -> Result<()> {
        let RouterGradients { weight, bias } = gradients;
        let gradients = gates::MapGradients {
            dh: None,
            dr: weight.map(Array::values_mut),
            db: bias.map(Array::values_mut),
        };
        gates::backward(dgates, h, map(routing), routing.sequences, &decided.probabilities, gradients);
        Ok(())
    }

    fn domain_loss(
        &self,
        h: &Array,
        routing: Routing<'_, Self>,
        labels: &[u32],
        scale: f32,
        dh: Option<&mut Array>,
        gradients: RouterGradients<'_, Self>,
    ) -> Result<f32> {
        let RouterGradients { weight, bias } = gradients;
        let mut own = weight.as_ref().map(|weight| Array::zeros(weight.len()));
        let map_gradients = gates::MapGradients {
            dh: dh.map(Array::values_mut),
            dr: own.as_mut().map(Array::values_mut),
            db: bias.map(Array::values_mut),
        };
        let loss = gates::label_loss(h, map(routing), routing.sequences, labels, scale, map_gradients);
        if let (Some(weight), Some(own)) = (weight, own) {
            add_into(&own, weight.values_mut());
        }
        Ok(loss)
    }

    fn prompt_means(&self, h: &Array, ragged: &Ragged) -> Result<Array> {
        let d = h.len() / ragged.rows().max(1);
        Ok(Array::copied(&super::Sequences { ragged, earlier: &[] }.mean(h, d)))
    }

    fn final_norm(&self, ends: &Ends<Packed>, x: &Array) -> Result<Array> {
        let mut y = Buffer::new(x.len());
        head::final_norm(ends, x, &mut y);
        Ok(Array::Own(y))
    }

    fn loss(
        &self,
        ends: &Ends<Packed>,
        x: &Array,
        targets: &[Target],
        scale: f32,
        gradient: bool,
    ) -> Result<(f32, Option<Array>)> {
        let mut dx = gradient.then(|| Array::zeros(x.len()));
        let loss = head::loss(ends, x, targets, scale, dx.as_mut().map(Array::values_mut));
        Ok((loss, dx))
    }

    fn choose(&self, ends: &Ends<Packed>, x: &Array, choices: &[Choice]) -> Result<Vec<Chosen>> {
        head::choose(ends, x, choices)
    }

    fn score(
        &self,
        ends: &Ends<Packed>,
        x: &Array,
        targets: &[Target],
        top: usize,
    ) -> Result<Vec<TokenScore>> {
        head::score(ends, x, targets, top)
    }

    fn logits(&self, ends: &Ends<Packed>, x: &Array, rows: &[usize]) -> Result<Vec<f32>> {
        let mut logits = vec![0f32; rows.len() * ends.head.n()];
        head::logits(ends, x, rows.iter().copied(), &mut logits);
        for (&row, logits) in rows.iter().zip(logits.chunks_exact(ends.head.n())) {
            head::check(logits, row)?;
        }
        Ok(logits)
    }

    fn new_moments(&self, d: usize) -> Result<Sums> {
        Ok(Sums::new(d))
    }

    fn add_moments(&self, moments: &mut Sums, h: &Array) -> Result<()> {
        moments.add(h);
        Ok(())
    }

    fn read_moments(&self, moments: &Sums) -> Result<MomentSums> {
        Ok(moments.read())
    }

    fn add(&self, values: &Array, into: &mut Array) -> Result<()> {
        add_into(values, into.values_mut());
        Ok(())
    }

    fn scale(&self, array: &mut Array, factor: f32) -> Result<()> {
        array.values_mut().iter_mut().for_each(|v| *v *= factor);
        Ok(())
    }

    fn squared_norm(&self, arrays: &[Array]) -> Result<f64> {
        Ok(arrays.iter().flat_map(|array| array.iter()).map(|&v| f64::from(v) * f64::from(v)).sum())
    }

    fn adamw(
        &self,
        values: &mut Array,
        gradient: &Array,
        (first, second): (&mut Array, &mut Array),
        settings: AdamW,
    ) -> Result<()> {
        adamw(values.values_mut(), gradient, first.values_mut(), second.values_mut(), settings);
        Ok(())
    }
}

fn map<'a>(routing: Routing<'a, Cpu>) -> gates::Map<'a> {
    gates::Map {
        r: routing.weight,
        bias: routing.bias.map(|bias| &bias[..]),
        d: routing.weight.len() / routing.choices.max(1),
        config: routing.config,
    }
}
