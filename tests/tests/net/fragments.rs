//! Datagrams in fragments, in the wrong order.

use std::{
    net::{SocketAddr, SocketAddrV4, UdpSocket},
    time::Instant,
};

use anyhow::ensure;
use lab::{
    Lab,
    addresses::{ECHO_PORT, PLS_NAT, ROUTER, SERVERLESS},
    client::{Tcp, send_fragments},
    flood::Flood,
    wait,
    witness::Witness,
};
use router_user::model::Status;

use crate::common::{ECHO, LIMIT, check, counters, reason};

lab_tests! {
    any: [datagrams_arrive_in_any_order_of_their_fragments],
    pls_router: [early_fragments_are_held, a_flood_of_fragments_does_not_affect_others],
}

/// The largest there is: 65535 bytes less 20 of IPv4 and 8 of UDP.
const LARGEST: usize = 65507;

/// A socket of the Private Link Service, whose datagrams are not reassembled before the router.
pub(crate) struct Client<'a> {
    lab: &'a Lab,
    socket: UdpSocket,
    address: SocketAddrV4,
    identification: u16,
}

impl<'a> Client<'a> {
    #[track_caller]
    pub(crate) fn open(lab: &'a Lab) -> Self {
        let socket = check(lab.hosts.pls.inside(|| UdpSocket::bind((PLS_NAT[0], 0)))).expect("a socket");
        socket.set_read_timeout(Some(LIMIT)).expect("a timeout");
        let Ok(SocketAddr::V4(address)) = socket.local_addr() else { panic!("no address") };
        Self { lab, socket, address, identification: 0 }
    }

    /// Sends a datagram in fragments to the echo server; what it says, and how many fragments there
    /// were.
    #[track_caller]
    pub(crate) fn send(
        &mut self,
        length: usize,
        arrange: impl FnOnce(&mut Vec<Vec<u8>>),
    ) -> (Vec<u8>, usize) {
        self.identification += 1;
        let datagram: Vec<u8> = (0..length)
            .map(|index| (index * 31 + index / 251 + usize::from(self.identification)) as u8)
            .collect();
        let target = SocketAddrV4::new(ROUTER, ECHO_PORT);
        let what = (self.identification, &datagram[..]);
        let sent = check(send_fragments(&self.lab.hosts.pls, self.address, target, what, arrange));
        (datagram, sent)
    }

    /// Sends a datagram as [`send`](Self::send) does, and waits for it to come back; how many
    /// fragments there were.
    #[track_caller]
    pub(crate) fn echo(&mut self, length: usize, arrange: impl FnOnce(&mut Vec<Vec<u8>>)) -> usize {
        let (datagram, sent) = self.send(length, arrange);
        let mut answer = vec![0; 65536];
        let received = self.socket.recv(&mut answer);
        let received = received.unwrap_or_else(|error| panic!("{length} bytes in {sent} fragments: {error}"));
        assert!(answer[..received] == datagram, "{length} bytes in {sent} fragments came back as others");
        sent
    }
}

fn datagrams_arrive_in_any_order_of_their_fragments(lab: &mut Lab) {
    let witness = check(Witness::start(lab));
    let mut client = Client::open(lab);
    for length in [1473, 3000, 9000, 30_001, LARGEST] {
        client.echo(length, |_| {});
        client.echo(length, |fragments| fragments.reverse());
        client.echo(length, |fragments| fragments.rotate_left(1));
        // Every other one from the second on, then the rest.
        client.echo(length, |fragments| {
            let mut index = 0;
            fragments.sort_by_cached_key(|_| {
                index += 1;
                index % 2
            });
        });
    }
    check(witness.finish());
}

/// The first datagram of a session, and later ones.
fn early_fragments_are_held(lab: &mut Lab) {
    let mut client = Client::open(lab);
    let before = counters(lab);
    let mut early = 0;
    for _ in 0..20 {
        early += client.echo(9000, |fragments| fragments.reverse()) - 1;
    }
    let after = counters(lab);
    assert_eq!(reason(&after, "fragment_early") - reason(&before, "fragment_early"), early as u64);
    assert_eq!(reason(&after, "fragment_bad"), reason(&before, "fragment_bad"));
}

/// Two other sources flood at full speed, one of them unknown to all rules. Datagrams in the worst
/// order still arrive, and other traffic goes on.
fn a_flood_of_fragments_does_not_affect_others(lab: &mut Lab) {
    let mut client = Client::open(lab);
    client.echo(9000, |fragments| fragments.reverse());
    let floods = [
        check(Flood::of_early_fragments(&lab.hosts.pls, SERVERLESS, ROUTER)),
        check(Flood::of_early_fragments(&lab.hosts.pls, PLS_NAT[1], ROUTER)),
    ];
    let started = Instant::now();
    check(wait::until("the flood to come in", LIMIT, || {
        let early = reason(&counters(lab), "fragment_early");
        ensure!(early > 10_000, "{early} of {}", floods[0].sent() + floods[1].sent());
        Ok(())
    }));
    for _ in 0..10 {
        client.echo(9000, |fragments| fragments.reverse());
        let mut tcp = check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT));
        check(tcp.echo(b"meanwhile", LIMIT));
    }
    let status: Status = check(lab.pls_router_json(&["status"]));
    assert!(status.healthy, "{status:#?}");
    let sent = floods[0].sent() + floods[1].sent();
    println!(
        "{:.0} early fragments a second; {:?}",
        sent as f64 / started.elapsed().as_secs_f64(),
        status.punts
    );
}
