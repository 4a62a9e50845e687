//! iperf3 with many streams.

use anyhow::{Result, ensure};

use super::finish;
use crate::{
    Lab,
    addresses::{ENDPOINT, IPERF_PORT},
    client::{self, Direction},
    witness::Witness,
};

/// The maximum that iperf3 allows.
const STREAMS: usize = 128;

/// Has iperf3 send and receive by as many streams as it can.
pub fn all_of_128_parallel_streams_transfer(lab: &Lab) -> Result<()> {
    let witness = Witness::start(lab)?;
    let streams = STREAMS.to_string();
    // No stream may take it all, and the witness has to keep up.
    let options = ["--parallel", &streams, "--time", "2", "--bitrate", "500k", "--length", "8K"];
    for direction in [Direction::Up, Direction::Down] {
        let target = (ENDPOINT, IPERF_PORT).into();
        let received = client::iperf3_streams(&lab.hosts.serverless, target, direction, &options)?;
        ensure!(received.len() == STREAMS, "{direction:?}: only {} streams", received.len());
        // Each of them is asked for 125,000 bytes.
        let slow: Vec<_> = received.iter().filter(|bytes| **bytes < 50_000).collect();
        ensure!(slow.is_empty(), "{direction:?}: streams got stuck after so many bytes: {slow:?}");
    }
    finish(witness)
}
