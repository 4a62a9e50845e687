//! A TCP address with two accept queues: one of those networks that must be let in, and one of
//! everybody else. So whoever fills a queue with connections is not in the way of the load balancer.
//!
//! Two sockets listen on the same address (`SO_REUSEPORT`), and a classic BPF program that is run on
//! each SYN says by its source which of them is meant (`SO_ATTACH_REUSEPORT_CBPF`, socket(7)).

use std::{io, net::SocketAddr, os::fd::AsRawFd as _};

use ipnet::IpNet;
use socket2::Socket;
use tokio::net::{TcpListener, TcpStream};

use super::{BACKLOG, Ends, Listener, tcp_socket};

/// A TCP address with two accept queues.
#[derive(Debug)]
pub(in crate::daemon) struct Queues {
    /// Of the networks that have been named.
    reserved: TcpListener,
    others: TcpListener,
}

impl Queues {
    /// Listens on an address, with a queue of their own for connections from these networks.
    ///
    /// # Errors
    /// When somebody else has the address, or it is none of this machine's.
    pub(in crate::daemon) fn listen(address: SocketAddr, reserved: &[IpNet]) -> io::Result<Self> {
        Self::with_backlog(address, reserved, BACKLOG)
    }

    pub(super) fn with_backlog(address: SocketAddr, reserved: &[IpNet], backlog: i32) -> io::Result<Self> {
        let first = tcp_socket(address)?;
        // Bound alone, so that another process which shares the address does not go unnoticed.
        first.bind(&address.into())?;
        first.set_reuse_port(true)?;
        let address = first.local_addr()?;
        let second = tcp_socket(address.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?)?;
        second.set_reuse_port(true)?;
        second.bind(&address)?;
        // In this order: the program says by number which of them is meant.
        first.listen(backlog)?;
        second.listen(backlog)?;
        attach(&first, &program(reserved))?;
        let tokio = |socket: Socket| TcpListener::from_std(socket.into());
        Ok(Self { reserved: tokio(first)?, others: tokio(second)? })
    }

    #[cfg(test)]
    pub(super) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.reserved.local_addr()
    }
}

impl Listener for Queues {
    type Stream = TcpStream;
    type Peer = Ends;

    async fn accept(&self) -> io::Result<(TcpStream, Ends)> {
        tokio::select! {
            biased;
            accepted = Listener::accept(&self.reserved) => accepted,
            accepted = Listener::accept(&self.others) => accepted,
        }
    }
}

/// Numbers of the sockets, in the order in which they listen.
const RESERVED: u32 = 0;
const OTHERS: u32 = 1;

// Classic BPF (linux/filter.h, linux/bpf_common.h). Offsets from `NETWORK` on are of the IP header.
const LOAD_WORD: u16 = 0x20;
const LOAD_BYTE: u16 = 0x30;
const AND: u16 = 0x54;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
const NETWORK: u32 = -0x10_0000_i32 as u32;
const IPV4_SOURCE: u32 = 12;
const IPV6_SOURCE: u32 = 8;

const fn step(code: u16, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt: 0, jf: 0, k }
}

/// Returns the program that tells the sources of these networks from all others.
fn program(reserved: &[IpNet]) -> Vec<libc::sock_filter> {
    let mut program = Vec::new();
    for network in reserved {
        let (version, offset, words) = match network {
            IpNet::V4(network) => {
                (0x40, IPV4_SOURCE, vec![(network.network().to_bits(), network.netmask().to_bits())])
            }
            IpNet::V6(network) => {
                let words = |bits: u128| (0..4).map(move |word| (bits >> (96 - 32 * word)) as u32);
                let (network, mask) = (network.network().to_bits(), network.netmask().to_bits());
                (0x60, IPV6_SOURCE, words(network).zip(words(mask)).collect())
            }
        };
        let mut is_one = vec![step(LOAD_BYTE, NETWORK), step(AND, 0xf0), step(JUMP_IF_EQUAL, version)];
        for (at, (word, mask)) in (offset..).step_by(4).zip(words).filter(|(_, (_, mask))| *mask != 0) {
            is_one.extend([step(LOAD_WORD, NETWORK + at), step(AND, mask), step(JUMP_IF_EQUAL, word)]);
        }
        is_one.push(step(RETURN, RESERVED));
        let length = is_one.len();
        for (position, step) in is_one.iter_mut().enumerate() {
            if step.code == JUMP_IF_EQUAL {
                // To behind this network. Those of IPv6 are 16 instructions at most.
                step.jf = (length - position - 1) as u8;
            }
        }
        program.extend(is_one);
    }
    program.push(step(RETURN, OTHERS));
    program
}

fn attach(socket: &Socket, program: &[libc::sock_filter]) -> io::Result<()> {
    let length = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    // SAFETY: the kernel copies the program, which outlives the call, and writes none of it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::{net::IpAddr, time::Duration};

    use socket2::{Domain, Type};
    use tokio::time::timeout;

    use super::*;

    const LONG: Duration = Duration::from_secs(5);

    fn network(text: &str) -> IpNet {
        text.parse().expect("a network")
    }

    /// Connects from an address of the loopback interface's; `None` if that takes too long.
    fn connect(source: &str, to: SocketAddr, patience: Duration) -> Option<Socket> {
        let source: IpAddr = source.parse().expect("an address");
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).expect("a socket");
        socket.bind(&SocketAddr::new(source, 0).into()).expect("an address of this machine");
        socket.connect_timeout(&to.into(), patience).ok().map(|()| socket)
    }

    /// The address that the next connection is from.
    async fn next(queues: &Queues) -> IpAddr {
        let (_, ends) = timeout(LONG, queues.accept()).await.expect("in time").expect("a connection");
        ends.peer.ip()
    }

    #[tokio::test]
    async fn a_full_queue_is_not_in_the_way_of_the_other() {
        let reserved = [network("fd00::/8"), network("127.9.0.0/16"), network("127.0.0.2/32")];
        let any = "127.0.0.1:0".parse().expect("an address");
        let queues = Queues::with_backlog(any, &reserved, 4).expect("two queues");
        let address = queues.local_addr().expect("its address");
        let waiting: Vec<_> =
            (0..64).map_while(|_| connect("127.0.0.1", address, Duration::from_millis(200))).collect();
        assert!((4..64).contains(&waiting.len()), "{} connections: the queue is full", waiting.len());
        for source in ["127.0.0.2", "127.9.7.7"] {
            let connection = connect(source, address, LONG).expect("a place in the queue");
            // Before all that have waited longer.
            assert_eq!(next(&queues).await.to_string(), source);
            drop(connection);
        }
        for _ in &waiting {
            assert_eq!(next(&queues).await.to_string(), "127.0.0.1");
        }
    }

    #[tokio::test]
    async fn an_address_that_somebody_has_is_not_shared() {
        let any = "127.0.0.1:0".parse().expect("an address");
        let queues = Queues::listen(any, &[]).expect("two queues");
        let address = queues.local_addr().expect("its address");
        let error = Queues::listen(address, &[]).expect_err("somebody has it");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }

    #[tokio::test]
    async fn networks_of_both_versions_have_a_place() {
        let Ok(any) = "[::1]:0".parse::<SocketAddr>() else { panic!("an address") };
        let queues = Queues::with_backlog(any, &[network("10.0.0.0/8"), network("::1/128")], 4);
        // A machine may be without IPv6.
        let Ok(queues) = queues else { return };
        let address = queues.local_addr().expect("its address");
        let connection = connect("::1", address, LONG).expect("a connection");
        let (_, ends) =
            timeout(LONG, Listener::accept(&queues.reserved)).await.expect("reserved").expect("a connection");
        assert_eq!(ends.peer.ip().to_string(), "::1");
        drop(connection);
    }
}
