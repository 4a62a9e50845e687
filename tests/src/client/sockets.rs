//! Sockets of a host: datagrams, fragments, connections.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpStream, UdpSocket},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::sys::{
    socket::{self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sockopt},
    time::TimeVal,
};
use router_common::{checksum::Sum, fragment};

use crate::namespace::Namespace;

/// A UDP socket of one host, connected to one address.
#[derive(Debug)]
pub struct Udp {
    socket: UdpSocket,
}

impl Udp {
    /// Opens it.
    pub fn open(from: &Namespace, target: SocketAddr) -> Result<Self> {
        Self::open_at(from, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0), target)
    }

    /// Opens it at this address and port of the host.
    pub fn open_at(from: &Namespace, source: SocketAddrV4, target: SocketAddr) -> Result<Self> {
        let connect = || -> io::Result<UdpSocket> {
            let socket = UdpSocket::bind(source)?;
            socket.connect(target)?;
            Ok(socket)
        };
        let socket =
            from.inside(connect)?.with_context(|| format!("cannot open a UDP socket to {target}"))?;
        Ok(Self { socket })
    }

    /// From now on datagrams carry a checksum of zero, "the sender made none" (RFC 768).
    pub fn without_checksum(self) -> Result<Self> {
        set_no_checksum(self.socket.as_fd()).context("cannot switch UDP checksums off")?;
        Ok(self)
    }

    /// Lets routers fragment its datagrams.
    pub fn fragmentable(self) -> Result<Self> {
        let value = libc::IP_PMTUDISC_DONT;
        // SAFETY: an option of an integer, of this length.
        let set = unsafe {
            libc::setsockopt(
                std::os::fd::AsRawFd::as_raw_fd(&self.socket),
                libc::IPPROTO_IP,
                libc::IP_MTU_DISCOVER,
                (&raw const value).cast(),
                size_of_val(&value) as libc::socklen_t,
            )
        };
        ensure!(set == 0, "cannot set IP_MTU_DISCOVER: {}", io::Error::last_os_error());
        Ok(self)
    }

    /// Sends a datagram and waits until it comes back; answers to earlier ones are passed over.
    pub fn echo(&self, datagram: &[u8], limit: Duration) -> Result<Duration> {
        let start = Instant::now();
        self.send(datagram)?;
        let mut answer = vec![0; 65536];
        loop {
            let left = limit.saturating_sub(start.elapsed()).max(Duration::from_millis(1));
            self.socket.set_read_timeout(Some(left)).context("cannot set a timeout")?;
            let length = self.socket.recv(&mut answer).with_context(|| {
                format!("a datagram of {} bytes did not come back within {limit:?}", datagram.len())
            })?;
            if answer[..length] == *datagram {
                return Ok(start.elapsed());
            }
        }
    }

    /// Sends a datagram.
    pub fn send(&self, datagram: &[u8]) -> Result<()> {
        let sent = self.socket.send(datagram).context("cannot send a datagram")?;
        ensure!(sent == datagram.len(), "only {sent} bytes of {} were sent", datagram.len());
        Ok(())
    }
}

/// Sends a datagram in fragments, in an order that `arrange` makes. Returns the number of
/// fragments.
///
/// The ports belong to sockets of the caller; this function opens a raw socket only.
pub fn send_fragments(
    from: &Namespace,
    source: SocketAddrV4,
    target: SocketAddrV4,
    (identification, datagram): (u16, &[u8]),
    arrange: impl FnOnce(&mut Vec<Vec<u8>>),
) -> Result<usize> {
    const MTU: u16 = 1500;
    let packet = udp_packet(source, target, identification, datagram)?;
    let pieces = fragment::split(&packet, MTU).context("not a packet")?;
    let mut fragments: Vec<_> = pieces.map(|(header, data)| [&header, data].concat()).collect();
    arrange(&mut fragments);
    let socket = raw_socket(from)?;
    let to = SockaddrIn::from(SocketAddrV4::new(*target.ip(), 0));
    for fragment in &fragments {
        let sent = socket::sendto(socket.as_raw_fd(), fragment, &to, MsgFlags::empty())
            .context("cannot send a fragment")?;
        ensure!(sent == fragment.len(), "only {sent} bytes of {} were sent", fragment.len());
    }
    Ok(fragments.len())
}

/// A socket that takes whole IPv4 packets, fragments as well: raw(7).
pub(crate) fn raw_socket(from: &Namespace) -> Result<OwnedFd> {
    let open =
        || socket::socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw);
    let socket = from.inside(open)?.context("cannot make a raw socket")?;
    // Connection tracking would put fragments together and in order again.
    switch_on(socket.as_fd(), libc::SOL_IP, libc::IP_NODEFRAG).context("cannot set up a raw socket")?;
    Ok(socket)
}

/// An IPv4 packet with a datagram.
fn udp_packet(
    source: SocketAddrV4,
    target: SocketAddrV4,
    identification: u16,
    datagram: &[u8],
) -> Result<Vec<u8>> {
    const UDP: u8 = 17;
    let udp_length = u16::try_from(8 + datagram.len()).context("too long for a datagram")?.to_be_bytes();
    let length = u16::try_from(28 + datagram.len()).context("too long for a packet")?.to_be_bytes();
    let addresses = [source.ip().octets(), target.ip().octets()].concat();
    let ports = [source.port().to_be_bytes(), target.port().to_be_bytes()].concat();
    let pseudo_header = [&addresses[..], &[0, UDP], &udp_length].concat();
    let checksum = Sum::ZERO
        .add_bytes(&pseudo_header)
        .add_bytes(&ports)
        .add_bytes(&udp_length)
        .add_bytes(datagram)
        .checksum();
    // Zero says "none" (RFC 768).
    let checksum = if checksum == [0, 0] { [0xff, 0xff] } else { checksum };
    // The kernel fills the header's checksum in (raw(7)).
    let start = [&[0x45, 0], &length[..], &identification.to_be_bytes(), &[0, 0, 64, UDP, 0, 0]].concat();
    Ok([&start[..], &addresses, &ports, &udp_length, &checksum, datagram].concat())
}

/// `SO_NO_CHECK` of socket(7), which nix has no name for.
fn set_no_checksum(socket: BorrowedFd<'_>) -> io::Result<()> {
    switch_on(socket, libc::SOL_SOCKET, libc::SO_NO_CHECK)
}

/// Sets an option that is on or off.
fn switch_on(socket: BorrowedFd<'_>, level: libc::c_int, option: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    let size = libc::socklen_t::try_from(size_of_val(&on)).map_err(io::Error::other)?;
    // SAFETY: the option's value is an int, which `on` is and outlives the call.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const on).cast(), size) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A TCP connection from a given local address, with a limit on the connection and on every read
/// and write.
pub fn connect_from(source: Ipv4Addr, target: SocketAddrV4, limit: Duration) -> Result<TcpStream> {
    connect_between(SocketAddrV4::new(source, 0), target, limit)
}

/// As [`connect_from`], from a given port.
pub fn connect_between(source: SocketAddrV4, target: SocketAddrV4, limit: Duration) -> Result<TcpStream> {
    let socket = socket::socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
        .context("cannot make a socket")?;
    let limit = TimeVal::new(i64::try_from(limit.as_secs())?, i64::from(limit.subsec_micros()));
    // The send timeout limits connect() as well: socket(7).
    socket::setsockopt(&socket, sockopt::SendTimeout, &limit).context("cannot set a timeout")?;
    socket::setsockopt(&socket, sockopt::ReceiveTimeout, &limit).context("cannot set a timeout")?;
    if source.port() != 0 {
        socket::setsockopt(&socket, sockopt::ReuseAddr, &true).context("cannot use a port again")?;
    }
    socket::bind(socket.as_raw_fd(), &SockaddrIn::from(source))
        .with_context(|| format!("cannot bind to {source}"))?;
    socket::connect(socket.as_raw_fd(), &SockaddrIn::from(target))
        .with_context(|| format!("cannot connect to {target}"))?;
    Ok(socket.into())
}

/// A TCP connection to an echo server.
#[derive(Debug)]
pub struct Tcp {
    stream: TcpStream,
}

impl Tcp {
    /// Connects from a host within `limit`.
    pub fn connect(from: &Namespace, target: SocketAddr, limit: Duration) -> Result<Self> {
        let stream = from
            .inside(|| TcpStream::connect_timeout(&target, limit))?
            .with_context(|| format!("cannot connect from {} to {target} within {limit:?}", from.name()))?;
        stream.set_nodelay(true).context("cannot set TCP_NODELAY")?;
        Ok(Self { stream })
    }

    /// Connects from a host within `limit`, as one of its addresses.
    pub fn connect_from(
        from: &Namespace,
        source: Ipv4Addr,
        target: SocketAddrV4,
        limit: Duration,
    ) -> Result<Self> {
        Self::connect_between(from, SocketAddrV4::new(source, 0), target, limit)
    }

    /// Connects from a host within `limit`, from one of its addresses and a port.
    pub fn connect_between(
        from: &Namespace,
        source: SocketAddrV4,
        target: SocketAddrV4,
        limit: Duration,
    ) -> Result<Self> {
        let stream = from.inside(|| connect_between(source, target, limit))??;
        stream.set_nodelay(true).context("cannot set TCP_NODELAY")?;
        Ok(Self { stream })
    }

    /// Ends the connection by a reset.
    pub fn reset(self) -> Result<()> {
        let at_once = libc::linger { l_onoff: 1, l_linger: 0 };
        socket::setsockopt(&self.stream, sockopt::Linger, &at_once).context("cannot set SO_LINGER")
    }

    /// Ends the connection, the orderly way.
    pub fn close(self) -> Result<()> {
        self.stream.shutdown(Shutdown::Write).context("cannot close")?;
        let mut rest = Vec::new();
        (&self.stream).read_to_end(&mut rest).context("the other end did not close")?;
        ensure!(rest.is_empty(), "{} unexpected bytes came", rest.len());
        Ok(())
    }

    /// Sends bytes and reads as many back; they have to be the same.
    pub fn echo(&mut self, bytes: &[u8], limit: Duration) -> Result<Duration> {
        let start = Instant::now();
        self.stream.set_read_timeout(Some(limit)).context("cannot set a timeout")?;
        self.stream.write_all(bytes).context("cannot send")?;
        let mut answer = vec![0; bytes.len()];
        self.stream.read_exact(&mut answer).with_context(|| format!("no echo within {limit:?}"))?;
        ensure!(answer == bytes, "the echo differs from what was sent");
        Ok(start.elapsed())
    }
}
