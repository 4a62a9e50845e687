//! `aya::Pod` for the types that user space reads from and writes to maps.

use crate::{
    address::{Ipv4, Ipv6},
    local::Allow,
    maps::{
        punt::Neighbour,
        route::{InUse, InterfaceAddresses},
        rules::{Ipv6Network, ListenKey, Masquerade, Network, Rule, RuleSet, SourceKey},
        settings::Settings,
        stats::CpuStats,
    },
    ports::PoolKey,
};

/// Implements `Pod` for types that are `#[repr(C)]`, plain data, and without padding.
macro_rules! pod {
    ($($type:ty),* $(,)?) => {
        $(
            // SAFETY: `#[repr(C)]`, valid for any bytes (enumerations are stored as integers), and
            // without padding: the size assertion after the type counts its fields.
            unsafe impl aya::Pod for $type {}
        )*
    };
}

pod!(
    Allow<Ipv6Network>,
    Allow<Network>,
    CpuStats,
    InUse,
    InterfaceAddresses,
    Ipv4,
    Ipv6,
    ListenKey,
    Masquerade,
    Neighbour,
    PoolKey,
    Rule,
    RuleSet,
    Settings,
    SourceKey,
);
