//! On a caller's device: its buffers, its passes, its submissions.

use half::f16;
use libtest_mimic::Failed;
use local_attention::gpu::{
    BindError, Dtype, ForwardTensors, Gpu, Layouts, Storage, TensorView, Workspace, wgpu,
};
use local_attention::{
    AttentionShape, Call, HostInputs, HostTensor, LocalAttention, LocalAttentionConfig,
};

use super::buffers::{read, read_bytes, upload, upload_bytes};
use super::{bits, fail, submit};
use crate::common::Noise;

/// `[b, n, h, d]` tensors in one buffer each, read as `[b, h, n, d]`; k and v in one buffer, q and k
/// the same tensor, values of another size, an output between other data.
pub fn views(gpu: &Gpu) -> Result<(), Failed> {
    let (b, n, h, d) = (2, 48, 3, 8);
    let mut noise = Noise::new(5);
    let data = noise.normals(b * n * h * d);
    let all = LocalAttentionConfig::new(8).dim(8).shared_qk(true);
    let plain = LocalAttentionConfig::new(8).causal(true);
    for config in [all, plain.clone().dim(8), plain] {
        views_of(gpu, config, [b, n, h, d], &data)?;
    }
    Ok(())
}

/// Results in f16 whose rows begin at odd elements, or whose features do not lie side by side: written
/// where the device has 16-bit floats, refused where it has not.
pub fn odd_f16_rows(gpu: &Gpu) -> Result<(), Failed> {
    let [h, n, d, dv] = [3, 20, 5, 3];
    let mut noise = Noise::new(8);
    let half = |data: Vec<f32>| data.into_iter().map(f16::from_f32).collect::<Vec<_>>();
    let (x, v) = (half(noise.normals(h * n * d)), half(noise.normals(h * n * dv)));
    let bytes = |data: &[f16]| data.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
    let attention = LocalAttention::new(LocalAttentionConfig::new(6).autopad(true)).unwrap();
    let problem = attention.problem(&AttentionShape::new([h], n, d).with_value_dim(dv)).unwrap();
    let t = |data: &[f16], d| HostTensor::new(data.to_vec(), [h, n, d]).unwrap();
    let inputs = HostInputs::new(t(&x, d), t(&x, d), t(&v, dv));
    let expected = gpu.forward_blocking(&problem, &inputs, &Call::default()).map_err(fail)?.out;
    let (x, v) = (upload_bytes(gpu, &bytes(&x)), upload_bytes(gpu, &bytes(&v)));
    let plan = gpu.plan_blocking(&problem, &Layouts::any(Storage::F16)).map_err(fail)?;
    let mut workspace = Workspace::new_blocking(gpu, 1).map_err(fail)?;
    let has_f16 = gpu.device().features().contains(wgpu::Features::SHADER_F16);
    for (first, [row, position, feature]) in
        [(1, [n * dv, dv, 1]), (3, [2 * n * dv + 1, 2 * dv, 2]), (0, [1, h, h * n])]
    {
        const FILL: u8 = 0x5a;
        let out = upload_bytes(gpu, &[FILL; 1024]);
        let view = |buffer, d| TensorView::contiguous(buffer, Dtype::F16, [h, n, d]);
        let result = view(&out, dv)
            .with_strides_elems([row, position, feature].map(|s| s as i64))
            .with_offset_bytes(2 * first as u64);
        let tensors = ForwardTensors::new(view(&x, d), view(&x, d), view(&v, dv), result);
        let bound = match plan.bind_forward_blocking(&tensors, &workspace) {
            Err(BindError::Layout { tensor: "out", .. }) if !has_f16 => continue,
            bound => bound.map_err(fail)?,
        };
        assert!(has_f16, "odd rows of words");
        submit(gpu, |pass| bound.encode(pass, &mut workspace, &Call::default()).unwrap());
        let got = read_bytes(gpu, &out);
        let mut want = [FILL; 1024];
        for (i, x) in expected.iter().enumerate() {
            let (r, t, c) = (i / (n * dv), i / dv % n, i % dv);
            let at = 2 * (first + r * row + t * position + c * feature);
            want[at..at + 2].copy_from_slice(&x.to_le_bytes());
        }
        assert!(
            got == want,
            "other bytes, or others written, at strides {row}, {position}, {feature}"
        );
    }
    Ok(())
}

fn views_of(
    gpu: &Gpu,
    config: LocalAttentionConfig,
    [b, n, h, d]: [usize; 4],
    data: &[f32],
) -> Result<(), Failed> {
    let attention = LocalAttention::new(config).unwrap();
    let shape = AttentionShape::new([b, h], n, d).with_lse();
    let problem = attention.problem(&shape).unwrap();
    let strides = [(n * h * d) as i64, d as i64, (h * d) as i64, 1];
    let host = HostTensor::strided(data, 0, [b, h, n, d], strides.map(|s| s as isize)).unwrap();
    let inputs = HostInputs::new(host.clone(), host.clone(), host);
    let expected = gpu.forward_blocking(&problem, &inputs, &Call::default()).map_err(fail)?;

    // Everything a multiple of 4 elements into its buffer, and then not.
    for (offset, layouts) in
        [(64_u64, Layouts::contiguous(Storage::F32, &problem)), (7, Layouts::any(Storage::F32))]
    {
        let padding = vec![f32::NAN; offset as usize];
        let inside = [&padding[..], data, &padding].concat();
        let (x, out) = (upload(gpu, &inside), upload(gpu, &inside));
        let lse = upload(gpu, &vec![0.0; b * h * n]);
        let view = |buffer| {
            TensorView::contiguous(buffer, Dtype::F32, [b, h, n, d])
                .with_strides_elems(strides)
                .with_offset_bytes(4 * offset)
        };
        let tensors = ForwardTensors::new(view(&x), view(&x), view(&x), view(&out))
            .with_lse(TensorView::contiguous(&lse, Dtype::F32, [b, h, n]));
        let plan = gpu.plan_blocking(&problem, &layouts).map_err(fail)?;
        let mut workspace = Workspace::new_blocking(gpu, 4).map_err(fail)?;
        let bound = plan.bind_forward_blocking(&tensors, &workspace).map_err(fail)?;
        submit(gpu, |pass| bound.encode(pass, &mut workspace, &Call::default()).unwrap());
        let all = read(gpu, &out);
        let got = &all[offset as usize..][..data.len()];
        for (i, x) in expected.out.iter().enumerate() {
            let (e, t, head, batch) = (i % d, i / d % n, i / d / n % h, i / d / n / h);
            let y = got[((batch * n + t) * h + head) * d + e];
            if (x - y).abs() > 1e-6 {
                return Err(format!("offset {offset}, element {i}: {y}, expected {x}").into());
            }
        }
        // Nothing before or after the tensor is touched.
        let around = [&all[..offset as usize], &all[offset as usize + data.len()..]].concat();
        assert!(around.iter().all(|x| x.is_nan()), "written outside the output");
        let lse = read(gpu, &lse);
        let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-5;
        assert!(lse.iter().zip(expected.lse.as_ref().unwrap()).all(close));
    }
    Ok(())
}

/// Keys that no query of a block sees are not visited: values times a weight of 0 would be NaN there.
pub fn far_keys(gpu: &Gpu) -> Result<(), Failed> {
    let (n, d, window) = (512, 8, 32);
    let config = LocalAttentionConfig::new(window as i64).causal(true);
    let attention = LocalAttention::new(config).unwrap();
    let problem = attention.problem(&AttentionShape::new([], n, d)).unwrap();
    let layouts = Layouts::contiguous(Storage::F32, &problem);
    let plan = gpu.plan_blocking(&problem, &layouts).map_err(fail)?;
    let mut workspace = Workspace::new_blocking(gpu, 1).map_err(fail)?;
    let x = Noise::new(12).normals(n * d);
    let mut strange = x.clone();
    // Of the first windows, and of the last.
    let (first, last) = (4 * window, n - 4 * window);
    let rows = (0..n * d).filter(|i| i / d < first || i / d >= last);
    rows.for_each(|i| strange[i] = f32::NAN);
    let mut outs = Vec::new();
    for keys in [&x, &strange] {
        let [q, kv, out] = [&x, keys, &vec![0.0; n * d]].map(|data| upload(gpu, data));
        let view = |buffer| TensorView::contiguous(buffer, Dtype::F32, [n, d]);
        let tensors = ForwardTensors::new(view(&q), view(&kv), view(&kv), view(&out));
        let bound = plan.bind_forward_blocking(&tensors, &workspace).map_err(fail)?;
        assert_eq!(bound.chunks(), 1);
        submit(gpu, |pass| bound.encode(pass, &mut workspace, &Call::default()).unwrap());
        outs.push(read(gpu, &out));
    }
    // Of blocks that see none of them, whole windows, the largest tile's 64 queries at most.
    let seeing_none = (first + window).next_multiple_of(64) * d..last / 64 * 64 * d;
    assert_eq!(bits(&outs[0][seeing_none.clone()]), bits(&outs[1][seeing_none]));
    assert!(outs[1][..d].iter().all(|x| x.is_nan()));
    Ok(())
}

/// A workspace that is recalled before what was recorded is submitted: calls have the numbers of later ones, and no
/// other part of them.
pub fn recalled_too_early(gpu: &Gpu) -> Result<(), Failed> {
    let config = LocalAttentionConfig::new(8).causal(true).dropout(0.5);
    let attention = LocalAttention::new(config).unwrap();
    let mut workspace = Workspace::new_blocking(gpu, 1).map_err(fail)?;
    // The second has more of everything.
    let of = |n: usize, d: usize, workspace: &Workspace| {
        let problem = attention.problem(&AttentionShape::new([], n, d)).unwrap();
        let layouts = Layouts::contiguous(Storage::F32, &problem);
        let plan = gpu.plan_blocking(&problem, &layouts).map_err(fail)?;
        let (x, out) = (upload(gpu, &Noise::new(n).normals(n * d)), upload(gpu, &vec![0.0; n * d]));
        let view = |buffer| TensorView::contiguous(buffer, Dtype::F32, [n, d]);
        let tensors = ForwardTensors::new(view(&x), view(&x), view(&x), view(&out));
        let bound = plan.bind_forward_blocking(&tensors, workspace).map_err(fail)?;
        Ok::<_, Failed>((bound, out))
    };
    let (small, large) = (of(16, 8, &workspace)?, of(512, 16, &workspace)?);
    let seeds = [1, 2].map(Call::with_seed);
    submit(gpu, |pass| {
        small.0.encode(pass, &mut workspace, &seeds[0]).unwrap();
        workspace.recall();
        large.0.encode(pass, &mut workspace, &seeds[1]).unwrap();
    });
    let early = [&small.1, &large.1].map(|out| read(gpu, out));
    for ((bound, out), early) in [small, large].iter().zip(&early) {
        workspace.recall();
        submit(gpu, |pass| bound.encode(pass, &mut workspace, &seeds[1]).unwrap());
        assert_eq!(bits(&read(gpu, out)), bits(early));
    }
    Ok(())
}

/// Two calls with other seeds and other tensors, recorded before one submission, are both right;
/// a workspace that is full says so.
pub fn two_calls(gpu: &Gpu) -> Result<(), Failed> {
    let (n, d) = (32, 16);
    let mut noise = Noise::new(6);
    let (a, b) = (noise.normals(n * d), noise.normals(n * d));
    let attention =
        LocalAttention::new(LocalAttentionConfig::new(8).causal(true).dropout(0.5)).unwrap();
    let problem = attention.problem(&AttentionShape::new([], n, d)).unwrap();
    let plan =
        gpu.plan_blocking(&problem, &Layouts::contiguous(Storage::F32, &problem)).map_err(fail)?;
    let mut workspace = Workspace::new_blocking(gpu, 2).map_err(fail)?;
    let calls = [(&a, Call::with_seed(1)), (&a, Call::with_seed(2)), (&b, Call::with_seed(2))];
    let mut results = Vec::new();
    for pair in [[0, 1], [1, 2]] {
        let mut outs = Vec::new();
        let mut bounds = Vec::new();
        for i in pair {
            let (x, out) = (upload(gpu, calls[i].0), upload(gpu, &vec![0.0; n * d]));
            let view = |buffer| TensorView::contiguous(buffer, Dtype::F32, [n, d]);
            let tensors = ForwardTensors::new(view(&x), view(&x), view(&x), view(&out));
            bounds.push(plan.bind_forward_blocking(&tensors, &workspace).map_err(fail)?);
            outs.push(out);
        }
        submit(gpu, |pass| {
            for (bound, i) in bounds.iter().zip(pair) {
                bound.encode(pass, &mut workspace, &calls[i].1).unwrap();
            }
            let full = bounds[0].encode(pass, &mut workspace, &calls[0].1).unwrap_err();
            assert!(full.to_string().contains("2 slots, 2 in use"), "{full}");
        });
        workspace.recall();
        results.extend(pair.into_iter().zip(outs.iter().map(|out| read(gpu, out))));
    }
    // Without dropout no slot is needed, between calls that need one.
    let (x, out) = (upload(gpu, &a), upload(gpu, &vec![0.0; n * d]));
    let view = |buffer| TensorView::contiguous(buffer, Dtype::F32, [n, d]);
    let tensors = ForwardTensors::new(view(&x), view(&x), view(&x), view(&out));
    let bound = plan.bind_forward_blocking(&tensors, &workspace).map_err(fail)?;
    submit(gpu, |pass| {
        bound.encode(pass, &mut workspace, &calls[0].1).unwrap();
        bound.encode(pass, &mut workspace, &calls[1].1).unwrap();
        bound.encode(pass, &mut workspace, &Call::default()).unwrap();
    });
    workspace.recall();
    let t = || HostTensor::new(&a[..], [n, d]).unwrap();
    let inputs = HostInputs::new(t(), t(), t());
    let alone = gpu.forward_blocking(&problem, &inputs, &Call::default()).map_err(fail)?;
    assert_eq!(bits(&read(gpu, &out)), bits(&alone.out), "without dropout");
    for (i, got) in results {
        let t = || HostTensor::new(&calls[i].0[..], [n, d]).unwrap();
        let alone = gpu
            .forward_blocking(&problem, &HostInputs::new(t(), t(), t()), &calls[i].1)
            .map_err(fail)?;
        assert_eq!(bits(&got), bits(&alone.out), "call {i}");
    }
    Ok(())
}

/// The examples of the GPU engine run, and say what they promise.
pub fn examples(gpu: &Gpu) -> Result<(), Failed> {
    for (name, says) in [
        ("gpu_minimal", "out [1, 100, 32], 1 dispatch"),
        ("own_device", "every value is 1.5: true"),
        ("own_device_training", "every feature of dv adds up to 64: true"),
    ] {
        let out = crate::common::example(name).output()?;
        let text = String::from_utf8_lossy(&out.stdout);
        if !text.contains(says) {
            let errors = String::from_utf8_lossy(&out.stderr);
            return Err(format!("{name} does not say '{says}': {text}{errors}").into());
        }
    }
    // What the examples dispatch is counted elsewhere.
    let t = || HostTensor::new(vec![0.5_f32; 8], [4, 2]).unwrap();
    let attention = LocalAttention::new(LocalAttentionConfig::new(2)).unwrap();
    let inputs = HostInputs::new(t(), t(), t());
    let problem = attention.problem(&AttentionShape::from_inputs(&inputs).unwrap()).unwrap();
    gpu.forward_blocking(&problem, &inputs, &Call::default()).map_err(fail)?;
    Ok(())
}
