//! Gathers what is known, from the daemon, the kernel and the programs that people would run.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde::Serialize;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::Command,
    time::timeout,
};

use super::Gathered;
use crate::{
    client::Client,
    config::{CheckKind, Config, ConfigError, Host, defaults},
    findings, preflight,
    sys::sysctl,
};

/// The longest that one thing may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The largest text of a part. Of a longer one, the end is kept: that is the latest of a log.
const LARGEST: usize = 4 << 20;

/// The places to look at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) config: &'a Path,
    pub(crate) client: &'a Client,
}

/// Kernel settings that decide about packets, ports and programs.
const SETTINGS: &[&str] = &[
    "kernel/unprivileged_bpf_disabled",
    "net/core/bpf_jit_enable",
    "net/core/bpf_jit_harden",
    "net/core/bpf_jit_limit",
    "net/core/netdev_budget",
    "net/core/netdev_max_backlog",
    "net/core/somaxconn",
    "net/ipv4/conf/all/arp_ignore",
    "net/ipv4/conf/all/forwarding",
    "net/ipv4/conf/all/rp_filter",
    "net/ipv4/conf/lo/forwarding",
    "net/ipv4/ip_forward",
    "net/ipv4/ip_local_port_range",
    "net/ipv4/ip_local_reserved_ports",
    "net/ipv4/neigh/default/gc_thresh1",
    "net/ipv4/neigh/default/gc_thresh2",
    "net/ipv4/neigh/default/gc_thresh3",
    "net/ipv4/tcp_timestamps",
    "net/netfilter/nf_conntrack_count",
    "net/netfilter/nf_conntrack_max",
];

/// The answers of the daemon's API.
const ANSWERS: &[(&str, &str, &str)] = &[
    ("status.json", "/v1/status", "`pls-router status -o json`"),
    ("counters.json", "/v1/counters", "`pls-router counters -o json`"),
    ("rules.json", "/v1/rules", "`pls-router rules -o json`"),
    ("drain.json", "/v1/drain", "is it draining, and which rules have sessions"),
    ("audit.json", "/v1/audit", "`pls-router check --live -o json`"),
];

/// Programs that tell about the machine: the file, its content, and the command.
const COMMANDS: &[(&str, &str, &[&str])] = &[
    ("machine/uname.txt", "the kernel", &["uname", "-a"]),
    ("machine/links.txt", "interfaces, their MTU and programs", &["ip", "-d", "-s", "link"]),
    ("machine/addresses.txt", "addresses", &["ip", "address"]),
    ("machine/routes.txt", "routes", &["ip", "route", "show", "table", "all"]),
    ("machine/policy-rules.txt", "policy rules", &["ip", "rule"]),
    ("machine/neighbours.txt", "neighbours", &["ip", "-s", "neighbour"]),
    ("machine/sockets.txt", "sockets that listen", &["ss", "-Hltun"]),
    ("machine/firewall.txt", "the host's firewall (nftables)", &["nft", "list", "ruleset"]),
    ("machine/iptables.txt", "the host's firewall (iptables)", &["iptables-save"]),
    ("bpf/net.txt", "programs on interfaces", &["bpftool", "net"]),
    ("bpf/programs.txt", "loaded programs", &["bpftool", "prog"]),
    ("bpf/maps.txt", "maps", &["bpftool", "map"]),
    ("bpf/links.txt", "links", &["bpftool", "link"]),
    ("machine/pci.txt", "PCI devices", &["lspci"]),
    ("machine/cloud-init.txt", "what cloud-init has done", &["cloud-init", "status", "--long"]),
    (
        "machine/vm.txt",
        "the VM's cloud, region, zone and size (on Azure)",
        &[
            "cloud-init",
            "query",
            "--format",
            "{{ v1.cloud_name }}, {{ v1.region }}, zone {{ v1.availability_zone }}, \
             {{ ds.meta_data.imds.compute.vmSize }}",
        ],
    ),
    ("service/unit.txt", "the systemd unit", &["systemctl", "cat", "--no-pager", "pls-router"]),
    ("service/state.txt", "its state", &["systemctl", "status", "--no-pager", "--lines=0", "pls-router"]),
    (
        "service/kernel-log.txt",
        "the kernel's last 2,000 lines",
        &["journalctl", "-k", "-b", "-n", "2000", "-o", "short-iso", "--no-hostname", "--no-pager"],
    ),
    (
        "service/azure-log.txt",
        "the log of what deploy/azure runs beside the daemon",
        &[
            "journalctl",
            "-u",
            "pls-router-install",
            "-u",
            "pls-router-events",
            "-n",
            "1000",
            "-o",
            "short-iso",
            "--no-hostname",
            "--no-pager",
        ],
    ),
];

/// Reports of `ethtool` on an interface: the file, the option, and the content.
const OF_INTERFACE: &[(&str, &str, &str)] = &[
    ("driver", "-i", "driver"),
    ("offloads", "-k", "offloads"),
    ("queues", "-l", "queues"),
    ("rings", "-g", "rings"),
    ("statistics", "-S", "the driver's counters"),
];

const JOURNAL: &[&str] =
    &["journalctl", "-u", "pls-router", "-n", "5000", "-o", "short-iso", "--no-hostname", "--no-pager"];
/// The words of log lines about the probe's answer.
const ANSWERED: &str = "the probe answers";

/// Gathers everything. Takes as long as the slowest answers, and changes nothing.
pub(crate) async fn gather(asked: Asked<'_>) -> Gathered {
    let mut all = Gathered::default();
    let loaded = Config::load(asked.config);
    all.add("version.txt", "version and time", Ok(version()));
    let text = fs::read_to_string(asked.config);
    all.add("config.toml", "the configuration file", text.map_err(|error| error.to_string()));
    all.add("check.json", "`pls-router check -o json`", check(asked.config, &loaded).await);
    for &(name, path, what) in ANSWERS {
        let answer = asked.client.get::<serde_json::Value>(path).await;
        all.add(
            name,
            what,
            answer.map_err(|error| first_line(&error.to_string())).and_then(|answer| json(&answer)),
        );
    }
    let config = loaded.as_ref().ok().map(|loaded| &loaded.config);
    let probe = config.map_or(defaults::HEALTH, |config| config.health.listen);
    let metrics = config.map_or(defaults::ADMIN, |config| config.admin.listen);
    all.add("probe/answer.txt", "the answer to the load balancer's probe", get(probe, "/").await);
    all.add("probe/live.txt", "the answer about liveness", get(probe, "/live").await);
    all.add("metrics.txt", "the metrics", get(metrics, "/metrics").await);
    machine(&mut all).await;
    all.add("machine/settings.txt", "kernel settings", Ok(settings()));
    let pins = config.map_or(PathBuf::from(defaults::PINS), |config| config.admin.pins.clone());
    all.add("bpf/pins.txt", "pinned maps, programs and links", pinned(&pins));
    for interface in interfaces(config) {
        for &(name, option, what) in OF_INTERFACE {
            let name = format!("machine/{interface}-{name}.txt");
            all.add(&name, what, run(&["ethtool", option, interface.as_str()]).await);
        }
    }
    for &(name, what, arguments) in COMMANDS {
        all.add(name, what, run(arguments).await);
    }
    let log = run(JOURNAL).await;
    let history = log.clone().map(|log| lines_with(&log, ANSWERED));
    all.add("service/health-history.txt", "every change of the probe's answer in the log", history);
    all.add("service/log.txt", "the daemon's last 5,000 log lines", log);
    all.names = names(config);
    all
}

/// The router's interfaces, and all others of a device: with accelerated networking the one that
/// carries the packets is not the one that is configured.
fn interfaces(config: Option<&Config>) -> BTreeSet<String> {
    let configured = config.into_iter().flat_map(|config| config.interfaces.names().map(str::to_owned));
    let entries = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let of_devices = entries
        .filter(|entry| entry.path().join("device").exists())
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    configured.chain(of_devices).collect()
}

fn version() -> String {
    let now = humantime::format_rfc3339_seconds(std::time::SystemTime::now());
    format!("pls-router {} for {}\nthis bundle was made at {now}\n", crate::VERSION, std::env::consts::ARCH)
}

/// Returns what `check` finds.
async fn check(path: &Path, loaded: &Result<crate::config::Loaded, ConfigError>) -> Result<String, String> {
    let findings = match loaded {
        Ok(loaded) => {
            let facts = preflight::inspect(&loaded.config).await;
            let of_file = loaded.warnings.iter().map(findings::of_file);
            let found = preflight::findings(&loaded.config, &facts);
            of_file.chain(found.iter().map(findings::of_machine)).collect()
        }
        Err(error) => findings::of_error(error),
    };
    json(&findings::check(path, findings, Vec::new()))
}

fn json(value: &impl Serialize) -> Result<String, String> {
    serde_json::to_string_pretty(value).map(|text| text + "\n").map_err(|error| error.to_string())
}

/// Asks over HTTP. Returns status line, headers and body.
async fn get(address: SocketAddr, path: &str) -> Result<String, String> {
    let ip = if address.ip().is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { address.ip() };
    let address = SocketAddr::new(ip, address.port());
    let asked = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(u64::try_from(LARGEST).unwrap_or(u64::MAX)).read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer).replace('\r', ""))
    };
    match timeout(PATIENCE, asked).await {
        Ok(answer) => answer.map_err(|error| format!("{address}{path}: {error}")),
        Err(_) => Err(format!("{address}{path}: no answer in {} s", PATIENCE.as_secs())),
    }
}

/// Adds files of the system.
async fn machine(all: &mut Gathered) {
    for (name, what, path) in [
        ("machine/os-release.txt", "the distribution", "/etc/os-release"),
        ("machine/cpus.txt", "processors", "/proc/cpuinfo"),
        ("machine/memory.txt", "memory", "/proc/meminfo"),
        ("machine/load.txt", "load", "/proc/loadavg"),
        ("machine/softirqs.txt", "softirqs by processor", "/proc/softirqs"),
        ("machine/softnet.txt", "packets by processor, and what was dropped", "/proc/net/softnet_stat"),
        ("machine/interrupts.txt", "interrupts by processor", "/proc/interrupts"),
        ("machine/mounts.txt", "mounted file systems", "/proc/mounts"),
        ("machine/resolv.conf", "name servers", "/etc/resolv.conf"),
    ] {
        let text = fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        all.add(name, what, text.map(cut).map_err(|error| format!("{path}: {error}")));
    }
}

fn settings() -> String {
    let mut text = String::new();
    for name in SETTINGS {
        let value = sysctl(name).unwrap_or_else(|| "(not there)".to_owned());
        let _ = writeln!(text, "{} = {value}", name.replace('/', "."));
    }
    text
}

/// Lists what is below a directory.
fn pinned(directory: &Path) -> Result<String, String> {
    let mut text = format!("{}\n", directory.display());
    let mut left = vec![directory.to_owned()];
    while let Some(next) = left.pop() {
        let entries = fs::read_dir(&next).map_err(|error| format!("{}: {error}", next.display()))?;
        let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort();
        for path in paths {
            let _ = writeln!(text, "{}", path.display());
            if path.is_dir() {
                left.push(path);
            }
        }
    }
    Ok(text)
}

/// Runs a program and returns its output.
async fn run(arguments: &[&str]) -> Result<String, String> {
    let [program, arguments @ ..] = arguments else { return Err(String::new()) };
    let mut command = Command::new(program);
    // Where root's programs are, which a user's path may leave out; and words that are the same
    // everywhere.
    command.args(arguments).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C");
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = match timeout(PATIENCE, command.output()).await {
        Err(_) => return Err(format!("{program} took more than {} s", PATIENCE.as_secs())),
        Ok(Err(error)) if error.kind() == ErrorKind::NotFound => {
            return Err(format!("{program} is not installed"));
        }
        Ok(Err(error)) => return Err(format!("{program}: {error}")),
        Ok(Ok(output)) => output,
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // `systemctl status` of a unit that has failed says so by its code, and why by its text.
    if text.trim().is_empty() && !output.status.success() {
        let why = first_line(&String::from_utf8_lossy(&output.stderr));
        return Err(format!("{program} {}: {why}", arguments.join(" ")));
    }
    Ok(cut(text))
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

fn lines_with(text: &str, words: &str) -> String {
    text.lines().filter(|line| line.contains(words)).map(|line| format!("{line}\n")).collect()
}

/// Keeps the end of what is too long.
fn cut(text: String) -> String {
    let Some(start) = text.len().checked_sub(LARGEST) else { return text };
    let start = (start..text.len()).find(|start| text.is_char_boundary(*start)).unwrap_or(text.len());
    format!("(the beginning is left out)\n{}", text.get(start..).unwrap_or_default())
}

/// The names of this machine and of targets.
fn names(config: Option<&Config>) -> Vec<String> {
    let mut names: Vec<String> =
        ["kernel/hostname", "kernel/domainname"].iter().filter_map(|name| sysctl(name)).collect();
    names.retain(|name| name != "(none)");
    let resolv = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let domains =
        resolv.lines().filter_map(|line| line.strip_prefix("search").or_else(|| line.strip_prefix("domain")));
    names.extend(domains.flat_map(str::split_whitespace).map(str::to_owned));
    let Some(config) = config else { return names };
    names.extend(config.admin.hosts.iter().cloned());
    for forward in &config.forwards {
        for target in &forward.targets {
            if let Host::Name(name) = &target.host {
                names.push(name.clone());
            }
        }
        if let Some(check) = &forward.check
            && let CheckKind::Tls { sni: Some(sni) } = &check.kind
        {
            names.push(sni.clone());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_that_is_missing_fails_or_hangs_says_so() {
        assert_eq!(
            run(&["no-such-program-here"]).await,
            Err("no-such-program-here is not installed".to_owned())
        );
        assert_eq!(
            run(&["sh", "-c", "echo no >&2; exit 3"]).await,
            Err("sh -c echo no >&2; exit 3: no".to_owned())
        );
        assert_eq!(run(&["sh", "-c", "echo yes; exit 3"]).await, Ok("yes\n".to_owned()));
    }

    #[test]
    fn of_a_long_text_the_end_is_kept() {
        let text = cut(format!("{}\u{e9}end", "x".repeat(LARGEST)));
        assert!(
            text.starts_with("(the beginning is left out)\nx") && text.ends_with("\u{e9}end"),
            "{}",
            text.len()
        );
        assert_eq!(cut("short".to_owned()), "short");
    }

    #[test]
    fn the_history_is_the_lines_about_the_probe() {
        let log = "a\nb INFO the probe answers 200\nc\nd WARN the probe answers 503 reasons=\"x\"\n";
        assert_eq!(lines_with(log, ANSWERED).lines().count(), 2);
    }
}
