//! Memory that calls share: slots for the numbers of dispatches with dropout that are recorded and
//! not yet submitted.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::device::Gpu;
use super::error::{BindError, DeviceError};
use super::owned::Owned;
use super::params::DropoutParams;
use super::scope::checked;

/// Uniform slots, one for each dispatch with dropout between two submissions: others need none.
///
/// A slot is written once and then left alone until [`recall`](Self::recall), so that two calls
/// recorded before one submission are both right. [`Plan`](super::Plan) has an example.
#[derive(Debug)]
pub struct Workspace {
    id: u64,
    gpu: Gpu,
    buffer: wgpu::Buffer,
    stride: u64,
    /// None once its memory was freed.
    slots: AtomicUsize,
    used: usize,
}

/// Bytes from one slot of uniforms to the next.
pub(super) fn stride<T>(gpu: &Gpu) -> u64 {
    let alignment = u64::from(gpu.device().limits().min_uniform_buffer_offset_alignment);
    (size_of::<T>() as u64).next_multiple_of(alignment.max(16))
}

/// A buffer of slots as it is bound: they are dynamic offsets into it.
pub(super) fn uniforms<T>(buffer: &wgpu::Buffer) -> wgpu::BufferBinding<'_> {
    let size = std::num::NonZeroU64::new(size_of::<T>() as u64);
    wgpu::BufferBinding { buffer, offset: 0, size }
}

static NEXT: AtomicU64 = AtomicU64::new(0);

impl Workspace {
    /// Room for this many dispatches between two submissions, at least 1 and as many as a buffer holds:
    /// [`slots`](Self::slots) tells.
    ///
    /// # Errors
    /// A device that has no memory for them.
    pub async fn new(gpu: &Gpu, slots: usize) -> Result<Self, DeviceError> {
        let stride = stride::<DropoutParams>(gpu);
        // Offsets are 32 bits.
        let limit = gpu.device().limits().max_buffer_size.min(u64::from(u32::MAX)) / stride;
        let slots = slots.min(usize::try_from(limit).unwrap_or(usize::MAX)).max(1);
        let mut own = Owned::default();
        let buffer = checked(gpu.both(), "making a workspace", || {
            own.add(gpu.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some("local-attention workspace"),
                size: stride.saturating_mul(slots as u64),
                usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            }))
        })
        .await?;
        own.take();
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Ok(Self { id, gpu: gpu.clone(), buffer, stride, slots: slots.into(), used: 0 })
    }

    /// [`Workspace::new`], waiting for it.
    ///
    /// # Errors
    /// As there.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn new_blocking(gpu: &Gpu, slots: usize) -> Result<Self, DeviceError> {
        pollster::block_on(Self::new(gpu, slots))
    }

    /// Frees its memory on the device, like [`Bound::destroy`](super::Bound::destroy): it has no slots any more.
    pub fn destroy(&self) {
        self.slots.store(0, Ordering::Relaxed);
        drop(self.owned());
    }

    /// Its memory, freed when this is dropped.
    pub(super) fn owned(&self) -> Owned {
        Owned::of([&self.buffer])
    }

    /// Slots in use.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Slots there are.
    pub fn slots(&self) -> usize {
        self.slots.load(Ordering::Relaxed)
    }

    /// Frees all slots. Call it once everything recorded so far has been *submitted*: a later
    /// submission sees what is written after it.
    pub fn recall(&mut self) {
        self.used = 0;
    }

    /// An error unless it was made by this engine or a clone of it.
    pub(super) fn check_gpu(&self, gpu: &Gpu) -> Result<(), BindError> {
        if self.gpu.is_same(gpu) { Ok(()) } else { Err(BindError::WorkspaceGpu) }
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// The buffer as it is bound: slots are dynamic offsets into it.
    pub(super) fn binding(&self) -> wgpu::BufferBinding<'_> {
        uniforms::<DropoutParams>(&self.buffer)
    }

    /// An error unless this many slots are free.
    pub(super) fn check_room(&self, needed: usize) -> Result<(), BindError> {
        let (slots, used) = (self.slots(), self.used);
        if slots.saturating_sub(used) < needed {
            return Err(BindError::NoSlot { slots, used, needed });
        }
        Ok(())
    }

    /// Writes a call's numbers into a free slot and gives its offset.
    pub(super) fn write(&mut self, queue: &wgpu::Queue, params: &DropoutParams) -> u32 {
        let offset = self.used as u64 * self.stride;
        self.used += 1;
        queue.write_buffer(&self.buffer, offset, bytemuck::bytes_of(params));
        offset as u32
    }
}
