//! The actions of a client: fetch, upload, ping, measure.

pub(crate) mod sockets;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

pub(crate) use self::sockets::raw_socket;
pub use self::sockets::{Tcp, Udp, connect_between, connect_from, send_fragments};
use crate::{
    addresses::{ENDPOINT, NAMES},
    command,
    lab::Lab,
    namespace::Namespace,
};

/// The outcome of one curl, good or bad.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// curl's exit status: 0 if there was an HTTP response of any status.
    pub exit: i32,
    /// The HTTP status; 0 without an answer.
    pub status: u16,
    /// The body, unless it went to a file.
    pub body: String,
    /// The duration, as curl measured it.
    pub seconds: f64,
    /// curl's error message.
    pub error: String,
}

/// A curl on the client, silent but for errors; every name of the lab leads to the private
/// endpoint.
pub fn curl_command(lab: &Lab) -> Result<Command> {
    let mut command = lab.hosts.serverless.command("curl")?;
    command.args(["--silent", "--show-error", "--max-time", "60", "--connect-timeout", "5"]);
    command.arg("--cacert").arg(lab.authority());
    for (name, ..) in NAMES {
        for port in [80, 443] {
            command.arg("--resolve").arg(format!("{name}:{port}:{ENDPOINT}"));
        }
    }
    Ok(command)
}

/// Runs curl on the client for one answer.
pub fn curl(lab: &Lab, url: &str, options: &[&str]) -> Result<Fetched> {
    let mut command = curl_command(lab)?;
    // After the body, so that the last line is the summary even if the body does not end with a
    // newline.
    command.args(["--write-out", "\n%{http_code} %{time_total}"]).args(options).arg(url);
    let output = command::output(&mut command)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let (body, summary) = text.rsplit_once('\n').with_context(|| format!("curl printed \"{text}\""))?;
    let (status, seconds) = summary.split_once(' ').with_context(|| format!("curl printed \"{text}\""))?;
    Ok(Fetched {
        exit: output.status.code().unwrap_or(-1),
        status: status.parse().with_context(|| format!("\"{status}\" is not a status"))?,
        body: body.to_owned(),
        seconds: seconds.parse().with_context(|| format!("\"{seconds}\" is not a time"))?,
        error: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// Fetches `url` into a file.
pub fn download(lab: &Lab, url: &str, file: &Path) -> Result<Fetched> {
    curl(lab, url, &["--output", &file.display().to_string()])
}

/// Puts a file to `url`.
pub fn upload(lab: &Lab, file: &Path, url: &str) -> Result<Fetched> {
    // Over HTTP/2, curl 7.88 (Debian 12's) loses some of a body when its connection is slow to take
    // it.
    curl(lab, url, &["--http1.1", "--upload-file", &file.display().to_string()])
}

/// The SHA-256 of a file, in hexadecimal.
pub fn sha256(file: &Path) -> Result<String> {
    let sum = command::run(Command::new("sha256sum").arg("--").arg(file))?;
    Ok(sum.split(' ').next().unwrap_or_default().to_owned())
}

/// Pings from a host. Returns the number of requests that were answered.
pub fn ping(from: &Namespace, target: Ipv4Addr, count: u32, options: &[&str]) -> Result<u32> {
    let mut command = from.command("ping")?;
    command
        .args(["-n", "-i", "0.05", "-W", "1", "-c", &count.to_string()])
        .args(options)
        .arg(target.to_string());
    // It fails if some answer is missing; the numbers say more.
    let output = command::output(&mut command)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let received = text.split(" received").next().and_then(|before| before.rsplit(' ').next());
    let received = received.and_then(|number| number.parse().ok());
    received.with_context(|| {
        format!("`{}` said: {text}{}", command::line(&command), String::from_utf8_lossy(&output.stderr))
    })
}

/// The direction in which iperf3 sends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Direction {
    /// From the client to the server.
    Up,
    /// From the server to the client (`-R`).
    Down,
}

/// Runs iperf3 from a host with `options` (a time or an amount). Returns the bits per second that
/// arrived.
pub fn iperf3(from: &Namespace, target: SocketAddr, direction: Direction, options: &[&str]) -> Result<f64> {
    let report = iperf3_report(from, target, direction, options)?;
    let rate = report["end"]["sum_received"]["bits_per_second"].as_f64();
    rate.with_context(|| format!("iperf3 gave no rate: {report}"))
}

/// Same as [`iperf3`], but returns the bytes of each stream that arrived.
pub fn iperf3_streams(
    from: &Namespace,
    target: SocketAddr,
    direction: Direction,
    options: &[&str],
) -> Result<Vec<u64>> {
    let report = iperf3_report(from, target, direction, options)?;
    let streams = report["end"]["streams"].as_array().context("iperf3 told of no streams")?;
    let bytes = |stream: &Value| stream["receiver"]["bytes"].as_u64();
    streams.iter().map(|stream| bytes(stream).with_context(|| format!("{stream} has no bytes"))).collect()
}

fn iperf3_report(
    from: &Namespace,
    target: SocketAddr,
    direction: Direction,
    options: &[&str],
) -> Result<Value> {
    let mut command = from.command("iperf3")?;
    command.args(["--json", "--connect-timeout", "3000", "--client", &target.ip().to_string()]);
    command.args(["--port", &target.port().to_string()]).args(options);
    if direction == Direction::Down {
        command.arg("--reverse");
    }
    let output = command::output(&mut command)?;
    let report: Value = serde_json::from_slice(&output.stdout).with_context(|| {
        format!("`{}` said: {}", command::line(&command), String::from_utf8_lossy(&output.stderr).trim())
    })?;
    if let Some(error) = report["error"].as_str() {
        bail!("`{}` said: {error}", command::line(&command));
    }
    Ok(report)
}
