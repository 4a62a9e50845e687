//! Martians: packets with addresses that no packet on a wire has (RFC 1812 5.3.7).

use crate::{
    address::Ipv4,
    local::{is_martian_destination, is_martian_source},
};

/// Returns `true` for a martian: a packet from or to an address that no packet on a wire may have,
/// or from an address of this machine. `is_local` tells whether an address is one of those.
#[inline(always)]
pub fn is_martian(source: Ipv4, destination: Ipv4, is_local: impl FnOnce(Ipv4) -> bool) -> bool {
    is_martian_source(source, destination) || is_martian_destination(destination) || is_local(source)
}

#[cfg(all(test, not(model)))]
mod tests {
    use super::*;

    const OWN: [u8; 4] = [10, 0, 2, 68];
    const HOST: [u8; 4] = [10, 0, 2, 69];

    #[test]
    fn martians_are_known_by_their_addresses() {
        for (source, destination, wanted) in [
            (HOST, OWN, false),
            (HOST, [203, 0, 113, 1], false),
            (HOST, [224, 0, 0, 5], false),
            (HOST, [255; 4], false),
            ([240, 0, 0, 1], OWN, false),
            // This machine's own, on a wire.
            (OWN, HOST, true),
            (OWN, OWN, true),
            ([127, 0, 0, 1], OWN, true),
            (HOST, [127, 0, 0, 1], true),
            ([224, 0, 0, 5], OWN, true),
            ([255; 4], OWN, true),
            // Without an address, to all or to a group alone: DHCP, IGMP.
            ([0; 4], [255; 4], false),
            ([0; 4], [224, 0, 0, 22], false),
            ([0; 4], OWN, true),
            (HOST, [0; 4], true),
            (HOST, [0, 0, 0, 1], true),
        ] {
            let is = is_martian(Ipv4(source), Ipv4(destination), |address| address == Ipv4(OWN));
            assert_eq!(is, wanted, "{source:?} to {destination:?}");
        }
    }
}
