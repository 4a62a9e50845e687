//! TCP through a router: iperf3, one connection.
//!
//! Client, router and server share the machine's CPUs, placed by the kernel: what is compared is what the whole costs.

use std::time::Duration;

use anyhow::Result;
use lab::{
    Process,
    client::{self, Direction},
    state::State,
};

use super::path::{Arm, IPERF_PORT, Path, ROUTER, TARGET};

/// How long the server may take to listen.
const START_LIMIT: Duration = Duration::from_secs(5);

/// A path with a server at its end.
pub(crate) struct Bench {
    path: Path,
    _server: Process,
}

impl Bench {
    /// Starts the server.
    pub(crate) fn new(state: &State, path: Path) -> Result<Self> {
        let mut command = path.sink.command("iperf3")?;
        command.args(["--server", "--version4", "--port", &IPERF_PORT.to_string()]);
        let mut server = Process::spawn(state, &format!("iperf3-{}", path.devices[3]), command)?;
        server.wait_until(START_LIMIT, || path.sink.listens_tcp(IPERF_PORT))?;
        Ok(Self { path, _server: server })
    }

    /// Bits a second that arrived.
    pub(crate) fn run(&self, seconds: u16) -> Result<f64> {
        let target = match self.path.arm {
            Arm::Redirect | Arm::Kernel => TARGET,
            Arm::PlsRouter | Arm::Nftables => ROUTER,
        };
        let seconds = seconds.to_string();
        // What happens before the connection is at full speed is not counted.
        let options = ["--time", &seconds, "--omit", "1"];
        client::iperf3(&self.path.generator, (target, IPERF_PORT).into(), Direction::Up, &options)
    }
}
