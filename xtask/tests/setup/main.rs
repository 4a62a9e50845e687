//! `cargo xtask setup --all` on a machine where nothing is installed yet, with a stand-in for apt:
//! what cannot be had is named, and takes nothing else with it.

// Its `#[test]` takes the place of the compiler's.
#[macro_use]
extern crate harness;

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::PathBuf,
    process::{Command, ExitCode},
};

use harness::packages::{self, Sign, Use};
use tempfile::TempDir;

fn main() -> ExitCode {
    harness::main(None)
}

/// Programs of this machine that setup and the stand-ins use.
const PROGRAMS: &[&str] = &["sh", "cat", "rm", "chmod", "mkdir"];

/// The stand-ins.
const STAND_INS: &[(&str, &str)] = &[
    ("apt-get", include_str!("apt-get")),
    ("apt-cache", include_str!("apt-cache")),
    ("dpkg-deb", include_str!("dpkg-deb")),
];

/// A machine with next to nothing on it.
struct Machine {
    place: TempDir,
}

/// The result of setup there.
struct Ran {
    code: Option<i32>,
    said: String,
    /// The calls of apt-get, and whether services were allowed to start.
    calls: Vec<String>,
}

impl Machine {
    fn new() -> Self {
        let machine = Self { place: tempfile::tempdir().expect("a directory") };
        for folder in ["bin", "packages", "conflicts", "unknown", "target"] {
            fs::create_dir(machine.path(folder)).expect("a directory");
        }
        for program in PROGRAMS {
            let real = packages::find_program(program).expect("every system has it");
            symlink(real, machine.path("bin").join(program)).expect("a link");
        }
        for (name, text) in STAND_INS {
            let path = machine.path("bin").join(name);
            fs::write(&path, text).expect("a file");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("permissions");
        }
        for package in packages::ALL {
            let programs = match package.sign {
                Sign::Programs(names) => names.join("\n") + "\n",
                Sign::File(_) | Sign::Versioned(..) => String::new(),
            };
            fs::write(machine.path("packages").join(package.name), programs).expect("a file");
        }
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    /// The package cannot be installed without the removal of `other`.
    fn conflict(&self, package: &str, other: &str) {
        fs::write(self.path("conflicts").join(package), other).expect("a file");
    }

    fn has(&self, program: &str) -> bool {
        self.path("bin").join(program).exists()
    }

    /// Runs setup, as root of a user namespace where we are not.
    fn setup(&self) -> Ran {
        let mut command = Command::new("unshare");
        if harness::no_root("").is_some() {
            command.arg("--map-root-user");
        }
        command.args(["--mount", "sh", "-c", include_str!("place.sh"), "sh"]);
        let possible = Command::new("unshare")
            .args(command.get_args().take_while(|word| *word != "sh"))
            .arg("true")
            .output()
            .expect("unshare is on every system");
        if !possible.status.success() {
            harness::skip(format!(
                "no mount namespaces: {}",
                String::from_utf8_lossy(&possible.stderr).trim()
            ));
        }
        let program = |name| packages::find_program(name).expect("every system has it");
        // By their paths: on this machine's PATH they are not there any more.
        command.arg(program("env"));
        command.arg(format!("PATH={}", self.path("bin").display()));
        command.args([env!("CARGO_BIN_EXE_xtask"), "setup", "--all"]);
        command.env("FAKE", self.place.path()).env("CARGO_TARGET_DIR", self.path("target"));
        // No compiler is looked for, or installed.
        command.env("PLS_ROUTER_BPF_RUSTC", self.path("no-rustc"));
        let output = command.output().expect("unshare is on every system");
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        println!("{}", said.concat());
        let calls = fs::read_to_string(self.path("calls")).unwrap_or_default();
        Ran {
            code: output.status.code(),
            said: said.concat(),
            calls: calls.lines().map(str::to_owned).collect(),
        }
    }
}

/// The programs of the packages for a use, but not of `without`.
fn programs(usage: Use, without: &[&str]) -> Vec<&'static str> {
    let wanted =
        packages::ALL.iter().filter(|package| package.usage == usage && !without.contains(&package.name));
    let programs = wanted.filter_map(|package| match package.sign {
        Sign::Programs(names) => Some(names),
        Sign::File(_) | Sign::Versioned(..) => None,
    });
    programs.flatten().copied().collect()
}

/// As with a qemu-utils that is newer than Debian's qemu, and another web server.
#[test]
fn a_conflict_takes_no_other_package_with_it() {
    let machine = Machine::new();
    machine.conflict("lighttpd", "their-web-server");
    machine.conflict("qemu-system-x86", "qemu-utils");
    let ran = machine.setup();

    assert!(
        ran.said.contains(
            "lighttpd (runs git's server behind nginx): it would remove their-web-server, which is installed"
        ),
        "the reason is not said"
    );
    for usage in [Use::Lab, Use::Deploy, Use::Bench, Use::Clients, Use::Fuzz] {
        for program in programs(usage, &["lighttpd"]) {
            assert!(machine.has(program), "there is no {program}");
        }
    }
    assert!(!machine.has("lighttpd"));
    // Packages are installed in one call, and one by one only if that fails.
    let calls = |with: &str| {
        ran.calls.iter().filter(|call| call.starts_with("install") && call.contains(with)).count()
    };
    assert_eq!((calls(" curl"), calls(" socat")), (1, 1), "{:#?}", ran.calls);
    // The first try, one more with new lists, and one for itself.
    assert_eq!(calls(" bind9-dnsutils"), 3, "{:#?}", ran.calls);
    assert_eq!(ran.calls.iter().filter(|call| *call == "update").count(), 1, "{:#?}", ran.calls);
}

#[test]
fn qemu_is_unpacked_and_not_installed() {
    let machine = Machine::new();
    machine.conflict("qemu-system-x86", "qemu-utils");
    let ran = machine.setup();
    for program in programs(Use::Vm, &[]) {
        assert!(!machine.has(program), "{program} is installed");
        assert!(machine.path("target/vm/tools/usr/bin").join(program).exists(), "{program} is not unpacked");
    }
    let downloads: Vec<_> = ran.calls.iter().filter(|call| call.starts_with("download")).collect();
    assert_eq!(downloads.len(), 1, "{:#?}", ran.calls);
    // With what it depends on, in the versions that belong together.
    assert!(downloads[0].contains(" libqemu-system-x86=1.0 qemu-system-x86=2:1.0-1 "), "{downloads:?}");
    assert!(ran.said.contains("virtual machine: ") && !ran.said.contains("virtual machine: none"));

    // Installed packages are not fetched again.
    let again = machine.setup();
    assert_eq!(
        again.calls.iter().filter(|call| call.starts_with("download")).count(),
        1,
        "{:#?}",
        again.calls
    );
}

#[test]
fn services_may_not_start_meanwhile() {
    let ran = Machine::new().setup();
    let policies: Vec<_> = ran.calls.iter().filter(|call| call.starts_with("policy")).collect();
    assert!(!policies.is_empty());
    assert!(policies.iter().all(|policy| *policy == "policy 101"), "{policies:?}");
}

#[test]
fn without_a_mirror_everything_is_named_with_the_reason() {
    let machine = Machine::new();
    fs::write(machine.path("broken"), "").expect("a file");
    let ran = machine.setup();
    // The groups of tests that need the others get them.
    let is_for_setup = |package: &&packages::Package| {
        !matches!(package.usage, Use::Arm | Use::Azure | Use::Machine | Use::Vm)
    };
    for package in packages::ALL.iter().filter(is_for_setup) {
        let line = format!("{} ({}): Failed to fetch a package", package.name, package.why);
        assert!(ran.said.contains(&line), "nothing about {}", package.name);
    }
    assert!(ran.said.contains("virtual machine: none"));
    assert!(ran.said.contains("not ready: "));
    assert_eq!(ran.code, Some(1));
}

/// The compiler and the packages are separate things.
#[test]
fn without_a_compiler_the_packages_are_installed() {
    let machine = Machine::new();
    let ran = machine.setup();
    assert!(ran.said.contains("cannot compile the BPF programs"));
    assert!(machine.has("tcpdump") && machine.has("dig"));
    assert_eq!(ran.code, Some(1));
}
