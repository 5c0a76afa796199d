//! What a device says of what is made on it, as typed errors.

use super::error::DeviceError;

/// What `make` gives, unless the device complains about it.
pub(super) async fn checked<T>(
    (device, queue): (&wgpu::Device, &wgpu::Queue),
    doing: &'static str,
    make: impl FnOnce() -> T,
) -> Result<T, DeviceError> {
    // The guards do not cross a point of waiting: the future can go to another thread.
    let (made, errors) = {
        let memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let internal = device.push_error_scope(wgpu::ErrorFilter::Internal);
        let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
        let made = make();
        // What a lost device makes is not valid and is no error: only using it is.
        probe(device, queue);
        let validation = validation.pop();
        let internal = internal.pop();
        (made, (validation, internal, memory.pop()))
    };
    let (validation, internal, memory) = (errors.0.await, errors.1.await, errors.2.await);
    if let Some(e) = memory {
        return Err(DeviceError::OutOfMemory { doing, reason: e.to_string() });
    }
    let Some(e) = validation.or(internal) else { return Ok(made) };
    Err(refusal((device, queue), doing, e.to_string()).await)
}

/// What a refusal means: that of a device that is there, or that it is lost.
pub(super) async fn refusal(
    (device, queue): (&wgpu::Device, &wgpu::Queue),
    doing: &'static str,
    reason: String,
) -> DeviceError {
    // wgpu has no kind of its own for a lost device: it refuses what no device refuses.
    match works(device, queue).await {
        true => DeviceError::Refused { doing, reason },
        false => DeviceError::Lost { doing, reason },
    }
}

/// Whether a device still takes data.
async fn works(device: &wgpu::Device, queue: &wgpu::Queue) -> bool {
    let error = {
        let scope = device.push_error_scope(wgpu::ErrorFilter::Validation);
        probe(device, queue);
        scope.pop()
    };
    error.await.is_none()
}

/// What every device that is there accepts.
fn probe(device: &wgpu::Device, queue: &wgpu::Queue) {
    let buffer = device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("probe"),
        size: 16,
        usage: wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    queue.write_buffer(&buffer, 0, &[0; 16]);
    // Left to the garbage collector there.
    #[cfg(target_arch = "wasm32")]
    buffer.destroy();
}
