//! Memory of a backward pass beside its tensors.

use super::BackwardPlan;
use super::tensors::BackwardTensors;
use crate::gpu::error::BindError;
use crate::gpu::layout::check_fit;
use crate::gpu::owned::Owned;
use crate::gpu::scope::checked;
use crate::gpu::tensor::{Dtype, TensorView};

/// Memory between the kernels of a call: the rotary tables, then the mask as words, then what is known of queries.
pub(super) struct Scratch {
    pub(super) aux: wgpu::Buffer,
    /// Where they begin, in vec4s.
    pub(super) mask: u64,
    pub(super) stats: u64,
    /// vec4s of a row of the mask.
    pub(super) mask_quads: usize,
    /// Results in f32 of their own, in the order of [`BackwardTensors::results`].
    pub(super) results: Vec<Option<wgpu::Buffer>>,
}

impl BackwardPlan {
    pub(super) async fn scratch(
        &self,
        tensors: &BackwardTensors<'_>,
        own: &mut Owned,
    ) -> Result<Scratch, BindError> {
        let plan = &self.dq;
        let (gpu, problem) = (&plan.gpu, &plan.problem);
        let tables = plan.tables.size();
        let mask = tables.div_ceil(16);
        let mask_quads = problem.shape.mask.map_or(0, |m| m.len.div_ceil(4));
        let mask_rows = problem.shape.mask.map_or(0, |m| m.rows);
        let stats = mask.saturating_add((mask_quads as u64).saturating_mul(mask_rows as u64));
        let queries = (problem.batch as u64).saturating_mul(problem.shape.query.len() as u64);
        let needed = stats.saturating_add(queries).saturating_mul(16);
        let limits = gpu.device().limits();
        let max = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size);
        check_fit([("what is known of queries", needed)], max)?;
        // Whatever else lies in the buffer of a result is bound beside it.
        let apart = |name: &str, to: &TensorView<'_>| {
            let others =
                tensors.inputs().chain(tensors.results().filter(|(other, _)| *other != name));
            others.into_iter().all(|(_, other)| other.buffer != to.buffer)
        };
        let bytes = |(name, to): (&'static str, &TensorView<'_>)| -> Option<(&'static str, u64)> {
            let direct = to.dtype == Dtype::F32 && apart(name, to);
            let needed =
                wide_shape(&to.shape).iter().fold(4, |n: u64, &s| n.saturating_mul(s as u64));
            (!direct).then_some((name, needed))
        };
        let gradients = tensors.results().filter(|(name, _)| *name != "dattn_bias");
        let needs: Vec<_> = gradients.map(bytes).collect();
        check_fit(needs.iter().flatten().copied(), limits.max_buffer_size)?;
        let (device, queue) = gpu.both();
        let scratch = checked((device, queue), "making memory of a backward pass", || {
            let mut make = |label, size: u64| {
                own.add(device.create_buffer(&wgpu::BufferDescriptor {
                    label: Some(label),
                    size: size.next_multiple_of(16).max(16),
                    usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST,
                    mapped_at_creation: false,
                }))
            };
            let aux = make("what is known of queries", needed);
            let mut encoder =
                device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            encoder.copy_buffer_to_buffer(&plan.tables, 0, &aux, 0, Some(tables));
            queue.submit([encoder.finish()]);
            let results = needs.iter().map(|n| n.map(|(name, bytes)| make(name, bytes))).collect();
            Scratch { aux, mask, stats, mask_quads, results }
        })
        .await?;
        Ok(scratch)
    }
}

/// A gradient's shape in f32: features in whole vec4s.
fn wide_shape(shape: &[usize]) -> Vec<usize> {
    let mut shape = shape.to_vec();
    if let Some(features) = shape.last_mut() {
        *features = features.next_multiple_of(4);
    }
    shape
}

impl Scratch {
    /// The same tensors with results in f32 that share no buffer.
    pub(super) fn wide<'a>(&'a self, tensors: &BackwardTensors<'a>) -> BackwardTensors<'a> {
        let mut wide = tensors.clone();
        let results = [&mut wide.dq, &mut wide.dk, &mut wide.dv];
        for (to, buffer) in results.into_iter().zip(&self.results) {
            if let Some(buffer) = buffer {
                let padded = TensorView::contiguous(buffer, Dtype::F32, wide_shape(&to.shape));
                *to = TensorView { shape: to.shape.clone(), ..padded };
            }
        }
        wide
    }
}
