//! iperf3 with many streams.

use anyhow::{Result, ensure};
use lab::{
    addresses::{ENDPOINT, IPERF_PORT},
    client::{self, Direction},
    witness::Witness,
};

use crate::stage::{Stage, finish};

/// The maximum that iperf3 allows.
const STREAMS: usize = 128;

pub(crate) fn all_of_128_parallel_streams_transfer(stage: &Stage) -> Result<()> {
    let lab = stage.lab()?;
    let witness = Witness::start(&lab)?;
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
