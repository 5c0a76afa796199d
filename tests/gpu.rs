//! The GPU engine, on one adapter: against the f64 oracle, split and unsplit, on a caller's device.
//!
//! `LOCAL_ATTENTION_GPU`: `require` fails without an adapter, `auto` (the default) shows these tests
//! as ignored then, `off` always does. `LOCAL_ATTENTION_ADAPTER`: a part of the adapter's name.
//! `LOCAL_ATTENTION_SHARE`: a share of the suite, what it leaves to others is ignored.

mod common;
mod gpu_suite;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use local_attention::gpu::Gpu;

type Test = fn(&Gpu) -> Result<(), Failed>;

const TESTS: [(&str, Test); 27] = [
    ("kernels_are_tuned", gpu_suite::autotune::autotune),
    ("matches_the_oracle", gpu_suite::oracle::every_factor),
    ("gradients_match_the_oracle", gpu_suite::gradients::every_factor),
    ("gradients_have_the_same_bits_however_split", gpu_suite::gradients::same_bits),
    ("gradients_of_tensors_anywhere", gpu_suite::gradients::anywhere),
    ("a_model_learns_as_on_the_cpu", gpu_suite::gradients::model),
    ("gradients_at_the_edges", gpu_suite::gradients::edges),
    ("gradients_of_long_windows", gpu_suite::gradients::long_windows),
    ("gradients_interleaved", gpu_suite::gradients::interleaved),
    ("gradients_of_what_does_not_fit", gpu_suite::gradients::every_error),
    ("gradients_in_one_buffer", gpu_suite::gradients::one_buffer),
    ("hard_geometries", gpu_suite::oracle::hard_geometries),
    ("windows_far_larger_than_the_sequence", gpu_suite::large_window::large_window),
    ("windows_of_many_keys", gpu_suite::long_window::long_window),
    ("the_same_bits_however_split", gpu_suite::split::same_bits),
    ("a_bias_larger_than_a_binding", gpu_suite::split::large_bias),
    ("a_mask_larger_than_a_binding", gpu_suite::split::large_mask),
    ("unchecked_shaders_are_in_bounds", gpu_suite::split::checked_shaders),
    ("parts_that_cannot_fit_are_errors", gpu_suite::split::what_cannot_fit),
    ("views_of_a_callers_buffers", gpu_suite::own_device::views),
    ("tensors_anywhere_in_buffers", gpu_suite::layouts::anywhere),
    ("odd_rows_of_f16", gpu_suite::own_device::odd_f16_rows),
    ("all_tensors_in_one_buffer", gpu_suite::one_buffer::all),
    ("two_calls_before_one_submission", gpu_suite::own_device::two_calls),
    ("examples_run", gpu_suite::own_device::examples),
    ("a_future_yields", gpu_suite::waiting::yields),
    ("every_error_is_typed", gpu_suite::bad_input::every_error),
];

/// Those that compile many kernels, or compute long, and the numbers they are dealt out by. Even numbers, the first of
/// two shares: what llvmpipe's ends of loops are told by.
const DEALT: [(&str, usize); 8] = [
    ("windows_of_many_keys", 0),
    ("gradients_of_long_windows", 0),
    ("hard_geometries", 0),
    ("all_tensors_in_one_buffer", 0),
    ("gradients_have_the_same_bits_however_split", 1),
    ("gradients_in_one_buffer", 1),
    ("gradients_at_the_edges", 1),
    ("unchecked_shaders_are_in_bounds", 1),
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
    let matrix = gpu.as_ref().and_then(Gpu::matrix);
    let others = |name: &str| DEALT.iter().any(|(test, n)| *test == name && !share.has(*n));
    let plain = TESTS.map(|(name, test)| (name, test, gpu.is_none() || others(name)));
    let matrices = MATRIX_TESTS.map(|(name, test)| (name, test, matrix.is_none()));
    let trials = plain.into_iter().chain(matrices).map(|(name, test, absent)| {
        let gpu = gpu.clone();
        let run = move || match &gpu {
            Some(gpu) => {
                let before = gpu.dispatches();
                test(gpu)?;
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
