//! Choosing kernels by measuring, and keeping the choices.

use half::f16;
use libtest_mimic::Failed;
use local_attention::cpu::Cpu;
use local_attention::gpu::{Gpu, GpuOptions, Layouts, Storage, Tile, TuningCache};
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
    let problem = problem(2, N);
    // The smaller elements, whose random numbers are converted on the way.
    let layouts = Layouts::contiguous(Storage::F16, &problem);
    let folder = tempfile::tempdir().map_err(fail)?;
    let cache = TuningCache::at(folder.path().join("tuning.tsv"));
    let tune = |gpu: &Gpu, cache: &TuningCache| {
        gpu.autotune_blocking(&problem, &layouts, Some(cache)).map_err(fail)
    };

    let before = suite.dispatches();
    let tuned = tune(suite, &cache)?;
    assert!(suite.dispatches() > before);
    assert!(tuned.measured.len() > 1, "{tuned:?}");
    assert!(tuned.measured.iter().all(|(_, seconds)| *seconds > 0.0 && seconds.is_finite()));
    let fastest = tuned.measured.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0;
    assert_eq!((tuned.key, &tuned.cache_error), (fastest, &None));
    // Matrix units are one of the candidates where there are some.
    let matrices = tuned.measured.iter().filter(|(key, _)| key.matrix.is_some()).count();
    assert_eq!(matrices, usize::from(suite.matrix().is_some()));
    let mut by_rules = another(suite)?.key(&problem, &layouts).map_err(fail)?;
    (by_rules.tile, by_rules.matrix) = (fastest.tile, fastest.matrix);
    by_rules.broadcast = fastest.broadcast;
    assert_eq!(tuned.key, by_rules);

    // By the same engine, and by another one with the cache.
    let other = another(suite)?;
    for gpu in [suite, &other] {
        let before = gpu.dispatches();
        let again = tune(gpu, &cache)?;
        assert_eq!((again.key, again.measured.len()), (tuned.key, 0));
        assert_eq!(gpu.dispatches(), before);
        assert_eq!(gpu.plan_blocking(&problem, &layouts).map_err(fail)?.key(), tuned.key);
    }
    right(suite, &problem)?;
    // What was found for a problem says nothing of another one, and no result takes no time.
    let longer = self::problem(2, 2 * N);
    let unmeasured = other.key(&longer, &layouts).map_err(fail)?;
    assert_eq!(unmeasured, another(suite)?.key(&longer, &layouts).map_err(fail)?);
    let none = self::problem(0, N);
    let none = suite.autotune_blocking(&none, &layouts, None).map_err(fail)?;
    assert!(none.measured.is_empty());

    // Whatever tile the cache names for this driver is the one of plans. A tile that was asked for is not measured.
    let kept = std::fs::read_to_string(cache.path()).map_err(fail)?;
    let driver = kept.lines().nth(1).and_then(|line| line.split('\t').nth(1)).unwrap();
    let named = |tile: Tile| format!("\t{}\n", tile.name());
    let mut forced = GpuOptions::default();
    forced.tile = Some(Tile::Small);
    let rules = another(suite)?.key(&problem, &layouts).map_err(fail)?.tile;
    for tile in [Tile::Small, Tile::Short] {
        let found = fastest.matrix.map_or(named(fastest.tile), |_| "\tmatrix\n".to_owned());
        let renamed = kept.replace(&found, &named(tile));
        let old = renamed.replace(&format!("\t{driver}\t"), "\tan older driver\t");
        for (text, expected) in [(old, rules), (renamed, tile)] {
            std::fs::write(cache.path(), text).map_err(fail)?;
            let gpu = another(suite)?;
            let small = tune(&gpu.with_options(forced.clone()), &cache)?;
            assert_eq!((small.key.tile, small.measured.len()), (Tile::Small, 0));
            assert_eq!(gpu.key(&problem, &layouts).map_err(fail)?.tile, expected);
        }
    }
    // A cache out of reach is said.
    let nowhere = TuningCache::at(cache.path().join("below a file"));
    assert!(tune(suite, &nowhere)?.cache_error.is_some());
    Ok(())
}

/// Software adapters take tiles that are slow to compile for what is worth it alone.
pub fn by_rules(suite: &Gpu) -> Result<(), Failed> {
    let software = suite.caps().is_software();
    let long = if software { [Tile::Tall, Tile::Short] } else { [Tile::Large, Tile::Small] };
    let short = [Tile::Large, Tile::Small];
    // Windows far larger than the sequence gather no more than there is.
    let all = [
        (256, [64, 16], short),
        (8192, [64, 16], long),
        (256, [1 << 20; 2], [Tile::Large; 2]),
        (10, [1 << 20; 2], [Tile::Small; 2]),
    ];
    for (n, windows, tiles) in all {
        for (window, tile) in windows.into_iter().zip(tiles) {
            let config = LocalAttentionConfig::new(window).causal(true).autopad(true);
            let attention = LocalAttention::new(config).map_err(fail)?;
            let problem = attention.problem(&AttentionShape::new([2], n, 64)).map_err(fail)?;
            let layouts = Layouts::contiguous(Storage::F32, &problem);
            let got = another(suite)?.key(&problem, &layouts).map_err(fail)?.tile;
            assert_eq!(got, tile, "{n} positions, windows of {window}");
        }
    }
    right(suite, &problem(2, N))
}

/// The same device with nothing known.
fn another(gpu: &Gpu) -> Result<Gpu, Failed> {
    let (device, queue) = (gpu.device().clone(), gpu.queue().clone());
    Gpu::new_blocking(gpu.caps().clone(), device, queue, GpuOptions::default()).map_err(fail)
}

fn problem(batch: usize, n: usize) -> Problem {
    let attention = LocalAttention::new(LocalAttentionConfig::new(8).causal(true)).unwrap();
    attention.problem(&AttentionShape::new([batch], n, D).with_lse()).unwrap()
}

/// An error unless the output is the CPU engine's.
fn right(gpu: &Gpu, problem: &Problem) -> Result<(), Failed> {
    let mut noise = Noise::new(3);
    let mut tensor = || {
        let data: Vec<f16> = noise.normals(2 * N * D).into_iter().map(f16::from_f32).collect();
        HostTensor::new(data, [2, N, D]).unwrap()
    };
    let inputs = HostInputs::new(tensor(), tensor(), tensor());
    let call = Call::default();
    let got = gpu.forward_blocking(problem, &inputs, &call).map_err(fail)?;
    let expected = Cpu::new().forward(problem, &inputs, &call).map_err(fail)?;
    let off = got.out.iter().zip(&expected.out).map(|(a, b)| (a.to_f32() - b.to_f32()).abs());
    let worst = off.fold(0.0, f32::max);
    if worst <= 2e-3 { Ok(()) } else { Err(format!("off by {worst}").into()) }
}
