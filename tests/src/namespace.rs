//! Network namespaces: made, entered and removed.

use std::{
    ffi::{CString, OsStr},
    fs::{self, File},
    io,
    net::SocketAddrV4,
    os::unix::{ffi::OsStrExt as _, process::CommandExt as _},
    panic,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context, Result, anyhow, ensure};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::signal::{SigSet, SigmaskHow, sigprocmask},
    unistd::setsid,
};

use crate::{command, interrupt, paths};

/// The directory of `ip netns`, so that `ip netns exec NAME` works on the lab's namespaces.
pub(crate) const NAMES: &str = "/run/netns";

/// A network namespace with a name, removed when the value is dropped (unless [`Namespace::leave`]
/// was called).
///
/// Programs are started in it by [`Namespace::command`], closures run in it by
/// [`Namespace::inside`].
#[derive(Debug)]
pub struct Namespace {
    name: String,
    /// A directory with `hosts`, `resolv.conf` and `group`, of which programs in here see those
    /// that are there in place of the machine's.
    etc: Option<PathBuf>,
    remove: bool,
}

impl Namespace {
    /// Makes a namespace: loopback up, no IPv6 (its neighbour and router discovery would only be
    /// noise on the wires).
    pub fn create(name: &str) -> Result<Self> {
        let namespace = {
            let _running = interrupt::gate();
            command::run(Command::new("ip").args(["netns", "add", name]))?;
            Self { name: name.to_owned(), etc: None, remove: true }
        };
        namespace.ip("link set lo up")?;
        for scope in ["all", "default"] {
            namespace.sysctl(&format!("net/ipv6/conf/{scope}/disable_ipv6"), "1")?;
            // A redirect would make a host go around the router, which Azure's network does not do
            // either.
            namespace.sysctl(&format!("net/ipv4/conf/{scope}/send_redirects"), "0")?;
            namespace.sysctl(&format!("net/ipv4/conf/{scope}/accept_redirects"), "0")?;
        }
        Ok(namespace)
    }

    /// A namespace that exists already; dropping the value leaves it alone.
    pub fn existing(name: &str) -> Result<Self> {
        ensure!(Path::new(NAMES).join(name).exists(), "there is no network namespace {name}");
        Ok(Self { name: name.to_owned(), etc: None, remove: false })
    }

    /// Gives programs in here the `hosts`, `resolv.conf` and `group` of this directory, as far as
    /// they are there.
    pub fn set_etc(&mut self, directory: &Path) {
        self.etc = Some(directory.to_owned());
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Dropping the value will not remove the namespace.
    pub fn leave(&mut self) {
        self.remove = false;
    }

    fn open(&self) -> Result<File> {
        let path = Path::new(NAMES).join(&self.name);
        File::open(&path).with_context(|| format!("cannot open the namespace {}", path.display()))
    }

    /// A command that will run in this namespace, with the namespace's own `/sys`, apart from our
    /// terminal's signals.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        self.prepare(program, true)
    }

    /// As [`Namespace::command`], but on our terminal: for a person's shell.
    pub fn interactive(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        self.prepare(program, false)
    }

    fn prepare(&self, program: impl AsRef<OsStr>, own_session: bool) -> Result<Command> {
        let namespace = self.open()?;
        let mut binds = Vec::new();
        if let Some(etc) = &self.etc {
            for file in ["group", "hosts", "resolv.conf"] {
                let (from, to) = (etc.join(file), Path::new("/etc").join(file));
                if from.exists() && to.exists() {
                    binds.push((c_string(from.as_os_str())?, c_string(to.as_os_str())?));
                }
            }
        }
        // A mount namespace is a copy, and a copy of another lab's bpffs would keep that lab's pins
        // alive.
        let mut others = Vec::new();
        for mounted in paths::bpf_mounts()? {
            if !paths::belongs_to(&mounted, &self.name) {
                others.push(c_string(mounted.as_os_str())?);
            }
        }

        let mut command = Command::new(program);
        let enter = move || -> io::Result<()> {
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
            if own_session {
                setsid()?;
            }
            setns(&namespace, CloneFlags::CLONE_NEWNET)?;
            unshare(CloneFlags::CLONE_NEWNS)?;
            let none = None::<&std::ffi::CStr>;
            mount(none, c"/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
            for other in &others {
                // Gone in the meantime is as good.
                let _gone = umount2(other.as_c_str(), MntFlags::MNT_DETACH);
            }
            // sysfs shows the devices of the namespace that it was mounted in.
            mount(Some(c"sysfs"), c"/sys", Some(c"sysfs"), MsFlags::empty(), none)?;
            for (from, to) in &binds {
                mount(Some(from.as_c_str()), to.as_c_str(), none, MsFlags::MS_BIND, none)?;
            }
            Ok(())
        };
        // SAFETY: between fork and exec the closure only makes system calls on values that were
        // made before; the paths are C strings, so nix has no reason to allocate.
        unsafe { command.pre_exec(enter) };
        Ok(command)
    }

    /// Runs a program in here to its end; see [`command::run`].
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        command::run(self.command(program)?.args(args)).with_context(|| format!("in {}", self.name))
    }

    /// Runs `ip` on this namespace, one command a line.
    pub fn ip(&self, lines: &str) -> Result<String> {
        let _running = interrupt::gate();
        command::run_with_input(Command::new("ip").args(["-n", &self.name, "-batch", "-"]), lines)
    }

    /// Loads an nftables script in here.
    pub fn nft(&self, script: &str) -> Result<()> {
        command::run_with_input(self.command("nft")?.args(["-f", "-"]), script).map(drop)
    }

    /// Sets a kernel parameter, named by its path below `/proc/sys`; one that this kernel lacks is
    /// skipped.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(name);
        self.inside(|| match fs::write(&path, value) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            written => written.with_context(|| format!("cannot write {value} to {}", path.display())),
        })?
    }

    /// Runs a closure in this namespace, on a new thread. Sockets that it opens stay in this
    /// namespace, even if other threads use them.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let namespace = self.open()?;
        thread::scope(|scope| {
            let thread = scope.spawn(|| -> Result<T> {
                setns(namespace, CloneFlags::CLONE_NEWNET)
                    .with_context(|| format!("cannot enter the namespace {}", self.name))?;
                Ok(work())
            });
            thread.join().unwrap_or_else(|panicked| panic::resume_unwind(panicked))
        })
    }

    /// Returns an error unless a socket in this namespace listens on this TCP port. Unlike a
    /// connection, this leaves no trace.
    pub fn listens_tcp(&self, port: u16) -> Result<()> {
        // Column 4 of a socket's line is its state, 0A is TCP_LISTEN (include/net/tcp_states.h).
        self.has_socket("tcp", &format!(":{port:04X}"), Some("0A"))
    }

    /// Returns an error unless a socket in this namespace has this UDP port.
    pub fn listens_udp(&self, port: u16) -> Result<()> {
        self.has_socket("udp", &format!(":{port:04X}"), None)
    }

    /// Returns an error unless a socket in this namespace has this UDP port of this address.
    pub fn listens_udp_at(&self, address: SocketAddrV4) -> Result<()> {
        // The kernel writes the bytes of the address in memory order.
        let ip = u32::from_ne_bytes(address.ip().octets());
        self.has_socket("udp", &format!("{ip:08X}:{:04X}", address.port()), None)
    }

    fn has_socket(&self, protocol: &str, local_ends: &str, state: Option<&str>) -> Result<()> {
        let path = format!("/proc/thread-self/net/{protocol}");
        let table =
            self.inside(|| fs::read_to_string(&path))?.with_context(|| format!("cannot read {path}"))?;
        table
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .find(|columns| match columns.as_slice() {
                [_, local, _, socket_state, ..] => {
                    local.ends_with(local_ends) && state.is_none_or(|state| state == *socket_state)
                }
                _ => false,
            })
            .map(drop)
            .ok_or_else(|| {
                anyhow!("no socket listens on {protocol} ..{local_ends} (hexadecimal) in {}", self.name)
            })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if self.remove
            && let Err(error) = remove(&self.name)
        {
            complain!("{error:#}");
        }
    }
}

/// Removes a namespace by name; its devices go with it once no process is left in it.
pub(crate) fn remove(name: &str) -> Result<()> {
    command::run(Command::new("ip").args(["netns", "del", name])).map(drop)
}

fn c_string(text: &OsStr) -> Result<CString> {
    CString::new(text.as_bytes()).with_context(|| format!("{} has a zero byte", text.display()))
}
