//! The daemon of a path: its configuration, its starts and its ends.

use std::{
    io::ErrorKind,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use lab::{Namespace, Process, state::State};

use super::{
    addresses::{CLIENTS, IPERF_PORT, TARGET},
    arms::{Arm, Traffic},
    ends::{LAST_PORT, MAX_SESSIONS},
    frames::{PORT, Transport},
    setup::Setup,
};

/// The sessions that pls-router has room for: the most that are measured fill it to 80 %.
const ROOM: u32 = MAX_SESSIONS / 4 * 5;

/// The limit for a start.
const START_LIMIT: Duration = Duration::from_secs(20);
/// The limit for a stop, with the removal of the data plane.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// The interval of checks that a silent daemon is still alive.
const LOOK: Duration = Duration::from_millis(100);

/// A program and its configuration, and the process that runs it, if one does.
pub(crate) struct Daemon {
    tag: String,
    binary: PathBuf,
    configuration: PathBuf,
    pins: PathBuf,
    /// The process, and the command that takes the router off.
    running: Option<(Process, Command)>,
}

/// The time of a start, from the creation of the process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Started {
    /// Until it told the service manager that it is ready: attached and answering.
    pub(crate) ready: Duration,
    /// Until `pls-router status` had said that it is healthy.
    pub(crate) good: Duration,
}

impl Daemon {
    /// Returns the daemon of a path between these devices. It does not run yet.
    pub(crate) fn configure(
        setup: &Setup,
        arm: Arm,
        traffic: Traffic,
        tag: &str,
        [in_device, out_device]: [&str; 2],
    ) -> Result<Self> {
        let binary = if arm == Arm::Beside {
            setup.beside.as_ref().context("no other pls-router was named")?
        } else {
            &setup.binary
        };
        let room = if traffic == Traffic::Nothing { MAX_SESSIONS } else { ROOM };
        let state = &setup.state;
        let ports = format!("{PORT}-{LAST_PORT}");
        let rules = [
            (rule_name(Transport::Udp), "udp", ports.clone()),
            (rule_name(Transport::Tcp), "tcp", ports),
            ("iperf3", "tcp", IPERF_PORT.to_string()),
        ]
        .map(|(name, protocol, listen)| {
            format!(
                "[[forward]]\n\
                 name = \"{name}\"\n\
                 protocol = \"{protocol}\"\n\
                 listen = \"{listen}\"\n\
                 target = \"{TARGET}\"\n\
                 sources = [\"{CLIENTS}\"]\n"
            )
        })
        .concat();
        let socket = state.path(&format!("api-{tag}.sock"));
        let pins = state.path(&format!("bpf/{tag}"));
        let configuration = state.write(
            &format!("config-{tag}.toml"),
            format!(
                "[interfaces]\n\
                 pls = \"{in_device}\"\n\
                 firewall = \"{out_device}\"\n\
                 mode = \"native\"\n\
                 {rules}\
                 # As many as nftables has.\n\
                 [snat]\n\
                 ports = \"1024-65535\"\n\
                 [admin]\n\
                 socket = \"{}\"\n\
                 pins = \"{}\"\n\
                 # Sessions are opened before anything is measured, and must still be there then.\n\
                 [timeouts]\n\
                 udp = \"1h\"\n\
                 udp_unreplied = \"1h\"\n\
                 # Nobody answers here, so all of them count as half-open, and would go early where the table is nearly full.\n\
                 [limits]\n\
                 flows = {room}\n\
                 half_open_per_source = {MAX_SESSIONS}\n",
                socket.display(),
                pins.display(),
            ),
        )?;
        Ok(Self { tag: tag.to_owned(), binary: binary.clone(), configuration, pins, running: None })
    }

    /// Runs it in this namespace, until it forwards.
    pub(crate) fn start(&mut self, state: &State, router: &Namespace) -> Result<Started> {
        let path = state.path(&format!("notify-{}", self.tag));
        let _none = std::fs::remove_file(&path);
        let manager =
            UnixDatagram::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
        manager.set_read_timeout(Some(LOOK)).context("cannot set a timeout")?;
        let mut command = self.command(router, &["run"])?;
        command.env("NOTIFY_SOCKET", &path);
        let start = Instant::now();
        let mut process = Process::spawn(state, &format!("pls-router-{}", self.tag), command)?;
        let ready = wait_for_ready(&manager, &mut process, start)?;
        process.wait_until(START_LIMIT, || {
            // Its exit status says whether the router is healthy.
            lab::command::run(&mut self.command(router, &["status", "-o", "json"])?).map(drop)
        })?;
        let good = start.elapsed();
        self.running = Some((process, self.command(router, &["detach"])?));
        Ok(Started { ready, good })
    }

    /// Ends it the hard way: what it has pinned stays.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.running.take().context("the daemon does not run")?.0.kill()
    }

    /// Ends it and takes the router off: nothing is left.
    pub(crate) fn stop(&mut self) -> Result<()> {
        let (mut process, mut detach) = self.running.take().context("the daemon does not run")?;
        let status = process.terminate(STOP_LIMIT)?;
        lab::command::run(&mut detach)?;
        if status.success() { Ok(()) } else { bail!("the daemon ended with {status}") }
    }

    /// Returns the directory of the pins, which has one for each layout.
    pub(crate) fn pins(&self) -> &Path {
        &self.pins
    }

    /// The process' id.
    pub(crate) fn pid(&self) -> Result<u32> {
        Ok(self.running.as_ref().context("the daemon does not run")?.0.pid())
    }

    /// A command of the same program, with its configuration.
    pub(crate) fn command(&self, router: &Namespace, arguments: &[&str]) -> Result<Command> {
        let mut command = router.command(&self.binary)?;
        command.env("PLS_ROUTER_CONFIG", &self.configuration).args(arguments);
        Ok(command)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.running.is_some() {
            // Otherwise its maps stay, pinned.
            let _failed = self.stop();
        }
    }
}

/// Waits until a daemon says that it is ready: sd_notify(3).
fn wait_for_ready(manager: &UnixDatagram, process: &mut Process, start: Instant) -> Result<Duration> {
    let mut message = [0; 256];
    while start.elapsed() < START_LIMIT {
        match manager.recv(&mut message) {
            Ok(length) if message[..length].split(|byte| *byte == b'\n').any(|line| line == b"READY=1") => {
                return Ok(start.elapsed());
            }
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error).context("cannot hear from the daemon"),
        }
        if let Some(status) = process.ended()? {
            bail!("the daemon ended ({status}) before it was ready; its log:\n{}", process.output());
        }
    }
    bail!("the daemon was not ready within {START_LIMIT:?}; its log:\n{}", process.output())
}

/// The rule that the bench's packets go by.
pub(crate) const fn rule_name(transport: Transport) -> &'static str {
    match transport {
        Transport::Udp => "bench",
        Transport::Tcp => "bench-tcp",
    }
}
