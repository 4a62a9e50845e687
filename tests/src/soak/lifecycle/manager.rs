//! The service manager's part: it starts the daemon, hears when it is ready, and keeps the
//! descriptors that the daemon gives it over a restart or a crash, as systemd does for a unit with
//! `FileDescriptorStoreMax=` (sd_notify(3), sd_listen_fds(3), systemd.service(5)).

use std::{
    fs::{self, File},
    io::IoSliceMut,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::{net::UnixDatagram, process::CommandExt as _},
    },
    path::PathBuf,
    process::Command,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{
    cmsg_space,
    sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, UnixCredentials, recvmsg, setsockopt, sockopt},
};

use crate::{Process, command, soak::place::Place, wait};

/// The time that the daemon gets to be ready: there may be little CPU time for it.
const START_LIMIT: Duration = Duration::from_secs(60);
/// The time that a daemon gets to end.
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// The most descriptors in a message, and in the store.
const MOST: usize = 16;
/// The first descriptor that is passed on (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;

/// The descriptors and words of the daemon's notifications.
#[derive(Debug, Default)]
struct Heard {
    store: Vec<(String, OwnedFd)>,
    /// Processes that have said that they are ready.
    ready: Vec<i32>,
}

/// The service.
pub(super) struct Manager<'p> {
    place: &'p Place,
    socket: PathBuf,
    heard: Arc<Mutex<Heard>>,
    over: Arc<AtomicBool>,
    listener: Option<JoinHandle<()>>,
    main: Option<Process>,
    /// So that no descriptor of this process has a number that the daemon gets: the standard
    /// library's own, with which it starts a process, would be among those replaced.
    _low: Vec<File>,
}

impl<'p> Manager<'p> {
    pub(super) fn new(place: &'p Place) -> Result<Self> {
        let mut low = Vec::new();
        loop {
            let file = File::open("/dev/null").context("cannot open /dev/null")?;
            if file.as_raw_fd() >= FIRST + MOST as RawFd {
                break;
            }
            low.push(file);
        }
        let path = place.file("notify");
        let socket = UnixDatagram::bind(&path).with_context(|| format!("cannot bind {}", path.display()))?;
        setsockopt(&socket, sockopt::PassCred, &true).context("cannot ask for credentials")?;
        socket.set_read_timeout(Some(Duration::from_millis(50))).context("cannot set a timeout")?;
        let (heard, over) = (Arc::<Mutex<Heard>>::default(), Arc::new(AtomicBool::new(false)));
        let (to, end) = (heard.clone(), over.clone());
        let listener = thread::Builder::new().name("manager".to_owned()).spawn(move || {
            while !end.load(Ordering::Relaxed) {
                hear(&socket, &to);
            }
        });
        let listener = Some(listener.context("cannot start a thread")?);
        Ok(Self { place, socket: path, heard, over, listener, main: None, _low: low })
    }

    /// Starts the daemon with the descriptors of the store. Returns the time until it was ready
    /// and healthy.
    pub(super) fn start(&mut self) -> Result<Duration> {
        let began = Instant::now();
        let mut command = self.command(&["run"])?;
        self.pass_descriptors(&mut command);
        self.main = Some(self.wait_until_ready(command)?);
        Ok(began.elapsed())
    }

    /// SIGTERM, some time without a daemon, and a start.
    pub(super) fn restart(&mut self, absence: Duration) -> Result<Duration> {
        let mut main = self.main.take().context("no daemon runs")?;
        let status = main.terminate(STOP_LIMIT)?;
        ensure!(status.success(), "the daemon ended with {status}: {}", main.output());
        thread::sleep(absence);
        self.start()
    }

    /// SIGKILL, some time without a daemon, and a start.
    pub(super) fn crash(&mut self, absence: Duration) -> Result<Duration> {
        self.main.take().context("no daemon runs")?.kill()?;
        thread::sleep(absence);
        self.start()
    }

    /// Ends the daemon, forgets its descriptors, and starts another that no service manager runs.
    pub(super) fn leave(&mut self) -> Result<()> {
        let status = self.main.take().context("no daemon runs")?.terminate(STOP_LIMIT)?;
        ensure!(status.success(), "the daemon ended with {status}");
        self.heard().store.clear();
        self.main = Some(self.wait_until_running(&["run"])?);
        Ok(())
    }

    /// Starts a second daemon that takes over from the first one, which no service manager runs.
    /// Returns the time until the first one has ended, and the second one is healthy.
    pub(super) fn upgrade(&mut self) -> Result<Duration> {
        let began = Instant::now();
        let next = self.wait_until_running(&["run", "--take-over"])?;
        let mut old = self.main.replace(next).context("no daemon ran")?;
        let status = old.wait(STOP_LIMIT).context("the old daemon does not end")?;
        ensure!(status.success(), "the old daemon ended with {status}: {}", old.output());
        Ok(began.elapsed())
    }

    /// Starts a daemon that has nobody to tell that it is ready, and waits until it says so in its
    /// log.
    fn wait_until_running(&self, args: &[&str]) -> Result<Process> {
        let mut daemon = self.place.spawn("pls-router", self.place.pls_router(args)?)?;
        daemon.wait_for_log("INFO running", START_LIMIT)?;
        self.wait_until_healthy()?;
        Ok(daemon)
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A command of pls-router as the service manager runs it. The shell knows the number of the
    /// process, which the daemon compares with its own.
    fn command(&self, args: &[&str]) -> Result<Command> {
        let mut command = self.place.in_router("sh")?;
        command
            .args(["-c", "LISTEN_PID=$$; export LISTEN_PID; exec \"$0\" \"$@\""])
            .arg(self.place.binary())
            .args(args);
        command.env("NOTIFY_SOCKET", &self.socket);
        Ok(command)
    }

    /// Has the command inherit the store's descriptors, under the numbers that systemd gives them.
    fn pass_descriptors(&self, command: &mut Command) {
        let heard = self.heard();
        let names: Vec<_> = heard.store.iter().map(|(name, _)| name.as_str()).collect();
        if names.is_empty() {
            return;
        }
        command.env("LISTEN_FDS", names.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        // The store is not touched until the command is started.
        let numbers: Vec<RawFd> = heard.store.iter().map(|(_, descriptor)| descriptor.as_raw_fd()).collect();
        let pass = move || {
            for (to, from) in (FIRST..).zip(&numbers) {
                // SAFETY: takes numbers only.
                if unsafe { libc::dup2(*from, to) } < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        };
        // SAFETY: between fork and exec, the closure makes system calls only.
        unsafe { command.pre_exec(pass) };
    }

    /// Starts a daemon, and waits until it has said that it is ready and `status` agrees.
    fn wait_until_ready(&self, command: Command) -> Result<Process> {
        let mut daemon = self.place.spawn("pls-router", command)?;
        let pid = daemon.pid().cast_signed();
        daemon.wait_until(START_LIMIT, || {
            ensure!(self.heard().ready.contains(&pid), "it has not said that it is ready");
            Ok(())
        })?;
        self.wait_until_healthy()?;
        Ok(daemon)
    }

    fn wait_until_healthy(&self) -> Result<()> {
        wait::until("a healthy router", START_LIMIT, || {
            command::run(&mut self.place.pls_router(&["status"])?).map(drop)
        })
    }
}

impl Drop for Manager<'_> {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(listener) = self.listener.take() {
            // It has nothing to tell.
            let _panicked = listener.join();
        }
    }
}

/// Receives a notification, if there is one.
fn hear(socket: &UnixDatagram, heard: &Mutex<Heard>) {
    let mut bytes = [0; 4096];
    let mut space = cmsg_space!([RawFd; MOST], UnixCredentials);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let Ok(message) = recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags) else {
        return;
    };
    let mut descriptors = Vec::new();
    let mut pid = 0;
    for part in message.cmsgs().into_iter().flatten() {
        if let ControlMessageOwned::ScmRights(numbers) = part {
            // SAFETY: the kernel has just made these descriptors for this process.
            descriptors.extend(numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }));
        } else if let ControlMessageOwned::ScmCredentials(credentials) = part {
            pid = credentials.pid();
        }
    }
    let length = message.bytes;
    let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
    let name = value("FDNAME").unwrap_or("stored");
    if value("READY") == Some("1") {
        heard.ready.push(pid);
    }
    if value("FDSTOREREMOVE") == Some("1") {
        heard.store.retain(|(stored, _)| stored != name);
    }
    if value("FDSTORE") == Some("1") {
        for descriptor in descriptors {
            let is_there = heard.store.iter().any(|(_, stored)| same(stored, &descriptor));
            if !is_there && heard.store.len() < MOST {
                heard.store.push((name.to_owned(), descriptor));
            }
        }
    }
}

/// Returns `true` if two descriptors are of the same socket or file: systemd keeps it once.
fn same(one: &OwnedFd, other: &OwnedFd) -> bool {
    let target =
        |descriptor: &OwnedFd| fs::read_link(format!("/proc/self/fd/{}", descriptor.as_raw_fd())).ok();
    target(one).is_some_and(|path| Some(path) == target(other))
}
