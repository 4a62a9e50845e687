//! Spoofed ARP: a machine on the link that claims addresses, its own or others'.

use std::net::Ipv4Addr;

use anyhow::Result;

use crate::{namespace::Namespace, wire::Wire};

/// The MAC address that claims come from, as switches see it.
const SENDER: [u8; 6] = [2, 0, 0, 0, 0xfe, 0xfe];

/// A machine that claims addresses.
#[derive(Debug)]
pub struct Spoofer {
    wire: Wire,
}

impl Spoofer {
    /// Claims are sent out of this device.
    pub fn new(from: &Namespace, device: &str) -> Result<Self> {
        Ok(Self { wire: Wire::open(from, device)? })
    }

    /// Claims to be `address`, at `mac`, in a request for `asked`. The owner of `asked` updates its
    /// neighbour table from the request's sender fields (RFC 826).
    pub fn claim(&self, address: Ipv4Addr, mac: [u8; 6], asked: Ipv4Addr) -> Result<()> {
        self.wire.send(&request(address, mac, asked))
    }
}

/// An ARP request over Ethernet.
fn request(address: Ipv4Addr, mac: [u8; 6], asked: Ipv4Addr) -> Vec<u8> {
    // To all; ARP; Ethernet and IPv4, their addresses' lengths, and that it is a request.
    let ethernet = [&[0xff; 6], &SENDER, &[0x08, 0x06][..]].concat();
    let kind = [0, 1, 0x08, 0, 6, 4, 0, 1];
    [&ethernet[..], &kind, &mac, &address.octets(), &[0; 6], &asked.octets(), &[0; 18]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_as_long_as_the_shortest_frame() {
        let frame = request(Ipv4Addr::new(10, 0, 2, 72), [2; 6], Ipv4Addr::new(10, 0, 2, 68));
        assert_eq!(
            (frame.len(), &frame[28..32], &frame[38..42]),
            (60, &[10, 0, 2, 72][..], &[10, 0, 2, 68][..])
        );
    }
}
