//! A plan bound to tensors: ready to be recorded, any number of times.

use super::bindings::{self, Bindings, Slot};
use super::chunk::Chunk;
use super::device::Gpu;
use super::error::{BindError, PlanError};
use super::layout::{LaidTensors, check_fit};
use super::loops;
use super::owned::Owned;
use super::params::{self, DropoutParams, Params};
use super::plan::{Pipelines, Plan};
use super::scope::checked;
use super::shader::PipelineKey;
use super::tensor::ForwardTensors;
use super::uniforms;
use super::workspace::{self, Workspace};
use crate::{Call, Dropout, Problem};

/// A plan bound to a caller's tensors; [`Plan`] has an example.
#[derive(Debug)]
pub struct Bound {
    gpu: Gpu,
    problem: Problem,
    workspace: u64,
    parts: Vec<Part>,
    /// Memory that is its own.
    own: Vec<wgpu::Buffer>,
}

/// One dispatch.
#[derive(Debug)]
struct Part {
    pipelines: Pipelines,
    /// With uniforms of its own, written once.
    group: wgpu::BindGroup,
    offset: u32,
    /// With the workspace too, for calls with dropout: each has other numbers. And whether those take more turns of
    /// loops than the adapter has.
    dropping: Option<(wgpu::BindGroup, Result<(), PlanError>)>,
    workgroups: [u32; 3],
}

impl Part {
    fn check_loops(&self, call: &Call) -> Result<(), BindError> {
        match (&self.dropping, call.dropout) {
            (Some((_, Err(e))), Some(_)) => Err(e.clone().into()),
            _ => Ok(()),
        }
    }
}

/// What a dispatch is made of.
pub(super) struct Dispatch<'a> {
    pub(super) key: PipelineKey,
    pub(super) pipelines: Pipelines,
    pub(super) params: Params,
    /// By number; nothing where none is given.
    pub(super) bindings: Vec<(u32, wgpu::BufferBinding<'a>)>,
    pub(super) workgroups: [u32; 3],
}

impl Plan {
    /// Binds tensors: shapes, types, usages, sizes and limits are checked here, once, and the uniforms of all dispatches
    /// are written to a buffer of their own. Tensors that lie in the output's buffer have a kernel of their own, compiled
    /// at the first such call.
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
        let laid = LaidTensors::of_piece(self, tensors, chunk);
        self.bound(&laid, std::slice::from_ref(chunk), workspace).await
    }

    async fn bound(
        &self,
        laid: &LaidTensors<'_>,
        chunks: &[Chunk],
        workspace: &Workspace,
    ) -> Result<Bound, BindError> {
        let pipelines = self.pipelines(laid.arena()).await?;
        let dispatches = chunks.iter().map(|chunk| self.dispatch(laid, chunk, pipelines.clone()));
        Bound::new(self, dispatches.collect(), workspace, Owned::default()).await
    }

    fn dispatch<'a>(
        &self,
        laid: &LaidTensors<'a>,
        chunk: &Chunk,
        pipelines: Pipelines,
    ) -> Dispatch<'a> {
        let mut params = self.params(chunk);
        params.leading = laid.dims;
        if laid.mask_words {
            params.flags |= params::MASK_WORDS;
        }
        if laid.repeats_bias() {
            params.flags &= !params::BIAS_VARIES;
            params.key_end = uniforms::key_end(&self.problem, false);
        }
        let bound = laid.bindings(self, chunk);
        for binding in &bound {
            for &slot in &binding.tensors {
                if let Some(field) = slot.view(&mut params) {
                    *field = laid.view(slot, binding);
                }
            }
        }
        let homes = bound.into_iter().map(|b| (b.home, bindings::range(b.buffer, b.bytes)));
        let key = self.key();
        let bindings = bindings::numbered(key.kernel, homes);
        Dispatch { key, pipelines, params, bindings, workgroups: self.workgroups(chunk) }
    }
}

impl Bound {
    /// Dispatches in their order, on the device of a plan, with its tables where no others are given, and memory that is
    /// its own.
    pub(super) async fn new(
        plan: &Plan,
        dispatches: Vec<Dispatch<'_>>,
        workspace: &Workspace,
        mut own: Owned,
    ) -> Result<Self, BindError> {
        let (gpu, problem) = (&plan.gpu, &plan.problem);
        let stride = workspace::stride::<Params>(gpu);
        let (device, queue) = gpu.both();
        for dispatch in &dispatches {
            // How many keys are visited is known now that the bias is.
            loops::check(gpu, problem, &dispatch.key, &dispatch.params, false)?;
        }
        // Offsets into it are counted in 32 bits.
        let size = stride.saturating_mul(dispatches.len().max(1) as u64);
        let max = device.limits().max_buffer_size.min(u64::from(u32::MAX));
        if size > max {
            let limit = "max_buffer_size";
            return Err(PlanError::Limit { limit, got: max, needed: size }.into());
        }
        let parts = checked((device, queue), "binding tensors", || {
            let uniforms = own.add(device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("local-attention uniforms"),
                size,
                usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            }));
            let part = |(i, dispatch): (usize, Dispatch<'_>)| {
                let offset = i as u64 * stride;
                let Dispatch { key, pipelines, params, bindings, workgroups } = dispatch;
                queue.write_buffer(&uniforms, offset, bytemuck::bytes_of(&params));
                let mut all =
                    Bindings::new(workspace::uniforms::<Params>(&uniforms), &plan.nothing);
                let tables = [(Slot::Tables, bindings::whole(&plan.tables))];
                let tables = bindings::numbered(key.kernel, tables);
                tables
                    .into_iter()
                    .chain(bindings)
                    .for_each(|(number, binding)| all.set(number, binding));
                let group = |all: Bindings<'_>| all.group(device, gpu.group_layout());
                let alone = group(all.clone());
                all.set(bindings::DROPOUT, workspace.binding());
                let dropping = pipelines.drop().then(|| {
                    let turns = loops::check(gpu, problem, &key, &params, true);
                    (group(all), turns)
                });
                let offset = offset as u32;
                Part { pipelines, group: alone, offset, dropping, workgroups }
            };
            dispatches.into_iter().enumerate().map(part).collect()
        })
        .await?;
        let (gpu, problem) = (gpu.clone(), problem.clone());
        Ok(Self { gpu, problem, workspace: workspace.id(), parts, own: own.take() })
    }

    /// Frees its memory on the device once what was submitted is done; it cannot be submitted again. Dropping it
    /// does so natively, but in browsers leaves it to the garbage collector, which does not know how large it is.
    pub fn destroy(&self) {
        drop(self.owned());
    }

    /// Its memory, freed when this is dropped.
    pub(super) fn owned(&self) -> Owned {
        Owned::of(&self.own)
    }

    fn check_workspace(&self, workspace: &Workspace) -> Result<(), BindError> {
        if workspace.id() == self.workspace { Ok(()) } else { Err(BindError::Workspace) }
    }

    /// Slots of the workspace that recording a call takes: with dropout one for each dispatch that drops weights, else none.
    pub fn workspace_slots(&self, call: &Call) -> usize {
        match call.dropout {
            None => 0,
            Some(_) => self.parts.iter().filter(|part| part.dropping.is_some()).count(),
        }
    }

    /// Dispatches of a call.
    pub fn chunks(&self) -> usize {
        self.parts.len()
    }

    /// Records a call into the caller's pass, where it leaves its pipeline and its bind group 0: nothing is allocated, nothing submitted. (With dropout wgpu takes memory
    /// of its own for the uniforms of each dispatch that drops weights.) A call takes
    /// [`workspace_slots`](Self::workspace_slots) of the workspace.
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
        workspace.check_room(self.workspace_slots(call))?;
        // Nothing is recorded unless all is.
        self.parts.iter().try_for_each(|part| part.check_loops(call))?;
        self.parts.iter().try_for_each(|part| self.record(part, pass, workspace, call))
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
        part.check_loops(call)?;
        self.record(part, pass, workspace, call)
    }

    fn record(
        &self,
        part: &Part,
        pass: &mut wgpu::ComputePass<'_>,
        workspace: &mut Workspace,
        call: &Call,
    ) -> Result<(), BindError> {
        pass.set_pipeline(part.pipelines.of(call));
        match part.dropping.as_ref().zip(call.dropout) {
            None => pass.set_bind_group(0, &part.group, &[part.offset, 0]),
            Some(((group, _), dropout)) => {
                workspace.check_room(1)?;
                let params = dropout_params(self.problem.dropout, dropout);
                let offset = workspace.write(self.gpu.queue(), &params);
                pass.set_bind_group(0, group, &[part.offset, offset]);
            }
        }
        let [x, y, z] = part.workgroups;
        pass.dispatch_workgroups(x, y, z);
        self.gpu.count_dispatch();
        Ok(())
    }
}

fn dropout_params(p: f64, Dropout { seed, offset }: Dropout) -> DropoutParams {
    let (threshold, factor) = crate::dropout::threshold_and_factor(p);
    let key = [seed as u32, (seed >> 32) as u32];
    DropoutParams { key, offset, threshold, factor: factor as f32, unused: 0 }
}
