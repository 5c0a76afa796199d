//! The forward pass on tensors of host memory.

use super::device::Gpu;
use super::error::GpuError;
use super::host::{GpuElement, Outcome, Wait, padded};
use super::plan::{Drops, Layouts};
use super::shader::Kernel;
use super::tensor::Dtype;
use crate::engine::zeros;
use crate::{Call, Forward, HostInputs, Problem};

impl Gpu {
    /// `softmax(q k^T * scale + bias, over what each query sees) v`, as
    /// [`Engine::forward`](crate::Engine::forward) says, part by part: uploaded, computed, read back.
    /// While the device works the future yields: natively a thread waits for each part, in a browser the
    /// event loop does. Dropping it ends the work after the part at hand.
    ///
    /// # Errors
    /// Tensors that are not what the problem describes, problems no kernel carries out, devices
    /// that fail.
    pub async fn forward<T: GpuElement>(
        &self,
        problem: &Problem,
        inputs: &HostInputs<'_, T>,
        call: &Call,
    ) -> Result<Forward<T>, GpuError> {
        self.forward_waiting(problem, inputs, (call, Wait::Elsewhere)).await
    }

    async fn forward_waiting<T: GpuElement>(
        &self,
        problem: &Problem,
        inputs: &HostInputs<'_, T>,
        call: (&Call, Wait),
    ) -> Result<Forward<T>, GpuError> {
        problem.check_inputs(inputs)?;
        let shape = &problem.shape;
        let (rows, queries, dv) = (problem.batch, shape.query.len(), shape.value_dim);
        let mut out: Vec<T> = zeros("out", &[rows, queries, dv])?;
        let mut lse: Vec<f32> = zeros("lse", &[rows, if shape.lse { queries } else { 0 }])?;
        if !out.is_empty() || !lse.is_empty() {
            // Rows are padded to whole vec4s on the way.
            let layouts = Layouts { storage: T::STORAGE, vec4: true };
            let drops = Drops::of_call(problem, call.0);
            let plan = self.plan_kernel(Kernel::Forward, problem, &layouts, drops).await?;
            let (width, size) = (padded(dv), T::STORAGE.bytes() as usize);
            let outcome = Outcome { elements: width, dtype: Dtype::from(T::STORAGE) };
            plan.each_part(inputs, shape.query.start, outcome, call, |chunk, part, part_lse| {
                let n = chunk.queries.len();
                for (i, row) in chunk.rows.clone().enumerate() {
                    let at = row * queries + chunk.queries.start - shape.query.start;
                    let from = part[i * n * width * size..].chunks_exact(width * size);
                    for (to, from) in out[at * dv..].chunks_exact_mut(dv.max(1)).zip(from).take(n) {
                        let numbers = from.chunks_exact(size).map(T::take);
                        to.iter_mut().zip(numbers).for_each(|(to, x)| *to = x);
                    }
                    if shape.lse {
                        lse[at..][..n].copy_from_slice(&part_lse[i * n..][..n]);
                    }
                }
            })
            .await?;
        }
        Ok(Forward { out, shape: problem.out_shape(), lse: shape.lse.then_some(lse) })
    }

    /// [`Gpu::forward`], waiting for it.
    ///
    /// # Errors
    /// As there.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn forward_blocking<T: GpuElement>(
        &self,
        problem: &Problem,
        inputs: &HostInputs<'_, T>,
        call: &Call,
    ) -> Result<Forward<T>, GpuError> {
        pollster::block_on(self.forward_waiting(problem, inputs, (call, Wait::Here)))
    }
}
