//! What cloud-init finds when the machine boots for the first time (its data source NoCloud).

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::ssh::{Keys, OPERATOR};
use crate::{
    Lab, Nics,
    addresses::{FIREWALL_ONE_NIC, FIREWALL_TWO_NICS, PLATFORM, PLS_GATEWAY, ROUTER, ROUTER_SECOND, VNET},
    hosts::internet::authority,
};

/// The MAC addresses of the NICs, by which the seed names them.
pub(super) const MACS: [&str; 2] = ["52:54:00:00:02:44", "52:54:00:00:03:04"];

/// The place in the machine at which [`Seed::mounted`] finds its files.
const MOUNT: &str = "/run/seed";

/// What a machine is made into at its first boot.
#[derive(Clone, Debug, Default)]
pub struct Seed {
    /// The user data: a script, or `#cloud-config`. The accounts that tests log in by are not in
    /// it: they are vendor data.
    pub user_data: Option<String>,
    /// Files that lie on a disk with the label CIDATA, by the names that they have there.
    pub files: Vec<(String, PathBuf)>,
    /// `true` if programs on the machine trust the lab's certificates.
    pub trusts_authority: bool,
}

impl Seed {
    /// Shell commands that make the files of the seed readable, and the directory in which they
    /// are.
    pub fn mounted() -> (String, &'static str) {
        (format!("mkdir -p {MOUNT} && mount -o ro LABEL=CIDATA {MOUNT}"), MOUNT)
    }

    /// Writes the files of the disk. Returns their directory.
    pub(super) fn write(&self, lab: &Lab, keys: &Keys) -> Result<PathBuf> {
        let directory = lab.state().directory("machine/seed")?;
        let write = |name: &str, text: &str| {
            let path = directory.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
        };
        write("meta-data", &format!("instance-id: {}\nlocal-hostname: router\n", lab.state().id()))?;
        write("network-config", &network(lab.options.nics))?;
        let authority = if self.trusts_authority { trust(&authority(lab.state()))? } else { String::new() };
        write("vendor-data", &(accounts(keys) + &authority))?;
        write("user-data", self.user_data.as_deref().unwrap_or("#cloud-config\n{}\n"))?;
        for (name, file) in &self.files {
            copy(file, &directory.join(name))?;
        }
        Ok(directory)
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display())).map(drop)
}

/// The addresses and routes of the router VM, as the lab's other routers have them.
fn network(nics: Nics) -> String {
    let (firewall, second) = match nics {
        Nics::One => (FIREWALL_ONE_NIC, String::new()),
        Nics::Two => {
            (FIREWALL_TWO_NICS, format!("{}    addresses: [{ROUTER_SECOND}/26]\n", nic("eth1", MACS[1])))
        }
    };
    let default = format!("      - {{to: 0.0.0.0/0, via: {firewall}}}\n");
    let (default_first, default_second) = match nics {
        Nics::One => (default, String::new()),
        Nics::Two => (String::new(), format!("    routes:\n{default}")),
    };
    format!(
        "version: 2\n\
         ethernets:\n\
         {}    addresses: [{ROUTER}/26]\n\
         \x20   nameservers: {{addresses: [{PLATFORM}]}}\n\
         \x20   routes:\n\
         \x20     - {{to: {VNET}, via: {PLS_GATEWAY}}}\n\
         \x20     - {{to: {PLATFORM}/32, via: {PLS_GATEWAY}}}\n\
         {default_first}{second}{default_second}",
        nic("eth0", MACS[0])
    )
}

fn nic(name: &str, mac: &str) -> String {
    format!("  {name}:\n    match: {{macaddress: \"{mac}\"}}\n    set-name: {name}\n")
}

/// Has programs on the machine trust a certificate. cloud-init's own way to (`ca_certs`) hashes all
/// certificates again, which takes minutes there.
fn trust(certificate: &Path) -> Result<String> {
    let text =
        fs::read_to_string(certificate).with_context(|| format!("cannot read {}", certificate.display()))?;
    let append = format!("cat >>/etc/ssl/certs/ca-certificates.crt <<'END'\n{}\nEND\n", text.trim());
    Ok(format!("bootcmd:\n  - |\n{}", indented(&append, 4)))
}

fn indented(text: &str, by: usize) -> String {
    text.lines().map(|line| format!("{:by$}{line}\n", "")).collect()
}

/// The accounts that tests log in by, and a host key that they know.
fn accounts(keys: &Keys) -> String {
    let Keys { user, host_private, host_public } = keys;
    let host_private = indented(host_private, 4);
    format!(
        "#cloud-config\n\
         # The image has no other.\n\
         locale: C.UTF-8\n\
         disable_root: false\n\
         ssh_deletekeys: true\n\
         ssh_keys:\n\
         \x20 ed25519_private: |\n\
         {host_private}\
         \x20 ed25519_public: {host_public}\n\
         users:\n\
         \x20 - name: root\n\
         \x20   lock_passwd: false\n\
         \x20   ssh_authorized_keys: [\"{user}\"]\n\
         \x20 - name: {OPERATOR}\n\
         \x20   shell: /bin/bash\n\
         \x20   sudo: \"ALL=(ALL) NOPASSWD:ALL\"\n\
         \x20   ssh_authorized_keys: [\"{user}\"]\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_route_leads_to_the_firewall() {
        let one = network(Nics::One);
        assert!(one.contains("{to: 0.0.0.0/0, via: 10.0.2.66}") && !one.contains("eth1"), "{one}");
        let two = network(Nics::Two);
        let second = two.split("  eth1:\n").nth(1).unwrap_or_default();
        assert!(second.contains("{to: 0.0.0.0/0, via: 10.0.3.1}"), "{two}");
    }
}
