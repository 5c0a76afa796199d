//! A plan bound to tensors: ready to be recorded, any number of times.

use super::bindings::{self, Slot};
use super::chunk::Chunk;
use super::error::BindError;
use super::layout::{LaidTensors, check_fit};
use super::loops;
use super::params::{self, Params};
use super::plan::{Pipelines, Plan};
use super::scope::checked;
use super::tensor::ForwardTensors;
use super::uniforms;
use super::workspace::{self, Workspace};
use crate::{Call, Dropout};

/// A plan bound to a caller's tensors; [`Plan`] has an example.
#[derive(Debug)]
pub struct Bound {
    plan: Plan,
    pipelines: Pipelines,
    workspace: u64,
    parts: Vec<Part>,
}

/// One dispatch.
#[derive(Debug)]
struct Part {
    /// With uniforms of its own, written once.
    group: wgpu::BindGroup,
    offset: u32,
    /// With those of the workspace, for calls with dropout: each has other ones.
    dropping: Option<wgpu::BindGroup>,
    params: Params,
    workgroups: [u32; 3],
}

impl Plan {
    /// Binds tensors: shapes, types, usages, sizes and limits are checked here, once.
    ///
    /// # Errors
    /// Tensors that do not fit the plan, and parts that do not fit the device; see [`BindError`].
    pub async fn bind_forward(
        &self,
        tensors: &ForwardTensors<'_>,
        workspace: &Workspace,
    ) -> Result<Bound, BindError> {
        workspace.check_gpu(&self.gpu)?;
        let laid = LaidTensors::new(self, tensors)?;
        let limit = self.gpu.max_binding_bytes();
        let fits = |chunk: &Chunk| {
            let all = laid.bindings(self, chunk);
            let bytes = |range: &std::ops::Range<u64>| range.end - range.start;
            check_fit(all.iter().map(|b| (b.name(), bytes(&b.bytes))), limit)
        };
        let chunks = self.chunks(&fits)?;
        self.bound(&laid, &chunks, workspace).await
    }

    /// [`Plan::bind_forward`], waiting for it.
    ///
    /// # Errors
    /// As there.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn bind_forward_blocking(
        &self,
        tensors: &ForwardTensors<'_>,
        workspace: &Workspace,
    ) -> Result<Bound, BindError> {
        pollster::block_on(self.bind_forward(tensors, workspace))
    }

    /// Binds tensors that hold a part alone, as [`LaidTensors::of_piece`] says.
    pub(super) async fn bind_piece(
        &self,
        tensors: &ForwardTensors<'_>,
        chunk: &Chunk,
        workspace: &Workspace,
    ) -> Result<Bound, BindError> {
        let laid = LaidTensors::of_piece(&self.problem, tensors, chunk);
        self.bound(&laid, std::slice::from_ref(chunk), workspace).await
    }

    async fn bound(
        &self,
        laid: &LaidTensors<'_>,
        chunks: &[Chunk],
        workspace: &Workspace,
    ) -> Result<Bound, BindError> {
        let pipelines = self.pipelines(laid.arena()).await?;
        let stride = workspace::stride(&self.gpu);
        let (device, queue) = self.gpu.both();
        let parts: Vec<Part> = checked((device, queue), "binding tensors", || {
            let uniforms = device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("local-attention uniforms"),
                size: stride.saturating_mul(chunks.len().max(1) as u64),
                usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            });
            let part = |(i, chunk)| {
                let offset = i as u64 * stride;
                let part = self.part(laid, chunk, &uniforms, offset as u32, workspace);
                queue.write_buffer(&uniforms, offset, bytemuck::bytes_of(&part.params));
                part
            };
            chunks.iter().enumerate().map(part).collect()
        })
        .await?;
        // How many keys are visited is known now that the bias is.
        if let Some(part) = parts.first() {
            loops::check(&self.gpu, &self.problem, &self.key(), &part.params, false)?;
        }
        Ok(Bound { plan: self.clone(), pipelines, workspace: workspace.id(), parts })
    }

    fn part(
        &self,
        laid: &LaidTensors<'_>,
        chunk: &Chunk,
        uniforms: &wgpu::Buffer,
        offset: u32,
        workspace: &Workspace,
    ) -> Part {
        let mut params = self.params(chunk);
        params.leading = laid.dims;
        if laid.mask_words {
            params.flags |= params::MASK_WORDS;
        }
        if laid.repeats_bias() {
            params.flags &= !params::BIAS_VARIES;
            params.key_end = uniforms::key_end(&self.problem, false);
        }
        let whole = |buffer| wgpu::BufferBinding { buffer, offset: 0, size: None };
        // What is written is never what is read elsewhere.
        let [read, written] = &self.nothing;
        let mut all = Slot::ALL.map(|slot| match slot {
            Slot::Params => workspace::uniforms(uniforms),
            Slot::Tables => whole(&self.tables),
            Slot::Out | Slot::Lse => whole(written),
            _ => whole(read),
        });
        for binding in laid.bindings(self, chunk) {
            for &slot in &binding.tensors {
                if let Some(field) = slot.view(&mut params) {
                    *field = laid.view(slot, &binding);
                }
            }
            all[binding.home as usize] = wgpu::BufferBinding {
                buffer: binding.buffer,
                offset: binding.bytes.start,
                size: std::num::NonZeroU64::new(binding.bytes.end - binding.bytes.start),
            };
        }
        let group = |all| bindings::group(self.gpu.device(), self.gpu.group_layout(), all);
        let own = group(all.clone());
        all[Slot::Params as usize] = workspace.binding();
        let dropping = (self.problem.dropout > 0.0).then(|| group(all));
        Part { group: own, offset, dropping, params, workgroups: self.workgroups(chunk) }
    }
}

impl Bound {
    fn check_workspace(&self, workspace: &Workspace) -> Result<(), BindError> {
        if workspace.id() == self.workspace { Ok(()) } else { Err(BindError::Workspace) }
    }

    fn drops(&self, call: &Call) -> bool {
        self.plan.problem.dropout > 0.0 && call.dropout.is_some()
    }

    /// Dispatches of a call.
    pub fn chunks(&self) -> usize {
        self.parts.len()
    }

    /// Records a call into the caller's pass: nothing is allocated, nothing submitted. A call with
    /// dropout takes a slot of the workspace for each dispatch, and one without takes none.
    ///
    /// # Errors
    /// A workspace without room, or not the one bound with; dropout on windows so far beyond the sequence
    /// that the adapter would end the kernel's loops ([`PlanError::LoopTurns`](super::PlanError)).
    pub fn encode(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        workspace: &mut Workspace,
        call: &Call,
    ) -> Result<(), BindError> {
        self.check_workspace(workspace)?;
        if self.drops(call) {
            workspace.check_room(self.parts.len())?;
        }
        (0..self.parts.len()).try_for_each(|i| self.encode_chunk(i, pass, workspace, call))
    }

    /// Records one dispatch of a call; one past the last does nothing.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_chunk(
        &self,
        chunk: usize,
        pass: &mut wgpu::ComputePass<'_>,
        workspace: &mut Workspace,
        call: &Call,
    ) -> Result<(), BindError> {
        let Some(part) = self.parts.get(chunk) else { return Ok(()) };
        self.check_workspace(workspace)?;
        let gpu = &self.plan.gpu;
        if self.drops(call) {
            workspace.check_room(1)?;
            loops::check(gpu, &self.plan.problem, &self.plan.key(), &part.params, true)?;
        }
        pass.set_pipeline(self.pipelines.of(call));
        match part.dropping.as_ref().zip(call.dropout) {
            None => pass.set_bind_group(0, &part.group, &[part.offset]),
            Some((group, dropout)) => {
                let mut params = part.params;
                set_dropout(&mut params, self.plan.problem.dropout, dropout);
                let offset = workspace.write(gpu.queue(), &params);
                pass.set_bind_group(0, group, &[offset]);
            }
        }
        let [x, y, z] = part.workgroups;
        pass.dispatch_workgroups(x, y, z);
        gpu.count_dispatch();
        Ok(())
    }
}

fn set_dropout(params: &mut Params, p: f64, Dropout { seed, offset }: Dropout) {
    let (threshold, factor) = crate::dropout::threshold_and_factor(p);
    params.dropout_threshold = threshold;
    params.dropout_factor = factor as f32;
    params.dropout_key = [seed as u32, (seed >> 32) as u32];
    params.dropout_offset = offset;
}
