//! The programs that `forward` and each other tail-call.

/// A stage: a tail-called program, by its slot in the array of programs.
#[repr(u32)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stage {
    /// Packets that `forward` did not take: those of sessions that need more than a rewrite.
    /// Classifies all others.
    Slow = 0,
    /// ICMP errors about known sessions.
    IcmpError = 1,
    /// Fragments.
    Fragment = 2,
    /// The router's own answers: ICMP errors and resets.
    Answer = 3,
    /// Decides whether and how a packet opens a session.
    Open = 4,
    /// Inserts a new session into the table.
    Claim = 5,
    /// Packets that match no session and no rule.
    Local = 6,
    /// Frames other than untagged IPv4.
    Ethernet = 7,
    /// IPv6, which is for this machine or dropped.
    Ipv6 = 8,
}

impl Stage {
    /// Every stage with the name of its program.
    pub const ALL: [(Self, &str); STAGES as usize] = [
        (Self::Slow, "slow"),
        (Self::IcmpError, "icmp_error"),
        (Self::Fragment, "fragment"),
        (Self::Answer, "answer"),
        (Self::Open, "open"),
        (Self::Claim, "claim"),
        (Self::Local, "local"),
        (Self::Ethernet, "ethernet"),
        (Self::Ipv6, "ipv6"),
    ];
}

/// The number of stages.
pub const STAGES: u32 = 9;
