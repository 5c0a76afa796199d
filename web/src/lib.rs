//! The library for browsers, as the package's JavaScript needs it: handles on what it has, and calls that take
//! arguments whose types are right.

#![cfg(target_arch = "wasm32")]

mod arrays;
mod attention;
mod config;
mod cpu;
mod device;
mod engine;
mod error;
mod gpu;
mod request;
mod tensor;

use wasm_bindgen::prelude::*;

/// Calls a function before this module stops for good: a call that panics is never answered.
#[wasm_bindgen]
pub fn on_crash(tell: js_sys::Function) {
    // Hooks go from thread to thread, functions do not: there is one.
    thread_local!(static TELL: std::cell::RefCell<Option<js_sys::Function>> = const { std::cell::RefCell::new(None) });
    TELL.set(Some(tell));
    std::panic::set_hook(Box::new(|info| {
        TELL.with_borrow(|tell| {
            let Some(tell) = tell else { return };
            // What it throws changes nothing any more.
            let _ = tell.call1(&JsValue::NULL, &info.to_string().into());
        });
    }));
}
