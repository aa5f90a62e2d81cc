//! The pipeline against an engine and an owner whose every step the test chooses.

mod basics;
mod model;
mod world;
