//! An expert: a LoRA adapter on the linear modules of a frozen base (Hu et al. 2021), `ΔW = s · B A`, `s = alpha / r`.
//!
//! [`Expert`] is what an adapter file holds, module by module, in plain matrices. Adapters are read and written as PEFT
//! directories (see [`crate::peft`]); for a forward pass, experts are laid side by side in an
//! [`ExpertSet`](crate::expert_set::ExpertSet).

use std::ops::{Index, IndexMut};

use serde::{Deserialize, Serialize};

use crate::{Error, Result, config::ModelConfig};

/// The seven linear modules of a block, in the order in which a forward pass meets them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Module {
    /// Query projection.
    #[serde(rename = "q_proj")]
    Q,
    /// Key projection.
    #[serde(rename = "k_proj")]
    K,
    /// Value projection.
    #[serde(rename = "v_proj")]
    V,
    /// Attention output projection.
    #[serde(rename = "o_proj")]
    O,
    /// The MLP's gate projection, the one that the activation is applied to.
    #[serde(rename = "gate_proj")]
    Gate,
    /// The MLP's up projection.
    #[serde(rename = "up_proj")]
    Up,
    /// The MLP's down projection.
    #[serde(rename = "down_proj")]
    Down,
}

impl Module {
    /// All seven.
    pub const ALL: [Module; 7] =
        [Module::Q, Module::K, Module::V, Module::O, Module::Gate, Module::Up, Module::Down];

    /// Position in [`Module::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }

    /// Hugging Face's name of the module, without its parent.
    pub fn name(self) -> &'static str {
        match self {
            Module::Q => "q_proj",
            Module::K => "k_proj",
            Module::V => "v_proj",
            Module::O => "o_proj",
            Module::Gate => "gate_proj",
            Module::Up => "up_proj",
            Module::Down => "down_proj",
        }
    }

    /// Hugging Face's name with the parent inside the block: `self_attn.q_proj`, `mlp.up_proj`, ….
    pub fn path(self) -> &'static str {
        match self {
            Module::Q => "self_attn.q_proj",
            Module::K => "self_attn.k_proj",
            Module::V => "self_attn.v_proj",
            Module::O => "self_attn.o_proj",
            Module::Gate => "mlp.gate_proj",
            Module::Up => "mlp.up_proj",
            Module::Down => "mlp.down_proj",
        }
    }

    /// `(inputs k, outputs n)` of the module in a model.
    pub fn shape(self, config: &ModelConfig) -> (usize, usize) {
        let (d, m) = (config.hidden_size, config.intermediate_size);
        let (q, kv) = (config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim);
        match self {
            Module::Q => (d, q),
            Module::K | Module::V => (d, kv),
            Module::O => (q, d),
            Module::Gate | Module::Up => (d, m),
            Module::Down => (m, d),
        }
    }
}

/// One value for each linear module of a block, in the order of [`Module::ALL`].
#[derive(Debug, Clone, PartialEq)]
pub struct PerModule<T>(Vec<T>);

impl<T> PerModule<T> {
    /// Makes them in order.
    pub fn from_fn(make: impl FnMut(Module) -> T) -> Self {
        Self(Module::ALL.into_iter().map(make).collect())
    }

    /// As [`PerModule::from_fn`], where making one can fail.
    pub(crate) fn try_from_fn(make: impl FnMut(Module) -> Result<T>) -> Result<Self> {
        Ok(Self(Module::ALL.into_iter().map(make).collect::<Result<_>>()?))
    }

    /// The values in order.
    pub fn iter(&self) -> std::slice::Iter<'_, T> {
        self.0.iter()
    }

    /// The values in order, to be changed.
    pub(crate) fn iter_mut(&mut self) -> std::slice::IterMut<'_, T> {
        self.0.iter_mut()
    }
}

impl<T: Default> Default for PerModule<T> {
    fn default() -> Self {
        Self::from_fn(|_| T::default())
    }
}

impl<T> Index<Module> for PerModule<T> {
    type Output = T;

    fn index(&self, module: Module) -> &T {
        &self.0[module.index()]
    }
}

impl<T> IndexMut<Module> for PerModule<T> {
    fn index_mut(&mut self, module: Module) -> &mut T {
        &mut self.0[module.index()]
    }
}

impl<'a, T> IntoIterator for &'a PerModule<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// How a new expert is made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank r.
    pub rank: usize,
    /// Numerator of the scaling.
    pub alpha: f64,
    /// Modules that get an adapter, in every block.
    pub targets: Vec<Module>,
    /// Scale by `alpha / sqrt(r)` (rank-stabilised LoRA, Kalajdzievski 2023) instead of `alpha / r`.
    pub rslora: bool,
    /// Probability with which an element of the adapter's input is dropped while it is trained.
    #[serde(default)]
    pub dropout: f64,
}

impl Default for LoraConfig {
    /// The paper's: r = 8, alpha = 16, all seven modules.
    fn default() -> Self {
        Self { rank: 8, alpha: 16.0, targets: Module::ALL.to_vec(), rslora: false, dropout: 0.0 }
    }
}

impl LoraConfig {
    /// Everything that is wrong with the values, whatever the model; empty when they are fine.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut need = |fine: bool, what: String| {
            if !fine {
                faults.push(what);
            }
        };
        need(self.rank > 0, "rank = 0 must be at least 1".into());
        need(self.alpha.is_finite() && self.alpha > 0.0, format!("alpha = {} must be above 0", self.alpha));
        need(!self.targets.is_empty(), "targets names no module".into());
        need((0.0..1.0).contains(&self.dropout), format!("dropout = {} must lie in 0..1", self.dropout));
        faults
    }

    /// The first target module of `model` that is too narrow for the rank, said in words.
    pub fn misfit(&self, model: &ModelConfig) -> Option<String> {
        self.targets.iter().find_map(|module| {
            let (k, n) = module.shape(model);
            (self.rank == 0 || self.rank > k.min(n)).then(|| {
                format!(
                    "rank {} does not fit {} ({k} inputs, {n} outputs): choose 1 to {}",
                    self.rank,
                    module.name(),
                    k.min(n)
                )
            })
        })
    }

    /// The factor s in `ΔW = s · B A`.
    pub fn scale(&self) -> f32 {
        let rank = self.rank as f64;
        (self.alpha / if self.rslora { rank.sqrt() } else { rank }) as f32
    }
}

/// The two factors of one module's adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct Factors {
    /// r.
    pub rank: usize,
    /// s in `ΔW = s · B A`.
    pub scale: f32,
    /// A, `[r, k]` row-major.
    pub a: Vec<f32>,
    /// B, `[n, r]` row-major.
    pub b: Vec<f32>,
}

/// A LoRA adapter of one domain.
#[derive(Debug, Clone, PartialEq)]
pub struct Expert {
    /// The domain's name.
    pub name: String,
    /// Rank, alpha and targets as the adapter's configuration states them; single modules may differ ([`Factors`] decides).
    pub config: LoraConfig,
    /// For each block, the factors of each module that has an adapter, by [`Module::index`].
    pub blocks: Vec<[Option<Factors>; 7]>,
}

impl Expert {
    /// A new expert with A drawn as PEFT draws it (Kaiming uniform with a = √5: uniform in ±1/√k) and B = 0, so that it
    /// starts as the base. The numbers depend on `seed`, the block and the module only.
    ///
    /// # Errors
    /// A rank of zero or above the width of a target module.
    pub fn init(name: &str, lora: &LoraConfig, model: &ModelConfig, seed: u64) -> Result<Self> {
        if let Some(misfit) = lora.misfit(model) {
            return Err(Error::Unsupported(misfit));
        }
        let mut blocks = Vec::with_capacity(model.blocks.len());
        for block in 0..model.blocks.len() {
            let mut modules = [const { None }; 7];
            for &module in &lora.targets {
                let (k, n) = module.shape(model);
                let bound = 1.0 / (k as f32).sqrt();
                let stream = (block * 7 + module.index()) as u64;
                let a = (0..lora.rank * k)
                    .map(|i| (crate::random::uniform(seed, stream, i as u64) * 2.0 - 1.0) * bound)
                    .collect();
                modules[module.index()] =
                    Some(Factors { rank: lora.rank, scale: lora.scale(), a, b: vec![0.0; n * lora.rank] });
            }
            blocks.push(modules);
        }
        Ok(Self { name: name.to_owned(), config: lora.clone(), blocks })
    }

    /// Checks that the expert fits a model: block count and the shape of every factor.
    ///
    /// # Errors
    /// Names the first module that does not fit.
    pub fn check_fits(&self, model: &ModelConfig) -> Result<()> {
        if self.blocks.len() != model.blocks.len() {
            return Err(Error::Unsupported(format!(
                "expert `{}` was made for another base: it has {} blocks, the model {}",
                self.name,
                self.blocks.len(),
                model.blocks.len()
            )));
        }
        for (block, modules) in self.blocks.iter().enumerate() {
            for module in Module::ALL {
                let Some(f) = &modules[module.index()] else { continue };
                let (k, n) = module.shape(model);
                if f.a.len() != f.rank * k || f.b.len() != n * f.rank {
                    return Err(Error::Unsupported(format!(
                        "expert `{}` was made for another base: block {block} {} has lora_A of {} and lora_B of {} \
                         values for rank {}; the model's module has {k} inputs and {n} outputs",
                        self.name,
                        module.path(),
                        f.a.len(),
                        f.b.len(),
                        f.rank
                    )));
                }
                if !f.scale.is_finite() {
                    return Err(Error::Unsupported(format!(
                        "expert `{}`: the scale of block {block} {} is {}, out of the range of 32-bit numbers",
                        self.name,
                        module.path(),
                        f.scale
                    )));
                }
            }
        }
        Ok(())
    }

    /// Number of trainable values.
    pub fn parameters(&self) -> usize {
        self.blocks.iter().flatten().flatten().map(|f| f.a.len() + f.b.len()).sum()
    }
}
