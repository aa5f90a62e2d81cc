//! The bodies of the fuzz targets that need a server around them. Those of pure parts are in the library: `virtio::fuzz`,
//! `virtio::fuzz::changing`, `store::fuzz`.

pub mod api;
pub mod messages;
