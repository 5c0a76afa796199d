//! Choosing kernels by measuring, and keeping the choices.

use half::f16;
use libtest_mimic::Failed;
use local_attention::cpu::Cpu;
use local_attention::gpu::{Gpu, GpuElement, GpuOptions, Layouts, Storage, Tile, TuningCache};
use local_attention::{
    AttentionShape, Call, Engine, HostInputs, HostTensor, LocalAttention, LocalAttentionConfig,
    Problem,
};

use super::fail;
use crate::common::Noise;

const N: usize = 40;
const D: usize = 8;

/// The fastest kernel is found, kept and taken; what is known is not measured again.
pub fn autotune(suite: &Gpu) -> Result<(), Failed> {
    let problem = problem(false);
    let layouts = Layouts::contiguous(Storage::F32, &problem);
    let folder = tempfile::tempdir().map_err(fail)?;
    let cache = TuningCache::at(folder.path().join("tuning.tsv"));

    let first = another(suite)?;
    let by_rules = first.key(&problem, &layouts).map_err(fail)?;
    let tuned = first.autotune_blocking(&problem, &layouts, Some(&cache)).map_err(fail)?;
    assert!(tuned.measured.len() > 1, "{tuned:?}");
    assert!(tuned.measured.iter().all(|(_, seconds)| *seconds > 0.0 && seconds.is_finite()));
    let fastest = tuned.measured.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0;
    assert_eq!((tuned.key.tile, &tuned.cache_error), (fastest, &None));
    assert_eq!(first.plan_blocking(&problem, &layouts).map_err(fail)?.key(), tuned.key);

    // By the same engine, and by another one with the cache.
    for gpu in [first, another(suite)?] {
        let before = gpu.dispatches();
        let again = gpu.autotune_blocking(&problem, &layouts, Some(&cache)).map_err(fail)?;
        assert_eq!((again.key, again.measured.len()), (tuned.key, 0));
        assert_eq!(gpu.dispatches(), before);
        assert_eq!(gpu.plan_blocking(&problem, &layouts).map_err(fail)?.key(), tuned.key);
    }
    // What was found for a problem says nothing of another one.
    let longer = LocalAttention::new(config()).map_err(fail)?;
    let longer = longer.problem(&AttentionShape::new([2], 2 * N, D)).map_err(fail)?;
    let gpu_with_cache = another(suite)?;
    gpu_with_cache.autotune_blocking(&problem, &layouts, Some(&cache)).map_err(fail)?;
    let unmeasured = gpu_with_cache.key(&longer, &layouts).map_err(fail)?;
    assert_eq!(unmeasured, another(suite)?.key(&longer, &layouts).map_err(fail)?);

    // Whatever tile the cache names is the one that computes.
    let kept = std::fs::read_to_string(cache.path()).map_err(fail)?;
    let named = |tile: Tile| format!("\t{}\n", tile.name());
    for (tile, _) in &tuned.measured[..2] {
        std::fs::write(cache.path(), kept.replace(&named(fastest), &named(*tile))).map_err(fail)?;
        let gpu = another(suite)?;
        let known = gpu.autotune_blocking(&problem, &layouts, Some(&cache)).map_err(fail)?;
        assert_eq!((known.key.tile, known.measured.len()), (*tile, 0));
        right::<f32>(&gpu, &problem, 1e-5)?;
    }
    // Another driver's choices are not this one's.
    let driver = kept.lines().nth(1).and_then(|line| line.split('\t').nth(1)).unwrap();
    let old = kept.replace(&format!("\t{driver}\t"), "\tan older driver\t");
    std::fs::write(cache.path(), old).map_err(fail)?;
    let gpu = another(suite)?;
    let again = gpu.autotune_blocking(&problem, &layouts, Some(&cache)).map_err(fail)?;
    assert_eq!(again.measured.len(), tuned.measured.len());
    let replaced = std::fs::read_to_string(cache.path()).map_err(fail)?;
    assert!(!replaced.contains("an older driver") && replaced.lines().count() == 2, "{replaced}");

    // A tile that was asked for is not measured, a cache out of reach is said.
    let mut options = GpuOptions::default();
    options.tile = Some(Tile::Small);
    let forced = gpu.with_options(options);
    let nowhere = TuningCache::at(cache.path().join("below a file"));
    let small = forced.autotune_blocking(&problem, &layouts, Some(&nowhere)).map_err(fail)?;
    assert_eq!((small.key.tile, small.measured.len()), (Tile::Small, 0));
    assert!(small.cache_error.is_some());
    let mut same = by_rules;
    same.tile = tuned.key.tile;
    assert_eq!(same, tuned.key);
    every_element(suite)
}

/// Elements of 16 bits with `lse`, and no result at all.
fn every_element(gpu: &Gpu) -> Result<(), Failed> {
    let problem = problem(true);
    let layouts = Layouts::contiguous(Storage::F16, &problem);
    let tuned = gpu.autotune_blocking(&problem, &layouts, None).map_err(fail)?;
    assert!(tuned.measured.len() > 1, "{tuned:?}");
    right::<f16>(gpu, &problem, 2e-3)?;
    let empty = LocalAttention::new(config()).map_err(fail)?;
    let empty = empty.problem(&AttentionShape::new([0], N, D)).map_err(fail)?;
    let none = gpu.autotune_blocking(&empty, &layouts, None).map_err(fail)?;
    assert!(none.measured.is_empty());
    Ok(())
}

/// The same device with nothing known.
fn another(gpu: &Gpu) -> Result<Gpu, Failed> {
    let (device, queue) = (gpu.device().clone(), gpu.queue().clone());
    Gpu::new_blocking(gpu.caps().clone(), device, queue, GpuOptions::default()).map_err(fail)
}

fn config() -> LocalAttentionConfig {
    LocalAttentionConfig::new(8).causal(true)
}

fn problem(lse: bool) -> Problem {
    let mut shape = AttentionShape::new([2], N, D);
    if lse {
        shape = shape.with_lse();
    }
    LocalAttention::new(config()).unwrap().problem(&shape).unwrap()
}

/// An error unless the output is the CPU engine's.
fn right<T: GpuElement>(gpu: &Gpu, problem: &Problem, allowed: f32) -> Result<(), Failed>
where
    Cpu: Engine<T>,
{
    let mut noise = Noise::new(3);
    let mut tensor = || {
        let data: Vec<T> = noise.normals(2 * N * D).into_iter().map(T::store).collect();
        HostTensor::new(data, [2, N, D]).unwrap()
    };
    let inputs = HostInputs::new(tensor(), tensor(), tensor());
    let call = Call::default();
    let got = gpu.forward_blocking(problem, &inputs, &call).map_err(fail)?;
    let expected = Cpu::new().forward(problem, &inputs, &call).map_err(fail)?;
    let off = got.out.iter().zip(&expected.out).map(|(a, b)| (a.load() - b.load()).abs());
    let worst = off.fold(0.0, f32::max);
    if worst <= allowed { Ok(()) } else { Err(format!("off by {worst}").into()) }
}
