//! Memory on the device while something is made of it.

/// Buffers that are freed when this is dropped, unless they are taken: in browsers dropping a buffer leaves its memory
/// to the garbage collector, which does not know how large it is.
#[derive(Debug, Default)]
pub(super) struct Owned(Vec<wgpu::Buffer>);

impl Owned {
    /// These.
    pub(super) fn of<'a>(buffers: impl IntoIterator<Item = &'a wgpu::Buffer>) -> Self {
        Self(buffers.into_iter().cloned().collect())
    }

    /// One more of them.
    pub(super) fn add(&mut self, buffer: wgpu::Buffer) -> wgpu::Buffer {
        self.0.push(buffer.clone());
        buffer
    }

    /// Leaves them to the caller.
    pub(super) fn take(mut self) -> Vec<wgpu::Buffer> {
        std::mem::take(&mut self.0)
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.iter().for_each(wgpu::Buffer::destroy);
    }
}
