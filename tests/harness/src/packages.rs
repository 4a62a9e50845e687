//! The system packages that this project's verbs and tests use: one table for the code that
//! installs them and for the tests that miss one.

use std::{
    env, fmt,
    path::{Path, PathBuf},
};

/// A use of packages.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Use {
    /// Network namespaces with hosts in them: the lab, the bench and nearly all tests in
    /// namespaces.
    Lab,
    /// The tests of `cargo xtask deploy`.
    Deploy,
    /// The tests of the packages that `cargo xtask dist` makes.
    Dist,
    /// The bench, beside what the lab needs.
    Bench,
    /// The tests with programs that people run through a router: clients, and servers for them.
    Clients,
    /// The fuzzer.
    Fuzz,
    /// The checks of the Azure templates.
    Azure,
    /// Virtual machines with other kernels.
    Vm,
    /// A virtual machine of the other kind, beside what the others need.
    Arm,
    /// A whole Debian: in a virtual machine, beside what the others and the lab need, and in a
    /// directory, to install packages in.
    Machine,
}

/// The sign that a package's content is there, installed as that package or otherwise.
#[derive(Debug)]
pub enum Sign {
    /// All of these programs.
    Programs(&'static [&'static str]),
    /// A file.
    File(&'static str),
    /// A file below any directory of this one: Debian has a directory for each version.
    Versioned(&'static str, &'static str),
}

/// A package of Debian and Ubuntu.
#[derive(Debug)]
pub struct Package {
    /// Its name.
    pub name: &'static str,
    /// The files that show that the package is installed.
    pub sign: Sign,
    /// Its purpose, for messages.
    pub usage: Use,
    /// Why.
    pub why: &'static str,
}

use Sign::{File, Programs, Versioned};
use Use::{Arm, Azure, Bench, Clients, Deploy, Dist, Fuzz, Lab, Machine, Vm};

const fn package(name: &'static str, sign: Sign, usage: Use, why: &'static str) -> Package {
    Package { name, sign, usage, why }
}

/// All packages.
pub const ALL: &[Package] = &[
    package("iproute2", Programs(&["ip"]), Lab, "makes namespaces, links, addresses and routes"),
    package(
        "ethtool",
        Programs(&["ethtool"]),
        Lab,
        "switches off offloads, so that packets look as on a wire",
    ),
    package("iputils-ping", Programs(&["ping"]), Lab, "ICMP through the router"),
    package("curl", Programs(&["curl"]), Lab, "HTTP and TLS clients behind the router, and the health probe"),
    package("openssl", Programs(&["openssl"]), Lab, "certificates for the TLS servers of the lab"),
    package("iperf3", Programs(&["iperf3"]), Lab, "bulk TCP and UDP traffic"),
    package("tcpdump", Programs(&["tcpdump"]), Lab, "the independent observer: finds bad checksums"),
    package("dnsmasq-base", Programs(&["dnsmasq"]), Lab, "the lab's DNS server"),
    package("nginx", Programs(&["nginx"]), Lab, "the lab's web servers, and its firewall's proxy"),
    package(
        "libnginx-mod-stream",
        File("/usr/lib/nginx/modules/ngx_stream_module.so"),
        Lab,
        "that proxy: it reads the name that TLS asks for",
    ),
    package(
        "nftables",
        Programs(&["nft"]),
        Lab,
        "the lab's Private Link Service and firewall, and the NAT to compare with",
    ),
    package("openssh-client", Programs(&["ssh", "ssh-keygen"]), Deploy, "what `deploy` reaches machines by"),
    package("openssh-server", Programs(&["sshd"]), Deploy, "its other end, started in a namespace only"),
    package("sudo", Programs(&["sudo"]), Deploy, "`deploy` as a user who is not root"),
    package("socat", Programs(&["socat"]), Deploy, "hears that the service is ready"),
    package("lintian", Programs(&["lintian"]), Dist, "Debian's own checks of a package"),
    package("iptables", Programs(&["iptables"]), Bench, "another NAT to compare with, and rules to import"),
    package("git", Programs(&["git"]), Clients, "git over HTTPS through the router, both ends"),
    package("lighttpd", Programs(&["lighttpd"]), Clients, "runs git's server behind nginx"),
    package(
        "postgresql",
        Versioned("/usr/lib/postgresql", "bin/initdb"),
        Clients,
        "a database behind the router; tests make clusters of their own",
    ),
    package("postgresql-client", Programs(&["psql"]), Clients, "its client"),
    package("bind9-dnsutils", Programs(&["dig"]), Clients, "DNS through the router, over UDP and TCP"),
    package("traceroute", Programs(&["traceroute"]), Clients, "shows whether the router is seen as a hop"),
    package("mtr-tiny", Programs(&["mtr"]), Clients, "the same, many times over"),
    package("iputils-tracepath", Programs(&["tracepath"]), Clients, "finds the path MTU through the router"),
    package(
        "coturn",
        Programs(&["turnserver", "turnutils_natdiscovery"]),
        Clients,
        "a STUN server and client that tell what the NAT is like",
    ),
    package("g++", Programs(&["c++"]), Fuzz, "compiles libFuzzer"),
    package("python3", Programs(&["python3"]), Azure, "runs Terraform, which is a Python package here"),
    package(
        "python3-venv",
        Versioned("/usr/lib", "ensurepip/__init__.py"),
        Azure,
        "keeps that and its packages apart from the system's",
    ),
    package("qemu-system-x86", Programs(&["qemu-system-x86_64"]), Vm, "the virtual machine"),
    package("busybox-static", Programs(&["busybox"]), Vm, "its shell"),
    package("cpio", Programs(&["cpio"]), Vm, "packs what it has instead of a disk"),
    package("binutils", Programs(&["strip"]), Vm, "makes that smaller"),
    package("xz-utils", Programs(&["xz"]), Vm, "unpacks its kernel's modules"),
    package("util-linux", Programs(&["setpriv"]), Vm, "ends it when its caller is ended"),
    package(
        "qemu-system-arm",
        Programs(&["qemu-system-aarch64"]),
        Arm,
        "the virtual machine that what is built for arm64 is tried in",
    ),
    package("mmdebstrap", Programs(&["mmdebstrap"]), Machine, "makes that Debian"),
    package(
        "debian-archive-keyring",
        File("/usr/share/keyrings/debian-archive-keyring.gpg"),
        Machine,
        "tells that its packages are Debian's",
    ),
    package("e2fsprogs", Programs(&["mke2fs"]), Machine, "makes its disk"),
];

/// The packages for one use whose content is not there.
pub fn missing(usage: Use) -> impl Iterator<Item = &'static Package> {
    ALL.iter().filter(move |package| package.usage == usage && !package.sign.is_there())
}

/// The package of that name.
pub fn named(name: &str) -> Option<&'static Package> {
    ALL.iter().find(|package| package.name == name)
}

/// The package that a program is of, by the program's name.
pub fn with_program(program: &str) -> Option<&'static Package> {
    ALL.iter().find(|package| matches!(package.sign, Programs(programs) if programs.contains(&program)))
}

/// The error that a package is missing whose content is needed.
#[derive(Clone, Copy, Debug)]
pub struct Absent(pub &'static Package);

impl std::error::Error for Absent {}

impl fmt::Display for Absent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(Package { name, sign, .. }) = self;
        write!(f, "there is no {sign} here: Debian's package {name} has it")
    }
}

impl Sign {
    /// Returns `true` if the package is installed.
    pub fn is_there(&self) -> bool {
        match self {
            Programs(names) => names.iter().all(|name| find_program(name).is_some()),
            File(path) => Path::new(path).is_file(),
            Versioned(directory, file) => {
                let Ok(versions) = Path::new(directory).read_dir() else { return false };
                versions.flatten().any(|version| version.path().join(file).is_file())
            }
        }
    }
}

impl fmt::Display for Sign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Programs(names) => f.write_str(&names.join(", ")),
            File(path) => f.write_str(path),
            Versioned(directory, file) => write!(f, "{directory}/*/{file}"),
        }
    }
}

/// The first executable of that name on the PATH, or where root's programs are: a user's PATH often
/// lacks those.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn each_package_is_listed_once() {
        let mut names: Vec<_> = ALL.iter().map(|package| package.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
    }

    #[test]
    fn a_program_is_known_by_its_package() {
        assert_eq!(with_program("turnutils_natdiscovery").map(|package| package.name), Some("coturn"));
        assert!(with_program("pls-router").is_none());
    }

    #[test]
    fn a_package_is_there_with_all_its_programs_only() {
        assert!(Programs(&["sh"]).is_there());
        assert!(!Programs(&["sh", "no-such-program"]).is_there());
    }

    #[test]
    fn a_file_is_found_whatever_the_version() {
        let root = env::temp_dir().join(format!("harness-versions-{}", std::process::id()));
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
}
