//! Whether VHDs grow, for whoever wants to know.

/// Whether a VHD grows onto other disks, and why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Growth {
    /// Whether it does.
    pub grows: bool,
    /// Who says so.
    pub said_by: GrowthSaid,
}

/// Who says whether a VHD grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GrowthSaid {
    /// It has a setting of its own.
    Vhd,
    /// The pool.
    Pool,
    /// Nobody but the policy, which may change it.
    Policy,
    /// Nobody: spanned VHDs do.
    #[default]
    Layout,
}
