//! Starting and stopping the daemon.

pub mod config;
