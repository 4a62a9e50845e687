//! An independent witness: tcpdump on the wires, asked afterwards whether what it saw was right.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    net::Ipv4Addr,
    path::PathBuf,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::{
    addresses::{ANYWHERE, PLS_NAT, ROUTER, ROUTER_SECOND, SERVERLESS, TOOLS, VM},
    command,
    lab::Lab,
    process::Process,
    variants::Nics,
    wait, wire,
};

/// The time that tcpdump gets to begin and to end.
const LIMIT: Duration = Duration::from_secs(10);

/// The last frame of a capture: an unused address, an EtherType for experiments (IEEE 802), and a
/// unique payload.
const LAST: &[u8] = b"\x02\0\0\0\0\xfe\x02\0\0\0\0\xff\x88\xb5the witness has seen all that came before this";

/// Captures the wires of a lab from [`Witness::start`] to [`Witness::finish`].
#[derive(Debug)]
pub struct Witness {
    wires: Vec<Wire>,
}

#[derive(Debug)]
struct Wire {
    name: &'static str,
    tcpdump: Process,
    capture: PathBuf,
    /// The wire itself, to send the last frame.
    device: wire::Wire,
    /// Packets that must not be on this wire, as a tcpdump expression.
    leak: String,
}

/// The result of a capture.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// IPv4 packets on the wire between Private Link and the router.
    pub pls: usize,
    /// IPv4 packets on the wire between the router and the firewall.
    pub firewall: usize,
}

impl Witness {
    /// Begins to capture every wire of the lab that translated packets are on.
    pub fn start(lab: &Lab) -> Result<Self> {
        // On the PLS side the addresses of targets must not show, except to the VM, since a
        // masquerade keeps destinations.
        let targets = format!("host {ANYWHERE} or (host {TOOLS} and not host {VM})");
        // On the firewall's side the addresses of clients must not show.
        let [first, last] = PLS_NAT;
        let clients = format!("host {first} or host {last} or host {SERVERLESS} or host {VM}");
        let snat = match lab.options.nics {
            Nics::One => ROUTER,
            Nics::Two => ROUTER_SECOND,
        };
        let wires = [
            ("pls", targets),
            // Every packet to or from the firewall has the router's own address on one side.
            ("firewall", format!("({clients}) or ((tcp or udp or icmp) and not host {snat})")),
        ];
        let mut witness = Self { wires: Vec::new() };
        for (name, leak) in wires {
            // Without the immediate mode, what came within the last second before the end would be
            // missing.
            let capture = lab.state().path(&format!("tmp/{name}.pcap"));
            let mut command = lab.hosts.vnet.command("tcpdump")?;
            command
                .args([
                    "-i",
                    name,
                    "-n",
                    "-s",
                    "0",
                    "-B",
                    "65536",
                    "-Z",
                    "root",
                    "--immediate-mode",
                    "-U",
                    "-w",
                ])
                .arg(&capture);
            let mut tcpdump = Process::spawn(lab.state(), &format!("tcpdump-{name}"), command)?;
            tcpdump.wait_for_log("listening on", LIMIT)?;
            let device = wire::Wire::open(&lab.hosts.vnet, name)?;
            // It only sends.
            device.keep_only(Ipv4Addr::BROADCAST, 32)?;
            witness.wires.push(Wire { name, tcpdump, capture, device, leak });
        }
        Ok(witness)
    }

    /// Stops, and fails if a packet had a bad checksum or an address was where it must not be.
    pub fn finish(mut self) -> Result<Seen> {
        self.judge()
    }

    /// Same as [`Witness::finish`], but returns the packets on this wire that matched the tcpdump
    /// expression, as tcpdump prints them.
    pub fn finish_listing(mut self, wire: &str, expression: &str) -> Result<Vec<String>> {
        self.judge()?;
        let wire = self.wires.iter().find(|candidate| candidate.name == wire);
        let packets = wire.with_context(|| "there is no such wire")?.read(&[], expression)?;
        Ok(packets.lines().map(str::to_owned).collect())
    }

    fn judge(&mut self) -> Result<Seen> {
        let mut seen = Seen::default();
        for wire in &mut self.wires {
            // Packets that tcpdump has not read when it is told to end are lost.
            wire.device.send(LAST)?;
            wait::until("tcpdump to see the last frame", LIMIT, || wire.has_seen_the_last())?;
            wire.tcpdump.signal(Signal::SIGINT)?;
            wire.tcpdump.wait(LIMIT)?;
            let log = wire.tcpdump.output();
            let missed = log.lines().find(|line| line.ends_with("packets dropped by kernel"));
            let missed = missed.with_context(|| format!("tcpdump said: {log}"))?;
            ensure!(
                missed.starts_with("0 "),
                "the witness on the {} wire missed packets: {missed}",
                wire.name
            );

            let leaks = wire.read(&["-c", "5"], &format!("ip and ({})", wire.leak))?;
            ensure!(leaks.is_empty(), "untranslated addresses on the {} wire:\n{leaks}", wire.name);
            let packets = wire.read(&["-vv"], "ip")?;
            wire.check_checksums(&packets)?;
            // A packet may take several lines; only its first one starts like this.
            let count = packets.lines().filter(|line| line.starts_with("IP ")).count();
            match wire.name {
                "pls" => seen.pls = count,
                _ => seen.firewall = count,
            }
        }
        Ok(seen)
    }
}

impl Wire {
    fn has_seen_the_last(&self) -> Result<()> {
        /// The length of the capture's end that is searched. Little comes after the last frame,
        /// since everything that was to be seen has been sent.
        const TAIL: u64 = 1 << 16;
        let tail = || -> io::Result<Vec<u8>> {
            let mut capture = File::open(&self.capture)?;
            let length = capture.metadata()?.len();
            capture.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
            let mut tail = Vec::new();
            capture.read_to_end(&mut tail)?;
            Ok(tail)
        };
        let tail = tail().with_context(|| format!("cannot read {}", self.capture.display()))?;
        ensure!(tail.windows(LAST.len()).any(|frame| frame == LAST), "it is not in the capture");
        Ok(())
    }

    fn read(&self, options: &[&str], expression: &str) -> Result<String> {
        let mut command = Command::new("tcpdump");
        command.args(["-n", "-t", "-r"]).arg(&self.capture).args(options).arg(expression);
        command::run(&mut command)
    }

    fn check_checksums(&self, packets: &str) -> Result<()> {
        // tcpdump's words for IP, TCP, UDP and ICMP in this order (print-ip.c, print-tcp.c,
        // print-udp.c, print-icmp.c).
        let bad = |line: &&str| {
            line.contains("bad cksum")
                || line.contains("(incorrect")
                || line.contains("bad udp cksum")
                || line.contains("wrong icmp cksum")
        };
        let lines: Vec<&str> = packets.lines().filter(bad).take(5).collect();
        if !lines.is_empty() {
            bail!("bad checksums on the {} wire:\n{}", self.name, lines.join("\n"));
        }
        Ok(())
    }
}
