//! With name servers of our own on loopback.

use std::{
    collections::HashMap,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex},
};

use hickory_resolver::proto::{
    op::{Message, OpCode, ResponseCode},
    rr::{Name, RData, Record, rdata},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, UdpSocket},
    task::JoinSet,
};

use super::*;
use crate::daemon::sync::lock;

/// A server's answer for a name.
#[derive(Clone)]
enum Says {
    /// These records.
    Records(Vec<Record>),
    /// Too much for a datagram: only over TCP what there is.
    OnlyByTcp(Vec<Record>),
    /// These records, but only to a client that asks without EDNS.
    OnlyPlain(Vec<Record>),
    /// This, and no record.
    Code(ResponseCode),
    Silence,
    /// These bytes after the header of an answer that claims this number of records.
    Damaged(u16, Vec<u8>),
}

/// A name server; it ends when this is dropped. What it does not know, it says, does not exist.
struct Server {
    address: SocketAddr,
    zone: Arc<Mutex<HashMap<String, Says>>>,
    /// The names it was asked for, over TCP with `tcp:` in front.
    asked: Arc<Mutex<Vec<String>>>,
    /// The ports that datagrams came from.
    ports: Arc<Mutex<Vec<u16>>>,
    _tasks: JoinSet<()>,
}

impl Server {
    async fn new() -> Self {
        Self::at("127.0.0.1:0").await
    }

    async fn at(address: &str) -> Self {
        // A port that is free for both protocols: another process may have the one for datagrams.
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind(address).await.expect("loopback has free ports");
            let taken = udp.local_addr().expect("it is bound");
            match TcpListener::bind(taken).await {
                Ok(tcp) => break (udp, tcp),
                Err(error) => assert!(address.ends_with(":0"), "{taken}: {error}"),
            }
        };
        let (zone, asked) = <(Arc<Mutex<HashMap<_, _>>>, Arc<Mutex<Vec<_>>>)>::default();
        let ports = Arc::<Mutex<Vec<_>>>::default();
        let address = udp.local_addr().expect("it is bound");
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_udp(udp, zone.clone(), asked.clone(), ports.clone()));
        tasks.spawn(serve_tcp(tcp, zone.clone(), asked.clone()));
        Self { address, zone, asked, ports, _tasks: tasks }
    }

    fn say(&self, name: &str, says: Says) {
        lock(&self.zone).insert(name.to_owned(), says);
    }

    /// Returns the questions since the last call.
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.asked))
    }
}

async fn serve_udp(
    socket: UdpSocket,
    zone: Arc<Mutex<HashMap<String, Says>>>,
    asked: Arc<Mutex<Vec<String>>>,
    ports: Arc<Mutex<Vec<u16>>>,
) {
    let mut buffer = [0; 4096];
    while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
        lock(&ports).push(client.port());
        if let Some(answer) = answer(&buffer[..length], false, &zone, &asked) {
            socket.send_to(&answer, client).await.expect("the client is on loopback");
        }
    }
}

async fn serve_tcp(
    listener: TcpListener,
    zone: Arc<Mutex<HashMap<String, Says>>>,
    asked: Arc<Mutex<Vec<String>>>,
) {
    while let Ok((mut stream, _)) = listener.accept().await {
        while let Ok(length) = stream.read_u16().await {
            let mut query = vec![0; length.into()];
            stream.read_exact(&mut query).await.expect("a query is whole");
            if let Some(answer) = answer(&query, true, &zone, &asked) {
                stream
                    .write_u16(u16::try_from(answer.len()).expect("a short one"))
                    .await
                    .expect("it listens");
                stream.write_all(&answer).await.expect("it listens");
            }
        }
    }
}

fn answer(
    query: &[u8],
    tcp: bool,
    zone: &Mutex<HashMap<String, Says>>,
    asked: &Mutex<Vec<String>>,
) -> Option<Vec<u8>> {
    let query = Message::from_vec(query).expect("the resolver asks in DNS");
    let name = query.queries[0].name().to_string();
    lock(asked).push(format!("{}{name}", if tcp { "tcp:" } else { "" }));
    let says = lock(zone).get(&name).cloned().unwrap_or(Says::Code(ResponseCode::NXDomain));
    let mut answer = Message::response(query.metadata.id, OpCode::Query);
    answer.add_query(query.queries[0].clone());
    answer.metadata.recursion_available = true;
    match says {
        Says::Records(records) => {
            answer.add_answers(records);
        }
        Says::OnlyByTcp(records) if tcp => {
            answer.add_answers(records);
        }
        Says::OnlyPlain(records) if query.edns.is_none() => {
            answer.add_answers(records);
        }
        Says::OnlyPlain(_) => answer.metadata.response_code = ResponseCode::FormErr,
        Says::OnlyByTcp(_) => answer.metadata.truncation = true,
        Says::Code(code) => answer.metadata.response_code = code,
        Says::Silence => return None,
        Says::Damaged(records, bytes) => {
            let mut damaged = answer.to_vec().expect("it can be written");
            // RFC 1035 4.1.1: the number of answers.
            damaged[6..8].copy_from_slice(&records.to_be_bytes());
            damaged.extend(bytes);
            return Some(damaged);
        }
    }
    Some(answer.to_vec().expect("it can be written"))
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).expect("a name")
}

fn a(owner: &str, ttl: u32, address: [u8; 4]) -> Record {
    Record::from_rdata(name(owner), ttl, RData::A(rdata::A(address.into())))
}

/// A resolver with files of its own.
struct Place {
    directory: TempDir,
    resolver: Resolver,
}

impl Place {
    /// Asks these servers, all of them on one port, which the file cannot say.
    fn new(servers: &[&Server], settings: &str) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let port = servers.first().map_or(53, |server| server.address.port());
        let path = |name: &str| -> PathBuf { directory.path().join(name) };
        let files = Files { resolv_conf: path("resolv.conf"), hosts: path("hosts"), port };
        let place = Self { directory, resolver: Resolver::new(files) };
        let addresses: Vec<IpAddr> = servers.iter().map(|server| server.address.ip()).collect();
        place.write_resolv_conf(&addresses, settings);
        place
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.directory.path().join(name), text).expect("the directory is ours");
    }

    fn write_resolv_conf(&self, servers: &[IpAddr], settings: &str) {
        let servers: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
        self.write(
            "resolv.conf",
            &format!("{servers}search corp.example\noptions timeout:1 attempts:1\n{settings}"),
        );
    }

    async fn lookup(&self, name: &str) -> Result<(Vec<[u8; 4]>, u64), String> {
        let Answer { addresses, ttl } = self.resolver.lookup(name).await?;
        Ok((addresses.iter().map(Ipv4Addr::octets).collect(), ttl.as_secs()))
    }
}

#[tokio::test]
async fn an_answer_holds_as_long_as_its_shortest_record() {
    let server = Server::new().await;
    let place = Place::new(&[&server], "");
    let alias = |ttl| {
        let canonical = rdata::CNAME(name("real.example."));
        Record::from_rdata(name("db.example."), ttl, RData::CNAME(canonical))
    };
    let addresses = [a("real.example.", 60, [10, 1, 0, 4]), a("real.example.", 50, [10, 1, 0, 5])];
    server.say("db.example.", Says::Records([vec![alias(300)], addresses.to_vec()].concat()));
    assert_eq!(place.lookup("db.example.").await, Ok((vec![[10, 1, 0, 4], [10, 1, 0, 5]], 50)));
    // A provider's traffic manager moves the alias.
    server.say("db.example.", Says::Records([vec![alias(7)], addresses.to_vec()].concat()));
    assert_eq!(place.lookup("db.example.").await, Ok((vec![[10, 1, 0, 4], [10, 1, 0, 5]], 7)));
    // An alias whose end has to be asked for.
    server.say("db.example.", Says::Records(vec![alias(9)]));
    server.say("real.example.", Says::Records(addresses.to_vec()));
    assert_eq!(place.lookup("db.example.").await, Ok((vec![[10, 1, 0, 4], [10, 1, 0, 5]], 9)));
}

#[tokio::test]
async fn a_truncated_answer_is_asked_for_over_tcp() {
    let server = Server::new().await;
    let place = Place::new(&[&server], "");
    let records: Vec<Record> = (0..200).map(|n| a("many.example.", 20, [10, 1, 1, n])).collect();
    server.say("many.example.", Says::OnlyByTcp(records));
    let (addresses, ttl) = place.lookup("many.example.").await.expect("there is an answer");
    assert_eq!((addresses.len(), ttl), (200, 20));
    assert_eq!(server.asked(), ["many.example.", "tcp:many.example."]);
}

#[tokio::test]
async fn who_knows_of_nothing_is_believed() {
    let (first, second);
    first = Server::new().await;
    second = Server::at(&format!("127.0.0.2:{}", first.address.port())).await;
    let place = Place::new(&[&first, &second], "");
    for server in [&first, &second] {
        server.say("no-a.example.", Says::Code(ResponseCode::NoError));
    }
    assert_eq!(place.lookup("gone.example.").await, Err("there is no such name (NXDOMAIN)".to_owned()));
    assert_eq!(place.lookup("no-a.example.").await, Err("it has no IPv4 address".to_owned()));
    assert_eq!(first.asked(), ["gone.example.", "no-a.example."]);
    assert_eq!(second.asked(), [""; 0]);
}

#[tokio::test]
async fn the_next_server_is_asked_when_one_does_not_know() {
    let first = Server::new().await;
    let second = Server::at(&format!("127.0.0.2:{}", first.address.port())).await;
    let place = Place::new(&[&first, &second], "");
    second.say("db.example.", Says::Records(vec![a("db.example.", 60, [10, 1, 0, 4])]));
    for trouble in [Says::Code(ResponseCode::ServFail), Says::Code(ResponseCode::Refused), Says::Silence] {
        first.say("db.example.", trouble);
        assert_eq!(place.lookup("db.example.").await, Ok((vec![[10, 1, 0, 4]], 60)));
    }
    for (trouble, said) in [
        (Says::Code(ResponseCode::ServFail), "127.0.0.2 answers: "),
        (Says::Silence, "127.0.0.2 does not answer"),
    ] {
        second.say("db.example.", trouble);
        let problem = place.lookup("db.example.").await.expect_err("nobody knows");
        assert!(problem.starts_with(said), "{problem}");
    }
}

/// Also when the answer comes from a server that is listed second, and for every name of the search
/// list.
#[tokio::test]
async fn a_dead_first_server_costs_no_second() {
    let first = Server::new().await;
    let second = Server::at(&format!("127.0.0.2:{}", first.address.port())).await;
    // Five seconds a question, as without any option.
    let place = Place::new(
        &[&first, &second],
        "options timeout:5 attempts:2\nsearch a.example b.example c.example\n",
    );
    for domain in ["a", "b", "c"] {
        first.say(&format!("db.{domain}.example."), Says::Silence);
    }
    first.say("db.example.", Says::Silence);
    second.say("db.example.", Says::Records(vec![a("db.example.", 60, [10, 1, 0, 4])]));
    second.say("db.c.example.", Says::Records(vec![a("db.c.example.", 60, [10, 1, 0, 5])]));
    for (asked, address) in [("db.example.", 4), ("db.example.", 4), ("db", 5), ("db", 5)] {
        let start = Instant::now();
        assert_eq!(place.lookup(asked).await, Ok((vec![[10, 1, 0, address]], 60)));
        let took = start.elapsed();
        assert!(took < Duration::from_secs(1), "{asked} took {took:?}");
    }
    // It was asked each time all the same: it may be back.
    assert!(first.asked().iter().filter(|name| *name == "db.example.").count() >= 2);
    // Without any other, it has its whole time.
    first.say("slow.example.", Says::Silence);
    second.say("slow.example.", Says::Code(ResponseCode::ServFail));
    place.write_resolv_conf(&[first.address.ip(), second.address.ip()], "options timeout:2 attempts:1\n");
    let start = Instant::now();
    assert!(place.lookup("slow.example.").await.is_err());
    assert!(start.elapsed() >= Duration::from_secs(2), "{:?}", start.elapsed());
}

#[tokio::test]
async fn use_vc_asks_by_tcp_alone() {
    let server = Server::new().await;
    let place = Place::new(&[&server], "options use-vc\n");
    server.say("db.example.", Says::Records(vec![a("db.example.", 60, [10, 1, 0, 4])]));
    assert_eq!(place.lookup("db.example.").await, Ok((vec![[10, 1, 0, 4]], 60)));
    assert_eq!(server.asked(), ["tcp:db.example."]);
}

#[tokio::test]
async fn rotate_asks_one_server_after_the_other() {
    let first = Server::new().await;
    let second = Server::at(&format!("127.0.0.2:{}", first.address.port())).await;
    let asked = async |settings| {
        let place = Place::new(&[&first, &second], settings);
        for _ in 0..4 {
            assert!(place.lookup("gone.example.").await.is_err());
        }
        (first.asked().len(), second.asked().len())
    };
    assert_eq!(asked("options rotate\n").await, (2, 2));
    assert_eq!(asked("").await, (4, 0));
}

#[tokio::test]
async fn a_server_that_knows_no_edns_is_asked_without() {
    let server = Server::new().await;
    server.say("db.example.", Says::OnlyPlain(vec![a("db.example.", 60, [10, 1, 0, 4])]));
    for settings in ["options edns0\n", ""] {
        let place = Place::new(&[&server], settings);
        assert_eq!(place.lookup("db.example.").await, Ok((vec![[10, 1, 0, 4]], 60)), "{settings:?}");
    }
    assert_eq!(server.asked().len(), 3);
}

#[tokio::test]
async fn the_search_list_is_for_names_that_are_not_there() {
    let server = Server::new().await;
    let place = Place::new(&[&server], "");
    server.say("db.corp.example.", Says::Records(vec![a("db.corp.example.", 60, [10, 1, 0, 4])]));
    server.say("db.east.corp.example.", Says::Records(vec![a("db.east.corp.example.", 60, [10, 1, 0, 5])]));
    assert_eq!(place.lookup("db").await, Ok((vec![[10, 1, 0, 4]], 60)));
    assert_eq!(server.asked(), ["db.corp.example."]);
    // With a dot, as it is first.
    assert_eq!(place.lookup("db.east").await, Ok((vec![[10, 1, 0, 5]], 60)));
    assert_eq!(server.asked(), ["db.east.", "db.east.corp.example."]);
    place.write_resolv_conf(&[server.address.ip()], "options ndots:2\n");
    assert_eq!(place.lookup("db.east").await, Ok((vec![[10, 1, 0, 5]], 60)));
    assert_eq!(server.asked(), ["db.east.corp.example."]);
    // An absolute name is no other's.
    assert!(place.lookup("db.east.").await.is_err());
    assert_eq!(server.asked(), ["db.east."]);
    // Trouble says nothing of the name: another's address must not be taken for its own.
    server.say("db.east.", Says::Code(ResponseCode::ServFail));
    place.write_resolv_conf(&[server.address.ip()], "");
    assert!(place.lookup("db.east").await.is_err());
    assert_eq!(server.asked(), ["db.east."]);
}

#[tokio::test]
async fn changed_files_are_followed() {
    let first = Server::new().await;
    let second = Server::at(&format!("127.0.0.2:{}", first.address.port())).await;
    first.say("db.example.", Says::Records(vec![a("db.example.", 60, [10, 1, 0, 4])]));
    second.say("db.example.", Says::Records(vec![a("db.example.", 60, [10, 1, 0, 5])]));
    let place = Place::new(&[&first], "");
    assert_eq!(place.lookup("db.example").await, Ok((vec![[10, 1, 0, 4]], 60)));
    place.write_resolv_conf(&[second.address.ip()], "");
    assert_eq!(place.lookup("db.example").await, Ok((vec![[10, 1, 0, 5]], 60)));
    place.write("hosts", "10.1.0.6 db.example # by hand\n");
    assert_eq!(place.lookup("db.example").await.map(|(addresses, _)| addresses), Ok(vec![[10, 1, 0, 6]]));
    assert_eq!((first.asked().len(), second.asked().len()), (1, 1));
}

/// Any other port could be one that a new session gets, and the answer would be taken for that
/// session's.
#[tokio::test]
async fn queries_come_from_the_kernel_s_own_ports() {
    let server = Server::new().await;
    let place = Place::new(&[&server], "");
    for _ in 0..50 {
        assert!(place.lookup("gone.example.").await.is_err());
    }
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").expect("Linux has it");
    let range: Vec<u16> = range.split_whitespace().map(|port| port.parse().expect("a port")).collect();
    let ports = lock(&server.ports).clone();
    assert_eq!(ports.len(), 50);
    assert!(ports.iter().all(|port| (range[0]..=range[1]).contains(port)), "{range:?}: {ports:?}");
}

#[test]
fn without_a_server_azure_s_own_is_asked() {
    for text in ["", "search corp.example\noptions timeout:2\n", "nameserver nonsense\n"] {
        let (config, options) = resolver::parse(text.as_bytes()).expect("there is always one");
        let servers: Vec<_> = config.name_servers().iter().map(|server| server.ip.to_string()).collect();
        assert_eq!(servers, ["168.63.129.16"], "{text:?}");
        if text.starts_with("search") {
            assert_eq!(config.search(), [name("corp.example")]);
            assert_eq!(options.timeout, Duration::from_secs(2));
        }
    }
}

fn answer_of(addresses: &[[u8; 4]], ttl: u64) -> Result<Good, String> {
    let addresses = addresses.iter().copied().map(Ipv4Addr::from).collect();
    Ok(Good { choice: choose(addresses, &OwnAddresses::default())?, ttl: Duration::from_secs(ttl) })
}

/// A server that an attacker controls. For any answer of it, the name keeps its last good answer or
/// gets one that can be used, and the messages about it are short and harmless.
#[tokio::test]
async fn a_hostile_server_gets_nothing_but_its_own_name() {
    let server = Server::new().await;
    let place = Place::new(&[&server], "");
    let alias = |owner: &str, canonical: &str| {
        let canonical =
            Name::from_labels(canonical.split('.').map(str::as_bytes)).expect("a name of any bytes");
        Record::from_rdata(name(owner), 60, RData::CNAME(rdata::CNAME(canonical)))
    };
    let text = |length: usize| {
        let text = rdata::TXT::from_bytes(vec![&vec![0x1b; length]]);
        Record::from_rdata(name("evil.example."), 60, RData::TXT(text))
    };
    let many = |records: u32, ttl| -> Vec<Record> {
        let address = |n: u32| (0x0a09_0000 + n).to_be_bytes();
        (0..records).map(|n| a("evil.example.", ttl, address(n))).collect()
    };
    let own = OwnAddresses { own: [Ipv4Addr::new(10, 0, 2, 68)].into(), ..OwnAddresses::default() };
    let start = Instant::now();
    let mut known = Resolved::unknown(start);
    known.note(answer_of(&[[203, 0, 113, 10]], 60), start, 0.0);
    let good = |addresses: usize| Some(addresses);
    for (says, used, what) in [
        (Says::Records(many(20, 0)), good(20), "that holds for no time"),
        (Says::Records(many(1, 1 << 31)), good(1), "that holds for ever"),
        (Says::OnlyByTcp(many(1000, 60)), good(32), "a thousand"),
        (Says::Records(vec![a("evil.example.", 60, [10, 0, 2, 68])]), None, "our own"),
        (Says::Records(vec![alias("evil.example.", "evil.example")]), None, "an alias of itself"),
        (
            Says::Records(vec![alias("evil.example.", "\x1b[2J\r\n.\u{202e}.example")]),
            None,
            "an alias of odd bytes",
        ),
        (Says::Records(vec![text(255); 10]), None, "other records"),
        (Says::OnlyByTcp(vec![text(255); 200]), None, "many other records"),
        (Says::Damaged(60_000, vec![0xc0; 400]), None, "what is no answer"),
        (Says::Damaged(1, vec![0x1b; 300]), None, "what is no answer either"),
        (Says::Damaged(0, Vec::new()), None, "nothing"),
        (Says::Code(ResponseCode::Unknown(4095)), None, "an unknown code"),
        (Says::Code(ResponseCode::NXDomain), None, "no such name"),
        (Says::Code(ResponseCode::ServFail), None, "a failure"),
    ] {
        server.say("evil.example.", says);
        let asked = Instant::now();
        let answer = place.resolver.lookup("evil.example.").await;
        assert!(asked.elapsed() < Duration::from_secs(3), "{what}: {:?}", asked.elapsed());
        let outcome =
            answer.and_then(|Answer { addresses, ttl }| Ok(Good { choice: choose(addresses, &own)?, ttl }));
        let mut resolved = known.clone();
        resolved.note(outcome, start, 0.0);
        let problem = resolved.problem.clone().unwrap_or_default();
        assert_eq!(problem.is_empty(), used.is_some(), "{what}: {problem}");
        assert_eq!(resolved.addresses.len(), used.unwrap_or(1), "{what}: {problem}");
        if used.is_none() {
            assert_eq!(resolved.addresses, known.addresses, "{what}: {problem}");
        }
        assert!(
            problem.len() <= 200 && !problem.contains(|c: char| !(' '..='~').contains(&c)),
            "{problem:?}"
        );
        let wait = resolved.next - start;
        assert!((Duration::from_secs(3)..=Duration::from_secs(330)).contains(&wait), "{what}: {wait:?}");
    }
}

#[test]
fn what_is_told_of_a_failure_is_short_and_harmless() {
    let start = Instant::now();
    let mut name = Resolved::unknown(start);
    name.note(Err(format!("cannot ask 10.0.0.1: \x1b]0;{}\u{7}\n", "x".repeat(70_000))), start, 0.0);
    let problem = name.problem.expect("it has failed");
    assert!(problem.starts_with("cannot ask 10.0.0.1: ?]0;xxx") && problem.len() == 200);
}

#[test]
fn failures_keep_the_last_good_answer() {
    let start = Instant::now();
    let at = |second| start + Duration::from_secs(second);
    let mut name = Resolved::unknown(start);
    let nothing = Noted { moved: false, recovered: false };
    assert_eq!(name.note(answer_of(&[[10, 1, 0, 4]], 60), at(0), 0.0), Noted { moved: true, ..nothing });
    assert_eq!(name.next, at(60));
    let gone = || Err("there is no such name (NXDOMAIN)".to_owned());
    assert_eq!(name.note(gone(), at(60), 0.0), nothing);
    assert_eq!(name.next, at(63));
    assert_eq!(name.note(gone(), at(63), 0.0), nothing);
    assert_eq!(name.next, at(69));
    assert_eq!(name.note(Err("10.0.0.1 does not answer".to_owned()), at(69), 0.0), nothing);
    assert_eq!(name.addresses, [Ipv4Addr::new(10, 1, 0, 4)]);
    assert_eq!((name.since, name.ttl), (start, Some(Duration::from_secs(60))));
    // It is back, and has moved.
    assert_eq!(
        name.note(answer_of(&[[10, 1, 0, 5]], 2), at(81), 0.0),
        Noted { moved: true, recovered: true }
    );
    assert_eq!((name.addresses.as_slice(), name.next), ([Ipv4Addr::new(10, 1, 0, 5)].as_slice(), at(86)));
    assert_eq!((name.since, name.problem.as_deref()), (at(81), None));
    assert_eq!(name.note(gone(), at(86), 0.0), nothing);
    assert_eq!(name.next, at(89), "the retries start over");
}

#[test]
fn jitter_is_within_bounds_and_changes() {
    let jitter: Vec<f64> = (0..20).map(|_| jitter()).collect();
    assert!(jitter.iter().all(|jitter| (0.0..=1.0).contains(jitter)), "{jitter:?}");
    assert!(jitter.windows(2).any(|pair| pair[0] != pair[1]), "{jitter:?}");
}
