//! This machine's own traffic: for how long what it has sent is remembered, so that answers to it are known.

use crate::{flow::Protocol, session::Ticks};

/// What is remembered of datagrams, in ticks: 300 s, as long as a NAT keeps a mapping (RFC 4787 REQ-5).
const DATAGRAMS: u32 = 280;
/// Of echo requests: 60 s (RFC 5508 REQ-2).
const ECHOES: u32 = 56;

/// Returns `true` if what was last sent at this time may still be answered.
#[inline(always)]
pub const fn is_remembered(protocol: Protocol, sent: Ticks, now: Ticks) -> bool {
    let age = now.0.saturating_sub(sent.0);
    match protocol {
        Protocol::Icmp => age <= ECHOES,
        Protocol::Udp | Protocol::Tcp => age <= DATAGRAMS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_known_for_as_long_as_a_nat_would_let_them_in() {
        const SECOND: u64 = 1_000_000_000;
        for (protocol, seconds) in [(Protocol::Udp, 300), (Protocol::Icmp, 60)] {
            let sent = Ticks(1000);
            let lasts =
                (0..1000).take_while(|age| is_remembered(protocol, sent, Ticks(1000 + age))).count() as u32;
            let lasts = Ticks(1000 + lasts).nanoseconds_since(sent);
            assert!((seconds * SECOND..(seconds + 3) * SECOND).contains(&lasts), "{protocol:?}: {lasts} ns");
            assert!(is_remembered(protocol, sent, Ticks(999)), "its clock was read a moment later than ours");
        }
    }
}
