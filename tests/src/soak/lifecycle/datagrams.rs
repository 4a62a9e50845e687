//! The numbered datagrams: from a few sockets of the clients to one of the servers.
//!
//! A packet that the lab itself drops would look like one that the router has lost. So no more
//! datagrams are under way than every ring on the way has room for: their number is what has been
//! sent beyond the last number that has arrived.

use std::{
    io::{self, ErrorKind},
    mem,
    net::UdpSocket,
    os::fd::AsRawFd as _,
    process::Command,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::Value;

use crate::{
    command,
    namespace::Namespace,
    soak::place::{Place, ROUTER, STREAMS_CLIENT, STREAMS_SERVER},
};

const PORT: u16 = 7_900;
/// Sessions, each with as many of the datagrams.
const SESSIONS: usize = 8;
/// The bytes of a datagram.
const LENGTH: usize = 64;
/// The most datagrams by one system call.
const BATCH: usize = 32;
/// The most datagrams under way. A veth's ring has 256 places, and the other traffic needs some.
const UNDER_WAY: u64 = 96;
/// Without an arrival for so long, what is under way counts as lost for the pace.
const PATIENCE: Duration = Duration::from_millis(200);
/// What a sender was late by more than this is not made up for.
const MOST_LATE: Duration = Duration::from_millis(5);
/// The time that a datagram may be late once no more are sent.
const LAST: Duration = Duration::from_secs(3);
/// Room for what is not yet read.
const RECEIVE_BUFFER: usize = 64 << 20;
/// The pause of a sender that may not send now.
const TURN: Duration = Duration::from_micros(100);

/// The router's rule for them.
pub(super) fn rules() -> String {
    format!(
        "[[forward]]\nname = \"datagrams\"\nprotocol = \"udp\"\nlisten = \"{PORT}\"\ntarget = \"{STREAMS_SERVER}:{PORT}\"\n\
         sources = [\"10.0.2.64/26\"]\n"
    )
}

/// The datagrams of a phase.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Passed {
    pub(super) sent: u64,
    /// Numbers that did not arrive.
    pub(super) lost: u64,
    /// Arrivals of a number that had arrived.
    pub(super) doubled: u64,
    /// Arrivals after a higher number, which are no fault.
    pub(super) overtaken: u64,
    /// Sessions that have changed their address.
    pub(super) moved: u64,
    /// The longest time without an arrival.
    pub(super) longest_gap: Duration,
    /// Packets of any kind that the lab's own devices and sockets have dropped.
    pub(super) dropped_by_the_lab: u64,
    took: Duration,
}

impl Passed {
    /// The datagrams that did not arrive exactly once, and the sessions that were lost.
    pub(super) fn wrong(&self) -> u64 {
        self.lost + self.doubled + self.moved
    }

    /// The datagrams that were sent in a second.
    pub(super) fn rate(&self) -> f64 {
        self.sent as f64 / self.took.as_secs_f64().max(0.001)
    }
}

/// The two ends.
pub(super) struct Datagrams<'p> {
    place: &'p Place,
    clients: Vec<UdpSocket>,
    server: UdpSocket,
    /// The number of the next datagram.
    next: u64,
    /// The source port of each session, as the server sees it.
    ports: [Option<u16>; SESSIONS],
}

impl<'p> Datagrams<'p> {
    pub(super) fn open(place: &'p Place) -> Result<Self> {
        let server = place
            .servers
            .inside(|| UdpSocket::bind((STREAMS_SERVER, PORT)))?
            .context("cannot receive datagrams")?;
        setsockopt(&server, sockopt::RcvBufForce, &RECEIVE_BUFFER).context("cannot enlarge a socket")?;
        server.set_read_timeout(Some(Duration::from_millis(50))).context("cannot set a timeout")?;
        let client = || -> io::Result<UdpSocket> {
            let socket = UdpSocket::bind((STREAMS_CLIENT, 0))?;
            socket.connect((ROUTER, PORT))?;
            Ok(socket)
        };
        let clients = place
            .clients
            .inside(|| (0..SESSIONS).map(|_| client()).collect::<io::Result<Vec<_>>>())?
            .context("cannot send datagrams")?;
        Ok(Self { place, clients, server, next: 0, ports: [None; SESSIONS] })
    }

    /// Sends at this rate while `work` goes on, and returns what became of the datagrams, and the
    /// result of the work.
    pub(super) fn during<T>(&mut self, rate: u32, work: impl FnOnce() -> Result<T>) -> Result<(Passed, T)> {
        let before = dropped_by_the_lab(self.place)?;
        let first = self.next;
        let (arrived, over, done) = (AtomicU64::new(first), AtomicBool::new(false), AtomicU64::new(u64::MAX));
        let (clients, server, ports) = (&self.clients, &self.server, &mut self.ports);
        let (mut passed, end, result) = thread::scope(|scope| {
            let receiver = scope.spawn(|| receive(server, first, &arrived, &done, ports));
            let sender = scope.spawn(|| {
                let sent = send(clients, first, rate, &arrived, &over);
                done.store(sent.as_ref().map_or(first, |(end, _)| *end), Ordering::Release);
                sent
            });
            let result = work();
            over.store(true, Ordering::Relaxed);
            let sent = sender.join().map_err(|_| anyhow!("the sender has panicked"))?;
            let passed = receiver.join().map_err(|_| anyhow!("the receiver has panicked"))?;
            let (end, took) = sent.context("the datagrams' sender has failed")?;
            let passed = Passed { took, ..passed.context("the datagrams' receiver has failed")? };
            Ok::<_, anyhow::Error>((passed, end, result))
        })?;
        self.next = end;
        passed.dropped_by_the_lab = dropped_by_the_lab(self.place)? - before;
        Ok((passed, result?))
    }
}

/// Sends until it is over. Returns the number after the last one's, and the time that it took.
fn send(
    sockets: &[UdpSocket],
    first: u64,
    rate: u32,
    arrived: &AtomicU64,
    over: &AtomicBool,
) -> Result<(u64, Duration)> {
    let began = Instant::now();
    let (mut next, mut given_up, mut due_from) = (first, first, began);
    let mut due_before = first;
    let mut progress = (first, began);
    let mut packets = [[0; LENGTH]; BATCH];
    let mut turn = 0;
    while !over.load(Ordering::Relaxed) {
        let now = Instant::now();
        let seen = arrived.load(Ordering::Acquire);
        if seen != progress.0 {
            progress = (seen, now);
        } else if now - progress.1 > PATIENCE {
            given_up = next;
            progress.1 = now;
        }
        let due = due_before + (now - due_from).as_nanos() as u64 * u64::from(rate) / 1_000_000_000;
        if due.saturating_sub(next)
            > u64::from(rate) * MOST_LATE.as_micros() as u64 / 1_000_000 + BATCH as u64
        {
            (due_before, due_from) = (next, now);
        }
        let room = UNDER_WAY.saturating_sub(next - seen.max(given_up).min(next));
        let count = due.saturating_sub(next).min(room).min(BATCH as u64) as usize;
        if count == 0 {
            thread::sleep(TURN);
            continue;
        }
        for (number, packet) in (next..).zip(&mut packets[..count]) {
            packet[..8].copy_from_slice(&number.to_be_bytes());
            packet[8] = turn as u8;
        }
        next += send_all(&sockets[turn], &mut packets[..count])? as u64;
        turn = (turn + 1) % sockets.len();
    }
    Ok((next, began.elapsed()))
}

/// Sends datagrams by one system call. Returns how many were sent.
fn send_all(socket: &UdpSocket, packets: &mut [[u8; LENGTH]]) -> Result<usize> {
    // SAFETY: plain C structures of numbers and pointers, for which zero is a value.
    let (mut vectors, mut headers): ([libc::iovec; BATCH], [libc::mmsghdr; BATCH]) =
        unsafe { (mem::zeroed(), mem::zeroed()) };
    for ((packet, vector), header) in packets.iter_mut().zip(&mut vectors).zip(&mut headers) {
        *vector = libc::iovec { iov_base: packet.as_mut_ptr().cast(), iov_len: packet.len() };
        header.msg_hdr.msg_iov = vector;
        header.msg_hdr.msg_iovlen = 1;
    }
    // SAFETY: the headers lead to vectors and packets that outlive the call, and are as many.
    let sent =
        unsafe { libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), packets.len() as libc::c_uint, 0) };
    if sent >= 0 {
        return Ok(sent as usize);
    }
    let error = io::Error::last_os_error();
    if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) {
        return Ok(0);
    }
    Err(error).context("cannot send datagrams")
}

/// Receives until everything has arrived that was sent up to `done`, or nothing comes any more.
fn receive(
    socket: &UdpSocket,
    first: u64,
    arrived: &AtomicU64,
    done: &AtomicU64,
    ports: &mut [Option<u16>; SESSIONS],
) -> Result<Passed> {
    let mut passed = Passed::default();
    let mut seen: Vec<u64> = Vec::new();
    let (mut count, mut next) = (0, first);
    let (mut last, mut is_first) = (Instant::now(), true);
    let mut buffers = [[0_u8; LENGTH]; BATCH];
    // SAFETY: plain C structures of numbers and pointers, for which zero is a value.
    let mut names: [libc::sockaddr_in; BATCH] = unsafe { mem::zeroed() };
    loop {
        // SAFETY: as above.
        let (mut vectors, mut headers): ([libc::iovec; BATCH], [libc::mmsghdr; BATCH]) =
            unsafe { (mem::zeroed(), mem::zeroed()) };
        for (((buffer, vector), header), name) in
            buffers.iter_mut().zip(&mut vectors).zip(&mut headers).zip(&mut names)
        {
            *vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_name = (&raw mut *name).cast();
            header.msg_hdr.msg_namelen = size_of_val(name) as libc::socklen_t;
        }
        // SAFETY: the headers lead to vectors, buffers and names that outlive the call, and are as
        // many.
        let got = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                BATCH as libc::c_uint,
                libc::MSG_WAITFORONE,
                std::ptr::null_mut(),
            )
        };
        let now = Instant::now();
        if got < 0 {
            let error = io::Error::last_os_error();
            if !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) {
                return Err(error).context("cannot receive datagrams");
            }
        } else {
            // Before the first one, nothing was sent for a while.
            if !is_first {
                passed.longest_gap = passed.longest_gap.max(now - last);
            }
            (last, is_first) = (now, false);
            for (buffer, name) in buffers.iter().zip(&names).take(got as usize) {
                let number = buffer.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
                let port = u16::from_be(name.sin_port);
                if let Some(known) = ports.get_mut(usize::from(buffer[8]))
                    && known.replace(port).is_some_and(|before| before != port)
                {
                    passed.moved += 1;
                }
                // A late one of an earlier phase counts as lost there.
                let Some(index) = number.checked_sub(first) else { continue };
                let (word, bit) = ((index / 64) as usize, 1 << (index % 64));
                if word >= seen.len() {
                    seen.resize(word + 1, 0);
                }
                if seen[word] & bit == 0 {
                    seen[word] |= bit;
                    count += 1;
                } else {
                    passed.doubled += 1;
                }
                if number < next {
                    passed.overtaken += 1;
                }
                next = next.max(number + 1);
            }
            arrived.store(next, Ordering::Release);
        }
        let end = done.load(Ordering::Acquire);
        if end != u64::MAX && (count == end - first || now - last > LAST) {
            passed.sent = end - first;
            passed.lost = passed.sent - count.min(passed.sent);
            return Ok(passed);
        }
    }
}

/// Returns the number of packets that the devices and sockets of the lab have dropped.
fn dropped_by_the_lab(place: &Place) -> Result<u64> {
    let mut sum = 0;
    for namespace in [&place.clients, &place.vnet, &place.servers] {
        let mut ip = Command::new("ip");
        let text = command::run(ip.args(["-n", namespace.name(), "-s", "-j", "link"]))?;
        let links: Value = serde_json::from_str(&text).context("`ip -j` wrote no JSON")?;
        for link in links.as_array().context("`ip -j` wrote no list")? {
            for way in ["rx", "tx"] {
                sum += link["stats64"][way]["dropped"].as_u64().unwrap_or(0);
            }
        }
    }
    Ok(sum + refused_by_sockets(&place.servers)?)
}

/// Returns the number of datagrams for which a socket had no room.
fn refused_by_sockets(namespace: &Namespace) -> Result<u64> {
    let text = namespace.run("cat", &["/proc/net/snmp"])?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Udp:"));
    let names = lines.next().context("/proc/net/snmp has no names for UDP")?;
    let at = names.split_whitespace().position(|name| name == "RcvbufErrors");
    let values = lines.next().context("/proc/net/snmp has no numbers for UDP")?;
    let value = at.and_then(|at| values.split_whitespace().nth(at)).and_then(|value| value.parse().ok());
    value.context("/proc/net/snmp has no RcvbufErrors")
}
