//! dig, over UDP and TCP.

use anyhow::{Result, ensure};

use super::finish;
use crate::{
    LARGE_RECORD, Lab,
    addresses::{ENDPOINT, NAMES},
    command, large_record,
    witness::Witness,
};

/// Asks the endpoint. Returns all that dig prints, or an error unless the answer is a good one over
/// this transport.
fn dig(lab: &Lab, transport: &str, args: &[&str]) -> Result<String> {
    let mut dig = lab.hosts.serverless.command("dig")?;
    // Nothing from a ~/.digrc.
    dig.args(["-r", &format!("@{ENDPOINT}"), "+tries=1", "+time=5"]).args(args);
    let answer = command::run(&mut dig)?;
    ensure!(answer.contains("status: NOERROR"), "{answer}");
    let server = format!("SERVER: {ENDPOINT}#53({ENDPOINT}) ({transport})");
    ensure!(answer.contains(&server), "not \"{server}\" in {answer}");
    Ok(answer)
}

/// The lines of the answer's records.
fn records(answer: &str) -> Vec<Vec<&str>> {
    let lines = answer.lines().filter(|line| !line.starts_with(';') && !line.is_empty());
    lines.map(|line| line.split_whitespace().collect()).collect()
}

/// The texts of a TXT record, put together.
fn text(answer: &str) -> String {
    records(answer).concat().iter().skip(4).map(|word| word.trim_matches('"')).collect()
}

/// Asks for all names over both, and for a record that makes dig go from one to the other.
pub fn names_resolve_over_udp_and_tcp(lab: &Lab) -> Result<()> {
    let witness = Witness::start(lab)?;
    for (transport, options) in [("UDP", ["+notcp"]), ("TCP", ["+tcp"])] {
        for (name, address, _) in NAMES {
            let answer = dig(lab, transport, &[&options[..], &[name, "A"]].concat())?;
            let (fully, address) = (format!("{name}."), address.to_string());
            let as_wanted = matches!(*records(&answer), [ref record]
                if matches!(**record, [name, _, "IN", "A", to] if name == fully && to == address));
            ensure!(as_wanted, "{name} should be {address}: {answer}");
        }
    }
    // Too large for what dig says it takes over UDP, so that it asks again over TCP.
    let answer = dig(lab, "TCP", &["+bufsize=512", LARGE_RECORD, "TXT"])?;
    ensure!(answer.contains("Truncated, retrying in TCP mode"), "{answer}");
    ensure!(text(&answer) == large_record(), "another text: {answer}");
    finish(witness)
}

/// Asks over UDP for a record that does not fit into a packet.
pub fn large_answers_come_in_fragments(lab: &Lab) -> Result<()> {
    let witness = Witness::start(lab)?;
    let answer = dig(lab, "UDP", &["+bufsize=4096", "+ignore", LARGE_RECORD, "TXT"])?;
    ensure!(text(&answer) == large_record(), "another text: {answer}");
    let fragments = witness.finish_listing("firewall", "ip[6:2] & 0x3fff != 0")?.len();
    ensure!(fragments >= 2, "only {fragments} fragments on the firewall's wire");
    Ok(())
}
