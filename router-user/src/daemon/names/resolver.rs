//! Asks the system's name servers, as the system is configured now.
//!
//! One name after the other of the search list, and one server after the other in the order of the file, as resolv.conf(5) has it.
//! That is done here, with a resolver of hickory's per server: with several, it asks two at once, which answers by chance where only one
//! knows a private zone; made to ask one after the other, it spends all the time there is on the first; and it goes on in the search
//! list after a failure that says nothing of the name.

use std::{
    fmt, fs,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

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
use router_common::AZURE_PLATFORM;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::daemon::shared::lock;

/// There is a name without what is needed of it.
pub(super) const NO_ADDRESS: &str = "it has no IPv4 address";

/// What a name's records say.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Answer {
    /// The addresses, as they came.
    pub(super) addresses: Vec<Ipv4Addr>,
    /// How long that holds: the shortest time among the records, those of aliases included.
    pub(super) ttl: Duration,
}

/// Where the system says whom to ask.
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

    /// The IPv4 addresses of a name. A final dot makes it absolute; other names go through the search list.
    ///
    /// # Errors
    /// When there is no answer, or none with an address; in words for the operator.
    pub(super) async fn lookup(&self, name: &str) -> Result<Answer, String> {
        let name = Name::from_ascii(name).map_err(|error| format!("not a DNS name: {error}"))?;
        self.servers()?.lookup(&name).await
    }

    /// Whom to ask now. The files are small and names are asked for rarely, so they are read every time and compared: what `stat`
    /// says of them misses two changes within one tick of the file system's clock.
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
    servers: Vec<(IpAddr, TokioResolver)>,
    search: Vec<Name>,
    /// A name with so many dots is tried as it is first.
    dots: usize,
    /// How long one server may take.
    patience: Duration,
    /// How often all of them are asked.
    attempts: usize,
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
        let server = |NameServerConfig { ip, .. }| Ok((ip, server(ip, port, options.clone())?));
        Ok(Self {
            text,
            hosts,
            servers: servers.into_iter().map(server).collect::<Result<_, String>>()?,
            search,
            dots: options.ndots,
            patience: options.timeout,
            attempts: options.attempts.max(1),
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
                // That the name is there is the better thing to say.
                Err(Nothing::NoAddress) => nothing = Nothing::NoAddress,
                Err(Nothing::NoSuchName) => {}
            }
        }
        Err(nothing.to_string())
    }

    /// What a name may stand for, in the order of trying (resolv.conf(5), `search` and `ndots`).
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

    /// Asks one server after the other for an absolute name until one knows, be it that there is nothing.
    ///
    /// # Errors
    /// When none knows. What the name stands for is then not known either: nothing else may be tried in its place.
    async fn ask(&self, name: &Name) -> Result<Result<Answer, Nothing>, String> {
        let mut problem = "there is no name server to ask".to_owned();
        for (server, resolver) in (0..self.attempts).flat_map(|_| &self.servers) {
            let asked = timeout(self.patience, resolver.lookup(name.clone(), RecordType::A)).await;
            match asked.unwrap_or(Err(NetError::Timeout)) {
                Ok(lookup) => return Ok(answer(&lookup)),
                Err(NetError::Dns(DnsError::NoRecordsFound(found))) => {
                    let there = found.response_code != ResponseCode::NXDomain;
                    return Ok(Err(if there { Nothing::NoAddress } else { Nothing::NoSuchName }));
                }
                Err(NetError::Dns(DnsError::ResponseCode(code))) => {
                    problem = format!("{server} answers: {code}");
                }
                Err(NetError::Timeout) => problem = format!("{server} does not answer"),
                Err(error) => problem = format!("cannot ask {server}: {error}"),
            }
        }
        Err(problem)
    }
}

/// A resolver that asks one server once.
fn server(ip: IpAddr, port: u16, mut options: ResolverOpts) -> Result<TokioResolver, String> {
    let at_port = |mut connection: ConnectionConfig| {
        connection.port = port;
        connection
    };
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(at_port).to_vec();
    let config = ResolverConfig::from_name_servers(vec![NameServerConfig::new(ip, true, connections)]);
    // Who asks again is whoever knows the answer's time.
    options.cache_size = 0;
    options.attempts = 0;
    options.use_hosts_file = ResolveHosts::Never;
    // The kernel keeps to `ip_local_port_range`, which the ports of new sessions are kept apart from.
    options.os_port_selection = true;
    TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        .with_options(options)
        .build()
        .map_err(|error| format!("cannot ask {ip}: {error}"))
}

/// That there is nothing, from somebody who knows.
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

/// What the file says. A file without a usable name server has the rest of it and Azure's own server, which every VM there reaches.
pub(super) fn parse(text: &[u8]) -> Result<(ResolverConfig, ResolverOpts), String> {
    match parse_resolv_conf(text) {
        Ok(parsed) => {
            info!(servers = ?addresses(&parsed.0), "names are resolved as /etc/resolv.conf says");
            Ok(parsed)
        }
        Err(error) => {
            let platform = Ipv4Addr::from(AZURE_PLATFORM);
            warn!(
                "/etc/resolv.conf names no usable server ({error}): names are resolved by Azure's own, {platform}"
            );
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
