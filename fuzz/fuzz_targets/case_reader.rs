#![no_main]
//! Bytes of a case file: refused with an error, or a case whose problem is refused or made.

use libfuzzer_sys::fuzz_target;
use local_attention::LocalAttention;
use local_attention_cli::case::Case;

fuzz_target!(|data: &[u8]| {
    let Ok(case) = Case::from_bytes(data) else { return };
    let Ok(attention) = LocalAttention::new(case.config.clone()) else { return };
    let Ok(problem) = case.problem(&attention) else { return };
    assert!(problem.geometry().windows() > 0);
});
