//! The system packages that verbs need, and apt-get.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use crate::system;

/// What a package is needed for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Use {
    /// Network namespaces with hosts in them: lab, bench and the tests of the whole.
    Lab,
    /// What people run through a router, for the tests of that: clients, and servers for them.
    Clients,
    /// The fuzzer.
    Fuzz,
    /// Virtual machines with other kernels.
    Vm,
}

/// How to tell that a package's content is there, installed as that package or otherwise.
enum Sign {
    Program(&'static str),
    File(&'static str),
    /// A file below any directory of this one: Debian has a directory for each version.
    Versioned(&'static str, &'static str),
}

use Sign::{File, Program, Versioned};
use Use::{Clients, Fuzz, Lab, Vm};

/// One row a package of Debian and Ubuntu: its name, what of it is used, what for, and why.
const PACKAGES: &[(&str, Sign, Use, &str)] = &[
    ("iproute2", Program("ip"), Lab, "makes namespaces, links, addresses and routes"),
    ("ethtool", Program("ethtool"), Lab, "switches off offloads, so that packets look as on a wire"),
    ("iputils-ping", Program("ping"), Lab, "ICMP through the router"),
    ("curl", Program("curl"), Lab, "HTTP and TLS clients behind the router, and the health probe"),
    ("openssl", Program("openssl"), Lab, "certificates for the TLS servers of the lab"),
    ("iperf3", Program("iperf3"), Lab, "bulk TCP and UDP traffic"),
    ("tcpdump", Program("tcpdump"), Lab, "the independent observer: finds bad checksums"),
    ("dnsmasq-base", Program("dnsmasq"), Lab, "the lab's DNS server"),
    ("openssh-client", Program("ssh"), Lab, "what `deploy` reaches machines by, tested"),
    ("openssh-server", Program("sshd"), Lab, "its other end, started by tests in a namespace only"),
    ("sudo", Program("sudo"), Lab, "`deploy` as a user who is not root, tested"),
    ("nginx", Program("nginx"), Lab, "the lab's web servers, and its firewall's proxy"),
    (
        "libnginx-mod-stream",
        File("/usr/lib/nginx/modules/ngx_stream_module.so"),
        Lab,
        "that proxy: it reads the name that TLS asks for",
    ),
    (
        "nftables",
        Program("nft"),
        Lab,
        "the lab's Private Link Service and firewall, and the NAT to compare with",
    ),
    ("iptables", Program("iptables"), Lab, "another NAT to compare with, in the bench"),
    ("socat", Program("socat"), Lab, "in `deploy`'s tests, hears that the service is ready"),
    ("git", Program("git"), Clients, "git over HTTPS through the router, both ends"),
    ("lighttpd", Program("lighttpd"), Clients, "runs git's server behind nginx"),
    (
        "postgresql",
        Versioned("/usr/lib/postgresql", "bin/initdb"),
        Clients,
        "a database behind the router; tests make clusters of their own",
    ),
    ("postgresql-client", Program("psql"), Clients, "its client"),
    ("bind9-dnsutils", Program("dig"), Clients, "DNS through the router, over UDP and TCP"),
    ("traceroute", Program("traceroute"), Clients, "shows whether the router is seen as a hop"),
    ("mtr-tiny", Program("mtr"), Clients, "the same, many times over"),
    ("iputils-tracepath", Program("tracepath"), Clients, "finds the path MTU through the router"),
    ("coturn", Program("turnserver"), Clients, "a STUN server and client that tell what the NAT is like"),
    ("g++", Program("c++"), Fuzz, "compiles libFuzzer"),
    ("qemu-system-x86", Program("qemu-system-x86_64"), Vm, "the virtual machine"),
    ("busybox", Program("busybox"), Vm, "its shell"),
    ("cpio", Program("cpio"), Vm, "packs what it has instead of a disk"),
    ("binutils", Program("strip"), Vm, "makes that smaller"),
    ("xz-utils", Program("xz"), Vm, "unpacks its kernel's modules"),
    ("util-linux", Program("setpriv"), Vm, "ends it when its caller is ended"),
];

/// The services among them that Debian would start, now and at every boot.
const UNITS: &[(&str, &[&str])] = &[
    ("nginx", &["nginx.service"]),
    ("openssh-server", &["ssh.service", "ssh.socket"]),
    ("postgresql", &["postgresql.service"]),
    ("lighttpd", &["lighttpd.service"]),
    ("coturn", &["coturn.service"]),
];

/// Whether all that `uses` need is there already.
pub(crate) fn are_there(uses: &[Use]) -> bool {
    missing(uses).next().is_none()
}

fn missing(uses: &[Use]) -> impl Iterator<Item = &'static (&'static str, Sign, Use, &'static str)> {
    PACKAGES.iter().filter(move |(_, sign, usage, _)| uses.contains(usage) && !sign.is_there())
}

/// Installs the packages for `uses` that are missing, after saying which and why.
pub(crate) fn install(uses: &[Use]) -> Result<()> {
    let missing: Vec<_> = missing(uses).collect();
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("Installing system packages by apt-get; their services are neither started nor enabled:");
    for (name, _, _, why) in &missing {
        eprintln!("  {name:<20} {why}");
    }
    let names: Vec<_> = missing.iter().map(|(name, ..)| *name).collect();
    apt_install(&names)?;
    for (name, sign, ..) in missing {
        ensure!(sign.is_there(), "{name} is installed but did not bring {}", sign.name());
    }
    Ok(())
}

impl Sign {
    fn is_there(&self) -> bool {
        match self {
            Program(name) => system::find_program(name).is_some(),
            File(path) => Path::new(path).is_file(),
            Versioned(directory, file) => {
                let Ok(versions) = Path::new(directory).read_dir() else { return false };
                versions.flatten().any(|version| version.path().join(file).is_file())
            }
        }
    }

    fn name(&self) -> &str {
        match self {
            Program(name) | File(name) | Versioned(_, name) => name,
        }
    }
}

/// Whether Debian's package of that name is installed.
pub(crate) fn is_installed(name: &str) -> bool {
    Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status}", name])
        .stderr(Stdio::null())
        .output()
        .is_ok_and(|output| output.status.success() && output.stdout == b"installed")
}

/// Installs packages by one call of apt-get, without starting any service.
pub(crate) fn apt_install(names: &[&str]) -> Result<()> {
    let list = names.join(" ");
    if system::find_program("apt-get").is_none() {
        bail!("there is no apt-get here; please install by this system's means what Debian calls: {list}");
    }
    if !system::is_root() {
        bail!(
            "installing packages needs root\n\n    run: sudo apt-get install --no-install-recommends {list}"
        );
    }
    let new: Vec<_> = names.iter().copied().filter(|name| !is_installed(name)).collect();
    if !all_known(names) {
        eprintln!("  the package lists do not have all of them: updating the lists");
        update()?;
    }
    if let Err(error) = guarded_install(names) {
        // Lists that are too old name files that the mirror has no more.
        eprintln!("  {error:#}; updating the package lists and trying once more");
        update()?;
        guarded_install(names)?;
    }
    disable_units(&new);
    Ok(())
}

/// The names of packages that apt knows and that match a regular expression. Where there are none, the lists may be old, or not have been
/// fetched yet: root fetches them and looks once more.
pub(crate) fn named(pattern: &str) -> Result<Vec<String>> {
    let names = search(pattern)?;
    if !names.is_empty() || !system::is_root() {
        return Ok(names);
    }
    update()?;
    search(pattern)
}

fn search(pattern: &str) -> Result<Vec<String>> {
    let output = Command::new("apt-cache").args(["search", "--names-only", pattern]).output();
    let output = output.context("cannot start apt-cache")?;
    ensure!(output.status.success(), "apt-cache failed ({})", output.status);
    let lines = String::from_utf8_lossy(&output.stdout);
    Ok(lines.lines().filter_map(|line| Some(line.split_once(" - ")?.0.to_owned())).collect())
}

/// Fetches a package's archive into a folder, without installing it. That needs no root.
pub(crate) fn fetch(name: &str, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let download = || {
        // A user of apt's own, who fetches for root otherwise, may not write there.
        system::run(
            apt_get()
                .args(["--quiet=2", "-o", "APT::Sandbox::User=root", "download", name])
                .current_dir(folder),
        )
    };
    if let Err(error) = download() {
        if !system::is_root() {
            return Err(error);
        }
        // Lists that are too old name files that the mirror has no more.
        eprintln!("  {error:#}; updating the package lists and trying once more");
        update()?;
        download()?;
    }
    Ok(())
}

fn update() -> Result<()> {
    system::run(apt_get().args(["--quiet=2", "update"]))
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    // Somebody else's apt-get is waited for, but not for ever.
    command
        .args(["-o", "DPkg::Lock::Timeout=120"])
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null());
    command
}

/// Whether apt has a version to install of each.
fn all_known(names: &[&str]) -> bool {
    names.iter().all(|name| {
        Command::new("apt-cache")
            .args(["show", "--no-all-versions", name])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    })
}

/// What `policy-rc.d` is while packages are being installed. Debian asks it whether a service may start; 101: no.
const POLICY: &str = "#!/bin/sh\n# Left by `cargo xtask`, which is installing packages. Delete it if no apt-get is running.\nexit 101\n";

/// Runs `$2...` with `$1` in place as policy-rc.d, and takes it away again however the command ends.
///
/// A shell does this, not we, because it can clean up when Ctrl-C ends the whole group of processes. A file
/// that is already there is somebody's decision and stays, unless an earlier run of ours was killed and left it.
const GUARD: &str = r#"
policy=$1; text=$2; shift 2
if [ -f "$policy" ] && [ "$(cat "$policy"; echo x)" = "${text}x" ]; then rm -f "$policy"; fi
if (set -C; printf %s "$text" >"$policy") 2>/dev/null; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 130' INT TERM HUP
    chmod 755 "$policy"
else
    echo "  $policy exists and stays as it is: it decides which services may start"
fi
"$@"
"#;

fn guarded_install(names: &[&str]) -> Result<()> {
    let mut install = apt_get();
    // --no-remove: a package that conflicts with one of the user's is an error, not a removal.
    install.args([
        "--quiet",
        "--yes",
        "--no-install-recommends",
        "--no-remove",
        "-o",
        "Dpkg::Use-Pty=0",
        "install",
    ]);
    install.args(names);
    eprintln!("  $ {}", system::display(&install));
    let status = guarded(Path::new("/usr/sbin/policy-rc.d"), &install).status()?;
    ensure!(status.success(), "apt-get failed ({status})");
    Ok(())
}

fn guarded(policy: &Path, command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", GUARD, "sh"]).arg(policy).arg(POLICY);
    shell.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            shell.env(name, value);
        }
    }
    shell.stdin(Stdio::null());
    shell
}

/// Keeps the services of newly installed packages from starting at the next boot.
fn disable_units(new: &[&str]) {
    // Works on the links of units, without a running systemd.
    let systemctl = |verb: &str, unit: &str| {
        let status = Command::new("systemctl").args(["--quiet", verb, unit]).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    for unit in UNITS.iter().filter(|(package, _)| new.contains(package)).flat_map(|(_, units)| *units) {
        if systemctl("is-enabled", unit) && systemctl("disable", unit) {
            eprintln!("  {unit} will not start at boot; to have it do so: systemctl enable {unit}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    fn policy_file(test: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("xtask-policy-{test}-{}", std::process::id()));
        _ = fs::remove_file(&path);
        path
    }

    /// Runs `script` under the guard; returns whether it succeeded and what it wrote.
    fn under_guard(policy: &Path, script: &str) -> (bool, String) {
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh"]).arg(policy);
        let output = guarded(policy, &command).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    #[test]
    fn services_are_denied_while_installing_and_only_then() {
        let policy = policy_file("denied");
        let (success, output) = under_guard(&policy, "\"$1\"; echo $?");
        assert!(success);
        assert_eq!(output, "101\n");
        assert!(!policy.exists());
    }

    #[test]
    fn the_policy_goes_away_when_the_install_fails_or_is_interrupted() {
        let policy = policy_file("fails");
        assert!(!under_guard(&policy, "exit 100").0);
        assert!(!policy.exists());
        assert!(!under_guard(&policy, "kill -TERM $PPID; sleep 1").0);
        assert!(!policy.exists());
    }

    #[test]
    fn somebodys_own_policy_stays() {
        let policy = policy_file("own");
        fs::write(&policy, "#!/bin/sh\nexit 0\n").unwrap();
        assert!(under_guard(&policy, "true").0);
        assert_eq!(fs::read_to_string(&policy).unwrap(), "#!/bin/sh\nexit 0\n");
        fs::remove_file(&policy).unwrap();
    }

    #[test]
    fn what_a_killed_run_left_is_taken_away() {
        let policy = policy_file("left");
        fs::write(&policy, POLICY).unwrap();
        assert!(under_guard(&policy, "true").0);
        assert!(!policy.exists());
    }

    #[test]
    fn a_file_is_found_whatever_the_version() {
        let root = std::env::temp_dir().join(format!("xtask-versions-{}", std::process::id()));
        fs::create_dir_all(root.join("15/bin")).unwrap();
        let there = |file| {
            let directory: &'static str = root.display().to_string().leak();
            Versioned(directory, file).is_there()
        };
        assert!(!there("bin/initdb"));
        fs::write(root.join("15/bin/initdb"), "").unwrap();
        assert!(there("bin/initdb"));
        assert!(!there("bin/psql"));
        fs::remove_dir_all(&root).unwrap();
        assert!(!there("bin/initdb"));
    }

    #[test]
    fn each_package_is_listed_once() {
        let mut names: Vec<_> = PACKAGES.iter().map(|(name, ..)| name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), PACKAGES.len());
    }
}
