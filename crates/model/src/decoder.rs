//! The decoder: one forward pass for all architectures and backends, used by training, generation, evaluation and serving.
//!
//! Everything here is a loop over blocks; the arithmetic is the [`Backend`]'s. What the other crates see of it is an
//! [`Engine`](crate::engine::Engine).

mod loaded;
mod session;
mod training;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub(crate) use loaded::{Learned, Loaded, LoadedRouting};
pub(crate) use session::DecoderSession;
pub(crate) use training::{DecoderMoments, DecoderTrainer};

use crate::{
    Error, Result,
    backend::{Backend, Batch, BlockExperts, Decided, Gate, PageTable, Ragged, dropout::BlockDropout},
    config::ModelConfig,
    engine::{Ask, Dropout, PassOutput},
    mixture::Mixture,
    router::RouterInput,
    weights::Checkpoint,
};

/// How frozen weights are kept for a pass. Activations are f32 between operations. With bf16, products on a CPU with AMX round
/// them to bf16; with int8, products round them to 16 bits. With both, keys and values are kept as bf16 where heads are a
/// multiple of 32 wide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// As 32-bit floats: agrees with a reference to its last digits.
    F32,
    /// Rounded to bfloat16: the default.
    #[default]
    Bf16,
    /// 8-bit integers with a scale for 32 weights, multiplied as integers with activations that are rounded to 16 bits by row:
    /// for generation; nothing can be trained on it. A GGUF file's own blocks of 8 and 4 bits (Q8_0, Q4_0, Q4_1, Q4_K) are kept
    /// as they are.
    Int8,
    /// 4-bit integers with a scale and a minimum for 32 weights: a large base in little memory. Of a GGUF file's blocks
    /// the same ones are kept, all others are held in 8 bits.
    Int4,
}

impl Precision {
    /// Its name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }

    /// Whether experts and routers can be trained on it: passes with gradients see activations as they are.
    pub fn trains(self) -> bool {
        self != Self::Int8
    }
}

/// A frozen base model on a backend, ready to run.
#[derive(Debug)]
pub(crate) struct Decoder<B: Backend> {
    pub(crate) config: ModelConfig,
    pub(crate) backend: B,
    blocks: Vec<B::Block>,
    ends: B::Ends,
}

/// How gates come to each block of one pass.
enum PassGates<B: Backend> {
    Full,
    /// Known beforehand, `[rows, experts]`.
    Given(B::Array),
    /// A router has decided before the blocks run.
    Decided(Decided<B>),
    /// A router decides in every block.
    PerBlock,
}

/// What a pass over cached sequences works on.
struct CachedPass<'a, B: Backend> {
    tables: Vec<PageTable>,
    pages: &'a mut B::Pages,
    /// By block, the gates `[sequences, experts]` of those that a router has decided for earlier; empty where it decides for
    /// tokens.
    earlier: Vec<Vec<f32>>,
}

impl<B: Backend> Decoder<B> {
    pub(crate) fn load(backend: B, checkpoint: &Checkpoint, precision: Precision) -> Result<Self> {
        let (blocks, ends) = backend.load(checkpoint, precision)?;
        Ok(Self { config: checkpoint.config.clone(), backend, blocks, ends })
    }

    pub(crate) fn weights_hash(&self) -> String {
        let mut hasher = Sha256::new();
        self.backend.hash_weights(&self.blocks, &self.ends, &mut |bytes| hasher.update(bytes));
        hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    pub(crate) fn weight_bytes(&self) -> usize {
        self.backend.weight_bytes(&self.blocks, &self.ends)
    }

    /// Fails when an id lies outside the vocabulary.
    fn check_ids(&self, ids: &[u32]) -> Result<()> {
        match ids.iter().find(|&&id| id as usize >= self.config.vocab_size) {
            Some(id) => Err(Error::Unsupported(format!(
                "token id {id} lies outside the vocabulary of {} tokens",
                self.config.vocab_size
            ))),
            None => Ok(()),
        }
    }

    /// Fails when a pass over `rows` rows has none of those asked for, or the vocabulary none of the tokens.
    fn check_ask(&self, ask: &Ask<'_>, rows: usize) -> Result<()> {
        let chosen = ask.choices.iter().map(|choice| choice.row).chain(ask.logits.iter().copied());
        if let Some(row) = chosen.into_iter().find(|&row| row >= rows) {
            return Err(Error::Unsupported(format!("row {row} lies outside a pass of {rows} rows")));
        }
        self.check_targets(ask.targets, rows)
    }

    fn check_targets(&self, targets: &[crate::backend::Target], rows: usize) -> Result<()> {
        match targets.iter().find(|t| t.row >= rows || t.token as usize >= self.config.vocab_size) {
            None => Ok(()),
            Some(t) => Err(Error::Unsupported(format!(
                "target token {} of row {} lies outside {rows} rows and {} tokens",
                t.token, t.row, self.config.vocab_size
            ))),
        }
    }

    /// Scaled input embeddings `[rows, d]`.
    fn embed(&self, ids: &[u32]) -> Result<B::Array> {
        self.check_ids(ids)?;
        self.backend.embed(&self.ends, ids)
    }

    /// Gates that are decided before the blocks run. `embedded` is the pass's input; `base_last` its final hidden state
    /// in the base without experts, when the router wants it.
    fn pass_gates(
        &self,
        mixture: &Loaded<B>,
        ids: &[u32],
        ragged: &Ragged,
        embedded: &B::Array,
        base_last: Option<&B::Array>,
        earlier: &[Vec<f32>],
    ) -> Result<PassGates<B>> {
        let experts = mixture.experts;
        let given = |values: Vec<f32>| -> Result<PassGates<B>> {
            Ok(PassGates::Given(self.backend.upload(&Arc::new(values))?))
        };
        match &mixture.routing {
            LoadedRouting::All => Ok(PassGates::Full),
            LoadedRouting::Fixed(weights) => given(weights.repeat(ids.len())),
            LoadedRouting::Random { seed } => {
                let mut values = vec![0f32; ids.len() * experts];
                for ((row, &id), &position) in
                    values.chunks_exact_mut(experts).zip(ids).zip(&ragged.positions)
                {
                    row[crate::random::below(experts, *seed, u64::from(position), u64::from(id))] = 1.0;
                }
                given(values)
            }
            LoadedRouting::Learned(router) => match Self::pass_input(router, embedded, base_last)? {
                None => Ok(PassGates::PerBlock),
                Some(h) => {
                    let routing = router.routing(0, ragged, of_block(earlier, 0));
                    Ok(PassGates::Decided(self.backend.decide(h, routing)?))
                }
            },
        }
    }

    /// What a router reads that decides before the blocks run; `None`: each block's input.
    fn pass_input<'t>(
        router: &Learned<B>,
        embedded: &'t B::Array,
        base_last: Option<&'t B::Array>,
    ) -> Result<Option<&'t B::Array>> {
        match router.config.input {
            RouterInput::Block => Ok(None),
            RouterInput::Embedding => Ok(Some(embedded)),
            RouterInput::BaseLast => base_last.map(Some).ok_or_else(|| {
                Error::Unsupported("a base_last router needs the base's final hidden states".into())
            }),
        }
    }

    /// The experts and gate of one block in a pass.
    fn block_experts<'a>(
        mixture: Option<&'a Loaded<B>>,
        gates: &'a PassGates<B>,
        block: usize,
        ragged: &'a Ragged,
        earlier: &'a [Vec<f32>],
        dropout: Option<&'a Dropout>,
    ) -> Option<BlockExperts<'a, B>> {
        let mixture = mixture?;
        let gate = match (gates, &mixture.routing) {
            (PassGates::Given(gates) | PassGates::Decided(Decided { gates, .. }), _) => Gate::Given(gates),
            (PassGates::PerBlock, LoadedRouting::Learned(router)) => {
                Gate::Routed(router.routing(block, ragged, of_block(earlier, block)))
            }
            _ => Gate::Full,
        };
        let (params, layout) = (&mixture.params[block], &*mixture.layouts[block]);
        let dropout = dropout.map(|pass| BlockDropout { pass, block });
        Some(BlockExperts { params, layout, gate, dropout })
    }

    /// The base's final hidden states (after the final norm) of whole sequences, when the mixture's router reads them.
    fn base_last_whole(
        &self,
        ids: &[u32],
        ragged: &Arc<Ragged>,
        mixture: Option<&Loaded<B>>,
    ) -> Result<Option<B::Array>> {
        mixture.is_some_and(Loaded::reads_base_last).then(|| self.base_last(ids, ragged)).transpose()
    }

    /// The final hidden states (after the final norm) `[rows, d]` of whole sequences in the base without experts.
    fn base_last(&self, ids: &[u32], ragged: &Arc<Ragged>) -> Result<B::Array> {
        let (x, _) = self.run(ids, ragged, None, None, None, false)?;
        self.backend.final_norm(&self.ends, &x)
    }

    /// A pass without gradients. Returns the last block's output `[rows, d]` and, when asked, each block's gates.
    fn run(
        &self,
        ids: &[u32],
        ragged: &Arc<Ragged>,
        mixture: Option<&Loaded<B>>,
        cached: Option<CachedPass<'_, B>>,
        base_last: Option<&B::Array>,
        trace: bool,
    ) -> Result<(B::Array, Vec<Vec<f32>>)> {
        let backend = &self.backend;
        let embedded = self.embed(ids)?;
        let (tables, mut pages, earlier) = match cached {
            None => (None, None, Vec::new()),
            Some(CachedPass { tables, pages, earlier }) => (Some(tables), Some(pages), earlier),
        };
        let gates = match mixture {
            Some(m) => self.pass_gates(m, ids, ragged, &embedded, base_last, &earlier)?,
            None => PassGates::Full,
        };
        let pass = backend.pass(&self.blocks, &Batch { ragged: ragged.clone(), tables })?;
        let (mut x, mut between, mut traced) = (embedded, B::Saved::default(), Vec::new());
        for (index, block) in self.blocks.iter().enumerate() {
            let experts = Self::block_experts(mixture, &gates, index, ragged, &earlier, None);
            x = backend.forward(block, &x, &pass, experts, pages.as_deref_mut(), &mut between)?;
            if trace && let PassGates::PerBlock = &gates {
                traced.push(backend.routed_gates(&between)?);
            }
        }
        // Read after the last block, so that none waits for it.
        let traced = match &gates {
            PassGates::Given(gates) | PassGates::Decided(Decided { gates, .. }) if trace => {
                vec![backend.read(gates)?; self.blocks.len()]
            }
            _ => traced.iter().map(|gates| backend.read(gates)).collect::<Result<_>>()?,
        };
        Ok((x, traced))
    }

    /// What is asked of the last block's output.
    fn answer(&self, x: &B::Array, ask: &Ask<'_>) -> Result<PassOutput> {
        let (backend, ends) = (&self.backend, &self.ends);
        let mut found = PassOutput::default();
        if !ask.choices.is_empty() {
            found.chosen = backend.choose(ends, x, ask.choices)?;
        }
        if !ask.targets.is_empty() {
            found.scores = backend.score(ends, x, ask.targets, ask.top)?;
        }
        if !ask.logits.is_empty() {
            found.logits = backend.logits(ends, x, ask.logits)?;
        }
        Ok(found)
    }

    /// A pass over whole sequences.
    pub(crate) fn whole(
        &self,
        ids: &[u32],
        ragged: &Arc<Ragged>,
        mixture: Option<&Mixture>,
        ask: &Ask<'_>,
    ) -> Result<PassOutput> {
        self.check_ask(ask, ids.len())?;
        let mixture = mixture.map(|mixture| Loaded::new(&self.backend, mixture)).transpose()?;
        let mixture = mixture.as_ref();
        let base_last = self.base_last_whole(ids, ragged, mixture)?;
        let (x, gates) = self.run(ids, ragged, mixture, None, base_last.as_ref(), ask.gates)?;
        Ok(PassOutput { gates, ..self.answer(&x, ask)? })
    }

    /// The mean of the final hidden states of one sequence in the base, `[d]`.
    pub(crate) fn mean_hidden(&self, ids: &[u32]) -> Result<Vec<f32>> {
        let ragged = Arc::new(Ragged::whole([ids.len()]));
        let hidden = self.base_last(ids, &ragged)?;
        self.backend.read(&self.backend.prompt_means(&hidden, &ragged)?)
    }
}

/// What was decided earlier for one block.
fn of_block(earlier: &[Vec<f32>], block: usize) -> &[f32] {
    earlier.get(block).map_or(&[], Vec::as_slice)
}
