//! Building blocks of the integration runs: guests, host processes, faulty disks, and a report with one line per check.
//!
//! Each run is a test target with its own `main`.

pub mod agent;
pub mod cost;
pub mod counts;
pub mod daemon;
pub mod fio;
pub mod fio_guest;
pub mod footprint;
pub mod frontend;
pub mod guest;
pub mod helper;
pub mod idle;
pub mod image;
pub mod inflight;
pub mod jobs;
pub mod load;
pub mod machine;
pub mod model;
pub mod nbd;
pub mod outputs;
pub mod qmp;
pub mod ram_disk;
pub mod reference;
pub mod report;
pub mod ring;
pub mod slow_host;
pub mod tally;
pub mod throttle;
pub mod tools;
