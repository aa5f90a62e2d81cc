#![doc = include_str!("ARCHITECTURE.md")]

pub mod base;
pub mod cli;
pub mod control;
pub mod disk;
pub mod engine;
pub mod metrics;
pub mod mover;
pub mod owner;
pub mod placement;
pub mod plan;
pub mod reactor;
pub mod sandbox;
pub mod shared;
pub mod store;
pub mod vhost_user;
pub mod virtio;
