//! Sequences that are continued step by step, with what is kept of them between two steps.

use std::{collections::HashMap, sync::Arc};

use mixse_kernels::Segment;

use super::{CachedPass, Decoder, Loaded};
use crate::{
    Error, Result,
    backend::{Backend, PageTable, Ragged},
    cache::{PageTables, SequenceId},
    engine::{Ask, PassOutput, Session},
    mixture::Mixture,
};

/// A [`Session`] of a decoder.
pub(crate) struct DecoderSession<'a, B: Backend> {
    decoder: &'a Decoder<B>,
    mixture: Option<Loaded<B>>,
    /// Of all sequences, for every pool of pages.
    tables: PageTables,
    pages: B::Pages,
    /// A second pool, numbered like the first, for the base alone: when the router reads its final hidden states.
    base_pages: Option<B::Pages>,
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

impl<'a, B: Backend> DecoderSession<'a, B> {
    pub(crate) fn new(decoder: &'a Decoder<B>, mixture: Option<&Mixture>) -> Result<Self> {
        let mixture = mixture.map(|mixture| Loaded::new(&decoder.backend, mixture)).transpose()?;
        let new_pages = || decoder.backend.new_pages(&decoder.blocks);
        let base_pages = mixture.as_ref().is_some_and(Loaded::reads_base_last).then(new_pages).transpose()?;
        let decisions = mixture.as_ref().is_some_and(Loaded::decides_for_sequences).then(Decisions::default);
        let (tables, pages) = (PageTables::default(), new_pages()?);
        Ok(Self { decoder, mixture, tables, pages, base_pages, decisions })
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
        let (Some(decisions), Some(mixture)) = (&self.decisions, &self.mixture) else { return Vec::new() };
        if !sequences.iter().any(|id| decisions.made.contains_key(id)) {
            return Vec::new();
        }
        let experts = mixture.experts;
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
        let (Some(decisions), Some(mixture)) = (&mut self.decisions, &self.mixture) else { return };
        let experts = mixture.experts;
        for ((&id, segment), &prompt) in sequences.iter().zip(&ragged.segments).zip(&ragged.prompts) {
            if prompt > 0 {
                let own = segment.start * experts..(segment.start + 1) * experts;
                decisions.made.insert(id, gates.iter().map(|block| block[own.clone()].to_vec()).collect());
                decisions.prompts.remove(&id);
            }
        }
    }

    /// Gives the pools as many pages as the tables count.
    fn grow(&mut self) -> Result<()> {
        for pages in self.base_pages.iter_mut().chain([&mut self.pages]) {
            self.decoder.backend.grow_pages(pages, self.tables.pages())?;
        }
        Ok(())
    }
}

impl<B: Backend> Session for DecoderSession<'_, B> {
    fn start(&mut self) -> SequenceId {
        self.tables.start()
    }

    fn set_prompt(&mut self, id: SequenceId, tokens: usize) {
        if let Some(decisions) = &mut self.decisions {
            decisions.prompts.insert(id, tokens);
        }
    }

    fn fork(&mut self, id: SequenceId) -> Result<SequenceId> {
        let (fork, copy) = self.tables.fork(id);
        self.grow()?;
        if let Some(copy) = copy {
            for pages in self.base_pages.iter_mut().chain([&mut self.pages]) {
                self.decoder.backend.copy_page(pages, copy.from, copy.to)?;
            }
        }
        if let Some(decisions) = &mut self.decisions
            && let Some(made) = decisions.made.get(&id).cloned()
        {
            decisions.made.insert(fork, made);
        }
        Ok(fork)
    }

    fn len(&self, id: SequenceId) -> usize {
        self.tables.len(id)
    }

    fn cache_bytes(&self) -> usize {
        let pools = self.base_pages.iter().chain([&self.pages]);
        pools.map(|pages| self.decoder.backend.page_bytes(pages)).sum()
    }

    fn release(&mut self, id: SequenceId) {
        if let Some(decisions) = &mut self.decisions {
            decisions.prompts.remove(&id);
            decisions.made.remove(&id);
        }
        self.tables.release(id);
    }

    fn step(&mut self, work: &[(SequenceId, &[u32])], ask: &Ask<'_>) -> Result<PassOutput> {
        let decoder = self.decoder;
        let ids: Vec<u32> = work.iter().flat_map(|(_, ids)| ids.iter().copied()).collect();
        decoder.check_ids(&ids)?;
        decoder.check_ask(ask, ids.len())?;
        let mut ragged = Ragged {
            positions: Vec::with_capacity(ids.len()),
            segments: Vec::with_capacity(work.len()),
            prompts: Vec::with_capacity(work.len()),
        };
        for &(id, new) in work {
            ragged.prompts.push(self.prompt_rows(id, new.len())?);
        }
        self.tables.reserve(work.iter().map(|&(id, new)| (id, new.len())));
        let mut sequences = Vec::with_capacity(work.len());
        for &(id, new) in work {
            let first = self.tables.len(id);
            ragged.segments.push(Segment { start: ragged.positions.len(), len: new.len() });
            ragged.positions.extend(first as u32..(first + new.len()) as u32);
            self.tables.extend(id, new.len());
            sequences.push(id);
        }
        self.grow()?;
        let none = || PageTable { pages: Vec::new(), len: 0 };
        let tables: Vec<PageTable> =
            sequences.iter().map(|&id| self.tables.table(id).cloned().unwrap_or_else(none)).collect();
        let ragged = Arc::new(ragged);
        let base_last = match &mut self.base_pages {
            None => None,
            Some(pages) => {
                let cached = CachedPass { tables: tables.clone(), pages, earlier: Vec::new() };
                let (x, _) = decoder.run(&ids, &ragged, None, Some(cached), None, false)?;
                Some(decoder.backend.final_norm(&decoder.ends, &x)?)
            }
        };
        let earlier = self.earlier(&sequences);
        let cached = CachedPass { tables, pages: &mut self.pages, earlier };
        let trace = ask.gates || (self.decisions.is_some() && ragged.prompts.iter().any(|&rows| rows > 0));
        let mixture = self.mixture.as_ref();
        let (x, gates) = decoder.run(&ids, &ragged, mixture, Some(cached), base_last.as_ref(), trace)?;
        self.keep_decisions(&sequences, &ragged, &gates);
        Ok(PassOutput { gates, ..decoder.answer(&x, ask)? })
    }
}
