//! Asking the kernel where packets leave, by the program that does it for packets.
//!
//! Route netlink (`ip route get`) cannot be asked the same: there, a source that is not this
//! machine's takes an incoming interface, and with that comes what the kernel checks of packets
//! that come in.

use anyhow::{Context as _, Result};
use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use router_common::{
    maps::route::{Answer, Query},
    wire::ETHERNET_LENGTH,
};

/// `XDP_DROP`, include/uapi/linux/bpf.h: the program has answered.
const ANSWERED: u32 = 1;

/// Runs the program on a query in place of a packet.
pub(super) fn ask(program: &mut Xdp, query: &Query) -> Result<Answer> {
    let mut frame = vec![0; ETHERNET_LENGTH + Answer::SIZE];
    frame[ETHERNET_LENGTH..][..Query::SIZE].copy_from_slice(&query.to_bytes());
    let mut out = vec![0; frame.len()];
    let options = TestRunOptions { data_in: Some(&frame), data_out: Some(&mut out), ..TestRunOptions::new() };
    let result = program.test_run(options).context("the kernel cannot be asked for a route")?;
    let answer = out.get(ETHERNET_LENGTH..).and_then(Answer::from_bytes);
    answer
        .filter(|_| result.return_value == ANSWERED)
        .context("the program that asks the kernel for a route gives no answer")
}
