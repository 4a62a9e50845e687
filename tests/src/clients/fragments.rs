//! Datagrams that do not fit into one packet.

use anyhow::{Context as _, Result, ensure};

use super::LIMIT;
use crate::{
    Lab,
    addresses::{ECHO_PORT, ENDPOINT, TOOLS},
    client::{self, Udp},
    witness::Witness,
};

/// The largest payload: 65535 bytes less 20 of IPv4 and 8 of UDP (or of an echo request).
const LARGEST: usize = 65507;

/// The witness saw fragments on both wires, and nothing wrong.
fn finish(witness: Witness, at_least: usize) -> Result<()> {
    let fragments = witness.finish_listing("firewall", "ip[6:2] & 0x3fff != 0")?.len();
    ensure!(fragments >= at_least, "only {fragments} fragments on the firewall's wire");
    Ok(())
}

fn echo(lab: &Lab, udp: &Udp, name: &str) -> Result<()> {
    // One byte too many for a packet; all of the second fragment; in between; the largest there is.
    for length in [1473, 1474, 2952, 2953, 4000, 9000, 30_001, LARGEST] {
        let bytes: Vec<u8> = (0..length).map(|index| (index * 31 + index / 251) as u8).collect();
        udp.echo(&bytes, LIMIT).with_context(|| format!("{name}, lab {}", lab.options.id))?;
    }
    Ok(())
}

/// Sends datagrams of up to the largest size, and has them echoed.
pub fn datagrams_of_64_kb_go_both_ways(lab: &Lab) -> Result<()> {
    let witness = Witness::start(lab)?;
    echo(lab, &Udp::open(&lab.hosts.serverless, (ENDPOINT, ECHO_PORT).into())?, "through a forward")?;
    echo(lab, &Udp::open(&lab.hosts.vm, (TOOLS, ECHO_PORT).into())?, "masqueraded")?;
    // The largest alone makes 45 fragments a way.
    finish(witness, 4 * 45)
}

/// Sends echo requests of up to the largest size.
pub fn large_pings_are_answered(lab: &Lab) -> Result<()> {
    let witness = Witness::start(lab)?;
    for size in [1473, 5000, LARGEST] {
        let answers = client::ping(&lab.hosts.vm, TOOLS, 3, &["-s", &size.to_string()])?;
        ensure!(answers == 3, "{answers} answers to 3 echo requests with {size} bytes");
    }
    finish(witness, 3 * 2 * 45)
}
