//! The command line `local-attention`, as a library so that tests and fuzz targets reach its parts.

mod args;
mod backend;
#[cfg(test)]
mod bad_input;
mod bench;
pub mod case;
mod check;
mod console;
mod demo;
mod error;
mod info;
mod output;
mod pattern;
mod run;

pub use args::main;
