//! Devices that cannot or will not: too small limits, no memory, a buffer that was destroyed. Each is a typed
//! error, and the next call on a healthy device works.

use libtest_mimic::Failed;
use local_attention::gpu::{
    self, BindError, DeviceError, Dtype, ForwardTensors, Gpu, GpuOptions, Layouts, PlanError,
    RequestOptions, Storage, TensorView, Workspace, wgpu,
};
use local_attention::{AttentionShape, LocalAttention, LocalAttentionConfig, Problem};

use super::bad_input::{Seen, small_call};
use super::buffers::upload;
use super::{adapter_of, fail};

fn problem() -> Problem {
    let attention = LocalAttention::new(LocalAttentionConfig::new(4)).unwrap();
    attention.problem(&AttentionShape::new([2], 8, 4)).unwrap()
}

/// The caller's device with limits below those of the kernels.
pub fn small_limits(gpu: &Gpu, seen: &mut Seen) -> Result<(), Failed> {
    type Change = fn(&mut wgpu::Limits);
    let rows: [(&str, Change); 4] = [
        ("max_compute_workgroup_storage_size", |l| l.max_compute_workgroup_storage_size = 8 << 10),
        ("max_compute_invocations_per_workgroup", |l| l.max_compute_invocations_per_workgroup = 16),
        ("max_compute_workgroup_size_x", |l| l.max_compute_workgroup_size_x = 16),
        ("max_storage_buffers_per_shader_stage", |l| l.max_storage_buffers_per_shader_stage = 4),
    ];
    let adapter = &adapter_of(gpu)?;
    for (limit, change) in rows {
        let mut required_limits = wgpu::Limits::default();
        change(&mut required_limits);
        let descriptor = wgpu::DeviceDescriptor { required_limits, ..Default::default() };
        let device = pollster::block_on(adapter.request_device(&descriptor)).map_err(fail)?;
        let caps = gpu::AdapterCaps::of(adapter);
        let small = Gpu::new(caps, device.0, device.1, GpuOptions::default());
        let error = pollster::block_on(small)
            .map_err(PlanError::Device)
            .and_then(|small| small.plan_blocking(&problem(), &Layouts::any(Storage::F32)));
        match error {
            Err(e @ PlanError::Limit { limit: named, got, needed })
                if named == limit && got < needed =>
            {
                seen.note(&e);
            }
            // The layout of bindings is made before any plan.
            Err(PlanError::Device(DeviceError::Refused { reason, .. }))
                if limit.contains("buffers") && reason.contains(limit) => {}
            other => return Err(format!("{limit}: {other:?}").into()),
        }
    }
    small_call(gpu).map_err(fail)
}

/// A buffer that is gone before it is bound.
pub fn destroyed(gpu: &Gpu, seen: &mut Seen) -> Result<(), Failed> {
    let problem = problem();
    let plan = gpu.plan_blocking(&problem, &Layouts::any(Storage::F32)).map_err(fail)?;
    let workspace = Workspace::new_blocking(gpu, 1).map_err(fail)?;
    let [x, gone, out] = [(); 3].map(|()| upload(gpu, &[0.5; 64]));
    gone.destroy();
    let view = |buffer| TensorView::contiguous(buffer, Dtype::F32, [2, 8, 4]);
    let tensors = ForwardTensors::new(view(&x), view(&gone), view(&x), view(&out));
    match plan.bind_forward_blocking(&tensors, &workspace) {
        Err(e @ BindError::Device(DeviceError::Refused { .. })) => {
            seen.note(&e);
            let BindError::Device(e) = e else { return Err("another error".into()) };
            seen.note(&e);
        }
        other => return Err(format!("{other:?}").into()),
    }
    small_call(gpu).map_err(fail)
}

/// More memory than the process may have.
#[cfg(target_os = "linux")]
pub fn no_memory(gpu: &Gpu, seen: &mut Seen) -> Result<(), Failed> {
    let name = gpu.caps().info.name.clone();
    let own = Gpu::request_blocking(&RequestOptions::adapter(name)).map_err(fail)?;
    small_call(&own).map_err(fail)?;
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|l| l.starts_with("VmSize:")).ok_or("no VmSize")?;
    let used = line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap() << 10;
    let mut limits = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: calls of the C library on a local value.
    let refused = unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_AS, &raw mut limits), 0);
        let tight = libc::rlimit { rlim_cur: used + (256 << 20), ..limits };
        assert_eq!(libc::setrlimit(libc::RLIMIT_AS, &raw const tight), 0);
        let refused = Workspace::new_blocking(&own, usize::MAX);
        assert_eq!(libc::setrlimit(libc::RLIMIT_AS, &raw const limits), 0);
        refused
    };
    match refused {
        Err(e @ DeviceError::OutOfMemory { .. }) => seen.note(&e),
        other => return Err(format!("{other:?}").into()),
    }
    small_call(&own).map_err(fail)?;
    small_call(gpu).map_err(fail)
}
