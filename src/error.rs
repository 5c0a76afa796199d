//! Typed errors: each names the argument, what was given and what is allowed.

mod config;
mod run;
mod shape;

pub use config::ConfigError;
pub use run::RunError;
pub use shape::ShapeError;
