//! Floods: connections that are requested and never made, and fragments of datagrams without a
//! first fragment.

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
    sys::socket::{self, MsgFlags, SockaddrIn, sendto, sockopt},
};
use router_common::checksum::Sum;

use crate::{client::raw_socket, namespace::Namespace};

/// The source ports: all but the privileged ones, in turn.
const PORTS: std::ops::RangeInclusive<u16> = 1024..=65_535;

/// The bytes that may be on their way to where they are looked at, as the kernel counts them: some
/// fifty packets.
const ON_THE_WAY: usize = 16 << 10;

/// Packets from one address to one other, as fast as one thread sends them and the other end takes
/// them, until it is dropped.
#[derive(Debug)]
pub struct Flood {
    sent: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    sender: Option<JoinHandle<()>>,
}

/// SYNs.
#[derive(Debug)]
pub struct SynFlood(Flood);

impl SynFlood {
    /// Starts it. `source` has to be an address that `from` may send as.
    pub fn start(from: &Namespace, source: Ipv4Addr, target: SocketAddrV4) -> Result<Self> {
        Self::start_paced(from, source, target, None)
    }

    /// Starts the flood, at no more than `rate` SYNs a second if a rate is given.
    pub fn start_paced(
        from: &Namespace,
        source: Ipv4Addr,
        target: SocketAddrV4,
        rate: Option<u32>,
    ) -> Result<Self> {
        let mut ports = PORTS.cycle();
        let packet = move |_| syn(SocketAddrV4::new(source, ports.next().unwrap_or(1024)), target).to_vec();
        Flood::start(from, *target.ip(), rate, packet).map(Self)
    }

    /// SYNs that have been sent.
    pub fn sent(&self) -> u64 {
        self.0.sent()
    }
}

impl Flood {
    /// Later fragments of UDP datagrams whose first never comes, each of another datagram.
    pub fn of_early_fragments(from: &Namespace, source: Ipv4Addr, target: Ipv4Addr) -> Result<Self> {
        Self::start(from, target, None, move |number| early_fragment(source, target, number as u16).to_vec())
    }

    /// UDP datagrams in two fragments each, the later one first.
    pub fn of_reversed_datagrams(
        from: &Namespace,
        source: SocketAddrV4,
        target: SocketAddrV4,
    ) -> Result<Self> {
        let packet = move |number| reversed_datagram(source, target, number).to_vec();
        Self::start(from, *target.ip(), None, packet)
    }

    /// Starts it: packets to `target`, each made by its number, with no more than `rate` a second.
    fn start(
        from: &Namespace,
        target: Ipv4Addr,
        rate: Option<u32>,
        mut packet: impl FnMut(u32) -> Vec<u8> + Send + 'static,
    ) -> Result<Self> {
        let socket = raw_socket(from)?;
        socket::setsockopt(&socket, sockopt::SndBuf, &ON_THE_WAY)
            .context("cannot bound what is on its way")?;
        let to = SockaddrIn::from(SocketAddrV4::new(target, 0));
        let (sent, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counter, end) = (sent.clone(), over.clone());
        let flood = move || {
            let start = Instant::now();
            for number in 0_u32.. {
                if end.load(Relaxed) {
                    return;
                }
                if let Some(rate) = rate {
                    let due = start + Duration::from_secs(1) * number / rate;
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                }
                match sendto(socket.as_raw_fd(), &packet(number), &to, MsgFlags::empty()) {
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

    /// Packets that have been sent.
    pub fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
        if let Some(sender) = self.sender.take() {
            // It has nothing to tell.
            let _panicked = sender.join();
        }
    }
}

/// The second fragment of a UDP datagram, of three.
fn early_fragment(source: Ipv4Addr, target: Ipv4Addr, identification: u16) -> [u8; 60] {
    const UDP: u8 = 17;
    let mut packet = [0; 60];
    let [high, low] = identification.max(1).to_be_bytes();
    // More fragments, from byte 1480 on.
    packet[..10].copy_from_slice(&[0x45, 0, 0, 60, high, low, 0x20, 185, 64, UDP]);
    packet[12..16].copy_from_slice(&source.octets());
    packet[16..20].copy_from_slice(&target.octets());
    packet
}

/// A fragment of a UDP datagram in two: the second one for even numbers, then the first one.
fn reversed_datagram(source: SocketAddrV4, target: SocketAddrV4, number: u32) -> [u8; 44] {
    const UDP: u8 = 17;
    /// Bytes of the datagram in either fragment.
    const LENGTH: u16 = 24;
    let mut packet = [0; 44];
    let [high, low] = ((number / 2) as u16).max(1).to_be_bytes();
    let is_second = number.is_multiple_of(2);
    let (flags, offset) = if is_second { (0, (LENGTH / 8) as u8) } else { (0x20, 0) };
    packet[..10].copy_from_slice(&[0x45, 0, 0, 44, high, low, flags, offset, 64, UDP]);
    packet[12..16].copy_from_slice(&source.ip().octets());
    packet[16..20].copy_from_slice(&target.ip().octets());
    if !is_second {
        packet[20..22].copy_from_slice(&source.port().to_be_bytes());
        packet[22..24].copy_from_slice(&target.port().to_be_bytes());
        // A checksum of zero is none.
        packet[24..26].copy_from_slice(&(2 * LENGTH).to_be_bytes());
    }
    packet
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
    use router_common::{fragment::Fragment, packet};

    use super::*;

    #[test]
    fn an_early_fragment_is_one() {
        let packet = early_fragment(Ipv4Addr::new(10, 0, 2, 4), Ipv4Addr::new(203, 0, 113, 20), 7);
        let mut frame = [&[2; 12], &[8, 0][..], &packet].concat();
        let checksum = Sum::ZERO.add_bytes(&packet[..20]).checksum();
        frame[24..26].copy_from_slice(&checksum);
        let fragment = Fragment::parse(&frame[..]).expect("a fragment");
        assert!(fragment.more && !fragment.is_first() && fragment.offset == 1480);
    }

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
