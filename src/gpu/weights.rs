//! Attention weights of a range of queries, for tensors of host memory.

use std::ops::Range;

use super::device::Gpu;
use super::error::GpuError;
use super::host::{GpuElement, Outcome, Wait};
use super::plan::{Drops, Layouts};
use super::shader::Kernel;
use super::tensor::Dtype;
use crate::engine::zeros;
use crate::{Call, HostInputs, Problem, Weights};

impl Gpu {
    /// The attention weights of a range of queries, before dropout, and the key of each slot, as
    /// [`Engine::weights`](crate::Engine::weights) says: part by part, like [`Gpu::forward`].
    ///
    /// ```no_run
    /// use local_attention::gpu::{Gpu, RequestOptions};
    /// use local_attention::{
    ///     AttentionShape, HostInputs, HostTensor, LocalAttention, LocalAttentionConfig,
    /// };
    ///
    /// let x = HostTensor::new(vec![0.5_f32; 6 * 4], [6, 4])?;
    /// let inputs = HostInputs::new(x.clone(), x.clone(), x);
    /// let attention = LocalAttention::new(LocalAttentionConfig::new(2).causal(true))?;
    /// let problem = attention.problem(&AttentionShape::from_inputs(&inputs)?)?;
    /// let gpu = Gpu::request_blocking(&RequestOptions::default())?;
    /// // `[rows, queries, slots]`: one row, one query, two windows of two positions.
    /// let weights = gpu.weights_blocking(&problem, &inputs, 4..5)?;
    /// assert_eq!(weights.shape, [1, 1, 4]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`Gpu::forward`], and a range outside the problem's queries.
    pub async fn weights<T: GpuElement>(
        &self,
        problem: &Problem,
        inputs: &HostInputs<'_, T>,
        queries: Range<usize>,
    ) -> Result<Weights<T>, GpuError> {
        self.weights_waiting(problem, inputs, queries, Wait::Elsewhere).await
    }

    async fn weights_waiting<T: GpuElement>(
        &self,
        problem: &Problem,
        inputs: &HostInputs<'_, T>,
        queries: Range<usize>,
        wait: Wait,
    ) -> Result<Weights<T>, GpuError> {
        problem.check_inputs(inputs)?;
        problem.check_queries(&queries)?;
        let slots = problem.geometry.slots();
        let shape = [problem.batch, queries.len(), slots];
        let mut weights: Vec<f32> = zeros("attention weights", &shape)?;
        if !weights.is_empty() {
            let first_query = problem.shape.query.start;
            let mut problem = problem.clone();
            problem.shape.query = queries.clone();
            (problem.shape.value_dim, problem.shape.lse, problem.dropout) = (0, false, 0.0);
            let layouts = Layouts { storage: T::STORAGE, vec4: true };
            let kernel = Kernel::Weights;
            let plan = self.plan_kernel(kernel, &problem, &layouts, Drops::Never).await?;
            let outcome = Outcome { elements: slots, dtype: Dtype::F32 };
            plan.each_part(
                inputs,
                first_query,
                outcome,
                (&Call::default(), wait),
                |chunk, part, _| {
                    let n = chunk.queries.len() * slots;
                    for (i, row) in chunk.rows.clone().enumerate() {
                        let at =
                            (row * queries.len() + chunk.queries.start - queries.start) * slots;
                        let numbers = part[i * n * 4..].chunks_exact(4).map(f32::take);
                        weights[at..][..n].iter_mut().zip(numbers).for_each(|(to, x)| *to = x);
                    }
                },
            )
            .await?;
        }
        Ok(Weights { weights, shape, keys: problem.slot_positions(queries)? })
    }

    /// [`Gpu::weights`], waiting for it.
    ///
    /// # Errors
    /// As there.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn weights_blocking<T: GpuElement>(
        &self,
        problem: &Problem,
        inputs: &HostInputs<'_, T>,
        queries: Range<usize>,
    ) -> Result<Weights<T>, GpuError> {
        pollster::block_on(self.weights_waiting(problem, inputs, queries, Wait::Here))
    }
}
