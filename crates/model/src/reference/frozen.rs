//! A product with a frozen weight: `y = x Wᵀ`, whose backward is `dx = dy W` and nothing else.

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Storage, Tensor, backend::BackendStorage, bail};

/// `x [m, k] → x Wᵀ [m, n]` for a frozen W `[n, k]`.
pub(crate) struct FrozenMatmul {
    weight: Tensor,
}

impl FrozenMatmul {
    /// Applies the product.
    pub(crate) fn apply(x: &Tensor, weight: &Tensor) -> candle_core::Result<Tensor> {
        x.contiguous()?.apply_op1(Self { weight: weight.detach() })
    }

    /// `(m, n, k)` and the layout of Wᵀ `[k, n]`.
    fn sizes(&self, x: &Layout) -> candle_core::Result<(usize, usize, usize, Layout)> {
        let ((m, k), (n, wk)) = (x.shape().dims2()?, self.weight.dims2()?);
        if k != wk {
            bail!("product of {m} x {k} values with a weight of {n} x {wk}")
        }
        Ok((m, n, k, self.weight.layout().transpose(0, 1)?))
    }
}

impl CustomOp1 for FrozenMatmul {
    fn name(&self) -> &'static str {
        "frozen-matmul"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (m, n, k, transposed) = self.sizes(layout)?;
        match &*self.weight.storage_and_layout().0 {
            Storage::Cpu(w) => Ok((x.matmul(w, (1, m, n, k), layout, &transposed)?, (m, n).into())),
            _ => bail!("the weight is on another device than the values"),
        }
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(dy.contiguous()?.matmul(&self.weight)?))
    }
}
