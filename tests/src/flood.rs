//! A SYN flood: connections that somebody asks for and never makes.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, SockaddrIn, sendto},
};
use router_common::checksum::Sum;

use crate::{client::raw_socket, namespace::Namespace};

/// The source ports: as many as there are but for the privileged ones, over and over.
const PORTS: std::ops::RangeInclusive<u16> = 1024..=65_535;

/// SYNs from one address to one other, as fast as one thread sends them, until it is dropped.
#[derive(Debug)]
pub struct SynFlood {
    sent: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    sender: Option<JoinHandle<()>>,
}

impl SynFlood {
    /// Starts it. `source` has to be an address that `from` may send as.
    pub fn start(from: &Namespace, source: Ipv4Addr, target: SocketAddrV4) -> Result<Self> {
        Self::start_paced(from, source, target, None)
    }

    /// Starts it, with no more than so many SYNs a second, if a number is said.
    pub fn start_paced(
        from: &Namespace,
        source: Ipv4Addr,
        target: SocketAddrV4,
        rate: Option<u32>,
    ) -> Result<Self> {
        let socket = raw_socket(from)?;
        let to = SockaddrIn::from(SocketAddrV4::new(*target.ip(), 0));
        let (sent, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counter, end) = (sent.clone(), over.clone());
        let flood = move || {
            let start = Instant::now();
            for (number, port) in (0_u32..).zip(PORTS.cycle()) {
                if let Some(rate) = rate {
                    let due = start + Duration::from_secs(1) * number / rate;
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                }
                if end.load(Relaxed) {
                    return;
                }
                let packet = syn(SocketAddrV4::new(source, port), target);
                match sendto(socket.as_raw_fd(), &packet, &to, MsgFlags::empty()) {
                    Ok(_) => counter.fetch_add(1, Relaxed),
                    // A queue on the way is full, which is what a flood is about.
                    Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::EINTR) => continue,
                    Err(_) => return,
                };
            }
        };
        let sender = thread::Builder::new().name("flood".to_owned()).spawn(flood);
        Ok(Self { sent, over, sender: Some(sender.context("cannot start a thread")?) })
    }

    /// How many SYNs have been sent.
    pub fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }
}

impl Drop for SynFlood {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
        if let Some(sender) = self.sender.take() {
            // It has nothing to tell.
            let _panicked = sender.join();
        }
    }
}

/// An IPv4 packet that asks for a connection.
fn syn(source: SocketAddrV4, target: SocketAddrV4) -> [u8; 40] {
    const TCP: u8 = 6;
    let mut packet = [0; 40];
    // The kernel fills the header's identification and checksum in (raw(7)).
    packet[..10].copy_from_slice(&[0x45, 0, 0, 40, 0, 0, 0, 0, 64, TCP]);
    packet[12..16].copy_from_slice(&source.ip().octets());
    packet[16..20].copy_from_slice(&target.ip().octets());
    packet[20..22].copy_from_slice(&source.port().to_be_bytes());
    packet[22..24].copy_from_slice(&target.port().to_be_bytes());
    // Five words, SYN, and a window.
    packet[32..36].copy_from_slice(&[0x50, 0x02, 0xff, 0xff]);
    let checksum = Sum::ZERO.add_bytes(&packet[12..]).add_bytes(&[0, TCP, 0, 20]).checksum();
    packet[36..38].copy_from_slice(&checksum);
    packet
}

#[cfg(test)]
mod tests {
    use router_common::packet;

    use super::*;

    #[test]
    fn a_syn_is_a_valid_packet() {
        let (source, target) =
            ("10.0.2.4:1024".parse().expect("an address"), "10.0.2.68:443".parse().expect("an address"));
        let mut packet = syn(source, target);
        let header = Sum::ZERO.add_bytes(&packet[..20]).checksum();
        packet[10..12].copy_from_slice(&header);
        let length = [0, 6, 0, 20];
        let sum = Sum::ZERO.add_bytes(&packet[12..]).add_bytes(&length).checksum();
        assert_eq!(sum, [0, 0], "the segment's checksum");
        let frame = [&[2; 12], &[8, 0][..], &packet].concat();
        let parsed = packet::parse(&frame[..]);
        assert!(parsed.is_ok(), "{parsed:?}");
    }
}
