//! The internet: HTTPS and HTTP servers with different names, iperf3, echo servers, DNS.

use std::{
    fs::{self, File},
    io,
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{
    addresses::{DNS, ECHO_PORT, IPERF_PORT, NAMES, TOOLS},
    command,
    helper::Helper,
    hosts::nginx,
    namespace::Namespace,
    process::Process,
    state::State,
};

/// The limit for a server to listen.
pub(crate) const START_LIMIT: Duration = Duration::from_secs(10);

/// The large file that every name serves, below `/`.
pub(crate) const LARGE_FILE: &str = "large.bin";

/// The socket of the web server with git, in the lab's directory.
pub(crate) const GIT_SOCKET: &str = "git/http";

/// A name whose TXT record, [`large_record`], does not fit into a packet.
pub const LARGE_RECORD: &str = "large.example.com";

/// Returns the content of [`LARGE_RECORD`] as one text.
pub fn large_record() -> String {
    large_strings().concat()
}

/// The strings of [`LARGE_RECORD`]; none may be longer than 255.
fn large_strings() -> [String; 8] {
    ["a", "b", "c", "d", "e", "f", "g", "h"].map(|letter| letter.repeat(250))
}

/// Returns the front page of a name.
pub fn front_page(name: &str) -> String {
    format!("hello from {name}\n")
}

/// Starts the servers; they listen when this returns.
pub(crate) fn start(
    state: &State,
    namespace: &Namespace,
    helper: &Helper,
    large_file: u64,
) -> Result<Vec<Process>> {
    certificates(state)?;
    content(state, large_file)?;

    let root = state.path("www");
    let root = root.display();
    let conf = state.path("conf");
    let conf = conf.display();
    let git = git_location(state);
    let mut servers = String::new();
    for (name, address, _) in NAMES {
        servers.push_str(&format!(
            "server {{\n\
             listen {address}:80;\n\
             listen {address}:443 ssl http2;\n\
             server_name {name};\n\
             ssl_certificate {conf}/server.pem;\n\
             ssl_certificate_key {conf}/server.key;\n\
             root {root}/{name};\n\
             location /upload/ {{ dav_methods PUT; create_full_put_path on; client_max_body_size 0; }}\n\
             {git}\
             }}\n"
        ));
    }
    let mut web = nginx::start(state, namespace, "web", &servers, "")?;
    let mut dns = dns(state, namespace, "dns", &DNS.to_string())?;
    let mut iperf = namespace.command("iperf3")?;
    iperf.args(["--server", "--forceflush", "--bind", &TOOLS.to_string(), "--port", &IPERF_PORT.to_string()]);
    let mut iperf = Process::spawn(state, "iperf3", iperf)?;
    let mut udp = helper.udp_echo(state, namespace, "udp-echo", (TOOLS, ECHO_PORT).into())?;
    let mut tcp = helper.tcp_echo(state, namespace, "tcp-echo", (TOOLS, ECHO_PORT).into())?;

    web.wait_until(START_LIMIT, || namespace.listens_tcp(443))?;
    dns.wait_until(START_LIMIT, || namespace.listens_udp(53))?;
    iperf.wait_until(START_LIMIT, || namespace.listens_tcp(IPERF_PORT))?;
    udp.wait_until(START_LIMIT, || namespace.listens_udp(ECHO_PORT))?;
    tcp.wait_until(START_LIMIT, || namespace.listens_tcp(ECHO_PORT))?;
    Ok(vec![web, dns, iperf, udp, tcp])
}

/// Returns the part of the web server's configuration that leads to the git server. Without a git
/// server, the web server answers 502.
fn git_location(state: &State) -> String {
    format!(
        "location /git/ {{\n\
         client_max_body_size 0;\n\
         proxy_http_version 1.1;\n\
         proxy_pass http://unix:{};\n\
         }}\n",
        state.path(GIT_SOCKET).display()
    )
}

/// Starts a DNS server that knows the lab's names and nothing else.
pub(crate) fn dns(state: &State, namespace: &Namespace, name: &str, address: &str) -> Result<Process> {
    let mut command = namespace.command("dnsmasq")?;
    command.args([
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--user=root",
    ]);
    command.args(["--pid-file=", "--bind-interfaces", "--log-facility=-", "--log-queries", "--local-ttl=1"]);
    command.arg(format!("--listen-address={address}"));
    command.args(NAMES.map(|(name, address, _)| format!("--host-record={name},{address}")));
    command.arg(format!("--txt-record={LARGE_RECORD},{}", large_strings().join(",")));
    // The largest size that a client may ask for. Such answers are fragmented, as before the DNS
    // flag day of 2020.
    command.arg("--edns-packet-max=4096");
    Process::spawn(state, name, command)
}

/// Returns the path of the certificate of the lab's authority.
pub(crate) fn authority(state: &State) -> std::path::PathBuf {
    state.path("conf/ca.pem")
}

/// Makes an authority and one certificate for all names.
fn certificates(state: &State) -> Result<()> {
    let path = |name: &str| state.path("conf").join(name).display().to_string();
    let names: Vec<String> = NAMES.iter().map(|(name, ..)| format!("DNS:{name}")).collect();
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    let openssl = |args: &[&str]| command::run(Command::new("openssl").args(args)).map(drop);

    let (ca, ca_key) = (path("ca.pem"), path("ca.key"));
    let mut make: Vec<&str> =
        vec!["req", "-x509", "-days", "30", "-subj", "/CN=pls-router lab", "-out", &ca, "-keyout", &ca_key];
    make.extend(key);
    openssl(&make)?;

    let (server, server_key) = (path("server.pem"), path("server.key"));
    let alternatives = format!("subjectAltName={}", names.join(","));
    let mut make: Vec<&str> = vec![
        "req",
        "-x509",
        "-days",
        "30",
        "-subj",
        "/CN=lab server",
        "-out",
        &server,
        "-keyout",
        &server_key,
    ];
    make.extend([
        "-CA",
        &ca,
        "-CAkey",
        &ca_key,
        "-addext",
        &alternatives,
        "-addext",
        "basicConstraints=CA:FALSE",
    ]);
    make.extend(key);
    openssl(&make)
}

/// Makes what the servers serve.
fn content(state: &State, large_file: u64) -> Result<()> {
    let large = state.directory("www")?.join(LARGE_FILE);
    let mut file = File::create(&large).with_context(|| format!("cannot make {}", large.display()))?;
    let mut random =
        io::Read::take(File::open("/dev/urandom").context("cannot open /dev/urandom")?, large_file);
    io::copy(&mut random, &mut file).with_context(|| format!("cannot fill {}", large.display()))?;
    for (name, ..) in NAMES {
        let directory = state.directory(&format!("www/{name}"))?;
        state.write(&format!("www/{name}/index.html"), front_page(name))?;
        let link = directory.join(LARGE_FILE);
        fs::hard_link(&large, &link).with_context(|| format!("cannot link {}", link.display()))?;
    }
    Ok(())
}

/// Returns the path of an upload to `/upload/<file>` of a name.
pub(crate) fn uploaded(state: &State, name: &str, file: &str) -> std::path::PathBuf {
    state.path("www").join(Path::new(name)).join("upload").join(file)
}
