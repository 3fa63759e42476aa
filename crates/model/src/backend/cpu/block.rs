//! The fused body of a block on the CPU: the forward pass and, directly below it, its backward, over plain slices.
//!
//! [`Activations`] holds everything in between. A pass without gradients reuses one for all blocks; training keeps one a
//! block, or (recompute) only the block's input, and runs the forward again before the backward.

use std::ops::Range;

use mixse_kernels::{
    Accumulate::{Add, Overwrite},
    Activation as KernelActivation, Angles, AttentionGradients, Coverage, Direction, KvPoolMut, KvStorage,
    Lora as KernelLora, LoraGradients, Packed, PagedSegment, Ranks, Segment, add_into, attention,
    attention_backward, attention_paged, gated, gated_backward, gated_mlp, lora_backward, lora_forward,
    matmul, matmul_transposed,
    pool::{self, for_row_blocks},
    rms_norm, rms_norm_backward, rope, rope_rows, store_paged, sum,
};

use super::{buffer::Buffer, gates};
use crate::{
    backend::{
        Sequences,
        dropout::BlockDropout,
        spec::{BlockSpec, BlockWeights},
    },
    config::Activation,
    expert::{Module, PerModule},
    expert_set::{BlockLayout, ModuleLayout},
    router::GateConfig,
};

/// Where a block's gates come from, over slices.
#[derive(Debug, Clone, Copy)]
pub(crate) enum GateValues<'a> {
    /// Every expert counts fully.
    Full,
    /// `[rows, experts]`.
    Given(&'a [f32]),
    /// R `[choices, d]`. `None`: every row decides for itself.
    Routed(&'a [f32], GateConfig, Option<Sequences<'a>>),
}

/// The experts of one block over slices.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ExpertValues<'a> {
    pub(crate) params: &'a [f32],
    pub(crate) layout: &'a BlockLayout,
    pub(crate) gate: GateValues<'a>,
    pub(crate) dropout: Option<BlockDropout<'a>>,
}

/// What the rows of a pass attend to.
pub(crate) enum Attend<'a> {
    /// The rows are whole sequences.
    Whole(&'a [Segment]),
    /// The rows continue sequences whose keys and values are in pages; their own are stored there first.
    Paged {
        segments: &'a [PagedSegment<'a>],
        page_tokens: usize,
        storage: KvStorage,
        keys: &'a mut [f32],
        values: &'a mut [f32],
    },
}

/// Everything between a block's input and its output, `rows` rows each.
#[derive(Debug, Default)]
pub(crate) struct Activations {
    /// norm(x); scratch, recomputed by the backward.
    h: Buffer,
    /// q and k before their norms; only with `qk_norm`.
    q_raw: Buffer,
    k_raw: Buffer,
    /// After the rotary embedding.
    q: Buffer,
    k: Buffer,
    v: Buffer,
    attended: Buffer,
    /// log Σ exp of each row and head's scores.
    lse: Buffer,
    /// Outputs before the post norms; only with `post_norms`.
    o_raw: Buffer,
    down_raw: Buffer,
    x2: Buffer,
    gate: Buffer,
    up: Buffer,
    /// act(gate) ⊙ up; scratch, recomputed by the backward.
    inner: Buffer,
    /// A x of every module, `[rows, R]`.
    u: PerModule<Buffer>,
    /// The router's softmax `[rows or sequences, choices]` and the gates `[rows, experts]`.
    pub(crate) probabilities: Buffer,
    pub(crate) gates: Buffer,
}

impl Activations {
    /// Frees what the backward recomputes, for keeping the rest until then.
    pub(crate) fn drop_scratch(&mut self) {
        self.h = Buffer::default();
        self.inner = Buffer::default();
    }
}

/// A block's weights for the fused body.
#[derive(Debug)]
pub(crate) struct FusedBlock {
    pub(crate) spec: BlockSpec,
    pub(crate) weights: BlockWeights<Packed>,
}

impl FusedBlock {
    fn packed(&self, module: Module) -> &Packed {
        &self.weights.projections[module].weight
    }

    fn activation(&self) -> KernelActivation {
        match self.spec.activation {
            Activation::Silu => KernelActivation::Silu,
            Activation::GeluTanh => KernelActivation::GeluTanh,
        }
    }

    fn norm(&self, x: &[f32], weight: &[f32], y: &mut [f32]) {
        rms_norm(x, x.len() / weight.len(), self.spec.norm(weight), y);
    }

    fn norm_backward(&self, x: &[f32], weight: &[f32], dy: &[f32], dx: &mut [f32]) {
        rms_norm_backward(x, dy, x.len() / weight.len(), self.spec.norm(weight), dx);
    }

    /// The norm before the attention: what a router reads in this block.
    pub(crate) fn attention_norm(&self, x: &[f32], h: &mut [f32]) {
        self.norm(x, &self.weights.attention_norm, h);
    }

    /// Backward of [`FusedBlock::attention_norm`]; `dx` is overwritten.
    pub(crate) fn attention_norm_backward(&self, x: &[f32], dh: &[f32], dx: &mut [f32]) {
        self.norm_backward(x, &self.weights.attention_norm, dh, dx);
    }

    /// `y = W x + bias + Σ_i gate_i s_i B_i A_i x` for rows `rows` of the pass. The residual stream is added to the finished
    /// sum, not the other way round: it can be a thousand times larger than the terms, and each addition would round them to
    /// its own grid.
    fn project(
        &self,
        module: Module,
        x: &[f32],
        lora: &Lora<'_>,
        rows: &Range<usize>,
        u: &mut [f32],
        y: &mut [f32],
    ) {
        matmul(x, rows.len(), self.packed(module), y, Overwrite);
        if let Some(bias) = &self.weights.projections[module].bias {
            y.chunks_exact_mut(bias.len())
                .for_each(|row| row.iter_mut().zip(bias).for_each(|(y, b)| *y += b));
        }
        lora.forward(module, x, rows, u, y);
    }

    /// The block over `x [rows, d]` into `y`; leaves everything in between in `act`, or with pages (where no backward
    /// follows) only what the next operations need.
    ///
    /// Rows meet in the attention alone. Before and behind it, blocks of rows go through all operations while their values are
    /// in a core's cache.
    pub(crate) fn forward(
        &self,
        x: &[f32],
        angles: &Angles,
        attend: Attend<'_>,
        experts: Option<ExpertValues<'_>>,
        act: &mut Activations,
        y: &mut [f32],
    ) {
        let (spec, w, rows) = (&self.spec, &self.weights, angles.tokens());
        let (hidden, q_width, kv_width) = (spec.hidden, spec.q_width(), spec.kv_width());
        let shape = &spec.attention;
        let h = act.h.sized(rows * hidden);
        self.attention_norm(x, h);
        if let Some(ExpertValues { gate: GateValues::Routed(r, config, sequences), .. }) = &experts {
            let choices = r.len() / hidden;
            let decisions = sequences.map_or(rows, |s| s.ragged.segments.len());
            let probabilities = act.probabilities.sized(decisions * choices);
            let gates = act.gates.sized(rows * (choices - usize::from(config.null_expert)));
            let map = gates::Map { r, bias: None, d: hidden, config: *config };
            gates::forward(h, map, *sequences, probabilities, gates);
        }
        let gate = match experts.map(|e| e.gate) {
            None | Some(GateValues::Full) => None,
            Some(GateValues::Given(gates)) => Some(gates),
            Some(GateValues::Routed(..)) => Some(&act.gates[..]),
        };
        let lora = Lora { experts, gate };
        let each = lora.rows_of_a_block(rows);
        let mut factors = act.u.iter_mut().zip(Module::ALL).map(|(u, module)| lora.factors(module, rows, u));
        let mut next_factors = || factors.next().unwrap_or_default();

        let norm_width = |norm: &Option<Vec<f32>>, width: usize| norm.as_ref().map_or(0, |_| width);
        let (q_raw, k_raw) = (norm_width(&w.q_norm, q_width), norm_width(&w.k_norm, kv_width));
        let h = &*h;
        for_row_blocks(
            rows,
            each,
            [
                (act.q_raw.sized(rows * q_raw), q_raw),
                (act.k_raw.sized(rows * k_raw), k_raw),
                (act.q.sized(rows * q_width), q_width),
                (act.k.sized(rows * kv_width), kv_width),
                (act.v.sized(rows * kv_width), kv_width),
                next_factors(),
                next_factors(),
                next_factors(),
            ],
            |range, [q_raw, k_raw, q, k, v, u_q, u_k, u_v]| {
                let h = &h[range.start * hidden..range.end * hidden];
                let heads = |module,
                             raw: &mut [f32],
                             out: &mut [f32],
                             norm: &Option<Vec<f32>>,
                             u: &mut [f32],
                             count| {
                    match norm {
                        Some(weight) => {
                            self.project(module, h, &lora, &range, u, raw);
                            self.norm(raw, weight, out);
                        }
                        None => self.project(module, h, &lora, &range, u, out),
                    }
                    rope_rows(out, count, angles, range.clone(), Direction::Forward);
                };
                heads(Module::Q, q_raw, q, &w.q_norm, u_q, shape.heads);
                heads(Module::K, k_raw, k, &w.k_norm, u_k, shape.kv_heads);
                self.project(Module::V, h, &lora, &range, u_v, v);
            },
        );

        let attended = act.attended.sized(rows * q_width);
        let keep = matches!(attend, Attend::Whole(_));
        match attend {
            Attend::Whole(segments) => {
                let lse = act.lse.sized(rows * shape.heads);
                attention((&act.q, &act.k, &act.v), segments, *shape, attended, lse);
            }
            Attend::Paged { segments, page_tokens, storage, keys, values } => {
                let mut pool = KvPoolMut { k: keys, v: values, page_tokens, storage };
                store_paged((&act.k, &act.v), segments, &mut pool, *shape);
                attention_paged(&act.q, segments, pool.shared(), *shape, attended);
            }
        }

        let attended = &*attended;
        let kept = |width: usize| if keep { width } else { 0 };
        let (o_raw, down_raw) =
            (norm_width(&w.post_attention_norm, kept(hidden)), norm_width(&w.post_mlp_norm, kept(hidden)));
        let (x2, inner) = (kept(hidden), kept(spec.inner));
        // Nothing within the MLP is asked for.
        let alone = !keep
            && [Module::Gate, Module::Up, Module::Down]
                .into_iter()
                .all(|module| lora.place(module).is_none() && w.projections[module].bias.is_none());
        for_row_blocks(
            rows,
            each,
            [
                (act.o_raw.sized(rows * o_raw), o_raw),
                (act.x2.sized(rows * x2), x2),
                (act.gate.sized(rows * inner), inner),
                (act.up.sized(rows * inner), inner),
                (act.down_raw.sized(rows * down_raw), down_raw),
                (&mut *y, hidden),
                next_factors(),
                next_factors(),
                next_factors(),
                next_factors(),
            ],
            |range, [o_raw, x2, gate, up, down_raw, y, u_o, u_gate, u_up, u_down]| {
                let (size, inner_size) = (range.len() * hidden, range.len() * spec.inner);
                let [mut own_raw, mut own_x2, mut own_gate, mut own_up]: [Buffer; 4] = Default::default();
                let x2 = own_x2.or(x2, size);
                let mut h = Buffer::new(size);
                let x = &x[range.start * hidden..range.end * hidden];
                let attended = &attended[range.start * q_width..range.end * q_width];
                match &w.post_attention_norm {
                    None => self.project(Module::O, attended, &lora, &range, u_o, &mut h),
                    Some(weight) => {
                        let o_raw = own_raw.or(o_raw, size);
                        self.project(Module::O, attended, &lora, &range, u_o, o_raw);
                        self.norm(o_raw, weight, &mut h);
                    }
                }
                sum(x, &h, x2);

                self.norm(x2, &w.mlp_norm, &mut h);
                if alone && w.post_mlp_norm.is_none() {
                    let mlp = [Module::Gate, Module::Up, Module::Down].map(|module| self.packed(module));
                    gated_mlp(&h, range.len(), mlp, self.activation(), y);
                    return add_into(x2, y);
                }
                let (gate, up) = (own_gate.or(gate, inner_size), own_up.or(up, inner_size));
                self.project(Module::Gate, &h, &lora, &range, u_gate, gate);
                self.project(Module::Up, &h, &lora, &range, u_up, up);
                let mut inner = Buffer::new(inner_size);
                gated(gate, up, self.activation(), &mut inner);
                match &w.post_mlp_norm {
                    None => self.project(Module::Down, &inner, &lora, &range, u_down, &mut h),
                    Some(weight) => {
                        let down_raw = own_raw.or(down_raw, size);
                        self.project(Module::Down, &inner, &lora, &range, u_down, down_raw);
                        self.norm(down_raw, weight, &mut h);
                    }
                }
                sum(x2, &h, y);
            },
        );
    }

    /// Backward of [`FusedBlock::forward`] over whole sequences: from `dy` to `dx` (overwritten) and the gradients in
    /// `grads` (added to). `act` is what the forward left behind.
    pub(crate) fn backward(
        &self,
        x: &[f32],
        angles: &Angles,
        segments: &[Segment],
        experts: Option<ExpertValues<'_>>,
        act: &mut Activations,
        dy: &[f32],
        dx: &mut [f32],
        grads: &mut ExpertGrads<'_>,
    ) {
        let (spec, w, rows) = (&self.spec, &self.weights, angles.tokens());
        let (hidden, q_width, kv_width) = (rows * spec.hidden, rows * spec.q_width(), rows * spec.kv_width());
        let shape = &spec.attention;
        let gate = match experts.map(|e| e.gate) {
            None | Some(GateValues::Full) => None,
            Some(GateValues::Given(gates)) => Some(gates),
            Some(GateValues::Routed(..)) => Some(&act.gates[..]),
        };
        let back = LoraBack { experts, gate, u: &act.u };

        // y = x₂ + [norm] Wd inner: the residual passes dy through.
        dx.copy_from_slice(dy);
        let mut d_hidden = Buffer::new(hidden);
        let d_down = match &w.post_mlp_norm {
            None => dy,
            Some(weight) => {
                self.norm_backward(&act.down_raw, weight, dy, &mut d_hidden);
                &d_hidden
            }
        };
        gated(&act.gate, &act.up, self.activation(), act.inner.sized(rows * spec.inner));
        let mut d_inner = Buffer::new(rows * spec.inner);
        self.project_backward(Module::Down, d_down, &act.inner, false, &back, &mut d_inner, grads);
        // The scratch that held act(gate) ⊙ up now takes dgate.
        let mut d_gate = std::mem::take(&mut act.inner);
        let mut d_up = Buffer::new(rows * spec.inner);
        gated_backward(&act.gate, &act.up, &d_inner, self.activation(), &mut d_gate, &mut d_up);
        drop(d_inner);
        self.norm(&act.x2, &w.mlp_norm, act.h.sized(hidden));
        let mut d_h = Buffer::new(hidden);
        self.project_backward(Module::Gate, &d_gate, &act.h, false, &back, &mut d_h, grads);
        self.project_backward(Module::Up, &d_up, &act.h, true, &back, &mut d_h, grads);
        drop((d_gate, d_up));
        self.norm_backward(&act.x2, &w.mlp_norm, &d_h, &mut d_hidden);
        add_into(&d_hidden, dx);

        // x₂ = x + [norm] Wo a
        let d_o: &[f32] = match &w.post_attention_norm {
            None => dx,
            Some(weight) => {
                self.norm_backward(&act.o_raw, weight, dx, &mut d_hidden);
                &d_hidden
            }
        };
        let mut d_attended = Buffer::new(q_width);
        self.project_backward(Module::O, d_o, &act.attended, false, &back, &mut d_attended, grads);
        let (mut dq, mut dk, mut dv) = (Buffer::new(q_width), Buffer::new(kv_width), Buffer::new(kv_width));
        attention_backward(
            (&act.q, &act.k, &act.v),
            (&act.attended, &d_attended, &act.lse),
            segments,
            *shape,
            AttentionGradients { dq: &mut dq, dk: &mut dk, dv: &mut dv },
        );
        drop(d_attended);
        let heads_backward = |d: Buffer, heads: usize, raw: &[f32], norm: &Option<Vec<f32>>| {
            let mut d = d;
            rope(&mut d, heads, angles, Direction::Backward);
            match norm {
                None => d,
                Some(weight) => {
                    let mut d_raw = Buffer::new(d.len());
                    self.norm_backward(raw, weight, &d, &mut d_raw);
                    d_raw
                }
            }
        };
        let dq = heads_backward(dq, shape.heads, &act.q_raw, &w.q_norm);
        let dk = heads_backward(dk, shape.kv_heads, &act.k_raw, &w.k_norm);
        self.attention_norm(x, act.h.sized(hidden));
        self.project_backward(Module::Q, &dq, &act.h, false, &back, &mut d_h, grads);
        self.project_backward(Module::K, &dk, &act.h, true, &back, &mut d_h, grads);
        self.project_backward(Module::V, &dv, &act.h, true, &back, &mut d_h, grads);
        if let (Some(ExpertValues { gate: GateValues::Routed(r, config, sequences), .. }), Some(d_gates)) =
            (&experts, &grads.gates)
        {
            let map = gates::Map { r, bias: None, d: spec.hidden, config: *config };
            let router = grads.router.as_deref_mut();
            let gradients = gates::MapGradients { dh: Some(&mut d_h), dr: router, db: None };
            gates::backward(d_gates, &act.h, map, *sequences, &act.probabilities, gradients);
        }
        self.attention_norm_backward(x, &d_h, &mut d_hidden);
        add_into(&d_hidden, dx);
        act.drop_scratch();
    }

    /// Backward of [`FusedBlock::project`]: `dx (+)= dy W + …`, and the experts' gradients.
    fn project_backward(
        &self,
        module: Module,
        dy: &[f32],
        x: &[f32],
        add: bool,
        back: &LoraBack<'_>,
        dx: &mut [f32],
        grads: &mut ExpertGrads<'_>,
    ) {
        let weight = self.packed(module);
        let rows = x.len() / weight.k();
        matmul_transposed(dy, rows, weight, dx, if add { Add } else { Overwrite });
        back.backward(module, dy, x, rows, dx, grads);
    }
}

/// Gradients of the experts and of the router's decision in one block, each added to; `None`: not wanted.
#[derive(Debug, Default)]
pub(crate) struct ExpertGrads<'a> {
    /// Of the block's flat factors.
    pub(crate) params: Option<&'a mut [f32]>,
    /// Of the gates `[rows, experts]`.
    pub(crate) gates: Option<&'a mut [f32]>,
    /// Of R `[choices, d]`.
    pub(crate) router: Option<&'a mut [f32]>,
}

/// The experts' part of the projections of a forward pass.
struct Lora<'a> {
    experts: Option<ExpertValues<'a>>,
    /// `[rows, experts]` of the whole pass.
    gate: Option<&'a [f32]>,
}

/// Rows that go through a block's operations together: enough for each weight that is read, and few enough for a core's cache.
const BLOCK_ROWS: usize = 256;

impl<'a> Lora<'a> {
    fn place(&self, module: Module) -> Option<(&ExpertValues<'a>, &'a ModuleLayout)> {
        let experts = self.experts.as_ref()?;
        Some((experts, experts.layout.modules[module].as_ref()?))
    }

    /// Rows that go through the block's operations together. Fewer than some for each thread stay together, and the threads
    /// divide each product; so do all where a mask is drawn for the whole pass.
    fn rows_of_a_block(&self, rows: usize) -> usize {
        let threads = pool::threads();
        if rows < threads * BLOCK_ROWS || self.experts.is_some_and(|experts| experts.dropout.is_some()) {
            return rows.max(1);
        }
        rows.div_ceil(rows.div_ceil(BLOCK_ROWS).next_multiple_of(threads)).next_multiple_of(32)
    }

    /// Room for A x of a module, and its width.
    fn factors<'u>(&self, module: Module, rows: usize, u: &'u mut Buffer) -> (&'u mut [f32], usize) {
        let rank = self.place(module).map_or(0, |(_, place)| place.total_rank());
        (u.sized(rows * rank), rank)
    }

    /// Adds the experts of a module for rows `rows` of the pass, whose inputs are `x`.
    fn forward(&self, module: Module, x: &[f32], rows: &Range<usize>, u: &mut [f32], y: &mut [f32]) {
        let Some((experts, place)) = self.place(module) else { return };
        let ranks = ranks(place);
        let thinned = experts.dropout.map(|dropout| {
            let mut thinned = Buffer::new(x.len());
            dropout.thin(module, x, &mut thinned);
            thinned
        });
        let count = place.ranks.len();
        lora_forward(
            kernel_lora(place, experts.params, &ranks),
            thinned.as_deref().unwrap_or(x),
            rows.len(),
            self.gate.map(|gate| &gate[rows.start * count..rows.end * count]),
            Coverage::Selected,
            u,
            y,
        );
    }
}

/// The experts' part of the projections of a backward pass.
struct LoraBack<'a> {
    experts: Option<ExpertValues<'a>>,
    gate: Option<&'a [f32]>,
    u: &'a PerModule<Buffer>,
}

impl LoraBack<'_> {
    fn backward(
        &self,
        module: Module,
        dy: &[f32],
        x: &[f32],
        rows: usize,
        dx: &mut [f32],
        grads: &mut ExpertGrads<'_>,
    ) {
        let Some(experts) = &self.experts else { return };
        let Some(place) = &experts.layout.modules[module] else { return };
        let (da, dbt) = grads.params.as_deref_mut().map(|flat| place.factors_mut(flat)).unzip();
        let u = &self.u[module];
        let ranks = ranks(place);
        let lora = kernel_lora(place, experts.params, &ranks);
        let dgate = grads.gates.as_deref_mut();
        let Some(dropout) = experts.dropout else {
            let gradients = LoraGradients { dx: Some(dx), da, dbt, dgate };
            return lora_backward(lora, x, u, dy, rows, self.gate, Coverage::Selected, gradients);
        };
        let (mut thinned, mut d_thinned) = (Buffer::new(x.len()), Buffer::new(x.len()));
        dropout.thin(module, x, &mut thinned);
        d_thinned.fill(0.0);
        let gradients = LoraGradients { dx: Some(&mut d_thinned), da, dbt, dgate };
        lora_backward(lora, &thinned, u, dy, rows, self.gate, Coverage::Selected, gradients);
        dropout.thin_backward(module, &mut d_thinned, dx);
    }
}

fn ranks(place: &ModuleLayout) -> Ranks {
    Ranks::new(place.ranks.iter().copied().zip(place.scales.iter().copied()))
}

fn kernel_lora<'a>(place: &ModuleLayout, params: &'a [f32], ranks: &'a Ranks) -> KernelLora<'a> {
    KernelLora { k: place.k, n: place.n, a: place.a(params), bt: place.bt(params), ranks }
}
