//! The commands of the guides that need systemd, dpkg and sshd: in blocks (`console machine`), and
//! within sentences.

use std::path::Path;

use anyhow::{Result, anyhow};
use harness::guides::{self, Block, Outcome, Runner, Step, accounts};
use lab::machine::Machine;

use crate::{
    common::{configuration, package},
    full::nothing_is_left,
};

/// The package, as a guide names it.
const FILE: &str = "pls-router_VERSION_amd64.deb";

/// Gives the machine what a reader's has, and this small one does not: documentation, a service
/// that sets the clock, a known host, and somebody who says yes to apt.
const PREPARE: &str = r#"set -e
rm -f /etc/dpkg/dpkg.cfg.d/99mmdebstrap
mkdir -p /usr/lib/systemd/ntp-units.d /root/.ssh
echo stand-in.service >/usr/lib/systemd/ntp-units.d/50-stand-in.list
printf '[Service]\nExecStart=sleep infinity\n[Install]\nWantedBy=multi-user.target\n' >/etc/systemd/system/stand-in.service
systemctl daemon-reload
systemctl stop systemd-timedated
echo "host $(cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub)" >>/root/.ssh/known_hosts
echo 'APT::Get::Assume-Yes "true";' >/etc/apt/apt.conf.d/yes
"#;

/// Runs the commands in the order of the pages, on a machine without a router, and takes off what
/// they have installed.
pub(crate) fn commands(machine: &Machine) -> Result<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let pages = guides::pages(&root).map_err(|wrong| anyhow!("{}", wrong.join("\n")))?;
    machine.ssh(PREPARE)?;
    machine.copy(&package(), &format!("/root/{FILE}"))?;
    let mut in_blocks = 0;
    for page in &pages {
        for block in &page.blocks {
            let Block::Commands { runner: Runner::Machine, commands } = block else { continue };
            for step in commands {
                follow(machine, &page.path, step)?;
                if step.command.ends_with("# and edit it") {
                    machine.ssh_with_input("cat >/etc/pls-router/config.toml", &configuration())?;
                }
                in_blocks += 1;
            }
        }
    }
    let inline = accounts::inline(&pages, Runner::Machine);
    for (page, step) in &inline {
        follow(machine, page, step)?;
        if step.command.contains(" stop ") {
            machine.ssh("systemctl start pls-router")?;
        }
    }
    machine.ssh("DEBIAN_FRONTEND=noninteractive dpkg --purge pls-router </dev/null")?;
    let left = nothing_is_left(machine)?;
    Ok(format!("{in_blocks} commands in blocks and {} within sentences; at the end {left}", inline.len()))
}

fn follow(machine: &Machine, page: &Path, step: &Step) -> Result<()> {
    step.follow(page, |line| run(machine, line)).map(drop).map_err(|wrong| anyhow!(wrong))
}

/// Runs a command line, with names for what a reader puts there.
fn run(machine: &Machine, line: &str) -> Outcome {
    let mut line = line.replace("FILE", FILE).replace("USER", "nobody");
    if line.starts_with("systemctl edit ") {
        // An editor wants a terminal. This one changes nothing.
        line = format!("SYSTEMD_EDITOR=true script --quiet --return --command '{line}' /dev/null");
    }
    match machine.ssh(&format!("cd /root; ( {line}\n) </dev/null 2>&1; echo \"\n$?\"")) {
        Ok(said) => {
            let (said, code) = said.trim_end().rsplit_once('\n').unwrap_or(("", &said));
            Outcome { code: code.trim().parse().ok(), said: said.to_owned() }
        }
        Err(error) => Outcome { code: None, said: format!("{error:#}") },
    }
}
