//! The one set of defaults: the values of keys that a configuration leaves out.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::types::Timeouts;

/// The configuration file, unless `--config` names another.
pub const PATH: &str = "/etc/pls-router/config.toml";
/// `listen` of `[health]`.
pub const HEALTH: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8082);
/// `self_test` of `[health]`.
pub const SELF_TEST: Duration = Duration::from_secs(5);
/// `down_after` of `[health]`.
pub const DOWN_AFTER: Duration = Duration::from_secs(2);
/// `up_after` of `[health]`.
pub const UP_AFTER: Duration = Duration::from_secs(5);
/// `interval` of a `check`.
pub const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// `timeout` of a `check`; its `interval`, if that is less.
pub const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
/// `fall` of a `check`.
pub const CHECK_FALL: u32 = 3;
/// `rise` of a `check`.
pub const CHECK_RISE: u32 = 2;
/// `listen` of `[admin]`.
pub const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9090);
/// `socket` of `[admin]`.
pub const SOCKET: &str = "/run/pls-router/api.sock";
/// `pins` of `[admin]`.
pub const PINS: &str = "/sys/fs/bpf/pls-router";
/// `flows` of `[limits]`.
pub const FLOWS: u32 = 1 << 20;
/// `half_open_per_source` of `[limits]` with the default ports; it depends on them.
pub const HALF_OPEN_EXAMPLE: u32 = 15_872;
/// `[timeouts]`.
pub const TIMEOUTS: Timeouts = Timeouts {
    tcp_established: Duration::from_secs(7440),
    tcp_transitory: Duration::from_secs(240),
    udp: Duration::from_secs(300),
    udp_unreplied: Duration::from_secs(120),
    icmp: Duration::from_secs(60),
};
