//! Kernels whose threads broadcast what they load: which adapters and devices have them.

use libtest_mimic::Failed;
use local_attention::gpu::{AdapterCaps, Gpu, GpuOptions, RequestOptions, Storage, Tile, wgpu};
use local_attention::{AttentionShape, LocalAttentionConfig};

use super::gradients;
use super::matrix::case;
use super::oracle::compare;
use super::{adapter_of, fail, padded};
use crate::common::Case;

/// The same device with a tile, with or without subgroup operations.
fn with(gpu: &Gpu, tile: Tile, subgroups: bool) -> Gpu {
    let mut options = GpuOptions::default();
    (options.tile, options.subgroups) = (Some(tile), subgroups);
    gpu.with_options(options)
}

/// Chosen by the adapter's subgroups, the device's features, the caller's options and the kernel; right with and without.
pub fn choice(gpu: &Gpu) -> Result<(), Failed> {
    let adapter = &adapter_of(gpu)?;
    let caps = AdapterCaps::of(adapter);
    let feature = wgpu::Features::SUBGROUP;
    let can = caps.broadcasts() && adapter.features().contains(feature);
    // Two adapters that are known: subgroups of 8, and of 4.
    for (name, broadcasts) in [("256 bits", true), ("SwiftShader", false)] {
        assert!(!caps.info.name.contains(name) || can == broadcasts, "{:?}", caps.info);
    }
    assert_eq!(gpu.device().features().contains(feature), can);

    let shape = AttentionShape::new([2], 96, 32);
    let config = LocalAttentionConfig::new(24).causal(true).dim(32);
    let rotary = case(config.clone(), shape.clone(), 7);
    let shared = case(config.shared_qk(true), shape, 7);
    let chosen = |gpu: &Gpu, case: &Case| -> Result<bool, Failed> {
        Ok(gpu.key(&case.problem(), &padded(Storage::F32)).map_err(fail)?.broadcast)
    };
    for tile in Tile::ALL {
        let pays = matches!(tile, Tile::Short | Tile::Tall);
        for subgroups in [true, false] {
            let gpu = with(gpu, tile, subgroups);
            assert_eq!(chosen(&gpu, &rotary)?, can && pays && subgroups, "{tile:?}");
            assert!(!chosen(&gpu, &shared)?, "{tile:?}: all features");
            // With broadcasts the covering arrays do.
            if tile == Tile::Tall && !subgroups {
                compare::<f32>(&gpu, &rotary, &rotary.inputs())?;
            }
        }
    }

    // Values of several blocks, the last of them no whole one: of kernels that broadcast no other test has any.
    let config = LocalAttentionConfig::new(24).causal(true).look_backward(2).dim(32);
    let wide = case(config, AttentionShape::new([2], 96, 32).with_value_dim(200), 8);
    let tall = with(gpu, Tile::Tall, true);
    assert_eq!(chosen(&tall, &wide)?, can);
    if can {
        let forward = compare::<f32>(&tall, &wide, &wide.inputs())?;
        let backward = gradients::compare::<f32>(&tall, &wide, &wide.inputs())?;
        assert!(forward.is_some() && backward.is_some(), "refused");
    }

    // A device without the feature, whatever its adapter has.
    let mut request = RequestOptions::adapter(&caps.info.name);
    (request.options.tile, request.options.subgroups) = (Some(Tile::Tall), false);
    let own = Gpu::request_blocking(&request).map_err(fail)?;
    assert!(!own.device().features().contains(feature));
    assert!(!chosen(&with(&own, Tile::Tall, true), &rotary)?);
    Ok(())
}
