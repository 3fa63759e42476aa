//! Sequences that are continued step by step, with what is kept of them between two steps.

use std::collections::HashMap;

use candle_core::Tensor;
use mixse_kernels::attention::Segment;

use super::{CachedPass, Decoder, Ragged};
use crate::{
    Error, Result,
    cache::{KvCache, SequenceId},
    mixture::Mixture,
};

/// Sequences that are being continued by a model, with their keys and values.
pub struct Session<'a> {
    decoder: &'a Decoder,
    mixture: Option<&'a Mixture>,
    cache: KvCache,
    /// A second cache for the base alone, when the router reads its final hidden states. Sequence ids are the same.
    base: Option<KvCache>,
    /// What a router for whole sequences has decided.
    decisions: Option<Decisions>,
}

#[derive(Default)]
struct Decisions {
    /// Tokens of the prompts of sequences that have none yet, where that was said.
    prompts: HashMap<SequenceId, usize>,
    /// By sequence and block: the gates of the experts.
    made: HashMap<SequenceId, Vec<Vec<f32>>>,
}

impl<'a> Session<'a> {
    /// A session without sequences.
    pub fn new(decoder: &'a Decoder, mixture: Option<&'a Mixture>) -> Self {
        let base = mixture.is_some_and(Mixture::reads_base_last).then(|| decoder.new_cache());
        let decisions = mixture.is_some_and(Mixture::decides_for_sequences).then(Decisions::default);
        Self { decoder, mixture, cache: decoder.new_cache(), base, decisions }
    }

    /// A sequence without tokens.
    pub fn start(&mut self) -> SequenceId {
        if let Some(base) = &mut self.base {
            base.start();
        }
        self.cache.start()
    }

    /// Says that the first `tokens` tokens of a new sequence are its prompt, over which a router for whole sequences decides. They
    /// must come in one step; without this call, the first step is the prompt.
    pub fn set_prompt(&mut self, id: SequenceId, tokens: usize) {
        if let Some(decisions) = &mut self.decisions {
            decisions.prompts.insert(id, tokens);
        }
    }

    /// A sequence that starts with everything `id` holds; nothing is computed again.
    pub fn fork(&mut self, id: SequenceId) -> SequenceId {
        if let Some(base) = &mut self.base {
            base.fork(id);
        }
        let fork = self.cache.fork(id);
        if let Some(decisions) = &mut self.decisions
            && let Some(made) = decisions.made.get(&id).cloned()
        {
            decisions.made.insert(fork, made);
        }
        fork
    }

    /// Tokens of a sequence.
    pub fn len(&self, id: SequenceId) -> usize {
        self.cache.len(id)
    }

    /// Bytes held for keys and values.
    pub fn cache_bytes(&self) -> usize {
        self.cache.bytes() + self.base.as_ref().map_or(0, KvCache::bytes)
    }

    /// Forgets a sequence.
    pub fn release(&mut self, id: SequenceId) {
        if let Some(base) = &mut self.base {
            base.release(id);
        }
        if let Some(decisions) = &mut self.decisions {
            decisions.prompts.remove(&id);
            decisions.made.remove(&id);
        }
        self.cache.release(id);
    }

    /// Appends tokens to sequences (each at most once in a call) and returns the last block's output of every new token
    /// `[rows, d]`, in the order given. Feed it to [`Decoder::logits`].
    ///
    /// # Errors
    /// An id outside the vocabulary; part of a prompt where the router decides over all of it; a fault of the device.
    pub fn step(&mut self, work: &[(SequenceId, &[u32])]) -> Result<Tensor> {
        Ok(self.pass(work, false)?.0)
    }

    /// As [`Session::step`], with each block's gates `[rows, experts]`; there are none where experts count fully.
    ///
    /// # Errors
    /// As [`Session::step`].
    pub fn step_with_gates(&mut self, work: &[(SequenceId, &[u32])]) -> Result<(Tensor, Vec<Vec<f32>>)> {
        self.pass(work, true)
    }

    fn pass(&mut self, work: &[(SequenceId, &[u32])], trace: bool) -> Result<(Tensor, Vec<Vec<f32>>)> {
        let ids: Vec<u32> = work.iter().flat_map(|(_, ids)| ids.iter().copied()).collect();
        self.decoder.check_ids(&ids)?;
        let mut ragged = Ragged {
            positions: Vec::with_capacity(ids.len()),
            segments: Vec::with_capacity(work.len()),
            prompts: Vec::with_capacity(work.len()),
        };
        for &(id, new) in work {
            ragged.prompts.push(self.prompt_rows(id, new.len())?);
        }
        for cache in self.base.iter_mut().chain([&mut self.cache]) {
            cache.reserve(work.iter().map(|&(id, new)| (id, new.len())));
        }
        let mut sequences = Vec::with_capacity(work.len());
        for &(id, new) in work {
            let first = self.cache.len(id);
            ragged.segments.push(Segment { start: ragged.positions.len(), len: new.len() });
            ragged.positions.extend(first as u32..(first + new.len()) as u32);
            self.cache.extend(id, new.len());
            if let Some(base) = &mut self.base {
                base.extend(id, new.len());
            }
            sequences.push(id);
        }
        let base_last = match &mut self.base {
            None => None,
            Some(cache) => {
                let cached = CachedPass { cache, sequences: &sequences, earlier: Vec::new() };
                let (x, _) = self.decoder.run(&ids, &ragged, None, Some(cached), None, false)?;
                Some(self.decoder.final_norm(&x)?)
            }
        };
        let earlier = self.earlier(&sequences);
        let cached = CachedPass { cache: &mut self.cache, sequences: &sequences, earlier };
        let trace = trace || (self.decisions.is_some() && ragged.prompts.iter().any(|&rows| rows > 0));
        let (x, gates) =
            self.decoder.run(&ids, &ragged, self.mixture, Some(cached), base_last.as_ref(), trace)?;
        self.keep_decisions(&sequences, &ragged, &gates);
        Ok((x, gates))
    }

    /// How many of a sequence's `new` next tokens a decision is taken over; 0: it was taken.
    fn prompt_rows(&self, id: SequenceId, new: usize) -> Result<usize> {
        let Some(decisions) = &self.decisions else { return Ok(new) };
        if decisions.made.contains_key(&id) {
            return Ok(0);
        }
        match decisions.prompts.get(&id) {
            Some(&prompt) if prompt > new => Err(Error::Unsupported(format!(
                "a prompt of {prompt} tokens came in parts of {new}, but the router decides over all of it"
            ))),
            Some(&prompt) => Ok(prompt),
            None => Ok(new),
        }
    }

    /// By block, the gates of all sequences; zeros for those that are not decided yet.
    fn earlier(&self, sequences: &[SequenceId]) -> Vec<Vec<f32>> {
        let (Some(decisions), Some(mixture)) = (&self.decisions, self.mixture) else { return Vec::new() };
        if !sequences.iter().any(|id| decisions.made.contains_key(id)) {
            return Vec::new();
        }
        let experts = mixture.experts.len();
        let of_block = |block: usize| {
            let mut gates = vec![0f32; sequences.len() * experts];
            for (id, place) in sequences.iter().zip(gates.chunks_exact_mut(experts)) {
                if let Some(made) = decisions.made.get(id) {
                    place.copy_from_slice(&made[block]);
                }
            }
            gates
        };
        (0..self.decoder.config.blocks.len()).map(of_block).collect()
    }

    fn keep_decisions(&mut self, sequences: &[SequenceId], ragged: &Ragged, gates: &[Vec<f32>]) {
        let (Some(decisions), Some(mixture)) = (&mut self.decisions, self.mixture) else { return };
        let experts = mixture.experts.len();
        for ((&id, segment), &prompt) in sequences.iter().zip(&ragged.segments).zip(&ragged.prompts) {
            if prompt > 0 {
                let own = segment.start * experts..(segment.start + 1) * experts;
                decisions.made.insert(id, gates.iter().map(|block| block[own.clone()].to_vec()).collect());
                decisions.prompts.remove(&id);
            }
        }
    }
}
