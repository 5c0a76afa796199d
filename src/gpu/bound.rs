//! A plan bound to tensors: ready to be recorded, any number of times.

use super::bindings::{self, Slot};
use super::device::checked;
use super::error::BindError;
use super::layout::{LaidTensors, check_fit};
use super::params::{self, Params};
use super::plan::{Chunk, Pipelines, Plan};
use super::tensor::ForwardTensors;
use super::workspace::Workspace;
use crate::{Call, Dropout};

/// A plan bound to a caller's tensors.
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
    group: wgpu::BindGroup,
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
        let laid = LaidTensors::new(self, tensors)?;
        let limit = self.gpu.max_binding_bytes();
        let fits = |chunk: &Chunk| {
            let all = laid.bindings(self, chunk);
            let bytes = |range: &std::ops::Range<u64>| range.end - range.start;
            check_fit(all.iter().map(|b| (b.home.tensor(), bytes(&b.bytes))), limit)
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
        let parts = checked(self.gpu.both(), "bind groups", || {
            chunks.iter().map(|chunk| self.part(laid, chunk, workspace)).collect()
        })
        .await?;
        Ok(Bound { plan: self.clone(), pipelines, workspace: workspace.id(), parts })
    }

    fn part(&self, laid: &LaidTensors<'_>, chunk: &Chunk, workspace: &Workspace) -> Part {
        let mut params = self.params(chunk);
        params.leading = laid.dims;
        if laid.mask_words {
            params.flags |= params::MASK_WORDS;
        }
        if laid.repeats_bias() {
            params.flags &= !params::BIAS_VARIES;
        }
        let whole = |buffer| wgpu::BufferBinding { buffer, offset: 0, size: None };
        // What is written is never what is read elsewhere.
        let [read, written] = &self.nothing;
        let mut all = Slot::ALL.map(|slot| match slot {
            Slot::Params => workspace.binding(),
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
        let group = bindings::group(self.gpu.device(), self.gpu.group_layout(), all);
        Part { group, params, workgroups: self.workgroups(chunk) }
    }
}

impl Bound {
    /// Dispatches of a call.
    pub fn chunks(&self) -> usize {
        self.parts.len()
    }

    /// Records a call into the caller's pass: nothing is allocated, nothing submitted.
    ///
    /// # Errors
    /// A workspace without room, or not the one bound with.
    pub fn encode(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        workspace: &mut Workspace,
        call: &Call,
    ) -> Result<(), BindError> {
        workspace.check_room(self.parts.len())?;
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
        if workspace.id() != self.workspace {
            return Err(BindError::Workspace);
        }
        workspace.check_room(1)?;
        let mut params = part.params;
        set_dropout(&mut params, self.plan.problem.dropout, call);
        let gpu = &self.plan.gpu;
        let offset = workspace.write(gpu.queue(), &params);
        pass.set_pipeline(self.pipelines.of(call));
        pass.set_bind_group(0, &part.group, &[offset]);
        let [x, y, z] = part.workgroups;
        pass.dispatch_workgroups(x, y, z);
        gpu.count_dispatch();
        Ok(())
    }
}

fn set_dropout(params: &mut Params, p: f64, call: &Call) {
    if let Some(Dropout { seed, offset }) = call.dropout {
        let (threshold, factor) = crate::dropout::threshold_and_factor(p);
        params.dropout_threshold = threshold;
        params.dropout_factor = factor as f32;
        params.dropout_key = [seed as u32, (seed >> 32) as u32];
        params.dropout_offset = offset;
    }
}
