//! The pipeline against an engine and an owner whose every step the test chooses.

mod basics;
mod checked;
mod engine;
mod faults;
mod guest;
mod model;
mod moving;
mod replicas;
mod stages;
mod threads;
mod turns;
mod waiting;
mod world;
