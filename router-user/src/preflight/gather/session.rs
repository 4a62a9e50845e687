//! The SSH session that this process was started from, by `SSH_CONNECTION` (ssh(1)).

use std::net::IpAddr;

use crate::preflight::facts::SshSession;

/// The session, if there is one.
pub(super) fn session() -> Option<SshSession> {
    const VARIABLE: &str = "SSH_CONNECTION";
    match std::env::var(VARIABLE) {
        Ok(connection) => parse(&connection),
        // sudo takes it away; what started sudo still has it.
        Err(_) => ancestors().find_map(|pid| variable(pid, VARIABLE)).as_deref().and_then(parse),
    }
}

/// "10.0.9.7 50714 10.0.2.68 22": the client's address and port, and the server's.
fn parse(connection: &str) -> Option<SshSession> {
    let mut fields = connection.split_whitespace();
    // A link's addresses name the interface, too: "fe80::7%eth0".
    let peer = fields.next()?.split('%').next()?.parse::<IpAddr>().ok()?;
    let port = fields.nth(2)?.parse().ok()?;
    Some(SshSession { peer: peer.to_canonical(), port })
}

/// The processes above this one, nearest first, without the first of all.
fn ancestors() -> impl Iterator<Item = u32> {
    std::iter::successors(Some(std::os::unix::process::parent_id()), |pid| parent(*pid))
        .take_while(|pid| *pid > 1)
}

fn parent(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

/// A variable that the process `pid` was started with.
fn variable(pid: u32, name: &str) -> Option<String> {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
    environment
        .split(|byte| *byte == 0)
        .filter_map(|entry| std::str::from_utf8(entry).ok())
        .find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::processes;

    #[test]
    fn connections() {
        let session = SshSession { peer: IpAddr::from([10, 0, 9, 7]), port: 2222 };
        let by_ipv6 = parse("fe80::7%eth0 50714 fe80::68%eth0 22").map(|session| session.peer.to_string());
        assert_eq!(by_ipv6.as_deref(), Some("fe80::7"));
        assert_eq!(parse("10.0.9.7 50714 10.0.2.68 2222"), Some(session.clone()));
        assert_eq!(parse("::ffff:10.0.9.7 50714 ::ffff:10.0.2.68 2222"), Some(session));
        for other in ["", "10.0.9.7", "10.0.9.7 50714 10.0.2.68", "UNKNOWN 1 UNKNOWN 22"] {
            assert_eq!(parse(other), None, "{other:?}");
        }
    }

    #[test]
    fn a_variable_of_another_process() {
        let mut other =
            processes::tests::running(std::process::Command::new("cat").env("FIRST_OF_TWO", "a=b"));
        assert_eq!(variable(other.id(), "FIRST_OF_TWO").as_deref(), Some("a=b"));
        assert_eq!(variable(other.id(), "FIRST_OF"), None);
        assert_eq!(parent(other.id()), Some(std::process::id()));
        drop(other.stdin.take());
        other.wait().unwrap();
    }
}
