//! Binding numbers: nowhere else.

use super::params::{Params, View};

/// What a shader reads and writes; the number is that of its binding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Slot {
    Params = 0,
    Q = 1,
    K = 2,
    V = 3,
    Out = 4,
    Bias = 5,
    Mask = 6,
    Tables = 7,
    Lse = 8,
}

impl Slot {
    pub(super) const ALL: [Self; 9] = [
        Self::Params,
        Self::Q,
        Self::K,
        Self::V,
        Self::Out,
        Self::Bias,
        Self::Mask,
        Self::Tables,
        Self::Lse,
    ];

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
            Self::Params => "uniforms",
            Self::Tables => "rotary tables",
        }
    }

    /// Its view among the uniforms.
    pub(super) fn view(self, params: &mut Params) -> Option<&mut View> {
        Some(match self {
            Self::Q => &mut params.q,
            Self::K => &mut params.k,
            Self::V => &mut params.v,
            Self::Out => &mut params.out,
            Self::Bias => &mut params.bias,
            Self::Mask => &mut params.mask,
            Self::Lse => &mut params.lse,
            Self::Params | Self::Tables => return None,
        })
    }

    fn ty(self) -> wgpu::BindingType {
        let (ty, has_dynamic_offset) = match self {
            Self::Params => (wgpu::BufferBindingType::Uniform, true),
            Self::Out | Self::Lse => (wgpu::BufferBindingType::Storage { read_only: false }, false),
            _ => (wgpu::BufferBindingType::Storage { read_only: true }, false),
        };
        wgpu::BindingType::Buffer { ty, has_dynamic_offset, min_binding_size: None }
    }
}

/// The layout that all pipelines share.
pub(super) fn layout(device: &wgpu::Device) -> wgpu::BindGroupLayout {
    let entries = Slot::ALL.map(|slot| wgpu::BindGroupLayoutEntry {
        binding: slot as u32,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: slot.ty(),
        count: None,
    });
    device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
        label: Some("local-attention"),
        entries: &entries,
    })
}

/// A group of what a dispatch reads and writes, in the order of [`Slot::ALL`].
pub(super) fn group(
    device: &wgpu::Device,
    layout: &wgpu::BindGroupLayout,
    bindings: [wgpu::BufferBinding<'_>; 9],
) -> wgpu::BindGroup {
    let mut slots = Slot::ALL.into_iter();
    let entries = bindings.map(|buffer| wgpu::BindGroupEntry {
        binding: slots.next().map_or(u32::MAX, |slot| slot as u32),
        resource: wgpu::BindingResource::Buffer(buffer),
    });
    device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: Some("local-attention"),
        layout,
        entries: &entries,
    })
}
