//! The GPU engine, on one adapter: against the f64 oracle, split and unsplit, on a caller's device.
//!
//! `LOCAL_ATTENTION_GPU`: `require` fails without an adapter, `auto` (the default) shows these tests
//! as ignored then, `off` always does. `LOCAL_ATTENTION_ADAPTER`: a part of the adapter's name.
//! `LOCAL_ATTENTION_SHARE`: a share of the suite, what it leaves to others is ignored.

mod common;
mod gpu_suite;

use std::process::ExitCode;
use std::time::Instant;

use libtest_mimic::{Arguments, Failed, FormatSetting, Trial};
use local_attention::gpu::Gpu;

type Test = fn(&Gpu) -> Result<(), Failed>;

/// Tests, and the numbers that those are dealt out by that compile many kernels or compute long. Even
/// numbers, the first of two shares: what llvmpipe's ends of loops are told by.
const TESTS: [(&str, Test, Option<usize>); 37] = [
    ("kernels_are_tuned", gpu_suite::autotune::autotune, Some(1)),
    ("tiles_by_rules", gpu_suite::autotune::by_rules, None),
    ("broadcasts_where_subgroups_are_known", gpu_suite::subgroups::choice, None),
    ("matches_the_oracle", gpu_suite::oracle::every_factor, None),
    ("gradients_match_the_oracle", gpu_suite::gradients::every_factor, None),
    ("gradients_have_the_same_bits_however_split", gpu_suite::gradients::same_bits, Some(1)),
    ("gradients_of_tensors_anywhere", gpu_suite::gradients::anywhere, Some(1)),
    ("a_model_learns_as_on_the_cpu", gpu_suite::gradients::model, Some(0)),
    ("gradients_at_the_edges", gpu_suite::gradients::edges, Some(1)),
    ("gradients_of_long_windows", gpu_suite::gradients::long_windows, Some(0)),
    ("gradients_interleaved", gpu_suite::gradients::interleaved, None),
    ("gradients_of_what_does_not_fit", gpu_suite::gradients::every_error, None),
    ("gradients_in_one_buffer", gpu_suite::gradients::one_buffer, Some(1)),
    ("values_of_several_blocks", gpu_suite::oracle::wide_values, Some(0)),
    ("a_device_with_default_limits", gpu_suite::oracle::default_device, Some(0)),
    ("hard_geometries", gpu_suite::oracle::hard_geometries, Some(1)),
    ("windows_far_larger_than_the_sequence", gpu_suite::large_window::large_window, Some(1)),
    ("windows_of_many_keys", gpu_suite::long_window::long_window, Some(0)),
    ("threads_that_would_loop_too_long", gpu_suite::long_window::more_threads, Some(0)),
    ("the_same_bits_however_split", gpu_suite::split::same_bits, None),
    ("the_same_bits_of_tall_tiles", gpu_suite::split::same_bits_of_tall, Some(0)),
    ("weights_larger_than_a_binding", gpu_suite::split::large_weights, None),
    ("a_bias_larger_than_a_binding", gpu_suite::split::large_bias, None),
    ("a_mask_larger_than_a_binding", gpu_suite::split::large_mask, None),
    // Deals out its cases.
    ("unchecked_shaders_are_in_bounds", gpu_suite::split::checked_shaders, None),
    ("parts_that_cannot_fit_are_errors", gpu_suite::split::what_cannot_fit, None),
    ("views_of_a_callers_buffers", gpu_suite::own_device::views, None),
    ("tensors_anywhere_in_buffers", gpu_suite::layouts::anywhere, None),
    ("odd_rows_of_f16", gpu_suite::own_device::odd_f16_rows, None),
    ("all_tensors_in_one_buffer", gpu_suite::one_buffer::all, Some(1)),
    ("keys_that_nobody_sees_are_not_visited", gpu_suite::own_device::far_keys, None),
    ("a_workspace_recalled_too_early", gpu_suite::own_device::recalled_too_early, None),
    ("two_calls_before_one_submission", gpu_suite::own_device::two_calls, None),
    ("examples_run", gpu_suite::own_device::examples, None),
    ("a_future_yields", gpu_suite::waiting::yields, None),
    ("a_device_lost_while_it_computes", gpu_suite::waiting::lost, None),
    ("every_error_is_typed", gpu_suite::bad_input::every_error, None),
];

/// Those of kernels with matrices: ignored on adapters without.
const MATRIX_TESTS: [(&str, Test); 7] = [
    ("matrix_kernels_match_the_oracle", gpu_suite::oracle::every_factor_of_matrices),
    ("matrix_kernels_at_hard_geometries", gpu_suite::matrix::hard_geometries),
    ("matrix_kernels_give_the_same_bits", gpu_suite::matrix::same_bits),
    ("unchecked_matrix_kernels_are_in_bounds", gpu_suite::matrix::checked_shaders),
    ("gradients_after_matrix_kernels", gpu_suite::matrix::gradients),
    ("matrix_kernels_are_chosen_and_refused", gpu_suite::matrix::choice),
    ("matrix_units_that_fail", gpu_suite::matrix::failing),
];

fn main() -> ExitCode {
    let mut args = Arguments::from_args();
    let share = match gpu_suite::share::Share::from_env() {
        Ok(share) => share,
        Err(e) => {
            eprintln!("{e}");
            return ExitCode::FAILURE;
        }
    };
    // One device, one test at a time.
    args.test_threads = Some(1);
    let setting = std::env::var("LOCAL_ATTENTION_GPU").unwrap_or_else(|_| "auto".to_owned());
    let request = gpu_suite::buffers::request();
    let gpu = match setting.as_str() {
        "off" => None,
        "auto" => Gpu::request_blocking(&request).ok(),
        "require" => match Gpu::request_blocking(&request) {
            Ok(gpu) => Some(gpu),
            Err(e) => {
                eprintln!("LOCAL_ATTENTION_GPU=require: {e}");
                return ExitCode::FAILURE;
            }
        },
        other => {
            eprintln!("LOCAL_ATTENTION_GPU is {other}: it must be require, auto or off");
            return ExitCode::FAILURE;
        }
    };
    if let Some(gpu) = &gpu {
        let info = &gpu.caps().info;
        println!("adapter: {} ({:?}, {})", info.name, info.backend, info.driver_info);
        match gpu.matrix() {
            Some(matrix) => println!("matrix units: {matrix}"),
            None => println!("matrix units: none, their tests are ignored"),
        }
    }
    let timed = matches!(args.format, None | Some(FormatSetting::Pretty));
    let matrix = gpu.as_ref().and_then(Gpu::matrix);
    let others = |n: Option<usize>| n.is_some_and(|n| !share.has(n));
    let plain = TESTS.map(|(name, test, n)| (name, test, gpu.is_none() || others(n)));
    let matrices = MATRIX_TESTS.map(|(name, test)| (name, test, matrix.is_none()));
    let trials = plain.into_iter().chain(matrices).map(|(name, test, absent)| {
        let gpu = gpu.clone();
        let run = move || match &gpu {
            Some(gpu) => {
                let (before, start) = (gpu.dispatches(), Instant::now());
                let result = test(gpu);
                if timed {
                    // On the line of its result.
                    print!("{:.1} s, ", start.elapsed().as_secs_f64());
                }
                result?;
                // Tests of refusals dispatch at least one call that is fine.
                match gpu.dispatches() > before {
                    true => Ok(()),
                    false => Err("the GPU was never asked".into()),
                }
            }
            None => Err("there is no adapter".into()),
        };
        Trial::test(name, run).with_ignored_flag(absent)
    });
    libtest_mimic::run(&args, trials.collect()).exit_code()
}
