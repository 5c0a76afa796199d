//! Binding numbers: nowhere else.

use std::ops::Range;

use super::params::{Params, View};
use super::shader::Kernel;

/// What a shader reads or writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slot {
    Params,
    Q,
    K,
    V,
    Out,
    Bias,
    Mask,
    /// The rotary tables. In the backward pass with what is known of queries, and the mask as words.
    Tables,
    Lse,
    Dout,
    Dq,
    Dk,
    Dv,
    /// Parts of the gradient by the bias.
    Parts,
    /// Their sum.
    Sums,
    /// A gradient in f32, to be copied.
    From,
}

/// The numbers of what is read, and of what is written: one layout serves all kernels, within the 8
/// storage buffers that every device has.
const READ: [u32; 6] = [1, 2, 3, 5, 6, 7];
const WRITTEN: [u32; 2] = [4, 8];
/// The numbers of uniforms: of the part, and of the call.
const PARAMS: u32 = 0;
pub(super) const DROPOUT: u32 = 9;

/// A slot of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) slot: Slot,
    pub(super) number: u32,
    pub(super) written: bool,
}

/// What a kernel binds.
pub(super) fn places(kernel: Kernel) -> impl Iterator<Item = Place> {
    use Slot::{Bias, Dk, Dout, Dq, Dv, From, K, Lse, Mask, Out, Parts, Q, Sums, Tables, V};
    const BACKWARD: &[Slot] = &[Q, K, V, Bias, Dout, Tables];
    let (read, written): (&[Slot], &[Slot]) = match kernel {
        Kernel::Forward | Kernel::Weights => (&[Q, K, V, Bias, Mask, Tables], &[Out, Lse]),
        Kernel::Rows => (&[Out, Lse, Dout], &[Tables]),
        Kernel::Mask => (&[Mask], &[Tables]),
        Kernel::RowsAgain => (&[Q, K, V, Bias], &[Tables]),
        Kernel::Dq => (BACKWARD, &[Dq]),
        Kernel::Dkv => (BACKWARD, &[Dk, Dv]),
        Kernel::Bias => (BACKWARD, &[Parts]),
        Kernel::Fold => (&[Parts], &[Sums]),
        Kernel::Copy => (&[From], &[Out]),
    };
    let place = |slot: &Slot, number, written| Place { slot: *slot, number, written };
    let uniforms = Place { slot: Slot::Params, number: PARAMS, written: false };
    std::iter::once(uniforms)
        .chain(read.iter().zip(READ).map(move |(slot, number)| place(slot, number, false)))
        .chain(written.iter().zip(WRITTEN).map(move |(slot, number)| place(slot, number, true)))
}

impl Slot {
    /// The name of its variable.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Params => "params",
            Self::Q => "q_data",
            Self::K => "k_data",
            Self::V => "v_data",
            Self::Out => "out_data",
            Self::Bias => "bias_data",
            Self::Mask => "mask_data",
            Self::Tables => "tables",
            Self::Lse => "lse_data",
            Self::Dout => "dout_data",
            Self::Dq | Self::Dk => "first_data",
            Self::Dv => "second_data",
            Self::Parts => "parts_data",
            Self::Sums => "sums_data",
            Self::From => "from_data",
        }
    }

    /// The argument it holds.
    pub(super) fn tensor(self) -> &'static str {
        match self {
            Self::Q => "q",
            Self::K => "k",
            Self::V => "v",
            Self::Out => "out",
            Self::Bias => "attn_bias",
            Self::Mask => "mask",
            Self::Lse => "lse",
            Self::Dout => "dout",
            Self::Dq => "dq",
            Self::Dk => "dk",
            Self::Dv => "dv",
            Self::Params => "uniforms",
            Self::Tables => "rotary tables",
            Self::Parts => "parts of dattn_bias",
            Self::Sums => "dattn_bias in f32",
            Self::From => "a gradient in f32",
        }
    }

    /// Its view among the uniforms.
    pub(super) fn view(self, params: &mut Params) -> Option<&mut View> {
        Some(match self {
            Self::Q => &mut params.q,
            Self::K => &mut params.k,
            Self::V => &mut params.v,
            Self::Out | Self::Dq | Self::Dk => &mut params.out,
            Self::Bias => &mut params.bias,
            Self::Mask => &mut params.mask,
            Self::Lse | Self::Dv => &mut params.lse,
            Self::Dout => &mut params.dout,
            Self::Params | Self::Tables | Self::Parts | Self::Sums | Self::From => return None,
        })
    }
}

/// The layout that all pipelines share.
pub(super) fn layout(device: &wgpu::Device) -> wgpu::BindGroupLayout {
    let entry = |binding, ty, has_dynamic_offset| wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset, min_binding_size: None },
        count: None,
    };
    let storage = |read_only| wgpu::BufferBindingType::Storage { read_only };
    let uniforms = [PARAMS, DROPOUT];
    let mut entries = uniforms.map(|n| entry(n, wgpu::BufferBindingType::Uniform, true)).to_vec();
    entries.extend(READ.map(|number| entry(number, storage(true), false)));
    entries.extend(WRITTEN.map(|number| entry(number, storage(false), false)));
    device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
        label: Some("local-attention"),
        entries: &entries,
    })
}

/// What a dispatch binds, by number.
#[derive(Clone)]
pub(super) struct Bindings<'a>([wgpu::BufferBinding<'a>; 10]);

impl<'a> Bindings<'a> {
    /// Nothing but uniforms: one buffer where a kernel may read, another where it may write.
    pub(super) fn new(
        uniforms: wgpu::BufferBinding<'a>,
        [read, written]: &'a [wgpu::Buffer; 2],
    ) -> Self {
        Self(std::array::from_fn(|number| match number as u32 {
            PARAMS | DROPOUT => uniforms.clone(),
            number if WRITTEN.contains(&number) => whole(written),
            _ => whole(read),
        }))
    }

    pub(super) fn set(&mut self, number: u32, binding: wgpu::BufferBinding<'a>) {
        self.0[number as usize] = binding;
    }

    pub(super) fn group(
        self,
        device: &wgpu::Device,
        layout: &wgpu::BindGroupLayout,
    ) -> wgpu::BindGroup {
        let mut numbers = 0..;
        let entries = self.0.map(|buffer| wgpu::BindGroupEntry {
            binding: numbers.next().unwrap_or(u32::MAX),
            resource: wgpu::BindingResource::Buffer(buffer),
        });
        device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("local-attention"),
            layout,
            entries: &entries,
        })
    }
}

/// What slots hold, by number; of those that a kernel has.
pub(super) fn numbered<'a>(
    kernel: Kernel,
    slots: impl IntoIterator<Item = (Slot, wgpu::BufferBinding<'a>)>,
) -> Vec<(u32, wgpu::BufferBinding<'a>)> {
    let number = |slot| places(kernel).find(|place| place.slot == slot).map(|p| p.number);
    slots.into_iter().filter_map(|(slot, binding)| Some((number(slot)?, binding))).collect()
}

/// Some bytes of a buffer.
pub(super) fn range(buffer: &wgpu::Buffer, bytes: Range<u64>) -> wgpu::BufferBinding<'_> {
    let size = std::num::NonZeroU64::new(bytes.end - bytes.start);
    wgpu::BufferBinding { buffer, offset: bytes.start, size }
}

/// All of a buffer.
pub(super) fn whole(buffer: &wgpu::Buffer) -> wgpu::BufferBinding<'_> {
    wgpu::BufferBinding { buffer, offset: 0, size: None }
}
