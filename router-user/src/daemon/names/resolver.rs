//! Asks the system's name servers, as the system is configured now.
//!
//! One name after the other of the search list, and one server after the other in the order of the
//! file, as resolv.conf(5) has it, but for how long a server is waited for (`turns`). Of its
//! options, `ndots`, `timeout`, `attempts`, `rotate`, `use-vc` and `edns0` are heeded; the
//! others are about other records or other families. That is done here, with a resolver of
//! hickory's per server: with several, it asks two at once, which answers by chance where only one
//! knows a private zone; made to ask one after the other, it spends all the time there is on the
//! first; and it goes on in the search list after a failure that says nothing of the name.

use std::{
    fmt, fs,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use hickory_resolver::{
    Hosts, TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    lookup::Lookup,
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::{
        op::{Query, ResponseCode},
        rr::{Name, RecordType},
    },
    system_conf::parse_resolv_conf,
};
use router_common::address::AZURE_PLATFORM;
use tokio::time::{sleep_until, timeout};
use tracing::{info, warn};

use super::turns::{Step, Turns};
use crate::daemon::sync::lock;

/// The time that a server may take, whatever `timeout` says: resolv.conf(5) has the upper one, and
/// 0 s would be no time at all.
const PATIENCE: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(30);
/// The time for which nothing waits for a server that did not answer in time.
const SILENCE: Duration = Duration::from_secs(30);

/// There is a name without what is needed of it.
pub(super) const NO_ADDRESS: &str = "it has no IPv4 address";

/// The records of a name.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Answer {
    /// The addresses, as they came.
    pub(super) addresses: Vec<Ipv4Addr>,
    /// The time to live: the shortest time among the records, those of aliases included.
    pub(super) ttl: Duration,
}

/// The files that name the servers.
#[derive(Clone, Debug)]
pub(super) struct Files {
    pub(super) resolv_conf: PathBuf,
    pub(super) hosts: PathBuf,
    /// The port that name servers listen on; the files cannot say.
    pub(super) port: u16,
}

impl Default for Files {
    fn default() -> Self {
        Self { resolv_conf: "/etc/resolv.conf".into(), hosts: "/etc/hosts".into(), port: 53 }
    }
}

/// Resolves names by files that may change at any time: a DHCP renewal needs no restart.
pub(super) struct Resolver {
    files: Files,
    current: Mutex<Option<Arc<Servers>>>,
}

impl Resolver {
    pub(super) fn new(files: Files) -> Self {
        Self { files, current: Mutex::default() }
    }

    /// The IPv4 addresses of a name. A final dot makes it absolute; other names go through the
    /// search list.
    ///
    /// # Errors
    /// When there is no answer, or none with an address; in words for the operator.
    pub(super) async fn lookup(&self, name: &str) -> Result<Answer, String> {
        let name = Name::from_ascii(name).map_err(|error| format!("not a DNS name: {error}"))?;
        self.servers()?.lookup(&name).await
    }

    /// Returns the name servers to ask now. The files are small and names are asked for rarely, so
    /// they are read every time and compared: what `stat` says of them misses two changes within
    /// one tick of the file system's clock.
    fn servers(&self) -> Result<Arc<Servers>, String> {
        let read = |path: &PathBuf| fs::read(path).unwrap_or_default();
        let text = Text { resolv_conf: read(&self.files.resolv_conf), hosts: read(&self.files.hosts) };
        let mut current = lock(&self.current);
        match &*current {
            Some(servers) if servers.text == text => Ok(servers.clone()),
            _ => {
                let servers = Arc::new(Servers::new(text, self.files.port)?);
                *current = Some(servers.clone());
                Ok(servers)
            }
        }
    }
}

/// The contents of the files.
#[derive(PartialEq)]
struct Text {
    resolv_conf: Vec<u8>,
    hosts: Vec<u8>,
}

/// The name servers of one state of the files.
struct Servers {
    text: Text,
    hosts: Hosts,
    servers: Vec<Server>,
    search: Vec<Name>,
    /// A name with this many dots is tried as it is first.
    dots: usize,
    /// The time that one server may take.
    patience: Duration,
    /// Rounds in which all of them are asked.
    attempts: usize,
    /// The server that comes first next time; always the same one without `rotate`.
    first: AtomicUsize,
    rotate: bool,
}

impl Servers {
    fn new(text: Text, port: u16) -> Result<Self, String> {
        let (config, options) = parse(&text.resolv_conf)?;
        let mut hosts = Hosts::default();
        if let Err(error) = hosts.read_hosts_conf(text.hosts.as_slice()) {
            warn!("cannot read the hosts file to its end: {error}");
        }
        let (domain, mut search, servers) = config.into_parts();
        if search.is_empty() {
            search.extend(domain);
        }
        let Flags { use_tcp, rotate } = Flags::of(&text.resolv_conf);
        let server = |NameServerConfig { ip, .. }| Server::new(ip, port, &options, use_tcp);
        Ok(Self {
            text,
            hosts,
            servers: servers.into_iter().map(server).collect::<Result<_, String>>()?,
            search,
            dots: options.ndots,
            patience: options.timeout.clamp(*PATIENCE.start(), *PATIENCE.end()),
            attempts: options.attempts.max(1),
            first: AtomicUsize::new(0),
            rotate,
        })
    }

    async fn lookup(&self, name: &Name) -> Result<Answer, String> {
        if let Some(lookup) = self.hosts.lookup_static_host(&Query::query(name.clone(), RecordType::A)) {
            return answer(&lookup).map_err(|nothing| nothing.to_string());
        }
        let mut nothing = Nothing::NoSuchName;
        for name in self.candidates(name) {
            match self.ask(&name).await? {
                Ok(answer) => return Ok(answer),
                // The more useful outcome: the name exists.
                Err(Nothing::NoAddress) => nothing = Nothing::NoAddress,
                Err(Nothing::NoSuchName) => {}
            }
        }
        Err(nothing.to_string())
    }

    /// Returns the names to try, in order (resolv.conf(5), `search` and `ndots`).
    fn candidates(&self, name: &Name) -> Vec<Name> {
        let mut absolute = name.clone();
        absolute.set_fqdn(true);
        if name.is_fqdn() {
            return vec![absolute];
        }
        let dots = usize::from(name.num_labels()).saturating_sub(1);
        let found = self.search.iter().filter_map(|domain| {
            let mut found = name.clone().append_domain(domain).ok()?;
            found.set_fqdn(true);
            Some(found)
        });
        let mut candidates: Vec<Name> = found.collect();
        candidates.insert(if dots >= self.dots { 0 } else { candidates.len() }, absolute);
        candidates
    }

    /// Asks the servers for an absolute name, as often as `attempts` says, until one knows, be it
    /// that there is nothing.
    ///
    /// # Errors
    /// When none knows. What the name stands for is then not known either: nothing else may be
    /// tried in its place.
    async fn ask(&self, name: &Name) -> Result<Result<Answer, Nothing>, String> {
        let mut problem = "there is no name server to ask".to_owned();
        for _ in 0..self.attempts {
            match self.ask_each(name).await {
                Ok(known) => return Ok(known),
                Err(Some(why)) => problem = why,
                Err(None) => {}
            }
        }
        Err(problem)
    }

    /// Asks every server once, in turns. Fails with what the last one in the order of the file has
    /// said.
    async fn ask_each(&self, name: &Name) -> Result<Result<Answer, Nothing>, Option<String>> {
        let servers = self.in_turn();
        let silent = |server: &&Server| server.is_silent(Instant::now());
        let mut turns = Turns::new(servers.iter().map(silent));
        let mut asked = FuturesUnordered::new();
        let mut problems: Vec<Option<String>> = vec![None; servers.len()];
        loop {
            match turns.step(Instant::now()) {
                Step::Ask(turn) => {
                    let question = servers.get(turn).map(|server| server.ask(name, self.patience));
                    asked.extend(question.map(|question| async move { (turn, question.await) }));
                }
                Step::Wait(until) => {
                    let soon = async {
                        match until {
                            Some(until) => sleep_until(until.into()).await,
                            None => std::future::pending().await,
                        }
                    };
                    tokio::select! {
                        Some((turn, said)) = asked.next() => match said {
                            Ok(known) => turns.said(turn, Some(known)),
                            Err(problem) => {
                                turns.said(turn, None);
                                if let Some(place) = problems.get_mut(turn) {
                                    *place = Some(problem);
                                }
                            }
                        },
                        () = soon => {}
                    }
                }
                Step::Take(known, waited_for) => {
                    for server in waited_for.into_iter().filter_map(|turn| servers.get(turn)) {
                        server.note_silence(Instant::now());
                    }
                    return Ok(known);
                }
                Step::Fail => return Err(problems.into_iter().flatten().last()),
            }
        }
    }

    /// The servers in the order of asking.
    fn in_turn(&self) -> Vec<&Server> {
        let first = if self.rotate { self.first.fetch_add(1, Ordering::Relaxed) } else { 0 };
        let (after, before) =
            self.servers.split_at(first.checked_rem(self.servers.len()).unwrap_or_default());
        before.iter().chain(after).collect()
    }
}

/// The options that hickory does not read.
struct Flags {
    /// `use-vc`
    use_tcp: bool,
    rotate: bool,
}

impl Flags {
    fn of(resolv_conf: &[u8]) -> Self {
        let (config, _already_told) = resolv_conf::Config::parse_with_errors(resolv_conf);
        Self { use_tcp: config.use_vc, rotate: config.rotate }
    }
}

/// One name server.
struct Server {
    ip: IpAddr,
    resolver: TokioResolver,
    /// With `edns0`: for a server that takes the extension for a mistake (RFC 6891 section 7).
    plain: Option<TokioResolver>,
    /// Until when nothing waits for it.
    silent: Mutex<Option<Instant>>,
}

impl Server {
    fn new(ip: IpAddr, port: u16, options: &ResolverOpts, use_tcp: bool) -> Result<Self, String> {
        let mut plain = options.clone();
        plain.edns0 = false;
        Ok(Self {
            ip,
            resolver: resolver(ip, port, options.clone(), use_tcp)?,
            plain: options.edns0.then(|| resolver(ip, port, plain, use_tcp)).transpose()?,
            silent: Mutex::default(),
        })
    }

    /// Asks it once.
    async fn ask(&self, name: &Name, patience: Duration) -> Result<Result<Answer, Nothing>, String> {
        let ip = self.ip;
        let asked = match timeout(patience, self.look_up(name)).await.unwrap_or(Err(NetError::Timeout)) {
            Err(NetError::Timeout) => {
                self.note_silence(Instant::now());
                return Err(format!("{ip} does not answer"));
            }
            asked => asked,
        };
        *lock(&self.silent) = None;
        match asked {
            Ok(lookup) => Ok(answer(&lookup)),
            Err(NetError::Dns(DnsError::NoRecordsFound(found))) => {
                let there = found.response_code != ResponseCode::NXDomain;
                Ok(Err(if there { Nothing::NoAddress } else { Nothing::NoSuchName }))
            }
            Err(NetError::Dns(DnsError::ResponseCode(code))) => Err(format!("{ip} answers: {code}")),
            Err(error) => Err(format!("cannot ask {ip}: {error}")),
        }
    }

    async fn look_up(&self, name: &Name) -> Result<Lookup, NetError> {
        let looked_up = self.resolver.lookup(name.clone(), RecordType::A).await;
        match (&looked_up, &self.plain) {
            (
                Err(NetError::Dns(DnsError::ResponseCode(ResponseCode::FormErr | ResponseCode::NotImp))),
                Some(plain),
            ) => plain.lookup(name.clone(), RecordType::A).await,
            _ => looked_up,
        }
    }

    fn is_silent(&self, now: Instant) -> bool {
        lock(&self.silent).is_some_and(|until| now < until)
    }

    fn note_silence(&self, now: Instant) {
        let was = lock(&self.silent).replace(now + SILENCE);
        if was.is_none() {
            warn!(server = %self.ip, "the name server does not answer in time: others are asked at the same time");
        }
    }
}

/// A resolver that asks one server once.
fn resolver(
    ip: IpAddr,
    port: u16,
    mut options: ResolverOpts,
    use_tcp: bool,
) -> Result<TokioResolver, String> {
    let at_port = |mut connection: ConnectionConfig| {
        connection.port = port;
        connection
    };
    let udp = (!use_tcp).then(ConnectionConfig::udp);
    let connections = udp.into_iter().chain([ConnectionConfig::tcp()]).map(at_port).collect();
    let config = ResolverConfig::from_name_servers(vec![NameServerConfig::new(ip, true, connections)]);
    // Retries are up to the caller, which knows the answer's time.
    options.cache_size = 0;
    options.attempts = 0;
    options.use_hosts_file = ResolveHosts::Never;
    // The kernel keeps to `ip_local_port_range`, which the ports of new sessions are kept apart
    // from.
    options.os_port_selection = true;
    TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        .with_options(options)
        .build()
        .map_err(|error| format!("cannot ask {ip}: {error}"))
}

/// A server's answer that there is no address.
#[derive(Clone, Copy, Debug)]
enum Nothing {
    NoSuchName,
    NoAddress,
}

impl fmt::Display for Nothing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSuchName => "there is no such name (NXDOMAIN)",
            Self::NoAddress => NO_ADDRESS,
        })
    }
}

fn answer(lookup: &Lookup) -> Result<Answer, Nothing> {
    let records = lookup.answers();
    let addresses: Vec<Ipv4Addr> =
        records.iter().filter_map(|record| record.data.ip_addr()).filter_map(ipv4).collect();
    if addresses.is_empty() {
        return Err(Nothing::NoAddress);
    }
    let ttl = records.iter().map(|record| record.ttl).min().unwrap_or_default();
    Ok(Answer { addresses, ttl: Duration::from_secs(ttl.into()) })
}

fn ipv4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

/// Parses the file. A file without a usable name server has the rest of it and Azure's own
/// server, which every VM there reaches.
pub(super) fn parse(text: &[u8]) -> Result<(ResolverConfig, ResolverOpts), String> {
    match parse_resolv_conf(text) {
        Ok(parsed) => {
            info!(servers = ?addresses(&parsed.0), "names are resolved as /etc/resolv.conf says");
            Ok(parsed)
        }
        Err(error) => {
            let platform = Ipv4Addr::from(AZURE_PLATFORM);
            warn!("/etc/resolv.conf names no usable server ({error}): using Azure's name server {platform}");
            let with_platform = [text, format!("\nnameserver {platform}\n").as_bytes()].concat();
            let alone = format!("nameserver {platform}\n");
            parse_resolv_conf(with_platform)
                .or_else(|_| parse_resolv_conf(alone))
                .map_err(|error| format!("cannot read the resolver's settings: {error}"))
        }
    }
}

fn addresses(config: &ResolverConfig) -> Vec<IpAddr> {
    config.name_servers().iter().map(|server| server.ip).collect()
}
