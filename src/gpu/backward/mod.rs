//! The backward pass: kernels that recompute weights from `lse` (Dao, "FlashAttention-2", 2023), on the
//! caller's tensors.
//!
//! In this order: `mask`, `rows` and `rows_again` (what is known of queries, beside the tables), `dq`, `dkv`,
//! `bias` with `fold`, and `copy` for gradients that are stored as f16 or share a buffer with other tensors.

mod bias;
mod bind;
mod copy;
mod host;
mod keys;
mod scratch;
mod tensors;

pub use tensors::BackwardTensors;

use super::device::Gpu;
use super::error::PlanError;
use super::owned::Owned;
use super::plan::{Drops, Layouts, Plan};
use super::shader::Kernel;
use crate::Problem;

/// A problem's backward pass made ready for a device: expensive to make, to be used for every call.
///
/// ```no_run
/// use local_attention::gpu::{
///     BackwardTensors, Dtype, ForwardTensors, Gpu, Layouts, Storage, TensorView, Workspace, wgpu,
/// };
/// use local_attention::{AttentionShape, Call, LocalAttention, LocalAttentionConfig};
///
/// /// Gradients of self-attention of `x`, all tensors `[4, 1024, 64]`, `lse` `[4, 1024]` as the forward pass left it.
/// fn record(
///     gpu: &Gpu,
///     pass: &mut wgpu::ComputePass<'_>,
///     [x, out, lse, dout, dq, dk, dv]: [&wgpu::Buffer; 7],
/// ) -> Result<(), Box<dyn std::error::Error>> {
///     // Once.
///     let attention = LocalAttention::new(LocalAttentionConfig::new(128).causal(true).dim(64))?;
///     let problem = attention.problem(&AttentionShape::new([4], 1024, 64).with_lse())?;
///     let layouts = Layouts::contiguous(Storage::F32, &problem);
///     let plan = gpu.plan_backward_blocking(&problem, &layouts)?;
///     let mut workspace = Workspace::new_blocking(gpu, 16)?;
///     let view = |buffer| TensorView::contiguous(buffer, Dtype::F32, [4, 1024, 64]);
///     let forward = ForwardTensors::new(view(x), view(x), view(x), view(out));
///     let forward = forward.with_lse(TensorView::contiguous(lse, Dtype::F32, [4, 1024]));
///     let tensors = BackwardTensors::new(forward, view(dout), view(dq), view(dk), view(dv));
///     let bound = plan.bind_blocking(&tensors, &workspace)?;
///     // Every step; `workspace.recall()` follows the caller's submit.
///     bound.encode(pass, &mut workspace, &Call::default())?;
///     Ok(())
/// }
/// ```
#[derive(Debug, Clone)]
pub struct BackwardPlan {
    rows: Plan,
    again: Plan,
    dq: Plan,
    dkv: Plan,
    /// Where there is a bias, and its gradient may be wanted.
    bias: Option<Plan>,
}

impl Gpu {
    /// Chooses and compiles the kernels of a problem's backward pass, and uploads the rotary tables.
    ///
    /// # Errors
    /// As [`Gpu::plan`].
    pub async fn plan_backward(
        &self,
        problem: &Problem,
        layouts: &Layouts,
    ) -> Result<BackwardPlan, PlanError> {
        let bias = problem.shape.bias.is_some();
        self.plan_gradients(problem, layouts, Drops::of(problem), bias).await
    }

    /// The same for some calls; `bias`: whether its gradient is computed.
    async fn plan_gradients(
        &self,
        problem: &Problem,
        layouts: &Layouts,
        drops: Drops,
        bias: bool,
    ) -> Result<BackwardPlan, PlanError> {
        let dq = self.plan_kernel(Kernel::Dq, problem, layouts, drops).await?;
        let plan = BackwardPlan::beside(dq.clone(), bias).await;
        // All share its memory.
        if plan.is_err() {
            dq.destroy();
        }
        plan
    }

    /// [`Gpu::plan_backward`], waiting for it.
    ///
    /// # Errors
    /// As there.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn plan_backward_blocking(
        &self,
        problem: &Problem,
        layouts: &Layouts,
    ) -> Result<BackwardPlan, PlanError> {
        pollster::block_on(self.plan_backward(problem, layouts))
    }
}

impl BackwardPlan {
    /// The other kernels beside one.
    async fn beside(dq: Plan, bias: bool) -> Result<Self, PlanError> {
        let bias = match bias {
            true => Some(dq.with_kernel(Kernel::Bias).await?),
            false => None,
        };
        Ok(Self {
            rows: dq.with_kernel(Kernel::Rows).await?,
            again: dq.with_kernel(Kernel::RowsAgain).await?,
            dkv: dq.with_kernel(Kernel::Dkv).await?,
            dq,
            bias,
        })
    }

    /// Frees its memory on the device, as [`Plan::destroy`] does.
    pub fn destroy(&self) {
        drop(self.owned());
    }

    /// Its memory, freed when this is dropped.
    pub(super) fn owned(&self) -> Owned {
        // All share it.
        self.dq.owned()
    }

    /// The problem whose gradients it computes.
    pub fn problem(&self) -> &Problem {
        &self.dq.problem
    }

    /// The kernels it runs, in their order, but for those that only copy and add, the mask among what is copied.
    pub fn keys(&self) -> Vec<super::PipelineKey> {
        let all = [&self.rows, &self.again, &self.dq, &self.dkv].into_iter().chain(&self.bias);
        all.map(Plan::key).collect()
    }
}
