//! Parts of `together.rs`: the pool and what works on it, the steps that follow one another, and what each daemon holds.

pub mod lives;
pub mod steps;
pub mod world;
