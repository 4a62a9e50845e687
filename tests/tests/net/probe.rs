//! No one can starve the load balancer's probe, or use up the resources that the probe shares with
//! the daemon's other listeners.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lab::{
    Lab, Namespace, Nics, Options,
    addresses::{ECHO_PORT, HEALTH_PORT, PLATFORM, PLS_NAT, ROUTER, VM},
    client::connect_from,
    flood::{Flood, SynFlood},
    wait,
};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::signal::Signal,
    unistd::Pid,
};

use crate::common::{LIMIT, check, counters, helper, only_pls_router, reason, router};

const PROBE: SocketAddrV4 = SocketAddrV4::new(ROUTER, HEALTH_PORT);
const METRICS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9090);
/// An unused address of the router's network.
const UNUSED: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
/// Less than Azure's load balancer waits (5 s and more), and enough for a machine that has other
/// things to do as well.
const PATIENCE: Duration = Duration::from_secs(3);
/// Longer than anything takes that the probe is asked during.
const ENDLESS: Duration = Duration::from_secs(120);
/// A user who is not root.
pub(crate) const USER: libc::uid_t = 65534;
/// Another one.
const OTHER_USER: libc::uid_t = 65533;

fn lab(nics: Nics) -> Lab {
    only_pls_router();
    check(Lab::up(Options::new(nics, router(), helper())))
}

/// The status and the whole answer to a request, from one of a host's addresses. The thread that
/// asks does `first` before.
fn answer_to(
    (from, source): (&Namespace, Ipv4Addr),
    target: SocketAddrV4,
    request: &str,
    first: impl FnOnce() -> io::Result<()> + Send,
) -> Result<(u16, String)> {
    let answer = from.inside(|| -> Result<String> {
        first()?;
        let mut stream = connect_from(source, target, PATIENCE)?;
        stream.write_all(request.as_bytes()).context("cannot ask")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).context("no answer")?;
        Ok(answer)
    })??;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.with_context(|| format!("not HTTP: {answer:?}"))?, answer))
}

/// The status and body of what is asked for in plain HTTP/1.0, from one of a host's addresses.
fn ask_at(from: &Namespace, source: Ipv4Addr, target: SocketAddrV4, request: &str) -> Result<(u16, String)> {
    let (status, answer) = answer_to((from, source), target, request, || Ok(()))?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((status, body.to_owned()))
}

fn ask(from: &Namespace, source: Ipv4Addr) -> Result<(u16, String)> {
    ask_at(from, source, PROBE, "GET / HTTP/1.0\r\n\r\n")
}

/// Makes this thread another user's, who is in no group of root's, and which has no way back. Only
/// the system calls do that to one thread alone.
pub(crate) fn become_user(user: libc::uid_t) -> io::Result<()> {
    become_member(user, &[])
}

/// The same, for a user who is in these groups.
pub(crate) fn become_member(user: libc::uid_t, groups: &[libc::gid_t]) -> io::Result<()> {
    // SAFETY: takes numbers, and groups that outlive the call and are as many.
    let results = unsafe {
        [
            libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()),
            libc::syscall(libc::SYS_setresgid, user, user, user),
            libc::syscall(libc::SYS_setresuid, user, user, user),
        ]
    };
    if results == [0; 3] { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets the limit of open files of a process, up to its hard limit.
fn set_descriptor_limit(pid: u32, limit: u64) -> io::Result<()> {
    let mut old = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let pid = pid.cast_signed();
    // SAFETY: the kernel fills the structure, which outlives the call, and reads nothing.
    let result = unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, std::ptr::null(), &raw mut old) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let new = libc::rlimit { rlim_cur: limit.min(old.rlim_max), ..old };
    // SAFETY: the kernel reads the structure, which outlives the call, and writes nothing.
    let result = unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, &raw const new, std::ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets this process have many open files.
fn many_descriptors() {
    check(set_descriptor_limit(std::process::id(), 16_384).context("prlimit"));
}

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map(Iterator::count).unwrap_or_default()
}

/// An assault on the probe's port, over and over, by threads of his own.
#[derive(Clone, Copy, Debug)]
enum Assault {
    /// Opens connections and says nothing.
    Idle,
    /// Sends requests a byte at a time.
    Loris,
    /// Sends half a request.
    Half,
    /// Sends what is no HTTP, or too much of it.
    Malformed,
    /// Opens connections and closes them at once.
    Connects,
    /// Asks, as often as there are answers.
    Requests,
}

const ASSAULTS: [Assault; 6] =
    [Assault::Idle, Assault::Loris, Assault::Half, Assault::Malformed, Assault::Connects, Assault::Requests];

impl Assault {
    /// Goes on until it is over; counts connections.
    fn run(self, source: Ipv4Addr, over: &AtomicBool, made: &AtomicU64) {
        // The connections held open, the oldest first: as many as one process may have.
        let mut held = std::collections::VecDeque::new();
        while !over.load(Relaxed) {
            let Ok(mut stream) = connect_from(source, PROBE, PATIENCE) else { continue };
            made.fetch_add(1, Relaxed);
            let started = match self {
                Self::Idle => Ok(()),
                Self::Loris => stream.write_all(b"G"),
                Self::Half => stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n"),
                Self::Malformed => {
                    let nonsense: &[u8] = match made.load(Relaxed) % 4 {
                        0 => b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
                        1 => b"GET / HTTP/1.1\r\nContent-Length: -1\r\nTransfer-Encoding: chunked\r\n\r\n",
                        2 => b"\r\n\r\n\r\n\0\0\0\0GET",
                        _ => &[b'A'; 40_000],
                    };
                    stream.write_all(nonsense)
                }
                Self::Connects => continue,
                Self::Requests => {
                    let asked = stream.write_all(b"GET / HTTP/1.0\r\n\r\n");
                    asked.and_then(|()| stream.read_to_end(&mut Vec::new())).map(drop)
                }
            };
            if started.is_err() || matches!(self, Self::Malformed | Self::Requests) {
                continue;
            }
            held.push_back(stream);
            if held.len() > 400 {
                held.pop_front();
            }
            if matches!(self, Self::Loris) {
                held.retain_mut(|stream| stream.write_all(b"E").is_ok());
            }
        }
    }
}

/// The result of the requests that were made while something else happened.
#[derive(Debug, Default)]
struct Fared {
    answered: u32,
    worst: Duration,
}

/// Asks for the probe's answer from all of these until `has_seen_enough`, and wants each answered.
fn all_are_answered(
    who: &[(&Namespace, Ipv4Addr)],
    has_seen_enough: impl Fn() -> bool,
) -> Result<BTreeMap<Ipv4Addr, Fared>> {
    let start = Instant::now();
    let mut fared = BTreeMap::<Ipv4Addr, Fared>::new();
    while !has_seen_enough() {
        ensure!(start.elapsed() < ENDLESS, "what happened meanwhile has come to a standstill: {fared:?}");
        for (host, source) in who {
            let asked = Instant::now();
            let (status, _) = ask(host, *source).with_context(|| {
                format!(
                    "{source} after {:.1} s, asked {:?} ago",
                    start.elapsed().as_secs_f64(),
                    asked.elapsed()
                )
            })?;
            ensure!(status == 200, "{source} reads {status}");
            let fared = fared.entry(*source).or_default();
            fared.answered += 1;
            fared.worst = fared.worst.max(asked.elapsed());
        }
    }
    Ok(fared)
}

/// From the probe's network and from elsewhere at the same time, in every way.
#[test]
fn the_probe_is_answered_during_connection_floods() {
    const THREADS: usize = 2;
    /// The fewest connections of an assault, from the probe's network and from elsewhere.
    const CONNECTIONS: u64 = 50;
    const LASTS: Duration = Duration::from_secs(3);
    let mut lab = lab(Nics::One);
    many_descriptors();
    let pid = check(lab.router()).pid();
    let before = descriptors(pid);
    let [attacker, prober] = PLS_NAT;
    for assault in ASSAULTS {
        let (over, near, far) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
        let (pls, vm) = (&lab.hosts.pls, &lab.hosts.vm);
        let (fared, most, seconds) = thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| check(pls.inside(|| assault.run(attacker, &over, &near))));
                scope.spawn(|| check(vm.inside(|| assault.run(VM, &over, &far))));
            }
            let start = Instant::now();
            let who = [(pls, PLATFORM), (pls, prober), (&lab.hosts.router, Ipv4Addr::LOCALHOST)];
            let fared = all_are_answered(&who, || {
                start.elapsed() > LASTS && near.load(Relaxed).min(far.load(Relaxed)) > CONNECTIONS
            });
            let most = descriptors(pid);
            over.store(true, Relaxed);
            (fared, most, start.elapsed().as_secs_f64())
        });
        let rate = |made: &AtomicU64| made.load(Relaxed) as f64 / seconds;
        println!(
            "{assault:?}: {:.0} connections a second from the probe's network, {:.0} from elsewhere; {most} descriptors \
             ({before} before); {:?}",
            rate(&near),
            rate(&far),
            check(fared.with_context(|| format!("{assault:?}")))
        );
        // The capacity of the probe's rooms, and connections that are being closed.
        assert!(most < before + 160, "{assault:?}: {most} descriptors, {before} before");
    }
    assert!(check(lab.in_service()), "the probe's log:\n{}", lab.probe_log());
    check(wait::until("the descriptors to be free again", LIMIT, || {
        let now = descriptors(pid);
        ensure!(now < before + 10, "{now} are open, {before} were");
        Ok(())
    }));
}

/// The number of SYN cookies that the router's kernel has sent: one for every SYN that its
/// listener's queue had no room for.
fn cookies(lab: &Lab) -> Result<u64> {
    let text = lab.hosts.router.run("nstat", &["-asz", "TcpExtSyncookiesSent"])?;
    let number =
        text.lines().find_map(|line| line.strip_prefix("TcpExtSyncookiesSent")?.split_whitespace().next());
    number.context("no cookies are counted")?.parse().context("no number")
}

/// Sends SYNs as fast as the machine carries them, but no more than the lab's own queues have room
/// for. The router is what is measured: the probe runs until a number of SYNs has arrived.
#[test]
fn a_syn_flood_does_not_starve_the_probe() {
    const SYNS: u64 = 60_000;
    let lab = lab(Nics::One);
    let who = [(&lab.hosts.pls, PLATFORM), (&lab.hosts.pls, PLS_NAT[1])];
    // From an unused address, and from a host that resets connections that it did not ask for.
    for source in [UNUSED, VM] {
        let (start, flood) = (Instant::now(), check(SynFlood::start(&lab.hosts.pls, source, PROBE)));
        let fared = check(all_are_answered(&who, || flood.sent() >= SYNS));
        let rate = flood.sent() as f64 / start.elapsed().as_secs_f64();
        println!("{rate:.0} SYNs a second as {source}: {fared:?}");
    }
    let cookies = check(cookies(&lab));
    assert!(cookies > SYNS / 2, "the listener's queue was not full: {cookies} cookies");
    assert!(check(lab.in_service()), "the probe's log:\n{}", lab.probe_log());
}

/// Keeps a thread, and what it starts from now on, to one CPU.
fn keep_to(thread: Pid, cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(thread, &set).with_context(|| format!("cannot keep {thread} to CPU {cpu}"))
}

/// Has a kernel thread of the router's own poll its interface, on this CPU.
fn poll_on(lab: &Lab, cpu: usize) -> Result<()> {
    // Only a program in the namespace sees that namespace's /sys.
    lab.hosts.router.run("sh", &["-c", "echo 1 > /sys/class/net/eth0/threaded"])?;
    let thread = wait::until("the interface's NAPI thread", LIMIT, || {
        let name = lab.hosts.router.run("sh", &["-c", "grep -l '^napi/eth0-' /proc/[0-9]*/comm"])?;
        name.split('/').nth(2).and_then(|pid| pid.parse().ok()).context(name)
    })?;
    keep_to(Pid::from_raw(thread), cpu)
}

/// Asks the probe for so long. Returns the times that its answers took, sorted.
fn answer_times(lab: &Lab, lasts: Duration) -> Vec<Duration> {
    let start = Instant::now();
    let mut times = Vec::new();
    while start.elapsed() < lasts {
        let asked = Instant::now();
        let (status, body) = check(ask(&lab.hosts.pls, PLATFORM));
        assert_eq!(status, 200, "{body}");
        times.push(asked.elapsed());
    }
    times.sort_unstable();
    times
}

/// The time that this share of sorted times does not exceed.
fn at(times: &[Duration], share: f64) -> Duration {
    times[(times.len() as f64 * share) as usize]
}

/// The router has one CPU, for packets and for the daemon, and gets as many datagrams in the wrong
/// order as another CPU sends: each has the daemon buffer a fragment, give it to the programs again
/// and send what comes out.
#[test]
fn a_flood_of_fragments_does_not_delay_the_probe_on_one_cpu() {
    const SENDER: usize = 0;
    const ROUTERS: usize = 1;
    const LASTS: Duration = Duration::from_secs(3);
    const MOST: Duration = Duration::from_millis(50);
    if thread::available_parallelism().is_ok_and(|cpus| cpus.get() < 2) {
        harness::skip("one CPU for the router and another one for the flood are needed");
    }
    let mut lab = lab(Nics::One);
    check(lab.stop_router(Signal::SIGTERM));
    check(keep_to(Pid::from_raw(0), ROUTERS));
    check(lab.start_router());
    check(keep_to(Pid::from_raw(0), SENDER));
    check(poll_on(&lab, ROUTERS));
    let idle = at(&answer_times(&lab, LASTS), 0.99);
    let floods = PLS_NAT.map(|source| {
        let (source, target) = (SocketAddrV4::new(source, 4000), SocketAddrV4::new(ROUTER, ECHO_PORT));
        check(Flood::of_reversed_datagrams(&lab.hosts.pls, source, target))
    });
    let (start, before) = (Instant::now(), counters(&lab));
    let times = answer_times(&lab, LASTS);
    let (seconds, after) = (start.elapsed().as_secs_f64(), counters(&lab));
    let rate = |name: &str| (reason(&after, name) - reason(&before, name)) as f64 / seconds;
    let at = |share| at(&times, share);
    println!(
        "{} fragments a second sent, {:.0} early, {:.0} forwarded: {} probes, median {:?}, p99 {:?}, worst {:?}; \
         p99 without a flood {idle:?}",
        (floods.iter().map(Flood::sent).sum::<u64>() as f64 / seconds) as u64,
        rate("fragment_early"),
        rate("forwarded"),
        times.len(),
        at(0.5),
        at(0.99),
        times[times.len() - 1],
    );
    assert!(rate("fragment_early") > 1000.0, "that is no flood");
    // What else runs on that CPU delays it as well.
    assert!(at(0.99) < MOST + idle, "the probe waited");
}

/// Takes the router off under its daemon, so that the probe fails from now on.
fn fail(lab: &Lab) {
    let output = check(lab.pls_router(&["detach", "--force"]));
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn only_probers_see_the_reasons() {
    let lab = lab(Nics::One);
    let (pls, vm, own) = (&lab.hosts.pls, &lab.hosts.vm, &lab.hosts.router);
    let (status, body) = check(ask(pls, PLATFORM));
    assert!(status == 200 && body.starts_with("forwarding since 20") && body.ends_with("Z\n"), "{body:?}");
    assert_eq!(check(ask(vm, VM)), (200, String::new()));
    fail(&lab);
    for (host, source) in [(pls, PLATFORM), (pls, PLS_NAT[0]), (own, Ipv4Addr::LOCALHOST), (own, ROUTER)] {
        let (status, body) = check(ask(host, source));
        assert!(status == 503 && body.contains("detach --force"), "{source}: {status} {body:?}");
    }
    assert_eq!(check(ask(vm, VM)), (503, String::new()));
}

#[test]
fn probers_are_configurable() {
    only_pls_router();
    let mut lab =
        check(Lab::up(Options { start_router: false, ..Options::new(Nics::One, router(), helper()) }));
    let entry = format!("from = [\"{PLATFORM}\", \"{VM}\"]\n");
    // The last table of the rules may be any; that of the probe is the lab's.
    let configuration =
        lab.configuration(&lab.options.rules).replacen("[health]\n", &format!("[health]\n{entry}"), 1);
    let mut daemon = check(crate::starts::start_with(&lab, "config.toml", configuration));
    check(daemon.wait_until(LIMIT * 2, || lab.in_service()?.then_some(()).context("not in service")));
    fail(&lab);
    let told = |host: &Namespace, source| check(ask(host, source)).1.contains("detach --force");
    assert!(told(&lab.hosts.vm, VM) && told(&lab.hosts.pls, PLATFORM));
    assert!(told(&lab.hosts.router, Ipv4Addr::LOCALHOST), "this machine");
    assert_eq!(check(ask(&lab.hosts.pls, PLS_NAT[0])), (503, String::new()));
    check(daemon.signal(Signal::SIGTERM));
    check(daemon.wait(LIMIT * 2));
    check(lab.stop_probe());
}

fn scrape(lab: &Lab, user: libc::uid_t, host: &str) -> Result<(u16, String)> {
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    answer_to((&lab.hosts.router, Ipv4Addr::LOCALHOST), METRICS, &request, || become_user(user))
}

/// Any user of this machine reaches the metrics, by any address of the loopback.
#[test]
fn connections_to_the_metrics_do_not_starve_the_probe() {
    const IDLE: u32 = 3000;
    let mut lab = lab(Nics::One);
    many_descriptors();
    let pid = check(lab.router()).pid();
    let before = descriptors(pid);
    let idle: Vec<TcpStream> = check(check(lab.hosts.router.inside(|| -> Result<_> {
        become_user(USER)?;
        let connect = |number: u32| {
            let source = Ipv4Addr::from_bits(Ipv4Addr::LOCALHOST.to_bits() + number % 250);
            connect_from(source, METRICS, LIMIT)
        };
        (0..IDLE).map(connect).collect()
    })));
    let most = descriptors(pid);
    println!("{} idle connections: {most} descriptors, {before} before", idle.len());
    assert!(most < before + 48, "{most} descriptors, {before} before");
    let (start, who) =
        (Instant::now(), [(&lab.hosts.pls, PLATFORM), (&lab.hosts.router, Ipv4Addr::LOCALHOST)]);
    println!("{:?}", check(all_are_answered(&who, || start.elapsed() > Duration::from_millis(500))));
    for user in [0, OTHER_USER] {
        let asked = Instant::now();
        let (status, text) = check(scrape(&lab, user, "localhost:9090"));
        assert!(status == 200 && text.contains("pls_router_healthy 1"), "{text}");
        println!("user {user} has read the metrics in {:?}", asked.elapsed());
    }
    // The same source comes to read as well, when its first connections are over.
    check(wait::until("an answer", LIMIT * 3, || scrape(&lab, USER, "127.0.0.1")));
    assert!(check(lab.pls_router(&["status"])).status.success());

    // And while connections are made all the time.
    let (over, made) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let router = &lab.hosts.router;
        scope.spawn(|| {
            check(router.inside(|| {
                become_user(USER).expect("root may");
                let mut held = std::collections::VecDeque::new();
                while !over.load(Relaxed) {
                    if let Ok(stream) = connect_from(Ipv4Addr::LOCALHOST, METRICS, PATIENCE) {
                        held.push_back(stream);
                        made.fetch_add(1, Relaxed);
                    }
                    held.truncate(500);
                }
            }));
        });
        check(wait::until("connections", LIMIT, || {
            ensure!(made.load(Relaxed) > 1000, "{made:?}");
            Ok(())
        }));
        for _ in 0..20 {
            assert_eq!(check(scrape(&lab, OTHER_USER, "localhost")).0, 200);
            assert_eq!(check(scrape(&lab, 0, "localhost")).0, 200);
        }
        over.store(true, Relaxed);
    });
    println!("{made:?} more connections");
}

/// DNS rebinding: what a page on the web may have a browser on this machine, or near it, read.
#[test]
fn metrics_require_a_known_host_name() {
    let lab = lab(Nics::One);
    let name = check(lab.hosts.router.run("uname", &["-n"]));
    for host in
        ["localhost", "127.0.0.1:9090", "localhost:19090", "[::1]:9090", &ROUTER.to_string(), name.trim()]
    {
        let (status, text) = check(scrape(&lab, 0, host));
        assert!(status == 200 && text.contains("pls_router_healthy"), "{host}: {text}");
    }
    for host in ["evil.example", "evil.example:9090", "127.0.0.1.evil.example", "203.0.113.99"] {
        let (status, text) = check(scrape(&lab, 0, host));
        assert!(status == 421 && !text.contains("pls_router_"), "{host}: {text}");
        assert!(text.contains(host) && text.contains("`hosts` of [admin]"), "{host}: {text}");
    }
    // A name that this machine gets later on.
    let later = lab.state().path("etc/router/hosts");
    check(fs::write(&later, format!("{ROUTER} later.example\n")).context("its /etc/hosts"));
    check(wait::until("the name to be known", LIMIT, || {
        let (status, text) = scrape(&lab, 0, "later.example")?;
        ensure!(status == 200, "{status}: {text}");
        Ok(())
    }));
    let own = &lab.hosts.router;
    let old = check(ask_at(own, Ipv4Addr::LOCALHOST, METRICS, "GET /metrics HTTP/1.0\r\n\r\n"));
    assert_eq!(old.0, 200, "before HTTP/1.1 there was no Host: {old:?}");
    let new = check(ask_at(own, Ipv4Addr::LOCALHOST, METRICS, "GET /metrics HTTP/1.1\r\n\r\n"));
    assert_eq!(new.0, 400, "since then there is: {new:?}");
}

/// Opens connections until a process uses all descriptors up to those that its listeners keep back.
/// Returns the lowest number that is free, and the connections.
fn without_gaps(lab: &Lab, pid: u32) -> (u64, Vec<TcpStream>) {
    let mut idle = Vec::new();
    let number = check(wait::until("descriptors without a gap", LIMIT, || {
        let entries = fs::read_dir(format!("/proc/{pid}/fd")).context("its descriptors")?;
        let descriptors = entries.flatten().filter_map(|entry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            Some((number, fs::read_link(entry.path()).ok()?))
        });
        let taken: BTreeMap<u64, PathBuf> = descriptors.collect();
        let lowest_free = (0..).find(|number| !taken.contains_key(number)).context("none is free")?;
        let mut kept_back = taken.iter().skip(3).filter(|(_, file)| *file == Path::new("/dev/null"));
        let is_whole = kept_back.all(|(number, _)| *number < lowest_free);
        if !is_whole {
            let connect = || connect_from(Ipv4Addr::LOCALHOST, METRICS, LIMIT);
            idle.push(lab.hosts.router.inside(connect)??);
        }
        ensure!(is_whole, "{lowest_free} is free: {taken:#?}");
        Ok(lowest_free)
    }));
    (number, idle)
}

/// Any process may have used the descriptors up.
#[test]
fn a_daemon_recovers_from_a_lack_of_descriptors() {
    let mut lab = lab(Nics::One);
    let pid = check(lab.router()).pid();
    // All are in use: there is the one that the listener keeps back, for one connection after the
    // other.
    let (used, _idle) = without_gaps(&lab, pid);
    check(set_descriptor_limit(pid, used).context("prlimit"));
    for _ in 0..3 {
        check(wait::until("an answer", LIMIT, || ask(&lab.hosts.pls, PLATFORM)));
    }
    check(set_descriptor_limit(pid, 4).context("prlimit"));
    // Everything that opens a file or a socket, by itself or on request.
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(4) {
        let _without_answer = ask(&lab.hosts.pls, PLATFORM);
        let _without_answer = scrape(&lab, 0, "localhost");
        let device = format!("addr add {UNUSED}/32 dev eth0\naddr del {UNUSED}/32 dev eth0");
        check(lab.hosts.router.ip(&device));
        check(lab.hosts.router.sysctl("net/ipv4/conf/lo/forwarding", "0"));
    }
    assert!(check(check(lab.router()).ended()).is_none(), "{}", lab.router_log());
    check(set_descriptor_limit(pid, 65_536).context("prlimit"));
    check(wait::until("the probe's answer", LIMIT, || {
        let (status, text) = ask(&lab.hosts.pls, PLATFORM)?;
        ensure!(status == 200, "{status}: {text}");
        Ok(())
    }));
    let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), METRICS.port());
    assert_eq!(check(scrape(&lab, 0, &address.to_string())).0, 200);
    assert!(check(lab.pls_router(&["status"])).status.success());
    check(lab.wait_in_service(LIMIT));
}
