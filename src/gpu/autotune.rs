//! Which kernel a problem runs on, by measuring.

use std::time::Instant;

use half::f16;

use super::chunk::Chunk;
use super::device::Gpu;
use super::error::{BindError, GpuError, PlanError};
use super::host::{GpuElement, Outcome, Piece, Wait, padded};
use super::plan::{Drops, Layouts, Plan, geometry};
use super::scope::checked;
use super::shader::{Kernel, PipelineKey, Storage, Tile};
use super::tensor::Dtype;
use super::tuning::{self, Choice, TuningCache, Variant};
use super::workspace::Workspace;
use crate::engine::reserve;
use crate::{Call, HostInputs, HostTensor, Problem, RunError};

/// Times that each candidate is measured, in turn with the others.
const ROUNDS: usize = 5;
/// Seconds of one measurement, at least: submitting takes some tenths of a millisecond.
const SAMPLE: f64 = 5e-3;
/// Calls of one measurement, at most.
const MOST_CALLS: usize = 64;

/// What [`Gpu::autotune`] found.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Tuned {
    /// The kernel that plans of the problem run on from now on.
    pub key: PipelineKey,
    /// The candidates with seconds a forward pass, medians; empty where there was nothing to measure: the choice was
    /// known, or forced by [`GpuOptions::tile`](super::GpuOptions) or `matrix`, or there is no result to compute.
    pub measured: Vec<(PipelineKey, f64)>,
    /// Why the cache could not be read or written, if it could not: the choice holds for this [`Gpu`] and its clones all
    /// the same.
    pub cache_error: Option<String>,
}

impl Gpu {
    /// Measures the kernels that can carry out a problem's forward pass, and lets this engine and its clones make plans
    /// with the fastest: of problems of the same sizes, on tensors of the same layouts. Unmeasured, rules choose.
    ///
    /// A choice that this engine or the cache knows is not measured again. Measuring takes some twenty-five passes over random
    /// tensors in buffers of their own, of which no more than one dispatch is computed
    /// ([`GpuOptions::max_chunk_flops`](super::GpuOptions)); nothing else should be computing meanwhile.
    ///
    /// ```no_run
    /// use local_attention::gpu::{Gpu, Layouts, RequestOptions, Storage, TuningCache};
    /// use local_attention::{AttentionShape, LocalAttention, LocalAttentionConfig};
    ///
    /// let gpu = Gpu::request_blocking(&RequestOptions::default())?;
    /// let attention = LocalAttention::new(LocalAttentionConfig::new(128).causal(true))?;
    /// let problem = attention.problem(&AttentionShape::new([8], 4096, 64))?;
    /// let layouts = Layouts::contiguous(Storage::F32, &problem);
    /// let tuned = gpu.autotune_blocking(&problem, &layouts, TuningCache::user().as_ref())?;
    /// assert_eq!(gpu.plan_blocking(&problem, &layouts)?.key(), tuned.key);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Problems that no kernel carries out, devices that fail. A cache that cannot be used is
    /// [`Tuned::cache_error`].
    pub async fn autotune(
        &self,
        problem: &Problem,
        layouts: &Layouts,
        cache: Option<&TuningCache>,
    ) -> Result<Tuned, GpuError> {
        self.autotune_waiting(problem, layouts, cache, Wait::Elsewhere).await
    }

    /// [`Gpu::autotune`], waiting for it.
    ///
    /// # Errors
    /// As there.
    pub fn autotune_blocking(
        &self,
        problem: &Problem,
        layouts: &Layouts,
        cache: Option<&TuningCache>,
    ) -> Result<Tuned, GpuError> {
        pollster::block_on(self.autotune_waiting(problem, layouts, cache, Wait::Here))
    }

    async fn autotune_waiting(
        &self,
        problem: &Problem,
        layouts: &Layouts,
        cache: Option<&TuningCache>,
        wait: Wait,
    ) -> Result<Tuned, GpuError> {
        let mut cache_error = None;
        let [adapter, driver] = tuning::names(self.caps());
        match cache.map(TuningCache::read).transpose() {
            Ok(choices) => {
                let ours = |c: &Choice| c.adapter == adapter && c.driver == driver;
                for choice in choices.into_iter().flatten().filter(ours) {
                    self.know(choice.kernel, choice.geometry, choice.variant);
                }
            }
            Err(e) => cache_error = Some(e.to_string()),
        }
        let key = self.key(problem, layouts)?;
        let of = self.tuning_of(&self.tile_key(problem, layouts)?, problem);
        let options = self.options();
        let forced = options.tile.is_some() || options.matrix == Some(true);
        if forced || self.known(&of).is_some() {
            return Ok(Tuned { key, measured: Vec::new(), cache_error });
        }
        let measured = match layouts.storage {
            Storage::F32 => self.measure::<f32>(problem, layouts, wait).await?,
            Storage::F16 => self.measure::<f16>(problem, layouts, wait).await?,
        };
        let Some((fastest, _)) = measured.iter().min_by(|a, b| a.1.total_cmp(&b.1)).copied() else {
            return Ok(Tuned { key, measured, cache_error });
        };
        let (kernel, geometry) = of;
        let variant = Variant::of(&fastest);
        self.know(kernel.clone(), geometry.clone(), variant);
        let choice = Choice { adapter, driver, kernel, geometry, variant };
        if let Some(Err(e)) = cache.map(|cache| cache.add(&choice)) {
            cache_error = Some(e.to_string());
        }
        Ok(Tuned { key: fastest, measured, cache_error })
    }

    /// What a choice is for: the kernel but for its tile, with what of it may broadcast, and the problem's sizes.
    pub(super) fn tuning_of(&self, key: &PipelineKey, problem: &Problem) -> (String, String) {
        let broadcast = if self.broadcasts() { "-broadcast" } else { "" };
        (key.without_tile() + broadcast, geometry(problem))
    }

    /// Seconds a forward pass with each kernel that can carry it out.
    async fn measure<T: GpuElement>(
        &self,
        problem: &Problem,
        layouts: &Layouts,
        wait: Wait,
    ) -> Result<Vec<(PipelineKey, f64)>, GpuError> {
        let inputs = random_inputs::<T>(problem)?;
        let outcome = Outcome {
            elements: padded(problem.shape.value_dim),
            dtype: Dtype::from(layouts.storage),
        };
        let mut plans: Vec<(Plan, Chunk)> = Vec::new();
        let tiles = Tile::ALL.map(Variant::Tile).into_iter();
        let matrices = self.matrix().filter(|_| self.options().matrix != Some(false));
        for variant in tiles.chain(matrices.map(|_| Variant::Matrix)) {
            let mut options = self.options().clone();
            options.matrix = Some(variant == Variant::Matrix);
            if let Variant::Tile(tile) = variant {
                options.tile = Some(tile);
            }
            // Calls without dropout are timed.
            let (gpu, kernel) = (self.with_options(options), Kernel::Forward);
            let plan = match gpu.plan_kernel(kernel, problem, layouts, Drops::Never).await {
                Ok(plan) if Variant::of(&plan.key()) == variant => plan,
                // No room for it, no such kernel, or loops that the adapter would end.
                Ok(_) | Err(PlanError::LoopTurns { .. }) => continue,
                Err(e) => return Err(e.into()),
            };
            if let Some(chunk) = plan.host_chunks(&inputs, outcome)?.into_iter().next() {
                plans.push((plan, chunk));
            }
        }
        let mut workspace = Workspace::new(self, 1).await?;
        let mut candidates = Vec::new();
        for (plan, chunk) in &plans {
            let first = problem.shape.query.start;
            let piece = Piece::new(plan, &inputs, first, chunk, outcome).await?;
            let bound = plan.bind_piece(&piece.tensors(), chunk, &workspace).await?;
            // The piece frees its tensors when it goes.
            candidates.push((bound, chunk.rows.len() * chunk.queries.len(), Vec::new(), piece));
        }
        let mut calls = 1;
        // Compiled, then timed once to see how many calls make a sample.
        for round in 0..ROUNDS + 2 {
            let mut fastest = f64::INFINITY;
            for (bound, _, samples, _) in &mut candidates {
                workspace.recall();
                let start = Instant::now();
                checked(self.both(), "measuring kernels", || {
                    let mut encoder = self.device().create_command_encoder(&Default::default());
                    let mut pass = encoder.begin_compute_pass(&Default::default());
                    for _ in 0..calls {
                        bound.encode(&mut pass, &mut workspace, &Call::default())?;
                    }
                    drop(pass);
                    self.queue().submit([encoder.finish()]);
                    Ok::<_, BindError>(())
                })
                .await??;
                self.finished(wait).await?;
                let seconds = start.elapsed().as_secs_f64() / calls as f64;
                fastest = fastest.min(seconds);
                if round > 1 {
                    samples.push(seconds);
                }
            }
            if round == 1 {
                calls = ((SAMPLE / fastest.max(1e-9)) as usize).clamp(1, MOST_CALLS);
            }
        }
        let all = (problem.batch * problem.shape.query.len()) as f64;
        let seconds = |mut samples: Vec<f64>, queries: usize| {
            samples.sort_by(f64::total_cmp);
            samples[samples.len() / 2] * all / queries as f64
        };
        let keys = plans.iter().map(|(plan, _)| plan.key());
        Ok(keys.zip(candidates).map(|(k, (_, queries, s, _))| (k, seconds(s, queries))).collect())
    }
}

/// Tensors of a problem: one random row, repeated.
pub(super) fn random_inputs<T: GpuElement>(
    problem: &Problem,
) -> Result<HostInputs<'static, T>, RunError> {
    let shape = &problem.shape;
    let mut state = 1_u32;
    let mut random = |what, rows: usize, size: [usize; 2]| {
        let (mut data, len) = reserve::<T>(what, &size)?;
        data.extend((0..len).map(|_| {
            // Numerical Recipes' generator; its high bits are as random as timing needs.
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            T::store((state >> 8) as f32 / 8_388_608.0 - 1.0)
        }));
        Ok::<_, RunError>(HostTensor::repeated(data, rows, &size))
    };
    let (batch, kv_batch) = (problem.batch, problem.kv_batch);
    let mut inputs = HostInputs::new(
        random("q", batch, [shape.query.len(), shape.head_dim])?,
        random("k", kv_batch, [shape.key_len, shape.head_dim])?,
        random("v", kv_batch, [shape.key_len, shape.value_dim])?,
    );
    if let Some(mask) = shape.mask {
        let (mut open, _) = reserve("mask", &[mask.len])?;
        open.resize(mask.len, true);
        inputs = inputs.with_mask(HostTensor::repeated(open, mask.rows, &[mask.len]));
    }
    if let Some(bias) = shape.bias {
        inputs = inputs.with_attn_bias(random("attn_bias", bias.rows, [bias.queries, bias.slots])?);
    }
    Ok(inputs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AttentionShape, LocalAttention, LocalAttentionConfig};

    #[test]
    fn tensors_fit_the_problem() {
        let attention = LocalAttention::new(LocalAttentionConfig::new(4).autopad(true)).unwrap();
        let plain = AttentionShape::new([6], 10, 8);
        for shape in [
            plain.clone(),
            plain.clone().with_mask(3, 10).with_bias(2, 4, 12).with_lse(),
            plain.with_bias(1, 1, 12),
            AttentionShape::new([0], 10, 8),
        ] {
            let problem = attention.problem(&shape).unwrap();
            let inputs = random_inputs::<f32>(&problem).unwrap();
            problem.check_inputs(&inputs).unwrap();
            assert_eq!(inputs.q.shape(), [problem.batch, shape.query.len(), 8]);
        }
    }

    #[test]
    fn a_geometry_is_all_that_decides() {
        let text = |config: LocalAttentionConfig, shape: AttentionShape| {
            geometry(&LocalAttention::new(config).unwrap().problem(&shape).unwrap())
        };
        let config = || LocalAttentionConfig::new(4);
        let shape = || AttentionShape::new([6], 16, 8);
        let plain = text(config(), shape());
        assert_eq!(plain, text(config().scale(3.0), shape()));
        for other in [
            text(config().causal(true), shape()),
            text(config().look_backward(2), shape()),
            text(config().exact_windowsize(true), shape()),
            text(config(), AttentionShape::new([5], 16, 8)),
            text(config(), AttentionShape::new([6], 20, 8)),
            text(config(), AttentionShape::new([6], 16, 7)),
            text(config(), shape().with_lse()),
            text(config(), shape().with_mask(1, 16)),
            text(config(), shape().with_bias(1, 1, 12)),
        ] {
            assert_ne!(plain, other);
            assert!(!other.contains(['\t', '\n']));
        }
    }
}
