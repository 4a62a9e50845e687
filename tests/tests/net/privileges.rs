//! The daemon's privileges, and what other users of its machine may do to it.

use std::{
    fs::{self, File, Permissions},
    io::{self, ErrorKind, Read as _, Write as _},
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _, chown, symlink},
        net::{UnixListener, UnixStream},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context as _, Result, ensure};
use lab::{Lab, Nics, Options, Process, client::Tcp, link, wait};
use nix::sys::signal::Signal;

use crate::{
    common::{ECHO, LIMIT, check, helper, only_pls_router, router},
    lifecycle::{REFUSAL_LIMIT, attached, pins, refuses, without_router},
    probe::{USER, become_member},
};

/// The capabilities that the daemon keeps, a bit for each: CAP_NET_ADMIN, CAP_NET_RAW, CAP_PERFMON,
/// CAP_BPF.
const KEPT: u64 = 1 << 12 | 1 << 13 | 1 << 38 | 1 << 39;
/// The capabilities of deploy/pls-router.service by number: CAP_SETGID, CAP_NET_BIND_SERVICE,
/// CAP_NET_ADMIN, CAP_NET_RAW, CAP_PERFMON, CAP_BPF.
const OF_SERVICE: [u64; 6] = [6, 10, 12, 13, 38, 39];
const LOOPBACK_FORWARDING: &str = "net/ipv4/conf/lo/forwarding";

fn mode(path: &Path) -> u32 {
    let metadata = fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(metadata.uid(), 0, "{}", path.display());
    metadata.mode() & 0o7777
}

#[track_caller]
fn set_mode(path: &Path, mode: u32) {
    check(
        fs::set_permissions(path, Permissions::from_mode(mode)).with_context(|| path.display().to_string()),
    );
}

/// Runs as another user, who is not root.
fn as_user<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    as_member(&[], work)
}

/// Runs as another user, who is not root and in these groups.
fn as_member<T: Send>(groups: &[u32], work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let user = scope.spawn(|| {
            become_member(USER, groups).expect("root may become anybody");
            work()
        });
        user.join().expect("it ends")
    })
}

/// The directories that the router's pins are in.
fn pin_directories(lab: &Lab) -> [PathBuf; 3] {
    let layout = PathBuf::from(pins(lab).first().expect("a layout"));
    [lab.state().path("bpf/pls-router"), layout.clone(), layout.join("links")]
}

/// The numbers after this word in every thread's status.
fn of_threads(pid: u32, word: &str) -> Result<Vec<u64>> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))?;
    let read = |task: io::Result<fs::DirEntry>| {
        let status = fs::read_to_string(task?.path().join("status"))?;
        let number = status.lines().find_map(|line| line.strip_prefix(word)).context("no such line")?;
        Ok(u64::from_str_radix(number.trim(), 16)?)
    };
    tasks.map(read).collect()
}

/// Waits until no thread of the daemon may do more than it should.
#[track_caller]
fn has_given_up(pid: u32, bounding: u64) {
    check(wait::until("the daemon to give up its privileges", LIMIT, || {
        for (word, most) in
            [("CapPrm:", KEPT), ("CapEff:", KEPT), ("CapBnd:", bounding), ("CapInh:", 0), ("CapAmb:", 0)]
        {
            let found = of_threads(pid, word)?;
            ensure!(found.len() > 1 && found.iter().all(|set| *set == most), "{word} {found:x?}");
        }
        let flags = of_threads(pid, "NoNewPrivs:")?;
        ensure!(flags.iter().all(|flag| *flag == 1), "NoNewPrivs {flags:?}");
        Ok(())
    }));
}

/// Everything that the daemon puts right with what it has kept.
#[track_caller]
fn puts_right_what_others_change(lab: &Lab, device: &str) {
    let pin = pin_directories(lab)[2].join(format!("native-{device}"));
    let status = check(lab.pls_router_status());
    let before = status.repairs.iter().find(|repairs| repairs.name == device).expect("it is kept").count;
    check(lab.hosts.router.sysctl(LOOPBACK_FORWARDING, "0"));
    check(link::detach(&pin));
    check(wait::until("repairs", LIMIT, || {
        let status = lab.pls_router_status()?;
        let repaired = status.repairs.iter().find(|repairs| repairs.name == device);
        ensure!(status.healthy && repaired.is_some_and(|repairs| repairs.count > before), "{status:#?}");
        ensure!(attached(lab, device).is_some() && pin.exists(), "{status:#?}");
        let forwarding = lab.hosts.router.run("cat", &[&format!("/proc/sys/{LOOPBACK_FORWARDING}")])?;
        ensure!(forwarding.trim() == "1", "{forwarding}");
        Ok(())
    }));
    // A packet that waits for its neighbour goes out by a socket that was opened before.
    check(lab.hosts.router.ip("neigh flush dev eth0"));
    check(check(Tcp::connect(&lab.hosts.serverless, ECHO, LIMIT)).echo(b"after", LIMIT));
}

/// Waits until the router forwards.
#[track_caller]
fn in_service(lab: &Lab, daemon: &mut Process) {
    check(daemon.wait_until(LIMIT * 4, || lab.in_service()?.then_some(()).context("not in service")));
}

#[test]
fn privileges_are_given_up_once_it_forwards() {
    only_pls_router();
    let mut lab = check(Lab::up(Options::new(Nics::Two, router(), helper())));
    has_given_up(check(lab.router()).pid(), KEPT);
    for device in ["eth0", "eth1"] {
        puts_right_what_others_change(&lab, device);
    }
    // On top of a data plane that is there, where nothing had to be attached.
    check(lab.stop_router(Signal::SIGKILL));
    check(lab.start_router());
    check(lab.wait_in_service(LIMIT));
    has_given_up(check(lab.router()).pid(), KEPT);
    puts_right_what_others_change(&lab, "eth0");
    let log = check(lab.router()).output();
    assert!(
        log.contains("given up all privileges but CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON and CAP_NET_RAW"),
        "{log}"
    );
    let status = check(lab.stop_router(Signal::SIGTERM));
    assert!(status.success(), "{status}");
    check(lab.detach_router());
    assert_eq!((attached(&lab, "eth0"), attached(&lab, "eth1"), pins(&lab)), (None, None, Vec::new()));
    let forwarding = check(lab.hosts.router.run("cat", &[&format!("/proc/sys/{LOOPBACK_FORWARDING}")]));
    assert_eq!(forwarding.trim(), "0");
}

/// Has a command start with no more than the service has.
fn keep_few(command: &mut Command) {
    let keep_few = || {
        for capability in (0..64_u64).filter(|capability| !OF_SERVICE.contains(capability)) {
            // SAFETY: takes numbers only. Those that this kernel does not know fail.
            unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        }
        Ok(())
    };
    // SAFETY: between fork and exec, the closure makes system calls only.
    unsafe { command.pre_exec(keep_few) };
}

/// Starts the router with no more than the service has.
fn start_as_service(lab: &Lab) -> Result<Process> {
    let configuration = lab.state().path("config.toml");
    fs::write(&configuration, lab.configuration(&lab.options.rules))?;
    let mut command = lab.pls_router_command(&["run"], &configuration)?;
    keep_few(&mut command);
    Process::spawn(lab.state(), "service", command)
}

#[test]
fn the_service_needs_only_the_capabilities_of_its_unit() {
    let lab = without_router();
    let mut daemon = check(start_as_service(&lab));
    in_service(&lab, &mut daemon);
    puts_right_what_others_change(&lab, "eth0");
    check(daemon.kill());
    let mut daemon = check(start_as_service(&lab));
    in_service(&lab, &mut daemon);
    // To take capabilities from the bounding set takes one that the service has not.
    has_given_up(daemon.pid(), OF_SERVICE.iter().map(|capability| 1 << capability).sum());
    puts_right_what_others_change(&lab, "eth0");
    let status = check(daemon.terminate(LIMIT * 2));
    assert!(status.success(), "{status}");
    check(lab.detach_router());
    assert_eq!((attached(&lab, "eth0"), pins(&lab)), (None, Vec::new()));
}

/// A lock that another user holds would keep the next daemon out.
#[test]
fn other_users_cannot_access_the_pins() {
    only_pls_router();
    let mut lab = check(Lab::up(Options::new(Nics::One, router(), helper())));
    let directories = pin_directories(&lab);
    for directory in &directories {
        assert_eq!(mode(directory), 0o700, "{}", directory.display());
        let opened = as_user(|| File::open(directory));
        assert_eq!(opened.map(drop).expect_err("it opened").kind(), ErrorKind::PermissionDenied);
    }
    let socket = lab.state().path("api.sock");
    assert_eq!(mode(&socket), 0o660);
    let asked = as_user(|| UnixStream::connect(&socket));
    assert_eq!(asked.map(drop).expect_err("it answered").kind(), ErrorKind::PermissionDenied);
    // Modes of directories that earlier versions have left.
    check(lab.stop_router(Signal::SIGKILL));
    for directory in &directories {
        set_mode(directory, 0o755);
    }
    check(lab.start_router());
    for directory in &directories {
        assert_eq!(mode(directory), 0o700, "{}", directory.display());
    }
    check(lab.stop_router(Signal::SIGKILL));

    // Another process was faster and has it open.
    set_mode(&directories[0], 0o755);
    set_mode(&directories[1], 0o755);
    let mut command = Command::new("flock");
    command.arg("--no-fork");
    command.args([directories[1].as_os_str(), "sleep".as_ref(), "1000".as_ref()]).uid(USER).gid(USER);
    let mut holder = check(Process::spawn(lab.state(), "holder", command));
    check(wait::until("the lock to be held", LIMIT, || {
        let file = File::open(&directories[1])?;
        ensure!(file.try_lock().is_err(), "the lock is free");
        Ok(())
    }));
    let mut daemon = check(lab.spawn_router());
    let status = check(daemon.wait(REFUSAL_LIMIT));
    let output = daemon.output();
    assert_eq!(status.code(), Some(1), "{output}");
    for text in [format!("of user {USER}) holds the lock"), format!("fix: end it (kill {})", holder.pid())] {
        assert!(output.contains(&text), "nothing about \"{text}\" in: {output}");
    }
    check(holder.kill());
    check(lab.start_router());
    assert_eq!(mode(&directories[1]), 0o700);
}

/// Starts the router, which must refuse; `check` says the same without starting it.
#[track_caller]
fn refuses_and_says_so(lab: &Lab, what: &str, texts: &[&str]) {
    refuses(lab, what, texts);
    let output = check(lab.pls_router(&["check"]));
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{what}: {said}");
    for text in texts.iter().chain(&["admin.pins: "]) {
        assert!(said.contains(text), "{what}: `check` says nothing about \"{text}\": {said}");
    }
}

#[test]
fn pins_in_another_users_directory_are_refused() {
    let mut lab = without_router();
    let root = lab.state().path("bpf/pls-router");
    // Any user may make directories where this lab's are.
    as_user(|| fs::create_dir(&root)).expect("the file system is open to all");
    let theirs = root.display().to_string();
    refuses_and_says_so(
        &lab,
        "somebody else's directory",
        &[&theirs, &format!("belongs to user {USER}"), "fix: ", "chown root"],
    );
    check(fs::remove_dir(&root).context("the directory"));

    let precious = lab.state().path("bpf/precious");
    check(fs::create_dir_all(precious.join("v9")).context("a directory"));
    as_user(|| symlink(&precious, &root)).expect("the file system is open to all");
    refuses_and_says_so(&lab, "somebody else's link", &[&theirs, &format!("belongs to user {USER}")]);
    // As root, that could remove the target of any link.
    let output = check(lab.pls_router(&["detach"]));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(precious.join("v9").exists());
    check(fs::remove_file(&root).context("the link"));

    check(fs::create_dir(&root).context("a directory"));
    set_mode(&root, 0o770);
    refuses_and_says_so(
        &lab,
        "a directory that a group may write",
        &[&theirs, "may be written by others", "fix: chmod go-w"],
    );
    check(chown(&root, Some(USER), None).context("chown"));
    refuses_and_says_so(
        &lab,
        "a directory that was given away",
        &[&theirs, &format!("belongs to user {USER}")],
    );
    check(fs::remove_dir(&root).context("the directory"));
    check(lab.start_router());
}

/// A directory in which anyone may create files, and another user creates the socket first.
#[test]
fn a_socket_of_another_user_is_not_taken_for_the_daemon() {
    let mut lab = without_router();
    let open = lab.state().path("open");
    check(fs::create_dir(&open).context("a directory"));
    set_mode(&open, 0o1777);
    let socket = open.join("api.sock");
    let configuration = lab.configuration(&lab.options.rules);
    let own = lab.state().path("api.sock").display().to_string();
    let configuration = configuration.replacen(&own, &socket.display().to_string(), 1);
    let listener = as_user(|| UnixListener::bind(&socket)).expect("anybody may");
    set_mode(&socket, 0o777);
    let path = check(lab.state().write("open.toml", &configuration));
    let output = check(lab::command::output(&mut check(lab.pls_router_command(&["status"], &path))));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success()
            && said.contains(&format!("a process of user {USER}, not pls-router, listens")),
        "{said}"
    );
    let mut daemon = check(crate::starts::start_with(&lab, "open.toml", configuration.clone()));
    in_service(&lab, &mut daemon);
    assert_eq!(mode(&socket), 0o660);
    check(daemon.terminate(LIMIT * 2));
    drop(listener);

    // Without the sticky bit, any user could replace files.
    set_mode(&open, 0o777);
    let mut daemon = check(crate::starts::start_with(&lab, "open-again.toml", configuration));
    let status = check(daemon.wait(REFUSAL_LIMIT));
    let output = daemon.output();
    assert_eq!(status.code(), Some(1), "{output}");
    for text in [&open.display().to_string(), "admin.socket", "may be written by others", "fix: chmod go-w"] {
        assert!(output.contains(text), "nothing about \"{text}\" in: {output}");
    }
    check(lab.start_router());
}

/// The number of the group `pls-router` in the tests.
const GROUP: u32 = 4242;

/// Writes the router's own list of groups, with `pls-router` among them.
fn make_group(lab: &Lab) {
    let groups = check(fs::read_to_string("/etc/group").context("/etc/group"));
    let groups = groups.lines().filter(|line| !line.starts_with("pls-router:"));
    let own = format!("pls-router:x:{GROUP}:");
    let groups = groups.chain([own.as_str()]).map(|line| format!("{line}\n")).collect::<String>();
    check(lab.state().write("etc/router/group", groups));
}

/// A directory of root's, with the socket in a directory that the daemon makes in it.
fn socket_of_its_own(lab: &Lab) -> (PathBuf, String) {
    let socket = lab.state().path("run/api.sock");
    let own = lab.state().path("api.sock").display().to_string();
    let configuration = lab.configuration(&lab.options.rules);
    let configuration = configuration.replacen(&own, &socket.display().to_string(), 1);
    assert!(configuration.contains("run/api.sock"), "{configuration}");
    (socket, configuration)
}

fn group(path: &Path) -> u32 {
    check(fs::symlink_metadata(path).with_context(|| path.display().to_string())).gid()
}

/// Runs a command of pls-router as another user, who is in these groups. Returns its exit status
/// and all that it says.
fn ask_as_member(
    lab: &Lab,
    configuration: &Path,
    groups: &'static [u32],
    args: &[&str],
) -> (Option<i32>, String) {
    let mut command = check(lab.pls_router_command(args, configuration));
    // SAFETY: between fork and exec, the closure makes system calls only.
    unsafe { command.pre_exec(|| become_member(USER, groups)) };
    let output = check(lab::command::output(&mut command));
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    (output.status.code(), said.concat())
}

/// Sends a request to the API as another user, who is in these groups. Returns the whole answer.
fn request_as_member(socket: &Path, groups: &[u32], method: &str, path: &str) -> String {
    let mut stream = as_member(groups, || UnixStream::connect(socket)).expect("the socket is theirs to use");
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    check(stream.write_all(request.as_bytes()).context("a request"));
    let mut answer = String::new();
    check(stream.read_to_string(&mut answer).context("an answer"));
    answer
}

/// By the peer's credentials, and not by what the file's mode lets them do.
#[test]
fn members_of_the_group_may_look_and_change_nothing() {
    let lab = without_router();
    make_group(&lab);
    let (socket, configuration) = socket_of_its_own(&lab);
    let path = check(lab.state().write("group.toml", &configuration));
    let mut daemon = check(crate::starts::start_with(&lab, "group.toml", configuration));
    in_service(&lab, &mut daemon);
    let directory = lab.state().path("run");
    assert_eq!((mode(&socket), group(&socket)), (0o660, GROUP));
    assert_eq!((mode(&directory), group(&directory)), (0o750, GROUP));

    for args in [&["status"][..], &["counters"], &["flows"], &["rules"], &["status", "-o", "json"]] {
        let (code, said) = ask_as_member(&lab, &path, &[GROUP], args);
        assert_eq!(code, Some(0), "{args:?}: {said}");
    }
    let before = attached(&lab, "eth0");
    for args in [&["drain"][..], &["undrain"], &["detach", "--force"]] {
        let (code, said) = ask_as_member(&lab, &path, &[GROUP], args);
        assert_eq!(code, Some(1), "{args:?}: {said}");
        assert!(said.contains("only root may"), "{args:?}: {said}");
    }
    for path in ["stand-down", "drain", "undrain", "reload", "anything-new"] {
        for method in ["POST", "PUT", "PATCH", "DELETE"] {
            let answer = request_as_member(&socket, &[GROUP], method, &format!("/v1/{path}"));
            assert!(
                answer.starts_with("HTTP/1.1 403") && answer.contains("only root"),
                "{method} {path}: {answer}"
            );
        }
    }
    let status =
        check(lab::command::output(&mut check(lab.pls_router_command(&["status", "-o", "json"], &path))));
    let status: router_user::model::Status = check(serde_json::from_slice(&status.stdout).context("JSON"));
    assert!(status.healthy, "{status:#?}");
    assert_eq!(attached(&lab, "eth0"), before);

    // A user outside of it does not get there.
    let (code, said) = ask_as_member(&lab, &path, &[], &["status"]);
    assert!(code == Some(1) && said.contains("this user may not use"), "{said}");
    let asked = as_user(|| UnixStream::connect(&socket));
    assert_eq!(asked.map(drop).expect_err("it answered").kind(), ErrorKind::PermissionDenied);
    check(daemon.kill());

    // Without CAP_CHOWN, as under the unit: it has joined the group before it gives up CAP_SETGID.
    let mut command = check(lab.pls_router_command(&["run"], &path));
    keep_few(&mut command);
    let mut daemon = check(Process::spawn(lab.state(), "service", command));
    in_service(&lab, &mut daemon);
    has_given_up(daemon.pid(), OF_SERVICE.iter().map(|capability| 1 << capability).sum());
    assert_eq!((mode(&socket), group(&socket)), (0o660, GROUP));
    assert_eq!(ask_as_member(&lab, &path, &[GROUP], &["status"]).0, Some(0));
}

#[test]
fn a_directory_that_another_group_has_is_not_given_away() {
    let lab = without_router();
    make_group(&lab);
    let (socket, configuration) = socket_of_its_own(&lab);
    let directory = lab.state().path("run");
    check(fs::create_dir(&directory).context("a directory"));
    check(chown(&directory, None, Some(GROUP + 1)).context("chown"));
    set_mode(&directory, 0o750);
    let mut daemon = check(crate::starts::start_with(&lab, "group.toml", configuration));
    in_service(&lab, &mut daemon);
    assert_eq!((mode(&directory), group(&directory)), (0o750, GROUP + 1));
    let log = daemon.output();
    assert!(
        log.contains("members of the group pls-router cannot look") && log.contains("fix: chgrp 4242"),
        "{log}"
    );
    let asked = as_member(&[GROUP], || UnixStream::connect(&socket));
    assert_eq!(asked.map(drop).expect_err("it answered").kind(), ErrorKind::PermissionDenied);
}
