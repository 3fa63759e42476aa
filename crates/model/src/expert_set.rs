//! Experts laid side by side for a forward pass.
//!
//! All adapters of one module act as one narrow product: `u = x Aᵀ` with the rows of every expert's A one after another,
//! then `y += (u ⊙ c) Bᵀ` with the columns of every expert's B, where `c` repeats each expert's gate times its scaling over
//! its rank. One flat array a block holds every factor of the block: it is the unit that training differentiates.

use std::sync::Arc;

use crate::{
    Error, Result,
    config::ModelConfig,
    expert::{Expert, Factors, Module, PerModule},
};

/// Where one module's factors lie in a block's flat array, and how the experts share its rows.
#[derive(Debug, Clone, PartialEq)]
pub struct ModuleLayout {
    /// Inputs of the module.
    pub k: usize,
    /// Outputs of the module.
    pub n: usize,
    /// Offset of A `[R, k]`; Bᵀ `[R, n]` follows it directly.
    pub offset: usize,
    /// Rank of each expert in this module; 0: the expert has no adapter here.
    pub ranks: Vec<usize>,
    /// Scaling s of each expert in this module.
    pub scales: Vec<f32>,
}

impl ModuleLayout {
    /// R: the ranks of all experts together.
    pub fn total_rank(&self) -> usize {
        self.ranks.iter().sum()
    }

    /// The module's A `[R, k]` in a block's flat values.
    pub fn a<'a>(&self, flat: &'a [f32]) -> &'a [f32] {
        &flat[self.offset..self.offset + self.total_rank() * self.k]
    }

    /// The module's Bᵀ `[R, n]` in a block's flat values.
    pub fn bt<'a>(&self, flat: &'a [f32]) -> &'a [f32] {
        let start = self.offset + self.total_rank() * self.k;
        &flat[start..start + self.total_rank() * self.n]
    }

    /// A and Bᵀ, writable.
    pub fn factors_mut<'a>(&self, flat: &'a mut [f32]) -> (&'a mut [f32], &'a mut [f32]) {
        let (a, b) = (self.total_rank() * self.k, self.total_rank() * self.n);
        flat[self.offset..self.offset + a + b].split_at_mut(a)
    }
}

/// The layout of one block's flat array.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockLayout {
    /// `None`: no expert adapts the module.
    pub modules: PerModule<Option<ModuleLayout>>,
    /// Length of the flat array.
    pub len: usize,
}

/// Experts of one base, ready for a forward pass.
#[derive(Debug, Clone)]
pub struct ExpertSet {
    /// Their names, in gate order.
    pub names: Vec<String>,
    /// One layout a block.
    pub layouts: Vec<Arc<BlockLayout>>,
    /// One flat array a block, `[layout.len]`, shared with whoever computes with it on the host.
    pub params: Vec<Arc<Vec<f32>>>,
}

impl ExpertSet {
    /// Lays `experts` side by side, in the order given.
    ///
    /// # Errors
    /// An expert that was made for another base.
    pub fn new(experts: &[Expert], model: &ModelConfig) -> Result<Self> {
        if experts.is_empty() {
            return Err(Error::Unsupported("a mixture needs at least one expert".into()));
        }
        for expert in experts {
            expert.check_fits(model)?;
        }
        let mut layouts = Vec::with_capacity(model.blocks.len());
        let mut params = Vec::with_capacity(model.blocks.len());
        for block in 0..model.blocks.len() {
            let layout = block_layout(experts, model, block);
            let mut flat = vec![0.0; layout.len];
            for (module, place) in Module::ALL.iter().zip(&layout.modules) {
                let Some(place) = place else { continue };
                let (a, bt) = place.factors_mut(&mut flat);
                let mut row = 0;
                for factors in experts.iter().filter_map(|e| e.blocks[block][module.index()].as_ref()) {
                    let (k, n, r) = (place.k, place.n, factors.rank);
                    a[row * k..(row + r) * k].copy_from_slice(&factors.a);
                    for j in 0..r {
                        for i in 0..n {
                            bt[(row + j) * n + i] = factors.b[i * r + j];
                        }
                    }
                    row += r;
                }
            }
            params.push(Arc::new(flat));
            layouts.push(Arc::new(layout));
        }
        Ok(Self { names: experts.iter().map(|e| e.name.clone()).collect(), layouts, params })
    }

    /// Number of experts (n).
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// There is no empty set; this is always false.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Expert `index` taken out again, with the values the set holds now. `like` gives its configuration.
    pub fn extract(&self, index: usize, like: &Expert) -> Expert {
        let mut blocks = Vec::with_capacity(self.params.len());
        for (layout, params) in self.layouts.iter().zip(&self.params) {
            let mut modules = [const { None }; 7];
            for (slot, place) in modules.iter_mut().zip(&layout.modules) {
                let Some(place) = place else { continue };
                let (k, n, r) = (place.k, place.n, place.ranks[index]);
                if r == 0 {
                    continue;
                }
                let row: usize = place.ranks[..index].iter().sum();
                let bt = place.bt(params);
                let mut b = vec![0.0; n * r];
                for j in 0..r {
                    for i in 0..n {
                        b[i * r + j] = bt[(row + j) * n + i];
                    }
                }
                let a = place.a(params)[row * k..(row + r) * k].to_vec();
                *slot = Some(Factors { rank: r, scale: place.scales[index], a, b });
            }
            blocks.push(modules);
        }
        Expert { name: self.names[index].clone(), config: like.config.clone(), blocks }
    }
}

fn block_layout(experts: &[Expert], model: &ModelConfig, block: usize) -> BlockLayout {
    let mut len = 0;
    let modules = PerModule::from_fn(|module| {
        let factors = || experts.iter().map(|e| e.blocks[block][module.index()].as_ref());
        let ranks: Vec<usize> = factors().map(|f| f.map_or(0, |f| f.rank)).collect();
        let total: usize = ranks.iter().sum();
        (total > 0).then(|| {
            let (k, n) = module.shape(model);
            let offset = len;
            len += total * (k + n);
            let scales = factors().map(|f| f.map_or(0.0, |f| f.scale)).collect();
            ModuleLayout { k, n, offset, ranks, scales }
        })
    });
    BlockLayout { modules, len }
}
