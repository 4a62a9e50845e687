//! Faults of the machine and of whoever runs it: forwarding goes on where the kernel can, the probe
//! tells the truth, all is well again by itself, and the log says what happened, once.
//!
//! Other files have the faults that belong to their subject:
//!
//! | Fault | Test |
//! |---|---|
//! | The resolver is gone | `names::a_dead_name_server_does_not_remove_targets` |
//! | The NIC vanishes | `interfaces::the_only_nic_is_removed_and_made_again` |
//! | The pins are removed | `repairs::removed_pins_are_made_again` |
//! | A crash | `lifecycle::a_crash_loses_no_connection` |
//! | The log cannot be written | `upkeep::an_unread_log_does_not_block_the_daemon` |
//! | A start that fails in the middle | `starts` |

use std::{
    fs,
    net::SocketAddrV4,
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lab::{
    Lab, Nics, Options, Process,
    addresses::{ECHO_PORT, PLS_NAT, ROUTER, TOOLS, WWW},
    client::{Tcp, Udp},
    link::{self, XdpPass},
    wait,
};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CpuSet, sched_setaffinity},
    sys::signal::Signal,
    unistd::Pid,
};
use router_user::model::Status;

use crate::{
    common::{ECHO, LIMIT, check, helper, only_pls_router, router},
    lifecycle::{attached, pins, without_router},
    starts::start_with,
};

/// The time in which the daemon has to be well again.
const RECOVERY: Duration = Duration::from_secs(20);

fn lab() -> Lab {
    only_pls_router();
    check(Lab::up(Options::new(Nics::One, router(), helper())))
}

/// Both sessions are answered.
#[track_caller]
fn go_on(tcp: &mut Tcp, udp: &Udp, what: &[u8]) {
    check(tcp.echo(what, LIMIT));
    check(udp.echo(what, LIMIT));
}

/// Two sessions that are established.
#[track_caller]
fn sessions(lab: &Lab) -> (Tcp, Udp) {
    let mut tcp = check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT));
    let udp = check(Udp::open(&lab.hosts.serverless, ECHO));
    go_on(&mut tcp, &udp, b"before");
    (tcp, udp)
}

#[track_caller]
fn wait_until_healthy(lab: &Lab) -> Status {
    check(wait::until("a healthy router", RECOVERY, || {
        let status = lab.pls_router_status()?;
        ensure!(status.healthy && status.degraded.is_empty(), "{status:#?}");
        Ok(status)
    }))
}

/// The daemon stands still for a minute, and the kernel's messages to it are more than its sockets
/// hold. What has changed meanwhile is in force once it goes on.
#[test]
fn a_stopped_daemon_forwards_and_catches_up_with_what_it_missed() {
    /// Far more than the messages of a netlink socket's buffer.
    const ROUTES: u32 = 4_000;
    const STOPPED: Duration = Duration::from_secs(60);
    let mut lab = lab();
    let (mut tcp, udp) = sessions(&lab);
    // The load balancer sends no new flows to a router that does not answer, but the router opens
    // sessions for who comes. It has to know the neighbour.
    let newcomer = |lab: &Lab| {
        let direct = SocketAddrV4::new(ROUTER, ECHO_PORT);
        let mut opened = check(Tcp::connect_from(&lab.hosts.pls, PLS_NAT[0], direct, LIMIT));
        check(opened.echo(b"opened", LIMIT));
    };
    newcomer(&lab);
    let pid = check(lab.router()).pid();
    check(check(lab.router()).suspend());
    let stopped = Instant::now();
    check(lab.wait_out_of_service(LIMIT * 2));
    while stopped.elapsed() < STOPPED {
        go_on(&mut tcp, &udp, b"stopped");
        newcomer(&lab);
        thread::sleep(Duration::from_secs(1));
    }
    // In and out again, so that what is missed is only that something was.
    for verb in ["add", "del"] {
        let routes: String = (0..ROUTES)
            .map(|number| format!("route {verb} blackhole 10.99.{}.{}/32\n", number >> 8, number & 255))
            .collect();
        check(lab.hosts.router.ip(&routes));
    }
    check(lab.hosts.router.ip("link set eth0 mtu 1400"));
    check(lab.hosts.router.ip("route replace blackhole 203.0.113.99/32"));
    let said = check(lab.router()).output().len();
    check(check(lab.router()).signal(Signal::SIGCONT));
    check(lab.wait_in_service(RECOVERY));
    wait_until_healthy(&lab);
    go_on(&mut tcp, &udp, b"after");
    check(check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT)).echo(b"new", LIMIT));
    assert_eq!(check(lab.router()).pid(), pid);
    let log = check(lab.router()).output();
    assert!(!log.contains("ERROR"), "{log}");
    assert!(log[said..].matches("not forwarding").count() <= 1, "{log}");
}

/// Exactly one of them runs, and the other says why it does not.
#[test]
fn of_two_daemons_that_start_at_once_one_runs() {
    let lab = without_router();
    let configuration = lab.configuration(&lab.options.rules);
    check(lab.state().write("config.toml", &configuration));
    let mut daemons: Vec<Process> =
        ["one.toml", "two.toml"].map(|name| check(start_with(&lab, name, configuration.clone()))).into();
    check(wait::until("one of them to give up", RECOVERY, || {
        let ended: Vec<Option<ExitStatus>> = daemons.iter_mut().map(Process::ended).collect::<Result<_>>()?;
        ensure!(ended.iter().any(Option::is_some), "both run");
        Ok(())
    }));
    check(lab.wait_in_service(RECOVERY));
    let mut running = Vec::new();
    for mut daemon in daemons {
        match check(daemon.ended()) {
            None => running.push(daemon),
            Some(status) => {
                let said = daemon.output();
                assert_eq!(status.code(), Some(1), "{said}");
                assert!(
                    ["is running already", "is taken by", "another pls-router", "cannot listen"]
                        .iter()
                        .any(|reason| said.contains(reason)),
                    "{said}"
                );
            }
        }
    }
    assert_eq!(running.len(), 1, "both have ended");
    // The one that has given up has taken nothing away.
    let (mut tcp, udp) = sessions(&lab);
    assert!(attached(&lab, "eth0").is_some() && !pins(&lab).is_empty());
    wait_until_healthy(&lab);
    go_on(&mut tcp, &udp, b"after");
}

/// A file system with little room, unmounted at the end in any case.
struct Small(PathBuf);

impl Small {
    fn mount(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path).context("a directory")?;
        mount(Some("small"), &path, Some("tmpfs"), MsFlags::empty(), Some("size=64k,mode=700"))
            .context("cannot mount a tmpfs")?;
        Ok(Self(path))
    }

    /// Takes all room that is left.
    fn fill(&self) -> Result<PathBuf> {
        let path = self.0.join("ballast");
        // As much as there is room for: the last piece does not fit.
        let _full = fs::write(&path, vec![0; 1 << 20]);
        ensure!(fs::write(self.0.join("more"), [0; 4096]).is_err(), "there is room left");
        Ok(path)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _gone = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// The disk with the daemon's files and its log is full.
#[test]
fn a_full_disk_costs_only_what_would_be_written() {
    let lab = crate::names::lab_with(&format!("\"{}:{}\"", crate::names::NAME, ECHO_PORT));
    let small = check(Small::mount(lab.state().path("run")));
    let _dns = check(crate::names::Dns::start(&lab, &[TOOLS]));
    let ballast = check(small.fill());
    let own = lab.state().path("api.sock").display().to_string();
    let socket = small.0.join("api.sock").display().to_string();
    let configuration = lab.configuration(&lab.options.rules).replacen(&own, &socket, 1);
    let mut daemon = check(start_with(&lab, "full.toml", configuration));
    check(daemon.wait_until(RECOVERY, || lab.in_service()?.then_some(()).context("not in service")));
    let (mut tcp, udp) = sessions(&lab);
    let line = check(daemon.wait_for_log("names.json", RECOVERY));
    assert!(line.contains("No space left"), "{line}");
    go_on(&mut tcp, &udp, b"full");

    // There is room again, and the next answer is the same: it is written nevertheless.
    check(fs::remove_file(ballast).context("the ballast"));
    let memory = small.0.join("names.json");
    check(wait::until("the names to be written", Duration::from_secs(30), || {
        let text = fs::read_to_string(&memory).context("names.json")?;
        ensure!(text.contains(&TOOLS.to_string()), "{text}");
        Ok(())
    }));
    assert_eq!(daemon.output().matches("No space left").count(), 1, "{}", daemon.output());
    go_on(&mut tcp, &udp, b"after");
    check(daemon.kill());
}

/// Somebody has taken our program off and put another one in its place, while the daemon could not
/// see it. Kernel and daemon leave that where it is; the probe fails until it is gone.
#[test]
fn a_foreign_program_in_our_place_makes_the_probe_fail_until_it_is_gone() {
    let mut lab = lab();
    let (mut tcp, udp) = sessions(&lab);
    let pin = pins(&lab).into_iter().map(|layout| Path::new(&layout).join("links/native-eth0"));
    let pin = pin.clone().find(|pin| pin.exists()).expect("a pinned link");
    let pass = check(XdpPass::load(lab.state()));
    check(check(lab.router()).suspend());
    check(link::detach(&pin));
    check(pass.attach(&lab.hosts.router, "eth0"));
    let foreign = attached(&lab, "eth0");
    check(check(lab.router()).signal(Signal::SIGCONT));
    check(lab.wait_out_of_service(RECOVERY));
    check(wait::until("the reason", RECOVERY, || {
        let (code, body) = lab.health()?;
        ensure!(code == 503 && body.contains("eth0"), "{code} {body}");
        let (code, body) = lab.live()?;
        ensure!(code == 503 && body.starts_with("not live: ") && body.contains("eth0"), "{code} {body}");
        Ok(())
    }));
    assert_eq!(attached(&lab, "eth0"), foreign, "somebody else's program is not ours to take off");

    check(lab.hosts.router.ip("link set dev eth0 xdpdrv off"));
    check(lab.wait_in_service(RECOVERY));
    assert!(attached(&lab, "eth0").is_some_and(|ours| Some(ours) != foreign));
    assert_eq!(check(lab.live()).0, 200);
    go_on(&mut tcp, &udp, b"after");
    let log = check(lab.router()).output();
    assert_eq!(log.matches("the probe answers 503 reasons=\"eth0").count(), 1, "{log}");
}

/// A machine with one CPU, for the daemon at least.
#[test]
fn one_cpu_is_enough() {
    let lab = without_router();
    let path = check(lab.state().write("config.toml", lab.configuration(&lab.options.rules)));
    let mut command = check(lab.pls_router_command(&["run"], &path));
    keep_to_one_cpu(&mut command);
    let mut daemon = check(Process::spawn(lab.state(), "one-cpu", command));
    check(daemon.wait_until(RECOVERY, || lab.in_service()?.then_some(()).context("not in service")));
    let (mut tcp, udp) = sessions(&lab);
    // A packet that the daemon has to send.
    check(lab.hosts.router.ip("neigh flush dev eth0"));
    go_on(&mut tcp, &udp, b"punted");
    assert_eq!(check(lab.pls_router(&["status"])).status.code(), Some(0));
    assert!(check(daemon.terminate(LIMIT * 2)).success());
}

fn keep_to_one_cpu(command: &mut Command) {
    let keep = || {
        let mut cpus = CpuSet::new();
        cpus.set(0)?;
        Ok(sched_setaffinity(Pid::from_raw(0), &cpus)?)
    };
    // SAFETY: between fork and exec, the closure makes a system call only.
    unsafe { command.pre_exec(keep) };
}

/// Sets the limit of a process's address space.
fn limit_memory(pid: u32, limit: u64) -> Result<()> {
    let limits = libc::rlimit { rlim_cur: limit, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the kernel reads the structure, which outlives the call, and writes nothing.
    let result =
        unsafe { libc::prlimit(pid.cast_signed(), libc::RLIMIT_AS, &raw const limits, std::ptr::null_mut()) };
    ensure!(result == 0, "prlimit: {}", std::io::Error::last_os_error());
    Ok(())
}

/// The daemon gets no more memory: it goes on or ends, and the data plane forwards either way. The
/// next one takes over.
#[test]
fn without_memory_the_data_plane_forwards() {
    let mut lab = lab();
    let (mut tcp, udp) = sessions(&lab);
    let pid = check(lab.router()).pid();
    check(limit_memory(pid, 1 << 20));
    // Whatever these take, it is not to be had.
    for args in [&["flows"][..], &["status"], &["counters"], &["check", "--live"]] {
        let _answer = lab.pls_router(args);
        go_on(&mut tcp, &udp, b"no memory");
    }
    match check(check(lab.router()).ended()) {
        // As after the pressure on a machine is over.
        None => check(limit_memory(pid, libc::RLIM_INFINITY)),
        Some(status) => {
            assert!(!status.success(), "{status}");
            check(lab.start_router());
        }
    }
    check(lab.wait_in_service(RECOVERY));
    wait_until_healthy(&lab);
    go_on(&mut tcp, &udp, b"after");
}

/// A control group with a limit of memory, of either version of the kernel's interface. Dropping it
/// removes it, which takes that its processes have ended or left.
struct MemoryGroup {
    directory: PathBuf,
    usage: &'static str,
    limit: &'static str,
}

impl MemoryGroup {
    /// Makes one; skips the test where that is not possible.
    fn make() -> Self {
        const NAME: &str = "pls-router-memory";
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let places = mounts.lines().filter_map(|mount| {
            let mut words = mount.split(' ').skip(1);
            let (path, kind, options) = (words.next()?, words.next()?, words.next()?);
            let root = Path::new(path);
            let (usage, limit) = match kind {
                "cgroup2" => {
                    let controllers = fs::read_to_string(root.join("cgroup.controllers")).ok()?;
                    controllers.split_whitespace().find(|name| *name == "memory")?;
                    fs::write(root.join("cgroup.subtree_control"), "+memory").ok()?;
                    ("memory.current", "memory.max")
                }
                "cgroup" => {
                    options.split(',').find(|name| *name == "memory")?;
                    ("memory.usage_in_bytes", "memory.limit_in_bytes")
                }
                _ => return None,
            };
            let directory = root.join(format!("{NAME}-{}", std::process::id()));
            fs::create_dir(&directory).ok()?;
            Some(Self { directory, usage, limit })
        });
        let mut usable = places.filter(|group| group.directory.join(group.limit).exists());
        usable.next().unwrap_or_else(|| {
            harness::skip("no control group with the controller `memory` can be made on this machine")
        })
    }

    /// Moves a process here: what it takes from now on counts.
    fn enter(&self, pid: u32) -> Result<()> {
        self.write("cgroup.procs", &pid.to_string())
    }

    /// Allows so many bytes more than it has.
    fn allow_more(&self, bytes: u64) -> Result<()> {
        let usage = fs::read_to_string(self.directory.join(self.usage)).context(self.usage)?;
        self.write(self.limit, &(usage.trim().parse::<u64>()? + bytes).to_string())
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.directory.join(file);
        fs::write(&path, text).with_context(|| format!("{}: {text}", path.display()))
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let _gone = fs::remove_dir(&self.directory);
    }
}

/// The control group of the daemon, as a service's, has no memory for what the daemon is told to
/// take: that is refused, or the daemon is killed. What forwards goes on either way.
#[test]
fn what_a_control_group_has_no_memory_for_is_refused() {
    /// Less than the new table takes, and more than the rest of a reload.
    const ROOM: u64 = 128 << 20;
    let mut lab = lab();
    let group = MemoryGroup::make();
    let (mut tcp, udp) = sessions(&lab);
    check(group.enter(check(lab.router()).pid()));
    check(group.allow_more(ROOM));
    let path = lab.state().path("config.toml");
    let text = lab.configuration(&lab.options.rules);
    let large = text.replacen("flows = 65536", "flows = 2097152", 1);
    assert_ne!(large, text);
    check(fs::write(&path, &large).map_err(Into::into));
    let output = check(lab.pls_router(&["reload"]));
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    go_on(&mut tcp, &udp, b"no memory");
    check(fs::write(&path, &text).map_err(Into::into));
    if !(said.contains("limits.flows") && said.contains("memory")) {
        // The kernel has killed it, and may still be at it.
        let status = check(check(lab.router()).wait(LIMIT).context(said.into_owned()));
        assert!(!status.success(), "{status}");
        check(lab.start_router());
    }
    check(lab.wait_in_service(RECOVERY));
    assert_eq!(wait_until_healthy(&lab).flows.capacity, 65_536);
    go_on(&mut tcp, &udp, b"after");
    check(check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT)).echo(b"new", LIMIT));
    check(lab.stop_router(Signal::SIGTERM));
}

/// The power is gone in the middle of something: no program, no pin and no socket is left in the
/// kernel, and files are as they were when it happened.
#[test]
fn a_start_after_a_power_loss_starts_from_nothing() {
    let mut lab = lab();
    let _before = sessions(&lab);
    check(lab.stop_router(Signal::SIGKILL));
    for layout in pins(&lab) {
        for link in fs::read_dir(Path::new(&layout).join("links")).into_iter().flatten().flatten() {
            let _a_filter_is_gone_with_its_pin = link::detach(&link.path());
        }
    }
    check(fs::remove_dir_all(lab.state().path("bpf/pls-router")).context("the pins"));
    assert_eq!(attached(&lab, "eth0"), None);
    check(lab.hosts.router.sysctl("net/ipv4/conf/lo/forwarding", "0"));
    // Half of a file, and one of another boot; the socket's file is still there.
    check(lab.state().write("names.json", "{\"format\":1,\"names\":{\"echo.lab.ex"));
    check(lab.state().write(
        "draining.json",
        "{\"format\":1,\"boot\":\"00000000-0000-0000-0000-000000000000\",\"uptime_seconds\":1.0,\
         \"since\":\"2026-01-01T00:00:00Z\"}",
    ));
    assert!(lab.state().path("api.sock").exists());

    check(lab.start_router());
    check(lab.wait_in_service(RECOVERY));
    let status = wait_until_healthy(&lab);
    let (mut tcp, udp) = sessions(&lab);
    go_on(&mut tcp, &udp, b"after");
    let log = check(lab.router()).output();
    assert!(!log.contains("found the data plane of an earlier daemon"), "{log}");
    assert_eq!(log.matches("the last known addresses of names are lost").count(), 1, "{log}");
    assert!(status.reasons.is_empty(), "{status:#?}");
}

/// Has the kernel refuse every change of a pinned map by system calls from now on.
fn freeze(pin: &Path) -> Result<()> {
    // enum bpf_cmd, include/uapi/linux/bpf.h.
    const BPF_MAP_FREEZE: libc::c_long = 22;
    let map = aya::maps::MapData::from_pin(pin).with_context(|| pin.display().to_string())?;
    let descriptor: u32 = map.fd().as_fd().as_raw_fd().cast_unsigned();
    // SAFETY: the attributes of this command are one descriptor, which lives through the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_FREEZE, &raw const descriptor, size_of::<u32>()) };
    ensure!(result == 0, "cannot freeze {}: {}", pin.display(), std::io::Error::last_os_error());
    Ok(())
}

/// The rules in force stay, whole, and `status` says that they are not the wanted ones.
#[test]
fn rules_that_the_kernel_refuses_leave_those_in_force() {
    let mut lab = crate::names::lab_with(&format!("\"{}:{ECHO_PORT}\"", crate::names::NAME));
    lab.options.self_test = "1s".to_owned();
    let dns = check(crate::names::Dns::start(&lab, &[TOOLS]));
    check(lab.start_router());
    check(lab.wait_in_service(RECOVERY));
    let (mut tcp, udp) = sessions(&lab);
    let layout = pins(&lab).pop().expect("a layout");
    check(freeze(&Path::new(&layout).join("RULES")));
    check(dns.change(&lab, &[WWW]));
    check(wait::until("the condition", Duration::from_secs(30), || {
        let status = lab.pls_router_status()?;
        let told = status.conditions.iter().any(|condition| condition.id == "rules_outdated");
        ensure!(status.healthy && told, "{status:#?}");
        Ok(())
    }));
    go_on(&mut tcp, &udp, b"refused");
    // The self-test follows them: it neither fails nor stops.
    let before = check(lab.pls_router_status()).self_test.sessions;
    check(wait::until("self-tests", LIMIT * 4, || {
        let status = lab.pls_router_status()?;
        ensure!(status.self_test.sessions >= before + 8, "{:#?}", status.self_test);
        ensure!(status.healthy && status.self_test.failures == 0, "{status:#?}");
        Ok(())
    }));
    check(check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT)).echo(b"by the old rules", LIMIT));
    let log = check(lab.router()).output();
    assert_eq!(log.matches("degraded: the rules in force are outdated").count(), 1, "{log}");
    assert!(!log.contains("self_test_failed"), "{log}");

    // What is frozen stays so; a data plane from nothing has maps of its own.
    check(dns.change(&lab, &[TOOLS]));
    check(lab.stop_router(Signal::SIGTERM));
    check(lab.pls_router(&["detach"]));
    check(lab.start_router());
    check(lab.wait_in_service(RECOVERY));
    wait_until_healthy(&lab);
}

/// The clock is set back and forth on every machine, so no decision may depend on the time of day,
/// except where a time has to be known after a boot. It cannot be set in a test without setting it
/// for the whole machine.
#[test]
fn the_time_of_day_decides_nothing_but_the_age_of_a_name() {
    const MAY: [(&str, &str); 11] = [
        ("daemon/names/mod.rs", "the age of answers that an earlier boot has left"),
        ("daemon/names/memory.rs", "the same; one from the future is new"),
        ("daemon/drain/note.rs", "only shown: the age is by the time since boot"),
        ("daemon/clock.rs", "tells that it was set"),
        ("preflight/gather/programs.rs", "only shown"),
        ("daemon/serve/probe.rs", "only shown"),
        ("daemon/serve/reports.rs", "only shown"),
        ("cli/status.rs", "only shown"),
        ("cli/support_bundle.rs", "the file's name"),
        ("support/archive.rs", "times of files"),
        ("support/gather.rs", "only shown"),
    ];
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = Vec::new();
    for package in ["router-common/src", "router-ebpf/src", "router-user/src"] {
        let root = repository.join(package);
        let mut directories = vec![root.clone()];
        while let Some(directory) = directories.pop() {
            for entry in check(fs::read_dir(&directory).context("a directory")).flatten() {
                let path = entry.path();
                if path.is_dir() {
                    directories.push(path);
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    let text = check(fs::read_to_string(&path).context("a file"));
                    if ["SystemTime", "CLOCK_REALTIME", "ktime_get_tai"]
                        .iter()
                        .any(|word| text.contains(word))
                    {
                        found.push(path.strip_prefix(&root).unwrap_or(&path).display().to_string());
                    }
                }
            }
        }
    }
    let other: Vec<_> = found.iter().filter(|path| !MAY.iter().any(|(may, _)| may == path)).collect();
    assert!(other.is_empty(), "these know the time of day: {other:?}");
    assert!(found.len() >= 2, "nothing was read: this test tests nothing");
}
