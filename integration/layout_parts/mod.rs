//! Parts of `layouts.rs`: guests whose load checks each answer, jobs and resizes of their VHDs, disks that come and go, and what the
//! daemon counts meanwhile.

pub mod counters;
pub mod disks;
pub mod jobs;
pub mod resize;

/// A VHD under load.
pub struct Vhd {
    /// Its name.
    pub name: &'static str,
    /// Options of `vhd create`.
    pub options: &'static [&'static str],
    /// Sectors of a block.
    pub block: u64,
    /// Whether the guest makes it writethrough.
    pub writethrough: bool,
    /// Whether it has, or will have, several replicas.
    pub replicated: bool,
}

/// The VHDs.
pub const VHDS: [Vhd; 5] = [
    Vhd::new("iso", &["--layout", "isolated", "--block-size", "512"], 1),
    Vhd { replicated: true, ..Vhd::new("span", &["--layout", "spanned", "--block-size", "4096"], 8) },
    Vhd { writethrough: true, ..Vhd::new("through", &["--layout", "spanned", "--width", "2"], 1) },
    Vhd::new("thick", &["--layout", "spanned", "--width", "2", "--thick"], 1),
    Vhd { replicated: true, ..Vhd::new("twin", &["--layout", "spanned", "--replicas", "2"], 1) },
];

impl Vhd {
    const fn new(name: &'static str, options: &'static [&'static str], block: u64) -> Vhd {
        Vhd { name, options, block, writethrough: false, replicated: false }
    }
}
