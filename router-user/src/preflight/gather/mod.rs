//! From the machine to facts. Whatever cannot be found out is left `None`: that is no reason not to
//! start.

mod bypassed;
mod dump;
mod ethtool;
mod netlink;
mod programs;
mod routes;
mod session;
mod sockets;

use std::path::Path;

use super::facts::{Facts, Ipv6, Kernel, Predecessor, Privileges, Refused, SocketAccess, Ssh};
use crate::{
    config::Config,
    dataplane::{self, Pins},
    port_plan,
    private::{self, Refusal},
    sys::{bpffs, groups, proc_net, sysctl},
};

/// The names of the processes that people log in by. Where systemd holds the socket (`ssh.socket`),
/// so does the server from the first login on.
const SSH_SERVERS: &[&str] = &["sshd", "dropbear"];

/// Looks at the machine, with an eye on what `config` wants of it. Changes nothing.
pub async fn inspect(config: &Config) -> Facts {
    inspect_beside(config, &config.admin.pins).await
}

/// Looks at the machine as [`inspect`] does, while the router's pins are below `pins`.
pub async fn inspect_beside(config: &Config, pins: &Path) -> Facts {
    let interfaces = netlink::interfaces(config, pins).await.map_err(|error| error.to_string());
    let ports = [config.health.listen.port(), config.admin.listen.port()];
    Facts {
        privileges: privileges(),
        kernel: kernel(),
        interfaces,
        listeners: sockets::listeners(&ports, &config.admin.socket),
        ssh: Ssh { ports: sockets::ports_of(SSH_SERVERS), session: session::session() },
        ipv6: Ipv6 { interfaces: proc_net::ipv6_interfaces(), services: sockets::ipv6_services() },
        traffic_control: traffic_control(),
        own_ports: Some(own_ports(pins)),
        ip_forward: sysctl("net/ipv4/ip_forward").map(|value| value != "0"),
        policy_rules: routes::policy_rules().await.ok(),
        ways: routes::ways(config).await.unwrap_or_default(),
        ipsec: bypassed::ipsec_policies(),
        firewall: bypassed::firewall_chains(),
        pins_on_bpffs: bpffs::is_bpffs(&config.admin.pins).ok(),
        api: socket_access(&config.admin.socket),
        predecessors: predecessors(&config.admin.pins),
        refused: refused(config),
    }
}

fn traffic_control() -> Option<bool> {
    let directory = Path::new("/lib/modules").join(sysctl("kernel/osrelease")?);
    let lists = ["modules.builtin", "modules.dep"].map(|list| std::fs::read_to_string(directory.join(list)));
    let [builtin, modules] = lists.map(Result::ok);
    Some(has_modules(&[builtin?, modules?].concat()))
}

/// Returns `true` if lists of modules, as depmod writes them, have what `clsact` needs.
fn has_modules(lists: &str) -> bool {
    ["/sch_ingress.ko", "/cls_bpf.ko"].iter().all(|module| lists.contains(module))
}

fn own_ports(pins: &Path) -> port_plan::Kernel {
    let kernel = port_plan::Kernel::read();
    match dataplane::reserved_earlier(&Pins::at(pins)) {
        Ok(ours) => kernel.with_free(&ours),
        Err(_) => kernel,
    }
}

/// Finds out which users may use a socket. One that is not there yet will be root's, and that of
/// the group of onlookers if there is one.
fn socket_access(socket: &Path) -> SocketAccess {
    use std::os::unix::fs::MetadataExt as _;
    let look = |path: &Path| std::fs::metadata(path).ok().map(|found| (found.mode(), found.gid()));
    let (Some((mode, group)), Some((directory, directory_group))) =
        (look(socket), socket.parent().and_then(look))
    else {
        return groups::number(private::ONLOOKERS).map_or(SocketAccess::Root, SocketAccess::Group);
    };
    // To connect takes write permission (unix(7)), and to get there, search permission.
    let everyone_enters = directory & 0o001 != 0;
    let group_enters = everyone_enters || directory & 0o010 != 0 && directory_group == group;
    if mode & 0o002 != 0 && everyone_enters {
        SocketAccess::Everyone
    } else if mode & 0o020 != 0 && group_enters && group != 0 {
        SocketAccess::Group(group)
    } else {
        SocketAccess::Root
    }
}

/// Without the right to look, there is nothing to tell of.
fn predecessors(pins: &Path) -> Vec<Predecessor> {
    let others = Pins::others(pins).unwrap_or_default().into_iter();
    let predecessor = |other: Pins| Predecessor {
        directory: other.directory().to_owned(),
        interfaces: other.interfaces().unwrap_or_default(),
        sessions_move: dataplane::knows_layout(other.layout()),
    };
    others.map(predecessor).collect()
}

/// Finds the directories that `run` would refuse. Of what cannot be looked at, there is nothing to
/// tell.
fn refused(config: &Config) -> Vec<Refused> {
    let socket = config.admin.socket.parent().unwrap_or(Path::new("/"));
    let looks =
        [("admin.pins", Pins::at(&config.admin.pins).examine()), ("admin.socket", private::examine(socket))];
    let refusal = |(key, look): (_, Result<(), anyhow::Error>)| {
        let Refusal { why, fix } = look.err()?.downcast().ok()?;
        Some(Refused { key, why, fix })
    };
    looks.into_iter().filter_map(refusal).collect()
}

fn privileges() -> Option<Privileges> {
    // Bit numbers of <linux/capability.h>.
    const NET_ADMIN: u32 = 12;
    const SYS_ADMIN: u32 = 21;
    const BPF: u32 = 39;
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let effective = u64::from_str_radix(effective.trim(), 16).ok()?;
    let has = |bit: u32| effective & (1 << bit) != 0;
    Some(Privileges { bpf: has(BPF) || has(SYS_ADMIN), net_admin: has(NET_ADMIN) })
}

fn kernel() -> Option<Kernel> {
    let release = sysctl("kernel/osrelease")?;
    let version = kernel_version(&release)?;
    Some(Kernel { release, version })
}

/// The first two numbers of "6.8.0-1017-azure".
fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions() {
        assert_eq!(kernel_version("6.8.0-1017-azure"), Some((6, 8)));
        assert_eq!(kernel_version("6.18.44"), Some((6, 18)));
        assert_eq!(kernel_version("odd"), None);
    }

    #[test]
    fn modules() {
        let (builtin, modules) = ("kernel/net/sched/sch_ingress.ko\n", "kernel/net/sched/cls_bpf.ko.xz:\n");
        assert!(has_modules(&format!("{builtin}{modules}")));
        assert!(!has_modules(builtin) && !has_modules(modules) && !has_modules(""));
    }

    #[test]
    fn sockets() {
        use std::os::unix::fs::{PermissionsExt as _, chown};
        let place = tempfile::tempdir().unwrap();
        let socket = place.path().join("api.sock");
        assert_eq!(socket_access(&socket), SocketAccess::Root);
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let set = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        for (mode, directory, everyone) in
            [(0o660, 0o755, false), (0o666, 0o700, false), (0o666, 0o711, true), (0o662, 0o750, false)]
        {
            set(&socket, mode);
            set(place.path(), directory);
            let access = socket_access(&socket);
            assert_eq!(access == SocketAccess::Everyone, everyone, "{mode:o} {directory:o}");
        }
        // Only root may give something to any group.
        if chown(&socket, None, Some(1001)).is_ok() {
            set(&socket, 0o660);
            set(place.path(), 0o750);
            assert_eq!(socket_access(&socket), SocketAccess::Root);
            chown(place.path(), None, Some(1001)).unwrap();
            assert_eq!(socket_access(&socket), SocketAccess::Group(1001));
        }
    }

    #[test]
    fn directories_that_others_may_write() {
        use std::os::unix::fs::PermissionsExt as _;
        let place = tempfile::tempdir().unwrap();
        let pins = place.path().join("pins");
        let text = format!(
            "interfaces.pls = \"lo\"\nadmin = {{ pins = {pins:?}, socket = {:?} }}\n\
             masquerade = [{{ name = \"m\", sources = [\"10.0.0.0/8\"], destinations = [\"0.0.0.0/0\"] }}]\n",
            place.path().join("socket/api.sock"),
        );
        let config =
            Config::parse(&text, Path::new("test.toml")).map_err(|error| error.to_string()).unwrap().config;
        assert_eq!(refused(&config), []);
        for (directory, key) in [("pins", "admin.pins"), ("socket", "admin.socket")] {
            let path = place.path().join(directory);
            std::fs::create_dir(&path).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
            let [refused] = &refused(&config)[..] else { panic!("{key}") };
            let error = private::examine(&path).unwrap_err().to_string();
            assert_eq!((refused.key, format!("{}\n  fix: {}", refused.why, refused.fix)), (key, error));
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
    }

    #[tokio::test]
    async fn this_machine_can_be_inspected() {
        let text = "interfaces.pls = \"lo\"\n\
            masquerade = [{ name = \"m\", sources = [\"10.0.0.0/8\"], destinations = [\"0.0.0.0/0\"] }]\n";
        let config =
            Config::parse(text, Path::new("test.toml")).map_err(|error| error.to_string()).unwrap().config;
        let facts = inspect(&config).await;
        let interfaces = facts.interfaces.unwrap();
        let lo = interfaces.iter().find(|interface| interface.name == "lo").unwrap();
        assert!(lo.loopback && lo.index == 1 && lo.mtu > 0, "{lo:?}");
        assert!(facts.kernel.is_some() && facts.privileges.is_some() && facts.ip_forward.is_some());
    }
}
