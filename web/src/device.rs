//! The device, and tensors in its buffers.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};

use js_sys::{Promise, Uint8Array};
use local_attention::gpu::{DeviceError, Gpu, RequestOptions, wgpu};
use wasm_bindgen::JsValue;
use wasm_bindgen_futures::JsFuture;

use crate::arrays::new_array;
use crate::error::Failure;
use crate::tensor::{Dtype, Place, Tensor, row_elements, zeros};

/// Bytes that are copied to or from the device at a time.
const PIECE_BYTES: usize = 8 << 20;

/// What is done, for messages.
const READING: &str = "reading results back";

/// A device of the package's own, and whether it is gone: wgpu's calls do not say so in browsers.
#[derive(Debug, Clone)]
pub(crate) struct Device {
    pub(crate) gpu: Gpu,
    lost: Arc<OnceLock<String>>,
}

impl Device {
    pub(crate) async fn request() -> Result<Self, Failure> {
        let gpu = Gpu::request(&RequestOptions::default()).await?;
        let lost = Arc::new(OnceLock::new());
        let tell = lost.clone();
        gpu.device().set_device_lost_callback(move |reason, message| {
            let _ = tell.set(format!("{reason:?}: {message}"));
        });
        Ok(Self { gpu, lost })
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.lost.get().is_some()
    }

    /// An error if the device is gone.
    pub(crate) fn alive(&self, doing: &'static str) -> Result<(), Failure> {
        match self.lost.get() {
            None => Ok(()),
            Some(reason) => Err(DeviceError::Lost { doing, reason: reason.clone() }.into()),
        }
    }

    /// What `make` gives, which is called at once, unless the device complains about it.
    pub(crate) fn checked<T: 'static>(
        &self,
        doing: &'static str,
        make: impl FnOnce() -> T,
    ) -> Pin<Box<dyn Future<Output = Result<T, Failure>>>> {
        let device = self.gpu.device();
        let memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
        let made = make();
        let validation = validation.pop();
        Box::pin(self.clone().told(doing, made, memory.pop(), validation))
    }

    /// What was made, unless the device complains.
    async fn told<T>(
        self,
        doing: &'static str,
        made: T,
        memory: impl Future<Output = Option<wgpu::Error>>,
        validation: impl Future<Output = Option<wgpu::Error>>,
    ) -> Result<T, Failure> {
        let (validation, memory) = (validation.await, memory.await);
        self.alive(doing)?;
        if let Some(e) = memory {
            return Err(DeviceError::OutOfMemory { doing, reason: e.to_string() }.into());
        }
        match validation {
            None => Ok(made),
            Some(e) => Err(DeviceError::Refused { doing, reason: e.to_string() }.into()),
        }
    }

    /// Room for a tensor.
    pub(crate) async fn allocate(
        &self,
        dtype: Dtype,
        shape: Vec<usize>,
    ) -> Result<Tensor, Failure> {
        self.checked("placing a tensor", || self.place(dtype, shape)).await
    }

    fn place(&self, dtype: Dtype, shape: Vec<usize>) -> Tensor {
        let rows = rows(&shape) as u64;
        let bytes = rows.saturating_mul((row_elements(dtype, &shape) * dtype.bytes()) as u64);
        let buffer = self.gpu.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some("local-attention tensor"),
            // Kernels read whole words, four numbers at a time.
            size: bytes.next_multiple_of(16).max(16),
            usage: wgpu::BufferUsages::STORAGE
                | wgpu::BufferUsages::COPY_DST
                | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        Tensor::new(dtype, shape, Place::Buffer(buffer))
    }

    /// From an array's bytes, which are copied before this returns: the caller may change them then.
    pub(crate) fn upload(
        &self,
        bytes: &Uint8Array,
        dtype: Dtype,
        shape: Vec<usize>,
    ) -> impl Future<Output = Result<Tensor, Failure>> + use<> {
        let placed = self.checked("placing a tensor", || {
            let tensor = self.place(dtype, shape);
            self.write(bytes, &tensor).map(|()| tensor)
        });
        async move { placed.await? }
    }

    fn write(&self, bytes: &Uint8Array, tensor: &Tensor) -> Result<(), Failure> {
        let Place::Buffer(buffer) = &tensor.0.place else { return Ok(()) };
        let rows = Rows::of(tensor);
        let padded = rows.array != rows.stored;
        let mut array = zeros::<u8>("a tensor", if padded { rows.piece * rows.array } else { 0 })?;
        let mut stored = zeros::<u8>("a tensor", rows.piece * rows.stored)?;
        for first in (0..rows.count).step_by(rows.piece) {
            let count = rows.piece.min(rows.count - first);
            let (from, to) = (first * rows.array, (first + count) * rows.array);
            let part = bytes.subarray(from as u32, to as u32);
            if padded {
                let array = &mut array[..count * rows.array];
                part.copy_to(array);
                let to = stored.chunks_exact_mut(rows.stored);
                for (to, from) in to.zip(array.chunks_exact(rows.array)) {
                    to[..rows.array].copy_from_slice(from);
                }
            } else {
                part.copy_to(&mut stored[..count]);
            }
            let piece = &stored[..(count * rows.stored).next_multiple_of(4).min(stored.len())];
            let at = (first * rows.stored) as u64;
            self.gpu.queue().write_buffer(buffer, at, piece);
        }
        Ok(())
    }

    /// Why something could not be read: because the device is gone, which it has said by the time it is asked, or
    /// else what the browser says, which nothing else suffers from.
    async fn unread(&self, reason: String) -> Failure {
        match self.checked(READING, || ()).await {
            Err(failure) => failure,
            Ok(()) => DeviceError::Refused { doing: READING, reason }.into(),
        }
    }

    /// The bytes of an array.
    pub(crate) async fn read(&self, tensor: &Tensor) -> Result<Uint8Array, Failure> {
        self.alive(READING)?;
        let Place::Buffer(buffer) = &tensor.0.place else {
            return Err(Failure::backend("a tensor", "does not lie on the GPU"));
        };
        let rows = Rows::of(tensor);
        let array = new_array(rows.count * rows.array)?;
        for first in (0..rows.count).step_by(rows.piece) {
            let count = rows.piece.min(rows.count - first);
            let size = ((count * rows.stored) as u64).next_multiple_of(4);
            let back = self
                .checked(READING, || {
                    let back = self.gpu.device().create_buffer(&wgpu::BufferDescriptor {
                        label: Some("local-attention results"),
                        size,
                        usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                        mapped_at_creation: false,
                    });
                    let mut encoder = self
                        .gpu
                        .device()
                        .create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
                    let at = (first * rows.stored) as u64;
                    encoder.copy_buffer_to_buffer(buffer, at, &back, 0, Some(size));
                    self.gpu.queue().submit([encoder.finish()]);
                    Back(back)
                })
                .await?;
            self.mapped(&back.0).await?;
            let data = match back.0.get_mapped_range(..) {
                Ok(data) => data,
                Err(e) => return Err(self.unread(e.to_string()).await),
            };
            let to = (first * rows.array) as u32;
            let view = array.subarray(to, to + (count * rows.array) as u32);
            if rows.array == rows.stored {
                view.copy_from(&data[..count * rows.array]);
            } else {
                let mut packed = zeros::<u8>("a tensor", count * rows.array)?;
                for (to, from) in
                    packed.chunks_exact_mut(rows.array).zip(data.chunks_exact(rows.stored))
                {
                    to.copy_from_slice(&from[..rows.array]);
                }
                view.copy_from(&packed);
            }
        }
        Ok(array)
    }

    /// Waits until a buffer can be read.
    async fn mapped(&self, buffer: &wgpu::Buffer) -> Result<(), Failure> {
        let promise = Promise::new(&mut |resolve, reject| {
            buffer.map_async(wgpu::MapMode::Read, .., move |result| {
                let told = match result {
                    Ok(()) => resolve.call0(&JsValue::NULL),
                    Err(e) => reject.call1(&JsValue::NULL, &e.to_string().into()),
                };
                // Settling a promise does not fail.
                let _ = told;
            });
        });
        match JsFuture::from(promise).await {
            Ok(_) => Ok(()),
            Err(e) => Err(self.unread(e.as_string().unwrap_or_default()).await),
        }
    }
}

/// A buffer that is read once.
struct Back(wgpu::Buffer);

impl Drop for Back {
    fn drop(&mut self) {
        self.0.destroy();
    }
}

/// How a tensor is copied: rows, of which some at a time.
struct Rows {
    count: usize,
    /// Bytes of one in an array, and on the device.
    array: usize,
    stored: usize,
    /// Rows at a time.
    piece: usize,
}

impl Rows {
    fn of(tensor: &Tensor) -> Self {
        let (dtype, shape) = (tensor.0.dtype, &tensor.0.shape);
        let features = shape.last().copied().unwrap_or(1);
        let (array, stored) = (features * dtype.bytes(), tensor.0.row() * dtype.bytes());
        let count = if array == 0 { 0 } else { rows(shape) };
        if array != stored {
            // Whole vec4s, and so whole words.
            return Self {
                count,
                array,
                stored,
                piece: (PIECE_BYTES / stored).clamp(1, count.max(1)),
            };
        }
        // As bytes, in whole words: a buffer ends with one.
        let bytes = count * array;
        let piece = PIECE_BYTES.min(bytes.next_multiple_of(4)).max(4);
        Self { count: bytes, array: 1, stored: 1, piece }
    }
}

fn rows(shape: &[usize]) -> usize {
    shape.split_last().map_or(1, |(_, leading)| leading.iter().product())
}
